//! Any bytes as code of the software processor, of every size and under any set of features.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::engine::soft::invariants::decode(bytes));
