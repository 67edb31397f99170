//! Results for people ([`grid`]) and programs ([`json`]).

pub mod grid;
pub mod json;
pub mod paint;
pub mod unexplained;

use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;

/// The exit status that results ask for: 0 all green, 1 some red, 3 our own fault.
#[must_use]
pub fn exit_status(results: &[CellResult]) -> u8 {
    if results.iter().any(|result| result.outcome.kind == OutcomeKind::HarnessError) {
        3
    } else if results.iter().any(|result| result.verdict.is_red()) {
        1
    } else {
        0
    }
}

/// The exit status of a command that compares cells, whatever is expected of them: 3 if one of them is our own fault, and
/// otherwise `status`.
#[must_use]
pub fn unless_our_fault<'a>(results: impl IntoIterator<Item = &'a CellResult>, status: u8) -> u8 {
    let our_fault = |result: &CellResult| result.outcome.kind == OutcomeKind::HarnessError;
    if results.into_iter().any(our_fault) { 3 } else { status }
}

/// How many results have each verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    pass: usize,
    xfail: usize,
    red: usize,
    not_applicable: usize,
    skipped: usize,
    harness_errors: usize,
}

impl Counts {
    fn of(results: &[CellResult]) -> Counts {
        let mut counts = Counts::default();
        for result in results {
            match result.verdict {
                Verdict::Pass => counts.pass += 1,
                Verdict::Xfail => counts.xfail += 1,
                Verdict::Fail | Verdict::Xpass => counts.red += 1,
                Verdict::NotApplicable => counts.not_applicable += 1,
                Verdict::Skipped => counts.skipped += 1,
            }
            counts.harness_errors += usize::from(result.outcome.kind == OutcomeKind::HarnessError);
        }
        counts
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::cell::Cell;
    use crate::matrix::Expectation;
    use crate::matrix::verdict::Verdict;
    use crate::outcome::{Outcome, OutcomeKind};
    use crate::run::CellResult;
    use std::time::Duration;

    /// A result made by hand.
    pub(crate) fn result(cell: &str, expected: OutcomeKind, observed: OutcomeKind) -> CellResult {
        let detail = match observed {
            OutcomeKind::Ok => "all 3 APs came up, and every test passed",
            OutcomeKind::Hang => "the guest gave up waiting: none of 3 APs came up",
            OutcomeKind::Exit(_) => "vm_loop: unexpected exitcode 0xa",
            OutcomeKind::NotApplicable => "Cannot open /dev/kvm: No such file or directory (os error 2)",
            _ => "what the console said",
        };
        let known = expected != OutcomeKind::Ok;
        CellResult {
            cell: cell.parse::<Cell>().expect("a cell"),
            seed: 0,
            outcome: Outcome { kind: observed, detail: detail.into() },
            expectation: Expectation {
                outcome: expected,
                reason: known.then(|| "INIT reaches nobody".into()),
                reference: known.then(|| "D38446".into()),
                parked_exits_per_s: None,
            },
            verdict: Verdict::of(expected, observed),
            aps_started: if observed == OutcomeKind::Ok { 3 } else { 0 },
            duration: Duration::from_micros(1500),
            instructions: Some(12345),
            trace_sha256: Some("00ff".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::result;
    use super::*;

    #[test]
    fn the_exit_status_says_the_worst() {
        use OutcomeKind::{Hang, HarnessError, NotApplicable, Ok};
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft";
        let status = |pairs: &[(OutcomeKind, OutcomeKind)]| {
            let results: Vec<_> = pairs.iter().map(|&(expected, observed)| result(cell, expected, observed)).collect();
            exit_status(&results)
        };
        assert_eq!(status(&[]), 0);
        assert_eq!(status(&[(Ok, Ok), (Hang, Hang), (Ok, NotApplicable)]), 0);
        assert_eq!(status(&[(Ok, Ok), (Hang, Ok)]), 1);
        assert_eq!(status(&[(Ok, Hang)]), 1);
        assert_eq!(status(&[(Ok, Hang), (Ok, HarnessError)]), 3);
        let [red, ours] = [Hang, HarnessError].map(|observed| result(cell, Ok, observed));
        assert_eq!(unless_our_fault([&red], 0), 0);
        assert_eq!(unless_our_fault([&red, &ours], 1), 3);
    }
}
