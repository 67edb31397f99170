//! The run loop: looks at what is pending, finds the next block, executes it, and deals with how it ended.

use super::NS_PER_INSTRUCTION;
use super::code::{CodeCache, MAX_BLOCK_BYTES};
use super::debug::DR6_BS;
use super::flags::{RF, TF};
use super::mem::Bus;
use super::state::{Access, AccessKind, CS, Cpu, Raised, Stop, vector};
use super::word::{RAX, RDX};
use crate::engine::{Completion, Exit};

/// What the run loop must look at before it goes on: bits of [`Cpu::attention`].
pub(super) mod attention {
    /// An exception, NMI or interrupt waits to be delivered.
    pub(in super::super) const EVENT: u32 = 1 << 0;
    /// Interrupts are blocked for one instruction.
    pub(in super::super) const SHADOW: u32 = 1 << 1;
    /// RFLAGS.TF is set.
    pub(in super::super) const TRAP: u32 = 1 << 2;
    /// The log of answered accesses is not empty.
    pub(in super::super) const LOG: u32 = 1 << 3;
    /// Somebody wants to know when interrupts can be delivered.
    pub(in super::super) const WINDOW: u32 = 1 << 4;
    /// A breakpoint is enabled.
    pub(in super::super) const DEBUG: u32 = 1 << 5;
    /// Instructions execute one at a time.
    pub(in super::super) const STEP: u32 = SHADOW | TRAP | LOG | DEBUG;
}

impl Cpu {
    /// Runs for at most `budget_ns` nanoseconds of virtual time.
    pub(super) fn run(&mut self, bus: &mut Bus, code: &mut CodeCache, budget_ns: u64) -> Exit {
        self.blocks = 0;
        let exit = self.run_blocks(bus, code, budget_ns);
        code.counters.executed += self.blocks;
        exit
    }

    #[inline(always)]
    fn run_blocks(&mut self, bus: &mut Bus, code: &mut CodeCache, budget_ns: u64) -> Exit {
        self.feature_set = code.feature_set(bus, self.features);
        bus.catch_up();
        self.catch_up(bus);
        self.asked = None;
        self.executed_before += self.executed;
        self.executed = 0;
        self.budget = (budget_ns / NS_PER_INSTRUCTION).max(1);
        loop {
            if self.attention != 0
                && let Some(exit) = self.attend(bus)
            {
                return exit;
            }
            if bus.has_stale_pages() {
                code.drop_stale(bus);
            }
            if self.kick.take() {
                return Exit::Kicked;
            }
            if self.executed >= self.budget {
                return Exit::Budget;
            }
            let outcome = if self.attention & attention::STEP == 0 {
                self.run_block(bus, code, usize::MAX)
            } else {
                self.step(bus, code)
            };
            if let Some(exit) = outcome.err().and_then(|stop| self.stopped(bus, stop)) {
                return exit;
            }
        }
    }

    /// Executes the block at the instruction pointer, or its first `limit` instructions.
    #[inline(always)]
    fn run_block(&mut self, bus: &mut Bus, code: &mut CodeCache, limit: usize) -> Result<(), Stop> {
        let rip = self.rip();
        if rip > self.code_limit {
            return Err(self.gp(0));
        }
        let block = self.fetch(bus, code)?;
        let ops = code.ops(block);
        let mut count = limit.min(ops.len());
        if self.code_limit - rip < MAX_BLOCK_BYTES {
            count = count.min(self.instructions_within_limit(ops)?);
        }
        let left = self.budget - self.executed;
        self.block_left = usize::try_from(left).map_or(count, |left| count.min(left));
        let mut done = 0;
        let outcome = loop {
            if done >= self.block_left {
                break Ok(());
            }
            let op = &ops[done];
            let next = self.rip().wrapping_add(u64::from(op.len));
            self.set_rip(next);
            if let Err(stop) = (op.run)(self, bus, op) {
                if stop != Stop::Leave {
                    self.set_rip(next.wrapping_sub(u64::from(op.len)));
                }
                break Err(stop);
            }
            done += 1;
        };
        self.executed += done as u64;
        self.blocks += 1;
        outcome
    }

    /// Executes one instruction under a shadow, trap flag, log or breakpoint.
    #[cold]
    fn step(&mut self, bus: &mut Bus, code: &mut CodeCache) -> Result<(), Stop> {
        let shadow = std::mem::take(&mut self.shadow);
        let inhibited = std::mem::take(&mut self.debug_inhibited);
        let resumes = self.eflags & RF;
        self.attention &= !attention::SHADOW;
        if resumes == 0 && !inhibited {
            self.check_execution(self.seg(CS).origin.wrapping_add(self.rip()) & self.linear_mask)?;
        }
        self.eflags &= !RF;
        self.trap_due = self.eflags & TF != 0;
        let outcome = self.run_block(bus, code, 1);
        match outcome {
            // Nothing happened yet, so the shadow has not passed.
            Err(Stop::Again) if self.exit.is_some() => {
                if shadow {
                    self.set_shadow();
                    self.debug_inhibited = inhibited;
                }
                self.eflags |= resumes;
                if self.asked.is_none_or(|asked| asked.retires_at.is_none()) {
                    self.debug_hits = 0;
                }
            }
            Err(Stop::Fault) => self.debug_hits = 0,
            // A repeated string instruction that makes way has done an iteration.
            Ok(()) | Err(Stop::Leave | Stop::Again) => {
                if outcome == Err(Stop::Again) {
                    self.eflags |= resumes;
                }
                self.forget_accesses();
                // The trap ends a halt as soon as it begins (SDM 2A, HLT).
                if !self.debug_inhibited && self.trap() && self.exit == Some(Exit::Hlt) {
                    self.exit = None;
                    self.executed += 1;
                    return Ok(());
                }
            }
        }
        outcome
    }

    /// The debug trap behind an instruction, if there is one: a single step, or breakpoints that it touched.
    fn trap(&mut self) -> bool {
        let bits = std::mem::take(&mut self.debug_hits) | if self.trap_due { DR6_BS } else { 0 };
        if bits == 0 {
            return false;
        }
        self.dr[6] |= bits;
        self.pending_exception = Some(Raised { vector: vector::DB, error_code: None, address: 0 });
        self.attention |= attention::EVENT;
        true
    }

    /// Deals with a stop: delivers the fault, or ends the run.
    fn stopped(&mut self, bus: &mut Bus, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Leave => {
                self.executed += 1;
                Some(self.take_exit())
            }
            // Without an exit it is a repeated string instruction that makes way.
            Stop::Again => self.exit.is_some().then(|| {
                self.log_used = 0;
                self.executed += u64::from(self.asked.is_some_and(|asked| asked.retires_at.is_some()));
                self.take_exit()
            }),
            Stop::Fault => {
                self.executed += 1;
                self.forget_accesses();
                self.note_lacking();
                let raised = self.raised;
                let delivered = self.deliver_exception(bus, raised);
                self.update_attention();
                delivered.err()
            }
        }
    }

    pub(super) fn take_exit(&mut self) -> Exit {
        self.log_used = 0;
        self.exit.take().unwrap_or_else(|| Exit::Failed("A stop without a reason".to_owned()))
    }

    /// Looks at what is pending. Returns how the run ends, if it does.
    #[cold]
    fn attend(&mut self, bus: &mut Bus) -> Option<Exit> {
        while let Some(raised) = self.pending_exception {
            let delivered = self.deliver_exception(bus, raised);
            self.shadow = false;
            self.update_attention();
            if let Err(exit) = delivered {
                return Some(exit);
            }
        }
        // An instruction in flight is finished before anything else is delivered.
        if !self.log.is_empty() && !self.delivering || self.shadow {
            return None;
        }
        if self.pending_nmi && !self.nmi_blocked {
            let delivered = self.deliver_external(bus, vector::NMI);
            self.pending_nmi = self.delivering;
            self.nmi_blocked = !self.delivering;
            if let Err(exit) = delivered {
                return Some(exit);
            }
        }
        if let Some(vector) = self.pending_interrupt {
            let delivered = self.deliver_external(bus, vector);
            self.pending_interrupt = Some(vector).filter(|_| self.delivering);
            if let Err(exit) = delivered {
                return Some(exit);
            }
        }
        self.update_attention();
        if self.pending_exception.is_some() {
            // A task that an interrupt switched to has a debug trap before its first instruction.
            return self.attend(bus);
        }
        (self.window_wanted && self.interruptible()).then_some(Exit::InterruptWindow)
    }

    /// Whether an external interrupt could be delivered now.
    pub(super) fn interruptible(&self) -> bool {
        self.interrupts_enabled()
            && !self.shadow
            && self.log.is_empty()
            && self.asked.is_none()
            && self.pending_exception.is_none()
            && self.pending_interrupt.is_none()
            && (!self.pending_nmi || self.nmi_blocked)
    }

    /// Recomputes [`Cpu::attention`].
    pub(super) fn update_attention(&mut self) {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let event = self.pending_exception.is_some()
            || self.pending_interrupt.is_some()
            || self.pending_nmi && !self.nmi_blocked;
        self.attention = bit(event, attention::EVENT)
            | bit(self.shadow, attention::SHADOW)
            | bit(self.eflags & TF != 0, attention::TRAP)
            | bit(!self.log.is_empty(), attention::LOG)
            | bit(self.breakpoints.any(), attention::DEBUG)
            | bit(self.window_wanted, attention::WINDOW);
    }

    /// IRET was executed: the next NMI may come.
    pub(super) fn unblock_nmis(&mut self) {
        self.nmi_blocked = false;
        if self.pending_nmi {
            self.attention |= attention::EVENT;
        }
    }

    /// Blocks interrupts for one instruction.
    pub(super) fn set_shadow(&mut self) {
        self.shadow = true;
        self.attention |= attention::SHADOW;
    }

    /// SS was loaded: interrupts and debug exceptions are put off by one instruction (SDM 3A 6.8.3).
    pub(super) fn stack_shadow(&mut self) {
        self.set_shadow();
        self.trap_due = false;
        self.debug_inhibited = true;
    }

    /// The instruction in flight is done or abandoned: answers to its accesses are of no more use.
    pub(super) fn forget_accesses(&mut self) {
        self.log.clear();
        self.log_used = 0;
        self.attention &= !attention::LOG;
    }

    /// Whether a repeated string instruction makes way between two iterations.
    pub(super) fn must_pause_repeat(&self) -> bool {
        self.executed >= self.budget || self.attention != 0 || self.block_left == 0 || self.kick.is_set()
    }

    /// Answers the access that the last exit asked for.
    pub(super) fn complete(&mut self, completion: Completion) {
        let Some(asked) = self.asked.take() else { return };
        let value = match completion {
            Completion::Value(value) => value,
            Completion::Done => 0,
            Completion::GeneralProtection => {
                self.forget_accesses();
                let error_code = self.protected.then_some(0);
                self.pending_exception = Some(Raised { vector: vector::GP, error_code, address: 0 });
                self.update_attention();
                return;
            }
        };
        match asked.retires_at {
            Some(next) => self.retire(asked, next, value),
            None => {
                let value = if asked.is_read() { value } else { asked.value };
                self.log.push(Access { value: super::access::low_bytes(value, u32::from(asked.size)), ..asked });
                self.attention |= attention::LOG;
            }
        }
    }

    /// Finishes an instruction that does nothing but its one access.
    fn retire(&mut self, asked: Access, next: u64, value: u64) {
        match (asked.kind, asked.size) {
            (AccessKind::PortIn { .. }, 1) => self.put(RAX, value as u8),
            (AccessKind::PortIn { .. }, 2) => self.put(RAX, value as u16),
            (AccessKind::PortIn { .. }, _) => self.put(RAX, value as u32),
            (AccessKind::RdMsr { .. }, _) => {
                self.put(RAX, value as u32);
                self.put(RDX, (value >> 32) as u32);
            }
            _ => {}
        }
        self.set_rip(next);
        self.shadow = false;
        self.debug_inhibited = false;
        self.eflags &= !RF;
        self.trap_due = self.eflags & TF != 0;
        self.trap();
        self.update_attention();
    }
}
