//! Events in words.

use crate::outcome::{broken_in_words, stray, test_name};
use vmm::abi::Errno;
use vmm::trace::{DeliveryMode, DropReason, Event, GuestReport, Shorthand, StartupStore, report_port};

/// An errno as its name, or as the number when it is no known one.
#[must_use]
pub fn errno_name(errno: i32) -> String {
    match Errno::ALL.iter().find(|known| known.number() == errno) {
        Some(known) => format!("{known:?}"),
        None => format!("errno {errno}"),
    }
}

/// Why an IPI was dropped, in words.
#[must_use]
pub fn drop_reason(why: DropReason) -> &'static str {
    match why {
        DropReason::NoDestination => "it is for nobody",
        DropReason::InitDeassert => "INIT level de-assert does nothing",
        DropReason::InvalidCombination => "mode, trigger and shorthand do not go together",
        DropReason::NotWaitingForSipi => "the target does not wait for a STARTUP",
        DropReason::NotInInitState => "the target's start-up state takes no INIT",
        DropReason::DestinationOutOfRange => "the destination is the sender or no vCPU",
        DropReason::LogicalDestination => "logical destinations are not taken",
        DropReason::IllegalVector => "the vector is illegal",
        DropReason::ExitLost => "the exit of a WRMSR is lost",
        DropReason::SoftwareDisabled => "the target's local APIC is disabled by software",
    }
}

fn store(store: StartupStore) -> &'static str {
    match store {
        StartupStore::BootState => "boot_state",
        StartupStore::StartupCpus => "startup_cpus",
        StartupStore::RunState => "run state",
    }
}

/// The mode, with the vector where it means something: INIT ignores it (SDM 3A 11.6.1).
fn ipi(mode: DeliveryMode, vector: u8) -> String {
    if mode == DeliveryMode::Init { mode.to_string() } else { format!("{mode} vector {vector:#04x}") }
}

/// The CPU that a report is about, behind what it says.
fn on(apic_id: Option<u32>) -> String {
    apic_id.map_or_else(String::new, |apic_id| format!(" on CPU {apic_id}"))
}

fn report(report: &GuestReport) -> String {
    let say = |what: String| format!("guest: {what}");
    match *report {
        GuestReport::Boot { x2apic } => say(format!("booted, {} mode", if x2apic { "x2APIC" } else { "xAPIC" })),
        GuestReport::CpusFound { cpus, mp_table } => {
            say(format!("found {cpus} CPUs in the {}", if mp_table { "MP table" } else { "MADT" }))
        }
        GuestReport::ApAwaited { apic_id } => say(format!("waits for AP {apic_id}")),
        GuestReport::ApOnline { apic_id } => say(format!("AP {apic_id} is online")),
        GuestReport::ApsAsked { aps: 1 } => say("asks for 1 AP".into()),
        GuestReport::ApsAsked { aps } => say(format!("asks for {aps} APs")),
        GuestReport::TestPassed { test, apic_id } => say(format!("test {}{} passed", test_name(test), on(apic_id))),
        GuestReport::TestFailed { test, apic_id } => say(format!("test {}{} FAILED", test_name(test), on(apic_id))),
        GuestReport::Seen { what, apic_id } => {
            let what = report_port::seen_name(what).map_or_else(|| format!("number {what}"), str::to_owned);
            say(format!("saw {what}{}", on(apic_id)))
        }
        GuestReport::Stray { apic_id, vector } => say(stray(apic_id, vector)),
        GuestReport::ApMissing { apic_id } => say(format!("AP {apic_id} is missing")),
        GuestReport::Done { aps } => say(format!("done with {aps} APs")),
        GuestReport::GaveUp { aps } => say(format!("gave up waiting, {aps} APs came up")),
        GuestReport::Broken { code } => say(format!("broke: {}", broken_in_words(code))),
        GuestReport::Unknown { word } => say(format!("unknown report {word:#010x}")),
    }
}

/// An event in words, without where and when.
#[must_use]
pub fn describe(event: &Event) -> String {
    match event {
        Event::Report(said) => report(said),
        Event::Milestone { name, line } => format!("console: {line} ({name})"),
        Event::FirstInstruction { cs, ip } => format!("first instruction at {cs:04x}:{ip:04x}"),
        Event::TripleFault => "triple fault".into(),
        Event::Unimplemented { what, rip } => format!("the software processor does not implement {what} at {rip:#x}"),
        Event::IcrWrite { mode, vector, dest, shorthand, logical, assert, msr, icr } => {
            let level = if icr & 0x8000 == 0 || *assert { "" } else { " level de-assert" };
            let to = match shorthand {
                Shorthand::None if *logical => format!("logical {dest:#x}"),
                Shorthand::None => format!("{dest}"),
                Shorthand::Itself => "itself".into(),
                Shorthand::AllIncludingSelf => "all".into(),
                Shorthand::AllExcludingSelf => "all but itself".into(),
            };
            let by = if *msr { "x2APIC" } else { "xAPIC" };
            format!("ICR write {:#x}: {}{level} to {to} ({by})", icr & 0xffff_ffff, ipi(*mode, *vector))
        }
        Event::DestinationResolved { mode, rule, among, targets } => {
            if among == targets {
                format!("{mode}: {} {targets}", rule.in_words())
            } else {
                format!("{mode}: {} {among}, got {targets}", rule.in_words())
            }
        }
        Event::ExitMask { mode, ipimask, dmask } => {
            format!("{mode}: is for {ipimask}, but the exit carries {dmask}")
        }
        Event::IpiDelivered { mode, vector, targets } => format!("{} delivered to {targets}", ipi(*mode, *vector)),
        Event::IpiDropped { mode, vector, why } => format!("{} dropped: {}", ipi(*mode, *vector), drop_reason(*why)),
        Event::IcrUnhandled { mode } => format!("{mode}: the ICR write goes to userspace"),
        Event::VcpuAllocated => "vCPU allocated".into(),
        Event::VcpuActivated => "vCPU activated".into(),
        Event::VcpuSuspended => "vCPU suspended".into(),
        Event::VcpuResumed => "vCPU resumed".into(),
        Event::VlapicReset => "local APIC reset".into(),
        Event::StartupState { targets, waiting, store: kept } => {
            let what = if *waiting { "now waits for a STARTUP" } else { "waits for a STARTUP no longer" };
            format!("{targets} {what} ({})", store(*kept))
        }
        Event::RendezvousBegun { targets } => format!("rendezvous with {targets} begun"),
        Event::RendezvousDone { targets } => format!("rendezvous with {targets} done"),
        Event::VmSuspended { how } => format!("VM suspended: {how}"),
        Event::Panic { message } => format!("host panic: {message}"),
        Event::Exit { name, payload, .. } if payload.is_empty() => format!("exit {name}"),
        Event::Exit { name, payload, .. } => format!("exit {name}: {payload}"),
        Event::Ioctl { name, request, detail, errno } => {
            let mut text = if name == "unknown" { format!("ioctl {request:#010x}") } else { name.clone() };
            if !detail.is_empty() {
                text.push(' ');
                text.push_str(detail);
            }
            if *errno != 0 {
                text.push_str(" = ");
                text.push_str(&errno_name(*errno));
            }
            text
        }
        Event::Syscall { name, errno: 0 } => name.clone(),
        Event::Syscall { name, errno } => format!("{name} = {}", errno_name(*errno)),
        Event::TaskSpawned { name } => format!("thread `{name}` created"),
        Event::TaskEnded => "thread ends".into(),
        Event::Message { text } => format!("stderr: {text}"),
        Event::ProcessExit { status } => format!("process exits with status {status}"),
        Event::Abort { message } => format!("process aborts: {message}"),
        Event::Deadline => "the cell's time is up".into(),
        Event::Deadlock => "every task waits for another".into(),
        Event::Outcome { kind, detail } => format!("outcome {kind}: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::every_event;

    #[test]
    fn every_event_reads_as_words() {
        let words: Vec<String> = every_event().iter().map(describe).collect();
        insta::assert_snapshot!(words.join("\n"));
    }
}
