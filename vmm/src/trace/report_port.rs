// The report port: how a bare-metal guest tells the harness how far it came.
//
// One 32-bit OUT to `REPORT_PORT`: bits 31:24 a code below, bits 23:0 a payload. This file is plain constants without a
// crate of its own, so that the freestanding guests compile the very same lines.

/// The I/O port (32-bit writes only).
pub const REPORT_PORT: u16 = 0x5350;

/// The BSP has reached its main program. Payload: 0 xAPIC, 1 x2APIC.
pub const BOOT: u8 = 1;
/// The CPUs have been counted. Payload: bits 15:0 how many, the BSP among them; bit 16 the source: 0 ACPI MADT, 1 MP table.
pub const CPUS_FOUND: u8 = 2;
/// Written by an AP itself: it runs in its final mode on its own stack. Payload: its APIC ID.
pub const AP_ONLINE: u8 = 3;
/// A test of the running CPUs passed. Payload: which (`TEST_*`).
pub const TEST_PASSED: u8 = 4;
/// A test failed. Payload: which (`TEST_*`).
pub const TEST_FAILED: u8 = 5;
/// An AP that was asked for never reported. Payload: its APIC ID.
pub const AP_MISSING: u8 = 6;
/// Every AP came up and every test ran. Payload: how many APs.
pub const DONE: u8 = 7;
/// The guest gave up waiting. Payload: how many APs came up all the same.
pub const GAVE_UP: u8 = 8;
/// Something that the guest does not understand (no ACPI tables, an unexpected exception). Payload: the guest's own code.
pub const BROKEN: u8 = 9;
/// The sender begins to wait for an AP to come online. Payload: its APIC ID. This is where senders that start APs one by one
/// differ from those that start them all at once.
pub const AP_AWAITED: u8 = 10;

/// Atomic counters incremented by every CPU add up.
pub const TEST_COUNTERS: u32 = 1;
/// A token travels over all CPUs by IPI and comes back.
pub const TEST_PING_PONG: u32 = 2;
/// A spin lock keeps a plain variable consistent.
pub const TEST_SPIN_LOCK: u32 = 3;
/// Every CPU's local APIC timer ticks.
pub const TEST_TIMER: u32 = 4;
