//! A process that runs machines one after another does not grow. The only test of its file, so that nothing else does meanwhile.

#![cfg(target_os = "linux")]

mod cell;

use cell::Machine;
use frontends::ApicMode;
use guests::random_io::RandomIo;

/// Resident memory of this process, in bytes (proc(5)).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("resident pages");
    const PAGE: u64 = 4096;
    pages * PAGE
}

#[test]
fn machines_leave_no_memory_behind() {
    const ROUNDS: u32 = 40;
    const LIMIT_NS: u64 = 10_000_000_000;
    let round = |seed| {
        let random_io = RandomIo { seed, accesses: 2_000, wild: seed % 2 != 0 };
        let (frontend, kernel) = if seed % 3 == 0 { ("propolis", "illumos") } else { ("bhyve-13.2", "fbsd-13.2") };
        let machine = Machine { frontend, kernel, apic: ApicMode::Xapic, cpus: 2, limit_ns: LIMIT_NS };
        drop(machine.run(&random_io.rom()));
    };
    (0..ROUNDS).for_each(round);
    let before = resident();
    (0..ROUNDS).for_each(round);
    let grown = resident().saturating_sub(before);
    // A machine has 16 MiB of RAM, a thousand pages of stacks, and a trace of some MiB: a leak of any would show.
    const SLACK: u64 = 4 << 20;
    assert!(grown < SLACK, "{ROUNDS} machines left {grown} bytes behind");
}
