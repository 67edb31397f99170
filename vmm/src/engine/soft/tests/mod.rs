//! Tests of the software processor: the bench that they share, and one file per group of instructions.
#![allow(clippy::unwrap_used, reason = "assembling the tests' own code")]

mod boot;
mod code;
mod debug;
mod deviations;
mod devices;
mod events;
mod features;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod forms;
mod fpu;
mod fuzz;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host;
mod integer;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod modes;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native;
mod paging;
mod random;
mod segments;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sequences;
mod smp;
mod system;
mod table;
mod tasks;
mod translations;
mod virtual8086;

use super::{NS_PER_INSTRUCTION, SoftEngine};
use crate::engine::{Completion, CpuidEntry, Engine, EngineVcpu, EngineVm, Exit, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;

/// Random numbers that are the same everywhere (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    /// A value of the kind that arithmetic goes wrong at: small, large, one bit, or anything.
    pub(super) fn operand(&mut self) -> u64 {
        let bits = self.below(64);
        match self.below(6) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => 1 << bits,
            3 => (1 << bits) - 1,
            4 => self.next() >> bits,
            _ => self.next(),
        }
    }
}

/// A machine with memory from 0 and one processor.
pub(super) struct Bench {
    pub(super) vm: Arc<dyn EngineVm>,
    pub(super) memory: Arc<Segment>,
    pub(super) cpu: Box<dyn EngineVcpu>,
}

/// Assembles a test's code.
pub(super) type Build = fn(&mut CodeAssembler);

/// Where tests put their code.
pub(super) const CODE: u64 = 0x1_0000;

/// Where [`Bench::long_mode`] puts page tables.
pub(super) const PML4: u64 = 0x1000;
pub(super) const PDPT: u64 = 0x2000;

impl Bench {
    /// A processor in its power-up state and `bytes` of memory.
    pub(super) fn new(bytes: usize) -> Bench {
        Bench::on(&SoftEngine::new(), bytes)
    }

    /// The same on any engine.
    pub(super) fn on(engine: &dyn Engine, bytes: usize) -> Bench {
        let vm = engine.create_vm().expect("the engine makes a machine");
        let memory = Arc::new(Segment::new(bytes).expect("memory"));
        vm.map(0, &memory, 0, bytes as u64, Protection { write: true }).expect("a good mapping");
        let cpu = vm.create_vcpu(0).expect("the engine makes a processor");
        Bench { vm, memory, cpu }
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.memory.write(at, bytes));
    }

    pub(super) fn write64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.memory.read(at, &mut bytes));
        bytes
    }

    pub(super) fn read64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    /// Assembles code, puts it at `at` and sets RIP, in a segment based at 0.
    pub(super) fn load(&mut self, bits: u32, at: u64, build: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
        build(&mut assembler);
        self.write(at, &assembler.assemble(at).expect("code that can be encoded"));
        self.cpu.set_reg(Reg::Rip, at);
    }

    /// Real mode with all segments based at 0 (64 Kbytes each).
    pub(super) fn real_mode(&mut self) {
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            self.cpu.set_reg(reg, 0);
            self.cpu
                .set_desc(reg, SegDesc { base: 0, limit: 0xFFFF, access: if reg == Reg::Cs { 0x9B } else { 0x93 } });
        }
    }

    /// 64-bit mode with the first 4 Gbytes mapped one to one (page tables at 0x1000 and 0x2000), at this privilege level.
    pub(super) fn long_mode(&mut self, cpl: u32) {
        self.write64(PML4, PDPT | 7);
        for i in 0..4 {
            self.write64(PDPT + 8 * i, i << 30 | 0x87);
        }
        self.cpu.set_reg(Reg::Cr0, 0x8001_0031);
        self.cpu.set_reg(Reg::Cr3, PML4);
        self.cpu.set_reg(Reg::Cr4, 0x620);
        self.cpu.set_reg(Reg::Efer, 0xD01);
        self.flat_segments(0xA09B, cpl);
    }

    /// 32-bit protected mode without paging, at this privilege level.
    pub(super) fn protected_mode(&mut self, cpl: u32) {
        self.cpu.set_reg(Reg::Cr0, 0x31);
        self.flat_segments(0xC09B, cpl);
    }

    pub(super) fn flat_segments(&mut self, code: u32, cpl: u32) {
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            let access = if reg == Reg::Cs { code } else { 0xC093 };
            // The GDTs of the tests begin with code and data of ring 0, then of ring 3.
            let ring = if cpl == 3 { 0x13 } else { 0 };
            self.cpu.set_reg(reg, ring + if reg == Reg::Cs { 0x08 } else { 0x10 });
            self.cpu.set_desc(reg, SegDesc { base: 0, limit: u32::MAX, access: access | cpl << 5 });
        }
    }

    /// Has CPUID announce everything, except that these leaves say what they say.
    pub(super) fn announce(&mut self, leaves: &[CpuidEntry]) {
        self.cpu.set_cpuid(&[leaves, &features::all_leaves()].concat());
    }

    /// Runs for at most `instructions`.
    pub(super) fn run(&mut self, instructions: u64) -> Exit {
        self.cpu.run(instructions * NS_PER_INSTRUCTION)
    }

    /// Answers an exit and runs on.
    pub(super) fn answer(&mut self, completion: Completion) -> Exit {
        self.cpu.complete(completion);
        self.run(1000)
    }

    /// Runs until HLT, which must come within a million instructions.
    pub(super) fn run_to_hlt(&mut self) {
        let exit = self.run(1_000_000);
        assert_eq!(
            exit,
            Exit::Hlt,
            "at RIP {:#x}; unimplemented: {:?}",
            self.cpu.reg(Reg::Rip),
            self.cpu.take_unimplemented()
        );
    }
}
