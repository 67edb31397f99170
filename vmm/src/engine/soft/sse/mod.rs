//! MMX and SSE to SSE4.2: operands, and which handler an instruction has. [`integer`], [`moves`], [`float`] and [`strings`]
//! hold the functions.

mod float;
mod integer;
mod moves;
mod strings;

pub(super) use self::decode::handler;

mod decode;

use super::fpu::F80;
use super::mem::Bus;
use super::op::{Mem, Op, Source, Target};
use super::state::{Cpu, Step, Stop};

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Xmm,
    Mmx,
    General,
    Memory,
}

impl Place {
    fn from_bits(bits: u8) -> Place {
        match bits & 3 {
            0 => Place::Xmm,
            1 => Place::Mmx,
            2 => Place::General,
            _ => Place::Memory,
        }
    }
}

/// [`Op::extra`] of these instructions: where the first and second operand are, and the size of the one that is not wholly
/// used.
#[derive(Clone, Copy, Debug)]
struct Operands(u8);

impl Operands {
    const UNALIGNED: u8 = 1 << 7;

    fn new(dst: Place, src: Place, size: usize, unaligned: bool) -> Operands {
        let unaligned = if unaligned { Operands::UNALIGNED } else { 0 };
        Operands(size.trailing_zeros() as u8 | (dst as u8) << 3 | (src as u8) << 5 | unaligned)
    }

    fn of(op: &Op) -> Operands {
        Operands(op.extra)
    }

    fn dst(self) -> Place {
        Place::from_bits(self.0 >> 3)
    }

    fn src(self) -> Place {
        Place::from_bits(self.0 >> 5)
    }

    /// Bytes of the memory operand.
    fn size(self) -> u32 {
        1 << (self.0 & 7)
    }

    fn has(self, place: Place) -> bool {
        self.dst() == place || self.src() == place
    }
}

/// How wide an instruction's vectors are in bytes: 8 for MMX, else 16.
fn width(op: &Op) -> usize {
    if Operands::of(op).has(Place::Mmx) { 8 } else { 16 }
}

impl Cpu {
    /// What an instruction with these operands needs.
    #[inline(always)]
    fn check_vector(&mut self, op: &Op) -> Step {
        let operands = Operands::of(op);
        if operands.has(Place::Mmx) {
            if operands.has(Place::Xmm) {
                self.check_sse()?;
            }
            return self.check_mmx();
        }
        self.check_sse()
    }

    /// Reads an operand from a place; `size` matters in memory and general registers alone.
    #[inline(always)]
    fn vector_get(&mut self, bus: &mut Bus, op: &Op, place: Place, number: u8) -> Result<u128, Stop> {
        let operands = Operands::of(op);
        Ok(match place {
            Place::Xmm => self.fpu.xmm[usize::from(number & 15)],
            Place::Mmx => u128::from(self.fpu.registers[usize::from(number & 7)].significand),
            Place::General if operands.size() == 8 => u128::from(self.get::<u64>(number)),
            Place::General => u128::from(self.get::<u32>(number)),
            Place::Memory => match operands.size() {
                1 => u128::from(Mem::get::<u8>(self, bus, op)?),
                2 => u128::from(Mem::get::<u16>(self, bus, op)?),
                4 => u128::from(Mem::get::<u32>(self, bus, op)?),
                8 => u128::from(Mem::get::<u64>(self, bus, op)?),
                _ => {
                    let offset = self.effective_address(op);
                    if operands.0 & Operands::UNALIGNED == 0 {
                        self.check_aligned(op, offset, 16)?;
                    }
                    self.read128(bus, op, offset)?
                }
            },
        })
    }

    /// Writes a whole operand.
    #[inline(always)]
    fn vector_put(&mut self, bus: &mut Bus, op: &Op, place: Place, number: u8, value: u128) -> Step {
        let operands = Operands::of(op);
        match place {
            Place::Xmm => self.fpu.xmm[usize::from(number & 15)] = value,
            Place::Mmx => {
                let register = F80 { significand: value as u64, sign_exponent: 0xFFFF };
                self.fpu.registers[usize::from(number & 7)] = register;
            }
            Place::General if operands.size() == 8 => self.put(number, value as u64),
            Place::General => self.put(number, value as u32),
            Place::Memory => match operands.size() {
                1 => Mem::put(self, bus, op, value as u8)?,
                2 => Mem::put(self, bus, op, value as u16)?,
                4 => Mem::put(self, bus, op, value as u32)?,
                8 => Mem::put(self, bus, op, value as u64)?,
                _ => {
                    let offset = self.effective_address(op);
                    if operands.0 & Operands::UNALIGNED == 0 {
                        self.check_aligned(op, offset, 16)?;
                    }
                    self.write128(bus, op, offset, value)?;
                }
            },
        }
        Ok(())
    }

    #[inline(always)]
    fn vector_dst(&mut self, bus: &mut Bus, op: &Op) -> Result<u128, Stop> {
        self.vector_get(bus, op, Operands::of(op).dst(), op.dst)
    }

    #[inline(always)]
    fn vector_src(&mut self, bus: &mut Bus, op: &Op) -> Result<u128, Stop> {
        self.vector_get(bus, op, Operands::of(op).src(), op.src)
    }

    #[inline(always)]
    fn vector_set_dst(&mut self, bus: &mut Bus, op: &Op, value: u128) -> Step {
        self.vector_put(bus, op, Operands::of(op).dst(), op.dst, value)?;
        self.note_mmx(op);
        Ok(())
    }

    /// An MMX instruction was executed: the registers are no stack any more (SDM 1 9.5).
    #[inline(always)]
    fn note_mmx(&mut self, op: &Op) {
        if Operands::of(op).has(Place::Mmx) {
            (self.fpu.top, self.fpu.occupied) = (0, 0xFF);
        }
    }
}

/// The first operand becomes a function of both.
#[inline(always)]
fn binary(cpu: &mut Cpu, bus: &mut Bus, op: &Op, f: impl Fn(u128, u128, &Op) -> u128) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    cpu.vector_set_dst(bus, op, f(a, b, op))
}

/// The first operand becomes a function of the second.
#[inline(always)]
fn unary(cpu: &mut Cpu, bus: &mut Bus, op: &Op, f: impl Fn(u128, &Op) -> u128) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    cpu.vector_set_dst(bus, op, f(b, op))
}

/// An element of a vector.
trait Lane: Copy {
    const BYTES: u32;
    fn of(bits: u128) -> Self;
    fn bits(self) -> u128;
}

macro_rules! lanes {
    ($($signed:ty, $unsigned:ty;)*) => {
        $(
            impl Lane for $unsigned {
                const BYTES: u32 = <$unsigned>::BITS / 8;
                #[inline(always)]
                fn of(bits: u128) -> Self {
                    bits as $unsigned
                }
                #[inline(always)]
                fn bits(self) -> u128 {
                    u128::from(self)
                }
            }
            impl Lane for $signed {
                const BYTES: u32 = <$unsigned>::BITS / 8;
                #[inline(always)]
                fn of(bits: u128) -> Self {
                    bits as $signed
                }
                #[inline(always)]
                fn bits(self) -> u128 {
                    u128::from(self as $unsigned)
                }
            }
        )*
    };
}

lanes! {
    i8, u8;
    i16, u16;
    i32, u32;
    i64, u64;
}

/// The `i`-th element.
#[inline(always)]
fn lane<T: Lane>(vector: u128, i: usize) -> T {
    T::of(vector >> (8 * T::BYTES * i as u32 % 128))
}

/// A vector of `bytes` bytes whose elements a function makes of their numbers.
#[inline(always)]
fn build<T: Lane>(bytes: usize, f: impl Fn(usize) -> T) -> u128 {
    (0..bytes / T::BYTES as usize).fold(0, |vector, i| vector | f(i).bits() << (8 * T::BYTES * i as u32))
}

/// Element by element.
#[inline(always)]
fn map<T: Lane, R: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> R) -> u128 {
    build(16, |i| f(lane(a, i), lane(b, i)))
}
