//! Any accesses to the I/O APIC and its pins.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::device::invariants::vioapic(bytes));
