//! Running cells: one in this process ([`cell`]), or many side by side ([`for_each`]) in worker processes ([`pool`]) that
//! nothing outlives and nobody trusts.

pub mod campaign;
pub mod cell;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod crash;
pub mod engines;
pub mod explain;
mod frames;
pub mod journal;
pub mod pool;
mod sandbox;
pub mod shard;
pub mod speed;
pub mod stop;
pub mod wire;
pub mod worker;

pub use campaign::{Campaign, Manner, Observer};
pub use cell::{CellResult, CellRun, Divergence, Execution, Job, Try, debug_cell, execute, run_cell, run_seeded};
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
    done: impl FnMut(usize, R) -> ControlFlow<()>,
) {
    let attend = |job: usize, feed: &Feed<'_, T>, hand_over: &mut dyn FnMut(usize, R)| {
        let mut own = begin(job);
        while let Some(at) = feed.next() {
            hand_over(at, work(&mut own, &items[at]));
        }
    };
    share_out(items, jobs, attend, done);
}

/// Items that several threads share out among themselves.
struct Feed<'a, T> {
    items: &'a [T],
    next: AtomicUsize,
    over: AtomicBool,
}

impl<T> Feed<'_, T> {
    /// The number of an item that is this thread's from now on; `None` when there is nothing more to do.
    fn next(&self) -> Option<usize> {
        self.next_if(0, |_| true)
    }

    /// The same, if the item is wanted and at least `spare` are left after it.
    fn next_if(&self, spare: usize, wanted: impl Fn(&T) -> bool) -> Option<usize> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let take = |at: usize| {
            let wanted = self.items.get(at).is_some_and(&wanted) && at + spare < self.items.len();
            wanted.then_some(at + 1)
        };
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()
    }
}

/// Lets `jobs` threads share out items. Each thread takes from the feed what it works on, and hands over the result of each
/// item with its number; `done` gets it in this thread, and can end the feed.
fn share_out<T: Sync, R: Send>(
    items: &[T],
    jobs: usize,
    attend: impl Fn(usize, &Feed<'_, T>, &mut dyn FnMut(usize, R)) + Sync,
    mut done: impl FnMut(usize, R) -> ControlFlow<()>,
) {
    let feed = Feed { items, next: AtomicUsize::new(0), over: AtomicBool::new(false) };
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for job in 0..jobs.clamp(1, items.len().max(1)) {
            let sender = sender.clone();
            let (feed, attend) = (&feed, &attend);
            scope.spawn(move || {
                attend(job, feed, &mut |at, result| {
                    // Nobody listens any more when `done` panicked.
                    if sender.send((at, result)).is_err() {
                        feed.over.store(true, Ordering::Relaxed);
                    }
                });
            });
        }
        drop(sender);
        for (at, result) in results {
            if done(at, result).is_break() {
                feed.over.store(true, Ordering::Relaxed);
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

    #[test]
    fn an_item_is_taken_ahead_only_if_enough_are_left_for_the_others() {
        let feed = Feed { items: &[1, 2, 3, 4], next: AtomicUsize::new(0), over: AtomicBool::new(false) };
        assert_eq!(feed.next(), Some(0));
        assert_eq!(feed.next_if(2, |item| *item > 2), None, "it is not wanted");
        assert_eq!(feed.next_if(2, |_| true), Some(1));
        assert_eq!(feed.next_if(2, |_| true), None, "that would leave one");
        assert_eq!((feed.next(), feed.next(), feed.next()), (Some(2), Some(3), None));
    }
}
