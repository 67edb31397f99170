//! Any accesses to any port and to the hole below 4 GiB.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frontends::invariants::pc(bytes));
