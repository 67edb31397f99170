//! What holds of the software processor, whatever it is given: each function here takes any bytes, and panics when something
//! does not hold. The tests give them random bytes; so do the targets of `fuzz/`.

use super::code::{MAX_BLOCK, MAX_INSTRUCTION, code_bits, decode_one, decode_run, decoder};
use super::features::{Feature, Features};
use super::flags;
use super::op::Op;
use super::state::{CodeSize, cr0, cr4, efer};
use super::{NS_PER_INSTRUCTION, SoftEngine};
use crate::engine::{Completion, Engine, EngineVcpu, Exit, FpuState, Inject, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use iced_x86::{Decoder, DecoderError, DecoderOptions};
use std::sync::Arc;

/// Decoding, for code of every size: the first eight bytes say which features there are, the others are the code.
///
/// An instruction has at most 15 bytes, and as many as iced-x86 says where that knows the instruction; it is the same
/// whatever stands before it in its block; and only bytes that end within an instruction are none.
pub fn decode(bytes: &[u8]) {
    let Some((offered, code)) = bytes.split_first_chunk() else { return };
    let offered = u64::from_le_bytes(*offered);
    let left_out = Feature::ALL.iter().filter(|&&feature| offered >> feature as u8 & 1 == 0);
    let features = left_out.fold(Features::ALL, |features, &feature| features.without(feature));
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        for start in 0..code.len() {
            decode_an_instruction(&code[start..], size, features);
        }
        decode_a_block(code, size, features);
    }
}

fn decode_an_instruction(code: &[u8], size: CodeSize, features: Features) {
    let mut iced = Decoder::with_ip(code_bits(size), code, 0, DecoderOptions::NONE);
    let instruction = iced.decode();
    match decode_one(&mut decoder(code, size), features) {
        Some(decoded) => {
            let len = usize::from(decoded.op.len);
            assert!((1..=MAX_INSTRUCTION.min(code.len())).contains(&len), "{size:?}: {len} bytes of {code:02x?}");
            if !instruction.is_invalid() {
                assert_eq!(len, instruction.len(), "{size:?}: {instruction} of {code:02x?}");
            }
        }
        None => {
            assert_eq!(iced.last_error(), DecoderError::NoMoreBytes, "{size:?}: {code:02x?}");
            assert!(code.len() < MAX_INSTRUCTION, "{size:?}: {code:02x?} are enough for any instruction");
        }
    }
}

fn decode_a_block(code: &[u8], size: CodeSize, features: Features) {
    let mut ops = Vec::new();
    let len = decode_run(code, size, features, &mut ops);
    assert!(ops.len() <= MAX_BLOCK);
    let mut at = 0;
    for (i, op) in ops.iter().enumerate() {
        let alone = decode_one(&mut decoder(&code[at..], size), features).expect("it was decoded in its block");
        assert!(is_same(op, &alone.op), "{size:?}: instruction {i} of the block {code:02x?}");
        assert!(i == 0 || !alone.starts_block, "{size:?}: instruction {i} stands first in {code:02x?}");
        assert!(i + 1 == ops.len() || !alone.ends_block, "{size:?}: instruction {i} stands last in {code:02x?}");
        at += usize::from(op.len);
    }
    assert_eq!(at, len, "{size:?}: {code:02x?}");
}

/// Whether two operations have the same operands.
fn is_same(a: &Op, b: &Op) -> bool {
    let fields = |op: &Op| {
        let &Op { run: _, immediate: _, displacement, dst, src, base, index, scale, seg, address_cut, .. } = op;
        let &Op { flags, len, extra, block_len: _, .. } = op;
        (displacement, [dst, src, base, index, scale, seg, address_cut, flags, len, extra])
    };
    fields(a) == fields(b)
}

/// Execution: the bytes are a state, then code, then what devices answer and which events come.
///
/// Nothing panics, a run never spends more than its budget, and running it instruction by instruction gives the same
/// exits, registers, memory and number of instructions.
pub fn soft(bytes: &[u8]) {
    const SLICES: usize = 24;
    const LONGEST_SLICE: u64 = 64;
    let mut input = Input(bytes);
    let mut whole = Guest::new(&mut input.clone());
    let mut stepped = Guest::new(&mut input);
    for slice in 0..SLICES {
        let budget = 1 + u64::from(input.byte()) % LONGEST_SLICE;
        let exit = whole.run(budget);
        let done = whole.instructions();
        stepped.run_steps(&exit, done);
        whole.assert_same(&mut stepped, &exit, slice);
        if exit == Exit::Shutdown {
            return;
        }
        whole.go_on(&exit, &mut input.clone());
        stepped.go_on(&exit, &mut input);
    }
}

/// Bytes that are taken from the front; zeros behind the end.
#[derive(Clone)]
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(len.min(self.0.len()));
        self.0 = left;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u64 {
        self.take(8).iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
    }

    /// A register's content: an address in memory or a small number more often than anything.
    fn operand(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from(self.byte() & 0x3F),
            1 => i64::from(self.byte() as i8) as u64,
            2 => u64::from(self.byte()) << 8 | u64::from(self.byte()) << 4,
            _ => self.word(),
        }
    }
}

/// Bytes of memory; what lies above is a device.
const MEMORY: u64 = 0x2_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const LDT: u64 = 0x5400;
const TSS: u64 = 0x5800;
const CODE: u64 = 0x7F00;
/// Where events go: code too, behind the first of it.
const HANDLER: u64 = CODE + 0x40;
const CODE_LEN: usize = 0x200;

/// Selectors of the GDT.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const RING3: u16 = 0x20;
const TASK: u16 = 0x30;
const LOCAL: u16 = 0x40;

/// A machine, and what it has executed.
struct Guest {
    memory: Arc<Segment>,
    cpu: Box<dyn EngineVcpu>,
    now_ns: u64,
}

impl Guest {
    fn new(input: &mut Input<'_>) -> Guest {
        let vm = SoftEngine::new().create_vm().expect("the soft engine always can");
        let memory = Arc::new(Segment::new(MEMORY as usize).expect("memory"));
        vm.map(0, &memory, 0, MEMORY, Protection { write: true }).expect("a good mapping");
        let cpu = vm.create_vcpu(0).expect("the soft engine always can");
        let mut guest = Guest { memory, cpu, now_ns: 0 };
        guest.tables();
        let mode = input.byte();
        for reg in Reg::ALL.into_iter().filter(|&reg| (reg as u8) < Reg::Cr0 as u8) {
            guest.cpu.set_reg(reg, input.operand());
        }
        guest.cpu.set_reg(Reg::Rsp, 0xA000 | input.operand() & 0xFFF);
        let wide = u64::from(input.byte()) << 8 | u64::from(input.byte());
        let flags = wide & !(flags::TF | flags::IOPL) | if mode & 0x40 != 0 { flags::TF | flags::IOPL } else { 0 };
        guest.cpu.set_reg(Reg::Rflags, flags & 0xFFFF & flags::DEFINED | flags::FIXED);
        guest.fpu(input);
        match mode % 8 {
            0 => guest.real_mode(),
            1 => guest.protected_mode(0x009B, 0),
            2 => guest.protected_mode(0xC09B, 0),
            3 => guest.protected_mode(0xC09B, 3),
            4 => guest.long_mode(0xA09B, 0),
            5 => guest.long_mode(0xA09B, 3),
            6 => guest.long_mode(0xC09B, 3),
            _ => guest.any_mode(input),
        }
        guest.cpu.set_reg(Reg::Rip, CODE);
        guest.write(CODE, input.take(CODE_LEN));
        guest
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.memory.write(at, bytes));
    }

    fn write64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Descriptors, gates and page tables that serve all modes.
    fn tables(&mut self) {
        for vector in 0..64_u64 {
            self.write(4 * vector, &[HANDLER as u8 + vector as u8, (HANDLER >> 8) as u8, 0, 0]);
        }
        self.write64(PML4, PDPT | 7);
        self.write64(PDPT, DIRECTORY | 7);
        // 2 Mbytes one to one, as pages of PAE and 4-level paging.
        self.write64(DIRECTORY, 0x87);
        self.write64(DIRECTORY + 8, 0x87);
        let gdt = [
            0,
            0x00CF_9B00_0000_FFFF,
            0x00CF_9300_0000_FFFF,
            0x00AF_9B00_0000_FFFF,
            0x00CF_FB00_0000_FFFF,
            0x00CF_F300_0000_FFFF,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
            0x0000_8200_0000_00FF | LDT << 16,
            0,
            // A call gate, a conforming segment, one that is not present, an expand-down one, 16-bit code.
            0x0000_EC00_0008_0000 | HANDLER,
            0x00CF_9F00_0000_FFFF,
            0x00CF_1300_0000_FFFF,
            0x00C0_9700_0000_0FFF,
            0x0000_9B00_0000_FFFF,
            0x00AF_FB00_0000_FFFF,
        ];
        for (i, descriptor) in gdt.into_iter().enumerate() {
            self.write64(GDT + 8 * i as u64, descriptor);
            self.write64(LDT + 8 * i as u64, descriptor);
        }
        self.write64(TSS + 4, 0x9000 | u64::from(DATA0) << 32);
        for (reg, base, limit) in [(Reg::Gdtr, GDT, 0x7F), (Reg::Idtr, IDT, 0xFFF)] {
            self.cpu.set_desc(reg, SegDesc { base, limit, access: 0 });
        }
        for (reg, selector, base, limit, access) in
            [(Reg::Tr, TASK, TSS, 0x67, 0x8B), (Reg::Ldtr, LOCAL, LDT, 0x7F, 0x82)]
        {
            self.cpu.set_reg(reg, u64::from(selector));
            self.cpu.set_desc(reg, SegDesc { base, limit, access });
        }
    }

    /// Gates for events, `bytes` long each; some are for all privilege levels.
    fn gates(&mut self, bytes: u64, selector: u16) {
        for vector in 0..=255 {
            let kind = if vector % 3 == 0 { 0x8F } else { 0x8E } | if vector % 2 == 0 { 0x60 } else { 0 };
            let gate = (HANDLER + vector % 64) | u64::from(selector) << 16 | kind << 40;
            self.write64(IDT + bytes * vector, gate);
        }
    }

    /// Registers of x87 and SSE.
    fn fpu(&mut self, input: &mut Input<'_>) {
        let mut image = [0; 512];
        image[..2].copy_from_slice(&0x37F_u16.to_le_bytes());
        image[24..28].copy_from_slice(&0x1F80_u32.to_le_bytes());
        for registers in [32..64, 160..192] {
            image[registers].fill_with(|| input.byte());
        }
        self.cpu.set_fpu(&FpuState { image, xcr0: 3 });
    }

    fn segments(&mut self, code: u32, cpl: u32) {
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            let ring = if cpl == 3 { u64::from(RING3 - CODE0) + 3 } else { 0 };
            let (selector, access) = if reg == Reg::Cs { (CODE0, code) } else { (DATA0, 0xC093) };
            self.cpu.set_reg(reg, u64::from(selector) + ring);
            let limit = if access & 0x8000 != 0 { u32::MAX } else { 0xFFFF };
            self.cpu.set_desc(reg, SegDesc { base: 0, limit, access: access | cpl << 5 });
        }
    }

    fn real_mode(&mut self) {
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            self.cpu.set_reg(reg, 0);
            self.cpu.set_desc(reg, SegDesc { base: 0, limit: 0xFFFF, access: 0x93 });
        }
        self.cpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 0x3FF, access: 0 });
        self.cpu.set_reg(Reg::Cr4, cr4::OSFXSR);
    }

    fn protected_mode(&mut self, code: u32, cpl: u32) {
        self.gates(8, CODE0);
        self.cpu.set_reg(Reg::Cr0, cr0::PE | cr0::ET | cr0::NE);
        self.cpu.set_reg(Reg::Cr4, cr4::OSFXSR | cr4::OSXMMEXCPT);
        self.segments(code, cpl);
    }

    fn long_mode(&mut self, code: u32, cpl: u32) {
        self.gates(16, CODE0 + 0x10);
        self.cpu.set_reg(Reg::Cr0, cr0::PG | cr0::PE | cr0::ET | cr0::NE | cr0::WP);
        self.cpu.set_reg(Reg::Cr3, PML4);
        self.cpu.set_reg(Reg::Cr4, cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE);
        self.cpu.set_reg(Reg::Efer, efer::LMA | efer::LME | efer::SCE | efer::NXE);
        self.segments(code, cpl);
    }

    /// Registers and descriptors as no guest could have set them: the kernel lets its frontend set anything.
    fn any_mode(&mut self, input: &mut Input<'_>) {
        self.gates(8, CODE0);
        for reg in Reg::ALL.into_iter().filter(|&reg| reg as u8 >= Reg::Cr0 as u8) {
            let value = input.operand();
            let value = match reg {
                Reg::Cr0 => value & cr0::DEFINED,
                Reg::Cr3 => PML4,
                Reg::Cr4 => value & Features::ALL.cr4(),
                Reg::Efer => value & Features::ALL.efer(),
                _ => value,
            };
            self.cpu.set_reg(reg, value);
            if reg.has_descriptor() && !matches!(reg, Reg::Gdtr | Reg::Idtr) {
                let (base, limit) = (input.operand() & 0xFFFF, input.operand() as u32);
                self.cpu.set_desc(reg, SegDesc { base, limit, access: input.word() as u32 & 0x1_F0FF });
            }
        }
    }

    fn instructions(&self) -> u64 {
        self.cpu.instructions().expect("the soft engine counts")
    }

    fn run(&mut self, budget: u64) -> Exit {
        let before = self.instructions();
        self.cpu.set_time(self.now_ns);
        let exit = self.cpu.run(budget * NS_PER_INSTRUCTION);
        let done = self.instructions() - before;
        assert!(done <= budget, "{done} instructions of {budget}");
        self.now_ns += self.cpu.elapsed_ns();
        if let Exit::Failed(what) = &exit {
            panic!("{what}");
        }
        exit
    }

    /// Runs instruction by instruction to where another guest is.
    fn run_steps(&mut self, exit: &Exit, done: u64) {
        loop {
            let before = self.instructions();
            let step = self.run(1);
            let now = self.instructions();
            if step != Exit::Budget {
                assert_eq!((&step, now), (exit, done), "the exit of single steps");
                return;
            }
            assert_eq!(now, before + 1, "a step that is none");
            assert!(now <= done, "single steps go on after {done} instructions, where {exit:?} ended the others");
            if *exit == Exit::Budget && now == done {
                return;
            }
        }
    }

    fn assert_same(&mut self, other: &mut Guest, exit: &Exit, slice: usize) {
        let at = || format!("in slice {slice}, which ended with {exit:?}");
        for reg in Reg::ALL {
            let (ours, theirs) = (self.cpu.reg(reg), other.cpu.reg(reg));
            assert_eq!(ours, theirs, "{reg:?} {}: {ours:#x}, with single steps {theirs:#x}", at());
            assert_eq!(self.cpu.desc(reg), other.cpu.desc(reg), "{reg:?} {}", at());
        }
        assert!(self.cpu.fpu() == other.cpu.fpu(), "x87 or SSE {}", at());
        assert_eq!(self.cpu.interruptible(), other.cpu.interruptible(), "{}", at());
        assert_eq!(self.cpu.take_unimplemented(), other.cpu.take_unimplemented(), "{}", at());
        let [ours, theirs] = [&*self, &*other].map(|guest| {
            let mut bytes = vec![0; MEMORY as usize];
            assert!(guest.memory.read(0, &mut bytes));
            bytes
        });
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "memory {}", at());
    }

    /// Answers an exit, and lets events come between two runs.
    fn go_on(&mut self, exit: &Exit, input: &mut Input<'_>) {
        let what = input.byte();
        match exit {
            Exit::IoIn { .. } | Exit::MmioRead { .. } | Exit::RdMsr { .. } if what & 7 != 0 => {
                self.cpu.complete(Completion::Value(input.operand()));
            }
            Exit::IoOut { .. } | Exit::MmioWrite { .. } | Exit::WrMsr { .. } if what & 7 != 0 => {
                self.cpu.complete(Completion::Done);
            }
            Exit::MmioFetch { .. } => self.cpu.set_reg(Reg::Rip, CODE + u64::from(what)),
            Exit::Budget | Exit::Hlt | Exit::Pause | Exit::InterruptWindow | Exit::TprWrite { .. } => {
                self.cpu.request_interrupt_window(what & 1 != 0 && *exit != Exit::InterruptWindow);
                if what & 6 == 6 && self.cpu.interruptible() {
                    self.cpu.inject(Inject::Interrupt(what));
                }
                if what & 0xF0 == 0xF0 {
                    self.cpu.inject(Inject::Nmi);
                }
            }
            _ => self.cpu.complete(Completion::GeneralProtection),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Bytes among which prefixes, opcodes of the second map, string and stack instructions are frequent.
    fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        let frequent =
            prop::sample::select(vec![0x0F, 0x66, 0x67, 0xF2, 0xF3, 0x48, 0x50, 0x58, 0xA4, 0xA5, 0xAB, 0xEB]);
        vec(prop_oneof![4 => any::<u8>(), 1 => frequent, 1 => 0_u8..4], len)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]
        #[test]
        fn decode(bytes in bytes(0..160)) {
            super::decode(&bytes);
        }

        #[test]
        fn soft(bytes in bytes(0..900)) {
            super::soft(&bytes);
        }
    }
}
