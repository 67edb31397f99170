//! Any accesses to the keyboard controller.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frontends::invariants::kbdc(bytes));
