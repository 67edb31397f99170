//! The ACPI power management timer (`vpmtmr.c`; ACPI 4.8.3.3): a free-running 32-bit counter at 3.579545 MHz.

use super::clock::Frequency;
use serde::{Deserialize, Serialize};

/// `IO_PMTMR`: the port of the counter. It is read in four bytes; vmm refuses other sizes, and writes.
pub const IO_PMTMR: u16 = 0x408;

const FREQUENCY: Frequency = Frequency::hz(3_579_545);

/// The power management timer of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpmtmr {
    base: u64,
}

impl Vpmtmr {
    /// `vpmtmr_init`: the counter begins at 0.
    #[must_use]
    pub fn new(now: u64) -> Vpmtmr {
        Vpmtmr { base: now }
    }

    /// The counter. It wraps every 20 minutes.
    #[must_use]
    pub fn read(&self, now: u64) -> u32 {
        FREQUENCY.ticks(now.saturating_sub(self.base)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_when_it_was_made() {
        let vpmtmr = Vpmtmr::new(7_000);
        assert_eq!(vpmtmr.read(7_000), 0);
        assert_eq!(vpmtmr.read(7_000 + 279), 0);
        assert_eq!(vpmtmr.read(7_000 + 280), 1);
        assert_eq!(vpmtmr.read(1_000_007_000), 3_579_545);
    }

    #[test]
    fn wraps_at_32_bits() {
        let vpmtmr = Vpmtmr::new(0);
        let wrap = FREQUENCY.ns(1 << 32);
        assert_eq!(vpmtmr.read(wrap - 1), u32::MAX);
        assert_eq!(vpmtmr.read(wrap), 0);
    }
}
