//! `spinup trace` and `spinup diff`: what happened in a cell, and what differs between two.

use super::{CellArgs, Failure, named_cell, print_and_exit, run_named};
use crate::cell::Cell;
use crate::diff::{Amount, Diff};
use crate::report::file::write_atomically;
use crate::report::unless_our_fault;
use crate::run::{CellRun, Setup};
use crate::trace::{Canonical, StoredTrace, perfetto, svg, text};
use clap::{Args, ValueEnum};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Arguments of `spinup trace`.
#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// The cell
    cell: String,
    /// How to write the trace
    #[arg(long, value_enum, default_value_t = TraceFormat::Text)]
    format: TraceFormat,
    /// Only what does not depend on engine and schedule, lane by lane, as text
    #[arg(long, conflicts_with = "format")]
    canonical: bool,
    /// Write to this file instead of standard output
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    cells: CellArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TraceFormat {
    /// A line for each event, in words
    Text,
    /// The stored form: a JSON object for each event
    Jsonl,
    /// For the timeline of ui.perfetto.dev or chrome://tracing
    Perfetto,
    /// A picture: a lane for each task and layer, arrows for causes and IPIs
    Svg,
    /// What the guest wrote to its serial port
    Console,
    /// What the guest wrote to its debug console, if it has one
    DebugConsole,
}

pub(super) fn trace(args: &TraceArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let cell = named_cell(&setup.matrix, &args.cell)?;
    let (run, trace) = run_named(&setup, &cell)?;
    let write = |out: &mut dyn Write| -> io::Result<()> {
        match args.format {
            _ if args.canonical => write!(out, "{}", Canonical::of(&trace.trace)),
            TraceFormat::Text => text::write(&trace, out),
            TraceFormat::Jsonl => trace.write(out),
            TraceFormat::Perfetto => perfetto::write(&trace, out),
            TraceFormat::Svg => svg::write(&trace, out),
            TraceFormat::Console => out.write_all(&run.serial),
            TraceFormat::DebugConsole => out.write_all(&run.debug),
        }
    };
    match &args.output {
        Some(path) => write_atomically(path, write)
            .map_err(|error| Failure::Harness(format!("{}: the trace cannot be written: {error}", path.display())))?,
        None => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            write(&mut out)?;
            out.flush()?;
        }
    }
    Ok(unless_our_fault([&run.result], 0))
}

/// Arguments of `spinup diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// A cell, or a file that `trace --format jsonl` or `run --trace-dir` wrote
    left: String,
    /// The same
    right: String,
    /// Show every difference
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn diff(args: &DiffArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let ((left_run, left), (right_run, right)) = (side(&setup, &args.left)?, side(&setup, &args.right)?);
    let amount = if args.full { Amount::Full } else { Amount::Summary };
    let results = [&left_run, &right_run].into_iter().flatten().map(|run| &run.result);
    print_and_exit(&Diff::new(&left, &right).show(amount), unless_our_fault(results, 0))
}

/// The trace of a file, or of a cell that is run for it.
fn side(setup: &Setup, text: &str) -> Result<(Option<CellRun>, StoredTrace), Failure> {
    if text.parse::<Cell>().is_ok() {
        let cell = named_cell(&setup.matrix, text)?;
        return run_named(setup, &cell).map(|(run, trace)| (Some(run), trace));
    }
    let path = Path::new(text);
    if !path.exists() {
        return Err(Failure::Usage(format!("`{text}` is neither a cell nor a file")));
    }
    StoredTrace::read(path).map(|trace| (None, trace)).map_err(Failure::Usage)
}
