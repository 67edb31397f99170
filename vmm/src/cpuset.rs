//! `cpuset_t`: a set of vCPUs, as wide as FreeBSD 14's (`CPU_SETSIZE` 1024). A kernel with smaller sets has no vCPUs beyond them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub, SubAssign};

/// `CPU_SETSIZE` from FreeBSD 14 on: how many vCPUs a set can name.
pub const CPU_SETSIZE: usize = 1024;
const WORDS: usize = CPU_SETSIZE / 64;

/// A set of vCPU numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    words: [u64; WORDS],
}

impl CpuSet {
    /// The empty set.
    pub const EMPTY: CpuSet = CpuSet { words: [0; WORDS] };

    /// The set of one vCPU; empty when `cpu` is not below [`CPU_SETSIZE`].
    #[must_use]
    pub fn single(cpu: usize) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        set.insert(cpu);
        set
    }

    /// Adds a vCPU; numbers from [`CPU_SETSIZE`] on are left out. Returns whether the set changed.
    pub fn insert(&mut self, cpu: usize) -> bool {
        let Some(word) = self.words.get_mut(cpu / 64) else {
            return false;
        };
        let bit = 1 << (cpu % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Removes a vCPU and returns whether it was a member.
    pub fn remove(&mut self, cpu: usize) -> bool {
        let was = self.contains(cpu);
        if was {
            self.words[cpu / 64] &= !(1 << (cpu % 64));
        }
        was
    }

    /// Whether the vCPU is a member (`CPU_ISSET`).
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        self.words.get(cpu / 64).is_some_and(|word| word & (1 << (cpu % 64)) != 0)
    }

    /// Whether no vCPU is a member (`CPU_EMPTY`).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == CpuSet::EMPTY
    }

    /// How many vCPUs are members (`CPU_COUNT`).
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// `CPU_FFS`: the lowest member **plus one**, 0 for the empty set.
    #[must_use]
    pub fn ffs(&self) -> usize {
        self.iter().next().map_or(0, |cpu| cpu + 1)
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.words;
        (0..WORDS).flat_map(move |index| {
            let mut word = words[index];
            std::iter::from_fn(move || {
                (word != 0).then(|| {
                    let bit = word.trailing_zeros() as usize;
                    word &= word - 1;
                    index * 64 + bit
                })
            })
        })
    }

    /// The 64-bit words of the set, lowest vCPUs first: the layout of `cpuset_t`.
    #[must_use]
    pub fn words(&self) -> [u64; WORDS] {
        self.words
    }

    /// The set with the given words, lowest vCPUs first; the others are empty.
    ///
    /// # Panics
    /// When there are more words than a set has.
    #[must_use]
    pub fn from_words(words: impl AsRef<[u64]>) -> CpuSet {
        let words = words.as_ref();
        let mut set = CpuSet::EMPTY;
        set.words[..words.len()].copy_from_slice(words);
        set
    }

    fn zip(self, other: CpuSet, op: impl Fn(u64, u64) -> u64) -> CpuSet {
        CpuSet { words: std::array::from_fn(|i| op(self.words[i], other.words[i])) }
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        for cpu in cpus {
            set.insert(cpu);
        }
        set
    }
}

impl BitAnd for CpuSet {
    type Output = CpuSet;
    fn bitand(self, other: CpuSet) -> CpuSet {
        self.zip(other, |a, b| a & b)
    }
}

impl BitOr for CpuSet {
    type Output = CpuSet;
    fn bitor(self, other: CpuSet) -> CpuSet {
        self.zip(other, |a, b| a | b)
    }
}

impl BitOrAssign for CpuSet {
    fn bitor_assign(&mut self, other: CpuSet) {
        *self = *self | other;
    }
}

impl Sub for CpuSet {
    type Output = CpuSet;
    fn sub(self, other: CpuSet) -> CpuSet {
        self.zip(other, |a, b| a & !b)
    }
}

impl SubAssign for CpuSet {
    fn sub_assign(&mut self, other: CpuSet) {
        *self = *self - other;
    }
}

/// `{}`, `{1}`, `{0,2-5}`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        let mut cpus = self.iter().peekable();
        let mut first = true;
        while let Some(start) = cpus.next() {
            let mut end = start;
            while cpus.next_if_eq(&(end + 1)).is_some() {
                end += 1;
            }
            if !first {
                f.write_str(",")?;
            }
            first = false;
            match end - start {
                0 => write!(f, "{start}")?,
                1 => write!(f, "{start},{end}")?,
                _ => write!(f, "{start}-{end}")?,
            }
        }
        f.write_str("}")
    }
}

/// As the list of its members.
impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpuSet, D::Error> {
        Ok(Vec::<usize>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn display_joins_runs() {
        assert_eq!(CpuSet::EMPTY.to_string(), "{}");
        assert_eq!(CpuSet::single(1).to_string(), "{1}");
        assert_eq!([0, 1, 3, 4, 5, 200].into_iter().collect::<CpuSet>().to_string(), "{0,1,3-5,200}");
    }

    #[test]
    fn ffs_counts_from_one() {
        assert_eq!(CpuSet::EMPTY.ffs(), 0);
        assert_eq!(CpuSet::single(0).ffs(), 1);
        assert_eq!(CpuSet::single(255).ffs(), 256);
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(a: BTreeSet<u16>, b: BTreeSet<u16>) {
            let limit = |s: BTreeSet<u16>| s.into_iter().map(|cpu| cpu % CPU_SETSIZE as u16).collect::<BTreeSet<_>>();
            let (a, b) = (limit(a), limit(b));
            let set = |s: &BTreeSet<u16>| s.iter().map(|&c| usize::from(c)).collect::<CpuSet>();
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x & y, set(&(&a & &b)));
            prop_assert_eq!(x | y, set(&(&a | &b)));
            prop_assert_eq!(x - y, set(&(&a - &b)));
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().map(|&c| usize::from(c)).collect::<Vec<_>>());
            prop_assert_eq!(CpuSet::from_words(x.words()), x);
        }
    }
}
