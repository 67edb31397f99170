//! Runs under a debugger: instruction by instruction, with the times and exits of a run without one.

use super::NS_PER_INSTRUCTION;
use super::code::CodeCache;
use super::mem::Bus;
use super::state::{CS, Cpu};
use crate::engine::Exit;
use crate::engine::traps::Watch;

impl Cpu {
    /// [`Cpu::run`], which ends at traps, too.
    #[cold]
    pub(super) fn run_watched(
        &mut self,
        bus: &mut Bus,
        code: &mut CodeCache,
        budget_ns: u64,
        watch: &mut Watch,
    ) -> Exit {
        let (began_ns, before) = (self.now_ns, self.executed_in_all());
        let mut elapsed_ns = 0;
        let exit = loop {
            if self.stale {
                self.derive();
            }
            if !self.has_instruction_in_flight()
                && let Some(trap) = watch.before(self.seg(CS).base.wrapping_add(self.rip()))
            {
                break Exit::Trap(trap);
            }
            self.now_ns = began_ns + elapsed_ns;
            let exit = self.run(bus, code, NS_PER_INSTRUCTION);
            if self.executed > 0 {
                watch.executed();
            }
            elapsed_ns += self.executed * NS_PER_INSTRUCTION;
            // As without traps, an instruction that would exceed the budget is not begun.
            if exit != Exit::Budget || elapsed_ns + NS_PER_INSTRUCTION > budget_ns {
                break exit;
            }
        };
        // It was one run.
        self.now_ns = began_ns;
        self.executed = self.executed_in_all() - before;
        self.executed_before = before;
        exit
    }

    fn executed_in_all(&self) -> u64 {
        self.executed_before + self.executed
    }

    /// Whether an access of the next instruction has been answered, and its others are still to come.
    fn has_instruction_in_flight(&self) -> bool {
        !self.log.is_empty()
    }
}
