//! Floating point of SSE: arithmetic, comparisons and conversions under MXCSR (SDM 1 11.5).

use super::super::float::{Class, Env, Format, NanRule, Number, Rounding, flag};
use super::super::fpu::mxcsr;
use super::super::mem::Bus;
use super::super::op::Op;
use super::super::state::{Cpu, Step, cr4, vector};
use super::{Lane, Operands, Place, build, lane, moves};

/// Single or double precision.
pub(super) trait Precision {
    const FORMAT: Format;
    type Bits: Lane;

    fn unpack(vector: u128, i: usize) -> Number {
        Number::unpack(Self::FORMAT, lane::<Self::Bits>(vector, i).bits() as u64)
    }
    fn pack(number: Number) -> Self::Bits {
        Self::Bits::of(u128::from(number.pack(Self::FORMAT)))
    }
    /// Replaces the lowest element.
    fn merge(vector: u128, element: Self::Bits) -> u128 {
        let mask = Self::Bits::of(u128::MAX).bits();
        vector & !mask | element.bits()
    }
}

pub(super) struct Single;
pub(super) struct Double;

impl Precision for Single {
    const FORMAT: Format = Format::SINGLE;
    type Bits = u32;
}

impl Precision for Double {
    const FORMAT: Format = Format::DOUBLE;
    type Bits = u64;
}

/// How arithmetic is done under an MXCSR.
fn env(value: u32) -> Env {
    Env {
        rounding: Rounding::from_bits(value >> mxcsr::RC_SHIFT),
        nan_rule: NanRule::First,
        daz: value & mxcsr::DAZ != 0,
        ftz: value & mxcsr::FTZ != 0,
        masked: (value >> mxcsr::MASK_SHIFT) as u8 & flag::ALL,
        wraps: false,
        flags: 0,
        rounded_up: false,
    }
}

impl Cpu {
    /// Records exceptions; #XM if one is not masked, or #UD if the system does not handle that.
    fn sse_exceptions(&mut self, flags: u8) -> Step {
        let masked = (self.fpu.mxcsr >> mxcsr::MASK_SHIFT) as u8;
        let before = flags & flag::BEFORE;
        // What would be found after the computation is not found when it does not take place.
        let found = if before & !masked != 0 { before } else { flags };
        self.fpu.mxcsr |= u32::from(found);
        if found & !masked == 0 {
            return Ok(());
        }
        Err(if self.cr4 & cr4::OSXMMEXCPT != 0 { self.raise(vector::XM) } else { self.ud() })
    }

    fn sse_env(&self) -> Env {
        env(self.fpu.mxcsr)
    }
}

/// All elements become a function of both operands'.
pub(super) fn packed<P: Precision>(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
    f: impl Fn(&mut Env, Number, Number, &Op) -> P::Bits,
) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let mut env = cpu.sse_env();
    let mut result = 0;
    for i in 0..16 / P::Bits::BYTES as usize {
        let element = f(&mut env, P::unpack(a, i), P::unpack(b, i), op);
        result |= element.bits() << (8 * P::Bits::BYTES * i as u32);
    }
    cpu.sse_exceptions(env.flags)?;
    cpu.vector_set_dst(bus, op, result)
}

/// The lowest element becomes a function of both operands'.
pub(super) fn scalar<P: Precision>(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
    f: impl Fn(&mut Env, Number, Number, &Op) -> P::Bits,
) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let mut env = cpu.sse_env();
    let element = f(&mut env, P::unpack(a, 0), P::unpack(b, 0), op);
    cpu.sse_exceptions(env.flags)?;
    cpu.vector_set_dst(bus, op, P::merge(a, element))
}

/// An operation of two numbers.
pub(super) type Operation = fn(&mut Env, Format, Number, Number) -> Number;

/// MIN, and MAX if `MAX`: the second operand unless the first is beyond it.
pub(super) fn extreme<const MAX: bool, P: Precision>(env: &mut Env, a: Number, b: Number, _: &Op) -> P::Bits {
    let (a, b) = (env.operand(a), env.operand(b));
    if a.is_nan() || b.is_nan() {
        env.flags |= flag::INVALID;
        return restore::<P>(b);
    }
    env.note_denormal(&[a, b]);
    let wanted = if MAX { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less };
    restore::<P>(if a.compare(&b) == Some(wanted) { a } else { b })
}

/// Packs a number that was unpacked and not computed with.
fn restore<P: Precision>(number: Number) -> P::Bits {
    if !number.denormal {
        return P::pack(number);
    }
    // Exact, and no exception: the number has the format already.
    let mut exact = Env { masked: flag::ALL, ftz: false, ..env(mxcsr::RESET) };
    P::pack(exact.round_number(P::FORMAT, number))
}

/// The relation of two operands as a bit: less 1, equal 2, unordered 4, greater 8.
fn relation(env: &mut Env, a: Number, b: Number, quiet: bool) -> Option<std::cmp::Ordering> {
    let (a, b) = (env.operand(a), env.operand(b));
    let signaling = a.class == Class::Signaling || b.class == Class::Signaling;
    if a.is_nan() || b.is_nan() {
        if signaling || !quiet {
            env.flags |= flag::INVALID;
        }
        return None;
    }
    env.note_denormal(&[a, b]);
    a.compare(&b)
}

/// CMPPS and its like: the immediate is the predicate.
pub(super) fn compare<P: Precision>(env: &mut Env, a: Number, b: Number, op: &Op) -> P::Bits {
    use std::cmp::Ordering::{Equal, Less};
    let predicate = op.immediate & 7;
    // Less and less-or-equal, and their negations, take quiet NaNs as invalid.
    let relation = relation(env, a, b, !matches!(predicate & 3, 1 | 2));
    let holds = match predicate & 3 {
        0 => relation == Some(Equal),
        1 => relation == Some(Less),
        2 => matches!(relation, Some(Less | Equal)),
        _ => relation.is_none(),
    };
    P::Bits::of(if holds == (predicate < 4) { u128::MAX } else { 0 })
}

/// COMISS and COMISD, and UCOMISS and UCOMISD if `QUIET`.
pub(super) fn compare_into_flags<P: Precision, const QUIET: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let mut env = cpu.sse_env();
    let relation = relation(&mut env, P::unpack(a, 0), P::unpack(b, 0), QUIET);
    cpu.sse_exceptions(env.flags)?;
    cpu.set_comparison(relation);
    Ok(())
}

/// SQRT of the second operand.
pub(super) fn sqrt<P: Precision>(env: &mut Env, _: Number, b: Number, _: &Op) -> P::Bits {
    let result = env.sqrt(P::FORMAT, b);
    P::pack(result)
}

/// ROUND of the second operand, as the immediate says.
pub(super) fn round<P: Precision>(env: &mut Env, _: Number, b: Number, op: &Op) -> P::Bits {
    let immediate = op.immediate as u32;
    let rounding = if immediate & 4 != 0 { env.rounding } else { Rounding::from_bits(immediate) };
    let b = env.operand(b);
    let mut inner = Env { rounding, ..*env };
    let result = inner.round_to_integral(b);
    // Bit 3 of the immediate suppresses the inexact exception.
    let suppressed = if immediate & 8 != 0 { flag::INEXACT & !env.flags } else { 0 };
    env.flags = inner.flags & !suppressed;
    P::pack(result)
}

/// An approximation of 1/b or 1/√b, within 1.5 × 2^-12: the exact value cut to twelve bits. It raises nothing, and takes
/// denormals as zeros.
pub(super) fn approximation<const ROOT: bool>(_: &mut Env, _: Number, b: Number, _: &Op) -> u32 {
    let mut exact = Env { masked: flag::ALL, daz: true, ftz: true, ..env(mxcsr::RESET) };
    let b = exact.operand(b);
    let divisor = if ROOT && !b.is_zero() { exact.sqrt(Format::EXTENDED, b) } else { b };
    let one = Number::of_integer(1);
    let result = exact.div(Format::EXTENDED, one, divisor);
    match result.class {
        Class::Finite if result.exponent < -126 => u32::from(result.sign) << 31,
        Class::Finite => {
            let cut = Number { significand: result.significand & !(u64::MAX >> 12), ..result };
            Single::pack(cut)
        }
        _ => Single::pack(result),
    }
}

/// ADDSUB: elements with even numbers are subtracted.
pub(super) fn add_sub<P: Precision>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, a, b| {
        by_element::<P>(env, |env, i| {
            let (x, y) = (P::unpack(a, i), P::unpack(b, i));
            if i % 2 == 0 { env.sub(P::FORMAT, x, y) } else { env.add(P::FORMAT, x, y) }
        })
    })
}

/// HADD and HSUB: neighbours.
pub(super) fn horizontal<P: Precision, const SUB: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, a, b| {
        let half = 8 / P::Bits::BYTES as usize;
        by_element::<P>(env, |env, i| {
            let (vector, i) = if i < half { (a, i) } else { (b, i - half) };
            let (x, y) = (P::unpack(vector, 2 * i), P::unpack(vector, 2 * i + 1));
            if SUB { env.sub(P::FORMAT, x, y) } else { env.add(P::FORMAT, x, y) }
        })
    })
}

/// DPPS and DPPD: the immediate says which products are summed, and where the sum goes.
pub(super) fn dot_product<P: Precision>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, a, b| {
        let elements = 16 / P::Bits::BYTES as usize;
        let product = |env: &mut Env, i: usize| {
            if op.immediate >> (4 + i) & 1 == 0 {
                return Number::zero(false);
            }
            env.mul(P::FORMAT, P::unpack(a, i), P::unpack(b, i))
        };
        let sum = |env: &mut Env, x: Number, y: Number| env.add(P::FORMAT, again::<P>(x), again::<P>(y));
        let products: Vec<Number> = (0..elements).map(|i| product(env, i)).collect();
        // An exception that is not masked ends the instruction before the next step.
        if env.flags & !env.masked != 0 {
            return 0;
        }
        let mut total = sum(env, products[0], products[1]);
        if elements == 4 {
            let high = sum(env, products[2], products[3]);
            if env.flags & !env.masked != 0 {
                return 0;
            }
            total = sum(env, total, high);
        }
        let total = P::pack(total);
        build(16, |i| if op.immediate >> i & 1 != 0 { total } else { P::Bits::of(0) })
    })
}

/// A result as the next operation takes it: a denormal one must be taken apart again.
fn again<P: Precision>(number: Number) -> Number {
    Number::unpack(P::FORMAT, number.pack(P::FORMAT))
}

/// Sets the first operand to a function of both vectors.
fn with_vectors(cpu: &mut Cpu, bus: &mut Bus, op: &Op, f: impl FnOnce(&mut Env, u128, u128) -> u128) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let mut env = cpu.sse_env();
    let result = f(&mut env, a, b);
    // The x87 stack ends to be one even if the instruction faults.
    cpu.note_mmx(op);
    cpu.sse_exceptions(env.flags)?;
    cpu.vector_set_dst(bus, op, result)
}

fn by_element<P: Precision>(env: &mut Env, mut f: impl FnMut(&mut Env, usize) -> Number) -> u128 {
    (0..16 / P::Bits::BYTES as usize).fold(0, |vector, i| {
        let number = f(env, i);
        vector | P::pack(number).bits() << (8 * P::Bits::BYTES * i as u32)
    })
}

/// CVTPS2PD, CVTPD2PS: the rest of the first operand becomes 0.
pub(super) fn convert_packed<F: Precision, T: Precision>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, _, b| {
        (0..2).fold(0, |vector, i| {
            let number = env.convert(T::FORMAT, F::unpack(b, i));
            vector | T::pack(number).bits() << (8 * T::Bits::BYTES * i as u32)
        })
    })
}

/// CVTSS2SD, CVTSD2SS.
pub(super) fn convert_scalar<F: Precision, T: Precision>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, a, b| {
        let number = env.convert(T::FORMAT, F::unpack(b, 0));
        T::merge(a, T::pack(number))
    })
}

/// Numbers to 32-bit integers: `N` of them, and zeros behind; rounded to zero if `TRUNCATE`.
pub(super) fn to_integers<P: Precision, const N: usize, const TRUNCATE: bool>(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
) -> Step {
    with_vectors(cpu, bus, op, |env, _, b| {
        if TRUNCATE {
            env.rounding = Rounding::Zero;
        }
        (0..N).fold(0, |vector, i| {
            let integer = env.integer_of(P::unpack(b, i), 32) as u32;
            vector | u128::from(integer) << (32 * i)
        })
    })
}

/// A number to an integer in a general register of 64 bits if `WIDE`.
pub(super) fn to_general<P: Precision, const WIDE: bool, const TRUNCATE: bool>(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let mut env = cpu.sse_env();
    if TRUNCATE {
        env.rounding = Rounding::Zero;
    }
    let integer = env.integer_of(P::unpack(b, 0), if WIDE { 64 } else { 32 });
    cpu.sse_exceptions(env.flags)?;
    if WIDE {
        cpu.put(op.dst, integer as u64)
    } else {
        cpu.put(op.dst, integer as u32)
    }
    Ok(())
}

/// 32-bit integers to numbers: all elements of the first operand, or (CVTPI2PS) its low half.
pub(super) fn of_integers<P: Precision, const LOW_ONLY: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    with_vectors(cpu, bus, op, |env, a, b| {
        let converted = by_element::<P>(env, |env, i| {
            // Elements behind the low half are not converted.
            let integer = if LOW_ONLY && i > 1 { 0 } else { lane::<i32>(b, i) };
            env.round_number(P::FORMAT, Number::of_integer(i64::from(integer)))
        });
        if LOW_ONLY { moves::merge_low::<64>(a, converted) } else { converted }
    })
}

/// CVTSI2SS, CVTSI2SD.
pub(super) fn of_general<P: Precision>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let wide = Operands::of(op).size() == 8;
    debug_assert!(matches!(Operands::of(op).src(), Place::General | Place::Memory));
    with_vectors(cpu, bus, op, |env, a, b| {
        let integer = if wide { lane::<i64>(b, 0) } else { i64::from(lane::<i32>(b, 0)) };
        let number = env.round_number(P::FORMAT, Number::of_integer(integer));
        P::merge(a, P::pack(number))
    })
}
