//! From iced-x86's instructions to operations of the FPU.

use super::super::op::{Handler, Op};
use super::arithmetic::{self, comparison, operation};
use super::transcendental::{self, function};
use super::transfer::{self, kind};
use super::{control, transfer as t};
use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpKind};

/// What a memory operand holds.
fn operand_kind(instruction: &Instruction) -> u64 {
    if !(0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory) {
        return kind::REGISTER;
    }
    match instruction.memory_size() {
        MemorySize::Float32 => kind::SINGLE,
        MemorySize::Float64 => kind::DOUBLE,
        MemorySize::Int16 => kind::INTEGER16,
        MemorySize::Int32 => kind::INTEGER32,
        _ => kind::INTEGER64,
    }
}

/// The handler of an x87 instruction; `None` if it is none, or lacks one.
pub(in super::super) fn handler(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let code = instruction.code();
    let mnemonic = instruction.mnemonic();
    let mut with = |extra: u8, handler: Handler| {
        op.extra = extra;
        op.immediate = operand_kind(instruction);
        Some(handler)
    };
    let pop = operation::POP;
    match mnemonic {
        M::Fninit => with(0, control::fninit),
        M::Fnclex => with(0, control::fnclex),
        M::Fnstsw if code == Code::Fnstsw_AX => with(0, control::fnstsw_ax),
        M::Fnstsw => with(0, control::fnstsw),
        M::Fnstcw => with(0, control::fnstcw),
        M::Fldcw => with(0, control::fldcw),
        M::Fnop => with(0, control::fnop),
        M::Fneni | M::Fndisi | M::Fnsetpm => with(0, control::nothing),
        M::Fincstp => with(1, control::turn),
        M::Fdecstp => with(7, control::turn),
        M::Ffree => with(0, control::ffree),
        M::Ffreep => with(1, control::ffree),
        M::Fnstenv => with((code == Code::Fnstenv_m28byte).into(), control::fnstenv),
        M::Fldenv => with((code == Code::Fldenv_m28byte).into(), control::fldenv),
        M::Fnsave => with((code == Code::Fnsave_m108byte).into(), control::fnsave),
        M::Frstor => with((code == Code::Frstor_m108byte).into(), control::frstor),

        M::Fld if code == Code::Fld_sti => with(0, t::load_register),
        M::Fld if code == Code::Fld_m80fp => with(0, t::load80),
        M::Fld | M::Fild => with(0, t::load),
        M::Fst if operand_kind(instruction) == kind::REGISTER => with(0, t::store_register),
        M::Fstp if operand_kind(instruction) == kind::REGISTER => with(1, t::store_register),
        M::Fstp if code == Code::Fstp_m80fp => with(1, t::store80),
        M::Fstpnce => with(1, t::store_register_unchecked),
        M::Fst => with(0, t::store),
        M::Fstp => with(1, t::store),
        M::Fist => with(0, t::store_integer::<false>),
        M::Fistp => with(1, t::store_integer::<false>),
        M::Fisttp => with(1, t::store_integer::<true>),
        M::Fbld => with(0, t::load_decimal),
        M::Fbstp => with(1, t::store_decimal),
        M::Fxch => with(0, t::exchange),
        // The condition's number in opcodes.
        M::Fcmovb => with(2, t::conditional_move),
        M::Fcmovnb => with(3, t::conditional_move),
        M::Fcmove => with(4, t::conditional_move),
        M::Fcmovne => with(5, t::conditional_move),
        M::Fcmovbe => with(6, t::conditional_move),
        M::Fcmovnbe => with(7, t::conditional_move),
        M::Fcmovu => with(10, t::conditional_move),
        M::Fcmovnu => with(11, t::conditional_move),
        M::Fldz => with(0, transfer::load_integer_constant),
        M::Fld1 => with(1, transfer::load_integer_constant),
        M::Fldl2t => with(0, transfer::load_constant),
        M::Fldl2e => with(1, transfer::load_constant),
        M::Fldpi => with(2, transfer::load_constant),
        M::Fldlg2 => with(3, transfer::load_constant),
        M::Fldln2 => with(4, transfer::load_constant),
        M::Fchs => with(0, transfer::change_sign),
        M::Fabs => with(1, transfer::change_sign),
        M::Fxam => with(0, transfer::examine),

        M::Fadd | M::Fiadd => with(operation::ADD, arithmetic::binary),
        M::Faddp => with(operation::ADD + pop, arithmetic::binary),
        M::Fmul | M::Fimul => with(operation::MUL, arithmetic::binary),
        M::Fmulp => with(operation::MUL + pop, arithmetic::binary),
        M::Fsub | M::Fisub => with(operation::SUB, arithmetic::binary),
        M::Fsubp => with(operation::SUB + pop, arithmetic::binary),
        M::Fsubr | M::Fisubr => with(operation::SUBR, arithmetic::binary),
        M::Fsubrp => with(operation::SUBR + pop, arithmetic::binary),
        M::Fdiv | M::Fidiv => with(operation::DIV, arithmetic::binary),
        M::Fdivp => with(operation::DIV + pop, arithmetic::binary),
        M::Fdivr | M::Fidivr => with(operation::DIVR, arithmetic::binary),
        M::Fdivrp => with(operation::DIVR + pop, arithmetic::binary),
        M::Fsqrt => with(0, arithmetic::sqrt),
        M::Frndint => with(0, arithmetic::round_to_integral),
        M::Fscale => with(0, arithmetic::scale),
        M::Fprem => with(0, arithmetic::remainder::<false>),
        M::Fprem1 => with(0, arithmetic::remainder::<true>),
        M::Fxtract => with(0, arithmetic::extract),
        M::F2xm1 => with(0, transcendental::f2xm1),
        M::Fyl2x => with(0, transcendental::fyl2x),
        M::Fyl2xp1 => with(0, transcendental::fyl2xp1),
        M::Fpatan => with(0, transcendental::fpatan),
        M::Fsin => with(function::SINE, transcendental::trigonometry),
        M::Fcos => with(function::COSINE, transcendental::trigonometry),
        M::Fsincos => with(function::BOTH, transcendental::trigonometry),
        M::Fptan => with(function::TANGENT, transcendental::trigonometry),

        M::Fcom
        | M::Ficom
        | M::Fcomp
        | M::Ficomp
        | M::Fcompp
        | M::Fucom
        | M::Fucomp
        | M::Fucompp
        | M::Ftst
        | M::Fcomi
        | M::Fcomip
        | M::Fucomi
        | M::Fucomip => Some(comparison(instruction, op)),
        _ => None,
    }
}

fn comparison(instruction: &Instruction, op: &mut Op) -> Handler {
    use Mnemonic as M;
    op.immediate = operand_kind(instruction);
    op.dst = 0;
    op.extra = 0;
    match instruction.mnemonic() {
        M::Fcomp | M::Ficomp | M::Fucomp | M::Fcomip | M::Fucomip => op.extra = 1,
        M::Fcompp | M::Fucompp => (op.extra, op.src) = (2, 1),
        _ => {}
    }
    match instruction.mnemonic() {
        M::Fucom | M::Fucomp | M::Fucompp | M::Fucomi | M::Fucomip => op.dst = comparison::QUIET,
        M::Ftst => op.dst = comparison::WITH_ZERO,
        _ => {}
    }
    match instruction.mnemonic() {
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => arithmetic::compare_into_flags,
        _ => arithmetic::compare_into_status,
    }
}
