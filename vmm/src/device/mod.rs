//! The emulated interrupt and timer hardware of a virtual machine, after the devices in `sys/amd64/vmm/io`.
//!
//! A device is a plain structure that touches nothing outside itself: no clock, no lock, no host, no other device. Time
//! comes in as `now`, in nanoseconds of the cell's time; work goes out as the returned value ([`vlapic::Effect`],
//! [`vioapic::Message`], …), which the kernel core applies. So a device is deterministic, and its tests need no machine.
//!
//! Time is driven from outside too: `next_deadline` says when a device has something to do, and `advance(now)` does what
//! is due. A deadline that is met late is met once: periods that were missed altogether are dropped, as FreeBSD's callouts
//! drop them.

pub mod vlapic;

/// The guest's instruction faults with #GP(0) instead of completing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("General protection exception")]
pub struct GeneralProtection;

/// The rate of a counter, in ticks per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frequency {
    hz: u64,
}

impl Frequency {
    const NS_PER_S: u128 = 1_000_000_000;

    const fn hz(hz: u64) -> Frequency {
        Frequency { hz }
    }

    /// How many whole ticks pass in `ns` nanoseconds.
    fn ticks(self, ns: u64) -> u64 {
        saturate(u128::from(ns) * u128::from(self.hz) / Self::NS_PER_S)
    }

    /// After how many nanoseconds `ticks` ticks have passed: the least `ns` with `self.ticks(ns) >= ticks`.
    fn ns(self, ticks: u64) -> u64 {
        saturate((u128::from(ticks) * Self::NS_PER_S).div_ceil(u128::from(self.hz)))
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    }
}
