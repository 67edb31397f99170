//! Arithmetic and comparisons.

use super::super::flags::{CF, PF, STATUS, Status, ZF};
use super::super::float::{Class, Env, Format, Number, Rounding, flag};
use super::super::fpu::{F80, status};
use super::super::mem::Bus;
use super::super::op::{self, Op};
use super::super::state::{Cpu, Step, Stop};
use super::Fpu;
use std::cmp::Ordering;

/// Which operation of two operands: `extra` of the operation, below how often to pop.
pub(super) mod operation {
    pub(in super::super) const ADD: u8 = 0;
    pub(in super::super) const MUL: u8 = 1;
    pub(in super::super) const SUB: u8 = 2;
    pub(in super::super) const SUBR: u8 = 3;
    pub(in super::super) const DIV: u8 = 4;
    pub(in super::super) const DIVR: u8 = 5;
    pub(in super::super) const POP: u8 = 1 << 4;
}

fn indefinite() -> F80 {
    Number::indefinite().to_f80()
}

fn number(register: Option<F80>) -> Option<Number> {
    register.map(Number::of)
}

impl Cpu {
    /// The second operand: memory, or ST(i); `None` if that is empty.
    fn second_operand(&mut self, bus: &mut Bus, op: &Op) -> Result<Option<Number>, Stop> {
        if op.has(op::flag::MEMORY) {
            return self.x87_operand(bus, op).map(Some);
        }
        Ok(number(self.fpu.st(op.src)))
    }
}

/// FADD to FDIVR with a register and a second operand.
pub(super) fn binary(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let second = cpu.second_operand(bus, op)?;
    cpu.note_x87(op);
    let pops = op.extra / operation::POP;
    let (Some(a), Some(b)) = (number(cpu.fpu.st(op.dst)), second) else {
        cpu.stack_underflow(op, |fpu| {
            fpu.set_st(op.dst, indefinite());
            fpu.pop_times(pops);
        });
        return Ok(());
    };
    let (mut env, format) = (cpu.fpu.env(), cpu.fpu.precision());
    let result = match op.extra % operation::POP {
        operation::ADD => env.add(format, a, b),
        operation::MUL => env.mul(format, a, b),
        operation::SUB => env.sub(format, a, b),
        operation::SUBR => env.sub(format, b, a),
        operation::DIV => env.div(format, a, b),
        _ => env.div(format, b, a),
    };
    cpu.x87_result(op, &env, |fpu| {
        fpu.set_st(op.dst, result.to_f80());
        fpu.pop_times(pops);
    });
    Ok(())
}

/// Replaces ST(0) by a function of it.
fn unary(cpu: &mut Cpu, op: &Op, f: impl FnOnce(&mut Env, Format, Number) -> Number) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let Some(a) = number(cpu.fpu.st(0)) else {
        cpu.stack_underflow(op, |fpu| fpu.set_st(0, indefinite()));
        return Ok(());
    };
    let (mut env, format) = (cpu.fpu.env(), cpu.fpu.precision());
    let result = f(&mut env, format, a);
    cpu.x87_result(op, &env, |fpu| fpu.set_st(0, result.to_f80()));
    Ok(())
}

/// FSQRT.
pub(super) fn sqrt(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    unary(cpu, op, Env::sqrt)
}

/// FRNDINT.
pub(super) fn round_to_integral(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    unary(cpu, op, |env, _, a| {
        if !a.is_nan() && a.class != Class::Unsupported {
            env.note_denormal(&[a]);
        }
        env.round_to_integral(a)
    })
}

/// A function of ST(0) and ST(1) that replaces ST(0). An empty one clears the condition bits `cleared`.
fn with_st1(
    cpu: &mut Cpu,
    op: &Op,
    cleared: u16,
    f: impl FnOnce(&mut Fpu, &mut Env, Number, Number) -> Number,
) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let (Some(a), Some(b)) = (number(cpu.fpu.st(0)), number(cpu.fpu.st(1))) else {
        cpu.fpu.set_condition(cleared, 0);
        cpu.stack_underflow(op, |fpu| fpu.set_st(0, indefinite()));
        return Ok(());
    };
    let mut env = cpu.fpu.env();
    let result = f(&mut cpu.fpu, &mut env, a, b);
    let goes_on = cpu.x87_exceptions(op, env.flags);
    if goes_on {
        cpu.fpu.set_st(0, result.to_f80());
    }
    Ok(())
}

/// FSCALE.
pub(super) fn scale(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    with_st1(cpu, op, 0, |fpu, env, a, b| {
        let result = scaled(env, a, b);
        let goes_on = fpu.is_masked(env.flags & flag::BEFORE);
        fpu.set_c1(goes_on && env.flags & flag::INEXACT != 0 && env.rounded_up);
        result
    })
}

fn scaled(env: &mut Env, a: Number, b: Number) -> Number {
    if let Some(nan) = env.nan_of_two(a, b) {
        return nan;
    }
    match (a.class, b.class, b.sign) {
        (Class::Zero, Class::Infinity, false) | (Class::Infinity, Class::Infinity, true) => return env.invalid(),
        _ => env.note_denormal(&[a, b]),
    }
    match (a.class, b.class, b.sign) {
        (Class::Zero | Class::Infinity, _, _) => return a,
        (_, Class::Infinity, false) => return Number::infinity(a.sign),
        (_, Class::Infinity, true) => return Number::zero(a.sign),
        _ => {}
    }
    let mut whole = Env { rounding: Rounding::Zero, ..*env };
    // Beyond these the result overflows or underflows anyway.
    let by = match b.exponent {
        17.. if b.sign => -0x2_0000,
        17.. => 0x2_0000,
        _ => whole.integer_of(b, 32) as i32,
    };
    env.round_number(Format::EXTENDED, Number { exponent: a.exponent + by, ..a })
}

/// FPREM, and FPREM1 if `NEAREST`: the partial remainder.
pub(super) fn remainder<const NEAREST: bool>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    with_st1(cpu, op, status::C2, |fpu, env, a, b| {
        match partial_remainder::<NEAREST>(env, a, b) {
            (result, Some(condition)) if fpu.is_masked(env.flags & flag::BEFORE) => {
                fpu.set_condition(status::CONDITION, condition);
                result
            }
            // There is no quotient, and nothing more to be done.
            (result, _) => {
                fpu.set_condition(status::C2 | status::C1, 0);
                result
            }
        }
    })
}

fn partial_remainder<const NEAREST: bool>(env: &mut Env, a: Number, b: Number) -> (Number, Option<u16>) {
    if let Some(nan) = env.nan_of_two(a, b) {
        return (nan, None);
    }
    if a.class == Class::Infinity || b.is_zero() {
        return (env.invalid(), None);
    }
    env.note_denormal(&[a, b]);
    if a.is_zero() || b.class == Class::Infinity {
        return (env.round_number(Format::EXTENDED, a), Some(0));
    }
    let difference = a.exponent - b.exponent;
    if difference < if NEAREST { -1 } else { 0 } {
        return (env.round_number(Format::EXTENDED, a), Some(0));
    }
    // Divides by the divisor times a power of 2 if the quotient would have more than 64 bits (SDM 2A, FPREM).
    let steps = if difference < 64 { difference } else { difference & 31 | 32 };
    let unit = if difference < 64 { b.exponent } else { b.exponent + difference - steps };
    // In units of half the divisor's last bit, so that the dividend may be smaller than the divisor.
    let dividend = u128::from(a.significand) << (steps + 1);
    let divisor = u128::from(b.significand) << 1;
    let (mut quotient, mut rest, mut sign) = ((dividend / divisor) as u64, dividend % divisor, a.sign);
    let is_done = difference < 64;
    if NEAREST && is_done {
        let half = (rest << 1).cmp(&divisor);
        if half == Ordering::Greater || half == Ordering::Equal && quotient & 1 != 0 {
            quotient = quotient.wrapping_add(1);
            rest = divisor - rest;
            sign = !sign;
        }
    }
    let bit = |i: u32, flag: u16| if quotient >> i & 1 != 0 { flag } else { 0 };
    let condition = if is_done { bit(2, status::C0) | bit(1, status::C3) | bit(0, status::C1) } else { status::C2 };
    if rest == 0 {
        return (Number::zero(a.sign), Some(condition));
    }
    let shift = rest.leading_zeros();
    // Bit 64 of the rest is bit 63 of the divisor's significand.
    (env.round(Format::EXTENDED, sign, unit + 63 - shift as i32, rest << shift), Some(condition))
}

/// FXTRACT.
pub(super) fn extract(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let Some(a) = number(cpu.fpu.st(0)) else {
        cpu.stack_underflow(op, |fpu| {
            fpu.set_st(0, indefinite());
            fpu.top = (fpu.top + 7) & 7;
            fpu.set_st(0, indefinite());
        });
        return Ok(());
    };
    if cpu.fpu.st(7).is_some() {
        cpu.x87_push(op, F80::default());
        if cpu.fpu.is_masked(flag::INVALID) {
            cpu.fpu.set_st(1, indefinite());
        }
        return Ok(());
    }
    let mut env = cpu.fpu.env();
    let (exponent, significand) = match env.nan_of_one(a) {
        Some(nan) => (nan, nan),
        None => match a.class {
            Class::Zero => {
                env.flags |= flag::ZERO_DIVIDE;
                (Number::infinity(true), a)
            }
            Class::Infinity => (Number::infinity(false), a),
            _ => {
                env.note_denormal(&[a]);
                (Number::of_integer(i64::from(a.exponent)), Number { exponent: 0, ..a })
            }
        },
    };
    cpu.x87_result(op, &env, |fpu| {
        fpu.set_st(0, exponent.to_f80());
        fpu.top = (fpu.top + 7) & 7;
        fpu.set_st(0, significand.to_f80());
    });
    Ok(())
}

/// Compares; quiet NaNs are invalid unless `quiet`.
fn compare(env: &mut Env, a: Number, b: Number, quiet: bool) -> Option<Ordering> {
    let is = |class: Class| a.class == class || b.class == class;
    if is(Class::Unsupported) || is(Class::Signaling) || is(Class::Quiet) && !quiet {
        env.flags |= flag::INVALID;
    }
    if is(Class::Unsupported) || a.is_nan() || b.is_nan() {
        return None;
    }
    env.note_denormal(&[a, b]);
    a.compare(&b)
}

/// How a comparison's second operand and NaNs are taken: `dst` of the operation.
pub(super) mod comparison {
    /// Quiet NaNs are unordered, not invalid.
    pub(in super::super) const QUIET: u8 = 1;
    /// The second operand is 0.
    pub(in super::super) const WITH_ZERO: u8 = 2;
}

/// Compares ST(0) with the second operand and hands the result on.
fn comparison_of(cpu: &mut Cpu, bus: &mut Bus, op: &Op, take: impl FnOnce(&mut Cpu, Option<Ordering>)) -> Step {
    cpu.check_x87_waiting()?;
    let b = if op.dst & comparison::WITH_ZERO != 0 { Some(Number::zero(false)) } else { cpu.second_operand(bus, op)? };
    cpu.note_x87(op);
    let (ordering, flags) = match (number(cpu.fpu.st(0)), b) {
        (Some(a), Some(b)) => {
            let mut env = cpu.fpu.env();
            (compare(&mut env, a, b, op.dst & comparison::QUIET != 0), env.flags)
        }
        _ => {
            cpu.fpu.status |= status::SF;
            cpu.fpu.set_c1(false);
            (None, flag::INVALID)
        }
    };
    // The result is there even if an exception is not masked; only the operands stay.
    take(cpu, ordering);
    if cpu.x87_exceptions(op, flags) {
        cpu.fpu.pop_times(op.extra);
    }
    Ok(())
}

/// FCOM, FUCOM, FICOM, FTST and those that pop: `extra` is how often.
pub(super) fn compare_into_status(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    comparison_of(cpu, bus, op, |cpu, ordering| {
        let bits = match ordering {
            Some(Ordering::Greater) => 0,
            Some(Ordering::Less) => status::C0,
            Some(Ordering::Equal) => status::C3,
            None => status::C3 | status::C2 | status::C0,
        };
        cpu.fpu.set_condition(status::CONDITION, bits);
    })
}

/// FCOMI, FUCOMI and those that pop.
pub(super) fn compare_into_flags(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    comparison_of(cpu, bus, op, |cpu, ordering| cpu.set_comparison(ordering))
}

impl Cpu {
    /// ZF, PF and CF as FCOMI, COMISS and their like set them; OF, SF and AF become 0.
    pub(in super::super) fn set_comparison(&mut self, ordering: Option<Ordering>) {
        let bits = match ordering {
            Some(Ordering::Greater) => 0,
            Some(Ordering::Less) => CF,
            Some(Ordering::Equal) => ZF,
            None => ZF | PF | CF,
        };
        debug_assert_eq!(bits & !STATUS, 0);
        self.status = Status::from_bits(bits);
    }
}
