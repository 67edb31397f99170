//! The history as JSON, for programs.

use super::{Direction, Edit, Flip, History, Seen};
use crate::outcome::Outcome;
use serde::Serialize;

/// Version of the document. Fields may be added within a version, never renamed.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    spinup: &'static str,
    frontend: &'a str,
    guest: &'a str,
    apic: &'static str,
    cpus: u16,
    engine: &'static str,
    seed: u64,
    kernels: Vec<SeenEntry<'a>>,
    flips: Vec<FlipEntry<'a>>,
}

#[derive(Serialize)]
struct SeenEntry<'a> {
    kernel: &'a str,
    outcome: &'a Outcome,
    /// Where it parts ways with the last good kernel.
    divergence: Option<&'a str>,
}

impl<'a> From<&'a Seen> for SeenEntry<'a> {
    fn from(seen: &'a Seen) -> SeenEntry<'a> {
        SeenEntry { kernel: &seen.kernel, outcome: &seen.outcome, divergence: seen.signature.divergence.as_deref() }
    }
}

#[derive(Serialize)]
struct FlipEntry<'a> {
    from: &'a str,
    to: &'a str,
    direction: &'static str,
    sentence: &'a str,
    walk: Vec<StepEntry<'a>>,
    minimal: Vec<SetEntry<'a>>,
}

#[derive(Serialize)]
struct StepEntry<'a> {
    change: String,
    /// These four are `null` of a build option.
    commit: Option<&'static str>,
    review: Option<&'static str>,
    date: Option<&'static str>,
    evidence: Option<String>,
    flips: bool,
    #[serde(flatten)]
    seen: SeenEntry<'a>,
}

#[derive(Serialize)]
struct SetEntry<'a> {
    changes: Vec<String>,
    /// What is seen when one of several is left out; `null` where the rest is no kernel.
    without: Vec<WithoutEntry<'a>>,
}

#[derive(Serialize)]
struct WithoutEntry<'a> {
    change: String,
    seen: Option<SeenEntry<'a>>,
}

impl<'a> From<&'a Flip> for FlipEntry<'a> {
    fn from(flip: &'a Flip) -> FlipEntry<'a> {
        let step = |edit: &Edit, flips: bool, seen: &'a Seen| {
            let change = edit.change();
            StepEntry {
                change: edit.to_string(),
                commit: change.map(|change| change.commit),
                review: change.and_then(|change| change.review),
                date: change.map(|change| change.date),
                evidence: change.map(|change| change.evidence.to_string()),
                flips,
                seen: seen.into(),
            }
        };
        FlipEntry {
            from: &flip.from.kernel,
            to: &flip.to.kernel,
            direction: match flip.direction {
                Direction::Breaks => "breaks",
                Direction::Mends => "mends",
                Direction::Changes => "changes",
                Direction::Passes => "passes",
            },
            sentence: &flip.sentence,
            walk: flip.walk.iter().map(|walked| step(&walked.edit, walked.flips, &walked.seen)).collect(),
            minimal: flip
                .minimal
                .iter()
                .map(|set| SetEntry {
                    changes: set.edits.iter().map(Edit::to_string).collect(),
                    without: set
                        .without
                        .iter()
                        .map(|(edit, seen)| WithoutEntry {
                            change: edit.to_string(),
                            seen: seen.as_ref().map(SeenEntry::from),
                        })
                        .collect(),
                })
                .collect(),
        }
    }
}

/// The JSON document of a history.
#[must_use]
pub fn document(history: &History) -> String {
    let History { cell, seed, kernels, flips } = history;
    let document = Document {
        schema: SCHEMA,
        spinup: env!("CARGO_PKG_VERSION"),
        frontend: &cell.frontend,
        guest: &cell.guest,
        apic: cell.apic.name(),
        cpus: cell.cpus,
        engine: cell.engine.name(),
        seed: *seed,
        kernels: kernels.iter().map(SeenEntry::from).collect(),
        flips: flips.iter().map(FlipEntry::from).collect(),
    };
    serde_json::to_string_pretty(&document).expect("plain data becomes JSON") + "\n"
}
