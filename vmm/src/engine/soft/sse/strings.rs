//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM 1 12.10.4; SDM 2B 4.1).

use super::super::flags::{CF, OF, SF, Status, ZF};
use super::super::mem::Bus;
use super::super::op::Op;
use super::super::state::{Cpu, Step};
use super::super::word::{RAX, RCX, RDX, Word};
use super::lane;

/// The control byte.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    fn bytes(self) -> usize {
        if self.0 & 1 != 0 { 2 } else { 1 }
    }
    fn elements(self) -> usize {
        16 / self.bytes()
    }
    fn element(self, vector: u128, i: usize) -> i32 {
        match self.0 & 3 {
            0 => lane::<u8>(vector, i).into(),
            1 => lane::<u16>(vector, i).into(),
            2 => lane::<i8>(vector, i).into(),
            _ => lane::<i16>(vector, i).into(),
        }
    }
    /// How many elements stand before the first that is zero.
    fn implicit_length(self, vector: u128) -> usize {
        (0..self.elements()).position(|i| self.element(vector, i) == 0).unwrap_or(self.elements())
    }
    /// The magnitude of a length register, no more than there are elements.
    fn explicit_length(self, value: i64) -> usize {
        value.unsigned_abs().min(self.elements() as u64) as usize
    }

    /// IntRes1: `a` is the first operand with its length, `b` the second.
    fn aggregate(self, (a, a_len): (u128, usize), (b, b_len): (u128, usize)) -> u32 {
        let equal = |j: usize, i: usize| self.element(a, j) == self.element(b, i);
        let holds = |i: usize| match self.0 >> 2 & 3 {
            // Equal any.
            0 => i < b_len && (0..a_len).any(|j| equal(j, i)),
            // Ranges.
            1 => {
                let value = self.element(b, i);
                let within = |j: usize| self.element(a, j) <= value && value <= self.element(a, j + 1);
                i < b_len && (0..a_len.saturating_sub(1)).step_by(2).any(within)
            }
            // Equal each.
            2 => match (i < a_len, i < b_len) {
                (true, true) => equal(i, i),
                (a_valid, b_valid) => a_valid == b_valid,
            },
            // Equal ordered.
            _ => (0..self.elements() - i).all(|j| j >= a_len || i + j < b_len && equal(j, i + j)),
        };
        (0..self.elements()).fold(0, |bits, i| bits | u32::from(holds(i)) << i)
    }

    /// IntRes2: with the polarity applied.
    fn polarized(self, result: u32, b_len: usize) -> u32 {
        let all = u32::MAX >> (32 - self.elements());
        match self.0 >> 4 & 3 {
            1 => result ^ all,
            3 => result ^ ((1 << b_len) - 1),
            _ => result,
        }
    }
}

/// `EXPLICIT`: lengths come from EAX and EDX, or RAX and RDX. `MASK`: the result is a mask in XMM0, else an index in ECX.
pub(super) fn compare<const EXPLICIT: bool, const MASK: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_vector(op)?;
    let b = cpu.vector_src(bus, op)?;
    let a = cpu.vector_dst(bus, op)?;
    let control = Control(op.immediate as u8);
    let (a_len, b_len) = if EXPLICIT {
        let length = |cpu: &Cpu, number: u8| cpu.get::<T>(number).sx() as i64;
        (control.explicit_length(length(cpu, RAX)), control.explicit_length(length(cpu, RDX)))
    } else {
        (control.implicit_length(a), control.implicit_length(b))
    };
    let result = control.polarized(control.aggregate((a, a_len), (b, b_len)), b_len);
    let elements = control.elements();
    if MASK {
        cpu.fpu.xmm[0] = if control.0 & 0x40 != 0 {
            let ones = u128::MAX >> (128 - 8 * control.bytes());
            (0..elements).filter(|i| result >> i & 1 != 0).fold(0, |mask, i| mask | ones << (8 * control.bytes() * i))
        } else {
            u128::from(result)
        };
    } else {
        let index = match (result, control.0 & 0x40 != 0) {
            (0, _) => elements as u32,
            (_, true) => 31 - result.leading_zeros(),
            (_, false) => result.trailing_zeros(),
        };
        cpu.put(RCX, index);
    }
    let bit = |set: bool, flag: u64| if set { flag } else { 0 };
    cpu.status = Status::from_bits(
        bit(result != 0, CF) | bit(b_len < elements, ZF) | bit(a_len < elements, SF) | bit(result & 1 != 0, OF),
    );
    Ok(())
}
