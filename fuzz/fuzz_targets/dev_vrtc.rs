//! Any accesses to the clock, and any time.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::device::invariants::vrtc(bytes));
