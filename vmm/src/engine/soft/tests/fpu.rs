//! The state of x87 and SSE: when instructions may use it, and how it is saved and restored.

use super::events::long_mode_idt;
use super::{Bench, CODE};
use crate::engine::{CpuidEntry, Exit, FpuState, Reg};
use iced_x86::code_asm::*;

/// Where tests put images.
const AREA: u64 = 0x2_0000;

/// 64-bit mode at this privilege level with CR4.OSFXSR and CR4.OSXSAVE, RBX at [`AREA`].
fn bench(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(cpl);
    long_mode_idt(&mut bench);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Rbx, AREA);
    bench.cpu.set_reg(Reg::Cr4, 0x4_0620);
    bench
}

fn state_with(xmm: u8, xcr0: u64) -> FpuState {
    let mut image = [0; 512];
    image[..2].copy_from_slice(&0x037F_u16.to_le_bytes());
    image[24..26].copy_from_slice(&0x1F80_u16.to_le_bytes());
    image[28..30].copy_from_slice(&[0xFF, 0xFF]);
    image[160..416].fill(xmm);
    FpuState { image, xcr0 }
}

/// Runs into an exception's handler: its vector.
fn fault(bench: &mut Bench) -> u64 {
    bench.run_to_hlt();
    super::events::handled(bench)
}

#[test]
fn power_up_state() {
    let FpuState { image, xcr0 } = Bench::new(0x1000).cpu.fpu();
    assert_eq!(image[..5], [0x40, 0, 0, 0, 0xFF], "FCW 0040H, all registers in use and 0");
    assert_eq!(image[24..32], [0x80, 0x1F, 0, 0, 0xFF, 0xFF, 0, 0]);
    assert!(image[32..].iter().all(|&byte| byte == 0));
    assert_eq!(xcr0, 1);
}

/// What Linux does to find the Pentium's FDIV bug.
#[test]
fn the_fdiv_check() {
    let mut bench = bench(0, |a| {
        a.fninit().unwrap();
        a.fld(qword_ptr(rbx)).unwrap();
        a.fdiv(qword_ptr(rbx + 8)).unwrap();
        a.fmul(qword_ptr(rbx + 8)).unwrap();
        a.fld(qword_ptr(rbx)).unwrap();
        a.fsubp(st1, st0).unwrap();
        a.fistp(dword_ptr(rbx + 16)).unwrap();
        a.wait().unwrap();
        a.fninit().unwrap();
        a.hlt().unwrap();
    });
    bench.write64(AREA, 4_195_835.0_f64.to_bits());
    bench.write64(AREA + 8, 3_145_727.0_f64.to_bits());
    bench.write64(AREA + 16, u64::MAX);
    bench.run_to_hlt();
    assert_eq!(bench.read64(AREA + 16), 0xFFFF_FFFF_0000_0000);
    assert_eq!(bench.cpu.take_unimplemented(), []);
}

#[test]
fn control_bits_decide_who_may_execute() {
    const NM: u64 = 7;
    const UD: u64 = 6;
    let (mp, em, ts) = (2, 4, 8);
    let fxsave = |a: &mut CodeAssembler| a.fxsave64(ptr(rbx));
    let stmxcsr = |a: &mut CodeAssembler| a.stmxcsr(dword_ptr(rbx));
    let fninit = |a: &mut CodeAssembler| a.fninit();
    let wait = |a: &mut CodeAssembler| a.wait();
    let emms = |a: &mut CodeAssembler| a.emms();
    let xsave = |a: &mut CodeAssembler| a.xsave64(ptr(rbx));
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [(Emit, u64, u64, Option<u64>); 18] = [
        (fninit, 0, 0, None),
        (fninit, ts, 0, Some(NM)),
        (fninit, em, 0, Some(NM)),
        (wait, ts, 0, None),
        (wait, mp | ts, 0, Some(NM)),
        (wait, em, 0, None),
        (emms, em, 0, Some(UD)),
        (emms, ts, 0, Some(NM)),
        (fxsave, 0, 0, None),
        (fxsave, em, 0, Some(NM)),
        (fxsave, ts, 0, Some(NM)),
        (stmxcsr, 0, 0x200, None),
        (stmxcsr, 0, 0, Some(UD)),
        (stmxcsr, em, 0x200, Some(UD)),
        (stmxcsr, ts, 0x200, Some(NM)),
        (xsave, 0, 0x4_0000, None),
        (xsave, ts, 0, Some(UD)),
        (xsave, ts, 0x4_0000, Some(NM)),
    ];
    for (i, (emit, cr0_bits, cr4_bits, vector)) in cases.into_iter().enumerate() {
        let mut bench = bench(0, |a| {
            emit(a).unwrap();
            a.hlt().unwrap();
        });
        bench.cpu.set_reg(Reg::Cr0, 0x8001_0031 | cr0_bits);
        bench.cpu.set_reg(Reg::Cr4, 0x20 | cr4_bits);
        match vector {
            None => bench.run_to_hlt(),
            Some(vector) => assert_eq!(fault(&mut bench), vector, "case {i}"),
        }
        assert_eq!(bench.cpu.take_unimplemented(), [], "case {i}");
    }
}

#[test]
fn fxrstor_refuses_bits_that_do_not_exist_and_odd_addresses() {
    for (offset, mxcsr) in [(8, 0x1F80_u32), (0, 0x1_1F80)] {
        let mut bench = bench(0, |a| a.fxrstor64(ptr(rbx)).unwrap());
        bench.write(AREA + offset + 24, &mxcsr.to_le_bytes());
        bench.cpu.set_reg(Reg::Rbx, AREA + offset);
        let before = bench.cpu.fpu();
        assert_eq!(fault(&mut bench), 13);
        assert_eq!(bench.cpu.fpu(), before);
    }
}

/// Runs one form of XSAVE with a state whose XMM registers hold `xmm` over an area full of ones but for the header.
fn save(emit: impl FnOnce(&mut CodeAssembler), xmm: u8, mask: u64) -> [u8; 576] {
    let mut bench = bench(3, |a| {
        emit(a);
        a.jmp(CODE).unwrap();
    });
    bench.write(AREA, &[0xFF; 512]);
    bench.write(AREA + 512, &[0; 64]);
    bench.cpu.set_reg(Reg::Rax, mask);
    bench.cpu.set_fpu(&state_with(xmm, 3));
    assert_eq!(bench.run(1), Exit::Budget);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE + 4);
    bench.read(AREA)
}

#[test]
fn forms_of_xsave_write_what_they_should() {
    let xsave = |a: &mut CodeAssembler| a.xsave64(ptr(rbx)).unwrap();
    let xsaveopt = |a: &mut CodeAssembler| a.xsaveopt64(ptr(rbx)).unwrap();
    let xsavec = |a: &mut CodeAssembler| a.xsavec64(ptr(rbx)).unwrap();
    let header = |area: &[u8; 576]| [area[512], area[520], area[527]];

    let area = save(xsave, 5, 7);
    assert_eq!(area[..416], state_with(5, 3).image[..416]);
    assert_eq!(header(&area), [2, 0, 0], "x87 is in its initial configuration");
    assert!(area[416..512].iter().all(|&byte| byte == 0xFF), "unused bytes stay");

    let area = save(xsave, 5, 1);
    assert_eq!(area[24..32], [0xFF; 8], "MXCSR belongs to SSE");
    assert_eq!(area[160], 0xFF);
    assert_eq!(header(&area), [0, 0, 0]);

    let area = save(xsaveopt, 0, 3);
    assert_eq!(area[..24], [0xFF; 24]);
    assert_eq!(area[24..28], [0x80, 0x1F, 0, 0]);
    assert_eq!(area[160], 0xFF);
    assert_eq!(header(&area), [0, 0, 0]);

    let area = save(xsavec, 9, 3);
    assert_eq!(area[160..416], [9; 256]);
    assert_eq!(area[..24], [0xFF; 24]);
    assert_eq!(header(&area), [2, 3, 0x80]);
}

#[test]
fn xrstor_loads_initializes_and_refuses() {
    let run = |prepare: &dyn Fn(&Bench), mask: u64| {
        let mut bench = bench(0, |a| {
            a.xrstor64(ptr(rbx)).unwrap();
            a.hlt().unwrap();
        });
        let mut image = state_with(7, 3).image;
        image[0] = 0x7E;
        bench.write(AREA, &image);
        bench.write(AREA + 512, &[0; 64]);
        prepare(&bench);
        bench.cpu.set_reg(Reg::Rax, mask);
        bench.cpu.set_fpu(&state_with(5, 3));
        bench
    };
    let mut loads = run(&|bench| bench.write(AREA + 512, &[3]), 3);
    loads.run_to_hlt();
    assert_eq!(loads.cpu.fpu().image[..2], [0x7E, 3]);
    assert_eq!(loads.cpu.fpu().image[160..416], [7; 256]);
    let mut initializes = run(&|_| (), 3);
    initializes.run_to_hlt();
    assert_eq!(initializes.cpu.fpu(), state_with(0, 3));
    let mut leaves = run(&|bench| bench.write(AREA + 512, &[3]), 1);
    leaves.run_to_hlt();
    assert_eq!(leaves.cpu.fpu().image[160..416], [5; 256]);
    let mut compacted = run(
        &|bench| {
            bench.write(AREA + 512, &[2]);
            bench.write(AREA + 520, &[3, 0, 0, 0, 0, 0, 0, 0x80]);
        },
        3,
    );
    compacted.run_to_hlt();
    assert_eq!(compacted.cpu.fpu().image, state_with(7, 3).image);
    for (at, byte) in [(512, 4), (520, 1), (528, 1), (527, 0x80)] {
        let mut refused = run(
            &|bench| {
                bench.write(AREA + 512, &[3]);
                bench.write(AREA + at, &[byte]);
            },
            3,
        );
        assert_eq!(fault(&mut refused), 13, "byte {at}");
        assert_eq!(refused.cpu.fpu(), state_with(5, 3));
    }
}

#[test]
fn xsetbv_and_xgetbv() {
    let mut bench = bench(0, |a| {
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 3).unwrap();
        a.xsetbv().unwrap();
        a.xgetbv().unwrap();
        a.mov(esi, eax).unwrap();
        a.mov(ecx, 1).unwrap();
        a.xgetbv().unwrap();
        a.mov(edi, eax).unwrap();
        a.mov(eax, 1).unwrap();
        a.cpuid().unwrap();
        a.hlt().unwrap();
    });
    bench.announce(&[CpuidEntry { leaf: 1, subleaf: None, regs: [0, 0, 1 << 26, 0] }]);
    bench.cpu.set_fpu(&state_with(1, 1));
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rsi), bench.cpu.reg(Reg::Rdi)), (3, 2), "SSE alone is in use");
    assert_eq!(bench.cpu.reg(Reg::Rcx), 1 << 26 | 1 << 27, "OSXSAVE");
    assert_eq!(bench.cpu.fpu().xcr0, 3);
    for (value, number) in [(2, 0), (7, 0), (3, 1)] {
        let mut bench = self::bench(0, |a| a.xsetbv().unwrap());
        bench.cpu.set_reg(Reg::Rax, value);
        bench.cpu.set_reg(Reg::Rcx, number);
        assert_eq!(fault(&mut bench), 13);
        assert_eq!(bench.cpu.fpu().xcr0, 1);
    }
}
