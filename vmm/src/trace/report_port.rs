// The report port: how a bare-metal guest tells the harness how far it came.
//
// One 32-bit OUT to `REPORT_PORT`: bits 31:24 a code below, bits 23:0 a payload. This file is plain constants and their names
// without a crate of its own, so that the freestanding guests compile the very same lines.

/// The I/O port (32-bit writes only).
pub const REPORT_PORT: u16 = 0x5350;

/// The BSP has reached its main program. Payload: 0 xAPIC, 1 x2APIC.
pub const BOOT: u8 = 1;
/// The CPUs have been counted. Payload: bits 15:0 how many, the BSP among them; bit 16 the source: 0 ACPI MADT, 1 MP table.
pub const CPUS_FOUND: u8 = 2;
/// Written by an AP itself, each time it comes up: it runs in its final mode on its own stack. Payload: its APIC ID.
pub const AP_ONLINE: u8 = 3;
/// A test passed. Payload: bits 7:0 which (`TEST_*`), bits 23:8 the CPU that it is about, as `about` has it.
pub const TEST_PASSED: u8 = 4;
/// A test failed. Payload: as for `TEST_PASSED`.
pub const TEST_FAILED: u8 = 5;
/// An AP that was asked for never reported. Payload: its APIC ID.
pub const AP_MISSING: u8 = 6;
/// Every AP came up and every test ran. Payload: how many APs.
pub const DONE: u8 = 7;
/// The guest gave up waiting. Payload: how many APs came up all the same.
pub const GAVE_UP: u8 = 8;
/// Something that the guest does not understand. Payload: why (`BROKEN_*`); 100H + the vector of an unexpected interrupt or
/// exception.
pub const BROKEN: u8 = 9;
/// The sender begins to wait for an AP to come online. Payload: its APIC ID. This is where senders that start APs one by one
/// differ from those that start them all at once.
pub const AP_AWAITED: u8 = 10;
/// How many APs the guest is going to start; a guest that does not say so starts all. Payload: how many.
pub const APS_ASKED: u8 = 11;
/// Written by a CPU that runs where nobody sent it. Payload: bits 15:0 its APIC ID, bits 23:16 the vector of the page where it
/// began, or `RESET_VECTOR`.
pub const STRAY: u8 = 12;
/// What the guest saw where the architecture leaves a choice: no verdict. Payload: bits 7:0 what (`SEEN_*`), bits 23:8 the CPU
/// that it is about, as `about` has it.
pub const SEEN: u8 = 13;

/// `STRAY`: the CPU began at the reset vector.
pub const RESET_VECTOR: u32 = 0xff;

/// The payload of `TEST_PASSED`, `TEST_FAILED` and `SEEN`: what, and the APIC ID of the CPU that it is about, if about one.
#[must_use]
pub const fn about(what: u32, apic_id: Option<u32>) -> u32 {
    match apic_id {
        Some(apic_id) => what & 0xff | ((apic_id + 1) & 0xffff) << 8,
        None => what & 0xff,
    }
}

/// The inverse of `about`.
#[must_use]
pub const fn about_whom(payload: u32) -> (u32, Option<u32>) {
    (payload & 0xff, (payload >> 8 & 0xffff).checked_sub(1))
}

/// Neither a MADT nor an MP table was found.
pub const BROKEN_NO_TABLES: u32 = 1;
/// The firmware tells of more CPUs than the guest can use.
pub const BROKEN_TOO_MANY_CPUS: u32 = 2;
/// An APIC ID above 1023.
pub const BROKEN_APIC_ID_TOO_BIG: u32 = 3;
/// The PM timer does not advance.
pub const BROKEN_PM_TIMER_STUCK: u32 = 4;
/// An IPI stays pending.
pub const BROKEN_IPI_PENDING: u32 = 5;
/// The guest's own fault: a panic.
pub const BROKEN_PANIC: u32 = 6;

/// Why a guest broke, in words (`BROKEN_*`).
#[must_use]
pub const fn broken_in_words(why: u32) -> Option<&'static str> {
    Some(match why {
        BROKEN_NO_TABLES => "no MADT and no MP table",
        BROKEN_TOO_MANY_CPUS => "too many CPUs",
        BROKEN_APIC_ID_TOO_BIG => "an APIC ID above 1023",
        BROKEN_PM_TIMER_STUCK => "the PM timer does not advance",
        BROKEN_IPI_PENDING => "an IPI stays pending",
        BROKEN_PANIC => "panic",
        _ => return None,
    })
}

/// Atomic counters incremented by every CPU add up.
pub const TEST_COUNTERS: u32 = 1;
/// A token travels over all CPUs by IPI and comes back.
pub const TEST_PING_PONG: u32 = 2;
/// A spin lock keeps a plain variable consistent.
pub const TEST_SPIN_LOCK: u32 = 3;
/// Every CPU's local APIC timer ticks.
pub const TEST_TIMER: u32 = 4;
/// An AP that gets INIT stops.
pub const TEST_STOPS_ON_INIT: u32 = 5;
/// An AP that ran already begins again at the vector of the last STARTUP.
pub const TEST_RESTARTED_AT_NEW_VECTOR: u32 = 6;
/// An AP came up once.
pub const TEST_STARTED_ONCE: u32 = 7;
/// A STARTUP does nothing to an AP that runs.
pub const TEST_LATE_STARTUP_IGNORED: u32 = 8;
/// INIT alone starts nobody.
pub const TEST_INIT_STARTS_NOTHING: u32 = 9;
/// INIT level de-assert starts nobody.
pub const TEST_DEASSERT_STARTS_NOTHING: u32 = 10;
/// Of two STARTUPs back to back the first decides.
pub const TEST_FIRST_STARTUP_WINS: u32 = 11;
/// INIT takes back a STARTUP that came before it.
pub const TEST_INIT_DISCARDS_STARTUP: u32 = 12;
/// An AP starts at the vector of the STARTUP that follows INIT.
pub const TEST_STARTED_AFTER_INIT: u32 = 13;
/// The BSP that gets INIT begins again at the reset vector.
pub const TEST_BSP_RESTARTS_ON_INIT: u32 = 14;
/// A fixed interrupt does not start an AP that waits for STARTUP.
pub const TEST_FIXED_STARTS_NOTHING: u32 = 15;
/// An NMI does not start an AP that waits for STARTUP.
pub const TEST_NMI_STARTS_NOTHING: u32 = 16;
/// A logical destination of the flat model is whom it should be.
pub const TEST_FLAT_DESTINATION: u32 = 17;
/// A logical destination of the cluster model is whom it should be.
pub const TEST_CLUSTER_DESTINATION: u32 = 18;
/// After INIT an xAPIC has no logical ID, so that no logical STARTUP is for it.
pub const TEST_INIT_CLEARS_LOGICAL_ID: u32 = 19;
/// A kernel's modules are those that its arguments tell of.
pub const TEST_MODULES: u32 = 20;
/// The memory map that the loader hands on is sound.
pub const TEST_MEMORY_MAP: u32 = 21;

/// The name of a test (`TEST_*`).
#[must_use]
pub const fn test_name(test: u32) -> Option<&'static str> {
    Some(match test {
        TEST_COUNTERS => "counters",
        TEST_PING_PONG => "ping-pong",
        TEST_SPIN_LOCK => "spin-lock",
        TEST_TIMER => "timer",
        TEST_STOPS_ON_INIT => "stops-on-init",
        TEST_RESTARTED_AT_NEW_VECTOR => "restarted-at-new-vector",
        TEST_STARTED_ONCE => "started-once",
        TEST_LATE_STARTUP_IGNORED => "late-startup-ignored",
        TEST_INIT_STARTS_NOTHING => "init-starts-nothing",
        TEST_DEASSERT_STARTS_NOTHING => "deassert-starts-nothing",
        TEST_FIRST_STARTUP_WINS => "first-startup-wins",
        TEST_INIT_DISCARDS_STARTUP => "init-discards-startup",
        TEST_STARTED_AFTER_INIT => "started-after-init",
        TEST_BSP_RESTARTS_ON_INIT => "bsp-restarts-on-init",
        TEST_FIXED_STARTS_NOTHING => "fixed-starts-nothing",
        TEST_NMI_STARTS_NOTHING => "nmi-starts-nothing",
        TEST_FLAT_DESTINATION => "flat-destination",
        TEST_CLUSTER_DESTINATION => "cluster-destination",
        TEST_INIT_CLEARS_LOGICAL_ID => "init-clears-logical-id",
        TEST_MODULES => "modules",
        TEST_MEMORY_MAP => "memory-map",
        _ => return None,
    })
}

/// A STARTUP without INIT started an AP that had not run since power-up.
pub const SEEN_STARTED_WITHOUT_INIT: u32 = 1;
/// It did not.
pub const SEEN_WAITED_FOR_INIT: u32 = 2;
/// An interrupt that came while the AP waited for STARTUP was delivered once it ran.
pub const SEEN_INTERRUPT_KEPT: u32 = 3;
/// It was not.
pub const SEEN_INTERRUPT_LOST: u32 = 4;
/// An NMI that came while the AP waited for STARTUP was delivered once it ran.
pub const SEEN_NMI_KEPT: u32 = 5;
/// It was not.
pub const SEEN_NMI_LOST: u32 = 6;
/// INIT by the shorthand `self` restarted the BSP.
pub const SEEN_SELF_SHORTHAND_RESTARTS: u32 = 7;
/// It did nothing.
pub const SEEN_SELF_SHORTHAND_IGNORED: u32 = 8;
/// The PCI device that the guest is about is there, and its BAR moves.
pub const SEEN_BAR_MOVES: u32 = 9;
/// The PCI device that the guest is about is not there.
pub const SEEN_NO_DEVICE: u32 = 10;

/// A CPU runs when the guest ends.
pub const SEEN_RUNS: u32 = 11;

/// The name of what was seen (`SEEN_*`).
#[must_use]
pub const fn seen_name(seen: u32) -> Option<&'static str> {
    Some(match seen {
        SEEN_STARTED_WITHOUT_INIT => "started-without-init",
        SEEN_WAITED_FOR_INIT => "waited-for-init",
        SEEN_INTERRUPT_KEPT => "interrupt-kept",
        SEEN_INTERRUPT_LOST => "interrupt-lost",
        SEEN_NMI_KEPT => "nmi-kept",
        SEEN_NMI_LOST => "nmi-lost",
        SEEN_SELF_SHORTHAND_RESTARTS => "self-shorthand-restarts",
        SEEN_SELF_SHORTHAND_IGNORED => "self-shorthand-ignored",
        SEEN_BAR_MOVES => "bar-moves",
        SEEN_NO_DEVICE => "no-device",
        SEEN_RUNS => "runs",
        _ => return None,
    })
}
