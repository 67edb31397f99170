//! The grid: kernels down, frontends across, and below it what needs words.

use super::paint::{BOLD, DIM, GOOD, KNOWN, RED, paint};
use super::{Context, Counts};
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use anstyle::Style;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Red cells of one pairing that get words of their own; the others of the pairing are counted.
const RED_PER_PAIRING: usize = 2;

/// Pairings with red cells that get words; of the others a line each, and beyond that a number.
const RED_PAIRINGS: usize = 8;
const RED_LINES: usize = 40;

/// Lines of what is left of a cell that was our own fault; the reports have all.
const LOG_LINES: usize = 12;

/// Cells beside the grid that get a line.
const BESIDE_TOLD: usize = 24;

/// Reasons why cells are not applicable that are told.
const NOT_APPLICABLE_TOLD: usize = 4;

/// Pairings with one reason that are named; more are counted, for the grid names them already.
const PAIRINGS_NAMED: usize = 3;

/// Reasons of expected failures that are told, the most frequent first; the reports tell all.
const REASONS_TOLD: usize = 12;

/// Ways in which pairings are mixed that a compact grid spells out below it.
const MIXTURES_TOLD: usize = 12;

/// Columns of a frontend in the compact grid, from roomy to tight.
const COMPACT_COLUMNS: [usize; 3] = [5, 4, 3];

/// What a compact grid marks a pairing with that has more than one outcome.
const MIXED: char = '*';

/// A piece of text in one style.
struct Span {
    style: Style,
    text: String,
}

fn style(result: &CellResult) -> Style {
    match result.verdict {
        Verdict::Pass => GOOD,
        Verdict::Xfail | Verdict::Flaky => KNOWN,
        Verdict::Fail | Verdict::Xpass => RED,
        Verdict::NotApplicable | Verdict::Skipped => DIM,
    }
}

/// What a cell shows: its outcome, or that it did not run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shown {
    Outcome(OutcomeKind),
    Skipped,
}

impl Shown {
    pub(super) fn of(result: &CellResult) -> Shown {
        if result.verdict == Verdict::Skipped { Shown::Skipped } else { Shown::Outcome(result.outcome.kind) }
    }

    pub(super) fn glyph(self) -> char {
        match self {
            Shown::Outcome(kind) => kind.glyph(),
            Shown::Skipped => '·',
        }
    }

    /// What the glyph stands for.
    fn legend(self) -> String {
        match self {
            Shown::Outcome(OutcomeKind::Exit(_)) => format!("{} exit", self.glyph()),
            other => other.text(),
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Shown::Outcome(kind) => format!("{} {kind}", kind.glyph()),
            Shown::Skipped => "· not run".into(),
        }
    }
}

/// How much attention a result asks for, to find the one that stands for many: red before known before good, and among
/// those the worse outcome.
pub(super) fn weight(result: &CellResult) -> (u8, u8) {
    let verdict = match result.verdict {
        Verdict::Fail | Verdict::Xpass => 4,
        Verdict::Flaky => 3,
        Verdict::Xfail => 2,
        Verdict::Pass => 1,
        Verdict::NotApplicable | Verdict::Skipped => 0,
    };
    (verdict, result.outcome.kind.severity())
}

/// The results as people read them, with colours: the grid, the guests beside it, what was expected, what is red, and how
/// many of each. The grid takes the form that `width` columns have room for.
#[must_use]
pub fn render(results: &[CellResult], context: &Context<'_>, width: usize) -> String {
    let (beside, inside): (Vec<&CellResult>, Vec<&CellResult>) =
        results.iter().partition(|result| (context.beside)(&result.cell));
    let mut out = String::new();
    if !inside.is_empty() {
        table(&mut out, &Pairings::of(&inside, context.kernels), width);
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

/// The results by kernel, down, and frontend, across.
pub(super) struct Pairings<'a> {
    pub(super) kernels: Vec<&'a str>,
    pub(super) frontends: Vec<&'a str>,
    cells: BTreeMap<(&'a str, &'a str), Vec<&'a CellResult>>,
}

impl<'a> Pairings<'a> {
    /// `kernels` is the order of the rows; the frontends are in the order in which they come.
    pub(super) fn of(results: &[&'a CellResult], kernels: &[&'a str]) -> Pairings<'a> {
        let mut cells: BTreeMap<(&str, &str), Vec<&CellResult>> = BTreeMap::new();
        let (mut frontends, mut seen, mut there) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for &result in results {
            let Cell { kernel, frontend, .. } = &result.cell;
            cells.entry((kernel, frontend)).or_default().push(result);
            there.insert(kernel.as_str());
            if seen.insert(frontend.as_str()) {
                frontends.push(frontend.as_str());
            }
        }
        let mut rows: Vec<&str> = kernels.iter().copied().filter(|kernel| there.remove(kernel)).collect();
        rows.extend(there);
        Pairings { kernels: rows, frontends, cells }
    }

    /// The results of a pairing.
    pub(super) fn get(&self, kernel: &'a str, frontend: &'a str) -> &[&'a CellResult] {
        self.cells.get(&(kernel, frontend)).map_or(&[], Vec::as_slice)
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn table(out: &mut String, pairings: &Pairings<'_>, room: usize) {
    let Pairings { kernels, frontends, .. } = pairings;
    let entries: Vec<Vec<Vec<Span>>> = kernels
        .iter()
        .map(|kernel| frontends.iter().map(|frontend| entry(pairings.get(kernel, frontend))).collect())
        .collect();
    let first = kernels.iter().map(|kernel| width(kernel)).max().unwrap_or(0);
    let columns: Vec<usize> = (0..frontends.len())
        .map(|column| {
            let widest = entries.iter().flat_map(|row| &row[column]).map(|span| width(&span.text)).max();
            widest.unwrap_or(0).max(width(frontends[column]))
        })
        .collect();
    if 2 + first + columns.iter().map(|column| 3 + column).sum::<usize>() > room {
        return compact_table(out, pairings, room);
    }

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

/// A glyph for each pairing, the worst of its cells; frontends by number, with a legend.
fn compact_table(out: &mut String, pairings: &Pairings<'_>, room: usize) {
    let Pairings { kernels, frontends, .. } = pairings;
    let first = kernels.iter().map(|kernel| width(kernel)).max().unwrap_or(0);
    let fits = |column: &usize| 2 + first + column * frontends.len() <= room;
    let column = COMPACT_COLUMNS.into_iter().find(fits).unwrap_or(COMPACT_COLUMNS[COMPACT_COLUMNS.len() - 1]);
    let numbers: String = (1..=frontends.len()).map(|number| format!("{number:>column$}")).collect();
    let _ = writeln!(out, "  {:first$}{}", "", paint(BOLD, &numbers));
    let mut glyphs = BTreeSet::new();
    let mut mixtures: Vec<(String, Vec<String>)> = Vec::new();
    for kernel in kernels {
        let mut line = format!("  {}", paint(BOLD, &format!("{kernel:first$}")));
        for frontend in frontends {
            let pairing = pairings.get(kernel, frontend);
            let Some(worst) = pairing.iter().max_by_key(|result| weight(result)) else {
                line.push_str(&" ".repeat(column));
                continue;
            };
            let shown = Shown::of(worst);
            glyphs.insert(shown.legend());
            let spans = entry(pairing);
            let mark = if spans.len() > 1 { MIXED } else { ' ' };
            let padding = column - 2;
            let _ = write!(line, "{:padding$}{}", "", paint(style(worst), &format!("{}{mark}", shown.glyph())));
            if spans.len() > 1 {
                let mixture = spans.iter().map(|span| span.text.as_str()).collect::<Vec<_>>().join(", ");
                let name = format!("{frontend}@{kernel}");
                match mixtures.iter_mut().find(|(known, _)| *known == mixture) {
                    Some((_, pairings)) => pairings.push(name),
                    None => mixtures.push((mixture, vec![name])),
                }
            }
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out);
    let names: Vec<String> =
        frontends.iter().enumerate().map(|(i, frontend)| format!("{:>2} {frontend}", i + 1)).collect();
    in_columns(out, &names, room);
    let mut legend: Vec<String> = glyphs.into_iter().collect();
    if !mixtures.is_empty() {
        legend.push(format!("{MIXED} not all alike: the worst"));
    }
    in_columns(out, &legend, room);
    let _ = writeln!(out);
    mixtures.sort_by_key(|(_, pairings)| std::cmp::Reverse(pairings.len()));
    for (mixture, pairings) in mixtures.iter().take(MIXTURES_TOLD) {
        let _ = writeln!(out, "  {mixture}");
        let _ = writeln!(out, "      {}", paint(DIM, &named(pairings)));
    }
    if mixtures.len() > MIXTURES_TOLD {
        let pairings: usize = mixtures[MIXTURES_TOLD..].iter().map(|(_, pairings)| pairings.len()).sum();
        let _ = writeln!(out, "  {}", paint(DIM, &format!("and {pairings} more pairings that are mixed otherwise")));
    }
    if !mixtures.is_empty() {
        let _ = writeln!(out);
    }
}

/// Few pairings by their names, many by their number.
fn named(pairings: &[String]) -> String {
    if pairings.len() <= PAIRINGS_NAMED { pairings.join(", ") } else { format!("{} pairings", pairings.len()) }
}

/// Texts beside each other as far as there is room, one under the other in columns.
fn in_columns(out: &mut String, texts: &[String], room: usize) {
    let column = texts.iter().map(|text| width(text)).max().unwrap_or(0) + 3;
    let across = (room.saturating_sub(2) / column).max(1);
    for row in texts.chunks(across) {
        let line: String = row.iter().map(|text| format!("{text:column$}")).collect();
        let _ = writeln!(out, "  {}", paint(DIM, line.trim_end()));
    }
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
            let worst = group.iter().max_by_key(|result| weight(result)).expect("a group has a member");
            Span { style: style(worst), text }
        })
        .collect()
}

/// The lines of [`entry`] without their styles.
pub(super) fn entry_text(pairing: &[&CellResult]) -> Vec<String> {
    entry(pairing).into_iter().map(|span| span.text).collect()
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
    for result in results.iter().take(BESIDE_TOLD) {
        let outcome = paint(style(result), &format!("{:outcomes$}", shown(result)));
        let name = format!("{:cells$}", result.cell.to_string());
        let _ = writeln!(out, "  {name}   {outcome}   {}", paint(DIM, &result.outcome.detail));
    }
    if results.len() > BESIDE_TOLD {
        let more = results.len() - BESIDE_TOLD;
        let _ = writeln!(out, "  {}", paint(DIM, &format!("and {more} more beside the grid")));
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
    // Stable: reasons of as many pairings stay in the order of the matrix.
    if reasons.len() > REASONS_TOLD {
        reasons.sort_by_key(|(_, pairings)| std::cmp::Reverse(pairings.len()));
    }
    let _ = writeln!(out, "  {}", paint(BOLD, "expected failures"));
    let told = &reasons[..reasons.len().min(REASONS_TOLD)];
    let width = told.iter().map(|(result, _)| Shown::of(result).text().chars().count()).max().unwrap_or(0);
    for (result, pairings) in told {
        let expectation = &result.expectation;
        let shown = format!("{:width$}", Shown::of(result).text());
        let _ = writeln!(out, "  {}   {}", paint(KNOWN, &shown), named(pairings));
        let _ = writeln!(
            out,
            "  {:width$}   {} {}",
            "",
            expectation.reason.as_deref().unwrap_or_default(),
            paint(DIM, &format!("[{}]", expectation.reference.as_deref().unwrap_or_default())),
        );
    }
    if reasons.len() > REASONS_TOLD {
        let more = reasons.len() - REASONS_TOLD;
        let _ = writeln!(out, "  {}", paint(DIM, &format!("and {more} more reasons; --html and --markdown tell all")));
    }
    let _ = writeln!(out);
}

fn red_cells(out: &mut String, results: &[CellResult], context: &Context<'_>) {
    let pairings = red_pairings(results);
    for (pairing, red) in pairings.iter().take(RED_PAIRINGS) {
        for result in red.iter().take(RED_PER_PAIRING) {
            let expected = result.expectation.outcome;
            let _ = writeln!(out, "  {} {}", paint(RED, "red"), paint(BOLD, &result.cell.to_string()));
            let _ = writeln!(
                out,
                "      expected {expected}, but {}: {}",
                paint(RED, &Shown::of(result).text()),
                result.outcome.detail
            );
            if let Some(divergence) = &result.divergence {
                let _ = writeln!(out, "      {}", divergence.sentence);
            }
            for line in result.log.iter().flat_map(|log| log.lines()).take(LOG_LINES) {
                let _ = writeln!(out, "      {}", paint(DIM, line));
            }
            if result.verdict == Verdict::Xpass {
                let reason = result.expectation.reason.as_deref().unwrap_or_default();
                let _ = writeln!(out, "      the failure was expected because {reason}; correct the [[expect]]");
            } else if result.outcome.kind != OutcomeKind::HarnessError {
                let _ = writeln!(out, "      {}", paint(DIM, &context.repro(result)));
            }
        }
        if red.len() > RED_PER_PAIRING {
            let more = red.len() - RED_PER_PAIRING;
            let _ = writeln!(out, "      and {more} more of {pairing}");
        }
        let _ = writeln!(out);
    }
    let rest = &pairings[pairings.len().min(RED_PAIRINGS)..];
    for (pairing, red) in rest.iter().take(RED_LINES) {
        let mut outcomes: BTreeMap<Shown, BTreeSet<&str>> = BTreeMap::new();
        for result in red {
            outcomes.entry(Shown::of(result)).or_default().insert(&result.cell.guest);
        }
        let told: Vec<String> = outcomes
            .into_iter()
            .map(|(shown, guests)| format!("{} ({})", shown.text(), guests.into_iter().collect::<Vec<_>>().join(", ")))
            .collect();
        let _ = writeln!(out, "  {} {pairing}: {} cells, {}", paint(RED, "red"), red.len(), told.join("; "));
    }
    if rest.len() > RED_LINES {
        let cells: usize = rest[RED_LINES..].iter().map(|(_, red)| red.len()).sum();
        let _ = writeln!(out, "  {} and {cells} cells of {} more pairings", paint(RED, "red"), rest.len() - RED_LINES);
    }
    if !rest.is_empty() {
        let _ = writeln!(out);
    }
}

/// The red results by pairing, in the order in which they come.
pub(super) fn red_pairings(results: &[CellResult]) -> Vec<(String, Vec<&CellResult>)> {
    let mut pairings: Vec<(String, Vec<&CellResult>)> = Vec::new();
    let mut at = BTreeMap::new();
    for result in results.iter().filter(|result| result.verdict.is_red()) {
        let pairing = result.cell.pairing();
        let index = *at.entry(pairing.clone()).or_insert(pairings.len());
        match pairings.get_mut(index) {
            Some((_, red)) => red.push(result),
            None => pairings.push((pairing, vec![result])),
        }
    }
    pairings
}

fn summary(out: &mut String, results: &[CellResult], context: &Context<'_>) {
    let counts = Counts::of(results);
    let parts: Vec<String> = counts
        .told()
        .into_iter()
        .map(|part| if part.ends_with(" red") || part.ends_with("fault") { paint(RED, &part) } else { part })
        .collect();
    let _ = writeln!(out, "  {}: {}", context.run(results), parts.join(", "));
    // Why an engine is out is worth a line, once.
    let reasons: BTreeSet<&str> = results
        .iter()
        .filter(|result| result.verdict == Verdict::NotApplicable)
        .map(|result| result.outcome.detail.as_str())
        .collect();
    for reason in reasons.into_iter().take(NOT_APPLICABLE_TOLD) {
        let _ = writeln!(out, "  {}", paint(DIM, &format!("not applicable: {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, result};

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
        at_width(results, 120)
    }

    fn at_width(results: &[CellResult], width: usize) -> String {
        let context = Context { matrix: "", seed: 0, ..context() };
        anstream::adapter::strip_str(&render(results, &context, width)).to_string()
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

    #[test]
    fn twelve_kernels_and_eleven_frontends_fit_into_80_columns() {
        let kernels: Vec<String> = (0..12).map(|kernel| format!("main-{:08x}", 0x7c32_6ab5_u32 + kernel)).collect();
        let mut results = Vec::new();
        for (k, kernel) in kernels.iter().enumerate() {
            for f in 0..11 {
                for guest in ["mp-spec", "linux"] {
                    for machine in ["xapic-2", "x2apic-2"] {
                        let cell = format!("bhyve-13.{f}@{kernel}/{guest}/{machine}/soft");
                        let (expected, observed) = match (k, f, machine) {
                            (0, 1.., _) => (OutcomeKind::Abort, OutcomeKind::Abort),
                            (3 | 4, _, "x2apic-2") => (OutcomeKind::Panic, OutcomeKind::Panic),
                            (7.., 2, _) if guest == "linux" => (OutcomeKind::Ok, OutcomeKind::Hang),
                            (9, 7, _) => (OutcomeKind::Hang, OutcomeKind::Ok),
                            (10 | 11, 8.., _) => (OutcomeKind::Ok, OutcomeKind::Exit(4)),
                            _ => (OutcomeKind::Ok, OutcomeKind::Ok),
                        };
                        results.push(result(&cell, expected, observed));
                    }
                }
            }
        }
        let text = at_width(&results, 80);
        let grid = text.lines().take_while(|line| !line.contains("expected failures"));
        let widest = grid.map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn reasons_of_expected_failures_are_a_bounded_list() {
        let mut results = results(|cell| (known(cell), known(cell)));
        for (i, result) in results.iter_mut().enumerate() {
            if result.verdict == Verdict::Xfail {
                result.expectation.reason = Some(format!("reason {i}"));
            }
        }
        let text = plain(&results);
        let told = text.lines().filter(|line| line.contains("reason ")).count();
        assert_eq!(told, REASONS_TOLD, "{text}");
        assert!(text.contains("more reasons"), "{text}");
    }
}
