//! A set of interrupt vectors, as IRR, ISR and TMR keep it.

use serde::{Deserialize, Serialize};

/// 256 bits in eight 32-bit registers (SDM 3A 11.8.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors {
    words: [u32; 8],
}

impl Vectors {
    pub(super) fn set(&mut self, vector: u8, member: bool) {
        let word = &mut self.words[usize::from(vector / 32)];
        let bit = 1 << (vector % 32);
        if member {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.words[usize::from(vector / 32)] & 1 << (vector % 32) != 0
    }

    /// The highest vector, which is the one of the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        (0..8_u8).rev().find_map(|index| {
            let word = self.words[usize::from(index)];
            (word != 0).then(|| index * 32 + word.ilog2() as u8)
        })
    }

    /// One of the eight registers.
    pub(super) fn word(&self, index: u16) -> u32 {
        self.words[usize::from(index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(changes: Vec<(u8, bool)>) {
            let (mut vectors, mut model) = (Vectors::default(), BTreeSet::new());
            for (vector, member) in changes {
                vectors.set(vector, member);
                if member { model.insert(vector); } else { model.remove(&vector); }
                prop_assert_eq!(vectors.highest(), model.last().copied());
            }
            for vector in 0..=255_u8 {
                prop_assert_eq!(vectors.contains(vector), model.contains(&vector));
                let bit = vectors.word(u16::from(vector) / 32) >> (vector % 32) & 1;
                prop_assert_eq!(bit == 1, model.contains(&vector));
            }
        }
    }
}
