//! What the guests have in common: from the reset vector to a guest's own part, and from there to the end.
//!
//! A guest is one file in `guests/`: a name, a function that gets the [`Bsp`], and what its APs do. Guests that start the APs as
//! an operating system does hand [`Bsp::bring_up`] their way of doing it; others take [`Bsp::aps`] and what [`scenario`] has.
#![no_std]

mod acpi;
mod apic;
mod boot;
mod broken;
pub mod console;
mod cpu;
pub mod interrupts;
pub mod logical;
pub mod memory;
mod mp_table;
pub mod multiboot;
pub mod parameters;
pub mod pci;
mod pm_timer;
pub mod port;
mod power;
pub mod program;
pub mod report;
mod ring;
pub mod scenario;
mod startup;
mod topology;
mod work;

pub use broken::broken;
pub use cpu::{enable_interrupts, pause, stop};
pub use pm_timer::delay;
pub use startup::{
    ALL_BUT_SELF, Ap, EVERYBODY, INIT, LEVEL_ASSERT, LOGICAL, NMI, SECOND_VECTOR, SELF, STARTUP, TRAMPOLINE_VECTOR,
    TRIGGER_LEVEL, clear_errors, expect_at, expect_at_either, real_mode_nmis, require_all, send, set_warm_reset_vector,
};
pub use topology::aps;
pub use work::{serve, test_counters};

use apic::LocalApic;
use console::Line;
use report::report;
use topology::{Source, Topology};

/// What a guest is; made by [`guest!`].
pub struct Guest {
    /// Its name, for the banner.
    pub name: &'static str,
    /// Its own part.
    pub main: fn(Bsp) -> !,
    /// What an AP does, each time it comes up.
    pub ap: fn(&'static Ap) -> !,
    /// What the BSP does when it comes to the reset vector again.
    pub restarted: fn(Bsp) -> !,
}

/// Makes this program the guest of that name, which goes on in `main`, a `fn(Bsp) -> !`. Its APs work ([`serve`]) unless `ap` says
/// what else they do, and its BSP comes to the reset vector only once unless `restarted` says what it does then.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        $crate::guest!($name, $main, ap = $crate::serve);
    };
    ($name:literal, $main:path, ap = $ap:path) => {
        $crate::guest!($name, $main, ap = $ap, restarted = $crate::Bsp::astray);
    };
    ($name:literal, $main:path, ap = $ap:path, restarted = $restarted:path) => {
        #[unsafe(no_mangle)]
        static GUEST: $crate::Guest = $crate::Guest { name: $name, main: $main, ap: $ap, restarted: $restarted };
    };
}

unsafe extern "Rust" {
    safe static GUEST: Guest;
}

/// The bootstrap processor: in long mode, on its stack, with its exceptions caught and interrupts off.
pub struct Bsp {
    apic: LocalApic,
}

/// Where the BSP comes to Rust.
#[unsafe(no_mangle)]
extern "C" fn bsp_main() -> ! {
    let apic = LocalApic::of_this_cpu();
    report(report::BOOT, u32::from(apic == LocalApic::X2Apic));
    console::init();
    Line.text("spinup guest ")
        .text(GUEST.name)
        .text(if apic == LocalApic::X2Apic { ", x2APIC" } else { ", xAPIC" })
        .end();
    let cpu = cpu::this_cpu();
    cpu.reset(apic.id());
    cpu.set_local_apic(apic);
    interrupts::init();
    interrupts::load();
    (GUEST.main)(Bsp { apic })
}

/// Where the BSP comes to Rust when it has been there before.
#[unsafe(no_mangle)]
extern "C" fn bsp_restarted() -> ! {
    let apic = LocalApic::of_this_cpu();
    cpu::this_cpu().set_local_apic(apic);
    apic.enable();
    interrupts::load();
    (GUEST.restarted)(Bsp { apic })
}

/// Where an AP comes to Rust, by a STARTUP with this vector.
#[unsafe(no_mangle)]
extern "C" fn ap_main(vector: u32) -> ! {
    let apic = LocalApic::of_this_cpu();
    report(report::AP_ONLINE, apic.id());
    let cpu = cpu::this_cpu();
    cpu.set_local_apic(apic);
    apic.enable();
    interrupts::load();
    cpu.arrive(vector);
    (GUEST.ap)(cpu)
}

impl Bsp {
    /// Finds the CPUs, starts the APs the way `start` does it, and puts them to the tests.
    pub fn bring_up(self, start: fn(&'static [Ap])) -> ! {
        let aps = self.aps();
        scenario::ask_for(aps.len());
        expect_at(TRAMPOLINE_VECTOR);
        start(aps);
        require_all(aps);

        enable_interrupts();
        let passed = work::test_all(aps);
        Line.text(if passed { "all tests passed" } else { "SOME TESTS FAILED" }).end();
        scenario::done(aps.len())
    }

    /// Finds the CPUs and prepares for starting the APs, which are returned. No STARTUP is expected yet.
    #[must_use]
    pub fn aps(&self) -> &'static [Ap] {
        mask_legacy_interrupts();
        self.apic.enable();
        let topology = Topology::find(self.apic.id());
        let mp_table = topology.source == Source::MpTable;
        report(report::CPUS_FOUND, topology.cpus() | u32::from(mp_table) << 16);
        Line.decimal(topology.cpus()).text(" CPUs in the ").text(if mp_table { "MP table" } else { "MADT" }).end();
        startup::place_trampolines();
        topology.aps()
    }

    /// The BSP as the CPU that it is.
    #[must_use]
    pub fn cpu(&self) -> &'static Ap {
        cpu::this_cpu()
    }

    /// Whether the local APICs are in x2APIC mode.
    #[must_use]
    pub fn x2apic(&self) -> bool {
        self.apic == LocalApic::X2Apic
    }

    /// Reports that the guest begins, as it has done before its own part the first time: for one that a reset of the machine, which
    /// leaves memory as it is, has brought back to the reset vector.
    pub fn report_boot(&self) {
        report(report::BOOT, u32::from(self.x2apic()));
    }

    /// What becomes of a BSP at the reset vector that should not be there.
    pub fn astray(self) -> ! {
        report(report::STRAY, report::RESET_VECTOR << 16 | self.apic.id());
        power::off()
    }
}

/// The 8259s and everything behind them stay silent.
fn mask_legacy_interrupts() {
    port::write_u8(0x21, 0xff);
    port::write_u8(0xa1, 0xff);
}
