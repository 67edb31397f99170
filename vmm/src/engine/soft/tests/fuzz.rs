//! Robustness and equivalence under random code: nothing that a guest executes makes the processor panic, how a run is cut
//! into slices does not show, and neither does whether an operand is in memory or in a device.

use super::events::long_mode_idt;
use super::random::{self, MIDDLE, State};
use super::{Bench, CODE, Random};
use crate::engine::soft::flags;
use crate::engine::{Completion, Exit, Inject, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use std::sync::Arc;

/// Answers whatever the guest asks for.
fn answer(bench: &mut Bench, exit: &Exit, random: &mut Random) {
    let completion = match exit {
        _ if random.below(8) == 0 => Completion::GeneralProtection,
        Exit::IoIn { .. } | Exit::MmioRead { .. } | Exit::RdMsr { .. } => Completion::Value(random.operand()),
        _ => Completion::Done,
    };
    bench.cpu.complete(completion);
}

/// Random register contents, tables and control bits, then random bytes as code.
fn run_anything(mode: u64, seed: u64) {
    let mut random = Random(seed);
    let mut bench = Bench::new(0x10_0000);
    match mode {
        0 => bench.real_mode(),
        1 => bench.protected_mode(if random.below(2) == 0 { 0 } else { 3 }),
        _ => bench.long_mode(if random.below(2) == 0 { 0 } else { 3 }),
    }
    if mode == 2 {
        long_mode_idt(&mut bench);
    } else {
        // Descriptors and gates of all kinds.
        for at in (0x4000..0x6000).step_by(8) {
            bench.write64(at, random.next() & 0x00FF_FFFF_000F_FFFF | 1 << 47);
        }
        bench.cpu.set_desc(Reg::Gdtr, SegDesc { base: 0x5000, limit: 0xFFF, access: 0 });
        bench.cpu.set_desc(Reg::Idtr, SegDesc { base: 0x4000, limit: 0x7FF, access: 0 });
    }
    for reg in Reg::ALL.into_iter().filter(|&reg| (reg as u8) < Reg::Cr0 as u8) {
        bench.cpu.set_reg(reg, random.operand());
    }
    bench.cpu.set_reg(Reg::Rsp, 0x8000 + random.below(16));
    let mut code = [0; 256];
    for byte in &mut code {
        *byte = random.next() as u8;
    }
    // Opcodes of the second map come up more often than by chance.
    for byte in &mut code {
        if random.below(6) == 0 {
            *byte = 0x0F;
        }
    }
    let at = if mode == 0 { 0xF000 } else { CODE };
    bench.write(at, &code);
    bench.cpu.set_reg(Reg::Rip, at);
    for _ in 0..50 {
        let budget = 1 + random.below(40);
        let before = bench.cpu.instructions();
        let exit = bench.run(budget);
        let done = bench.cpu.instructions().zip(before).map(|(after, before)| after - before);
        assert!(done.is_some_and(|done| done <= budget), "mode {mode}, seed {seed}: {done:?} of {budget}");
        match exit {
            Exit::Shutdown => break,
            Exit::Failed(what) => panic!("mode {mode}, seed {seed}: {what}"),
            Exit::Hlt | Exit::Pause | Exit::InterruptWindow => {
                bench.cpu.request_interrupt_window(random.below(2) == 0);
                if bench.cpu.interruptible() {
                    bench.cpu.inject(Inject::Interrupt(random.next() as u8));
                }
                if random.below(4) == 0 {
                    bench.cpu.inject(Inject::Nmi);
                }
            }
            Exit::MmioFetch { .. } => {
                bench.cpu.set_reg(Reg::Rip, at);
            }
            other => answer(&mut bench, &other, &mut random),
        }
    }
}

#[test]
fn nothing_makes_the_processor_panic() {
    let seeds = if cfg!(debug_assertions) { 3_000 } else { 10_000 };
    for seed in 0..seeds {
        for mode in 0..3 {
            run_anything(mode, seed);
        }
    }
}

/// Registers and descriptors as no guest could have set them: the kernel lets its frontend set anything.
fn run_from_any_state(seed: u64) {
    let mut random = Random(seed);
    let mut bench = Bench::new(0x10_0000);
    for at in (0..0x1_2000).step_by(8) {
        let entry = match random.below(3) {
            // A page-table entry, or two.
            0 => random.below(0x18) << 12 | random.next() & 0xFE7 | 1,
            1 => (random.below(0x18) << 12 | random.next() & 0xFFF) << 32 | random.below(0x18) << 12 | 0x67,
            _ => random.next(),
        };
        bench.write64(at, entry);
    }
    for reg in Reg::ALL {
        let value = match reg {
            Reg::Cr0 => random.next() & 0xE005_003F,
            Reg::Cr3 => random.below(0x12) << 12,
            Reg::Cr4 => random.next() & 0x37_0FFF,
            Reg::Efer => random.next() & 0xD01,
            Reg::Rip | Reg::Rsp if random.below(4) != 0 => random.below(0x1_2000),
            _ => random.operand(),
        };
        bench.cpu.set_reg(reg, value);
        if reg.has_descriptor() {
            let base = if random.below(2) == 0 { random.below(0x1_0000) } else { random.operand() };
            let limit = random.operand() as u32;
            bench.cpu.set_desc(reg, SegDesc { base, limit, access: random.next() as u32 & 0x1_F0FF });
        }
    }
    for _ in 0..20 {
        let budget = 1 + random.below(40);
        match bench.run(budget) {
            Exit::Failed(what) => panic!("seed {seed}: {what}"),
            Exit::Shutdown | Exit::MmioFetch { .. } => bench.cpu.set_reg(Reg::Rip, random.below(0x1_2000)),
            Exit::Budget if bench.cpu.interruptible() => bench.cpu.inject(Inject::Interrupt(random.next() as u8)),
            exit => answer(&mut bench, &exit, &mut random),
        }
        bench.cpu.translate(random.operand());
    }
}

#[test]
fn no_state_makes_the_processor_panic() {
    let seeds = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
    for seed in 0..seeds {
        run_from_any_state(seed);
    }
}

/// Registers, flags and memory after a program of random instructions.
fn outcome(bench: &mut Bench, data: &Segment) -> (Vec<u64>, Vec<u8>) {
    let regs = Reg::ALL.into_iter().map(|reg| bench.cpu.reg(reg)).collect();
    let mut memory = vec![0; data.len()];
    assert!(data.read(0, &mut memory));
    (regs, memory)
}

/// A bench whose data area is memory, or a device that the test plays.
fn with_data(device: bool) -> (Bench, Arc<Segment>) {
    let mut bench = Bench::new(0x10_0000);
    let data = Arc::new(Segment::new(random::DATA_LEN).expect("memory"));
    if !device {
        bench
            .vm
            .map(random::DATA, &data, 0, random::DATA_LEN as u64, Protection { write: true })
            .expect("a good mapping");
    }
    bench.long_mode(0);
    (bench, data)
}

/// Runs to the jump to itself at the end of the code, playing the device.
fn play(bench: &mut Bench, data: &Segment) {
    loop {
        match bench.run(1000) {
            Exit::Pause => return,
            Exit::MmioRead { gpa, size } => {
                let mut bytes = [0; 8];
                assert!(data.read(gpa - random::DATA, &mut bytes[..usize::from(size)]));
                bench.cpu.complete(Completion::Value(u64::from_le_bytes(bytes)));
            }
            Exit::MmioWrite { gpa, size, data: value } => {
                assert!(data.write(gpa - random::DATA, &value.to_le_bytes()[..usize::from(size)]));
                bench.cpu.complete(Completion::Done);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_device_behaves_like_memory() {
    let rounds = if cfg!(debug_assertions) { 10_000 } else { 30_000 };
    let mut random = Random(7);
    let (mut plain, memory) = with_data(false);
    let (mut device, registers) = with_data(true);
    let mut done = 0;
    while done < rounds {
        let Some(case) = random::Case::new(&mut random) else { continue };
        let mut code = case.bytes.clone();
        code.extend([0xEB, 0xFE]); // jmp $
        let outcomes = [(&mut plain, &memory), (&mut device, &registers)].map(|(bench, data)| {
            bench.write(CODE, &code);
            assert!(data.write(0, &case.memory));
            case.state.put(bench);
            bench.cpu.set_reg(Reg::Rip, CODE);
            play(bench, data);
            outcome(bench, data)
        });
        assert!(outcomes[0] == outcomes[1], "{} from {:x?}", case.instruction, case.state);
        done += 1;
    }
}

#[test]
fn slices_do_not_show() {
    let rounds = if cfg!(debug_assertions) { 300 } else { 3_000 };
    let mut random = Random(11);
    let (mut whole, memory) = with_data(false);
    let (mut sliced, other) = with_data(false);
    for round in 0..rounds {
        // A loop of random instructions on registers and on memory through RBP, which none of them writes.
        let mut code = Vec::new();
        while code.len() < 60 {
            let Some(case) = random::Case::in_program(&mut random) else { continue };
            code.extend(case);
        }
        code.extend([0x48, 0xFF, 0xCD]); // dec rbp
        code.extend([0x48, 0x81, 0xFD]); // cmp rbp, MIDDLE - 20
        code.extend((MIDDLE as u32 - 20).to_le_bytes());
        code.extend([0x0F, 0x85]); // jne to the beginning
        code.extend((-(code.len() as i32) - 4).to_le_bytes());
        code.extend([0xEB, 0xFE]); // jmp $
        let mut state = State::random(&mut random);
        state.regs[5] = MIDDLE;
        state.flags &= !flags::DF;
        let outcomes = [(&mut whole, &memory, false), (&mut sliced, &other, true)].map(|(bench, data, slices)| {
            bench.write(CODE, &code);
            assert!(data.write(0, &vec![0x5A; random::DATA_LEN]));
            state.put(bench);
            bench.cpu.set_reg(Reg::Rip, CODE);
            let before = bench.cpu.instructions();
            loop {
                let budget = if slices { 1 + random.below(7) } else { 1_000_000 };
                match bench.run(budget) {
                    Exit::Budget if slices => {}
                    Exit::Pause => break,
                    exit => panic!("round {round}: {exit:?} at {:#x}", bench.cpu.reg(Reg::Rip)),
                }
            }
            let instructions = bench.cpu.instructions().zip(before).map(|(after, before)| after - before);
            (outcome(bench, data), instructions)
        });
        assert!(outcomes[0] == outcomes[1], "round {round}");
    }
}

/// Moves and stores in bulk take a fraction of an instruction's time for each iteration: cutting them into slices must not
/// round it up once more.
#[test]
fn slices_of_a_repeated_move_take_no_longer() {
    let instructions = |code: &[u8], count: u64, slice: u64| {
        let mut bench = Bench::new(0x10_0000);
        bench.long_mode(0);
        bench.write(CODE, code);
        for (reg, value) in [(Reg::Rip, CODE), (Reg::Rcx, count), (Reg::Rsi, 0x2_0FC0), (Reg::Rdi, 0x3_0123)] {
            bench.cpu.set_reg(reg, value);
        }
        while bench.run(slice) == Exit::Budget {}
        assert_eq!(bench.cpu.reg(Reg::Rcx), 0);
        bench.cpu.instructions()
    };
    // rep movsb, rep stosw and rep movsq, and HLT.
    for code in [&[0xF3, 0xA4, 0xF4][..], &[0x66, 0xF3, 0xAB, 0xF4], &[0xF3, 0x48, 0xA5, 0xF4]] {
        for count in [1, 7, 64, 100, 1000, 5000] {
            let whole = instructions(code, count, 1_000_000);
            for slice in [1, 2, 3, 10] {
                assert_eq!(instructions(code, count, slice), whole, "{code:02x?}, {count} times, by {slice}");
            }
        }
    }
}
