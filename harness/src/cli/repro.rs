//! `spinup repro`: a known regression, or a cell that is not ok, beside its good side.

use super::{CellArgs, Failure, named_cell, print_and_exit, run_named};
use crate::cell::Cell;
use crate::diff::{Amount, Diff};
use crate::outcome::OutcomeKind;
use crate::pattern::did_you_mean;
use crate::report::paint::{BOLD, DIM, paint};
use crate::report::unless_our_fault;
use crate::run::{Setup, neighbours, run_cell};
use crate::trace::StoredTrace;
use clap::Args;
use std::fmt::Write as _;

/// Arguments of `spinup repro`.
#[derive(Debug, Args)]
pub(super) struct ReproArgs {
    /// A regression that `show regressions` lists, or a cell
    #[arg(value_name = "ID|CELL")]
    what: String,
    /// Show every difference
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn repro(args: &ReproArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let amount = if args.full { Amount::Full } else { Amount::Summary };
    if let Some(regression) = setup.matrix.regression(&args.what).cloned() {
        let (bad, bad_trace) = run_named(&setup, &regression.bad)?;
        let (good, good_trace) = run_named(&setup, &regression.good)?;
        let mut out = String::new();
        let _ = writeln!(out, "{}: {}", paint(BOLD, &regression.id), regression.about);
        let _ = writeln!(out, "{}\n", paint(DIM, &regression.reference));
        out.push_str(&Diff::new(&good_trace, &bad_trace).show(amount));
        let shows = bad.result.outcome.kind == bad.result.expectation.outcome
            && good.result.outcome.kind == good.result.expectation.outcome;
        if !shows {
            let _ = writeln!(
                out,
                "\nThe regression does not show: expected {} and {}, got {} and {}.",
                good.result.expectation.outcome,
                bad.result.expectation.outcome,
                good.result.outcome.kind,
                bad.result.outcome.kind
            );
        }
        return print_and_exit(&out, unless_our_fault([&bad.result, &good.result], u8::from(!shows)));
    }
    if !args.what.contains('/') {
        let ids = setup.matrix.regressions().iter().map(|regression| regression.id.as_str());
        let hint = did_you_mean(&args.what, ids);
        return Err(Failure::Usage(format!(
            "`{}` is neither a regression{hint} nor a cell; `spinup show regressions` and `spinup list` list them",
            args.what
        )));
    }
    let cell = named_cell(&setup.matrix, &args.what)?;
    let (bad, bad_trace) = run_named(&setup, &cell)?;
    if bad.result.outcome.kind == OutcomeKind::Ok {
        return Err(Failure::Usage(format!(
            "{cell} is ok ({}); to compare two cells use `spinup diff`",
            bad.result.outcome.detail
        )));
    }
    let Some(good_trace) = good_side(&setup, &cell) else {
        return Err(Failure::Usage(format!(
            "{cell} ends as {} ({}), and nothing near it is ok; `spinup trace {cell}` shows what happened",
            bad.result.outcome.kind, bad.result.outcome.detail
        )));
    };
    print_and_exit(&Diff::new(&good_trace, &bad_trace).show(amount), unless_our_fault([&bad.result], 0))
}

/// The nearest cell that is ok.
fn good_side(setup: &Setup, bad: &Cell) -> Option<StoredTrace> {
    neighbours(&setup.matrix, bad)
        .into_iter()
        .map(|candidate| run_cell(setup, &candidate))
        .find(|run| run.result.outcome.kind == OutcomeKind::Ok)
        .and_then(|run| run.trace)
}
