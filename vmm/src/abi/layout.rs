//! The argument structures, FreeBSD 13 generation: LP64 little-endian with natural C alignment, padding spelled out.

use super::macros::layouts;
use crate::cpuset::CpuSet;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Size of the payload union of [`VmExit`], in bytes.
pub const EXIT_PAYLOAD_LEN: usize = 120;

layouts! {
    /// `struct vm_exit`: why VM_RUN returned.
    VmExit, 136 bytes {
        exitcode: u32,
        /// Bytes to skip when the vCPU goes on; 0 when RIP is already right.
        inst_length: i32,
        rip: u64,
        /// The union; see the `Exit…` structures.
        payload: [u8; EXIT_PAYLOAD_LEN],
    }

    /// `struct vm_run` as it was up to 13.x, the exit by value.
    VmRun, 144 bytes {
        cpuid: i32,
        _pad: u32,
        vm_exit: VmExit,
    }

    /// Payload of INOUT.
    ExitInout, 8 bytes {
        /// Bits 2:0 bytes, bit 3 in, bit 4 string, bit 5 rep.
        flags: u16,
        port: u16,
        /// Valid for OUT.
        eax: u32,
    }

    /// `struct vm_guest_paging`.
    VmGuestPaging, 24 bytes {
        cr3: u64,
        cpl: i32,
        /// 0 real, 1 protected, 2 compatibility, 3 64-bit.
        cpu_mode: i32,
        /// 0 flat, 1 32-bit, 2 PAE, 3 64-bit.
        paging_mode: i32,
        _pad: u32,
    }

    /// Payload of INST_EMUL: an access to a guest physical address that the kernel does not emulate.
    ExitInstEmul, 120 bytes {
        gpa: u64,
        gla: u64,
        cs_base: u64,
        cs_d: i32,
        _pad: u32,
        paging: VmGuestPaging,
        /// `struct vie`: the first 15 bytes are those of the instruction, byte 15 counts the valid ones.
        vie: [u8; 64],
    }

    /// Payload of PAGING.
    ExitPaging, 16 bytes {
        gpa: u64,
        fault_type: i32,
        _pad: u32,
    }

    /// Payload of RDMSR and WRMSR.
    ExitMsr, 16 bytes {
        code: u32,
        _pad: u32,
        wval: u64,
    }

    /// Payload of SPINUP_AP.
    ExitSpinupAp, 16 bytes {
        vcpu: i32,
        _pad: u32,
        rip: u64,
    }

    /// Payload of HLT.
    ExitHlt, 16 bytes {
        rflags: u64,
        intr_status: u64,
    }

    /// Payload of VMX: an exit that the kernel does not handle.
    ExitVmx, 32 bytes {
        status: i32,
        exit_reason: u32,
        exit_qualification: u64,
        inst_type: i32,
        inst_error: i32,
        _pad: u64,
    }

    /// Payload of IOAPIC_EOI.
    ExitIoapicEoi, 4 bytes {
        vector: i32,
    }

    /// Payload of SUSPENDED.
    ExitSuspended, 4 bytes {
        how: i32,
    }

    /// Payload of IPI from 0bda8d3e9f7a on, the mask by value: until 14, and in VM_RUN of 13.x on later kernels.
    ExitIpi, 40 bytes {
        /// The ICR's delivery mode bits, unshifted: 0x500 or 0x600.
        mode: u32,
        vector: u8,
        _pad: [u8; 3],
        dmask: [u64; 4],
    }

    /// Payload of DB (15 on): a debug exception. \[unverified]
    ExitDbg, 40 bytes {
        trace_trap: i32,
        pushf_intercept: i32,
        tf_shadow_val: i32,
        _pad: u32,
        paging: VmGuestPaging,
    }

    /// `struct vm_memmap`.
    VmMemmap, 40 bytes {
        gpa: u64,
        segid: i32,
        _pad: u32,
        segoff: i64,
        len: u64,
        prot: i32,
        /// WIRED 1, IOMMU 2.
        flags: i32,
    }

    /// `struct vm_munmap`.
    VmMunmap, 16 bytes {
        gpa: u64,
        len: u64,
    }

    /// `struct vm_memseg`, 13 on.
    VmMemseg, 32 bytes {
        segid: i32,
        _pad: u32,
        len: u64,
        /// NUL-terminated; empty for system memory.
        name: [u8; 16],
    }

    /// `struct vm_register`.
    VmRegister, 16 bytes {
        cpuid: i32,
        regnum: i32,
        regval: u64,
    }

    /// `struct vm_seg_desc`.
    VmSegDesc, 24 bytes {
        cpuid: i32,
        regnum: i32,
        base: u64,
        limit: u32,
        access: u32,
    }

    /// `struct vm_register_set`; the pointers count from the first byte of the argument.
    VmRegisterSet, 24 bytes {
        cpuid: i32,
        count: u32,
        regnums: u64,
        regvals: u64,
    }

    /// `struct vm_capability`.
    VmCapability, 16 bytes {
        cpuid: i32,
        captype: i32,
        capval: i32,
        allcpus: i32,
    }

    /// `struct vm_x2apic`.
    VmX2apic, 8 bytes {
        cpuid: i32,
        /// 0 disabled, 1 enabled.
        state: i32,
    }

    /// `struct vm_activate_cpu`.
    VmActivateCpu, 4 bytes {
        vcpuid: i32,
    }

    /// `struct vm_snapshot_meta`, 13.x; see [`super::snapshot`]. The pointers count from the first byte of the argument.
    VmSnapshotMeta, 72 bytes {
        /// Ignored.
        ctx: u64,
        dev_data: u64,
        /// Of devices in userspace; ignored by the kernel.
        dev_name: u64,
        /// `enum snapshot_req`: which structure.
        dev_req: u32,
        _pad: u32,
        buf_start: u64,
        buf_size: u64,
        /// Where the next byte goes or comes from; the kernel advances it.
        buf: u64,
        /// How many bytes are left behind `buf`; the kernel counts it down.
        buf_rem: u64,
        /// `enum vm_snapshot_op`: 0 save, 1 restore.
        op: u32,
        _pad_end: u32,
    }

    /// `struct vm_cpuset`; the pointer counts from the first byte of the argument.
    VmCpuset, 16 bytes {
        /// 0 active, 1 suspended, 2 debug.
        which: i32,
        cpusetsize: i32,
        cpus: u64,
    }

    /// `struct vm_cpu_topology`.
    VmCpuTopology, 8 bytes {
        sockets: u16,
        cores: u16,
        threads: u16,
        maxcpus: u16,
    }

    /// `struct vm_suspend`.
    VmSuspend, 4 bytes {
        how: i32,
    }

    /// `struct vm_exception`.
    VmException, 20 bytes {
        cpuid: i32,
        vector: i32,
        error_code: u32,
        error_code_valid: i32,
        restart_instruction: i32,
    }

    /// `struct vm_lapic_irq`.
    VmLapicIrq, 8 bytes {
        cpuid: i32,
        vector: i32,
    }

    /// `struct vm_lapic_msi`.
    VmLapicMsi, 16 bytes {
        msg: u64,
        addr: u64,
    }

    /// `struct vm_ioapic_irq`.
    VmIoapicIrq, 4 bytes {
        irq: i32,
    }

    /// `struct vm_isa_irq`.
    VmIsaIrq, 8 bytes {
        atpic_irq: i32,
        ioapic_irq: i32,
    }

    /// `struct vm_isa_irq_trigger`.
    VmIsaIrqTrigger, 8 bytes {
        atpic_irq: i32,
        /// 0 edge, 1 level.
        trigger: i32,
    }

    /// `struct vm_nmi`.
    VmNmi, 4 bytes {
        cpuid: i32,
    }

    /// `struct vm_intinfo`.
    VmIntinfo, 24 bytes {
        vcpuid: i32,
        _pad: u32,
        info1: u64,
        info2: u64,
    }

    /// `struct vm_stats`.
    VmStats, 536 bytes {
        cpuid: i32,
        num_entries: i32,
        tv_sec: i64,
        tv_usec: i64,
        statbuf: [u64; 64],
    }

    /// `struct vm_stat_desc`.
    VmStatDesc, 132 bytes {
        index: i32,
        desc: [u8; 128],
    }

    /// `struct vm_rtc_data`.
    VmRtcData, 8 bytes {
        offset: i32,
        value: u8,
        _pad: [u8; 3],
    }

    /// `struct vm_rtc_time`.
    VmRtcTime, 8 bytes {
        secs: i64,
    }

    /// `struct vm_hpet_cap`.
    VmHpetCap, 4 bytes {
        capabilities: u32,
    }

    /// `struct vm_gla2gpa`.
    VmGla2Gpa, 56 bytes {
        vcpuid: i32,
        prot: i32,
        gla: u64,
        paging: VmGuestPaging,
        fault: i32,
        _pad: u32,
        gpa: u64,
    }
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

impl ExitInout {
    /// Size of the access in bytes: 1, 2 or 4.
    #[must_use]
    pub fn bytes(&self) -> u8 {
        (self.flags & 7) as u8
    }

    /// Whether it is IN rather than OUT.
    #[must_use]
    pub fn is_in(&self) -> bool {
        self.flags & 1 << 3 != 0
    }

    /// An access of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: u8, is_in: bool, port: u16, eax: u32) -> ExitInout {
        ExitInout { flags: u16::from(bytes) | u16::from(is_in) << 3, port, eax }
    }
}

impl ExitIpi {
    /// The exit for an IPI of this mode (ICR bits 10:8, unshifted). vCPUs from 256 on are left out without a word.
    #[must_use]
    pub fn new(mode: u32, vector: u8, dmask: CpuSet) -> ExitIpi {
        let [a, b, c, d, ..] = dmask.words();
        ExitIpi { mode, vector, _pad: [0; 3], dmask: [a, b, c, d] }
    }

    /// The vCPUs that the IPI is for.
    #[must_use]
    pub fn dmask(&self) -> CpuSet {
        CpuSet::from_words(self.dmask)
    }
}

macro_rules! memsegs {
    ($($type:ty),*) => {
        $(
            impl $type {
                /// A segment of this number, length in bytes and name, which is cut off where the structure ends.
                #[must_use]
                pub fn new(segid: i32, len: u64, name: &str) -> $type {
                    let mut memseg = <$type as Default>::default();
                    (memseg.segid, memseg.len, memseg.name) = (segid, len, super::name_field(name));
                    memseg
                }

                /// The segment's name, without the NUL.
                #[must_use]
                pub fn name(&self) -> String {
                    super::name_in(&self.name)
                }
            }
        )*
    };
}

memsegs!(VmMemseg, super::v12::VmMemseg, super::v15::VmMemseg, super::illumos::VmMemseg);

impl super::v14::VmRun {
    /// The argument for a vCPU, with room for the exit and then a mask of `cpusetsize` bytes behind it.
    #[must_use]
    pub fn new(cpuid: i32, cpusetsize: usize) -> super::v14::VmRun {
        let vm_exit = size_of::<super::v14::VmRun>() as u64;
        let cpuset = vm_exit + size_of::<VmExit>() as u64;
        super::v14::VmRun { cpuid, cpuset, cpusetsize: cpusetsize as u64, vm_exit, ..super::v14::VmRun::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_stand_where_c_puts_them() {
        assert_eq!(offset_of!(VmRun, vm_exit), 8);
        assert_eq!(offset_of!(VmExit, payload), 16);
        assert_eq!(offset_of!(ExitSpinupAp, rip), 8);
        assert_eq!(offset_of!(ExitIpi, dmask), 8);
        assert_eq!(offset_of!(VmMemmap, segoff), 16);
        assert_eq!(offset_of!(VmGla2Gpa, gpa), 48);
        assert_eq!(offset_of!(VmStats, statbuf), 24);
        assert_eq!(offset_of!(ExitInstEmul, vie), 56);
    }

    #[test]
    fn payloads_survive_the_union() {
        let ipi = ExitIpi::new(0x600, 0x08, [1, 2, 200].into_iter().collect());
        let exit = VmExit::new(24, &ipi);
        assert_eq!(exit.payload::<ExitIpi>(), ipi);
        assert_eq!(exit.payload::<ExitIpi>().dmask().to_string(), "{1,2,200}");
    }

    #[test]
    fn inout_flags() {
        let inout = ExitInout::new(4, true, 0x402, 7);
        assert_eq!((inout.bytes(), inout.is_in(), inout.flags), (4, true, 0b1100));
    }
}
