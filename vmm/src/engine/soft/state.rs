//! The architectural state of one processor, and what is derived from it for speed.

use super::code_pages::{CodePages, Key};
use super::debug::Breakpoints;
use super::features::{Feature, Features};
use super::flags::{AC, FIXED, IF, IOPL, STATUS, Status, TF, VM};
use super::fpu::Fpu;
use super::mem::{Bus, Tlb};
use super::word::{RDX, RIP, RSP, RegFile, Word};
use crate::engine::{CpuidEntry, Exit, Kick, Unimplemented};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// CR0.
pub(super) mod cr0 {
    pub(in super::super) const PE: u64 = 1 << 0;
    pub(in super::super) const MP: u64 = 1 << 1;
    pub(in super::super) const EM: u64 = 1 << 2;
    pub(in super::super) const TS: u64 = 1 << 3;
    pub(in super::super) const ET: u64 = 1 << 4;
    pub(in super::super) const NE: u64 = 1 << 5;
    pub(in super::super) const WP: u64 = 1 << 16;
    pub(in super::super) const AM: u64 = 1 << 18;
    pub(in super::super) const NW: u64 = 1 << 29;
    pub(in super::super) const CD: u64 = 1 << 30;
    pub(in super::super) const PG: u64 = 1 << 31;
    /// Every bit that has a meaning.
    pub(in super::super) const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4.
pub(super) mod cr4 {
    pub(in super::super) const VME: u64 = 1 << 0;
    pub(in super::super) const PVI: u64 = 1 << 1;
    pub(in super::super) const TSD: u64 = 1 << 2;
    pub(in super::super) const DE: u64 = 1 << 3;
    pub(in super::super) const PSE: u64 = 1 << 4;
    pub(in super::super) const PAE: u64 = 1 << 5;
    pub(in super::super) const MCE: u64 = 1 << 6;
    pub(in super::super) const PGE: u64 = 1 << 7;
    pub(in super::super) const PCE: u64 = 1 << 8;
    pub(in super::super) const OSFXSR: u64 = 1 << 9;
    pub(in super::super) const OSXMMEXCPT: u64 = 1 << 10;
    pub(in super::super) const UMIP: u64 = 1 << 11;
    pub(in super::super) const LA57: u64 = 1 << 12;
    pub(in super::super) const FSGSBASE: u64 = 1 << 16;
    pub(in super::super) const PCIDE: u64 = 1 << 17;
    pub(in super::super) const OSXSAVE: u64 = 1 << 18;
    pub(in super::super) const SMEP: u64 = 1 << 20;
    pub(in super::super) const SMAP: u64 = 1 << 21;
}

/// IA32_EFER.
pub(super) mod efer {
    pub(in super::super) const SCE: u64 = 1 << 0;
    pub(in super::super) const LME: u64 = 1 << 8;
    pub(in super::super) const LMA: u64 = 1 << 10;
    pub(in super::super) const NXE: u64 = 1 << 11;
}

/// Exception vectors.
pub(super) mod vector {
    pub(in super::super) const DE: u8 = 0;
    pub(in super::super) const DB: u8 = 1;
    pub(in super::super) const NMI: u8 = 2;
    pub(in super::super) const BP: u8 = 3;
    pub(in super::super) const OF: u8 = 4;
    pub(in super::super) const BR: u8 = 5;
    pub(in super::super) const UD: u8 = 6;
    pub(in super::super) const NM: u8 = 7;
    pub(in super::super) const DF: u8 = 8;
    pub(in super::super) const TS: u8 = 10;
    pub(in super::super) const NP: u8 = 11;
    pub(in super::super) const SS: u8 = 12;
    pub(in super::super) const GP: u8 = 13;
    pub(in super::super) const PF: u8 = 14;
    pub(in super::super) const MF: u8 = 16;
    pub(in super::super) const AC: u8 = 17;
    pub(in super::super) const XM: u8 = 19;
}

/// Segment registers by their number in instructions; LDTR and TR share the array.
pub(super) const ES: u8 = 0;
pub(super) const CS: u8 = 1;
pub(super) const SS: u8 = 2;
pub(super) const DS: u8 = 3;
pub(super) const FS: u8 = 4;
pub(super) const GS: u8 = 5;
pub(super) const LDTR: u8 = 6;
pub(super) const TR: u8 = 7;

/// Bits of [`Seg::access`] (VMX access rights, SDM 3C 25.4.1).
pub(super) mod access {
    /// Type: accessed, for code and data.
    pub(in super::super) const ACCESSED: u32 = 1 << 0;
    /// Type: writable data or readable code.
    pub(in super::super) const RW: u32 = 1 << 1;
    /// Type: expand-down data or conforming code.
    pub(in super::super) const EXPAND_DOWN: u32 = 1 << 2;
    pub(in super::super) const CONFORMING: u32 = 1 << 2;
    pub(in super::super) const CODE: u32 = 1 << 3;
    /// S: code or data, not system.
    pub(in super::super) const CODE_OR_DATA: u32 = 1 << 4;
    pub(in super::super) const PRESENT: u32 = 1 << 7;
    pub(in super::super) const LONG: u32 = 1 << 13;
    /// D/B.
    pub(in super::super) const BIG: u32 = 1 << 14;
    pub(in super::super) const GRANULAR: u32 = 1 << 15;
    pub(in super::super) const UNUSABLE: u32 = 1 << 16;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seg {
    pub(super) selector: u16,
    pub(super) base: u64,
    pub(super) limit: u32,
    pub(super) access: u32,
    /// The base that the present mode applies.
    pub(super) origin: u64,
    /// An access whose last byte lies below this offset may read; 0 if that needs a closer look.
    pub(super) readable: u64,
    /// The same for writes.
    pub(super) writable: u64,
}

impl Seg {
    pub(super) fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
    pub(super) fn has(&self, bits: u32) -> bool {
        self.access & bits == bits
    }
    pub(super) fn usable(&self) -> bool {
        !self.has(access::UNUSABLE)
    }
    /// Type and S: the low five bits of the access rights.
    pub(super) fn kind(&self) -> u32 {
        self.access & 0x1F
    }

    /// A segment register that a null selector was loaded into.
    pub(super) fn null(selector: u16, dpl: u8) -> Seg {
        Seg { selector, access: access::UNUSABLE | u32::from(dpl) << 5, ..Seg::default() }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Table {
    pub(super) base: u64,
    pub(super) limit: u16,
}

/// The size of addresses and operands that CS selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum CodeSize {
    #[default]
    Bits16,
    Bits32,
    Bits64,
}

/// Why a handler did not run to its end in the ordinary way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The instruction raised [`Cpu::raised`] and changed nothing.
    Fault,
    /// The run ends with [`Cpu::exit`]; the instruction changed nothing and will be executed again.
    Again,
    /// The run ends with [`Cpu::exit`]; the instruction is done.
    Leave,
}

/// What a handler returns.
pub(super) type Step = Result<(), Stop>;

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raised {
    pub(super) vector: u8,
    pub(super) error_code: Option<u32>,
    /// What CR2 becomes, for #PF.
    pub(super) address: u64,
}

/// Model-specific registers that are plain storage, or nearly.
#[derive(Clone, Debug, Default)]
pub(super) struct Msrs {
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) fmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) sysenter_cs: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) pat: u64,
    pub(super) spec_ctrl: u64,
    pub(super) tsc_offset: u64,
    pub(super) tsc_aux: u64,
    pub(super) mtrr_def_type: u64,
    pub(super) mtrr_fixed: [u64; 11],
    pub(super) mtrr_variable: [u64; 2 * super::system::VARIABLE_MTRRS],
}

/// An access that left the engine, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) kind: AccessKind,
    pub(super) size: u8,
    /// The value read, or the value written.
    pub(super) value: u64,
    /// For an instruction that does nothing else: where the next one is. It is finished as soon as the answer comes.
    pub(super) retires_at: Option<u64>,
}

impl Access {
    pub(super) fn is_read(self) -> bool {
        matches!(self.kind, AccessKind::MmioRead { .. } | AccessKind::PortIn { .. } | AccessKind::RdMsr { .. })
    }
}

/// Where an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessKind {
    MmioRead { gpa: u64 },
    MmioWrite { gpa: u64 },
    PortIn { port: u16 },
    PortOut { port: u16 },
    RdMsr { index: u32 },
    WrMsr { index: u32 },
}

/// One processor.
pub(super) struct Cpu {
    pub(super) regs: RegFile,
    pub(super) status: Status,
    /// RFLAGS without what [`Cpu::status`] holds.
    pub(super) eflags: u64,
    pub(super) segs: [Seg; 8],
    pub(super) gdtr: Table,
    pub(super) idtr: Table,
    pub(super) cr0: u64,
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    /// Bits 3:0: the task priority class.
    pub(super) cr8: u64,
    pub(super) dr: [u64; 8],
    pub(super) efer: u64,
    /// The page-directory-pointer-table entries of PAE paging.
    pub(super) pdpte: [u64; 4],
    /// Control registers were set from outside since the entries were loaded.
    pub(super) pdptes_stale: bool,
    pub(super) entry_instruction_length: u64,
    pub(super) msrs: Msrs,
    /// Apart, so that what integer instructions use lies close together.
    pub(super) fpu: Box<Fpu>,
    /// Interrupts are blocked for one instruction, after STI or MOV SS.
    pub(super) shadow: bool,
    /// NMIs are blocked until IRET.
    pub(super) nmi_blocked: bool,

    /// The instruction that executes began with TF set, and a single-step trap comes behind it.
    pub(super) trap_due: bool,
    /// SS was loaded: debug exceptions are put off by one instruction.
    pub(super) debug_inhibited: bool,
    /// Bits of DR6 for data breakpoints that the present instruction touched.
    pub(super) debug_hits: u64,
    /// What the debug registers watch.
    pub(super) breakpoints: Breakpoints,

    // Events on their way in.
    pub(super) pending_exception: Option<Raised>,
    pub(super) pending_nmi: bool,
    pub(super) pending_interrupt: Option<u8>,
    pub(super) window_wanted: bool,

    // Derived from the above by `derive`.
    pub(super) cpl: u8,
    pub(super) code_size: CodeSize,
    /// EFER.LMA.
    pub(super) long: bool,
    /// CR0.PE.
    pub(super) protected: bool,
    /// All ones in 64-bit mode, else 32 ones.
    pub(super) linear_mask: u64,
    /// How many high bits of a linear address repeat the one below them.
    pub(super) unused_linear_bits: u8,
    pub(super) stack_mask: u64,
    /// The highest offset that CS may be executed at.
    pub(super) code_limit: u64,
    /// The context that data accesses are made in: see [`super::mem::context`].
    pub(super) data_context: u64,
    /// What besides the address selects a decoded block: code size and whether CPL is 3.
    pub(super) fetch_context: u32,
    /// What the run loop must look at between blocks: see [`super::exec::attention`].
    pub(super) attention: u32,
    /// A register was set from outside since `derive` ran.
    pub(super) stale: bool,

    // Translation caches.
    pub(super) tlb: Tlb,
    pub(super) code_pages: CodePages,
    /// What entries of `code_pages` must carry to be valid now.
    pub(super) fetch_keys: [Key; 2],
    pub(super) seen_map_epoch: u64,
    pub(super) seen_marks_epoch: u64,
    pub(super) seen_code_generation: u64,

    // The instruction in flight.
    /// Accesses of the present instruction that the outside has answered.
    pub(super) log: Vec<Access>,
    /// How many entries of the log this execution of the instruction has used.
    pub(super) log_used: usize,
    /// The log is of the delivery of an interrupt, not of an instruction.
    pub(super) delivering: bool,
    /// The access that the last exit asked for.
    pub(super) asked: Option<Access>,
    pub(super) raised: Raised,
    /// What a task switch found wrong with the new task, or its debug trap: comes before its first instruction.
    pub(super) posted: Option<Raised>,
    pub(super) exit: Option<Exit>,
    /// How many instructions of the present block shall execute; a branch out of its middle, or a store into decoded code,
    /// sets it to 0.
    pub(super) block_left: usize,

    // Time and accounting.
    pub(super) now_ns: u64,
    /// Instructions executed in this run.
    pub(super) executed: u64,
    /// How many may be executed in this run.
    pub(super) budget: u64,
    /// Blocks executed in this run.
    pub(super) blocks: u64,
    /// Instructions executed before this run.
    pub(super) executed_before: u64,

    pub(super) cpuid: Vec<CpuidEntry>,
    /// Bits of a physical address that exist.
    pub(super) physical_mask: u64,
    /// What the CPUID table announces.
    pub(super) features: Features,
    /// The number that the code cache gave this set of features.
    pub(super) feature_set: u8,
    pub(super) unimplemented: Vec<Unimplemented>,
    /// What the last fault was raised for, when the processor lacks it.
    pub(super) lacking: Option<String>,
    pub(super) kick: Arc<KickFlag>,
}

/// Asks a processor to leave its run.
#[derive(Debug, Default)]
pub(super) struct KickFlag(AtomicBool);

impl KickFlag {
    #[inline(always)]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    /// Whether it was set; it is not any more.
    #[inline(always)]
    pub(super) fn take(&self) -> bool {
        self.is_set() && self.0.swap(false, Ordering::AcqRel)
    }
}

impl Kick for KickFlag {
    fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

const UNUSED_LINEAR_BITS_48: u8 = 16;
const UNUSED_LINEAR_BITS_57: u8 = 7;

impl Cpu {
    /// A processor in the state after power-up (SDM 3A 9.1.1, table 9-1).
    pub(super) fn new() -> Cpu {
        let data = Seg { limit: 0xFFFF, access: 0x93, ..Seg::default() };
        let mut regs = [0; 32];
        regs[usize::from(RIP)] = 0xFFF0;
        // Family 6, as in CPUID.01H:EAX.
        regs[usize::from(RDX)] = 0x600;
        let mut segs = [data; 8];
        segs[usize::from(CS)] = Seg { selector: 0xF000, base: 0xFFFF_0000, access: 0x9B, ..data };
        segs[usize::from(LDTR)] = Seg { access: 0x82, ..data };
        segs[usize::from(TR)] = Seg { access: 0x8B, ..data };
        let table = Table { base: 0, limit: 0xFFFF };
        let mut cpu = Cpu {
            regs,
            status: Status::from_bits(0),
            eflags: FIXED,
            segs,
            gdtr: table,
            idtr: table,
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0, 0, 0, 0, 0, 0, super::system::DR6_FIXED, super::system::DR7_FIXED],
            efer: 0,
            pdpte: [0; 4],
            pdptes_stale: false,
            entry_instruction_length: 0,
            msrs: Msrs { pat: 0x0007_0406_0007_0406, ..Msrs::default() },
            fpu: Box::new(Fpu::new()),
            shadow: false,
            nmi_blocked: false,
            trap_due: false,
            debug_inhibited: false,
            debug_hits: 0,
            breakpoints: Breakpoints::default(),
            pending_exception: None,
            pending_nmi: false,
            pending_interrupt: None,
            window_wanted: false,
            cpl: 0,
            code_size: CodeSize::Bits16,
            long: false,
            protected: false,
            linear_mask: 0,
            unused_linear_bits: 0,
            stack_mask: 0,
            code_limit: 0,
            data_context: 0,
            fetch_context: 0,
            attention: 0,
            stale: false,
            tlb: Tlb::new(),
            code_pages: CodePages::new(),
            fetch_keys: [Key::default(); 2],
            seen_map_epoch: 0,
            seen_marks_epoch: 0,
            seen_code_generation: 0,
            log: Vec::new(),
            log_used: 0,
            delivering: false,
            asked: None,
            raised: Raised { vector: 0, error_code: None, address: 0 },
            posted: None,
            exit: None,
            block_left: 0,
            now_ns: 0,
            executed: 0,
            budget: 0,
            blocks: 0,
            executed_before: 0,
            cpuid: Vec::new(),
            physical_mask: 0,
            features: Features::of(&[]),
            feature_set: 0,
            unimplemented: Vec::new(),
            lacking: None,
            kick: Arc::default(),
        };
        cpu.set_cpuid(&[]);
        cpu.derive();
        cpu
    }

    #[inline(always)]
    pub(super) fn get<T: Word>(&self, number: u8) -> T {
        T::get(&self.regs, number)
    }
    #[inline(always)]
    pub(super) fn put<T: Word>(&mut self, number: u8, value: T) {
        T::put(&mut self.regs, number, value);
    }
    #[inline(always)]
    pub(super) fn rip(&self) -> u64 {
        self.regs[usize::from(RIP)]
    }
    #[inline(always)]
    pub(super) fn set_rip(&mut self, rip: u64) {
        self.regs[usize::from(RIP)] = rip;
    }
    #[inline(always)]
    pub(super) fn rsp(&self) -> u64 {
        self.regs[usize::from(RSP)]
    }
    /// Sets as much of RSP as the stack's address size covers.
    #[inline(always)]
    pub(super) fn set_sp(&mut self, sp: u64) {
        let mask = self.stack_mask;
        let rsp = &mut self.regs[usize::from(RSP)];
        // A 32-bit stack pointer is written like any 32-bit register.
        *rsp = if mask == 0xFFFF { *rsp & !mask | sp & mask } else { sp & mask };
    }
    #[inline(always)]
    pub(super) fn seg(&self, number: u8) -> &Seg {
        &self.segs[usize::from(number & 7)]
    }
    #[inline(always)]
    pub(super) fn seg_mut(&mut self, number: u8) -> &mut Seg {
        &mut self.segs[usize::from(number & 7)]
    }

    pub(super) fn rflags(&self) -> u64 {
        self.eflags | self.status.bits()
    }
    pub(super) fn set_rflags(&mut self, value: u64) {
        self.status = Status::from_bits(value);
        self.eflags = value & !STATUS | FIXED;
        self.derive_flags();
    }
    pub(super) fn iopl(&self) -> u8 {
        ((self.eflags & IOPL) >> 12) as u8
    }
    pub(super) fn interrupts_enabled(&self) -> bool {
        self.eflags & IF != 0
    }

    /// Whether all bits above the linear address of the present paging mode repeat its highest.
    #[inline(always)]
    pub(super) fn canonical(&self, linear: u64) -> bool {
        let unused = u32::from(self.unused_linear_bits & 63);
        (linear as i64) << unused >> unused == linear as i64
    }

    /// The same for the widest linear address that the processor has: what registers hold.
    pub(super) fn canonical_base(&self, linear: u64) -> bool {
        let unused = if self.features.has(Feature::La57) { UNUSED_LINEAR_BITS_57 } else { UNUSED_LINEAR_BITS_48 };
        (linear as i64) << unused >> unused == linear as i64
    }

    /// Virtual-8086 mode (SDM 3A 20.2).
    pub(super) fn is_virtual(&self) -> bool {
        self.eflags & VM != 0 && self.protected
    }

    /// Whether segments are what they were on the 8086: 64 Kbytes from 16 times the selector.
    pub(super) fn has_real_segments(&self) -> bool {
        !self.protected || self.is_virtual()
    }

    /// 64-bit mode (not compatibility mode).
    #[inline(always)]
    pub(super) fn is_64(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Recomputes everything that follows from segments, control registers and flags.
    pub(super) fn derive(&mut self) {
        self.protected = self.cr0 & cr0::PE != 0;
        self.long = self.efer & efer::LME != 0 && self.cr0 & cr0::PG != 0;
        self.efer = self.efer & !efer::LMA | if self.long { efer::LMA } else { 0 };
        let cs = *self.seg(CS);
        self.code_size = if self.long && cs.has(access::LONG) {
            CodeSize::Bits64
        } else if cs.has(access::BIG) {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.code_limit = if self.is_64() { u64::MAX } else { u64::from(cs.limit) };
        let ss = *self.seg(SS);
        self.cpl = if self.protected { ss.dpl() } else { 0 };
        self.stack_mask = match () {
            () if self.is_64() => u64::MAX,
            () if ss.has(access::BIG) => 0xFFFF_FFFF,
            () => 0xFFFF,
        };
        self.linear_mask = if self.is_64() { u64::MAX } else { 0xFFFF_FFFF };
        let la57 = self.cr4 & cr4::LA57 != 0;
        self.unused_linear_bits = if la57 { UNUSED_LINEAR_BITS_57 } else { UNUSED_LINEAR_BITS_48 };
        for number in ES..=TR {
            self.derive_seg(number);
        }
        self.fetch_context = self.code_size as u32 | u32::from(self.cpl == 3) << 2;
        self.derive_fetch_keys();
        self.derive_flags();
        self.stale = false;
    }

    /// Recomputes what follows from one segment register's hidden part.
    pub(super) fn derive_seg(&mut self, number: u8) {
        let (protected, is_64) = (self.protected, self.is_64());
        let seg = self.seg_mut(number);
        let system = number >= LDTR;
        seg.origin = if is_64 && !(system || number == FS || number == GS) { 0 } else { seg.base };
        let end = u64::from(seg.limit) + 1;
        (seg.readable, seg.writable) = if is_64 && !system {
            (u64::MAX, u64::MAX)
        } else if !protected || system {
            (end, end)
        } else if !seg.usable() || !seg.has(access::PRESENT | access::CODE_OR_DATA) {
            (0, 0)
        } else if seg.has(access::CODE) {
            (if seg.has(access::RW) { end } else { 0 }, 0)
        } else if seg.has(access::EXPAND_DOWN) {
            (0, 0)
        } else {
            (end, if seg.has(access::RW) { end } else { 0 })
        };
        if number == SS {
            self.stack_mask = match () {
                () if is_64 => u64::MAX,
                () if self.seg(SS).has(access::BIG) => 0xFFFF_FFFF,
                () => 0xFFFF,
            };
        }
    }

    /// Recomputes what follows from RFLAGS (and CPL).
    pub(super) fn derive_flags(&mut self) {
        use super::{exec::attention, mem::context};
        let user = self.cpl == 3;
        let ac = self.eflags & AC != 0;
        let mut data = context::VALID;
        if user {
            data |= context::USER;
            if ac && self.cr0 & cr0::AM != 0 {
                data |= context::ALIGNED;
            }
        } else if self.cr4 & cr4::SMAP != 0 && !ac {
            data |= context::SMAP;
        }
        self.data_context = data;
        let trap = if self.eflags & TF != 0 { attention::TRAP } else { 0 };
        self.attention = self.attention & !attention::TRAP | trap;
    }

    /// Forgets all translations.
    pub(super) fn flush_translations(&mut self) {
        self.tlb.flush();
        self.code_pages.flush();
        self.derive_fetch_keys();
    }

    /// Forgets the translations of pages that are not global.
    pub(super) fn flush_local_translations(&mut self) {
        self.tlb.flush_local();
        self.code_pages.flush_local();
        self.derive_fetch_keys();
    }

    /// Goes from the address space with one PCID to that with another. `keep` if the latter's translations hold still.
    pub(super) fn switch_address_space(&mut self, from: u16, to: u16, keep: bool) {
        if from != to || !keep {
            self.tlb.flush_local();
        }
        self.code_pages.switch(from, to, keep);
        self.derive_fetch_keys();
    }

    /// Forgets the translation of the page that an address lies in.
    pub(super) fn forget_translation(&mut self, linear: u64) {
        self.tlb.forget(linear);
        self.code_pages.forget(linear);
        self.derive_fetch_keys();
    }

    fn derive_fetch_keys(&mut self) {
        self.fetch_keys = self.code_pages.keys(self.fetch_context);
    }

    /// Catches up with what other processors and the host did since this one last ran.
    pub(super) fn catch_up(&mut self, bus: &Bus) {
        if self.seen_map_epoch != bus.map_epoch() {
            self.seen_map_epoch = bus.map_epoch();
            self.flush_translations();
        }
        self.catch_up_with_marks(bus);
        self.catch_up_with_code(bus);
        if self.stale {
            self.derive();
        }
        self.settle_pdptes(bus);
    }

    /// Pages that hold decoded code now may not be written past the bus any more.
    pub(super) fn catch_up_with_marks(&mut self, bus: &Bus) {
        if self.seen_marks_epoch == bus.marks_epoch() {
            return;
        }
        match bus.marked_since(self.seen_marks_epoch) {
            Some(pages) => pages.for_each(|page| self.tlb.forget_writes_to(page)),
            None => self.tlb.forget_writes(),
        }
        self.seen_marks_epoch = bus.marks_epoch();
    }

    /// Blocks must be compared with memory again, or are gone: no page that is known leads past that.
    pub(super) fn catch_up_with_code(&mut self, bus: &Bus) {
        if self.seen_code_generation != bus.code_generation() {
            self.seen_code_generation = bus.code_generation();
            self.code_pages.flush();
            self.derive_fetch_keys();
        }
    }

    /// Raises an exception without error code.
    #[cold]
    pub(super) fn raise(&mut self, vector: u8) -> Stop {
        self.raised = Raised { vector, error_code: None, address: 0 };
        Stop::Fault
    }
    /// Raises an exception with an error code.
    #[cold]
    pub(super) fn raise_code(&mut self, vector: u8, error_code: u32) -> Stop {
        // In real mode no exception pushes an error code.
        let error_code = self.protected.then_some(error_code);
        self.raised = Raised { vector, error_code, address: 0 };
        Stop::Fault
    }
    /// Raises #GP with this error code.
    pub(super) fn gp(&mut self, error_code: u32) -> Stop {
        self.raise_code(vector::GP, error_code)
    }
    /// Raises #UD.
    pub(super) fn ud(&mut self) -> Stop {
        self.raise(vector::UD)
    }
    /// Ends the run behind this instruction.
    #[cold]
    pub(super) fn leave(&mut self, exit: Exit) -> Stop {
        self.exit = Some(exit);
        Stop::Leave
    }

    /// Records what the processor cannot do. What a guest tries in a loop is recorded once.
    #[cold]
    pub(super) fn record_unimplemented(&mut self, what: &str, rip: u64) {
        if !self.unimplemented.iter().any(|seen| seen.rip == rip && seen.what == what) {
            self.unimplemented.push(Unimplemented { what: what.to_owned(), rip });
        }
    }
    /// Raises #UD for what the processor cannot do, and has it recorded.
    #[cold]
    pub(super) fn not_implemented(&mut self, what: &str) -> Stop {
        self.lacking = Some(what.to_owned());
        self.ud()
    }
    /// Records what a fault was raised for, if it was one that other processors would not have raised. RIP is that of the
    /// instruction again.
    pub(super) fn note_lacking(&mut self) {
        if let Some(what) = self.lacking.take() {
            self.record_unimplemented(&what, self.rip());
        }
    }

    /// Runs something that changes registers step by step; if it stops, the registers are as before.
    pub(super) fn all_or_nothing(&mut self, act: impl FnOnce(&mut Cpu) -> Step) -> Step {
        let saved = (self.regs, self.segs, self.status, self.eflags, self.cpl);
        act(self).inspect_err(|stop| {
            if *stop != Stop::Leave {
                (self.regs, self.segs, self.status, self.eflags, self.cpl) = saved;
                self.derive();
            }
        })
    }
}
