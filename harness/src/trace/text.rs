//! A trace as people read it: a line for each event that is significant.

use super::{StoredTrace, canonical, describe, lane};
use std::io::{self, Write};

/// Writes a trace, one line for each significant event: number, time in milliseconds, task, vCPU, what happened and what led
/// to it. The others, most of them console bytes, are counted.
///
/// # Errors
/// Of the writer.
pub fn write(trace: &StoredTrace, mut out: impl Write) -> io::Result<()> {
    writeln!(out, "{}  seed {}", trace.cell, trace.seed)?;
    let lanes = trace.trace.records.iter().map(|record| lane(record).chars().count());
    let width = lanes.max().unwrap_or(0).max(4);
    writeln!(out, "{:>6} {:>12}  {:width$} {:>4}  event", "#", "ms", "task", "vCPU")?;
    let significant = canonical::significant(&trace.trace);
    let mut left_out = 0;
    for (record, keep) in trace.trace.records.iter().zip(significant) {
        if !keep {
            left_out += 1;
            continue;
        }
        fold(&mut out, &mut left_out)?;
        let (ms, ns) = (record.t_ns / 1_000_000, record.t_ns % 1_000_000);
        let vcpu = record.vcpu.map_or(String::new(), |vcpu| vcpu.to_string());
        write!(
            out,
            "{:>6} {ms:>5}.{ns:06}  {:width$} {vcpu:>4}  {}",
            record.seq,
            lane(record),
            describe(&record.event)
        )?;
        match record.cause {
            // The line above is the rule.
            Some(cause) if cause + 1 != record.seq => writeln!(out, "  <- {cause}")?,
            _ => writeln!(out)?,
        }
    }
    fold(&mut out, &mut left_out)?;
    if trace.trace.dropped != 0 {
        writeln!(out, "{} more events were left out: the trace was full", trace.trace.dropped)?;
    }
    Ok(())
}

fn fold(out: &mut impl Write, left_out: &mut usize) -> io::Result<()> {
    match std::mem::take(left_out) {
        0 => Ok(()),
        1 => writeln!(out, "{:>6}", "⋯"),
        count => writeln!(out, "{:>6} {count} accesses to ports and the like", "⋯"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::Builder;
    use std::sync::Arc;
    use vmm::trace::Event;

    #[test]
    fn a_line_for_each_significant_event() {
        let mut trace = Builder::new();
        let spawned = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
        trace.emit("bhyve", Some(1), Event::VcpuActivated);
        let first = trace.emit_caused(spawned, "vcpu 0", Some(0), Event::FirstInstruction { cs: 0xf000, ip: 0xfff0 });
        let inout = Event::Exit { code: 0, name: "INOUT".into(), payload: String::new() };
        let inout = trace.emit_caused(first, "vcpu 0", Some(0), inout);
        trace.emit_caused(inout, "vcpu 0", Some(0), Event::TaskEnded);
        trace.emit_caused(first, "vcpu 0", Some(0), Event::TripleFault);
        let mut trace = trace.finish();
        trace.dropped = 3;
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
        let mut out = Vec::new();
        write(&StoredTrace { cell, seed: 0, trace: Arc::new(trace) }, &mut out).expect("a vector takes every byte");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"));
    }
}
