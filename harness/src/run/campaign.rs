//! A whole run: every cell as often as asked for, in worker processes, and a look at those that need words.

use super::cell::{CellResult, Try};
use super::explain::{Explanation, neighbours};
use super::pool::Pool;
use super::stop::Stop;
use super::wire::{Report, Task};
use super::{Feed, Setup, share_out};
use crate::cell::{Cell, EngineKind};
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// Red cells of one pairing that are explained, and red cells in all.
const RED_PER_PAIRING: usize = 2;
const RED: usize = 24;

/// Expected failures that are explained for a page: one for each reason.
const EXAMPLES: usize = 16;

/// Cells that are explained whatever became of them, when there are no more of them than this.
const FEW: usize = 24;

/// Neighbours that are tried until one is ok.
const NEIGHBOURS: usize = 8;

/// How cells are run.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How many at the same time.
    pub jobs: usize,
    /// Whether each gets a process of its own.
    pub isolate: bool,
    /// How often each runs, with as many seeds.
    pub repeat: u32,
    /// How long a cell may take in real time, whatever its engine.
    pub patience: Duration,
    /// Whether the SHA-256 of traces is wanted.
    pub hash: bool,
    /// Whether the traces themselves are wanted.
    pub trace: bool,
}

/// Who is told how a run is getting on. All of it may be called from several threads.
pub trait Observer: Sync {
    /// The worker in a place begins with a cell.
    fn begins(&self, place: usize, cell: &Cell);
    /// There is nothing more for it to do.
    fn rests(&self, place: usize);
    /// Something is not as it should be, and the cells have run all the same.
    fn warns(&self, what: &str);
}

/// A run.
pub struct Campaign<'a> {
    setup: &'a Setup,
    manner: Manner,
    stop: &'a Stop,
    observer: &'a dyn Observer,
}

impl<'a> Campaign<'a> {
    /// A run that has not begun.
    #[must_use]
    pub fn new(setup: &'a Setup, manner: Manner, stop: &'a Stop, observer: &'a dyn Observer) -> Campaign<'a> {
        Campaign { setup, manner, stop, observer }
    }

    fn task(&self, cell: &Cell, seed: u64) -> Task {
        let Manner { patience, hash, trace, .. } = self.manner;
        Task { cell: cell.clone(), seed, limit: self.setup.limit(cell), patience, hash, trace, explain: None }
    }

    /// Runs cells, and hands over the result of each as it comes, with its place among the cells and its trace if that was
    /// asked for. `done` can end the run; so can the one who has the [`Stop`].
    pub fn run(&self, cells: &[Cell], mut done: impl FnMut(usize, CellResult, Option<Vec<u8>>) -> ControlFlow<()>) {
        let repeat = self.manner.repeat.max(1);
        let tasks: Vec<(usize, Task)> = cells
            .iter()
            .enumerate()
            .flat_map(|(at, cell)| {
                (0..repeat).map(move |time| (at, self.task(cell, self.setup.seed.wrapping_add(time.into()))))
            })
            .collect();
        let mut open: BTreeMap<usize, Vec<(u64, Report)>> = BTreeMap::new();
        let unconfined = self.each(cells, &tasks, |at, report| {
            let (cell, task) = &tasks[at];
            let tries = open.entry(*cell).or_default();
            tries.push((task.seed, report));
            if tries.len() < repeat as usize {
                return ControlFlow::Continue(());
            }
            let mut tries = open.remove(cell).expect("it was filled just now");
            tries.sort_by_key(|(seed, _)| *seed);
            let (result, trace) = sum_up(self.setup, &cells[*cell], tries);
            done(*cell, result, trace)
        });
        if let Some(why) = unconfined {
            self.observer.warns(&format!("guests ran in processes that keep their system calls: {why}"));
        }
    }

    /// Runs tasks, each with whatever it belongs to; why that was in processes that have their system calls still, if so.
    fn each<T: Sync>(
        &self,
        cells: &[Cell],
        tasks: &[(T, Task)],
        done: impl FnMut(usize, Report) -> ControlFlow<()>,
    ) -> Option<String> {
        let pool = Pool::new(self.setup, cells, self.manner.isolate, self.stop);
        let jobs = self.manner.jobs;
        let attend = |number, feed: &Feed<'_, (T, Task)>, hand_over: &mut dyn FnMut(usize, Report)| {
            let mut place = pool.place();
            let mut next = feed.next();
            while let Some(at) = next.filter(|_| !self.stop.soon()) {
                let task = &tasks[at].1;
                // While there is enough for everybody, a worker has its next task before it asks.
                let ahead = feed.next_if(jobs, |(_, other)| pool.may_queue(task, other));
                self.observer.begins(number, &task.cell);
                let Some(report) = place.run(task, ahead.map(|ahead| &tasks[ahead].1)) else { break };
                hand_over(at, report);
                next = ahead.or_else(|| feed.next());
            }
            self.observer.rests(number);
        };
        share_out(tasks, jobs, attend, done);
        pool.unconfined().map(str::to_owned)
    }

    /// Explains the cells that need it: red ones, and for a page an example of each expected failure, or all when there are
    /// few. Where a red cell parts ways with its neighbour is noted in its result.
    pub fn explain(&self, results: &mut [CellResult], for_a_page: bool) -> BTreeMap<Cell, Explanation> {
        let wanted = wanted(results, for_a_page);
        let seen: BTreeMap<&Cell, OutcomeKind> = results.iter().map(|r| (&r.cell, r.outcome.kind)).collect();
        // A neighbour that is known not to be ok need not be tried: cells of an operating system take their time.
        let may_be_ok = |cell: &Cell| seen.get(cell).is_none_or(|kind| *kind == OutcomeKind::Ok);
        let tasks: Vec<(usize, Task)> = wanted
            .into_iter()
            .map(|at| {
                let result = &results[at];
                let beside = if result.outcome.kind == OutcomeKind::Ok {
                    Vec::new()
                } else {
                    neighbours(&self.setup.matrix, &result.cell)
                        .into_iter()
                        .filter(may_be_ok)
                        .take(NEIGHBOURS)
                        .collect()
                };
                let task = self.task(&result.cell, result.seed);
                (at, Task { explain: Some(beside), hash: false, trace: false, ..task })
            })
            .collect();
        let cells: Vec<Cell> = tasks.iter().map(|(_, task)| task.cell.clone()).collect();
        let mut explanations = BTreeMap::new();
        self.each(&cells, &tasks, |task, report| {
            let at = tasks[task].0;
            // On kvm it may have been otherwise this time, and then there is nothing to explain.
            if let Some(explanation) = report.explanation.filter(|_| report.outcome.kind == results[at].outcome.kind) {
                results[at].divergence.clone_from(&explanation.divergence);
                explanations.insert(results[at].cell.clone(), explanation);
            }
            ControlFlow::Continue(())
        });
        explanations
    }
}

/// Which results are to be explained.
fn wanted(results: &[CellResult], for_a_page: bool) -> Vec<usize> {
    let ran = |result: &CellResult| {
        !matches!(result.verdict, Verdict::NotApplicable | Verdict::Skipped)
            && result.outcome.kind != OutcomeKind::HarnessError
    };
    if for_a_page && results.len() <= FEW {
        return (0..results.len()).filter(|&at| ran(&results[at])).collect();
    }
    // Of each pairing the first ones, and the others as far as there is room.
    let mut of_pairing: BTreeMap<String, usize> = BTreeMap::new();
    let (mut red, mut other_red): (Vec<usize>, Vec<usize>) =
        (0..results.len()).filter(|&at| results[at].verdict == Verdict::Fail && ran(&results[at])).partition(|&at| {
            let count = of_pairing.entry(results[at].cell.pairing()).or_default();
            *count += 1;
            *count <= RED_PER_PAIRING
        });
    if for_a_page {
        red.append(&mut other_red);
    }
    red.truncate(RED);
    if for_a_page {
        let mut reasons = BTreeSet::new();
        red.extend((0..results.len()).filter(|&at| {
            let expectation = &results[at].expectation;
            results[at].verdict == Verdict::Xfail
                && reasons.len() < EXAMPLES
                && reasons.insert((&expectation.reason, &expectation.reference))
        }));
    }
    red
}

/// One result from all runs of a cell, and the trace of the one that it tells of.
fn sum_up(setup: &Setup, cell: &Cell, tries: Vec<(u64, Report)>) -> (CellResult, Option<Vec<u8>>) {
    let expectation = setup.matrix.expectation(cell);
    let verdict_of = |report: &Report| expectation.verdict(report.outcome.kind, report.parked_exits_per_s);
    let outcomes: Vec<OutcomeKind> = tries.iter().map(|(_, report)| report.outcome.kind).collect();
    let all: Vec<Try> = tries.iter().map(|(seed, report)| Try { seed: *seed, outcome: report.outcome.kind }).collect();
    let differ = outcomes.iter().any(|outcome| *outcome != outcomes[0]);
    // The one to be told of is the worst, by what was expected and then by itself; of equals, the first.
    let (seed, report) = tries
        .into_iter()
        .rev()
        .max_by_key(|(_, report)| (verdict_of(report).is_red(), report.outcome.kind.severity()))
        .expect("a cell runs at least once");
    let mut verdict = verdict_of(&report);
    let mut outcome = report.outcome;
    outcome.detail = expectation.detail(outcome.detail, report.parked_exits_per_s);
    if differ {
        outcome.detail = format!("{} ({})", outcome.detail, tally(&outcomes));
        verdict = Verdict::Fail;
    }
    // Never into silence: it is shown, and counted, as what it is.
    if verdict.is_red()
        && cell.engine == EngineKind::Kvm
        && let Some(words) = setup.matrix.known_race(cell, &outcomes)
    {
        outcome.detail = format!("{}; a known race: {words}", outcome.detail);
        verdict = Verdict::Flaky;
    }
    let result = CellResult {
        cell: cell.clone(),
        seed,
        outcome,
        expectation,
        verdict,
        aps_started: report.aps_started,
        duration: report.duration,
        instructions: report.instructions,
        parked_exits_per_s: report.parked_exits_per_s,
        trace_sha256: report.trace_sha256,
        tries: if all.len() > 1 { all } else { Vec::new() },
        divergence: None,
        log: report.log,
    };
    (result, report.trace)
}

/// `3 times ok, once hang`.
fn tally(outcomes: &[OutcomeKind]) -> String {
    let mut counts: BTreeMap<OutcomeKind, usize> = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(*outcome).or_default() += 1;
    }
    let told = counts.iter().map(|(outcome, count)| match count {
        1 => format!("once {outcome}"),
        many => format!("{many} times {outcome}"),
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use crate::outcome::Outcome;
    use crate::run::Engines;

    fn report(kind: OutcomeKind) -> Report {
        let detail = kind.to_string();
        Report { trace: Some(detail.clone().into_bytes()), ..Report::of(Outcome { kind, detail }) }
    }

    fn summed(cell: &str, outcomes: &[OutcomeKind]) -> CellResult {
        let text = Matrix::built_in().expect("a test keeps it right").source().text.clone();
        let race = "[[race]]\nmatch = { engine = \"kvm\", guest = \"mp-spec\" }\noutcomes = [\"ok\", \"hang\"]\nreason = \"\"\nref = \"issue 1\"\n";
        let matrix = Matrix::parse("m", &format!("{text}\n{race}")).expect("a matrix");
        let setup = Setup { matrix, engines: Engines::new(), seed: 0, timeout: None };
        let tries = (10..).zip(outcomes.iter().map(|kind| report(*kind))).collect();
        let (result, trace) = sum_up(&setup, &cell.parse().expect("a cell"), tries);
        assert_eq!(trace, Some(result.outcome.kind.to_string().into_bytes()), "the trace is that of the result");
        result
    }

    #[test]
    fn runs_that_differ_are_never_green_and_a_known_race_never_silent() {
        use OutcomeKind::{Abort, Hang, Ok, Panic};
        let soft = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft";
        let kvm = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/kvm";
        for (cell, outcomes, verdict, seed) in [
            (soft, &[Ok][..], Verdict::Pass, 10),
            (soft, &[Ok, Ok, Ok], Verdict::Pass, 10),
            (soft, &[Ok, Hang, Ok], Verdict::Fail, 11),
            (soft, &[Hang, Hang], Verdict::Fail, 10),
            (kvm, &[Ok, Ok, Hang], Verdict::Flaky, 12),
            (kvm, &[Hang], Verdict::Flaky, 10),
            (kvm, &[Ok, Panic], Verdict::Fail, 11),
            (kvm, &[Ok, Hang, Abort], Verdict::Fail, 12),
        ] {
            let result = summed(cell, outcomes);
            assert_eq!((result.verdict, result.seed), (verdict, seed), "{cell} {outcomes:?}");
            assert_eq!(result.tries.len(), if outcomes.len() > 1 { outcomes.len() } else { 0 });
        }
        assert_eq!(summed(soft, &[Ok, Hang, Ok]).outcome.detail, "hang (2 times ok, once hang)");
    }
}
