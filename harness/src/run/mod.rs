//! Running cells: one ([`cell`]), or many side by side ([`for_each`]).

pub mod cell;
pub mod engines;
pub mod explain;

pub use cell::{CellResult, CellRun, Divergence, Execution, Job, Try, execute, run_cell, run_seeded};
pub use engines::Engines;
pub use explain::{Explanation, neighbours};

use crate::cell::Cell;
use crate::matrix::Matrix;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// What every cell of a run has in common.
#[derive(Debug)]
pub struct Setup {
    /// The matrix.
    pub matrix: Matrix,
    /// What executes guests.
    pub engines: Engines,
    /// The seed of the schedules.
    pub seed: u64,
    /// A limit for each cell, in place of the matrix's: of virtual time on `soft`, of real time on `kvm`.
    pub timeout: Option<Duration>,
}

impl Setup {
    /// How long a cell may take: in virtual time on `soft`, in real time on `kvm`.
    #[must_use]
    pub fn limit(&self, cell: &Cell) -> Duration {
        self.timeout.unwrap_or_else(|| self.matrix.limit(cell))
    }
}

/// Runs `work` on every item (cells, most often), `jobs` at a time, and hands each result to `done` in the order in which
/// they come, with the number of its item. `done` can end the run; what is under way is finished, and handed over, all the
/// same.
pub fn for_each<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> T + Sync,
    mut done: impl FnMut(usize, T) -> ControlFlow<()>,
) {
    let next = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let sender = sender.clone();
            let (next, over, work) = (&next, &over, &work);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (at, result) in results {
            if done(at, result).is_break() {
                over.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// A part of a run: every `of`-th cell, beginning with the `part`-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    part: usize,
    of: usize,
}

impl Shard {
    /// The cells of this part, in their order.
    #[must_use]
    pub fn of<T>(self, cells: Vec<T>) -> Vec<T> {
        cells.into_iter().skip(self.part - 1).step_by(self.of).collect()
    }
}

/// A text is no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shard is I/N with I from 1 to N, such as 1/4")]
pub struct ShardError;

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Shard, ShardError> {
        let (part, of) = text.split_once('/').ok_or(ShardError)?;
        let shard = Shard { part: part.parse().map_err(|_| ShardError)?, of: of.parse().map_err(|_| ShardError)? };
        if (1..=shard.of).contains(&shard.part) { Ok(shard) } else { Err(ShardError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cells(count: u16) -> Vec<Cell> {
        (1..=count).map(|cpus| format!("a@b/c/xapic-{cpus}/soft").parse().expect("a cell")).collect()
    }

    #[test]
    fn every_cell_is_run_once_on_any_number_of_threads() {
        for jobs in [0, 1, 3, 100] {
            let cells = cells(20);
            let mut results = vec![0; cells.len()];
            for_each(
                &cells,
                jobs,
                |cell| cell.cpus,
                |at, cpus| {
                    results[at] += usize::from(cpus);
                    ControlFlow::Continue(())
                },
            );
            assert!(results.into_iter().eq(1..=20), "{jobs} jobs");
        }
        for_each(&[(); 0], 2, |()| (), |_, ()| panic!("no cell, no result"));
    }

    #[test]
    fn a_run_ends_early_when_asked_to() {
        let cells = cells(1000);
        let mut handed_over = 0;
        for_each(
            &cells,
            1,
            |_| std::thread::sleep(Duration::from_micros(50)),
            |_, ()| {
                handed_over += 1;
                if handed_over == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert!((3..1000).contains(&handed_over), "{handed_over}");
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in ["", "1", "0/3", "4/3", "1/0", "a/3", "1/3/5", "-1/3"] {
            assert_eq!(text.parse::<Shard>(), Err(ShardError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn shards_are_a_partition(count in 0usize..50, of in 1usize..8) {
            let all: Vec<usize> = (0..count).collect();
            let mut joined: Vec<usize> = (1..=of)
                .flat_map(|part| format!("{part}/{of}").parse::<Shard>().expect("a shard").of(all.clone()))
                .collect();
            joined.sort_unstable();
            prop_assert_eq!(joined, all);
        }
    }
}
