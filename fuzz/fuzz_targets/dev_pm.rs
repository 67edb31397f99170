//! Any accesses to the power management registers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frontends::invariants::pm(bytes));
