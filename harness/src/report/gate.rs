//! The gate: what got worse since a baseline.

use super::Context;
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::matrix::{Date, Matrix, Supported};
use crate::outcome::OutcomeKind;
use crate::report::paint::{BOLD, DIM, GOOD, KNOWN, RED, paint};
use crate::run::{CellResult, Divergence};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Version of the verdict file.
const SCHEMA: u32 = 1;

/// Cells of one kind that are printed with all their words; the verdict file has all.
const TOLD: usize = 20;

/// What became of a cell since the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It was ok, and is not any more.
    Worse,
    /// It is not ok in another way than before, and nobody expected that.
    Otherwise,
    /// It was in the baseline, and is in the matrix no more.
    Gone,
    /// It did not run this time, though it should have.
    NotRun,
    /// It has had several outcomes.
    Flaky,
    /// It cannot be built here, but could where the baseline ran.
    NotApplicable,
    /// It is ok, and was not.
    Better,
    /// It is not in the baseline.
    New,
}

impl Change {
    /// Whether a release has to stop for it.
    fn stops(self) -> bool {
        matches!(self, Change::Worse | Change::Otherwise | Change::Gone | Change::NotRun)
    }

    fn word(self) -> &'static str {
        match self {
            Change::Worse => "worse",
            Change::Otherwise => "otherwise",
            Change::Gone => "gone",
            Change::NotRun => "not run",
            Change::Flaky => "flaky",
            Change::NotApplicable => "not applicable",
            Change::Better => "better",
            Change::New => "new",
        }
    }
}

/// A cell that is not as it was.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// The cell.
    pub cell: Cell,
    /// How it changed.
    pub change: Change,
    /// What it was: an outcome, or nothing.
    was: Option<String>,
    /// What it is.
    now: Option<String>,
    /// In words.
    detail: String,
    /// Whether it matters to the release.
    pub supported: bool,
    /// Why not, or until when.
    support: Option<String>,
    /// Where it parts ways with the nearest cell that is ok.
    pub divergence: Option<Divergence>,
    /// The command that shows it.
    repro: Option<String>,
}

/// What the gate found.
#[derive(Clone, Debug, Serialize)]
pub struct Gate {
    schema: u32,
    spinup: &'static str,
    /// `pass` or `fail`.
    verdict: &'static str,
    /// The day that support was looked at for.
    date: String,
    /// How many cells were compared.
    compared: usize,
    counts: BTreeMap<&'static str, usize>,
    /// The cells that are not as they were, the worst first.
    pub changes: Vec<Changed>,
}

/// Compares results with a baseline, on a day.
#[must_use]
pub fn compare(
    baseline: &[CellResult],
    results: &[CellResult],
    matrix: &Matrix,
    today: Date,
    context: &Context<'_>,
) -> Gate {
    let before: BTreeMap<&Cell, &CellResult> = baseline.iter().map(|result| (&result.cell, result)).collect();
    let now: BTreeMap<&Cell, &CellResult> = results.iter().map(|result| (&result.cell, result)).collect();
    let mut changes: Vec<Changed> = Vec::new();
    for result in results {
        let was = before.get(&result.cell).copied().filter(|was| was.verdict != Verdict::Skipped);
        if let Some(change) = change(was, result) {
            changes.push(changed(change, was, Some(result), matrix, today, context));
        }
    }
    // A cell that nobody asked for this time is no news; one that nobody can ask for is.
    let configured: std::collections::HashSet<Cell> = matrix.configured().into_iter().collect();
    for was in baseline.iter().filter(|was| !now.contains_key(&was.cell) && !configured.contains(&was.cell)) {
        changes.push(changed(Change::Gone, Some(was), None, matrix, today, context));
    }
    changes.sort_by_key(|changed| (!(changed.change.stops() && changed.supported), changed.change));
    let mut counts = BTreeMap::new();
    for changed in &changes {
        *counts.entry(changed.change.word()).or_default() += 1;
    }
    let failed = changes.iter().any(|changed| changed.supported && changed.change.stops());
    Gate {
        schema: SCHEMA,
        spinup: env!("CARGO_PKG_VERSION"),
        verdict: if failed { "fail" } else { "pass" },
        date: today.to_string(),
        compared: results.iter().filter(|result| before.contains_key(&result.cell)).count(),
        counts,
        changes,
    }
}

/// How a cell changed, if it did. What is expected of it does not count: an expectation may be as new as the fault.
fn change(was: Option<&CellResult>, now: &CellResult) -> Option<Change> {
    let (kind, verdict) = (now.outcome.kind, now.verdict);
    let Some(was) = was else {
        return match verdict {
            Verdict::Skipped => Some(Change::NotRun),
            _ => Some(Change::New),
        };
    };
    let was_ok = was.outcome.kind == OutcomeKind::Ok;
    match verdict {
        Verdict::Skipped => Some(Change::NotRun),
        Verdict::Flaky => Some(Change::Flaky),
        Verdict::NotApplicable => (was.verdict != Verdict::NotApplicable).then_some(Change::NotApplicable),
        _ if was.verdict == Verdict::NotApplicable => Some(Change::New),
        _ if was_ok && kind != OutcomeKind::Ok => Some(Change::Worse),
        _ if was_ok => None,
        _ if kind == OutcomeKind::Ok => Some(Change::Better),
        // Not ok in another way: no worse if that is what the matrix says by now, unless it is our own fault.
        _ if kind != was.outcome.kind && verdict.is_red() => Some(Change::Otherwise),
        _ => None,
    }
}

fn changed(
    change: Change,
    was: Option<&CellResult>,
    now: Option<&CellResult>,
    matrix: &Matrix,
    today: Date,
    context: &Context<'_>,
) -> Changed {
    let result = now.or(was).expect("it is in one of both");
    let (supported, support) = match matrix.supported(&result.cell, today) {
        Supported::Yes { until: None } => (true, None),
        Supported::Yes { until: Some(until) } => (true, Some(format!("supported until {until}"))),
        Supported::Expired { until, reason } => (false, Some(format!("supported until {until} only: {reason}"))),
        Supported::No => (false, Some("not supported: no [[support]] of the matrix matches it".into())),
    };
    let shows = now.is_some_and(|now| {
        !matches!(now.outcome.kind, OutcomeKind::Ok | OutcomeKind::NotApplicable | OutcomeKind::HarnessError)
    });
    let kind = |result: &CellResult| result.outcome.kind.to_string();
    Changed {
        cell: result.cell.clone(),
        change,
        was: was.map(kind),
        now: now.filter(|now| now.verdict != Verdict::Skipped).map(kind),
        detail: now.map_or("it is not in the matrix any more".into(), |now| now.outcome.detail.clone()),
        supported,
        support,
        divergence: now.and_then(|now| now.divergence.clone()),
        repro: shows.then(|| context.repro(result)),
    }
}

impl Gate {
    /// Whether nothing that matters got worse.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.verdict == "pass"
    }

    /// As people read it, with colours.
    #[must_use]
    pub fn show(&self) -> String {
        let mut out = String::new();
        let mut told: BTreeMap<(bool, Change), usize> = BTreeMap::new();
        for changed in &self.changes {
            // New cells are counted.
            if changed.change == Change::New {
                continue;
            }
            let count = told.entry((changed.supported, changed.change)).or_default();
            *count += 1;
            if *count <= TOLD {
                changed.show(&mut out);
            }
        }
        for ((supported, change), count) in told {
            if count > TOLD {
                let of = if supported { "" } else { ", not supported" };
                let _ = writeln!(out, "  and {} more: {}{of}", count - TOLD, change.word());
            }
        }
        if !out.is_empty() {
            out.push('\n');
        }
        let counts: Vec<String> = self.counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
        let counts = if counts.is_empty() { "nothing changed".into() } else { counts.join(", ") };
        let verdict = if self.passes() { paint(GOOD, "pass") } else { paint(RED, "fail") };
        let cells = if self.compared == 1 { "cell" } else { "cells" };
        let _ = writeln!(out, "  gate on {}: {verdict}, {} {cells} compared: {counts}", self.date, self.compared);
        out
    }
}

impl Changed {
    fn show(&self, out: &mut String) {
        let style = match (self.change.stops(), self.supported) {
            (true, true) => RED,
            (true, false) => KNOWN,
            (false, _) if self.change == Change::Better => GOOD,
            (false, _) => DIM,
        };
        let _ = writeln!(out, "  {} {}", paint(style, self.change.word()), paint(BOLD, &self.cell.to_string()));
        let nothing = || "nothing".to_owned();
        let (was, now) = (self.was.clone().unwrap_or_else(nothing), self.now.clone().unwrap_or_else(nothing));
        let _ = writeln!(out, "      was {was}, now {now}: {}", self.detail);
        if let Some(divergence) = &self.divergence {
            let _ = writeln!(out, "      {}", divergence.sentence);
        }
        if let Some(support) = &self.support {
            let _ = writeln!(out, "      {support}");
        }
        if let Some(repro) = &self.repro {
            let _ = writeln!(out, "      {}", paint(DIM, repro));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, result};

    const CELL: &str = "bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft";

    fn on(baseline: &[CellResult], results: &[CellResult], more: &str, day: &str) -> Gate {
        let text = Matrix::built_in().expect("a test keeps it right").source().text.clone();
        let matrix = Matrix::parse("m", &format!("{text}\n{more}")).expect("a matrix");
        compare(baseline, results, &matrix, day.parse().expect("a day"), &context())
    }

    #[test]
    fn what_counts_is_what_was_seen() {
        use OutcomeKind::{Hang, HarnessError, NotApplicable, Ok, Panic};
        let cell = |expected, seen| Some(result(CELL, expected, seen));
        for (was, now, expected) in [
            (cell(Ok, Ok), cell(Ok, Ok), None),
            (cell(Ok, Ok), cell(Ok, Hang), Some(Change::Worse)),
            // Whoever breaks a cell and writes that it is expected has broken it all the same.
            (cell(Ok, Ok), cell(Hang, Hang), Some(Change::Worse)),
            (cell(Hang, Hang), cell(Hang, Hang), None),
            (cell(Hang, Hang), cell(Hang, Panic), Some(Change::Otherwise)),
            (cell(Hang, Hang), cell(Panic, Panic), None),
            (cell(Hang, Hang), cell(Hang, HarnessError), Some(Change::Otherwise)),
            (cell(Hang, Hang), cell(Hang, Ok), Some(Change::Better)),
            (cell(Ok, Ok), cell(Ok, NotApplicable), Some(Change::NotApplicable)),
            (cell(Ok, NotApplicable), cell(Ok, Hang), Some(Change::New)),
            (None, cell(Ok, Ok), Some(Change::New)),
        ] {
            let now = now.expect("made above");
            assert_eq!(change(was.as_ref(), &now), expected, "{was:?} {now:?}");
        }
    }

    #[test]
    fn a_pairing_that_is_no_longer_supported_stops_nobody() {
        use OutcomeKind::{Hang, Ok};
        let (was, mut now) = ([result(CELL, Ok, Ok)], [result(CELL, Ok, Hang)]);
        let against = was[0].cell.clone();
        now[0].divergence = Some(Divergence { against, sentence: "INIT got {}".into() });
        let policy =
            "[[support]]\nmatch = { frontend = \"bhyve-13.1\" }\nuntil = 2027-03-31\nreason = \"until 14.4\"\n";
        assert!(!on(&was, &now, "", "2026-11-24").passes());
        assert!(!on(&was, &now, policy, "2027-03-31").passes());
        assert!(on(&was, &now, policy, "2027-04-01").passes());
        let text = [policy, ""].map(|policy| {
            let gate = on(&was, &now, policy, "2027-04-01");
            anstream::adapter::strip_str(&gate.show()).to_string()
        });
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn cells_that_are_gone_or_did_not_run_stop_a_release() {
        use OutcomeKind::Ok;
        let was = [result(CELL, Ok, Ok), result("bhyve-13.1@main-7c326ab5/mp-spec/xapic-3/soft", Ok, Ok)];
        let only_gone = on(&was, &was[..1], "", "2026-11-24");
        assert_eq!(only_gone.changes.iter().map(|changed| changed.change).collect::<Vec<_>>(), [Change::Gone]);
        assert!(!only_gone.passes());
        // The other one is in the matrix: it was not asked for.
        assert!(on(&was[..1], &[], "", "2026-11-24").passes());
        let mut skipped = was[0].clone();
        skipped.verdict = Verdict::Skipped;
        assert!(!on(&was[..1], &[skipped], "", "2026-11-24").passes());
    }
}
