//! What is different from FreeBSD 15 on. Kernels keep the generation before it under COMPAT_FREEBSD14.

use super::Request;
use super::macros::{layouts, requests};

/// Segment of the boot ROM (`VM_BOOTROM`). System memory is 0 to 7, a segment for each memory domain; the numbers 1 and up of
/// older generations are moved behind them.
pub const SEGID_BOOTROM: i32 = 8;

layouts! {
    /// `struct vm_memseg` with the memory domains that the segment is to come from.
    VmMemseg, 56 bytes {
        segid: i32,
        _pad: u32,
        len: u64,
        /// NUL-terminated; empty for system memory.
        name: [u8; 16],
        /// 0, or where the set of domains stands.
        ds_mask: u64,
        ds_mask_size: u64,
        /// 0: none.
        ds_policy: i32,
        _pad_end: u32,
    }
}

requests! {
    VM_ALLOC_MEMSEG = iow<VmMemseg>(14);
    VM_GET_MEMSEG = iowr<VmMemseg>(15);
}
