//! Delivery of interrupts and exceptions (SDM 3A chapter 6): the interrupt vector table of real mode, and the IDT.

use super::flags::{AC, IF, NT, RF, TF, VM};
use super::mem::Bus;
use super::state::{CS, Cpu, Raised, SS, Step, Stop, vector};
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
            let delivered = self.deliver(bus, present.vector, present.error_code, Origin::Hardware, extra_flags);
            match delivered {
                Ok(()) => {
                    self.pending_exception = None;
                    if present.vector == vector::DB {
                        self.end_general_detection();
                    }
                    return Ok(());
                }
                Err(Stop::Fault) => {
                    self.forget_accesses();
                    self.note_lacking();
                    let second = self.raised;
                    self.set_fault_address(second);
                    present = match (class(present.vector), class(second.vector)) {
                        (Class::DoubleFault, _) => {
                            self.pending_exception = None;
                            return Err(Exit::Shutdown);
                        }
                        // A benign exception comes out of a delivery only where this processor lacks what the gate asks
                        // for; taking it for contributory keeps such deliveries from going round for ever.
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

    fn set_fault_address(&mut self, raised: Raised) {
        if raised.vector == vector::PF {
            self.cr2 = raised.address;
        }
    }

    /// Delivers an external interrupt or NMI.
    pub(super) fn deliver_external(&mut self, bus: &mut Bus, vector: u8) -> Result<(), Exit> {
        // If the stack is a device, the log is this delivery's until it is done.
        self.delivering = false;
        match self.deliver(bus, vector, None, Origin::Hardware, 0) {
            Ok(()) => {
                self.forget_accesses();
                Ok(())
            }
            Err(Stop::Fault) => {
                self.forget_accesses();
                self.note_lacking();
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
        // TF is clear when it is looked at (SDM 3B 17.3.1.4).
        self.trap_due = false;
        Ok(())
    }

    /// INT1, executed: a trap without the checks of INT n.
    pub(super) fn debug_interrupt(&mut self, bus: &mut Bus) -> Step {
        self.deliver(bus, vector::DB, None, Origin::Hardware, 0)?;
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
        let mut stack = self.present_stack(0);
        let flags = self.rflags();
        for value in [flags, u64::from(self.seg(CS).selector), self.rip()] {
            self.push_new(bus, &mut stack, 2, value)?;
        }
        self.enter_real_handler((entry >> 16) as u16, entry & 0xFFFF, stack.sp)?;
        self.set_rflags(flags & !(IF | TF | AC | RF));
        Ok(())
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
            return Err(self.not_implemented("task switch through a task gate"));
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
        let mut frame = Vec::with_capacity(6);
        if self.long || inner {
            frame.extend([old_ss, old_sp]);
        }
        frame.extend([self.rflags() | extra_flags, u64::from(self.seg(CS).selector), self.rip()]);
        frame.extend(error.map(u64::from));
        for value in frame {
            self.push_new(bus, &mut stack, size, value)?;
        }
        self.enter_handler(bus, code, selector, cpl, offset, &stack)?;
        let masked = if matches!(kind, INTERRUPT_GATE | INTERRUPT_GATE16) { IF } else { 0 };
        let flags = self.rflags();
        self.set_rflags(flags & !(TF | NT | RF | VM | masked));
        Ok(())
    }
}
