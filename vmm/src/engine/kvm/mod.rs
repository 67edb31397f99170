//! The host's KVM, without an in-kernel interrupt controller: the local APIC under test is ours.
//!
//! What follows from that (Documentation/virt/kvm/api.rst):
//!
//! * Accesses to the local APIC leave the guest: at its page as MMIO, and its MSRs because KVM either knows no local APIC
//!   to which they belong (`KVM_MSR_EXIT_REASON_INVAL`) or is told to filter them.
//! * Interrupts go in only when the interrupt window is open; the task priority travels through `kvm_run.cr8`.
//! * `KVM_SET_MP_STATE` takes RUNNABLE alone: waiting for a STARTUP is a state of our own, in which `KVM_RUN` is not called.
//!
//! An exit for an access leaves an instruction half done; the next `KVM_RUN` finishes it. Until the access is answered,
//! registers read as KVM has them: before the instruction for a read, but possibly behind it for a write, where the
//! software processor is still before it.

mod cpuid;
mod fpu;
mod kick;
mod registers;
mod run_page;
#[cfg(test)]
mod tests;
mod traps;
mod vcpu;
mod vm;

use super::{Engine, EngineError, EngineVm, Exit, Reg};
use crate::memory::{PAGE_SIZE, Protection, Segment};
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_CAP_SYNC_REGS, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

/// Below this a run might never get into the guest: the clock's signal would always come first.
const SHORTEST_BUDGET: Duration = Duration::from_micros(20);

/// EFER.LMA.
const LMA: u64 = 1 << 10;

/// KVM's modules that run guests with a virtual machine extension, or without one.
const MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", PVM];

/// The module that runs guests without one: their user mode natively, and their ring 0 by emulating it.
const PVM: &str = "kvm_pvm";

/// The host's KVM, which has been seen to work.
pub struct KvmEngine {
    kvm: Kvm,
    backend: &'static str,
    abilities: Arc<Abilities>,
}

/// What the host can do.
struct Abilities {
    /// The CPUID table that it supports.
    cpuid: CpuId,
    /// Whether guests can have paging outside long mode. `kvm_pvm` answers with a shutdown when one turns it on.
    legacy_paging: bool,
    /// Whether a debugger's traps work in user mode. `kvm_pvm` has none there, and what it makes of a step is a #DB of the
    /// guest.
    user_mode_traps: bool,
    /// Whether there are traps at all (`KVM_CAP_SET_GUEST_DEBUG`).
    traps: bool,
}

impl KvmEngine {
    /// Opens KVM and runs three instructions on it, which takes about a millisecond and never more than a second or two.
    ///
    /// # Errors
    /// What does not work, in one sentence.
    pub fn probe() -> Result<KvmEngine, String> {
        let engine = KvmEngine::open()?;
        engine.try_three_instructions()?;
        Ok(engine)
    }

    fn open() -> Result<KvmEngine, String> {
        let kvm = Kvm::new().map_err(|error| format!("Cannot open /dev/kvm: {}", io::Error::from(error)))?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(format!("KVM has API version {version}, not {KVM_API_VERSION}"));
        }
        for cap in vm::REQUIRED {
            if !kvm.check_extension(*cap) {
                return Err(format!("KVM lacks the capability {cap:?}"));
            }
        }
        if kvm.check_extension_raw(KVM_CAP_SYNC_REGS.into()) & run_page::SYNCED as i32 != run_page::SYNCED as i32 {
            return Err("KVM does not share the registers of vCPUs".into());
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| format!("KVM does not tell its CPUID table: {}", io::Error::from(error)))?;
        let loaded = MODULES.into_iter().find(|module| Path::new("/sys/module").join(module).exists());
        let backend = loaded.unwrap_or("kvm");
        let traps = kvm.check_extension(Cap::SetGuestDebug);
        let abilities = Abilities { cpuid, legacy_paging: backend != PVM, user_mode_traps: backend != PVM, traps };
        Ok(KvmEngine { kvm, backend, abilities: Arc::new(abilities) })
    }

    fn try_three_instructions(&self) -> Result<(), String> {
        const CODE: u64 = 0;
        let words = |error: EngineError| match error.source {
            Some(source) => format!("{}: {source}", error.what),
            None => error.what,
        };
        let segment = Segment::new(PAGE_SIZE as usize).map_err(|error| format!("Cannot allocate a page: {error}"))?;
        // mov ax, 2Ah; inc ax; hlt
        assert!(segment.write(CODE, &[0xb8, 0x2a, 0x00, 0x40, 0xf4]), "five bytes fit into a page");
        let vm = self.create_vm().map_err(words)?;
        vm.map(0, &Arc::new(segment), 0, PAGE_SIZE, Protection { write: true }).map_err(words)?;
        let mut vcpu = vm.create_vcpu(0).map_err(words)?;
        let mut cs = vcpu.desc(Reg::Cs);
        cs.base = 0;
        vcpu.set_desc(Reg::Cs, cs);
        vcpu.set_reg(Reg::Cs, 0);
        vcpu.set_reg(Reg::Rip, CODE);
        match (vcpu.run(1_000_000_000), vcpu.reg(Reg::Rax) & 0xffff) {
            (Exit::Hlt, 0x2b) => Ok(()),
            (Exit::Hlt, ax) => Err(format!("KVM computes 2Ah + 1 = {ax:X}h")),
            (Exit::Budget, _) => Err("KVM does not run three instructions in a second".into()),
            (Exit::Failed(what), _) => Err(format!("KVM does not run three instructions: {what}")),
            (exit, _) => Err(format!("KVM does not run three instructions: it exits with {exit:?}")),
        }
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn backend(&self) -> String {
        self.backend.to_owned()
    }

    fn lacks_traps(&self) -> Result<Option<String>, String> {
        let Abilities { user_mode_traps, traps, .. } = *self.abilities;
        if !traps {
            return Err("KVM lacks the capability KVM_CAP_SET_GUEST_DEBUG".to_owned());
        }
        let lacks = "stops the guest's ring 3 (in long mode) for no breakpoint, and a step there goes on until the guest leaves it";
        Ok((!user_mode_traps).then(|| format!("{} {lacks}", self.backend)))
    }

    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        Ok(Arc::new(vm::Vm::new(&self.kvm, Arc::clone(&self.abilities))?))
    }
}

impl fmt::Debug for KvmEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvmEngine({})", self.backend)
    }
}

/// An error of a KVM call.
fn refused(what: impl Into<String>, source: impl Into<io::Error>) -> EngineError {
    EngineError { what: what.into(), source: Some(source.into()) }
}
