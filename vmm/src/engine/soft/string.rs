//! String instructions. A repeated one commits each iteration, so that it can be interrupted and faults restart it where it
//! stands. Moves and stores inside pages that the translation cache knows are done in bulk.

use super::alu::{Binary, Cmp};
use super::control::put_by_address_size;
use super::exec::attention;
use super::flags::DF;
use super::mem::Bus;
use super::op::{Op, flag};
use super::state::{Access, AccessKind, Cpu, ES, Step, Stop};
use super::word::{RAX, RCX, RDI, RDX, RSI, Word};

/// How many bytes a repeated move or store gets done in the time of one instruction, when it runs in bulk.
const BULK_BYTES_PER_INSTRUCTION: u64 = 64;

/// How many iterations of a repeated move or store that has `left` to do fit into the time of `instructions`. Where time
/// passes is counted from the end of the instruction, so that the sum is the same wherever runs end on the way.
fn affordable<T: Word>(left: u64, instructions: u64) -> u64 {
    left - (time::<T>(left).saturating_sub(instructions)) * per_instruction::<T>()
}

/// The time of the last `left` iterations in bulk, in instructions.
fn time<T: Word>(left: u64) -> u64 {
    left / per_instruction::<T>()
}

fn per_instruction<T: Word>() -> u64 {
    BULK_BYTES_PER_INSTRUCTION / u64::from(T::BYTES)
}

/// What one iteration of a string instruction does besides moving its pointers.
pub(super) trait StringOp {
    /// Uses DS:rSI (or with a segment override).
    const SOURCE: bool;
    /// Uses ES:rDI.
    const DESTINATION: bool;
    /// Compares: REPE and REPNE look at ZF.
    const COMPARES: bool = false;

    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, source: u64, destination: u64) -> Step;

    /// Does up to `limit` iterations at once if that is quick; how many it did.
    fn bulk<T: Word>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64, limit: u64) -> u64 {
        let _ = (cpu, op, source, destination, limit);
        0
    }
}

pub(super) struct Movs;
impl StringOp for Movs {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;

    #[inline]
    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, source: u64, destination: u64) -> Step {
        let value: T = cpu.read(bus, op.seg, source)?;
        cpu.write(bus, ES, destination, value)
    }

    fn bulk<T: Word>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64, limit: u64) -> u64 {
        let Some((from, readable)) = cpu.page_run(op.seg, source, false) else { return 0 };
        let Some((to, writable)) = cpu.page_run(ES, destination, true) else { return 0 };
        let count = limit.min(readable.min(writable) / u64::from(T::BYTES));
        to.copy_from(from, count as usize, T::BYTES as usize);
        count
    }
}

pub(super) struct Stos;
impl StringOp for Stos {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;

    #[inline]
    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, _: u64, destination: u64) -> Step {
        let value: T = cpu.get(RAX);
        cpu.write(bus, ES, destination, value)
    }

    fn bulk<T: Word>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64, limit: u64) -> u64 {
        let Some((to, writable)) = cpu.page_run(ES, destination, true) else { return 0 };
        let count = limit.min(writable / u64::from(T::BYTES));
        to.fill(cpu.get::<T>(RAX), count as usize);
        count
    }
}

pub(super) struct Lods;
impl StringOp for Lods {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;

    #[inline]
    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, source: u64, _: u64) -> Step {
        let value: T = cpu.read(bus, op.seg, source)?;
        cpu.put(RAX, value);
        Ok(())
    }
}

pub(super) struct Cmps;
impl StringOp for Cmps {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline]
    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, source: u64, destination: u64) -> Step {
        let a: T = cpu.read(bus, op.seg, source)?;
        let b: T = cpu.read(bus, ES, destination)?;
        cpu.status = Cmp::apply(cpu.status, a, b).1;
        Ok(())
    }
}

pub(super) struct Scas;
impl StringOp for Scas {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;

    #[inline]
    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, _: u64, destination: u64) -> Step {
        let b: T = cpu.read(bus, ES, destination)?;
        cpu.status = Cmp::apply(cpu.status, cpu.get(RAX), b).1;
        Ok(())
    }
}

pub(super) struct Ins;
impl StringOp for Ins {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;

    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, _: u64, destination: u64) -> Step {
        let port: u16 = cpu.get(RDX);
        cpu.check_port(bus, port, T::BYTES)?;
        // A fault of the write must come before the device sees the read.
        cpu.open::<T>(bus, ES, destination)?;
        let value = cpu.outside(Access {
            kind: AccessKind::PortIn { port },
            size: T::BYTES as u8,
            value: 0,
            retires_at: None,
        })?;
        cpu.write(bus, ES, destination, T::of(value))
    }
}

pub(super) struct Outs;
impl StringOp for Outs {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;

    fn iterate<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, source: u64, _: u64) -> Step {
        let port: u16 = cpu.get(RDX);
        cpu.check_port(bus, port, T::BYTES)?;
        let value = cpu.read::<T>(bus, op.seg, source)?.zx();
        cpu.outside(Access { kind: AccessKind::PortOut { port }, size: T::BYTES as u8, value, retires_at: None })?;
        Ok(())
    }
}

/// Moves an index register by some operands, down if DF is set.
#[inline]
fn advance<T: Word>(cpu: &mut Cpu, number: u8, mask: u64, count: u64) {
    let bytes = count.wrapping_mul(u64::from(T::BYTES));
    let bytes = if cpu.eflags & DF != 0 { bytes.wrapping_neg() } else { bytes };
    let index = cpu.get::<u64>(number).wrapping_add(bytes) & mask;
    put_by_address_size(cpu, number, index, mask);
}

fn advance_both<O: StringOp, T: Word>(cpu: &mut Cpu, mask: u64, count: u64) {
    if O::SOURCE {
        advance::<T>(cpu, RSI, mask, count);
    }
    if O::DESTINATION {
        advance::<T>(cpu, RDI, mask, count);
    }
}

fn iterate<O: StringOp, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, mask: u64) -> Step {
    let (source, destination) = (cpu.get::<u64>(RSI) & mask, cpu.get::<u64>(RDI) & mask);
    O::iterate::<T>(cpu, bus, op, source, destination)?;
    advance_both::<O, T>(cpu, mask, 1);
    Ok(())
}

/// A string instruction without a repeat prefix.
pub(super) fn once<O: StringOp, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    iterate::<O, T>(cpu, bus, op, op.address_mask())
}

/// A string instruction with a repeat prefix. It runs alone in its block, and each iteration takes the time of an
/// instruction, except in bulk.
pub(super) fn repeat<O: StringOp, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let mask = op.address_mask();
    loop {
        let count = cpu.get::<u64>(RCX) & mask;
        if count == 0 {
            // The count register is written even then (a 32-bit one loses its upper half).
            put_by_address_size(cpu, RCX, 0, mask);
            return Ok(());
        }
        let (mut done, mut cost) = (0, 0);
        if cpu.eflags & DF == 0 && count > 1 && cpu.attention & attention::STEP == 0 {
            let (source, destination) = (cpu.get::<u64>(RSI) & mask, cpu.get::<u64>(RDI) & mask);
            let limit = affordable::<T>(count, cpu.budget - cpu.executed);
            done = O::bulk::<T>(cpu, op, source, destination, limit);
            advance_both::<O, T>(cpu, mask, done);
            cost = time::<T>(count) - time::<T>(count - done);
        }
        if done == 0 {
            iterate::<O, T>(cpu, bus, op, mask)?;
            cpu.forget_accesses();
            (done, cost) = (1, 1);
        }
        put_by_address_size(cpu, RCX, count - done, mask);
        let zf = cpu.status.zf();
        let ended = count == done || O::COMPARES && (op.has(flag::REP) && !zf || op.has(flag::REPNE) && zf);
        if ended {
            // The run loop counts the instruction itself.
            cpu.executed += cost.saturating_sub(1);
            return Ok(());
        }
        cpu.executed += cost;
        if cpu.must_pause_repeat() {
            return Err(Stop::Again);
        }
    }
}
