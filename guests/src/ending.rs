//! How the guest `ending` ends its machine, written as a suffix of its name: `ending+cf9` resets it by the reset control register.

use crate::parameters::{self, NUMBERS, OFF, rom_with};
use crate::{Guest, Made};
use std::fmt;
use std::str::FromStr;

/// What stands between the guest's name and the way.
const SIGN: char = '+';

/// A way to end a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Soft off by PM1a control (ACPI 6.5, 4.8.3.2.1).
    Off,
    /// Reset by the reset control register, port CF9H.
    Cf9,
    /// Reset by the keyboard controller, FEH to port 64H.
    I8042,
    /// A triple fault of the BSP.
    TripleFault,
    /// Every CPU halts with interrupts off.
    Halt,
}

/// A text names no [`Way`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no way to end a machine: off, cf9, i8042, triple-fault, halt")]
pub struct UnknownWay(String);

impl Way {
    /// All ways.
    pub const ALL: [Way; 5] = [Way::Off, Way::Cf9, Way::I8042, Way::TripleFault, Way::Halt];

    /// Its name and its number in the ROM.
    fn named(self) -> (&'static str, u32) {
        match self {
            Way::Off => ("off", OFF),
            Way::Cf9 => ("cf9", parameters::CF9),
            Way::I8042 => ("i8042", parameters::I8042),
            Way::TripleFault => ("triple-fault", parameters::TRIPLE_FAULT),
            Way::Halt => ("halt", parameters::HALT),
        }
    }

    /// The guest's name in cells, with the way.
    #[must_use]
    pub fn guest(self) -> String {
        format!("{}{SIGN}{self}", Guest::Ending)
    }

    /// The way in a guest's name; `None` when the name is not that of the guest `ending` with one.
    #[must_use]
    pub fn of_guest(name: &str) -> Option<Result<Way, UnknownWay>> {
        name.strip_prefix(Guest::Ending.name())?.strip_prefix(SIGN).map(str::parse)
    }

    /// The guest's boot ROM with the way in it.
    #[must_use]
    pub fn rom(self) -> Vec<u8> {
        let mut numbers = [0; NUMBERS];
        numbers[parameters::WAY] = self.named().1;
        rom_with(Guest::Ending.rom(), numbers)
    }
}

impl Made for Way {
    fn name(&self) -> String {
        self.guest()
    }

    fn rom(&self) -> Vec<u8> {
        Way::rom(*self)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.named().0)
    }
}

impl FromStr for Way {
    type Err = UnknownWay;

    fn from_str(name: &str) -> Result<Way, UnknownWay> {
        Way::ALL.into_iter().find(|way| way.named().0 == name).ok_or_else(|| UnknownWay(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_part_of_the_guests_name() {
        for way in Way::ALL {
            assert_eq!(Way::of_guest(&way.guest()), Some(Ok(way)));
        }
        assert_eq!(Way::of_guest("ending"), None);
        assert_eq!(Way::of_guest("ending+fire"), Some(Err(UnknownWay("fire".to_owned()))));
        assert_eq!(Way::Off.rom(), Guest::Ending.rom(), "what the ROM has of itself");
    }
}
