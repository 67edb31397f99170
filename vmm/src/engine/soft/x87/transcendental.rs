//! Logarithms, exponentials and trigonometry: series over floating point with 128 bits of significand, rounded once at the
//! end. The same bits on every host, within one unit in the last place as the manual demands (SDM 1 8.3.10); processors
//! differ among themselves there.

use super::super::float::{Class, Env, Format, Number};
use super::super::fpu::{F80, status};
use super::super::mem::Bus;
use super::super::op::Op;
use super::super::state::{Cpu, Step};
use super::transfer::CONSTANTS;

/// An inexact number: ±`bits` × 2^(`exponent` − 127), with the top bit set but in zero.
#[derive(Clone, Copy)]
struct Big {
    sign: bool,
    exponent: i32,
    bits: u128,
}

/// Terms of a series below this many bits do not count.
const PRECISION: i32 = 128;

const ONE: Big = Big { sign: false, exponent: 0, bits: 1 << 127 };

fn constant((exponent, bits): (i32, u128)) -> Big {
    Big { sign: false, exponent, bits }
}

/// 1 / ln 2.
fn log2_e() -> Big {
    constant(CONSTANTS[1])
}
fn pi() -> Big {
    constant(CONSTANTS[2])
}
fn ln_2() -> Big {
    constant(CONSTANTS[4])
}
/// atan ½.
fn atan_half() -> Big {
    constant((-2, 0xED63_382B_0DDA_7B45_6FE4_45EC_BC3A_8D03))
}

impl Big {
    fn of(number: Number) -> Big {
        Big { sign: number.sign, exponent: number.exponent, bits: u128::from(number.significand) << 64 }
    }

    fn integer(value: i32) -> Big {
        Big { sign: value < 0, ..Big::normal(127, u128::from(value.unsigned_abs())) }
    }

    /// `bits` × 2^(`exponent` − 127).
    fn normal(exponent: i32, bits: u128) -> Big {
        let shift = bits.leading_zeros() % 128;
        Big { sign: false, exponent: exponent - shift as i32, bits: bits << shift }
    }

    fn negated(self) -> Big {
        Big { sign: !self.sign, ..self }
    }

    fn times_power_of_2(self, power: i32) -> Big {
        Big { exponent: self.exponent + power, ..self }
    }

    fn mul(self, other: Big) -> Big {
        let half = |value: u128| (value >> 64, value & u128::from(u64::MAX));
        let ((a, b), (c, d)) = (half(self.bits), half(other.bits));
        let (outer, inner) = (half(a * d), half(b * c));
        let middle = half(b * d).0 + outer.1 + inner.1;
        let high = a * c + outer.0 + inner.0 + half(middle).0;
        let product = Big::normal(self.exponent + other.exponent + 1, high);
        Big { sign: self.sign != other.sign, ..product }
    }

    fn add(self, other: Big) -> Big {
        let key = |big: &Big| (big.bits != 0, big.exponent, big.bits);
        let (large, small) = if key(&self) >= key(&other) { (self, other) } else { (other, self) };
        let distance = (large.exponent - small.exponent) as u32;
        if small.bits == 0 || distance > 127 {
            return large;
        }
        let shifted = small.bits >> distance;
        if large.sign != small.sign {
            let difference = large.bits - shifted;
            return Big { sign: large.sign, ..Big::normal(large.exponent, difference) };
        }
        match large.bits.checked_add(shifted) {
            Some(bits) => Big { bits, ..large },
            None => {
                let bits = large.bits.wrapping_add(shifted) >> 1 | 1 << 127;
                Big { exponent: large.exponent + 1, bits, ..large }
            }
        }
    }

    fn div(self, other: Big) -> Big {
        // A bit of the quotient a step.
        let (mut rest, mut quotient) = (self.bits, 0_u128);
        let mut carry = false;
        for _ in 0..128 {
            quotient <<= 1;
            if carry || rest >= other.bits {
                rest = rest.wrapping_sub(other.bits);
                quotient |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        let result = Big::normal(self.exponent - other.exponent, quotient);
        Big { sign: self.sign != other.sign, ..result }
    }

    fn over(self, divisor: u32) -> Big {
        let divisor = u128::from(divisor);
        let (quotient, rest) = (self.bits / divisor, self.bits % divisor);
        let shift = quotient.leading_zeros();
        let bits = (quotient << shift) | ((rest << shift) / divisor);
        Big { sign: self.sign, exponent: self.exponent - shift as i32, bits }
    }

    /// 1 + t(1) + t(2) + …, where each term is made of the one before.
    fn series(next: impl Fn(Big, u32) -> Big) -> Big {
        let (mut sum, mut term) = (ONE, ONE);
        for i in 1.. {
            term = next(term, i);
            if term.bits == 0 || term.exponent < -PRECISION {
                return sum.nudged(term);
            }
            sum = sum.add(term);
        }
        sum
    }

    /// A sum moved by its last bit towards where the terms that do not count would have moved it, so that directed rounding
    /// of an argument so small that it is its own sine goes the right way.
    fn nudged(self, rest: Big) -> Big {
        match rest.bits {
            0 => self,
            _ => self.add(Big { sign: rest.sign, exponent: 1 - PRECISION, bits: 1 << 127 }),
        }
    }

    /// (e^self − 1) / self.
    fn exponential(self) -> Big {
        Big::series(|term, i| term.mul(self).over(i + 1))
    }

    /// The sum of self^(2i) / (2i + 1), with alternating signs if `alternating`: arctangents over their argument.
    fn arctangent_series(self, alternating: bool) -> Big {
        let square = self.mul(self);
        let square = if alternating { square.negated() } else { square };
        let (mut sum, mut power) = (ONE, ONE);
        for i in 1.. {
            power = power.mul(square);
            if power.bits == 0 || power.exponent < -PRECISION {
                return sum.nudged(power);
            }
            sum = sum.add(power.over(2 * i + 1));
        }
        sum
    }

    /// log2 of (1 + z) / (1 − z).
    fn log2_of_ratio(self) -> Big {
        self.times_power_of_2(1).mul(self.arctangent_series(false)).mul(log2_e())
    }

    /// The arctangent of a number from 0 to 1.
    fn arctangent(self) -> Big {
        // atan r = atan c + atan ((r − c) / (1 + r c)) for c = ½ and 1.
        let near = |c: Big, atan_c: Big| {
            let t = self.add(c.negated()).div(ONE.add(self.mul(c)));
            if t.bits == 0 { atan_c } else { atan_c.add(t.mul(t.arctangent_series(true))) }
        };
        match (self.exponent, self.bits >> 126) {
            (0.., _) | (-1, 3) => near(ONE, pi().times_power_of_2(-2)),
            (-1 | -2, _) => near(ONE.times_power_of_2(-1), atan_half()),
            _ => self.mul(self.arctangent_series(true)),
        }
    }

    /// The sine over the angle, and the cosine, of an angle up to π/4.
    fn sine_and_cosine(self) -> (Big, Big) {
        let square = self.mul(self).negated();
        let sine = Big::series(|term, i| term.mul(square).over(2 * i * (2 * i + 1)));
        let cosine = Big::series(|term, i| term.mul(square).over((2 * i - 1) * 2 * i));
        (self.mul(sine), cosine)
    }

    /// Rounds it once.
    fn round(self, env: &mut Env) -> Number {
        if self.bits == 0 {
            return Number::zero(self.sign);
        }
        env.round(Format::EXTENDED, self.sign, self.exponent, self.bits | 1)
    }
}

fn with_sign(big: Big, sign: bool) -> Big {
    Big { sign, ..big }
}

fn is_one(number: &Number) -> bool {
    !number.sign && number.class == Class::Finite && number.exponent == 0 && number.significand == 1 << 63
}

/// 2^x − 1.
fn exponential(env: &mut Env, a: Number) -> Number {
    if let Some(nan) = env.nan_of_one(a) {
        return nan;
    }
    match a.class {
        Class::Zero => return a,
        Class::Infinity if a.sign => return Number::of_integer(-1),
        Class::Infinity => return a,
        _ => env.note_denormal(&[a]),
    }
    // Beyond ±1 the manual leaves the result undefined.
    if a.exponent > 0 || a.exponent == 0 && a.significand > 1 << 63 {
        return a;
    }
    if a.exponent == 0 {
        return Number { exponent: if a.sign { -1 } else { 0 }, ..a };
    }
    let y = Big::of(a).mul(ln_2());
    y.mul(y.exponential()).round(env)
}

/// y × log2 x.
fn logarithm(env: &mut Env, x: Number, y: Number) -> Number {
    if let Some(nan) = env.nan_of_two(x, y) {
        return nan;
    }
    let below_one = x.is_zero() || x.exponent < 0 && x.class == Class::Finite;
    match (x.class, y.class) {
        (Class::Zero | Class::Infinity, Class::Zero) => return env.invalid(),
        (Class::Finite | Class::Infinity, _) if x.sign => return env.invalid(),
        (_, Class::Infinity) if is_one(&x) => return env.invalid(),
        (Class::Zero, Class::Finite) => {
            env.flags |= super::super::float::flag::ZERO_DIVIDE;
            return Number::infinity(!y.sign);
        }
        _ => env.note_denormal(&[x, y]),
    }
    match (x.class, y.class) {
        (Class::Infinity, _) => return Number::infinity(y.sign),
        (_, Class::Infinity) => return Number::infinity(y.sign != below_one),
        (_, Class::Zero) => return Number::zero(y.sign != below_one),
        _ if is_one(&x) => return Number::zero(y.sign),
        _ => {}
    }
    // x = m × 2^e with m from √½ to √2.
    let upper = x.significand > 0xB504_F333_F9DE_6484;
    let e = x.exponent + i32::from(upper);
    let m = Big { sign: false, exponent: -i32::from(upper), bits: u128::from(x.significand) << 64 };
    let z = m.add(ONE.negated()).div(m.add(ONE));
    let log2 = if z.bits == 0 { Big::integer(e) } else { Big::integer(e).add(z.log2_of_ratio()) };
    if z.bits == 0 {
        // A power of 2: the product is exact but for its rounding.
        return env.mul(Format::EXTENDED, Number::of_integer(e.into()), y);
    }
    log2.mul(Big::of(y)).round(env)
}

/// y × log2 (x + 1).
fn logarithm_plus_one(env: &mut Env, x: Number, y: Number) -> Number {
    if let Some(nan) = env.nan_of_two(x, y) {
        return nan;
    }
    match (x.class, y.class) {
        (Class::Zero, Class::Infinity) | (Class::Infinity, Class::Zero) => return env.invalid(),
        (Class::Infinity, _) if x.sign => return env.invalid(),
        (Class::Finite, _) if x.sign && x.exponent >= 0 => return env.invalid(),
        _ => env.note_denormal(&[x, y]),
    }
    match (x.class, y.class) {
        (Class::Infinity, _) => return Number::infinity(y.sign),
        (_, Class::Infinity) => return Number::infinity(x.sign != y.sign),
        (Class::Zero, _) | (_, Class::Zero) => return Number::zero(x.sign != y.sign),
        _ => {}
    }
    let big = Big::of(x);
    // Beyond the manual's range of x, where the series converges slowly, go by the other formula.
    if x.exponent >= -1 {
        let sum = big.add(ONE);
        let e = sum.exponent;
        let m = Big { exponent: 0, ..sum };
        let z = m.add(ONE.negated()).div(m.add(ONE));
        let fraction = if z.bits == 0 { z } else { z.log2_of_ratio() };
        return Big::integer(e).add(fraction).mul(Big::of(y)).round(env);
    }
    let z = big.div(big.add(ONE.times_power_of_2(1)));
    z.log2_of_ratio().mul(Big::of(y)).round(env)
}

/// The angle of the point (x, y).
fn angle(env: &mut Env, x: Number, y: Number) -> Number {
    if let Some(nan) = env.nan_of_two(x, y) {
        return nan;
    }
    env.note_denormal(&[x, y]);
    let quarter = |count: i32| pi().mul(Big::integer(count)).times_power_of_2(-2);
    let special = match (y.class, x.class) {
        (Class::Zero, _) | (Class::Finite, Class::Infinity) if !x.sign => return Number::zero(y.sign),
        (Class::Zero, _) | (Class::Finite, Class::Infinity) => Some(quarter(4)),
        (Class::Infinity, Class::Infinity) => Some(quarter(if x.sign { 3 } else { 1 })),
        (Class::Infinity, _) | (_, Class::Zero) => Some(quarter(2)),
        _ => None,
    };
    if let Some(angle) = special {
        return with_sign(angle, y.sign).round(env);
    }
    let (a, b) = (with_sign(Big::of(x), false), with_sign(Big::of(y), false));
    let steep = (b.exponent, b.bits) > (a.exponent, a.bits);
    let ratio = if steep { a.div(b) } else { b.div(a) };
    let base = ratio.arctangent();
    let angle = match (steep, x.sign) {
        (false, false) => base,
        (false, true) => quarter(4).add(base.negated()),
        (true, false) => quarter(2).add(base.negated()),
        (true, true) => quarter(2).add(base),
    };
    with_sign(angle, y.sign).round(env)
}

/// π × 2^66 as the processor has it for the reduction of arguments (SDM 1 8.3.8).
const PI_66: u128 = 0xC_90FD_AA22_168C_234C;

/// What trigonometry makes of an angle.
enum Reduced {
    /// It is a NaN or infinite: the result, for all.
    Special(Number),
    /// It is zero.
    Zero(Number),
    /// 2^63 or more: C2 is set, and nothing is done.
    OutOfRange,
    /// The sine and cosine.
    Both(Big, Big),
}

fn reduce(env: &mut Env, a: Number) -> Reduced {
    if let Some(nan) = env.nan_of_one(a) {
        return Reduced::Special(nan);
    }
    match a.class {
        Class::Infinity => return Reduced::Special(env.invalid()),
        Class::Zero => return Reduced::Zero(a),
        _ if a.exponent >= 63 => return Reduced::OutOfRange,
        _ => env.note_denormal(&[a]),
    }
    if a.exponent < -4 {
        let (sine, cosine) = with_sign(Big::of(a), false).sine_and_cosine();
        return Reduced::Both(with_sign(sine, a.sign), cosine);
    }
    // In units of 2^-67, π/2 is PI_66; a bit of the quotient a step.
    let (mut rest, mut quadrant) = (u128::from(a.significand), 0_u32);
    for _ in 0..a.exponent + 4 {
        rest <<= 1;
        quadrant <<= 1;
        if rest >= PI_66 {
            rest -= PI_66;
            quadrant |= 1;
        }
    }
    let beyond = rest > PI_66 / 2;
    let rest = if beyond { PI_66 - rest } else { rest };
    let (sine, cosine) = match rest {
        0 => (Big { sign: false, exponent: 0, bits: 0 }, ONE),
        _ => Big::normal(127 - 67, rest).sine_and_cosine(),
    };
    let (sine, cosine) = if beyond { (cosine, sine) } else { (sine, cosine) };
    let (sine, cosine) = match quadrant & 3 {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    };
    Reduced::Both(Big { sign: sine.sign != a.sign, ..sine }, cosine)
}

fn indefinite() -> F80 {
    Number::indefinite().to_f80()
}

/// F2XM1.
pub(super) fn f2xm1(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let Some(a) = cpu.fpu.st(0) else {
        cpu.stack_underflow(op, |fpu| fpu.set_st(0, indefinite()));
        return Ok(());
    };
    let mut env = cpu.fpu.env();
    let result = exponential(&mut env, Number::of(a));
    cpu.x87_result(op, &env, |fpu| fpu.set_st(0, result.to_f80()));
    Ok(())
}

/// Replaces ST(1) by a function of ST(0) and ST(1), and pops.
fn into_st1(cpu: &mut Cpu, op: &Op, f: fn(&mut Env, Number, Number) -> Number) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let (Some(x), Some(y)) = (cpu.fpu.st(0), cpu.fpu.st(1)) else {
        cpu.stack_underflow(op, |fpu| {
            fpu.set_st(1, indefinite());
            fpu.pop();
        });
        return Ok(());
    };
    let mut env = cpu.fpu.env();
    let result = f(&mut env, Number::of(x), Number::of(y));
    cpu.x87_result(op, &env, |fpu| {
        fpu.set_st(1, result.to_f80());
        fpu.pop();
    });
    Ok(())
}

/// FYL2X.
pub(super) fn fyl2x(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    into_st1(cpu, op, logarithm)
}

/// FYL2XP1.
pub(super) fn fyl2xp1(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    into_st1(cpu, op, logarithm_plus_one)
}

/// FPATAN.
pub(super) fn fpatan(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    into_st1(cpu, op, angle)
}

/// Which functions: `extra` of the operation.
pub(super) mod function {
    pub(in super::super) const SINE: u8 = 0;
    pub(in super::super) const COSINE: u8 = 1;
    pub(in super::super) const BOTH: u8 = 2;
    pub(in super::super) const TANGENT: u8 = 3;
}

/// FSIN, FCOS, FSINCOS, FPTAN. The last two push.
pub(super) fn trigonometry(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let pushes = op.extra >= function::BOTH;
    let Some(a) = cpu.fpu.st(0) else {
        cpu.fpu.set_condition(status::C2, 0);
        cpu.stack_underflow(op, |fpu| {
            fpu.set_st(0, indefinite());
            if pushes {
                fpu.top = (fpu.top + 7) & 7;
                fpu.set_st(0, indefinite());
            }
        });
        return Ok(());
    };
    if pushes && cpu.fpu.st(7).is_some() {
        cpu.fpu.set_condition(status::C2, 0);
        cpu.x87_push(op, indefinite());
        if cpu.fpu.is_masked(super::flag::INVALID) {
            cpu.fpu.set_st(1, indefinite());
        }
        return Ok(());
    }
    let mut env = cpu.fpu.env();
    let one = Number::of_integer(1);
    let (first, second) = match (reduce(&mut env, Number::of(a)), op.extra) {
        (Reduced::OutOfRange, _) => {
            cpu.fpu.set_condition(status::C2 | status::C1, status::C2);
            return Ok(());
        }
        (Reduced::Special(result), _) => (result, result),
        (Reduced::Zero(_), function::COSINE) => (one, one),
        (Reduced::Zero(zero), _) => (zero, one),
        (Reduced::Both(sine, _), function::SINE) => (sine.round(&mut env), one),
        (Reduced::Both(_, cosine), function::COSINE) => (cosine.round(&mut env), one),
        (Reduced::Both(sine, cosine), function::BOTH) => (sine.round(&mut env), cosine.round(&mut env)),
        (Reduced::Both(sine, cosine), _) => (sine.div(cosine).round(&mut env), one),
    };
    cpu.fpu.set_condition(status::C2, 0);
    cpu.x87_result(op, &env, |fpu| {
        fpu.set_st(0, first.to_f80());
        if pushes {
            fpu.top = (fpu.top + 7) & 7;
            fpu.set_st(0, second.to_f80());
        }
    });
    Ok(())
}
