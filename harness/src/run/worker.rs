//! The worker's side: a process of its own that runs one cell after another, and says what became of each.

use super::cell::{Execution, execute};
use super::engines::Engines;
use super::explain::Explanation;
use super::frames;
use super::sandbox;
use super::wire::{Begin, Ready, Report, Task, bytes_frame, receive, send};
use crate::matrix::{KernelSet, MatrixSource};
use crate::outcome::{Outcome, OutcomeKind};
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm::host::Host;

/// How much longer a cell gets to come to rest, once it has been told that it is given up.
const REST: Duration = Duration::from_secs(1);

/// Works until the runner has no more for it: reads tasks from standard input, and writes reports to standard output.
///
/// # Errors
/// When the runner cannot be understood, or the host refuses to confine this process.
pub fn work() -> io::Result<()> {
    let (mut from, mut to) = (io::stdin().lock(), io::stdout().lock());
    let Some(begin) = receive::<Begin>(&mut from)? else { return Ok(()) };
    // Ctrl-C in a terminal goes to every process there: it is for the runner to say what becomes of its workers.
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::default())?;
    frames::tell_addresses();
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    super::crash::tell()?;
    sandbox::bound(begin.parent)?;
    let kernels = begin.matrix.unwrap_or_else(|| MatrixSource { name: String::new(), text: String::new() });
    let kernels = KernelSet::parse(&kernels).map_err(io::Error::other)?;
    let engines = Engines::new();
    for engine in &begin.engines {
        // Opened now; why it cannot be is said when a cell asks.
        let _ = engines.get(*engine);
    }
    for guest in begin.os_guests.iter().filter_map(|guest| kernels.os_guest(guest)) {
        // Read now; likewise.
        let _ = guest.image();
    }
    let watch = Watch::start();
    // A host without seccomp can run cells all the same: the runner says so.
    send(&mut to, &Ready { unconfined: sandbox::confine(&begin.engines).err() })?;
    while let Some(task) = receive::<Task>(&mut from)? {
        let report = run(&task, &kernels, &engines, &watch);
        send(&mut to, &report)?;
        if let Some(trace) = &report.trace {
            to.write_all(&bytes_frame(trace))?;
            to.flush()?;
        }
        if report.outcome.kind == OutcomeKind::HarnessError {
            // Nobody knows what is left of this process: the next task is for another, and what is said is about this one.
            break;
        }
    }
    Ok(())
}

fn run(task: &Task, kernels: &KernelSet, engines: &Engines, watch: &Arc<Watch>) -> Report {
    let engine = match engines.get_for(task.cell.engine, kernels.os_guest(&task.cell.guest)) {
        Ok(engine) => engine,
        Err(why) => return Report::of(Outcome { kind: OutcomeKind::NotApplicable, detail: why }),
    };
    let execute = |task: &Task| -> Result<Execution, Outcome> {
        sandbox::bound_time(task.patience * u32::from(task.cell.cpus) + REST);
        let kernel = kernels.kernel(&task.cell.kernel).ok_or_else(|| Outcome {
            kind: OutcomeKind::HarnessError,
            detail: format!("the worker knows no kernel {}", task.cell.kernel),
        })?;
        let job = task.job(&kernel, kernels.os_guest(&task.cell.guest), engine.clone());
        let run = execute(&job, |host| watch.over(host, task.patience));
        watch.rest();
        run.map_err(|detail| Outcome { kind: OutcomeKind::NotApplicable, detail })
    };
    let run = match execute(task) {
        Ok(run) => run,
        Err(outcome) => return Report::of(outcome),
    };
    let explanation = task.explain.as_ref().map(|beside| {
        let good = beside.iter().find_map(|cell| {
            let other = execute(&Task { cell: cell.clone(), ..task.clone() }).ok()?;
            (other.outcome.kind == OutcomeKind::Ok).then_some(other.trace)
        });
        Explanation::of(&run, good.as_ref())
    });
    Report::new(task, run, explanation)
}

/// A thread that gives up a cell whose patience is at its end.
#[derive(Default)]
struct Watch {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    /// The host of the cell that runs, until when, and its patience.
    cell: Option<(Host, Instant, Duration)>,
    /// When the thread looks by itself. `None`: it waits to be told.
    looks_at: Option<Instant>,
}

impl Watch {
    fn start() -> Arc<Watch> {
        let watch = Arc::<Watch>::default();
        let watching = watch.clone();
        std::thread::spawn(move || watching.watch());
        watch
    }

    /// Watches a cell from now on.
    fn over(&self, host: &Host, patience: Duration) {
        let until = Instant::now() + patience;
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.cell = Some((host.clone(), until, patience));
        // Cells follow one another so fast that waking the thread for each would cost more than some cells take.
        if watched.looks_at.is_none_or(|at| at > until) {
            self.changed.notify_one();
        }
    }

    /// The cell has ended.
    fn rest(&self) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).cell = None;
    }

    fn watch(&self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            if let Some((host, _, patience)) = watched.cell.take_if(|(_, until, _)| *until <= now) {
                host.abandon(&format!("It was given up after {} s of real time", patience.as_secs_f64()));
            }
            watched.looks_at = watched.cell.as_ref().map(|(_, until, _)| *until);
            watched = match watched.looks_at {
                None => self.changed.wait(watched).unwrap_or_else(PoisonError::into_inner),
                Some(at) => self.changed.wait_timeout(watched, at - now).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::host::{End, Finished};

    #[test]
    fn a_cell_is_given_up_when_its_own_patience_ends_whoever_was_watched_before() {
        let watch = Watch::start();
        let run = |patience_ms: u64, takes_ms: u64| {
            let host = Host::virtual_time(0, u64::MAX);
            watch.over(&host, Duration::from_millis(patience_ms));
            let inside = host.clone();
            let Finished { end, .. } = host.run("main", move || {
                let until = Instant::now() + Duration::from_millis(takes_ms);
                while Instant::now() < until {
                    inside.charge(1);
                    inside.yield_now();
                }
            });
            watch.rest();
            matches!(end, End::HarnessError(_))
        };
        assert!(!run(60_000, 1), "it ends by itself");
        assert!(run(20, 10_000), "less patience than the one before");
        assert!(!run(200, 50), "and more");
        assert!(!run(200, 150), "the time of the one before does not count");
        assert!(run(20, 10_000));
    }
}
