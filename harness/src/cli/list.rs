//! `spinup list`: the cells of a selection.

use super::{Failure, ListFormat, MatrixArgs, SelectArgs, print};
use crate::cell::Cell;
use clap::Args;
use serde::Serialize;

/// Arguments of `spinup list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    matrix: MatrixArgs,
    #[command(flatten)]
    select: SelectArgs,
    /// How to write the list
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    format: ListFormat,
}

#[derive(Serialize)]
struct Listed<'a> {
    cell: &'a Cell,
    frontend: &'a str,
    kernel: &'a str,
    guest: &'a str,
    apic: &'a str,
    cpus: u16,
    engine: &'a str,
    expected: String,
    reason: Option<String>,
    #[serde(rename = "ref")]
    reference: Option<String>,
}

pub(super) fn list(args: &ListArgs) -> Result<u8, Failure> {
    let matrix = args.matrix.load()?;
    let cells = args.select.cells(&matrix)?;
    let text = match args.format {
        ListFormat::Text => cells.iter().map(|cell| format!("{cell}\n")).collect(),
        ListFormat::Json => {
            let listed: Vec<Listed<'_>> = cells
                .iter()
                .map(|cell| {
                    let expectation = matrix.expectation(cell);
                    Listed {
                        cell,
                        frontend: &cell.frontend,
                        kernel: &cell.kernel,
                        guest: &cell.guest,
                        apic: cell.apic.name(),
                        cpus: cell.cpus,
                        engine: cell.engine.name(),
                        expected: expectation.outcome.to_string(),
                        reason: expectation.reason,
                        reference: expectation.reference,
                    }
                })
                .collect();
            serde_json::to_string_pretty(&listed).expect("plain data becomes JSON") + "\n"
        }
    };
    print(&text)?;
    Ok(0)
}
