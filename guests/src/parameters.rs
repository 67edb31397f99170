//! The numbers of guests that take parameters, as they stand in a ROM.

#[path = "../freestanding/runtime/parameter.rs"]
#[allow(unreachable_pub, reason = "the constants are shared with the guests, where they are public")]
mod parameter;

pub(crate) use parameter::*;

/// A ROM with these numbers in it, of a guest that takes some.
pub(crate) fn rom_with(rom: &[u8], numbers: [u32; NUMBERS]) -> Vec<u8> {
    let mut rom = rom.to_vec();
    let mark = rom.windows(MARK.len()).position(|bytes| bytes == MARK).expect("a test finds the mark in the ROM");
    for (place, number) in rom[mark + MARK.len()..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    rom
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Guest;

    #[test]
    fn the_roms_have_one_place_for_parameters() {
        for guest in [Guest::RandomIo, Guest::Ending] {
            let rom = guest.rom();
            assert_eq!(rom.windows(MARK.len()).filter(|bytes| *bytes == MARK).count(), 1, "{guest}");
            let other = rom_with(rom, [u32::MAX; NUMBERS]);
            let differs: Vec<usize> = (0..rom.len()).filter(|&at| rom[at] != other[at]).collect();
            assert!(differs.last().zip(differs.first()).is_some_and(|(last, first)| last - first < 4 * NUMBERS));
        }
    }
}
