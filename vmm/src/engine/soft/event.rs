//! Delivery of interrupts and exceptions (SDM 3A chapter 6): the interrupt vector table of real mode, and the IDT.

use super::flags::{AC, IF, NT, RF, TF, VIF, VM};
use super::mem::Bus;
use super::state::{CS, Cpu, DS, ES, FS, GS, Raised, SS, Seg, Step, Stop, vector};
use super::task::Cause;
use crate::engine::Exit;

/// Where an event comes from, as far as its delivery depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// External interrupts, NMI and exceptions: faults on the way have EXT set in their error codes.
    Hardware,
}

/// What kind of exception one is when another comes on top of it (SDM 3A table 6-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Whether an exception is reported before its instruction has had effect: RF is then set in the pushed flags.
fn is_fault(vector: u8) -> bool {
    !matches!(vector, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF)
}

const TASK_GATE: u64 = 0x5;
const INTERRUPT_GATE16: u64 = 0x6;
const TRAP_GATE16: u64 = 0x7;
const INTERRUPT_GATE: u64 = 0xE;
const TRAP_GATE: u64 = 0xF;

impl Cpu {
    /// Delivers an exception, and what comes of exceptions on the way. The error is the end of the run.
    pub(super) fn deliver_exception(&mut self, bus: &mut Bus, first: Raised) -> Result<(), Exit> {
        let mut present = first;
        self.set_fault_address(first);
        loop {
            // If the run ends on the way, the next one goes on with this exception.
            self.pending_exception = Some(present);
            let extra_flags = if is_fault(present.vector) { RF } else { 0 };
            let delivered = self
                .deliver(bus, present.vector, present.error_code, Origin::Hardware, extra_flags)
                .and_then(|()| self.fault_of_new_task());
            match delivered {
                Ok(()) => {
                    self.pending_exception = self.posted.take();
                    if present.vector == vector::DB {
                        self.end_general_detection();
                    }
                    return Ok(());
                }
                Err(Stop::Fault) => {
                    self.forget_accesses();
                    let second = self.raised;
                    self.set_fault_address(second);
                    present = match (class(present.vector), class(second.vector)) {
                        (Class::DoubleFault, _) => {
                            self.pending_exception = None;
                            return Err(Exit::Shutdown);
                        }
                        // A benign exception comes out of a delivery where the stack is misaligned (#AC), and then of its
                        // own delivery too; taking it for contributory keeps such deliveries from going round for ever.
                        (Class::Contributory, Class::Contributory | Class::Benign)
                        | (Class::Benign, Class::Benign)
                        | (Class::PageFault, Class::Contributory | Class::PageFault | Class::Benign) => {
                            let error_code = self.protected.then_some(0);
                            Raised { vector: vector::DF, error_code, address: 0 }
                        }
                        _ => second,
                    };
                }
                Err(Stop::Again | Stop::Leave) => return Err(self.take_exit()),
            }
        }
    }

    /// A fault that a new task met while it was loaded; the switch itself is done.
    fn fault_of_new_task(&mut self) -> Step {
        match self.posted.take_if(|posted| posted.vector != vector::DB) {
            Some(fault) => {
                self.raised = fault;
                Err(Stop::Fault)
            }
            None => Ok(()),
        }
    }

    fn set_fault_address(&mut self, raised: Raised) {
        if raised.vector == vector::PF {
            self.cr2 = raised.address;
        }
    }

    /// Delivers an external interrupt or NMI.
    pub(super) fn deliver_external(&mut self, bus: &mut Bus, vector: u8) -> Result<(), Exit> {
        // If the stack is a device, the log is this delivery's until it is done.
        self.delivering = false;
        match self.deliver(bus, vector, None, Origin::Hardware, 0).and_then(|()| self.fault_of_new_task()) {
            Ok(()) => {
                self.forget_accesses();
                self.pending_exception = self.posted.take();
                Ok(())
            }
            Err(Stop::Fault) => {
                self.forget_accesses();
                self.deliver_exception(bus, self.raised)
            }
            Err(Stop::Again | Stop::Leave) => {
                self.delivering = true;
                Err(self.take_exit())
            }
        }
    }

    /// INT n, INT3 and INTO, executed: RIP is already behind the instruction.
    pub(super) fn software_interrupt(&mut self, bus: &mut Bus, vector: u8) -> Step {
        self.deliver(bus, vector, None, Origin::Software, 0)?;
        self.pending_from_task();
        // TF is clear when it is looked at (SDM 3B 17.3.1.4).
        self.trap_due = false;
        Ok(())
    }

    /// INT1, executed: a trap without the checks of INT n.
    pub(super) fn debug_interrupt(&mut self, bus: &mut Bus) -> Step {
        self.deliver(bus, vector::DB, None, Origin::Hardware, 0)?;
        self.pending_from_task();
        self.end_general_detection();
        self.trap_due = false;
        Ok(())
    }

    fn deliver(&mut self, bus: &mut Bus, vector: u8, error: Option<u32>, origin: Origin, extra_flags: u64) -> Step {
        self.all_or_nothing(|cpu| {
            if cpu.protected {
                cpu.deliver_protected(bus, vector, error, origin, extra_flags)
            } else {
                cpu.deliver_real(bus, vector)
            }
        })
    }

    /// Real mode: a far pointer from the interrupt vector table (SDM 3A 20.1.4).
    fn deliver_real(&mut self, bus: &mut Bus, vector: u8) -> Step {
        let at = u64::from(vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(0));
        }
        let entry = self.read_system(bus, self.idtr.base.wrapping_add(at), 4)?;
        self.enter_vector(bus, entry, self.rflags())?;
        self.set_rflags(self.rflags() & !(IF | TF | AC | RF));
        Ok(())
    }

    /// INT n that virtual-8086 mode extensions leave to the 8086 program: its vector table is at linear address 0 (SDM 3A
    /// 20.3.3.2, methods 5 and 6).
    pub(super) fn redirected_interrupt(&mut self, bus: &mut Bus, vector: u8) -> Step {
        self.all_or_nothing(|cpu| {
            let entry = cpu.read_linear(bus, u64::from(vector) * 4, 4, cpu.data_context)?;
            let (pushed, cleared) = if cpu.iopl() == 3 { (cpu.rflags(), IF) } else { (cpu.virtual_flags(), VIF) };
            cpu.enter_vector(bus, entry, pushed)?;
            cpu.set_rflags(cpu.rflags() & !(cleared | TF | NT | RF));
            Ok(())
        })?;
        self.trap_due = false;
        Ok(())
    }

    /// Pushes FLAGS, CS and IP, and goes to a handler of an interrupt vector table.
    fn enter_vector(&mut self, bus: &mut Bus, entry: u64, flags: u64) -> Step {
        let mut stack = self.present_stack(0);
        for value in [flags, u64::from(self.seg(CS).selector), self.rip()] {
            self.push_new(bus, &mut stack, 2, value)?;
        }
        self.enter_real_handler((entry >> 16) as u16, entry & 0xFFFF, stack.sp)
    }

    /// Protected and long mode: a gate from the IDT (SDM 3A 6.12, 6.14).
    fn deliver_protected(
        &mut self,
        bus: &mut Bus,
        vector: u8,
        error: Option<u32>,
        origin: Origin,
        extra_flags: u64,
    ) -> Step {
        let ext = u32::from(origin == Origin::Hardware);
        let idt_error = u32::from(vector) * 8 + 2 + ext;
        let gate_bytes = if self.long { 16 } else { 8 };
        let at = u64::from(vector) * gate_bytes;
        if at + gate_bytes - 1 > u64::from(self.idtr.limit) {
            return Err(self.gp(idt_error));
        }
        let address = self.idtr.base.wrapping_add(at);
        let gate = self.read_system(bus, address, 8)?;
        let kind = gate >> 40 & 0x1F;
        let good = match kind {
            INTERRUPT_GATE | TRAP_GATE => true,
            TASK_GATE | INTERRUPT_GATE16 | TRAP_GATE16 => !self.long,
            _ => false,
        };
        let gate_dpl = (gate >> 45 & 3) as u8;
        if !good || origin == Origin::Software && gate_dpl < self.cpl {
            return Err(self.gp(idt_error));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.raise_code(vector::NP, idt_error));
        }
        if kind == TASK_GATE {
            let task = self.task(bus, (gate >> 16) as u16, false, ext)?;
            return self.switch_task(bus, task, Cause::Event { error, ext, extra_flags });
        }
        let selector = (gate >> 16) as u16;
        let mut offset = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000;
        let mut size = 4;
        let mut ist = None;
        if self.long {
            offset |= self.read_system(bus, address.wrapping_add(8), 4)? << 32;
            size = 8;
            ist = Some((gate >> 32 & 7) as u8).filter(|&ist| ist != 0);
        } else if kind == INTERRUPT_GATE16 || kind == TRAP_GATE16 {
            offset &= 0xFFFF;
            size = 2;
        }
        let (code, cpl) = self.interrupt_target(bus, selector, ext)?;
        let is_virtual = self.is_virtual();
        if is_virtual && cpl != 0 {
            // Virtual-8086 mode is left for privilege level 0 only (SDM 3A 20.3.1.1).
            return Err(self.gp(u32::from(selector & !3) | ext));
        }
        let good = if self.long { self.canonical(offset) } else { offset <= u64::from(code.limit()) };
        if !good {
            return Err(self.gp(ext));
        }
        let inner = cpl < self.cpl;
        let mut stack =
            if inner || ist.is_some() { self.inner_stack(bus, cpl, ist, ext)? } else { self.present_stack(ext) };
        let (old_ss, old_sp) = (u64::from(self.seg(SS).selector), self.rsp());
        if self.long {
            // SDM 3A 6.14.2: the frame is aligned, and always holds SS and RSP.
            stack.widen();
        }
        let mut frame = Vec::with_capacity(10);
        if is_virtual {
            frame.extend([GS, FS, DS, ES].map(|number| u64::from(self.seg(number).selector)));
        }
        if self.long || inner {
            frame.extend([old_ss, old_sp]);
        }
        frame.extend([self.rflags() | extra_flags, u64::from(self.seg(CS).selector), self.rip()]);
        frame.extend(error.map(u64::from));
        for value in frame {
            self.push_new(bus, &mut stack, size, value)?;
        }
        self.enter_handler(bus, code, selector, cpl, offset, &stack)?;
        if is_virtual {
            for number in [GS, FS, DS, ES] {
                *self.seg_mut(number) = Seg::null(0, 0);
                self.derive_seg(number);
            }
        }
        let masked = if matches!(kind, INTERRUPT_GATE | INTERRUPT_GATE16) { IF } else { 0 };
        let flags = self.rflags();
        self.set_rflags(flags & !(TF | NT | RF | VM | masked));
        Ok(())
    }
}
