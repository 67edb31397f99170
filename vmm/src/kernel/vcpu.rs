//! One vCPU: `struct vcpu` and what it is doing.

use super::run::Parked;
use super::run_state::RunState;
use crate::abi::{Errno, cap, illumos};
use crate::cpuset::CpuSet;
use crate::device::vlapic::Vlapic;
use crate::engine::{Completion, EngineVcpu, Exit, Inject, Kick, Reg, SegDesc};
use crate::trace::Seq;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who may touch a vCPU (`enum vcpu_state`): IDLE nobody yet, FROZEN the holder of its lock, RUNNING the guest, SLEEPING
/// its thread inside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VcpuState {
    Idle,
    Frozen,
    Running,
    Sleeping,
}

impl VcpuState {
    /// `vcpu_set_state_locked`: IDLE ↔ FROZEN, FROZEN ↔ RUNNING, FROZEN ↔ SLEEPING; anything else is EBUSY. \[read]
    pub(super) fn change(&mut self, new: VcpuState) -> Result<(), Errno> {
        use VcpuState::*;
        let allowed = matches!((*self, new), (Idle | Running | Sleeping, Frozen) | (Frozen, Idle | Running | Sleeping));
        if !allowed {
            return Err(Errno::EBUSY);
        }
        *self = new;
        Ok(())
    }
}

/// Start-up state of a local APIC until c0f35dbf19c3 (`enum boot_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum BootState {
    /// BS_INIT: an AP that waits for INIT.
    Init,
    /// BS_SIPI: an AP that waits for STARTUP.
    Sipi,
    /// BS_RUNNING.
    Running,
}

/// Capabilities as VM_SET_CAPABILITY set them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    bits: u32,
}

impl Capabilities {
    pub(super) fn has(self, cap: i32) -> bool {
        self.bits & 1 << cap != 0
    }

    fn set(&mut self, cap: i32, value: bool) {
        self.bits = self.bits & !(1 << cap) | u32::from(value) << cap;
    }
}

/// `vmx_setcap`: what the processor backend says to a capability within the kernel's range. RFLAGS_TF is for AMD alone, and one that the
/// backend does not know is ENOENT.
fn backend_supports(captype: i32) -> Result<(), Errno> {
    match captype {
        cap::RDPID | cap::RDTSCP => Err(Errno::EOPNOTSUPP),
        cap::RFLAGS_TF => Err(Errno::ENOENT),
        _ => Ok(()),
    }
}

/// An instruction that userspace completes: an IN or RDMSR whose result it writes to RAX and RDX before it runs the vCPU
/// again, or an OUT or WRMSR that it may still turn into a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) rax: u64,
    pub(super) rdx: u64,
    pub(super) kind: InFlightKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InFlightKind {
    In,
    RdMsr,
    WrMsr,
}

impl InFlight {
    fn completion(self) -> Completion {
        match self.kind {
            InFlightKind::In => Completion::Value(self.rax),
            InFlightKind::RdMsr => Completion::Value(self.rax & 0xffff_ffff | self.rdx << 32),
            InFlightKind::WrMsr => Completion::Done,
        }
    }
}

/// `struct vcpu`.
pub(super) struct Vcpu {
    pub(super) id: usize,
    pub(super) state: VcpuState,
    /// A thread that waits for the vCPU to become idle asks the running one to leave the kernel.
    pub(super) reqidle: bool,
    /// The running thread came out for somebody who waits, and lets that one have the vCPU before it is back.
    pub(super) gives_way: bool,
    pub(super) vlapic: Vlapic,
    pub(super) boot_state: BootState,
    /// illumos's in the place of it.
    pub(super) run_state: RunState,
    /// `vm_exitinfo_cpuset`: the mask of the last IPI exit.
    pub(super) exit_cpuset: CpuSet,
    /// An exit that userspace has to fulfil before the vCPU goes on (illumos).
    pub(super) unfulfilled: Option<illumos::VmExit>,
    pub(super) caps: Capabilities,
    pub(super) nmi_pending: bool,
    pub(super) extint_pending: bool,
    /// An exception that VM_INJECT_EXCEPTION asked for: vector and error code.
    pub(super) exception: Option<(u8, Option<u32>)>,
    /// `exitintinfo`, kept for VM_GET_INTINFO.
    pub(super) intinfo: u64,
    pub(super) in_flight: Option<InFlight>,
    pub(super) counters: [u64; Counter::COUNT],

    /// Nothing has run since the vCPU was activated, or since its RIP was set while it was suspended.
    pub(super) fresh: bool,
    /// The event that let the vCPU start: the cause of its first instruction.
    pub(super) start_cause: Option<Seq>,
    /// The guest's first instruction: the cause of all that the guest does.
    pub(super) guest_cause: Option<Seq>,
    /// How often in a row the thread came back only to hear VM_EXITCODE_DEBUG again.
    pub(super) debug_streak: u32,
    /// How often in a row it came straight back, and when it last heard it.
    pub(super) spin_streak: u32,
    pub(super) debug_exit_at: u64,
    pub(super) parked: Parked,
    /// How often in a row the guest executed PAUSE with next to nothing in between, and how many instructions it had executed
    /// at the last one.
    pub(super) pause_streak: u32,
    pub(super) pause_instructions: u64,

    /// Absent before the first use, and while the guest runs on it.
    pub(super) engine: Option<Box<dyn EngineVcpu>>,
    pub(super) kick: Option<Arc<dyn Kick>>,
    /// The CPUID table of the engine does not show the topology and APIC mode of now.
    pub(super) cpuid_stale: bool,
}

/// What is counted for VM_STATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    Exits,
    UserspaceExits,
    Hlt,
    Pause,
    Inout,
    Mmio,
    Interrupts,
}

impl Counter {
    pub(super) const COUNT: usize = 7;

    /// The descriptions, in the order of the counters (VM_STAT_DESC).
    pub(super) const NAMES: [&str; Counter::COUNT] = [
        "total number of vm exits",
        "vm exits handled in userspace",
        "number of times hlt was intercepted",
        "number of times pause was intercepted",
        "vm exits due to in/out instructions",
        "vm exits for instruction emulation",
        "number of vector injections",
    ];
}

impl Vcpu {
    /// `vm_alloc_vcpu` and `vcpu_init`: IDLE, not active, its local APIC as after power-up.
    pub(super) fn new(id: usize) -> Vcpu {
        Vcpu {
            id,
            state: VcpuState::Idle,
            reqidle: false,
            gives_way: false,
            vlapic: Vlapic::new(id as u32),
            boot_state: if id == 0 { BootState::Running } else { BootState::Init },
            run_state: RunState::default(),
            exit_cpuset: CpuSet::EMPTY,
            unfulfilled: None,
            caps: Capabilities::default(),
            nmi_pending: false,
            extint_pending: false,
            exception: None,
            intinfo: 0,
            in_flight: None,
            counters: [0; Counter::COUNT],
            fresh: false,
            start_cause: None,
            guest_cause: None,
            debug_streak: 0,
            spin_streak: 0,
            debug_exit_at: 0,
            parked: Parked::default(),
            pause_streak: 0,
            pause_instructions: 0,
            engine: None,
            kick: None,
            cpuid_stale: true,
        }
    }

    /// `vcpu_init` of a vCPU that exists: as after its allocation, registers zero. Who holds it still does.
    pub(super) fn reinit(self) -> Vcpu {
        let mut engine = self.engine;
        if let Some(engine) = &mut engine {
            for reg in Reg::ALL {
                if reg.has_descriptor() {
                    engine.set_desc(reg, SegDesc::default());
                }
                engine.set_reg(reg, 0);
            }
        }
        Vcpu { state: self.state, engine, kick: self.kick, parked: self.parked, ..Vcpu::new(self.id) }
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.counters[counter as usize] += 1;
    }

    /// `ipi_exit`: whether INIT and STARTUP that this vCPU sends are handled by userspace.
    pub(super) fn ipi_exit(&self) -> bool {
        self.caps.has(cap::IPI_EXIT)
    }

    /// The engine's vCPU.
    pub(super) fn engine(&mut self) -> &mut dyn EngineVcpu {
        &mut **self.engine.as_mut().expect("made before any use, and put back after each run")
    }

    pub(super) fn set_capability(&mut self, captype: i32, value: i32) -> Result<(), Errno> {
        backend_supports(captype)?;
        self.caps.set(captype, value != 0);
        Ok(())
    }

    pub(super) fn capability(&self, captype: i32) -> Result<i32, Errno> {
        backend_supports(captype)?;
        Ok(i32::from(self.caps.has(captype)))
    }

    /// VM_GET_REGISTER.
    pub(super) fn register(&mut self, reg: Reg) -> u64 {
        match (reg, self.in_flight) {
            (Reg::Rax, Some(in_flight)) => in_flight.rax,
            (Reg::Rdx, Some(in_flight)) => in_flight.rdx,
            _ => self.engine().reg(reg),
        }
    }

    /// VM_SET_REGISTER. RAX and RDX of an instruction in flight are its result; any other register abandons it.
    pub(super) fn set_register(&mut self, reg: Reg, value: u64) {
        match (reg, &mut self.in_flight) {
            (Reg::Rax, Some(in_flight)) => in_flight.rax = value,
            (Reg::Rdx, Some(in_flight)) => in_flight.rdx = value,
            _ => {
                self.finish_in_flight();
                self.engine().set_reg(reg, value);
            }
        }
    }

    /// VM_SET_SEGMENT_DESCRIPTOR.
    pub(super) fn set_descriptor(&mut self, reg: Reg, desc: SegDesc) {
        self.finish_in_flight();
        self.engine().set_desc(reg, desc);
    }

    /// VM_SET_INTINFO: an event that VM_GET_INTINFO told, to be delivered again. EINVAL for what is no event. \[inferred]
    pub(super) fn set_intinfo(&mut self, info: u64) -> Result<(), Errno> {
        const VALID: u64 = 1 << 31;
        let (kind, vector) = (info >> 8 & 7, info as u8);
        const NMI: u64 = 2;
        const HARDWARE_EXCEPTION: u64 = 3;
        let bad = kind == NMI && vector != 2 || kind == HARDWARE_EXCEPTION && vector >= 32 || kind == 1;
        if info & VALID != 0 && bad {
            return Err(Errno::EINVAL);
        }
        self.intinfo = if info & VALID != 0 { info } else { 0 };
        Ok(())
    }

    /// Leaves an exit for userspace to complete.
    pub(super) fn leave_in_flight(&mut self, exit: &Exit) {
        let kind = match exit {
            Exit::IoIn { .. } => InFlightKind::In,
            Exit::RdMsr { .. } => InFlightKind::RdMsr,
            Exit::WrMsr { .. } => InFlightKind::WrMsr,
            other => unreachable!("{other:?} is completed by the kernel"),
        };
        let (rax, rdx) = (self.engine().reg(Reg::Rax), self.engine().reg(Reg::Rdx));
        self.in_flight = Some(InFlight { rax, rdx, kind });
    }

    /// Completes the instruction in flight with what userspace made of it.
    pub(super) fn finish_in_flight(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            self.engine().complete(in_flight.completion());
        }
    }

    /// Forgets the instruction in flight: what userspace makes of its exit does not matter any more.
    pub(super) fn abandon_in_flight(&mut self) {
        self.in_flight = None;
        if self.unfulfilled.take().is_some() {
            // Setting a register abandons it in the engine.
            let rip = self.engine().reg(Reg::Rip);
            self.engine().set_reg(Reg::Rip, rip);
        }
    }

    /// Answers an access to memory that userspace has carried out (illumos).
    pub(super) fn fulfil(&mut self, completion: Completion) {
        self.unfulfilled = None;
        self.engine().complete(completion);
    }

    /// The same for a port; an OUT is complete when it exits.
    pub(super) fn fulfil_inout(&mut self, value: Option<Completion>) {
        self.unfulfilled = None;
        self.in_flight = None;
        if let Some(value) = value {
            self.engine().complete(value);
        }
    }

    /// VM_INJECT_EXCEPTION: delivered at the next run. #GP for an MSR access in flight is the instruction's own fault.
    pub(super) fn inject_exception(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), Errno> {
        if self.exception.is_some() {
            return Err(Errno::EBUSY);
        }
        const GENERAL_PROTECTION: u8 = 13;
        match self.in_flight {
            Some(InFlight { kind: InFlightKind::RdMsr | InFlightKind::WrMsr, .. }) if vector == GENERAL_PROTECTION => {
                self.in_flight = None;
                self.engine().complete(Completion::GeneralProtection);
            }
            _ => self.exception = Some((vector, error_code)),
        }
        Ok(())
    }

    /// `vmx_inject_interrupts`: hands the engine what is due: an exception, else an NMI, else an external interrupt.
    /// `extint` asks the 8259 for its vector.
    pub(super) fn inject_events(&mut self, extint: impl FnOnce() -> Option<u8>) {
        if let Some((vector, error_code)) = self.exception.take() {
            self.engine().inject(Inject::Exception { vector, error_code });
            return;
        }
        if std::mem::take(&mut self.nmi_pending) {
            self.engine().inject(Inject::Nmi);
        }
        if self.caps.has(cap::MASK_HWINTR) {
            self.engine().request_interrupt_window(false);
            return;
        }
        let pending = self.vlapic.pending();
        if pending.is_none() && !self.extint_pending {
            self.engine().request_interrupt_window(false);
            return;
        }
        if !self.engine().interruptible() {
            self.engine().request_interrupt_window(true);
            return;
        }
        self.engine().request_interrupt_window(false);
        let vector = if std::mem::take(&mut self.extint_pending) {
            extint()
        } else {
            pending.inspect(|&vector| self.vlapic.acknowledge(vector))
        };
        if let Some(vector) = vector {
            self.count(Counter::Interrupts);
            self.engine().inject(Inject::Interrupt(vector));
        }
    }

    /// Whether something is there that ends a HLT.
    pub(super) fn has_wakeup(&self, interrupts_enabled: bool) -> bool {
        self.nmi_pending
            || self.exception.is_some()
            || interrupts_enabled && (self.extint_pending || self.vlapic.pending().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VcpuState::*;

    #[test]
    fn states_change_only_through_frozen() {
        let states = [Idle, Frozen, Running, Sleeping];
        for from in states {
            for to in states {
                let mut state = from;
                let allowed = from != to && (from == Frozen || to == Frozen);
                assert_eq!(state.change(to).is_ok(), allowed, "{from:?} to {to:?}");
                assert_eq!(state, if allowed { to } else { from });
            }
        }
    }

    #[test]
    fn capabilities_are_kept_and_the_backend_refuses_its_own() {
        let mut vcpu = Vcpu::new(1);
        assert_eq!(vcpu.capability(cap::HALT_EXIT), Ok(0));
        assert_eq!(vcpu.set_capability(cap::HALT_EXIT, 1), Ok(()));
        assert_eq!(vcpu.capability(cap::HALT_EXIT), Ok(1));
        assert_eq!(vcpu.set_capability(cap::RDTSCP, 1), Err(Errno::EOPNOTSUPP));
        assert!(!vcpu.ipi_exit());
        assert_eq!(vcpu.set_capability(cap::IPI_EXIT, 1), Ok(()));
        assert!(vcpu.ipi_exit());
    }
}
