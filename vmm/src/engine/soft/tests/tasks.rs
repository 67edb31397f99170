//! Hardware task switches: by JMP, CALL, IRET and task gates, between 16-bit and 32-bit tasks, and what can be wrong.

use super::{Bench, CODE};
use crate::engine::{Exit, Inject, Reg, SegDesc};
use iced_x86::code_asm::*;

const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const LDT: u64 = 0x5400;
/// Handlers: `push vector; hlt` each, 16 bytes apart.
const HANDLERS: u64 = 0x7000;
/// Task-state segments: of the first task, of a 32-bit one, of a 16-bit one.
const TSS_A: u64 = 0x5800;
const TSS_B: u64 = 0x5900;
const TSS_C: u64 = 0x5A00;
/// Stacks of the same.
const STACK_A: u64 = 0x8000;
const STACK_B: u64 = 0xA000;
const STACK_C: u64 = 0xB000;
/// Code of the tasks that are switched to.
const CODE_B: u64 = 0x1_1000;
const CODE_C: u64 = 0xC000;

// Selectors.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const TASK_A: u16 = 0x28;
const TASK_B: u16 = 0x30;
const TASK_C: u16 = 0x38;
const GATE_B: u16 = 0x40;
const LOCAL: u16 = 0x48;
const CODE16: u16 = 0x50;
const GATE_ABSENT: u16 = 0x58;
const TASK_ABSENT: u16 = 0x60;
const TASK_SHORT: u16 = 0x68;
const TASK_BUSY: u16 = 0x70;
const GATE_NULL: u16 = 0x78;
const DATA_ABSENT: u16 = 0x80;
const CODE_ABSENT: u16 = 0x88;
const READ_ONLY: u16 = 0x90;

/// Vectors whose gates are task gates.
const TO_B: u8 = 0x40;
const TO_BUSY: u8 = 0x41;

const NT: u64 = 1 << 14;
const TS: u64 = 1 << 3;

fn gate(task: u16, rights: u64) -> u64 {
    u64::from(task) << 16 | rights << 40
}

fn tss(base: u64, rights: u64, limit: u64) -> u64 {
    limit | base << 16 | rights << 40
}

const fn rights(selector: u16) -> u64 {
    GDT + selector as u64 + 5
}

/// Task A executes `build` at ring `cpl`. Tasks B (32-bit) and C (16-bit) halt at once, unless a test gives them other code.
fn bench(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(cpl);
    let descriptors = [
        0,
        0x00CF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_FB00_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        tss(TSS_A, 0x8B, 0x67),
        tss(TSS_B, 0x89, 0x67),
        tss(TSS_C, 0x81, 0x2B),
        gate(TASK_B, 0xE5),
        tss(LDT, 0x82, 0x17),
        0x0000_9B00_0000_FFFF,
        gate(TASK_B, 0x65),
        tss(TSS_B, 0x09, 0x67),
        tss(TSS_B, 0x89, 0x66),
        tss(TSS_B, 0x8B, 0x67),
        gate(0, 0xE5),
        0x00CF_1300_0000_FFFF,
        0x00CF_1B00_0000_FFFF,
        0x00CF_9100_0000_FFFF,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        bench.write64(GDT + 8 * i as u64, descriptor);
    }
    bench.write64(LDT + 8, 0x00CF_9300_0000_FFFF);
    for vector in 0..0x80_u64 {
        let handler = HANDLERS + 16 * vector;
        bench.write(handler, &[0x6A, vector as u8, 0xF4]);
        bench.write64(IDT + 8 * vector, handler & 0xFFFF | 8 << 16 | 0x8E << 40 | (handler >> 16) << 48);
    }
    bench.write64(IDT + 8 * u64::from(TO_B), gate(TASK_B, 0xE5));
    bench.write64(IDT + 8 * u64::from(TO_BUSY), gate(TASK_BUSY, 0xE5));
    bench.cpu.set_desc(Reg::Gdtr, SegDesc { base: GDT, limit: 0x97, access: 0 });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: IDT, limit: 0x3FF, access: 0 });
    bench.cpu.set_reg(Reg::Tr, u64::from(TASK_A));
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: TSS_A, limit: 0x67, access: 0x8B });
    bench.write64(TSS_A + 4, 0x9000 | u64::from(DATA0) << 32);
    Task32 { esp: STACK_B as u32, eip: CODE_B as u32, ..Task32::default() }.write(&bench);
    let words = [CODE_C as u16, 0x0002, 1, 2, 3, 4, STACK_C as u16, 6, 7, 8, DATA0, CODE16, DATA0, DATA0, 0];
    for (i, word) in words.into_iter().enumerate() {
        bench.write(TSS_C + 0x0E + 2 * i as u64, &word.to_le_bytes());
    }
    bench.write(CODE_B, &[0xF4]);
    bench.write(CODE_C, &[0xF4]);
    bench.load(32, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, STACK_A);
    bench
}

/// The state of task B.
#[derive(Clone, Copy)]
struct Task32 {
    cr3: u32,
    eip: u32,
    flags: u32,
    esp: u32,
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Default for Task32 {
    fn default() -> Task32 {
        let selectors = [DATA0, CODE0, DATA0, DATA0, 0, DATA0];
        Task32 { cr3: 0, eip: CODE_B as u32, flags: 2, esp: STACK_B as u32, selectors, ldt: 0, trap: false }
    }
}

impl Task32 {
    fn write(self, bench: &Bench) {
        let registers = [self.eip, self.flags, 0xA0, 0xA1, 0xA2, 0xA3, self.esp, 0xA5, 0xA6, 0xA7];
        let segments = self.selectors.map(u32::from);
        let tail = [u32::from(self.ldt), u32::from(self.trap)];
        let words = [self.cr3].into_iter().chain(registers).chain(segments).chain(tail);
        for (i, word) in words.enumerate() {
            bench.write(TSS_B + 0x1C + 4 * i as u64, &word.to_le_bytes());
        }
    }
}

/// A far JMP (0xEA) or CALL (0x9A) to a selector, 7 bytes.
fn far(a: &mut CodeAssembler, opcode: u8, selector: u16) {
    let [low, high] = selector.to_le_bytes();
    a.db(&[opcode, 0, 0, 0, 0, low, high]).unwrap();
}

const JMP: u8 = 0xEA;
const CALL: u8 = 0x9A;

fn read32(bench: &Bench, at: u64) -> u64 {
    u64::from(u32::from_le_bytes(bench.read(at)))
}

fn read16(bench: &Bench, at: u64) -> u64 {
    u64::from(u16::from_le_bytes(bench.read(at)))
}

/// Vector, error code and EIP of the fault whose handler halted.
fn fault(bench: &mut Bench) -> (u64, u64, u64) {
    bench.run_to_hlt();
    let stack = bench.cpu.reg(Reg::Rsp);
    (read32(bench, stack), read32(bench, stack + 4), read32(bench, stack + 8))
}

#[test]
fn jmp_to_a_task_saves_one_and_loads_the_other() {
    for selector in [TASK_B, GATE_B] {
        let mut bench = bench(0, |a| {
            a.mov(eax, 0x1111_1111).unwrap();
            a.mov(edi, 0x7777_7777).unwrap();
            a.stc().unwrap();
            far(a, JMP, selector);
        });
        bench.cpu.set_reg(Reg::Dr7, 0x4AA | 0x155);
        bench.run_to_hlt();
        let saved = |at| read32(&bench, TSS_A + at);
        assert_eq!((saved(0x20), saved(0x24)), (CODE + 18, 3), "EIP behind the jump, EFLAGS");
        assert_eq!((saved(0x28), saved(0x44), saved(0x38)), (0x1111_1111, 0x7777_7777, STACK_A));
        assert_eq!((saved(0x4C) & 0xFFFF, saved(0x50) & 0xFFFF), (u64::from(CODE0), u64::from(DATA0)));
        assert_eq!(bench.read::<1>(rights(TASK_A)), [0x89], "no longer busy");
        assert_eq!(bench.read::<1>(rights(TASK_B)), [0x8B]);
        assert_eq!(read16(&bench, TSS_B), 0, "a jump leaves no link");
        let mut reg = |reg| bench.cpu.reg(reg);
        assert_eq!((reg(Reg::Rip), reg(Reg::Rsp), reg(Reg::Rflags)), (CODE_B + 1, STACK_B, 2));
        assert_eq!((reg(Reg::Rax), reg(Reg::Rcx), reg(Reg::Rbp), reg(Reg::Rdi)), (0xA0, 0xA1, 0xA5, 0xA7));
        assert_eq!((reg(Reg::Tr), reg(Reg::Fs), reg(Reg::Gs)), (u64::from(TASK_B), 0, u64::from(DATA0)));
        assert_eq!(reg(Reg::Cr0) & TS, TS);
        assert_eq!(reg(Reg::Dr7), 0x4AA & !0x155 | 0x400, "local breakpoints are the old task's");
        assert_eq!(bench.cpu.desc(Reg::Tr), SegDesc { base: TSS_B, limit: 0x67, access: 0x8B });
        assert_ne!(bench.cpu.desc(Reg::Fs).access & 1 << 16, 0, "a null selector");
    }
}

#[test]
fn call_nests_and_iret_returns() {
    let mut bench = bench(0, |a| {
        a.mov(ebx, 5).unwrap();
        far(a, CALL, TASK_B);
        a.inc(ebx).unwrap();
        far(a, CALL, GATE_B); // goes on behind the IRET
        a.hlt().unwrap();
    });
    let mut code = CodeAssembler::new(32).unwrap();
    code.pushfd().unwrap();
    code.pop(esi).unwrap();
    code.inc(dword_ptr(0x600)).unwrap();
    code.iretd().unwrap();
    code.inc(dword_ptr(0x600)).unwrap();
    code.iretd().unwrap();
    bench.write(CODE_B, &code.assemble(CODE_B).unwrap());
    assert_eq!(bench.run(5), Exit::Budget);
    assert_eq!(bench.cpu.reg(Reg::Rflags) & NT, NT);
    assert_eq!(bench.cpu.reg(Reg::Rsi) & NT, NT);
    assert_eq!(read16(&bench, TSS_B), u64::from(TASK_A), "the link");
    assert_eq!((bench.read::<1>(rights(TASK_A)), bench.read::<1>(rights(TASK_B))), ([0x8B], [0x8B]), "both are busy");
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rbx), bench.cpu.reg(Reg::Rsp)), (6, STACK_A));
    assert_eq!(bench.cpu.reg(Reg::Tr), u64::from(TASK_A));
    assert_eq!(bench.cpu.reg(Reg::Rflags) & NT, 0);
    assert_eq!((bench.read::<1>(rights(TASK_A)), bench.read::<1>(rights(TASK_B))), ([0x8B], [0x89]));
    assert_eq!(read32(&bench, TSS_B + 0x24) & NT, 0, "IRET saves the task without NT");
    assert_eq!(read32(&bench, 0x600), 2);
}

#[test]
fn sixteen_bit_tasks() {
    let mut bench = bench(0, |a| {
        far(a, CALL, TASK_C);
        a.hlt().unwrap();
    });
    let mut code = CodeAssembler::new(16).unwrap();
    code.mov(word_ptr(0x600), ax).unwrap();
    code.mov(word_ptr(0x602), sp).unwrap();
    code.mov(bx, 0x5678).unwrap();
    code.iret().unwrap();
    bench.write(CODE_C, &code.assemble(CODE_C).unwrap());
    assert_eq!(bench.run(1), Exit::Budget);
    assert_eq!((bench.cpu.reg(Reg::Rip), bench.cpu.reg(Reg::Rflags)), (CODE_C, 2 | NT));
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Fs)), (u64::from(CODE16), 0));
    assert_eq!(bench.cpu.desc(Reg::Tr).access, 0x83);
    bench.run_to_hlt();
    assert_eq!((read16(&bench, 0x600), read16(&bench, 0x602)), (1, STACK_C));
    assert_eq!((read16(&bench, TSS_C + 0x0E), read16(&bench, TSS_C + 0x18)), (CODE_C + 11, 0x5678), "IP, BX");
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE + 8);
}

#[test]
fn an_interrupt_and_an_exception_through_a_task_gate() {
    let here = |a: &mut CodeAssembler| {
        a.sti().unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    };
    let mut external = bench(0, here);
    assert_eq!(external.run(10), Exit::Pause);
    external.cpu.inject(Inject::Interrupt(TO_B));
    external.run_to_hlt();
    assert_eq!(read32(&external, TSS_A + 0x20), CODE + 1);
    assert_eq!(external.cpu.reg(Reg::Rsp), STACK_B);
    assert_eq!(external.cpu.reg(Reg::Rflags), 2 | NT);

    // #GP, with its error code on the new task's stack; the saved EFLAGS have RF.
    let mut exception = bench(0, |a| {
        a.mov(eax, 0x80).unwrap();
        a.mov(gs, eax).unwrap();
    });
    exception.write64(IDT + 8 * 11, gate(TASK_B, 0x85));
    exception.run_to_hlt();
    assert_eq!(exception.cpu.reg(Reg::Rsp), STACK_B - 4);
    assert_eq!(read32(&exception, STACK_B - 4), u64::from(DATA_ABSENT));
    assert_eq!((read32(&exception, TSS_A + 0x20), read32(&exception, TSS_A + 0x24)), (CODE + 5, 0x1_0002));

    // INT n from ring 3.
    let mut user = bench(3, |a| a.int(u32::from(TO_B)).unwrap());
    user.run_to_hlt();
    assert_eq!((read32(&user, TSS_A + 0x20), user.cpu.reg(Reg::Cs)), (CODE + 2, u64::from(CODE0)));
}

#[test]
fn jumps_and_calls_that_the_old_task_is_refused() {
    for (cpl, selector, expected) in [
        (3, TASK_B, (13, TASK_B)),
        (0, TASK_B | 3, (13, TASK_B)),
        (0, TASK_BUSY, (13, TASK_BUSY)),
        (0, TASK_ABSENT, (11, TASK_ABSENT)),
        (0, TASK_SHORT, (10, TASK_SHORT)),
        (0, GATE_ABSENT, (11, GATE_ABSENT)),
        (3, GATE_ABSENT, (11, GATE_ABSENT)),
        (0, GATE_NULL, (13, 0)),
        (0, LOCAL, (13, LOCAL)),
        (0, 0x1000, (13, 0x1000)),
    ] {
        for opcode in [JMP, CALL] {
            let mut bench = bench(cpl, |a| far(a, opcode, selector));
            let (vector, error, eip) = fault(&mut bench);
            assert_eq!((vector, error, eip), (expected.0, u64::from(expected.1), CODE), "{selector:#x} at {cpl}");
            assert_eq!(bench.read::<1>(rights(TASK_A)), [0x8B]);
            assert_eq!(bench.cpu.reg(Reg::Cr0) & TS, 0);
        }
    }
    // Ring 3 may use a gate of DPL 3.
    let mut allowed = bench(3, |a| far(a, JMP, GATE_B | 3));
    allowed.run_to_hlt();
    assert_eq!(allowed.cpu.reg(Reg::Tr), u64::from(TASK_B));
    // A busy task through an interrupt: EXT only if nobody asked for it.
    let mut asked = bench(0, |a| a.int(u32::from(TO_BUSY)).unwrap());
    assert_eq!(fault(&mut asked), (13, u64::from(TASK_BUSY), CODE));
    let mut external = bench(0, |a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    assert_eq!(external.run(2), Exit::Budget);
    external.cpu.inject(Inject::Interrupt(TO_BUSY));
    assert_eq!(fault(&mut external), (13, u64::from(TASK_BUSY) | 1, CODE + 2));
}

#[test]
fn iret_to_what_is_no_busy_task() {
    for (link, expected) in
        [(TASK_B, (10, TASK_B)), (LOCAL, (10, LOCAL)), (0x1000, (10, 0x1000)), (TASK_BUSY | 4, (10, TASK_BUSY | 4))]
    {
        let mut bench = bench(0, |a| a.iretd().unwrap());
        bench.write(TSS_A, &link.to_le_bytes());
        bench.cpu.set_reg(Reg::Rflags, 2 | NT);
        assert_eq!(fault(&mut bench), (expected.0, u64::from(expected.1), CODE), "{link:#x}");
    }
}

#[test]
fn faults_of_the_new_task_are_its_own() {
    let with = |number: usize, selector: u16| {
        let mut task = Task32::default();
        task.selectors[number] = selector;
        task
    };
    let local = Task32 { ldt: DATA0, ..Task32::default() };
    let beyond = Task32 { eip: 0x2_0000, selectors: [DATA0, CODE16, DATA0, DATA0, 0, 0], ..Task32::default() };
    for (task, expected) in [
        (with(0, READ_ONLY), (0, 0)),
        (with(0, DATA_ABSENT), (11, DATA_ABSENT)),
        (with(3, CODE0 | 3), (10, CODE0)),
        (with(3, 0x1000), (10, 0x1000)),
        (with(4, TASK_A), (10, TASK_A)),
        (beyond, (13, 0)),
    ] {
        let mut bench = bench(0, |a| far(a, JMP, TASK_B));
        task.write(&bench);
        let (vector, error, eip) = fault(&mut bench);
        if expected == (0, 0) {
            assert_eq!((bench.cpu.reg(Reg::Rip), bench.cpu.reg(Reg::Es)), (CODE_B + 1, u64::from(READ_ONLY)));
            continue;
        }
        assert_eq!((vector, error, eip), (expected.0, u64::from(expected.1), u64::from(task.eip)));
        assert_eq!(bench.cpu.reg(Reg::Tr), u64::from(TASK_B), "the switch is done");
        assert_eq!(read32(&bench, TSS_A + 0x20), CODE + 7, "the old task is saved");
    }
    // Without code or a stack the fault needs a task of its own.
    for (task, vector, error) in [
        (local, 10, DATA0),
        (Task32 { ldt: LOCAL | 4, ..local }, 10, LOCAL | 4),
        (with(1, CODE0 | 3), 10, CODE0),
        (with(1, DATA0), 10, DATA0),
        (with(1, 0), 10, 0),
        (with(1, CODE_ABSENT), 11, CODE_ABSENT),
        (with(2, 0), 10, 0),
        (with(2, READ_ONLY), 10, READ_ONLY),
        (with(2, DATA0 | 3), 10, DATA0),
        (with(2, DATA_ABSENT), 12, DATA_ABSENT),
    ] {
        let mut bench = bench(0, |a| far(a, JMP, TASK_B));
        task.write(&bench);
        bench.write64(IDT + 8 * vector, gate(TASK_C, 0x85));
        bench.run_to_hlt();
        assert_eq!(bench.cpu.reg(Reg::Tr), u64::from(TASK_C), "vector {vector}");
        assert_eq!((read16(&bench, STACK_C - 2), read16(&bench, TSS_C)), (u64::from(error), u64::from(TASK_B)));
    }
}

#[test]
fn the_local_descriptor_table_is_the_tasks_own() {
    let mut bench = bench(0, |a| far(a, JMP, TASK_B));
    let selectors = [DATA0, CODE0, DATA0, 0x0C, 0, 0];
    Task32 { ldt: LOCAL, selectors, ..Task32::default() }.write(&bench);
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Ldtr), bench.cpu.reg(Reg::Ds)), (u64::from(LOCAL), 0x0C));
    assert_eq!(bench.cpu.desc(Reg::Ldtr).base, LDT);
}

#[test]
fn the_trap_flag_of_the_task_and_cr3() {
    let mut trap = bench(0, |a| far(a, JMP, TASK_B));
    Task32 { trap: true, ..Task32::default() }.write(&trap);
    trap.run_to_hlt();
    let stack = trap.cpu.reg(Reg::Rsp);
    assert_eq!((read32(&trap, stack), read32(&trap, stack + 4)), (1, CODE_B), "#DB before the first instruction");
    assert_eq!(trap.cpu.reg(Reg::Dr6) & 0xE00F, 1 << 15);

    // Two page directories map the same, apart from the page of the new task's data.
    let mut paged = bench(0, |a| far(a, JMP, TASK_B));
    for (directory, other) in [(0x2_0000, 0x83_u64), (0x2_1000, 0x40_0083)] {
        paged.write(directory, &0x83_u32.to_le_bytes());
        paged.write(directory + 4, &(other as u32).to_le_bytes());
    }
    paged.cpu.set_reg(Reg::Cr3, 0x2_0000);
    paged.cpu.set_reg(Reg::Cr4, 0x10);
    paged.cpu.set_reg(Reg::Cr0, 0x8000_0031);
    Task32 { cr3: 0x2_1000, ..Task32::default() }.write(&paged);
    assert_eq!(paged.cpu.translate(0x40_0000), Some(0));
    paged.run_to_hlt();
    assert_eq!(paged.cpu.reg(Reg::Cr3), 0x2_1000);
    assert_eq!(paged.cpu.translate(0x40_0000), Some(0x40_0000));
}

#[test]
fn a_task_in_virtual_8086_mode() {
    let mut bench = bench(0, |a| far(a, CALL, TASK_B));
    let selectors = [0x1111, 0x2000, 0x3000, 0x3100, 0x2222, 0x3333];
    let flags = 1 << 17 | 2;
    Task32 { eip: 0x10, esp: 0x80, flags, selectors, ..Task32::default() }.write(&bench);
    bench.write(0x2_0010, &[0x90, 0xFA]); // nop; cli
    assert_eq!(bench.run(2), Exit::Budget);
    assert_eq!(bench.cpu.reg(Reg::Rflags), u64::from(flags) | NT);
    assert_eq!(bench.cpu.desc(Reg::Cs), SegDesc { base: 0x2_0000, limit: 0xFFFF, access: 0xF3 });
    // CLI is not its own; the handler is a task too, which saves the 8086 program's state.
    bench.write64(IDT + 8 * 13, gate(TASK_C, 0x85));
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Tr), u64::from(TASK_C));
    assert_eq!((read32(&bench, TSS_B + 0x20), read32(&bench, TSS_B + 0x58)), (0x11, 0x2222), "EIP, FS");
    assert_eq!(read32(&bench, TSS_B + 0x24), u64::from(flags) | NT | 1 << 16);
}

#[test]
fn a_switch_whose_segment_is_paged_out_has_not_begun() {
    let mut bench = bench(0, |a| far(a, CALL, TASK_B));
    // The new task-state segment is in the one page that is not there.
    bench.write(0x2_0000, &0x2_1003_u32.to_le_bytes());
    for page in 0..256_u64 {
        bench.write(0x2_1000 + 4 * page, &((page << 12) as u32 | 3).to_le_bytes());
    }
    bench.write64(GDT + u64::from(TASK_B), tss(0x3_0FC0, 0x89, 0x67));
    bench.write(0x2_1000 + 4 * 0x31, &[0]);
    bench.cpu.set_reg(Reg::Cr3, 0x2_0000);
    bench.cpu.set_reg(Reg::Cr0, 0x8000_0031);
    assert_eq!(fault(&mut bench), (14, 2, CODE), "a write, for the link");
    assert_eq!(bench.cpu.reg(Reg::Cr2), 0x3_1027);
    assert_eq!((bench.cpu.reg(Reg::Tr), bench.read::<1>(rights(TASK_B))), (u64::from(TASK_A), [0x89]));
    assert_eq!(read32(&bench, TSS_A + 0x20), 0, "nothing is saved");
}

#[test]
fn long_mode_has_no_tasks() {
    for opcode in [0x28, 0x18] {
        // JMP and CALL m16:32 through RAX; ring 0.
        let mut bench = Bench::new(0x10_0000);
        bench.long_mode(0);
        super::events::long_mode_idt(&mut bench);
        bench.write64(GDT + u64::from(TASK_B), tss(TSS_B, 0x89, 0x67));
        bench.write64(GDT + u64::from(TASK_B) + 8, 0);
        bench.write(0x600, &[0, 0, 0, 0, TASK_B as u8, 0]);
        bench.load(64, CODE, |a| {
            a.mov(eax, 0x600).unwrap();
            a.db(&[0xFF, opcode]).unwrap();
        });
        bench.cpu.set_reg(Reg::Rsp, 0x8000);
        bench.run_to_hlt();
        assert_eq!(super::events::handled(&mut bench), 13);
        let stack = bench.cpu.reg(Reg::Rsp);
        assert_eq!(bench.read64(stack), u64::from(TASK_B));
    }
}
