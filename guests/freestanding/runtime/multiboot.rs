//! From a Multiboot loader (version 1 or 2) to 64-bit Rust (Multiboot 0.6.96, 3.2; Multiboot2 2.0, 3.3).
//!
//! Kernels have this in the place of the reset code: the loader puts them where they run, and enters in 32-bit protected mode with a
//! magic number in EAX and the address of the boot information in EBX.

use crate::memory::read;
use core::arch::global_asm;

// The headers. That of version 1 has room for addresses, which the builder fills in when it makes a kernel that is no ELF program.
global_asm!(
    r#"
    .section .multiboot, "a", @progbits
    .balign 8
multiboot2_header:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2_header, -(0xe85250d6 + multiboot2_end - multiboot2_header)
    .short 1, 0                 // information that must be: command line, loader's name, modules, memory, map
    .long 8 + 4 * 5
    .long 1, 2, 3, 4, 6
    .balign 8
    .short 6, 0                 // modules on pages
    .long 8
    .short 0, 0
    .long 8
multiboot2_end:
    .globl multiboot1_header
multiboot1_header:
    .long 0x1badb002, 3, -(0x1badb002 + 3)
    .long 0, 0, 0, 0, 0

    .section .mode_switch, "aw", @progbits
    .code32
    .globl multiboot_entry
multiboot_entry:
    cli
    cld
    movl %eax, multiboot_magic
    movl %ebx, multiboot_info
    lgdtl gdtr
    ljmpl $0x08, $1f
1:  movl $bsp_entry, %ebx
    jmp enter_long_mode
    .code64
    .balign 4
    .globl multiboot_magic, multiboot_info
multiboot_magic:
    .long 0
multiboot_info:
    .long 0
"#,
    options(att_syntax),
);

unsafe extern "C" {
    safe static multiboot_magic: u32;
    safe static multiboot_info: u32;
    safe static kernel_begin: u8;
    safe static kernel_end: u8;
}

/// What the loader said: its magic number (EAX), and where its information is (EBX).
#[must_use]
pub fn from_loader() -> (u32, u32) {
    let word = |word: &u32| read(&raw const *word as u32);
    (word(&multiboot_magic), word(&multiboot_info))
}

/// Where the program is in memory, its stacks included: the first address and the one behind the last.
#[must_use]
pub fn program() -> (u32, u32) {
    (&raw const kernel_begin as u32, &raw const kernel_end as u32)
}
