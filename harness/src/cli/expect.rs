//! `spinup expect`: which expectations do not fit results, and how matrix.toml would fit them.

use super::{Failure, MatrixArgs, print};
use crate::matrix::edit::{EditError, fit};
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::pattern::Pattern;
use crate::report::file::write_atomically;
use crate::report::json::Document;
use crate::report::paint::{GOOD, RED, paint};
use crate::report::unexplained;
use crate::run::CellResult;
use clap::Args;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `spinup expect`.
#[derive(Debug, Args)]
pub(super) struct ExpectArgs {
    /// Results that `run --json` wrote, of one run or of its shards
    #[arg(value_name = "RESULTS", required = true)]
    results: Vec<PathBuf>,
    /// Rewrite matrix.toml, with its comments and its order
    #[arg(long)]
    update: bool,
    /// Only cells whose name has this in it, or matches it if it has `*` or `?`
    #[arg(long, value_name = "CELL-FILTER")]
    only: Vec<String>,
    /// Why the cells that fail in a new way do so
    #[arg(long, value_name = "TEXT", requires = "reference")]
    reason: Option<String>,
    /// Where that is written: a commit, a review, an issue
    #[arg(long = "ref", value_name = "TEXT", id = "reference", requires = "reason")]
    reference: Option<String>,
    #[command(flatten)]
    matrix: MatrixArgs,
}

pub(super) fn expect(args: &ExpectArgs) -> Result<u8, Failure> {
    let matrix = args.matrix.load()?;
    let cells = Document::read_all(&args.results).map_err(Failure::Usage)?.cells;
    let only: Vec<Pattern> = args.only.iter().map(Pattern::new).collect();
    let chosen =
        |result: &CellResult| only.is_empty() || only.iter().any(|pattern| pattern.selects(&result.cell.to_string()));
    // By the matrix as it is now: the results may be older. What is our own fault, or has not run, says nothing.
    let says = |result: &CellResult| {
        !matches!(result.outcome.kind, OutcomeKind::HarnessError | OutcomeKind::NotApplicable)
            && result.tries.iter().all(|run| run.outcome == result.outcome.kind)
            && matrix.check_cell(&result.cell).is_ok()
    };
    let differs = |result: &CellResult| matrix.expectation(&result.cell).outcome != result.outcome.kind;
    let telling: Vec<CellResult> = cells
        .into_iter()
        .filter(says)
        .map(|result| {
            let expectation = matrix.expectation(&result.cell);
            let verdict = Verdict::of(expectation.outcome, result.outcome.kind);
            CellResult { expectation, verdict, ..result }
        })
        .collect();
    let (wrong, right): (Vec<&CellResult>, Vec<&CellResult>) =
        telling.iter().partition(|result| differs(result) && chosen(result));
    let right: Vec<&CellResult> = right.into_iter().filter(|result| !differs(result)).collect();
    if !args.update {
        let looked_at: Vec<CellResult> = wrong.iter().chain(&right).copied().cloned().collect();
        print(&unexplained::render(&looked_at))?;
        return Ok(u8::from(!wrong.is_empty()));
    }
    let mut out = String::new();
    let Some(path) = args.matrix.path() else {
        return Err(Failure::Usage("the built-in matrix cannot be rewritten: name a file with --matrix".into()));
    };
    let blank = |text: &&str| text.trim().is_empty();
    let why = args.reason.as_deref().zip(args.reference.as_deref());
    if why.is_some_and(|(reason, reference)| blank(&reason) || blank(&reference)) {
        return Err(Failure::Usage("a reason and a reference have words".into()));
    }
    let edit = fit(&matrix, &wrong, &right, why).map_err(|error| match error {
        EditError::NoReason(_) => Failure::Usage(format!("{error}; without --update they are listed")),
        _ => Failure::Usage(error.to_string()),
    })?;
    write_atomically(&path, |out| out.write_all(edit.text.as_bytes()))
        .map_err(|error| Failure::Harness(format!("{}: the matrix cannot be written: {error}", path.display())))?;
    for reason in &edit.removed {
        let _ = writeln!(out, "  {} {reason}", paint(RED, "−"));
    }
    for added in &edit.added {
        let _ = writeln!(out, "  {} {}", paint(GOOD, "+"), added.replace('\n', "\n    "));
    }
    let (added, removed) = (edit.added.len(), edit.removed.len());
    let _ = writeln!(out, "  {}: {added} expectations added, {removed} taken out", path.display());
    print(&out)?;
    Ok(0)
}
