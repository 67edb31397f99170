use super::*;
use crate::cell::Cell;
use crate::trace::testing::{Builder, any_trace, reorder, shift_time};
use proptest::prelude::*;
use vmm::cpuset::CpuSet;
use vmm::trace::{DeliveryMode, DestinationRule, DropReason, Event, GuestReport, Seq, Shorthand, StartupStore, Trace};

const LAZY_131: &str = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft";
const LAZY_BROKEN: &str = "bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft";
const LAZY_NAIVE: &str = "bhyve-13.1@naive-widen/mp-spec/xapic-2/soft";
const LAZY_132: &str = "bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft";

fn stored(cell: &str, trace: Trace) -> StoredTrace {
    StoredTrace { cell: cell.parse::<Cell>().expect("a cell"), seed: 0, trace: Arc::new(trace) }
}

fn plain(diff: &Diff<'_>, amount: Amount) -> String {
    anstream::adapter::strip_str(&diff.show(amount)).to_string()
}

fn ioctl(name: &str, detail: &str, errno: i32) -> Event {
    Event::Ioctl { name: name.into(), request: 0, detail: detail.into(), errno }
}

fn icr(mode: DeliveryMode, vector: u8) -> Event {
    Event::IcrWrite {
        icr: 0,
        mode,
        vector,
        dest: 1,
        shorthand: Shorthand::None,
        logical: false,
        assert: mode == DeliveryMode::Init,
        msr: false,
    }
}

/// What bhyve of 13.1 and the guest mp-spec do with one AP, in the manner of the kernel of a cell.
fn lazy(cell: &str) -> StoredTrace {
    use DeliveryMode::{Init, Startup};
    let kernel = cell.parse::<Cell>().expect("a cell").kernel;
    let with_vm = kernel == "fbsd-13.1";
    let mut trace = Builder::new();
    let create = trace.emit("bhyve", None, Event::Syscall { name: "sysctl hw.vmm.create".into(), errno: 0 });
    let allocate = |trace: &mut Builder, cause: Seq, task: &str, vcpu: u16| {
        trace.emit_caused(cause, task, Some(vcpu), Event::VcpuAllocated);
    };
    if with_vm {
        (0..16).for_each(|vcpu| allocate(&mut trace, create, "bhyve", vcpu));
    }
    for capability in ["HALT_EXIT=1", "ENABLE_INVPCID=1"] {
        let set = trace.emit("bhyve", Some(0), ioctl("VM_SET_CAPABILITY", capability, 0));
        if !with_vm && capability.starts_with("HALT") {
            allocate(&mut trace, set, "bhyve", 0);
        }
    }
    let activate = trace.emit("bhyve", Some(0), ioctl("VM_ACTIVATE_CPU", "", 0));
    trace.emit_caused(activate, "bhyve", Some(0), Event::VcpuActivated);
    let bsp = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
    trace.emit_caused(bsp, "vcpu 0", Some(0), Event::FirstInstruction { cs: 0xf000, ip: 0xfff0 });
    let report =
        |trace: &mut Builder, vcpu: u16, report| trace.emit(&format!("vcpu {vcpu}"), Some(vcpu), Event::Report(report));
    report(&mut trace, 0, GuestReport::Boot { x2apic: false });
    report(&mut trace, 0, GuestReport::CpusFound { cpus: 2, mp_table: false });

    let one = CpuSet::single(1);
    let resolve = |trace: &mut Builder, mode, vector| {
        let write = trace.emit("vcpu 0", Some(0), icr(mode, vector));
        let (rule, among, targets) = if kernel == "main-7c326ab5" {
            (DestinationRule::CalcdestActive, CpuSet::single(0), CpuSet::EMPTY)
        } else {
            (DestinationRule::RawDest, one, one)
        };
        trace.emit_caused(write, "vcpu 0", Some(0), Event::DestinationResolved { mode, rule, among, targets })
    };
    let store = if with_vm { StartupStore::BootState } else { StartupStore::StartupCpus };
    let init = resolve(&mut trace, Init, 0);
    match kernel.as_str() {
        "main-7c326ab5" => {
            let why = DropReason::NoDestination;
            trace.emit_caused(init, "vcpu 0", Some(0), Event::IpiDropped { mode: Init, vector: 0, why });
            for _ in 0..2 {
                let startup = resolve(&mut trace, Startup, 8);
                trace.emit_caused(startup, "vcpu 0", Some(0), Event::IpiDropped { mode: Startup, vector: 8, why });
            }
            report(&mut trace, 0, GuestReport::ApMissing { apic_id: 1 });
            report(&mut trace, 0, GuestReport::GaveUp { aps: 0 });
        }
        "naive-widen" => {
            let begun = trace.emit_caused(init, "vcpu 0", Some(0), Event::RendezvousBegun { targets: one });
            let message = "page fault while in kernel mode: vCPU 1 is not allocated".to_owned();
            let panic = trace.emit_caused(begun, "vcpu 0", Some(1), Event::Panic { message: message.clone() });
            trace.emit_caused(panic, "vcpu 0", None, Event::Outcome { kind: "panic".into(), detail: message });
            return stored(cell, trace.finish());
        }
        _ => {
            trace.emit_caused(init, "vcpu 0", Some(0), Event::StartupState { targets: one, waiting: true, store });
            let startup = resolve(&mut trace, Startup, 8);
            let state = Event::StartupState { targets: one, waiting: false, store };
            let started = trace.emit_caused(startup, "vcpu 0", Some(0), state);
            let exit = Event::Exit { code: 10, name: "SPINUP_AP".into(), payload: "vcpu 1 rip 0x8000".into() };
            let exit = trace.emit_caused(started, "vcpu 0", Some(0), exit);
            let mut cause = exit;
            for register in ["RFLAGS", "RIP", "CR0", "CR3", "CR4", "CS", "SS", "DS"] {
                cause = trace.emit_caused(exit, "vcpu 0", Some(1), ioctl("VM_SET_REGISTER", register, 0));
                if !with_vm && register == "RFLAGS" {
                    allocate(&mut trace, cause, "vcpu 0", 1);
                }
            }
            cause = trace.emit_caused(cause, "vcpu 0", Some(1), ioctl("VM_ACTIVATE_CPU", "", 0));
            let spawned = trace.emit_caused(cause, "vcpu 0", None, Event::TaskSpawned { name: "vcpu 1".into() });
            trace.emit_caused(spawned, "vcpu 1", Some(1), Event::FirstInstruction { cs: 0x800, ip: 0 });
            let startup = resolve(&mut trace, Startup, 8);
            let why = DropReason::NotWaitingForSipi;
            trace.emit_caused(startup, "vcpu 0", Some(0), Event::IpiDropped { mode: Startup, vector: 8, why });
            report(&mut trace, 1, GuestReport::ApOnline { apic_id: 1 });
            report(&mut trace, 0, GuestReport::TestPassed { test: 1, apic_id: None });
            report(&mut trace, 0, GuestReport::Done { aps: 1 });
        }
    }
    let off = trace.emit("vcpu 0", Some(0), ioctl("VM_SUSPEND", "poweroff", 0));
    trace.emit_caused(off, "vcpu 0", None, Event::VmSuspended { how: "poweroff".into() });
    trace.emit("vcpu 0", None, Event::ProcessExit { status: 1 });
    let (kind, detail) = match kernel.as_str() {
        "main-7c326ab5" => ("hang", "the guest gave up waiting: the AP never came up"),
        _ => ("ok", "the AP came up, and every test passed"),
    };
    trace.emit("vcpu 0", None, Event::Outcome { kind: kind.into(), detail: detail.into() });
    stored(cell, trace.finish())
}

/// What an eager bhyve does until the kernel refuses IPI_EXIT, or does not.
fn eager(kernel: &str) -> StoredTrace {
    let mut trace = Builder::new();
    trace.emit("bhyve", None, Event::Syscall { name: "sysctl hw.vmm.create".into(), errno: 0 });
    let known = kernel != "fbsd-13.1";
    let set = trace.emit("bhyve", Some(0), ioctl("VM_SET_CAPABILITY", "IPI_EXIT=1", if known { 0 } else { 22 }));
    let kind = if known {
        let spawned = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
        trace.emit_caused(spawned, "vcpu 0", Some(0), Event::FirstInstruction { cs: 0xf000, ip: 0xfff0 });
        "ok"
    } else {
        trace.emit_caused(set, "bhyve", None, Event::Abort { message: "Assertion failed: (error == 0)".into() });
        "abort"
    };
    trace.emit("bhyve", None, Event::Outcome { kind: kind.into(), detail: "…".into() });
    stored(&format!("bhyve-13.2@{kernel}/mp-spec/xapic-2/soft"), trace.finish())
}

#[test]
fn the_report_of_february_2023() {
    let (good, bad) = (lazy(LAZY_131), lazy(LAZY_BROKEN));
    let diff = Diff::new(&good, &bad);
    assert_eq!(
        diff.sentence(),
        "INIT from vCPU 0: fbsd-13.1 used the raw destination {1}; main-7c326ab5 resolved it among active vCPUs {0} and got {}"
    );
    insta::assert_snapshot!(plain(&diff, Amount::Summary));
}

#[test]
fn the_panic_of_naive_widen_begins_with_the_rendezvous() {
    let (bad, good) = (lazy(LAZY_NAIVE), lazy(LAZY_132));
    let diff = Diff::new(&bad, &good);
    insta::assert_snapshot!(plain(&diff, Amount::Summary));
    insta::assert_snapshot!(Diff::new(&good, &bad).sentence());
}

#[test]
fn mechanisms_that_lead_nowhere_are_no_divergence() {
    let (old, new) = (lazy(LAZY_131), lazy(LAZY_132));
    let diff = Diff::new(&old, &new);
    assert_eq!(diff.first(), None);
    assert!(!diff.is_empty());
    insta::assert_snapshot!(plain(&diff, Amount::Summary));
}

/// Two start-ups that are handled in the kernel until SPINUP_AP, or by the exits of IPI_EXIT after a longer set-up.
fn start_up(frontend: &str) -> StoredTrace {
    let ipi_exit = frontend == "bhyve-13.2";
    let mut trace = Builder::new();
    for i in 0..if ipi_exit { 9 } else { 1 } {
        trace.emit("bhyve", Some(0), ioctl("VM_SET_REGISTER", &format!("r{i}"), 0));
    }
    let spawned = trace.emit("bhyve", None, Event::TaskSpawned { name: "vcpu 0".into() });
    trace.emit_caused(spawned, "vcpu 0", Some(0), Event::FirstInstruction { cs: 0xf000, ip: 0xfff0 });
    for (mode, vector) in [(DeliveryMode::Init, 0), (DeliveryMode::Startup, 8)] {
        let write = trace.emit("vcpu 0", Some(0), icr(mode, vector));
        let exit = match mode {
            _ if ipi_exit => Some((24, "IPI")),
            DeliveryMode::Startup => Some((10, "SPINUP_AP")),
            _ => None,
        };
        if let Some((code, name)) = exit {
            let payload = format!("mode={mode}");
            trace.emit_caused(write, "vcpu 0", Some(0), Event::Exit { code, name: name.into(), payload });
        }
    }
    stored(&format!("{frontend}@fbsd-13.2/mp-spec/xapic-2/soft"), trace.finish())
}

#[test]
fn a_divergence_that_one_side_alone_shows_comes_before_what_follows_it_on_both() {
    let (lazy, eager) = (start_up("bhyve-13.1"), start_up("bhyve-13.2"));
    let sentence = "INIT from vCPU 0: bhyve-13.2 returned IPI (mode=INIT) to userspace; \
                    bhyve-13.1 did not, and saw the ICR write 0x0: STARTUP vector 0x08 to 1 (xAPIC)";
    assert_eq!(Diff::new(&lazy, &eager).sentence(), sentence);
    assert!(Diff::new(&eager, &lazy).sentence().starts_with("INIT from vCPU 0: bhyve-13.2 returned IPI (mode=INIT)"));
}

#[test]
fn an_errno_is_an_answer() {
    let (bad, good) = (eager("fbsd-13.1"), eager("fbsd-13.2"));
    insta::assert_snapshot!(plain(&Diff::new(&bad, &good), Amount::Full));
}

#[test]
fn the_end_of_a_list_is_no_refusal() {
    let trace = |cell: &str, name: &str, detail: &str, errno: i32| {
        let mut trace = Builder::new();
        trace.emit("bhyve", Some(0), ioctl(name, detail, errno));
        stored(cell, trace.finish())
    };
    let lists = trace("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", "VM_MMAP_GETNEXT", "", 2);
    let refused = trace("bhyve-13.2@fbsd-13.1/mp-spec/xapic-2/soft", "VM_SET_CAPABILITY", "IPI_EXIT=1", 22);
    let sentence = "vCPU 0: bhyve-13.2 answered VM_SET_CAPABILITY IPI_EXIT=1 with EINVAL; bhyve-13.1 did not";
    assert_eq!(Diff::new(&lists, &refused).sentence(), sentence);
}

#[test]
fn sides_are_called_by_what_tells_them_apart() {
    let label = |left: &str, right: &str| {
        let (left, right) = (stored(left, Trace::default()), stored(right, Trace::default()));
        labels(&left, &right).join(" | ")
    };
    let base = "a@k/g/xapic-2/soft";
    let found = [
        "a@k2/g/xapic-2/soft",
        "b@k/g/xapic-2/soft",
        "b@k2/g/xapic-2/soft",
        "a@k/g/x2apic-2/soft",
        "a@k2/h/xapic-2/kvm",
        base,
    ]
    .map(|other| label(base, other));
    insta::assert_snapshot!(found.join("\n"));
}

#[test]
fn lanes_stand_in_the_order_of_their_numbers() {
    let mut lanes: Vec<Arc<str>> = ["cell", "vcpu 10", "vcpu 2", "bhyve"].map(Arc::from).to_vec();
    lanes.sort_by_key(LaneOrder::of);
    assert_eq!(lanes.iter().map(|lane| &**lane).collect::<Vec<_>>(), ["bhyve", "vcpu 2", "vcpu 10", "cell"]);
}

/// Two traces: mostly the same, with a stretch of their own.
fn any_pair() -> impl Strategy<Value = (StoredTrace, StoredTrace)> {
    let whole = prop::sample::select(vec![LAZY_131, LAZY_BROKEN, LAZY_NAIVE, LAZY_132]);
    prop_oneof![
        (any_trace(), any_trace()).prop_map(|(a, b)| (stored(LAZY_131, a), stored(LAZY_BROKEN, b))),
        (whole.clone(), whole).prop_map(|(a, b)| (lazy(a), lazy(b))),
    ]
}

fn without(trace: &Trace, dropped: usize) -> Trace {
    let mut trace = trace.clone();
    let cause = trace.records[dropped].cause;
    trace.records.remove(dropped);
    for (i, record) in trace.records.iter_mut().enumerate() {
        record.seq = i as u64;
        record.cause = match record.cause {
            Some(seq) if seq == dropped as u64 => cause,
            Some(seq) if seq > dropped as u64 => Some(seq - 1),
            other => other,
        };
    }
    trace
}

proptest! {
    #[test]
    fn a_trace_does_not_differ_from_itself((trace, _) in any_pair()) {
        let diff = Diff::new(&trace, &trace);
        prop_assert!(diff.is_empty());
        prop_assert_eq!(diff.first(), None);
    }

    #[test]
    fn time_and_unrelated_order_do_not_count((left, right) in any_pair(), seed: u64) {
        let moved = stored(&right.cell.to_string(), shift_time(&reorder(&right.trace, seed), seed));
        prop_assert!(Diff::new(&right, &moved).is_empty());
        prop_assert_eq!(Diff::new(&left, &moved).sentence(), Diff::new(&left, &right).sentence());
        prop_assert_eq!(Diff::new(&left, &moved).show(Amount::Full), Diff::new(&left, &right).show(Amount::Full));
    }

    #[test]
    fn swapping_the_sides_swaps_the_divergence((left, right) in any_pair()) {
        let (there, back) = (Diff::new(&left, &right), Diff::new(&right, &left));
        prop_assert_eq!(there.differences(), back.differences());
        let swapped = back.first().map(|first| first.events).map(|[l, r]| [r, l]);
        prop_assert_eq!(there.first().map(|first| first.events), swapped);
    }

    #[test]
    fn a_dropped_event_is_found((trace, _) in any_pair(), at: prop::sample::Index) {
        let significant: Vec<usize> = canonical::significant(&trace.trace).iter().enumerate().filter(|(_, keep)| **keep).map(|(i, _)| i).collect();
        prop_assume!(!significant.is_empty());
        let dropped = stored(LAZY_BROKEN, without(&trace.trace, *at.get(&significant)));
        prop_assert!(!Diff::new(&trace, &dropped).is_empty());
    }
}
