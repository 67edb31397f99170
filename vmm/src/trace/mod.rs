//! The trace: one typed stream of events for each cell, from which everything that spinup says is derived.

mod event;
mod jsonl;
mod recorder;
/// The report port: how a bare-metal guest tells the harness how far it came.
pub mod report_port;

pub use event::{DeliveryMode, DestinationRule, DropReason, Event, GuestReport, Layer, Shorthand, StartupStore};
pub use jsonl::{Header, ReadError};
pub(crate) use recorder::Recorder;

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Version of the stored form. Fields may be added within a version, never renamed.
pub const SCHEMA: u32 = 1;

/// Number of an event within its trace, from 0.
pub type Seq = u64;

/// One event, with where and when it happened and what led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Position in the trace.
    pub seq: Seq,
    /// When, in nanoseconds since the cell began: virtual on `soft`, real on `kvm`.
    pub t_ns: u64,
    /// Where.
    pub layer: Layer,
    /// The task that caused the event.
    pub task: Arc<str>,
    /// The vCPU concerned.
    pub vcpu: Option<u16>,
    /// What.
    #[serde(flatten)]
    pub event: Event,
    /// The event that led to this one.
    pub cause: Option<Seq>,
}

/// The events of a cell, in the order in which they happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The events; `records[i].seq == i`.
    pub records: Vec<Record>,
    /// How many events were left out because the trace was full.
    pub dropped: u64,
}
