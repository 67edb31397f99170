//! How a run is getting on: bars on a terminal, and in continuous integration a line from time to time. All of it goes to
//! standard error.

use crate::cell::Cell;
use crate::run::Observer;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often a line is printed at most.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Workers that get a line of their own.
const WORKERS_SHOWN: usize = 16;

/// Who shows it.
pub(super) enum Progress {
    /// Nobody: standard error is a file or a pipe.
    Silent,
    /// A log that somebody watches, as the variable `CI` says.
    Lines { total: usize, last: Mutex<(usize, Instant)> },
    /// A terminal.
    Bars { all: ProgressBar, workers: Vec<ProgressBar> },
}

impl Progress {
    pub(super) fn new(cells: usize, jobs: usize) -> Progress {
        if !std::io::stderr().is_terminal() {
            let watched = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
            let last = Mutex::new((0, Instant::now()));
            return if watched { Progress::Lines { total: cells, last } } else { Progress::Silent };
        }
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let style = |template: &str| ProgressStyle::with_template(template).expect("the template is fixed");
        let all = bars.add(
            ProgressBar::new(cells as u64)
                .with_style(style("  {bar:30} {pos}/{len} cells, {elapsed}, {eta} to go").progress_chars("━╸ ")),
        );
        let worker = || bars.add(ProgressBar::no_length().with_style(style("  {msg:.dim}")));
        let workers = (0..jobs.min(WORKERS_SHOWN).min(cells)).map(|_| worker()).collect();
        Progress::Bars { all, workers }
    }

    /// Another cell is done.
    pub(super) fn done(&self) {
        match self {
            Progress::Silent => {}
            Progress::Bars { all, .. } => all.inc(1),
            Progress::Lines { total, last } => {
                let Ok(mut last) = last.lock() else { return };
                last.0 += 1;
                if last.1.elapsed() >= LINE_INTERVAL {
                    last.1 = Instant::now();
                    // Nobody is there to be told that nobody is there.
                    let _ = writeln!(std::io::stderr(), "{}/{total} cells", last.0);
                }
            }
        }
    }

    /// Everything is done.
    pub(super) fn finish(&self) {
        if let Progress::Bars { all, workers } = self {
            workers.iter().for_each(ProgressBar::finish_and_clear);
            all.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn begins(&self, place: usize, cell: &Cell) {
        if let Progress::Bars { workers, .. } = self
            && let Some(bar) = workers.get(place)
        {
            bar.set_message(cell.to_string());
        }
    }

    fn rests(&self, place: usize) {
        if let Progress::Bars { workers, .. } = self
            && let Some(bar) = workers.get(place)
        {
            bar.set_message("");
        }
    }

    fn warns(&self, what: &str) {
        let warn = || super::warn(what);
        match self {
            Progress::Bars { all, .. } => all.suspend(warn),
            Progress::Silent | Progress::Lines { .. } => warn(),
        }
    }
}
