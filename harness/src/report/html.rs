//! Results as one HTML page that needs nothing else: no network, no other file, no server.
//!
//! The grid, the red cells and the reasons are plain HTML; the list of cells, which may be ten thousand long, is built by a
//! script from data in the page as far as somebody looks. Cells that are [`Explanation`]s carry their picture, their diff
//! and their console. Whatever comes from guests is data or escaped text: the page's policy lets nothing else run.

use super::grid::{Pairings, Shown, entry_text, red_pairings, weight};
use super::markdown::known_reasons;
use super::{Context, Counts, told};
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::run::{CellResult, Explanation};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Write};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// Red cells that stand above the list; all of them are in it.
const RED_TOLD: usize = 50;

/// What the script reads.
#[derive(Serialize)]
struct Data<'a> {
    /// Name, outcome, verdict, text, milliseconds, seed: the middle ones as places in the lists below.
    cells: Vec<(String, usize, usize, usize, f64, u64)>,
    outcomes: Vec<String>,
    verdicts: Vec<String>,
    texts: Vec<String>,
    details: BTreeMap<String, &'a Explanation>,
    logs: BTreeMap<String, &'a str>,
    repeated: &'a str,
}

/// Texts that are there many times, once each.
#[derive(Default)]
struct Strings {
    all: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Strings {
    fn place(&mut self, text: String) -> usize {
        *self.places.entry(text).or_insert_with_key(|text| {
            self.all.push(text.clone());
            self.all.len() - 1
        })
    }
}

/// Writes the page.
///
/// # Errors
/// Of the writer.
pub fn write(
    results: &[CellResult],
    explanations: &BTreeMap<Cell, Explanation>,
    context: &Context<'_>,
    out: &mut dyn Write,
) -> io::Result<()> {
    // The hour glass that the terminal has is missing from most fonts that browsers have; this is in all of them.
    out.write_all(page(results, explanations, context).into_string().replace('⧗', "∞").as_bytes())
}

fn page(results: &[CellResult], explanations: &BTreeMap<Cell, Explanation>, context: &Context<'_>) -> Markup {
    let counts = Counts::of(results);
    let title = format!("spinup: {}", counts.told().join(", "));
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; img-src blob:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#list" { "to the list of cells" }
                header {
                    h1 { (title) }
                    p.dim { (context.run(results)) }
                }
                main {
                    (grid(results, context))
                    (red_cells(results, context))
                    (known_failures(results))
                    (list())
                }
                // `</script>` cannot be in it: see `data`.
                script #data type="application/json" { (PreEscaped(data(results, explanations, context))) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "good",
        Verdict::Xfail | Verdict::Flaky => "known",
        Verdict::Fail | Verdict::Xpass => "red",
        Verdict::NotApplicable | Verdict::Skipped => "none",
    }
}

fn grid(results: &[CellResult], context: &Context<'_>) -> Markup {
    let results: Vec<&CellResult> = results.iter().collect();
    let pairings = Pairings::of(&results, context.kernels);
    html! {
        h2 #grid { "Kernels and frontends" }
        p.dim {
            "Each field counts the cells of a pairing by what became of them, and has the colour of the worst: "
            span.tag.good { "as it should be" } " " span.tag.known { "expected failure" } " "
            span.tag.red { "red" } " " span.tag.none { "did not run" } "."
        }
        div.scroll {
            table.grid aria-labelledby="grid" {
                thead {
                    tr {
                        td {}
                        @for frontend in &pairings.frontends { th scope="col" { (frontend) } }
                    }
                }
                tbody {
                    @for kernel in &pairings.kernels {
                        tr {
                            th scope="row" { (kernel) }
                            @for frontend in &pairings.frontends {
                                td { (field(pairings.get(kernel, frontend), kernel, frontend)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn field(pairing: &[&CellResult], kernel: &str, frontend: &str) -> Markup {
    let Some(worst) = pairing.iter().max_by_key(|result| weight(result)) else { return html! {} };
    let entry = entry_text(pairing);
    let name = format!("{frontend}@{kernel}");
    let label = format!("{name}: {}", entry.join(", "));
    html! {
        button.(class(worst.verdict)) type="button" aria-pressed="false" aria-label=(label) title=(label) data-pairing=(name) {
            @for (i, line) in entry.iter().enumerate() {
                @if i > 0 { br; }
                (line)
            }
        }
    }
}

fn red_cells(results: &[CellResult], context: &Context<'_>) -> Markup {
    let red: Vec<&CellResult> = red_pairings(results).into_iter().flat_map(|(_, red)| red).collect();
    html! {
        @if !red.is_empty() {
            h2 { "Red" }
            ul.reds {
                @for result in red.iter().take(RED_TOLD) {
                    li {
                        a.cell href=(format!("#{}", result.cell)) { (result.cell) }
                        ": " (told(result))
                        @if let Some(divergence) = &result.divergence { br; (divergence.sentence) }
                        br;
                        code { (context.repro(result)) }
                    }
                }
                @if red.len() > RED_TOLD { li { "and " (red.len() - RED_TOLD) " more, in the list below" } }
            }
        }
    }
}

fn known_failures(results: &[CellResult]) -> Markup {
    let reasons = known_reasons(results);
    html! {
        @if !reasons.is_empty() {
            details open[reasons.len() <= 8] {
                summary { h2 { "Expected failures" } }
                div.scroll {
                    table {
                        thead { tr { th { "outcome" } th { "reason" } th { "reference" } th { "cells" } th { "example" } } }
                        tbody {
                            @for (result, pairings) in &reasons {
                                tr {
                                    td { (Shown::of(result).text()) }
                                    td { (result.expectation.reason.as_deref().unwrap_or_default()) }
                                    td { (result.expectation.reference.as_deref().unwrap_or_default()) }
                                    td { (pairings.values().sum::<usize>()) " in " (pairings.len()) @if pairings.len() == 1 { " pairing" } @else { " pairings" } }
                                    td { a.cell href=(format!("#{}", result.cell)) { (result.cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn list() -> Markup {
    let selects = ["verdict", "outcome", "guest", "machine", "engine"];
    html! {
        section #detail hidden[true] aria-label="one cell" {}
        h2 #list { "Cells" }
        form #filters {
            label { "name or text" input #by-text type="search" autocomplete="off"; }
            @for key in selects {
                label { (key) select #{ "by-" (key) } { option value="" { "any" } } }
            }
            button.plain type="reset" { "all" }
        }
        p #count.dim role="status" {}
        div.scroll {
            table #cells aria-labelledby="list" {
                thead { tr { th { "cell" } th { "outcome" } th { "verdict" } th { "what was seen" } th { "ms" } } }
                tbody {}
            }
        }
        button #more.plain type="button" hidden[true] { "show more" }
        noscript { p { "The list and the details need JavaScript; the grid and the red cells do not." } }
    }
}

/// The data as JSON in which no tag can begin or end.
fn data(results: &[CellResult], explanations: &BTreeMap<Cell, Explanation>, context: &Context<'_>) -> String {
    let (mut outcomes, mut verdicts, mut texts) = (Strings::default(), Strings::default(), Strings::default());
    let cells = results
        .iter()
        .map(|result| {
            let ms = (result.duration.as_secs_f64() * 1e4).round() / 10.0;
            let outcome = outcomes.place(Shown::of(result).text());
            let verdict = verdicts.place(result.verdict.name().into());
            (result.cell.to_string(), outcome, verdict, texts.place(told(result)), ms, result.seed)
        })
        .collect();
    let data = Data {
        cells,
        outcomes: outcomes.all,
        verdicts: verdicts.all,
        texts: texts.all,
        details: explanations.iter().map(|(cell, explanation)| (cell.to_string(), explanation)).collect(),
        logs: results.iter().filter_map(|result| Some((result.cell.to_string(), result.log.as_deref()?))).collect(),
        repeated: context.repeated,
    };
    let json = serde_json::to_string(&data).expect("plain data becomes JSON");
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, every_verdict};

    fn written(results: &[CellResult], explanations: &BTreeMap<Cell, Explanation>) -> String {
        let mut out = Vec::new();
        write(results, explanations, &context(), &mut out).expect("a vector takes every byte");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn nothing_that_a_cell_says_becomes_markup() {
        let hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&";
        let mut results = every_verdict();
        for result in &mut results {
            result.outcome.detail = hostile.into();
            result.log = Some(hostile.into());
            result.expectation.reason = Some(hostile.into());
        }
        let explanation = Explanation {
            divergence: results[1].divergence.clone(),
            diff: hostile.into(),
            svg: Some(format!("<svg>{hostile}</svg>")),
            console: hostile.into(),
        };
        let page = written(&results, &[(results[1].cell.clone(), explanation)].into());
        assert_eq!(page.matches("<script").count(), 2, "the data and the script");
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<img"), "an image of a cell");
        let data = page.split_once("type=\"application/json\">").expect("the data").1;
        let data: serde_json::Value =
            serde_json::from_str(data.split_once("</script>").expect("its end").0).expect("JSON");
        assert_eq!(data["cells"].as_array().map(Vec::len), Some(results.len()));
        assert_eq!(data["details"][results[1].cell.to_string()]["console"], hostile);
        assert_eq!(data["logs"][results[5].cell.to_string()], hostile);
    }

    #[test]
    fn ten_thousand_cells_stay_small() {
        let one = every_verdict().remove(0);
        let results: Vec<CellResult> = (0..10_000)
            .map(|i| {
                let cell = Cell { guest: format!("guest-{i}"), ..one.cell.clone() };
                CellResult { cell, ..one.clone() }
            })
            .collect();
        let size = written(&results, &BTreeMap::new()).len();
        assert!(size < 1 << 20, "{size} bytes");
    }
}
