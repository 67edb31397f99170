//! What executes guest instructions. One trait, two implementations: [`soft`], the software processor, and `kvm`.
//!
//! The contract that both keep, and that the kernel relies on:
//!
//! * An engine knows nothing of local APICs, tasks or time. It runs until something happens that it cannot do itself, and
//!   says so with an [`Exit`].
//! * An exit that asks for something ([`Exit::IoIn`], [`Exit::MmioRead`], [`Exit::RdMsr`]…) is answered with
//!   [`EngineVcpu::complete`] before the next [`EngineVcpu::run`]; so is a write. Until that next `run` has finished the
//!   instruction, [`EngineVcpu::interruptible`] is false.
//! * Setting a register abandons whatever instruction was in flight. Setting RIP also drops the events that were injected and
//!   not delivered yet, and the interrupt shadow: they belonged to where the vCPU was, and a vCPU that is reset must not start
//!   with them.

#[cfg(test)]
mod conformance;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod soft;
mod traps;

pub use traps::{Trap, Traps};

use crate::memory::{Protection, Segment};
use std::fmt;
use std::sync::Arc;

macro_rules! registers {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// A register by the number that the ioctl boundary gives it (`enum vm_reg_name`, FreeBSD 13).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the names are the registers' own")]
        pub enum Reg {
            $($(#[$meta])* $name,)*
        }

        impl Reg {
            /// All registers, in the order of their numbers.
            pub const ALL: [Reg; [$(Reg::$name),*].len()] = [$(Reg::$name),*];
        }
    };
}

registers! {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Cr0,
    Cr3,
    Cr4,
    Dr7,
    Rsp,
    Rip,
    Rflags,
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
    Idtr,
    Gdtr,
    Efer,
    Cr2,
    Pdpte0,
    Pdpte1,
    Pdpte2,
    Pdpte3,
    /// Bit 0: interrupts are blocked for one instruction by STI or MOV SS.
    IntrShadow,
    Dr0,
    Dr1,
    Dr2,
    Dr3,
    Dr6,
    EntryInstLength,
}

impl Reg {
    /// The register with this number.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Reg> {
        Reg::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Whether the register has a descriptor (base, limit, access) that can be set.
    #[must_use]
    pub fn has_descriptor(self) -> bool {
        (Reg::Es as u8..=Reg::Gdtr as u8).contains(&(self as u8))
    }
}

/// The hidden part of a segment register, or GDTR and IDTR (`struct seg_desc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegDesc {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// VMX access rights: bits 0–4 type and S, 5–6 DPL, 7 present, 13 L, 14 D/B, 15 G, 16 unusable (SDM 3C 25.4.1).
    pub access: u32,
}

/// The x87, MMX and SSE registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpuState {
    /// The image that FXSAVE64 stores (SDM 2A, FXSAVE; 64-bit offsets). Bytes 416 to 511 are 0.
    pub image: [u8; 512],
    /// XCR0.
    pub xcr0: u64,
}

/// One row of the CPUID table that a vCPU answers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX on entry.
    pub leaf: u32,
    /// ECX on entry; `None` when the leaf does not look at it.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX on return. CPUID.1:ECX.OSXSAVE is the guest's CR4.OSXSAVE, whatever stands here; nothing else is
    /// adjusted.
    pub regs: [u32; 4],
}

/// An event to deliver at the start of the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// An external interrupt; only when [`EngineVcpu::interruptible`] said so.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception, with its error code if it pushes one.
    Exception {
        /// Vector, 0 to 31.
        vector: u8,
        /// Error code to push.
        error_code: Option<u32>,
    },
}

/// The answer to an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The value that a read returns, in its low bytes.
    Value(u64),
    /// The write has been done.
    Done,
    /// The instruction faults with #GP(0) instead of completing.
    GeneralProtection,
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are documented with their variant")]
pub enum Exit {
    /// IN from a port; `size` in bytes (1, 2 or 4).
    IoIn { port: u16, size: u8 },
    /// OUT to a port.
    IoOut { port: u16, size: u8, data: u32 },
    /// Read from a guest physical address without memory; `size` in bytes (1 to 8), never across a page.
    MmioRead { gpa: u64, size: u8 },
    /// Write to a guest physical address without writable memory.
    MmioWrite { gpa: u64, size: u8, data: u64 },
    /// Instruction fetch from a guest physical address without memory. Running again fetches again.
    MmioFetch { gpa: u64 },
    /// RDMSR of a register that the engine does not keep (`Completion::Value` or `GeneralProtection`).
    RdMsr { index: u32 },
    /// WRMSR of a register that the engine does not keep (`Completion::Done` or `GeneralProtection`).
    WrMsr { index: u32, value: u64 },
    /// CR8 was written; the TPR is now `tpr`, whose bits 7:4 are CR8 (SDM 3A 11.8.6.1).
    TprWrite { tpr: u8 },
    /// HLT was executed; the next run goes on behind it.
    Hlt,
    /// PAUSE or MWAIT was executed, or a branch to itself; the next run goes on. KVM never reports it.
    Pause,
    /// A triple fault.
    Shutdown,
    /// Interrupts can be injected now, as [`EngineVcpu::request_interrupt_window`] asked.
    InterruptWindow,
    /// The budget is spent.
    Budget,
    /// Somebody called [`Kick::kick`].
    Kicked,
    /// A trap was met that [`EngineVcpu::set_traps`] asked for.
    Trap(Trap),
    /// The engine cannot go on, through its own fault or the host's.
    Failed(String),
}

/// Something that the engine could not do faithfully and that must not pass unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unimplemented {
    /// What it was, in the manual's words: the mnemonic of an instruction, as a rule.
    pub what: String,
    /// The guest's RIP.
    pub rip: u64,
}

/// How an engine failed on the host's side.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct EngineError {
    /// What could not be done, in one sentence.
    pub what: String,
    /// What the host said.
    #[source]
    pub source: Option<std::io::Error>,
}

/// Makes virtual machines.
pub trait Engine: Send + Sync + fmt::Debug {
    /// The engine's name in cells: `soft` or `kvm`.
    fn name(&self) -> &'static str;

    /// What stands behind the engine, for reports: the crate's own processor, or the host's KVM module.
    fn backend(&self) -> String;

    /// What [`EngineVcpu::set_traps`] does not do here though it should, in one sentence.
    ///
    /// # Errors
    /// Why it does nothing at all, in one sentence.
    fn lacks_traps(&self) -> Result<Option<String>, String>;

    /// Makes an empty virtual machine.
    ///
    /// # Errors
    /// When the host refuses.
    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError>;
}

/// One virtual machine of an engine.
pub trait EngineVm: Send + Sync {
    /// Maps `len` bytes of a segment from `offset` at guest physical `gpa`; all page aligned, overlapping nothing.
    ///
    /// # Errors
    /// When the host refuses.
    fn map(
        &self,
        gpa: u64,
        segment: &Arc<Segment>,
        offset: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), EngineError>;

    /// Removes a mapping made by [`EngineVm::map`], whole.
    ///
    /// # Errors
    /// When the host refuses.
    fn unmap(&self, gpa: u64, len: u64) -> Result<(), EngineError>;

    /// Makes a vCPU, in the power-up state. `id` is its APIC ID.
    ///
    /// # Errors
    /// When the host refuses.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn EngineVcpu>, EngineError>;
}

/// One vCPU of an engine. Used by one task at a time; only its [`Kick`] is shared.
pub trait EngineVcpu: Send {
    /// Reads a register; the selector for a segment register.
    fn reg(&mut self, reg: Reg) -> u64;

    /// Writes a register; the selector for a segment register. The hidden part does not change.
    fn set_reg(&mut self, reg: Reg, value: u64);

    /// Reads the hidden part of a segment register, GDTR or IDTR.
    fn desc(&mut self, reg: Reg) -> SegDesc;

    /// Writes the hidden part of a segment register, GDTR or IDTR.
    fn set_desc(&mut self, reg: Reg, desc: SegDesc);

    /// Reads the x87, MMX and SSE registers.
    fn fpu(&mut self) -> FpuState;

    /// Writes the x87, MMX and SSE registers. MXCSR bits that do not exist are dropped.
    fn set_fpu(&mut self, state: &FpuState);

    /// Replaces the CPUID table.
    fn set_cpuid(&mut self, table: &[CpuidEntry]);

    /// Sets CR8 from bits 7:4 of the local APIC's TPR.
    fn set_cr8(&mut self, tpr: u8);

    /// The linear address of the next instruction.
    fn linear_rip(&mut self) -> u64 {
        self.desc(Reg::Cs).base.wrapping_add(self.reg(Reg::Rip))
    }

    /// Runs the guest for at most `budget_ns` nanoseconds of the engine's time, at least one instruction unless a trap comes
    /// before it.
    fn run(&mut self, budget_ns: u64) -> Exit;

    /// How much time the last run took, in nanoseconds of virtual time. 0 where time is real.
    fn elapsed_ns(&self) -> u64;

    /// How many instructions the vCPU has executed since it was made; `None` when the engine cannot tell.
    fn instructions(&self) -> Option<u64>;

    /// Tells the engine what time the run starts at, in nanoseconds: the base of the guest's TSC. Ignored where the TSC is
    /// the host's.
    fn set_time(&mut self, now_ns: u64);

    /// Answers the last exit.
    fn complete(&mut self, completion: Completion);

    /// Whether an external interrupt could be delivered now: RFLAGS.IF set, no interrupt shadow, no instruction in flight, no
    /// other event on its way in.
    fn interruptible(&mut self) -> bool;

    /// Whether a run shall end with [`Exit::InterruptWindow`] as soon as [`EngineVcpu::interruptible`] becomes true.
    fn request_interrupt_window(&mut self, wanted: bool);

    /// Delivers an event at the start of the next run.
    fn inject(&mut self, event: Inject);

    /// Sets what ends runs with [`Exit::Trap`], in place of what was set before; at first nothing does.
    fn set_traps(&mut self, traps: &Traps);

    /// Translates a linear address for the vCPU's present mode and privilege, without setting accessed or dirty bits.
    fn translate(&mut self, linear: u64) -> Option<u64>;

    /// What the engine could not do since the last call.
    fn take_unimplemented(&mut self) -> Vec<Unimplemented>;

    /// The handle with which others end a run.
    fn kick_handle(&self) -> Arc<dyn Kick>;
}

/// Ends a run from another task.
pub trait Kick: Send + Sync {
    /// The present run, or the next if none is under way, ends with [`Exit::Kicked`] soon.
    fn kick(&self);
}
