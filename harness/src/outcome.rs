//! Outcomes: what became of a cell, derived from how it ended and what it left in its trace. Nothing here knows what was
//! expected.
//!
//! The kind says what became of the application processors, the detail why:
//!
//! | the cell ended with | and | kind |
//! |---|---|---|
//! | our own fault | | `harness-error` |
//! | a panic of the modelled host kernel | | `panic` |
//! | SIGABRT of the frontend | | `abort` |
//! | the frontend's exit after the guest's power-off | every AP that was asked for reported, every test passed, done | `ok` |
//! | the same, or the end of its time | some AP reported, or none was asked for and the guest complains | `partial` |
//! | the same, or the end of its time | no AP reported | `hang` |
//! | any other exit of the frontend | | `exit N` |
//! | the last milestone of a guest that is stopped there | every vCPU ran, some AP did, none did | `ok`, `partial`, `hang` |
//!
//! Firmware and whatever else knows no report port is judged by its console and its vCPUs: an AP that ran has come up.
//!
//! How many APs it asks for says the guest itself; one that does not asks for all. A guest that breaks, that fails a test or one of
//! whose CPUs is astray can never be `ok`; its report is the detail.

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use vmm::host::End;
use vmm::trace::{Event, GuestReport, Trace, report_port};

/// The status with which bhyve ends after the guest powered itself off (`vmexit_suspend`, spec history 3.0). Other frontends
/// end with 0.
const POWEROFF_STATUS: i32 = 1;

/// What became of a cell, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutcomeKind {
    /// Every AP that the guest asked for ran and reported, and all of the guest's tests passed.
    Ok,
    /// Some APs ran, but not all, or not well; or a guest that asks for none complains.
    Partial,
    /// None of the APs that were asked for ran; host and userspace are healthy.
    Hang,
    /// The frontend ended with this status.
    Exit(i32),
    /// The frontend was killed by SIGABRT.
    Abort,
    /// The modelled host kernel panicked.
    Panic,
    /// The cell cannot be built here.
    NotApplicable,
    /// Our own fault.
    HarnessError,
}

impl OutcomeKind {
    /// The kind without a status, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OutcomeKind::Ok => "ok",
            OutcomeKind::Partial => "partial",
            OutcomeKind::Hang => "hang",
            OutcomeKind::Exit(_) => "exit",
            OutcomeKind::Abort => "abort",
            OutcomeKind::Panic => "panic",
            OutcomeKind::NotApplicable => "not-applicable",
            OutcomeKind::HarnessError => "harness-error",
        }
    }

    /// The kind that prints so, whether it can be expected or not.
    #[must_use]
    pub fn of_any(text: &str) -> Option<OutcomeKind> {
        match text {
            "n/a" | "not-applicable" => Some(OutcomeKind::NotApplicable),
            "harness-error" => Some(OutcomeKind::HarnessError),
            _ => text.parse().ok(),
        }
    }

    /// How bad it is: the worst of many stands for all of them where there is room for one.
    #[must_use]
    pub fn severity(self) -> u8 {
        match self {
            OutcomeKind::NotApplicable => 0,
            OutcomeKind::Ok => 1,
            OutcomeKind::Partial => 2,
            OutcomeKind::Hang => 3,
            OutcomeKind::Exit(_) => 4,
            OutcomeKind::Abort => 5,
            OutcomeKind::Panic => 6,
            OutcomeKind::HarnessError => 7,
        }
    }

    /// One character for the grid.
    #[must_use]
    pub fn glyph(self) -> char {
        match self {
            OutcomeKind::Ok => '✓',
            OutcomeKind::Partial => '◐',
            OutcomeKind::Hang => '⧗',
            OutcomeKind::Exit(_) => '✗',
            OutcomeKind::Abort => '!',
            OutcomeKind::Panic => '☠',
            OutcomeKind::NotApplicable => '–',
            OutcomeKind::HarnessError => '?',
        }
    }
}

/// `ok`, `exit 4`, `n/a`: as people read it.
impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutcomeKind::Exit(status) => write!(f, "exit {status}"),
            OutcomeKind::NotApplicable => f.write_str("n/a"),
            other => f.write_str(other.name()),
        }
    }
}

/// Why a text is no outcome that can be expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no outcome to expect: ok, partial, hang, exit N, abort or panic")]
pub struct OutcomeNameError(String);

/// The outcomes that a cell can be expected to have.
impl FromStr for OutcomeKind {
    type Err = OutcomeNameError;

    fn from_str(text: &str) -> Result<OutcomeKind, OutcomeNameError> {
        let error = || OutcomeNameError(text.to_owned());
        Ok(match text {
            "ok" => OutcomeKind::Ok,
            "partial" => OutcomeKind::Partial,
            "hang" => OutcomeKind::Hang,
            "abort" => OutcomeKind::Abort,
            "panic" => OutcomeKind::Panic,
            _ => {
                let status = text.strip_prefix("exit ").ok_or_else(error)?;
                OutcomeKind::Exit(status.parse().map_err(|_| error())?)
            }
        })
    }
}

/// What became of a cell, with the words behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// In a word.
    pub kind: OutcomeKind,
    /// In a sentence.
    pub detail: String,
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("kind", self.kind.name())?;
        let status = if let OutcomeKind::Exit(status) = self.kind { Some(status) } else { None };
        map.serialize_entry("status", &status)?;
        map.serialize_entry("detail", &self.detail)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Outcome, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            kind: String,
            status: Option<i32>,
            detail: String,
        }
        let Fields { kind, status, detail } = Fields::deserialize(deserializer)?;
        let kind = match (kind.as_str(), status) {
            ("exit", Some(status)) => Some(OutcomeKind::Exit(status)),
            (kind, _) => OutcomeKind::of_any(kind),
        };
        Ok(Outcome { kind: kind.ok_or_else(|| serde::de::Error::custom("no outcome has this kind"))?, detail })
    }
}

/// What the guest said about itself, gathered from a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    boots: usize,
    cpus_found: Option<u32>,
    aps_asked: Option<u32>,
    aps_online: BTreeSet<u32>,
    /// By test, in the order of their first failures: the CPUs that it is about.
    tests_failed: Vec<(u32, Vec<u32>)>,
    /// APIC ID and the vector of the page, or `None` for the reset vector.
    strays: BTreeSet<(u32, Option<u8>)>,
    done: bool,
    gave_up: bool,
    broken: Option<u32>,
    suspended: Option<String>,
    unimplemented: Option<String>,
    last_message: Option<String>,
    last_milestone: Option<String>,
    /// APs that executed an instruction.
    ran: BTreeSet<u32>,
}

impl Observed {
    /// Reads a trace.
    #[must_use]
    pub fn from_trace(trace: &Trace) -> Observed {
        let mut seen = Observed::default();
        for record in &trace.records {
            match &record.event {
                Event::Report(report) => match *report {
                    GuestReport::Boot { .. } => seen.boots += 1,
                    GuestReport::CpusFound { cpus, .. } => seen.cpus_found = Some(cpus),
                    GuestReport::ApOnline { apic_id } => {
                        seen.aps_online.insert(apic_id);
                    }
                    GuestReport::ApsAsked { aps } => seen.aps_asked = Some(aps),
                    GuestReport::TestFailed { test, apic_id } => seen.add_failure(test, apic_id),
                    GuestReport::Stray { apic_id, vector } => {
                        seen.strays.insert((apic_id, vector));
                    }
                    GuestReport::Done { .. } => seen.done = true,
                    GuestReport::GaveUp { .. } => seen.gave_up = true,
                    GuestReport::Broken { code } => seen.broken = Some(code),
                    GuestReport::ApAwaited { .. }
                    | GuestReport::TestPassed { .. }
                    | GuestReport::ApMissing { .. }
                    | GuestReport::Seen { .. }
                    | GuestReport::Unknown { .. } => {}
                },
                Event::VmSuspended { how } => seen.suspended = Some(how.clone()),
                Event::Unimplemented { what, rip } if seen.unimplemented.is_none() => {
                    seen.unimplemented = Some(format!("{what} at {rip:#x}"));
                }
                Event::Message { text } => seen.last_message = Some(text.clone()),
                Event::Milestone { name, .. } => seen.last_milestone = Some(name.clone()),
                Event::FirstInstruction { .. } => seen.ran.extend(record.vcpu.filter(|&vcpu| vcpu != 0).map(u32::from)),
                _ => {}
            }
        }
        seen
    }

    /// Takes every AP that executed an instruction for one that reported: for guests that know no report port.
    #[must_use]
    pub fn by_vcpus(self) -> Observed {
        Observed { aps_online: self.ran.clone(), ..self }
    }

    /// How many APs reported.
    #[must_use]
    pub fn aps_started(&self) -> u32 {
        u32::try_from(self.aps_online.len()).expect("an AP has a 24-bit id")
    }

    fn powered_off(&self) -> bool {
        self.suspended.as_deref() == Some("poweroff")
    }

    fn add_failure(&mut self, test: u32, apic_id: Option<u32>) {
        let at = self.tests_failed.iter().position(|(failed, _)| *failed == test).unwrap_or_else(|| {
            self.tests_failed.push((test, Vec::new()));
            self.tests_failed.len() - 1
        });
        self.tests_failed[at].1.extend(apic_id);
    }

    /// How many APs the guest asks for, on a machine with `cpus` vCPUs.
    fn asked(&self, cpus: u16) -> usize {
        self.aps_asked.map_or(usize::from(cpus) - 1, |aps| aps as usize)
    }

    /// `1 of 3 APs came up`.
    fn aps(&self, cpus: u16) -> String {
        match (self.aps_online.len(), self.asked(cpus)) {
            (0, 0) => "no AP was asked for".into(),
            (1, 0) => "an AP came up that nobody asked for".into(),
            (online, 0) => format!("{online} APs came up that nobody asked for"),
            (0, 1) => "the AP never came up".into(),
            (1, 1) => "the AP came up".into(),
            (0, asked) => format!("none of {asked} APs came up"),
            (online, asked) if online == asked => format!("all {asked} APs came up"),
            (online, asked) => format!("{online} of {asked} APs came up"),
        }
    }

    /// What the guest itself found wrong, in its words; `None` when it was content.
    fn complaint(&self, cpus: u16) -> Option<String> {
        if let Some(code) = self.broken {
            return Some(format!("the guest broke: {}", broken_in_words(code)));
        }
        if let Some(found) = self.cpus_found.filter(|&found| found != u32::from(cpus)) {
            return Some(format!("the guest found {found} CPUs instead of {cpus}"));
        }
        let failed = self.tests_failed.iter().map(|(test, cpus)| {
            let about = if cpus.is_empty() { String::new() } else { format!(" on {}", cpu_list(cpus)) };
            format!("test `{}` failed{about}", test_name(*test))
        });
        let strays = self.strays.iter().map(|&(apic_id, vector)| stray(apic_id, vector));
        let gave_up = self.gave_up.then(|| "the guest gave up waiting".to_owned());
        let complaints: Vec<String> = failed.chain(strays).chain(gave_up).collect();
        (!complaints.is_empty()).then(|| complaints.join(", "))
    }

    /// What to say when the frontend ended as it should after the guest powered itself off.
    fn powered_itself_off(&self, cpus: u16) -> Outcome {
        let all = self.aps_online.len() == self.asked(cpus);
        if self.done && all && self.complaint(cpus).is_none() {
            return Outcome { kind: OutcomeKind::Ok, detail: format!("{}, and every test passed", self.aps(cpus)) };
        }
        self.came_to_nothing(cpus, "the guest powered itself off")
    }

    /// What to say when the guest came to the milestone at which it is stopped.
    fn stopped(&self, cpus: u16) -> Outcome {
        let milestone = self.last_milestone.as_deref().unwrap_or_default();
        if self.aps_online.len() == self.asked(cpus) && self.complaint(cpus).is_none() {
            let detail = format!("the guest came to `{milestone}`: {}", self.aps(cpus));
            return Outcome { kind: OutcomeKind::Ok, detail };
        }
        self.came_to_nothing(cpus, "the guest was stopped")
    }

    /// What to say when neither a power-off nor the frontend ended the cell. After a power-off it is the frontend that
    /// failed, however well the guest did.
    fn never_ended(&self, cpus: u16, why_over: &str) -> Outcome {
        match self.boots {
            _ if self.powered_off() => {
                self.came_to_nothing(cpus, &format!("the guest powered itself off, but {why_over}"))
            }
            0 | 1 => self.came_to_nothing(cpus, why_over),
            boots => self.came_to_nothing(cpus, &format!("{why_over} after {} reboots", boots - 1)),
        }
    }

    fn came_to_nothing(&self, cpus: u16, why_over: &str) -> Outcome {
        let complaint = self.complaint(cpus);
        let aps = self.aps(cpus);
        // A guest that asks for no AP hangs only when it does not end.
        let judged = self.asked(cpus) == 0 && complaint.is_some();
        let kind = if self.aps_online.is_empty() && !judged { OutcomeKind::Hang } else { OutcomeKind::Partial };
        let mut detail = match complaint {
            Some(complaint) => format!("{complaint}: {aps}"),
            None if self.boots == 0 && self.last_milestone.is_none() => {
                format!("{why_over} before the guest said a word")
            }
            None if self.boots == 0 => {
                let milestone = self.last_milestone.as_deref().unwrap_or_default();
                format!("{why_over} after the milestone `{milestone}`: {aps}")
            }
            None => format!("{why_over}: {aps}"),
        };
        if let Some(what) = &self.unimplemented {
            detail.push_str(&format!("; the software processor does not implement {what}"));
        }
        Outcome { kind, detail }
    }
}

/// The name of a guest's test (`TEST_*` of the report port).
#[must_use]
pub fn test_name(test: u32) -> String {
    report_port::test_name(test).map_or_else(|| format!("number {test}"), str::to_owned)
}

/// Why a guest broke (`BROKEN_*` of the report port), in words.
#[must_use]
pub fn broken_in_words(code: u32) -> String {
    match (code, report_port::broken_in_words(code)) {
        (_, Some(words)) => words.into(),
        (0x100..0x200, None) => format!("exception or interrupt {:#04x}", code - 0x100),
        (_, None) => format!("code {code:#x}"),
    }
}

/// A CPU that runs where nobody sent it, in words; `vector` is that of the page where it began, `None` the reset vector.
#[must_use]
pub fn stray(apic_id: u32, vector: Option<u8>) -> String {
    match vector {
        Some(vector) => format!("CPU {apic_id} is astray in page {vector:#04x}"),
        None => format!("CPU {apic_id} is astray at the reset vector"),
    }
}

/// `CPU 1`, `CPUs 1, 2 and 5`, `96 CPUs from 2 on`.
fn cpu_list(cpus: &[u32]) -> String {
    const LISTED: usize = 8;
    match cpus {
        [] => "no CPU".into(),
        [one] => format!("CPU {one}"),
        [first, ..] if cpus.len() > LISTED => format!("{} CPUs from {first} on", cpus.len()),
        [before @ .., last] => {
            let before: Vec<String> = before.iter().map(u32::to_string).collect();
            format!("CPUs {} and {last}", before.join(", "))
        }
    }
}

/// What became of a cell with `cpus` vCPUs that ended so and left this trace.
#[must_use]
pub fn observe(cpus: u16, end: &End, seen: &Observed) -> Outcome {
    match end {
        End::HarnessError(what) => Outcome { kind: OutcomeKind::HarnessError, detail: what.clone() },
        End::Panic(message) => Outcome { kind: OutcomeKind::Panic, detail: message.clone() },
        End::Abort(message) => Outcome { kind: OutcomeKind::Abort, detail: message.clone() },
        End::Exit(0 | POWEROFF_STATUS) if seen.powered_off() => seen.powered_itself_off(cpus),
        End::Stopped => seen.stopped(cpus),
        End::Rebooted(times) => seen.never_ended(cpus, &format!("the guest reset its machine more than {times} times")),
        End::Deadline => seen.never_ended(cpus, "the time was up"),
        End::Deadlock => seen.never_ended(cpus, "every task waited for another"),
        End::Exit(status) => Outcome {
            kind: OutcomeKind::Exit(*status),
            detail: match (&seen.last_message, &seen.suspended) {
                (Some(said), _) => said.clone(),
                (None, Some(how)) => format!("{how}: the frontend ended with status {status}"),
                (None, None) => format!("the frontend ended with status {status}"),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::Builder;
    use proptest::prelude::*;

    fn outcome(cpus: u16, end: End, reports: &[GuestReport], powered_off: bool) -> Outcome {
        let mut trace = Builder::new();
        for report in reports {
            trace.emit("vcpu 0", Some(0), Event::Report(*report));
        }
        if powered_off {
            trace.emit("vcpu 0", Some(0), Event::VmSuspended { how: "poweroff".into() });
        }
        observe(cpus, &end, &Observed::from_trace(&trace.finish()))
    }

    const BOOT: GuestReport = GuestReport::Boot { x2apic: false };
    const FOUND_3: GuestReport = GuestReport::CpusFound { cpus: 3, mp_table: false };
    const ONLINE_1: GuestReport = GuestReport::ApOnline { apic_id: 1 };
    const ONLINE_2: GuestReport = GuestReport::ApOnline { apic_id: 2 };
    const ONLINE_3: GuestReport = GuestReport::ApOnline { apic_id: 3 };
    const DONE: GuestReport = GuestReport::Done { aps: 2 };
    const NONE_ASKED: GuestReport = GuestReport::ApsAsked { aps: 0 };
    const NONE_DONE: GuestReport = GuestReport::Done { aps: 0 };

    #[test]
    fn every_way_to_end() {
        use GuestReport::{ApMissing, ApsAsked, Broken, GaveUp, Stray, TestFailed};
        let good = [BOOT, FOUND_3, ONLINE_2, ONLINE_1, DONE];
        let missing = [BOOT, FOUND_3, ApMissing { apic_id: 1 }, ApMissing { apic_id: 2 }, GaveUp { aps: 0 }];
        let cases = [
            ("all came up", outcome(3, End::Exit(1), &good, true)),
            (
                "an AP that reports twice is one AP",
                outcome(3, End::Exit(1), &[BOOT, FOUND_3, ONLINE_1, ONLINE_1, DONE], true),
            ),
            ("exit 1 without power-off", outcome(3, End::Exit(1), &good, false)),
            ("another status after power-off", outcome(3, End::Exit(4), &good, true)),
            ("no power-off in time", outcome(3, End::Deadline, &good, false)),
            ("a frontend that outlives the power-off", outcome(3, End::Deadline, &good, true)),
            ("a frontend that stands still after the power-off", outcome(3, End::Deadlock, &good, true)),
            ("gave up, none", outcome(3, End::Exit(1), &missing, true)),
            ("gave up, some", outcome(3, End::Exit(1), &[BOOT, FOUND_3, ONLINE_1, GaveUp { aps: 1 }], true)),
            (
                "a test failed",
                outcome(
                    3,
                    End::Exit(1),
                    &[BOOT, FOUND_3, ONLINE_1, ONLINE_2, TestFailed { test: 3, apic_id: None }, DONE],
                    true,
                ),
            ),
            (
                "tests failed on some CPUs",
                outcome(
                    4,
                    End::Exit(1),
                    &[
                        ONLINE_1,
                        ONLINE_2,
                        ONLINE_3,
                        TestFailed { test: 6, apic_id: Some(1) },
                        TestFailed { test: 5, apic_id: Some(2) },
                        TestFailed { test: 6, apic_id: Some(2) },
                        TestFailed { test: 6, apic_id: Some(3) },
                        GuestReport::Done { aps: 3 },
                    ],
                    true,
                ),
            ),
            (
                "a test failed on many CPUs",
                outcome(
                    11,
                    End::Exit(1),
                    &(1..10).map(|cpu| TestFailed { test: 5, apic_id: Some(cpu) }).collect::<Vec<_>>(),
                    true,
                ),
            ),
            ("none asked for", outcome(3, End::Exit(1), &[BOOT, FOUND_3, NONE_ASKED, NONE_DONE], true)),
            (
                "none asked for, one came",
                outcome(3, End::Exit(1), &[BOOT, FOUND_3, NONE_ASKED, ONLINE_1, NONE_DONE], true),
            ),
            (
                "none asked for, a test failed",
                outcome(3, End::Exit(1), &[NONE_ASKED, TestFailed { test: 14, apic_id: Some(0) }, NONE_DONE], true),
            ),
            ("none asked for, no end", outcome(3, End::Deadline, &[BOOT, FOUND_3, NONE_ASKED], false)),
            ("fewer asked for", outcome(3, End::Exit(1), &[FOUND_3, ApsAsked { aps: 1 }, ONLINE_1, DONE], true)),
            (
                "all came up, one by a wrong way",
                outcome(3, End::Exit(1), &[Stray { apic_id: 2, vector: None }, ONLINE_1, ONLINE_2, DONE], true),
            ),
            (
                "one is astray",
                outcome(3, End::Exit(1), &[ONLINE_1, Stray { apic_id: 2, vector: Some(9) }, GaveUp { aps: 1 }], true),
            ),
            ("broke early", outcome(3, End::Exit(1), &[BOOT, Broken { code: 1 }], true)),
            ("an exception", outcome(3, End::Exit(1), &[BOOT, Broken { code: 0x10d }], true)),
            ("found too few", outcome(4, End::Exit(1), &good, true)),
            ("deadline, silent", outcome(2, End::Deadline, &[], false)),
            ("deadlock", outcome(2, End::Deadlock, &[BOOT], false)),
            ("exit without a word", outcome(2, End::Exit(4), &[BOOT], false)),
            ("abort", outcome(2, End::Abort("Assertion failed: (error == 0)".into()), &[], false)),
            ("panic", outcome(2, End::Panic("page fault".into()), &[BOOT], false)),
            ("our fault", outcome(2, End::HarnessError("a task panicked".into()), &good, true)),
            (
                "one CPU",
                outcome(
                    1,
                    End::Exit(1),
                    &[BOOT, GuestReport::CpusFound { cpus: 1, mp_table: false }, GuestReport::Done { aps: 0 }],
                    true,
                ),
            ),
        ];
        let table: Vec<String> =
            cases.iter().map(|(case, outcome)| format!("{case}: {} - {}", outcome.kind, outcome.detail)).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    proptest! {
        #[test]
        fn ok_needs_every_ap(online in prop::collection::btree_set(1u32..8, 0..8), cpus in 1u16..9) {
            let mut reports = vec![BOOT, GuestReport::CpusFound { cpus: cpus.into(), mp_table: false }];
            reports.extend(online.iter().map(|&apic_id| GuestReport::ApOnline { apic_id }));
            reports.push(GuestReport::Done { aps: 0 });
            let outcome = outcome(cpus, End::Exit(1), &reports, true);
            prop_assert_eq!(outcome.kind == OutcomeKind::Ok, online.len() == usize::from(cpus - 1));
        }

        #[test]
        fn expected_outcomes_parse_as_they_print(kind in prop_oneof![
            Just(OutcomeKind::Ok), Just(OutcomeKind::Partial), Just(OutcomeKind::Hang), any::<i32>().prop_map(OutcomeKind::Exit),
            Just(OutcomeKind::Abort), Just(OutcomeKind::Panic)
        ]) {
            prop_assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn nobody_expects_a_harness_error() {
        assert!("harness-error".parse::<OutcomeKind>().is_err());
        assert!("not-applicable".parse::<OutcomeKind>().is_err());
        assert!("exit x".parse::<OutcomeKind>().is_err());
    }
}
