//! Any accesses to the 8259s and their lines.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::device::invariants::vatpic(bytes));
