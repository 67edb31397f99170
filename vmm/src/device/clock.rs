//! Ticks and nanoseconds.

use serde::{Deserialize, Serialize};

/// The rate of a counter, in ticks per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frequency {
    hz: u64,
}

impl Frequency {
    const NS_PER_S: u128 = 1_000_000_000;

    pub(super) const fn hz(hz: u64) -> Frequency {
        Frequency { hz }
    }

    /// How many whole ticks pass in `ns` nanoseconds.
    pub(super) fn ticks(self, ns: u64) -> u64 {
        saturate(u128::from(ns) * u128::from(self.hz) / Self::NS_PER_S)
    }

    /// After how many nanoseconds `ticks` ticks have passed: the least `ns` with `self.ticks(ns) >= ticks`.
    pub(super) fn ns(self, ticks: u64) -> u64 {
        saturate((u128::from(ticks) * Self::NS_PER_S).div_ceil(u128::from(self.hz)))
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A countdown under way. It keeps where it began, so that a periodic one does not drift by the rounding to nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Countdown {
    frequency: Frequency,
    /// When the first period began, in nanoseconds.
    base: u64,
    /// Ticks from there to the end of the present period.
    due: u64,
}

impl Countdown {
    pub(super) fn new(frequency: Frequency, period: u64, now: u64) -> Countdown {
        Countdown { frequency, base: now, due: period }
    }

    /// When the present period ends, in nanoseconds.
    pub(super) fn deadline(self) -> u64 {
        self.base.saturating_add(self.frequency.ns(self.due))
    }

    /// Ticks left of the present period.
    pub(super) fn remaining(self, now: u64) -> u64 {
        self.due.saturating_sub(self.frequency.ticks(now.saturating_sub(self.base)))
    }

    /// The period after this one, which has ended by `now`. It begins where this one ended, as long as it has not ended
    /// too: then it begins at `now`, and what was missed is missed.
    pub(super) fn next(self, period: u64, now: u64) -> Countdown {
        let next = Countdown { due: self.due + period, ..self };
        if next.deadline() > now { next } else { Countdown::new(self.frequency, period, now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three ticks of 128 MHz are no whole number of nanoseconds.
    #[test]
    fn a_periodic_countdown_does_not_drift() {
        let frequency = Frequency::hz(128 << 20);
        let mut countdown = Countdown::new(frequency, 3, 0);
        let mut ended = 0_u64;
        while countdown.deadline() <= 1_000_000 {
            countdown = countdown.next(3, countdown.deadline());
            ended += 1;
        }
        assert_eq!(ended, frequency.ticks(1_000_000) / 3);
    }

    #[test]
    fn missed_periods_are_dropped() {
        let countdown = Countdown::new(Frequency::hz(1000), 10, 0);
        assert_eq!(countdown.next(10, 19_999_999).deadline(), 20_000_000);
        assert_eq!(countdown.next(10, 20_000_000).deadline(), 30_000_000);
        assert_eq!(countdown.next(10, 75_000_000).deadline(), 85_000_000);
    }

    proptest! {
        /// A deadline computed from a tick count is neither early nor a tick late, for every rate below 1 GHz.
        #[test]
        fn a_deadline_meets_its_tick(hz in 1_u64..1_000_000_000, ticks in 0_u64..1 << 40) {
            let frequency = Frequency::hz(hz);
            let ns = frequency.ns(ticks);
            prop_assume!(ns < u64::MAX);
            prop_assert_eq!(frequency.ticks(ns), ticks);
            prop_assert!(ns == 0 || frequency.ticks(ns - 1) < ticks);
        }

        #[test]
        fn a_countdown_counts_down(hz in 1_u64..1_000_000_000, period in 1_u64..1 << 40, start in 0_u64..1 << 60) {
            let countdown = Countdown::new(Frequency::hz(hz), period, start);
            prop_assume!(countdown.deadline() < u64::MAX);
            prop_assert_eq!(countdown.remaining(start), period);
            prop_assert_eq!(countdown.remaining(countdown.deadline()), 0);
            prop_assert!(countdown.remaining(countdown.deadline() - 1) > 0);
        }
    }
}
