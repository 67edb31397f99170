//! How machines end: power-off, reset, triple fault, halt, each with the frontend's own status, under every frontend.

mod cell;

use cell::{Cell, Machine};
use frontends::{ApicMode, Frontend};
use guests::ending::Way;
use vmm::host::End;
use vmm::trace::Event;

/// Virtual time that a machine may take to end.
const LIMIT_NS: u64 = 2_000_000_000;

/// Every frontend, with a kernel on which its APs come up.
const PAIRINGS: [(&str, &str); 11] = [
    ("bhyve-10.0", "fbsd-10.0"),
    ("bhyve-13.1", "fbsd-13.1"),
    ("bhyve-9cc9abf4", "fbsd-13.2"),
    ("bhyve-0bda8d3e", "fbsd-13.2"),
    ("bhyve-13.2", "fbsd-13.2"),
    ("bhyve-14", "fbsd-14"),
    ("bhyve-15", "fbsd-15"),
    ("illumos-bhyve", "illumos"),
    ("propolis", "illumos"),
    ("qemu-bhyve", "fbsd-15"),
    ("lazy-ipi-exit", "fbsd-13.1"),
];

fn run(frontend: &str, kernel: &str, way: Way) -> Cell {
    run_for(LIMIT_NS, frontend, kernel, way)
}

fn run_for(limit_ns: u64, frontend: &str, kernel: &str, way: Way) -> Cell {
    let machine = Machine { frontend, kernel, apic: ApicMode::Xapic, cpus: 2, limit_ns };
    let cell = machine.run(&way.rom());
    assert_eq!(cell.aps_online(), 1, "{frontend}@{kernel}/{}: {:?}", way.guest(), cell.end);
    cell
}

#[test]
fn every_frontend_is_here() {
    assert!(Frontend::all().map(|frontend| frontend.name()).eq(PAIRINGS.map(|(frontend, _)| frontend)));
}

/// bhyve(8), EXIT STATUS: 0 rebooted, 1 powered off, 2 halted, 3 triple fault.
#[test]
fn bhyve_has_a_status_for_each_way_to_end() {
    for (frontend, kernel) in
        PAIRINGS.into_iter().filter(|(frontend, _)| !["propolis", "qemu-bhyve"].contains(frontend))
    {
        for way in Way::ALL {
            let status = match way {
                Way::Cf9 | Way::I8042 => 0,
                Way::Off => 1,
                Way::Halt => 2,
                Way::TripleFault => 3,
            };
            let cell = run(frontend, kernel, way);
            assert_eq!(cell.end, End::Exit(status), "{frontend}@{kernel}/{}\n{}", way.guest(), cell.stderr);
            assert_eq!(cell.boots(), 1, "{frontend}@{kernel}/{}", way.guest());
        }
    }
}

/// propolis begins the VM anew after a reset and after a triple fault; a guest that ends so every time never comes to an end, and the
/// limit ends the machine.
#[test]
fn propolis_begins_anew_until_the_time_is_up() {
    /// Time for a guest that begins again after some hundred microseconds.
    const LIMIT_NS: u64 = 50_000_000;
    for way in [Way::Cf9, Way::I8042, Way::TripleFault] {
        let cell = run_for(LIMIT_NS, "propolis", "illumos", way);
        assert_eq!(cell.end, End::Deadline, "{}\n{}", way.guest(), cell.stderr);
        assert!(cell.boots() > 10, "{}: began {} times", way.guest(), cell.boots());
        assert!((LIMIT_NS..2 * LIMIT_NS).contains(&cell.now_ns), "{}: {} ns", way.guest(), cell.now_ns);
    }
    for way in [Way::Off, Way::Halt] {
        let cell = run("propolis", "illumos", way);
        assert_eq!((&cell.end, cell.boots()), (&End::Exit(0), 1), "{}\n{}", way.guest(), cell.stderr);
    }
}

/// QEMU ends with 0 after a power-off and, as it is started here, after a reset; what it does not know leaves its vCPUs where they are.
#[test]
fn qemu_ends_with_0_or_stands_still() {
    for way in Way::ALL {
        let cell = run("qemu-bhyve", "fbsd-15", way);
        match way {
            Way::Off | Way::Cf9 | Way::I8042 => assert_eq!(cell.end, End::Exit(0), "{}\n{}", way.guest(), cell.stderr),
            Way::TripleFault | Way::Halt => {
                assert!(matches!(cell.end, End::Deadlock | End::Deadline), "{}: {:?}", way.guest(), cell.end);
                let suspended = |event: &Event| matches!(event, Event::VmSuspended { .. });
                assert!(cell.trace.records.iter().any(|record| suspended(&record.event)), "{}", way.guest());
            }
        }
    }
}
