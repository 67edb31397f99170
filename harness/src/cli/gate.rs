//! `spinup gate`: whether anything got worse since a baseline.

use super::progress::Progress;
use super::run::{self, Ran, RunArgs};
use super::{Failure, print_and_exit};
use crate::matrix::Date;
use crate::report::file::write_atomically;
use crate::report::json::Document;
use crate::report::{self, gate};
use crate::run::{Campaign, CellResult, Stop};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `spinup gate`.
#[derive(Debug, Args)]
pub(super) struct GateArgs {
    /// Results of before, as `run --json` wrote them
    #[arg(long, value_name = "RESULTS", help_heading = "Gate")]
    baseline: PathBuf,
    /// Results of now, of one run or of its shards, instead of a run
    #[arg(long, value_name = "RESULTS", help_heading = "Gate")]
    results: Vec<PathBuf>,
    /// Write what changed as JSON, for release tooling
    #[arg(long, value_name = "FILE", help_heading = "Gate")]
    verdict: Option<PathBuf>,
    /// The day to look at support for, instead of today
    #[arg(long, value_name = "YYYY-MM-DD", help_heading = "Gate")]
    today: Option<Date>,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn gate(args: &GateArgs) -> Result<u8, Failure> {
    let baseline = Document::read(&args.baseline).map_err(Failure::Usage)?;
    let mut ran = if args.results.is_empty() {
        run::run_cells(&args.run)?
    } else {
        let results = Document::read_all(&args.results).map_err(Failure::Usage)?.cells;
        Ran::of(args.run.cells.setup()?, results)
    };
    let today = args.today.unwrap_or_else(Date::today);
    let kernels: Vec<&str> = ran.setup.matrix.kernels().iter().map(|kernel| &*kernel.name).collect();
    let repeated = args.run.cells.repeated();
    let context = report::Context {
        kernels: &kernels,
        beside: &|_| false,
        repeated: &repeated,
        matrix: "",
        duration: ran.duration,
        seed: ran.setup.seed,
    };
    let mut found = gate::compare(&baseline.cells, &ran.results, &ran.setup.matrix, today, &context);
    explain(args, &ran, &mut found)?;
    let mut text = found.show();
    if let Some(path) = &args.verdict {
        write_atomically(path, |out| {
            serde_json::to_writer_pretty(&mut *out, &found)?;
            out.write_all(b"\n")
        })
        .map_err(|error| Failure::Harness(format!("{}: the verdict cannot be written: {error}", path.display())))?;
    }
    let status = u8::from(!found.passes());
    if args.results.is_empty() {
        // The run's own reports, too; whether its verdicts are green is another question.
        let own = run::report(&args.run, &mut ran)?;
        text.insert(0, '\n');
        return print_and_exit(&text, if own >= 3 { own } else { status });
    }
    print_and_exit(&text, report::unless_our_fault(&ran.results, status))
}

/// Finds where cells that got worse part ways, for those of which it is not known yet: an expected failure has no divergence,
/// but may be new.
fn explain(args: &GateArgs, ran: &Ran, found: &mut gate::Gate) -> Result<(), Failure> {
    let open = |changed: &&mut gate::Changed| {
        changed.change == gate::Change::Worse
            && changed.divergence.is_none()
            && ran.setup.matrix.check_cell(&changed.cell).is_ok()
    };
    let cells: Vec<_> = found.changes.iter_mut().filter(open).map(|changed| changed.cell.clone()).collect();
    if cells.is_empty() {
        return Ok(());
    }
    let mut results: Vec<CellResult> = ran
        .results
        .iter()
        .filter(|result| cells.contains(&result.cell))
        .map(|result| CellResult { verdict: crate::matrix::verdict::Verdict::Fail, ..result.clone() })
        .collect();
    let stop = Stop::new();
    stop.listen().map_err(|error| Failure::Harness(format!("signals cannot be watched: {error}")))?;
    Campaign::new(&ran.setup, args.run.runner.manner(), &stop, &Progress::Silent).explain(&mut results, false);
    for changed in &mut found.changes {
        let divergence = results.iter().find(|result| result.cell == changed.cell).and_then(|r| r.divergence.clone());
        changed.divergence = changed.divergence.take().or(divergence);
    }
    Ok(())
}
