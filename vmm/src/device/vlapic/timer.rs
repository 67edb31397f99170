//! The timer of the local APIC (SDM 3A 11.5.4).

use crate::device::clock::{Countdown, Frequency};
use serde::{Deserialize, Serialize};

/// `VLAPIC_BUS_FREQ`: what the divide configuration register divides.
const BUS: Frequency = Frequency::hz(128 << 20);

/// Initial count, current count and divide configuration. Whether the timer is periodic, and what it raises, stands in
/// the LVT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    initial_count: u32,
    divide_configuration: u32,
    countdown: Option<Countdown>,
}

impl Timer {
    /// The bits of the divide configuration register that mean something.
    pub(super) const DIVIDE_CONFIGURATION: u32 = 0b1011;

    pub(super) fn initial_count(&self) -> u32 {
        self.initial_count
    }

    /// Starts a countdown; 0 stops the timer.
    pub(super) fn set_initial_count(&mut self, count: u32, now: u64) {
        self.initial_count = count;
        self.restart(now);
    }

    /// Starts a countdown from the initial count.
    pub(super) fn restart(&mut self, now: u64) {
        self.countdown = (self.initial_count != 0).then(|| Countdown::new(BUS, self.period(), now));
    }

    pub(super) fn stop(&mut self) {
        self.countdown = None;
    }

    pub(super) fn divide_configuration(&self) -> u32 {
        self.divide_configuration
    }

    /// As in FreeBSD, a countdown under way still ends when it would have ended; the next one has the new rate.
    pub(super) fn set_divide_configuration(&mut self, value: u32) {
        self.divide_configuration = value & Self::DIVIDE_CONFIGURATION;
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        let remaining = self.countdown.map_or(0, |countdown| countdown.remaining(now) / self.divisor());
        u32::try_from(remaining).map_or(self.initial_count, |count| count.min(self.initial_count))
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.countdown.map(Countdown::deadline)
    }

    /// Whether a countdown has ended by `now`. A periodic timer then goes on with the next.
    pub(super) fn expire(&mut self, periodic: bool, now: u64) -> bool {
        let Some(countdown) = self.countdown.filter(|countdown| countdown.deadline() <= now) else {
            return false;
        };
        self.countdown = periodic.then(|| countdown.next(self.period(), now));
        true
    }

    /// Length of a countdown, in ticks of the bus.
    fn period(&self) -> u64 {
        u64::from(self.initial_count) * self.divisor()
    }

    /// Figure 11-10: bits 3, 1 and 0 are the binary logarithm less one, except that 111 divides by 1.
    fn divisor(&self) -> u64 {
        let exponent = (self.divide_configuration >> 1 & 0b100) | self.divide_configuration & 0b11;
        1 << ((exponent + 1) & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timer(divide: u32, count: u32, now: u64) -> Timer {
        let mut timer = Timer::default();
        timer.set_divide_configuration(divide);
        timer.set_initial_count(count, now);
        timer
    }

    #[test]
    fn divides_as_the_manual_says() {
        let divisors = [
            (0b0000, 2),
            (0b0001, 4),
            (0b0010, 8),
            (0b0011, 16),
            (0b1000, 32),
            (0b1001, 64),
            (0b1010, 128),
            (0b1011, 1),
        ];
        for (configuration, divisor) in divisors {
            assert_eq!(timer(configuration, 0, 0).divisor(), divisor, "{configuration:#06b}");
        }
    }

    #[test]
    fn one_second_of_the_bus() {
        let mut timer = timer(0b1011, 128 << 20, 5);
        assert_eq!(timer.deadline(), Some(1_000_000_005));
        assert_eq!(timer.current_count(500_000_005), 64 << 20);
        assert!(!timer.expire(false, 1_000_000_004));
        assert!(timer.expire(false, 1_000_000_005));
        assert_eq!((timer.deadline(), timer.current_count(1_000_000_006)), (None, 0));
    }

    #[test]
    fn periodic_keeps_its_beat_unless_a_whole_period_was_missed() {
        let mut timer = timer(0b1011, 128 << 20, 0);
        assert!(timer.expire(true, 1_900_000_000));
        assert_eq!(timer.deadline(), Some(2_000_000_000));
        assert!(timer.expire(true, 3_000_000_000));
        assert_eq!(timer.deadline(), Some(4_000_000_000), "late by a period: a new time base");
        assert!(!timer.expire(true, 3_000_000_000));
    }

    #[test]
    fn a_new_divisor_never_shows_more_than_the_initial_count() {
        let mut timer = timer(0b1010, 1000, 0);
        timer.set_divide_configuration(0b1011);
        assert_eq!(timer.current_count(0), 1000);
        assert_eq!(timer.deadline(), Some(BUS.ns(128_000)));
    }

    proptest! {
        #[test]
        fn counts_down_to_nothing(divide in 0_u32..16, count in 1_u32.., start in 0_u64..1 << 60, part in 0.0..1.0) {
            let timer = timer(divide, count, start);
            let deadline = timer.deadline().expect("a countdown is under way");
            prop_assert_eq!(timer.current_count(start), count);
            prop_assert_eq!(timer.current_count(deadline), 0);
            prop_assert!(timer.current_count(deadline - 1) <= 1);
            let elapsed = ((deadline - start) as f64 * part) as u64;
            let ticks = u128::from(elapsed) * (128 << 20) / 1_000_000_000 / u128::from(timer.divisor());
            let shown = u128::from(timer.current_count(start + elapsed));
            prop_assert!((u128::from(count) - ticks).abs_diff(shown) <= 1, "{shown} after {ticks} of {count}");
        }
    }
}
