//! From a Multiboot loader (version 1 or 2) to 64-bit Rust, and what the loader said.
//!
//! Kernels have this in the place of the reset code: the loader puts them where they run, and enters in 32-bit protected mode with a
//! magic number in EAX and the address of the boot information in EBX.

use crate::console::Line;
use crate::memory::read;
use core::arch::global_asm;

/// What EAX says (Multiboot 0.6.96, 3.2; Multiboot2 2.0, 3.3).
const MAGIC_1: u32 = 0x2bad_b002;
const MAGIC_2: u32 = 0x36d7_6289;

// The headers. That of version 1 has room for addresses, which the builder fills in when it makes a kernel that is no ELF program.
global_asm!(
    r#"
    .section .multiboot, "a", @progbits
    .balign 8
multiboot2_header:
    .long 0xe85250d6, 0, multiboot2_end - multiboot2_header, -(0xe85250d6 + multiboot2_end - multiboot2_header)
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
}

/// A word that was written before there was Rust.
fn written(word: &u32) -> u32 {
    read(&raw const *word as u32)
}

/// Prints what the loader said: its name, the arguments, the memory, each module with its length and its checksum (FNV-1a, 32
/// bits). Returns how many modules; `None` when there was no Multiboot loader.
pub fn tell() -> Option<u32> {
    let info = written(&multiboot_info);
    match written(&multiboot_magic) {
        MAGIC_1 => Some(tell_1(info)),
        MAGIC_2 => Some(tell_2(info)),
        _ => None,
    }
}

fn tell_1(info: u32) -> u32 {
    let word = |offset| read::<u32>(info + offset);
    Line.text("Multiboot 1, flags ").hex(word(0).into()).end();
    tell_text("loader", word(64));
    tell_text("arguments", word(16));
    Line.text("memory: ").decimal(word(4)).text(" KiB and ").decimal(word(8)).text(" KiB").end();
    // Each entry has its own length in front.
    let (mut at, end) = (word(48), word(48) + word(44));
    while at < end {
        tell_memory(at + 4);
        at += read::<u32>(at) + 4;
    }
    for i in 0..word(20) {
        let module = word(24) + 16 * i;
        tell_module(read(module), read(module + 4), read(module + 8));
    }
    word(20)
}

fn tell_2(info: u32) -> u32 {
    Line.text("Multiboot 2, ").decimal(read(info)).text(" bytes").end();
    let end = info + read::<u32>(info);
    let (mut at, mut modules) = (info + 8, 0);
    while at < end {
        let (kind, len) = (read::<u32>(at), read::<u32>(at + 4));
        match kind {
            0 => break,
            1 => tell_text("arguments", at + 8),
            2 => tell_text("loader", at + 8),
            3 => {
                modules += 1;
                tell_module(read(at + 8), read(at + 12), at + 16);
            }
            4 => {
                let (lower, upper) = (read(at + 8), read(at + 12));
                Line.text("memory: ").decimal(lower).text(" KiB and ").decimal(upper).text(" KiB").end();
            }
            6 => {
                let entry_len = read::<u32>(at + 8);
                let mut entry = at + 16;
                while entry < at + len {
                    tell_memory(entry);
                    entry += entry_len;
                }
            }
            _ => {}
        }
        at = (at + len + 7) & !7;
    }
    modules
}

/// Text up to its zero.
fn text_at(mut line: Line, mut at: u32) -> Line {
    loop {
        let byte = read::<u8>(at);
        if byte == 0 {
            return line;
        }
        line = line.byte(byte);
        at += 1;
    }
}

fn tell_text(what: &str, at: u32) {
    text_at(Line.text(what).text(": "), at).end();
}

/// An entry of the memory map: base, length and type, in both versions.
fn tell_memory(at: u32) {
    let (base, len) = (read::<u64>(at), read::<u64>(at + 8));
    Line.text("map: ").hex(base).text(" + ").hex(len).text(", type ").decimal(read(at + 16)).end();
}

fn tell_module(start: u32, end: u32, cmdline: u32) {
    let mut sum: u32 = 0x811c_9dc5;
    for at in start..end {
        sum = (sum ^ u32::from(read::<u8>(at))).wrapping_mul(0x0100_0193);
    }
    let line = text_at(Line.text("module ("), cmdline);
    line.text("): ").decimal(end - start).text(" bytes, checksum ").hex(sum.into()).end();
}
