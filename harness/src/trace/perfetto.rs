//! A trace for timelines: the Trace Event Format that Perfetto and Chrome read.
//!
//! Each lane is a thread, each event a slice on it; a cause in another lane is an arrow.

use super::{StoredTrace, describe, lane};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

/// The viewer's process: there is one.
const PID: u32 = 1;

/// How long an event is drawn at most, in microseconds: events have no length, and arrows need something to hold on to.
const DRAWN_US: f64 = 0.2;

/// Writes a trace as one JSON document.
///
/// # Errors
/// Of the writer.
pub fn write(trace: &StoredTrace, mut out: impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut out, &document(trace))?;
    out.write_all(b"\n")
}

/// The document. Readers that do not take it as a whole want the events first.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    trace_events: Vec<Value>,
    display_time_unit: &'static str,
}

fn document(trace: &StoredTrace) -> Document {
    let records = &trace.trace.records;
    let mut threads: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let mut times: BTreeMap<Arc<str>, BTreeSet<u64>> = BTreeMap::new();
    for record in records {
        let next = threads.len() + 1;
        threads.entry(lane(record)).or_insert(next);
        times.entry(lane(record)).or_default().insert(record.t_ns);
    }
    let cell = trace.cell.to_string();
    let mut events = vec![json!({"ph": "M", "name": "process_name", "pid": PID, "args": {"name": cell}})];
    events.extend(
        threads.iter().map(
            |(lane, tid)| json!({"ph": "M", "name": "thread_name", "pid": PID, "tid": tid, "args": {"name": lane}}),
        ),
    );
    // Microseconds, with the nanoseconds behind the point: exact up to 2^53 ns, a hundred days.
    let us = |t_ns: u64| t_ns as f64 / 1000.0;
    for record in records {
        let (tid, ts) = (threads[&lane(record)], us(record.t_ns));
        // Slices of a thread may be within each other, but a reader drops one that begins in another and outlasts it.
        let next = times[&lane(record)].range(record.t_ns + 1..).next();
        let drawn = next.map_or(DRAWN_US, |next| us(next - record.t_ns).min(DRAWN_US));
        events.push(json!({
            "ph": "X", "name": describe(&record.event), "cat": record.layer, "pid": PID, "tid": tid, "ts": ts, "dur": drawn,
            "args": {"seq": record.seq, "vcpu": record.vcpu, "cause": record.cause},
        }));
        let cause = record.cause.and_then(|cause| records.get(usize::try_from(cause).ok()?));
        if let Some(cause) = cause.filter(|cause| lane(cause) != lane(record)) {
            let arrow = |ph: &str, tid: usize, ts: f64| json!({"ph": ph, "bp": "e", "name": "cause", "cat": "cause", "id": record.seq, "pid": PID, "tid": tid, "ts": ts});
            events.push(arrow("s", threads[&lane(cause)], us(cause.t_ns)));
            events.push(arrow("f", tid, ts));
        }
    }
    Document { trace_events: events, display_time_unit: "ns" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::any_trace;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_event_is_a_slice_and_every_arrow_has_both_ends(trace in any_trace()) {
            let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
            let count = trace.records.len();
            let across = trace.records.iter().filter(|record| {
                record.cause.is_some_and(|cause| lane(&trace.records[cause as usize]) != lane(record))
            }).count();
            let document = document(&StoredTrace { cell, seed: 0, trace: Arc::new(trace) });
            let events = document.trace_events;
            let phase = |ph: &str| events.iter().filter(|event| event["ph"] == ph).collect::<Vec<_>>();
            prop_assert_eq!(phase("X").len(), count);
            prop_assert_eq!((phase("s").len(), phase("f").len()), (across, across));
            let named: Vec<_> = phase("M").iter().map(|event| event["tid"].clone()).collect();
            for slice in phase("X") {
                prop_assert!(named.contains(&slice["tid"]));
            }
            let span = |slice: &Value| {
                let ns = |key: &str| (slice[key].as_f64().expect("a number") * 1000.0).round();
                (ns("ts"), ns("ts") + ns("dur"))
            };
            for (a, b) in phase("X").iter().flat_map(|a| phase("X").into_iter().map(move |b| (*a, b))) {
                let ((begin, end), (other, other_end)) = (span(a), span(b));
                prop_assert!(a["tid"] != b["tid"] || begin >= other || other >= end || other_end <= end, "{a} {b}");
            }
        }
    }
}
