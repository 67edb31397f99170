//! The status flags, kept as the values that they are read off, so that setting them costs a handful of plain operations.

use super::word::Word;

pub(super) const CF: u64 = 1 << 0;
/// Bit 1, which is always set.
pub(super) const FIXED: u64 = 1 << 1;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const TF: u64 = 1 << 8;
pub(super) const IF: u64 = 1 << 9;
pub(super) const DF: u64 = 1 << 10;
pub(super) const OF: u64 = 1 << 11;
pub(super) const IOPL: u64 = 3 << 12;
pub(super) const NT: u64 = 1 << 14;
pub(super) const RF: u64 = 1 << 16;
pub(super) const VM: u64 = 1 << 17;
pub(super) const AC: u64 = 1 << 18;
pub(super) const VIF: u64 = 1 << 19;
pub(super) const VIP: u64 = 1 << 20;
pub(super) const ID: u64 = 1 << 21;
/// Every flag that there is, without the fixed bit.
pub(super) const DEFINED: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
/// The flags that [`Status`] holds.
pub(super) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

const TOP: u64 = 1 << 63;
const BELOW_TOP: u64 = 1 << 62;
const AUX: u64 = 1 << 3;

/// CF, PF, AF, ZF, SF and OF.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    /// ZF is set if this is zero.
    zero: u64,
    /// SF is bit 63; PF is set if bits 7:0 have an even number of ones.
    sign: u64,
    /// Carries out of the bits of the result, moved up so that bit 63 is the carry out of the highest (CF) and bit 62 the
    /// carry into it (OF is where they differ); bit 3 is the carry out of bit 3 (AF).
    carries: u64,
}

impl Status {
    /// As in RFLAGS; other bits are ignored.
    #[inline]
    pub(super) fn from_bits(bits: u64) -> Status {
        let (cf, of) = (bits & CF != 0, bits & OF != 0);
        Status {
            zero: u64::from(bits & ZF == 0),
            sign: if bits & SF != 0 { TOP } else { 0 } | u64::from(bits & PF == 0),
            carries: carry_bits(cf, of) | if bits & AF != 0 { AUX } else { 0 },
        }
    }

    /// As in RFLAGS; the other bits are 0.
    #[inline]
    pub(super) fn bits(self) -> u64 {
        let bit = |set: bool, flag: u64| if set { flag } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    #[inline(always)]
    pub(super) fn cf(self) -> bool {
        self.carries & TOP != 0
    }
    #[inline(always)]
    pub(super) fn pf(self) -> bool {
        (self.sign as u8).count_ones() & 1 == 0
    }
    #[inline(always)]
    pub(super) fn af(self) -> bool {
        self.carries & AUX != 0
    }
    #[inline(always)]
    pub(super) fn zf(self) -> bool {
        self.zero == 0
    }
    #[inline(always)]
    pub(super) fn sf(self) -> bool {
        self.sign & TOP != 0
    }
    #[inline(always)]
    pub(super) fn of(self) -> bool {
        (self.carries ^ self.carries << 1) & TOP != 0
    }

    /// After `result = a + b (+ carry)`.
    #[inline(always)]
    pub(super) fn add<T: Word>(a: T, b: T, result: T) -> Status {
        let (a, b, r) = (a.zx(), b.zx(), result.zx());
        Status::arithmetic::<T>(result, a & b | (a | b) & !r)
    }

    /// After `result = a - b (- borrow)`.
    #[inline(always)]
    pub(super) fn sub<T: Word>(a: T, b: T, result: T) -> Status {
        let (a, b, r) = (a.zx(), b.zx(), result.zx());
        Status::arithmetic::<T>(result, !a & b | (!a | b) & r)
    }

    #[inline(always)]
    fn arithmetic<T: Word>(result: T, carries: u64) -> Status {
        let r = result.sx();
        let carries = if T::BITS == 64 { carries } else { carries << (64 - T::BITS) | carries & AUX };
        Status { zero: r, sign: r, carries }
    }

    /// After a logical operation: CF and OF clear, AF (undefined) clear as on every processor there is.
    #[inline(always)]
    pub(super) fn logic<T: Word>(result: T) -> Status {
        Status { zero: result.sx(), sign: result.sx(), carries: 0 }
    }

    /// After an operation that sets CF and OF by rules of its own, and SF, ZF, PF by its result; AF clear.
    #[inline(always)]
    pub(super) fn result<T: Word>(result: T, cf: bool, of: bool) -> Status {
        Status { zero: result.sx(), sign: result.sx(), carries: carry_bits(cf, of) }
    }

    /// The same flags with another CF.
    #[inline(always)]
    pub(super) fn with_cf(self, cf: bool) -> Status {
        self.with_cf_of(cf, self.of())
    }

    /// The same flags with another CF and OF.
    #[inline(always)]
    pub(super) fn with_cf_of(self, cf: bool, of: bool) -> Status {
        Status { carries: self.carries & AUX | carry_bits(cf, of), ..self }
    }

    /// The same flags with another AF.
    #[inline]
    pub(super) fn with_af(self, af: bool) -> Status {
        Status { carries: self.carries & !AUX | if af { AUX } else { 0 }, ..self }
    }

    /// The same flags with another ZF.
    #[inline]
    pub(super) fn with_zf(self, zf: bool) -> Status {
        Status { zero: u64::from(!zf), ..self }
    }

    /// The condition that the low four bits of Jcc, SETcc and CMOVcc opcodes number (SDM 1 B.1).
    #[inline(always)]
    pub(super) fn condition(self, code: u8) -> bool {
        let holds = match code >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (code & 1 != 0)
    }
}

#[inline(always)]
fn carry_bits(cf: bool, of: bool) -> u64 {
    u64::from(cf) << 63 | if cf != of { BELOW_TOP } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives() {
        for bits in 0..=0xFFF_u64 {
            let bits = bits & STATUS;
            assert_eq!(Status::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn arithmetic_flags() {
        assert_eq!(Status::add::<u8>(0x7F, 1, 0x80).bits(), OF | SF | AF);
        assert_eq!(Status::add::<u8>(0xFF, 1, 0).bits(), CF | ZF | AF | PF);
        assert_eq!(Status::sub::<u64>(0, 1, u64::MAX).bits(), CF | SF | AF | PF);
        assert_eq!(Status::sub::<u16>(0x8000, 1, 0x7FFF).bits(), OF | AF | PF);
        assert_eq!(Status::logic::<u32>(0).bits(), ZF | PF);
        assert_eq!(Status::from_bits(ZF).with_cf(true).bits(), ZF | CF);
    }

    #[test]
    fn conditions_come_in_opposite_pairs() {
        for bits in (0..=0xFFF_u64).map(|bits| bits & STATUS) {
            let status = Status::from_bits(bits);
            for pair in 0..8 {
                assert_ne!(status.condition(pair * 2), status.condition(pair * 2 + 1));
            }
        }
        assert!(Status::sub::<u32>(1, 2, u32::MAX).condition(0xC), "1 is less than 2");
        assert!(Status::sub::<u32>(1, 2, u32::MAX).condition(0x2), "1 is below 2");
        assert!(!Status::sub::<u32>(0x8000_0000, 2, 0x7FFF_FFFE).condition(0xD), "the lowest is less than 2");
    }
}
