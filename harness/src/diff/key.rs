//! What of an event counts when two traces are compared.

use vmm::abi::Errno;
use vmm::trace::{Event, GuestReport, Record};

/// How much a difference in an event means, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// What the guest, the user or the next side to act can see: a difference is a difference in behaviour.
    Decision,
    /// A call of the frontend that succeeded. As with [`Weight::Mechanism`], a difference by itself is only a way of doing.
    Call,
    /// How a version goes about it. A difference means something only when a decision that differs descends from it.
    Mechanism,
}

/// An event reduced to what counts. The rule by which a destination was found and the place where a state is kept belong
/// to the version, not to its behaviour: they are told, not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The question: events of both sides are matched by it.
    pub subject: String,
    /// The answer: matched events differ when it does.
    pub answer: String,
    pub weight: Weight,
}

/// `modes_differ`: the sides have different APIC modes on purpose, so that this is no news.
pub(super) fn key(record: &Record, modes_differ: bool) -> Key {
    use Weight::{Call, Decision, Mechanism};
    let vcpu = record.vcpu.map_or(String::new(), |vcpu| vcpu.to_string());
    let make = |subject: String, answer: String, weight| Key { subject, answer, weight };
    let no_answer = String::new;
    match &record.event {
        Event::Report(GuestReport::Boot { x2apic }) => {
            let mode = if modes_differ { String::new() } else { x2apic.to_string() };
            make("report boot".into(), mode, Decision)
        }
        Event::Report(report) => make(format!("report {report:?}"), no_answer(), Decision),
        Event::Milestone { name, line: _ } => make(format!("milestone {name}"), no_answer(), Decision),
        Event::FirstInstruction { cs, ip } => {
            make(format!("first instruction of {vcpu}"), format!("{cs:x}:{ip:x}"), Decision)
        }
        Event::TripleFault => make(format!("triple fault of {vcpu}"), no_answer(), Decision),
        Event::Unimplemented { what, rip } => make(format!("unimplemented {what} {rip}"), no_answer(), Decision),
        Event::IcrWrite { mode, vector, dest, shorthand, logical, assert, icr: _, msr: _ } => make(
            format!("ICR {mode} {vector} {dest} {shorthand:?} {logical} {assert} of {vcpu}"),
            no_answer(),
            Decision,
        ),
        Event::DestinationResolved { mode, targets, rule: _, among: _ } => {
            make(format!("destination of {mode}"), targets.to_string(), Decision)
        }
        Event::ExitMask { mode, ipimask: _, dmask } => {
            make(format!("exit mask of {mode}"), dmask.to_string(), Mechanism)
        }
        Event::IpiDelivered { mode, vector, targets } => {
            make(format!("fate of {mode}"), format!("delivered {vector} {targets}"), Decision)
        }
        Event::IpiDropped { mode, vector: _, why: _ } => make(format!("fate of {mode}"), "dropped".into(), Decision),
        Event::IcrUnhandled { mode } => make(format!("fate of {mode}"), "unhandled".into(), Decision),
        Event::VcpuAllocated => make(format!("allocation of {vcpu}"), no_answer(), Mechanism),
        Event::VcpuActivated => make(format!("activation of {vcpu}"), no_answer(), Mechanism),
        Event::VcpuSuspended => make(format!("suspension of {vcpu}"), no_answer(), Mechanism),
        Event::VcpuResumed => make(format!("resumption of {vcpu}"), no_answer(), Mechanism),
        Event::VlapicReset => make(format!("local APIC reset of {vcpu}"), no_answer(), Mechanism),
        Event::StartupState { targets, waiting, store: _ } => {
            make(format!("waiting for STARTUP {waiting}"), targets.to_string(), Decision)
        }
        Event::RendezvousBegun { targets } => make("rendezvous begun".into(), targets.to_string(), Mechanism),
        Event::RendezvousDone { targets } => make("rendezvous done".into(), targets.to_string(), Mechanism),
        Event::VmSuspended { how } => make("VM suspended".into(), how.clone(), Decision),
        Event::Exit { code, name, payload } => make(format!("exit {code} {name} of {vcpu}"), payload.clone(), Decision),
        Event::Ioctl { name, request: _, detail, errno } => {
            // ENOENT is how a list of mappings ends.
            let ends_a_list = name == "VM_MMAP_GETNEXT" && *errno == Errno::ENOENT.number();
            let weight = if *errno == 0 || ends_a_list { Call } else { Decision };
            make(format!("{name} {detail} of {vcpu}"), errno.to_string(), weight)
        }
        Event::Syscall { name, errno } => {
            make(name.clone(), errno.to_string(), if *errno == 0 { Call } else { Decision })
        }
        Event::TaskSpawned { name } => make(format!("thread {name}"), no_answer(), Call),
        Event::TaskEnded => make("thread ends".into(), no_answer(), Mechanism),
        Event::Message { text } => make(format!("message {text}"), no_answer(), Decision),
        Event::ProcessExit { status } => make("end".into(), format!("exit {status}"), Decision),
        Event::Abort { message } => make("end".into(), format!("abort {message}"), Decision),
        Event::Panic { message } => make("end".into(), format!("panic {message}"), Decision),
        Event::Deadline => make("end of time".into(), "deadline".into(), Decision),
        Event::Deadlock => make("end of time".into(), "deadlock".into(), Decision),
        Event::Outcome { kind, detail: _ } => make("outcome".into(), kind.clone(), Decision),
    }
}
