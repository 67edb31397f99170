//! Code that changes, and code that is not there.

use super::{Bench, CODE, PDPT};
use crate::engine::{EngineVcpu, EngineVm, Exit, Reg};
use crate::memory::{Protection, Segment};
use iced_x86::code_asm::*;
use std::sync::Arc;

fn bench(build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

#[test]
fn a_store_into_the_next_instruction_is_seen() {
    let mut bench = bench(|a| {
        let mut patched = a.create_label();
        a.mov(byte_ptr(patched), 0x90).unwrap();
        a.set_label(&mut patched).unwrap();
        a.hlt().unwrap();
        a.mov(ebx, 7).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 7);
}

#[test]
fn a_loop_that_patches_itself_runs_the_patch() {
    // mov eax, imm32 whose immediate is counted up by each round.
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(eax, 1).unwrap();
        a.add(ebx, eax).unwrap();
        a.inc(dword_ptr(CODE as i32 + 1)).unwrap();
        a.cmp(eax, 100).unwrap();
        a.jb(again).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rbx, 0);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 5050);
}

#[test]
fn a_loop_is_decoded_once() {
    let machine = crate::engine::soft::SoftEngine::new().machine();
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.set_label(&mut again).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let len = bench.memory.len() as u64;
    machine.map(0, &bench.memory, 0, len, Protection { write: true }).expect("a good mapping");
    let mut cpu = machine.create_vcpu(0).expect("the soft engine always can");
    copy_state(&mut bench, &mut *cpu);
    assert_eq!(cpu.run(u64::MAX), Exit::Hlt);
    let counters = machine.code_counters();
    assert!((1000..1005).contains(&counters.executed), "{counters:?}");
    assert!(counters.missed <= 3 && counters.decoded <= 3 && counters.stale_pages == 0, "{counters:?}");
}

#[test]
fn what_one_processor_has_found_in_a_page_all_find() {
    const BLOCKS: u64 = 300;
    const ROUNDS: u64 = 20;
    let machine = crate::engine::soft::SoftEngine::new().machine();
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS as i32).unwrap();
        a.set_label(&mut again).unwrap();
        for _ in 0..BLOCKS {
            let mut next = a.create_label();
            a.jmp(next).unwrap();
            a.set_label(&mut next).unwrap();
            a.nop().unwrap();
        }
        a.dec(ecx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let len = bench.memory.len() as u64;
    machine.map(0, &bench.memory, 0, len, Protection { write: true }).expect("a good mapping");
    let mut before = machine.code_counters();
    for most_missed in [BLOCKS + 4, 1] {
        let mut cpu = machine.create_vcpu(0).expect("the soft engine always can");
        copy_state(&mut bench, &mut *cpu);
        assert_eq!(cpu.run(u64::MAX), Exit::Hlt);
        let counters = machine.code_counters();
        assert!(counters.executed - before.executed >= BLOCKS * ROUNDS, "{counters:?}");
        assert!(counters.missed - before.missed <= most_missed, "{counters:?} after {before:?}");
        before = counters;
    }
}

#[test]
fn a_string_store_over_its_own_code_stops_there() {
    // REP STOSB of HLT over the instructions behind it.
    let mut bench = bench(|a| {
        let mut behind = a.create_label();
        a.lea(rdi, ptr(behind)).unwrap();
        a.mov(ecx, 3).unwrap();
        a.mov(al, 0xF4_u32 as i32).unwrap();
        a.rep().stosb().unwrap();
        a.set_label(&mut behind).unwrap();
        a.ud2().unwrap();
        a.ud2().unwrap();
    });
    bench.run_to_hlt();
}

#[test]
fn another_processor_s_store_is_seen() {
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.jmp(again).unwrap();
    });
    let mut writer = bench.vm.create_vcpu(1).expect("the soft engine always can");
    copy_state(&mut bench, &mut *writer);
    let mut patch = CodeAssembler::new(64).unwrap();
    // Reads first, so that the page is in the translation cache; then fills it for writing while it holds no code.
    patch.mov(byte_ptr(CODE as i32 + 0x800), 0).unwrap();
    patch.hlt().unwrap();
    patch.mov(byte_ptr(CODE as i32), 0xF4_u32 as i32).unwrap();
    patch.hlt().unwrap();
    bench.write(0x2_0000, &patch.assemble(0x2_0000).unwrap());
    writer.set_reg(Reg::Rip, 0x2_0000);
    assert_eq!(writer.run(1000), Exit::Hlt);
    assert_eq!(bench.run(100), Exit::Budget);
    assert_eq!(writer.run(1000), Exit::Hlt);
    bench.run_to_hlt();
}

fn copy_state(bench: &mut Bench, to: &mut dyn EngineVcpu) {
    for reg in Reg::ALL {
        to.set_reg(reg, bench.cpu.reg(reg));
        if reg.has_descriptor() {
            to.set_desc(reg, bench.cpu.desc(reg));
        }
    }
}

#[test]
fn a_write_from_the_host_is_seen() {
    let mut bench = bench(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.jmp(again).unwrap();
    });
    assert_eq!(bench.run(100), Exit::Budget);
    bench.write(CODE, &[0xF4]);
    assert_eq!(bench.run(100), Exit::Hlt);
}

#[test]
fn an_instruction_may_cross_into_another_physical_page() {
    let mut bench = bench(|a| {
        a.hlt().unwrap();
    });
    // Linear 0x11FFE and 0x12000 are neighbours only by the page tables: page 0x12 leads to physical 0x30000, then 0x31000.
    bench.write64(PDPT, 0x4_0000 | 7);
    bench.write64(0x4_0000, 0x4_1000 | 7);
    for page in 0..256 {
        bench.write64(0x4_1000 + 8 * page, page << 12 | 7);
    }
    bench.write64(0x4_1000 + 8 * 0x12, 0x3_0000 | 7);
    bench.write(0x1_1FFE, &[0xB8, 0x44]); // mov eax, 0x11223344
    bench.write(0x3_0000, &[0x33, 0x22, 0x11, 0xF4]);
    bench.write(0x3_1000, &[0xCC, 0xBB, 0xAA, 0xF4]);
    bench.cpu.set_reg(Reg::Rip, 0x1_1FFE);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x1122_3344);

    // The second page is mapped elsewhere, and the guest says so.
    bench.write64(0x4_1000 + 8 * 0x12, 0x3_1000 | 7);
    let tables = bench.cpu.reg(Reg::Cr3);
    bench.cpu.set_reg(Reg::Cr3, tables);
    bench.cpu.set_reg(Reg::Rip, 0x1_1FFE);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0xAABB_CC44);

    // The second page is not there: the fault is for the second page, at the instruction.
    super::events::long_mode_idt(&mut bench);
    bench.write64(0x4_1000 + 8 * 0x12, 0);
    bench.cpu.set_reg(Reg::Cr3, tables);
    bench.cpu.set_reg(Reg::Rip, 0x1_1FFE);
    bench.run_to_hlt();
    assert_eq!(super::events::handled(&mut bench), 14);
    assert_eq!(bench.cpu.reg(Reg::Cr2), 0x1_2000);
    let stack = bench.cpu.reg(Reg::Rsp);
    assert_eq!(bench.read64(stack + 8), 0x1_1FFE);
}

#[test]
fn a_store_into_the_second_page_of_a_crossing_instruction_is_seen() {
    let mut bench = bench(|a| {
        a.hlt().unwrap();
    });
    bench.write(0x1_1FFE, &[0xB8, 0x44, 0x33, 0x22, 0x11, 0xC6, 0x04, 0x25, 0x02, 0x20, 0x01, 0x00, 0x99, 0xF4]);
    for expected in [0x1122_3344, 0x9922_3344] {
        bench.cpu.set_reg(Reg::Rip, 0x1_1FFE);
        bench.run_to_hlt();
        assert_eq!(bench.cpu.reg(Reg::Rax), expected);
    }
}

#[test]
fn code_without_memory_leaves_and_goes_on_once_there_is_some() {
    let mut bench = bench(|a| {
        a.mov(rax, 0x50_0000_u64).unwrap();
        a.jmp(rax).unwrap();
    });
    assert_eq!(bench.run(100), Exit::MmioFetch { gpa: 0x50_0000 });
    assert_eq!(bench.cpu.reg(Reg::Rip), 0x50_0000);
    let more = Arc::new(Segment::new(0x1000).expect("memory"));
    assert!(more.write(0, &[0xF4]));
    bench.vm.map(0x50_0000, &more, 0, 0x1000, Protection { write: true }).expect("a good mapping");
    bench.run_to_hlt();
    bench.vm.unmap(0x50_0000, 0x1000).expect("it was mapped");
    bench.cpu.set_reg(Reg::Rip, 0x50_0000);
    assert_eq!(bench.run(100), Exit::MmioFetch { gpa: 0x50_0000 });
}

#[test]
fn data_mappings_that_go_are_gone() {
    let mut bench = bench(|a| {
        a.mov(eax, dword_ptr(0x50_0000)).unwrap();
        a.hlt().unwrap();
    });
    let more = Arc::new(Segment::new(0x1000).expect("memory"));
    bench.vm.map(0x50_0000, &more, 0, 0x1000, Protection { write: true }).expect("a good mapping");
    bench.run_to_hlt();
    bench.vm.unmap(0x50_0000, 0x1000).expect("it was mapped");
    drop(more);
    bench.cpu.set_reg(Reg::Rip, CODE);
    assert_eq!(bench.run(100), Exit::MmioRead { gpa: 0x50_0000, size: 4 });
}

#[test]
fn too_long_an_instruction_is_a_general_protection_fault() {
    let mut bench = bench(|a| {
        a.hlt().unwrap();
    });
    super::events::long_mode_idt(&mut bench);
    bench.write(CODE, &[0x66; 15]);
    bench.run_to_hlt();
    assert_eq!(super::events::handled(&mut bench), 13);
    // Across a page boundary too.
    bench.write(0x1_1FF8, &[0x66; 20]);
    bench.cpu.set_reg(Reg::Rip, 0x1_1FF8);
    bench.run_to_hlt();
    assert_eq!(super::events::handled(&mut bench), 13);
}
