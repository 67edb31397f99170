//! From iced-x86's instructions to operations: reads like the manual's list of instructions.

use super::super::mem::Bus;
use super::super::op::{Handler, Op, flag};
use super::super::state::{Cpu, Step};
use super::float::{self, Double, Operation, Precision, Single};
use super::integer::{
    self as int, compare, horizontal, pack, saturate_i8, saturate_i16, saturate_u8, saturate_u16, shift,
    shift_arithmetic, unpack, widen,
};
use super::{Operands, Place, lane, map, moves, strings, width};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// A handler that sets the first operand to a function of both, and of the operation.
macro_rules! two {
    ($f:expr) => {{
        fn run(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
            super::binary(cpu, bus, op, $f)
        }
        run as Handler
    }};
}

/// The same with a function of two elements.
macro_rules! each {
    ($f:expr) => {
        two!(|a, b, _| map(a, b, $f))
    };
}

/// A handler that sets the first operand to a function of the second, and of the operation.
macro_rules! one {
    ($f:expr) => {{
        fn run(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
            super::unary(cpu, bus, op, $f)
        }
        run as Handler
    }};
}

/// A handler of packed or scalar floating point with a function of two elements.
macro_rules! floats {
    ($how:ident, $P:ty, $f:expr) => {{
        fn run(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
            float::$how::<$P>(cpu, bus, op, $f)
        }
        run as Handler
    }};
}

/// The same with an operation of numbers.
macro_rules! arithmetic {
    ($how:ident, $P:ty, $operation:expr) => {
        floats!($how, $P, |env, a, b, _| {
            let operation: Operation = $operation;
            let number = operation(env, <$P as Precision>::FORMAT, a, b);
            <$P as Precision>::pack(number)
        })
    };
}

/// The count of a shift: the immediate, or the low half of the second operand.
fn count(b: u128, op: &Op) -> u64 {
    if op.has(flag::IMMEDIATE) { op.immediate & 0xFF } else { b as u64 }
}

/// All of a shift's handlers.
macro_rules! shifts {
    ($shift:ident, $T:ty, $f:expr) => {
        two!(|a, b, op| $shift::<$T>(a, count(b, op), $f))
    };
}

fn place(register: Register) -> Place {
    if register.is_xmm() {
        Place::Xmm
    } else if register.is_mm() {
        Place::Mmx
    } else {
        Place::General
    }
}

/// Fills in where the operands are.
fn find_operands(instruction: &Instruction, op: &mut Op) {
    // MASKMOVDQU and MASKMOVQ name memory first, which is implied.
    let first =
        u32::from(matches!(instruction.op0_kind(), OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI));
    let kind = |i: u32| {
        let i = i + first;
        (i < instruction.op_count()).then(|| match instruction.op_kind(i) {
            OpKind::Memory => Some((Place::Memory, 0)),
            OpKind::Register => {
                let register = instruction.op_register(i);
                Some((place(register), super::super::decode::number(register)))
            }
            _ => None,
        })?
    };
    let unaligned = matches!(
        instruction.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    );
    let (dst, src) = (kind(0), kind(1));
    let general = [dst, src].into_iter().flatten().any(|(place, _)| place == Place::General);
    let size = if op.has(flag::MEMORY) {
        instruction.memory_size().size()
    } else if general {
        (first..instruction.op_count())
            .filter(|&i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_gpr())
            .map(|i| instruction.op_register(i).size())
            .max()
            .unwrap_or(4)
    } else {
        16
    };
    let (dst_place, dst_number) = dst.unwrap_or((Place::Xmm, 0));
    // Without a second operand there is an immediate: the first is of the kind that matters.
    let (src_place, src_number) = src.unwrap_or((dst_place, dst_number));
    (op.dst, op.src) = (dst_number, src_number);
    if src.is_none() {
        op.flags |= flag::IMMEDIATE;
    }
    op.extra = Operands::new(dst_place, src_place, size, unaligned).0;
}

/// The handler of an MMX or SSE instruction; `None` if it is none, or this processor lacks it.
pub(in super::super) fn handler(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let handler = pick(instruction)?;
    find_operands(instruction, op);
    Some(handler)
}

fn is_load(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Memory
}

fn is_store(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

fn pick(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let code = instruction.code();
    let moves_memory = is_load(instruction) || is_store(instruction);
    Some(match instruction.mnemonic() {
        M::Movaps
        | M::Movapd
        | M::Movups
        | M::Movupd
        | M::Movdqa
        | M::Movdqu
        | M::Lddqu
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Movntdqa
        | M::Movntq
        | M::Movd => moves::copy,
        M::Movq => moves::copy_low,
        M::Movq2dq | M::Movdq2q => moves::copy_low,
        M::Movnti => moves::store_general,
        M::Movss if moves_memory => moves::copy,
        M::Movss => two!(|a, b, _| moves::merge_low::<32>(a, b)),
        M::Movsd if code == Code::Movsd_m32_m32 => return None,
        M::Movsd if moves_memory => moves::copy,
        M::Movsd => two!(|a, b, _| moves::merge_low::<64>(a, b)),
        M::Movlps | M::Movlpd | M::Movhlps if is_store(instruction) => moves::copy,
        M::Movlps | M::Movlpd => two!(|a, b, _| moves::merge_low::<64>(a, b)),
        M::Movhlps => two!(|a, b, _| moves::merge_low::<64>(a, b >> 64)),
        M::Movhps | M::Movhpd if is_store(instruction) => one!(|b, _| b >> 64),
        M::Movhps | M::Movhpd | M::Movlhps => two!(|a, b, _| moves::merge_high(a, b)),
        M::Movmskps => one!(|b, _| int::signs::<u32>(b, 16)),
        M::Movmskpd => one!(|b, _| int::signs::<u64>(b, 16)),
        M::Pmovmskb => one!(|b, op| int::signs::<u8>(b, width(op))),
        M::Maskmovdqu | M::Maskmovq => moves::masked_store,
        M::Movsldup => one!(|b, _| super::build(16, |i| lane::<u32>(b, i & 2))),
        M::Movshdup => one!(|b, _| super::build(16, |i| lane::<u32>(b, i | 1))),
        M::Movddup => one!(|b, _| super::build(16, |_| lane::<u64>(b, 0))),
        M::Pinsrb => two!(moves::insert::<u8>),
        M::Pinsrw => two!(moves::insert::<u16>),
        M::Pinsrd => two!(moves::insert::<u32>),
        M::Pinsrq => two!(moves::insert::<u64>),
        M::Pextrb => moves::extract::<u8>,
        M::Pextrw => moves::extract::<u16>,
        M::Pextrd | M::Extractps => moves::extract::<u32>,
        M::Pextrq => moves::extract::<u64>,
        M::Insertps => two!(moves::insert_single),

        M::Pand | M::Andps | M::Andpd => two!(|a, b, _| a & b),
        M::Pandn | M::Andnps | M::Andnpd => two!(|a, b, _| !a & b),
        M::Por | M::Orps | M::Orpd => two!(|a, b, _| a | b),
        M::Pxor | M::Xorps | M::Xorpd => two!(|a, b, _| a ^ b),
        M::Ptest => moves::test,

        M::Paddb => each!(u8::wrapping_add),
        M::Paddw => each!(u16::wrapping_add),
        M::Paddd => each!(u32::wrapping_add),
        M::Paddq => each!(u64::wrapping_add),
        M::Paddsb => each!(i8::saturating_add),
        M::Paddsw => each!(i16::saturating_add),
        M::Paddusb => each!(u8::saturating_add),
        M::Paddusw => each!(u16::saturating_add),
        M::Psubb => each!(u8::wrapping_sub),
        M::Psubw => each!(u16::wrapping_sub),
        M::Psubd => each!(u32::wrapping_sub),
        M::Psubq => each!(u64::wrapping_sub),
        M::Psubsb => each!(i8::saturating_sub),
        M::Psubsw => each!(i16::saturating_sub),
        M::Psubusb => each!(u8::saturating_sub),
        M::Psubusw => each!(u16::saturating_sub),
        M::Pmullw => each!(i16::wrapping_mul),
        M::Pmulld => each!(i32::wrapping_mul),
        M::Pmulhw => each!(|x: i16, y: i16| ((i32::from(x) * i32::from(y)) >> 16) as i16),
        M::Pmulhuw => each!(|x: u16, y: u16| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        M::Pmulhrsw => each!(int::multiply_round),
        M::Pmuludq => each!(|x: u64, y: u64| u64::from(x as u32) * u64::from(y as u32)),
        M::Pmuldq => each!(|x: i64, y: i64| i64::from(x as i32) * i64::from(y as i32)),
        M::Pmaddwd => two!(|a, b, _| int::multiply_add_words(a, b)),
        M::Pmaddubsw => two!(|a, b, _| int::multiply_add_bytes(a, b)),
        M::Pavgb => each!(|x: u8, y: u8| ((u16::from(x) + u16::from(y) + 1) >> 1) as u8),
        M::Pavgw => each!(|x: u16, y: u16| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16),
        M::Psadbw => two!(|a, b, _| int::sum_of_differences(a, b)),
        M::Mpsadbw => two!(|a, b, op| int::multiple_sums(a, b, op.immediate)),
        M::Phminposuw => one!(|b, _| int::minimum_position(b)),
        M::Pminub => each!(|x: u8, y: u8| x.min(y)),
        M::Pminuw => each!(|x: u16, y: u16| x.min(y)),
        M::Pminud => each!(|x: u32, y: u32| x.min(y)),
        M::Pminsb => each!(|x: i8, y: i8| x.min(y)),
        M::Pminsw => each!(|x: i16, y: i16| x.min(y)),
        M::Pminsd => each!(|x: i32, y: i32| x.min(y)),
        M::Pmaxub => each!(|x: u8, y: u8| x.max(y)),
        M::Pmaxuw => each!(|x: u16, y: u16| x.max(y)),
        M::Pmaxud => each!(|x: u32, y: u32| x.max(y)),
        M::Pmaxsb => each!(|x: i8, y: i8| x.max(y)),
        M::Pmaxsw => each!(|x: i16, y: i16| x.max(y)),
        M::Pmaxsd => each!(|x: i32, y: i32| x.max(y)),
        M::Pcmpeqb => two!(|a, b, _| compare(a, b, |x: u8, y| x == y)),
        M::Pcmpeqw => two!(|a, b, _| compare(a, b, |x: u16, y| x == y)),
        M::Pcmpeqd => two!(|a, b, _| compare(a, b, |x: u32, y| x == y)),
        M::Pcmpeqq => two!(|a, b, _| compare(a, b, |x: u64, y| x == y)),
        M::Pcmpgtb => two!(|a, b, _| compare(a, b, |x: i8, y| x > y)),
        M::Pcmpgtw => two!(|a, b, _| compare(a, b, |x: i16, y| x > y)),
        M::Pcmpgtd => two!(|a, b, _| compare(a, b, |x: i32, y| x > y)),
        M::Pcmpgtq => two!(|a, b, _| compare(a, b, |x: i64, y| x > y)),
        M::Psllw => shifts!(shift, u16, |x, count| x << count),
        M::Pslld => shifts!(shift, u32, |x, count| x << count),
        M::Psllq => shifts!(shift, u64, |x, count| x << count),
        M::Psrlw => shifts!(shift, u16, |x, count| x >> count),
        M::Psrld => shifts!(shift, u32, |x, count| x >> count),
        M::Psrlq => shifts!(shift, u64, |x, count| x >> count),
        M::Psraw => shifts!(shift_arithmetic, i16, |x, count| x >> count),
        M::Psrad => shifts!(shift_arithmetic, i32, |x, count| x >> count),
        M::Pslldq => one!(|b, op| b.checked_shl(8 * (op.immediate as u32 & 0xFF)).unwrap_or(0)),
        M::Psrldq => one!(|b, op| b.checked_shr(8 * (op.immediate as u32 & 0xFF)).unwrap_or(0)),
        M::Packsswb => two!(|a, b, op| pack(a, b, op, |x: i16| saturate_i8(x.into()))),
        M::Packssdw => two!(|a, b, op| pack(a, b, op, |x: i32| saturate_i16(x))),
        M::Packuswb => two!(|a, b, op| pack(a, b, op, |x: i16| saturate_u8(x.into()))),
        M::Packusdw => two!(|a, b, op| pack(a, b, op, |x: i32| saturate_u16(x))),
        M::Punpcklbw => two!(unpack::<false, u8>),
        M::Punpcklwd => two!(unpack::<false, u16>),
        M::Punpckldq | M::Unpcklps => two!(unpack::<false, u32>),
        M::Punpcklqdq | M::Unpcklpd => two!(unpack::<false, u64>),
        M::Punpckhbw => two!(unpack::<true, u8>),
        M::Punpckhwd => two!(unpack::<true, u16>),
        M::Punpckhdq | M::Unpckhps => two!(unpack::<true, u32>),
        M::Punpckhqdq | M::Unpckhpd => two!(unpack::<true, u64>),
        M::Pshufb => two!(int::shuffle_bytes),
        M::Pshufw => one!(|b, op| int::shuffle::<u16>(b, op.immediate)),
        M::Pshufd => one!(|b, op| int::shuffle::<u32>(b, op.immediate)),
        M::Pshuflw => one!(|b, op| int::shuffle_half::<false>(b, op.immediate)),
        M::Pshufhw => one!(|b, op| int::shuffle_half::<true>(b, op.immediate)),
        M::Shufps => two!(int::shuffle_singles),
        M::Shufpd => two!(int::shuffle_doubles),
        M::Palignr => two!(int::align_right),
        M::Pblendw => two!(int::blend::<u16>),
        M::Blendps => two!(int::blend::<u32>),
        M::Blendpd => two!(int::blend::<u64>),
        M::Pblendvb => moves::blend_by_mask::<u8>,
        M::Blendvps => moves::blend_by_mask::<u32>,
        M::Blendvpd => moves::blend_by_mask::<u64>,
        M::Pabsb => one!(|b, _| widen(b, i8::unsigned_abs)),
        M::Pabsw => one!(|b, _| widen(b, i16::unsigned_abs)),
        M::Pabsd => one!(|b, _| widen(b, i32::unsigned_abs)),
        M::Psignb => each!(|x: i8, y: i8| x.wrapping_mul(y.signum())),
        M::Psignw => each!(|x: i16, y: i16| x.wrapping_mul(y.signum())),
        M::Psignd => each!(|x: i32, y: i32| x.wrapping_mul(y.signum())),
        M::Phaddw => two!(|a, b, op| horizontal(a, b, op, i16::wrapping_add)),
        M::Phaddd => two!(|a, b, op| horizontal(a, b, op, i32::wrapping_add)),
        M::Phaddsw => two!(|a, b, op| horizontal(a, b, op, i16::saturating_add)),
        M::Phsubw => two!(|a, b, op| horizontal(a, b, op, i16::wrapping_sub)),
        M::Phsubd => two!(|a, b, op| horizontal(a, b, op, i32::wrapping_sub)),
        M::Phsubsw => two!(|a, b, op| horizontal(a, b, op, i16::saturating_sub)),
        M::Pmovsxbw => one!(|b, _| widen(b, |x: i8| i16::from(x))),
        M::Pmovsxbd => one!(|b, _| widen(b, |x: i8| i32::from(x))),
        M::Pmovsxbq => one!(|b, _| widen(b, |x: i8| i64::from(x))),
        M::Pmovsxwd => one!(|b, _| widen(b, |x: i16| i32::from(x))),
        M::Pmovsxwq => one!(|b, _| widen(b, |x: i16| i64::from(x))),
        M::Pmovsxdq => one!(|b, _| widen(b, |x: i32| i64::from(x))),
        M::Pmovzxbw => one!(|b, _| widen(b, |x: u8| u16::from(x))),
        M::Pmovzxbd => one!(|b, _| widen(b, |x: u8| u32::from(x))),
        M::Pmovzxbq => one!(|b, _| widen(b, |x: u8| u64::from(x))),
        M::Pmovzxwd => one!(|b, _| widen(b, |x: u16| u32::from(x))),
        M::Pmovzxwq => one!(|b, _| widen(b, |x: u16| u64::from(x))),
        M::Pmovzxdq => one!(|b, _| widen(b, |x: u32| u64::from(x))),
        M::Pcmpestri => strings::compare::<true, false, u32>,
        M::Pcmpestri64 => strings::compare::<true, false, u64>,
        M::Pcmpestrm => strings::compare::<true, true, u32>,
        M::Pcmpestrm64 => strings::compare::<true, true, u64>,
        M::Pcmpistri => strings::compare::<false, false, u32>,
        M::Pcmpistrm => strings::compare::<false, true, u32>,

        _ => return pick_float(instruction),
    })
}

fn pick_float(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let code = instruction.code();
    Some(match instruction.mnemonic() {
        M::Addps => arithmetic!(packed, Single, |env, format, a, b| env.add(format, a, b)),
        M::Addpd => arithmetic!(packed, Double, |env, format, a, b| env.add(format, a, b)),
        M::Addss => arithmetic!(scalar, Single, |env, format, a, b| env.add(format, a, b)),
        M::Addsd => arithmetic!(scalar, Double, |env, format, a, b| env.add(format, a, b)),
        M::Subps => arithmetic!(packed, Single, |env, format, a, b| env.sub(format, a, b)),
        M::Subpd => arithmetic!(packed, Double, |env, format, a, b| env.sub(format, a, b)),
        M::Subss => arithmetic!(scalar, Single, |env, format, a, b| env.sub(format, a, b)),
        M::Subsd => arithmetic!(scalar, Double, |env, format, a, b| env.sub(format, a, b)),
        M::Mulps => arithmetic!(packed, Single, |env, format, a, b| env.mul(format, a, b)),
        M::Mulpd => arithmetic!(packed, Double, |env, format, a, b| env.mul(format, a, b)),
        M::Mulss => arithmetic!(scalar, Single, |env, format, a, b| env.mul(format, a, b)),
        M::Mulsd => arithmetic!(scalar, Double, |env, format, a, b| env.mul(format, a, b)),
        M::Divps => arithmetic!(packed, Single, |env, format, a, b| env.div(format, a, b)),
        M::Divpd => arithmetic!(packed, Double, |env, format, a, b| env.div(format, a, b)),
        M::Divss => arithmetic!(scalar, Single, |env, format, a, b| env.div(format, a, b)),
        M::Divsd => arithmetic!(scalar, Double, |env, format, a, b| env.div(format, a, b)),
        M::Minps => floats!(packed, Single, float::extreme::<false, Single>),
        M::Minpd => floats!(packed, Double, float::extreme::<false, Double>),
        M::Minss => floats!(scalar, Single, float::extreme::<false, Single>),
        M::Minsd => floats!(scalar, Double, float::extreme::<false, Double>),
        M::Maxps => floats!(packed, Single, float::extreme::<true, Single>),
        M::Maxpd => floats!(packed, Double, float::extreme::<true, Double>),
        M::Maxss => floats!(scalar, Single, float::extreme::<true, Single>),
        M::Maxsd => floats!(scalar, Double, float::extreme::<true, Double>),
        M::Sqrtps => floats!(packed, Single, float::sqrt::<Single>),
        M::Sqrtpd => floats!(packed, Double, float::sqrt::<Double>),
        M::Sqrtss => floats!(scalar, Single, float::sqrt::<Single>),
        M::Sqrtsd => floats!(scalar, Double, float::sqrt::<Double>),
        M::Rcpps => floats!(packed, Single, float::approximation::<false>),
        M::Rcpss => floats!(scalar, Single, float::approximation::<false>),
        M::Rsqrtps => floats!(packed, Single, float::approximation::<true>),
        M::Rsqrtss => floats!(scalar, Single, float::approximation::<true>),
        M::Cmpps => floats!(packed, Single, float::compare::<Single>),
        M::Cmppd => floats!(packed, Double, float::compare::<Double>),
        M::Cmpss => floats!(scalar, Single, float::compare::<Single>),
        M::Cmpsd if code == Code::Cmpsd_m32_m32 => return None,
        M::Cmpsd => floats!(scalar, Double, float::compare::<Double>),
        M::Roundps => floats!(packed, Single, float::round::<Single>),
        M::Roundpd => floats!(packed, Double, float::round::<Double>),
        M::Roundss => floats!(scalar, Single, float::round::<Single>),
        M::Roundsd => floats!(scalar, Double, float::round::<Double>),
        M::Comiss => float::compare_into_flags::<Single, false>,
        M::Comisd => float::compare_into_flags::<Double, false>,
        M::Ucomiss => float::compare_into_flags::<Single, true>,
        M::Ucomisd => float::compare_into_flags::<Double, true>,
        M::Addsubps => float::add_sub::<Single>,
        M::Addsubpd => float::add_sub::<Double>,
        M::Haddps => float::horizontal::<Single, false>,
        M::Haddpd => float::horizontal::<Double, false>,
        M::Hsubps => float::horizontal::<Single, true>,
        M::Hsubpd => float::horizontal::<Double, true>,
        M::Dpps => float::dot_product::<Single>,
        M::Dppd => float::dot_product::<Double>,
        M::Cvtps2pd => float::convert_packed::<Single, Double>,
        M::Cvtpd2ps => float::convert_packed::<Double, Single>,
        M::Cvtss2sd => float::convert_scalar::<Single, Double>,
        M::Cvtsd2ss => float::convert_scalar::<Double, Single>,
        M::Cvtps2dq => float::to_integers::<Single, 4, false>,
        M::Cvttps2dq => float::to_integers::<Single, 4, true>,
        M::Cvtpd2dq | M::Cvtpd2pi => float::to_integers::<Double, 2, false>,
        M::Cvttpd2dq | M::Cvttpd2pi => float::to_integers::<Double, 2, true>,
        M::Cvtps2pi => float::to_integers::<Single, 2, false>,
        M::Cvttps2pi => float::to_integers::<Single, 2, true>,
        M::Cvtdq2ps => float::of_integers::<Single, false>,
        M::Cvtdq2pd | M::Cvtpi2pd => float::of_integers::<Double, false>,
        M::Cvtpi2ps => float::of_integers::<Single, true>,
        M::Cvtsi2ss => float::of_general::<Single>,
        M::Cvtsi2sd => float::of_general::<Double>,
        M::Cvtss2si | M::Cvttss2si | M::Cvtsd2si | M::Cvttsd2si => to_general(instruction),
        M::Crc32 => crc32(code),
        _ => return None,
    })
}

fn to_general(instruction: &Instruction) -> Handler {
    use Mnemonic as M;
    match (instruction.mnemonic(), instruction.op0_register().size() == 8) {
        (M::Cvtss2si, false) => float::to_general::<Single, false, false>,
        (M::Cvtss2si, true) => float::to_general::<Single, true, false>,
        (M::Cvttss2si, false) => float::to_general::<Single, false, true>,
        (M::Cvttss2si, true) => float::to_general::<Single, true, true>,
        (M::Cvtsd2si, false) => float::to_general::<Double, false, false>,
        (M::Cvtsd2si, true) => float::to_general::<Double, true, false>,
        (_, false) => float::to_general::<Double, false, true>,
        (_, true) => float::to_general::<Double, true, true>,
    }
}

fn crc32(code: Code) -> Handler {
    match code {
        Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => moves::crc32::<u8>,
        Code::Crc32_r32_rm16 => moves::crc32::<u16>,
        Code::Crc32_r32_rm32 => moves::crc32::<u32>,
        _ => moves::crc32::<u64>,
    }
}
