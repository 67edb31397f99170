//! The result as JSON: one document for each run, for programs, and for `gate`, `merge`, `expect` and `--resume`.

use super::file::write_atomically;
use crate::cell::{Cell, EngineKind};
use crate::matrix::Expectation;
use crate::matrix::verdict::Verdict;
use crate::outcome::{Outcome, OutcomeKind};
use crate::run::{CellResult, Divergence, Engines, Try};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version of the document. Fields may be added within a version, never renamed.
pub const SCHEMA: u32 = 1;

/// No larger file is read: 10,000 cells take 8 MB.
const LARGEST_BYTES: u64 = 1 << 30;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    schema: u32,
    spinup: String,
    /// Where the cells ran.
    pub host: Host,
    /// Whether every cell of the run is in it: not so while the run is under way, or when it was interrupted.
    pub complete: bool,
    /// The cells, in the order of the matrix.
    pub cells: Vec<CellResult>,
}

/// Where the cells ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    os: String,
    arch: String,
    cpus: usize,
    engines: Vec<EngineEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EngineEntry {
    name: EngineKind,
    /// What stands behind it, when it can be used.
    backend: Option<String>,
    /// Why it cannot.
    unusable: Option<String>,
}

impl Host {
    /// This host, with the engines that cells of the run ask for: probing another would be in vain.
    #[must_use]
    pub fn here(engines: &Engines, asked_for: impl IntoIterator<Item = EngineKind>) -> Host {
        let entry = |name: EngineKind| match engines.get(name) {
            Ok(engine) => EngineEntry { name, backend: Some(engine.backend()), unusable: None },
            Err(why) => EngineEntry { name, backend: None, unusable: Some(why) },
        };
        Host {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            engines: asked_for.into_iter().map(entry).collect(),
        }
    }
}

/// A cell as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct CellEntry {
    cell: Cell,
    frontend: String,
    kernel: String,
    guest: String,
    apic: String,
    cpus: u16,
    engine: EngineKind,
    seed: u64,
    /// `null` when the cell was skipped.
    outcome: Option<Outcome>,
    expected: String,
    verdict: Verdict,
    reason: Option<String>,
    #[serde(rename = "ref")]
    reference: Option<String>,
    aps_started: u32,
    duration_ms: f64,
    instructions: Option<u64>,
    #[serde(default)]
    parked_exits_per_s: Option<f64>,
    /// The bound on it, if the matrix puts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parked_exits_per_s_expected: Option<String>,
    trace_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tries: Vec<TryEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    divergence: Option<Divergence>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TryEntry {
    seed: u64,
    outcome: String,
}

impl From<&CellResult> for CellEntry {
    fn from(result: &CellResult) -> CellEntry {
        let CellResult { cell, seed, outcome, expectation, verdict, .. } = result;
        CellEntry {
            cell: cell.clone(),
            frontend: cell.frontend.clone(),
            kernel: cell.kernel.clone(),
            guest: cell.guest.clone(),
            apic: cell.apic.name().into(),
            cpus: cell.cpus,
            engine: cell.engine,
            seed: *seed,
            outcome: (*verdict != Verdict::Skipped).then(|| outcome.clone()),
            expected: expectation.outcome.to_string(),
            verdict: *verdict,
            reason: expectation.reason.clone(),
            reference: expectation.reference.clone(),
            aps_started: result.aps_started,
            duration_ms: result.duration.as_secs_f64() * 1000.0,
            instructions: result.instructions,
            parked_exits_per_s: result.parked_exits_per_s,
            parked_exits_per_s_expected: expectation.parked_exits_per_s.map(|bound| bound.to_string()),
            trace_sha256: result.trace_sha256.clone(),
            tries: result.tries.iter().map(|t| TryEntry { seed: t.seed, outcome: t.outcome.to_string() }).collect(),
            divergence: result.divergence.clone(),
            log: result.log.clone(),
        }
    }
}

impl TryFrom<CellEntry> for CellResult {
    type Error = String;

    fn try_from(entry: CellEntry) -> Result<CellResult, String> {
        let expected = entry.expected.parse().map_err(|error: crate::outcome::OutcomeNameError| error.to_string())?;
        let tries = entry.tries.iter().map(|t| {
            let outcome = OutcomeKind::of_any(&t.outcome).ok_or_else(|| format!("`{}` is no outcome", t.outcome))?;
            Ok::<Try, String>(Try { seed: t.seed, outcome })
        });
        let bound = entry.parked_exits_per_s_expected.as_deref().map(str::parse).transpose();
        let bound = bound.map_err(|error: crate::matrix::BoundError| error.to_string())?;
        let skipped = Outcome { kind: OutcomeKind::NotApplicable, detail: "it did not run".into() };
        Ok(CellResult {
            seed: entry.seed,
            outcome: entry.outcome.unwrap_or(skipped),
            expectation: Expectation {
                outcome: expected,
                reason: entry.reason,
                reference: entry.reference,
                parked_exits_per_s: bound,
            },
            verdict: entry.verdict,
            aps_started: entry.aps_started,
            duration: Duration::try_from_secs_f64(entry.duration_ms / 1000.0).map_err(|error| error.to_string())?,
            instructions: entry.instructions,
            parked_exits_per_s: entry.parked_exits_per_s,
            trace_sha256: entry.trace_sha256,
            tries: tries.collect::<Result<_, _>>()?,
            divergence: entry.divergence,
            log: entry.log,
            cell: entry.cell,
        })
    }
}

impl Serialize for CellResult {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        CellEntry::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CellResult {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<CellResult, D::Error> {
        CellEntry::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl Document {
    /// The document for results in the order of the matrix.
    #[must_use]
    pub fn new(host: &Host, results: &[CellResult]) -> Document {
        let complete = results.iter().all(|result| result.verdict != Verdict::Skipped);
        let spinup = env!("CARGO_PKG_VERSION").into();
        Document { schema: SCHEMA, spinup, host: host.clone(), complete, cells: results.to_vec() }
    }

    /// Joins the documents of parts of a run, named by their files. Cells are in the order of the parts.
    ///
    /// # Errors
    /// When a cell is in two of them, in a sentence; or when there is none.
    pub fn join(parts: Vec<(&Path, Document)>) -> Result<Document, String> {
        let mut whole: Option<Document> = None;
        let mut seen: BTreeMap<Cell, &Path> = BTreeMap::new();
        for (path, part) in parts {
            for result in &part.cells {
                if let Some(other) = seen.insert(result.cell.clone(), path) {
                    return Err(format!("{} is in {} and in {}", result.cell, other.display(), path.display()));
                }
            }
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    whole.complete &= part.complete;
                    whole.cells.extend(part.cells);
                    for engine in part.host.engines {
                        if !whole.host.engines.contains(&engine) {
                            whole.host.engines.push(engine);
                        }
                    }
                }
            }
        }
        whole.ok_or_else(|| "nothing to join".into())
    }

    /// Reads the documents in files and joins them.
    ///
    /// # Errors
    /// A sentence with the file.
    pub fn read_all(paths: &[PathBuf]) -> Result<Document, String> {
        let read = |path: &'_ PathBuf| Document::read(path);
        let documents: Vec<Document> = paths.iter().map(read).collect::<Result<_, _>>()?;
        Document::join(paths.iter().map(PathBuf::as_path).zip(documents).collect())
    }

    /// Writes the document in one step: a reader sees the file of before or this one, never a part.
    ///
    /// # Errors
    /// When the directory of the file does not let itself be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_atomically(path, |out| self.write_to(out))
    }

    /// Writes the document.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        out.write_all(b"\n")
    }

    /// Reads a document.
    ///
    /// # Errors
    /// A sentence that begins with the file.
    pub fn read(path: &Path) -> Result<Document, String> {
        let in_file = |message: String| format!("{}: {message}", path.display());
        let size = std::fs::metadata(path).map_or(0, |found| found.len());
        if size > LARGEST_BYTES {
            return Err(in_file(format!("{size} bytes are no results of spinup")));
        }
        let text = std::fs::read(path).map_err(|error| in_file(format!("the results cannot be read: {error}")))?;
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let no_results = |error: serde_json::Error| in_file(format!("these are no results of spinup: {error}"));
        let Version { schema } = serde_json::from_slice(&text).map_err(no_results)?;
        if schema != SCHEMA {
            return Err(in_file(format!("the results have schema {schema}, and this spinup reads {SCHEMA}")));
        }
        serde_json::from_slice(&text).map_err(no_results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::OutcomeKind;
    use crate::report::testing::result;
    use crate::run::{Divergence, Try};

    fn host() -> Host {
        let soft = EngineEntry { name: EngineKind::Soft, backend: Some("a processor".into()), unusable: None };
        let kvm = EngineEntry { name: EngineKind::Kvm, backend: None, unusable: Some("no /dev/kvm".into()) };
        Host { os: "linux".into(), arch: "x86_64".into(), cpus: 2, engines: vec![soft, kvm] }
    }

    #[test]
    fn the_document_is_the_contract() {
        let mut skipped = result("bhyve-13.1@fbsd-13.2/mp-spec/x2apic-4/soft", OutcomeKind::Ok, OutcomeKind::Ok);
        skipped.verdict = Verdict::Skipped;
        let results = [
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-4/soft", OutcomeKind::Ok, OutcomeKind::Ok),
            result("bhyve-13.1@main-7c326ab5/mp-spec/x2apic-4/soft", OutcomeKind::Hang, OutcomeKind::Exit(4)),
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-4/kvm", OutcomeKind::Ok, OutcomeKind::NotApplicable),
            skipped,
        ];
        let text = serde_json::to_string_pretty(&Document::new(&host(), &results)).expect("plain data");
        insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut cells = vec![
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-4/soft", OutcomeKind::Ok, OutcomeKind::Ok),
            result("bhyve-13.1@main-7c326ab5/mp-spec/x2apic-4/soft", OutcomeKind::Hang, OutcomeKind::Exit(-4)),
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-4/kvm", OutcomeKind::Panic, OutcomeKind::NotApplicable),
            result("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/kvm", OutcomeKind::Exit(4), OutcomeKind::HarnessError),
        ];
        cells[1].tries =
            vec![Try { seed: 0, outcome: OutcomeKind::Hang }, Try { seed: 1, outcome: OutcomeKind::Exit(3) }];
        cells[1].verdict = Verdict::Flaky;
        let against = cells[0].cell.clone();
        cells[1].divergence = Some(Divergence { against, sentence: "they part ways".into() });
        cells[3].log = Some("vCPU 0: real mode".into());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("results.json");
        Document::new(&host(), &cells).write(&path).expect("room");
        let read = Document::read(&path).expect("it was written just now");
        assert!(read.complete);
        assert_eq!((read.host, read.cells), (host(), cells));
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.json");
        let document = serde_json::to_string(&Document::new(&host(), &[])).expect("plain data");
        let refused: Vec<String> =
            ["", "{}", &document.replace("\"schema\":1", "\"schema\":2"), &document.replace("[]}", "[{}]}")]
                .iter()
                .map(|text| {
                    std::fs::write(&path, text).expect("room");
                    Document::read(&path).expect_err(text).replace(&path.display().to_string(), "r.json")
                })
                .collect();
        insta::assert_snapshot!(refused.join("\n"));
    }
}
