//! `hvm_start_info` (Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h), version 1.

use super::bytes::{put_u32, put_u64};
use super::layout::{CMDLINE, Ram, START_INFO};
use std::ops::Range;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULES: usize = 0x40;
const MEMORY_MAP: usize = 0x80;

/// The start info with the list of modules and the memory map behind it. The kernel finds the RSDP by itself.
pub(super) fn start_info(ram: Ram, initrd: Option<Range<u64>>) -> Vec<u8> {
    let map = ram.map();
    let mut info = vec![0; MEMORY_MAP + 24 * map.len()];
    put_u32(&mut info, 0, MAGIC);
    put_u32(&mut info, 4, VERSION);
    if let Some(initrd) = initrd {
        put_u32(&mut info, 12, 1);
        put_u64(&mut info, 16, START_INFO + MODULES as u64);
        put_u64(&mut info, MODULES, initrd.start);
        put_u64(&mut info, MODULES + 8, initrd.end - initrd.start);
    }
    put_u64(&mut info, 24, CMDLINE);
    put_u64(&mut info, 40, START_INFO + MEMORY_MAP as u64);
    put_u32(&mut info, 48, map.len() as u32);
    for (entry, (range, kind)) in info[MEMORY_MAP..].chunks_exact_mut(24).zip(map) {
        put_u64(entry, 0, range.start);
        put_u64(entry, 8, range.end - range.start);
        // XEN_HVM_MEMMAP_TYPE_RAM and _RESERVED are numbered as in E820.
        put_u32(entry, 16, kind as u32);
    }
    info
}
