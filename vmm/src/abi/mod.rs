//! The ioctl boundary, byte for byte: request numbers, structure layouts and errno values of FreeBSD/amd64.
//!
//! Both sides of the boundary are written against these definitions: the kernel reads arguments of its own generation,
//! and each generation of libvmmapi writes arguments of its own. A structure that changes size changes its request
//! number, so that an ABI break shows up as it does on the real system: as `ENOTTY`.
//!
//! What stands here is the generation of FreeBSD 13; [`v12`], [`v14`] and [`v15`] hold what is different there, under the same
//! names, [`vmmctl`] the device that 15 brought, and [`illumos`] that system's own boundary. Pointers inside an argument count
//! from its first byte, so that what they point to stands in the same bytes, behind the structure.
//!
//! Source: `sys/amd64/include/vmm_dev.h`, `vmm.h`, `sys/sys/ioccom.h` of FreeBSD 13, gathered in the project's
//! specification of the boundary.

pub mod illumos;
mod layout;
mod macros;
pub mod snapshot;
pub mod v12;
pub mod v14;
pub mod v15;
pub mod vmmctl;
pub mod wide;

pub use layout::*;

use macros::{exitcodes, requests};
use std::fmt;

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// An error number as FreeBSD numbers it; that is how traces show it, whatever the kernel.
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
    ENXIO = 6, "Device not configured";
    E2BIG = 7, "Argument list too long";
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

    /// The number that illumos gives it (`sys/errno.h`): System V's from 35 on.
    #[must_use]
    pub fn number_on_illumos(self) -> i32 {
        match self {
            Errno::EOPNOTSUPP => 122,
            Errno::EALREADY => 149,
            other => other as i32,
        }
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

    /// The same request in another group than `'v'`.
    const fn in_group(self, group: u8) -> Request {
        Request(self.0 & !0xff00 | (group as u32) << 8)
    }

    /// `IOCPARM_LEN`: the size of the argument in bytes.
    #[must_use]
    pub const fn argument_len(self) -> usize {
        (self.0 >> 16 & 0x1fff) as usize
    }
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
    VM_SNAPSHOT_REQ = iowr<VmSnapshotMeta>(113);
    VM_RESTORE_TIME = iowr<i32>(115);
}

/// Every generation's requests.
const ALL_REQUESTS: [&[(&str, Request)]; 7] =
    [REQUESTS, v12::REQUESTS, v14::REQUESTS, v15::REQUESTS, vmmctl::REQUESTS, wide::REQUESTS, illumos::REQUESTS];

/// The request's name, or `unknown`. One name can stand for several numbers, a generation's each.
#[must_use]
pub fn request_name(request: Request) -> &'static str {
    let mut known = ALL_REQUESTS.iter().copied().flatten();
    known.find(|(_, number)| *number == request).map_or("unknown", |(name, _)| name)
}

/// A name as a field of fixed size, cut off so that a NUL follows.
fn name_field<const LEN: usize>(name: &str) -> [u8; LEN] {
    let mut field = [0; LEN];
    let len = name.len().min(LEN - 1);
    field[..len].copy_from_slice(&name.as_bytes()[..len]);
    field
}

/// The characters before the NUL.
pub(crate) fn name_in(field: &[u8]) -> String {
    field.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect()
}

/// Exit codes of VM_RUN (`enum vm_exitcode`).
pub mod exitcode {
    super::exitcodes! {
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
        DB = 25,
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
    /// External interrupts are held back (fefac543590d, D39949).
    pub const MASK_HWINTR: i32 = 9;
    /// Single-step by RFLAGS.TF, on AMD (e3b4fe645e50, D42296).
    pub const RFLAGS_TF: i32 = 10;
    /// `VM_CAP_MAX` before 0bda8d3e9f7a. \[inferred]
    pub const MAX_BEFORE_IPI_EXIT: i32 = 8;
    /// `VM_CAP_MAX` from 0bda8d3e9f7a on.
    pub const MAX_WITH_IPI_EXIT: i32 = 9;
    /// `VM_CAP_MAX` from fefac543590d (D39949) on.
    pub const MAX_WITH_MASK_HWINTR: i32 = 10;
    /// `VM_CAP_MAX` from e3b4fe645e50 (D42296) on.
    pub const MAX_WITH_RFLAGS_TF: i32 = 11;
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
    /// The VM is being destroyed (15 on); given by the kernel itself.
    pub const DESTROY: i32 = 5;
    /// The first number past the list before 15.
    pub const LAST: i32 = 5;
    /// The first number past the list from 15 on.
    pub const LAST_WITH_DESTROY: i32 = 6;

    /// The reason in words.
    #[must_use]
    pub fn name(how: i32) -> &'static str {
        match how {
            NONE => "none",
            RESET => "reset",
            POWEROFF => "poweroff",
            HALT => "halt",
            TRIPLEFAULT => "triple fault",
            DESTROY => "destroy",
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
        assert_eq!(v14::VM_RUN.0, 0xC020_7601, "_IOWR('v', 1, 32 bytes)");
        assert_eq!(v12::VM_ALLOC_MEMSEG.0, 0x8050_760E);
        assert_eq!(VM_ALLOC_MEMSEG.0, 0x8020_760E);
        assert_eq!(v15::VM_ALLOC_MEMSEG.0, 0x8038_760E);
        assert_eq!(vmmctl::VMMCTL_VM_CREATE.0, 0xC128_5600);
        assert_eq!(vmmctl::VMMCTL_VM_DESTROY.0, 0xC128_5601);
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
        let all = || ALL_REQUESTS.into_iter().flatten();
        let numbers: std::collections::BTreeSet<_> = all().map(|(_, request)| request).collect();
        assert_eq!(numbers.len(), all().count());
        for request in [VM_RUN, v14::VM_RUN, illumos::VM_RUN] {
            assert_eq!(request_name(request), "VM_RUN");
        }
        assert_eq!(request_name(Request(0)), "unknown");
    }
}
