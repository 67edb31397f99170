//! Tests of the software processor: the bench that they share, and one file per group of instructions.

mod boot;

use super::{NS_PER_INSTRUCTION, SoftEngine};
use crate::engine::{Engine, EngineVcpu, EngineVm, Exit, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;

/// A machine with memory from 0 and one processor.
pub(super) struct Bench {
    pub(super) vm: Arc<dyn EngineVm>,
    pub(super) memory: Arc<Segment>,
    pub(super) cpu: Box<dyn EngineVcpu>,
}

/// Where tests put their code.
pub(super) const CODE: u64 = 0x1_0000;

impl Bench {
    /// A processor in its power-up state and `bytes` of memory.
    pub(super) fn new(bytes: usize) -> Bench {
        let vm = SoftEngine::new().create_vm().expect("the soft engine always can");
        let memory = Arc::new(Segment::new(bytes).expect("memory"));
        vm.map(0, &memory, 0, bytes as u64, Protection { write: true }).expect("a good mapping");
        let cpu = vm.create_vcpu(0).expect("the soft engine always can");
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

    /// Runs for at most `instructions`.
    pub(super) fn run(&mut self, instructions: u64) -> Exit {
        self.cpu.run(instructions * NS_PER_INSTRUCTION)
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
