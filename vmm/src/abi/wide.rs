//! VM_RUN of a kernel whose sets have 1024 bits while its exit still carries one by value: the hazard of PR 271330.
//!
//! The payload of IPI, 8 + 128 bytes, outgrows the union of 120, so that VM_RUN gets another size, and with it another number; every
//! userspace that was built with smaller sets gets ENOTTY. No kernel shipped like that; `cpuset-1024` without `vm-run-pointers` is one.
//! \[inferred]

use super::Request;
use super::macros::{layouts, requests};

layouts! {
    /// Payload of IPI.
    ExitIpi, 136 bytes {
        /// The ICR's delivery mode bits, unshifted: 0x500 or 0x600.
        mode: u32,
        vector: u8,
        _pad: [u8; 3],
        dmask: [u64; 16],
    }

    /// `struct vm_exit` with the larger union.
    VmExit, 152 bytes {
        exitcode: u32,
        inst_length: i32,
        rip: u64,
        payload: [u8; 136],
    }

    /// `struct vm_run`.
    VmRun, 160 bytes {
        cpuid: i32,
        _pad: u32,
        vm_exit: VmExit,
    }
}

requests! {
    VM_RUN = iowr<VmRun>(1);
}
