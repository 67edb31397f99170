//! Results as Markdown, for the summary of a job on GitHub, and as annotations there.

use super::grid::{Pairings, Shown, entry_text, red_pairings, weight};
use super::{Context, Counts, told};
use crate::matrix::Expectation;
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Red cells that are told; the others are counted. GitHub takes a mebibyte.
const RED_TOLD: usize = 100;

/// Annotations that are printed: GitHub shows ten for each step.
const ANNOTATIONS: usize = 10;

/// Writes the document.
///
/// # Errors
/// Of the writer.
pub fn write(results: &[CellResult], context: &Context<'_>, out: &mut dyn Write) -> io::Result<()> {
    let counts = Counts::of(results);
    let sign = if counts.red == 0 { "🟢" } else { "🔴" };
    writeln!(out, "## {sign} spinup: {}\n", counts.told().join(", "))?;
    writeln!(out, "{}\n", context.run(results))?;
    red_cells(results, context, out)?;
    grid(results, context, out)?;
    known_failures(results, out)
}

fn red_cells(results: &[CellResult], context: &Context<'_>, out: &mut dyn Write) -> io::Result<()> {
    let red: Vec<&CellResult> = red_pairings(results).into_iter().flat_map(|(_, red)| red).collect();
    if red.is_empty() {
        return Ok(());
    }
    writeln!(out, "### Red\n")?;
    for result in red.iter().take(RED_TOLD) {
        writeln!(out, "* **{}**: {}", escape(&result.cell.to_string()), escape(&told(result)))?;
        if let Some(divergence) = &result.divergence {
            writeln!(out, "  <br>{}", escape(&divergence.sentence))?;
        }
        if result.outcome.kind != OutcomeKind::HarnessError {
            writeln!(out, "  <br><code>{}</code>", escape(&context.repro(result)))?;
        }
        if let Some(log) = &result.log {
            writeln!(out, "  <details><summary>log</summary><pre>{}</pre></details>", escape(log))?;
        }
    }
    if red.len() > RED_TOLD {
        writeln!(out, "* and {} more", red.len() - RED_TOLD)?;
    }
    writeln!(out)
}

fn grid(results: &[CellResult], context: &Context<'_>, out: &mut dyn Write) -> io::Result<()> {
    let (beside, inside): (Vec<&CellResult>, Vec<&CellResult>) =
        results.iter().partition(|result| (context.beside)(&result.cell));
    let pairings = Pairings::of(&inside, context.kernels);
    if !inside.is_empty() {
        writeln!(out, "### Kernels and frontends\n")?;
        let names: Vec<String> = pairings.frontends.iter().map(|frontend| escape(frontend)).collect();
        writeln!(out, "| | {} |", names.join(" | "))?;
        writeln!(out, "|---{}|", "|:---:".repeat(names.len()))?;
        for kernel in &pairings.kernels {
            write!(out, "| **{}**", escape(kernel))?;
            for frontend in &pairings.frontends {
                let pairing = pairings.get(kernel, frontend);
                let worst = pairing.iter().max_by_key(|result| weight(result));
                let sign = worst.map_or("", |worst| sign(worst.verdict));
                write!(out, " | {sign} {}", escape(&entry_text(pairing).join("\n")))?;
            }
            writeln!(out, " |")?;
        }
        writeln!(out, "\n🟢 as it should be, 🟡 a failure that was expected, 🔴 red, ⚪ did not run\n")?;
    }
    if !beside.is_empty() {
        writeln!(out, "| cell | outcome | |\n|---|---|---|")?;
        for result in beside {
            let name = escape(&result.cell.to_string());
            let shown = Shown::of(result).text();
            writeln!(out, "| {name} | {} {} | {} |", sign(result.verdict), escape(&shown), escape(&told(result)))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "🟢",
        Verdict::Xfail | Verdict::Flaky => "🟡",
        Verdict::Fail | Verdict::Xpass => "🔴",
        Verdict::NotApplicable | Verdict::Skipped => "⚪",
    }
}

/// The reasons of expected failures with the pairings that have them, in the order in which they come.
pub(super) fn known_reasons<'a>(
    results: impl IntoIterator<Item = &'a CellResult>,
) -> Vec<(&'a CellResult, BTreeMap<String, usize>)> {
    let mut reasons: Vec<(&CellResult, BTreeMap<String, usize>)> = Vec::new();
    let same = |a: &Expectation, b: &Expectation| a == b;
    for result in results.into_iter().filter(|result| result.verdict == Verdict::Xfail) {
        let at = reasons.iter().position(|(known, _)| same(&known.expectation, &result.expectation));
        let at = at.unwrap_or_else(|| {
            reasons.push((result, BTreeMap::new()));
            reasons.len() - 1
        });
        *reasons[at].1.entry(result.cell.pairing()).or_default() += 1;
    }
    reasons
}

fn known_failures(results: &[CellResult], out: &mut dyn Write) -> io::Result<()> {
    let reasons = known_reasons(results);
    if reasons.is_empty() {
        return Ok(());
    }
    writeln!(out, "<details><summary>Expected failures</summary>\n")?;
    writeln!(out, "| outcome | reason | reference | cells of pairings |\n|---|---|---|---|")?;
    for (result, pairings) in reasons {
        let Expectation { outcome, reason, reference, .. } = &result.expectation;
        let text = |part: &Option<String>| escape(part.as_deref().unwrap_or_default());
        let cells: usize = pairings.values().sum();
        let which = match &pairings.keys().collect::<Vec<_>>()[..] {
            [one] => escape(one),
            many => format!("{} pairings", many.len()),
        };
        writeln!(out, "| {outcome} | {} | {} | {cells} of {which} |", text(reason), text(reference))?;
    }
    writeln!(out, "\n</details>\n")
}

/// Text that means itself, in a line or a field of a table, with its own lines.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // As entities, since a backslash means itself in code and an entity never does.
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' | '~' | '!' | '@' | '$' => {
                escaped.push_str(&format!("&#{};", u32::from(c)));
            }
            '\n' => escaped.push_str("<br>"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The red cells as workflow commands, which GitHub shows as annotations.
#[must_use]
pub fn annotations(results: &[CellResult], context: &Context<'_>) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let red: Vec<&CellResult> = results.iter().filter(|result| result.verdict.is_red()).collect();
    // The last one says how many there are.
    let shown = if red.len() > ANNOTATIONS { ANNOTATIONS - 1 } else { red.len() };
    let mut text = String::new();
    for result in &red[..shown] {
        let sentence = result.divergence.as_ref().map_or(String::new(), |found| format!("\n{}", found.sentence));
        let message = format!("{}{sentence}\n{}", told(result), context.repro(result));
        text.push_str(&format!("::error title={}::{}\n", property(&result.cell.to_string()), data(&message)));
    }
    if shown < red.len() {
        text.push_str(&format!("::error title=spinup::and {} more red cells\n", red.len() - shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, every_verdict, result};

    fn written(results: &[CellResult]) -> String {
        let mut out = Vec::new();
        write(results, &context(), &mut out).expect("a vector takes every byte");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_verdict_has_its_place() {
        let mut results = every_verdict();
        results[1].outcome.detail = "<script>|`x`\nnext".into();
        results[1].log = Some("vCPU 0: <real>\nlast".into());
        insta::assert_snapshot!(written(&results));
    }

    #[test]
    fn annotations_are_one_line_each_and_few() {
        let mut results = every_verdict();
        results[1].outcome.detail = "100 %\nnext: line".into();
        insta::assert_snapshot!(annotations(&results, &context()));
        let cell = |cpus| format!("bhyve-13.1@fbsd-13.2/mp-spec/xapic-{cpus}/soft");
        let many: Vec<CellResult> =
            (2..40).map(|cpus| result(&cell(cpus), OutcomeKind::Ok, OutcomeKind::Hang)).collect();
        let text = annotations(&many, &context());
        assert_eq!(text.lines().count(), ANNOTATIONS);
        assert!(text.ends_with("and 29 more red cells\n"), "{text}");
    }
}
