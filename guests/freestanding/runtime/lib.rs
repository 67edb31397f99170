//! What the guests have in common: from the reset vector to a guest's own part, and from there to the end.
//!
//! A guest is one file in `guests/`: a name, and a function that gets the [`Bsp`]. Guests that start the APs hand
//! [`Bsp::bring_up`] their way of doing it.
#![no_std]

mod acpi;
mod apic;
mod boot;
mod broken;
mod console;
mod cpu;
mod interrupts;
mod memory;
mod mp_table;
mod pm_timer;
mod port;
mod power;
mod report;
mod ring;
mod startup;
mod topology;
mod work;

pub use pm_timer::delay;
pub use startup::{Ap, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, clear_errors};

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
}

/// Makes this program the guest of that name, which goes on in `main`, a `fn(Bsp) -> !`.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        #[unsafe(no_mangle)]
        static GUEST: $crate::Guest = $crate::Guest { name: $name, main: $main };
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

/// Where an AP comes to Rust.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    let apic = LocalApic::of_this_cpu();
    report(report::AP_ONLINE, apic.id());
    let cpu = cpu::this_cpu();
    cpu.set_local_apic(apic);
    apic.enable();
    interrupts::load();
    cpu.set_online();
    work::serve(cpu)
}

impl Bsp {
    /// Finds the CPUs, starts the APs the way `start` does it, and puts them to the tests.
    pub fn bring_up(self, start: fn(&'static [Ap])) -> ! {
        mask_legacy_interrupts();
        self.apic.enable();
        let topology = Topology::find(self.apic.id());
        let mp_table = topology.source == Source::MpTable;
        report(report::CPUS_FOUND, topology.cpus() | u32::from(mp_table) << 16);
        Line.decimal(topology.cpus()).text(" CPUs in the ").text(if mp_table { "MP table" } else { "MADT" }).end();

        startup::place_trampoline();
        start(topology.aps());
        startup::require_all(topology.aps());

        cpu::enable_interrupts();
        let passed = work::test_all(topology.aps());
        report(report::DONE, topology.cpus() - 1);
        Line.text(if passed { "all tests passed" } else { "SOME TESTS FAILED" }).end();
        power::off()
    }
}

/// The 8259s and everything behind them stay silent.
fn mask_legacy_interrupts() {
    port::write_u8(0x21, 0xff);
    port::write_u8(0xa1, 0xff);
}
