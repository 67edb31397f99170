//! The sentence that says where two traces part ways.

use super::{Divergence, Sides};
use crate::trace::describe::{drop_reason, errno_name};
use crate::trace::{describe, lane};
use vmm::trace::{Event, Record};

/// What a side did, as in "fbsd-13.1 …".
pub(super) fn did(record: &Record) -> String {
    let answered = |what: &str, errno: i32| {
        let answer = if errno == 0 { "success".to_owned() } else { errno_name(errno) };
        format!("answered {what} with {answer}")
    };
    match &record.event {
        Event::Report(_) => format!("let the {}", describe(&record.event).replacen("guest: ", "guest report: ", 1)),
        Event::Milestone { name, .. } => format!("let its guest come to `{name}`"),
        Event::FirstInstruction { cs, ip } => format!("let it run its first instruction at {cs:04x}:{ip:04x}"),
        Event::TripleFault => "ran it into a triple fault".into(),
        Event::Unimplemented { .. } => format!("met what {}", describe(&record.event)),
        Event::IcrWrite { .. } => format!("saw the {}", describe(&record.event)),
        Event::DestinationResolved { rule, among, targets, .. } => {
            if among == targets && !among.is_empty() {
                format!("{} {targets}", rule.in_words())
            } else {
                format!("{} {among} and got {targets}", rule.in_words())
            }
        }
        Event::ExitMask { ipimask, dmask, .. } => format!("meant {ipimask} but passed on {dmask}"),
        Event::IpiDelivered { targets, .. } => format!("delivered it to {targets}"),
        Event::IpiDropped { why, .. } => format!("dropped it ({})", drop_reason(*why)),
        Event::IcrUnhandled { .. } => "handed the ICR write to userspace".into(),
        Event::VcpuAllocated => format!("allocated {}", vcpu(record)),
        Event::VcpuActivated => format!("activated {}", vcpu(record)),
        Event::VcpuSuspended => format!("suspended {}", vcpu(record)),
        Event::VcpuResumed => format!("resumed {}", vcpu(record)),
        Event::VlapicReset => format!("reset the local APIC of {}", vcpu(record)),
        Event::StartupState { targets, waiting: true, .. } => format!("made {targets} wait for a STARTUP"),
        Event::StartupState { targets, waiting: false, .. } => format!("started {targets}"),
        Event::RendezvousBegun { targets } => format!("began a rendezvous with {targets}"),
        Event::RendezvousDone { targets } => format!("finished the rendezvous with {targets}"),
        Event::VmSuspended { how } => format!("suspended the VM ({how})"),
        Event::Panic { message } => format!("panicked ({message})"),
        Event::Exit { name, payload, .. } if payload.is_empty() => format!("returned {name} to userspace"),
        Event::Exit { name, payload, .. } => format!("returned {name} ({payload}) to userspace"),
        Event::Ioctl { name, detail, errno, .. } if detail.is_empty() => answered(name, *errno),
        Event::Ioctl { name, detail, errno, .. } => answered(&format!("{name} {detail}"), *errno),
        Event::Syscall { name, errno } => answered(name, *errno),
        Event::TaskSpawned { name } => format!("created the thread `{name}`"),
        Event::TaskEnded => "ended the thread".into(),
        Event::Message { text } => format!("let the frontend say `{text}`"),
        Event::ProcessExit { status } => format!("ended the frontend with status {status}"),
        Event::Abort { message } => format!("aborted the frontend ({message})"),
        Event::Deadline => "ran out of time".into(),
        Event::Deadlock => "came to a standstill".into(),
        Event::Outcome { kind, .. } => format!("ended as {kind}"),
    }
}

fn vcpu(record: &Record) -> String {
    record.vcpu.map_or("a vCPU".into(), |vcpu| format!("vCPU {vcpu}"))
}

/// What the divergence is about: the interrupt command that led to it, or else the vCPU or thread where it happened.
fn about(records: &[Record], at: usize) -> String {
    let mut here = Some(at);
    while let Some(i) = here {
        if let Event::IcrWrite { mode, .. } = &records[i].event {
            return format!("{mode} from {}", vcpu(&records[i]));
        }
        here = records[i].cause.map(|cause| cause as usize);
    }
    match records[at].vcpu {
        Some(vcpu) => format!("vCPU {vcpu}"),
        None => format!("thread `{}`", lane(&records[at])),
    }
}

/// The sentence, in which the sides are called by the labels.
pub(super) fn sentence(sides: &Sides<'_>, labels: &[String; 2], divergence: &Divergence) -> String {
    let [left, right] = [0, 1].map(|side| divergence.events[side].map(|at| &sides.records[side][at]));
    let about = (0..2)
        .find_map(|side| divergence.events[side].map(|at| about(sides.records[side], at)))
        .expect("a divergence has an event on a side at least");
    let consequence = |side: usize| match divergence.led_to[side] {
        Some(at) => format!(", and then {}", did(&sides.records[side][at])),
        None => String::new(),
    };
    let part = |side: usize, record: Option<&Record>| {
        let label = &labels[side];
        match (record, divergence.next[side]) {
            (Some(record), _) => format!("{label} {}{}", did(record), consequence(side)),
            (None, Some(next)) => format!("{label} did not, and {}", did(&sides.records[side][next])),
            (None, None) => format!("{label} did not"),
        }
    };
    // What a side did is said before what the other did not.
    let (first, second) = if left.is_none() { ((1, right), (0, left)) } else { ((0, left), (1, right)) };
    format!("{about}: {}; {}", part(first.0, first.1), part(second.0, second.1))
}
