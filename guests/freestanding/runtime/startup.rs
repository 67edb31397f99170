//! Starting the APs: what senders are made of.

use crate::console::Line;
use crate::cpu::{Cpu, this_cpu};
use crate::memory;
use crate::pm_timer;
use crate::power;
use crate::report::{AP_AWAITED, AP_MISSING, GAVE_UP, report};
use core::sync::atomic::{AtomicU32, Ordering};

/// ICR: delivery mode INIT (SDM 3A 11.6.1).
pub const INIT: u32 = 0b101 << 8;
/// ICR: delivery mode STARTUP.
pub const STARTUP: u32 = 0b110 << 8;
/// ICR: level assert.
pub const LEVEL_ASSERT: u32 = 1 << 14;
/// ICR: trigger mode level.
pub const TRIGGER_LEVEL: u32 = 1 << 15;

/// ICR: shorthand self.
pub const SELF: u32 = 0b01 << 18;
/// ICR: shorthand all but self.
pub const ALL_BUT_SELF: u32 = 0b11 << 18;
/// ICR: the destination is logical.
pub const LOGICAL: u32 = 1 << 11;
/// ICR: delivery mode NMI.
pub const NMI: u32 = 0b100 << 8;
/// The physical destination of everybody, the sender among them: FFH in xAPIC mode, whose field has 8 bits.
pub const EVERYBODY: u32 = 0xffff_ffff;

/// The STARTUP vector: APs start at 0800:0000, in the trampoline page.
pub const TRAMPOLINE_VECTOR: u32 = 0x08;
/// Another trampoline page, for guests that start APs twice.
pub const SECOND_VECTOR: u32 = 0x09;
/// Which pages a STARTUP may name; each is a trampoline.
const TRAMPOLINES: core::ops::Range<u32> = 0x01..0x10;

/// How long a sender waits for an AP after its last STARTUP, in µs.
const ONLINE_US: u32 = 20_000;
/// How long all of the missing together have after that, in µs: where time is real, the host may be busy.
const GRACE_US: u32 = 100_000;

/// An application processor that the firmware told of.
pub type Ap = Cpu;

impl Cpu {
    /// Sends it an IPI: the low half of the ICR. Returns when the IPI is on its way.
    pub fn send(&self, icr_low: u32) {
        send(self.apic_id(), icr_low);
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

/// Sends an IPI from this CPU: the destination and the low half of the ICR. Returns when the IPI is on its way.
pub fn send(destination: u32, icr_low: u32) {
    let apic = this_cpu().local_apic();
    apic.send(destination, icr_low);
    apic.wait_sent();
}

/// The trampoline pages that a STARTUP has named or is about to, bit by bit. Whoever comes to another one is astray.
pub(crate) static EXPECTED_PAGES: AtomicU32 = AtomicU32::new(0);

/// From here on, a STARTUP names this page and no other.
pub fn expect_at(vector: u32) {
    expect_at_either(vector, vector);
}

/// From here on, a STARTUP names one of two pages.
pub fn expect_at_either(vector: u32, other: u32) {
    EXPECTED_PAGES.store(1 << vector | 1 << other, Ordering::Release);
}

/// Real mode's copy of the trampoline: its segment, which no STARTUP names.
const REAL_MODE_SEGMENT: u32 = 0x50;

unsafe extern "C" {
    safe static trampoline_start: u8;
    safe static trampoline_trap: u8;
    safe static trampoline_nmi: u8;
    safe static trampoline_nmis: u8;
    safe static trampoline_end: u8;
}

/// Makes a trampoline of every page that a STARTUP might name by mistake, and real mode's interrupt vectors. What is left of the
/// two pages that guests use is INT3: an AP that begins anywhere else in them is astray, and so is one that meets an exception in
/// real mode, or begins at 0, for the vectors that nobody set lead there.
pub(crate) fn place_trampolines() {
    const INT3: u8 = 0xcc;
    const VECTOR_NMI: u32 = 2;
    const VECTOR_INT3: u32 = 3;
    /// JMP 0050:0000.
    static JUMP: [u8; 5] = [0xea, 0, 0, REAL_MODE_SEGMENT as u8, (REAL_MODE_SEGMENT >> 8) as u8];
    let start = &raw const trampoline_start as u32;
    let len = &raw const trampoline_end as u32 - start;
    // SAFETY: all of this is conventional memory far below the payload; nothing of the guest's is there.
    unsafe {
        memory::fill_page(TRAMPOLINE_VECTOR << 12, INT3);
        memory::fill_page(SECOND_VECTOR << 12, INT3);
        for page in TRAMPOLINES {
            memory::copy(start, page << 12, len);
        }
        memory::copy(start, REAL_MODE_SEGMENT << 4, len);
        memory::copy(JUMP.as_ptr() as u32, 0, JUMP.len() as u32);
        for (vector, handler) in [(VECTOR_NMI, &raw const trampoline_nmi), (VECTOR_INT3, &raw const trampoline_trap)] {
            let far_pointer = REAL_MODE_SEGMENT << 16 | (handler as u32 - start);
            memory::copy(&raw const far_pointer as u32, 4 * vector, 4);
        }
    }
}

/// Writes the warm-reset vector, 40:67: the beginning of a page (MP specification B.4).
pub fn set_warm_reset_vector(vector: u32) {
    let far_pointer = vector << 8 << 16;
    // SAFETY: the BIOS data area is nobody's without a BIOS.
    unsafe { memory::copy(&raw const far_pointer as u32, 0x467, 4) };
}

/// How many NMIs were taken in real mode, by APs on their first steps; wraps at 16 bits.
#[must_use]
pub fn real_mode_nmis() -> u16 {
    let offset = &raw const trampoline_nmis as u32 - &raw const trampoline_start as u32;
    memory::read_shared((REAL_MODE_SEGMENT << 4) + offset)
}

/// Waits until it has been so of each of these APs, for so many µs. Looks at one at a time: a poll is as short with 1,000 of them.
pub(crate) fn wait_for_all(limit_us: u32, aps: &[Ap], is_so: impl Fn(&Ap) -> bool) {
    let mut rest = aps;
    pm_timer::wait(limit_us, || {
        while let [first, others @ ..] = rest
            && is_so(first)
        {
            rest = others;
        }
        rest.is_empty()
    });
}

/// Returns if all are online; otherwise says who is missing, and powers off.
pub fn require_all(aps: &[Ap]) {
    wait_for_all(GRACE_US, aps, Cpu::is_online);
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
