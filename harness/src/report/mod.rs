//! Results for people ([`grid`], [`html`], [`markdown`]) and programs ([`json`], [`junit`], [`tap`]): all of them from the same
//! list of results, and written so that a reader never sees a part ([`file`]).

pub mod file;
pub mod files;
pub mod gate;
pub mod grid;
pub mod html;
pub mod json;
pub mod junit;
pub mod markdown;
pub mod paint;
pub mod tap;
pub mod unexplained;

use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use std::time::Duration;

/// What reports need to know beside the results.
pub struct Context<'a> {
    /// The kernels in the order of the rows.
    pub kernels: &'a [&'a str],
    /// Whether a cell stands beside the grid, in a line of its own.
    pub beside: &'a dyn Fn(&Cell) -> bool,
    /// The options that repeat a run of one cell as this one was run, but for the seed, each after a space.
    pub repeated: &'a str,
    /// Which matrix it was, if that is not plain: the end of a sentence.
    pub matrix: &'a str,
    /// How long the run took.
    pub duration: Duration,
    /// The seed of the schedules.
    pub seed: u64,
}

impl Context<'_> {
    /// The command that shows where a red cell parts ways with the nearest one that is ok, or what it does if it is ok.
    #[must_use]
    pub fn repro(&self, result: &CellResult) -> String {
        let seed = if result.seed == 0 { String::new() } else { format!(" --seed {}", result.seed) };
        let command = if result.outcome.kind == OutcomeKind::Ok { "trace" } else { "repro" };
        format!("spinup {command} {}{}{seed}", result.cell, self.repeated)
    }

    /// `171 cells in 0.6 s, seed 0`.
    fn run(&self, results: &[CellResult]) -> String {
        let cells = if results.len() == 1 { "cell" } else { "cells" };
        let Context { duration, seed, matrix, .. } = self;
        format!("{} {cells} in {:.1} s, seed {seed}{matrix}", results.len(), duration.as_secs_f64())
    }
}

/// What is to be said about a result beside its name, in one line: what was seen, and what was expected if that is news.
#[must_use]
pub fn told(result: &CellResult) -> String {
    let CellResult { outcome, expectation, verdict, .. } = result;
    let reason = expectation.reason.as_deref().unwrap_or_default();
    let reference = expectation.reference.as_deref().map_or(String::new(), |reference| format!(" [{reference}]"));
    match verdict {
        Verdict::Skipped => "it did not run".into(),
        Verdict::Pass | Verdict::NotApplicable => outcome.detail.clone(),
        Verdict::Xfail => format!("expected {}: {reason}{reference}", outcome.kind),
        Verdict::Flaky => format!("{}: {}", outcome.kind, outcome.detail),
        Verdict::Fail => format!("expected {}, but {}: {}", expectation.outcome, outcome.kind, outcome.detail),
        Verdict::Xpass => {
            format!("expected {}, but ok; it was expected because {reason}{reference}", expectation.outcome)
        }
    }
}

/// Columns of standard output where it is no terminal and nobody says otherwise.
const PLAIN_WIDTH: usize = 120;

/// How many columns standard output has: the terminal's, or what `COLUMNS` says, or 120.
#[must_use]
pub fn stdout_width() -> usize {
    let terminal = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.or_else(columns).unwrap_or(PLAIN_WIDTH)
}

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
    flaky: usize,
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
                Verdict::Flaky => counts.flaky += 1,
                Verdict::Fail | Verdict::Xpass => counts.red += 1,
                Verdict::NotApplicable => counts.not_applicable += 1,
                Verdict::Skipped => counts.skipped += 1,
            }
            counts.harness_errors += usize::from(result.outcome.kind == OutcomeKind::HarnessError);
        }
        counts
    }

    /// `112 ok`, `59 expected failures`: each that is not 0, and how many are ok.
    fn told(&self) -> Vec<String> {
        let mut parts = vec![format!("{} ok", self.pass)];
        let mut part = |count: usize, one: &str, many: &str| {
            if count > 0 {
                parts.push(format!("{count} {}", if count == 1 { one } else { many }));
            }
        };
        part(self.xfail, "expected failure", "expected failures");
        part(self.flaky, "known race", "known races");
        part(self.not_applicable, "not applicable", "not applicable");
        part(self.skipped, "not run", "not run");
        part(self.red, "red", "red");
        part(self.harness_errors, "of it our own fault", "of them our own fault");
        parts
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::cell::Cell;
    use crate::matrix::Expectation;
    use crate::matrix::verdict::Verdict;
    use crate::outcome::{Outcome, OutcomeKind};
    use crate::report::Context;
    use crate::run::CellResult;
    use crate::run::{Divergence, Try};
    use std::time::Duration;

    /// A run of a second.
    pub(crate) fn context() -> Context<'static> {
        Context {
            kernels: &["fbsd-13.1", "main-7c326ab5", "naive-widen", "fbsd-13.2"],
            beside: &|cell| cell.guest == "triple-fault",
            repeated: " --timeout 2",
            matrix: ", the built-in matrix",
            duration: Duration::from_millis(1234),
            seed: 7,
        }
    }

    /// A result for each verdict, and one that is our own fault.
    pub(crate) fn every_verdict() -> Vec<CellResult> {
        use OutcomeKind::{Exit, Hang, HarnessError, NotApplicable, Ok};
        let mut results = vec![
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-4/soft", Ok, Ok),
            result("bhyve-13.1@fbsd-13.1/linux/xapic-4/soft", Ok, Hang),
            result("bhyve-13.1@main-7c326ab5/mp-spec/xapic-4/soft", Hang, Hang),
            result("bhyve-13.1@main-7c326ab5/linux/xapic-4/soft", Hang, Ok),
            result("bhyve-13.2@fbsd-13.1/mp-spec/xapic-4/kvm", Ok, NotApplicable),
            result("bhyve-13.2@fbsd-13.2/linux/xapic-4/soft", Ok, HarnessError),
            result("bhyve-13.2@fbsd-13.2/triple-fault/xapic-2/soft", Exit(3), Exit(3)),
            result("bhyve-13.2@fbsd-13.2/mp-spec/xapic-4/kvm", Ok, Hang),
            result("bhyve-13.2@fbsd-13.2/mp-spec/x2apic-4/soft", Ok, Ok),
        ];
        results[1].divergence = Some(Divergence {
            against: results[0].cell.clone(),
            sentence: "INIT from vCPU 0: one used the raw destination {1}; the other got {}".into(),
        });
        results[5].log = Some("vCPU 0: real mode, cs:ip f000:fff0\nthread panicked".into());
        results[7].verdict = Verdict::Flaky;
        results[7].tries = vec![Try { seed: 0, outcome: Ok }, Try { seed: 1, outcome: Hang }];
        results[8].verdict = Verdict::Skipped;
        results
    }

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
            parked_exits_per_s: Some(0.0),
            trace_sha256: Some("00ff".into()),
            tries: Vec::new(),
            divergence: None,
            log: None,
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
