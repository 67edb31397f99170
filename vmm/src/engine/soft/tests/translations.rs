//! How long translations hold: global pages, address spaces with PCIDs, INVLPG and INVPCID; and 57-bit addresses.

use super::events::{handled, long_mode_idt};
use super::{Bench, CODE, PDPT, PML4};
use crate::engine::{CpuidEntry, Reg};
use iced_x86::code_asm::*;

const DIRECTORY: u64 = 0x3_0000;
const TABLE: u64 = 0x3_1000;
const LINEAR: u64 = 1 << 30;
/// Two pages that `LINEAR` may lead to. Each holds its number, and a function that returns it.
const PAGES: [u64; 2] = [0x5_0000, 0x5_1000];
const FUNCTION: u64 = LINEAR + 0x100;

const P: u64 = 1;
const W: u64 = 2;
const G: u64 = 0x100;
const CR4: u64 = 0x620;
const PGE: u64 = 0x80;
const PCIDE: u64 = 1 << 17;
const KEEP: u64 = 1 << 63;

fn bench(control: u64, rights: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    long_mode_idt(&mut bench);
    bench.write64(PDPT + 8, DIRECTORY | P | W);
    bench.write64(DIRECTORY, TABLE | P | W);
    bench.write64(TABLE, PAGES[0] | rights);
    for (i, page) in PAGES.into_iter().enumerate() {
        bench.write(page, &[i as u8]);
        bench.write(page + 0x100, &[0xB8, i as u8, 0, 0, 0, 0xC3]); // mov eax, i; ret
    }
    // PCID, and INVPCID.
    bench.announce(&[CpuidEntry { leaf: 1, subleaf: None, regs: [0, 0, 1 << 17, u32::MAX] }]);
    bench.cpu.set_reg(Reg::Cr4, control);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::R14, FUNCTION);
    bench.cpu.set_reg(Reg::R15, LINEAR);
    bench.cpu.set_reg(Reg::R13, PAGES[1] | rights);
    bench
}

/// Calls the function and reads the number; both must be the same, and go into the lowest digit of `result`.
fn note(a: &mut CodeAssembler, result: AsmRegister64) {
    a.call(r14).unwrap();
    a.movzx(ebp, byte_ptr(r15)).unwrap();
    a.shl(result, 4).unwrap();
    a.add(result, rax).unwrap();
    a.shl(r12, 4).unwrap();
    a.add(r12, rbp).unwrap();
}

/// `LINEAR` leads to the other page from now on, as far as memory says.
fn remap(a: &mut CodeAssembler) {
    a.mov(qword_ptr(TABLE as i32), r13).unwrap();
}

/// What the functions returned and what the data was, a digit each, 1 to begin with.
fn digits(bench: &mut Bench) -> (u64, u64) {
    bench.cpu.set_reg(Reg::Rbx, 1);
    bench.cpu.set_reg(Reg::R12, 1);
    bench.run_to_hlt();
    (bench.cpu.reg(Reg::Rbx), bench.cpu.reg(Reg::R12))
}

#[test]
fn a_write_to_cr3_keeps_only_global_pages() {
    for (control, rights, expected) in
        [(CR4 | PGE, P | W | G, 0x1001), (CR4, P | W | G, 0x1011), (CR4 | PGE, P | W, 0x1011)]
    {
        let mut bench = bench(control, rights, |a| {
            note(a, rbx);
            remap(a);
            a.mov(rcx, cr3).unwrap();
            a.mov(cr3, rcx).unwrap();
            note(a, rbx);
            // Turning global pages off or on forgets everything.
            a.mov(rcx, cr4).unwrap();
            a.xor(ecx, PGE as u32).unwrap();
            a.mov(cr4, rcx).unwrap();
            note(a, rbx);
            a.hlt().unwrap();
        });
        assert_eq!(digits(&mut bench), (expected, expected), "CR4 {control:#x}, rights {rights:#x}");
    }
}

#[test]
fn invlpg_forgets_one_page_global_or_not() {
    for rights in [P | W, P | W | G] {
        let mut bench = bench(CR4 | PGE, rights, |a| {
            note(a, rbx);
            remap(a);
            a.invlpg(ptr(r15 + 0x1000)).unwrap();
            note(a, rbx);
            a.invlpg(ptr(r15 + 0xFFF)).unwrap();
            note(a, rbx);
            a.hlt().unwrap();
        });
        assert_eq!(digits(&mut bench), (0x1001, 0x1001), "rights {rights:#x}");
    }
}

#[test]
fn a_page_of_2_mbytes_is_forgotten_by_any_of_its_addresses() {
    let mut bench = bench(CR4, P | W, |a| {
        note(a, rbx);
        a.mov(qword_ptr(DIRECTORY as i32), r13).unwrap();
        a.invlpg(ptr(r15 + 0x10_0000)).unwrap();
        note(a, rbx);
        a.hlt().unwrap();
    });
    // Physical 0 to 2 Mbytes; the pages appear at the address with their own offset.
    bench.write64(DIRECTORY, P | W | 0x80);
    bench.cpu.set_reg(Reg::R13, TABLE | P | W);
    bench.write64(TABLE + 8 * 0x50, PAGES[1] | P | W);
    bench.cpu.set_reg(Reg::R14, FUNCTION + PAGES[0]);
    bench.cpu.set_reg(Reg::R15, LINEAR + PAGES[0]);
    assert_eq!(digits(&mut bench), (0x101, 0x101));
}

fn to_space(a: &mut CodeAssembler, pcid: u64, keep: bool) {
    a.mov(rcx, PML4 | pcid | if keep { KEEP } else { 0 }).unwrap();
    a.mov(cr3, rcx).unwrap();
}

#[test]
fn address_spaces_with_pcids() {
    let mut bench = bench(CR4 | PCIDE, P | W, |a| {
        to_space(a, 1, false);
        note(a, rbx);
        remap(a);
        to_space(a, 2, false);
        note(a, rbx);
        // Space 1 never heard of the change, but is told to forget everything.
        to_space(a, 1, false);
        note(a, rbx);
        a.hlt().unwrap();
    });
    assert_eq!(digits(&mut bench), (0x1011, 0x1011));
}

#[test]
fn invpcid_forgets_an_address_space_that_is_not_the_present_one() {
    const DESCRIPTOR: u64 = 0x6000;
    for (kind, expected) in [(0, 0x101), (1, 0x101), (2, 0x101), (3, 0x101)] {
        let mut bench = bench(CR4 | PCIDE, P | W, |a| {
            to_space(a, 1, false);
            note(a, rbx);
            remap(a);
            to_space(a, 2, false);
            a.mov(edx, kind).unwrap();
            a.invpcid(rdx, xmmword_ptr(DESCRIPTOR as i32)).unwrap();
            to_space(a, 1, true);
            note(a, rbx);
            a.hlt().unwrap();
        });
        bench.write64(DESCRIPTOR, 1);
        bench.write64(DESCRIPTOR + 8, LINEAR);
        assert_eq!(digits(&mut bench), (expected, expected), "INVPCID type {kind}");
    }
    for (kind, low, linear) in [(4, 0, 0), (0, 1 << 12, 0), (0, 0, 1 << 50), (1, 1, 0)] {
        // PCIDs other than 0 need CR4.PCIDE.
        let mut bench = bench(CR4, P | W, |a| {
            a.mov(edx, kind).unwrap();
            a.invpcid(rdx, xmmword_ptr(DESCRIPTOR as i32)).unwrap();
        });
        bench.write64(DESCRIPTOR, low);
        bench.write64(DESCRIPTOR + 8, linear);
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), 13, "INVPCID type {kind}");
    }
}

#[test]
fn fifty_seven_bit_addresses() {
    const LA57: u64 = 1 << 12;
    const PML5: u64 = 0x3_2000;
    const PML4_HIGH: u64 = 0x3_3000;
    /// In the upper half of 57 bits; no address of 48.
    const HIGH: u64 = 0xFF00_0000_0000_0000;
    let mut bench = bench(CR4 | LA57, P | W, |a| {
        a.mov(rax, HIGH | 0x6000).unwrap();
        a.mov(ebx, dword_ptr(rax)).unwrap();
        a.mov(dword_ptr(rax + 4), ebx).unwrap();
        a.hlt().unwrap();
    });
    bench.write64(PML5, PML4 | P | W);
    bench.write64(PML5 + 8 * 0x100, PML4_HIGH | P | W);
    bench.write64(PML4_HIGH, PDPT | P | W);
    bench.cpu.set_reg(Reg::Cr3, PML5);
    bench.write(0x6000, &[0x44, 0x33, 0x22, 0x11]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x1122_3344);
    assert_eq!(bench.read64(0x6000), 0x1122_3344_1122_3344);
    assert_eq!(bench.read64(PML5 + 8 * 0x100) & 0x20, 0x20, "accessed");
    assert_eq!(bench.cpu.translate(1 << 57), None);
    // Bit 7 is reserved at the top.
    bench.write64(PML5 + 8 * 0x100, PML4_HIGH | P | W | 0x80);
    bench.cpu.set_reg(Reg::Cr3, PML5);
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 14);
    let stack = bench.cpu.reg(Reg::Rsp);
    assert_eq!(bench.read64(stack), 9);
}

#[test]
fn stores_beside_code_stay_right_when_the_page_is_taken_for_data() {
    let mut bench = bench(CR4, P | W, |a| {
        let (mut again, mut data) = (a.create_label(), a.create_label());
        a.mov(ecx, 1000).unwrap();
        a.lea(rsi, ptr(data)).unwrap();
        a.set_label(&mut again).unwrap();
        a.inc(dword_ptr(rsi + 0x100)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        // And its code still is code.
        a.mov(byte_ptr(data), 0x90).unwrap();
        a.set_label(&mut data).unwrap();
        a.hlt().unwrap();
        a.mov(ebx, dword_ptr(rsi + 0x100)).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 1000);
}
