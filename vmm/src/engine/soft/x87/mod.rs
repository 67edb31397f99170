//! The x87 FPU: the register stack, and how instructions report exceptions (SDM 1 8).

mod arithmetic;
mod control;
mod decode;
mod transcendental;
mod transfer;

pub(super) use self::control::{emms, wait};
pub(super) use self::decode::handler;

use super::float::{Env, Format, NanRule, Number, Rounding, flag};
use super::fpu::{F80, Fpu, status};
use super::op::Op;
use super::state::Cpu;

/// Overflow and underflow.
const RANGE: u8 = flag::OVERFLOW | flag::UNDERFLOW;

impl Fpu {
    /// ST(i), unless it is empty.
    fn st(&self, i: u8) -> Option<F80> {
        let number = self.number(i);
        (self.occupied >> number & 1 != 0).then_some(self.registers[number])
    }

    fn set_st(&mut self, i: u8, value: F80) {
        let number = self.number(i);
        self.registers[number] = value;
        self.occupied |= 1 << number;
    }

    fn free(&mut self, i: u8) {
        self.occupied &= !(1 << self.number(i));
    }

    fn pop(&mut self) {
        self.free(0);
        self.top = (self.top + 1) & 7;
    }

    fn pop_times(&mut self, times: u8) {
        for _ in 0..times {
            self.pop();
        }
    }

    fn is_masked(&self, flags: u8) -> bool {
        u16::from(flags) & !self.control & status::EXCEPTIONS == 0
    }

    /// How arithmetic is done under the present control word.
    fn env(&self) -> Env {
        Env {
            rounding: Rounding::from_bits(u32::from(self.control >> 10)),
            nan_rule: NanRule::Larger,
            daz: false,
            ftz: false,
            masked: (self.control & status::EXCEPTIONS) as u8,
            wraps: true,
            flags: 0,
            rounded_up: false,
        }
    }

    /// The precision that arithmetic rounds to.
    fn precision(&self) -> Format {
        Format::x87(self.control >> 8)
    }

    fn set_condition(&mut self, bits: u16, value: u16) {
        self.status = self.status & !bits | value;
    }

    fn set_c1(&mut self, set: bool) {
        self.set_condition(status::C1, if set { status::C1 } else { 0 });
    }
}

impl Cpu {
    /// Records that an instruction which is not one of control is executed.
    fn note_x87(&mut self, op: &Op) {
        self.fpu.last_ip = self.rip().wrapping_sub(u64::from(op.len));
    }

    /// Records exceptions. Whether the instruction goes on to store its result.
    fn x87_exceptions(&mut self, op: &Op, flags: u8) -> bool {
        let before = flags & flag::BEFORE;
        let goes_on = self.fpu.is_masked(before);
        // What would be found after the computation is not found when it does not take place.
        let found = if goes_on { flags } else { before };
        self.fpu.status |= u16::from(found);
        if !self.fpu.is_masked(found) {
            self.fpu.last_data = if op.has(super::op::flag::MEMORY) { self.effective_address(op) } else { 0 };
        }
        self.fpu.summarize();
        goes_on
    }

    /// Ends an operation whose result goes into registers.
    fn x87_result(&mut self, op: &Op, env: &Env, store: impl FnOnce(&mut Fpu)) {
        let goes_on = self.x87_exceptions(op, env.flags);
        self.fpu.set_c1(goes_on && env.flags & flag::INEXACT != 0 && env.rounded_up);
        if goes_on {
            store(&mut self.fpu);
        }
    }

    /// An empty register was read: the masked response stores.
    fn stack_underflow(&mut self, op: &Op, store: impl FnOnce(&mut Fpu)) {
        self.fpu.status |= status::SF;
        self.fpu.set_c1(false);
        if self.x87_exceptions(op, flag::INVALID) {
            store(&mut self.fpu);
        }
    }

    /// Pushes, if there is room.
    fn x87_push(&mut self, op: &Op, value: F80) {
        let has_room = self.fpu.st(7).is_none();
        let mut value = value;
        self.fpu.set_c1(!has_room);
        if !has_room {
            self.fpu.status |= status::SF;
            if !self.x87_exceptions(op, flag::INVALID) {
                return;
            }
            value = Number::indefinite().to_f80();
        }
        self.fpu.top = (self.fpu.top + 7) & 7;
        self.fpu.set_st(0, value);
    }
}
