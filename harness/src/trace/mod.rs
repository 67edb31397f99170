//! Traces as they are stored, printed and compared.

pub mod canonical;
pub mod describe;
#[cfg(test)]
pub(crate) mod testing;
pub mod text;

pub use canonical::Canonical;
pub use describe::describe;

use crate::cell::Cell;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use vmm::trace::{Event, Record, SCHEMA, Trace};

/// The first line of a stored trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the form.
    pub schema: u32,
    /// The cell that left the trace.
    pub cell: Cell,
    /// The seed of its schedule.
    pub seed: u64,
    /// How many events were left out because the trace was full.
    pub dropped: u64,
}

/// A trace with its header: what a `.jsonl` file holds, one JSON object for each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTrace {
    /// The cell that left the trace.
    pub cell: Cell,
    /// The seed of its schedule.
    pub seed: u64,
    /// The events.
    pub trace: Arc<Trace>,
}

/// Why a file is no trace.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{file}: the trace cannot be read")]
    Io {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{file}:{line}: this is no line of a trace")]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The form is from another time.
    #[error("{file}: the trace has schema {schema}, and this spinup reads {SCHEMA}")]
    Schema {
        /// The file.
        file: String,
        /// Its schema.
        schema: u32,
    },
    /// The numbers of the events do not count up, or a cause is not an earlier event.
    #[error(
        "{file}:{line}: the event has number {seq} or names a cause that is not an earlier event; the file is damaged"
    )]
    Order {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The number that it has.
        seq: u64,
    },
    /// There is nothing in it.
    #[error("{file}: the file is empty")]
    Empty {
        /// The file.
        file: String,
    },
}

impl StoredTrace {
    /// Writes the trace: a header line, then a line for each event.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let StoredTrace { cell, seed, trace } = self;
        let header = Header { schema: SCHEMA, cell: cell.clone(), seed: *seed, dropped: trace.dropped };
        let mut line = Vec::with_capacity(256);
        serde_json::to_writer(&mut line, &header)?;
        line.push(b'\n');
        out.write_all(&line)?;
        for record in &trace.records {
            line.clear();
            serde_json::to_writer(&mut line, record)?;
            line.push(b'\n');
            out.write_all(&line)?;
        }
        Ok(())
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
        hash.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads a stored trace. `file` names it in errors.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(file: &str, input: impl BufRead) -> Result<StoredTrace, ReadError> {
        let mut lines = input.lines().enumerate();
        let mut next = || -> Result<Option<(usize, String)>, ReadError> {
            let Some((at, line)) = lines.next() else { return Ok(None) };
            line.map(|line| Some((at + 1, line))).map_err(|source| ReadError::Io { file: file.to_owned(), source })
        };
        let parse_error = |line, source| ReadError::Line { file: file.to_owned(), line, source };
        let Some((at, line)) = next()? else { return Err(ReadError::Empty { file: file.to_owned() }) };
        let header: Header = serde_json::from_str(&line).map_err(|source| parse_error(at, source))?;
        if header.schema != SCHEMA {
            return Err(ReadError::Schema { file: file.to_owned(), schema: header.schema });
        }
        let mut trace = Trace { records: Vec::new(), dropped: header.dropped };
        while let Some((at, line)) = next()? {
            let record: Record = serde_json::from_str(&line).map_err(|source| parse_error(at, source))?;
            if record.seq != trace.records.len() as u64 || record.cause.is_some_and(|cause| cause >= record.seq) {
                return Err(ReadError::Order { file: file.to_owned(), line: at, seq: record.seq });
            }
            trace.records.push(record);
        }
        Ok(StoredTrace { cell: header.cell, seed: header.seed, trace: Arc::new(trace) })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_file(path: &Path) -> Result<StoredTrace, ReadError> {
        let name = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|source| ReadError::Io { file: name.clone(), source })?;
        StoredTrace::read(&name, io::BufReader::new(file))
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
    use super::testing::{Builder, any_trace};
    use super::*;
    use proptest::prelude::*;

    fn stored(trace: Trace) -> StoredTrace {
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
        StoredTrace { cell, seed: 7, trace: Arc::new(trace) }
    }

    fn bytes(trace: &StoredTrace) -> Vec<u8> {
        let mut bytes = Vec::new();
        trace.write(&mut bytes).expect("a vector takes every byte");
        bytes
    }

    #[test]
    fn the_stored_form_is_lines_of_json() {
        let mut trace = Builder::new();
        let spawned = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
        trace.emit_caused(spawned, "vcpu 0", Some(0), Event::VcpuActivated);
        insta::assert_snapshot!(String::from_utf8(bytes(&stored(trace.finish()))).expect("JSON is UTF-8"));
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let header = r#"{"schema":1,"cell":"a@b/c/xapic-2/soft","seed":0,"dropped":0}"#;
        let event = r#"{"seq":0,"t_ns":0,"layer":"frontend","task":"t","vcpu":null,"event":"deadline","cause":null}"#;
        let refused: Vec<String> = [
            String::new(),
            "{}".into(),
            header.replace(":1,", ":9,"),
            format!("{header}\n{{"),
            format!("{header}\n{event}\n{event}"),
            format!("{header}\n{}", event.replace("\"cause\":null", "\"cause\":0")),
        ]
        .iter()
        .map(|text| StoredTrace::read("t.jsonl", text.as_bytes()).expect_err(text).to_string())
        .collect();
        insta::assert_snapshot!(refused.join("\n"));
        assert!(StoredTrace::read("t.jsonl", format!("{header}\n{event}\n").as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn reading_is_the_inverse_of_writing(trace in any_trace()) {
            let trace = stored(trace);
            let bytes = bytes(&trace);
            prop_assert_eq!(StoredTrace::read("memory", &bytes[..]).expect("own bytes"), trace);
        }

        #[test]
        fn the_hash_is_that_of_the_bytes(trace in any_trace()) {
            let trace = stored(trace);
            let hash: String = Sha256::digest(bytes(&trace)).iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(trace.sha256(), hash);
        }
    }
}
