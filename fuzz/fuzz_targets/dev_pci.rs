//! Any accesses to PCI configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| frontends::invariants::pci(bytes));
