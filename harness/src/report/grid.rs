//! The grid: kernels down, frontends across, and below it what needs words.

use super::Counts;
use super::paint::{BOLD, DIM, GOOD, KNOWN, RED, paint};
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use anstyle::Style;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Red cells of one pairing that get words of their own; the others of the pairing are counted.
const RED_PER_PAIRING: usize = 2;

/// Pairings with one reason that are named; more are counted, for the grid names them already.
const PAIRINGS_NAMED: usize = 3;

/// What the grid needs to know beside the results.
pub struct Context<'a> {
    /// The kernels in the order of the rows.
    pub kernels: &'a [&'a str],
    /// Whether a cell stands beside the grid, in a line of its own.
    pub beside: &'a dyn Fn(&Cell) -> bool,
    /// The options that repeat a run of one cell as this one was run, each after a space.
    pub repeated: &'a str,
    /// How long the run took.
    pub duration: Duration,
    /// The seed of the schedules.
    pub seed: u64,
}

/// A piece of text in one style.
struct Span {
    style: Style,
    text: String,
}

fn style(result: &CellResult) -> Style {
    match result.verdict {
        Verdict::Pass => GOOD,
        Verdict::Xfail => KNOWN,
        Verdict::Fail | Verdict::Xpass => RED,
        Verdict::NotApplicable | Verdict::Skipped => DIM,
    }
}

/// What a cell shows: its outcome, or that it did not run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Outcome(OutcomeKind),
    Skipped,
}

impl Shown {
    fn of(result: &CellResult) -> Shown {
        if result.verdict == Verdict::Skipped { Shown::Skipped } else { Shown::Outcome(result.outcome.kind) }
    }

    fn text(self) -> String {
        match self {
            Shown::Outcome(kind) => format!("{} {kind}", kind.glyph()),
            Shown::Skipped => "· not run".into(),
        }
    }
}

/// The results as people read them, with colours: the grid, the guests beside it, what was expected, what is red, and how
/// many of each.
#[must_use]
pub fn render(results: &[CellResult], context: &Context<'_>) -> String {
    let (beside, inside): (Vec<&CellResult>, Vec<&CellResult>) =
        results.iter().partition(|result| (context.beside)(&result.cell));
    let mut out = String::new();
    if !inside.is_empty() {
        table(&mut out, &inside, context.kernels);
    }
    let beside: Vec<&CellResult> = beside.into_iter().filter(|result| result.verdict != Verdict::Skipped).collect();
    if !beside.is_empty() {
        list_beside(&mut out, &beside);
    }
    known_failures(&mut out, &inside);
    red_cells(&mut out, results, context);
    summary(&mut out, results, context);
    out
}

fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(*name)).collect()
}

fn table(out: &mut String, results: &[&CellResult], kernels: &[&str]) {
    let there: BTreeSet<&str> = results.iter().map(|result| result.cell.kernel.as_str()).collect();
    let kernels: Vec<&str> = kernels.iter().copied().filter(|kernel| there.contains(kernel)).collect();
    let frontends = in_order(results.iter().map(|result| result.cell.frontend.as_str()));
    let entries: Vec<Vec<Vec<Span>>> = kernels
        .iter()
        .map(|kernel| {
            let row = |frontend: &&str| {
                let pairing: Vec<&CellResult> = results
                    .iter()
                    .copied()
                    .filter(|result| result.cell.kernel == *kernel && result.cell.frontend == *frontend)
                    .collect();
                entry(&pairing)
            };
            frontends.iter().map(row).collect()
        })
        .collect();

    let width = |text: &str| text.chars().count();
    let first = kernels.iter().map(|kernel| width(kernel)).max().unwrap_or(0);
    let columns: Vec<usize> = (0..frontends.len())
        .map(|column| {
            let widest = entries.iter().flat_map(|row| &row[column]).map(|span| width(&span.text)).max();
            widest.unwrap_or(0).max(width(frontends[column]))
        })
        .collect();

    let mut line = format!("  {:first$}", "");
    for (i, frontend) in frontends.iter().enumerate() {
        let padding = if i + 1 < frontends.len() { columns[i] - width(frontend) } else { 0 };
        let _ = write!(line, "   {}{:padding$}", paint(BOLD, frontend), "");
    }
    let _ = writeln!(out, "{}", line.trim_end());
    for (kernel, row) in kernels.iter().zip(&entries) {
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        for i in 0..height {
            let name = if i == 0 { *kernel } else { "" };
            let mut line = format!("  {}", paint(BOLD, &format!("{name:first$}")));
            for (entry, &column) in row.iter().zip(&columns) {
                match entry.get(i) {
                    Some(Span { style, text }) => {
                        let padding = column - width(text);
                        let _ = write!(line, "   {}{:padding$}", paint(*style, text), "");
                    }
                    None => {
                        let _ = write!(line, "   {:column$}", "");
                    }
                }
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    let _ = writeln!(out);
}

/// What the grid says about a pairing: a line for each outcome that its cells have, the most frequent first.
fn entry(pairing: &[&CellResult]) -> Vec<Span> {
    let mut groups: BTreeMap<Shown, Vec<&CellResult>> = BTreeMap::new();
    for &result in pairing {
        groups.entry(Shown::of(result)).or_default().push(result);
    }
    let mut groups: Vec<(Shown, Vec<&CellResult>)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
    groups
        .iter()
        .enumerate()
        .map(|(i, (shown, group))| {
            let mut text = format!("{} {}/{}", shown.text(), group.len(), pairing.len());
            if i > 0
                && let Some(which) = which(group, pairing)
            {
                let _ = write!(text, " {which}");
            }
            // The worst verdict of the group colours it.
            let worst = group.iter().max_by_key(|result| result.verdict.is_red()).expect("a group has a member");
            Span { style: style(worst), text }
        })
        .collect()
}

/// What tells some cells of a pairing from the others: the values that they have on each axis where the pairing has more.
/// `None` when they are no such product.
fn which(group: &[&CellResult], pairing: &[&CellResult]) -> Option<String> {
    let axes: [fn(&Cell) -> String; 4] =
        [|c| c.guest.clone(), |c| c.apic.to_string(), |c| format!("{} CPUs", c.cpus), |c| c.engine.to_string()];
    let values = |cells: &[&CellResult], axis: fn(&Cell) -> String| -> Vec<String> {
        let mut seen = BTreeSet::new();
        cells.iter().map(|result| axis(&result.cell)).filter(|value| seen.insert(value.clone())).collect()
    };
    let wanted = axes.map(|axis| values(group, axis));
    let in_product = |cell: &Cell| axes.iter().zip(&wanted).all(|(axis, values)| values.contains(&axis(cell)));
    if pairing.iter().filter(|result| in_product(&result.cell)).count() != group.len() {
        return None;
    }
    let told: Vec<String> = axes
        .into_iter()
        .zip(&wanted)
        .filter(|(axis, values_here)| values_here.len() < values(pairing, *axis).len())
        .map(|(_, values_here)| values_here.join("/"))
        .collect();
    (!told.is_empty()).then(|| told.join(" "))
}

fn list_beside(out: &mut String, results: &[&CellResult]) {
    let width =
        |part: fn(&CellResult) -> String| results.iter().map(|&result| part(result).chars().count()).max().unwrap_or(0);
    let shown = |result: &CellResult| Shown::of(result).text();
    let (cells, outcomes) = (width(|result| result.cell.to_string()), width(|result| Shown::of(result).text()));
    for result in results {
        let outcome = paint(style(result), &format!("{:outcomes$}", shown(result)));
        let name = format!("{:cells$}", result.cell.to_string());
        let _ = writeln!(out, "  {name}   {outcome}   {}", paint(DIM, &result.outcome.detail));
    }
    let _ = writeln!(out);
}

/// Why failures of the grid were expected, once for each reason.
fn known_failures(out: &mut String, results: &[&CellResult]) {
    let mut reasons: Vec<(&CellResult, Vec<String>)> = Vec::new();
    for &result in results.iter().filter(|result| result.verdict == Verdict::Xfail) {
        let pairing = result.cell.pairing();
        match reasons.iter_mut().find(|(known, _)| known.expectation == result.expectation) {
            Some((_, pairings)) if pairings.contains(&pairing) => {}
            Some((_, pairings)) => pairings.push(pairing),
            None => reasons.push((result, vec![pairing])),
        }
    }
    if reasons.is_empty() {
        return;
    }
    let _ = writeln!(out, "  {}", paint(BOLD, "expected failures"));
    let width = reasons.iter().map(|(result, _)| Shown::of(result).text().chars().count()).max().unwrap_or(0);
    for (result, pairings) in &reasons {
        let expectation = &result.expectation;
        let shown = format!("{:width$}", Shown::of(result).text());
        let which =
            if pairings.len() <= PAIRINGS_NAMED { pairings.join(", ") } else { format!("{} pairings", pairings.len()) };
        let _ = writeln!(out, "  {}   {which}", paint(KNOWN, &shown));
        let _ = writeln!(
            out,
            "  {:width$}   {} {}",
            "",
            expectation.reason.as_deref().unwrap_or_default(),
            paint(DIM, &format!("[{}]", expectation.reference.as_deref().unwrap_or_default())),
        );
    }
    let _ = writeln!(out);
}

fn red_cells(out: &mut String, results: &[CellResult], context: &Context<'_>) {
    let mut pairings: Vec<(String, Vec<&CellResult>)> = Vec::new();
    for result in results.iter().filter(|result| result.verdict.is_red()) {
        let pairing = result.cell.pairing();
        match pairings.iter_mut().find(|(known, _)| *known == pairing) {
            Some((_, red)) => red.push(result),
            None => pairings.push((pairing, vec![result])),
        }
    }
    for (pairing, red) in &pairings {
        for result in red.iter().take(RED_PER_PAIRING) {
            let expected = result.expectation.outcome;
            let _ = writeln!(out, "  {} {}", paint(RED, "red"), paint(BOLD, &result.cell.to_string()));
            let _ = writeln!(
                out,
                "      expected {expected}, but {}: {}",
                paint(RED, &Shown::of(result).text()),
                result.outcome.detail
            );
            if result.verdict == Verdict::Xpass {
                let reason = result.expectation.reason.as_deref().unwrap_or_default();
                let _ = writeln!(out, "      the failure was expected because {reason}; correct the [[expect]]");
            } else if result.outcome.kind != OutcomeKind::HarnessError {
                let _ =
                    writeln!(out, "      {}", paint(DIM, &format!("spinup repro {}{}", result.cell, context.repeated)));
            }
        }
        if red.len() > RED_PER_PAIRING {
            let more = red.len() - RED_PER_PAIRING;
            let _ = writeln!(out, "      and {more} more of {pairing}");
        }
        let _ = writeln!(out);
    }
}

fn summary(out: &mut String, results: &[CellResult], context: &Context<'_>) {
    let counts = Counts::of(results);
    let mut parts = vec![format!("{} ok", counts.pass)];
    let mut part = |count: usize, one: &str, many: &str, style: Option<Style>| {
        if count > 0 {
            let text = format!("{count} {}", if count == 1 { one } else { many });
            parts.push(style.map_or(text.clone(), |style| paint(style, &text)));
        }
    };
    part(counts.xfail, "expected failure", "expected failures", None);
    part(counts.not_applicable, "not applicable", "not applicable", None);
    part(counts.skipped, "not run", "not run", None);
    part(counts.red, "red", "red", Some(RED));
    part(counts.harness_errors, "of it our own fault", "of them our own fault", Some(RED));
    let cells = if results.len() == 1 { "cell" } else { "cells" };
    let _ = writeln!(
        out,
        "  {} {cells} in {:.1} s, seed {}: {}",
        results.len(),
        context.duration.as_secs_f64(),
        context.seed,
        parts.join(", ")
    );
    // Why an engine is out is worth a line, once.
    let reasons: BTreeSet<&str> = results
        .iter()
        .filter(|result| result.verdict == Verdict::NotApplicable)
        .map(|result| result.outcome.detail.as_str())
        .collect();
    for reason in reasons {
        let _ = writeln!(out, "  {}", paint(DIM, &format!("not applicable: {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::result;

    const FRONTENDS: [&str; 3] = ["bhyve-13.1", "bhyve-0bda8d3e", "bhyve-13.2"];

    /// A matrix of results; `observed` says what became of a cell and what was expected.
    fn results(observed: impl Fn(&Cell) -> (OutcomeKind, OutcomeKind)) -> Vec<CellResult> {
        let mut results = Vec::new();
        for kernel in ["fbsd-13.1", "main-7c326ab5", "naive-widen", "fbsd-13.2"] {
            for frontend in FRONTENDS {
                for guest in ["mp-spec", "linux"] {
                    for machine in ["xapic-2", "xapic-4", "x2apic-2", "x2apic-4"] {
                        let cell = format!("{frontend}@{kernel}/{guest}/{machine}/soft");
                        let (expected, kind) = observed(&cell.parse().expect("a cell"));
                        results.push(result(&cell, expected, kind));
                    }
                }
            }
        }
        results
    }

    fn known(cell: &Cell) -> OutcomeKind {
        match (cell.frontend.as_str(), cell.kernel.as_str()) {
            ("bhyve-13.1", "main-7c326ab5") => OutcomeKind::Hang,
            ("bhyve-13.1", "naive-widen") => OutcomeKind::Panic,
            ("bhyve-0bda8d3e" | "bhyve-13.2", "fbsd-13.1") => OutcomeKind::Abort,
            _ => OutcomeKind::Ok,
        }
    }

    fn plain(results: &[CellResult]) -> String {
        let context = Context {
            kernels: &["fbsd-13.1", "main-7c326ab5", "naive-widen", "fbsd-13.2"],
            beside: &|cell| cell.guest == "triple-fault",
            repeated: " --seed 7",
            duration: Duration::from_millis(1234),
            seed: 0,
        };
        anstream::adapter::strip_str(&render(results, &context)).to_string()
    }

    #[test]
    fn a_green_grid() {
        let mut results = results(|cell| (known(cell), known(cell)));
        let beside = "bhyve-13.2@fbsd-13.2/triple-fault/xapic-2/soft";
        results.push(result(beside, OutcomeKind::Exit(3), OutcomeKind::Exit(3)));
        insta::assert_snapshot!(plain(&results));
    }

    #[test]
    fn a_grid_with_red_cells_says_which_and_how_to_look_at_them() {
        let results = results(|cell| {
            let observed = match (cell.frontend.as_str(), cell.kernel.as_str()) {
                ("bhyve-13.1", "fbsd-13.2") => OutcomeKind::Hang,
                ("bhyve-13.1", "main-7c326ab5") if cell.guest == "linux" => OutcomeKind::Ok,
                ("bhyve-13.2", "fbsd-13.2") if cell.cpus == 4 && cell.guest == "linux" => OutcomeKind::Exit(4),
                ("bhyve-13.2", "naive-widen") if cell.to_string().contains("linux/xapic-4") => {
                    OutcomeKind::HarnessError
                }
                _ => known(cell),
            };
            (known(cell), observed)
        });
        insta::assert_snapshot!(plain(&results));
    }

    #[test]
    fn what_did_not_run_is_said() {
        let mut results = vec![
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", OutcomeKind::Ok, OutcomeKind::Ok),
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/kvm", OutcomeKind::Ok, OutcomeKind::NotApplicable),
            result("bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft", OutcomeKind::Ok, OutcomeKind::Ok),
        ];
        results[2].verdict = Verdict::Skipped;
        insta::assert_snapshot!(plain(&results));
    }
}
