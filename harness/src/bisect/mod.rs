//! Which change broke a frontend, and which mended it: one frontend and guest over the kernels in the order of their dates,
//! and between two kernels that differ over the changes that they differ by.
//!
//! Kernels are compared by their [`Signature`]: what became of the cell, and where its trace first parts ways with that of
//! the last kernel that was good. So two kernels on which the same guest hangs for different reasons are two stations of the
//! history, and a mend that only changes how a cell fails shows.
//!
//! Where two neighbours differ, their changes are applied one by one in the order of their dates, and delta debugging
//! ([`crate::ddmin`]) finds the smallest sets of them that make the one kernel behave as the other.

pub(crate) mod edits;
mod json;
mod text;

pub use edits::Edit;
pub use json::document;
pub use text::render;

use crate::cell::Cell;
use crate::ddmin::minimal_sets;
use crate::diff::Diff;
use crate::outcome::{Outcome, OutcomeKind};
use crate::run::{Setup, run_cell};
use crate::trace::StoredTrace;
use edits::{apply, edits_between, lineage};
use std::collections::BTreeMap;
use std::rc::Rc;

/// How many minimal sets are looked for at most between two kernels.
const MOST_SETS: usize = 4;

/// What makes two kernels alike for a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What became of the cell.
    pub kind: OutcomeKind,
    /// Where it first parts ways with the last good kernel, when it is not ok: a sentence about "the good one" and "this
    /// one".
    pub divergence: Option<String>,
}

impl Signature {
    /// Whether the cell is as it should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.kind == OutcomeKind::Ok
    }
}

/// What was seen on one kernel.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The kernel.
    pub kernel: String,
    /// What became of the cell, in words.
    pub outcome: Outcome,
    /// What it is compared by.
    pub signature: Signature,
}

/// One change on the way from a kernel to its neighbour.
#[derive(Clone, Debug)]
pub struct Step {
    /// The change.
    pub edit: Edit,
    /// What was seen with it and all before it.
    pub seen: Seen,
    /// Whether that differs from what was seen before it.
    pub flips: bool,
    /// Whether the step ends in the middle of a commit, so that no such kernel ever was.
    pub within_commit: bool,
}

/// A smallest set of changes that makes one kernel behave as its neighbour.
#[derive(Clone, Debug)]
pub struct MinimalSet {
    /// The changes, in the order of their dates.
    pub edits: Vec<Edit>,
    /// When there are several: each of them, and what is seen when it alone is left out, if the rest is a kernel.
    pub without: Vec<(Edit, Option<Seen>)>,
}

impl MinimalSet {
    /// Those that are there only because another needs them.
    #[must_use]
    pub fn needed_by_others(&self, edit: &Edit) -> bool {
        self.edits.iter().any(|other| other.needs(edit))
    }
}

/// What a flip does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Good before, bad after.
    Breaks,
    /// Bad before, good after.
    Mends,
    /// Bad before and after, in different ways.
    Changes,
    /// The same before and after, but not in between.
    Passes,
}

/// Two neighbouring kernels that differ, or between which something was different for a while.
#[derive(Clone, Debug)]
pub struct Flip {
    /// The earlier.
    pub from: Seen,
    /// The later.
    pub to: Seen,
    /// What happens between them.
    pub direction: Direction,
    /// The changes in the order of their dates.
    pub walk: Vec<Step>,
    /// The smallest sets of changes that turn the one into the other.
    pub minimal: Vec<MinimalSet>,
    /// Where the traces of both part ways, in one sentence.
    pub sentence: String,
}

/// The history of a frontend with a guest.
#[derive(Clone, Debug)]
pub struct History {
    /// The cell; its kernel is the first.
    pub cell: Cell,
    /// The seed of the schedules.
    pub seed: u64,
    /// What was seen on each kernel, in the order of their dates.
    pub kernels: Vec<Seen>,
    /// Where that changes.
    pub flips: Vec<Flip>,
}

/// Why there is no history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BisectError {
    /// No kernel has this name, and it makes none.
    #[error("No kernel is named {0}")]
    UnknownKernel(String),
    /// The cell cannot run.
    #[error("{cell} cannot run here: {why}")]
    CannotRun {
        /// The cell.
        cell: Cell,
        /// Why.
        why: String,
    },
    /// The cell is our own fault.
    #[error("{cell} ended by a fault of ours: {why}")]
    OurFault {
        /// The cell.
        cell: Cell,
        /// What happened.
        why: String,
    },
}

/// A kernel's run.
struct Ran {
    outcome: Outcome,
    trace: StoredTrace,
}

/// Runs the cell on kernels, each once.
struct Runner<'a> {
    setup: &'a Setup,
    cell: &'a Cell,
    ran: BTreeMap<String, Rc<Ran>>,
}

impl Runner<'_> {
    fn run(&mut self, kernel: &str) -> Result<Rc<Ran>, BisectError> {
        if let Some(ran) = self.ran.get(kernel) {
            return Ok(ran.clone());
        }
        let cell = Cell { kernel: kernel.to_owned(), ..self.cell.clone() };
        let run = run_cell(self.setup, &cell);
        let outcome = run.result.outcome;
        let ran = match run.trace {
            None => return Err(BisectError::CannotRun { cell, why: outcome.detail }),
            Some(_) if outcome.kind == OutcomeKind::HarnessError => {
                return Err(BisectError::OurFault { cell, why: outcome.detail });
            }
            Some(trace) => Rc::new(Ran { outcome, trace }),
        };
        self.ran.insert(kernel.to_owned(), ran.clone());
        Ok(ran)
    }

    fn see(&mut self, kernel: &str, good: Option<&str>) -> Result<Seen, BisectError> {
        let ran = self.run(kernel)?;
        let kind = ran.outcome.kind;
        let divergence = match good {
            Some(good) if kind != OutcomeKind::Ok => Diff::new(&self.run(good)?.trace, &ran.trace).signature(),
            _ => None,
        };
        Ok(Seen { kernel: kernel.to_owned(), outcome: ran.outcome.clone(), signature: Signature { kind, divergence } })
    }
}

/// The history of a cell's frontend and guest from one kernel to another: by default from the first to the last.
///
/// # Errors
/// When a kernel is unknown, or a cell cannot run or is our own fault.
pub fn bisect(setup: &Setup, cell: &Cell, from: Option<&str>, to: Option<&str>) -> Result<History, BisectError> {
    let kernels = lineage(&setup.matrix, from, to)?;
    let mut runner = Runner { setup, cell, ran: BTreeMap::new() };
    let mut good = None;
    for kernel in &kernels {
        if runner.run(kernel)?.outcome.kind == OutcomeKind::Ok {
            good = Some(kernel.as_str());
            break;
        }
    }
    // Until there is a last good kernel, the next one serves.
    let mut seen = Vec::new();
    let mut goods = Vec::new();
    for kernel in &kernels {
        let here = runner.see(kernel, good)?;
        if here.signature.is_good() {
            good = Some(kernel);
        }
        seen.push(here);
        goods.push(good);
    }
    let mut flips = Vec::new();
    for at in 1..seen.len() {
        flips.extend(flip(&mut runner, &seen[at - 1], &seen[at], goods[at - 1])?);
    }
    let cell = Cell { kernel: kernels[0].clone(), ..cell.clone() };
    Ok(History { cell, seed: setup.seed, kernels: seen, flips })
}

/// What lies between two neighbours, if anything does.
fn flip(runner: &mut Runner<'_>, from: &Seen, to: &Seen, good: Option<&str>) -> Result<Option<Flip>, BisectError> {
    let matrix = &runner.setup.matrix;
    let edits = edits_between(matrix, &from.kernel, &to.kernel)?;
    let mut walk = Vec::new();
    let mut before = from.signature.clone();
    for (at, edit) in edits.iter().enumerate() {
        // The last kernel of the walk is the neighbour itself, under its own name.
        let last = at + 1 == edits.len();
        let kernel = if last { to.kernel.clone() } else { apply(&from.kernel, &edits[..=at]) };
        let seen = runner.see(&kernel, good)?;
        let flips = seen.signature != before;
        before = seen.signature.clone();
        let within_commit = edits.get(at + 1).is_some_and(|next| next.is_of_the_same_commit(edit));
        walk.push(Step { edit: edit.clone(), seen, flips, within_commit });
    }
    let direction = match (&from.signature, &to.signature) {
        (from, to) if from == to => Direction::Passes,
        (from, _) if from.is_good() => Direction::Breaks,
        (_, to) if to.is_good() => Direction::Mends,
        _ => Direction::Changes,
    };
    if direction == Direction::Passes
        && walk.iter().all(|step| step.within_commit || step.seen.signature == from.signature)
    {
        return Ok(None);
    }
    let minimal = if direction == Direction::Passes { Vec::new() } else { minimal(runner, from, to, &edits, good)? };
    let sentence = Diff::new(&runner.run(&from.kernel)?.trace, &runner.run(&to.kernel)?.trace).sentence();
    Ok(Some(Flip { from: from.clone(), to: to.clone(), direction, walk, minimal, sentence }))
}

/// The smallest sets of changes that make `from` behave as `to`.
fn minimal(
    runner: &mut Runner<'_>,
    from: &Seen,
    to: &Seen,
    edits: &[Edit],
    good: Option<&str>,
) -> Result<Vec<MinimalSet>, BisectError> {
    let mut error = None;
    let mut see = |part: &[Edit]| -> Option<Seen> {
        let kernel = if part.len() == edits.len() { to.kernel.clone() } else { apply(&from.kernel, part) };
        // A set that lacks what one of it needs is no kernel, and does nothing.
        runner.setup.matrix.kernel(&kernel)?;
        runner.see(&kernel, good).map_err(|why| error.get_or_insert(why)).ok()
    };
    let sets = minimal_sets(edits, MOST_SETS, |part| see(part).is_some_and(|seen| seen.signature == to.signature));
    let minimal = sets
        .into_iter()
        .map(|set| {
            let rest = |edit: &Edit| set.iter().filter(|other| *other != edit).cloned().collect::<Vec<_>>();
            let without = if set.len() < 2 {
                Vec::new()
            } else {
                set.iter().map(|edit| (edit.clone(), see(&rest(edit)))).collect()
            };
            MinimalSet { without, edits: set }
        })
        .collect();
    match error {
        Some(error) => Err(error),
        None => Ok(minimal),
    }
}

#[cfg(test)]
mod tests;
