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
//! | the same, or the end of its time | some AP reported | `partial` |
//! | the same, or the end of its time | no AP reported | `hang` |
//! | any other exit of the frontend | | `exit N` |
//!
//! A guest that breaks or fails a test can never be `ok`; its report is the detail.

use serde::{Serialize, Serializer, ser::SerializeMap};
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
    /// Every AP that the guest was asked to start ran and reported, and all of the guest's tests passed.
    Ok,
    /// Some APs ran, but not all, or not well.
    Partial,
    /// No AP ran; host and userspace are healthy.
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

/// What the guest said about itself, gathered from a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    booted: bool,
    cpus_found: Option<u32>,
    aps_online: BTreeSet<u32>,
    tests_failed: Vec<u32>,
    done: bool,
    gave_up: bool,
    broken: Option<u32>,
    suspended: Option<String>,
    unimplemented: Option<String>,
    last_message: Option<String>,
}

impl Observed {
    /// Reads a trace.
    #[must_use]
    pub fn from_trace(trace: &Trace) -> Observed {
        let mut seen = Observed::default();
        for record in &trace.records {
            match &record.event {
                Event::Report(report) => match *report {
                    GuestReport::Boot { .. } => seen.booted = true,
                    GuestReport::CpusFound { cpus, .. } => seen.cpus_found = Some(cpus),
                    GuestReport::ApOnline { apic_id } => {
                        seen.aps_online.insert(apic_id);
                    }
                    GuestReport::TestFailed { test } => seen.tests_failed.push(test),
                    GuestReport::Done { .. } => seen.done = true,
                    GuestReport::GaveUp { .. } => seen.gave_up = true,
                    GuestReport::Broken { code } => seen.broken = Some(code),
                    GuestReport::ApAwaited { .. }
                    | GuestReport::TestPassed { .. }
                    | GuestReport::ApMissing { .. }
                    | GuestReport::Unknown { .. } => {}
                },
                Event::VmSuspended { how } => seen.suspended = Some(how.clone()),
                Event::Unimplemented { what, rip } if seen.unimplemented.is_none() => {
                    seen.unimplemented = Some(format!("{what} at {rip:#x}"));
                }
                Event::Message { text } => seen.last_message = Some(text.clone()),
                _ => {}
            }
        }
        seen
    }

    /// How many APs reported.
    #[must_use]
    pub fn aps_started(&self) -> u32 {
        u32::try_from(self.aps_online.len()).expect("an AP has a 24-bit id")
    }

    fn powered_off(&self) -> bool {
        self.suspended.as_deref() == Some("poweroff")
    }

    /// `1 of 3 APs came up`.
    fn aps(&self, cpus: u16) -> String {
        match (self.aps_online.len(), cpus - 1) {
            (_, 0) => "no AP was asked for".into(),
            (0, 1) => "the AP never came up".into(),
            (1, 1) => "the AP came up".into(),
            (0, asked) => format!("none of {asked} APs came up"),
            (online, asked) if online == usize::from(asked) => format!("all {asked} APs came up"),
            (online, asked) => format!("{online} of {asked} APs came up"),
        }
    }

    /// What the guest itself found wrong, in its words; `None` when it was content.
    fn complaint(&self, cpus: u16) -> Option<String> {
        if let Some(code) = self.broken {
            return Some(format!("the guest broke (code {code:#x})"));
        }
        if let Some(found) = self.cpus_found.filter(|&found| found != u32::from(cpus)) {
            return Some(format!("the guest found {found} CPUs instead of {cpus}"));
        }
        if !self.tests_failed.is_empty() {
            let tests: Vec<String> = self.tests_failed.iter().map(|&test| test_name(test)).collect();
            return Some(format!("the guest's test failed: {}", tests.join(", ")));
        }
        (self.gave_up).then(|| "the guest gave up waiting".into())
    }

    /// What to say when the frontend ended as it should after the guest powered itself off.
    fn powered_itself_off(&self, cpus: u16) -> Outcome {
        let all = self.aps_online.len() == usize::from(cpus - 1);
        if self.done && all && self.complaint(cpus).is_none() {
            return Outcome { kind: OutcomeKind::Ok, detail: format!("{}, and every test passed", self.aps(cpus)) };
        }
        self.came_to_nothing(cpus, "the guest powered itself off")
    }

    /// What to say when neither a power-off nor the frontend ended the cell. After a power-off it is the frontend that
    /// failed, however well the guest did.
    fn never_ended(&self, cpus: u16, why_over: &str) -> Outcome {
        if self.powered_off() {
            self.came_to_nothing(cpus, &format!("the guest powered itself off, but {why_over}"))
        } else {
            self.came_to_nothing(cpus, why_over)
        }
    }

    fn came_to_nothing(&self, cpus: u16, why_over: &str) -> Outcome {
        let complaint = self.complaint(cpus);
        let aps = self.aps(cpus);
        let kind = if self.aps_online.is_empty() { OutcomeKind::Hang } else { OutcomeKind::Partial };
        let mut detail = match complaint {
            Some(complaint) => format!("{complaint}: {aps}"),
            None if !self.booted => format!("{why_over} before the guest said a word"),
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
    match test {
        report_port::TEST_COUNTERS => "counters".into(),
        report_port::TEST_PING_PONG => "ping-pong".into(),
        report_port::TEST_SPIN_LOCK => "spin-lock".into(),
        report_port::TEST_TIMER => "timer".into(),
        other => format!("number {other}"),
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
    const DONE: GuestReport = GuestReport::Done { aps: 2 };

    #[test]
    fn every_way_to_end() {
        use GuestReport::{ApMissing, Broken, GaveUp, TestFailed};
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
                outcome(3, End::Exit(1), &[BOOT, FOUND_3, ONLINE_1, ONLINE_2, TestFailed { test: 3 }, DONE], true),
            ),
            ("broke early", outcome(3, End::Exit(1), &[BOOT, Broken { code: 0xe }], true)),
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
