//! The zero page, `struct boot_params` (Linux, Documentation/arch/x86/zero-page.rst).

use super::bytes::{put_u32, put_u64};
use super::bzimage::field;
use super::layout::{CMDLINE, Ram};
use std::ops::Range;

const SIZE: usize = 4096;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;

/// The zero page of a kernel with this setup header, which is empty for one that is no bzImage.
pub(super) fn zero_page(setup_header: &[u8], ram: Ram, initrd: Option<Range<u64>>) -> Vec<u8> {
    /// A loader without a number of its own.
    const UNDEFINED_LOADER: u8 = 0xff;
    const KEEP_SEGMENTS: u8 = 1 << 6;
    let mut page = vec![0; SIZE];
    let header = &setup_header[..setup_header.len().min(E820_TABLE - field::SETUP_SECTS)];
    page[field::SETUP_SECTS..][..header.len()].copy_from_slice(header);
    page[field::TYPE_OF_LOADER] = UNDEFINED_LOADER;
    // The segment registers are as the protocol wants them, but the kernel may load them again.
    page[field::LOADFLAGS] &= !KEEP_SEGMENTS;
    put_u32(&mut page, field::CMD_LINE_PTR, CMDLINE as u32);
    if let Some(initrd) = initrd {
        put_u32(&mut page, field::RAMDISK_IMAGE, initrd.start as u32);
        put_u32(&mut page, field::RAMDISK_SIZE, (initrd.end - initrd.start) as u32);
    }
    let map = ram.map();
    page[E820_ENTRIES] = map.len() as u8;
    for (entry, (range, kind)) in page[E820_TABLE..].chunks_exact_mut(20).zip(map) {
        put_u64(entry, 0, range.start);
        put_u64(entry, 8, range.end - range.start);
        put_u32(entry, 16, kind as u32);
    }
    page
}
