//! Whether everything that is declared is exercised: each kernel, frontend and guest by a cell of the matrix, each change by
//! a cell that *shows* it, which is to say that it goes otherwise on the same kernel without the change.
//!
//! That is observed by running cells, not looked up: the first cell that differs is the change's witness, by its canonical
//! trace if there is one, and otherwise by the whole trace under the same schedule. What no cell
//! exercises needs an `[[uncovered]]` in the matrix, with a reason; one that is exercised after all must not have it.

use crate::catalog;
use crate::cell::{Cell, EngineKind};
use crate::diff::Diff;
use crate::matrix::Matrix;
use crate::report::paint::{BOLD, DIM, GOOD, RED, paint};
use crate::run::{Setup, for_each, run_cell};
use crate::trace::{Canonical, StoredTrace, describe};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use vmm::history::{CHANGES, Change, ERRNO_ROWS, KernelVersion};
use vmm::trace::Event;

/// How something is exercised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exercised {
    /// By so many cells of the matrix.
    ByCells(usize),
    /// By a cell that goes otherwise without it.
    ByWitness {
        /// The cell, on a kernel with the change.
        with: Cell,
        /// The kernel without it.
        without: String,
        /// How they differ, in a sentence.
        difference: String,
    },
    /// By a test of the crate vmm over all kernels, which fails when a row has none.
    ByTest,
    /// By none.
    No,
}

/// Something declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `kernel`, `frontend`, `guest`, `change` or `errno row`.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// How it is exercised.
    pub exercised: Exercised,
    /// Why it need not be, when the matrix says so.
    pub exception: Option<String>,
}

/// What is wrong with how something is exercised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// No cell exercises it, and nothing says why.
    NeverRun,
    /// It is exercised, though the matrix says that it is not.
    IdleException,
}

impl Item {
    /// What is wrong, if anything is.
    #[must_use]
    pub fn gap(&self) -> Option<Gap> {
        match (&self.exercised, &self.exception) {
            (Exercised::No, None) => Some(Gap::NeverRun),
            (Exercised::No, Some(_)) | (_, None) => None,
            (_, Some(_)) => Some(Gap::IdleException),
        }
    }
}

/// Everything declared, and how it is exercised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Kernels, frontends, guests, changes, then errno rows, each in their order.
    pub items: Vec<Item>,
}

impl Coverage {
    /// Looks for a witness of each change by running cells of the matrix, `jobs` changes at a time, and counts the cells of
    /// everything else.
    #[must_use]
    pub fn of(setup: &Setup, jobs: usize) -> Coverage {
        let matrix = &setup.matrix;
        let cells = matrix.configured();
        let count = |part: fn(&Cell) -> &str| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            cells.iter().for_each(|cell| *counts.entry(part(cell)).or_default() += 1);
            counts
        };
        let kernels = count(|cell| &cell.kernel);
        let frontends = count(|cell| &cell.frontend);
        let guests = count(|cell| &cell.guest);
        let exercised = |counts: &BTreeMap<&str, usize>, name: &str| {
            counts.get(name).map_or(Exercised::No, |&cells| Exercised::ByCells(cells))
        };
        let item = |what: &'static str, name: &str, exercised: Exercised| Item {
            what,
            name: name.to_owned(),
            exercised,
            exception: exception(matrix, what, name),
        };
        let mut items: Vec<Item> = Vec::new();
        for kernel in matrix.kernels() {
            items.push(item("kernel", &kernel.name, exercised(&kernels, &kernel.name)));
        }
        for frontend in catalog::frontends() {
            items.push(item("frontend", frontend.name, exercised(&frontends, frontend.name)));
        }
        for (name, _) in catalog::frontend_options() {
            items.push(item("frontend", &name, exercised(&frontends, &name)));
        }
        for guest in catalog::guests() {
            items.push(item("guest", guest.name, exercised(&guests, guest.name)));
        }
        let mut witnesses: Vec<Exercised> = vec![Exercised::No; CHANGES.len()];
        let changes: Vec<&Change> = CHANGES.iter().collect();
        let candidates = candidates(&cells);
        for_each(
            &changes,
            jobs,
            |_| (),
            |(), change| witness(setup, &candidates, change),
            |at, found| {
                witnesses[at] = found;
                ControlFlow::Continue(())
            },
        );
        items.extend(CHANGES.iter().zip(witnesses).map(|(change, found)| item("change", change.name, found)));
        items.extend(ERRNO_ROWS.iter().map(|row| item("errno row", row.id, Exercised::ByTest)));
        Coverage { items }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.items.iter().all(|item| item.gap().is_none())
    }

    /// The coverage for people.
    #[must_use]
    pub fn render(&self) -> String {
        let width = self.items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        let mut what = "";
        for item in &self.items {
            if what != item.what {
                what = item.what;
                let _ = writeln!(out, "{}{what}s", if out.is_empty() { "" } else { "\n" });
            }
            let name = paint(BOLD, &format!("{:width$}", item.name));
            let (mark, words) = match (item.gap(), &item.exercised, &item.exception) {
                (Some(Gap::NeverRun), ..) => (paint(RED, "✗"), "no cell exercises it".to_owned()),
                (Some(Gap::IdleException), ..) => {
                    (paint(RED, "✗"), "the matrix says that no cell exercises it, but one does".to_owned())
                }
                (None, Exercised::ByCells(cells), _) => (paint(GOOD, "✓"), format!("{cells} cells")),
                (None, Exercised::ByWitness { with, without, difference }, _) => {
                    (paint(GOOD, "✓"), format!("{with}, and not on {without}: {}", paint(DIM, difference)))
                }
                (None, Exercised::ByTest, _) => (paint(GOOD, "✓"), "a test of vmm over every kernel".to_owned()),
                (None, Exercised::No, reason) => (paint(DIM, "–"), reason.clone().unwrap_or_default()),
            };
            let _ = writeln!(out, "  {mark} {name}  {words}");
        }
        out
    }
}

fn exception(matrix: &Matrix, what: &str, name: &str) -> Option<String> {
    let exceptions = matrix.uncovered().iter();
    exceptions.filter(|one| one.what == what && one.name == name).map(|one| one.reason.clone()).next()
}

/// How many pairs of kernels a change is looked for on: where it began, and a few on which others came to it.
const MOST_PAIRS: usize = 3;

/// Pairs of kernels, by name, that differ by the change alone: for each kernel with it the same without it, and where others
/// need it, without those on both sides. Those where nothing else has to go come first.
fn pairs(matrix: &Matrix, change: &Change) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for kernel in KernelVersion::all().filter(|kernel| kernel.has(change.name)) {
        let dependants: String = kernel
            .changes()
            .filter(|other| other.needs_in_the_end(change.name))
            .map(|other| format!("-{}", other.name))
            .collect();
        let with = format!("{}{dependants}", kernel.name);
        let without = format!("{with}-{}", change.name);
        if matrix.kernel(&with).is_some() && matrix.kernel(&without).is_some() {
            pairs.push((dependants.len(), with, without));
        }
    }
    pairs.sort_by_key(|(dependants, ..)| *dependants);
    pairs.into_iter().take(MOST_PAIRS).map(|(_, with, without)| (with, without)).collect()
}

/// The first cell that goes otherwise without the change. Cells are tried guest by guest; what only a
/// whole trace shows counts if no other cell of the guest shows more.
fn witness(setup: &Setup, candidates: &[Cell], change: &Change) -> Exercised {
    let pairs = pairs(&setup.matrix, change);
    // That an exception is idle shows with the first guest, or is not worth the time.
    let excepted = exception(&setup.matrix, "change", change.name).is_some();
    for of_guest in candidates.chunk_by(|a, b| a.guest == b.guest).take(if excepted { 1 } else { usize::MAX }) {
        let mut fallback = Exercised::No;
        for cell in of_guest {
            for (with, without) in &pairs {
                let on = |kernel: &String| Cell { kernel: kernel.clone(), ..cell.clone() };
                let Some((canonical, difference)) = difference(setup, &on(with), &on(without)) else { continue };
                let witness = Exercised::ByWitness { with: on(with), without: without.clone(), difference };
                if canonical {
                    return witness;
                }
                if fallback == Exercised::No {
                    fallback = witness;
                }
            }
        }
        if fallback != Exercised::No {
            return fallback;
        }
    }
    Exercised::No
}

/// The cells in which a witness is looked for, on whatever kernel: each frontend, guest and APIC mode of the matrix with the
/// fewest vCPUs that it has, guest by guest; and with the fewest of those above 2, where a third vCPU looks on, and above the 16
/// that every kernel has.
fn candidates(cells: &[Cell]) -> Vec<Cell> {
    let guests = catalog::guests();
    let rank = |cell: &Cell| guests.iter().position(|guest| guest.name == cell.guest);
    let mut cells: Vec<&Cell> = cells.iter().filter(|cell| cell.engine == EngineKind::Soft).collect();
    cells.sort_by_key(|cell| (rank(cell), cell.cpus));
    let mut seen = BTreeSet::new();
    cells.retain(|cell| seen.insert((&cell.frontend, &cell.guest, cell.apic, cell.cpus > 2, cell.cpus > 16)));
    cells.into_iter().cloned().collect()
}

/// Whether the canonical traces of two cells differ, or only the whole ones, and how; `None` when they do not.
fn difference(setup: &Setup, with: &Cell, without: &Cell) -> Option<(bool, String)> {
    let [with, without] = [with, without].map(|cell| run_cell(setup, cell).trace);
    let (with, without) = (with?, without?);
    if Canonical::of(&with.trace) != Canonical::of(&without.trace) {
        let diff = Diff::new(&without, &with);
        if !diff.is_empty() {
            return Some((true, diff.sentence()));
        }
    }
    // Under the same schedule nothing but the change can have made this difference.
    let events =
        |trace: &StoredTrace| trace.trace.records.iter().map(|record| record.event.clone()).collect::<Vec<_>>();
    let (with, without) = (events(&with), events(&without));
    let at = with.iter().zip(&without).position(|(with, without)| with != without);
    let at = at.or((with.len() != without.len()).then_some(with.len().min(without.len())))?;
    let event = |events: &[Event]| events.get(at).map_or("the end".into(), describe);
    Some((
        false,
        format!("the traces differ in what the diff leaves out, first: {} / {}", event(&without), event(&with)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Engines;

    fn setup() -> Setup {
        Setup { matrix: Matrix::built_in().expect("right"), engines: Engines::new(), seed: 0, timeout: None }
    }

    #[test]
    fn everything_that_is_declared_is_exercised_or_says_why_not() {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let whole = Matrix::parse("history.toml", include_str!("../../history.toml")).expect("right");
        let coverage = Coverage::of(&Setup { matrix: whole, ..setup() }, jobs);
        let gaps: Vec<String> = coverage
            .items
            .iter()
            .filter_map(|item| item.gap().map(|gap| format!("{} {}: {gap:?}", item.what, item.name)))
            .collect();
        assert!(gaps.is_empty(), "`spinup show coverage` tells more:\n{}", gaps.join("\n"));
    }

    #[test]
    fn a_change_is_compared_with_the_same_kernel_without_it() {
        let matrix = setup().matrix;
        let pairs = |name: &str| pairs(&matrix, Change::named(name).expect("a change"));
        assert!(pairs("exit-mask").contains(&("fbsd-13.2".into(), "fbsd-13.2-exit-mask".into())));
        let broken = pairs("startup-cpus");
        assert!(broken.contains(&("main-c0f35dbf".into(), "main-c0f35dbf-startup-cpus".into())));
        assert!(broken.contains(&("main-7c326ab5-handle-ipi".into(), "main-7c326ab5-handle-ipi-startup-cpus".into())));
    }

    #[test]
    fn an_exception_is_for_what_no_cell_exercises() {
        let item = |exercised: Exercised, exception: Option<&str>| Item {
            what: "guest",
            name: "x".into(),
            exercised,
            exception: exception.map(str::to_owned),
        };
        assert_eq!(item(Exercised::No, None).gap(), Some(Gap::NeverRun));
        assert_eq!(item(Exercised::No, Some("too slow")).gap(), None);
        assert_eq!(item(Exercised::ByCells(1), None).gap(), None);
        assert_eq!(item(Exercised::ByCells(1), Some("too slow")).gap(), Some(Gap::IdleException));
    }
}
