//! Loads, stores and moves between registers.

use super::super::float::{Class, Env, Format, Number, flag};
use super::super::fpu::{F80, status};
use super::super::mem::Bus;
use super::super::op::{Mem, Op, Source, Target};
use super::super::state::{Cpu, Step, Stop};
use super::RANGE;

/// What a memory operand holds: `immediate` of the operation.
pub(super) mod kind {
    pub(in super::super) const REGISTER: u64 = 0;
    pub(in super::super) const SINGLE: u64 = 1;
    pub(in super::super) const DOUBLE: u64 = 2;
    pub(in super::super) const INTEGER16: u64 = 3;
    pub(in super::super) const INTEGER32: u64 = 4;
    pub(in super::super) const INTEGER64: u64 = 5;
}

impl Cpu {
    /// Reads a memory operand that arithmetic takes.
    pub(super) fn x87_operand(&mut self, bus: &mut Bus, op: &Op) -> Result<Number, Stop> {
        Ok(match op.immediate {
            kind::SINGLE => Number::unpack(Format::SINGLE, u64::from(Mem::get::<u32>(self, bus, op)?)),
            kind::DOUBLE => Number::unpack(Format::DOUBLE, Mem::get::<u64>(self, bus, op)?),
            kind::INTEGER16 => Number::of_integer(i64::from(Mem::get::<u16>(self, bus, op)? as i16)),
            kind::INTEGER32 => Number::of_integer(i64::from(Mem::get::<u32>(self, bus, op)? as i32)),
            _ => Number::of_integer(Mem::get::<u64>(self, bus, op)? as i64),
        })
    }
}

/// FLD m32, m64 and FILD.
pub(super) fn load(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let operand = cpu.x87_operand(bus, op)?;
    cpu.note_x87(op);
    if cpu.fpu.st(7).is_some() {
        cpu.x87_push(op, F80::default());
        return Ok(());
    }
    let mut env = cpu.fpu.env();
    let value = env.convert(Format::EXTENDED, operand);
    cpu.fpu.set_c1(false);
    cpu.x87_exceptions(op, env.flags);
    // A denormal is loaded even if its exception is not masked: nothing is lost.
    if cpu.fpu.is_masked(env.flags & flag::INVALID) {
        cpu.x87_push(op, value.to_f80());
    }
    Ok(())
}

/// FLD m80.
pub(super) fn load80(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let value = read80(cpu, bus, op)?;
    cpu.note_x87(op);
    cpu.x87_push(op, value);
    Ok(())
}

fn high_offset(op: &Op, offset: u64) -> u64 {
    op.truncate_address(offset.wrapping_add(8))
}

fn read80(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<F80, Stop> {
    let offset = cpu.effective_address(op);
    let significand = cpu.read(bus, op.seg, offset)?;
    Ok(F80 { significand, sign_exponent: cpu.read(bus, op.seg, high_offset(op, offset))? })
}

fn write80(cpu: &mut Cpu, bus: &mut Bus, op: &Op, value: F80) -> Step {
    let offset = cpu.effective_address(op);
    cpu.open::<u64>(bus, op.seg, offset)?;
    cpu.open::<u16>(bus, op.seg, high_offset(op, offset))?;
    cpu.write(bus, op.seg, offset, value.significand)?;
    cpu.write(bus, op.seg, high_offset(op, offset), value.sign_exponent)
}

/// FLD ST(i).
pub(super) fn load_register(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    match cpu.fpu.st(op.dst) {
        Some(value) => cpu.x87_push(op, value),
        None => cpu.stack_underflow(op, |fpu| {
            fpu.top = (fpu.top + 7) & 7;
            fpu.set_st(0, Number::indefinite().to_f80());
        }),
    }
    Ok(())
}

/// FST and FSTP ST(i): `extra` is how often to pop.
pub(super) fn store_register(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let pops = op.extra;
    match cpu.fpu.st(0) {
        Some(value) => {
            cpu.fpu.set_c1(false);
            cpu.fpu.set_st(op.dst, value);
            cpu.fpu.pop_times(pops);
        }
        None => cpu.stack_underflow(op, |fpu| {
            fpu.set_st(op.dst, Number::indefinite().to_f80());
            fpu.pop_times(pops);
        }),
    }
    Ok(())
}

/// FSTPNCE (undocumented): FSTP ST(i) that does not mind an empty ST(0), which it drops.
pub(super) fn store_register_unchecked(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    if cpu.fpu.st(0).is_some() {
        return store_register(cpu, bus, op);
    }
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    cpu.fpu.set_c1(false);
    cpu.fpu.pop();
    Ok(())
}

/// Raises what writing the operand would: an unmasked exception that keeps the value from being stored hides no fault.
fn check_operand(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let offset = cpu.effective_address(op);
    match op.immediate {
        kind::INTEGER16 => cpu.open::<u16>(bus, op.seg, offset)?,
        kind::SINGLE | kind::INTEGER32 => cpu.open::<u32>(bus, op.seg, offset)?,
        kind::DOUBLE | kind::INTEGER64 => cpu.open::<u64>(bus, op.seg, offset)?,
        _ => {
            cpu.open::<u64>(bus, op.seg, offset)?;
            cpu.open::<u16>(bus, op.seg, op.truncate_address(offset.wrapping_add(8)))?
        }
    };
    Ok(())
}

/// Finishes a store of a converted ST(0): `put` writes what the format holds.
fn store_converted(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
    convert: impl FnOnce(&mut Env, Number) -> u64,
    indefinite: u64,
    put: impl Fn(&mut Cpu, &mut Bus, u64) -> Step,
) -> Step {
    let Some(value) = cpu.fpu.st(0) else {
        if cpu.fpu.is_masked(flag::INVALID) {
            put(cpu, bus, indefinite)?;
        } else {
            check_operand(cpu, bus, op)?;
        }
        let pops = op.extra;
        cpu.stack_underflow(op, |fpu| fpu.pop_times(pops));
        return Ok(());
    };
    let mut env = Env { wraps: false, ..cpu.fpu.env() };
    let bits = convert(&mut env, Number::of(value));
    let stores = cpu.fpu.is_masked(env.flags & (RANGE | flag::BEFORE));
    if stores {
        put(cpu, bus, bits)?;
    } else {
        check_operand(cpu, bus, op)?;
        // Nothing was stored, so nothing was rounded.
        env.flags &= !flag::INEXACT;
    }
    cpu.x87_exceptions(op, env.flags);
    cpu.fpu.set_c1(env.flags & flag::INEXACT != 0 && env.rounded_up);
    if stores {
        cpu.fpu.pop_times(op.extra);
    }
    Ok(())
}

fn put_by_kind(op: &Op) -> impl Fn(&mut Cpu, &mut Bus, u64) -> Step {
    move |cpu, bus, value| match op.immediate {
        kind::INTEGER16 => Mem::put(cpu, bus, op, value as u16),
        kind::SINGLE | kind::INTEGER32 => Mem::put(cpu, bus, op, value as u32),
        _ => Mem::put(cpu, bus, op, value),
    }
}

/// FST and FSTP m32, m64. A denormal is no exception here.
pub(super) fn store(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let format = if op.immediate == kind::SINGLE { Format::SINGLE } else { Format::DOUBLE };
    let convert = |env: &mut Env, value: Number| match env.nan_of_one(value) {
        Some(nan) => nan.pack(format),
        None => env.round_number(format, value).pack(format),
    };
    store_converted(cpu, bus, op, convert, Number::indefinite().pack(format), put_by_kind(op))
}

/// FIST, FISTP, and FISTTP if the second register operand says so.
pub(super) fn store_integer<const TRUNCATE: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let bits = match op.immediate {
        kind::INTEGER16 => 16,
        kind::INTEGER32 => 32,
        _ => 64,
    };
    let convert = |env: &mut Env, value: Number| {
        if TRUNCATE {
            env.rounding = super::super::float::Rounding::Zero;
        }
        env.integer_of(value, bits) as u64
    };
    store_converted(cpu, bus, op, convert, (i64::MIN >> (64 - bits)) as u64, put_by_kind(op))
}

/// FSTP m80.
pub(super) fn store80(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    match cpu.fpu.st(0) {
        Some(value) => {
            write80(cpu, bus, op, value)?;
            cpu.fpu.set_c1(false);
            cpu.fpu.pop();
        }
        None => {
            if cpu.fpu.is_masked(flag::INVALID) {
                write80(cpu, bus, op, Number::indefinite().to_f80())?;
            } else {
                check_operand(cpu, bus, op)?;
            }
            cpu.stack_underflow(op, super::Fpu::pop);
        }
    }
    Ok(())
}

/// 10^18: one more than packed decimals hold.
const DECIMAL_LIMIT: u64 = 1_000_000_000_000_000_000;

/// FBLD.
pub(super) fn load_decimal(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let F80 { significand, sign_exponent } = read80(cpu, bus, op)?;
    cpu.note_x87(op);
    let digits = u128::from(significand) | u128::from(sign_exponent & 0xFF) << 64;
    let magnitude = (0..18).rev().fold(0_i64, |sum, i| sum * 10 + (digits >> (4 * i) & 15) as i64);
    let number = Number { sign: sign_exponent & 0x8000 != 0, ..Number::of_integer(magnitude) };
    cpu.x87_push(op, number.to_f80());
    Ok(())
}

/// FBSTP.
pub(super) fn store_decimal(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let convert = |env: &mut Env, value: Number| {
        let integer = env.integer_of(value, 64);
        if env.flags & flag::INVALID == 0 && integer.unsigned_abs() < DECIMAL_LIMIT {
            return integer.unsigned_abs();
        }
        (env.flags, env.rounded_up) = (flag::INVALID, false);
        u64::MAX
    };
    let sign = cpu.fpu.st(0).is_some_and(|value| value.sign_exponent & 0x8000 != 0);
    let put = |cpu: &mut Cpu, bus: &mut Bus, magnitude: u64| {
        if magnitude == u64::MAX {
            return write80(cpu, bus, op, F80 { significand: 0xC000_0000_0000_0000, sign_exponent: 0xFFFF });
        }
        let (mut rest, mut digits) = (magnitude, 0_u128);
        for i in 0..18 {
            digits |= u128::from(rest % 10) << (4 * i);
            rest /= 10;
        }
        let sign_exponent = (digits >> 64) as u16 | if sign { 0x8000 } else { 0 };
        write80(cpu, bus, op, F80 { significand: digits as u64, sign_exponent })
    };
    store_converted(cpu, bus, op, convert, u64::MAX, put)
}

/// FXCH.
pub(super) fn exchange(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let i = op.dst.max(op.src);
    let (a, b) = (cpu.fpu.st(0), cpu.fpu.st(i));
    let swap = |fpu: &mut super::Fpu| {
        let indefinite = Number::indefinite().to_f80();
        fpu.set_st(0, b.unwrap_or(indefinite));
        fpu.set_st(i, a.unwrap_or(indefinite));
    };
    if a.is_some() && b.is_some() {
        cpu.fpu.set_c1(false);
        swap(&mut cpu.fpu);
    } else {
        cpu.stack_underflow(op, swap);
    }
    Ok(())
}

/// FCMOVcc: `extra` is the condition's number.
pub(super) fn conditional_move(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let moves = cpu.status.condition(op.extra);
    match (cpu.fpu.st(0), cpu.fpu.st(op.src)) {
        (Some(_), Some(value)) if moves => cpu.fpu.set_st(0, value),
        (Some(_), Some(_)) => {}
        _ => cpu.stack_underflow(op, |fpu| fpu.set_st(0, Number::indefinite().to_f80())),
    }
    Ok(())
}

/// The constants of FLD1 to FLDZ with 128 bits of significand: exponent of the top bit, and the bits.
pub(super) const CONSTANTS: [(i32, u128); 5] = [
    (1, 0xD49A_784B_CD1B_8AFE_492B_F6FF_4DAF_DB4C),  // log2 10
    (0, 0xB8AA_3B29_5C17_F0BB_BE87_FED0_691D_3E88),  // log2 e
    (1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1),  // π
    (-2, 0x9A20_9A84_FBCF_F798_8F89_59AC_0B7C_9178), // log10 2
    (-1, 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF), // ln 2
];

/// FLDL2T to FLDLN2: `extra` is the place in [`CONSTANTS`]. They are rounded as RC says.
pub(super) fn load_constant(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let (exponent, bits) = CONSTANTS[usize::from(op.extra)];
    let value = cpu.fpu.env().round(Format::EXTENDED, false, exponent, bits);
    cpu.x87_push(op, value.to_f80());
    Ok(())
}

/// FLD1 and FLDZ: `extra` is the number.
pub(super) fn load_integer_constant(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    cpu.x87_push(op, Number::of_integer(i64::from(op.extra)).to_f80());
    Ok(())
}

/// FCHS, and FABS if `extra` says so.
pub(super) fn change_sign(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    match cpu.fpu.st(0) {
        Some(value) => {
            let sign_exponent = if op.extra != 0 { value.sign_exponent & 0x7FFF } else { value.sign_exponent ^ 0x8000 };
            cpu.fpu.set_c1(false);
            cpu.fpu.set_st(0, F80 { sign_exponent, ..value });
        }
        None => cpu.stack_underflow(op, |fpu| fpu.set_st(0, Number::indefinite().to_f80())),
    }
    Ok(())
}

/// FXAM.
pub(super) fn examine(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    let register = cpu.fpu.registers[cpu.fpu.number(0)];
    let class = match cpu.fpu.st(0).map(Number::of) {
        None => status::C3 | status::C0,
        Some(number) => match number.class {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => status::C0,
            Class::Finite if number.denormal => status::C3 | status::C2,
            Class::Finite => status::C2,
            Class::Infinity => status::C2 | status::C0,
            Class::Zero => status::C3,
        },
    };
    let sign = if register.sign_exponent & 0x8000 != 0 { status::C1 } else { 0 };
    cpu.fpu.set_condition(status::CONDITION, class | sign);
    Ok(())
}
