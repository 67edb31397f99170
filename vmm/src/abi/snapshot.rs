//! `VM_SNAPSHOT_REQ`: which structure of the kernel is saved or restored, and how (`vmm_snapshot.h`).
//!
//! The argument is a [`VmSnapshotMeta`](super::VmSnapshotMeta) of the frontend's generation; the buffer stands behind it. The
//! kernel writes or reads at `buf`, and moves `buf` and `buf_rem` as it goes. A buffer that is too small is E2BIG when it saves,
//! EINVAL when it restores.

/// `enum snapshot_req`.
pub mod req {
    /// The I/O APIC.
    pub const VIOAPIC: u32 = 1;
    /// The VM itself: what all its vCPUs share, and what each of them is doing.
    pub const VM: u32 = 2;
    /// The local APICs.
    pub const VLAPIC: u32 = 3;
    /// Guest memory, which the frontend saves itself: EINVAL.
    pub const VM_MEM: u32 = 4;
    /// The HPET.
    pub const VHPET: u32 = 5;
    /// The vCPUs' registers: VMCS or VMCB.
    pub const VMCX: u32 = 6;
    /// The 8259s.
    pub const VATPIC: u32 = 7;
    /// The 8254.
    pub const VATPIT: u32 = 8;
    /// The ACPI timer.
    pub const VPMTMR: u32 = 9;
    /// The clock.
    pub const VRTC: u32 = 10;

    /// All that the kernel saves, in the order in which bhyve asks for them.
    pub const KERNEL_STRUCTURES: [u32; 9] = [VHPET, VM, VIOAPIC, VLAPIC, VMCX, VATPIT, VATPIC, VPMTMR, VRTC];
}

/// `enum vm_snapshot_op`.
pub mod op {
    /// Copy the structure into the buffer.
    pub const SAVE: u32 = 0;
    /// Copy the buffer into the structure.
    pub const RESTORE: u32 = 1;
}
