//! Traces made by hand or by chance, for tests.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use vmm::cpuset::CpuSet;
use vmm::trace::{
    DeliveryMode, DestinationRule, DropReason, Event, GuestReport, Record, Seq, Shorthand, StartupStore, Trace,
};

/// Puts a trace together, a microsecond between events.
pub(crate) struct Builder {
    trace: Trace,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder { trace: Trace::default() }
    }

    /// Adds an event without cause.
    pub(crate) fn emit(&mut self, task: &str, vcpu: Option<u16>, event: Event) -> Seq {
        self.push(None, task, vcpu, event)
    }

    /// Adds an event with its cause.
    pub(crate) fn emit_caused(&mut self, cause: Seq, task: &str, vcpu: Option<u16>, event: Event) -> Seq {
        self.push(Some(cause), task, vcpu, event)
    }

    fn push(&mut self, cause: Option<Seq>, task: &str, vcpu: Option<u16>, event: Event) -> Seq {
        let seq = self.trace.records.len() as u64;
        let layer = event.layer();
        self.trace.records.push(Record { seq, t_ns: seq * 1000, layer, task: task.into(), vcpu, event, cause });
        seq
    }

    pub(crate) fn finish(self) -> Trace {
        self.trace
    }
}

/// One of each kind of event, some with two faces.
pub(crate) fn every_event() -> Vec<Event> {
    use DeliveryMode::{Fixed, Init, Startup};
    let (none, one, two) = (CpuSet::EMPTY, CpuSet::single(1), [0, 1].into_iter().collect::<CpuSet>());
    let icr = |icr: u64, mode, shorthand, logical, msr| Event::IcrWrite {
        icr,
        mode,
        vector: icr as u8,
        dest: (icr >> 56) as u32,
        shorthand,
        logical,
        assert: icr & 0x4000 != 0,
        msr,
    };
    let reports = [
        GuestReport::Boot { x2apic: true },
        GuestReport::CpusFound { cpus: 4, mp_table: false },
        GuestReport::ApAwaited { apic_id: 3 },
        GuestReport::ApOnline { apic_id: 3 },
        GuestReport::ApsAsked { aps: 1 },
        GuestReport::ApsAsked { aps: 0 },
        GuestReport::TestPassed { test: 1, apic_id: None },
        GuestReport::TestFailed { test: 2, apic_id: None },
        GuestReport::TestFailed { test: 6, apic_id: Some(3) },
        GuestReport::Seen { what: 2, apic_id: Some(3) },
        GuestReport::Seen { what: 10, apic_id: None },
        GuestReport::Stray { apic_id: 3, vector: None },
        GuestReport::Stray { apic_id: 3, vector: Some(9) },
        GuestReport::ApMissing { apic_id: 1 },
        GuestReport::Done { aps: 3 },
        GuestReport::GaveUp { aps: 0 },
        GuestReport::Broken { code: 14 },
        GuestReport::Unknown { word: 0xff00_0001 },
    ];
    let mut events: Vec<Event> = reports.into_iter().map(Event::Report).collect();
    events.extend([
        Event::FirstInstruction { cs: 0x800, ip: 0 },
        Event::TripleFault,
        Event::Unimplemented { what: "fsin".into(), rip: 0x10_0000 },
        icr(0x0100_0000_0000_c500, Init, Shorthand::None, false, false),
        icr(0x0100_0000_0000_8500, Init, Shorthand::None, false, false),
        icr(0x0100_0000_0000_0608, Startup, Shorthand::None, false, true),
        icr(0x0300_0000_0000_4840, Fixed, Shorthand::None, true, false),
        icr(0xc_4040, Fixed, Shorthand::AllExcludingSelf, false, false),
        Event::DestinationResolved {
            mode: Init,
            rule: DestinationRule::CalcdestActive,
            among: CpuSet::single(0),
            targets: none,
        },
        Event::DestinationResolved { mode: Init, rule: DestinationRule::RawDest, among: one, targets: one },
        Event::ExitMask { mode: Init, ipimask: one, dmask: none },
        Event::IpiDelivered { mode: Fixed, vector: 0x40, targets: two },
        Event::IpiDropped { mode: Startup, vector: 8, why: DropReason::NotWaitingForSipi },
        Event::IcrUnhandled { mode: Init },
        Event::VcpuAllocated,
        Event::VcpuActivated,
        Event::VcpuSuspended,
        Event::VcpuResumed,
        Event::VlapicReset,
        Event::StartupState { targets: one, waiting: true, store: StartupStore::BootState },
        Event::StartupState { targets: one, waiting: false, store: StartupStore::StartupCpus },
        Event::RendezvousBegun { targets: one },
        Event::RendezvousDone { targets: one },
        Event::VmSuspended { how: "poweroff".into() },
        Event::Panic { message: "page fault".into() },
        Event::Exit { code: 10, name: "SPINUP_AP".into(), payload: "vcpu 1 rip 0x8000".into() },
        Event::Exit { code: 14, name: "SUSPENDED".into(), payload: String::new() },
        Event::Ioctl { name: "VM_SET_CAPABILITY".into(), request: 0, detail: "IPI_EXIT=1".into(), errno: 22 },
        Event::Ioctl { name: "VM_ACTIVATE_CPU".into(), request: 0, detail: String::new(), errno: 0 },
        Event::Ioctl { name: "unknown".into(), request: 0x2000_5600, detail: String::new(), errno: 25 },
        Event::Syscall { name: "open".into(), errno: 2 },
        Event::TaskSpawned { name: "vcpu 0".into() },
        Event::TaskEnded,
        Event::Message { text: "vm_run error -1, errno 22".into() },
        Event::ProcessExit { status: 4 },
        Event::Abort { message: "Assertion failed".into() },
        Event::Deadline,
        Event::Deadlock,
        Event::Outcome { kind: "hang".into(), detail: "the AP never came up".into() },
    ]);
    events
}

/// A trace by chance: events of every kind, over a few lanes, with causes among what came before.
pub(crate) fn any_trace() -> impl Strategy<Value = Trace> {
    let event = prop::sample::select(every_event());
    prop::collection::vec((event, 0u16..3, any::<Option<prop::sample::Index>>()), 0..40).prop_map(|events| {
        let mut trace = Builder::new();
        for (i, (event, lane, cause)) in events.into_iter().enumerate() {
            let task = if lane == 0 { "bhyve".to_owned() } else { format!("vcpu {}", lane - 1) };
            let vcpu = lane.checked_sub(1);
            match cause.filter(|_| i > 0) {
                Some(cause) => trace.emit_caused(cause.index(i) as u64, &task, vcpu, event),
                None => trace.emit(&task, vcpu, event),
            };
        }
        trace.finish()
    })
}

/// The same events at other times.
pub(crate) fn shift_time(trace: &Trace, by: u64) -> Trace {
    let mut shifted = trace.clone();
    for record in &mut shifted.records {
        record.t_ns = record.t_ns.wrapping_mul(3).wrapping_add(by);
    }
    shifted
}

/// Another order of the same events, picked by `seed`: each lane keeps its own, and a cause stays before its effects.
pub(crate) fn reorder(trace: &Trace, mut seed: u64) -> Trace {
    let mut lanes: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
    for (i, record) in trace.records.iter().enumerate() {
        lanes.entry(super::lane(record)).or_default().push(i);
    }
    let mut queues: Vec<std::collections::VecDeque<usize>> = lanes.into_values().map(Into::into).collect();
    let mut place: Vec<Option<u64>> = vec![None; trace.records.len()];
    let mut records = Vec::new();
    while records.len() < trace.records.len() {
        let ready: Vec<usize> = (0..queues.len())
            .filter(|&q| {
                queues[q].front().is_some_and(|&i| trace.records[i].cause.is_none_or(|c| place[c as usize].is_some()))
            })
            .collect();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let queue = ready[(seed >> 33) as usize % ready.len()];
        let i = queues[queue].pop_front().expect("a ready lane has an event");
        let seq = records.len() as u64;
        place[i] = Some(seq);
        let old = &trace.records[i];
        let cause = old.cause.map(|cause| place[cause as usize].expect("causes come first"));
        records.push(Record { seq, cause, t_ns: seq * 1000, ..old.clone() });
    }
    Trace { records, dropped: trace.dropped }
}
