//! Runs under a debugger (`KVM_SET_GUEST_DEBUG`).
//!
//! The processor's four debug registers hold breakpoints while the guest runs freely. With more breakpoints than that, for a step, and past
//! a breakpoint, instructions are executed one by one. INT3 is never written into the guest: where KVM emulates instructions it does
//! not emulate that one.
//!
//! Where an instruction leaves the guest, KVM may forget to say that it has been executed, or say that alone: `kvm_pvm` goes on
//! behind an OUT without a word, and tells no HLT. So what has been executed is worked out here.

use super::vcpu::{InFlight, Vcpu};
use super::{LMA, SHORTEST_BUDGET};
use crate::engine::traps::Watch;
use crate::engine::{EngineVcpu, Exit, Reg, Traps};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};
use std::io;
use std::time::{Duration, Instant};

/// Breakpoints of the processor.
const HARDWARE_BREAKPOINTS: usize = 4;

/// Opcode of HLT.
const HLT: u8 = 0xf4;

/// What KVM is told of a debugger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Debugging {
    /// There is none.
    #[default]
    None,
    /// Breakpoints in the debug registers.
    Breakpoints([Option<u64>; HARDWARE_BREAKPOINTS]),
    /// The run ends behind the next instruction.
    Step,
}

impl Debugging {
    fn for_kvm(self) -> kvm_guest_debug {
        let mut debug = kvm_guest_debug::default();
        match self {
            Debugging::None => {}
            Debugging::Step => debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            Debugging::Breakpoints(breakpoints) => {
                debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                for (number, linear) in breakpoints.into_iter().enumerate() {
                    if let Some(linear) = linear {
                        debug.arch.debugreg[number] = linear;
                        // Global, on execution, one byte (SDM 3B 17.2.4).
                        debug.arch.debugreg[7] |= 2 << (2 * number);
                    }
                }
            }
        }
        debug
    }
}

impl Vcpu {
    /// Sets the traps of the runs to come.
    pub(super) fn watch_for(&mut self, traps: &Traps) -> io::Result<()> {
        let linear = self.linear_rip();
        self.watch = Watch::new(traps, linear, self.watch.as_deref()).map(Box::new);
        self.leaves_behind = false;
        self.pending_exit.take_if(|exit| matches!(exit, Exit::Trap(_)));
        match self.watch {
            Some(_) => Ok(()),
            None => self.debug_as(Debugging::None),
        }
    }

    /// Runs the guest until it exits, or meets a trap of `watch`.
    pub(super) fn run_watched(&mut self, budget: Duration, watch: &mut Watch) -> Result<Exit, String> {
        let began = Instant::now();
        loop {
            let linear = self.linear_rip();
            match self.pending_exit.take() {
                // An instruction that is finished now, and that KVM was to end the run behind.
                None | Some(Exit::Trap(_)) => {}
                Some(exit) => return Ok(exit),
            }
            if std::mem::take(&mut self.leaves_behind) {
                watch.executed();
            }
            if let Some(trap) = watch.before(linear) {
                return Ok(Exit::Trap(trap));
            }
            let debugging = self.debugging(watch, linear);
            self.debug_as(debugging).map_err(|error| format!("KVM refuses to debug the guest: {error}"))?;
            let left = budget.saturating_sub(began.elapsed()).max(SHORTEST_BUDGET);
            let exit = self.run_guest(left)?;
            match exit {
                Exit::Trap(_) if debugging == Debugging::Step => {
                    watch.executed();
                    if self.has_halted_at(linear) {
                        return Ok(Exit::Hlt);
                    }
                }
                Exit::Trap(_) => {}
                Exit::Hlt | Exit::TprWrite { .. } => {
                    watch.executed();
                    return Ok(exit);
                }
                exit => {
                    self.leaves_behind = self.in_flight != InFlight::Nothing;
                    return Ok(exit);
                }
            }
            if began.elapsed() >= budget {
                return Ok(Exit::Budget);
            }
        }
    }

    /// How the instruction at `linear`, and those after it, are to be executed.
    fn debugging(&mut self, watch: &Watch, linear: u64) -> Debugging {
        let in_order = watch.breakpoints.len() <= HARDWARE_BREAKPOINTS && !watch.alone(linear);
        // A step there would be a trap in the guest.
        let untraceable = !self.abilities.user_mode_traps && self.is_in_user_mode();
        if in_order || untraceable {
            let mut breakpoints = watch.breakpoints.iter().copied();
            return Debugging::Breakpoints(std::array::from_fn(|_| breakpoints.next()));
        }
        Debugging::Step
    }

    fn is_in_user_mode(&mut self) -> bool {
        self.reg(Reg::Efer) & LMA != 0 && self.desc(Reg::Ss).access >> 5 & 3 == 3
    }

    /// Tells KVM, if it does not know.
    fn debug_as(&mut self, debugging: Debugging) -> io::Result<()> {
        if debugging == Debugging::Step {
            // KVM looks where the vCPU is, so it has to know.
            if self.registers.is_dirty() {
                self.call_without_guest().map_err(io::Error::other)?;
            }
        } else if debugging == self.debugging {
            return Ok(());
        }
        self.fd.set_guest_debug(&debugging.for_kvm())?;
        self.debugging = debugging;
        Ok(())
    }

    /// Whether the instruction at `linear`, which was executed just now, is a HLT.
    fn has_halted_at(&mut self, linear: u64) -> bool {
        let mut opcode = [0];
        self.linear_rip() == linear.wrapping_add(1)
            && self.translate(linear).is_some_and(|gpa| self.memory.read(gpa, &mut opcode))
            && opcode == [HLT]
    }
}
