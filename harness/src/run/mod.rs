//! Running cells: one in this process ([`cell`]), or many side by side ([`for_each`]) in worker processes ([`pool`]) that
//! nothing outlives and nobody trusts.

pub mod campaign;
pub mod cell;
pub mod engines;
pub mod explain;
mod frames;
pub mod journal;
pub mod pool;
mod sandbox;
pub mod shard;
pub mod stop;
pub mod wire;
pub mod worker;

pub use campaign::{Campaign, Manner, Observer};
pub use cell::{CellResult, CellRun, Divergence, Execution, Job, Try, execute, run_cell, run_seeded};
pub use engines::Engines;
pub use explain::{Explanation, neighbours};
pub use pool::Pool;
pub use shard::Shard;
pub use stop::Stop;
pub use wire::{Report, Task};

use crate::cell::Cell;
use crate::matrix::Matrix;
use std::ops::ControlFlow;
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

/// Runs `work` on every item, `jobs` at a time, and hands each result to `done` in the order in which they come, with the
/// number of its item. Each of the `jobs` threads has something of its own from `begin`. `done` can end the run; items that
/// are under way are finished, and handed over, all the same.
pub fn for_each<T: Sync, S, R: Send>(
    items: &[T],
    jobs: usize,
    begin: impl Fn(usize) -> S + Sync,
    work: impl Fn(&mut S, &T) -> R + Sync,
    mut done: impl FnMut(usize, R) -> ControlFlow<()>,
) {
    let next = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for job in 0..jobs.clamp(1, items.len().max(1)) {
            let sender = sender.clone();
            let (next, over, begin, work) = (&next, &over, &begin, &work);
            scope.spawn(move || {
                let mut own = begin(job);
                while !over.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(&mut own, item))).is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

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
                |_| (),
                |(), cell| cell.cpus,
                |at, cpus| {
                    results[at] += usize::from(cpus);
                    ControlFlow::Continue(())
                },
            );
            assert!(results.into_iter().eq(1..=20), "{jobs} jobs");
        }
        for_each(&[], 2, |_| (), |(), _: &Cell| (), |_, ()| panic!("no cell, no result"));
    }

    #[test]
    fn a_run_ends_early_when_asked_to() {
        let cells = cells(1000);
        let mut handed_over = 0;
        for_each(
            &cells,
            1,
            |_| (),
            |(), _| std::thread::sleep(Duration::from_micros(50)),
            |_, ()| {
                handed_over += 1;
                if handed_over == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert!((3..1000).contains(&handed_over), "{handed_over}");
    }
}
