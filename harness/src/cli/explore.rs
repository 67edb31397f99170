//! `spinup explore`: other interleavings of one cell.

use super::{CellArgs, Failure, jobs, named_cell, print_and_exit};
use crate::cell::EngineKind;
use crate::explore::explore as explore_cell;
use clap::Args;
use std::num::NonZeroUsize;

/// Arguments of `spinup explore`.
#[derive(Debug, Args)]
pub(super) struct ExploreArgs {
    /// The cell
    cell: String,
    /// How many schedules, from that of --seed on
    #[arg(long, value_name = "N", default_value = "100")]
    schedules: NonZeroUsize,
    /// Schedules that run at the same time; as many as there are processors by default
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn explore(args: &ExploreArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let cell = named_cell(&setup.matrix, &args.cell)?;
    if cell.engine == EngineKind::Kvm {
        return Err(Failure::Usage(format!("{cell}: on kvm the host decides the schedule; explore it on soft")));
    }
    let explored = explore_cell(&setup, &cell, args.schedules.get(), jobs(args.jobs)).map_err(Failure::Usage)?;
    let status = if explored.is_our_fault() { 3 } else { u8::from(explored.differs()) };
    print_and_exit(&explored.render(&args.cells.repeated()), status)
}
