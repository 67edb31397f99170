//! The stack and near transfers of control.

use super::flags::{AC, DF, FIXED, ID, IF, IOPL, NT, OF, RF, STATUS, TF, VIF, VIP, VM};
use super::mem::Bus;
use super::op::{Mem, Op, RmDst, Source, Target};
use super::state::{CodeSize, Cpu, SS, Step, Stop, cr4, vector};
use super::word::{RAX, RBP, RCX, RSP, Word};
use crate::engine::Exit;

impl Cpu {
    /// Goes to an offset in the code segment; #GP(0) if it cannot be executed at.
    #[inline(always)]
    pub(super) fn branch<T: Word>(&mut self, target: u64) -> Step {
        let target = T::of(target).zx();
        self.check_target(target)?;
        self.set_rip(target);
        Ok(())
    }

    #[inline(always)]
    fn check_target(&mut self, target: u64) -> Step {
        let good = if self.is_64() { self.canonical(target) } else { target <= self.code_limit };
        if good { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Pushes an operand.
    #[inline(always)]
    pub(super) fn push<T: Word>(&mut self, bus: &mut Bus, value: T) -> Step {
        let sp = self.rsp().wrapping_sub(u64::from(T::BYTES)) & self.stack_mask;
        self.write(bus, SS, sp, value)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Reads the operand on top of the stack, or `above` bytes from there.
    #[inline(always)]
    pub(super) fn peek<T: Word>(&mut self, bus: &mut Bus, above: u64) -> Result<T, Stop> {
        let sp = self.rsp().wrapping_add(above) & self.stack_mask;
        self.read(bus, SS, sp)
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub(super) fn drop_stack(&mut self, bytes: u64) {
        self.set_sp(self.rsp().wrapping_add(bytes));
    }

    /// Pushes several operands, or none if one cannot be pushed.
    pub(super) fn push_all<T: Word>(&mut self, bus: &mut Bus, values: &[u64]) -> Step {
        let slot = |cpu: &Cpu, i: usize| cpu.rsp().wrapping_sub((i as u64 + 1) * u64::from(T::BYTES)) & cpu.stack_mask;
        for i in 0..values.len() {
            self.open::<T>(bus, SS, slot(self, i))?;
        }
        for (i, &value) in values.iter().enumerate() {
            self.write(bus, SS, slot(self, i), T::of(value))?;
        }
        self.set_sp(slot(self, values.len() - 1));
        Ok(())
    }
}

/// JMP to a relative target.
pub(super) fn jmp<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let target = cpu.rip().wrapping_add(op.immediate);
    cpu.branch::<T>(target)
}

/// Jcc. Taken, it ends the block.
pub(super) fn jcc<const CONDITION: u8, T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    if cpu.status.condition(CONDITION) {
        let target = cpu.rip().wrapping_add(op.immediate);
        cpu.branch::<T>(target)?;
        cpu.block_left = 0;
    }
    Ok(())
}

/// JMP to itself: the guest waits for an interrupt.
pub(super) fn jmp_to_itself(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.set_rip(cpu.rip().wrapping_sub(u64::from(op.len)));
    Err(cpu.leave(Exit::Pause))
}

/// Jcc to itself: if it is taken once, it is taken for ever.
pub(super) fn jcc_to_itself(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    if cpu.status.condition(op.extra) { jmp_to_itself(cpu, bus, op) } else { Ok(()) }
}

/// LOOP, LOOPE, LOOPNE: `WHAT` is the ZF that goes on, 2 for any. The count register goes by the address size.
pub(super) fn loop_<const WHAT: u8, T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let mask = op.address_mask();
    let old: u64 = cpu.get(RCX);
    let count = old.wrapping_sub(1) & mask;
    if count != 0 && (WHAT == 2 || cpu.status.zf() == (WHAT == 1)) {
        let target = cpu.rip().wrapping_add(op.immediate);
        cpu.branch::<T>(target)?;
    }
    put_by_address_size(cpu, RCX, count, mask);
    Ok(())
}

/// Writes a counter or index register at the address size.
#[inline(always)]
pub(super) fn put_by_address_size(cpu: &mut Cpu, number: u8, value: u64, mask: u64) {
    match mask {
        0xFFFF => cpu.put(number, value as u16),
        _ => cpu.put(number, value & mask),
    }
}

/// JCXZ, JECXZ, JRCXZ.
pub(super) fn jcxz<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    if op.truncate_address(cpu.get(RCX)) == 0 {
        let target = cpu.rip().wrapping_add(op.immediate);
        return cpu.branch::<T>(target);
    }
    Ok(())
}

/// JMP r/m.
pub(super) fn jmp_indirect<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let target: T = RmDst::get(cpu, bus, op)?;
    cpu.branch::<T>(target.zx())
}

/// CALL to a relative target.
pub(super) fn call<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let target = cpu.rip().wrapping_add(op.immediate);
    call_to::<T>(cpu, bus, target)
}

/// CALL r/m.
pub(super) fn call_indirect<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let target: T = RmDst::get(cpu, bus, op)?;
    call_to::<T>(cpu, bus, target.zx())
}

#[inline(always)]
fn call_to<T: Word>(cpu: &mut Cpu, bus: &mut Bus, target: u64) -> Step {
    let target = T::of(target).zx();
    cpu.check_target(target)?;
    let rip = cpu.rip();
    cpu.push(bus, T::of(rip))?;
    cpu.set_rip(target);
    Ok(())
}

/// RET, with as many bytes of arguments to drop as the immediate says.
pub(super) fn ret<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let target: T = cpu.peek(bus, 0)?;
    cpu.branch::<T>(target.zx())?;
    cpu.drop_stack(u64::from(T::BYTES).wrapping_add(op.immediate));
    Ok(())
}

/// PUSH of a register, immediate or memory operand.
pub(super) fn push<T: Word, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = S::get(cpu, bus, op)?;
    cpu.push(bus, value)
}

/// POP into a register.
pub(super) fn pop<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = cpu.peek(bus, 0)?;
    cpu.drop_stack(u64::from(T::BYTES));
    cpu.put(op.dst, value);
    Ok(())
}

/// POP into memory, whose address is computed with the stack pointer after the pop.
pub(super) fn pop_memory<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = cpu.peek(bus, 0)?;
    let rsp: u64 = cpu.rsp();
    cpu.drop_stack(u64::from(T::BYTES));
    Mem::put(cpu, bus, op, value).inspect_err(|_| cpu.put(RSP, rsp))
}

/// PUSH of a 64-bit register in 64-bit mode.
pub(super) fn push_flat(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: u64 = cpu.get(op.dst);
    let sp = cpu.rsp().wrapping_sub(8);
    cpu.write_flat(bus, SS, sp, value)?;
    cpu.put(RSP, sp);
    Ok(())
}

/// POP into a 64-bit register in 64-bit mode.
pub(super) fn pop_flat(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let sp = cpu.rsp();
    let value: u64 = cpu.read_flat(bus, SS, sp)?;
    cpu.put(RSP, sp.wrapping_add(8));
    cpu.put(op.dst, value);
    Ok(())
}

/// CALL to a relative target in 64-bit mode.
pub(super) fn call_flat(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let rip = cpu.rip();
    let target = rip.wrapping_add(op.immediate);
    if !cpu.canonical(target) {
        return Err(cpu.gp(0));
    }
    let sp = cpu.rsp().wrapping_sub(8);
    cpu.write_flat(bus, SS, sp, rip)?;
    cpu.put(RSP, sp);
    cpu.set_rip(target);
    Ok(())
}

/// RET in 64-bit mode.
pub(super) fn ret_flat(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let sp = cpu.rsp();
    let target: u64 = cpu.read_flat(bus, SS, sp)?;
    if !cpu.canonical(target) {
        return Err(cpu.gp(0));
    }
    cpu.put(RSP, sp.wrapping_add(8).wrapping_add(op.immediate));
    cpu.set_rip(target);
    Ok(())
}

/// PUSH of a segment register: a 32-bit push writes only the selector's 16 bits, as processors do.
pub(super) fn push_segment<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let selector = cpu.seg(op.extra).selector;
    if T::BITS == 32 {
        let sp = cpu.rsp().wrapping_sub(4) & cpu.stack_mask;
        cpu.write(bus, SS, sp, selector)?;
        cpu.set_sp(sp);
        return Ok(());
    }
    cpu.push(bus, T::of(u64::from(selector)))
}

/// PUSHA, PUSHAD.
pub(super) fn pusha<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    let values: [u64; 8] = std::array::from_fn(|i| cpu.get::<u64>(i as u8));
    cpu.push_all::<T>(bus, &values)
}

/// POPA, POPAD: the stack pointer's place is skipped.
pub(super) fn popa<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    let mut values = [T::of(0); 8];
    for (i, value) in values.iter_mut().rev().enumerate() {
        *value = cpu.peek(bus, i as u64 * u64::from(T::BYTES))?;
    }
    for (number, value) in (0..8).zip(values).filter(|&(number, _)| number != RSP) {
        cpu.put(number, value);
    }
    cpu.drop_stack(8 * u64::from(T::BYTES));
    Ok(())
}

/// ENTER: the immediate is the size of the frame, `extra` the nesting level.
pub(super) fn enter<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let bytes = u64::from(T::BYTES);
    let level = u64::from(op.extra & 31);
    let mask = cpu.stack_mask;
    let rbp: u64 = cpu.get(RBP);
    let frame = cpu.rsp().wrapping_sub(bytes) & mask;
    let end = frame.wrapping_sub(level * bytes).wrapping_sub(op.immediate) & mask;
    // The manual's last check: the new top of the stack must be writable.
    cpu.open::<T>(bus, SS, end)?;
    let slot = |i: u64| frame.wrapping_sub(i * bytes) & mask;
    for i in 0..=level {
        cpu.open::<T>(bus, SS, slot(i))?;
    }
    cpu.write(bus, SS, frame, T::of(rbp))?;
    // One after the other: a pointer that is copied may be one that was just pushed.
    for i in 1..level {
        let outer: T = cpu.read(bus, SS, rbp.wrapping_sub(i * bytes) & mask)?;
        cpu.write(bus, SS, slot(i), outer)?;
    }
    // A 32-bit pointer on a stack of 16 bits keeps the upper half of ESP, as processors do.
    let pointer = cpu.rsp() & !mask | frame;
    if level > 0 {
        cpu.write(bus, SS, slot(level), T::of(pointer))?;
    }
    cpu.put(RBP, T::of(pointer));
    cpu.set_sp(end);
    Ok(())
}

/// LEAVE.
pub(super) fn leave<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    let frame: u64 = cpu.get(RBP);
    let value: T = cpu.read(bus, SS, frame & cpu.stack_mask)?;
    cpu.set_sp(frame.wrapping_add(u64::from(T::BYTES)));
    cpu.put(RBP, value);
    Ok(())
}

/// PUSHF.
pub(super) fn pushf<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    let flags = if cpu.traps_flags(T::BITS)? { cpu.virtual_flags() } else { cpu.rflags() };
    cpu.push(bus, T::of(flags & !(VM | RF)))
}

/// POPF.
pub(super) fn popf<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    let extended = cpu.traps_flags(T::BITS)?;
    let value: T = cpu.peek(bus, 0)?;
    if extended {
        cpu.check_virtual_flags(value.zx())?;
        cpu.set_virtual_flags(value.zx());
    } else {
        cpu.set_rflags_checked(value.zx(), T::BITS);
    }
    cpu.drop_stack(u64::from(T::BYTES));
    Ok(())
}

impl Cpu {
    /// Sets RFLAGS as POPF may at the present privilege (SDM 2B, POPF); 16-bit operands leave the upper half alone.
    pub(super) fn set_rflags_checked(&mut self, value: u64, bits: u32) {
        let mut changeable = STATUS | TF | DF | NT;
        if bits > 16 {
            changeable |= AC | ID;
        }
        if self.cpl == 0 || !self.protected {
            changeable |= IOPL;
        }
        if self.cpl <= self.iopl() {
            changeable |= IF;
        }
        let old = self.rflags() & !RF;
        self.set_rflags(old & !changeable | value & changeable | FIXED);
    }

    /// For PUSHF, POPF and IRET in virtual-8086 mode with IOPL below 3: true if the extensions (CR4.VME) keep the program's
    /// interrupt flag in VIF, for operands of 16 bits; else #GP(0), for the monitor (SDM 3A 20.2.7 and 20.3.3).
    pub(super) fn traps_flags(&mut self, bits: u32) -> Result<bool, Stop> {
        if !self.is_virtual() || self.iopl() == 3 {
            return Ok(false);
        }
        if self.cr4 & cr4::VME != 0 && bits == 16 { Ok(true) } else { Err(self.gp(0)) }
    }

    /// The flags that a program under virtual-8086 mode extensions sees: VIF for IF, and IOPL 3.
    pub(super) fn virtual_flags(&self) -> u64 {
        let enabled = if self.eflags & VIF != 0 { IF } else { 0 };
        self.rflags() & !IF | enabled | IOPL
    }

    /// #GP(0) for flags that such a program may not pop: those that let a pending interrupt in, or a single step.
    pub(super) fn check_virtual_flags(&mut self, value: u64) -> Step {
        let lets_in = value & IF != 0 && self.eflags & VIP != 0;
        if lets_in || value & TF != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// Sets the flags that such a program pops.
    pub(super) fn set_virtual_flags(&mut self, value: u64) {
        let changeable = STATUS | TF | DF | NT | VIF;
        let enabled = if value & IF != 0 { VIF } else { 0 };
        self.set_rflags(self.rflags() & !changeable | value & changeable & !VIF | enabled);
    }

    /// Which flag CLI and STI change: IF, or VIF under the extensions for virtual interrupts; #GP(0) if neither (SDM 2,
    /// CLI, tables of the decision).
    fn interrupt_flag(&mut self) -> Result<u64, Stop> {
        let extension = if self.is_virtual() { cr4::VME } else { cr4::PVI };
        match () {
            () if !self.protected || self.cpl <= self.iopl() => Ok(IF),
            () if self.cpl == 3 && self.cr4 & extension != 0 => Ok(VIF),
            () => Err(self.gp(0)),
        }
    }
}

/// CLI.
pub(super) fn cli(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let flag = cpu.interrupt_flag()?;
    cpu.eflags &= !flag;
    Ok(())
}

/// STI: interrupts stay blocked for one more instruction if they were.
pub(super) fn sti(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let flag = cpu.interrupt_flag()?;
    if flag == VIF && cpu.eflags & VIP != 0 {
        return Err(cpu.gp(0));
    }
    if flag == IF && !cpu.interrupts_enabled() {
        cpu.set_shadow();
    }
    cpu.eflags |= flag;
    Ok(())
}

/// BOUND.
pub(super) fn bound<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let address = cpu.effective_address(op);
    let index = cpu.get::<T>(op.dst).sx() as i64;
    let lower = cpu.read::<T>(bus, op.seg, address)?.sx() as i64;
    let upper = cpu.read::<T>(bus, op.seg, op.truncate_address(address.wrapping_add(u64::from(T::BYTES))))?.sx() as i64;
    if index < lower || index > upper {
        return Err(cpu.raise(vector::BR));
    }
    Ok(())
}

/// INT n. In virtual-8086 mode it goes to the program's own handler, to a gate, or to the monitor by #GP(0) (SDM 3A table
/// 20-2).
pub(super) fn int(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let vector = op.immediate as u8;
    if cpu.is_virtual() {
        if cpu.cr4 & cr4::VME != 0 && cpu.interrupt_is_redirected(bus, vector)? {
            return cpu.redirected_interrupt(bus, vector);
        }
        if cpu.iopl() < 3 {
            return Err(cpu.gp(0));
        }
    }
    cpu.software_interrupt(bus, vector)
}

/// INT3: unlike INT n, virtual-8086 mode neither forbids nor redirects it.
pub(super) fn int3(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    cpu.software_interrupt(bus, vector::BP)
}

/// INT1.
pub(super) fn int1(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    cpu.debug_interrupt(bus)
}

/// INTO.
pub(super) fn into(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    if cpu.rflags() & OF != 0 { cpu.software_interrupt(bus, vector::OF) } else { Ok(()) }
}

/// HLT.
pub(super) fn hlt(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()?;
    Err(cpu.leave(Exit::Hlt))
}

/// PAUSE.
pub(super) fn pause(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    Err(cpu.leave(Exit::Pause))
}

/// UD0, UD1, UD2.
pub(super) fn undefined(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    Err(cpu.ud())
}

/// SALC (undocumented, outside 64-bit mode): AL becomes all copies of CF.
pub(super) fn salc(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    debug_assert_ne!(cpu.code_size, CodeSize::Bits64);
    let value = if cpu.status.cf() { 0xFF_u8 } else { 0 };
    cpu.put(RAX, value);
    Ok(())
}
