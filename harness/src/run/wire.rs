//! What the runner and its worker processes say to each other: frames of bytes over pipes, each with its length before it.
//!
//! A worker runs guests and is not trusted: whatever it sends is bounded, and read as data.

use super::cell::{Execution, Job};
use super::explain::Explanation;
use crate::cell::{Cell, EngineKind};
use crate::matrix::MatrixSource;
use crate::outcome::Outcome;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::time::Duration;

/// Bytes of the length before a frame, little-endian.
pub(super) const HEAD: usize = 4;

/// No frame is longer: the longest trace has some 80 MB.
pub(super) const LONGEST: usize = 256 << 20;

/// What a worker needs before its first cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Begin {
    /// The matrix, when it has kernels of its own.
    pub matrix: Option<MatrixSource>,
    /// Operating systems that its cells boot: they are read before the worker gives up what it does not need.
    pub os_guests: Vec<String>,
    /// Engines that its cells run on: they are opened before the worker gives up what it does not need.
    pub engines: Vec<EngineKind>,
    /// The process that it works for.
    pub parent: u32,
}

/// What a worker says first, once it has given up what it does not need.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Why it has its system calls still, if it has.
    pub unconfined: Option<String>,
}

/// A cell to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The cell.
    pub cell: Cell,
    /// The seed of its schedule.
    pub seed: u64,
    /// How long it may take: in virtual time on `soft`, in real time on `kvm`.
    pub limit: Duration,
    /// How long it may take in real time, whatever its engine, before it is given up.
    pub patience: Duration,
    /// Whether the SHA-256 of its trace is wanted.
    pub hash: bool,
    /// Whether the trace itself is wanted.
    pub trace: bool,
    /// Whether an [`Explanation`] is wanted, and the cells beside which to explain it: the first that is ok.
    pub explain: Option<Vec<Cell>>,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What became of the cell.
    pub outcome: Outcome,
    /// How many APs reported.
    pub aps_started: u32,
    /// How long it took, in real time.
    pub duration: Duration,
    /// How many instructions its guest executed; `None` when the engine cannot tell.
    pub instructions: Option<u64>,
    /// As in [`CellResult`](super::CellResult).
    pub parked_exits_per_s: Option<f64>,
    /// SHA-256 of its trace, if that was wanted.
    pub trace_sha256: Option<String>,
    /// Where everything was when the cell ended by our own fault, and what its process said on standard error.
    pub log: Option<String>,
    /// What a report shows of it, if that was wanted.
    pub explanation: Option<Explanation>,
    /// The trace as it is stored, if that was wanted. It travels in a frame of its own.
    #[serde(skip)]
    pub trace: Option<Vec<u8>>,
}

impl Report {
    /// A cell that left nothing but its outcome.
    pub(super) fn of(outcome: Outcome) -> Report {
        Report {
            outcome,
            aps_started: 0,
            duration: Duration::ZERO,
            instructions: None,
            parked_exits_per_s: None,
            trace_sha256: None,
            log: None,
            explanation: None,
            trace: None,
        }
    }

    /// What is to be reported of an execution for a task.
    pub(super) fn new(task: &Task, run: Execution, explanation: Option<Explanation>) -> Report {
        let trace = task.trace.then(|| {
            let mut bytes = Vec::new();
            run.trace.write(&mut bytes).expect("a vector takes every byte");
            bytes
        });
        Report {
            trace_sha256: task.hash.then(|| run.trace.sha256()),
            outcome: run.outcome,
            aps_started: run.aps_started,
            duration: run.duration,
            instructions: run.instructions,
            parked_exits_per_s: run.parked_exits_per_s,
            log: run.whereabouts,
            explanation,
            trace,
        }
    }
}

impl Task {
    /// The task as a job, once its kernel and engine are at hand.
    pub(super) fn job<'a>(
        &'a self,
        kernel: &'a vmm::history::KernelVersion,
        os_guest: Option<&'a crate::matrix::OsGuest>,
        engine: std::sync::Arc<dyn vmm::engine::Engine>,
    ) -> Job<'a> {
        Job { cell: &self.cell, kernel, os_guest, engine, seed: self.seed, limit: self.limit, gdb: None }
    }
}

/// A message as a frame.
pub(super) fn frame(message: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_vec(message).expect("plain data becomes JSON");
    bytes_frame(&body)
}

/// Bytes as a frame.
pub(super) fn bytes_frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("no message has 4 GiB");
    [&length.to_le_bytes()[..], body].concat()
}

/// Writes a message.
pub(super) fn send(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    out.write_all(&frame(message))?;
    out.flush()
}

/// Reads a message; `None` when the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut head = [0; HEAD];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = length(head)?;
    let mut body = Vec::new();
    from.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

/// The length in a head.
pub(super) fn length(head: [u8; HEAD]) -> io::Result<usize> {
    let length = u32::from_le_bytes(head) as usize;
    if length > LONGEST { Err(io::Error::other("a message is too long")) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received_and_a_long_frame_is_refused() {
        let mut pipe = Vec::new();
        send(&mut pipe, &("one", 1)).expect("a vector takes every byte");
        send(&mut pipe, &("two", 2)).expect("a vector takes every byte");
        let mut from = &pipe[..];
        assert_eq!(receive(&mut from).expect("whole"), Some(("one".to_owned(), 1)));
        assert_eq!(receive(&mut from).expect("whole"), Some(("two".to_owned(), 2)));
        assert_eq!(receive::<(String, i32)>(&mut from).expect("the end"), None);
        let torn = &pipe[..pipe.len() - 1];
        let mut from = torn;
        assert!(receive::<(String, i32)>(&mut from).expect("whole").is_some());
        receive::<(String, i32)>(&mut from).expect_err("torn");
        receive::<u8>(&mut &u32::MAX.to_le_bytes()[..]).expect_err("4 GiB");
    }
}
