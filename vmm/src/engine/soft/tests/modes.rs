//! Every form in the modes that a process of the host cannot be in, against KVM: real mode, protected mode of 16 and 32 bits
//! and 64-bit mode at privilege level 0, and the system instructions in user mode. The same state in, the same state out:
//! registers, segments, tables, exceptions with their frames, and what leaves the processor.
//!
//! What `kvm_pvm` makes of the cases is recorded ([`super::deviations`]), and replayed on every host.

use super::deviations::{DEVIATIONS, Deviation, Mode, Recorded, recorded};
use super::forms::{
    Apart, Case, Fnv, address, address_space, apart, code_offset, difference, hash_result, is_approximate,
    is_implemented, is_in_mode, sum, truncates_rip,
};
use super::host::{CODE, DATA, DATA_LEN, Fault, NEAR_TARGET, SLOT, State, TARGET};
use super::random::REGS;
use super::{Bench, Random, features};
use crate::engine::kvm::KvmEngine;
use crate::engine::soft::features::{Announced, needed};
use crate::engine::soft::{SoftEngine, flags};
use crate::engine::{Completion, CpuidEntry, Engine, Exit, FpuState, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use iced_x86::code_asm::{CodeAssembler, eax, ecx, edx};
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Cases of each form.
const CASES: usize = 12;
/// Set to record anew.
const RECORD: &str = "SPINUP_RECORD_MODES";
/// A part of the names of the forms that are wanted.
const ONLY: &str = "SPINUP_FORMS";

/// Low memory: page tables, descriptor tables, and where control goes.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORIES: [u64; 2] = [0x3000, 0x6000];
const IDT: u64 = 0x4000;
/// A page with GDT, LDT and TSS.
const TABLES: u64 = 0x5000;
const GDT: u64 = TABLES;
const LDT: u64 = TABLES + 0x400;
const TSS: u64 = TABLES + 0x800;
/// Handlers of exceptions: a HLT each, 16 bytes apart.
const HANDLERS: u64 = 0x7000;
/// HLT all over, where far transfers of real mode go.
const FAR: u64 = 0x9000;
/// The stack of privilege level 0 when an exception comes out of user mode.
const STACK0: u64 = 0xAF00;
const STACK0_PAGE: u64 = 0xA000;
/// Data and code of real mode.
const REAL_DATA: u64 = 0x4_0000;
const REAL_CODE: u64 = 0x5_0000;
/// Code that sets the MSRs, behind the slot.
const SET_MSRS: u64 = CODE + 0x600;

const HLT: u8 = 0xF4;

/// Selectors of the GDT.
mod selector {
    /// Code of 32 bits: that of the handlers outside long mode.
    pub(super) const HANDLERS: u16 = 0x08;
    pub(super) const FLAT_DATA: u16 = 0x10;
    pub(super) const LONG_CODE: u16 = 0x18;
    /// The segments under test in protected mode.
    pub(super) const CODE: u16 = 0x20;
    pub(super) const DATA: u16 = 0x28;
    pub(super) const USER_DATA: u16 = 0x33;
    pub(super) const USER_CODE: u16 = 0x3B;
    pub(super) const TSS: u16 = 0x40;
    pub(super) const LDT: u16 = 0x50;
    pub(super) const ABSENT: u16 = 0x60;
    pub(super) const CONFORMING: u16 = 0x70;
    pub(super) const BUSY_TSS: u16 = 0x80;
    pub(super) const CALL_GATE: u16 = 0x90;
    pub(super) const LAST: u16 = 0xB0;
}

/// MSRs that are set before the cases, and what to.
const MSRS: [(u32, u64); 9] = [
    (0x174, selector::LONG_CODE as u64),                            // IA32_SYSENTER_CS
    (0x175, DATA + 0x2F00),                                         // IA32_SYSENTER_ESP
    (0x176, TARGET),                                                // IA32_SYSENTER_EIP
    (0xC000_0081, 0x28 << 48 | (selector::LONG_CODE as u64) << 32), // IA32_STAR
    (0xC000_0082, TARGET),                                          // IA32_LSTAR
    (0xC000_0083, TARGET),                                          // IA32_CSTAR
    (0xC000_0084, flags::IF | flags::TF | flags::DF),               // IA32_FMASK
    (0xC000_0102, 0x1234_5678_9000),                                // IA32_KERNEL_GS_BASE
    (0x277, 0x0007_0406_0007_0406),                                 // IA32_PAT
];

/// MSRs that RDMSR and WRMSR are tried with: these, the bases of FS and GS, one of the local APIC, and one that is none.
const MORE_MSRS: [u32; 4] = [0xC000_0100, 0xC000_0101, 0x1B, 0x9999_0000];

/// What came of a case.
struct Outcome {
    result: (State, Option<Fault>, Vec<u8>),
    end: Exit,
    /// What left the processor on the way.
    exits: Vec<Exit>,
    regs: Vec<(Reg, u64)>,
    descs: Vec<(Reg, SegDesc)>,
    /// GDT, LDT and TSS, and the stack that user mode's exceptions come to.
    tables: Vec<u8>,
}

/// A processor in one mode, of either engine.
struct Machine {
    bench: Bench,
    mode: Mode,
    /// Where the data area and the page of the code lie in which memory.
    data: (Arc<Segment>, u64),
    code: (Arc<Segment>, u64),
    tables: Vec<u8>,
    budget_ns: u64,
}

impl Machine {
    fn new(engine: &dyn Engine, mode: Mode, budget_ns: u64) -> Machine {
        let mut bench = Bench::on(engine, 0x10_0000);
        bench.cpu.set_cpuid(&cpuid());
        let map = |at: u64, len: usize| {
            let memory = Arc::new(Segment::new(len).expect("memory"));
            bench.vm.map(at, &memory, 0, len as u64, Protection { write: true }).expect("a good mapping");
            (memory, 0)
        };
        let low = |at: u64| (Arc::clone(&bench.memory), at);
        let (data, code) = match mode {
            Mode::Real => (low(REAL_DATA), low(REAL_CODE)),
            Mode::Protected16 | Mode::Protected32 => (low(0), map(CODE, 0x1000)),
            Mode::Long | Mode::User => (map(DATA, DATA_LEN), map(CODE, 0x1000)),
        };
        let tables = tables(mode);
        let mut machine = Machine { bench, mode, data, code, tables, budget_ns };
        machine.write_low_memory();
        machine.set_msrs();
        machine
    }

    fn write_low_memory(&mut self) {
        let (bench, mode) = (&self.bench, self.mode);
        bench.write(FAR, &[HLT; 0x1000]);
        bench.write(HANDLERS, &[HLT; 0x1000]);
        if mode.bits() == 64 {
            self.write_page_tables();
        }
        self.write_vectors();
    }

    /// The first 2 Mbytes and those of the data, and those of the code, one to one.
    fn write_page_tables(&self) {
        let bench = &self.bench;
        bench.write64(PML4, PDPT | 7);
        for (i, directory) in DIRECTORIES.into_iter().enumerate() {
            bench.write64(PDPT + 8 * i as u64, directory | 7);
            for at in [0, CODE - DATA] {
                bench.write64(directory + 8 * (at >> 21), (i as u64) << 30 | at | 0x87);
            }
        }
    }

    fn write_vectors(&self) {
        let (bench, mode) = (&self.bench, self.mode);
        for vector in 0..=255_u64 {
            let handler = if mode.is_protected() { 16 * vector } else { HANDLERS + 16 * vector };
            let dpl = if vector >= 0x20 || matches!(vector, 3 | 4) { 0x60 } else { 0 };
            let gate = |kind: u64, selector: u16| handler | u64::from(selector) << 16 | (kind | dpl) << 40;
            match mode {
                Mode::Real => bench.write(4 * vector, &(handler as u32 & 0xFFF | 0x0700 << 16).to_le_bytes()),
                // kvm_pvm shuts down at gates of 16 bits.
                Mode::Protected16 | Mode::Protected32 => {
                    bench.write64(IDT + 8 * vector, gate(0x8E, selector::HANDLERS));
                }
                Mode::Long | Mode::User => bench.write64(IDT + 16 * vector, gate(0x8E, selector::LONG_CODE)),
            }
        }
    }

    /// Enters the mode, with everything that is not the case's as it always is.
    fn enter(&mut self, mode: Mode) {
        let cpu = &mut self.bench.cpu;
        const SSE: u64 = 0x600;
        let (cr0, cr3, cr4, efer) = match mode {
            Mode::Real => (0x10, 0, SSE, 0),
            Mode::Protected16 | Mode::Protected32 => (0x11, 0, SSE, 0),
            Mode::Long | Mode::User => (0x8000_0011, PML4, SSE | 0x20, 0xD01),
        };
        for (reg, value) in [
            (Reg::Cr0, cr0),
            (Reg::Cr2, 0),
            (Reg::Cr3, cr3),
            (Reg::Cr4, cr4),
            (Reg::Efer, efer),
            (Reg::Dr0, 0),
            (Reg::Dr1, 0),
            (Reg::Dr2, 0),
            (Reg::Dr3, 0),
            (Reg::Dr6, 0xFFFF_0FF0),
            (Reg::Dr7, 0x400),
        ] {
            cpu.set_reg(reg, value);
        }
        let flat = |access: u32| SegDesc { base: 0, limit: u32::MAX, access };
        let wide = if mode == Mode::Protected32 { 0x4000 } else { 0 };
        let (code, data) = match mode {
            Mode::Real => (
                ((REAL_CODE >> 4) as u16, SegDesc { base: REAL_CODE, limit: 0xFFF, access: 0x9B }),
                ((REAL_DATA >> 4) as u16, SegDesc { base: REAL_DATA, limit: DATA_LEN as u32 - 1, access: 0x93 }),
            ),
            Mode::Protected16 | Mode::Protected32 => (
                (selector::CODE, SegDesc { base: CODE, limit: 0xFFF, access: 0x9B | wide }),
                // Where kvm_pvm pushes frames of exceptions, the base of SS is 0.
                (selector::DATA, SegDesc { base: 0, limit: DATA_LEN as u32 - 1, access: 0x93 | wide }),
            ),
            Mode::Long => ((selector::LONG_CODE, flat(0xA09B)), (selector::FLAT_DATA, flat(0xC093))),
            Mode::User => ((selector::USER_CODE, flat(0xA0FB)), (selector::USER_DATA, flat(0xC0F3))),
        };
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            let (selector, desc) = if reg == Reg::Cs { code } else { data };
            cpu.set_reg(reg, u64::from(selector));
            cpu.set_desc(reg, desc);
        }
        cpu.set_reg(Reg::Tr, u64::from(selector::BUSY_TSS));
        cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0x67, access: 0x8B });
        cpu.set_reg(Reg::Ldtr, u64::from(selector::LDT));
        cpu.set_desc(Reg::Ldtr, SegDesc { base: LDT, limit: 0x7F, access: 0x82 });
        cpu.set_desc(Reg::Gdtr, SegDesc { base: GDT, limit: u32::from(selector::LAST) + 7, access: 0 });
        let idt = if mode == Mode::Real { (0, 0x3FF) } else { (IDT, if mode.bits() == 64 { 0xFFF } else { 0x7FF }) };
        cpu.set_desc(Reg::Idtr, SegDesc { base: idt.0, limit: idt.1, access: 0 });
        cpu.set_cr8(0);
    }

    fn write_code(&self, at: u64, bytes: &[u8]) {
        assert!(self.code.0.write(self.code.1 + (at - CODE), bytes));
    }

    /// Sets the MSRs by WRMSR, at privilege level 0.
    fn set_msrs(&mut self) {
        let mode = if self.mode == Mode::User { Mode::Long } else { self.mode };
        let at = code_offset(mode.bits(), SET_MSRS);
        let mut assembler = CodeAssembler::new(mode.bits()).expect("16, 32 or 64 bits");
        let a = &mut assembler;
        for (index, value) in MSRS {
            a.mov(ecx, index).unwrap();
            a.mov(eax, value as u32).unwrap();
            a.mov(edx, (value >> 32) as u32).unwrap();
            a.wrmsr().unwrap();
        }
        a.hlt().unwrap();
        self.write_code(SET_MSRS, &assembler.assemble(at).expect("code that can be encoded"));
        self.enter(mode);
        self.bench.cpu.set_reg(Reg::Rflags, 2);
        self.bench.cpu.set_reg(Reg::Rip, at);
        let exit = self.bench.cpu.run(self.budget_ns);
        assert_eq!(exit, Exit::Hlt, "at {:#x}", self.bench.cpu.reg(Reg::Rip));
        assert!(self.bench.cpu.reg(Reg::Rip) > at, "an MSR is missing");
    }

    /// Runs a case; what the engine says if it cannot.
    fn run(&mut self, case: &Case) -> Result<Outcome, String> {
        let mut code = case.bytes.clone();
        code.push(HLT);
        self.write_code(SLOT, &code);
        for target in [NEAR_TARGET, TARGET] {
            self.write_code(target, &[HLT]);
        }
        assert!(self.data.0.write(self.data.1, &case.memory));
        self.bench.write(TABLES, &self.tables);
        if self.mode == Mode::User {
            self.bench.write(STACK0_PAGE, &[0; 0x1000]);
        }
        self.enter(self.mode);
        let cpu = &mut self.bench.cpu;
        for (reg, value) in REGS.into_iter().zip(case.state.regs) {
            cpu.set_reg(reg, value);
        }
        cpu.set_reg(Reg::Rflags, case.state.flags);
        cpu.set_reg(Reg::Rip, code_offset(case.bits, SLOT));
        cpu.set_fpu(&FpuState { image: case.state.fpu, xcr0: 1 });
        let (end, exits) = self.run_to_end()?;
        let outcome = self.outcome(case, end, exits);
        if matches!(case.instruction.mnemonic(), Mnemonic::Wrmsr | Mnemonic::Swapgs) {
            self.set_msrs();
        }
        Ok(outcome)
    }

    /// Runs on to HLT or to where nothing goes on, and answers what is asked for on the way.
    fn run_to_end(&mut self) -> Result<(Exit, Vec<Exit>), String> {
        const MOST_EXITS: usize = 200;
        let cpu = &mut self.bench.cpu;
        let mut exits = Vec::new();
        loop {
            let exit = cpu.run(self.budget_ns);
            match exit {
                Exit::Failed(what) => return Err(what),
                Exit::Pause => continue,
                Exit::IoIn { .. } | Exit::MmioRead { .. } => cpu.complete(Completion::Value(0x1234_5678_9ABC_DEF0)),
                Exit::IoOut { .. } | Exit::MmioWrite { .. } => cpu.complete(Completion::Done),
                Exit::RdMsr { .. } | Exit::WrMsr { .. } => {
                    // KVM also asks about values that it refuses.
                    cpu.complete(Completion::GeneralProtection);
                    continue;
                }
                Exit::TprWrite { .. } => {}
                _ => return Ok((exit, exits)),
            }
            exits.push(exit);
            if exits.len() > MOST_EXITS {
                return Ok((Exit::Budget, exits));
            }
        }
    }

    /// Reads everything that is compared.
    fn outcome(&mut self, case: &Case, end: Exit, exits: Vec<Exit>) -> Outcome {
        let cpu = &mut self.bench.cpu;
        let mut state = case.state.clone();
        for (place, reg) in state.regs.iter_mut().zip(REGS) {
            *place = cpu.reg(reg);
        }
        state.flags = cpu.reg(Reg::Rflags);
        state.fpu = cpu.fpu().image;
        let rip = cpu.reg(Reg::Rip);
        let is_based = cpu.reg(Reg::Efer) & 0x400 == 0;
        let linear = if is_based { cpu.desc(Reg::Cs).base.wrapping_add(rip) } else { rip };
        let handlers = HANDLERS + 1..HANDLERS + 0x1000;
        let fault = (end == Exit::Hlt && handlers.contains(&linear)).then_some(((linear - HANDLERS) / 16) as Fault);
        state.branched = u64::from([NEAR_TARGET, TARGET].iter().any(|at| code_offset(case.bits, at + 1) == rip));
        let system = flags::TF | flags::IF | flags::DF | flags::IOPL | flags::NT | flags::RF | flags::VM;
        let system = system | flags::AC | flags::ID | flags::VIF | flags::VIP;
        let mut regs = vec![(Reg::Rip, rip), (Reg::Rflags, state.flags & system)];
        for reg in [Reg::Cr0, Reg::Cr2, Reg::Cr3, Reg::Cr4, Reg::Efer] {
            regs.push((reg, cpu.reg(reg)));
        }
        for reg in [Reg::Dr0, Reg::Dr1, Reg::Dr2, Reg::Dr3, Reg::Dr6, Reg::Dr7] {
            regs.push((reg, cpu.reg(reg)));
        }
        let mut descs = Vec::new();
        for reg in [Reg::Es, Reg::Cs, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs, Reg::Ldtr, Reg::Tr, Reg::Gdtr, Reg::Idtr] {
            if !matches!(reg, Reg::Gdtr | Reg::Idtr) {
                regs.push((reg, cpu.reg(reg)));
            }
            let selector = cpu.reg(reg) as u16;
            descs.push((reg, comparable(self.mode, reg, selector, cpu.desc(reg))));
        }
        let mut memory = vec![0; DATA_LEN];
        assert!(self.data.0.read(self.data.1, &mut memory));
        let mut tables = vec![0; 0x1000];
        assert!(self.bench.memory.read(TABLES, &mut tables));
        if self.mode == Mode::User {
            tables.extend(self.bench.read::<0x1000>(STACK0_PAGE));
        }
        if case.bits != 64 {
            state.narrow();
        }
        Outcome { result: (state, fault, memory), end, exits, regs, descs, tables }
    }
}

/// What has a meaning of the hidden part of a segment register.
fn comparable(mode: Mode, reg: Reg, selector: u16, mut desc: SegDesc) -> SegDesc {
    const UNUSABLE: u32 = 0x1_0000;
    if reg == Reg::Ss && selector & !3 == 0 && mode.bits() == 64 {
        // KVM makes a data segment up, for the DPL.
        desc.access = UNUSABLE;
    }
    if desc.access & UNUSABLE != 0 {
        // The base of FS and GS counts in 64-bit mode.
        let base = if matches!(reg, Reg::Fs | Reg::Gs) && mode.bits() == 64 { desc.base } else { 0 };
        return SegDesc { base, limit: 0, access: UNUSABLE };
    }
    if mode == Mode::Real {
        // There are no access rights.
        desc.access = 0;
    }
    desc
}

/// The GDT, the LDT, which has the same descriptors, and the task-state segment.
fn tables(mode: Mode) -> Vec<u8> {
    let wide = if mode == Mode::Protected32 { 0x4000 } else { 0 };
    let gate = match mode {
        Mode::Protected16 => 0x0000_8400_0000_0000 | code_offset(16, TARGET) | u64::from(selector::CODE) << 16,
        Mode::Long | Mode::User => {
            (TARGET >> 16) << 48 | 0x8C00 << 32 | TARGET & 0xFFFF | u64::from(selector::LONG_CODE) << 16
        }
        _ => 0x0000_8C00_0000_0000 | code_offset(32, TARGET) | u64::from(selector::CODE) << 16,
    };
    // Outside long mode, where bases count, far transfers lead to HLT too.
    let [handlers, far] = if mode.bits() == 64 { [0, 0] } else { [HANDLERS as u32, FAR as u32] };
    let gdt = [
        (selector::HANDLERS, descriptor(handlers, u32::MAX, 0xC09B)),
        (selector::FLAT_DATA, descriptor(0, u32::MAX, 0xC093)),
        (selector::LONG_CODE, descriptor(far, u32::MAX, 0xA09B)),
        (selector::CODE, descriptor(CODE as u32, 0xFFF, 0x9B | wide)),
        (selector::DATA, descriptor(0, DATA_LEN as u32 - 1, 0x93 | wide)),
        (selector::USER_DATA, descriptor(0, u32::MAX, 0xC0F3)),
        (selector::USER_CODE, descriptor(far, u32::MAX, 0xA0FB)),
        (selector::TSS, descriptor(TSS as u32, 0x67, 0x89)),
        (selector::LDT, descriptor(LDT as u32, 0x7F, 0x82)),
        (selector::ABSENT, descriptor(0, u32::MAX, 0xC013)),
        // Read-only data, not accessed yet.
        (0x68, descriptor(0, 0xF_FFFF, 0x4090)),
        (selector::CONFORMING, descriptor(far, u32::MAX, if mode.bits() == 64 { 0xA09F } else { 0xC09E })),
        // Code that cannot be read.
        (0x78, descriptor(0, u32::MAX, 0xC099)),
        (selector::BUSY_TSS, descriptor(TSS as u32, 0x67, 0x8B)),
        (selector::CALL_GATE, gate),
        // Data that expands down, a type that there is not, and a segment of 64 Kbytes.
        (0xA0, descriptor(0, 0xFFF, 0x4096)),
        (0xA8, descriptor(0, 0xFFF, 0x80)),
        (selector::LAST, descriptor(0x1234_0000, 0xFFFF, 0x1092)),
    ];
    let mut tables = vec![0; 0x1000];
    for (selector, descriptor) in gdt {
        for table in [GDT, LDT] {
            let at = (table - TABLES) as usize + usize::from(selector & !7);
            tables[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
        }
    }
    let at = (TSS - TABLES) as usize;
    if mode.bits() == 64 {
        tables[at + 4..at + 12].copy_from_slice(&STACK0.to_le_bytes());
    } else {
        tables[at + 4..at + 8].copy_from_slice(&(STACK0 as u32).to_le_bytes());
        tables[at + 8..at + 10].copy_from_slice(&selector::FLAT_DATA.to_le_bytes());
    }
    tables
}

/// A descriptor with these access rights (SDM 3A 3.4.5).
fn descriptor(base: u32, limit: u32, access: u32) -> u64 {
    let limit = if access & 0x8000 != 0 { limit >> 12 } else { limit };
    let (base, limit, access) = (u64::from(base), u64::from(limit), u64::from(access));
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (access & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access >> 12 & 0xF) << 52
        | base >> 24 << 56
}

/// Everything that the processor has, on one with Intel's name and 40 bits of physical address.
fn cpuid() -> Vec<CpuidEntry> {
    let leaf = |leaf, regs| CpuidEntry { leaf, subleaf: None, regs };
    let mut table = vec![
        leaf(0, [0xD, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]),
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0008, [48 << 8 | 40, 0, 0, 0]),
    ];
    table.extend(features::all_leaves());
    table
}

/// Whether KVM has all that an instruction needs.
fn kvm_has(supported: &CpuId, instruction: &Instruction) -> bool {
    needed(instruction).all(|feature| {
        let Announced { leaf, subleaf, register, bit } = feature.announced();
        let entry = supported.as_slice().iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
        entry.is_some_and(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx][register as usize] >> bit & 1 != 0)
    })
}

/// Whether a form is compared in a mode. What is left out depends on the host: time, random numbers, identification, and what
/// is in use of the extended state.
fn is_compared(code: Code, mode: Mode) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    let host_dependent = match code.mnemonic() {
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Cpuid | M::Xgetbv | M::Rdrand | M::Rdseed | M::Rdpid => true,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => true,
        M::Reservednop => info.op_code() == 0x0D,
        mnemonic => is_approximate(mnemonic),
    };
    let in_mode = match mode {
        Mode::Real => info.real_mode(),
        Mode::Protected16 | Mode::Protected32 => info.protected_mode(),
        Mode::Long => info.long_mode(),
        Mode::User => info.long_mode() && matches!(apart(code, 64), Some(Apart::System | Apart::Leaves)),
    };
    is_in_mode(code, mode.bits())
        && in_mode
        && info.encoding() == EncodingKind::Legacy
        && !host_dependent
        && !(mode.bits() == 64 && truncates_rip(code))
}

/// The cases of a form.
fn cases(code: Code, mode: Mode, in_memory: bool) -> Vec<Case> {
    let mut random = Random(code as u64 ^ u64::from(in_memory) << 32 ^ (mode as u64 + 1) << 40);
    let case = || {
        let adjust = |instruction: &mut Instruction, state: &mut State, memory: &mut [u8], random: &mut Random| {
            aim(mode, instruction, state, memory, random);
        };
        Case::adjusted(code, mode.bits(), in_memory, &mut random, adjust)
    };
    let cases = std::iter::repeat_with(case).take(CASES);
    cases.flatten().filter(|case| is_implemented(&case.instruction)).collect()
}

/// A selector: of a descriptor of any kind, now and then with any privilege level, of the LDT, or beyond the table.
fn any_selector(mode: Mode, random: &mut Random) -> u16 {
    if mode == Mode::Real {
        return random.next() as u16;
    }
    let own = if mode == Mode::User { 3 } else { 0 };
    let index = match random.below(16) {
        0 => 0,
        1 => selector::LAST + 8,
        _ => 8 * random.below(u64::from(selector::LAST) / 8 + 1) as u16,
    };
    match random.below(8) {
        0 => index | random.below(8) as u16,
        1 => index | random.below(4) as u16,
        _ => index | own,
    }
}

/// A selector of code, or of a gate, or of neither; of no task, which would be switched to.
fn code_selector(mode: Mode, random: &mut Random) -> u16 {
    let of_mode = if mode.bits() == 64 { selector::LONG_CODE } else { selector::CODE };
    let choices = [
        of_mode,
        of_mode,
        of_mode,
        selector::HANDLERS,
        selector::CONFORMING,
        selector::CALL_GATE,
        selector::LONG_CODE,
        selector::USER_CODE,
        selector::ABSENT,
        selector::FLAT_DATA,
        selector::LDT,
        0,
    ];
    match mode {
        Mode::Real => (FAR >> 4) as u16,
        Mode::User if random.below(2) == 0 => selector::USER_CODE,
        _ => choices[random.below(choices.len() as u64) as usize],
    }
}

/// Points a system instruction to what it can work with, and chooses among the flags that matter to it.
fn aim(mode: Mode, instruction: &mut Instruction, state: &mut State, memory: &mut [u8], random: &mut Random) {
    use Mnemonic as M;
    if random.below(4) == 0 {
        // AC is not among them: kvm_pvm clears it when it delivers an exception. Nor is IOPL in user mode, which it takes away.
        let more = if mode == Mode::User { flags::ID } else { flags::IOPL | flags::ID };
        state.flags |= random.next() & more;
    }
    let bits = mode.bits();
    let start = address_space(bits);
    let stack_at = (state.regs[4].wrapping_sub(start) & 0xFFFF) as usize;
    let target = code_offset(bits, TARGET);
    let operand_at = address(instruction, state).wrapping_sub(start) as usize;
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let mut put = |at: usize, value: u64, size: usize| {
        if let Some(place) = memory.get_mut(at..at + size) {
            place.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    };
    let is_segment = |i: u32| i < instruction.op_count() && instruction.op_register(i).is_segment_register();
    match instruction.mnemonic() {
        M::Mov if is_segment(0) => {
            let selector = any_selector(mode, random);
            if has_memory {
                put(operand_at, u64::from(selector), 2);
            } else {
                set_low(state, instruction.op1_register(), selector);
            }
        }
        M::Lar | M::Lsl => {
            let selector = any_selector(mode, random);
            if has_memory {
                put(operand_at, u64::from(selector), 2);
            } else {
                set_low(state, instruction.op1_register(), selector);
            }
        }
        M::Lldt | M::Ltr | M::Verr | M::Verw => {
            let selector = match (instruction.mnemonic(), random.below(3)) {
                (M::Lldt, 0) => selector::LDT,
                (M::Ltr, 0) => selector::TSS,
                _ => any_selector(mode, random),
            };
            if has_memory {
                put(operand_at, u64::from(selector), 2);
            } else {
                set_low(state, instruction.op0_register(), selector);
            }
        }
        M::Pop if is_segment(0) => put(stack_at, u64::from(any_selector(mode, random)), 2),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            put(operand_at + instruction.op0_register().size(), u64::from(any_selector(mode, random)), 2);
        }
        M::Jmp | M::Call
            if instruction.op0_kind() == OpKind::FarBranch16 || instruction.op0_kind() == OpKind::FarBranch32 =>
        {
            instruction.set_far_branch_selector(code_selector(mode, random));
        }
        M::Jmp | M::Call if is_far(instruction.code()) => {
            let size = instruction.memory_size().size() - 2;
            put(operand_at, target, size);
            put(operand_at + size, u64::from(code_selector(mode, random)), 2);
        }
        M::Retf | M::Iret | M::Iretd | M::Iretq => {
            let size = match instruction.code() {
                Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
                Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
                _ => 8,
            };
            let dropped = if instruction.op_count() == 1 { usize::from(instruction.immediate16()) } else { 0 };
            let selector = code_selector(mode, random);
            put(stack_at, target, size);
            put(stack_at + size, u64::from(selector), size.min(4));
            let is_iret = instruction.mnemonic() != M::Retf;
            let changeable = flags::STATUS | flags::DF | flags::IF | flags::IOPL | flags::ID;
            let mut next = stack_at + 2 * size;
            if is_iret {
                put(next, random.next() & changeable | flags::FIXED, size);
                next += size;
            }
            next += dropped;
            let stack_selector = if selector & 3 == 3 { selector::USER_DATA } else { selector::FLAT_DATA };
            put(next, start + 0x2F00, size);
            put(next + size, u64::from(stack_selector), size.min(4));
        }
        M::Int => {
            // KVM's emulator takes vectors from 80H on for negative ones, and does not come to an end.
            let vector = instruction.immediate8();
            instruction.set_immediate8(if mode == Mode::Real { vector & 0x7F } else { vector });
        }
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            state.regs[1] = state.regs[1] & !0xFFFF | random.below(4);
        }
        M::Rdmsr | M::Wrmsr => {
            let own = MSRS.iter().map(|&(index, _)| index).chain(MORE_MSRS);
            state.regs[1] = u64::from(own.clone().nth(random.below(own.count() as u64) as usize).expect("one of them"));
            if random.below(3) != 0 {
                // Canonical, and memory types.
                state.regs[2] = 0x0006_0000;
                state.regs[0] = 0x0006_0406;
                if state.regs[1] != 0x277 {
                    state.regs[2] = random.next() & 0x7FFF;
                }
            }
        }
        M::Mov if is_control(instruction.op0_register()) => {
            let value = control_value(mode, instruction.op0_register(), random);
            state.regs[instruction.op1_register().full_register().number()] = value;
        }
        M::Lmsw => {
            // Protection stays what it is: entering it here leaves no code to go on with.
            let value = random.next() & 0xFFFE | u64::from(mode != Mode::Real);
            if has_memory {
                put(operand_at, value, 2);
            } else {
                set_low(state, instruction.op0_register(), value as u16);
            }
        }
        M::Xsetbv => {
            state.regs[1] = u64::from(random.below(4) == 0);
            (state.regs[2], state.regs[0]) = (0, random.below(4));
        }
        M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq => {
            state.regs[1] = if instruction.mnemonic() == M::Sysret || instruction.mnemonic() == M::Sysretq {
                TARGET
            } else {
                DATA + 0x2F00
            };
            state.regs[2] = TARGET;
            state.regs[11] = random.next() & (flags::STATUS | flags::DF | flags::IF | flags::IOPL) | flags::FIXED;
        }
        M::Invpcid => {
            state.regs[instruction.op0_register().full_register().number()] = random.below(5);
            put(operand_at, random.below(2), 8);
            put(operand_at + 8, random.operand() & 0x7FFF_FFFF_FFFF, 8);
        }
        M::Monitor | M::Mwait => state.regs[1] = random.below(3),
        _ => {}
    }
    if mode == Mode::Real {
        // kvm_pvm clears the upper half when it delivers an exception; user mode tries stacks of 16 bits with more in ESP.
        state.regs[4] &= 0xFFFF;
    }
}

fn is_far(code: Code) -> bool {
    use Code::*;
    matches!(code, Call_m1616 | Call_m1632 | Call_m1664 | Jmp_m1616 | Jmp_m1632 | Jmp_m1664)
}

fn is_control(register: Register) -> bool {
    register.is_cr() || register.is_dr()
}

/// Sets the low 16 bits of a register.
fn set_low(state: &mut State, register: Register, value: u16) {
    let place = &mut state.regs[register.full_register().number()];
    *place = *place & !0xFFFF | u64::from(value);
}

/// A value for a control or debug register that leaves the mode as it is, or that is refused.
fn control_value(mode: Mode, register: Register, random: &mut Random) -> u64 {
    let is_64 = mode.bits() == 64;
    let any = random.next();
    match register {
        Register::CR0 => {
            let now = match mode {
                Mode::Real => 0x10,
                _ if mode.is_protected() => 0x11,
                _ => 0x8000_0011,
            };
            // MP, EM, TS, NE, WP, AM, CD; NW is refused without CD, PG without PE, and so are the upper bits.
            let refused = [1 << 29, 1 << 40, 1 << 40][random.below(3) as usize];
            let refused = if random.below(6) == 0 { refused } else { 0 };
            now ^ any & 0x4005_002E ^ if is_64 { refused } else { refused & 0xFFFF_FFFF }
        }
        Register::CR3 if is_64 => PML4 | any & 0x18,
        Register::CR3 => any & 0xFFFF_F018,
        Register::CR4 => {
            let now = if is_64 { 0x620 } else { 0x600 };
            let refused = [1 << 15, 1 << 23, if is_64 { 0x20 } else { 1 << 30 }][random.below(3) as usize];
            now ^ any & 0x60C ^ if random.below(6) == 0 { refused } else { 0 }
        }
        Register::CR8 => any & if random.below(4) == 0 { 0x1F } else { 0xF },
        // No breakpoint, and no detection of accesses.
        Register::DR7 | Register::DR5 => any & 0xFFFF_DF00 | if is_64 && random.below(6) == 0 { 1 << 33 } else { 0 },
        Register::DR6 | Register::DR4 => any & if is_64 && random.below(6) == 0 { u64::MAX } else { 0xFFFF_FFFF },
        _ => any,
    }
}

/// What differs, in words; `None` if nothing does.
fn differs(case: &Case, theirs: &Outcome, ours: &Outcome) -> Option<String> {
    if theirs.end != ours.end {
        return Some(format!("end: host {:?}, ours {:?}", theirs.end, ours.end));
    }
    if theirs.exits != ours.exits {
        return Some(format!("exits: host {:?}, ours {:?}", theirs.exits, ours.exits));
    }
    if let Some(what) = difference(case, &theirs.result, &ours.result) {
        return Some(what);
    }
    for ((reg, theirs), (_, ours)) in theirs.regs.iter().zip(&ours.regs) {
        if theirs != ours {
            return Some(format!("{reg:?}: host {theirs:#x}, ours {ours:#x}"));
        }
    }
    for ((reg, theirs), (_, ours)) in theirs.descs.iter().zip(&ours.descs) {
        if theirs != ours {
            return Some(format!("hidden {reg:?}: host {theirs:x?}, ours {ours:x?}"));
        }
    }
    let at = theirs.tables.iter().zip(&ours.tables).position(|(theirs, ours)| theirs != ours)?;
    let around = at & !7..(at & !7) + 8;
    Some(format!("tables at {at:#x}: host {:02x?}, ours {:02x?}", &theirs.tables[around.clone()], &ours.tables[around]))
}

/// Everything that is compared, as one number.
fn digest(case: &Case, outcome: &Outcome) -> u32 {
    let mut hash = Fnv::new();
    hash_result(&mut hash, case, &outcome.result);
    hash.take(format!("{:?} {:?} {:x?} {:x?}", outcome.end, outcome.exits, outcome.regs, outcome.descs).as_bytes());
    hash.take(&outcome.tables);
    hash.folded()
}

/// Why KVM may differ so, if that is known.
fn explanation(case: &Case, mode: Mode, what: &str) -> Option<usize> {
    let explains = |deviation: &Deviation| {
        deviation.mnemonics.contains(&case.instruction.mnemonic())
            && deviation.modes.contains(&mode)
            && what.starts_with(deviation.what)
    };
    DEVIATIONS.iter().position(explains)
}

/// A divergence in words, with what the case starts from.
fn describe(name: &str, case: &Case, what: &str) -> String {
    let Case { instruction, bytes, state, memory, .. } = case;
    let words = |at: usize| memory.get(at..at + 40).unwrap_or_default();
    let stack = (state.regs[4].wrapping_sub(address_space(case.bits)) & 0xFFFF) as usize;
    let start = format!("    regs {:x?} flags {:#x} stack {:02x?}", state.regs, state.flags, words(stack));
    let operand = case.operand_at();
    format!("{name}: {instruction} {bytes:02x?}: {what}\n{start} operand at {operand:#x} {:02x?}", words(operand))
}

/// Forms of a mode that this processor has.
fn forms(mode: Mode) -> impl Iterator<Item = (String, Vec<Case>)> {
    let only = std::env::var(ONLY).unwrap_or_default();
    Code::values()
        .filter(move |&code| is_compared(code, mode) && format!("{code:?}").contains(&only))
        .flat_map(|code| [(code, false), (code, true)])
        .map(move |(code, in_memory)| {
            let name = format!("{code:?}{}", if in_memory { "/memory" } else { "" });
            (name, cases(code, mode, in_memory))
        })
        .filter(|(_, cases)| !cases.is_empty())
}

fn soft_machine(mode: Mode) -> Machine {
    // Ten thousand instructions are more than any case takes.
    Machine::new(&SoftEngine::new(), mode, 40_000)
}

/// Compares every form with KVM, where there is one.
fn agrees_with_kvm(mode: Mode) {
    let engine = match KvmEngine::probe() {
        Ok(engine) => engine,
        Err(reason) => {
            eprintln!("Skipped: {reason}");
            return;
        }
    };
    // What is known of deviations is known of this one.
    let is_known = engine.backend() == "kvm_pvm";
    let kvm = kvm_ioctls::Kvm::new().expect("it was there just now");
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("the table that KVM supports");
    let mut host = Machine::new(&engine, mode, 2_000_000_000);
    let mut guest = soft_machine(mode);
    let (mut record, mut explained, mut refusals) = (String::new(), BTreeMap::new(), BTreeMap::<_, u32>::new());
    let (mut total, mut compared, mut diverging) = (0, 0, Vec::new());
    for (name, cases) in forms(mode) {
        let mut form = Recorded { name, same: 0, explained: 0, digest: String::new() };
        let mut digests = Vec::new();
        total += 1;
        for (number, case) in cases.iter().enumerate() {
            if !kvm_has(&supported, &case.instruction) {
                continue;
            }
            let theirs = match host.run(case) {
                Ok(theirs) => theirs,
                Err(what) => {
                    *refusals.entry(what.split(" at RIP").next().unwrap_or_default().to_owned()).or_default() += 1;
                    continue;
                }
            };
            let ours = guest.run(case).expect("the soft engine always can");
            if mode == Mode::Protected16 && theirs.end == Exit::Shutdown && ours.result.1.is_some() {
                *refusals.entry("KVM delivers no exceptions".to_owned()).or_default() += 1;
                continue;
            }
            let Some(what) = differs(case, &theirs, &ours) else {
                form.same |= 1 << number;
                digests.push(digest(case, &theirs));
                continue;
            };
            form.explained |= 1 << number;
            match explanation(case, mode, &what) {
                Some(number) => *explained.entry(number).or_insert(0) += 1,
                None => diverging.push(describe(&form.name, case, &what)),
            }
        }
        compared += u32::from(form.same | form.explained != 0);
        form.digest = sum(digests.into_iter());
        record += &form.line();
    }
    println!(
        "{mode:?}: {compared} of {total} forms compared with KVM, {} cases diverge without a reason; reasons {explained:?}; \
         KVM refused {refusals:?}",
        diverging.len()
    );
    diverging.iter().for_each(|line| println!("{mode:?} {line}"));
    if std::env::var_os(RECORD).is_some() {
        assert!(is_known && std::env::var_os(ONLY).is_none(), "every form of kvm_pvm is recorded");
        let unused = |&(number, deviation): &(usize, &Deviation)| {
            deviation.modes.contains(&mode) && !explained.contains_key(&number)
        };
        let unused: Vec<_> = DEVIATIONS.iter().enumerate().filter(unused).map(|(_, deviation)| deviation.why).collect();
        assert!(unused.is_empty(), "KVM does as the manual says: {unused:?}");
        std::fs::write(mode.record(), &record).expect("the record can be written");
    }
    assert!(!is_known || diverging.is_empty(), "{} cases diverge", diverging.len());
}

/// Replays what was recorded.
fn agrees_with_the_record(mode: Mode) {
    let recorded: BTreeMap<String, Recorded> =
        recorded(mode).into_iter().map(|form| (form.name.clone(), form)).collect();
    let mut guest = soft_machine(mode);
    let (mut replayed, mut diverging) = (0, Vec::new());
    for (name, cases) in forms(mode) {
        let Some(form) = recorded.get(&name) else { continue };
        let same = cases.iter().enumerate().filter(|(number, _)| form.same >> number & 1 != 0);
        let digests = same.map(|(_, case)| digest(case, &guest.run(case).expect("the soft engine always can")));
        if sum(digests) != form.digest {
            diverging.push(name);
        }
        replayed += 1;
    }
    println!("{mode:?}: {replayed} recorded forms replayed, {} diverge", diverging.len());
    assert!(diverging.is_empty(), "{diverging:?}");
    let is_whole = replayed == recorded.len() && replayed > 150;
    assert!(is_whole || std::env::var_os(ONLY).is_some(), "{replayed} of {} recorded forms are there", recorded.len());
}

macro_rules! modes {
    ($($name:ident: $mode:ident,)*) => {
        $(
            mod $name {
                #[test]
                fn agrees_with_kvm() {
                    super::agrees_with_kvm(super::Mode::$mode);
                }

                #[test]
                fn agrees_with_the_record() {
                    super::agrees_with_the_record(super::Mode::$mode);
                }
            }
        )*
    };
}

modes! {
    real_mode: Real,
    protected_mode_of_16_bits: Protected16,
    protected_mode_of_32_bits: Protected32,
    long_mode: Long,
    user_mode: User,
}
