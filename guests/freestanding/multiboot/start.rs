//! The headers, and the way from the loader to long mode.

use crate::information::Region;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// What the loader said in EAX, and where its information is (EBX).
static MAGIC: AtomicU32 = AtomicU32::new(0);
static INFORMATION: AtomicU32 = AtomicU32::new(0);

// Flat segments, but no GDT of the loader's to count on (Multiboot 0.6.96, 3.2; Multiboot2 2.0, 3.3): ours comes first, then
// the way that a BSP from the reset vector goes.
global_asm!(
    r#"
    .section .multiboot, "aw", @progbits
    .balign 8
header_2:
    .long {magic_2}, 0, header_2_end - header_2, 0x100000000 - {magic_2} - (header_2_end - header_2)
    .short 1, 0                 // information that must be: command line, loader's name, modules, memory, map
    .long 8 + 4 * 5
    .long 1, 2, 3, 4, 6
    .balign 8
    .short 6, 0                 // modules on pages
    .long 8
    .short 0, 0
    .long 8
header_2_end:
header_1:
    .long {magic_1}, {flags_1}, 0x100000000 - {magic_1} - {flags_1}
    // Where everything is, for a file that is no ELF program; this one is, so no flag says that they count.
    .long header_1, kernel_begin, loaded_end, kernel_end, multiboot_start

    .code32
    .globl multiboot_start
multiboot_start:
    cli
    cld
    movl %eax, {magic}
    movl %ebx, {information}
    lgdtl gdtr
    movl $bsp_entry, %ebx
    movl $enter_long_mode, %eax
    jmp *%eax
    .code64
"#,
    magic_2 = const 0xe852_50d6_u32,
    magic_1 = const 0x1bad_b002,
    flags_1 = const PAGE_ALIGNED_MODULES | MEMORY,
    magic = sym MAGIC,
    information = sym INFORMATION,
    options(att_syntax),
);

/// Flags of version 1's header.
const PAGE_ALIGNED_MODULES: u32 = 1;
const MEMORY: u32 = 1 << 1;

unsafe extern "C" {
    safe static kernel_begin: u8;
    safe static kernel_end: u8;
}

/// What the loader said: its magic number, and where its information is.
pub(crate) fn from_loader() -> (u32, u32) {
    (MAGIC.load(Ordering::Relaxed), INFORMATION.load(Ordering::Relaxed))
}

/// Where this program is in memory.
pub(crate) fn kernel() -> Region {
    let [start, end] = [&raw const kernel_begin, &raw const kernel_end].map(|address| address as u64);
    Region { start, len: end - start, kind: Region::USABLE }
}
