//! Hardware task switches (SDM 3A chapter 8): far JMP and CALL to a task-state segment or task gate, interrupts through task
//! gates, and IRET with NT set.
//!
//! A switch has a point of no return. What is wrong before it is a fault of the old task, which has not changed. What is wrong
//! with the new task's state is a fault of the new task: the switch is done then, and the fault is [`Cpu::posted`].

use super::flags::{DEFINED, FIXED, NT, RF, VM};
use super::mem::Bus;
use super::paging::Purpose;
use super::segment::{Descriptor, error_of, is_null, system};
use super::state::{CS, Cpu, DS, ES, FS, GS, LDTR, Raised, SS, Seg, Step, Stop, TR, cr0, vector};
use super::word::{RAX, RDI};

/// DR6: the task switched to has the T flag.
const DR6_BT: u64 = 1 << 15;
/// DR7: breakpoints of the old task, L0 to L3 and LE.
const DR7_LOCAL: u64 = 0x155;
/// The bit of a task-state segment's type that says busy.
const BUSY: u32 = 2;
/// The previous task link is at the beginning of either kind.
const LINK: u64 = 0;

/// Where a task-state segment keeps what (SDM 3A figures 8-2 and 8-10).
struct Layout {
    /// The least limit.
    limit: u32,
    /// Bytes of a register.
    size: u32,
    cr3: Option<u64>,
    /// EIP; EFLAGS and the general registers follow.
    ip: u64,
    /// ES; CS, SS and DS follow, and FS and GS in 32-bit ones.
    segments: u64,
    segment_count: u8,
    ldt: u64,
    trap: Option<u64>,
}

const LAYOUT16: Layout =
    Layout { limit: 0x2B, size: 2, cr3: None, ip: 0x0E, segments: 0x22, segment_count: 4, ldt: 0x2A, trap: None };
const LAYOUT32: Layout = Layout {
    limit: 0x67,
    size: 4,
    cr3: Some(0x1C),
    ip: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    trap: Some(0x64),
};

impl Layout {
    /// Of a task-state segment by its type.
    fn of(kind: u32) -> &'static Layout {
        if kind & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
    }

    fn register(&self, i: u64) -> u64 {
        self.ip + i * u64::from(self.size)
    }

    fn segment(&self, number: u8) -> u64 {
        self.segments + u64::from(number) * u64::from(self.size)
    }

    fn has(&self, number: u8) -> bool {
        number < self.segment_count
    }
}

/// The state of a task as its segment holds it.
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    /// In the order of their numbers.
    registers: [u64; 8],
    /// ES to GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// A task-state segment that may be switched to.
#[derive(Clone, Copy)]
pub(super) struct Task {
    selector: u16,
    descriptor: Descriptor,
}

/// What a switch is caused by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Jump,
    Call,
    /// IRET.
    Return,
    /// An interrupt or exception, with its error code, EXT in the error codes of faults on the way, and flags that the old
    /// task is saved with.
    Event {
        error: Option<u32>,
        ext: u32,
        extra_flags: u64,
    },
}

impl Cause {
    fn ext(self) -> u32 {
        if let Cause::Event { ext, .. } = self { ext } else { 0 }
    }

    /// Whether the new task is to return to the old one.
    fn nests(self) -> bool {
        matches!(self, Cause::Call | Cause::Event { .. })
    }
}

impl Cpu {
    /// Where a far JMP or CALL to a system descriptor leads, if to a task; checked up to its own presence.
    pub(super) fn task_of(
        &mut self,
        bus: &mut Bus,
        descriptor: Descriptor,
        selector: u16,
    ) -> Result<Option<Task>, Stop> {
        let kind = descriptor.kind();
        let is_gate = kind == system::TASK_GATE;
        if self.long || !is_gate && !system::is_tss(kind) {
            return Ok(None);
        }
        let rpl = (selector & 3) as u8;
        if descriptor.dpl() < self.cpl.max(rpl) {
            return Err(self.gp(error_of(selector)));
        }
        if !is_gate {
            return self.task(bus, selector, false, 0).map(Some);
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error_of(selector)));
        }
        self.task(bus, descriptor.selector(), false, 0).map(Some)
    }

    /// The task that a selector names, which must be busy or must not. Of IRET, which asks for a busy one, the exception is #TS,
    /// else #GP.
    pub(super) fn task(&mut self, bus: &mut Bus, selector: u16, busy: bool, ext: u32) -> Result<Task, Stop> {
        let error = error_of(selector) | ext;
        let invalid = if busy { vector::TS } else { vector::GP };
        if selector & 4 != 0 {
            return Err(self.raise_code(invalid, error));
        }
        let descriptor = self.descriptor_or(bus, selector, invalid, ext)?;
        if !system::is_tss(descriptor.kind()) || (descriptor.kind() & BUSY != 0) != busy {
            return Err(self.raise_code(invalid, error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(vector::NP, error));
        }
        if descriptor.limit() < Layout::of(descriptor.kind()).limit {
            return Err(self.raise_code(vector::TS, error));
        }
        Ok(Task { selector, descriptor })
    }

    /// IRET with NT set: back to the task that the present one is nested in.
    pub(super) fn task_return(&mut self, bus: &mut Bus) -> Step {
        let link = self.read_system(bus, self.seg(TR).base.wrapping_add(LINK), 2)? as u16;
        let task = self.task(bus, link, true, 0)?;
        self.switch_task(bus, task, Cause::Return)?;
        self.unblock_nmis();
        self.pending_from_task();
        Ok(())
    }

    /// A far JMP or CALL to a task.
    pub(super) fn far_task(&mut self, bus: &mut Bus, task: Task, cause: Cause) -> Step {
        self.switch_task(bus, task, cause)?;
        self.pending_from_task();
        Ok(())
    }

    /// What a task switch left to be delivered in the new task comes before its first instruction.
    pub(super) fn pending_from_task(&mut self) {
        if let Some(posted) = self.posted.take() {
            self.pending_exception = Some(posted);
            self.update_attention();
        }
    }

    /// Switches tasks (SDM 3A 8.3). An error is a fault of the old task.
    pub(super) fn switch_task(&mut self, bus: &mut Bus, to: Task, cause: Cause) -> Step {
        let old = *self.seg(TR);
        let new = to.descriptor.seg(to.selector);
        let (from_layout, to_layout) = (Layout::of(old.kind()), Layout::of(new.kind()));
        if old.limit < from_layout.limit {
            return Err(self.raise_code(vector::TS, error_of(to.selector) | cause.ext()));
        }
        let old_descriptor = self.descriptor(bus, old.selector)?.filter(|_| !is_null(old.selector));
        self.check_present(bus, old.base, from_layout.limit, Purpose::Write)?;
        self.check_present(bus, new.base, to_layout.limit, if cause.nests() { Purpose::Write } else { Purpose::Read })?;
        for descriptor in [Some(to.descriptor), old_descriptor].into_iter().flatten() {
            self.check_present(bus, descriptor.at, 7, Purpose::Write)?;
        }
        let image = self.read_task(bus, new.base, to_layout)?;

        // All that is touched is there: nothing stops the switch any more.
        if let Some(descriptor) = old_descriptor.filter(|_| !cause.nests()) {
            self.set_busy(bus, descriptor, false)?;
        }
        self.save_task(bus, cause)?;
        if cause.nests() {
            self.write_system(bus, new.base.wrapping_add(LINK), 2, u64::from(old.selector))?;
        }
        if cause != Cause::Return {
            self.set_busy(bus, to.descriptor, true)?;
        }
        *self.seg_mut(TR) = Seg { access: new.access | BUSY, ..new };
        self.cr0 |= cr0::TS;
        self.dr[7] &= !DR7_LOCAL;
        self.derive_breakpoints();
        self.trap_due = false;
        let entered = self.enter_task(bus, &image, to_layout, cause);
        self.derive();
        match entered {
            Err(Stop::Fault) => self.posted = Some(self.raised),
            Err(other) => return Err(other),
            Ok(()) if image.trap => {
                self.dr[6] |= DR6_BT;
                self.posted = Some(Raised { vector: vector::DB, error_code: None, address: 0 });
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Faults as an access to a structure of the processor's own would, `last` being the offset of its last byte.
    fn check_present(&mut self, bus: &mut Bus, base: u64, last: u32, purpose: Purpose) -> Step {
        let context = self.system_context();
        for linear in [base, base.wrapping_add(u64::from(last))] {
            self.resolve(bus, linear & 0xFFFF_FFFF, purpose, context)?;
        }
        Ok(())
    }

    fn set_busy(&mut self, bus: &mut Bus, descriptor: Descriptor, busy: bool) -> Step {
        let rights = descriptor.access() as u8 & !(BUSY as u8) | if busy { BUSY as u8 } else { 0 };
        self.write_system(bus, descriptor.at.wrapping_add(5), 1, u64::from(rights))
    }

    fn read_task(&mut self, bus: &mut Bus, base: u64, layout: &Layout) -> Result<Image, Stop> {
        let mut read = |at: u64, size: u32| self.read_system(bus, base.wrapping_add(at), size);
        let mut registers = [0; 8];
        for (i, register) in (2..).zip(&mut registers) {
            *register = read(layout.register(i), layout.size)?;
        }
        let mut selectors = [0; 6];
        for number in (ES..=GS).filter(|&number| layout.has(number)) {
            selectors[usize::from(number)] = read(layout.segment(number), 2)? as u16;
        }
        Ok(Image {
            cr3: layout.cr3.map(|at| read(at, 4)).transpose()?,
            ip: read(layout.register(0), layout.size)?,
            flags: read(layout.register(1), layout.size)?,
            registers,
            selectors,
            ldt: read(layout.ldt, 2)? as u16,
            trap: layout.trap.map(|at| read(at, 1)).transpose()?.is_some_and(|byte| byte & 1 != 0),
        })
    }

    /// Writes the present task's state into its segment. RIP is where the task shall go on.
    fn save_task(&mut self, bus: &mut Bus, cause: Cause) -> Step {
        let tr = *self.seg(TR);
        let layout = Layout::of(tr.kind());
        let flags = match cause {
            Cause::Return => self.rflags() & !NT,
            Cause::Event { extra_flags, .. } => self.rflags() | extra_flags,
            Cause::Jump | Cause::Call => self.rflags(),
        };
        let head = [self.rip(), flags];
        let registers = (RAX..=RDI).map(|number| self.get::<u64>(number)).collect::<Vec<_>>();
        for (i, value) in (0..).zip(head.into_iter().chain(registers)) {
            self.write_system(bus, tr.base.wrapping_add(layout.register(i)), layout.size, value)?;
        }
        for number in (ES..=GS).filter(|&number| layout.has(number)) {
            let selector = u64::from(self.seg(number).selector);
            self.write_system(bus, tr.base.wrapping_add(layout.segment(number)), 2, selector)?;
        }
        Ok(())
    }

    /// Takes over a task's state. An error is a fault of this new task.
    fn enter_task(&mut self, bus: &mut Bus, image: &Image, layout: &Layout, cause: Cause) -> Step {
        let ext = cause.ext();
        for (number, value) in (RAX..).zip(image.registers) {
            self.put(number, value);
        }
        self.set_rip(image.ip);
        // RF is taken over only where it matters, as by IRET.
        let resume = if self.breakpoints.any() { 0 } else { RF };
        let flags = image.flags & DEFINED & !resume | if cause.nests() { NT } else { 0 };
        self.set_rflags(flags | FIXED);
        let cpl = if flags & VM != 0 { 3 } else { (image.selectors[usize::from(CS)] & 3) as u8 };
        // A segment that is not loaded yet cannot be used.
        for (number, selector) in (ES..=GS).zip(image.selectors) {
            *self.seg_mut(number) = Seg::null(selector, if number == SS { cpl } else { 0 });
        }
        *self.seg_mut(LDTR) = Seg::null(image.ldt, 0);
        self.derive();
        if let Some(cr3) = image.cr3.filter(|_| self.cr0 & cr0::PG != 0) {
            self.write_cr3(bus, cr3)?;
        }
        if !is_null(image.ldt) {
            *self.seg_mut(LDTR) = self.task_ldt(bus, image.ldt, ext)?;
        }
        if flags & VM != 0 {
            self.set_virtual_segments(image.selectors);
        } else {
            self.load_task_segments(bus, image, cpl, ext)?;
        }
        if let Cause::Event { error: Some(error), .. } = cause {
            self.push_error_code(bus, layout.size, error, ext)?;
        }
        if image.ip > self.code_limit {
            return Err(self.gp(ext));
        }
        Ok(())
    }

    fn task_ldt(&mut self, bus: &mut Bus, selector: u16, ext: u32) -> Result<Seg, Stop> {
        let error = error_of(selector) | ext;
        if selector & 4 != 0 {
            return Err(self.raise_code(vector::TS, error));
        }
        let descriptor = self.descriptor_or(bus, selector, vector::TS, ext)?;
        if descriptor.kind() != system::LDT || !descriptor.present() {
            return Err(self.raise_code(vector::TS, error));
        }
        Ok(descriptor.seg(selector))
    }

    /// Loads and checks CS, SS and the data segments of a new task (SDM 3A table 8-1).
    fn load_task_segments(&mut self, bus: &mut Bus, image: &Image, cpl: u8, ext: u32) -> Step {
        for number in [CS, SS, ES, DS, FS, GS] {
            let selector = image.selectors[usize::from(number)];
            if is_null(selector) && number != CS && number != SS {
                continue;
            }
            let error = error_of(selector) | ext;
            if is_null(selector) {
                return Err(self.raise_code(vector::TS, error));
            }
            let descriptor = self.descriptor_or(bus, selector, vector::TS, ext)?;
            let (rpl, dpl) = ((selector & 3) as u8, descriptor.dpl());
            let (good, absent) = match number {
                CS if descriptor.is_conforming() => (dpl <= rpl, vector::NP),
                CS => (descriptor.is_code() && dpl == rpl, vector::NP),
                SS => (descriptor.is_writable_data() && dpl == cpl && rpl == cpl, vector::SS),
                _ => (descriptor.is_readable() && (descriptor.is_conforming() || dpl >= cpl.max(rpl)), vector::NP),
            };
            if !good {
                return Err(self.raise_code(vector::TS, error));
            }
            if !descriptor.present() {
                return Err(self.raise_code(absent, error));
            }
            *self.seg_mut(number) = self.accessed(bus, descriptor, selector)?;
            self.derive();
        }
        Ok(())
    }

    /// Pushes an exception's error code on the new task's stack; lost where that is no memory.
    fn push_error_code(&mut self, bus: &mut Bus, size: u32, error: u32, ext: u32) -> Step {
        let sp = self.rsp().wrapping_sub(u64::from(size)) & self.stack_mask;
        let linear = match self.check_segment(SS, sp, u64::from(size), true) {
            Ok(linear) => linear,
            Err(_) => return Err(self.raise_code(vector::SS, ext)),
        };
        self.write_memory(bus, linear, size, u64::from(error), self.data_context)?;
        self.set_sp(sp);
        Ok(())
    }
}
