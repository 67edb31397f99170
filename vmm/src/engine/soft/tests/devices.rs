//! What leaves the engine: device memory, ports, MSRs, CR8, and the end of runs.

use super::{Bench, CODE};
use crate::engine::soft::NS_PER_INSTRUCTION;
use crate::engine::{Completion, Engine, Exit, Inject, Reg};
use crate::memory::Protection;
use iced_x86::code_asm::*;
use std::sync::Arc;

/// An address without memory.
const DEVICE: u64 = 0xFEE0_0000;
const MEMORY: usize = 0x10_0000;

fn bench(build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(MEMORY);
    bench.long_mode(0);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Rdi, DEVICE);
    bench
}

#[test]
fn a_load_takes_the_answer() {
    let mut bench = bench(|a| {
        a.mov(eax, dword_ptr(rdi + 0x20)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE + 0x20, size: 4 });
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE, "the instruction is not done");
    assert!(!bench.cpu.interruptible());
    assert_eq!(bench.answer(Completion::Value(0xFFFF_FFFF_0000_0007)), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rax), 7, "only the bytes asked for count");
    assert_eq!(bench.cpu.instructions(), Some(2));
}

#[test]
fn a_read_modify_write_reads_once_and_writes_once() {
    let mut bench = bench(|a| {
        a.stc().unwrap();
        a.mov(eax, 5).unwrap();
        a.adc(dword_ptr(rdi), eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE, size: 4 });
    assert_eq!(bench.answer(Completion::Value(0xFFFF_FFFF)), Exit::MmioWrite { gpa: DEVICE, size: 4, data: 5 });
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 1, 1, "CF is still the old one");
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 0x41, 1, "CF, and not ZF");
}

#[test]
fn an_exchange_swaps_with_the_device() {
    let mut bench = bench(|a| {
        a.mov(ecx, 0x1234).unwrap();
        a.xchg(dword_ptr(rdi), ecx).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE, size: 4 });
    assert_eq!(bench.answer(Completion::Value(9)), Exit::MmioWrite { gpa: DEVICE, size: 4, data: 0x1234 });
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 9);
}

#[test]
fn moves_from_device_to_device_go_one_access_at_a_time() {
    let mut bench = bench(|a| {
        a.mov(rsi, DEVICE + 0x100).unwrap();
        a.mov(ecx, 2).unwrap();
        a.rep().movsd().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE + 0x100, size: 4 });
    assert_eq!(bench.answer(Completion::Value(11)), Exit::MmioWrite { gpa: DEVICE, size: 4, data: 11 });
    assert_eq!(bench.answer(Completion::Done), Exit::MmioRead { gpa: DEVICE + 0x104, size: 4 });
    assert_eq!(bench.cpu.reg(Reg::Rcx), 1, "the first iteration is committed");
    assert_eq!(bench.answer(Completion::Value(12)), Exit::MmioWrite { gpa: DEVICE + 4, size: 4, data: 12 });
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rdi), DEVICE + 8);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0);
}

#[test]
fn an_operand_may_cross_from_memory_to_a_device() {
    // The last three bytes of memory, then five bytes of nothing.
    let mut bench = bench(|a| {
        a.mov(rdi, MEMORY as u64 - 3).unwrap();
        a.mov(rax, 0x0101_0101_0101_0101_u64).unwrap();
        a.add(qword_ptr(rdi), rax).unwrap();
        a.hlt().unwrap();
    });
    bench.write(MEMORY as u64 - 3, &[1, 2, 3]);
    let gpa = MEMORY as u64;
    assert_eq!(bench.run(100), Exit::MmioRead { gpa, size: 5 });
    assert_eq!(bench.answer(Completion::Value(0x08_0706_0504)), Exit::MmioWrite { gpa, size: 5, data: 0x09_0807_0605 });
    assert_eq!(bench.read(gpa - 3), [1, 2, 3], "memory is written last");
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!(bench.read(gpa - 3), [2, 3, 4]);
}

#[test]
fn a_write_to_memory_that_is_read_only_leaves() {
    let mut bench = bench(|a| {
        a.mov(rdi, 0x20_0000_u64).unwrap();
        a.mov(eax, dword_ptr(rdi)).unwrap();
        a.mov(dword_ptr(rdi), 5).unwrap();
        a.mov(ebx, dword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    let rom = Arc::new(crate::memory::Segment::new(0x1000).expect("memory"));
    assert!(rom.write(0, &[0x42, 0, 0, 0]));
    bench.vm.map(0x20_0000, &rom, 0, 0x1000, Protection { write: false }).expect("a good mapping");
    assert_eq!(bench.run(100), Exit::MmioWrite { gpa: 0x20_0000, size: 4, data: 5 });
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rbx)), (0x42, 0x42));
}

#[test]
fn a_device_access_may_fault_instead() {
    let mut bench = bench(|a| {
        a.mov(eax, dword_ptr(rdi)).unwrap();
    });
    super::events::long_mode_idt(&mut bench);
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE, size: 4 });
    assert_eq!(bench.answer(Completion::GeneralProtection), Exit::Hlt);
    assert_eq!(super::events::handled(&mut bench), 13);
    let frame = bench.cpu.reg(Reg::Rsp);
    assert_eq!(bench.read64(frame + 8), CODE, "the instruction that faulted");
}

#[test]
fn setting_a_register_abandons_the_access() {
    let mut bench = bench(|a| {
        a.mov(eax, dword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE, size: 4 });
    bench.cpu.complete(Completion::Value(1));
    bench.cpu.set_reg(Reg::Rdi, DEVICE + 8);
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE + 8, size: 4 });
}

#[test]
fn an_interrupt_waits_for_the_instruction_in_flight() {
    let mut bench = bench(|a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.mov(eax, dword_ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    super::events::long_mode_idt(&mut bench);
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: DEVICE, size: 4 });
    bench.cpu.inject(Inject::Nmi);
    assert_eq!(bench.answer(Completion::Value(3)), Exit::Hlt);
    assert_eq!(super::events::handled(&mut bench), 2);
    assert_eq!(bench.cpu.reg(Reg::Rax), 3);
    let frame = bench.cpu.reg(Reg::Rsp);
    let rip = bench.read64(frame);
    assert_eq!(bench.read::<2>(rip), [0x0F, 0x0B], "the next instruction is UD2");
}

#[test]
fn ports() {
    let mut bench = bench(|a| {
        a.mov(rax, 0x1111_1111_1111_1111_u64).unwrap();
        a.in_(al, 0x60).unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(edx, 0xCFC).unwrap();
        a.in_(eax, dx).unwrap();
        a.out(dx, ax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::IoIn { port: 0x60, size: 1 });
    assert_eq!(bench.answer(Completion::Value(0x1FE)), Exit::IoIn { port: 0xCFC, size: 4 });
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x1111_1111_1111_11FE);
    assert_eq!(bench.answer(Completion::Value(0x1234_5678)), Exit::IoOut { port: 0xCFC, size: 2, data: 0x5678 });
    let rip = bench.cpu.reg(Reg::Rip);
    bench.cpu.complete(Completion::Done);
    assert_eq!(bench.cpu.reg(Reg::Rip), rip + 2, "OUT is done with its answer");
    assert_eq!(bench.run(100), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x1234_5678);
    assert_eq!(bench.cpu.instructions(), Some(7));
}

#[test]
fn string_ports_go_through_memory() {
    let mut bench = bench(|a| {
        a.mov(edx, 0x1F0).unwrap();
        a.mov(edi, 0x6000).unwrap();
        a.mov(ecx, 2).unwrap();
        a.rep().insw().unwrap();
        a.mov(esi, 0x6000).unwrap();
        a.outsb().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(100), Exit::IoIn { port: 0x1F0, size: 2 });
    assert_eq!(bench.answer(Completion::Value(0xAABB)), Exit::IoIn { port: 0x1F0, size: 2 });
    assert_eq!(bench.answer(Completion::Value(0xCCDD)), Exit::IoOut { port: 0x1F0, size: 1, data: 0xBB });
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!(bench.read(0x6000), [0xBB, 0xAA, 0xDD, 0xCC]);
    assert_eq!((bench.cpu.reg(Reg::Rdi), bench.cpu.reg(Reg::Rsi)), (0x6004, 0x6001));
}

#[test]
fn msrs_that_the_engine_does_not_keep() {
    let mut bench = bench(|a| {
        a.mov(ecx, 0x1B).unwrap();
        a.rdmsr().unwrap();
        a.mov(ecx, 0x830).unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x123).unwrap();
        a.rdmsr().unwrap();
    });
    super::events::long_mode_idt(&mut bench);
    assert_eq!(bench.run(100), Exit::RdMsr { index: 0x1B });
    assert_eq!(bench.answer(Completion::Value(0x1_FEE0_0900)), Exit::WrMsr { index: 0x830, value: 0x1_FEE0_0900 });
    assert_eq!(bench.answer(Completion::Done), Exit::RdMsr { index: 0x123 });
    assert_eq!(bench.answer(Completion::GeneralProtection), Exit::Hlt);
    assert_eq!(super::events::handled(&mut bench), 13);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut bench = bench(|a| {
        a.mov(rax, cr8).unwrap();
        a.mov(ecx, 0xB).unwrap();
        a.mov(cr8, rcx).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_cr8(0x50);
    assert_eq!(bench.run(100), Exit::TprWrite { tpr: 0xB0 });
    assert_eq!(bench.cpu.reg(Reg::Rax), 5);
    assert_eq!(bench.run(100), Exit::Hlt);
}

#[test]
fn budgets_kicks_and_idle_loops() {
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(eax).unwrap();
        a.jmp(again).unwrap();
    });
    assert_eq!(bench.run(1000), Exit::Budget);
    assert_eq!(bench.cpu.elapsed_ns(), 1000 * NS_PER_INSTRUCTION);
    assert_eq!(bench.cpu.reg(Reg::Rax), 500);
    assert_eq!(bench.cpu.run(0), Exit::Budget, "one instruction at least");
    assert_eq!(bench.cpu.reg(Reg::Rax), 501);
    bench.cpu.kick_handle().kick();
    assert_eq!(bench.run(1000), Exit::Kicked);
    assert_eq!(bench.run(10), Exit::Budget, "a kick counts once");

    bench.load(64, CODE, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jmp(here).unwrap();
    });
    assert_eq!(bench.run(1000), Exit::Pause);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE);
    assert_eq!(bench.run(1000), Exit::Pause);

    bench.load(64, CODE, |a| {
        a.xor(eax, eax).unwrap();
        let mut here = a.create_label();
        a.set_label(&mut here).unwrap();
        a.jz(here).unwrap();
    });
    assert_eq!(bench.run(1000), Exit::Pause);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE + 2);

    bench.load(64, CODE, |a| {
        a.pause().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(bench.run(1000), Exit::Pause);
    assert_eq!(bench.run(1000), Exit::Hlt);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE + 3);
}

#[test]
fn the_tsc_follows_virtual_time_and_never_goes_back() {
    let mut bench = bench(|a| {
        a.rdtsc().unwrap();
        a.mov(esi, eax).unwrap();
        a.nop().unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    let mut other = bench.vm.create_vcpu(1).expect("the soft engine always can");
    assert_eq!(crate::engine::soft::SoftEngine::new().name(), "soft");
    bench.cpu.set_time(5_000);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rsi), 5_000);
    assert_eq!(bench.cpu.reg(Reg::Rax), 5_000 + 3 * NS_PER_INSTRUCTION);

    // Another processor whose clock lags reads what was read last.
    for reg in Reg::ALL {
        let value = bench.cpu.reg(reg);
        other.set_reg(reg, value);
        if reg.has_descriptor() {
            let desc = bench.cpu.desc(reg);
            other.set_desc(reg, desc);
        }
    }
    other.set_reg(Reg::Rip, CODE);
    other.set_time(1_000);
    assert_eq!(other.run(1_000), Exit::Hlt);
    assert_eq!(other.reg(Reg::Rsi), 5_012);
}

#[test]
fn writing_the_tsc_moves_it() {
    let mut bench = bench(|a| {
        a.mov(ecx, 0x10).unwrap();
        a.mov(eax, 100).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_time(1 << 40);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 100 + NS_PER_INSTRUCTION);
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0);
}

#[test]
fn what_is_not_implemented_is_recorded_and_undefined() {
    let mut bench = bench(|a| {
        a.aesenc(xmm1, xmm2).unwrap();
    });
    super::events::long_mode_idt(&mut bench);
    assert_eq!(bench.run(100), Exit::Hlt);
    assert_eq!(super::events::handled(&mut bench), 6);
    let recorded = bench.cpu.take_unimplemented();
    assert_eq!(recorded.len(), 1);
    assert_eq!((recorded[0].what.as_str(), recorded[0].rip), ("aesenc", CODE));
    assert!(bench.cpu.take_unimplemented().is_empty());

    // With the unit switched away it is the guest's own doing.
    bench.load(64, CODE, |a| {
        a.aesenc(xmm1, xmm2).unwrap();
    });
    let control = bench.cpu.reg(Reg::Cr0);
    bench.cpu.set_reg(Reg::Cr0, control | 8);
    assert_eq!(bench.run(100), Exit::Hlt);
    assert_eq!(super::events::handled(&mut bench), 7);
    assert!(bench.cpu.take_unimplemented().is_empty());
}
