//! What the guest `random-io` does, written as a suffix of its name: `random-io+s7.n10000.wild` makes 10,000 accesses from seed 7 and
//! spares nothing.
//!
//! | word | meaning |
//! |---|---|
//! | `s7` | the seed of the accesses |
//! | `n10000` | how many, on all CPUs together |
//! | `wild` | those too that end the machine |

use crate::parameters::{ACCESSES, NUMBERS, SEED, WILD, rom_with};
use crate::{Guest, Made};
use std::fmt;
use std::str::FromStr;

/// What stands between the guest's name and its parameters.
const SIGN: char = '+';

/// Which accesses the guest `random-io` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RandomIo {
    /// The seed: the same one makes the same accesses.
    pub seed: u32,
    /// How many, on all CPUs together.
    pub accesses: u32,
    /// Whether those are among them that end the machine: power-off, reset, INIT, what vmm and bhyve give up at.
    pub wild: bool,
}

/// A text is not what `random-io` can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that random-io does: s7.n10000 or s7.n10000.wild, a seed and how many accesses")]
pub struct RandomIoError(String);

impl RandomIo {
    /// The guest's name in cells, with its parameters.
    #[must_use]
    pub fn guest(&self) -> String {
        format!("{}{SIGN}{self}", Guest::RandomIo)
    }

    /// The parameters in a guest's name; `None` when the name is not that of the guest `random-io` with some.
    #[must_use]
    pub fn of_guest(name: &str) -> Option<Result<RandomIo, RandomIoError>> {
        name.strip_prefix(Guest::RandomIo.name())?.strip_prefix(SIGN).map(str::parse)
    }

    /// The guest's boot ROM with the parameters in it.
    #[must_use]
    pub fn rom(&self) -> Vec<u8> {
        let mut numbers = [0; NUMBERS];
        (numbers[SEED], numbers[ACCESSES], numbers[WILD]) = (self.seed, self.accesses, self.wild.into());
        rom_with(Guest::RandomIo.rom(), numbers)
    }
}

impl Made for RandomIo {
    fn name(&self) -> String {
        self.guest()
    }

    fn rom(&self) -> Vec<u8> {
        RandomIo::rom(self)
    }
}

impl fmt::Display for RandomIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}.n{}{}", self.seed, self.accesses, if self.wild { ".wild" } else { "" })
    }
}

impl FromStr for RandomIo {
    type Err = RandomIoError;

    fn from_str(text: &str) -> Result<RandomIo, RandomIoError> {
        let parse = || {
            let (rest, wild) = text.strip_suffix(".wild").map_or((text, false), |rest| (rest, true));
            let (seed, accesses) = rest.strip_prefix('s')?.split_once(".n")?;
            Some(RandomIo { seed: seed.parse().ok()?, accesses: accesses.parse().ok()?, wild })
        };
        // One text for each: no leading zeros, no signs.
        parse().filter(|parsed| parsed.to_string() == text).ok_or_else(|| RandomIoError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_part_of_the_guests_name() {
        for wild in [false, true] {
            let random_io = RandomIo { seed: 7, accesses: 10_000_000, wild };
            assert_eq!(RandomIo::of_guest(&random_io.guest()), Some(Ok(random_io)));
        }
        for none in ["random-io", "random-ios+s1.n1", "mp-spec+s1.n1", ""] {
            assert_eq!(RandomIo::of_guest(none), None, "{none}");
        }
        for wrong in ["", "s1", "n1", "s1.n1.", "s1.n1.tame", "s01.n1", "s1.n+1", "s1.n4294967296", "é"] {
            assert_eq!(wrong.parse::<RandomIo>(), Err(RandomIoError(wrong.to_owned())));
        }
    }

    #[test]
    fn what_the_rom_has_of_itself() {
        let default = RandomIo { seed: 1, accesses: 5_000, wild: false };
        assert_eq!(default.rom(), Guest::RandomIo.rom());
    }
}
