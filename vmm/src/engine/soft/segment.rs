//! Segment registers, descriptors, and far transfers of control (SDM 3A chapters 3, 5 and 6; SDM 2 by mnemonic).

use super::flags::{DEFINED, FIXED, IF, IOPL, NT, RF, VIF, VIP, VM};
use super::mem::Bus;
use super::op::{Op, RmDst, RmSrc, Source, Target, flag};
use super::state::{CS, Cpu, DS, ES, FS, GS, LDTR, SS, Seg, Step, Stop, TR, access, vector};
use super::task::Cause;
use super::word::{RSP, Word};

/// Kinds of system descriptors: type with S clear.
pub(super) mod system {
    pub(super) const TSS16_AVAILABLE: u32 = 0x1;
    pub(in super::super) const LDT: u32 = 0x2;
    pub(super) const TSS16_BUSY: u32 = 0x3;
    pub(super) const CALL_GATE16: u32 = 0x4;
    pub(in super::super) const TASK_GATE: u32 = 0x5;
    pub(super) const TSS_AVAILABLE: u32 = 0x9;
    pub(super) const TSS_BUSY: u32 = 0xB;
    pub(super) const CALL_GATE: u32 = 0xC;

    /// Whether it is a task-state segment.
    pub(in super::super) fn is_tss(kind: u32) -> bool {
        matches!(kind, TSS16_AVAILABLE | TSS16_BUSY | TSS_AVAILABLE | TSS_BUSY)
    }
}

/// A descriptor as it stands in its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    low: u32,
    high: u32,
    /// Linear address of the descriptor.
    pub(super) at: u64,
}

impl Descriptor {
    /// The access rights as a segment register holds them.
    pub(super) fn access(self) -> u32 {
        self.high >> 8 & 0xF0FF
    }
    pub(super) fn kind(self) -> u32 {
        self.access() & 0x1F
    }
    pub(super) fn dpl(self) -> u8 {
        (self.high >> 13 & 3) as u8
    }
    pub(super) fn present(self) -> bool {
        self.access() & access::PRESENT != 0
    }
    pub(super) fn is_code(self) -> bool {
        self.kind() & (access::CODE_OR_DATA | access::CODE) == access::CODE_OR_DATA | access::CODE
    }
    pub(super) fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & access::CONFORMING != 0
    }
    pub(super) fn is_writable_data(self) -> bool {
        let bits = access::CODE_OR_DATA | access::CODE | access::RW;
        self.kind() & bits == access::CODE_OR_DATA | access::RW
    }
    pub(super) fn is_readable(self) -> bool {
        self.kind() & access::CODE_OR_DATA != 0 && (!self.is_code() || self.kind() & access::RW != 0)
    }
    /// The selector that a gate holds.
    pub(super) fn selector(self) -> u16 {
        (self.low >> 16) as u16
    }
    fn base(self) -> u32 {
        self.high & 0xFF00_0000 | (self.high & 0xFF) << 16 | self.low >> 16
    }
    pub(super) fn limit(self) -> u32 {
        let limit = self.high & 0xF_0000 | self.low & 0xFFFF;
        if self.access() & access::GRANULAR != 0 { limit << 12 | 0xFFF } else { limit }
    }
    pub(super) fn seg(self, selector: u16) -> Seg {
        Seg { selector, base: u64::from(self.base()), limit: self.limit(), access: self.access(), ..Seg::default() }
    }
}

/// A selector without its RPL, as error codes name it.
pub(super) fn error_of(selector: u16) -> u32 {
    u32::from(selector & !3)
}

pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A stack to push on while the registers still are as before.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewStack {
    pub(super) seg: Seg,
    pub(super) sp: u64,
    mask: u64,
    /// The error code of #SS if the stack is too small.
    error: u32,
    context: u64,
    /// Whether SS is loaded too, or only the stack pointer moves.
    switched: bool,
}

impl NewStack {
    /// Makes the stack one of 64-bit mode, aligned for an interrupt frame (SDM 3A 6.14.2): an offset is an address, whatever
    /// base the interrupted program's SS has.
    pub(super) fn widen(&mut self) {
        self.mask = u64::MAX;
        self.sp &= !0xF;
    }
}

/// Where a call gate leads.
struct Gate {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: u32,
    parameters: u32,
}

impl Cpu {
    /// Reads the descriptor that a selector names; `None` beyond the end of its table.
    pub(super) fn descriptor(&mut self, bus: &mut Bus, selector: u16) -> Result<Option<Descriptor>, Stop> {
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else {
            let ldtr = self.seg(LDTR);
            if !ldtr.usable() {
                return Ok(None);
            }
            (ldtr.base, ldtr.limit)
        };
        let index = u32::from(selector & !7);
        if index + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(u64::from(index));
        let raw = self.read_system(bus, at, 8)?;
        Ok(Some(Descriptor { low: raw as u32, high: (raw >> 32) as u32, at }))
    }

    /// Reads the descriptor that a selector names; #GP(selector), or another exception, if there is none.
    pub(super) fn descriptor_or(
        &mut self,
        bus: &mut Bus,
        selector: u16,
        vector: u8,
        ext: u32,
    ) -> Result<Descriptor, Stop> {
        match self.descriptor(bus, selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.raise_code(vector, error_of(selector) | ext)),
        }
    }

    /// Reads the second half of a 16-byte descriptor (SDM 3A 5.8.3.1): bits 63:32 of a base or offset, in its low half.
    fn upper_half(&mut self, bus: &mut Bus, descriptor: Descriptor, selector: u16) -> Result<u64, Stop> {
        let limit = if selector & 4 == 0 { u32::from(self.gdtr.limit) } else { self.seg(LDTR).limit };
        if u32::from(selector & !7) + 15 > limit {
            return Err(self.gp(error_of(selector)));
        }
        let upper = self.read_system(bus, descriptor.at.wrapping_add(8), 8)?;
        // Where another descriptor's type would be must be zeros.
        if upper >> 40 & 0x1F != 0 {
            return Err(self.gp(error_of(selector)));
        }
        Ok(upper & 0xFFFF_FFFF)
    }

    /// Sets the accessed bit of a code or data descriptor and makes the segment register's content of it.
    pub(super) fn accessed(&mut self, bus: &mut Bus, descriptor: Descriptor, selector: u16) -> Result<Seg, Stop> {
        let mut seg = descriptor.seg(selector);
        if !seg.has(access::ACCESSED) {
            seg.access |= access::ACCESSED;
            self.write_system(bus, descriptor.at.wrapping_add(5), 1, u64::from(seg.access as u8))?;
        }
        Ok(seg)
    }

    /// Loads a segment register in real mode, where the base follows the selector and the limit stays (SDM 3A 20.1.1), or in
    /// virtual-8086 mode, where nothing stays (20.2.1).
    fn load_real(&mut self, number: u8, selector: u16) {
        let is_virtual = self.is_virtual();
        let seg = self.seg_mut(number);
        if is_virtual {
            *seg = virtual_segment(selector);
        } else {
            seg.selector = selector;
            seg.base = u64::from(selector) << 4;
            seg.access = seg.access & (access::BIG | access::GRANULAR) | 0x93;
        }
        self.derive_seg(number);
    }

    /// Loads ES, SS, DS, FS or GS.
    pub(super) fn load_segment(&mut self, bus: &mut Bus, number: u8, selector: u16) -> Step {
        if self.has_real_segments() {
            self.load_real(number, selector);
            return Ok(());
        }
        let seg = if number == SS {
            self.stack_segment(bus, selector)?
        } else if is_null(selector) {
            Seg::null(selector, 0)
        } else {
            let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
            let rpl = (selector & 3) as u8;
            let privileged = descriptor.is_conforming() || rpl.max(self.cpl) <= descriptor.dpl();
            if !descriptor.is_readable() || !privileged {
                return Err(self.gp(error_of(selector)));
            }
            if !descriptor.present() {
                return Err(self.raise_code(vector::NP, error_of(selector)));
            }
            self.accessed(bus, descriptor, selector)?
        };
        *self.seg_mut(number) = seg;
        self.derive_seg(number);
        Ok(())
    }

    fn stack_segment(&mut self, bus: &mut Bus, selector: u16) -> Result<Seg, Stop> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if self.is_64() && self.cpl < 3 && rpl == self.cpl {
                return Ok(Seg::null(selector, self.cpl));
            }
            return Err(self.gp(0));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
        if rpl != self.cpl || !descriptor.is_writable_data() || descriptor.dpl() != self.cpl {
            return Err(self.gp(error_of(selector)));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::SS, error_of(selector)));
        }
        self.accessed(bus, descriptor, selector)
    }

    /// Whether a code descriptor may be entered without changing privilege; raises what it must otherwise.
    fn check_code(&mut self, descriptor: Descriptor, selector: u16, gate: bool) -> Step {
        let rpl = (selector & 3) as u8;
        let error = error_of(selector);
        let privileged = if descriptor.is_conforming() {
            descriptor.dpl() <= self.cpl
        } else {
            // Through a gate the selector's RPL does not count.
            (gate || rpl <= self.cpl) && descriptor.dpl() == self.cpl
        };
        if !descriptor.is_code() || !privileged || self.long && descriptor.access() & LONG_AND_BIG == LONG_AND_BIG {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        Ok(())
    }

    /// Enters a code segment at this privilege: CS, CPL and everything that follows from them.
    fn enter_code(&mut self, bus: &mut Bus, descriptor: Descriptor, selector: u16, cpl: u8, offset: u64) -> Step {
        let selector = selector & !3 | u16::from(cpl);
        let seg = self.accessed(bus, descriptor, selector)?;
        let in_64 = self.long && seg.has(access::LONG);
        let good = if in_64 { self.canonical(offset) } else { offset <= u64::from(seg.limit) };
        if !good {
            return Err(self.gp(0));
        }
        self.enter_seg(seg, cpl);
        self.set_rip(offset);
        Ok(())
    }

    /// Enters a code segment at the present privilege.
    fn enter_code_here(&mut self, bus: &mut Bus, descriptor: Descriptor, selector: u16, offset: u64) -> Step {
        let cpl = self.cpl;
        self.enter_code(bus, descriptor, selector, cpl, offset)
    }

    fn enter_seg(&mut self, cs: Seg, cpl: u8) {
        *self.seg_mut(CS) = cs;
        // CPL is SS.DPL. A stack of another privilege is about to be loaded if they differ.
        let ss = self.seg_mut(SS);
        ss.access = ss.access & !(3 << 5) | u32::from(cpl) << 5;
        self.derive();
    }

    /// JMP to another segment.
    pub(super) fn far_jump(&mut self, bus: &mut Bus, selector: u16, offset: u64) -> Step {
        if self.has_real_segments() {
            return self.real_jump(selector, offset);
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
        if descriptor.kind() & access::CODE_OR_DATA != 0 {
            self.check_code(descriptor, selector, false)?;
            return self.all_or_nothing(|cpu| cpu.enter_code_here(bus, descriptor, selector, offset));
        }
        if let Some(task) = self.task_of(bus, descriptor, selector)? {
            return self.far_task(bus, task, Cause::Jump);
        }
        let gate = self.call_gate(bus, descriptor, selector)?;
        let descriptor = self.gate_target(bus, &gate)?;
        self.check_code(descriptor, gate.selector, true)?;
        self.all_or_nothing(|cpu| cpu.enter_code_here(bus, descriptor, gate.selector, gate.offset))
    }

    fn real_jump(&mut self, selector: u16, offset: u64) -> Step {
        if offset > u64::from(self.seg(CS).limit) {
            return Err(self.gp(0));
        }
        self.load_real(CS, selector);
        self.set_rip(offset);
        Ok(())
    }

    /// CALL to another segment; `size` is the operand size in bytes.
    pub(super) fn far_call(&mut self, bus: &mut Bus, selector: u16, offset: u64, size: u32) -> Step {
        if self.has_real_segments() {
            return self.all_or_nothing(|cpu| {
                cpu.push_return(bus, size)?;
                cpu.real_jump(selector, offset)
            });
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
        if descriptor.kind() & access::CODE_OR_DATA != 0 {
            self.check_code(descriptor, selector, false)?;
            return self.all_or_nothing(|cpu| {
                cpu.push_return(bus, size)?;
                cpu.enter_code_here(bus, descriptor, selector, offset)
            });
        }
        if let Some(task) = self.task_of(bus, descriptor, selector)? {
            return self.far_task(bus, task, Cause::Call);
        }
        let gate = self.call_gate(bus, descriptor, selector)?;
        let descriptor = self.gate_target(bus, &gate)?;
        let inner = !descriptor.is_conforming() && descriptor.dpl() < self.cpl;
        if !inner {
            self.check_code(descriptor, gate.selector, true)?;
            return self.all_or_nothing(|cpu| {
                cpu.push_return(bus, gate.size)?;
                cpu.enter_code_here(bus, descriptor, gate.selector, gate.offset)
            });
        }
        if !descriptor.is_code() {
            return Err(self.gp(error_of(gate.selector)));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error_of(gate.selector)));
        }
        let cpl = descriptor.dpl();
        self.all_or_nothing(|cpu| {
            let mut stack = cpu.inner_stack(bus, cpl, None, 0)?;
            let mut values = vec![u64::from(cpu.seg(SS).selector), cpu.rsp()];
            for i in (0..gate.parameters).rev() {
                let above = u64::from(i * gate.size);
                values.push(cpu.peek_sized(bus, above, gate.size)?);
            }
            values.extend([u64::from(cpu.seg(CS).selector), cpu.rip()]);
            for value in values {
                cpu.push_new(bus, &mut stack, gate.size, value)?;
            }
            cpu.enter_code(bus, descriptor, gate.selector, cpl, gate.offset)?;
            cpu.take_stack(&stack);
            Ok(())
        })
    }

    fn push_return(&mut self, bus: &mut Bus, size: u32) -> Step {
        let values = [u64::from(self.seg(CS).selector), self.rip()];
        match size {
            2 => self.push_all::<u16>(bus, &values),
            4 => self.push_all::<u32>(bus, &values),
            _ => self.push_all::<u64>(bus, &values),
        }
    }

    fn peek_sized(&mut self, bus: &mut Bus, above: u64, size: u32) -> Result<u64, Stop> {
        match size {
            2 => self.peek::<u16>(bus, above).map(u64::from),
            4 => self.peek::<u32>(bus, above).map(u64::from),
            _ => self.peek::<u64>(bus, above),
        }
    }

    /// Checks a system descriptor that a far JMP or CALL named and that is no task: only call gates lead on.
    fn call_gate(&mut self, bus: &mut Bus, descriptor: Descriptor, selector: u16) -> Result<Gate, Stop> {
        let error = error_of(selector);
        let rpl = (selector & 3) as u8;
        let kind = descriptor.kind();
        match kind {
            system::CALL_GATE16 if !self.long => {}
            system::CALL_GATE => {}
            _ => return Err(self.gp(error)),
        }
        if descriptor.dpl() < self.cpl.max(rpl) {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let mut offset = u64::from(descriptor.high & 0xFFFF_0000 | descriptor.low & 0xFFFF);
        let size = match kind {
            system::CALL_GATE16 => {
                offset &= 0xFFFF;
                2
            }
            _ if self.long => {
                offset |= self.upper_half(bus, descriptor, selector)? << 32;
                8
            }
            _ => 4,
        };
        let parameters = if self.long { 0 } else { descriptor.high & 0x1F };
        Ok(Gate { selector: descriptor.selector(), offset, size, parameters })
    }

    fn gate_target(&mut self, bus: &mut Bus, gate: &Gate) -> Result<Descriptor, Stop> {
        if is_null(gate.selector) {
            return Err(self.gp(0));
        }
        let descriptor = self.descriptor_or(bus, gate.selector, vector::GP, 0)?;
        // A 64-bit gate leads to 64-bit code only.
        let is_64 = descriptor.access() & LONG_AND_BIG == access::LONG;
        if descriptor.dpl() > self.cpl || self.long && !is_64 {
            return Err(self.gp(error_of(gate.selector)));
        }
        Ok(descriptor)
    }

    /// The stack that the task-state segment names for a privilege level, or in 64-bit mode an entry of the interrupt
    /// stack table (1 to 7). `ext` goes into error codes.
    pub(super) fn inner_stack(&mut self, bus: &mut Bus, cpl: u8, ist: Option<u8>, ext: u32) -> Result<NewStack, Stop> {
        let tr = *self.seg(TR);
        let context = self.system_context();
        let tss_error = error_of(tr.selector) | ext;
        let level = u32::from(cpl);
        if self.long {
            let at = match ist {
                Some(ist) => 36 + (u32::from(ist) - 1) * 8,
                None => 4 + level * 8,
            };
            if at + 7 > tr.limit {
                return Err(self.raise_code(vector::TS, tss_error));
            }
            let sp = self.read_system(bus, tr.base.wrapping_add(u64::from(at)), 8)?;
            if !self.canonical(sp) {
                return Err(self.raise_code(vector::SS, ext));
            }
            let seg = Seg::null(u16::from(cpl), cpl);
            return Ok(NewStack { seg, sp, mask: u64::MAX, error: ext, context, switched: true });
        }
        let (at, size) = if tr.kind() & 8 != 0 { (4 + level * 8, 4) } else { (2 + level * 4, 2) };
        if at + 2 * size - 1 > tr.limit {
            return Err(self.raise_code(vector::TS, tss_error));
        }
        let at = tr.base.wrapping_add(u64::from(at));
        let sp = self.read_system(bus, at, size)?;
        let selector = self.read_system(bus, at.wrapping_add(u64::from(size)), 2)? as u16;
        let error = error_of(selector) | ext;
        if is_null(selector) {
            return Err(self.raise_code(vector::TS, ext));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::TS, ext)?;
        if (selector & 3) as u8 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return Err(self.raise_code(vector::TS, error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::SS, error));
        }
        let seg = self.accessed(bus, descriptor, selector)?;
        let mask = if seg.has(access::BIG) { 0xFFFF_FFFF } else { 0xFFFF };
        Ok(NewStack { seg, sp: sp & mask, mask, error, context, switched: true })
    }

    /// The present stack, for pushing before the registers change. `ext` is the error code of #SS.
    pub(super) fn present_stack(&self, ext: u32) -> NewStack {
        NewStack {
            seg: *self.seg(SS),
            sp: self.rsp() & self.stack_mask,
            mask: self.stack_mask,
            error: ext,
            context: self.data_context,
            switched: false,
        }
    }

    /// Pushes on a stack that is not yet the present one.
    pub(super) fn push_new(&mut self, bus: &mut Bus, stack: &mut NewStack, size: u32, value: u64) -> Step {
        let bytes = u64::from(size);
        let sp = stack.sp.wrapping_sub(bytes) & stack.mask;
        let linear;
        let good = if self.long {
            linear = if stack.mask == u64::MAX { sp } else { stack.seg.base.wrapping_add(sp) & 0xFFFF_FFFF };
            self.canonical(linear) && self.canonical(linear.wrapping_add(bytes - 1))
        } else {
            linear = stack.seg.base.wrapping_add(sp) & 0xFFFF_FFFF;
            let limit = u64::from(stack.seg.limit);
            let last = sp + bytes - 1;
            let expand_down = self.protected && stack.seg.has(access::EXPAND_DOWN) && !stack.seg.has(access::CODE);
            if expand_down { sp > limit && last <= stack.mask } else { last <= limit }
        };
        if !good {
            return Err(self.raise_code(vector::SS, stack.error));
        }
        self.write_stack(bus, linear, size, value, stack.context)?;
        stack.sp = sp;
        Ok(())
    }

    /// Makes a stack the present one.
    pub(super) fn take_stack(&mut self, stack: &NewStack) {
        *self.seg_mut(SS) = stack.seg;
        self.derive();
        self.set_sp(stack.sp);
    }

    /// RETF; `drop` bytes of arguments go from both stacks.
    pub(super) fn far_return(&mut self, bus: &mut Bus, size: u32, drop: u64) -> Step {
        let bytes = u64::from(size);
        let offset = self.peek_sized(bus, 0, size)?;
        let selector = self.peek_sized(bus, bytes, size)? as u16;
        if self.has_real_segments() {
            self.real_jump(selector, offset)?;
            self.drop_stack(2 * bytes + drop);
            return Ok(());
        }
        let descriptor = self.return_target(bus, selector)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.cpl {
            return self.all_or_nothing(|cpu| {
                cpu.drop_stack(2 * bytes + drop);
                cpu.enter_code(bus, descriptor, selector, rpl, offset)
            });
        }
        let sp = self.peek_sized(bus, 2 * bytes + drop, size)?;
        let ss = self.peek_sized(bus, 3 * bytes + drop, size)? as u16;
        self.all_or_nothing(|cpu| {
            cpu.return_outward(bus, descriptor, selector, offset, ss)?;
            cpu.set_sp(sp.wrapping_add(drop));
            Ok(())
        })
    }

    /// Checks the code segment that RETF or IRET goes back to.
    fn return_target(&mut self, bus: &mut Bus, selector: u16) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let error = error_of(selector);
        let rpl = (selector & 3) as u8;
        let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
        let privileged = if descriptor.is_conforming() { descriptor.dpl() <= rpl } else { descriptor.dpl() == rpl };
        let both_sizes = self.long && descriptor.access() & LONG_AND_BIG == LONG_AND_BIG;
        if rpl < self.cpl || !descriptor.is_code() || !privileged || both_sizes {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        Ok(descriptor)
    }

    /// Returns to a less privileged code segment and its stack segment; the stack pointer is the caller's to set.
    fn return_outward(&mut self, bus: &mut Bus, code: Descriptor, cs: u16, offset: u64, ss: u16) -> Step {
        let cpl = (cs & 3) as u8;
        let to_64 = self.long && code.access() & access::LONG != 0;
        let stack = if is_null(ss) {
            if !(to_64 && cpl < 3 && (ss & 3) as u8 == cpl) {
                return Err(self.gp(0));
            }
            Seg::null(ss, cpl)
        } else {
            let descriptor = self.descriptor_or(bus, ss, vector::GP, 0)?;
            if (ss & 3) as u8 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
                return Err(self.gp(error_of(ss)));
            }
            if !descriptor.present() {
                return Err(self.raise_code(vector::SS, error_of(ss)));
            }
            self.accessed(bus, descriptor, ss)?
        };
        let lowered = cpl > self.cpl;
        self.enter_code(bus, code, cs, cpl, offset)?;
        *self.seg_mut(SS) = stack;
        self.derive();
        if lowered {
            self.drop_privileged_segments();
        }
        Ok(())
    }

    /// Data segments that the new privilege could not have loaded become null (SDM 2, RET).
    fn drop_privileged_segments(&mut self) {
        for number in [ES, DS, FS, GS] {
            let seg = *self.seg(number);
            let conforming = seg.has(access::CODE | access::CONFORMING);
            if seg.usable() && !conforming && seg.dpl() < self.cpl {
                *self.seg_mut(number) = Seg::null(0, 0);
                self.derive_seg(number);
            }
        }
    }

    /// IRET; `size` is the operand size in bytes.
    pub(super) fn interrupt_return(&mut self, bus: &mut Bus, size: u32) -> Step {
        let bytes = u64::from(size);
        let bits = size * 8;
        if self.is_virtual() {
            return self.return_in_virtual_mode(bus, size);
        }
        if self.protected && self.eflags & NT != 0 {
            if self.long {
                return Err(self.gp(0));
            }
            return self.task_return(bus);
        }
        let offset = self.peek_sized(bus, 0, size)?;
        let selector = self.peek_sized(bus, bytes, size)? as u16;
        let flags = self.peek_sized(bus, 2 * bytes, size)?;
        if !self.protected {
            self.real_jump(selector, offset)?;
            self.drop_stack(3 * bytes);
            self.return_flags(flags, bits, 0);
            self.unblock_nmis();
            return Ok(());
        }
        if !self.long && size == 4 && flags & VM != 0 && self.cpl == 0 {
            return self.return_to_virtual_mode(bus, offset, selector, flags);
        }
        let descriptor = self.return_target(bus, selector)?;
        let rpl = (selector & 3) as u8;
        let from = self.cpl;
        // In 64-bit mode the stack is always restored.
        if rpl == self.cpl && !self.is_64() {
            self.all_or_nothing(|cpu| {
                cpu.drop_stack(3 * bytes);
                cpu.enter_code(bus, descriptor, selector, rpl, offset)
            })?;
        } else {
            let sp = self.peek_sized(bus, 3 * bytes, size)?;
            let ss = self.peek_sized(bus, 4 * bytes, size)? as u16;
            self.all_or_nothing(|cpu| {
                cpu.return_outward(bus, descriptor, selector, offset, ss)?;
                cpu.set_sp(sp);
                Ok(())
            })?;
        }
        self.return_flags(flags, bits, from);
        self.unblock_nmis();
        Ok(())
    }

    /// IRET of an 8086 program (SDM 2A, IRET, "return from virtual-8086 mode"; SDM 3A 20.3.3 for the extensions).
    fn return_in_virtual_mode(&mut self, bus: &mut Bus, size: u32) -> Step {
        let bytes = u64::from(size);
        let extended = self.traps_flags(size * 8)?;
        let offset = self.peek_sized(bus, 0, size)?;
        let selector = self.peek_sized(bus, bytes, size)? as u16;
        let flags = self.peek_sized(bus, 2 * bytes, size)?;
        if extended {
            self.check_virtual_flags(flags)?;
        }
        self.real_jump(selector, offset)?;
        self.drop_stack(3 * bytes);
        if extended {
            self.set_virtual_flags(flags);
        } else {
            self.return_flags(flags, size * 8, self.cpl);
        }
        self.unblock_nmis();
        Ok(())
    }

    /// IRET of the monitor to an 8086 program (SDM 2A, IRET, "return to virtual-8086 mode"). EIP, CS and EFLAGS are known.
    fn return_to_virtual_mode(&mut self, bus: &mut Bus, offset: u64, cs: u16, flags: u64) -> Step {
        let mut values = [0; 6];
        for (i, value) in values.iter_mut().enumerate() {
            *value = self.peek_sized(bus, 12 + 4 * i as u64, 4)?;
        }
        if offset > u64::from(VIRTUAL_LIMIT) {
            return Err(self.gp(0));
        }
        let [sp, ss, es, ds, fs, gs] = values;
        self.return_flags(flags, 32, 0);
        self.eflags |= VM;
        self.set_virtual_segments([es as u16, cs, ss as u16, ds as u16, fs as u16, gs as u16]);
        self.set_rip(offset);
        self.put(RSP, sp as u32);
        self.unblock_nmis();
        Ok(())
    }

    /// Makes ES, CS, SS, DS, FS and GS what they are in virtual-8086 mode.
    pub(super) fn set_virtual_segments(&mut self, selectors: [u16; 6]) {
        for (number, selector) in (ES..=GS).zip(selectors) {
            *self.seg_mut(number) = virtual_segment(selector);
        }
        self.derive();
    }

    /// Sets RFLAGS from what IRET popped, with the rights of the privilege level that it left. RF is taken over only where
    /// it matters, since it holds for one instruction: while breakpoints are enabled.
    fn return_flags(&mut self, value: u64, bits: u32, from: u8) {
        let mut kept = VM | FIXED;
        if from > 0 {
            kept |= IOPL | VIF | VIP;
        }
        if from > self.iopl() {
            kept |= IF;
        }
        if bits == 16 {
            kept |= !0xFFFF;
        }
        let resume = if self.breakpoints.any() { RF } else { 0 };
        let defined = DEFINED & !(VM | RF) | resume;
        let old = self.rflags();
        self.set_rflags(old & kept | value & !kept & defined);
    }

    /// The code segment that an interrupt gate leads to, checked; whether privilege rises.
    pub(super) fn interrupt_target(
        &mut self,
        bus: &mut Bus,
        selector: u16,
        ext: u32,
    ) -> Result<(Descriptor, u8), Stop> {
        if is_null(selector) {
            return Err(self.gp(ext));
        }
        let error = error_of(selector) | ext;
        let descriptor = self.descriptor_or(bus, selector, vector::GP, ext)?;
        let is_64 = descriptor.access() & LONG_AND_BIG == access::LONG;
        if !descriptor.is_code() || descriptor.dpl() > self.cpl || self.long && !is_64 {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let cpl = if descriptor.is_conforming() { self.cpl } else { descriptor.dpl() };
        Ok((descriptor, cpl))
    }

    /// Goes to an interrupt handler: the frame is pushed already.
    pub(super) fn enter_handler(
        &mut self,
        bus: &mut Bus,
        code: Descriptor,
        selector: u16,
        cpl: u8,
        offset: u64,
        stack: &NewStack,
    ) -> Step {
        self.enter_code(bus, code, selector, cpl, offset)?;
        if stack.switched {
            self.take_stack(stack);
        } else {
            self.set_sp(stack.sp);
        }
        Ok(())
    }

    /// Goes to an interrupt handler in real mode.
    pub(super) fn enter_real_handler(&mut self, selector: u16, offset: u64, sp: u64) -> Step {
        self.real_jump(selector, offset)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Makes CS and SS the flat segments that SYSCALL, SYSRET, SYSENTER and SYSEXIT load without looking at a table.
    pub(super) fn enter_flat(&mut self, cs: u16, ss: u16, cpl: u8, is_64: bool, rip: u64) {
        let dpl = u32::from(cpl) << 5;
        let size = if is_64 { access::LONG } else { access::BIG };
        let flat = Seg { base: 0, limit: u32::MAX, ..Seg::default() };
        let common = access::PRESENT | access::CODE_OR_DATA | access::RW | access::ACCESSED | access::GRANULAR | dpl;
        *self.seg_mut(CS) = Seg { selector: cs, access: common | access::CODE | size, ..flat };
        *self.seg_mut(SS) = Seg { selector: ss, access: common | access::BIG, ..flat };
        self.derive();
        self.set_rip(rip);
    }

    /// LLDT.
    fn load_ldtr(&mut self, bus: &mut Bus, selector: u16) -> Step {
        let seg = if is_null(selector) {
            Seg::null(selector, 0)
        } else {
            self.system_segment(bus, selector, &[system::LDT])?.0
        };
        *self.seg_mut(LDTR) = seg;
        self.derive_seg(LDTR);
        Ok(())
    }

    /// LTR.
    fn load_tr(&mut self, bus: &mut Bus, selector: u16) -> Step {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let kinds: &[u32] =
            if self.long { &[system::TSS_AVAILABLE] } else { &[system::TSS_AVAILABLE, system::TSS16_AVAILABLE] };
        let (mut seg, descriptor) = self.system_segment(bus, selector, kinds)?;
        // Busy, in the table and in the register.
        seg.access |= 2;
        self.write_system(bus, descriptor.at.wrapping_add(5), 1, u64::from(seg.access as u8))?;
        *self.seg_mut(TR) = seg;
        self.derive_seg(TR);
        Ok(())
    }

    /// A system segment of one of these kinds from the GDT.
    fn system_segment(&mut self, bus: &mut Bus, selector: u16, kinds: &[u32]) -> Result<(Seg, Descriptor), Stop> {
        let error = error_of(selector);
        if selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::GP, 0)?;
        if !kinds.contains(&descriptor.kind()) {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        let mut seg = descriptor.seg(selector);
        if self.long {
            seg.base |= self.upper_half(bus, descriptor, selector)? << 32;
            if !self.canonical_base(seg.base) {
                return Err(self.gp(error));
            }
        }
        Ok((seg, descriptor))
    }

    /// The descriptor that LAR, LSL, VERR or VERW may look at from this privilege.
    fn visible_descriptor(&mut self, bus: &mut Bus, selector: u16) -> Result<Option<Descriptor>, Stop> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.descriptor(bus, selector)? else { return Ok(None) };
        let rpl = (selector & 3) as u8;
        let visible = descriptor.is_conforming() || self.cpl.max(rpl) <= descriptor.dpl();
        Ok(visible.then_some(descriptor))
    }
}

/// The limit of every segment in virtual-8086 mode.
const VIRTUAL_LIMIT: u32 = 0xFFFF;

/// A segment of virtual-8086 mode: writable data of privilege level 3, CS too (SDM 3C 26.3.1.2).
fn virtual_segment(selector: u16) -> Seg {
    Seg { selector, base: u64::from(selector) << 4, limit: VIRTUAL_LIMIT, access: 0xF3, ..Seg::default() }
}

const LONG_AND_BIG: u32 = access::LONG | access::BIG;

/// MOV to a segment register.
pub(super) fn mov_to_segment(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let selector: u16 = RmSrc::get(cpu, bus, op)?;
    cpu.load_segment(bus, op.extra, selector)?;
    if op.extra == SS {
        cpu.stack_shadow();
    }
    Ok(())
}

/// MOV from a segment register: a register takes it zero-extended, memory takes 16 bits.
pub(super) fn mov_from_segment<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let selector = cpu.seg(op.extra).selector;
    store_selector::<T>(cpu, bus, op, selector)
}

/// Stores a selector as MOV, STR and SLDT do.
pub(super) fn store_selector<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, selector: u16) -> Step {
    if op.has(flag::MEMORY) {
        let offset = cpu.effective_address(op);
        return cpu.write(bus, op.seg, offset, selector);
    }
    cpu.put(op.dst, T::of(u64::from(selector)));
    Ok(())
}

/// POP into a segment register.
pub(super) fn pop_segment<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let selector = cpu.peek::<u16>(bus, 0)?;
    let sp = cpu.rsp();
    cpu.load_segment(bus, op.extra, selector)?;
    cpu.set_sp(sp.wrapping_add(u64::from(T::BYTES)));
    if op.extra == SS {
        cpu.stack_shadow();
    }
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS; `T` is the offset's width.
pub(super) fn load_far_pointer<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let (offset, selector) = far_pointer::<T>(cpu, bus, op)?;
    cpu.load_segment(bus, op.extra, selector)?;
    cpu.put(op.dst, T::of(offset));
    Ok(())
}

fn far_pointer<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<(u64, u16), Stop> {
    let address = cpu.effective_address(op);
    let offset: T = cpu.read(bus, op.seg, address)?;
    let selector: u16 = cpu.read(bus, op.seg, op.truncate_address(address.wrapping_add(u64::from(T::BYTES))))?;
    Ok((offset.zx(), selector))
}

/// JMP and (`CALL`) CALL to an immediate far pointer: the offset is the immediate, the selector the displacement.
pub(super) fn far_immediate<const CALL: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let selector = op.displacement as u16;
    if CALL { cpu.far_call(bus, selector, op.immediate, T::BYTES) } else { cpu.far_jump(bus, selector, op.immediate) }
}

/// JMP and (`CALL`) CALL to a far pointer in memory.
pub(super) fn far_indirect<const CALL: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let (offset, selector) = far_pointer::<T>(cpu, bus, op)?;
    if CALL { cpu.far_call(bus, selector, offset, T::BYTES) } else { cpu.far_jump(bus, selector, offset) }
}

/// RETF.
pub(super) fn retf<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.far_return(bus, T::BYTES, op.immediate)
}

/// IRET.
pub(super) fn iret<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    cpu.interrupt_return(bus, T::BYTES)
}

/// LLDT.
pub(super) fn lldt(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    cpu.check_cpl0()?;
    let selector: u16 = RmDst::get(cpu, bus, op)?;
    cpu.load_ldtr(bus, selector)
}

/// LTR.
pub(super) fn ltr(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    cpu.check_cpl0()?;
    let selector: u16 = RmDst::get(cpu, bus, op)?;
    cpu.load_tr(bus, selector)
}

/// SLDT and STR: `NUMBER` is LDTR or TR.
pub(super) fn store_system_selector<const NUMBER: u8, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    cpu.check_umip()?;
    let selector = cpu.seg(NUMBER).selector;
    store_selector::<T>(cpu, bus, op, selector)
}

/// ARPL.
pub(super) fn arpl(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    let rpl = cpu.get::<u16>(op.src) & 3;
    let opened = RmDst::open::<u16>(cpu, bus, op)?;
    let selector: u16 = RmDst::read(cpu, bus, op, opened)?;
    let raised = selector & 3 < rpl;
    if raised {
        RmDst::write(cpu, bus, op, opened, selector & !3 | rpl)?;
    }
    cpu.status = cpu.status.with_zf(raised);
    Ok(())
}

/// LAR.
pub(super) fn lar<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    let selector: u16 = RmSrc::get(cpu, bus, op)?;
    let long = cpu.long;
    let found = cpu.visible_descriptor(bus, selector)?.filter(|descriptor| match descriptor.kind() {
        kind if kind & access::CODE_OR_DATA != 0 => true,
        system::TSS16_AVAILABLE | system::TSS16_BUSY | system::CALL_GATE16 | system::TASK_GATE => !long,
        system::LDT | system::TSS_AVAILABLE | system::TSS_BUSY | system::CALL_GATE => true,
        _ => false,
    });
    if let Some(descriptor) = found {
        cpu.put(op.dst, T::of(u64::from(descriptor.high & 0x00FF_FF00)));
    }
    cpu.status = cpu.status.with_zf(found.is_some());
    Ok(())
}

/// LSL.
pub(super) fn lsl<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    let selector: u16 = RmSrc::get(cpu, bus, op)?;
    let long = cpu.long;
    let found = cpu.visible_descriptor(bus, selector)?.filter(|descriptor| match descriptor.kind() {
        kind if kind & access::CODE_OR_DATA != 0 => true,
        system::TSS16_AVAILABLE | system::TSS16_BUSY => !long,
        system::LDT | system::TSS_AVAILABLE | system::TSS_BUSY => true,
        _ => false,
    });
    if let Some(descriptor) = found {
        cpu.put(op.dst, T::of(u64::from(descriptor.limit())));
    }
    cpu.status = cpu.status.with_zf(found.is_some());
    Ok(())
}

/// VERR and (`WRITE`) VERW.
pub(super) fn verify<const WRITE: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_protected()?;
    let selector: u16 = RmDst::get(cpu, bus, op)?;
    let descriptor = cpu.visible_descriptor(bus, selector)?;
    let good = descriptor.is_some_and(|found| if WRITE { found.is_writable_data() } else { found.is_readable() });
    cpu.status = cpu.status.with_zf(good);
    Ok(())
}
