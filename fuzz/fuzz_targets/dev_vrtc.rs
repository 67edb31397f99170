//! The device under whatever bytes say (`vmm::device::exercise`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::device::exercise::{Device, drive, words_of};

fuzz_target!(|bytes: &[u8]| {
    drive(Device::Vrtc, words_of(bytes));
});
