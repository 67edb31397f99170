//! INIT and STARTUP as illumos carries them out: a run state of each vCPU, latched events, and no exit. \[read]

use super::ipi::{IcrCommand, IcrResult};
use super::vcpu::Vcpu;
use super::vm::{State, Vm};
use crate::abi::Errno;
use crate::abi::illumos::{VRK_INIT, VRK_RESET, VmRunState, VmVcpuReset, vrs};
use crate::cpuset::CpuSet;
use crate::engine::{Reg, SegDesc};
use crate::trace::{DeliveryMode, DropReason, Event, Seq, Shorthand, StartupStore};

/// What keeps the run state of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RunState {
    /// Bits of [`vrs`].
    pub(super) state: u32,
    pub(super) sipi_vector: u8,
    /// The events that the pending INIT and STARTUP come from.
    init_cause: Option<Seq>,
    sipi_cause: Option<Seq>,
}

/// `VRS_IS_VALID` names PEND_SIPI twice and PEND_INIT not at all, so that a state with an INIT pending cannot be set. \[read]
const VALID: u32 = vrs::INIT | vrs::RUN | vrs::PEND_SIPI;

impl RunState {
    /// Whether the vCPU may enter the guest.
    pub(super) fn runs(self) -> bool {
        self.state & (vrs::RUN | vrs::PEND_INIT) == vrs::RUN
    }
}

impl Vm {
    /// INIT and STARTUP of a guest: the destination field or all but the sender, among the active vCPUs; each target takes note.
    ///
    /// `vm_inject_init`: PEND_INIT is set and PEND_SIPI cleared. `vm_inject_sipi`: PEND_SIPI and the vector are set, whatever the target is
    /// doing; it stays latched until the next INIT. That INIT level de-assert does nothing is \[unverified].
    pub(super) fn startup_by_run_state(&self, st: &mut State<'_>, ipi: IcrCommand) -> IcrResult {
        let (mode, vector) = (ipi.icr.delivery_mode(), ipi.icr.vector());
        let init = mode == DeliveryMode::Init;
        if init && !ipi.icr.assert() {
            return self.drop_ipi(ipi, DropReason::InitDeassert);
        }
        if !matches!(ipi.icr.shorthand(), Shorthand::None | Shorthand::AllExcludingSelf) {
            return self.drop_ipi(ipi, DropReason::InvalidCombination);
        }
        let (rule, targets) = self.dmask(st, ipi);
        self.resolved(ipi, rule, st.active, targets);
        if targets.is_empty() {
            return self.drop_ipi(ipi, DropReason::NoDestination);
        }
        let seq = self.host.emit(Some(ipi.sender as u16), Event::IpiDelivered { mode, vector, targets });
        for id in targets.iter() {
            let run_state = &mut st.vcpu(id).run_state;
            if init {
                run_state.state = run_state.state & !vrs::PEND_SIPI | vrs::PEND_INIT;
                run_state.init_cause = Some(seq);
                self.notify(st, id);
                continue;
            }
            run_state.state |= vrs::PEND_SIPI;
            run_state.sipi_vector = vector;
            run_state.sipi_cause = Some(seq);
            if run_state.state & (vrs::INIT | vrs::RUN) == vrs::INIT {
                self.notify(st, id);
            }
        }
        IcrResult::Handled
    }

    /// `vm_handle_run_state`: carries out what is pending for the vCPU, and sleeps in the kernel while it does not run.
    pub(super) fn handle_run_state(&self, st: &mut State<'_>, id: usize) {
        loop {
            let RunState { state, sipi_vector, init_cause, sipi_cause } = st.vcpu(id).run_state;
            if state & vrs::PEND_INIT != 0 {
                self.record_caused(id, init_cause, Event::VlapicReset);
                arch_reset(st.vcpu(id), true);
                st.vcpu(id).run_state.state = state & !(vrs::RUN | vrs::PEND_INIT) | vrs::INIT;
                self.record_run_state(id, init_cause, true);
            } else if state & (vrs::INIT | vrs::PEND_SIPI | vrs::RUN) == vrs::INIT | vrs::PEND_SIPI {
                start_at(st.vcpu(id), sipi_vector);
                st.vcpu(id).run_state.state = state & !vrs::PEND_SIPI | vrs::RUN;
                let seq = self.record_run_state(id, sipi_cause, false);
                let vcpu = st.vcpu(id);
                vcpu.fresh = true;
                vcpu.start_cause = Some(seq);
            } else if state & vrs::RUN != 0 {
                return;
            } else {
                // vcpu_sleep_bailout_checks: the run loop deals with these.
                if st.is_suspended() || st.vcpu(id).reqidle || st.debug.contains(id) {
                    return;
                }
                self.sleep(st, id, self.vcpu_channel(id), None);
            }
        }
    }

    fn record_caused(&self, id: usize, cause: Option<Seq>, event: Event) -> Seq {
        let seq = self.host.emit_caused(cause, Some(id as u16), event);
        self.host.set_cause(Some(seq));
        seq
    }

    fn record_run_state(&self, id: usize, cause: Option<Seq>, waiting: bool) -> Seq {
        let event = Event::StartupState { targets: CpuSet::single(id), waiting, store: StartupStore::RunState };
        self.record_caused(id, cause, event)
    }

    /// VM_GET_RUN_STATE, of an idle vCPU.
    pub(super) fn get_run_state(vcpu: &Vcpu, vcpuid: i32) -> VmRunState {
        let RunState { state, sipi_vector, .. } = vcpu.run_state;
        VmRunState { vcpuid, state, sipi_vector, _pad: [0; 3] }
    }

    /// VM_SET_RUN_STATE, of an idle vCPU. EINVAL for a state that is not valid, and so for one with an INIT pending.
    pub(super) fn set_run_state(&self, st: &mut State<'_>, id: usize, wanted: VmRunState) -> Result<(), Errno> {
        if wanted.state & !VALID != 0 {
            return Err(Errno::EINVAL);
        }
        let vcpu = st.vcpu(id);
        let began = wanted.state & !vcpu.run_state.state & vrs::RUN != 0;
        let VmRunState { state, sipi_vector, .. } = wanted;
        vcpu.run_state = RunState { state, sipi_vector, init_cause: None, sipi_cause: None };
        vcpu.fresh |= began;
        self.notify(st, id);
        Ok(())
    }

    /// VM_RESET_CPU, of an idle vCPU. The run state stays.
    pub(super) fn reset_cpu(vcpu: &mut Vcpu, reset: VmVcpuReset) -> Result<(), Errno> {
        match reset.kind {
            VRK_RESET => arch_reset(vcpu, false),
            VRK_INIT => arch_reset(vcpu, true),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

/// `vcpu_arch_reset`: registers and local APIC as after power-up (SDM 3A table 10-1), or, for an INIT, all but what an INIT leaves
/// alone; of the registers here that is CR2.
fn arch_reset(vcpu: &mut Vcpu, init: bool) {
    const READ_WRITE: u32 = 0x93;
    vcpu.abandon_in_flight();
    let engine = vcpu.engine();
    for reg in Reg::ALL {
        let value = match reg {
            Reg::Cr2 if init => continue,
            Reg::Cr0 => 0x6000_0010,
            Reg::Rflags => 2,
            Reg::Rip => 0xfff0,
            Reg::Rdx => 0xf00,
            Reg::Cs => 0xf000,
            Reg::Dr6 => 0xffff_0ff0,
            Reg::Dr7 => 0x400,
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 | Reg::EntryInstLength => continue,
            _ => 0,
        };
        if reg.has_descriptor() {
            let (base, access) = match reg {
                Reg::Cs => (0xffff_0000, READ_WRITE),
                Reg::Idtr | Reg::Gdtr => (0, 0),
                Reg::Ldtr => (0, 0x82),
                Reg::Tr => (0, 0x8b),
                _ => (0, READ_WRITE),
            };
            engine.set_desc(reg, SegDesc { base, limit: 0xffff, access });
        }
        engine.set_reg(reg, value);
    }
    vcpu.vlapic.reset();
    vcpu.exception = None;
    vcpu.nmi_pending = false;
    vcpu.extint_pending = false;
    vcpu.intinfo = 0;
}

/// The page that a STARTUP's vector names (SDM 3A 11.6.1: 000VV000H).
fn start_at(vcpu: &mut Vcpu, vector: u8) {
    let engine = vcpu.engine();
    let desc = engine.desc(Reg::Cs);
    engine.set_desc(Reg::Cs, SegDesc { base: u64::from(vector) << 12, ..desc });
    engine.set_reg(Reg::Cs, u64::from(vector) << 8);
    engine.set_reg(Reg::Rip, 0);
}
