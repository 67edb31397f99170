//! Every cell of the default matrix on `soft`, and some on `kvm`, as a test of its own that has the cell's name.
//!
//! A test passes when the cell's verdict is green. A cell on `kvm` has to leave the same canonical trace as its twin on
//! `soft`, too. Where KVM cannot be used, its cells are ignored.

use libtest_mimic::{Arguments, Failed, Trial};
use spinup::cell::{Cell, EngineKind};
use spinup::matrix::{Matrix, Selection};
use spinup::run::{CellRun, Engines, Setup, run_cell};
use spinup::trace::Canonical;
use std::process::ExitCode;
use std::sync::Arc;

/// Pairings on which every guest runs on `kvm`: one without IPI_EXIT, and one with it.
const EVERY_GUEST: [(&str, &str); 2] = [("bhyve-13.1", "fbsd-13.1"), ("bhyve-13.2", "fbsd-13.2")];

/// Whether a cell runs on `kvm` too. The engine executes guests and knows nothing of versions; so that it executes each guest
/// and meets each pairing's exits is enough, and all of the matrix would take minutes in real time: a host's KVM can be slower
/// than `soft`.
fn runs_on_kvm(cell: &Cell) -> bool {
    let every_pairing = cell.guest == "mp-spec";
    let every_guest = EVERY_GUEST.contains(&(&*cell.frontend, &*cell.kernel));
    cell.cpus == 2 && (every_pairing || every_guest)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let matrix = Matrix::built_in().expect("a unit test keeps the built-in matrix right");
    let selection = Selection { engines: EngineKind::ALL.to_vec(), ..Selection::default() };
    let cells = matrix.select(&selection).expect("the whole matrix has cells");
    let setup = Arc::new(Setup { matrix, engines: Engines::new(), seed: 0, timeout: None });
    let kvm = setup.engines.get(EngineKind::Kvm);

    let trials = cells
        .into_iter()
        .filter(|cell| cell.engine == EngineKind::Soft || runs_on_kvm(cell))
        .map(|cell| {
            let ignored = cell.engine == EngineKind::Kvm && kvm.is_err();
            let setup = setup.clone();
            Trial::test(cell.to_string(), move || test(&setup, &cell)).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn test(setup: &Setup, cell: &Cell) -> Result<(), Failed> {
    let run = run_cell(setup, cell);
    is_green(&run)?;
    if cell.engine == EngineKind::Kvm {
        let twin = run_cell(setup, &Cell { engine: EngineKind::Soft, ..cell.clone() });
        is_green(&twin)?;
        agree(&twin, &run)?;
    }
    Ok(())
}

fn is_green(run: &CellRun) -> Result<(), Failed> {
    let result = &run.result;
    if !result.verdict.is_red() {
        return Ok(());
    }
    Err(format!(
        "{}: expected {}, but {}: {}\nspinup repro {}",
        result.cell, result.expectation.outcome, result.outcome.kind, result.outcome.detail, result.cell
    )
    .into())
}

/// Whether the engines agree: on the outcome and on the canonical trace.
fn agree(soft: &CellRun, kvm: &CellRun) -> Result<(), Failed> {
    let [soft_trace, kvm_trace] = [soft, kvm].map(|run| run.trace.as_ref().map(|trace| Canonical::of(&trace.trace)));
    if soft.result.outcome.kind != kvm.result.outcome.kind {
        return Err(format!("soft ends as {}, kvm as {}", soft.result.outcome.kind, kvm.result.outcome.kind).into());
    }
    if soft_trace != kvm_trace {
        let [soft_text, kvm_text] = [soft_trace, kvm_trace].map(|trace| trace.unwrap_or_default().to_string());
        let at = soft_text.lines().zip(kvm_text.lines()).position(|(soft, kvm)| soft != kvm);
        let line = |text: &str| at.and_then(|at| text.lines().nth(at)).unwrap_or("(nothing more)").to_owned();
        return Err(format!(
            "the canonical traces differ, first in line {}:\nsoft {}\nkvm  {}\nspinup diff {} {}",
            at.map_or(0, |at| at + 1),
            line(&soft_text),
            line(&kvm_text),
            soft.result.cell,
            kvm.result.cell
        )
        .into());
    }
    Ok(())
}
