//! Segment registers, descriptors, call gates and far returns.

use super::{Bench, Build, CODE};
use crate::engine::{Exit, Reg, SegDesc};
use iced_x86::code_asm::*;

const GDT: u64 = 0x5000;
const LDT: u64 = 0x5400;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x4000;
const HANDLERS: u64 = 0x7000;
const STACK0: u64 = 0x9000;

const DESCRIPTORS: [u64; 16] = [
    0,
    0x00CF_9A00_0000_FFFF,             // 08 code, ring 0, not yet accessed
    0x00CF_9300_0000_FFFF,             // 10 data, ring 0
    0x00CF_FB00_0000_FFFF,             // 18 code, ring 3
    0x00CF_F300_0000_FFFF,             // 20 data, ring 3
    0x0000_8900_0000_0067 | TSS << 16, // 28 TSS
    0x0000_8200_0000_0017 | LDT << 16, // 30 LDT
    0x0000_EC02_0008_0000 | CALLEE & 0xFFFF | (CALLEE >> 16) << 48, // 38 call gate, 2 parameters, DPL 3
    0x00CF_9100_0000_FFFF,             // 40 data, read only
    0x0040_9300_0000_0FFF,             // 48 data, 4 Kbytes
    0x00CF_1300_0000_FFFF,             // 50 data, not present
    0x0040_9700_0000_0FFF,             // 58 data, expand-down above 0xFFF
    0x00CF_9F00_0000_FFFF,             // 60 conforming code
    0x0000_9300_1000_FFFF,             // 68 data, base 0x1000, 16-bit
    0x0000_8C00_0008_0000 | CALLEE & 0xFFFF | (CALLEE >> 16) << 48, // 70 call gate, DPL 0
    0x00CF_9900_0000_FFFF,             // 78 code, execute only
];
const CALLEE: u64 = 0x1_2000;

fn bench(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(cpl);
    for (i, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        bench.write64(GDT + 8 * i as u64, descriptor);
    }
    bench.write64(LDT + 8, 0x00CF_9300_0000_FFFF);
    for vector in 0..32_u64 {
        let handler = HANDLERS + 16 * vector;
        bench.write(handler, &[0x6A, vector as u8, 0xF4]);
        bench.write64(IDT + 8 * vector, handler & 0xFFFF | 8 << 16 | 0x8E << 40 | (handler >> 16) << 48);
    }
    bench.write64(TSS + 4, STACK0 | 0x10 << 32);
    bench.cpu.set_desc(Reg::Gdtr, SegDesc { base: GDT, limit: 8 * 16 - 1, access: 0 });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: IDT, limit: 0xFF, access: 0 });
    bench.cpu.set_reg(Reg::Tr, 0x28);
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0x67, access: 0x8B });
    bench.load(32, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

/// Vector and error code of the fault that the code ended in.
fn fault(bench: &mut Bench) -> (u32, u32) {
    bench.run_to_hlt();
    let stack = bench.cpu.reg(Reg::Rsp);
    let [vector, _, _, _, error, ..] = bench.read::<8>(stack);
    (u32::from(vector), u32::from(error))
}

#[test]
fn loading_data_segments() {
    for (cpl, selector, expected) in [
        (0, 0x10, None),
        (0, 0x40, None),
        (0, 0x00, None),
        (0, 0x60, None),
        (3, 0x23, None),
        (3, 0x60, None),
        (3, 0x10, Some((13, 0x10))),
        (0, 0x13, Some((13, 0x10))),
        (0, 0x78, Some((13, 0x78))),
        (0, 0x28, Some((13, 0x28))),
        (0, 0x50, Some((11, 0x50))),
        (0, 0x80, Some((13, 0x80))),
        (0, 0x0C, Some((13, 0x0C))),
    ] {
        let mut bench = bench(cpl, |a| {
            a.mov(eax, selector).unwrap();
            a.mov(fs, eax).unwrap();
            a.jmp(CODE + 7).unwrap();
        });
        match expected {
            None => {
                assert_eq!(bench.run(100), Exit::Pause, "selector {selector:#x}");
                assert_eq!(bench.cpu.reg(Reg::Fs), selector as u64);
            }
            Some(expected) => {
                assert_eq!(fault(&mut bench), expected, "selector {selector:#x}");
                assert_eq!(bench.cpu.reg(Reg::Fs), if cpl == 3 { 0x23 } else { 0x10 }, "as before");
            }
        }
    }
}

#[test]
fn loading_the_stack_segment() {
    for (selector, expected) in
        [(0x00, (13, 0)), (0x20, (13, 0x20)), (0x40, (13, 0x40)), (0x50, (12, 0x50)), (0x08, (13, 0x08))]
    {
        let mut bench = bench(0, |a| {
            a.mov(eax, selector).unwrap();
            a.mov(ss, eax).unwrap();
        });
        assert_eq!(fault(&mut bench), expected, "selector {selector:#x}");
    }
}

#[test]
fn limits_and_rights_of_data_segments() {
    for (selector, address, store, expected) in [
        (0x48, 0xFFC_u32, true, None),
        (0x48, 0xFFD, false, Some((13, 0))),
        (0x40, 0x0, false, None),
        (0x40, 0x0, true, Some((13, 0))),
        (0x58, 0x1000, true, None),
        (0x58, 0xFFF, true, Some((13, 0))),
        (0x58, 0xFFFF_FFFD, false, Some((13, 0))),
        (0x00, 0x0, false, Some((13, 0))),
        (0x68, 0xFFFD, false, Some((13, 0))),
    ] {
        let mut bench = bench(0, |a| {
            a.mov(eax, selector).unwrap();
            a.mov(gs, eax).unwrap();
            a.mov(edi, address).unwrap();
            if store {
                a.mov(dword_ptr(edi).gs(), eax).unwrap();
            } else {
                a.mov(eax, dword_ptr(edi).gs()).unwrap();
            }
            a.hlt().unwrap();
        });
        let code_end = CODE..CODE + 0x100;
        bench.run_to_hlt();
        let faulted = !code_end.contains(&bench.cpu.reg(Reg::Rip));
        assert_eq!(faulted, expected.is_some(), "selector {selector:#x}, address {address:#x}");
        if let Some(expected) = expected {
            let stack = bench.cpu.reg(Reg::Rsp);
            let bytes = bench.read::<8>(stack);
            assert_eq!((u32::from(bytes[0]), u32::from(bytes[4])), expected);
        }
    }
}

#[test]
fn code_can_be_read_but_not_written() {
    let mut bench = bench(0, |a| {
        a.mov(eax, dword_ptr(CODE as i32).cs()).unwrap();
        a.mov(dword_ptr(0x6000).cs(), eax).unwrap();
    });
    assert_eq!(fault(&mut bench), (13, 0));
    assert_ne!(bench.cpu.reg(Reg::Rax), 0);
}

#[test]
fn a_base_is_added() {
    let mut bench = bench(0, |a| {
        a.mov(eax, 0x68).unwrap();
        a.mov(es, eax).unwrap();
        a.mov(dword_ptr(0x234).es(), 0x55).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.read(0x1234), [0x55, 0, 0, 0]);
}

#[test]
fn loading_marks_descriptors_accessed() {
    let mut bench = bench(0, |a| {
        a.db(&[0xEA]).unwrap();
        a.dd(&[CALLEE as u32]).unwrap();
        a.db(&[0x08, 0x00]).unwrap();
    });
    bench.write(CALLEE, &[0xF4]);
    bench.run_to_hlt();
    assert_eq!(bench.read64(GDT + 8), DESCRIPTORS[1] | 1 << 40);
    assert_eq!(bench.cpu.reg(Reg::Rip), CALLEE + 1);
}

#[test]
fn the_ldt() {
    let mut bench = bench(0, |a| {
        a.mov(eax, 0x30).unwrap();
        a.lldt(ax).unwrap();
        a.mov(eax, 0x0C).unwrap();
        a.mov(fs, eax).unwrap();
        a.sldt(ebx).unwrap();
        a.str(ecx).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Fs), 0x0C);
    assert_eq!((bench.cpu.reg(Reg::Rbx), bench.cpu.reg(Reg::Rcx)), (0x30, 0x28));
    assert_eq!(bench.cpu.desc(Reg::Ldtr), SegDesc { base: LDT, limit: 0x17, access: 0x82 });
}

#[test]
fn the_task_register_becomes_busy() {
    let mut bench = bench(0, |a| {
        a.mov(eax, 0x28).unwrap();
        a.ltr(ax).unwrap();
        a.ltr(ax).unwrap();
    });
    assert_eq!(fault(&mut bench), (13, 0x28), "a busy one cannot be loaded");
    assert_eq!(bench.read64(GDT + 0x28) >> 40 & 0xFF, 0x8B);
}

#[test]
fn a_call_gate_to_ring_0_copies_parameters_and_retf_goes_back() {
    let mut bench = bench(3, |a| {
        a.push(0x1111).unwrap();
        a.push(0x2222).unwrap();
        a.db(&[0x9A, 0, 0, 0, 0, 0x3B, 0]).unwrap(); // call 0x3b:0
        a.jmp(CODE + 17).unwrap();
    });
    let mut callee = CodeAssembler::new(32).unwrap();
    callee.mov(eax, dword_ptr(esp + 8)).unwrap();
    callee.mov(ebx, dword_ptr(esp + 12)).unwrap();
    callee.mov(edx, esp).unwrap();
    callee.mov(ecx, cs).unwrap();
    callee.retf_1(8).unwrap();
    bench.write(CALLEE, &callee.assemble(CALLEE).unwrap());
    bench.cpu.set_reg(Reg::Es, 0x10);
    bench.cpu.set_desc(Reg::Es, SegDesc { base: 0, limit: u32::MAX, access: 0xC093 });
    assert_eq!(bench.run(100), Exit::Pause, "RIP {:#x}", bench.cpu.reg(Reg::Rip));
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rbx)), (0x2222, 0x1111));
    assert_eq!(bench.cpu.reg(Reg::Rdx), STACK0 - 24);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 8);
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Ss)), (0x1B, 0x23));
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x8000, "parameters are gone from both stacks");
    assert_eq!(bench.cpu.reg(Reg::Es), 0, "what ring 3 could not have loaded is gone");
}

#[test]
fn far_calls_that_are_refused() {
    for (selector, expected) in
        [(0x73_u8, (13, 0x70)), (0x0B, (13, 0x08)), (0x23, (13, 0x20)), (0x53, (13, 0x50)), (0x00, (13, 0x00))]
    {
        let mut bench = bench(3, |a| {
            a.db(&[0x9A, 0, 0, 0, 0, selector, 0]).unwrap();
        });
        assert_eq!(fault(&mut bench), expected, "selector {selector:#x}");
    }
}

#[test]
fn conforming_code_keeps_the_privilege() {
    let mut bench = bench(3, |a| {
        a.db(&[0x9A]).unwrap();
        a.dd(&[CALLEE as u32]).unwrap();
        a.db(&[0x60, 0x00]).unwrap();
        a.jmp(CODE + 7).unwrap();
    });
    let mut callee = CodeAssembler::new(32).unwrap();
    callee.mov(eax, cs).unwrap();
    callee.retf().unwrap();
    bench.write(CALLEE, &callee.assemble(CALLEE).unwrap());
    assert_eq!(bench.run(100), Exit::Pause);
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x63);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x8000);
}

#[test]
fn lar_lsl_verr_verw() {
    let mut bench = bench(3, |a| {
        a.mov(eax, 0x23).unwrap();
        a.lar(ebx, eax).unwrap();
        a.lsl(ecx, eax).unwrap();
        a.verw(ax).unwrap();
        a.setz(dl).unwrap();
        a.mov(eax, 0x10).unwrap();
        a.mov(esi, 0x77).unwrap();
        a.lar(esi, eax).unwrap();
        a.setz(dh).unwrap();
        a.mov(eax, 0x60).unwrap();
        a.verr(ax).unwrap();
        a.setz(al).unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    });
    assert_eq!(bench.run(100), Exit::Pause);
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x00CF_F300);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0xFFFF_FFFF);
    assert_eq!(bench.cpu.reg(Reg::Rdx) & 0xFFFF, 0x0001, "VERW yes, LAR of ring 0 data no");
    assert_eq!(bench.cpu.reg(Reg::Rsi), 0x77);
    assert_eq!(bench.cpu.reg(Reg::Rax) & 0xFF, 1, "conforming code is readable by all");
}

#[test]
fn arpl_raises_the_rpl() {
    let mut bench = bench(0, |a| {
        a.mov(eax, 0x10).unwrap();
        a.mov(ecx, 0x1B).unwrap();
        a.arpl(ax, cx).unwrap();
        a.setz(dl).unwrap();
        a.arpl(ax, cx).unwrap();
        a.setz(dh).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x13);
    assert_eq!(bench.cpu.reg(Reg::Rdx) & 0xFFFF, 1);
}

#[test]
fn ports_by_iopl_and_bit_map() {
    let code = |a: &mut CodeAssembler| {
        a.in_(al, 0x60).unwrap();
        a.mov(edx, 0x67).unwrap();
        a.in_(ax, dx).unwrap();
    };
    // IOPL 3 lets ring 3 through.
    let mut free = bench(3, code);
    free.cpu.set_reg(Reg::Rflags, 0x3002);
    assert_eq!(free.run(10), Exit::IoIn { port: 0x60, size: 1 });

    // A bit map that allows all but port 0x68.
    let mut mapped = bench(3, code);
    mapped.cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0x68 + 0x20, access: 0x8B });
    mapped.write(TSS + 0x66, &[0x68, 0]);
    mapped.write(TSS + 0x68 + 0x0D, &[0x01]);
    assert_eq!(mapped.run(10), Exit::IoIn { port: 0x60, size: 1 });
    mapped.cpu.complete(crate::engine::Completion::Value(0));
    assert_eq!(fault(&mut mapped), (13, 0), "the second byte of the word is port 0x68");

    // No bit map at all.
    let mut closed = bench(3, code);
    closed.write(TSS + 0x66, &[0x68, 0]);
    assert_eq!(fault(&mut closed), (13, 0));
}

#[test]
fn privileged_instructions_are_refused_to_ring_3() {
    let cases: [Build; 12] = [
        |a| a.hlt().unwrap(),
        |a| a.cli().unwrap(),
        |a| a.sti().unwrap(),
        |a| a.mov(eax, cr0).unwrap(),
        |a| a.mov(cr3, eax).unwrap(),
        |a| a.mov(dr7, eax).unwrap(),
        |a| a.lgdt(fword_ptr(0x500)).unwrap(),
        |a| a.clts().unwrap(),
        |a| a.invlpg(ptr(0x500)).unwrap(),
        |a| a.wbinvd().unwrap(),
        |a| a.rdmsr().unwrap(),
        |a| a.lmsw(ax).unwrap(),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let mut bench = bench(3, case);
        assert_eq!(fault(&mut bench), (13, 0), "case {i}");
        let stack = bench.cpu.reg(Reg::Rsp);
        assert_eq!(u64::from(u32::from_le_bytes(bench.read(stack + 8))), CODE, "case {i}");
    }
}

#[test]
fn leaving_protected_mode() {
    let mut bench = bench(0, |a| {
        a.db(&[0xEA, 0x00, 0x20, 0x01, 0x00, 0x08, 0x00]).unwrap(); // jmp 8:0x12000, below
    });
    let code16: u64 = 0x0000_9B00_0000_FFFF | 0x1 << 32 | 0x2000 << 16;
    bench.write64(GDT + 8, 0x00CF_9B00_0000_FFFF);
    bench.write64(GDT + 0x78, code16);
    // 32-bit: jump to the 16-bit segment based at 0x12000.
    bench.write(CALLEE, &[0xEA, 0x10, 0, 0, 0, 0x78, 0]);
    let mut code = CodeAssembler::new(16).unwrap();
    code.mov(eax, cr0).unwrap();
    code.and(al, 0xFE_u32 as i32).unwrap();
    code.mov(cr0, eax).unwrap();
    code.db(&[0xEA, 0x30, 0x00, 0x00, 0x12]).unwrap(); // jmp 0x1200:0x30
    bench.write(CALLEE + 0x10, &code.assemble(0x10).unwrap());
    let mut real = CodeAssembler::new(16).unwrap();
    real.mov(ax, 0x700).unwrap();
    real.mov(ds, ax).unwrap();
    real.mov(bx, cs).unwrap();
    real.hlt().unwrap();
    bench.write(CALLEE + 0x30, &real.assemble(0x30).unwrap());
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Cr0) & 1, 0);
    assert_eq!(bench.cpu.reg(Reg::Rbx) & 0xFFFF, 0x1200);
    assert_eq!(bench.cpu.desc(Reg::Cs).base, 0x1_2000);
    assert_eq!(bench.cpu.desc(Reg::Ds).base, 0x7000);
}
