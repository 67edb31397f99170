//! What becomes of every scenario guest on the two releases' own pairings, and that the guests say the same at every schedule.

use frontends::ApicMode;
use guests::Guest;
use spinup::cell::{Cell, EngineKind};
use spinup::matrix::Matrix;
use spinup::run::{Engines, Setup, run_cell};
use spinup::trace::describe;
use std::fmt::Write;
use vmm::trace::{Event, GuestReport, Trace};

/// The guests that start APs as an operating system does, do what they are told, or misbehave; all others are scenarios.
const NO_SCENARIOS: [Guest; 9] = [
    Guest::MpSpec,
    Guest::Linux,
    Guest::LinuxParallel,
    Guest::Program,
    Guest::Ending,
    Guest::RandomIo,
    Guest::TripleFault,
    Guest::SpinForever,
    Guest::JumpIntoMmio,
];

fn scenarios() -> impl Iterator<Item = Guest> {
    Guest::ALL.into_iter().filter(|guest| !NO_SCENARIOS.contains(guest))
}

fn cell(release: &str, guest: Guest, apic: ApicMode, cpus: u16) -> Cell {
    Cell {
        frontend: format!("bhyve-{release}"),
        kernel: format!("fbsd-{release}"),
        guest: guest.name().into(),
        apic,
        cpus,
        engine: EngineKind::Soft,
    }
}

fn setup(seed: u64) -> Setup {
    let matrix = Matrix::built_in().expect("a unit test keeps the built-in matrix right");
    Setup { matrix, engines: Engines::new(), seed, timeout: None }
}

/// What a vCPU reported, in order.
fn reports(trace: &Trace, vcpu: u16) -> Vec<&Event> {
    let of_vcpu = trace.records.iter().filter(|record| record.vcpu == Some(vcpu));
    of_vcpu.map(|record| &record.event).filter(|event| matches!(event, Event::Report(_))).collect()
}

/// Every scenario on a pairing: outcome, detail, and what the guest saw where the architecture leaves a choice.
fn outcomes(release: &str) -> String {
    let setup = setup(0);
    let mut text = String::new();
    for guest in scenarios() {
        for apic in ApicMode::ALL {
            for cpus in [2, 3, 4] {
                let run = run_cell(&setup, &cell(release, guest, apic, cpus));
                let outcome = run.result.outcome;
                let machine = format!("{guest}/{apic}-{cpus}");
                writeln!(text, "{machine:<28} {} - {}", outcome.kind, outcome.detail).expect("room");
                for event in reports(&run.trace.expect("it ran").trace, 0) {
                    if matches!(event, Event::Report(GuestReport::Seen { .. })) {
                        writeln!(text, "{:<28}   {}", "", describe(event)).expect("room");
                    }
                }
            }
        }
    }
    text
}

#[test]
fn every_scenario_on_13_1() {
    insta::assert_snapshot!(outcomes("13.1"));
}

#[test]
fn every_scenario_on_13_2() {
    insta::assert_snapshot!(outcomes("13.2"));
}

#[test]
fn a_guest_says_the_same_at_every_schedule() {
    for release in ["13.1", "13.2"] {
        for guest in scenarios() {
            let cell = cell(release, guest, ApicMode::Xapic, 3);
            let said = |seed| {
                let trace = run_cell(&setup(seed), &cell).trace.expect("it ran").trace;
                [0, 1, 2].map(|vcpu| reports(&trace, vcpu).into_iter().map(describe).collect::<Vec<_>>())
            };
            let first = said(0);
            assert!(first[0].len() >= 3, "{cell}: {first:?}");
            for seed in [1, 2, 77] {
                assert_eq!(said(seed), first, "{cell} with seed {seed}");
            }
        }
    }
}
