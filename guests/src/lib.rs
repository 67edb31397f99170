//! The bare-metal SMP guests: programs without an operating system that start the application processors (APs) the way
//! systems in the field do, put them to work, and say at the report port ([`vmm::trace::report_port`]) how far they came.
//!
//! They are built from source (`freestanding/`) by the build script, with the toolchain that builds this crate. Each is a
//! boot ROM: the frontend maps it so that it ends at 4 GiB, and the BSP starts at F000:FFF0 in real mode.
//!
//! What a guest needs of its machine: 16 MiB of RAM; CPUs listed in an ACPI MADT or an MP table, with APIC IDs up to 1023;
//! local APICs in whichever mode they are to be used; an ACPI PM timer and PM1a control (ports from the FADT, else 408H
//! and 404H); a 16550 at 3F8H if anybody wants to read along. It uses up to [`MAX_CPUS`] CPUs.
//!
//! What it does, which the same machine always makes it do in the same order: reports `BOOT`, `CPUS_FOUND` and `APS_ASKED`; starts
//! APs, each of which reports `AP_ONLINE`, and reports `AP_AWAITED` where the sender waits for one; if some are missing,
//! reports them and `GAVE_UP`; otherwise runs its tests, reports each, and `DONE`; powers off. Whatever it cannot handle is
//! `BROKEN`.
//!
//! Guests that start the APs as an operating system does put them to four tests then. Scenarios do something particular with
//! INIT and STARTUP, and test what the architecture says about it, CPU by CPU; where it leaves a choice they report what they
//! have `SEEN`. The head of each file in `freestanding/guests/` says what the architecture requires, and what kernels differ on.
//! In all of them a CPU that runs where nobody sent it, at the reset vector or in a page that no STARTUP named, reports `STRAY`.
//!
//! Another guest is a file in `freestanding/guests/`, its name in `build/rom.rs`, and its line among the [`Guest`]s.

pub mod ending;
pub mod os;
mod parameters;
pub mod program;
pub mod random_io;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// How many CPUs a guest can use (`MAX_CPUS` of `freestanding/runtime/cpu.rs`). On a machine with more it is broken.
pub const MAX_CPUS: u16 = 1024;

/// Declares the guests: variant, name and summary of each.
macro_rules! guests {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $summary:literal;)*) => {
        /// A guest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Guest {
            $($(#[$doc])* $variant,)*
        }

        impl Guest {
            /// All guests.
            pub const ALL: [Guest; [$($name),*].len()] = [$(Guest::$variant),*];

            /// The guest's name in cells.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Guest::$variant => $name,)*
                }
            }

            /// What the guest does, in one line.
            #[must_use]
            pub fn summary(self) -> &'static str {
                match self {
                    $(Guest::$variant => $summary,)*
                }
            }

            /// The guest's boot ROM, to be mapped so that it ends at 4 GiB. A multiple of 4 KiB, 64 KiB at most.
            #[must_use]
            pub fn rom(self) -> &'static [u8] {
                match self {
                    $(Guest::$variant => include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".rom")),)*
                }
            }
        }
    };
}

guests! {
    /// Starts the APs as FreeBSD does: one by one, by the universal start-up algorithm (MP specification 1.4, B.4; FreeBSD's
    /// `ipi_startup`). INIT level assert (C500H), INIT level de-assert (8500H), 10 ms, STARTUP (4608H), 200 µs, STARTUP,
    /// 200 µs.
    MpSpec = "mp-spec", "FreeBSD: per AP INIT, INIT de-assert, 10 ms, STARTUP, 200 µs, STARTUP (MP specification B.4)";
    /// Starts the APs as Linux up to 6.4 does: one by one (`wakeup_secondary_cpu_via_init`). INIT level assert (C500H), INIT
    /// level de-assert (8500H), STARTUP (608H), 20 µs, STARTUP, 20 µs.
    Linux = "linux", "Linux up to 6.4: per AP INIT, INIT de-assert, STARTUP, 20 µs, STARTUP";
    /// Starts the APs as Linux from 6.5 on does: the IPIs of [`Guest::Linux`] to all of them, then waits for each
    /// (`cpuhp_bringup_cpus_parallel`).
    LinuxParallel = "linux-parallel", "Linux from 6.5 on: the same, but all APs are kicked before any is waited for";
    /// Starts the APs as xv6 does: one by one, with the warm-reset vector, INIT level assert (C500H), 200 µs, INIT level
    /// de-assert (8500H), 100 µs, STARTUP (608H), 200 µs, STARTUP, 200 µs.
    Xv6Order = "xv6-order", "xv6: per AP the warm-reset vector, INIT, 200 µs, INIT de-assert, 100 µs, two STARTUPs";
    /// Starts as many APs as there are: INIT to each, 10 ms once, STARTUP to each, 200 µs, STARTUP to each. Reports
    /// `started-once` and `counters`.
    Many = "many", "as many APs as there are: INIT to each, 10 ms once, STARTUP to each, 200 µs, STARTUP to each";
    /// INIT and STARTUP by the shorthand for all but self, and STARTUP again when all run. Reports `started-once` and
    /// `late-startup-ignored` of each AP.
    Broadcast = "broadcast", "SeaBIOS: INIT and STARTUP to all but self; another STARTUP does nothing to who runs";
    /// INIT and STARTUP to the physical destination FFH or FFFFFFFFH, which is the sender too. Reports `bsp-restarts-on-init`,
    /// and `started-once` of each AP.
    BroadcastFf = "broadcast-ff", "INIT and STARTUP to destination FFH (FFFFFFFFH): INIT restarts the BSP too";
    /// Logical destinations, flat and cluster in xAPIC mode, cluster in x2APIC mode. Reports `flat-destination`,
    /// `cluster-destination`, and in xAPIC mode `stops-on-init`, `init-clears-logical-id` and `restarted-at-new-vector`.
    Logical = "logical", "logical destinations, flat and cluster: of INIT, STARTUP and fixed interrupts";
    /// The BSP starts the first AP, and each AP the next.
    ApStartsAp = "ap-starts-ap", "the BSP starts the first AP, and each AP the next";
    /// INIT to APs that run, then STARTUP at another page. Reports `stops-on-init` and `restarted-at-new-vector` of each.
    ApRestart = "ap-restart", "INIT to running APs stops them, STARTUP restarts them at another page";
    /// INIT and STARTUP at another page to APs that have halted. Reports `restarted-at-new-vector` of each.
    SipiVectorChange = "sipi-vector-change", "INIT and STARTUP at another page restart APs that have halted";
    /// INIT and two STARTUPs with different vectors, back to back. Reports `first-startup-wins` of each AP.
    DoubleSipi = "double-sipi", "two STARTUPs with different vectors back to back: the first decides";
    /// STARTUP before any INIT, and the whole sequence at another page. Reports what came of the first, and
    /// `init-discards-startup` and `started-after-init` of each AP.
    SipiFirst = "sipi-first", "STARTUP before any INIT, then INIT and STARTUP at another page";
    /// INIT without STARTUP. Asks for no AP. Reports `init-starts-nothing` of each AP.
    InitOnly = "init-only", "INIT without STARTUP: nobody runs";
    /// INIT level de-assert alone. Asks for no AP. Reports `deassert-starts-nothing` of each AP.
    DeassertOnly = "deassert-only", "INIT level de-assert alone: nobody runs";
    /// INIT of the BSP to itself, by its ID and by the shorthand. Asks for no AP. Reports `bsp-restarts-on-init`, and what came of
    /// the shorthand.
    SelfInit = "self-init", "INIT of the BSP to itself restarts it at the reset vector";
    /// A fixed interrupt to APs that wait for STARTUP. Reports `fixed-starts-nothing` of each, and what became of the interrupt.
    FixedWhileWaiting = "fixed-while-waiting", "a fixed interrupt does not start an AP that waits for STARTUP";
    /// An NMI to APs that wait for STARTUP. Reports `nmi-starts-nothing` of each, and what became of the NMI.
    NmiWhileWaiting = "nmi-while-waiting", "an NMI does not start an AP that waits for STARTUP";
    /// An AP that moves the BAR of the PCI device 0:5.0 (FB5DH:40FBH), if there is one, is restarted again and again. Reports
    /// whether there is, and `restarted-at-new-vector`.
    BarRemap = "bar-remap", "an AP that moves a PCI BAR is restarted again and again (D52968)";
    /// Carries out a list of operations on APs ([`program`]); INIT and STARTUP to the first AP when its name has none. Reports
    /// which APs run in the end.
    Program = "program", "INIT, STARTUP and others as a list in its name says: program+i1.s1=8 (random ones by `spinup fuzz`)";
    /// Starts its APs and ends the machine in the way of its name ([`ending`]); by power-off when its name has none. Reports `DONE`
    /// before.
    Ending = "ending", "ends the machine as its name says: ending+off, +cf9, +i8042, +triple-fault, +halt";
    /// Reads and writes at random on every CPU ([`random_io`]): ports, devices' registers, PCI, MSRs.
    RandomIo = "random-io", "reads and writes ports, devices, PCI and MSRs at random: random-io+s7.n10000, +s7.n10000.wild";
    /// Ends in a triple fault: #UD with an empty IDT. Reports `BOOT`, starts no AP.
    TripleFault = "triple-fault", "misbehaves: a triple fault on the BSP";
    /// Spins for ever with interrupts off, without an exit. Reports `BOOT`, starts no AP.
    SpinForever = "spin-forever", "misbehaves: the BSP spins for ever with interrupts off";
    /// Jumps to D0000000H, where there is no memory. Reports `BOOT`, starts no AP.
    JumpIntoMmio = "jump-into-mmio", "misbehaves: the BSP jumps to D0000000H, where there is no memory";
}

/// A module for a Multiboot kernel: a short text, the same bytes in every build.
pub static MODULE: &[u8] = include_bytes!("../freestanding/kernels/module.txt");

/// The module's name in a matrix.
pub const MODULE_NAME: &str = "multiboot-text";

/// A kernel of the project's own for Multiboot loaders. It prints what it is told, starts every AP, and ends through the debug-exit
/// device with 10H.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// As an ELF program, with headers of both versions of Multiboot.
    MultibootTest,
    /// As plain bytes, with a header of version 1 that says where they go (the "a.out kludge").
    MultibootTestAout,
}

impl Kernel {
    /// Both.
    pub const ALL: [Kernel; 2] = [Kernel::MultibootTest, Kernel::MultibootTestAout];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kernel::MultibootTest => "multiboot-test",
            Kernel::MultibootTestAout => "multiboot-test-aout",
        }
    }

    /// The kernel with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Kernel> {
        Kernel::ALL.into_iter().find(|kernel| kernel.name() == name)
    }

    /// The kernel's file.
    #[must_use]
    pub fn file(self) -> &'static [u8] {
        match self {
            Kernel::MultibootTest => include_bytes!(concat!(env!("OUT_DIR"), "/multiboot-test.elf")),
            Kernel::MultibootTestAout => include_bytes!(concat!(env!("OUT_DIR"), "/multiboot-test.aout")),
        }
    }
}

/// The boot ROM of a guest by its name in cells, which may say more than which guest ([`checked_name`]); `None` when no guest has
/// this name.
#[must_use]
pub fn rom_named(name: &str) -> Option<Cow<'static, [u8]>> {
    let made = made(name).map(|made| made.ok().map(|made| Cow::Owned(made.rom())));
    made.unwrap_or_else(|| name.parse().ok().map(|guest: Guest| Cow::Borrowed(guest.rom())))
}

/// A guest's name that says what it is to do, as it is written ([`program`], [`random_io`], [`ending`]); `None` for a name that says
/// nothing of the kind.
///
/// # Errors
/// What is wrong with it, in words.
#[must_use]
pub fn checked_name(name: &str) -> Option<Result<String, String>> {
    made(name).map(|made| made.map(|made| made.name()))
}

/// What a guest's name with a suffix stands for.
trait Made {
    fn name(&self) -> String;
    fn rom(&self) -> Vec<u8>;
}

fn made(name: &str) -> Option<Result<Box<dyn Made>, String>> {
    fn boxed<M: Made + 'static>(parsed: Result<M, impl fmt::Display>) -> Result<Box<dyn Made>, String> {
        parsed.map(|made| Box::new(made) as Box<dyn Made>).map_err(|error| error.to_string())
    }
    if let Some(program) = program::Program::of_guest(name) {
        return Some(boxed(program));
    }
    if let Some(random_io) = random_io::RandomIo::of_guest(name) {
        return Some(boxed(random_io));
    }
    ending::Way::of_guest(name).map(boxed)
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
