//! Starting the APs: what senders are made of.

use crate::console::Line;
use crate::cpu::{Cpu, this_cpu};
use crate::memory;
use crate::pm_timer;
use crate::power;
use crate::report::{AP_AWAITED, AP_MISSING, GAVE_UP, report};

/// ICR: delivery mode INIT (SDM 3A 11.6.1).
pub const INIT: u32 = 0b101 << 8;
/// ICR: delivery mode STARTUP.
pub const STARTUP: u32 = 0b110 << 8;
/// ICR: level assert.
pub const LEVEL_ASSERT: u32 = 1 << 14;
/// ICR: trigger mode level.
pub const TRIGGER_LEVEL: u32 = 1 << 15;

/// The STARTUP vector: APs start at 0800:0000, in the trampoline page.
pub const TRAMPOLINE_VECTOR: u32 = 0x08;

/// How long a sender waits for an AP after its last STARTUP, in µs.
const ONLINE_US: u32 = 20_000;
/// How long all of the missing together have after that, in µs: where time is real, the host may be busy.
const GRACE_US: u32 = 100_000;

/// An application processor that the firmware told of.
pub type Ap = Cpu;

impl Cpu {
    /// Sends it an IPI: the low half of the ICR. Returns when the IPI is on its way.
    pub fn send(&self, icr_low: u32) {
        let apic = this_cpu().local_apic();
        apic.send(self.apic_id(), icr_low);
        apic.wait_sent();
    }

    /// Reports that the sender waits, and waits until it is online, but not for long. Whoever is missing in the end is found out after the sender is done.
    pub fn wait_online(&self) {
        report(AP_AWAITED, self.apic_id());
        pm_timer::wait(ONLINE_US, || self.is_online());
    }
}

/// Clears the error status of the sender's local APIC, and returns it.
pub fn clear_errors() -> u32 {
    this_cpu().local_apic().clear_errors()
}

/// Fills the trampoline page: the trampoline, then HLT to the end. An AP that begins anywhere else in the page stops there,
/// with interrupts off as INIT left them.
pub(crate) fn place_trampoline() {
    const HLT: u8 = 0xf4;
    unsafe extern "C" {
        safe static trampoline_start: u8;
        safe static trampoline_end: u8;
    }
    let page = TRAMPOLINE_VECTOR << 12;
    let (start, end) = (&raw const trampoline_start as u32, &raw const trampoline_end as u32);
    // SAFETY: the page is conventional memory far below the payload; nothing of the guest's is there.
    unsafe {
        memory::fill_page(page, HLT);
        memory::copy(start, page, end - start);
    }
}

/// Returns if all are online; otherwise says who is missing, and powers off.
pub(crate) fn require_all(aps: &[Ap]) {
    pm_timer::wait(GRACE_US, || aps.iter().all(Cpu::is_online));
    let mut online = 0;
    for ap in aps {
        let here = ap.is_online();
        if here {
            online += 1;
        } else {
            report(AP_MISSING, ap.apic_id());
        }
        Line.text("APIC ID ").decimal(ap.apic_id()).text(if here { " is online" } else { " is missing" }).end();
    }
    let wanted = aps.len() as u32;
    if online == wanted {
        return;
    }
    report(GAVE_UP, online);
    Line.text("gave up: ").decimal(online).text(" of ").decimal(wanted).text(" APs are online").end();
    power::off()
}
