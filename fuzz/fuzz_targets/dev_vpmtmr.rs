//! Any time at the ACPI power management timer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::device::invariants::vpmtmr(bytes));
