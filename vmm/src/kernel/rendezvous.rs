//! `vm_smp_rendezvous`: a function that a set of vCPUs runs, each in its own thread, before the initiator goes on.

use super::vcpu::BootState;
use super::vm::{ONE_SECOND, State, Vm};
use crate::cpuset::CpuSet;
use crate::history::RendezvousPending;
use crate::trace::Event;

/// What the participants run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RendezvousFunction {
    /// `vioapic_update_tmr`, after the guest has changed the I/O APIC's routing. Here a local APIC learns the trigger mode with
    /// each interrupt, so that there is nothing left to run.
    UpdateTmr,
    /// `vlapic_reset`.
    VlapicReset,
    /// INIT between 0bda8d3e9f7a and c0f35dbf19c3: `vlapic_reset`, and boot_state becomes BS_SIPI. \[inferred]
    VlapicResetAwaitSipi,
}

/// A rendezvous under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rendezvous {
    requested: CpuSet,
    done: CpuSet,
    function: RendezvousFunction,
}

impl Vm {
    /// `vm_smp_rendezvous`: begins a rendezvous with `targets` and returns when all of them have run the function.
    ///
    /// Every target is notified through its structure, so one that is not allocated is a NULL pointer: the host panics.
    /// A target that is not active is taken out of the set. A target whose thread is not in VM_RUN holds up the initiator
    /// until it is. \[read]
    pub(super) fn smp_rendezvous(
        &self,
        st: &mut State<'_>,
        initiator: usize,
        targets: CpuSet,
        function: RendezvousFunction,
    ) {
        while st.rendezvous.is_some() {
            self.handle_rendezvous(st, initiator);
        }
        if targets.is_empty() {
            return;
        }
        st.rendezvous = Some(Rendezvous { requested: targets, done: CpuSet::EMPTY, function });
        let begun = self.host.emit(Some(initiator as u16), Event::RendezvousBegun { targets });
        self.host.set_cause(Some(begun));
        for id in targets.iter() {
            if st.allocated(id).is_none() {
                self.panic(format!(
                    "page fault while in kernel mode: vcpu_notify_event(NULL): vcpu {id} is not allocated, \
                     but vm_smp_rendezvous names it in {targets}"
                ));
            }
            self.notify(st, id);
        }
        self.host.wake(self.lock_all_channel());
        self.handle_rendezvous(st, initiator);
        let done = self.host.emit(Some(initiator as u16), Event::RendezvousDone { targets: targets & st.active });
        self.host.set_cause(Some(done));
    }

    /// `vm_handle_rendezvous`: takes part in the rendezvous under way, and waits for its end.
    pub(super) fn handle_rendezvous(&self, st: &mut State<'_>, id: usize) {
        while !self.serve_rendezvous(st, CpuSet::single(id)) {
            self.wait(st, self.rendezvous_channel(), ONE_SECOND);
        }
    }

    /// Runs the function of the rendezvous under way for those of `who` that take part: the vCPU of the calling thread, or the
    /// vCPUs that it has locked (`vcpu_lock_all`, D52968). Whether no rendezvous is under way any more.
    pub(super) fn serve_rendezvous(&self, st: &mut State<'_>, who: CpuSet) -> bool {
        let Some(mut rendezvous) = st.rendezvous else {
            return true;
        };
        rendezvous.requested = rendezvous.requested & st.active;
        for id in (who & (rendezvous.requested - rendezvous.done)).iter() {
            rendezvous.done.insert(id);
            self.run_rendezvous_function(st, id, rendezvous.function);
        }
        let over = rendezvous.requested == rendezvous.done;
        st.rendezvous = (!over).then_some(rendezvous);
        if over {
            self.host.wake(self.rendezvous_channel());
        }
        over
    }

    fn run_rendezvous_function(&self, st: &mut State<'_>, id: usize, function: RendezvousFunction) {
        match function {
            RendezvousFunction::UpdateTmr => return,
            RendezvousFunction::VlapicReset => {}
            RendezvousFunction::VlapicResetAwaitSipi => st.vcpu(id).boot_state = BootState::Sipi,
        }
        st.vcpu(id).vlapic.reset();
        self.note(st, id, Event::VlapicReset);
    }

    /// Whether the vCPU has to leave the guest for a rendezvous.
    pub(super) fn rendezvous_pending(&self, st: &State<'_>, id: usize) -> bool {
        st.rendezvous.is_some_and(|rendezvous| match self.behaviour.rendezvous_pending {
            RendezvousPending::AnyRendezvous => true,
            // A participant that is done waits for the others in `vm_handle_rendezvous`, as it does there.
            RendezvousPending::Participants => rendezvous.requested.contains(id),
        })
    }
}
