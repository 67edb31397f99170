//! Frontends on real kernels, with the guest that starts its APs as the MP specification says: what an option or a personality
//! changes there.

mod cell;

use cell::{Cell, Machine};
use frontends::{ApicMode, Frontend};
use guests::Guest;
use vmm::history::KernelVersion;
use vmm::trace::{Event, GuestReport};

/// Virtual time that a cell may take: more than any guest waits.
const LIMIT_NS: u64 = 30_000_000_000;

fn run(frontend: &str, kernel: &str, cpus: u16) -> Cell {
    run_in(frontend, kernel, ApicMode::Xapic, cpus)
}

fn run_in(frontend: &str, kernel: &str, apic: ApicMode, cpus: u16) -> Cell {
    Machine { frontend, kernel, apic, cpus, limit_ns: LIMIT_NS }.run(Guest::MpSpec.rom())
}

#[track_caller]
fn assert_outcomes(expected: &[(&str, &str, &str)]) {
    for (frontend, kernel, outcome) in expected {
        let cell = run(frontend, kernel, 2);
        assert_eq!(cell.outcome(), *outcome, "{frontend}@{kernel}\n{}", cell.stderr);
    }
}

/// Every frontend on every kernel, in both APIC modes with two vCPUs. Each line was understood before it was kept.
#[test]
fn every_pairing() {
    let mut lines = Vec::new();
    for frontend in Frontend::all() {
        for kernel in KernelVersion::all() {
            let of = |apic| run_in(frontend.name(), &kernel.name, apic, 2).outcome();
            let (xapic, x2apic) = (of(ApicMode::Xapic), of(ApicMode::X2apic));
            let outcome = if xapic == x2apic { xapic } else { format!("{xapic}; x2APIC {x2apic}") };
            lines.push(format!("{}@{}: {outcome}", frontend.name(), kernel.name));
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

/// Options, each on the kernels where it matters.
#[test]
fn options_on_kernels() {
    let mut lines = Vec::new();
    for frontend in Frontend::all() {
        for option in frontend.offered() {
            for kernel in KernelVersion::all() {
                let name = format!("{}+{option}", frontend.name());
                let (with, without) = (run(&name, &kernel.name, 2), run(frontend.name(), &kernel.name, 2));
                if with.outcome() != without.outcome() {
                    let (with, without) = (with.outcome(), without.outcome());
                    lines.push(format!("{name}@{}: {with} instead of {without}", kernel.name));
                }
            }
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn eager_without_ipi_exit_shows_the_off_by_one() {
    let assertion = "abort: Assertion failed: (newcpu < guest_ncpus), function spinup_ap, file spinup_ap.c.";
    assert_outcomes(&[
        ("bhyve-9cc9abf4", "fbsd-13.1", "ok"),
        ("bhyve-9cc9abf4", "main-0bda8d3e", "ok"),
        ("bhyve-9cc9abf4", "main-7c326ab5", assertion),
        ("bhyve-9cc9abf4", "naive-widen", assertion),
        ("bhyve-9cc9abf4", "fbsd-13.2", "ok"),
    ]);
}

#[test]
fn lazy_with_ipi_exit_hangs_wherever_the_kernel_has_it() {
    assert_outcomes(&[
        ("lazy-ipi-exit", "fbsd-13.1", "ok"),
        ("lazy-ipi-exit", "main-769b884e", "0 APs"),
        ("lazy-ipi-exit", "main-7c326ab5", "0 APs"),
        ("lazy-ipi-exit", "fbsd-13.2", "0 APs"),
    ]);
}

#[test]
fn a_monitor_turns_the_page_fault_into_the_off_by_one() {
    let assertion = "abort: Assertion failed: (newcpu < guest_ncpus), function spinup_ap, file spinup_ap.c.";
    assert_outcomes(&[
        ("bhyve-13.1", "naive-widen", "panic"),
        ("bhyve-13.1+monitor", "naive-widen", assertion),
        ("bhyve-13.1+monitor", "fbsd-13.1", "ok"),
        ("bhyve-13.1+monitor", "fbsd-13.2", "ok"),
        ("bhyve-13.2+monitor", "fbsd-13.2", "ok"),
    ]);
}

#[test]
fn a_debugger_that_lets_go_starts_aps_at_the_reset_vector() {
    let started_at = |frontend: &str, kernel: &str| {
        let cell = run(frontend, kernel, 2);
        cell.trace.records.into_iter().find_map(|record| match record.event {
            Event::FirstInstruction { cs, ip } if record.vcpu == Some(1) => Some((cs, ip)),
            _ => None,
        })
    };
    assert_eq!(started_at("bhyve-13.2", "fbsd-13.2"), Some((0x800, 0)));
    assert_eq!(started_at("bhyve-13.2+gdb", "fbsd-13.2"), Some((0xf000, 0xfff0)), "before its STARTUP");
    assert_eq!(started_at("bhyve-13.1+gdb", "fbsd-13.1"), Some((0x800, 0)), "lazy: there is nobody to let go");
    assert_eq!(run("bhyve-13.1+gdb", "fbsd-13.1", 2).outcome(), "ok");
}

/// The new process has a new VM, and the guest goes on in it: nobody boots again.
#[test]
fn a_checkpoint_is_restored_into_a_new_vm() {
    for (frontend, kernel, make) in [
        ("bhyve-13.1", "fbsd-13.1", "sysctl hw.vmm.create"),
        ("bhyve-13.2", "main-c0f35dbf", "sysctl hw.vmm.create"),
        ("bhyve-14", "fbsd-14", "sysctl hw.vmm.create"),
        ("bhyve-15", "fbsd-15", "VMMCTL_VM_CREATE"),
    ] {
        let cell = run(&format!("{frontend}+restore"), kernel, 4);
        assert_eq!((&*cell.outcome(), &*cell.stderr), ("ok", ""), "{frontend}@{kernel}");
        let count =
            |wanted: &dyn Fn(&Event) -> bool| cell.trace.records.iter().filter(|record| wanted(&record.event)).count();
        let made = |event: &Event| match event {
            Event::Syscall { name, errno } | Event::Ioctl { name, errno, .. } => name == make && *errno == 0,
            _ => false,
        };
        assert_eq!(count(&made), 2, "{frontend}@{kernel}");
        let booted = |event: &Event| matches!(event, Event::Report(GuestReport::Boot { .. }));
        let online = |event: &Event| matches!(event, Event::Report(GuestReport::ApOnline { .. }));
        assert_eq!((count(&booted), count(&online)), (1, 3), "{frontend}@{kernel}");
        let of_image = |event: &Event| matches!(event, Event::Ioctl { name, .. } if name == "VM_SNAPSHOT_REQ");
        assert_eq!(count(&of_image), 18, "nine structures, out and in");
    }
}

#[test]
fn one_device_more_changes_nothing_for_who_leaves_it_alone() {
    assert_outcomes(&[("bhyve-13.1+passthru", "fbsd-13.1", "ok"), ("bhyve-13.2+passthru", "fbsd-13.2", "ok")]);
}

#[test]
fn many_aps_on_the_kernel_of_the_same_time() {
    for (frontend, kernel, cpus) in [
        ("bhyve-10.0", "fbsd-10.0", 16),
        ("bhyve-13.1", "fbsd-13.1", 16),
        ("bhyve-9cc9abf4", "fbsd-13.1", 16),
        ("bhyve-0bda8d3e", "main-0bda8d3e", 16),
        ("bhyve-13.2", "fbsd-13.2", 32),
        ("bhyve-14", "fbsd-14", 64),
        ("bhyve-15", "fbsd-15", 64),
        ("illumos-bhyve", "illumos", 32),
        ("propolis", "illumos", 32),
        ("qemu-bhyve", "fbsd-15", 2),
    ] {
        for apic in ApicMode::ALL {
            let cell = run_in(frontend, kernel, apic, cpus);
            assert_eq!((&*cell.outcome(), cell.aps_online()), ("ok", usize::from(cpus) - 1), "{frontend} {apic}");
        }
    }
}

#[test]
fn without_its_compat_option_a_kernel_does_not_know_an_older_number() {
    assert_outcomes(&[
        ("bhyve-13.2", "fbsd-14-compat13", "exit 1: vm_run error -1, errno 25"),
        ("bhyve-10.0", "fbsd-13.1-compat12", "exit 4: Unable to setup memory (25)"),
        ("bhyve-14", "fbsd-15-compat14", "exit 4: Unable to setup memory (25)"),
    ]);
}

#[test]
fn more_vcpus_than_an_older_cpuset_can_hold() {
    let assertion = "abort: Assertion failed: (CPU_ISSET(vcpu, &active_cpus)), function vm_loop, file bhyverun.c.";
    assert_eq!(run("bhyve-13.2", "fbsd-14", 300).outcome(), assertion, "VM_GET_CPUS says ERANGE");
    for (frontend, kernel) in [("bhyve-14", "fbsd-14"), ("bhyve-15", "fbsd-15")] {
        let cell = run_in(frontend, kernel, ApicMode::X2apic, 1000);
        let threads = cell.trace.records.iter().filter(|record| matches!(record.event, Event::VcpuActivated)).count();
        assert_eq!((threads, &*cell.stderr), (1000, ""), "{frontend}");
        let found = cell.trace.records.iter().find_map(|record| match record.event {
            Event::Report(GuestReport::CpusFound { cpus, .. }) => Some(cpus),
            _ => None,
        });
        assert!(found.is_none_or(|cpus| cpus == 1000), "{frontend}: {found:?}");
    }
}

#[test]
fn an_older_kernel_refuses_newer_userspace() {
    assert_outcomes(&[
        ("bhyve-15", "fbsd-13.2", "exit 4: bhyve: vm_openf: No such file or directory"),
        ("illumos-bhyve", "fbsd-13.2", "exit 4: vm_create: No such file or directory"),
        ("propolis", "fbsd-13.2", "exit 1: propolis: VMM_INTERFACE_VERSION: No such file or directory"),
    ]);
}

/// With COMPAT_FREEBSD13 the mask of an IPI has 256 bits: the INIT for vCPU 256 reaches older userspace as one for nobody.
#[test]
fn vcpus_from_256_on_vanish_from_the_mask_that_older_userspace_sees() {
    let told = |frontend| {
        let cell = run_in(frontend, "fbsd-14", ApicMode::X2apic, 258);
        cell.trace.records.iter().any(|record| {
            matches!(&record.event, Event::Exit { name, payload, .. }
                if name == "IPI" && payload.contains("dmask={} without {256}"))
        })
    };
    assert!(told("bhyve-13.2+ndebug"));
    assert!(!told("bhyve-14"));
}
