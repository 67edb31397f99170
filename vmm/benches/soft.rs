//! How fast the software processor is: instructions of a loop with memory accesses under 4-level paging, bulk moves,
//! system calls, and the making of machines.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use std::hint::black_box;
use std::sync::Arc;
use vmm::engine::soft::{NS_PER_INSTRUCTION, SoftEngine};
use vmm::engine::{Engine, EngineVcpu, Exit, Reg, SegDesc};
use vmm::memory::{Protection, Segment};

const PML4: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x20_0000;
const MEMORY: usize = 0x100_0000;

/// A processor in 64-bit mode with the first 16 Mbytes mapped one to one by 4-Kbyte pages, about to execute `build`'s code.
fn processor(build: impl FnOnce(&mut CodeAssembler)) -> Box<dyn EngineVcpu> {
    let vm = SoftEngine::new().create_vm().expect("the soft engine always can");
    let memory = Arc::new(Segment::new(MEMORY).expect("memory"));
    let write64 = |at: u64, value: u64| assert!(memory.write(at, &value.to_le_bytes()));
    write64(PML4, 0x2003);
    write64(0x2000, 0x3003);
    for table in 0..8 {
        write64(0x3000 + 8 * table, (0x4000 + 0x1000 * table) | 3);
        for page in 0..512 {
            write64(0x4000 + 0x1000 * table + 8 * page, (table << 21 | page << 12) | 3);
        }
    }
    vm.map(0, &memory, 0, MEMORY as u64, Protection { write: true }).expect("a good mapping");
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    build(&mut assembler);
    assert!(memory.write(CODE, &assembler.assemble(CODE).expect("code that can be encoded")));
    let mut cpu = vm.create_vcpu(0).expect("the soft engine always can");
    for (reg, value) in [
        (Reg::Cr0, 0x8001_0031),
        (Reg::Cr3, PML4),
        (Reg::Cr4, 0x20),
        (Reg::Efer, 0xD00),
        (Reg::Rip, CODE),
        (Reg::Rsp, 0x8_0000),
        (Reg::Rsi, DATA),
        (Reg::Rdi, DATA + 0x1_0000),
    ] {
        cpu.set_reg(reg, value);
    }
    for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss] {
        let access = if reg == Reg::Cs { 0xA09B } else { 0xC093 };
        cpu.set_desc(reg, SegDesc { base: 0, limit: u32::MAX, access });
    }
    cpu
}

fn run(cpu: &mut Box<dyn EngineVcpu>, instructions: u64) {
    assert_eq!(black_box(cpu.run(instructions * NS_PER_INSTRUCTION)), Exit::Budget);
}

fn speed(c: &mut Criterion) {
    const INSTRUCTIONS: u64 = 1_000_000;
    let mut group = c.benchmark_group("instructions");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    group.sample_size(20);

    let mut cpu = processor(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 0).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(rax, qword_ptr(rsi + rcx * 8)).unwrap();
        a.add(rax, rcx).unwrap();
        a.xor(rax, 0x55).unwrap();
        a.mov(qword_ptr(rdi + rcx * 8), rax).unwrap();
        a.add(qword_ptr(rdi + 8), rax).unwrap();
        a.lea(rdx, qword_ptr(rax + rdx * 2)).unwrap();
        a.shr(rdx, 1).unwrap();
        a.movzx(ebx, byte_ptr(rsi + rcx)).unwrap();
        a.push(rbx).unwrap();
        a.pop(rbx).unwrap();
        a.inc(ecx).unwrap();
        a.and(ecx, 0xFFF).unwrap();
        a.cmp(ecx, edx).unwrap();
        a.jmp(again).unwrap();
    });
    group.bench_function("loop with memory", |b| b.iter(|| run(&mut cpu, INSTRUCTIONS)));

    let mut cpu = processor(|a| {
        let (mut again, mut callee, mut skip) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again).unwrap();
        a.call(callee).unwrap();
        a.add(ebx, 1).unwrap();
        a.test(ebx, 1).unwrap();
        a.jz(skip).unwrap();
        a.add(rax, rbx).unwrap();
        a.set_label(&mut skip).unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut callee).unwrap();
        a.mov(rdx, qword_ptr(rsi)).unwrap();
        a.ret().unwrap();
    });
    group.bench_function("calls and branches", |b| b.iter(|| run(&mut cpu, INSTRUCTIONS)));
    group.finish();

    let mut group = c.benchmark_group("bytes");
    let mut cpu = processor(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0x10_0000).unwrap();
        a.mov(ecx, 0x1_0000 / 8).unwrap();
        a.rep().movsq().unwrap();
        a.hlt().unwrap();
        a.jmp(again).unwrap();
    });
    group.throughput(Throughput::Bytes(0x1_0000));
    group.bench_function("rep movsq", |b| b.iter(|| assert_eq!(cpu.run(u64::MAX), Exit::Hlt)));
    group.finish();
}

fn making(c: &mut Criterion) {
    let engine = SoftEngine::new();
    c.bench_function("make a machine", |b| {
        b.iter_batched(|| (), |()| engine.create_vm().expect("the soft engine always can"), BatchSize::SmallInput);
    });
    let vm = engine.create_vm().expect("the soft engine always can");
    c.bench_function("make a processor", |b| {
        b.iter_batched(|| (), |()| vm.create_vcpu(0).expect("the soft engine always can"), BatchSize::SmallInput);
    });
}

criterion_group!(benches, speed, making);
criterion_main!(benches);
