//! Any state and code on the software processor, a block at a time and in single steps.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::engine::soft::invariants::soft(bytes));
