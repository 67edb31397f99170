//! A PC with every optional device, on the chipset that the first byte says.
#![no_main]

use frontends::{Chipset, equipped};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, accesses)) = bytes.split_first() {
        equipped::drive(if first & 1 != 0 { Chipset::I440fx } else { Chipset::Bhyve }, accesses);
    }
});
