//! The stored form of a trace: JSON Lines, first a header, then one event a line.

use super::{Record, SCHEMA, Trace};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Write};

/// What a stored trace is the trace of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cell's name.
    pub cell: String,
    /// The seed of its schedule.
    pub seed: u64,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct FirstLine {
    schema: u32,
    cell: String,
    seed: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why a stored trace could not be read. Lines count from 1.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named in the messages")]
pub enum ReadError {
    /// The reader failed.
    #[error("Cannot read line {line} of the trace")]
    Io { line: usize, source: io::Error },
    /// There is not even a header.
    #[error("The trace is empty: its first line must be a header")]
    Empty,
    /// A line is not what it should be.
    #[error("Line {line} of the trace is not {expected}")]
    Malformed { line: usize, expected: &'static str, source: serde_json::Error },
    /// Another version of spinup wrote the trace.
    #[error("The trace has schema {found}, and this spinup reads schema {SCHEMA}")]
    Schema { found: u32 },
    /// An event is missing or out of order.
    #[error("Line {line} of the trace has event {found} where event {expected} belongs")]
    OutOfOrder { line: usize, found: u64, expected: u64 },
    /// An event names a later one as its cause.
    #[error("Line {line} of the trace names event {cause} as its cause, which does not come before it")]
    CauseNotBefore { line: usize, cause: u64 },
}

impl Trace {
    /// Writes the trace. The same header and trace give the same bytes.
    ///
    /// # Errors
    /// What the writer says.
    pub fn to_jsonl(&self, header: &Header, mut out: impl Write) -> io::Result<()> {
        let Header { cell, seed } = header;
        let first = FirstLine { schema: SCHEMA, cell: cell.clone(), seed: *seed, dropped: self.dropped };
        write_line(&first, &mut out)?;
        self.records.iter().try_for_each(|record| write_line(record, &mut out))
    }

    /// Reads a trace back.
    ///
    /// # Errors
    /// When the reader fails, or a line is not what [`Trace::to_jsonl`] writes.
    pub fn from_jsonl(reader: impl BufRead) -> Result<(Header, Trace), ReadError> {
        let mut lines = reader
            .lines()
            .zip(1..)
            .map(|(text, line)| text.map(|text| (text, line)).map_err(|source| ReadError::Io { line, source }));
        let (text, line) = lines.next().ok_or(ReadError::Empty)??;
        let FirstLine { schema, cell, seed, dropped } = serde_json::from_str(&text)
            .map_err(|source| ReadError::Malformed { line, expected: "a trace's header", source })?;
        if schema != SCHEMA {
            return Err(ReadError::Schema { found: schema });
        }
        let mut records = Vec::new();
        for numbered in lines {
            let (text, line) = numbered?;
            let record: Record = serde_json::from_str(&text).map_err(|source| ReadError::Malformed {
                line,
                expected: "an event",
                source,
            })?;
            let expected = records.len() as u64;
            if record.seq != expected {
                return Err(ReadError::OutOfOrder { line, found: record.seq, expected });
            }
            if let Some(cause) = record.cause.filter(|&cause| cause >= record.seq) {
                return Err(ReadError::CauseNotBefore { line, cause });
            }
            records.push(record);
        }
        Ok((Header { cell, seed }, Trace { records, dropped }))
    }
}

fn write_line(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuset::CpuSet;
    use crate::trace::{DeliveryMode, DestinationRule, DropReason, Event, GuestReport, Shorthand, StartupStore};
    use proptest::prelude::*;

    fn report() -> impl Strategy<Value = Event> {
        // From the wire: every code is reached, and so is the report that is none.
        (0..=14u32, 0..0x100_0000u32)
            .prop_map(|(code, payload)| Event::Report(GuestReport::from_word(code << 24 | payload)))
    }

    fn mode() -> impl Strategy<Value = DeliveryMode> {
        (0..8u32).prop_map(DeliveryMode::from_bits)
    }

    fn set() -> impl Strategy<Value = CpuSet> {
        proptest::collection::vec(0..256usize, 0..6).prop_map(|cpus| cpus.into_iter().collect())
    }

    fn shorthand() -> impl Strategy<Value = Shorthand> {
        proptest::sample::select(vec![
            Shorthand::None,
            Shorthand::Itself,
            Shorthand::AllIncludingSelf,
            Shorthand::AllExcludingSelf,
        ])
    }

    fn why() -> impl Strategy<Value = DropReason> {
        proptest::sample::select(vec![
            DropReason::NoDestination,
            DropReason::InitDeassert,
            DropReason::InvalidCombination,
            DropReason::NotWaitingForSipi,
            DropReason::NotInInitState,
            DropReason::DestinationOutOfRange,
            DropReason::LogicalDestination,
            DropReason::IllegalVector,
            DropReason::SoftwareDisabled,
        ])
    }

    fn rule() -> impl Strategy<Value = DestinationRule> {
        use DestinationRule::*;
        proptest::sample::select(vec![CalcdestActive, ShorthandActive, RawDest])
    }

    fn unit() -> impl Strategy<Value = Event> {
        use Event::*;
        proptest::sample::select(vec![
            TripleFault,
            VcpuAllocated,
            VcpuActivated,
            VcpuSuspended,
            VcpuResumed,
            VlapicReset,
            TaskEnded,
            Deadline,
            Deadlock,
        ])
    }

    fn guest() -> impl Strategy<Value = Event> {
        prop_oneof![
            report(),
            any::<(u16, u64)>().prop_map(|(cs, ip)| Event::FirstInstruction { cs, ip }),
            any::<(String, u64)>().prop_map(|(what, rip)| Event::Unimplemented { what, rip }),
        ]
    }

    fn kernel() -> impl Strategy<Value = Event> {
        let icr = (any::<u64>(), mode(), any::<u8>(), any::<u32>(), shorthand(), any::<[bool; 3]>());
        let store = proptest::sample::select(vec![StartupStore::BootState, StartupStore::StartupCpus]);
        prop_oneof![
            icr.prop_map(|(icr, mode, vector, dest, shorthand, [logical, assert, msr])| Event::IcrWrite {
                icr,
                mode,
                vector,
                dest,
                shorthand,
                logical,
                assert,
                msr
            }),
            (mode(), rule(), set(), set()).prop_map(|(mode, rule, among, targets)| Event::DestinationResolved {
                mode,
                rule,
                among,
                targets
            }),
            (mode(), set(), set()).prop_map(|(mode, ipimask, dmask)| Event::ExitMask { mode, ipimask, dmask }),
            (mode(), any::<u8>(), set()).prop_map(|(mode, vector, targets)| Event::IpiDelivered {
                mode,
                vector,
                targets
            }),
            (mode(), any::<u8>(), why()).prop_map(|(mode, vector, why)| Event::IpiDropped { mode, vector, why }),
            mode().prop_map(|mode| Event::IcrUnhandled { mode }),
            (set(), any::<bool>(), store).prop_map(|(targets, waiting, store)| Event::StartupState {
                targets,
                waiting,
                store
            }),
            set().prop_map(|targets| Event::RendezvousBegun { targets }),
            set().prop_map(|targets| Event::RendezvousDone { targets }),
            any::<String>().prop_map(|how| Event::VmSuspended { how }),
            any::<String>().prop_map(|message| Event::Panic { message }),
        ]
    }

    fn userspace() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<(u32, String, String)>().prop_map(|(code, name, payload)| Event::Exit { code, name, payload }),
            any::<(String, u32, String, i32)>().prop_map(|(name, request, detail, errno)| Event::Ioctl {
                name,
                request,
                detail,
                errno
            }),
            any::<(String, i32)>().prop_map(|(name, errno)| Event::Syscall { name, errno }),
            any::<String>().prop_map(|name| Event::TaskSpawned { name }),
            any::<String>().prop_map(|text| Event::Message { text }),
            any::<i32>().prop_map(|status| Event::ProcessExit { status }),
            any::<String>().prop_map(|message| Event::Abort { message }),
            any::<(String, String)>().prop_map(|(kind, detail)| Event::Outcome { kind, detail }),
        ]
    }

    fn trace() -> impl Strategy<Value = Trace> {
        let event = prop_oneof![unit(), guest(), kernel(), userspace()];
        let records = proptest::collection::vec((any::<u64>(), "[a-z0-9 ]{1,9}", any::<Option<u16>>(), event), 0..24);
        (records, any::<u64>(), any::<u64>()).prop_map(|(records, causes, dropped)| {
            let mut trace = Trace { dropped, ..Trace::default() };
            for (t_ns, task, vcpu, event) in records {
                let cause = causes.checked_rem(trace.records.len() as u64 + 1);
                trace.push(t_ns, task.into(), vcpu, event, cause);
            }
            trace
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(trace in trace(), cell: String, seed: u64) {
            let header = Header { cell, seed };
            let mut bytes = Vec::new();
            trace.to_jsonl(&header, &mut bytes).expect("a vector takes all");
            let (header_read, read) = Trace::from_jsonl(&bytes[..]).expect("our own bytes");
            prop_assert_eq!(&read, &trace);
            prop_assert_eq!(&header_read, &header);
            let mut again = Vec::new();
            read.to_jsonl(&header, &mut again).expect("a vector takes all");
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn the_lines_are_as_documented() {
        let mut trace = Trace::default();
        let spawned = trace.push(0, "host".into(), None, Event::TaskSpawned { name: "bhyve".into() }, None);
        let targets = CpuSet::single(1);
        trace.push(7, "bhyve".into(), Some(0), Event::RendezvousBegun { targets }, Some(spawned));
        trace.push(9, "vcpu 0".into(), Some(0), Event::Report(GuestReport::ApOnline { apic_id: 1 }), None);
        let mut bytes = Vec::new();
        trace.to_jsonl(&Header { cell: "a@b/c/xapic-2/soft".into(), seed: 3 }, &mut bytes).expect("a vector takes all");
        assert_eq!(
            String::from_utf8(bytes).expect("JSON is UTF-8"),
            concat!(
                r#"{"schema":1,"cell":"a@b/c/xapic-2/soft","seed":3}"#,
                "\n",
                r#"{"seq":0,"t_ns":0,"layer":"frontend","task":"host","vcpu":null,"event":"task-spawned","name":"bhyve","cause":null}"#,
                "\n",
                r#"{"seq":1,"t_ns":7,"layer":"kernel","task":"bhyve","vcpu":0,"event":"rendezvous-begun","targets":[1],"cause":0}"#,
                "\n",
                r#"{"seq":2,"t_ns":9,"layer":"guest","task":"vcpu 0","vcpu":0,"event":"report","report":"ap-online","apic_id":1,"cause":null}"#,
                "\n",
            )
        );
    }

    #[test]
    fn errors_name_the_line() {
        let read = |text: &str| Trace::from_jsonl(text.as_bytes()).expect_err("not a trace").to_string();
        let header = r#"{"schema":1,"cell":"c","seed":0}"#;
        let ended = |seq: u64, cause: &str| {
            let place = format!(r#"{{"seq":{seq},"t_ns":0,"layer":"frontend","task":"t","vcpu":null"#);
            format!(r#"{place},"event":"task-ended","cause":{cause}}}"#)
        };
        assert_eq!(read(""), "The trace is empty: its first line must be a header");
        assert_eq!(read("{}"), "Line 1 of the trace is not a trace's header");
        assert_eq!(
            read(r#"{"schema":9,"cell":"c","seed":0}"#),
            "The trace has schema 9, and this spinup reads schema 1"
        );
        assert_eq!(read(&format!("{header}\n{}\nnonsense\n", ended(0, "null"))), "Line 3 of the trace is not an event");
        assert_eq!(
            read(&format!("{header}\n{}\n", ended(1, "null"))),
            "Line 2 of the trace has event 1 where event 0 belongs"
        );
        assert_eq!(
            read(&format!("{header}\n{}\n", ended(0, "0"))),
            "Line 2 of the trace names event 0 as its cause, which does not come before it"
        );
    }
}
