//! From the power-up state to 64-bit mode, as boot code goes.

use super::Bench;
use crate::engine::{Exit, Reg, SegDesc};
use iced_x86::code_asm::*;

/// Flat descriptors: null, 64-bit code, 32-bit code, data, 16-bit code.
pub(super) const GDT: [u64; 5] =
    [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_9B00_0000_FFFF];

const GDT_AT: u64 = 0x5000;
const PML4: u64 = 0x1000;

#[test]
fn power_up_state() {
    let mut bench = Bench::new(0x1000);
    assert_eq!(bench.cpu.reg(Reg::Rip), 0xFFF0);
    assert_eq!(bench.cpu.reg(Reg::Cr0), 0x6000_0010);
    assert_eq!(bench.cpu.reg(Reg::Rflags), 2);
    assert_eq!(bench.cpu.reg(Reg::Cs), 0xF000);
    assert_eq!(bench.cpu.desc(Reg::Cs), SegDesc { base: 0xFFFF_0000, limit: 0xFFFF, access: 0x9B });
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0x600);
    assert_eq!(bench.run(1), Exit::MmioFetch { gpa: 0xFFFF_FFF0 });
}

#[test]
fn real_mode_to_long_mode() {
    let mut bench = Bench::new(0x40_0000);
    bench.real_mode();
    for (i, descriptor) in GDT.into_iter().enumerate() {
        bench.write64(GDT_AT + 8 * i as u64, descriptor);
    }
    bench.write(GDT_AT + 0x100, &[0x27, 0, 0, 0x50, 0, 0]);
    // 2-Mbyte pages: linear 0 and linear 1 Gbyte both lead to physical 0.
    bench.write64(PML4, 0x2003);
    bench.write64(0x2000, 0x3003);
    bench.write64(0x2008, 0x4003);
    bench.write64(0x3000, 0x83);
    bench.write64(0x4000, 0x83);
    bench.load(16, 0x8000, |a| {
        a.cli().unwrap();
        a.lgdt(fword_ptr((GDT_AT + 0x100) as i32)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xEA, 0x00, 0x90, 0, 0, 0x10, 0]).unwrap(); // jmp 0x10:0x9000
    });
    bench.load(32, 0x9000, |a| {
        a.mov(eax, 0x18).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(esp, 0x7000).unwrap();
        a.push(0x1234_5678).unwrap();
        a.pop(ebx).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, 0x20).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, PML4 as i32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xC000_0080_u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000_u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xEA, 0x00, 0xA0, 0, 0, 0x08, 0]).unwrap(); // jmp 8:0xA000
    });
    bench.load(64, 0xA000, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
        a.mov(rsi, 0x4000_6000_u64).unwrap();
        a.mov(qword_ptr(rsi), rax).unwrap();
        a.mov(r8, qword_ptr(0x6000)).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rip, 0x8000);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::R8), 0x1122_3344_5566_7788);
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x1234_5678);
    assert_eq!(bench.cpu.reg(Reg::Efer), 0x500);
    assert_eq!(bench.read64(0x6000), 0x1122_3344_5566_7788);
    assert_eq!(bench.cpu.translate(0x4000_6010), Some(0x6010));
    assert_eq!(bench.cpu.translate(0x8000_0000), None);
    assert_eq!(bench.read64(0x4000) & 0x60, 0x60, "accessed and dirty");
}
