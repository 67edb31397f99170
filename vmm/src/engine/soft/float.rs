//! Binary floating point in integers: single, double and double extended precision with x86's exceptions, the same bits on
//! every host (SDM 1 4.8 and 4.9).
//!
//! A number of any format is unpacked into a [`Number`], whose significand is exact. An operation makes its exact result,
//! with everything below the 128th bit folded into one sticky bit, and [`Env::round`] brings it into a format once.

use super::fpu::F80;

/// Exception flags as in MXCSR and the x87 status word.
pub(super) mod flag {
    pub(in super::super) const INVALID: u8 = 1 << 0;
    pub(in super::super) const DENORMAL: u8 = 1 << 1;
    pub(in super::super) const ZERO_DIVIDE: u8 = 1 << 2;
    pub(in super::super) const OVERFLOW: u8 = 1 << 3;
    pub(in super::super) const UNDERFLOW: u8 = 1 << 4;
    pub(in super::super) const INEXACT: u8 = 1 << 5;
    pub(in super::super) const ALL: u8 = 0x3F;
    /// Those that are found before a result is computed.
    pub(in super::super) const BEFORE: u8 = INVALID | DENORMAL | ZERO_DIVIDE;
}

/// Where results between two numbers go, by the encoding of RC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// From the two bits of a rounding-control field.
    pub(super) fn from_bits(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }

    /// Whether the magnitude goes up, when `odd` is the last bit kept, and what is cut off is compared with half of it.
    fn increments(self, sign: bool, odd: bool, rest: std::cmp::Ordering, inexact: bool) -> bool {
        match self {
            Rounding::Nearest => rest.is_gt() || rest.is_eq() && odd,
            Rounding::Down => sign && inexact,
            Rounding::Up => !sign && inexact,
            Rounding::Zero => false,
        }
    }
}

/// A format's precision in bits, integer bit included, and its exponent range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    precision: u32,
    /// Of the smallest normal number.
    lowest: i32,
    highest: i32,
}

impl Format {
    pub(super) const SINGLE: Format = Format { precision: 24, lowest: -126, highest: 127 };
    pub(super) const DOUBLE: Format = Format { precision: 53, lowest: -1022, highest: 1023 };
    pub(super) const EXTENDED: Format = Format { precision: 64, lowest: -16382, highest: 16383 };

    /// Double extended with as many bits as the x87 precision-control field says (SDM 1 8.1.5.2).
    pub(super) fn x87(precision_control: u16) -> Format {
        let precision = match precision_control & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Format { precision, ..Format::EXTENDED }
    }

    fn fraction_bits(self) -> u32 {
        self.precision - 1
    }

    fn sign_bit(self) -> u32 {
        if self.precision == 24 { 31 } else { 63 }
    }

    fn special_exponent(self) -> u64 {
        (2 * self.highest + 1) as u64
    }
}

/// What a bit pattern is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    Finite,
    Infinity,
    Quiet,
    Signaling,
    /// A pattern of double extended precision that no operation makes or takes (SDM 1 8.2.2).
    Unsupported,
}

/// A number out of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) sign: bool,
    pub(super) class: Class,
    /// Of bit 63 of the significand.
    pub(super) exponent: i32,
    /// Left-aligned. Bit 63 is set but in a rounded denormal; in a NaN, bit 62 says that it is quiet.
    pub(super) significand: u64,
    /// It was a denormal number.
    pub(super) denormal: bool,
}

const INTEGER_BIT: u64 = 1 << 63;
const QUIET_BIT: u64 = 1 << 62;

impl Number {
    pub(super) fn zero(sign: bool) -> Number {
        Number { sign, class: Class::Zero, exponent: 0, significand: 0, denormal: false }
    }
    pub(super) fn infinity(sign: bool) -> Number {
        Number { sign, class: Class::Infinity, exponent: 0, significand: INTEGER_BIT, denormal: false }
    }
    /// The quiet NaN that invalid operations make.
    pub(super) fn indefinite() -> Number {
        let significand = INTEGER_BIT | QUIET_BIT;
        Number { sign: true, class: Class::Quiet, exponent: 0, significand, denormal: false }
    }
    fn finite(sign: bool, exponent: i32, significand: u64) -> Number {
        Number { sign, class: Class::Finite, exponent, significand, denormal: false }
    }

    pub(super) fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }
    pub(super) fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }
    fn quieted(self) -> Number {
        Number { class: Class::Quiet, significand: self.significand | QUIET_BIT, ..self }
    }
    pub(super) fn negated(self) -> Number {
        Number { sign: !self.sign, ..self }
    }

    /// Takes a single or double apart.
    pub(super) fn unpack(format: Format, bits: u64) -> Number {
        let sign = bits >> format.sign_bit() & 1 != 0;
        let biased = bits >> format.fraction_bits() & format.special_exponent();
        let fraction = bits & ((1 << format.fraction_bits()) - 1);
        let aligned = fraction << (63 - format.fraction_bits());
        if biased == format.special_exponent() {
            return match fraction {
                0 => Number::infinity(sign),
                _ => Number::nan(sign, aligned | INTEGER_BIT),
            };
        }
        match (biased, fraction) {
            (0, 0) => Number::zero(sign),
            (0, _) => Number::denormal(sign, format.lowest, aligned),
            _ => Number::finite(sign, biased as i32 - format.highest, aligned | INTEGER_BIT),
        }
    }

    fn nan(sign: bool, significand: u64) -> Number {
        let class = if significand & QUIET_BIT != 0 { Class::Quiet } else { Class::Signaling };
        Number { sign, class, exponent: 0, significand, denormal: false }
    }

    fn denormal(sign: bool, exponent: i32, significand: u64) -> Number {
        let shift = significand.leading_zeros();
        let (exponent, significand) = (exponent - shift as i32, significand << shift);
        Number { sign, class: Class::Finite, exponent, significand, denormal: true }
    }

    /// Puts a rounded number into single or double precision.
    pub(super) fn pack(&self, format: Format) -> u64 {
        let sign = u64::from(self.sign) << format.sign_bit();
        let special = format.special_exponent() << format.fraction_bits();
        let fraction = (self.significand & !INTEGER_BIT) >> (63 - format.fraction_bits());
        sign | match self.class {
            Class::Zero => 0,
            Class::Infinity => special,
            Class::Quiet | Class::Signaling | Class::Unsupported => special | fraction,
            Class::Finite if self.significand & INTEGER_BIT == 0 => fraction,
            Class::Finite => ((self.exponent + format.highest) as u64) << format.fraction_bits() | fraction,
        }
    }

    /// Takes a register apart.
    pub(super) fn of(value: F80) -> Number {
        let sign = value.sign_exponent & 0x8000 != 0;
        let (exponent, significand) = (value.sign_exponent & 0x7FFF, value.significand);
        let has_integer = significand & INTEGER_BIT != 0;
        match (exponent, significand) {
            (0, 0) => Number::zero(sign),
            (0, _) => Number::denormal(sign, Format::EXTENDED.lowest, significand),
            (_, _) if !has_integer => Number { class: Class::Unsupported, ..Number::nan(sign, significand) },
            (0x7FFF, INTEGER_BIT) => Number::infinity(sign),
            (0x7FFF, _) => Number::nan(sign, significand),
            _ => Number::finite(sign, i32::from(exponent) - Format::EXTENDED.highest, significand),
        }
    }

    /// Puts a rounded number into a register.
    pub(super) fn to_f80(self) -> F80 {
        let exponent = match self.class {
            Class::Zero => 0,
            Class::Finite if self.significand & INTEGER_BIT == 0 => 0,
            Class::Finite => (self.exponent + Format::EXTENDED.highest) as u16,
            _ => 0x7FFF,
        };
        let significand = if self.is_zero() { 0 } else { self.significand };
        F80 { significand, sign_exponent: exponent | u16::from(self.sign) << 15 }
    }

    /// An integer, exactly.
    pub(super) fn of_integer(value: i64) -> Number {
        let magnitude = value.unsigned_abs();
        if magnitude == 0 {
            return Number::zero(false);
        }
        let shift = magnitude.leading_zeros();
        Number::finite(value < 0, 63 - shift as i32, magnitude << shift)
    }

    /// Compares magnitudes of numbers that are not NaNs.
    fn compare_magnitude(&self, other: &Number) -> std::cmp::Ordering {
        let key = |number: &Number| match number.class {
            Class::Zero => (0, 0, 0),
            Class::Infinity => (2, 0, 0),
            _ => (1, number.exponent, number.significand),
        };
        key(self).cmp(&key(other))
    }

    /// Compares two numbers; `None` if one is a NaN.
    pub(super) fn compare(&self, other: &Number) -> Option<std::cmp::Ordering> {
        use std::cmp::Ordering;
        if self.is_nan() || other.is_nan() {
            return None;
        }
        if self.is_zero() && other.is_zero() {
            return Some(Ordering::Equal);
        }
        Some(match (self.sign, other.sign) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.compare_magnitude(other),
            (true, true) => other.compare_magnitude(self),
        })
    }
}

/// Which NaN of two an operation returns (SDM 1 table 4-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NanRule {
    /// SSE: the first that there is.
    First,
    /// x87: a quiet one before a signaling one, else the larger significand.
    Larger,
}

/// How operations are done, and what exceptions they have found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Env {
    pub(super) rounding: Rounding,
    pub(super) nan_rule: NanRule,
    /// Denormal operands are zeros.
    pub(super) daz: bool,
    /// Results that underflow are zeros.
    pub(super) ftz: bool,
    /// Exceptions that are masked.
    pub(super) masked: u8,
    /// Overflow and underflow that are not masked wrap the exponent, as x87 registers do.
    pub(super) wraps: bool,
    /// Exceptions found.
    pub(super) flags: u8,
    /// The last rounding went away from zero.
    pub(super) rounded_up: bool,
}

/// How far an x87 exponent wraps at unmasked overflow and underflow (SDM 1 8.5.4).
const WRAP: i32 = 24576;

fn shift_right_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

impl Env {
    fn is_masked(&self, flag: u8) -> bool {
        self.masked & flag != 0
    }

    /// Rounds a left-aligned significand to `precision` bits: the significand, whether the exponent goes up, and whether
    /// something was lost.
    fn cut(&mut self, sign: bool, significand: u128, precision: u32) -> (u64, bool, bool) {
        let unit = 1_u128 << (128 - precision);
        let rest = significand & (unit - 1);
        let kept = significand - rest;
        let inexact = rest != 0;
        let up = self.rounding.increments(sign, kept & unit != 0, rest.cmp(&(unit / 2)), inexact);
        self.rounded_up = up;
        if !up {
            return ((kept >> 64) as u64, false, inexact);
        }
        match kept.checked_add(unit) {
            Some(sum) => ((sum >> 64) as u64, false, inexact),
            None => (INTEGER_BIT, true, inexact),
        }
    }

    /// Brings an exact result into a format. `significand` is left-aligned with its top bit set, its lowest bit sticky, and
    /// `exponent` is that of the top bit.
    pub(super) fn round(&mut self, format: Format, sign: bool, exponent: i32, significand: u128) -> Number {
        debug_assert!(significand >> 127 == 1);
        let (rounded, carries, inexact) = self.cut(sign, significand, format.precision);
        let rounded_exponent = exponent + i32::from(carries);
        if rounded_exponent < format.lowest {
            return self.underflow(format, sign, exponent, significand, (rounded, rounded_exponent, inexact));
        }
        if rounded_exponent > format.highest {
            return self.overflow(format, sign, (rounded, rounded_exponent, inexact));
        }
        if inexact {
            self.flags |= flag::INEXACT;
        }
        Number::finite(sign, rounded_exponent, rounded)
    }

    fn underflow(
        &mut self,
        format: Format,
        sign: bool,
        exponent: i32,
        significand: u128,
        (rounded, rounded_exponent, inexact): (u64, i32, bool),
    ) -> Number {
        if !self.is_masked(flag::UNDERFLOW) {
            self.flags |= flag::UNDERFLOW | if inexact { flag::INEXACT } else { 0 };
            let wrapped = rounded_exponent + if self.wraps { WRAP } else { 0 };
            if wrapped < format.lowest && self.wraps {
                // FSCALE alone goes further than the wrapped exponent reaches.
                self.flags |= flag::INEXACT;
                self.rounded_up = false;
                return Number::zero(sign);
            }
            return Number::finite(sign, wrapped, rounded);
        }
        if self.ftz {
            self.flags |= flag::UNDERFLOW | flag::INEXACT;
            return Number::zero(sign);
        }
        let shifted = shift_right_sticky(significand, (format.lowest - exponent) as u32);
        let (denormal, _, inexact) = self.cut(sign, shifted, format.precision);
        if inexact {
            self.flags |= flag::UNDERFLOW | flag::INEXACT;
        }
        match denormal {
            0 => Number::zero(sign),
            _ => Number::finite(sign, format.lowest, denormal),
        }
    }

    fn overflow(&mut self, format: Format, sign: bool, (rounded, exponent, inexact): (u64, i32, bool)) -> Number {
        self.flags |= flag::OVERFLOW;
        if !self.is_masked(flag::OVERFLOW) {
            self.flags |= if inexact { flag::INEXACT } else { 0 };
            let wrapped = exponent - if self.wraps { WRAP } else { 0 };
            if wrapped > format.highest && self.wraps {
                self.flags |= flag::INEXACT;
                self.rounded_up = true;
                return Number::infinity(sign);
            }
            return Number::finite(sign, wrapped, rounded);
        }
        self.flags |= flag::INEXACT;
        let to_infinity = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Zero => false,
        };
        self.rounded_up = to_infinity;
        match to_infinity {
            true => Number::infinity(sign),
            false => Number::finite(sign, format.highest, u64::MAX << (64 - format.precision)),
        }
    }

    /// Rounds an exact number of 64 bits.
    pub(super) fn round_number(&mut self, format: Format, number: Number) -> Number {
        match number.class {
            Class::Finite => self.round(format, number.sign, number.exponent, u128::from(number.significand) << 64),
            _ => number,
        }
    }

    /// An invalid operation's result.
    pub(super) fn invalid(&mut self) -> Number {
        self.flags |= flag::INVALID;
        Number::indefinite()
    }

    /// An operand as arithmetic sees it: a denormal is zero under DAZ.
    pub(super) fn operand(&self, number: Number) -> Number {
        if self.daz && number.denormal { Number::zero(number.sign) } else { number }
    }

    /// Notes that an operand is denormal.
    pub(super) fn note_denormal(&mut self, operands: &[Number]) {
        if operands.iter().any(|operand| operand.denormal) {
            self.flags |= flag::DENORMAL;
        }
    }

    /// The result when an operand is a NaN or unsupported.
    pub(super) fn nan_of_one(&mut self, a: Number) -> Option<Number> {
        match a.class {
            Class::Unsupported => Some(self.invalid()),
            Class::Signaling => {
                self.flags |= flag::INVALID;
                Some(a.quieted())
            }
            Class::Quiet => Some(a),
            _ => None,
        }
    }

    /// The same for two operands.
    pub(super) fn nan_of_two(&mut self, a: Number, b: Number) -> Option<Number> {
        if a.class == Class::Unsupported || b.class == Class::Unsupported {
            return Some(self.invalid());
        }
        if a.class == Class::Signaling || b.class == Class::Signaling {
            self.flags |= flag::INVALID;
        }
        let chosen = match (a.is_nan(), b.is_nan()) {
            (false, false) => return None,
            (true, false) => a,
            (false, true) => b,
            (true, true) if self.nan_rule == NanRule::First => a,
            (true, true) => match (a.class, b.class) {
                (Class::Quiet, Class::Signaling) => a,
                (Class::Signaling, Class::Quiet) => b,
                _ => {
                    let key = |n: Number| (n.significand, !n.sign);
                    if key(a) >= key(b) { a } else { b }
                }
            },
        };
        Some(chosen.quieted())
    }

    /// a + b.
    pub(super) fn add(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.nan_of_two(a, b) {
            return nan;
        }
        match (a.class, b.class) {
            (Class::Infinity, Class::Infinity) if a.sign != b.sign => return self.invalid(),
            _ => self.note_denormal(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) => return a,
            (_, Class::Infinity) => return b,
            (Class::Zero, Class::Zero) if a.sign == b.sign => return a,
            (Class::Zero, Class::Zero) => return Number::zero(self.rounding == Rounding::Down),
            (Class::Zero, _) => return self.round_number(format, b),
            (_, Class::Zero) => return self.round_number(format, a),
            _ => {}
        }
        let (large, small) = if a.compare_magnitude(&b).is_ge() { (a, b) } else { (b, a) };
        // One bit of room above for the carry.
        let x = u128::from(large.significand) << 63;
        let y = shift_right_sticky(u128::from(small.significand) << 63, (large.exponent - small.exponent) as u32);
        let sum = if a.sign == b.sign { x + y } else { x - y };
        if sum == 0 {
            return Number::zero(self.rounding == Rounding::Down);
        }
        let shift = sum.leading_zeros();
        self.round(format, large.sign, large.exponent + 1 - shift as i32, sum << shift)
    }

    /// a − b.
    pub(super) fn sub(&mut self, format: Format, a: Number, b: Number) -> Number {
        // The sign of a NaN stays.
        let b = if b.is_nan() { b } else { b.negated() };
        self.add(format, a, b)
    }

    /// a × b.
    pub(super) fn mul(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.nan_of_two(a, b) {
            return nan;
        }
        let sign = a.sign != b.sign;
        match (a.class, b.class) {
            (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return self.invalid(),
            _ => self.note_denormal(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) | (_, Class::Infinity) => return Number::infinity(sign),
            (Class::Zero, _) | (_, Class::Zero) => return Number::zero(sign),
            _ => {}
        }
        let product = u128::from(a.significand) * u128::from(b.significand);
        let shift = product.leading_zeros();
        self.round(format, sign, a.exponent + b.exponent + 1 - shift as i32, product << shift)
    }

    /// a ÷ b.
    pub(super) fn div(&mut self, format: Format, a: Number, b: Number) -> Number {
        let (a, b) = (self.operand(a), self.operand(b));
        if let Some(nan) = self.nan_of_two(a, b) {
            return nan;
        }
        let sign = a.sign != b.sign;
        match (a.class, b.class) {
            (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return self.invalid(),
            (Class::Finite, Class::Zero) => {
                self.flags |= flag::ZERO_DIVIDE;
                return Number::infinity(sign);
            }
            _ => self.note_denormal(&[a, b]),
        }
        match (a.class, b.class) {
            (Class::Infinity, _) => return Number::infinity(sign),
            (_, Class::Infinity) | (Class::Zero, _) => return Number::zero(sign),
            _ => {}
        }
        let lower = u32::from(a.significand < b.significand);
        let divisor = u128::from(b.significand);
        let dividend = u128::from(a.significand) << (63 + lower);
        let (high, rest) = (dividend / divisor, dividend % divisor);
        let (low, rest) = ((rest << 64) / divisor, (rest << 64) % divisor);
        let quotient = high << 64 | low | u128::from(rest != 0);
        self.round(format, sign, a.exponent - b.exponent - lower as i32, quotient)
    }

    /// The square root.
    pub(super) fn sqrt(&mut self, format: Format, a: Number) -> Number {
        let a = self.operand(a);
        if let Some(nan) = self.nan_of_one(a) {
            return nan;
        }
        match a.class {
            Class::Zero => return a,
            _ if a.sign => return self.invalid(),
            Class::Infinity => return a,
            _ => self.note_denormal(&[a]),
        }
        let odd = a.exponent.rem_euclid(2) as u32;
        // The root of 1 to 4 to 96 bits, two bits of the radicand a step (s × 2^127, so that the root has 95 fraction bits).
        let radicand = u128::from(a.significand) << odd;
        let (mut root, mut rest) = (0_u128, 0_u128);
        for step in (0..96).rev() {
            let pair = match 2 * step {
                at @ 126.. => radicand << 1 >> (at - 126) & 3,
                _ => 0,
            };
            rest = rest << 2 | pair;
            let trial = root << 2 | 1;
            root <<= 1;
            if rest >= trial {
                rest -= trial;
                root |= 1;
            }
        }
        self.round(format, false, a.exponent.div_euclid(2), root << 32 | u128::from(rest != 0))
    }

    /// Converts between formats.
    pub(super) fn convert(&mut self, format: Format, a: Number) -> Number {
        let a = self.operand(a);
        if let Some(nan) = self.nan_of_one(a) {
            return nan;
        }
        self.note_denormal(&[a]);
        self.round_number(format, a)
    }

    /// Rounds to an integral value.
    pub(super) fn round_to_integral(&mut self, a: Number) -> Number {
        if let Some(nan) = self.nan_of_one(a) {
            return nan;
        }
        self.rounded_up = false;
        if a.class != Class::Finite || a.exponent >= 63 {
            return a;
        }
        let magnitude = self.integral_magnitude(a);
        match magnitude {
            0 => Number::zero(a.sign),
            _ => {
                let shift = magnitude.leading_zeros();
                Number::finite(a.sign, 63 - shift as i32, magnitude << shift)
            }
        }
    }

    /// The magnitude of a finite number below 2^64, rounded to an integer.
    fn integral_magnitude(&mut self, a: Number) -> u64 {
        let value = u128::from(a.significand) << 64;
        // The binary point comes to stand between the halves.
        let fixed = shift_right_sticky(value, (63 - a.exponent) as u32);
        let (whole, rest) = ((fixed >> 64) as u64, fixed as u64);
        let inexact = rest != 0;
        if inexact {
            self.flags |= flag::INEXACT;
        }
        let up = self.rounding.increments(a.sign, whole & 1 != 0, rest.cmp(&INTEGER_BIT), inexact);
        self.rounded_up = up;
        whole + u64::from(up)
    }

    /// Rounds to a signed integer of `bits` bits; the integer indefinite, the lowest, if it does not fit.
    pub(super) fn integer_of(&mut self, a: Number, bits: u32) -> i64 {
        let a = self.operand(a);
        let lowest = i64::MIN >> (64 - bits);
        let flags = self.flags;
        self.rounded_up = false;
        let magnitude = match a.class {
            Class::Zero => return 0,
            Class::Finite if a.exponent < 63 => self.integral_magnitude(a),
            // Not smaller than 2^63.
            Class::Finite if a.exponent == 63 => a.significand,
            _ => u64::MAX,
        };
        let limit = lowest.unsigned_abs() - u64::from(!a.sign);
        if magnitude > limit {
            self.rounded_up = false;
            self.flags = flags | flag::INVALID;
            return lowest;
        }
        if a.sign { (magnitude as i64).wrapping_neg() } else { magnitude as i64 }
    }
}
