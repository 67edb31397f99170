//! illumos and Oxide: their own request numbers, structures, exit codes and run states.
//!
//! A request is a plain number that does not tell the size of its argument. Structures that are not here are those of the parent
//! module. The pointer in [`VmEntry`] counts from the first byte of the argument, as everywhere.
//!
//! Source: `usr/src/uts/intel/sys/vmm_dev.h`, `vmm.h` and `vmm_impl.h` of illumos-gate. \[read]

use super::macros::{exitcodes, layouts};
use super::{
    Request, VmActivateCpu, VmCapability, VmCpuTopology, VmCpuset, VmException, VmGla2Gpa, VmGuestPaging, VmHpetCap,
    VmIntinfo, VmIoapicIrq, VmIsaIrq, VmIsaIrqTrigger, VmLapicIrq, VmLapicMsi, VmMemmap, VmMunmap, VmNmi, VmRegister,
    VmRegisterSet, VmRtcData, VmSegDesc, VmStatDesc, VmX2apic,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `VMM_CURRENT_INTERFACE_VERSION`: what [`VMM_INTERFACE_VERSION`] returns, and what propolis insists on.
pub const CURRENT_INTERFACE_VERSION: i32 = 18;

/// `VM_MAX_NAMELEN` and `VM_MAX_SEG_NAMELEN`, the NUL included, in bytes.
pub const MAX_NAMELEN: usize = 128;

/// `VM_MAXCPU`: how many vCPUs a VM can have.
pub const VM_MAXCPU: usize = 32;

/// Size of the payload union of [`VmExit`], in bytes.
pub const EXIT_PAYLOAD_LEN: usize = 48;

layouts! {
    /// `struct vm_create_req`.
    VmCreateReq, 136 bytes {
        name: [u8; MAX_NAMELEN],
        flags: u64,
    }

    /// `struct vm_destroy_req`.
    VmDestroyReq, 128 bytes {
        name: [u8; MAX_NAMELEN],
    }

    /// `struct vm_memseg`.
    VmMemseg, 144 bytes {
        segid: i32,
        _pad: u32,
        len: u64,
        /// NUL-terminated; empty for system memory.
        name: [u8; MAX_NAMELEN],
    }

    /// `struct vm_devmem_offset`: where in the VM's device a named segment can be mapped.
    VmDevmemOffset, 16 bytes {
        segid: i32,
        _pad: u32,
        offset: i64,
    }

    /// `struct vm_suspend`.
    VmSuspend, 8 bytes {
        how: i32,
        /// The vCPU that caused it, or −1.
        source: i32,
    }

    /// `struct vm_reinit`.
    VmReinit, 8 bytes {
        flags: u64,
    }

    /// `struct vm_stats`.
    VmStats, 544 bytes {
        cpuid: i32,
        index: i32,
        num_entries: i32,
        _pad: u32,
        tv_sec: i64,
        tv_usec: i64,
        statbuf: [u64; 64],
    }

    /// `struct vm_vcpu_reset`.
    VmVcpuReset, 8 bytes {
        vcpuid: i32,
        /// [`VRK_RESET`] or [`VRK_INIT`].
        kind: u32,
    }

    /// `struct vm_run_state`.
    VmRunState, 12 bytes {
        vcpuid: i32,
        /// Bits of [`vrs`].
        state: u32,
        sipi_vector: u8,
        _pad: [u8; 3],
    }

    /// `struct vm_inout`.
    VmInout, 12 bytes {
        eax: u32,
        port: u16,
        /// 1, 2 or 4.
        bytes: u8,
        /// Bit 0: IN. The others are not shown to userspace.
        flags: u8,
        addrsize: u8,
        segment: u8,
        _pad: u16,
    }

    /// `struct vm_mmio`.
    VmMmio, 24 bytes {
        /// 1, 2, 4 or 8.
        bytes: u8,
        read: u8,
        _pad: [u16; 3],
        gpa: u64,
        data: u64,
    }

    /// `struct vm_exit`.
    VmExit, 64 bytes {
        exitcode: u32,
        inst_length: i32,
        rip: u64,
        /// The union: [`VmInout`], [`VmMmio`], the `Exit…` structures here and some of the parent module.
        payload: [u8; EXIT_PAYLOAD_LEN],
    }

    /// `struct vm_entry`, the argument of [`VM_RUN`].
    VmEntry, 40 bytes {
        cpuid: i32,
        /// One of [`entry_cmd`], and perhaps its flag.
        cmd: u32,
        /// Where the [`VmExit`] goes.
        exit_data: u64,
        /// The result that `cmd` brings, if any: [`VmInout`] or [`VmMmio`].
        fulfil: [u8; 24],
    }

    /// Payload of SUSPENDED.
    ExitSuspended, 16 bytes {
        how: i32,
        /// The vCPU that caused it, or −1.
        source: i32,
        /// When, in nanoseconds since the VM's creation.
        when: u64,
    }

    /// Payload of HLT.
    ExitHlt, 8 bytes {
        rflags: u64,
    }

    /// Payload of INST_EMUL: an instruction that the kernel cannot emulate.
    ExitInstEmul, 16 bytes {
        inst: [u8; 15],
        num_valid: u8,
    }

    /// Payload of PAGING.
    ExitPaging, 16 bytes {
        gpa: u64,
        fault_type: i32,
        _pad: u32,
    }

    /// Payload of TASK_SWITCH.
    ExitTaskSwitch, 48 bytes {
        tsssel: u16,
        _pad: u16,
        ext: i32,
        errcode: u32,
        errcode_valid: i32,
        reason: u32,
        _pad_paging: u32,
        paging: VmGuestPaging,
    }
}

const VMMCTL: u32 = (b'V' as u32) << 16 | (b'M' as u32) << 8;
const VMM: u32 = (b'v' as u32) << 16 | (b'm' as u32) << 8;
const VMM_LOCK: u32 = (b'v' as u32) << 16 | (b'l' as u32) << 8;
const VMM_CPU: u32 = (b'v' as u32) << 16 | (b'p' as u32) << 8;

macro_rules! plain_requests {
    ($($name:ident = $base:ident | $num:literal, $argument:ty;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`, `", stringify!($base), "_IOC_BASE | ", stringify!($num), "`.")]
            pub const $name: Request = Request($base | $num);
        )*

        /// Every request of this module with its name.
        pub const REQUESTS: &[(&str, Request)] = &[$((stringify!($name), $name)),*];

        /// The size of a request's argument in bytes; `None` for an unknown request.
        #[must_use]
        pub fn argument_len(request: Request) -> Option<usize> {
            match request {
                $($name => Some(size_of::<$argument>()),)*
                _ => None,
            }
        }
    };
}

plain_requests! {
    VMM_CREATE_VM = VMMCTL | 0x01, VmCreateReq;
    VMM_DESTROY_VM = VMMCTL | 0x02, VmDestroyReq;
    VMM_VM_SUPPORTED = VMMCTL | 0x03, ();
    VMM_INTERFACE_VERSION = VMMCTL | 0x04, i32;

    VM_RUN = VMM_CPU | 0x01, VmEntry;
    VM_SET_REGISTER = VMM_CPU | 0x02, VmRegister;
    VM_GET_REGISTER = VMM_CPU | 0x03, VmRegister;
    VM_SET_SEGMENT_DESCRIPTOR = VMM_CPU | 0x04, VmSegDesc;
    VM_GET_SEGMENT_DESCRIPTOR = VMM_CPU | 0x05, VmSegDesc;
    VM_SET_REGISTER_SET = VMM_CPU | 0x06, VmRegisterSet;
    VM_GET_REGISTER_SET = VMM_CPU | 0x07, VmRegisterSet;
    VM_INJECT_EXCEPTION = VMM_CPU | 0x08, VmException;
    VM_SET_CAPABILITY = VMM_CPU | 0x09, VmCapability;
    VM_GET_CAPABILITY = VMM_CPU | 0x0a, VmCapability;
    VM_SET_X2APIC_STATE = VMM_CPU | 0x0d, VmX2apic;
    VM_GLA2GPA = VMM_CPU | 0x0e, VmGla2Gpa;
    VM_GLA2GPA_NOFAULT = VMM_CPU | 0x0f, VmGla2Gpa;
    VM_ACTIVATE_CPU = VMM_CPU | 0x10, VmActivateCpu;
    VM_SET_INTINFO = VMM_CPU | 0x11, VmIntinfo;
    VM_GET_INTINFO = VMM_CPU | 0x12, VmIntinfo;
    VM_RESTART_INSTRUCTION = VMM_CPU | 0x13, i32;
    VM_RESET_CPU = VMM_CPU | 0x16, VmVcpuReset;
    VM_GET_RUN_STATE = VMM_CPU | 0x17, VmRunState;
    VM_SET_RUN_STATE = VMM_CPU | 0x18, VmRunState;

    VM_REINIT = VMM_LOCK | 0x01, VmReinit;
    VM_ALLOC_MEMSEG = VMM_LOCK | 0x05, VmMemseg;
    VM_MMAP_MEMSEG = VMM_LOCK | 0x06, VmMemmap;
    VM_MUNMAP_MEMSEG = VMM_LOCK | 0x08, VmMunmap;

    VM_GET_MEMSEG = VMM | 0x02, VmMemseg;
    VM_MMAP_GETNEXT = VMM | 0x03, VmMemmap;
    VM_LAPIC_IRQ = VMM | 0x04, VmLapicIrq;
    VM_LAPIC_LOCAL_IRQ = VMM | 0x05, VmLapicIrq;
    VM_LAPIC_MSI = VMM | 0x06, VmLapicMsi;
    VM_IOAPIC_ASSERT_IRQ = VMM | 0x07, VmIoapicIrq;
    VM_IOAPIC_DEASSERT_IRQ = VMM | 0x08, VmIoapicIrq;
    VM_IOAPIC_PULSE_IRQ = VMM | 0x09, VmIoapicIrq;
    VM_ISA_ASSERT_IRQ = VMM | 0x0a, VmIsaIrq;
    VM_ISA_DEASSERT_IRQ = VMM | 0x0b, VmIsaIrq;
    VM_ISA_PULSE_IRQ = VMM | 0x0c, VmIsaIrq;
    VM_ISA_SET_IRQ_TRIGGER = VMM | 0x0d, VmIsaIrqTrigger;
    VM_RTC_WRITE = VMM | 0x0e, VmRtcData;
    VM_RTC_READ = VMM | 0x0f, VmRtcData;
    VM_RTC_SETTIME = VMM | 0x10, super::VmRtcTime;
    VM_RTC_GETTIME = VMM | 0x11, super::VmRtcTime;
    VM_SUSPEND = VMM | 0x12, VmSuspend;
    VM_IOAPIC_PINCOUNT = VMM | 0x13, i32;
    VM_GET_HPET_CAPABILITIES = VMM | 0x15, VmHpetCap;
    VM_STATS = VMM | 0x16, VmStats;
    VM_STAT_DESC = VMM | 0x17, VmStatDesc;
    VM_INJECT_NMI = VMM | 0x18, VmNmi;
    VM_GET_X2APIC_STATE = VMM | 0x19, VmX2apic;
    VM_SET_TOPOLOGY = VMM | 0x1a, VmCpuTopology;
    VM_GET_TOPOLOGY = VMM | 0x1b, VmCpuTopology;
    VM_GET_CPUS = VMM | 0x1c, VmCpuset;
    VM_SUSPEND_CPU = VMM | 0x1d, VmActivateCpu;
    VM_RESUME_CPU = VMM | 0x1e, VmActivateCpu;
    VM_DEVMEM_GETOFFSET = VMM | 0xff, VmDevmemOffset;
}

/// `VRK_RESET`: a reset as after power-up.
pub const VRK_RESET: u32 = 0;
/// `VRK_INIT`: what an INIT resets.
pub const VRK_INIT: u32 = 1;

/// `enum vcpu_run_state`: what keeps a vCPU from running, or lets it.
pub mod vrs {
    /// Neither started nor waiting for a STARTUP.
    pub const HALT: u32 = 0;
    /// INIT was carried out: waits for a STARTUP, or has had one.
    pub const INIT: u32 = 1 << 0;
    /// Runs.
    pub const RUN: u32 = 1 << 1;
    /// An INIT is to be carried out.
    pub const PEND_INIT: u32 = 1 << 14;
    /// A STARTUP came.
    pub const PEND_SIPI: u32 = 1 << 15;
}

/// `enum vm_entry_cmds`: what userspace brings to VM_RUN.
pub mod entry_cmd {
    /// Nothing.
    pub const DEFAULT: u32 = 0;
    /// Forget the instruction in flight.
    pub const DISCARD_INSTR: u32 = 1;
    /// The result of a [`super::VmMmio`] exit.
    pub const FULFILL_MMIO: u32 = 2;
    /// The result of a [`super::VmInout`] exit.
    pub const FULFILL_INOUT: u32 = 3;
    /// May be added: come back as soon as no instruction is in flight.
    pub const FLAG_EXIT_CONSISTENT: u32 = 1 << 31;
}

/// Exit codes (`enum vm_exitcode`).
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
        RUN_STATE = 10,
        MMIO_EMUL = 11,
        DEPRECATED = 12,
        IOAPIC_EOI = 13,
        SUSPENDED = 14,
        MMIO = 15,
        TASK_SWITCH = 16,
        MONITOR = 17,
        MWAIT = 18,
        SVM = 19,
        DEPRECATED2 = 20,
        DEBUG = 21,
        VMINSN = 22,
        BPT = 23,
        HT = 24,
    }
}

/// Capabilities of a vCPU (`enum vm_cap_type`): without UNRESTRICTED_GUEST, so that all behind it have other numbers.
pub mod cap {
    /// HLT leaves the guest.
    pub const HALT_EXIT: i32 = 0;
    /// Monitor trap: exit after each instruction.
    pub const MTRAP_EXIT: i32 = 1;
    /// PAUSE leaves the guest.
    pub const PAUSE_EXIT: i32 = 2;
    /// INVPCID is offered.
    pub const ENABLE_INVPCID: i32 = 3;
    /// Breakpoints leave the guest.
    pub const BPT_EXIT: i32 = 4;
    /// `VM_CAP_MAX`.
    pub const MAX: i32 = 5;
}

impl VmExit {
    /// An exit with this code and payload.
    #[must_use]
    pub fn new<T: IntoBytes + Immutable>(exitcode: u32, payload: &T) -> VmExit {
        let mut exit = VmExit { exitcode, ..VmExit::default() };
        let bytes = payload.as_bytes();
        exit.payload[..bytes.len()].copy_from_slice(bytes);
        exit
    }

    /// The payload as the structure of this exit code.
    #[must_use]
    pub fn payload<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.payload).expect("every payload is smaller than the union").0
    }
}

impl VmEntry {
    /// The argument of a VM_RUN that brings nothing; the exit goes behind it.
    #[must_use]
    pub fn new(cpuid: i32) -> VmEntry {
        VmEntry { cpuid, exit_data: size_of::<VmEntry>() as u64, ..VmEntry::default() }
    }

    /// The same with the result of an exit, a [`VmInout`] or [`VmMmio`].
    #[must_use]
    pub fn fulfilling<T: IntoBytes + Immutable>(mut self, cmd: u32, result: &T) -> VmEntry {
        self.cmd = cmd;
        let bytes = result.as_bytes();
        self.fulfil[..bytes.len()].copy_from_slice(bytes);
        self
    }
}

impl VmInout {
    /// `INOUT_IN` of `flags`.
    pub const IN: u8 = 1;

    /// Whether it is IN rather than OUT.
    #[must_use]
    pub fn is_in(&self) -> bool {
        self.flags & VmInout::IN != 0
    }
}

impl VmCreateReq {
    /// The argument for a VM of this name, cut off at [`MAX_NAMELEN`] − 1 bytes.
    #[must_use]
    pub fn named(name: &str) -> VmCreateReq {
        VmCreateReq { name: super::name_field(name), ..VmCreateReq::default() }
    }
}

impl VmDestroyReq {
    /// The argument for a VM of this name, cut off at [`MAX_NAMELEN`] − 1 bytes.
    #[must_use]
    pub fn named(name: &str) -> VmDestroyReq {
        VmDestroyReq { name: super::name_field(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_stand_where_c_puts_them() {
        assert_eq!(offset_of!(VmExit, payload), 16);
        assert_eq!(offset_of!(VmEntry, fulfil), 16);
        assert_eq!(offset_of!(VmMmio, gpa), 8);
        assert_eq!(offset_of!(VmInout, bytes), 6);
        assert_eq!(offset_of!(VmStats, statbuf), 32);
        assert_eq!(offset_of!(ExitTaskSwitch, paging), 24);
        assert_eq!(size_of::<ExitTaskSwitch>(), EXIT_PAYLOAD_LEN, "the largest payload");
    }

    #[test]
    fn requests_are_plain_numbers() {
        assert_eq!(VM_RUN.0, 0x76_7001);
        assert_eq!(VMM_CREATE_VM.0, 0x56_4d01);
        assert_eq!(VM_REINIT.0, 0x76_6c01);
        assert_eq!(VM_GET_CPUS.0, 0x76_6d1c);
        assert_eq!((argument_len(VM_SET_RUN_STATE), argument_len(super::super::VM_RUN)), (Some(12), None));
    }

    #[test]
    fn results_and_payloads_survive_their_unions() {
        let mmio = VmMmio { bytes: 4, read: 1, gpa: 0xc000_0000, data: 0x1234, ..VmMmio::default() };
        let entry = VmEntry::new(3).fulfilling(entry_cmd::FULFILL_MMIO, &mmio);
        assert_eq!(VmMmio::read_from_bytes(&entry.fulfil).expect("24 bytes"), mmio);
        assert_eq!(VmExit::new(exitcode::MMIO, &mmio).payload::<VmMmio>(), mmio);
    }
}
