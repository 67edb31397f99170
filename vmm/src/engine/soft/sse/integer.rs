//! Functions of integer vectors.

use super::super::op::Op;
use super::{Lane, build, lane, map, width};

/// All ones where the comparison holds.
pub(super) fn compare<T: Lane>(a: u128, b: u128, holds: impl Fn(T, T) -> bool) -> u128 {
    map(a, b, |x: T, y: T| T::of(if holds(x, y) { u128::MAX } else { 0 }))
}

/// PMADDWD.
pub(super) fn multiply_add_words(a: u128, b: u128) -> u128 {
    build(16, |i| {
        let product = |j: usize| i32::from(lane::<i16>(a, j)) * i32::from(lane::<i16>(b, j));
        product(2 * i).wrapping_add(product(2 * i + 1))
    })
}

/// PMADDUBSW.
pub(super) fn multiply_add_bytes(a: u128, b: u128) -> u128 {
    build(16, |i| {
        let product = |j: usize| i32::from(lane::<u8>(a, j)) * i32::from(lane::<i8>(b, j));
        saturate_i16(product(2 * i) + product(2 * i + 1))
    })
}

/// PMULHRSW.
pub(super) fn multiply_round(a: i16, b: i16) -> i16 {
    ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
}

/// PSADBW.
pub(super) fn sum_of_differences(a: u128, b: u128) -> u128 {
    build(16, |i| (8 * i..8 * i + 8).map(|j| u64::from(lane::<u8>(a, j).abs_diff(lane(b, j)))).sum::<u64>())
}

/// MPSADBW: `immediate` picks a block of the second operand and where the blocks of the first begin.
pub(super) fn multiple_sums(a: u128, b: u128, immediate: u64) -> u128 {
    let (from, block) = ((immediate >> 2 & 1) as usize * 4, (immediate & 3) as usize * 4);
    build(16, |i| (0..4).map(|j| u16::from(lane::<u8>(a, from + i + j).abs_diff(lane(b, block + j)))).sum::<u16>())
}

/// PHMINPOSUW.
pub(super) fn minimum_position(b: u128) -> u128 {
    let (at, least) = (0..8).map(|i| (i, lane::<u16>(b, i))).min_by_key(|&(i, word)| (word, i)).unwrap_or_default();
    u128::from(least) | (at as u128) << 16
}

/// Shifts elements by a count that is the same for all: PSLL, PSRL.
pub(super) fn shift<T: Lane>(a: u128, count: u64, f: impl Fn(T, u32) -> T) -> u128 {
    if count >= u64::from(8 * T::BYTES) {
        return 0;
    }
    build(16, |i| f(lane(a, i), count as u32))
}

/// PSRA: a large count leaves copies of the sign.
pub(super) fn shift_arithmetic<T: Lane>(a: u128, count: u64, f: impl Fn(T, u32) -> T) -> u128 {
    let count = count.min(u64::from(8 * T::BYTES - 1)) as u32;
    build(16, |i| f(lane(a, i), count))
}

pub(super) fn saturate_i8(value: i32) -> i8 {
    value.clamp(i8::MIN.into(), i8::MAX.into()) as i8
}
pub(super) fn saturate_u8(value: i32) -> u8 {
    value.clamp(0, u8::MAX.into()) as u8
}
pub(super) fn saturate_i16(value: i32) -> i16 {
    value.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}
pub(super) fn saturate_u16(value: i32) -> u16 {
    value.clamp(0, u16::MAX.into()) as u16
}

/// PACK: elements of the first operand, then of the second, made narrower.
pub(super) fn pack<T: Lane, R: Lane>(a: u128, b: u128, op: &Op, f: impl Fn(T) -> R) -> u128 {
    let half = width(op) / T::BYTES as usize;
    build(width(op), |i| f(if i < half { lane(a, i) } else { lane(b, i - half) }))
}

/// PUNPCKL, and PUNPCKH if `HIGH`.
pub(super) fn unpack<const HIGH: bool, T: Lane>(a: u128, b: u128, op: &Op) -> u128 {
    let from = if HIGH { width(op) / T::BYTES as usize / 2 } else { 0 };
    build(width(op), |i| lane::<T>(if i % 2 == 0 { a } else { b }, from + i / 2))
}

/// PHADD and PHSUB: a function of neighbours.
pub(super) fn horizontal<T: Lane>(a: u128, b: u128, op: &Op, f: impl Fn(T, T) -> T) -> u128 {
    let half = width(op) / T::BYTES as usize / 2;
    build(width(op), |i| {
        let (vector, i) = if i < half { (a, i) } else { (b, i - half) };
        f(lane(vector, 2 * i), lane(vector, 2 * i + 1))
    })
}

/// PSHUFB.
pub(super) fn shuffle_bytes(a: u128, b: u128, op: &Op) -> u128 {
    build(width(op), |i| {
        let control = lane::<u8>(b, i);
        if control & 0x80 != 0 { 0 } else { lane::<u8>(a, usize::from(control) % width(op)) }
    })
}

/// PALIGNR.
pub(super) fn align_right(a: u128, b: u128, op: &Op) -> u128 {
    let bytes = width(op);
    build(bytes, |i| {
        let at = i + op.immediate as u8 as usize;
        match at / bytes {
            0 => lane::<u8>(b, at),
            1 => lane(a, at - bytes),
            _ => 0,
        }
    })
}

/// Four elements by two bits each of the immediate: PSHUFD, PSHUFW.
pub(super) fn shuffle<T: Lane>(b: u128, immediate: u64) -> u128 {
    build(4 * T::BYTES as usize, |i| lane::<T>(b, (immediate >> (2 * i) & 3) as usize))
}

/// PSHUFLW, and PSHUFHW if `HIGH`.
pub(super) fn shuffle_half<const HIGH: bool>(b: u128, immediate: u64) -> u128 {
    let low = u128::from(u64::MAX);
    if HIGH { b & low | shuffle::<u16>(b >> 64, immediate) << 64 } else { b & !low | shuffle::<u16>(b, immediate) }
}

/// SHUFPS.
pub(super) fn shuffle_singles(a: u128, b: u128, op: &Op) -> u128 {
    build(16, |i| lane::<u32>(if i < 2 { a } else { b }, (op.immediate >> (2 * i) & 3) as usize))
}

/// SHUFPD.
pub(super) fn shuffle_doubles(a: u128, b: u128, op: &Op) -> u128 {
    build(16, |i| lane::<u64>(if i < 1 { a } else { b }, (op.immediate >> i & 1) as usize))
}

/// PBLENDW, BLENDPS, BLENDPD: elements of the second operand where the immediate has ones.
pub(super) fn blend<T: Lane>(a: u128, b: u128, op: &Op) -> u128 {
    build(16, |i| lane::<T>(if op.immediate >> i & 1 != 0 { b } else { a }, i))
}

/// PMOVSX and PMOVZX.
pub(super) fn widen<T: Lane, R: Lane>(b: u128, f: impl Fn(T) -> R) -> u128 {
    build(16, |i| f(lane(b, i)))
}

/// The highest bits of all elements.
pub(super) fn signs<T: Lane>(b: u128, bytes: usize) -> u128 {
    (0..bytes / T::BYTES as usize).fold(0, |mask, i| mask | (lane::<T>(b, i).bits() >> (8 * T::BYTES - 1)) << i)
}
