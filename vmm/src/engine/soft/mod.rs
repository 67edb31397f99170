//! The software processor: executes x86 code in real, protected and long mode, deterministically and without help
//! from the host.
//!
//! How an instruction gets executed, from the outside in:
//!
//! 1. A `SoftVcpu` takes its machine's lock and calls the run loop (`exec`). One processor of a machine runs at a time, so
//!    plain memory accesses are atomic.
//! 2. The run loop looks at what is pending (`event` delivers it), then asks `code` for the block at RIP: a run of
//!    predecoded operations, shared by all processors of the machine, found by linear address
//!    through the pages that it knows (`code_pages`), else by physical address. `decode` makes operations (`op`) of iced-x86's instructions.
//! 3. Each operation is a handler and its operands. `alu`, `control`, `string`, `segment`, `system` and `io` hold the
//!    handlers, generic over operand widths (`word`) and kinds. A handler either does all of its instruction or none.
//! 4. Memory goes through `access`: segmentation, then the translation cache (`mem`), else `paging`.
//!
//! x87 and SSE have their registers in `fpu` and their arithmetic in `float`, in integers, so that results are the same bits
//! on every host; `x87` holds their handlers, and `xsave` those that save and restore the registers.
//!
//! What it lacks, and what its CPUID table does not offer (`features`), raises #UD in the guest and is recorded for
//! [`EngineVcpu::take_unimplemented`]. `task` switches hardware tasks.

mod access;
mod alu;
mod code;
mod code_pages;
mod control;
mod debug;
mod decode;
mod event;
mod exec;
pub(crate) mod features;
mod flags;
mod float;
mod fpu;
pub mod invariants;
mod io;
mod mem;
mod op;
mod paging;
mod segment;
mod sse;
mod state;
mod string;
mod system;
mod task;
#[cfg(test)]
mod tests;
mod traps;
mod word;
mod x87;
mod xsave;

use self::code::CodeCache;
pub use self::code::CodeCounters;
use self::mem::{Bus, MapError};
use self::state::{Cpu, LDTR, Raised, Seg, TR, Table};
use self::word::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use super::traps::Watch;
use super::{
    Completion, CpuidEntry, Engine, EngineError, EngineVcpu, EngineVm, Exit, FpuState, Inject, Kick, Reg, SegDesc,
    Traps, Unimplemented,
};
use crate::memory::{Protection, Segment};
use parking_lot::Mutex;
use std::sync::Arc;

/// How much virtual time an instruction takes, in nanoseconds.
pub const NS_PER_INSTRUCTION: u64 = 4;

/// The engine that executes guests in software.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftEngine;

impl SoftEngine {
    /// The engine; it has no state of its own.
    #[must_use]
    pub fn new() -> SoftEngine {
        SoftEngine
    }

    /// Makes an empty machine, as [`Engine::create_vm`] does, whose counters can be read.
    #[must_use]
    pub fn machine(&self) -> Arc<SoftVm> {
        Arc::default()
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn backend(&self) -> String {
        format!("software processor of vmm {}", env!("CARGO_PKG_VERSION"))
    }

    fn lacks_traps(&self) -> Result<Option<String>, String> {
        Ok(None)
    }

    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        Ok(self.machine())
    }
}

/// What the processors of a machine share.
#[derive(Default)]
struct Machine {
    bus: Bus,
    code: CodeCache,
}

/// A machine of [`SoftEngine`].
#[derive(Default)]
pub struct SoftVm {
    machine: Arc<Mutex<Machine>>,
}

impl SoftVm {
    /// How the cache of decoded code has done since the machine was made.
    #[must_use]
    pub fn code_counters(&self) -> CodeCounters {
        self.machine.lock().code.counters
    }
}

impl From<MapError> for EngineError {
    fn from(error: MapError) -> EngineError {
        EngineError { what: error.to_string(), source: None }
    }
}

impl EngineVm for SoftVm {
    fn map(
        &self,
        gpa: u64,
        segment: &Arc<Segment>,
        offset: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), EngineError> {
        Ok(self.machine.lock().bus.map(gpa, segment, offset, len, protection.write)?)
    }

    fn unmap(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        Ok(self.machine.lock().bus.unmap(gpa, len)?)
    }

    fn create_vcpu(&self, _id: u32) -> Result<Box<dyn EngineVcpu>, EngineError> {
        // The APIC ID shows only in CPUID, whose table the kernel sets.
        Ok(Box::new(SoftVcpu { cpu: Cpu::new(), machine: Arc::clone(&self.machine), watch: None }))
    }
}

/// A processor of a [`SoftVm`].
struct SoftVcpu {
    cpu: Cpu,
    machine: Arc<Mutex<Machine>>,
    /// A debugger's traps.
    watch: Option<Box<Watch>>,
}

/// The number in instructions of a general register.
fn general(reg: Reg) -> Option<u8> {
    Some(match reg {
        Reg::Rax => RAX,
        Reg::Rbx => RBX,
        Reg::Rcx => RCX,
        Reg::Rdx => RDX,
        Reg::Rsi => RSI,
        Reg::Rdi => RDI,
        Reg::Rbp => RBP,
        Reg::Rsp => RSP,
        Reg::R8 | Reg::R9 | Reg::R10 | Reg::R11 | Reg::R12 | Reg::R13 | Reg::R14 | Reg::R15 => {
            reg as u8 - Reg::R8 as u8 + 8
        }
        _ => return None,
    })
}

/// The number of a segment register, LDTR or TR.
fn segment_number(reg: Reg) -> Option<u8> {
    Some(match reg {
        Reg::Es => state::ES,
        Reg::Cs => state::CS,
        Reg::Ss => state::SS,
        Reg::Ds => state::DS,
        Reg::Fs => state::FS,
        Reg::Gs => state::GS,
        Reg::Ldtr => LDTR,
        Reg::Tr => TR,
        _ => return None,
    })
}

impl SoftVcpu {
    /// A register was set: the instruction in flight is abandoned, and what is derived from registers is stale.
    fn touched(&mut self) {
        self.cpu.asked = None;
        self.cpu.delivering = false;
        self.cpu.forget_accesses();
        self.cpu.stale = true;
    }
}

impl EngineVcpu for SoftVcpu {
    fn reg(&mut self, reg: Reg) -> u64 {
        let cpu = &mut self.cpu;
        if cpu.stale {
            cpu.derive();
        }
        if let Some(number) = general(reg) {
            return cpu.get(number);
        }
        if let Some(number) = segment_number(reg) {
            return u64::from(cpu.seg(number).selector);
        }
        match reg {
            Reg::Cr0 => cpu.cr0,
            Reg::Cr2 => cpu.cr2,
            Reg::Cr3 => cpu.cr3,
            Reg::Cr4 => cpu.cr4,
            Reg::Rip => cpu.rip(),
            Reg::Rflags => cpu.rflags(),
            Reg::Efer => cpu.efer,
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 => cpu.dr[reg as usize - Reg::Dr0 as usize],
            Reg::Dr6 => cpu.dr[6],
            Reg::Dr7 => cpu.dr[7],
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => {
                cpu.settle_pdptes(&self.machine.lock().bus);
                cpu.pdpte[reg as usize - Reg::Pdpte0 as usize]
            }
            Reg::IntrShadow => u64::from(cpu.shadow),
            Reg::EntryInstLength => cpu.entry_instruction_length,
            // GDTR and IDTR have only a descriptor; the others are done above.
            _ => 0,
        }
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        self.touched();
        let cpu = &mut self.cpu;
        if let Some(number) = general(reg) {
            cpu.put(number, value);
            return;
        }
        if let Some(number) = segment_number(reg) {
            cpu.seg_mut(number).selector = value as u16;
            return;
        }
        match reg {
            Reg::Cr0 => cpu.cr0 = value,
            Reg::Cr2 => cpu.cr2 = value,
            Reg::Cr3 => cpu.cr3 = value,
            Reg::Cr4 => cpu.cr4 = value,
            Reg::Rip => {
                cpu.set_rip(value);
                cpu.shadow = false;
                (cpu.pending_exception, cpu.pending_interrupt, cpu.pending_nmi) = (None, None, false);
            }
            Reg::Rflags => cpu.set_rflags(value),
            Reg::Efer => cpu.efer = value,
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 => {
                cpu.dr[reg as usize - Reg::Dr0 as usize] = value;
                cpu.derive_breakpoints();
            }
            Reg::Dr6 => cpu.dr[6] = value,
            Reg::Dr7 => {
                cpu.dr[7] = value;
                cpu.derive_breakpoints();
            }
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => {
                cpu.settle_pdptes(&self.machine.lock().bus);
                cpu.pdpte[reg as usize - Reg::Pdpte0 as usize] = value;
                cpu.flush_translations();
            }
            Reg::IntrShadow => cpu.shadow = value & 1 != 0,
            Reg::EntryInstLength => cpu.entry_instruction_length = value,
            // GDTR and IDTR have only a descriptor; the others are done above.
            _ => {}
        }
        if matches!(reg, Reg::Cr0 | Reg::Cr3 | Reg::Cr4 | Reg::Efer) {
            cpu.pdptes_stale = true;
            cpu.flush_translations();
            cpu.derive_breakpoints();
        }
        cpu.update_attention();
    }

    fn desc(&mut self, reg: Reg) -> SegDesc {
        let table = |table: Table| SegDesc { base: table.base, limit: u32::from(table.limit), access: 0 };
        match segment_number(reg) {
            Some(number) => {
                let Seg { base, limit, access, .. } = *self.cpu.seg(number);
                SegDesc { base, limit, access }
            }
            None if reg == Reg::Gdtr => table(self.cpu.gdtr),
            None if reg == Reg::Idtr => table(self.cpu.idtr),
            None => SegDesc::default(),
        }
    }

    fn set_desc(&mut self, reg: Reg, desc: SegDesc) {
        self.touched();
        let table = Table { base: desc.base, limit: desc.limit as u16 };
        match segment_number(reg) {
            Some(number) => {
                let seg = self.cpu.seg_mut(number);
                *seg = Seg { base: desc.base, limit: desc.limit, access: desc.access, ..*seg };
            }
            None if reg == Reg::Gdtr => self.cpu.gdtr = table,
            None if reg == Reg::Idtr => self.cpu.idtr = table,
            None => {}
        }
    }

    fn fpu(&mut self) -> FpuState {
        FpuState { image: self.cpu.fpu.image_bytes(), xcr0: self.cpu.fpu.xcr0 }
    }

    fn set_fpu(&mut self, state: &FpuState) {
        self.touched();
        self.cpu.fpu.load_image_bytes(&state.image);
        self.cpu.fpu.xcr0 = state.xcr0;
    }

    fn set_cpuid(&mut self, table: &[CpuidEntry]) {
        self.cpu.set_cpuid(table);
    }

    fn set_cr8(&mut self, tpr: u8) {
        self.cpu.cr8 = u64::from(tpr >> 4);
    }

    fn run(&mut self, budget_ns: u64) -> Exit {
        let mut machine = self.machine.lock();
        let Machine { bus, code } = &mut *machine;
        match &mut self.watch {
            None => self.cpu.run(bus, code, budget_ns),
            Some(watch) => self.cpu.run_watched(bus, code, budget_ns, watch),
        }
    }

    fn elapsed_ns(&self) -> u64 {
        self.cpu.executed * NS_PER_INSTRUCTION
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.cpu.executed_before + self.cpu.executed)
    }

    fn set_time(&mut self, now_ns: u64) {
        self.cpu.now_ns = now_ns;
    }

    fn complete(&mut self, completion: Completion) {
        self.cpu.complete(completion);
    }

    fn interruptible(&mut self) -> bool {
        self.cpu.interruptible()
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.cpu.window_wanted = wanted;
        self.cpu.update_attention();
    }

    fn inject(&mut self, event: Inject) {
        let cpu = &mut self.cpu;
        match event {
            Inject::Interrupt(vector) => cpu.pending_interrupt = Some(vector),
            Inject::Nmi => cpu.pending_nmi = true,
            Inject::Exception { vector, error_code } => {
                // It takes the place of the instruction in flight.
                cpu.asked = None;
                cpu.forget_accesses();
                cpu.pending_exception = Some(Raised { vector, error_code, address: cpu.cr2 });
            }
        }
        cpu.update_attention();
    }

    fn set_traps(&mut self, traps: &Traps) {
        let linear = self.linear_rip();
        self.watch = Watch::new(traps, linear, self.watch.as_deref()).map(Box::new);
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        if self.cpu.stale {
            self.cpu.derive();
        }
        let machine = self.machine.lock();
        self.cpu.settle_pdptes(&machine.bus);
        self.cpu.peek_translation(&machine.bus, linear)
    }

    fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        std::mem::take(&mut self.cpu.unimplemented)
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        let kick: Arc<dyn Kick> = Arc::clone(&self.cpu.kick) as Arc<dyn Kick>;
        kick
    }
}
