//! The interrupt command register.

use super::Destination;
use crate::trace::{DeliveryMode, Shorthand};
use bitfield_struct::bitfield;

/// The interrupt command register, both halves (SDM 3A 11.6.1; 11.12.9 for x2APIC).
#[bitfield(u64)]
#[derive(PartialEq, Eq, Hash)]
pub struct Icr {
    /// Vector of a FIXED or LOWPRIO interrupt; page number of a STARTUP.
    pub vector: u8,
    /// What kind of interrupt.
    #[bits(3, from = delivery_mode, into = delivery_mode_bits)]
    pub delivery_mode: DeliveryMode,
    /// Whether the destination is logical.
    pub logical: bool,
    /// Delivery status: send pending. Always clear once a write has been handled.
    pub pending: bool,
    #[bits(1)]
    __: u8,
    /// Level: asserted.
    pub assert: bool,
    /// Trigger mode: level.
    pub level_triggered: bool,
    #[bits(2)]
    __: u8,
    /// Destination shorthand.
    #[bits(2, from = shorthand, into = shorthand_bits)]
    pub shorthand: Shorthand,
    #[bits(12)]
    __: u16,
    /// ICR_HI: the destination field, in bits 31:24 in xAPIC mode and whole in x2APIC mode.
    pub high: u32,
}

impl Icr {
    /// The destination field: 8 bits in xAPIC, 32 bits in x2APIC mode.
    #[must_use]
    pub const fn dest(self, x2apic: bool) -> u32 {
        if x2apic { self.high() } else { self.high() >> 24 }
    }

    /// Whom the interrupt is for, if there is no shorthand.
    #[must_use]
    pub const fn destination(self, x2apic: bool) -> Destination {
        Destination { dest: self.dest(x2apic), logical: self.logical(), x2apic }
    }

    /// ICR_LO.
    #[must_use]
    pub const fn low(self) -> u32 {
        self.into_bits() as u32
    }

    /// With ICR_LO replaced.
    #[must_use]
    pub const fn with_low(self, low: u32) -> Icr {
        Icr::from_bits((self.high() as u64) << 32 | low as u64)
    }
}

const fn delivery_mode(bits: u8) -> DeliveryMode {
    use DeliveryMode::*;
    [Fixed, LowestPriority, Smi, RemoteRead, Nmi, Init, Startup, ExtInt][(bits & 7) as usize]
}

const fn delivery_mode_bits(mode: DeliveryMode) -> u8 {
    match mode {
        DeliveryMode::Fixed => 0,
        DeliveryMode::LowestPriority => 1,
        DeliveryMode::Smi => 2,
        DeliveryMode::RemoteRead => 3,
        DeliveryMode::Nmi => 4,
        DeliveryMode::Init => 5,
        DeliveryMode::Startup => 6,
        DeliveryMode::ExtInt => 7,
    }
}

const fn shorthand(bits: u8) -> Shorthand {
    use Shorthand::*;
    [None, Itself, AllIncludingSelf, AllExcludingSelf][(bits & 3) as usize]
}

const fn shorthand_bits(shorthand: Shorthand) -> u8 {
    match shorthand {
        Shorthand::None => 0,
        Shorthand::Itself => 1,
        Shorthand::AllIncludingSelf => 2,
        Shorthand::AllExcludingSelf => 3,
    }
}

/// How a snapshot keeps the register: as its 64 bits.
pub(super) mod as_bits {
    use super::Icr;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(icr: &Icr, serializer: S) -> Result<S::Ok, S::Error> {
        icr.into_bits().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Icr, D::Error> {
        u64::deserialize(deserializer).map(Icr::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The writes of the universal start-up algorithm (MultiProcessor Specification 1.4, B.4).
    #[test]
    fn decodes_the_start_up_sequence() {
        let init = Icr::from_bits(0x0300_0000_0000_c500);
        assert_eq!((init.delivery_mode(), init.assert(), init.level_triggered()), (DeliveryMode::Init, true, true));
        assert_eq!((init.dest(false), init.dest(true)), (3, 0x0300_0000));
        let deassert = init.with_low(0x8500);
        assert_eq!((deassert.assert(), deassert.level_triggered(), deassert.high()), (false, true, 0x0300_0000));
        let startup = Icr::from_bits(0x0000_0000_000c_4608);
        assert_eq!((startup.delivery_mode(), startup.vector()), (DeliveryMode::Startup, 8));
        assert_eq!(startup.shorthand(), Shorthand::AllExcludingSelf);
    }

    proptest! {
        #[test]
        fn bits_survive(bits: u64) {
            prop_assert_eq!(Icr::from_bits(bits).into_bits(), bits);
        }

        #[test]
        fn fields_stand_where_the_manual_puts_them(
            vector: u8, mode in 0_u64..8, logical: bool, assert: bool, level: bool, short in 0_u64..4, high: u32,
        ) {
            let icr = Icr::new()
                .with_vector(vector)
                .with_delivery_mode(DeliveryMode::from_bits(mode as u32))
                .with_logical(logical)
                .with_assert(assert)
                .with_level_triggered(level)
                .with_shorthand(shorthand(short as u8))
                .with_high(high);
            let bits = u64::from(vector) | mode << 8 | u64::from(logical) << 11 | u64::from(assert) << 14
                | u64::from(level) << 15 | short << 18 | u64::from(high) << 32;
            prop_assert_eq!(icr.into_bits(), bits);
            prop_assert_eq!(Icr::from_bits(bits), icr);
            prop_assert_eq!(u64::from(icr.low()), bits & 0xffff_ffff);
            prop_assert_eq!(icr.delivery_mode(), DeliveryMode::from_bits(mode as u32));
        }
    }
}
