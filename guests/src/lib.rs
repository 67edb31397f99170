//! The bare-metal SMP guests: programs without an operating system that start the application processors (APs) the way
//! systems in the field do, put them to work, and say at the report port ([`vmm::trace::report_port`]) how far they came.
//!
//! They are built from source (`freestanding/`) by the build script, with the toolchain that builds this crate. Each is a
//! boot ROM: the frontend maps it so that it ends at 4 GiB, and the BSP starts at F000:FFF0 in real mode.
//!
//! What a guest needs of its machine: 16 MiB of RAM; CPUs listed in an ACPI MADT or an MP table, with APIC IDs up to 255;
//! local APICs in whichever mode they are to be used; an ACPI PM timer and PM1a control (ports from the FADT, else 408H
//! and 404H); a 16550 at 3F8H if anybody wants to read along. It uses up to [`MAX_CPUS`] CPUs.
//!
//! What it does, which the same machine always makes it do in the same order: reports `BOOT` and `CPUS_FOUND`; starts the
//! APs, each of which reports `AP_ONLINE`, and reports `AP_AWAITED` where the sender waits for one; if some are missing,
//! reports them and `GAVE_UP`; otherwise runs four tests, reports each, and `DONE`; powers off. Whatever it cannot handle is
//! `BROKEN`, with a code that `freestanding/runtime/broken.rs` lists.
//!
//! Another way of starting APs is a file in `freestanding/guests/`, its name in `build/rom.rs`, and a variant of [`Guest`].

pub mod os;

use std::fmt;
use std::str::FromStr;

/// How many CPUs a guest can use (`MAX_CPUS` of `freestanding/runtime/cpu.rs`). On a machine with more it is broken.
pub const MAX_CPUS: u16 = 64;

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guest {
    /// Starts the APs as FreeBSD does: one by one, by the universal start-up algorithm (MP specification 1.4, B.4; FreeBSD's
    /// `ipi_startup`). INIT level assert (C500H), INIT level de-assert (8500H), 10 ms, STARTUP (4608H), 200 µs, STARTUP,
    /// 200 µs.
    MpSpec,
    /// Starts the APs as Linux up to 6.4 does: one by one (`wakeup_secondary_cpu_via_init`). INIT level assert (C500H), INIT
    /// level de-assert (8500H), STARTUP (608H), 20 µs, STARTUP, 20 µs.
    Linux,
    /// Starts the APs as Linux from 6.5 on does: the IPIs of [`Guest::Linux`] to all of them, then waits for each
    /// (`cpuhp_bringup_cpus_parallel`).
    LinuxParallel,
    /// Ends in a triple fault: #UD with an empty IDT. Reports `BOOT`, starts no AP.
    TripleFault,
    /// Spins for ever with interrupts off, without an exit. Reports `BOOT`, starts no AP.
    SpinForever,
    /// Jumps to D0000000H, where there is no memory. Reports `BOOT`, starts no AP.
    JumpIntoMmio,
}

impl Guest {
    /// All guests.
    pub const ALL: [Guest; 6] = [
        Guest::MpSpec,
        Guest::Linux,
        Guest::LinuxParallel,
        Guest::TripleFault,
        Guest::SpinForever,
        Guest::JumpIntoMmio,
    ];

    /// The guest's name in cells.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Guest::MpSpec => "mp-spec",
            Guest::Linux => "linux",
            Guest::LinuxParallel => "linux-parallel",
            Guest::TripleFault => "triple-fault",
            Guest::SpinForever => "spin-forever",
            Guest::JumpIntoMmio => "jump-into-mmio",
        }
    }

    /// What the guest does, in one line.
    #[must_use]
    pub fn summary(self) -> &'static str {
        match self {
            Guest::MpSpec => {
                "FreeBSD: per AP INIT, INIT de-assert, 10 ms, STARTUP, 200 µs, STARTUP (MP specification B.4)"
            }
            Guest::Linux => "Linux up to 6.4: per AP INIT, INIT de-assert, STARTUP, 20 µs, STARTUP",
            Guest::LinuxParallel => "Linux from 6.5 on: the same, but all APs are kicked before any is waited for",
            Guest::TripleFault => "misbehaves: a triple fault on the BSP",
            Guest::SpinForever => "misbehaves: the BSP spins for ever with interrupts off",
            Guest::JumpIntoMmio => "misbehaves: the BSP jumps to D0000000H, where there is no memory",
        }
    }

    /// The guest's boot ROM, to be mapped so that it ends at 4 GiB. A multiple of 4 KiB, 64 KiB at most.
    #[must_use]
    pub fn rom(self) -> &'static [u8] {
        macro_rules! rom {
            ($name:literal) => {
                include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".rom"))
            };
        }
        match self {
            Guest::MpSpec => rom!("mp-spec"),
            Guest::Linux => rom!("linux"),
            Guest::LinuxParallel => rom!("linux-parallel"),
            Guest::TripleFault => rom!("triple-fault"),
            Guest::SpinForever => rom!("spin-forever"),
            Guest::JumpIntoMmio => rom!("jump-into-mmio"),
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No guest has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("There is no guest {0:?}.")]
pub struct UnknownGuest(pub String);

impl FromStr for Guest {
    type Err = UnknownGuest;

    fn from_str(name: &str) -> Result<Guest, UnknownGuest> {
        Guest::ALL.into_iter().find(|guest| guest.name() == name).ok_or_else(|| UnknownGuest(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        for guest in Guest::ALL {
            assert_eq!(guest.to_string().parse(), Ok(guest));
        }
        assert_eq!("mp-Spec".parse::<Guest>(), Err(UnknownGuest("mp-Spec".to_owned())));
    }
}
