//! Rewriting the expectations of a matrix.toml to fit results, with its comments and its order.

use super::{Matrix, MatrixSource};
use crate::cell::Cell;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use std::collections::{BTreeMap, BTreeSet};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

/// Cells that are expected to end in one way, as a table of parts. Each part is a list of values; `None` is any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewRule {
    frontends: BTreeSet<String>,
    kernels: BTreeSet<String>,
    guests: Option<BTreeSet<String>>,
    apic: Option<BTreeSet<String>>,
    cpus: Option<BTreeSet<u16>>,
    engines: Option<BTreeSet<String>>,
    outcome: String,
}

/// What a rewriting does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The new text.
    pub text: String,
    /// The expectations that were added, as they stand in it.
    pub added: Vec<String>,
    /// The reasons of those that were taken out: nothing fails as they say any more.
    pub removed: Vec<String>,
}

/// Why a matrix cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// New failures need a reason.
    #[error("{0} cells fail in a new way: say why with --reason and where that is written with --ref")]
    NoReason(usize),
    /// The text of a matrix that was read does not read.
    #[error("the matrix does not let itself be edited: {0}")]
    Toml(String),
    /// However specific the new expectations are made, others win.
    #[error("no expectation that could be added decides {0}")]
    Undecided(Cell),
}

/// Rewrites the matrix so that it expects what the `wrong` results saw, and of the `right` ones what it does now.
///
/// # Errors
/// See [`EditError`].
pub fn fit(
    matrix: &Matrix,
    wrong: &[&CellResult],
    right: &[&CellResult],
    why: Option<(&str, &str)>,
) -> Result<Edit, EditError> {
    let source = matrix.source();
    let mut document: DocumentMut = source.text.parse().map_err(|error| EditError::Toml(format!("{error}")))?;
    let goal: BTreeMap<&Cell, OutcomeKind> = (wrong.iter().map(|result| (&result.cell, result.outcome.kind)))
        .chain(right.iter().map(|result| (&result.cell, matrix.expectation(&result.cell).outcome)))
        .collect();
    let removed = remove_stale(&mut document, source, wrong, &goal);
    let read = |document: &DocumentMut| Matrix::parse(&source.name, &document.to_string());
    let misfits = |matrix: &Matrix| -> Vec<Cell> {
        let differs = |(cell, outcome): &(&&Cell, &OutcomeKind)| matrix.expectation(cell).outcome != **outcome;
        goal.iter().filter(differs).map(|(cell, _)| (**cell).clone()).collect()
    };
    let now = read(&document).map_err(|error| EditError::Toml(error.to_string()))?;
    let open: BTreeSet<Cell> = misfits(&now).into_iter().collect();
    let open: Vec<&CellResult> = wrong.iter().copied().filter(|result| open.contains(&result.cell)).collect();
    if open.is_empty() {
        return Ok(Edit { text: document.to_string(), added: Vec::new(), removed });
    }
    let (reason, reference) = why.ok_or(EditError::NoReason(open.len()))?;
    let all: Vec<&CellResult> = wrong.iter().chain(right).copied().collect();
    // As few keys as do; and if older expectations with more keys win, all of them.
    for keys in [Keys::Few, Keys::All] {
        let rules = rules(&open, &all, keys);
        let mut candidate = document.clone();
        let added = rules.iter().map(|rule| add(&mut candidate, rule, reason, reference)).collect();
        let fits = read(&candidate).is_ok_and(|matrix| misfits(&matrix).is_empty());
        if fits {
            return Ok(Edit { text: candidate.to_string(), added, removed });
        }
    }
    Err(EditError::Undecided(open[0].cell.clone()))
}

/// Takes expectations out of which nothing is left, and says their reasons.
fn remove_stale(
    document: &mut DocumentMut,
    source: &MatrixSource,
    wrong: &[&CellResult],
    goal: &BTreeMap<&Cell, OutcomeKind>,
) -> Vec<String> {
    let stale: BTreeSet<(&str, &str)> = wrong
        .iter()
        .filter_map(|result| {
            let expectation = &result.expectation;
            Some((expectation.reason.as_deref()?, expectation.reference.as_deref()?))
        })
        .collect();
    let fits = |document: &DocumentMut| -> Option<usize> {
        let matrix = Matrix::parse(&source.name, &document.to_string()).ok()?;
        Some(goal.iter().filter(|(cell, outcome)| matrix.expectation(cell).outcome == **outcome).count())
    };
    let mut removed = Vec::new();
    let mut best = fits(document).unwrap_or(0);
    let mut at = 0;
    while let Some(table) = document.get("expect").and_then(Item::as_array_of_tables).and_then(|all| all.get(at)) {
        let text = |key: &str| table.get(key).and_then(Item::as_str).unwrap_or_default().to_owned();
        let (reason, reference) = (text("reason"), text("ref"));
        if stale.contains(&(reason.as_str(), reference.as_str())) {
            let mut without = document.clone();
            remove(&mut without, at);
            if let Some(now) = fits(&without).filter(|now| *now > best) {
                (*document, best) = (without, now);
                removed.push(reason);
                continue;
            }
        }
        at += 1;
    }
    removed
}

/// Removes an expectation; comments before it stay, before what follows.
fn remove(document: &mut DocumentMut, at: usize) {
    let Some(all) = document.get_mut("expect").and_then(Item::as_array_of_tables_mut) else { return };
    let Some(table) = all.get(at) else { return };
    let comments = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default().to_owned();
    let position = table.position();
    all.remove(at);
    if !comments.contains('#') {
        return;
    }
    // What follows in the file may be of another kind.
    let mut next: Option<&mut Table> = None;
    for (_, item) in document.iter_mut() {
        let tables: Vec<&mut Table> = match item {
            Item::Table(table) => vec![table],
            Item::ArrayOfTables(tables) => tables.iter_mut().collect(),
            _ => Vec::new(),
        };
        for table in tables.into_iter().filter(|table| table.position() > position) {
            if next.as_ref().is_none_or(|next| table.position() < next.position()) {
                next = Some(table);
            }
        }
    }
    match next {
        Some(next) => {
            let own = next.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default().to_owned();
            next.decor_mut().set_prefix(format!("{}{own}", comments.trim_end_matches('\n').to_owned() + "\n"));
        }
        None => {
            let own = document.trailing().as_str().unwrap_or_default().to_owned();
            document.set_trailing(format!("{comments}{own}"));
        }
    }
}

/// Adds an expectation behind the others; its text.
fn add(document: &mut DocumentMut, rule: &NewRule, reason: &str, reference: &str) -> String {
    let list = |values: &BTreeSet<String>| -> Value {
        match (values.len(), values.first()) {
            (1, Some(one)) => one.as_str().into(),
            _ => values.iter().map(String::as_str).collect::<Array>().into(),
        }
    };
    let mut cells = InlineTable::new();
    cells.insert("frontend", list(&rule.frontends));
    cells.insert("kernel", list(&rule.kernels));
    for (key, values) in [("guest", &rule.guests), ("apic", &rule.apic), ("engine", &rule.engines)] {
        if let Some(values) = values {
            cells.insert(key, list(values));
        }
    }
    if let Some(cpus) = &rule.cpus {
        let numbers: Value = match (cpus.len(), cpus.first()) {
            (1, Some(one)) => i64::from(*one).into(),
            _ => cpus.iter().map(|cpus| i64::from(*cpus)).collect::<Array>().into(),
        };
        cells.insert("cpus", numbers);
    }
    let mut table = Table::new();
    table.insert("match", Item::Value(cells.into()));
    table.insert("outcome", rule.outcome.as_str().into());
    table.insert("reason", reason.into());
    table.insert("ref", reference.into());
    table.decor_mut().set_prefix("\n");
    let text = format!("[[expect]]\n{}", table.to_string().trim_end());
    let expect = document.entry("expect").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    if let Some(all) = expect.as_array_of_tables_mut() {
        all.push(table);
    }
    text
}

/// How many keys a new expectation has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    /// Those without which it would speak of other cells, too.
    Few,
    /// All.
    All,
}

/// Expectations for cells that end in a new way, which speak of none of the others.
fn rules(open: &[&CellResult], all: &[&CellResult], keys: Keys) -> Vec<NewRule> {
    let mut groups: BTreeMap<(&str, &str, String), Vec<&Cell>> = BTreeMap::new();
    for result in open {
        let cell = &result.cell;
        let key = (cell.frontend.as_str(), cell.kernel.as_str(), result.outcome.kind.to_string());
        groups.entry(key).or_default().push(cell);
    }
    let mut pairings: BTreeMap<(&str, &str), Vec<&Cell>> = BTreeMap::new();
    for result in all {
        pairings.entry((&result.cell.frontend, &result.cell.kernel)).or_default().push(&result.cell);
    }
    let mut rules = Vec::new();
    for ((frontend, kernel, outcome), group) in groups {
        cover(&group, &pairings[&(frontend, kernel)], &outcome, keys, &mut rules);
    }
    // The same cells of several frontends, then of several kernels, are one expectation.
    for by_kernel in [false, true] {
        let mut joined: BTreeMap<NewRule, BTreeSet<String>> = BTreeMap::new();
        for mut rule in rules {
            let part = if by_kernel { &mut rule.kernels } else { &mut rule.frontends };
            let names = std::mem::take(part);
            joined.entry(rule).or_default().extend(names);
        }
        rules = joined
            .into_iter()
            .map(
                |(rule, names)| {
                    if by_kernel { NewRule { kernels: names, ..rule } } else { NewRule { frontends: names, ..rule } }
                },
            )
            .collect();
    }
    rules
}

/// Covers a group of cells of a pairing with products of their parts: one if they are one, else one for each guest, or cell.
fn cover(group: &[&Cell], pairing: &[&Cell], outcome: &str, keys: Keys, rules: &mut Vec<NewRule>) {
    if let Some(rule) = product(group, pairing, outcome, keys) {
        rules.push(rule);
        return;
    }
    let mut parts: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in group {
        parts.entry(&cell.guest).or_default().push(cell);
    }
    if parts.len() > 1 {
        // Guests that are alike in the rest are one expectation.
        let mut alike: BTreeMap<Vec<(&str, u16, &str)>, Vec<&Cell>> = BTreeMap::new();
        for cells in parts.into_values() {
            let mut rest: Vec<_> = cells.iter().map(|c| (c.apic.name(), c.cpus, c.engine.name())).collect();
            rest.sort_unstable();
            alike.entry(rest).or_default().extend(cells);
        }
        if alike.len() > 1 {
            alike.into_values().for_each(|cells| cover(&cells, pairing, outcome, keys, rules));
            return;
        }
        let cells = alike.into_values().next().unwrap_or_default();
        let mut machines: BTreeMap<(&str, u16, &str), Vec<&Cell>> = BTreeMap::new();
        for cell in cells {
            machines.entry((cell.apic.name(), cell.cpus, cell.engine.name())).or_default().push(cell);
        }
        machines.into_values().for_each(|cells| cover(&cells, pairing, outcome, keys, rules));
        return;
    }
    for cell in group {
        rules.extend(product(&[cell], pairing, outcome, Keys::All));
    }
}

/// The group as a product of its parts, if it is one within its pairing.
fn product(group: &[&Cell], pairing: &[&Cell], outcome: &str, keys: Keys) -> Option<NewRule> {
    fn part<T: Ord>(group: &[&Cell], pairing: &[&Cell], keys: Keys, of: impl Fn(&Cell) -> T) -> Option<BTreeSet<T>> {
        let here: BTreeSet<T> = group.iter().map(|cell| of(cell)).collect();
        let there: BTreeSet<T> = pairing.iter().map(|cell| of(cell)).collect();
        (keys == Keys::All || here.len() < there.len()).then_some(here)
    }
    let first = group.first()?;
    let rule = NewRule {
        frontends: [first.frontend.clone()].into(),
        kernels: [first.kernel.clone()].into(),
        guests: part(group, pairing, keys, |cell| cell.guest.clone()),
        apic: part(group, pairing, keys, |cell| cell.apic.name().to_owned()),
        cpus: part(group, pairing, keys, |cell| cell.cpus),
        engines: part(group, pairing, keys, |cell| cell.engine.name().to_owned()),
        outcome: outcome.to_owned(),
    };
    let holds = |cell: &&&Cell| {
        rule.guests.as_ref().is_none_or(|guests| guests.contains(&cell.guest))
            && rule.apic.as_ref().is_none_or(|apic| apic.contains(cell.apic.name()))
            && rule.cpus.as_ref().is_none_or(|cpus| cpus.contains(&cell.cpus))
            && rule.engines.as_ref().is_none_or(|engines| engines.contains(cell.engine.name()))
    };
    let covered = pairing.iter().filter(holds).count();
    (covered == group.len()).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::verdict::Verdict;
    use crate::report::testing::result;

    /// Results of the built-in matrix as it expects them, but for what `seen` says.
    fn results(matrix: &Matrix, seen: impl Fn(&Cell) -> Option<OutcomeKind>) -> Vec<CellResult> {
        matrix
            .configured()
            .iter()
            .map(|cell| {
                let expectation = matrix.expectation(cell);
                let kind = seen(cell).unwrap_or(expectation.outcome);
                let made = result(&cell.to_string(), expectation.outcome, kind);
                CellResult { verdict: Verdict::of(expectation.outcome, kind), expectation, ..made }
            })
            .collect()
    }

    fn fitted(seen: impl Fn(&Cell) -> Option<OutcomeKind>) -> (String, Edit) {
        let matrix = Matrix::built_in().expect("a test keeps it right");
        let results = results(&matrix, seen);
        let (wrong, right): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.verdict.is_red());
        let edit = fit(&matrix, &wrong, &right, Some(("it is so", "issue 1"))).expect("it can be said");
        let after = Matrix::parse("m", &edit.text).expect("a matrix");
        for result in &results {
            assert_eq!(after.expectation(&result.cell).outcome, result.outcome.kind, "{}", result.cell);
        }
        (matrix.source().text.clone(), edit)
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        let (before, edit) = fitted(|_| None);
        assert_eq!(edit, Edit { text: before, added: Vec::new(), removed: Vec::new() });
    }

    #[test]
    fn new_failures_are_added_behind_the_others_in_few_words() {
        let (before, edit) = fitted(|cell| match (cell.frontend.as_str(), cell.kernel.as_str()) {
            (_, "fbsd-13.2") if cell.guest == "mp-spec" => Some(OutcomeKind::Hang),
            ("bhyve-13.1", "fbsd-13.1") if cell.cpus == 4 && cell.guest.starts_with("linux") => {
                Some(OutcomeKind::Exit(4))
            }
            ("bhyve-13.1", "main-7c326ab5") if cell.guest == "linux" && cell.cpus == 2 => Some(OutcomeKind::Ok),
            _ => None,
        });
        insta::assert_snapshot!(edit.added.join("\n\n"));
        // Nothing else has changed, and every comment is there.
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let mut after = lines(&edit.text).into_iter();
        assert!(lines(&before).iter().all(|line| after.any(|other| other == *line)), "{}", edit.text);
        assert!(edit.text.find("it is so") < edit.text.find("[[regression]]"), "{}", edit.text);
    }

    #[test]
    fn an_expectation_of_which_nothing_is_left_goes_and_its_comment_stays() {
        let (before, edit) = fitted(|cell| (cell.kernel == "naive-widen").then_some(OutcomeKind::Ok));
        assert_eq!(edit.removed.len(), 1, "{:?}", edit.removed);
        assert_eq!(edit.added, Vec::<String>::new());
        let comments =
            |text: &str| text.lines().filter(|line| line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(comments(&before), comments(&edit.text));
        let (before, edit) =
            fitted(|cell| (cell.frontend != "bhyve-13.1" && cell.kernel == "fbsd-13.1").then_some(OutcomeKind::Ok));
        assert_eq!(edit.removed.len(), 1, "{:?}", edit.removed);
        assert_eq!(comments(&before), comments(&edit.text), "the comment was that of the expectation itself");
    }

    #[test]
    fn a_new_failure_needs_a_reason() {
        let matrix = Matrix::built_in().expect("a test keeps it right");
        let results = results(&matrix, |cell| (cell.kernel == "fbsd-13.2").then_some(OutcomeKind::Hang));
        let (wrong, right): (Vec<_>, Vec<_>) = results.iter().partition(|result| result.verdict.is_red());
        assert_eq!(fit(&matrix, &wrong, &right, None), Err(EditError::NoReason(wrong.len())));
    }
}
