//! Virtual-8086 mode: how it is entered and left, what is forbidden in it, and its extensions.

use super::{Bench, CODE};
use crate::engine::{Completion, Exit, Inject, Reg, SegDesc};
use iced_x86::code_asm::*;

const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
/// Handlers: `push vector; hlt` each, 16 bytes apart.
const HANDLERS: u64 = 0x7000;
const STACK0: u64 = 0x9000;
/// Segments of the 8086 program; its code begins at offset 0.
const CS: u16 = 0x2000;
const SS: u16 = 0x3000;
const DS: u16 = 0x3100;
const PROGRAM: u64 = (CS as u64) << 4;
/// Where the 8086 program's own handlers are: `hlt`, which leaves the mode by #GP.
const HANDLER_CS: u16 = 0x2800;
/// The I/O permission bit map in the TSS; the redirection bit map is below.
const IO_MAP: u64 = 0x88;

const RF: u64 = 1 << 16;
const VM: u64 = 1 << 17;
const VIF: u64 = 1 << 19;
const VIP: u64 = 1 << 20;
const IF: u64 = 1 << 9;
const IOPL3: u64 = 3 << 12;
const VME: u64 = 1;

fn bench(flags: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(0);
    let descriptors = [
        0,
        0x00CF_9B00_0000_FFFF, // 08 code, ring 0
        0x00CF_9300_0000_FFFF, // 10 data, ring 0
        0x00CF_FB00_0000_FFFF, // 18 code, ring 3
        0x00CF_9F00_0000_FFFF, // 20 conforming code
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        bench.write64(GDT + 8 * i as u64, descriptor);
    }
    for vector in 0..256_u64 {
        let handler = HANDLERS + 16 * vector;
        bench.write(handler, &[0x6A, vector as u8, 0xF4]);
        let selector: u64 = match vector {
            0x71 => 0x18,
            0x72 => 0x20,
            _ => 8,
        };
        let rights: u64 = if vector >= 0x70 { 0xEE } else { 0x8E };
        bench.write64(IDT + 8 * vector, handler & 0xFFFF | selector << 16 | rights << 40 | (handler >> 16) << 48);
        bench.write(4 * vector, &[vector as u8, 0x01]);
        bench.write(4 * vector + 2, &HANDLER_CS.to_le_bytes());
    }
    bench.write(u64::from(HANDLER_CS) << 4, &[0xF4; 0x300]);
    bench.write64(TSS + 4, STACK0 | 0x10 << 32);
    bench.write(TSS + 0x66, &(IO_MAP as u16).to_le_bytes());
    bench.write(TSS + IO_MAP + 0x20, &[0xFF; 8]);
    bench.cpu.set_desc(Reg::Gdtr, SegDesc { base: GDT, limit: 0x7F, access: 0 });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: IDT, limit: 0x7FF, access: 0 });
    bench.cpu.set_reg(Reg::Tr, 0x28);
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0xFFF, access: 0x8B });
    let mut program = CodeAssembler::new(16).unwrap();
    build(&mut program);
    bench.write(PROGRAM, &program.assemble(0).unwrap());
    let entry = [0, u64::from(CS), flags | VM | 2, 0x100, u64::from(SS), 0x1234, u64::from(DS), 0x5678, 0x9ABC];
    for (i, value) in entry.into_iter().enumerate() {
        bench.write(0x8000 + 4 * i as u64, &(value as u32).to_le_bytes());
    }
    bench.load(32, CODE, |a| a.iretd().unwrap());
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

/// What stands on the stack of ring 0 when a handler has halted: its vector, then the frame, in 32-bit words.
fn frame(bench: &mut Bench) -> Vec<u32> {
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Cs), 8, "the monitor");
    let stack = bench.cpu.reg(Reg::Rsp);
    (stack..STACK0).step_by(4).map(|at| u32::from_le_bytes(bench.read(at))).collect()
}

/// The frame is of #GP(0), raised at this offset of this segment.
#[track_caller]
fn expect_gp(bench: &mut Bench, selector: u16, ip: u32) -> Vec<u32> {
    let frame = frame(bench);
    assert_eq!(frame[..4], [13, 0, ip, u32::from(selector)]);
    frame
}

#[test]
fn iret_enters_and_a_gate_leaves() {
    let mut bench = bench(IOPL3 | IF, |a| {
        a.mov(ax, word_ptr(0x10)).unwrap();
        a.mov(bx, cs).unwrap();
        a.int(0x70).unwrap();
    });
    bench.write(u64::from(DS) * 16 + 0x10, &[0xCD, 0xAB]);
    assert_eq!(bench.run(1), Exit::Budget);
    let desc = |selector: u16| SegDesc { base: u64::from(selector) << 4, limit: 0xFFFF, access: 0xF3 };
    for (reg, selector) in
        [(Reg::Cs, CS), (Reg::Ss, SS), (Reg::Es, 0x1234), (Reg::Ds, DS), (Reg::Fs, 0x5678), (Reg::Gs, 0x9ABC)]
    {
        assert_eq!(bench.cpu.reg(reg), u64::from(selector), "{reg:?}");
        assert_eq!(bench.cpu.desc(reg), desc(selector), "{reg:?}");
    }
    assert_eq!((bench.cpu.reg(Reg::Rip), bench.cpu.reg(Reg::Rsp)), (0, 0x100));
    assert_eq!(bench.cpu.reg(Reg::Rflags), VM | IOPL3 | IF | 2);
    let frame = frame(&mut bench);
    let flags = (VM | IOPL3 | IF | 2) as u32;
    let segments = [0x1234, u32::from(DS), 0x5678, 0x9ABC];
    assert_eq!(frame, [&[0x70, 7, u32::from(CS), flags, 0x100, u32::from(SS)], &segments[..]].concat());
    assert_eq!((bench.cpu.reg(Reg::Rax) as u16, bench.cpu.reg(Reg::Rbx) as u16), (0xABCD, CS));
    assert_eq!([Reg::Es, Reg::Ds, Reg::Fs, Reg::Gs].map(|reg| bench.cpu.reg(reg)), [0; 4]);
    assert_eq!(bench.cpu.desc(Reg::Ds).access & 1 << 16, 1 << 16, "unusable");
    assert_eq!(bench.cpu.reg(Reg::Rflags) & (VM | IF), 0);
}

#[test]
fn segments_are_loaded_as_on_the_8086() {
    let mut bench = bench(IOPL3, |a| {
        a.mov(ax, 0x3210).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(byte_ptr(5).es(), 0x77).unwrap();
        a.db(&[0x9A, 0x40, 0x00, 0x00, 0x24]).unwrap(); // call 2400:0040
        a.int(0x70).unwrap();
    });
    let mut callee = CodeAssembler::new(16).unwrap();
    callee.mov(cx, cs).unwrap();
    callee.les(dx, dword_ptr(0x20)).unwrap();
    callee.retf().unwrap();
    bench.write(0x2_4040, &callee.assemble(0x40).unwrap());
    bench.write(u64::from(DS) * 16 + 0x20, &[0x11, 0x22, 0x33, 0x44]);
    let frame = frame(&mut bench);
    assert_eq!(frame[..3], [0x70, 18, u32::from(CS)]);
    assert_eq!(frame[6], 0x4433, "ES by LES");
    assert_eq!(bench.read(0x3_2105), [0x77]);
    assert_eq!((bench.cpu.reg(Reg::Rcx), bench.cpu.reg(Reg::Rdx)), (0x2400, 0x2211));
}

#[test]
fn what_iopl_guards_goes_to_the_monitor() {
    let cases: [(&str, super::Build); 8] = [
        ("cli", |a| a.cli().unwrap()),
        ("sti", |a| a.sti().unwrap()),
        ("pushf", |a| a.pushf().unwrap()),
        ("popf", |a| a.popf().unwrap()),
        ("pushfd", |a| a.pushfd().unwrap()),
        ("int n", |a| a.int(0x70).unwrap()),
        ("iret", |a| a.iret().unwrap()),
        ("iretd", |a| a.iretd().unwrap()),
    ];
    for (name, case) in cases {
        let mut low = bench(0, case);
        let frame = expect_gp(&mut low, CS, 0);
        assert_eq!(frame[4] & VM as u32, VM as u32, "{name}");
        assert_eq!(frame[5], 0x100, "{name}: the stack is as before");
    }
}

#[test]
fn with_iopl_3_the_program_has_its_flags() {
    let mut bench = bench(IOPL3, |a| {
        a.sti().unwrap();
        a.pushf().unwrap();
        a.pop(ax).unwrap();
        a.push(0x0002).unwrap();
        a.popf().unwrap(); // IOPL is not the program's to change
        a.pushfd().unwrap();
        a.pop(ebx).unwrap();
        a.push(0x4202).unwrap(); // IF, NT
        a.push(0x2000).unwrap();
        a.push(0x20).unwrap();
        a.iret().unwrap();
    });
    bench.write(PROGRAM + 0x20, &[0xCD, 0x70]);
    let frame = frame(&mut bench);
    assert_eq!(frame[..3], [0x70, 0x22, u32::from(CS)]);
    assert_eq!(bench.cpu.reg(Reg::Rax) as u16, 0x3202);
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x3002, "the image has no VM");
    assert_eq!(u64::from(frame[3]), VM | 0x7202);
}

#[test]
fn privileged_and_protected_instructions() {
    let cases: [(u32, super::Build); 10] = [
        (13, |a| a.hlt().unwrap()),
        (13, |a| a.mov(eax, cr0).unwrap()),
        (13, |a| a.lgdt(fword_ptr(0x20)).unwrap()),
        (13, |a| a.clts().unwrap()),
        (13, |a| a.wbinvd().unwrap()),
        (6, |a| a.lldt(ax).unwrap()),
        (6, |a| a.str(ax).unwrap()),
        (6, |a| a.arpl(ax, bx).unwrap()),
        (6, |a| a.lar(ax, bx).unwrap()),
        (6, |a| a.verr(ax).unwrap()),
    ];
    for (i, (vector, case)) in cases.into_iter().enumerate() {
        let mut bench = bench(IOPL3, case);
        let frame = frame(&mut bench);
        assert_eq!(frame[0], vector, "case {i}");
        assert!(bench.cpu.take_unimplemented().is_empty(), "case {i}");
    }
}

#[test]
fn ports_go_by_the_bit_map_whatever_the_iopl() {
    let mut bench = bench(IOPL3, |a| {
        a.in_(al, 0x60).unwrap();
        a.mov(dx, 0x104).unwrap();
        a.out(dx, al).unwrap();
    });
    assert_eq!(bench.run(10), Exit::IoIn { port: 0x60, size: 1 });
    bench.cpu.complete(Completion::Value(0));
    expect_gp(&mut bench, CS, 5);
}

#[test]
fn interrupts_and_traps_leave_the_mode() {
    let here = |a: &mut CodeAssembler| {
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    };
    let mut external = bench(IF, here);
    assert_eq!(external.run(10), Exit::Pause);
    external.cpu.inject(Inject::Interrupt(0x31));
    assert_eq!(frame(&mut external)[..3], [0x31, 0, u32::from(CS)]);

    // INT3 is not guarded by IOPL, but its gate must be of DPL 3.
    let mut breakpoint = bench(0, |a| a.int3().unwrap());
    assert_eq!(frame(&mut breakpoint)[..2], [13, 3 * 8 + 2]);

    let mut divide = bench(0, |a| {
        a.xor(cx, cx).unwrap();
        a.div(cx).unwrap();
    });
    let divide_frame = frame(&mut divide);
    assert_eq!(divide_frame[..2], [0, 2]);
    assert_eq!(divide_frame.len(), 1 + 9, "no error code");
}

#[test]
fn handlers_must_be_of_ring_0() {
    for (vector, selector) in [(0x71, 0x18), (0x72, 0x20)] {
        let mut bench = bench(IOPL3, |a| a.int(vector).unwrap());
        assert_eq!(frame(&mut bench)[..4], [13, selector, 0, u32::from(CS)], "vector {vector:#x}");
    }
}

#[test]
fn leaving_the_segment() {
    let mut bench = bench(IOPL3, |a| a.mov(eax, dword_ptr(0xFFFE)).unwrap());
    expect_gp(&mut bench, CS, 0);

    let mut entry = super::virtual8086::bench(IOPL3, |a| a.nop().unwrap());
    entry.write(0x8000, &0x1_0000_u32.to_le_bytes());
    entry.run_to_hlt();
    let stack = entry.cpu.reg(Reg::Rsp);
    assert_eq!(entry.read::<12>(stack), [13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "IRETD to an offset beyond 64 Kbytes");
}

/// A program under the extensions, whose INT 0x70 is its own and whose INT 0x73 is the monitor's.
fn extended(flags: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = bench(flags, build);
    bench.cpu.set_reg(Reg::Cr4, VME);
    bench.write(TSS + IO_MAP - 32 + 0x73 / 8, &[1 << (0x73 % 8)]);
    bench
}

#[test]
fn the_extensions_keep_the_interrupt_flag_in_vif() {
    let mut bench = extended(0, |a| {
        a.sti().unwrap();
        a.pushf().unwrap();
        a.pop(ax).unwrap();
        a.cli().unwrap();
        a.pushf().unwrap();
        a.pop(bx).unwrap();
        a.push(0x0203).unwrap();
        a.popf().unwrap();
        a.hlt().unwrap();
    });
    let frame = expect_gp(&mut bench, CS, 10);
    assert_eq!((bench.cpu.reg(Reg::Rax) as u16, bench.cpu.reg(Reg::Rbx) as u16), (0x3202, 0x3002));
    assert_eq!(u64::from(frame[4]) & !RF, VM | VIF | 3, "IF is the monitor's");
}

#[test]
fn a_pending_virtual_interrupt_goes_to_the_monitor() {
    let cases: [(super::Build, u32); 4] = [
        (|a| a.sti().unwrap(), 0),
        (
            |a| {
                a.push(0x0202).unwrap();
                a.popf().unwrap();
            },
            3,
        ),
        (
            |a| {
                a.push(0x0202).unwrap();
                a.push(0x2000).unwrap();
                a.push(0).unwrap();
                a.iret().unwrap();
            },
            8,
        ),
        // A single step is never let in.
        (
            |a| {
                a.push(0x0102).unwrap();
                a.popf().unwrap();
            },
            3,
        ),
    ];
    for (build, ip) in cases {
        expect_gp(&mut extended(VIP, build), CS, ip);
    }
    // 32-bit operands have no place for them.
    expect_gp(&mut extended(0, |a| a.pushfd().unwrap()), CS, 0);
}

#[test]
fn int_n_by_the_redirection_bit_map() {
    // The program's own handler, with IOPL below 3: its image of the flags has VIF for IF, and IOPL 3.
    let mut own = extended(VIF, |a| a.int(0x70).unwrap());
    let frame = expect_gp(&mut own, HANDLER_CS, 0x170);
    assert_eq!(u64::from(frame[4]) & (VIF | IOPL3), 0, "VIF is clear in the handler");
    assert_eq!(own.read(u64::from(SS) * 16 + 0xFA), [0x02, 0x00, 0x00, 0x20, 0x02, 0x32], "IP, CS, FLAGS");

    // With IOPL 3 the flag is IF itself.
    let mut free = extended(IOPL3 | IF, |a| a.int(0x70).unwrap());
    let frame = expect_gp(&mut free, HANDLER_CS, 0x170);
    assert_eq!(u64::from(frame[4]) & (IF | IOPL3), IOPL3);

    // A vector that the bit map gives the monitor: by its gate, or by #GP.
    let mut gate = extended(IOPL3, |a| a.int(0x73).unwrap());
    assert_eq!(super::virtual8086::frame(&mut gate)[..3], [0x73, 2, u32::from(CS)]);
    expect_gp(&mut extended(0, |a| a.int(0x73).unwrap()), CS, 0);
}

#[test]
fn the_handler_of_a_redirected_interrupt_returns() {
    let mut bench = extended(VIF, |a| {
        a.int(0x70).unwrap();
        a.hlt().unwrap();
    });
    bench.write((u64::from(HANDLER_CS) << 4) + 0x170, &[0xCF]);
    let frame = expect_gp(&mut bench, CS, 2);
    assert_eq!(u64::from(frame[4]) & !RF, VM | VIF | 2);
    assert_eq!(frame[5], 0x100);
}

#[test]
fn protected_mode_virtual_interrupts() {
    let code = |a: &mut CodeAssembler| {
        a.sti().unwrap();
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.cli().unwrap();
        a.pushfd().unwrap();
        a.pop(ebx).unwrap();
        a.hlt().unwrap();
    };
    let mut bench = bench(0, |a| a.nop().unwrap());
    bench.flat_segments(0xC09B, 3);
    bench.cpu.set_reg(Reg::Cr4, 2);
    bench.load(32, CODE, code);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    assert_eq!(frame(&mut bench)[..3], [13, 0, CODE as u32 + 6], "HLT is not let in");
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rbx)), (VIF | 2, 2));
}
