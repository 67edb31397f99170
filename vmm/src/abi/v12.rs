//! What is different in FreeBSD 12 and before. Later kernels keep it under COMPAT_FREEBSD12.

use super::Request;
use super::macros::{layouts, requests};

layouts! {
    /// `struct vm_memseg` up to 12.x.
    VmMemseg, 80 bytes {
        segid: i32,
        _pad: u32,
        len: u64,
        /// NUL-terminated; empty for system memory.
        name: [u8; 64],
    }
}

requests! {
    VM_ALLOC_MEMSEG = iow<VmMemseg>(14);
    VM_GET_MEMSEG = iowr<VmMemseg>(15);
}
