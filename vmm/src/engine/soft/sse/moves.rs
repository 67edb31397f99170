//! Moves, insertions, extractions, and what goes into flags or general registers.

use super::super::flags::{CF, Status, ZF};
use super::super::mem::Bus;
use super::super::op::Op;
use super::super::state::{Cpu, Step};
use super::super::word::{RDI, Word};
use super::{Lane, Operands, Place, lane};

/// The first operand becomes the second, zero-extended.
pub(super) fn copy(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    super::unary(cpu, bus, op, |b, _| b)
}

/// MOVQ between XMM registers, or from one to memory or a general or MMX register: the low half.
pub(super) fn copy_low(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    super::unary(cpu, bus, op, |b, _| u128::from(b as u64))
}

/// MOVNTI needs no SSE state.
pub(super) fn store_general(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value = cpu.vector_src(bus, op)?;
    cpu.vector_put(bus, op, Place::Memory, 0, value)
}

/// Replaces the low `BITS` bits of a vector.
pub(super) fn merge_low<const BITS: u32>(a: u128, b: u128) -> u128 {
    let mask = u128::MAX >> (128 - BITS);
    a & !mask | b & mask
}

/// MOVHPS and MOVHPD from memory, MOVLHPS.
pub(super) fn merge_high(a: u128, b: u128) -> u128 {
    a & u128::from(u64::MAX) | b << 64
}

/// PINSR: the immediate is the element's number.
pub(super) fn insert<T: Lane>(a: u128, b: u128, op: &Op) -> u128 {
    let elements = super::width(op) as u32 / T::BYTES;
    let shift = 8 * T::BYTES * (op.immediate as u32 % elements);
    let mask = T::of(u128::MAX).bits() << shift;
    a & !mask | T::of(b).bits() << shift
}

/// PEXTR and EXTRACTPS: an element into a general register, zero-extended, or memory.
pub(super) fn extract<T: Lane>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    super::unary(cpu, bus, op, |b, op| {
        let elements = super::width(op) as u64 / u64::from(T::BYTES);
        lane::<T>(b, (op.immediate % elements) as usize).bits()
    })
}

/// INSERTPS.
pub(super) fn insert_single(a: u128, b: u128, op: &Op) -> u128 {
    let immediate = op.immediate as u32;
    let from_memory = Operands::of(op).src() == Place::Memory;
    let element = if from_memory { lane::<u32>(b, 0) } else { lane(b, (immediate >> 6 & 3) as usize) };
    super::build(16, |i| match i as u32 {
        i if immediate >> i & 1 != 0 => 0,
        i if i == immediate >> 4 & 3 => element,
        _ => lane(a, i),
    })
}

/// MASKMOVDQU and MASKMOVQ: bytes of the first operand where the second has its high bit set.
pub(super) fn masked_store(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_vector(op)?;
    let (data, mask) = (cpu.vector_dst(bus, op)?, cpu.vector_src(bus, op)?);
    let base: u64 = cpu.get(RDI);
    let chosen = |i: &usize| lane::<u8>(mask, *i) & 0x80 != 0;
    let offset = |i: usize| op.truncate_address(base.wrapping_add(i as u64));
    for i in (0..super::width(op)).filter(chosen) {
        cpu.open::<u8>(bus, op.seg, offset(i))?;
    }
    for i in (0..super::width(op)).filter(chosen) {
        cpu.write(bus, op.seg, offset(i), lane::<u8>(data, i))?;
    }
    cpu.note_mmx(op);
    Ok(())
}

/// PTEST.
pub(super) fn test(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let bit = |set: bool, flag: u64| if set { flag } else { 0 };
    cpu.status = Status::from_bits(bit(a & b == 0, ZF) | bit(!a & b == 0, CF));
    Ok(())
}

/// PBLENDVB, BLENDVPS, BLENDVPD: elements of the second operand where XMM0's have their highest bit set.
pub(super) fn blend_by_mask<T: Lane>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let mask = cpu.fpu.xmm[0];
    super::binary(cpu, bus, op, |a, b, _| {
        super::build(16, |i| {
            let takes_second = lane::<T>(mask, i).bits() >> (8 * T::BYTES - 1) != 0;
            lane::<T>(if takes_second { b } else { a }, i)
        })
    })
}

/// CRC32, with the reflected Castagnoli polynomial. It needs no SSE state.
pub(super) fn crc32<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    use super::super::op::{RmSrc, Source};
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let value: T = RmSrc::get(cpu, bus, op)?;
    let mut crc: u32 = cpu.get(op.dst);
    for byte in value.zx().to_le_bytes().into_iter().take(T::BYTES as usize) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cpu.put(op.dst, crc);
    Ok(())
}
