//! The PC around the processors under whatever bytes say (`frontends::exercise`).
#![no_main]

use frontends::Chipset;
use frontends::exercise::drive;
use libfuzzer_sys::fuzz_target;
use vmm::device::exercise::words_of;

fuzz_target!(|bytes: &[u8]| {
    drive(Chipset::Bhyve, words_of(bytes));
});
