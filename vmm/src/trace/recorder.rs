//! What writes a trace while its cell runs.

use super::{Event, Record, Seq, Trace};
use crate::host::End;
use std::sync::Arc;

/// How many events a trace holds. A guest that sends IPIs in a loop must not eat the machine's memory.
const CAPACITY: usize = 300_000;

/// How many events more a full trace takes of those by which a cell's outcome is found. Without them a guest that sends IPIs
/// in a loop, and is fine otherwise, would seem to hang.
const RESERVE: usize = 100_000;

/// How much of that what the frontend says may take: a guest that touches MSRs in a loop makes it say a line each time, and what
/// the guest itself reports in the end must find room behind that.
const MESSAGES: usize = RESERVE / 2;

/// What [`Recorder::record`] returns for an event that it did not keep. As a cause it stands for none.
const NOT_KEPT: Seq = Seq::MAX;

/// The trace of a running cell.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    trace: Trace,
    /// Whether the kernel has recorded its panic itself, with the vCPU and the cause that only it knows.
    panic_recorded: bool,
    /// Whether the cell has ended. What its tasks do while they are torn down did not happen to the cell.
    closed: bool,
}

impl Recorder {
    /// Records an event and returns its number.
    pub(crate) fn record(
        &mut self,
        t_ns: u64,
        task: &Arc<str>,
        vcpu: Option<u16>,
        event: Event,
        cause: Option<Seq>,
    ) -> Seq {
        if self.closed {
            return NOT_KEPT;
        }
        self.panic_recorded |= matches!(event, Event::Panic { .. });
        let capacity = match event {
            Event::Report(_) | Event::VmSuspended { .. } | Event::Milestone { .. } | Event::FirstInstruction { .. } => {
                CAPACITY + RESERVE
            }
            Event::Message { .. } => CAPACITY + MESSAGES,
            _ => CAPACITY,
        };
        if self.trace.records.len() >= capacity {
            self.trace.dropped += 1;
            return NOT_KEPT;
        }
        self.trace.push(t_ns, Arc::clone(task), vcpu, event, cause)
    }

    /// Records how the cell ended, even into a full trace, and nothing from here on.
    pub(crate) fn close(&mut self, t_ns: u64, task: &Arc<str>, end: &End, cause: Option<Seq>) {
        if self.closed {
            return;
        }
        self.closed = true;
        let event = match end {
            End::Exit(status) => Event::ProcessExit { status: *status },
            End::Abort(message) => Event::Abort { message: message.clone() },
            End::Panic(_) if self.panic_recorded => return,
            End::Panic(message) => Event::Panic { message: message.clone() },
            End::Deadline => Event::Deadline,
            End::Deadlock => Event::Deadlock,
            // What was waited for, or the last reset, is the last event.
            End::Stopped | End::Rebooted(_) | End::HarnessError(_) => return,
        };
        self.trace.push(t_ns, Arc::clone(task), None, event, cause);
    }

    /// Hands the trace over.
    pub(crate) fn take(&mut self) -> Trace {
        std::mem::take(&mut self.trace)
    }
}

impl Trace {
    /// Appends an event and returns its number. A cause that is not in the trace is left out.
    pub fn push(&mut self, t_ns: u64, task: Arc<str>, vcpu: Option<u16>, event: Event, cause: Option<Seq>) -> Seq {
        let seq = self.records.len() as Seq;
        let cause = cause.filter(|&cause| cause < seq);
        self.records.push(Record { seq, t_ns, layer: event.layer(), task, vcpu, event, cause });
        seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::GuestReport;

    fn task() -> Arc<str> {
        Arc::from("task")
    }

    #[test]
    fn a_full_trace_counts_what_it_drops_and_still_says_how_the_cell_ended() {
        let mut recorder = Recorder::default();
        let record = Record {
            seq: 0,
            t_ns: 0,
            layer: Event::TaskEnded.layer(),
            task: task(),
            vcpu: None,
            event: Event::TaskEnded,
            cause: None,
        };
        recorder.trace.records = vec![record; CAPACITY];
        let lost = recorder.record(1, &task(), None, Event::TripleFault, None);
        recorder.record(2, &task(), None, Event::TripleFault, Some(lost));
        let done = Event::Report(GuestReport::Done { aps: 1 });
        recorder.record(3, &task(), Some(0), done.clone(), Some(lost));
        recorder.close(4, &task(), &End::Exit(4), Some(lost));
        let trace = recorder.take();
        assert_eq!(trace.dropped, 2);
        assert_eq!(trace.records.len(), CAPACITY + 2);
        assert_eq!(trace.records[CAPACITY].event, done, "the outcome is read from reports");
        let last = &trace.records[CAPACITY + 1];
        assert_eq!((last.event.clone(), last.cause), (Event::ProcessExit { status: 4 }, None));
    }

    #[test]
    fn messages_in_a_loop_leave_room_for_what_the_guest_reports() {
        let mut recorder = Recorder::default();
        for t_ns in 0..(CAPACITY + 2 * RESERVE) as u64 {
            recorder.record(
                t_ns,
                &task(),
                None,
                Event::Message { text: "rdmsr to register 0x3a0 on vcpu 0".into() },
                None,
            );
        }
        let done = Event::Report(GuestReport::Done { aps: 1 });
        recorder.record(0, &task(), Some(0), done.clone(), None);
        let trace = recorder.take();
        assert_eq!(trace.records.last().map(|record| &record.event), Some(&done));
        assert_eq!(trace.dropped as usize, 2 * RESERVE - MESSAGES);
    }

    #[test]
    fn a_panic_that_the_kernel_recorded_is_not_recorded_again() {
        let end = End::Panic("page fault".into());
        let event = Event::Panic { message: "page fault".into() };

        let mut by_the_kernel = Recorder::default();
        by_the_kernel.record(1, &task(), Some(1), event.clone(), None);
        by_the_kernel.close(2, &task(), &end, None);
        let trace = by_the_kernel.take();
        assert_eq!(trace.records.len(), 1);
        assert_eq!((trace.records[0].vcpu, &trace.records[0].event), (Some(1), &event));

        let mut by_the_end_alone = Recorder::default();
        by_the_end_alone.close(2, &task(), &end, None);
        assert_eq!(by_the_end_alone.take().records[0].event, event);
    }

    #[test]
    fn nothing_is_recorded_after_the_end() {
        let mut recorder = Recorder::default();
        recorder.close(1, &task(), &End::Deadlock, None);
        recorder.close(2, &task(), &End::Deadline, None);
        recorder.record(3, &task(), None, Event::TaskEnded, None);
        let trace = recorder.take();
        assert_eq!(trace.records.len(), 1);
        assert_eq!((&trace.records[0].event, trace.dropped), (&Event::Deadlock, 0));
    }
}
