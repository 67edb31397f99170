//! What a debugger wants to be told of, and how far a vCPU is with it.

use std::collections::BTreeSet;

/// What ends runs with [`Exit::Trap`](super::Exit::Trap), for a debugger. The guest notices nothing of it: neither its memory nor its debug
/// registers are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traps {
    /// A run ends when it has executed an instruction; an exit on the way comes first.
    pub step: bool,
    /// A run ends before it executes an instruction at one of these linear addresses.
    pub breakpoints: BTreeSet<u64>,
    /// The instruction that is next now is executed although a breakpoint is set on it. So is one that was to be passed before and has not
    /// been executed since.
    pub pass: bool,
}

/// Which trap a run met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// An instruction has been executed.
    Step,
    /// The next instruction has a breakpoint.
    Breakpoint,
}

/// The traps of one vCPU, for an engine that has no instruction of it in flight when it asks.
///
/// A trap that was met is met again by the next run, until traps are set anew: whoever gets it may have to hear of something else first.
pub(super) struct Watch {
    step: bool,
    pub(super) breakpoints: BTreeSet<u64>,
    /// Where the instruction is that is executed in spite of its breakpoint.
    pass: Option<u64>,
    /// The instruction of a step has been executed.
    stepped: bool,
}

impl Watch {
    /// Traps that are set in place of others while the vCPU is at `linear`; `None` when nothing is to be watched.
    pub(super) fn new(traps: &Traps, linear: u64, before: Option<&Watch>) -> Option<Watch> {
        let Traps { step, breakpoints, pass } = traps;
        let pass = *pass || before.is_some_and(|before| before.pass == Some(linear));
        let watch =
            Watch { step: *step, breakpoints: breakpoints.clone(), pass: pass.then_some(linear), stepped: false };
        (watch.step || !watch.breakpoints.is_empty()).then_some(watch)
    }

    /// The trap that is met before the instruction at `linear`.
    pub(super) fn before(&self, linear: u64) -> Option<Trap> {
        if self.step && self.stepped {
            return Some(Trap::Step);
        }
        (self.breakpoints.contains(&linear) && self.pass != Some(linear)).then_some(Trap::Breakpoint)
    }

    /// Whether the instruction at `linear` has to be executed alone.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    pub(super) fn alone(&self, linear: u64) -> bool {
        self.step || self.breakpoints.contains(&linear)
    }

    /// An instruction has been executed.
    pub(super) fn executed(&mut self) {
        self.pass = None;
        self.stepped = true;
    }
}
