//! From iced-x86's instructions to operations: which handler, with which operands. Reads like the manual's opcode map, by
//! mnemonic.

use super::alu::{
    Adc, Add, And, Binary, Cl, Cmp, Dec, Inc, Neg, Not, Or, Rcl, Rcr, Rol, Ror, Sar, Sbb, Shift, Shl, Shr, Sub, Test,
    Unary, Xor, bit,
};
use super::features::Features;
use super::io::{PortDx, PortImm};
use super::mem::Bus;
use super::op::{Dst, Flat, Handler, Imm, Mem, Op, Src, flag};
use super::state::{Cpu, FS, GS, LDTR, Step, TR, cr0, cr4, vector};
use super::string::{self, Cmps, Ins, Lods, Movs, Outs, Scas, Stos, StringOp};
use super::word::{HIGH_BYTE, RAX, RIP, ZERO};
use super::{alu, control, io, segment, sse, system, x87, xsave};
use iced_x86::{
    Code, CodeSize as IcedCodeSize, ConditionCode, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register,
};

/// A decoded instruction and its place in a block.
pub(super) struct Decoded {
    pub(super) op: Op,
    /// No instruction may follow in the block: control goes elsewhere, or the run loop has something to look at.
    pub(super) ends_block: bool,
    /// Nor may one stand before it: it looks at the count of instructions executed.
    pub(super) starts_block: bool,
    /// The processor lacks it: #UD, recorded.
    pub(super) lacking: bool,
}

/// Picks the instance of a handler for an operand width in bytes.
macro_rules! by_width {
    ($width:expr, |$T:ident| $handler:expr) => {
        match $width {
            1 => {
                type $T = u8;
                $handler as Handler
            }
            other => by_wide_width!(other, |$T| $handler),
        }
    };
}

/// Picks the instance of a handler for the kind of its memory operand.
macro_rules! by_address {
    ($flat:expr, |$M:ident| $handler:expr) => {
        if $flat {
            type $M = Flat;
            $handler
        } else {
            type $M = Mem;
            $handler
        }
    };
}

/// The same as `by_width` for instructions without a byte form.
macro_rules! by_wide_width {
    ($width:expr, |$T:ident| $handler:expr) => {
        match $width {
            2 => {
                type $T = u16;
                $handler as Handler
            }
            4 => {
                type $T = u32;
                $handler as Handler
            }
            _ => {
                type $T = u64;
                $handler as Handler
            }
        }
    };
}

/// Which operands are what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    RegReg,
    RegMem,
    MemReg,
    RegImm,
    MemImm,
    Reg,
    Mem,
}

fn form(instruction: &Instruction) -> Form {
    let kind = |i: u32| if i < instruction.op_count() { Some(instruction.op_kind(i)) } else { None };
    match (kind(0), kind(1)) {
        (Some(OpKind::Register), Some(OpKind::Register)) => Form::RegReg,
        (Some(OpKind::Register), Some(OpKind::Memory)) => Form::RegMem,
        (Some(OpKind::Memory), Some(OpKind::Register)) => Form::MemReg,
        (Some(OpKind::Memory), Some(_)) => Form::MemImm,
        (Some(OpKind::Memory), None) => Form::Mem,
        (_, Some(_)) => Form::RegImm,
        (_, None) => Form::Reg,
    }
}

/// Width of an operand in bytes: of a register, of the memory operand, or by the kind of branch.
fn operand_width(instruction: &Instruction, i: u32) -> usize {
    match instruction.op_kind(i) {
        OpKind::Register => instruction.op_register(i).size(),
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => instruction.memory_size().size(),
    }
}

pub(super) fn number(register: Register) -> u8 {
    let full = register.full_register().number() as u8;
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    full | if high { HIGH_BYTE } else { 0 }
}

/// The number that opcodes give a condition.
fn condition(instruction: &Instruction) -> u8 {
    debug_assert_ne!(instruction.condition_code(), ConditionCode::None);
    instruction.condition_code() as u8 - ConditionCode::o as u8
}

/// Address size in bytes of a string instruction's implicit operands.
fn string_address_size(instruction: &Instruction) -> u8 {
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            _ => {}
        }
    }
    8
}

/// Whether the instruction was decoded for 64-bit mode, where the stack is flat too.
fn is_64(instruction: &Instruction) -> bool {
    instruction.code_size() == IcedCodeSize::Code64
}

fn cut(address_size: u8) -> u8 {
    64 - address_size * 8
}

/// Makes an operation of a valid instruction.
pub(super) fn decode(instruction: &Instruction) -> Decoded {
    let mut op = operands(instruction);
    let mut decoded = Decoded { op, ends_block: false, starts_block: false, lacking: false };
    op.run = handler(instruction, &mut op, &mut decoded);
    decoded.op = op;
    decoded
}

/// Makes an operation of a valid instruction for a processor that has these features.
pub(super) fn decode_offered(instruction: &Instruction, features: Features) -> Decoded {
    let plain = features.taken_for(instruction);
    let instruction = plain.as_ref().unwrap_or(instruction);
    let decoded = decode(instruction);
    if decoded.lacking || features.offer(instruction) {
        return decoded;
    }
    lacking(instruction, flag::NOT_OFFERED)
}

/// What stands for an instruction that the processor does not have.
fn lacking(instruction: &Instruction, flags: u8) -> Decoded {
    let mut op = blank(instruction.len());
    op.run = not_implemented;
    op.immediate = instruction.mnemonic() as u64;
    op.extra = needs(instruction);
    op.flags = flags;
    Decoded { op, ends_block: true, starts_block: false, lacking: true }
}

/// What stands for bytes that are no instruction.
pub(super) fn invalid(len: usize) -> Decoded {
    let mut op = blank(len);
    op.run = control::undefined;
    Decoded { op, ends_block: true, starts_block: false, lacking: false }
}

/// What stands for an instruction of more than 15 bytes.
pub(super) fn too_long() -> Decoded {
    fn run(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
        Err(cpu.gp(0))
    }
    Decoded { op: Op { run, ..blank(15) }, ends_block: true, starts_block: false, lacking: false }
}

fn blank(len: usize) -> Op {
    Op {
        run: control::undefined,
        immediate: 0,
        displacement: 0,
        dst: 0,
        src: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: super::state::DS,
        address_cut: 0,
        flags: 0,
        len: len as u8,
        extra: 0,
        block_len: 0,
    }
}

/// Fills in the operands. The first register operand is `dst`, the next one `src`.
fn operands(instruction: &Instruction) -> Op {
    let mut op = blank(instruction.len());
    if instruction.has_rep_prefix() {
        op.flags |= flag::REP;
    }
    if instruction.has_repne_prefix() {
        op.flags |= flag::REPNE;
    }
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register if i == 0 => op.dst = number(instruction.op_register(i)),
            OpKind::Register if i == 1 => op.src = number(instruction.op_register(i)),
            // The count in CL of SHLD and SHRD; nothing else has a third register operand.
            OpKind::Register => {}
            OpKind::Memory => memory_operand(instruction, &mut op),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.immediate = instruction.near_branch_target().wrapping_sub(instruction.next_ip());
            }
            OpKind::FarBranch16 => {
                op.immediate = u64::from(instruction.far_branch16());
                op.displacement = i32::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                op.immediate = u64::from(instruction.far_branch32());
                op.displacement = i32::from(instruction.far_branch_selector());
            }
            OpKind::Immediate8_2nd => op.extra = instruction.immediate8_2nd(),
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => op.immediate = instruction.immediate(i),
            // Implicit operands of string instructions.
            _ => {
                op.seg = instruction.memory_segment().number() as u8;
                op.address_cut = cut(string_address_size(instruction));
            }
        }
    }
    op
}

fn memory_operand(instruction: &Instruction, op: &mut Op) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let mut displacement = instruction.memory_displacement64();
    let address_size = match (base, index) {
        (Register::None, Register::None) => instruction.memory_displ_size() as usize,
        (Register::None, index) => index.size(),
        // XLAT's index is AL: the base tells.
        (base, _) => base.size(),
    };
    op.flags |= flag::MEMORY;
    op.seg = instruction.memory_segment().number() as u8;
    op.address_cut = cut(address_size as u8);
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    if matches!(base, Register::RIP | Register::EIP) {
        displacement = displacement.wrapping_sub(instruction.next_ip());
        op.base = RIP;
    } else if base != Register::None {
        op.base = number(base);
    }
    if index != Register::None {
        op.index = number(index);
    }
    op.displacement = displacement as i32;
    let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
    if is_64(instruction) && address_size == 8 && !based {
        op.flags |= flag::FLAT;
    }
}

fn binary<O: Binary>(form: Form, width: usize, flat: bool) -> Handler {
    match form {
        Form::RegReg => by_width!(width, |T| alu::binary::<O, T, Dst, Src>),
        Form::RegMem => by_address!(flat, |M| by_width!(width, |T| alu::binary::<O, T, Dst, M>)),
        Form::MemReg => by_address!(flat, |M| by_width!(width, |T| alu::binary::<O, T, M, Src>)),
        Form::MemImm => by_address!(flat, |M| by_width!(width, |T| alu::binary::<O, T, M, Imm>)),
        _ => by_width!(width, |T| alu::binary::<O, T, Dst, Imm>),
    }
}

fn unary<O: Unary>(form: Form, width: usize, flat: bool) -> Handler {
    match form {
        Form::Mem => by_address!(flat, |M| by_width!(width, |T| alu::unary::<O, T, M>)),
        _ => by_width!(width, |T| alu::unary::<O, T, Dst>),
    }
}

fn shift<O: Shift>(form: Form, width: usize) -> Handler {
    match form {
        Form::RegReg => by_width!(width, |T| alu::shift::<O, T, Dst, Cl>),
        Form::MemReg => by_width!(width, |T| alu::shift::<O, T, Mem, Cl>),
        Form::MemImm => by_width!(width, |T| alu::shift::<O, T, Mem, Imm>),
        _ => by_width!(width, |T| alu::shift::<O, T, Dst, Imm>),
    }
}

fn double_shift<const LEFT: bool>(instruction: &Instruction, width: usize) -> Handler {
    if instruction.op_kind(2) == OpKind::Register {
        by_wide_width!(width, |T| alu::double_shift::<LEFT, T, Cl>)
    } else {
        by_wide_width!(width, |T| alu::double_shift::<LEFT, T, Imm>)
    }
}

fn bit_test<const WHAT: u8>(form: Form, width: usize) -> Handler {
    match form {
        Form::RegReg | Form::MemReg => by_wide_width!(width, |T| alu::bit_test::<WHAT, T, Src, true>),
        _ => by_wide_width!(width, |T| alu::bit_test::<WHAT, T, Imm, false>),
    }
}

fn string_op<O: StringOp>(op: &Op, width: usize, decoded: &mut Decoded) -> Handler {
    if op.has(flag::REP | flag::REPNE) {
        // Iterations are counted as they go.
        decoded.starts_block = true;
        decoded.ends_block = true;
        by_width!(width, |T| string::repeat::<O, T>)
    } else {
        by_width!(width, |T| string::once::<O, T>)
    }
}

fn jcc(condition: u8, width: usize) -> Handler {
    macro_rules! table {
        ($($code:literal)*) => {
            match condition {
                $($code => by_wide_width!(width, |T| control::jcc::<$code, T>),)*
                _ => unreachable!("a condition has four bits"),
            }
        };
    }
    table!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

/// Source and destination widths of MOVZX and MOVSX.
fn extension<const SIGN: bool>(form: Form, width: usize, from: usize, flat: bool) -> Handler {
    macro_rules! pick {
        ($f:ident, $S:ty) => {
            match from {
                1 => by_wide_width!(width, |T| alu::$f::<T, u8, $S>),
                2 => by_wide_width!(width, |T| alu::$f::<T, u16, $S>),
                _ => by_wide_width!(width, |T| alu::$f::<T, u32, $S>),
            }
        };
    }
    match (form, SIGN) {
        (Form::RegMem, true) => by_address!(flat, |M| pick!(movsx, M)),
        (Form::RegMem, false) => by_address!(flat, |M| pick!(movzx, M)),
        (_, true) => pick!(movsx, Src),
        (_, false) => pick!(movzx, Src),
    }
}

fn mov(instruction: &Instruction, op: &mut Op, decoded: &mut Decoded) -> Handler {
    let form = form(instruction);
    let register = |i: u32| {
        if instruction.op_kind(i) == OpKind::Register { instruction.op_register(i) } else { Register::None }
    };
    let (to, from) = (register(0), register(1));
    if to.is_segment_register() {
        op.extra = op.dst;
        // Loading SS blocks interrupts for one instruction, which the run loop counts.
        decoded.ends_block = to == Register::SS;
        // MOV CS is no instruction; iced-x86 decodes it.
        return if to == Register::CS { control::undefined } else { segment::mov_to_segment };
    }
    if from.is_segment_register() {
        op.extra = op.src;
        return match form {
            Form::MemReg => segment::mov_from_segment::<u16>,
            _ => by_wide_width!(to.size(), |T| segment::mov_from_segment::<T>),
        };
    }
    if to.is_cr() || to.is_dr() {
        op.extra = to.number() as u8;
        decoded.ends_block = true;
        return if to.is_cr() { system::mov_to_cr } else { system::mov_to_dr };
    }
    if from.is_cr() || from.is_dr() {
        op.extra = from.number() as u8;
        return if from.is_cr() { system::mov_from_cr } else { system::mov_from_dr };
    }
    let width = operand_width(instruction, 0);
    let flat = op.has(flag::FLAT);
    let far_offset = instruction.memory_displacement64();
    if matches!(form, Form::RegMem | Form::MemReg)
        && op.base == ZERO
        && op.index == ZERO
        && op.address_cut == 0
        && i64::from(far_offset as i32) as u64 != far_offset
    {
        op.immediate = far_offset;
        return if form == Form::RegMem {
            by_width!(width, |T| alu::mov_offset::<true, T>)
        } else {
            by_width!(width, |T| alu::mov_offset::<false, T>)
        };
    }
    match form {
        Form::RegReg => by_width!(width, |T| alu::mov::<T, Dst, Src>),
        Form::RegMem => by_address!(flat, |M| by_width!(width, |T| alu::mov::<T, Dst, M>)),
        Form::MemReg => by_address!(flat, |M| by_width!(width, |T| alu::mov::<T, M, Src>)),
        Form::MemImm => by_address!(flat, |M| by_width!(width, |T| alu::mov::<T, M, Imm>)),
        _ => by_width!(width, |T| alu::mov::<T, Dst, Imm>),
    }
}

fn push(instruction: &Instruction, op: &mut Op) -> Handler {
    let width = instruction.stack_pointer_increment().unsigned_abs() as usize;
    match instruction.op_kind(0) {
        OpKind::Register if instruction.op0_register().is_segment_register() => {
            op.extra = op.dst;
            by_wide_width!(width, |T| control::push_segment::<T>)
        }
        OpKind::Register if is_64(instruction) && width == 8 => control::push_flat,
        OpKind::Register => by_wide_width!(width, |T| control::push::<T, Dst>),
        OpKind::Memory => by_wide_width!(width, |T| control::push::<T, Mem>),
        _ => by_wide_width!(width, |T| control::push::<T, Imm>),
    }
}

fn pop(instruction: &Instruction, op: &mut Op, decoded: &mut Decoded) -> Handler {
    let width = instruction.stack_pointer_increment().unsigned_abs() as usize;
    match instruction.op_kind(0) {
        OpKind::Register if instruction.op0_register().is_segment_register() => {
            op.extra = op.dst;
            decoded.ends_block = instruction.op0_register() == Register::SS;
            by_wide_width!(width, |T| segment::pop_segment::<T>)
        }
        OpKind::Register if is_64(instruction) && width == 8 => control::pop_flat,
        OpKind::Register => by_wide_width!(width, |T| control::pop::<T>),
        _ => by_wide_width!(width, |T| control::pop_memory::<T>),
    }
}

/// Width of the return address that RET and RETF pop, and whether it is far.
fn return_width(code: Code) -> usize {
    match code {
        Code::Retnw | Code::Retnw_imm16 | Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 | Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    }
}

/// Far CALL and JMP, or near ones that name their target.
fn transfer<const CALL: bool>(instruction: &Instruction) -> Handler {
    use Code::*;
    let near = |width: usize| {
        if CALL { by_wide_width!(width, |T| control::call::<T>) } else { by_wide_width!(width, |T| control::jmp::<T>) }
    };
    match instruction.code() {
        Call_ptr1616 | Jmp_ptr1616 => segment::far_immediate::<CALL, u16>,
        Call_ptr1632 | Jmp_ptr1632 => segment::far_immediate::<CALL, u32>,
        Call_m1616 | Jmp_m1616 => segment::far_indirect::<CALL, u16>,
        Call_m1632 | Jmp_m1632 => segment::far_indirect::<CALL, u32>,
        Call_m1664 | Jmp_m1664 => segment::far_indirect::<CALL, u64>,
        _ => match instruction.op_kind(0) {
            OpKind::NearBranch64 if CALL => control::call_flat,
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => near(operand_width(instruction, 0)),
            _ if CALL => by_wide_width!(operand_width(instruction, 0), |T| control::call_indirect::<T>),
            _ => by_wide_width!(operand_width(instruction, 0), |T| control::jmp_indirect::<T>),
        },
    }
}

/// Address size of LOOP and JCXZ: the width of their count register.
fn count_register_size(code: Code) -> u8 {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 2,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX
        | Loopne_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}

fn port<const OUT: bool>(instruction: &Instruction) -> Handler {
    let (data, port) = if OUT { (1, 0) } else { (0, 1) };
    let width = instruction.op_register(data).size();
    macro_rules! pick {
        ($port:ty) => {
            match (OUT, width) {
                (false, 1) => io::input::<u8, $port>,
                (false, 2) => io::input::<u16, $port>,
                (false, _) => io::input::<u32, $port>,
                (true, 1) => io::output::<u8, $port>,
                (true, 2) => io::output::<u16, $port>,
                (true, _) => io::output::<u32, $port>,
            }
        };
    }
    if instruction.op_kind(port) == OpKind::Register { pick!(PortDx) } else { pick!(PortImm) }
}

/// The operand size in bytes that LGDT and LIDT go by.
fn table_operand_size(code: Code) -> usize {
    match code {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 2,
        Code::Lgdt_m1632 | Code::Lidt_m1632 => 4,
        _ => 8,
    }
}

/// Operand size by code size, for instructions that iced-x86 gives no operands.
fn implied(code: Code, word: Code, dword: Code) -> usize {
    if code == word {
        2
    } else if code == dword {
        4
    } else {
        8
    }
}

fn handler(instruction: &Instruction, op: &mut Op, decoded: &mut Decoded) -> Handler {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let code = instruction.code();
    let form = form(instruction);
    let flat = op.has(flag::FLAT);
    // Width of the first operand, for those that have one.
    let width = if instruction.op_count() > 0 { operand_width(instruction, 0) } else { 0 };

    if instruction.is_jcc_short_or_near() {
        // The block goes on where the branch is not taken.
        op.extra = condition(instruction);
        let to_itself = op.immediate.wrapping_add(u64::from(op.len)) == 0;
        decoded.ends_block = to_itself;
        return if to_itself { control::jcc_to_itself } else { jcc(op.extra, width) };
    }
    if instruction.condition_code() != ConditionCode::None
        && let Some(handler) = conditional(instruction, form, width, op)
    {
        return handler;
    }

    match mnemonic {
        M::Add => binary::<Add>(form, width, flat),
        M::Adc => binary::<Adc>(form, width, flat),
        M::Sub => binary::<Sub>(form, width, flat),
        M::Sbb => binary::<Sbb>(form, width, flat),
        M::Cmp => binary::<Cmp>(form, width, flat),
        M::And => binary::<And>(form, width, flat),
        M::Or => binary::<Or>(form, width, flat),
        M::Xor => binary::<Xor>(form, width, flat),
        M::Test => binary::<Test>(form, width, flat),
        M::Inc => unary::<Inc>(form, width, flat),
        M::Dec => unary::<Dec>(form, width, flat),
        M::Neg => unary::<Neg>(form, width, flat),
        M::Not => unary::<Not>(form, width, flat),
        M::Shl | M::Sal => shift::<Shl>(form, width),
        M::Shr => shift::<Shr>(form, width),
        M::Sar => shift::<Sar>(form, width),
        M::Rol => shift::<Rol>(form, width),
        M::Ror => shift::<Ror>(form, width),
        M::Rcl => shift::<Rcl>(form, width),
        M::Rcr => shift::<Rcr>(form, width),
        M::Shld => double_shift::<true>(instruction, width),
        M::Shrd => double_shift::<false>(instruction, width),
        M::Mul => by_width!(width, |T| alu::mul::<T>),
        M::Imul => match (instruction.op_count(), form) {
            (1, _) => by_width!(width, |T| alu::imul1::<T>),
            (2, Form::RegMem) => by_wide_width!(width, |T| alu::imul::<T, Dst, Mem>),
            (2, _) => by_wide_width!(width, |T| alu::imul::<T, Dst, Src>),
            (_, Form::RegMem) => by_wide_width!(width, |T| alu::imul::<T, Mem, Imm>),
            (_, _) => by_wide_width!(width, |T| alu::imul::<T, Src, Imm>),
        },
        M::Div => by_width!(width, |T| alu::div::<T>),
        M::Idiv => by_width!(width, |T| alu::idiv::<T>),
        M::Bt => bit_test::<{ bit::TEST }>(form, width),
        M::Bts => bit_test::<{ bit::SET }>(form, width),
        M::Btr => bit_test::<{ bit::RESET }>(form, width),
        M::Btc => bit_test::<{ bit::COMPLEMENT }>(form, width),
        M::Bsf => by_wide_width!(width, |T| alu::bit_scan::<false, T>),
        M::Bsr => by_wide_width!(width, |T| alu::bit_scan::<true, T>),
        M::Tzcnt => by_wide_width!(width, |T| alu::count_zeros::<false, T>),
        M::Lzcnt => by_wide_width!(width, |T| alu::count_zeros::<true, T>),
        M::Popcnt => by_wide_width!(width, |T| alu::popcnt::<T>),
        M::Bswap => by_wide_width!(width, |T| alu::bswap::<T>),
        M::Movbe if form == Form::RegMem => by_wide_width!(width, |T| alu::movbe::<T, Dst, Mem>),
        M::Movbe => by_wide_width!(width, |T| alu::movbe::<T, Mem, Src>),
        M::Xadd => by_width!(width, |T| alu::xadd::<T>),
        M::Xchg if form == Form::MemReg => by_width!(width, |T| alu::xchg::<T, Mem>),
        M::Xchg => by_width!(width, |T| alu::xchg::<T, Dst>),
        M::Cmpxchg => by_width!(width, |T| alu::cmpxchg::<T>),
        M::Cmpxchg8b => alu::cmpxchg8b,
        M::Cmpxchg16b => alu::cmpxchg16b,
        M::Adcx => by_wide_width!(width, |T| alu::add_carry_only::<false, T>),
        M::Adox => by_wide_width!(width, |T| alu::add_carry_only::<true, T>),
        M::Aaa => alu::ascii_adjust::<false>,
        M::Aas => alu::ascii_adjust::<true>,
        M::Daa => alu::decimal_adjust::<false>,
        M::Das => alu::decimal_adjust::<true>,
        M::Aam => alu::aam,
        M::Aad => alu::aad,
        M::Cbw => alu::extend_accumulator::<u8, u16>,
        M::Cwde => alu::extend_accumulator::<u16, u32>,
        M::Cdqe => alu::extend_accumulator::<u32, u64>,
        M::Cwd => alu::extend_into_dx::<u16>,
        M::Cdq => alu::extend_into_dx::<u32>,
        M::Cqo => alu::extend_into_dx::<u64>,
        M::Lea => by_address!(flat, |M| by_wide_width!(width, |T| alu::lea::<T, M>)),
        M::Mov => mov(instruction, op, decoded),
        M::Movzx => extension::<false>(form, width, operand_width(instruction, 1), flat),
        M::Movsx | M::Movsxd => extension::<true>(form, width, operand_width(instruction, 1), flat),
        M::Clc => alu::clc,
        M::Stc => alu::stc,
        M::Cmc => alu::cmc,
        M::Cld => alu::cld,
        M::Std => alu::std,
        M::Lahf => alu::lahf,
        M::Sahf => alu::sahf,
        M::Salc => control::salc,
        M::Xlatb => alu::xlat,
        M::Nop
        | M::Reservednop
        | M::Endbr32
        | M::Rdsspd
        | M::Rdsspq
        | M::Endbr64
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Lfence
        | M::Mfence
        | M::Sfence
        | M::Cldemote
        | M::Serialize => alu::nop,
        M::Clflush | M::Clflushopt | M::Clwb => system::flush_line,

        M::Movsb => string_op::<Movs>(op, 1, decoded),
        M::Movsw => string_op::<Movs>(op, 2, decoded),
        M::Movsd if code == Code::Movsd_m32_m32 => string_op::<Movs>(op, 4, decoded),
        M::Movsq => string_op::<Movs>(op, 8, decoded),
        M::Stosb => string_op::<Stos>(op, 1, decoded),
        M::Stosw => string_op::<Stos>(op, 2, decoded),
        M::Stosd => string_op::<Stos>(op, 4, decoded),
        M::Stosq => string_op::<Stos>(op, 8, decoded),
        M::Lodsb => string_op::<Lods>(op, 1, decoded),
        M::Lodsw => string_op::<Lods>(op, 2, decoded),
        M::Lodsd => string_op::<Lods>(op, 4, decoded),
        M::Lodsq => string_op::<Lods>(op, 8, decoded),
        M::Cmpsb => string_op::<Cmps>(op, 1, decoded),
        M::Cmpsw => string_op::<Cmps>(op, 2, decoded),
        M::Cmpsd if code == Code::Cmpsd_m32_m32 => string_op::<Cmps>(op, 4, decoded),
        M::Cmpsq => string_op::<Cmps>(op, 8, decoded),
        M::Scasb => string_op::<Scas>(op, 1, decoded),
        M::Scasw => string_op::<Scas>(op, 2, decoded),
        M::Scasd => string_op::<Scas>(op, 4, decoded),
        M::Scasq => string_op::<Scas>(op, 8, decoded),
        M::Insb => string_op::<Ins>(op, 1, decoded),
        M::Insw => string_op::<Ins>(op, 2, decoded),
        M::Insd => string_op::<Ins>(op, 4, decoded),
        M::Outsb => string_op::<Outs>(op, 1, decoded),
        M::Outsw => string_op::<Outs>(op, 2, decoded),
        M::Outsd => string_op::<Outs>(op, 4, decoded),

        M::Push => push(instruction, op),
        M::Pop => pop(instruction, op, decoded),
        M::Pusha => control::pusha::<u16>,
        M::Pushad => control::pusha::<u32>,
        M::Popa => control::popa::<u16>,
        M::Popad => control::popa::<u32>,
        M::Pushf | M::Pushfd | M::Pushfq => {
            by_wide_width!(implied(code, Code::Pushfw, Code::Pushfd), |T| control::pushf::<T>)
        }
        M::Enter => match code {
            Code::Enterw_imm16_imm8 => control::enter::<u16>,
            Code::Enterd_imm16_imm8 => control::enter::<u32>,
            _ => control::enter::<u64>,
        },
        M::Leave => by_wide_width!(implied(code, Code::Leavew, Code::Leaved), |T| control::leave::<T>),
        M::Cli => control::cli,
        M::Bound => by_wide_width!(width, |T| control::bound::<T>),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            op.extra = match mnemonic {
                M::Lds => super::state::DS,
                M::Les => super::state::ES,
                M::Lfs => FS,
                M::Lgs => GS,
                _ => super::state::SS,
            };
            by_wide_width!(width, |T| segment::load_far_pointer::<T>)
        }
        M::Arpl => segment::arpl,
        M::Lar => by_wide_width!(width, |T| segment::lar::<T>),
        M::Lsl => by_wide_width!(width, |T| segment::lsl::<T>),
        M::Verr => segment::verify::<false>,
        M::Verw => segment::verify::<true>,
        M::Sldt => by_wide_width!(width, |T| segment::store_system_selector::<LDTR, T>),
        M::Str => by_wide_width!(width, |T| segment::store_system_selector::<TR, T>),
        M::Lldt => segment::lldt,
        M::Ltr => segment::ltr,
        M::Sgdt => system::store_table::<false>,
        M::Sidt => system::store_table::<true>,
        M::Lgdt => by_wide_width!(table_operand_size(code), |T| system::load_table::<false, T>),
        M::Lidt => by_wide_width!(table_operand_size(code), |T| system::load_table::<true, T>),
        M::Smsw => by_wide_width!(width, |T| system::smsw::<T>),
        M::Clts => system::clts,
        M::Invd | M::Wbinvd | M::Wbnoinvd => system::invalidate_caches,
        M::Swapgs => system::swapgs,
        M::Rdpid => system::rdpid,
        M::Rdpmc => system::rdpmc,
        M::Rdfsbase | M::Rdgsbase => {
            op.extra = if mnemonic == M::Rdfsbase { FS } else { GS };
            by_wide_width!(width, |T| system::read_base::<T>)
        }
        M::Wrfsbase | M::Wrgsbase => {
            op.extra = if mnemonic == M::Wrfsbase { FS } else { GS };
            by_wide_width!(width, |T| system::write_base::<T>)
        }
        M::Cpuid => system::cpuid,
        M::Wait => x87::wait,

        _ => {
            if let Some(handler) = unit_handler(instruction, op) {
                return handler;
            }
            decoded.ends_block = true;
            match ending(instruction, op, decoded) {
                Some(handler) => handler,
                None => {
                    let Decoded { op: no_operation, lacking, .. } = lacking(instruction, 0);
                    (*op, decoded.lacking) = (no_operation, lacking);
                    op.run
                }
            }
        }
    }
}

/// CMOVcc and SETcc.
fn conditional(instruction: &Instruction, form: Form, width: usize, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Cmova
        | M::Cmovae
        | M::Cmovb
        | M::Cmovbe
        | M::Cmove
        | M::Cmovg
        | M::Cmovge
        | M::Cmovl
        | M::Cmovle
        | M::Cmovne
        | M::Cmovno
        | M::Cmovnp
        | M::Cmovns
        | M::Cmovo
        | M::Cmovp
        | M::Cmovs => {
            op.extra = condition(instruction);
            Some(match form {
                Form::RegMem => by_address!(op.has(flag::FLAT), |M| by_wide_width!(width, |T| alu::cmov::<T, M>)),
                _ => by_wide_width!(width, |T| alu::cmov::<T, Src>),
            })
        }
        M::Seta
        | M::Setae
        | M::Setb
        | M::Setbe
        | M::Sete
        | M::Setg
        | M::Setge
        | M::Setl
        | M::Setle
        | M::Setne
        | M::Setno
        | M::Setnp
        | M::Setns
        | M::Seto
        | M::Setp
        | M::Sets => {
            op.extra = condition(instruction);
            Some(alu::setcc)
        }
        _ => None,
    }
}

/// Instructions of the x87 FPU and of SSE, and those that save and restore their state.
fn unit_handler(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let is_wide = matches!(
        instruction.mnemonic(),
        M::Fxsave64 | M::Fxrstor64 | M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xrstor64
    );
    op.extra = is_wide.into();
    Some(match instruction.mnemonic() {
        M::Fxsave | M::Fxsave64 => xsave::fxsave,
        M::Fxrstor | M::Fxrstor64 => xsave::fxrstor,
        M::Xsave | M::Xsave64 => xsave::xsave::<false>,
        M::Xsaveopt | M::Xsaveopt64 => xsave::xsave::<true>,
        M::Xsavec | M::Xsavec64 => xsave::xsavec,
        M::Xrstor | M::Xrstor64 => xsave::xrstor,
        M::Xgetbv => xsave::xgetbv,
        M::Xsetbv => xsave::xsetbv,
        M::Ldmxcsr => xsave::ldmxcsr,
        M::Stmxcsr => xsave::stmxcsr,
        M::Emms => x87::emms,
        _ => return x87::handler(instruction, op).or_else(|| sse::handler(instruction, op)),
    })
}

/// Instructions behind which the run loop has something to look at.
fn ending(instruction: &Instruction, op: &mut Op, decoded: &mut Decoded) -> Option<Handler> {
    use Mnemonic as M;
    let code = instruction.code();
    let width = if instruction.op_count() > 0 { operand_width(instruction, 0) } else { 0 };
    let to_itself = op.immediate.wrapping_add(u64::from(op.len)) == 0;
    Some(match instruction.mnemonic() {
        M::Jmp if to_itself && instruction.is_jmp_short_or_near() => control::jmp_to_itself,
        M::Jmp => transfer::<false>(instruction),
        M::Call => transfer::<true>(instruction),
        M::Ret if is_64(instruction) && return_width(code) == 8 => control::ret_flat,
        M::Ret => by_wide_width!(return_width(code), |T| control::ret::<T>),
        M::Retf => by_wide_width!(return_width(code), |T| segment::retf::<T>),
        M::Iret | M::Iretd | M::Iretq => {
            by_wide_width!(implied(code, Code::Iretw, Code::Iretd), |T| segment::iret::<T>)
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            op.address_cut = cut(count_register_size(code));
            match instruction.mnemonic() {
                M::Loop => by_wide_width!(width, |T| control::loop_::<2, T>),
                M::Loope => by_wide_width!(width, |T| control::loop_::<1, T>),
                M::Loopne => by_wide_width!(width, |T| control::loop_::<0, T>),
                _ => by_wide_width!(width, |T| control::jcxz::<T>),
            }
        }
        M::Int => control::int,
        M::Int3 => control::int3,
        M::Int1 => control::int1,
        M::Into => control::into,
        M::Popf | M::Popfd | M::Popfq => {
            by_wide_width!(implied(code, Code::Popfw, Code::Popfd), |T| control::popf::<T>)
        }
        M::Sti => control::sti,
        M::Hlt => control::hlt,
        M::Pause => control::pause,
        M::Ud0 | M::Ud1 | M::Ud2 => control::undefined,
        // There is no system-management mode to return from.
        M::Rsm => control::undefined,
        M::Monitor => {
            monitored(instruction, op);
            system::monitor
        }
        M::Mwait => system::mwait,
        M::In => port::<false>(instruction),
        M::Out => port::<true>(instruction),
        M::Rdmsr | M::Wrmsr | M::Rdtsc | M::Rdtscp => {
            // The time-stamp counter depends on the count of instructions.
            decoded.starts_block = true;
            match instruction.mnemonic() {
                M::Rdmsr => system::rdmsr,
                M::Wrmsr => system::wrmsr,
                M::Rdtsc => system::rdtsc,
                _ => system::rdtscp,
            }
        }
        M::Lmsw => system::lmsw,
        M::Invlpg => system::invlpg,
        M::Invpcid => system::invpcid,
        M::Clac => system::alignment_flag::<false>,
        M::Stac => system::alignment_flag::<true>,
        M::Syscall => system::syscall,
        M::Sysenter => system::sysenter,
        _ => match code {
            Code::Sysretd => system::sysret::<u32>,
            Code::Sysretq => system::sysret::<u64>,
            Code::Sysexitd => system::sysexit::<u32>,
            Code::Sysexitq => system::sysexit::<u64>,
            _ => return None,
        },
    })
}

/// The operand of MONITOR, which iced-x86 does not tell: the byte at rAX.
fn monitored(instruction: &Instruction, op: &mut Op) {
    let segment = instruction.segment_prefix();
    if segment != Register::None {
        op.seg = segment.number() as u8;
    }
    op.base = RAX;
    op.address_cut = cut(match instruction.code() {
        Code::Monitorw => 2,
        Code::Monitord => 4,
        _ => 8,
    });
}

/// What an instruction that this processor lacks would ask of the control registers.
mod unit {
    pub(super) const NONE: u8 = 0;
    pub(super) const SSE: u8 = 1;
    /// XSAVES and its kin, and everything with a VEX or EVEX prefix that uses vector registers.
    pub(super) const XSAVE: u8 = 2;
}

fn needs(instruction: &Instruction) -> u8 {
    let features = instruction.cpuid_features();
    let has = |wanted: &[CpuidFeature]| features.iter().any(|feature| wanted.contains(feature));
    let is_legacy = instruction.code().encoding() == EncodingKind::Legacy;
    if is_legacy && (0..instruction.op_count()).any(|i| instruction.op_register(i).is_xmm()) {
        unit::SSE
    } else if has(&[CpuidFeature::XSAVES]) || !is_legacy && !has(&[CpuidFeature::BMI1, CpuidFeature::BMI2]) {
        unit::XSAVE
    } else {
        unit::NONE
    }
}

/// An instruction that this processor lacks, or that its CPUID table does not offer: #UD, recorded, unless the guest has not enabled the unit and would meet the
/// same exception on any processor.
fn not_implemented(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let (em, ts) = (cpu.cr0 & cr0::EM != 0, cpu.cr0 & cr0::TS != 0);
    match op.extra {
        unit::SSE if em || cpu.cr4 & cr4::OSFXSR == 0 => return Err(cpu.ud()),
        unit::XSAVE if cpu.cr4 & cr4::OSXSAVE == 0 => return Err(cpu.ud()),
        unit::SSE if ts => return Err(cpu.raise(vector::NM)),
        _ => {}
    }
    let name = Mnemonic::try_from(op.immediate as usize).map(|mnemonic| format!("{mnemonic:?}").to_lowercase());
    let name = name.unwrap_or_else(|_| "unknown instruction".to_owned());
    let reason = if op.has(flag::NOT_OFFERED) { ", which CPUID does not offer" } else { "" };
    Err(cpu.not_implemented(&(name + reason)))
}
