//! Several processors of one machine: they share memory and decoded code, and take turns.

use super::{Bench, CODE, Random};
use crate::engine::soft::NS_PER_INSTRUCTION;
use crate::engine::{EngineVcpu, Exit, Reg, SegDesc};
use iced_x86::code_asm::*;

const COUNTER: u64 = 0x6000;
const LOCK: u64 = 0x6040;
const SUM: u64 = 0x6048;

/// Runs all processors in turns of random lengths until each has halted.
fn take_turns(processors: &mut [Box<dyn EngineVcpu>], random: &mut Random) {
    let mut running: Vec<usize> = (0..processors.len()).collect();
    for _ in 0..1_000_000 {
        if running.is_empty() {
            return;
        }
        let turn = random.below(running.len() as u64) as usize;
        match processors[running[turn]].run((1 + random.below(50)) * NS_PER_INSTRUCTION) {
            Exit::Hlt => {
                running.remove(turn);
            }
            Exit::Budget | Exit::Pause => {}
            exit => panic!("{exit:?}"),
        }
    }
    panic!("{} processors never halt", running.len());
}

/// More processors in the state of the bench's own.
fn processors(bench: &mut Bench, count: u32) -> Vec<Box<dyn EngineVcpu>> {
    (0..count)
        .map(|id| {
            let mut cpu = bench.vm.create_vcpu(id).expect("the soft engine always can");
            for reg in Reg::ALL {
                cpu.set_reg(reg, bench.cpu.reg(reg));
                if reg.has_descriptor() {
                    cpu.set_desc(reg, bench.cpu.desc(reg));
                }
            }
            cpu
        })
        .collect()
}

#[test]
fn locked_operations_and_spin_locks_lose_nothing() {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    bench.load(64, CODE, |a| {
        let (mut again, mut spin, mut acquire) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(dword_ptr(COUNTER as i32)).unwrap();
        a.jmp(acquire).unwrap();
        a.set_label(&mut spin).unwrap();
        a.pause().unwrap();
        a.set_label(&mut acquire).unwrap();
        a.mov(eax, 1).unwrap();
        a.xchg(dword_ptr(LOCK as i32), eax).unwrap();
        a.test(eax, eax).unwrap();
        a.jnz(spin).unwrap();
        // Not atomic by itself.
        a.mov(rbx, qword_ptr(SUM as i32)).unwrap();
        a.add(rbx, rcx).unwrap();
        a.mov(qword_ptr(SUM as i32), rbx).unwrap();
        a.mov(dword_ptr(LOCK as i32), 0).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let mut all = processors(&mut bench, 64);
    take_turns(&mut all, &mut Random(3));
    assert_eq!(bench.read64(COUNTER), 64 * 50);
    assert_eq!(bench.read64(SUM), 64 * (1..=50).sum::<u64>());
}

#[test]
fn a_trampoline_with_data_beside_its_code() {
    // Each processor starts at 0800:0000 in real mode, counts itself in the trampoline's own cache line, and patches the
    // immediate that the next one will load.
    let mut bench = Bench::new(0x10_0000);
    bench.real_mode();
    bench.load(16, 0x8000, |a| {
        a.mov(ax, cs).unwrap();
        a.mov(ds, ax).unwrap();
        a.db(&[0xB9, 0x00, 0x00]).unwrap(); // mov cx, 0: the immediate is at offset 5
        a.mov(al, 1).unwrap();
        a.lock().xadd(byte_ptr(0x30), al).unwrap();
        a.lock().inc(word_ptr(5)).unwrap();
        a.hlt().unwrap();
    });
    let mut all = processors(&mut bench, 16);
    for cpu in &mut all {
        cpu.set_reg(Reg::Cs, 0x800);
        cpu.set_desc(Reg::Cs, SegDesc { base: 0x8000, limit: 0xFFFF, access: 0x9B });
        cpu.set_reg(Reg::Rip, 0);
    }
    for cpu in &mut all {
        assert_eq!(cpu.run(1_000), Exit::Hlt);
    }
    for (i, cpu) in all.iter_mut().enumerate() {
        assert_eq!(cpu.reg(Reg::Rcx), i as u64, "the patched immediate");
        assert_eq!(cpu.reg(Reg::Rax) & 0xFF, i as u64, "the count before");
    }
    assert_eq!(bench.read(0x8030), [16]);
}
