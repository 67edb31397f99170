//! Machines whose guest reads and writes everything at random (`random-io`): nothing of ours falls over, hangs, or grows.
//!
//! `SPINUP_ABUSE_OPERATIONS=10000000` makes the long test as long as it is meant to be now and then; without it, it is short.

mod cell;

use cell::{Cell, Machine};
use frontends::{ApicMode, Frontend};
use guests::random_io::RandomIo;
use std::time::Instant;
use vmm::history::KernelVersion;
use vmm::host::End;

/// Virtual time that an access may take, in nanoseconds: a rendezvous of vCPUs, or the emulation of an instruction.
const ACCESS_NS: u64 = 100_000;
/// Virtual time until the guest's CPUs are up.
const START_NS: u64 = 2_000_000_000;

fn machine<'a>(frontend: &'a str, kernel: &'a str, apic: ApicMode, random_io: RandomIo) -> Machine<'a> {
    let limit_ns = START_NS + u64::from(random_io.accesses) * ACCESS_NS;
    Machine { frontend, kernel, apic, cpus: 2, limit_ns }
}

fn run(frontend: &str, kernel: &str, apic: ApicMode, random_io: RandomIo) -> Cell {
    machine(frontend, kernel, apic, random_io).run(&random_io.rom())
}

/// Where both CPUs come up, all accesses are made, and the guest can still power off.
#[test]
fn every_pairing_survives_random_accesses() {
    let mut survived = 0;
    for frontend in Frontend::all() {
        for (seed, kernel) in (0..).zip(KernelVersion::all()) {
            for apic in ApicMode::ALL {
                let random_io = RandomIo { seed, accesses: 600, wild: false };
                let cell = run(frontend.name(), &kernel.name, apic, random_io);
                let name = format!("{}@{}/{}/{apic}", frontend.name(), kernel.name, random_io.guest());
                assert!(!matches!(cell.end, End::HarnessError(_)), "{name}: {:?}", cell.end);
                if cell.aps_online() == 1 {
                    assert!(cell.done(), "{name}: {:?}, {:?}", cell.end, cell.stderr.lines().last());
                    survived += 1;
                }
            }
        }
    }
    assert!(survived >= 50, "the guest came up on {survived} only");
}

/// Whatever ends the machine, it is the machine that ends.
#[test]
fn nothing_of_ours_falls_over_when_nothing_is_spared() {
    let pairings = [
        ("bhyve-10.0", "fbsd-13.1"),
        ("bhyve-13.1", "fbsd-13.1"),
        ("bhyve-13.2", "fbsd-13.2"),
        ("bhyve-13.2+passthru", "fbsd-13.2"),
        ("bhyve-14", "fbsd-14"),
        ("bhyve-15", "fbsd-15"),
        ("illumos-bhyve", "illumos"),
        ("propolis", "illumos"),
        ("qemu-bhyve", "fbsd-15"),
    ];
    for (frontend, kernel) in pairings {
        for seed in 0..40 {
            let random_io = RandomIo { seed, accesses: 2_000, wild: true };
            let cell = run(frontend, kernel, ApicMode::ALL[seed as usize % 2], random_io);
            let name = format!("{frontend}@{kernel}/{}", random_io.guest());
            assert!(!matches!(cell.end, End::HarnessError(_)), "{name}: {:?}", cell.end);
        }
    }
}

/// The long test: so many accesses take no more than their time, what they leave behind does not grow with their number, and the
/// guest's last word finds room in it.
#[test]
fn many_accesses_take_bounded_time_and_memory() {
    let accesses = std::env::var("SPINUP_ABUSE_OPERATIONS").map_or(100_000, |all| all.parse().expect("a number"));
    for apic in ApicMode::ALL {
        let start = Instant::now();
        let cell = run("bhyve-13.2", "fbsd-13.2", apic, RandomIo { seed: 1, accesses, wild: false });
        let took = start.elapsed();
        println!(
            "{apic}: {accesses} accesses in {took:.1?}, {} events kept, {} dropped",
            cell.trace.records.len(),
            cell.trace.dropped
        );
        assert!(cell.done(), "{apic}: {:?}, {:?}", cell.end, cell.stderr.lines().last());
        assert_eq!(cell.end, End::Exit(1), "{apic}");
        assert!(cell.trace.records.len() <= 400_000, "{apic}");
    }
}
