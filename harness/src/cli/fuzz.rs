//! `spinup fuzz`: random programs of IPIs over neighbouring kernels.

use super::{CellArgs, Failure, apic, print_and_exit};
use crate::catalog;
use crate::fuzz::{Plan, fuzz as run_plan};
use crate::matrix::Selection;
use crate::pattern::Pattern;
use clap::Args;
use frontends::ApicMode;
use std::num::NonZeroUsize;

/// Arguments of `spinup fuzz`.
#[derive(Debug, Args)]
pub(super) struct FuzzArgs {
    /// Frontends; all by default
    #[arg(long, value_name = "F")]
    frontend: Vec<String>,
    /// Kernels in this order, each compared with the one before it; those of the history by default
    #[arg(long, value_name = "K")]
    kernel: Vec<String>,
    /// APIC modes; both by default
    #[arg(long, value_name = "A", value_parser = apic)]
    apic: Vec<ApicMode>,
    /// The number of vCPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=16), default_value_t = 3)]
    cpus: u16,
    /// How many programs, which --seed decides
    #[arg(long, value_name = "N", default_value = "50")]
    programs: NonZeroUsize,
    /// How many operations a program has at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=60), default_value_t = 12)]
    length: u8,
    /// Frontends and APIC modes that run at the same time; as many as there are processors by default
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn fuzz(args: &FuzzArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    if args.kernel.len() == 1 {
        return Err(Failure::Usage("one kernel cannot be compared; give --kernel twice, or not at all".into()));
    }
    // Checks the names, and suggests others.
    let patterns = |names: &[String]| names.iter().map(Pattern::new).collect();
    let selection =
        Selection { kernels: patterns(&args.kernel), frontends: patterns(&args.frontend), ..Selection::default() };
    setup.matrix.select(&selection).map_err(|error| Failure::Usage(error.to_string()))?;
    let plan = Plan {
        frontends: if args.frontend.is_empty() {
            catalog::frontends().iter().map(|frontend| frontend.name.to_owned()).collect()
        } else {
            args.frontend.clone()
        },
        kernels: args.kernel.clone(),
        apic: if args.apic.is_empty() { ApicMode::ALL.to_vec() } else { args.apic.clone() },
        cpus: args.cpus,
        programs: args.programs.get(),
        length: args.length.into(),
    };
    let jobs = super::jobs(args.jobs);
    let fuzzed = run_plan(&setup, &plan, jobs).map_err(Failure::Usage)?;
    let status = if fuzzed.our_faults.is_empty() { u8::from(!fuzzed.is_explained()) } else { 3 };
    print_and_exit(&fuzzed.render(), status)
}
