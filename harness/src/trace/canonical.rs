//! The canonical form of a trace: what must be the same on both engines and for every schedule.
//!
//! Each lane (the task that caused the events) keeps its significant events in order, without number and time; the order
//! between lanes is kept only as far as causes say it. What is not significant stands in [`is_significant`], rule by rule.

use super::{describe, lane};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use vmm::abi::exitcode;
use vmm::trace::{Event, Record, Seq, Trace};

/// Whether an event belongs to the canonical form. `cause` is the event that led to it.
#[must_use]
pub fn is_significant(event: &Event, cause: Option<&Event>) -> bool {
    match event {
        // How often a thread leaves the guest only to come back depends on time.
        Event::Exit { code, .. } => !matches!(
            *code,
            exitcode::BOGUS
                | exitcode::HLT
                | exitcode::PAUSE
                | exitcode::REQIDLE
                | exitcode::RENDEZVOUS
                | exitcode::DEBUG
                | exitcode::IOAPIC_EOI
                // Console bytes, polled status ports and the timer: as many as the guest needs to fill its time.
                | exitcode::INOUT
        ),
        // What a device does for a port access is as frequent as the access; the power-off is its consequence in earnest.
        Event::Ioctl { name, errno: 0, .. } if matches!(cause, Some(Event::Exit { code: exitcode::INOUT, .. })) => {
            name == "VM_SUSPEND"
        }
        // A question that succeeded changes nothing, and some are asked in a loop; the devices' interrupt lines follow time.
        Event::Ioctl { name, errno: 0, .. } => {
            let question = name.starts_with("VM_GET_");
            let interrupt_line = ["_ASSERT_IRQ", "_DEASSERT_IRQ", "_PULSE_IRQ"].iter().any(|line| name.ends_with(line));
            !question && !interrupt_line
        }
        // Whether a thread of a dying process still ends by itself is a race that means nothing.
        Event::TaskEnded => false,
        // Only `soft` can say so, and the guest's #UD shows in its reports.
        Event::Unimplemented { .. } => false,
        // Everything else: IPIs of every mode too, for a guest sends a fixed number of them.
        _ => true,
    }
}

/// Which events of a trace are significant, by their number.
#[must_use]
pub fn significant(trace: &Trace) -> Vec<bool> {
    let event = |seq: Seq| usize::try_from(seq).ok().and_then(|i| trace.records.get(i)).map(|record| &record.event);
    trace.records.iter().map(|record| is_significant(&record.event, record.cause.and_then(event))).collect()
}

/// Where an event stands in the canonical form: its lane and its number there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The lane.
    pub lane: Arc<str>,
    /// Number within the lane, from 0.
    pub index: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.lane, self.index)
    }
}

/// One event of the canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CanonicalEvent {
    /// The vCPU concerned.
    pub vcpu: Option<u16>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// The nearest significant event that led to it.
    pub cause: Option<Place>,
}

/// The canonical form of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canonical {
    /// The significant events of each lane.
    pub lanes: BTreeMap<Arc<str>, Vec<CanonicalEvent>>,
}

impl Canonical {
    /// Reduces a trace to its canonical form.
    #[must_use]
    pub fn of(trace: &Trace) -> Canonical {
        let significant = significant(trace);
        let mut places: Vec<Option<Place>> = Vec::with_capacity(trace.records.len());
        let mut canonical = Canonical::default();
        for (record, keep) in trace.records.iter().zip(significant) {
            let cause = nearest(record, &places);
            if !keep {
                // Whoever names this event as its cause means what led to it.
                places.push(cause);
                continue;
            }
            let lane = lane(record);
            let events = canonical.lanes.entry(lane.clone()).or_default();
            places.push(Some(Place { lane, index: events.len() }));
            events.push(CanonicalEvent { vcpu: record.vcpu, event: record.event.clone(), cause });
        }
        canonical
    }
}

fn nearest(record: &Record, places: &[Option<Place>]) -> Option<Place> {
    usize::try_from(record.cause?).ok().and_then(|cause| places.get(cause)).cloned().flatten()
}

/// Lane by lane, one line for each event: what `trace --canonical` prints and what a difference between engines is shown
/// with.
impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (lane, events) in &self.lanes {
            writeln!(f, "{lane}")?;
            for (index, CanonicalEvent { vcpu, event, cause }) in events.iter().enumerate() {
                let vcpu = vcpu.map_or(String::from("-"), |vcpu| vcpu.to_string());
                write!(f, "{index:>6} {vcpu:>3}  {}", describe(event))?;
                match cause {
                    // The event just above is the rule; only what departs from it is worth ink.
                    Some(Place { lane: from, index: at }) if from == lane && at + 1 == index => writeln!(f)?,
                    Some(Place { lane: from, index: at }) if from == lane => writeln!(f, "  <- {at}")?,
                    Some(place) => writeln!(f, "  <- {place}")?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{Builder, any_trace};
    use proptest::prelude::*;

    fn exit(code: u32) -> Event {
        Event::Exit { code, name: exitcode::name(code).into(), payload: String::new() }
    }

    fn ioctl(name: &str) -> Event {
        Event::Ioctl { name: name.into(), request: 0, detail: String::new(), errno: 0 }
    }

    #[test]
    fn causes_skip_what_is_left_out() {
        let mut trace = Builder::new();
        let spawned = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
        let inout = trace.emit_caused(spawned, "vcpu 0", Some(0), exit(exitcode::INOUT));
        trace.emit_caused(inout, "vcpu 0", Some(0), ioctl("VM_ISA_ASSERT_IRQ"));
        let suspend = trace.emit_caused(inout, "vcpu 0", Some(0), ioctl("VM_SUSPEND"));
        trace.emit_caused(suspend, "vcpu 0", Some(0), exit(exitcode::DEBUG));
        trace.emit_caused(suspend, "vcpu 1", Some(1), exit(exitcode::SUSPENDED));
        insta::assert_snapshot!(Canonical::of(&trace.finish()).to_string());
    }

    #[test]
    fn a_failed_question_is_significant() {
        let failed = Event::Ioctl { name: "VM_GET_REGISTER".into(), request: 0, detail: String::new(), errno: 22 };
        assert!(is_significant(&failed, Some(&exit(exitcode::INOUT))));
        assert!(!is_significant(&ioctl("VM_GET_REGISTER"), None));
    }

    proptest! {
        #[test]
        fn time_and_the_order_between_lanes_do_not_count(trace in any_trace(), by in 0u64..1_000_000) {
            let expected = Canonical::of(&trace);
            prop_assert_eq!(&Canonical::of(&crate::trace::testing::shift_time(&trace, by)), &expected);
            prop_assert_eq!(&Canonical::of(&crate::trace::testing::reorder(&trace, by)), &expected);
        }
    }
}
