//! From the board's interrupt controllers to the local APICs (`vlapic_deliver_intr`, `lapic_set_local_intr`).

use super::vm::{State, Vm};
use crate::device::message::Message;
use crate::device::vlapic::{LocalInterrupt, Lvt};
use crate::trace::DeliveryMode;

impl Vm {
    /// Delivers what the board's devices have raised since the last time.
    pub(super) fn deliver_signals(&self, st: &mut State<'_>) {
        while let Some(signals) = st.board.take_signals() {
            for message in signals.messages {
                self.deliver_message(st, message);
            }
            if signals.extint {
                // vatpic_notify_intr: the 8259s are wired to every local APIC's LINT0. [read]
                for id in st.active.iter() {
                    self.local_interrupt(st, id, Lvt::Lint0);
                }
            }
        }
    }

    /// `vlapic_deliver_intr`: FIXED, LOWPRIO and EXTINT only.
    pub(super) fn deliver_message(&self, st: &mut State<'_>, message: Message) {
        let lowest_priority = message.mode == DeliveryMode::LowestPriority;
        let targets = self.calcdest(st, message.destination(), lowest_priority);
        for id in targets.iter() {
            let notify = match message.mode {
                DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                    st.vcpu(id).vlapic.accept(message.vector, message.level)
                }
                DeliveryMode::ExtInt => {
                    st.vcpu(id).extint_pending = true;
                    true
                }
                _ => false,
            };
            if notify {
                self.notify(st, id);
            }
        }
    }

    /// `vlapic_trigger_lvt`.
    pub(super) fn local_interrupt(&self, st: &mut State<'_>, id: usize, lvt: Lvt) {
        let vcpu = st.vcpu(id);
        match vcpu.vlapic.local_interrupt(lvt) {
            LocalInterrupt::Dropped => return,
            LocalInterrupt::Requested { .. } => {}
            LocalInterrupt::Nmi => vcpu.nmi_pending = true,
            LocalInterrupt::ExtInt => vcpu.extint_pending = true,
        }
        self.notify(st, id);
    }
}
