//! `spinup merge`: joins the results of shards, and reports them as one run.

use super::run::{FileArgs, Publication, RunnerArgs};
use super::{CellArgs, Failure};
use crate::cell::Cell;
use crate::report::json::Document;
use crate::run::{Campaign, CellResult, Setup, Stop};
use clap::Args;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `spinup merge`.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// Results that `run --json` wrote
    #[arg(value_name = "RESULTS", required = true)]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    cells: CellArgs,
    #[command(flatten)]
    runner: RunnerArgs,
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn merge(args: &MergeArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let whole = Document::read_all(&args.parts).map_err(Failure::Usage)?;
    args.files.files().probe().map_err(Failure::Harness)?;
    let duration = whole.cells.iter().map(|result| result.duration).sum::<Duration>();
    let mut results = whole.cells;
    in_matrix_order(&setup, &mut results);
    let stop = Stop::new();
    stop.listen().map_err(|error| Failure::Harness(format!("signals cannot be watched: {error}")))?;
    // What the parts found out is in them; the page wants pictures, too.
    let explanations = match args.files.html {
        Some(_) if results.iter().all(|result| setup.matrix.check_cell(&result.cell).is_ok()) => {
            Campaign::new(&setup, args.runner.manner(), &stop, &super::progress::Progress::Silent)
                .explain(&mut results, true)
        }
        _ => BTreeMap::new(),
    };
    Publication { setup: &setup, cells: &args.cells, files: &args.files, guests_by_name: false, duration }.publish(
        &results,
        &explanations,
        Vec::new(),
    )
}

/// Puts results into the order that one run of the whole matrix has; cells beside the matrix come last.
fn in_matrix_order(setup: &Setup, results: &mut [CellResult]) {
    let configured = setup.matrix.configured();
    let places: HashMap<&Cell, usize> = configured.iter().enumerate().map(|(at, cell)| (cell, at)).collect();
    // Stable: the others stay as they are.
    results.sort_by_key(|result| places.get(&result.cell).copied().unwrap_or(usize::MAX));
}
