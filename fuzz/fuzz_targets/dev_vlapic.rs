//! Any accesses to a local APIC, and any time.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::device::invariants::vlapic(bytes));
