//! How fast the software processor is: instructions of a loop with memory accesses under 4-level paging, bulk moves,
//! exceptions, exits, and the making of machines.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::hint::black_box;
use std::sync::Arc;
use vmm::engine::soft::{NS_PER_INSTRUCTION, SoftEngine, SoftVm};
use vmm::engine::{Completion, Engine, EngineVcpu, EngineVm, Exit, Reg, SegDesc};
use vmm::memory::{Protection, Segment};

const PML4: u64 = 0x1000;
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x20_0000;
const MEMORY: usize = 0x100_0000;
/// Mapped by the page tables, to where there is no memory.
const UNMAPPED: u64 = MEMORY as u64 - 0x1000;
const IDT: u64 = 0xC000;
const GDT: u64 = 0xD000;
/// The handler of #BP: an IRET.
const HANDLER: u64 = 0xE000;

/// A processor in 64-bit mode with the first 16 Mbytes mapped one to one by 4-Kbyte pages, about to execute `build`'s code.
fn processor(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Arc<SoftVm>, Box<dyn EngineVcpu>) {
    let vm = SoftEngine::new().machine();
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
    // #BP through an interrupt gate to code segment 8 (SDM 3A figure 6-8), which GDT has before one for the stack.
    write64(IDT + 16 * 3, HANDLER | 8 << 16 | 0x8E00 << 32);
    write64(GDT + 8, 0x00AF_9B00_0000_FFFF);
    write64(GDT + 16, 0x00CF_9300_0000_FFFF);
    assert!(memory.write(HANDLER, &[0x48, 0xCF]), "iretq");
    vm.map(0, &memory, 0, UNMAPPED, Protection { write: true }).expect("a good mapping");
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    build(&mut assembler).expect("code that can be assembled");
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
        cpu.set_reg(reg, if reg == Reg::Cs { 8 } else { 16 });
    }
    for (table, base) in [(Reg::Idtr, IDT), (Reg::Gdtr, GDT)] {
        cpu.set_desc(table, SegDesc { base, limit: 0xFFF, access: 0 });
    }
    (vm, cpu)
}

/// What share of the blocks that were executed the table of a known page led to.
fn hit_rate(vm: &SoftVm) -> f64 {
    let counters = vm.code_counters();
    1.0 - counters.missed as f64 / counters.executed as f64
}

fn run(cpu: &mut Box<dyn EngineVcpu>, instructions: u64) {
    assert_eq!(black_box(cpu.run(instructions * NS_PER_INSTRUCTION)), Exit::Budget);
}

fn speed(c: &mut Criterion) {
    const INSTRUCTIONS: u64 = 1_000_000;
    let mut group = c.benchmark_group("instructions");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    group.sample_size(20);

    let (vm, mut cpu) = processor(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 0)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rsi + rcx * 8))?;
        a.add(rax, rcx)?;
        a.xor(rax, 0x55)?;
        a.mov(qword_ptr(rdi + rcx * 8), rax)?;
        a.add(qword_ptr(rdi + 8), rax)?;
        a.lea(rdx, qword_ptr(rax + rdx * 2))?;
        a.shr(rdx, 1)?;
        a.movzx(ebx, byte_ptr(rsi + rcx))?;
        a.push(rbx)?;
        a.pop(rbx)?;
        a.inc(ecx)?;
        a.and(ecx, 0xFFF)?;
        a.cmp(ecx, edx)?;
        a.jmp(again)
    });
    group.bench_function("loop with memory", |b| b.iter(|| run(&mut cpu, INSTRUCTIONS)));
    println!("known pages led to {:.4} % of the blocks", hit_rate(&vm) * 100.0);

    let (vm, mut cpu) = processor(|a| {
        let (mut again, mut callee, mut skip) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.call(callee)?;
        a.add(ebx, 1)?;
        a.test(ebx, 1)?;
        a.jz(skip)?;
        a.add(rax, rbx)?;
        a.set_label(&mut skip)?;
        a.jmp(again)?;
        a.set_label(&mut callee)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.ret()
    });
    group.bench_function("calls and branches", |b| b.iter(|| run(&mut cpu, INSTRUCTIONS)));
    println!("known pages led to {:.4} % of the blocks", hit_rate(&vm) * 100.0);
    group.finish();

    let mut group = c.benchmark_group("bytes");
    let (_, mut cpu) = processor(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 0x10_0000)?;
        a.mov(ecx, 0x1_0000 / 8)?;
        a.rep().movsq()?;
        a.hlt()?;
        a.jmp(again)
    });
    group.throughput(Throughput::Bytes(0x1_0000));
    group.bench_function("rep movsq", |b| b.iter(|| assert_eq!(cpu.run(u64::MAX), Exit::Hlt)));
    group.finish();
}

/// An exception with the way back, and exits with their answers.
fn events(c: &mut Criterion) {
    const EVENTS: u64 = 1000;
    let mut group = c.benchmark_group("events");
    group.throughput(Throughput::Elements(EVENTS));
    let (_, mut cpu) = processor(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.int3()?;
        a.jmp(again)
    });
    // INT3, the handler's IRET, JMP.
    group.bench_function("exception and iret", |b| b.iter(|| run(&mut cpu, 3 * EVENTS)));

    let (_, mut cpu) = processor(|a| {
        let mut again = a.create_label();
        a.mov(edx, 0x3F8)?;
        a.set_label(&mut again)?;
        a.in_(al, dx)?;
        a.jmp(again)
    });
    group.bench_function("port read", |b| {
        b.iter(|| {
            for _ in 0..EVENTS {
                assert_eq!(cpu.run(u64::MAX), Exit::IoIn { port: 0x3F8, size: 1 });
                cpu.complete(Completion::Value(0x60));
            }
        });
    });

    let (_, mut cpu) = processor(|a| {
        let mut again = a.create_label();
        a.mov(rsi, UNMAPPED)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.jmp(again)
    });
    group.bench_function("device write", |b| {
        b.iter(|| {
            for _ in 0..EVENTS {
                assert!(matches!(cpu.run(u64::MAX), Exit::MmioWrite { gpa: UNMAPPED, size: 4, .. }));
                cpu.complete(Completion::Done);
            }
        });
    });
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

criterion_group!(benches, speed, events, making);
criterion_main!(benches);
