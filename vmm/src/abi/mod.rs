//! The ioctl boundary, byte for byte: request numbers, structure layouts and errno values of FreeBSD/amd64.
//!
//! Both sides of the boundary are written against these definitions: the kernel reads arguments of its own generation,
//! and each generation of libvmmapi writes arguments of its own. A structure that changes size changes its request
//! number, so that an ABI break shows up as it does on the real system: as `ENOTTY`.
//!
//! Source: `sys/amd64/include/vmm_dev.h`, `vmm.h`, `sys/sys/ioccom.h` of FreeBSD 13, gathered in the project's
//! specification of the boundary.

mod layout;

pub use layout::*;

use std::fmt;

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// An error number as FreeBSD numbers it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[allow(missing_docs, reason = "the names are errno's own")]
        pub enum Errno {
            $($name = $number,)*
        }

        impl Errno {
            /// Every error number that the boundary uses.
            pub const ALL: &[Errno] = &[$(Errno::$name),*];
        }

        /// As `strerror` says it.
        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Errno::$name => $text,)*
                })
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EIO = 5, "Input/output error";
    EBADF = 9, "Bad file descriptor";
    ENOMEM = 12, "Cannot allocate memory";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device busy";
    EEXIST = 17, "File exists";
    EINVAL = 22, "Invalid argument";
    ENOTTY = 25, "Inappropriate ioctl for device";
    ENOSPC = 28, "No space left on device";
    ERANGE = 34, "Result too large";
    EALREADY = 37, "Operation already in progress";
    EOPNOTSUPP = 45, "Operation not supported";
}

impl Errno {
    /// The number.
    #[must_use]
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl std::error::Error for Errno {}

/// An ioctl request: `_IOC(inout, 'v', num, len)` (`sys/ioccom.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request(pub u32);

const IOC_VOID: u32 = 0x2000_0000;
const IOC_OUT: u32 = 0x4000_0000;
const IOC_IN: u32 = 0x8000_0000;

impl Request {
    const fn new(inout: u32, num: u8, len: usize) -> Request {
        assert!(len <= 0x1fff, "IOCPARM_MASK");
        Request(inout | (len as u32) << 16 | (b'v' as u32) << 8 | num as u32)
    }

    const fn io(num: u8) -> Request {
        Request::new(IOC_VOID, num, 0)
    }

    const fn ior<T>(num: u8) -> Request {
        Request::new(IOC_OUT, num, size_of::<T>())
    }

    const fn iow<T>(num: u8) -> Request {
        Request::new(IOC_IN, num, size_of::<T>())
    }

    const fn iowr<T>(num: u8) -> Request {
        Request::new(IOC_IN | IOC_OUT, num, size_of::<T>())
    }

    /// `IOCPARM_LEN`: the size of the argument in bytes.
    #[must_use]
    pub const fn argument_len(self) -> usize {
        (self.0 >> 16 & 0x1fff) as usize
    }
}

macro_rules! requests {
    ($($name:ident = $make:ident $(<$argument:ty>)? ($num:literal);)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, number ", stringify!($num), ".")]
            pub const $name: Request = Request::$make $(::<$argument>)? ($num);
        )*

        /// Every request with its name.
        pub const REQUESTS: &[(&str, Request)] = &[$((stringify!($name), $name)),*];
    };
}

requests! {
    VM_RUN = iowr<VmRun>(1);
    VM_SET_CAPABILITY = iow<VmCapability>(2);
    VM_GET_CAPABILITY = iowr<VmCapability>(3);
    VM_SUSPEND = iow<VmSuspend>(4);
    VM_REINIT = io(5);
    VM_GLA2GPA = iowr<VmGla2Gpa>(13);
    VM_ALLOC_MEMSEG = iow<VmMemseg>(14);
    VM_GET_MEMSEG = iowr<VmMemseg>(15);
    VM_MMAP_MEMSEG = iow<VmMemmap>(16);
    VM_MMAP_GETNEXT = iowr<VmMemmap>(17);
    VM_GLA2GPA_NOFAULT = iowr<VmGla2Gpa>(18);
    VM_MUNMAP_MEMSEG = iow<VmMunmap>(19);
    VM_SET_REGISTER = iow<VmRegister>(20);
    VM_GET_REGISTER = iowr<VmRegister>(21);
    VM_SET_SEGMENT_DESCRIPTOR = iow<VmSegDesc>(22);
    VM_GET_SEGMENT_DESCRIPTOR = iowr<VmSegDesc>(23);
    VM_SET_REGISTER_SET = iow<VmRegisterSet>(24);
    VM_GET_REGISTER_SET = iowr<VmRegisterSet>(25);
    VM_GET_INTINFO = iowr<VmIntinfo>(28);
    VM_SET_INTINFO = iow<VmIntinfo>(29);
    VM_INJECT_EXCEPTION = iow<VmException>(30);
    VM_LAPIC_IRQ = iow<VmLapicIrq>(31);
    VM_INJECT_NMI = iow<VmNmi>(32);
    VM_IOAPIC_ASSERT_IRQ = iow<VmIoapicIrq>(33);
    VM_IOAPIC_DEASSERT_IRQ = iow<VmIoapicIrq>(34);
    VM_IOAPIC_PULSE_IRQ = iow<VmIoapicIrq>(35);
    VM_LAPIC_MSI = iow<VmLapicMsi>(36);
    VM_LAPIC_LOCAL_IRQ = iow<VmLapicIrq>(37);
    VM_IOAPIC_PINCOUNT = ior<i32>(38);
    VM_RESTART_INSTRUCTION = iow<i32>(39);
    VM_STATS = iowr<VmStats>(50);
    VM_STAT_DESC = iowr<VmStatDesc>(51);
    VM_SET_X2APIC_STATE = iow<VmX2apic>(60);
    VM_GET_X2APIC_STATE = iowr<VmX2apic>(61);
    VM_GET_HPET_CAPABILITIES = ior<VmHpetCap>(62);
    VM_SET_TOPOLOGY = iow<VmCpuTopology>(63);
    VM_GET_TOPOLOGY = ior<VmCpuTopology>(64);
    VM_ISA_ASSERT_IRQ = iow<VmIsaIrq>(80);
    VM_ISA_DEASSERT_IRQ = iow<VmIsaIrq>(81);
    VM_ISA_PULSE_IRQ = iow<VmIsaIrq>(82);
    VM_ISA_SET_IRQ_TRIGGER = iow<VmIsaIrqTrigger>(83);
    VM_ACTIVATE_CPU = iow<VmActivateCpu>(90);
    VM_GET_CPUS = iow<VmCpuset>(91);
    VM_SUSPEND_CPU = iow<VmActivateCpu>(92);
    VM_RESUME_CPU = iow<VmActivateCpu>(93);
    VM_RTC_READ = iowr<VmRtcData>(100);
    VM_RTC_WRITE = iow<VmRtcData>(101);
    VM_RTC_SETTIME = iow<VmRtcTime>(102);
    VM_RTC_GETTIME = ior<VmRtcTime>(103);
}

/// The request's name, or `unknown`.
#[must_use]
pub fn request_name(request: Request) -> &'static str {
    REQUESTS.iter().find(|(_, known)| *known == request).map_or("unknown", |(name, _)| name)
}

/// Exit codes of VM_RUN (`enum vm_exitcode`).
pub mod exitcode {
    macro_rules! exitcodes {
        ($($name:ident = $number:literal,)*) => {
            $(
                #[doc = concat!("`VM_EXITCODE_", stringify!($name), "`.")]
                pub const $name: u32 = $number;
            )*

            /// The exit code's name without its prefix, or `unknown`.
            #[must_use]
            pub fn name(code: u32) -> &'static str {
                match code {
                    $($number => stringify!($name),)*
                    _ => "unknown",
                }
            }
        };
    }

    exitcodes! {
        INOUT = 0,
        VMX = 1,
        BOGUS = 2,
        RDMSR = 3,
        WRMSR = 4,
        HLT = 5,
        MTRAP = 6,
        PAUSE = 7,
        PAGING = 8,
        INST_EMUL = 9,
        SPINUP_AP = 10,
        DEPRECATED1 = 11,
        RENDEZVOUS = 12,
        IOAPIC_EOI = 13,
        SUSPENDED = 14,
        INOUT_STR = 15,
        TASK_SWITCH = 16,
        MONITOR = 17,
        MWAIT = 18,
        SVM = 19,
        REQIDLE = 20,
        DEBUG = 21,
        VMINSN = 22,
        BPT = 23,
        IPI = 24,
    }
}

/// Capabilities of a vCPU (`enum vm_cap_type`).
pub mod cap {
    /// HLT leaves the guest.
    pub const HALT_EXIT: i32 = 0;
    /// Monitor trap: exit after each instruction.
    pub const MTRAP_EXIT: i32 = 1;
    /// PAUSE leaves the guest.
    pub const PAUSE_EXIT: i32 = 2;
    /// The guest may run in real mode.
    pub const UNRESTRICTED_GUEST: i32 = 3;
    /// INVPCID is offered.
    pub const ENABLE_INVPCID: i32 = 4;
    /// Breakpoints leave the guest.
    pub const BPT_EXIT: i32 = 5;
    /// RDPID is offered.
    pub const RDPID: i32 = 6;
    /// RDTSCP is offered.
    pub const RDTSCP: i32 = 7;
    /// INIT and STARTUP are handled by userspace (0bda8d3e9f7a, D35623).
    pub const IPI_EXIT: i32 = 8;
    /// `VM_CAP_MAX` before 0bda8d3e9f7a. \[inferred]
    pub const MAX_BEFORE_IPI_EXIT: i32 = 8;
    /// `VM_CAP_MAX` from 0bda8d3e9f7a on.
    pub const MAX_WITH_IPI_EXIT: i32 = 9;
}

/// How a VM is suspended as a whole (`enum vm_suspend_how`).
pub mod suspend {
    /// Not suspended; not accepted from userspace.
    pub const NONE: i32 = 0;
    /// Reset.
    pub const RESET: i32 = 1;
    /// Power-off.
    pub const POWEROFF: i32 = 2;
    /// All vCPUs halted with interrupts off.
    pub const HALT: i32 = 3;
    /// Triple fault.
    pub const TRIPLEFAULT: i32 = 4;
    /// The first number past the list.
    pub const LAST: i32 = 5;

    /// The reason in words.
    #[must_use]
    pub fn name(how: i32) -> &'static str {
        match how {
            NONE => "none",
            RESET => "reset",
            POWEROFF => "poweroff",
            HALT => "halt",
            TRIPLEFAULT => "triple fault",
            _ => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_freebsds() {
        assert_eq!(VM_RUN.0, 0xC090_7601, "_IOWR('v', 1, 144 bytes)");
        assert_eq!(VM_REINIT.0, 0x2000_7605);
        assert_eq!(VM_ACTIVATE_CPU.0, 0x8004_765A);
        assert_eq!(VM_SET_TOPOLOGY.0, 0x8008_763F);
        assert_eq!(VM_GET_CPUS.0, 0x8010_765B);
        assert_eq!(VM_RUN.argument_len(), 144);
    }

    #[test]
    fn register_numbers_are_freebsds() {
        use crate::engine::Reg;
        let expected =
            [(7, Reg::R8), (18, Reg::Dr7), (20, Reg::Rip), (22, Reg::Es), (31, Reg::Gdtr), (44, Reg::EntryInstLength)];
        for (number, reg) in expected {
            assert_eq!((reg as i32, Reg::from_number(number)), (number, Some(reg)));
        }
        assert_eq!(Reg::ALL.len(), 45);
    }

    #[test]
    fn request_numbers_are_distinct() {
        let numbers: std::collections::BTreeSet<_> = REQUESTS.iter().map(|(_, request)| request).collect();
        assert_eq!(numbers.len(), REQUESTS.len());
        assert_eq!(request_name(VM_RUN), "VM_RUN");
        assert_eq!(request_name(Request(0)), "unknown");
    }
}
