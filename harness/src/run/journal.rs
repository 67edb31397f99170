//! The journal of a run: what became of each cell, a line each as it comes, so that a run that was killed can be gone on with.

use super::cell::CellResult;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the journal.
const SCHEMA: u32 = 1;

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    journal: u32,
    spinup: String,
    /// What makes the run this run: its matrix, cells, seeds and limits, hashed.
    run: String,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("the journal cannot be written")]
    Io(#[from] io::Error),
    /// Another process writes it.
    #[error("another run writes this journal")]
    Taken,
    /// It is there, and of a run with other cells, another matrix, seed or limit, or of another version of spinup.
    #[error(
        "the journal is of another run (other cells, matrix, seed or options): repeat that one's command, or remove the file"
    )]
    OtherRun,
}

/// A journal that is being written. Others are kept from writing it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes up to the end of the last whole line.
    whole: u64,
}

/// Where the journal of a run stands that writes this document.
#[must_use]
pub fn beside(json: &Path) -> PathBuf {
    let mut name = OsString::from(json);
    name.push(".journal");
    name.into()
}

impl Journal {
    /// Opens the journal of a run. With `resume`, what it has is handed over: nothing if there is none. Without, it is
    /// begun anew.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(path: &Path, run: &str, resume: bool) -> Result<(Journal, Vec<CellResult>), JournalError> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Taken),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let head = Head { journal: SCHEMA, spinup: env!("CARGO_PKG_VERSION").into(), run: run.to_owned() };
        let (mut results, mut whole) = (Vec::new(), 0);
        if resume {
            let mut lines = BufReader::new(&mut file);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
                if whole == 0 {
                    let found: Head = serde_json::from_slice(&line).map_err(|_| JournalError::OtherRun)?;
                    if found != head {
                        return Err(JournalError::OtherRun);
                    }
                } else {
                    // A line that does not read was torn when the disk was full.
                    let Ok(result) = serde_json::from_slice(&line) else { break };
                    results.push(result);
                }
                whole += line.len() as u64;
                line.clear();
            }
        }
        let mut journal = Journal { path: path.to_owned(), file, whole };
        journal.file.set_len(whole)?;
        journal.file.seek(SeekFrom::Start(whole))?;
        if whole == 0 {
            journal.add_line(&head)?;
        }
        Ok((journal, results))
    }

    /// Adds what became of a cell.
    ///
    /// # Errors
    /// When there is no room: the journal ends with the line before then.
    pub fn add(&mut self, result: &CellResult) -> io::Result<()> {
        self.add_line(result)
    }

    fn add_line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        if let Err(error) = written {
            self.file.set_len(self.whole)?;
            self.file.seek(SeekFrom::Start(self.whole))?;
            return Err(error);
        }
        self.whole += bytes.len() as u64;
        Ok(())
    }

    /// Removes the journal: every cell has run, and the results are written.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::OutcomeKind;
    use crate::report::testing::result;

    fn results() -> Vec<CellResult> {
        (2..5)
            .map(|cpus| format!("bhyve-13.1@fbsd-13.1/mp-spec/xapic-{cpus}/soft"))
            .map(|cell| result(&cell, OutcomeKind::Ok, OutcomeKind::Ok))
            .collect()
    }

    #[test]
    fn a_run_that_was_killed_at_any_byte_is_gone_on_with() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = beside(&dir.path().join("results.json"));
        let (mut journal, found) = Journal::open(&path, "run", false).expect("room");
        assert!(found.is_empty());
        results().iter().for_each(|result| journal.add(result).expect("room"));
        drop(journal);
        let bytes = std::fs::read(&path).expect("written");
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("room");
            let (mut journal, found) = Journal::open(&path, "run", true).expect("a torn journal is one");
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count().saturating_sub(1);
            assert_eq!(found, results()[..whole], "cut at {cut}");
            results()[whole..].iter().for_each(|result| journal.add(result).expect("room"));
            drop(journal);
            assert_eq!(std::fs::read(&path).expect("written"), bytes, "cut at {cut}");
        }
    }

    #[test]
    fn another_run_is_refused_and_so_is_another_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("j");
        let (journal, _) = Journal::open(&path, "run", false).expect("room");
        assert!(matches!(Journal::open(&path, "run", true), Err(JournalError::Taken)));
        drop(journal);
        assert!(matches!(Journal::open(&path, "other", true), Err(JournalError::OtherRun)));
        std::fs::write(&path, "something else\n").expect("room");
        assert!(matches!(Journal::open(&path, "run", true), Err(JournalError::OtherRun)));
        let (journal, _) = Journal::open(&path, "other", false).expect("begun anew");
        journal.remove().expect("it is there");
        assert!(!path.exists());
    }
}
