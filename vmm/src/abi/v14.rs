//! What is different from FreeBSD 14 on. Kernels keep the generation before it under COMPAT_FREEBSD13.

use super::Request;
use super::macros::{layouts, requests};

layouts! {
    /// `struct vm_run` from e17eca327633 (D40113) on: what comes back is behind pointers, which count from the first byte of the
    /// argument. The order of the fields is \[unverified].
    VmRun, 32 bytes {
        cpuid: i32,
        _pad: u32,
        /// Where the mask of an IPI exit goes; nothing is written there by other exits.
        cpuset: u64,
        /// How long that is, in bytes. A shorter one truncates the mask, a longer one is filled up with zeroes.
        cpusetsize: u64,
        /// Where the [`super::VmExit`] goes.
        vm_exit: u64,
    }

    /// Payload of IPI: the mask is no longer in it.
    ExitIpi, 8 bytes {
        /// The ICR's delivery mode bits, unshifted: 0x500 or 0x600.
        mode: u32,
        vector: u8,
        _pad: [u8; 3],
    }

    /// `struct vm_stats`: any number of statistics, 64 at a time.
    VmStats, 544 bytes {
        cpuid: i32,
        /// The first one wanted.
        index: i32,
        /// How many came, at most 64.
        num_entries: i32,
        _pad: u32,
        tv_sec: i64,
        tv_usec: i64,
        statbuf: [u64; 64],
    }

    /// `struct vm_snapshot_meta` without the pointer that nobody used; see [`super::snapshot`].
    VmSnapshotMeta, 64 bytes {
        dev_data: u64,
        dev_name: u64,
        dev_req: u32,
        _pad: u32,
        buf_start: u64,
        buf_size: u64,
        buf: u64,
        buf_rem: u64,
        op: u32,
        _pad_end: u32,
    }
}

requests! {
    VM_RUN = iowr<VmRun>(1);
    VM_STATS = iowr<VmStats>(50);
    VM_SNAPSHOT_REQ = iowr<VmSnapshotMeta>(113);
}
