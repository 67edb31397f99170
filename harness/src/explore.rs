//! Other interleavings of one cell: the same cell under many seeds, and which of them differ.
//!
//! Schedules are compared with the first one by what became of the cell and by where the traces first part ways; traces
//! that differ only in what neither engine nor schedule should decide are the same ([`crate::trace::Canonical`]).

use crate::cell::Cell;
use crate::diff::Diff;
use crate::outcome::{Outcome, OutcomeKind};
use crate::report::paint::{BOLD, DIM, GOOD, RED, paint};
use crate::run::{Setup, for_each, run_seeded};
use crate::trace::{Canonical, StoredTrace};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::OnceLock;

/// Schedules that all do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The first seed of its kind.
    pub seed: u64,
    /// How many seeds.
    pub schedules: usize,
    /// What becomes of the cell under the first.
    pub outcome: Outcome,
    /// Where it parts ways with the first schedule of all: in a sentence, if it does in behaviour.
    pub divergence: Option<String>,
}

/// What many schedules of a cell were like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explored {
    /// The cell.
    pub cell: Cell,
    /// The seeds: this many from the first class's on.
    pub schedules: usize,
    /// The kinds of schedules, by their first seed; the first has the first seed of all.
    pub classes: Vec<Class>,
    /// How many different canonical traces there were.
    pub distinct_traces: usize,
}

/// A schedule, compared with the first.
struct Compared {
    seed: u64,
    outcome: Outcome,
    divergence: Option<String>,
    hash: [u8; 32],
}

fn hash(trace: &StoredTrace) -> [u8; 32] {
    Sha256::digest(Canonical::of(&trace.trace).to_string()).into()
}

/// Runs a cell under `schedules` seeds from the setup's own on, `jobs` at a time.
///
/// # Errors
/// A sentence, when the cell cannot run here.
pub fn explore(setup: &Setup, cell: &Cell, schedules: usize, jobs: usize) -> Result<Explored, String> {
    let first = run_seeded(setup, cell, setup.seed);
    let Some(trace) = first.trace else {
        return Err(format!("{cell} cannot run here: {}", first.result.outcome.detail));
    };
    let base = (hash(&trace), trace);
    let compare = |seed: u64| -> Result<Compared, String> {
        let run = run_seeded(setup, cell, seed);
        let outcome = run.result.outcome;
        let trace = run.trace.ok_or_else(|| format!("{cell} cannot run here: {}", outcome.detail))?;
        let hash = hash(&trace);
        // Most schedules leave the very same canonical trace; only the others are worth a diff.
        let divergence = if hash == base.0 { None } else { Diff::new(&base.1, &trace).signature() };
        Ok(Compared { seed, outcome, divergence, hash })
    };
    let seeds: Vec<u64> = (1..schedules as u64).map(|more| setup.seed.wrapping_add(more)).collect();
    let mut compared =
        vec![Compared { seed: setup.seed, outcome: first.result.outcome, divergence: None, hash: base.0 }];
    let failed = OnceLock::new();
    for_each(
        &seeds,
        jobs,
        |_| (),
        |(), &seed| compare(seed),
        |_, result| match result {
            Ok(one) => {
                compared.push(one);
                ControlFlow::Continue(())
            }
            Err(why) => {
                let _ = failed.set(why);
                ControlFlow::Break(())
            }
        },
    );
    if let Some(why) = failed.into_inner() {
        return Err(why);
    }
    // Whichever came first: seeds in their order, beginning with the setup's own.
    compared.sort_by_key(|one| one.seed.wrapping_sub(setup.seed));
    let mut traces = BTreeMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for Compared { seed, outcome, divergence, hash } in compared {
        *traces.entry(hash).or_insert(0usize) += 1;
        let same = |class: &&mut Class| class.outcome.kind == outcome.kind && class.divergence == divergence;
        match classes.iter_mut().find(same) {
            Some(class) => class.schedules += 1,
            None => classes.push(Class { seed, schedules: 1, outcome, divergence }),
        }
    }
    Ok(Explored { cell: cell.clone(), schedules, classes, distinct_traces: traces.len() })
}

impl Explored {
    /// Whether some schedule behaves as the first does not.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.classes.len() > 1
    }

    /// Whether a cell under some schedule was our own fault.
    #[must_use]
    pub fn is_our_fault(&self) -> bool {
        self.classes.iter().any(|class| class.outcome.kind == OutcomeKind::HarnessError)
    }

    /// The result for people; `options` is what else makes the same run.
    #[must_use]
    pub fn render(&self, options: &str) -> String {
        let Explored { cell, schedules, classes, distinct_traces } = self;
        let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let mut out = format!(
            "{}: {}, {}\n\n",
            paint(BOLD, &cell.to_string()),
            count(*schedules, "schedule"),
            count(*distinct_traces, "distinct trace")
        );
        let [first, others @ ..] = &classes[..] else { return out };
        for class in classes {
            let style = if class.outcome.kind == OutcomeKind::Ok { GOOD } else { RED };
            let kind = paint(style, &format!("{} {}", class.outcome.kind.glyph(), class.outcome.kind));
            let seeds = format!("{}, first seed {}", count(class.schedules, "schedule"), class.seed);
            let _ = writeln!(out, "  {kind}  {seeds}: {}", class.outcome.detail);
            if let Some(divergence) = &class.divergence {
                let _ = writeln!(out, "      {divergence}");
            }
        }
        if others.is_empty() {
            let _ = writeln!(out, "\nEvery schedule behaves as that of seed {}.", first.seed);
        }
        for class in others {
            let look = format!("spinup trace {cell}{options} --seed {}", class.seed);
            let _ = writeln!(out, "\nSeed {} differs from seed {}: {}", class.seed, first.seed, paint(DIM, &look));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use crate::run::Engines;

    fn explored(cell: &str, schedules: usize, jobs: usize) -> Explored {
        let matrix = Matrix::built_in().expect("right");
        let setup = Setup { matrix, engines: Engines::new(), seed: 5, timeout: None };
        explore(&setup, &cell.parse().expect("a cell"), schedules, jobs).expect("soft always runs")
    }

    #[test]
    fn a_schedule_changes_nothing_when_aps_start_one_by_one() {
        let explored = explored("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", 20, 2);
        assert!(!explored.differs() && !explored.is_our_fault());
        assert_eq!((explored.schedules, explored.classes[0].schedules, explored.distinct_traces), (20, 20, 1));
        let text = anstream::adapter::strip_str(&explored.render("")).to_string();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_result_does_not_depend_on_how_many_run_at_a_time() {
        let cell = "bhyve-13.2@fbsd-13.2/linux-parallel/x2apic-4/soft";
        assert_eq!(explored(cell, 16, 1), explored(cell, 16, 4));
    }

    #[test]
    fn schedules_that_differ_are_told_apart() {
        let class = |seed, kind, divergence: Option<&str>| Class {
            seed,
            schedules: 3,
            outcome: Outcome { kind, detail: "what was seen".into() },
            divergence: divergence.map(str::to_owned),
        };
        let explored = Explored {
            cell: "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell"),
            schedules: 6,
            classes: vec![class(0, OutcomeKind::Ok, None), class(2, OutcomeKind::Hang, Some("INIT: one; another"))],
            distinct_traces: 2,
        };
        assert!(explored.differs());
        insta::assert_snapshot!(anstream::adapter::strip_str(&explored.render(" --timeout 2")).to_string());
    }
}
