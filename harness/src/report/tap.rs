//! Results as TAP 14 (testanything.org): a test point for each cell. An expected failure is `not ok` with a TODO, and what did
//! not run is `ok` with a SKIP, as the specification has them.

use super::{Context, told};
use crate::matrix::verdict::Verdict;
use crate::run::CellResult;
use std::io::{self, Write};

/// Writes the document.
///
/// # Errors
/// Of the writer.
pub fn write(results: &[CellResult], context: &Context<'_>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "TAP version 14\n1..{}", results.len())?;
    for (i, result) in results.iter().enumerate() {
        let (point, directive) = match result.verdict {
            Verdict::Pass => ("ok", String::new()),
            Verdict::Flaky => ("ok", format!(" # {}", in_a_line(&told(result)))),
            Verdict::NotApplicable | Verdict::Skipped => ("ok", format!(" # SKIP {}", in_a_line(&told(result)))),
            Verdict::Xfail => ("not ok", format!(" # TODO {}", in_a_line(&told(result)))),
            // A consumer would take `ok` with a TODO for good news.
            Verdict::Fail | Verdict::Xpass => ("not ok", String::new()),
        };
        writeln!(out, "{point} {} - {}{directive}", i + 1, result.cell)?;
        if result.verdict.is_red() {
            writeln!(out, "  ---")?;
            // Strings of JSON are strings of YAML.
            let mut line = |key: &str, value: &str| writeln!(out, "  {key}: {}", serde_json::Value::from(value));
            line("message", &told(result))?;
            line("expected", &result.expectation.outcome.to_string())?;
            line("found", &result.outcome.kind.to_string())?;
            if let Some(divergence) = &result.divergence {
                line("divergence", &divergence.sentence)?;
            }
            line("repro", &context.repro(result))?;
            if let Some(log) = &result.log {
                line("log", log)?;
            }
            writeln!(out, "  ...")?;
        }
    }
    if results.iter().any(|result| result.verdict == Verdict::Skipped) {
        writeln!(out, "Bail out! The run ended early")?;
    }
    Ok(())
}

/// As the text of a directive, which ends with its line.
fn in_a_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ").replace('#', "\\#")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, every_verdict};

    #[test]
    fn each_verdict_is_a_test_point() {
        let mut results = every_verdict();
        results[1].outcome.detail = "two\nlines # \"and\" a hash".into();
        results[1].log = Some("vCPU 0\n\u{1b}[1m".into());
        let mut out = Vec::new();
        write(&results, &context(), &mut out).expect("a vector takes every byte");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"));
    }
}
