//! `spinup run`: runs a selection of cells and prints the grid.

use super::{CellArgs, Failure, SelectArgs, print_and_exit};
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::report::{self, file, grid, json};
use crate::run::{CellResult, Setup, Shard, for_each, run_cell};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the JSON document is brought up to date while cells are running.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// Exit status of a run that was interrupted, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Arguments of `spinup run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) select: SelectArgs,
    #[command(flatten)]
    pub(super) cells: CellArgs,
    /// Cells that run at the same time, on `kvm` never more than there are processors; as many by default
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Run only every N-th cell, beginning with the I-th
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the trace of each cell as a file of its name below this directory
    #[arg(long, value_name = "DIR")]
    trace_dir: Option<PathBuf>,
}

pub(super) fn run(args: &RunArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let mut cells = args.select.cells(&setup.matrix)?;
    if let Some(shard) = args.shard {
        cells = shard.of(cells);
        if cells.is_empty() {
            return Err(Failure::Usage("this shard has no cell: there are fewer cells than shards".into()));
        }
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    // The second interrupt does not wait for cells to end.
    for register in [signal_hook::flag::register_conditional_default, signal_hook::flag::register] {
        register(signal_hook::consts::SIGINT, interrupted.clone())
            .map_err(|error| Failure::Harness(format!("SIGINT cannot be watched: {error}")))?;
    }

    let began = Instant::now();
    let results = run_cells(args, &setup, &cells, &interrupted)?;
    let asked_for_by_name = !args.select.guest.is_empty();
    let kernels: Vec<&str> = setup.matrix.kernels().iter().map(|kernel| &*kernel.name).collect();
    let context = report::Context {
        kernels: &kernels,
        beside: &|cell| !asked_for_by_name && !setup.matrix.has_guest_on_axis(&cell.guest),
        repeated: &args.cells.repeated(),
        duration: began.elapsed(),
        seed: setup.seed,
    };
    let stopped = results.iter().any(|result| result.verdict == Verdict::Skipped);
    let status = if stopped { INTERRUPTED } else { report::exit_status(&results) };
    print_and_exit(&grid::render(&results, &context, report::stdout_width()), status)
}

/// Runs the cells and keeps the files up to date; the results in the order of the cells.
fn run_cells(
    args: &RunArgs,
    setup: &Setup,
    cells: &[Cell],
    interrupted: &AtomicBool,
) -> Result<Vec<CellResult>, Failure> {
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let work = |cell: &Cell| -> io::Result<CellResult> {
        let mut run = run_cell(setup, cell);
        if let Some(trace) = &run.trace {
            if args.json.is_some() {
                run.result.trace_sha256 = Some(trace.sha256());
            }
            if let Some(dir) = &args.trace_dir {
                let path = dir.join(cell.file("jsonl"));
                std::fs::create_dir_all(path.parent().expect("a cell's file stands in a directory"))?;
                file::write_atomically(&path, |out| trace.write(out))?;
            }
        }
        Ok(run.result)
    };

    let mut results: Vec<CellResult> = cells
        .iter()
        .map(|cell| CellResult::without_run(setup, cell, Verdict::Skipped, "it did not run".into()))
        .collect();
    let engines: BTreeSet<_> = cells.iter().map(|cell| cell.engine).collect();
    let document = args.json.as_deref().map(|path| (path, json::Host::here(&setup.engines, engines)));
    let write =
        |results: &[CellResult]| document.as_ref().map_or(Ok(()), |(path, host)| write_json(path, host, results));
    // Written at once, so that a path that cannot be written is found before the work is done. A stream gets the end alone.
    let keep_written = args.json.as_deref().is_some_and(|path| !file::is_stream(path));
    if keep_written {
        write(&results)?;
    }
    let mut written = Instant::now();

    let progress = progress_bar(cells.len());
    let mut failure = None;
    for_each(cells, jobs, work, |at, result| {
        progress.inc(1);
        match result {
            Ok(result) => results[at] = result,
            Err(error) => {
                failure = Some(Failure::Harness(format!("the trace of {} cannot be written: {error}", cells[at])))
            }
        }
        if keep_written && failure.is_none() && written.elapsed() > JSON_INTERVAL {
            failure = write(&results).err();
            written = Instant::now();
        }
        if failure.is_some() || interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    progress.finish_and_clear();
    if let Some(failure) = failure {
        return Err(failure);
    }
    write(&results)?;
    Ok(results)
}

fn write_json(path: &Path, host: &json::Host, results: &[CellResult]) -> Result<(), Failure> {
    json::Document::new(host, results)
        .write(path)
        .map_err(|error| Failure::Harness(format!("{}: the results cannot be written: {error}", path.display())))
}

/// A bar on standard error, if that is a terminal.
fn progress_bar(cells: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(cells as u64), ProgressDrawTarget::stderr());
    let template = "  {bar:30} {pos}/{len} cells, {elapsed}";
    bar.with_style(ProgressStyle::with_template(template).expect("the template is fixed").progress_chars("━╸ "))
}
