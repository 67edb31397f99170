//! CRC-32 as in Ethernet and zip (ISO 3309), bit by bit.

use runtime::memory::read;

/// Of the bytes from one address to another.
pub(crate) fn of_memory(start: u32, end: u32) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut crc = u32::MAX;
    for at in start..end {
        crc ^= u32::from(read::<u8>(at));
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    !crc
}
