//! INIT and STARTUP on every kernel, against a lazy and an eager userspace in miniature.

use super::errno::cpus;
use super::scripted::{LAST_PORT, icr};
use super::*;
use crate::engine::Exit;
use crate::host::End;
use crate::trace::{DestinationRule, Event, Trace};
use std::sync::Mutex;

const INIT: u32 = 0xc500;
const INIT_DEASSERT: u32 = 0x8500;
const STARTUP: u32 = 0x608;

/// What VM_RUN of the BSP returned, in words, up to the guest's last port access.
fn run_bsp(vmm: &Vmmapi) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match vmm.run(0) {
            Err(errno) => {
                seen.push(format!("{errno:?}"));
                return seen;
            }
            Ok(exit) => match exit.exitcode {
                exitcode::INOUT => {
                    assert_eq!(exit.payload::<ExitInout>().port, LAST_PORT);
                    return seen;
                }
                exitcode::SPINUP_AP => {
                    let ExitSpinupAp { vcpu, rip, .. } = exit.payload();
                    seen.push(format!("SPINUP_AP {vcpu} {rip:#x}"));
                }
                exitcode::IPI => {
                    let ipi: ExitIpi = exit.payload();
                    seen.push(format!("IPI {:#x} {}", ipi.mode, ipi.dmask()));
                }
                other => seen.push(exitcode::name(other).to_owned()),
            },
        }
    }
}

struct Observed {
    exits: Vec<String>,
    end: End,
    trace: Trace,
}

/// A BSP that starts vCPU 1 of 2; `prepare` is the userspace.
fn start_one(version: &KernelVersion, x2apic: bool, prepare: fn(&Vmmapi)) -> Observed {
    let steps = [INIT, INIT_DEASSERT, STARTUP, STARTUP].map(|low| icr(x2apic, 1, low)).concat();
    observe(version, Scripted::new().vcpu(0, steps), x2apic, prepare)
}

fn observe(version: &KernelVersion, script: Scripted, x2apic: bool, prepare: fn(&Vmmapi)) -> Observed {
    let exits = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&exits);
    let finished = on_kernel(version, script, move |host, vmm| {
        if x2apic {
            vmm.set_x2apic(0).expect("vCPU 0");
        }
        vmm.start(0);
        prepare(vmm);
        if vmm.behaviour.activation == Activation::ByUserspace && cpus(vmm, 0, 32).expect("large enough").contains(&1) {
            // The AP's thread, which serves rendezvous while its vCPU is suspended.
            let ap = vmm.clone();
            host.spawn("vcpu 1", move || while ap.run(1).is_ok() {});
        }
        *inside.lock().expect("one thread") = run_bsp(vmm);
    });
    let exits = std::mem::take(&mut *exits.lock().expect("one thread"));
    Observed { exits, end: finished.end, trace: finished.trace }
}

/// bhyve 13.1: the AP is not even touched before SPINUP_AP.
fn lazy(_: &Vmmapi) {}

/// Activated, suspended; INIT and STARTUP left to the kernel.
fn eager(vmm: &Vmmapi) {
    vmm.activate(1).expect("vCPU 1");
    vmm.suspend_cpu(1).expect("vCPU 1");
}

/// As bhyve does from 0bda8d3e9f7a on.
fn eager_ipi_exit(vmm: &Vmmapi) {
    for vcpu in [0, 1] {
        vmm.set_capability(vcpu, cap::IPI_EXIT, 1).expect("the kernel has IPI_EXIT");
    }
    eager(vmm);
}

/// A lazy userspace that sets IPI_EXIT all the same.
fn lazy_ipi_exit(vmm: &Vmmapi) {
    vmm.set_capability(0, cap::IPI_EXIT, 1).expect("the kernel has IPI_EXIT");
}

/// Every kernel against a userspace; what the BSP's VM_RUN returned in xAPIC mode.
fn table(prepare: fn(&Vmmapi), expected: &[(&str, &[&str])]) {
    for (name, exits) in expected {
        let observed = start_one(&kernel(name), false, prepare);
        assert_eq!(observed.exits, *exits, "{name}");
        assert_eq!(observed.end, End::Exit(0), "{name}");
    }
}

#[test]
fn lazy_userspace_in_xapic_mode() {
    let starts: &[&str] = &["SPINUP_AP 1 0x8000"];
    table(
        lazy,
        &[
            ("fbsd-13.1", starts),
            ("main-0bda8d3e", &[]),
            ("main-769b884e", starts),
            ("main-c0f35dbf", starts),
            ("main-98568a00", starts),
            ("main-7c326ab5", &[]),
            ("fbsd-13.2", starts),
        ],
    );
}

#[test]
fn lazy_userspace_in_x2apic_mode_meets_the_mutex_in_the_critical_section() {
    for name in ["fbsd-13.1", "main-769b884e", "fbsd-13.2"] {
        let observed = start_one(&kernel(name), true, lazy);
        assert_eq!(observed.exits, ["SPINUP_AP 1 0x8000"], "{name}");
    }
    for name in ["main-c0f35dbf", "main-98568a00"] {
        let observed = start_one(&kernel(name), true, lazy);
        let End::Panic(message) = observed.end else { panic!("{name}: {:?}", observed.end) };
        assert!(message.contains("sleep lock"), "{message}");
        let without_invariants = KernelVersion::parse(&format!("{name}+nodebug")).expect("a kernel");
        let observed = start_one(&without_invariants, true, lazy);
        assert_eq!(observed.exits, ["SPINUP_AP 1 0x8000"], "{name} without INVARIANTS");
    }
}

#[test]
fn the_broken_window_resolves_the_init_among_active_vcpus() {
    for x2apic in [false, true] {
        let observed = start_one(&kernel("main-7c326ab5"), x2apic, lazy);
        assert_eq!((observed.exits.len(), observed.end), (0, End::Exit(0)), "no exit, no error");
        let resolved: Vec<_> = observed
            .trace
            .records
            .iter()
            .filter_map(|record| match record.event {
                Event::DestinationResolved { rule, among, targets, .. } => Some((rule, among, targets)),
                _ => None,
            })
            .collect();
        let nobody = (DestinationRule::CalcdestActive, CpuSet::single(0), CpuSet::EMPTY);
        assert_eq!(resolved, [nobody; 3], "INIT, STARTUP, STARTUP");
    }
}

#[test]
fn widening_the_mask_alone_faults_on_the_vcpu_that_is_not_allocated() {
    for x2apic in [false, true] {
        let observed = start_one(&kernel("naive-widen"), x2apic, lazy);
        let End::Panic(message) = observed.end else { panic!("{:?}", observed.end) };
        assert!(message.starts_with("page fault") && message.contains("vcpu 1 is not allocated"), "{message}");
    }
}

#[test]
fn widening_the_mask_alone_goes_well_with_a_vcpu_that_some_ioctl_touched() {
    fn touched(vmm: &Vmmapi) {
        vmm.set_capability(1, cap::HALT_EXIT, 1).expect("allocates vCPU 1");
    }
    let observed = start_one(&kernel("naive-widen"), false, touched);
    assert_eq!(observed.exits, ["SPINUP_AP 2 0x8000"], "and names the wrong one");
    assert_eq!(observed.end, End::Exit(0));
}

#[test]
fn eager_userspace_without_ipi_exit_sees_the_off_by_one() {
    let right: &[&str] = &["SPINUP_AP 1 0x8000"];
    table(
        eager,
        &[
            ("fbsd-13.1", right),
            ("main-0bda8d3e", right),
            ("main-769b884e", right),
            ("main-c0f35dbf", right),
            ("main-7c326ab5", &["SPINUP_AP 2 0x8000"]),
            ("naive-widen", &["SPINUP_AP 2 0x8000"]),
            ("fbsd-13.2", right),
        ],
    );
}

#[test]
fn eager_userspace_with_ipi_exit() {
    let told: &[&str] = &["IPI 0x500 {1}", "IPI 0x600 {1}"];
    for x2apic in [false, true] {
        for name in ["main-0bda8d3e", "main-769b884e", "main-7c326ab5", "naive-widen", "fbsd-13.2"] {
            let observed = start_one(&kernel(name), x2apic, eager_ipi_exit);
            assert_eq!(observed.exits, told, "{name}");
            assert_eq!(observed.end, End::Exit(0), "{name}");
        }
    }
}

#[test]
fn ipi_exit_and_lazy_activation_go_together_on_no_kernel() {
    for name in ["main-0bda8d3e", "main-769b884e", "main-c0f35dbf", "main-7c326ab5", "naive-widen", "fbsd-13.2"] {
        assert!(start_one(&kernel(name), false, lazy_ipi_exit).exits.is_empty(), "{name}");
    }
}

#[test]
fn an_ap_that_starts_another_is_an_error_until_the_first_fix() {
    fn three(vmm: &Vmmapi) {
        vmm.activate(1).expect("vCPU 1");
    }
    for x2apic in [false, true] {
        let steps = [INIT, STARTUP].map(|low| icr(x2apic, 2, low)).concat();
        for (name, expected) in [
            ("fbsd-13.1", None),
            ("main-769b884e", Some(exitcode::SPINUP_AP)),
            ("fbsd-13.2", Some(exitcode::SPINUP_AP)),
        ] {
            let script = Scripted::new().vcpu(1, steps.clone());
            let finished = on_kernel(&kernel(name), script, move |_, vmm| {
                three(vmm);
                if x2apic {
                    vmm.set_x2apic(1).expect("vCPU 1");
                }
                let error = if x2apic { Ok(exitcode::WRMSR) } else { Err(Errno::EPERM) };
                assert_eq!(vmm.run(1).map(|exit| exit.exitcode), expected.map_or(error, Ok), "{name}");
            });
            assert_eq!(finished.end, End::Exit(0), "{name}");
        }
    }
}

#[test]
fn broadcast_by_shorthand_is_an_error_on_13_1_and_ignored_later() {
    const ALL_BUT_SELF: u32 = 0xc_0000;
    for (name, expected) in [("fbsd-13.1", vec!["EPERM".to_owned()]), ("main-c0f35dbf", vec![]), ("fbsd-13.2", vec![])]
    {
        let script = Scripted::new().vcpu(0, icr(false, 0, INIT | ALL_BUT_SELF));
        assert_eq!(observe(&kernel(name), script, false, lazy).exits, expected, "{name}");
    }
    let script =
        Scripted::new().vcpu(0, icr(false, 0, INIT | ALL_BUT_SELF)).vcpu(0, icr(false, 0, STARTUP | ALL_BUT_SELF));
    let observed = observe(&kernel("fbsd-13.2"), script, false, eager_ipi_exit);
    assert_eq!(observed.exits, ["IPI 0x500 {1}", "IPI 0x600 {1}"]);
}

#[test]
fn a_second_init_of_a_running_ap_is_forgotten_by_boot_state_and_remembered_by_startup_cpus() {
    let steps = [INIT, STARTUP, INIT, STARTUP].map(|low| icr(false, 1, low)).concat();
    for (name, times) in [("fbsd-13.1", 1), ("main-c0f35dbf", 2), ("fbsd-13.2", 2)] {
        let observed = observe(&kernel(name), Scripted::new().vcpu(0, steps.clone()), false, lazy);
        assert_eq!(observed.exits, vec!["SPINUP_AP 1 0x8000"; times], "{name}");
    }
}

#[test]
fn an_init_without_level_assert_and_a_startup_without_init_do_nothing() {
    for version in KernelVersion::all().filter(|version| version.has("suspend-resume-cpu")) {
        for low in [INIT_DEASSERT, STARTUP] {
            let observed = observe(&version, Scripted::new().vcpu(0, icr(false, 1, low)), false, eager);
            assert!(observed.exits.is_empty(), "{} {low:#x}", version.name);
            assert_eq!(observed.end, End::Exit(0), "{}", version.name);
        }
    }
}

#[test]
fn an_init_waits_for_an_active_vcpu_whose_thread_is_not_in_vm_run() {
    let script = Scripted::new().vcpu(0, icr(false, 1, INIT));
    let finished = on_kernel(&kernel("fbsd-13.2"), script, |_, vmm| {
        vmm.activate(0).expect("vCPU 0");
        eager_ipi_exit(vmm);
        run_bsp(vmm);
    });
    assert_eq!(finished.end, End::Deadline, "the sender sleeps in one-second slices for ever");
}

#[test]
fn fixed_interrupts_reach_active_vcpus_whose_local_apic_is_enabled() {
    const FIXED: u32 = 0x4031;
    const SVR: u64 = 0xfee0_00f0;
    let enable = vec![crate::engine::Exit::MmioWrite { gpa: SVR, size: 4, data: 0x1ff }];
    let sent = [icr(false, 0, FIXED), icr(false, 1, FIXED), icr(false, 2, FIXED), icr(false, 0, 0x4003)];
    let script = Scripted::new().vcpu(0, enable).vcpu(0, sent.concat());
    let observed = observe(&kernel("fbsd-13.1"), script, false, eager);
    let words: Vec<_> = observed
        .trace
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::IpiDelivered { targets, .. } => Some(format!("delivered to {targets}")),
            Event::IpiDropped { why, .. } => Some(format!("{why:?}")),
            _ => None,
        })
        .collect();
    assert_eq!(words, ["delivered to {0}", "SoftwareDisabled", "NoDestination", "IllegalVector"]);
}

#[test]
fn causes_lead_from_the_icr_write_to_the_first_instruction() {
    let steps = [INIT, STARTUP].map(|low| icr(false, 1, low)).concat();
    let finished = on_kernel(&kernel("fbsd-13.2"), Scripted::new().vcpu(0, steps), |_, vmm| {
        vmm.activate(0).expect("vCPU 0");
        vmm.run(0).expect("SPINUP_AP");
        vmm.activate(1).expect("vCPU 1");
        vmm.run(1).expect("the last port");
    });
    let records = &finished.trace.records;
    let first = records
        .iter()
        .find(|record| record.vcpu == Some(1) && matches!(record.event, Event::FirstInstruction { .. }))
        .expect("vCPU 1 ran");
    let mut chain = Vec::new();
    let mut cause = first.cause;
    while let Some(seq) = cause {
        let record = &records[seq as usize];
        chain.push(match &record.event {
            Event::Ioctl { name, .. } | Event::Exit { name, .. } => name.clone(),
            Event::IcrWrite { mode, .. } => format!("ICR {mode}"),
            other => serde_json::to_value(other).expect("serializes")["event"].as_str().expect("tagged").to_owned(),
        });
        cause = record.cause;
    }
    let chain: Vec<&str> = chain.iter().map(String::as_str).take(5).collect();
    assert_eq!(chain, ["vcpu-activated", "SPINUP_AP", "startup-state", "destination-resolved", "ICR STARTUP"]);
}

/// `boot_state` stands in the target's local APIC, which a kernel with lazy allocation may not have made yet.
#[test]
fn boot_state_of_a_vcpu_that_is_not_allocated_is_a_page_fault() {
    let none: [&str; 0] = [];
    for base in ["fbsd-13.1", "main-769b884e"] {
        let lazily = kernel(base).what_if("what-if", "", &["lazy-vcpus"], &none).expect("it needs nothing");
        for x2apic in [false, true] {
            let observed = start_one(&lazily, x2apic, lazy);
            let End::Panic(message) = observed.end else { panic!("{base}: {:?}", observed.end) };
            assert!(message.starts_with("page fault") && message.contains("vcpu 1 is not allocated"), "{message}");
            assert_eq!(start_one(&lazily, x2apic, eager).exits, ["SPINUP_AP 1 0x8000"], "{base}");
        }
    }
}

#[test]
fn a_guest_that_moves_its_local_apic_is_userspaces() {
    const MSR_APIC_BASE: u32 = 0x1b;
    for version in KernelVersion::all() {
        let writes = [0xfee0_0900, 0xfee0_0d00].map(|value| Exit::WrMsr { index: MSR_APIC_BASE, value });
        let finished = on_kernel(&version, Scripted::new().vcpu(0, writes), |_, vmm| {
            vmm.start(0);
            let exit = vmm.run(0).expect("WRMSR");
            let ExitMsr { code, wval, .. } = exit.payload();
            assert_eq!((exit.exitcode, code, wval), (exitcode::WRMSR, MSR_APIC_BASE, 0xfee0_0d00));
        });
        assert_eq!(finished.end, End::Exit(0), "{}", version.name);
    }
}
