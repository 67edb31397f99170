//! Any accesses to COM1.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frontends::invariants::uart(bytes));
