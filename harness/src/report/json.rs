//! The result as JSON: one document for each run, for programs.

use crate::cell::EngineKind;
use crate::matrix::verdict::Verdict;
use crate::outcome::Outcome;
use crate::run::{CellResult, Engines};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// Version of the document. Fields may be added within a version, never renamed.
pub const SCHEMA: u32 = 1;

/// The document.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    schema: u32,
    spinup: &'static str,
    host: Host,
    /// Whether every cell of the run is in it: not so while the run is under way, or when it was interrupted.
    complete: bool,
    cells: Vec<CellEntry<'a>>,
}

/// Where the cells ran.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    os: &'static str,
    arch: &'static str,
    cpus: usize,
    engines: Vec<EngineEntry>,
}

#[derive(Clone, Debug, Serialize)]
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
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            engines: asked_for.into_iter().map(entry).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct CellEntry<'a> {
    cell: String,
    frontend: &'a str,
    kernel: &'a str,
    guest: &'a str,
    apic: &'static str,
    cpus: u16,
    engine: &'static str,
    seed: u64,
    /// `null` when the cell was skipped.
    outcome: Option<&'a Outcome>,
    expected: String,
    verdict: Verdict,
    reason: Option<&'a str>,
    #[serde(rename = "ref")]
    reference: Option<&'a str>,
    aps_started: u32,
    duration_ms: f64,
    instructions: Option<u64>,
    trace_sha256: Option<&'a str>,
}

impl<'a> From<&'a CellResult> for CellEntry<'a> {
    fn from(result: &'a CellResult) -> CellEntry<'a> {
        let CellResult { cell, seed, outcome, expectation, verdict, .. } = result;
        CellEntry {
            cell: cell.to_string(),
            frontend: &cell.frontend,
            kernel: &cell.kernel,
            guest: &cell.guest,
            apic: cell.apic.name(),
            cpus: cell.cpus,
            engine: cell.engine.name(),
            seed: *seed,
            outcome: (*verdict != Verdict::Skipped).then_some(outcome),
            expected: expectation.outcome.to_string(),
            verdict: *verdict,
            reason: expectation.reason.as_deref(),
            reference: expectation.reference.as_deref(),
            aps_started: result.aps_started,
            duration_ms: result.duration.as_secs_f64() * 1000.0,
            instructions: result.instructions,
            trace_sha256: result.trace_sha256.as_deref(),
        }
    }
}

impl<'a> Document<'a> {
    /// The document for results in the order of the matrix.
    #[must_use]
    pub fn new(host: &Host, results: impl IntoIterator<Item = &'a CellResult>) -> Document<'a> {
        let cells: Vec<CellEntry<'a>> = results.into_iter().map(CellEntry::from).collect();
        let complete = cells.iter().all(|cell| cell.verdict != Verdict::Skipped);
        Document { schema: SCHEMA, spinup: env!("CARGO_PKG_VERSION"), host: host.clone(), complete, cells }
    }

    /// Writes the document in one step: a reader sees the file of before or this one, never a part.
    ///
    /// # Errors
    /// When the directory of the file does not let itself be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_atomically(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
    }
}

/// Whether what stands at a path takes bytes without being a file: a pipe, a terminal, /dev/null.
#[must_use]
pub fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Writes a file beside its place and moves it there when it is whole. A link stays, and what it leads to is replaced; a
/// stream ([`is_stream`]) is written to.
///
/// # Errors
/// When the directory of the file does not let itself be written.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if is_stream(path) {
        let mut out = io::BufWriter::new(std::fs::File::options().write(true).open(path)?);
        write(&mut out)?;
        return out.flush();
    }
    let target = std::fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".spinup-");
    // As a file made in the ordinary way, rather than for the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(dir)?;
    {
        let mut out = io::BufWriter::new(&mut file);
        write(&mut out)?;
        out.flush()?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::OutcomeKind;
    use crate::report::testing::result;

    fn host() -> Host {
        let soft = EngineEntry { name: EngineKind::Soft, backend: Some("a processor".into()), unusable: None };
        let kvm = EngineEntry { name: EngineKind::Kvm, backend: None, unusable: Some("no /dev/kvm".into()) };
        Host { os: "linux", arch: "x86_64", cpus: 2, engines: vec![soft, kvm] }
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
    fn a_file_is_replaced_whole_and_readable_by_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("results.json");
        std::fs::write(&path, "before").expect("a file");
        write_atomically(&path, |_| Err(io::Error::other("no"))).expect_err("it failed");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "before");
        Document::new(&host(), []).write(&path).expect("room");
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(read["schema"], 1);
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "nothing is left beside it");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = dir.path().join("plain");
            std::fs::write(&plain, "").expect("a file");
            let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
            assert_eq!(mode(&path), mode(&plain));
        }
    }
}
