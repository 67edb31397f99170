//! Traces as they are stored, printed and compared.

pub mod canonical;
pub mod describe;
pub mod perfetto;
pub mod svg;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;

pub use canonical::Canonical;
pub use describe::describe;

use crate::cell::Cell;
use sha2::{Digest, Sha256};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;
use vmm::trace::{Event, Header, ReadError, Record, Trace};

/// No larger file is read: the 400,000 events of the longest trace have some 80 MB.
const LARGEST_BYTES: u64 = 1 << 30;

/// A trace with what it is the trace of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTrace {
    /// The cell that left the trace.
    pub cell: Cell,
    /// The seed of its schedule.
    pub seed: u64,
    /// The events.
    pub trace: Arc<Trace>,
}

impl StoredTrace {
    /// Writes the trace as JSON Lines.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let header = Header { cell: self.cell.to_string(), seed: self.seed };
        let mut out = BufWriter::new(out);
        self.trace.to_jsonl(&header, &mut out)?;
        out.flush()
    }

    /// SHA-256 of what [`StoredTrace::write`] writes, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        struct Hash(Sha256);
        impl Write for Hash {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Hash(Sha256::new());
        self.write(&mut hash).expect("a hash takes every byte");
        base16ct::lower::encode_string(&hash.0.finalize())
    }

    /// Reads a stored trace.
    ///
    /// # Errors
    /// A sentence that begins with the file.
    pub fn read(path: &Path) -> Result<StoredTrace, String> {
        let in_file = |message: String| format!("{}: {message}", path.display());
        let unreadable = |error: io::Error| in_file(format!("the trace cannot be read: {error}"));
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        if size > LARGEST_BYTES {
            return Err(in_file(format!("{size} bytes are no trace: the longest has a tenth of that")));
        }
        // A pipe has no size.
        let file = file.take(LARGEST_BYTES);
        let (header, trace) = Trace::from_jsonl(BufReader::new(file)).map_err(|error: ReadError| {
            in_file(match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })
        })?;
        let cell = header.cell.parse().map_err(|error: crate::cell::CellNameError| in_file(error.to_string()))?;
        Ok(StoredTrace { cell, seed: header.seed, trace: Arc::new(trace) })
    }
}

/// The lane of what no task caused.
pub const CELL_LANE: &str = "cell";

/// The lane in which an event stands: that of the task that caused it. What no task caused (the end of the cell's time,
/// and what became of the cell) stands in [`CELL_LANE`].
#[must_use]
pub fn lane(record: &Record) -> Arc<str> {
    match record.event {
        Event::Deadline | Event::Deadlock | Event::Outcome { .. } => CELL_LANE.into(),
        _ => record.task.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::testing::any_trace;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_trace_is_refused_with_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("t.jsonl");
        let header = r#"{"schema":1,"cell":"a@b/c/xapic-2/soft","seed":0}"#;
        let refused: Vec<String> = ["", "{}", &header.replace("a@b", "ab"), &format!("{header}\n{{")]
            .iter()
            .map(|text| {
                std::fs::write(&file, text).expect("a file");
                let error = StoredTrace::read(&file).expect_err(text);
                error.replace(&file.display().to_string(), "t.jsonl")
            })
            .collect();
        insta::assert_snapshot!(refused.join("\n"));
        let missing = StoredTrace::read(&dir.path().join("none")).expect_err("no file");
        assert!(missing.contains("cannot be read"), "{missing}");
    }

    proptest! {
        #[test]
        fn reading_is_the_inverse_of_writing_and_the_hash_is_that_of_the_bytes(trace in any_trace(), seed: u64) {
            let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
            let stored = StoredTrace { cell, seed, trace: Arc::new(trace) };
            let file = tempfile::NamedTempFile::new().expect("a file");
            stored.write(&file).expect("room for a trace");
            let hash = base16ct::lower::encode_string(&Sha256::digest(std::fs::read(file.path()).expect("written")));
            prop_assert_eq!(stored.sha256(), hash);
            prop_assert_eq!(StoredTrace::read(file.path()).expect("own bytes"), stored);
        }
    }
}
