//! `spinup bisect`: which change broke a frontend, and which mended it.

use super::{CellArgs, Failure, ListFormat, apic, engine, print_and_exit};
use crate::bisect::{BisectError, bisect as history_of, document, render};
use crate::cell::{Cell, EngineKind};
use clap::Args;
use frontends::ApicMode;
use guests::MAX_CPUS;

/// Arguments of `spinup bisect`.
#[derive(Debug, Args)]
pub(super) struct BisectArgs {
    /// The frontend
    #[arg(long, value_name = "F")]
    frontend: String,
    /// The guest
    #[arg(long, value_name = "G")]
    guest: String,
    /// The APIC mode
    #[arg(long, value_name = "A", value_parser = apic, default_value_t = ApicMode::Xapic)]
    apic: ApicMode,
    /// The number of vCPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CPUS)), default_value_t = 2)]
    cpus: u16,
    /// The engine
    #[arg(long, value_name = "E", value_parser = engine, default_value_t = EngineKind::Soft)]
    engine: EngineKind,
    /// Begin with this kernel, a what-if one too; the oldest by default
    #[arg(long, value_name = "K")]
    kernel_from: Option<String>,
    /// End with this kernel; the newest by default
    #[arg(long, value_name = "K")]
    kernel_to: Option<String>,
    /// How to write the history
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    format: ListFormat,
    #[command(flatten)]
    cells: CellArgs,
}

pub(super) fn bisect(args: &BisectArgs) -> Result<u8, Failure> {
    let setup = args.cells.setup()?;
    let first = setup.matrix.kernels().first().map(|kernel| kernel.name.to_string()).unwrap_or_default();
    let cell = |kernel: &Option<String>| Cell {
        frontend: args.frontend.clone(),
        kernel: kernel.clone().unwrap_or_else(|| first.clone()),
        guest: args.guest.clone(),
        apic: args.apic,
        cpus: args.cpus,
        engine: args.engine,
    };
    for end in [&args.kernel_from, &args.kernel_to] {
        setup.matrix.check_cell(&cell(end)).map_err(Failure::Usage)?;
    }
    let from_to = [&args.kernel_from, &args.kernel_to].map(Option::as_deref);
    let history =
        history_of(&setup, &cell(&args.kernel_from), from_to[0], from_to[1]).map_err(|error| match error {
            BisectError::OurFault { .. } => Failure::Harness(error.to_string()),
            _ => Failure::Usage(error.to_string()),
        })?;
    let text = match args.format {
        ListFormat::Text => render(&history),
        ListFormat::Json => document(&history),
    };
    print_and_exit(&text, 0)
}
