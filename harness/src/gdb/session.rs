//! The conversation with GDB.

use super::target::{Machine, StoppableVcpu, tid};
use super::wire::{Sighted, Watched, Wire};
use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use std::net::TcpListener;
use vmm::engine::{Trap, Traps};

type Stub = GdbStubStateMachine<'static, Machine, Wire>;
type Stop = MultiThreadStopReason<u64>;

/// A debugger and its machine.
pub(super) struct Session {
    listener: TcpListener,
    pub(super) machine: Machine,
    stub: State,
    /// How often GDB has let the machine go.
    pub(super) resumed: u64,
}

enum State {
    /// Nobody has connected yet.
    Waiting,
    Connected(Stub),
    /// GDB went away, or the connection broke: the guest goes on alone.
    Gone,
}

/// Why the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has not begun: GDB has to connect first.
    Start,
    Trap(Trap),
    /// GDB sent something while the guest ran, which can only be an interrupt, or went away.
    Interrupted(Sighted),
}

/// How a conversation ended.
pub(super) enum Resumption {
    /// The machine goes on.
    All,
    /// The vCPU that stopped makes one step, and the others wait for it.
    StepAlone,
    /// GDB wants the machine gone.
    Kill,
}

/// What one side has to hear of the other's end.
type Talk<T> = Result<T, String>;

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Session {
    pub(super) fn new(listener: TcpListener) -> Session {
        Session { listener, machine: Machine::default(), stub: State::Waiting, resumed: 0 }
    }

    /// Waits for GDB to connect, and returns the end of the connection that is to be watched; `None` when it has done so before.
    pub(super) fn connect(&mut self) -> Option<Watched> {
        if !matches!(self.stub, State::Waiting) {
            return None;
        }
        let connection = self.listener.accept().map_err(words).and_then(|(connection, _)| {
            let (wire, watched) = Wire::new(connection).map_err(words)?;
            Ok((GdbStub::new(wire).run_state_machine(&mut self.machine).map_err(words)?, watched))
        });
        match connection {
            Ok((stub, watched)) => {
                self.stub = State::Connected(stub);
                Some(watched)
            }
            Err(error) => {
                self.lose(&error);
                None
            }
        }
    }

    /// Whether there is a GDB that can be told of a stop.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.stub, State::Connected(_))
    }

    /// Whether something that GDB sent while the guest ran has still to be heard.
    pub(super) fn has(&mut self, sighted: Sighted) -> bool {
        match &mut self.stub {
            State::Connected(GdbStubStateMachine::Running(running)) => running.borrow_conn().has(sighted),
            _ => false,
        }
    }

    /// Tells GDB that vCPU `id` has stopped, with all others, and does what it asks for until it lets the machine go.
    pub(super) fn stop(&mut self, id: u32, why: Reason) -> Resumption {
        self.resumed += 1;
        let resumption = self.talk(id, why).unwrap_or_else(|error| {
            self.lose(&error);
            Resumption::All
        });
        for (&other, vcpu) in &self.machine.vcpus {
            vcpu.engine.lock().set_traps(&self.traps(other, other == id));
        }
        resumption
    }

    /// What vCPU `id` stops for.
    fn traps(&self, id: u32, pass: bool) -> Traps {
        if !self.is_connected() {
            return Traps::default();
        }
        let Machine { breakpoints, stepping, .. } = &self.machine;
        Traps { step: *stepping == Some(id), breakpoints: breakpoints.clone(), pass }
    }

    /// The machine has one vCPU more.
    pub(super) fn add(&mut self, id: u32, vcpu: StoppableVcpu) {
        vcpu.engine.lock().set_traps(&self.traps(id, false));
        self.machine.vcpus.insert(id, vcpu);
    }

    fn talk(&mut self, id: u32, why: Reason) -> Talk<Resumption> {
        let stub = match std::mem::replace(&mut self.stub, State::Gone) {
            State::Connected(stub) => stub,
            State::Waiting | State::Gone => return Ok(Resumption::All),
        };
        let mut stub = match (why, stub) {
            (Reason::Trap(trap), GdbStubStateMachine::Running(running)) => {
                let stop = match trap {
                    Trap::Breakpoint => Stop::SwBreak(tid(id)),
                    Trap::Step => Stop::SignalWithThread { tid: tid(id), signal: Signal::SIGTRAP },
                };
                running.report_stop(&mut self.machine, stop).map_err(words)?
            }
            (_, stub) => stub,
        };
        let mut unheard = matches!(why, Reason::Interrupted(_));
        loop {
            stub = match stub {
                GdbStubStateMachine::Idle(mut idle) => {
                    let byte = idle.borrow_conn().read().map_err(words)?;
                    idle.incoming_data(&mut self.machine, byte)
                }
                GdbStubStateMachine::Running(mut running) if unheard => {
                    unheard = false;
                    let byte = running.borrow_conn().read().map_err(words)?;
                    running.incoming_data(&mut self.machine, byte)
                }
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let stop = Stop::SignalWithThread { tid: tid(id), signal: Signal::SIGINT };
                    interrupt.interrupt_handled(&mut self.machine, Some(stop))
                }
                GdbStubStateMachine::Disconnected(gone) => {
                    return Ok(match gone.get_reason() {
                        DisconnectReason::Kill => Resumption::Kill,
                        _ => Resumption::All,
                    });
                }
                running @ GdbStubStateMachine::Running(_) => {
                    self.stub = State::Connected(running);
                    let Machine { stepping, others_wait, .. } = self.machine;
                    return Ok(if others_wait && stepping == Some(id) {
                        Resumption::StepAlone
                    } else {
                        Resumption::All
                    });
                }
            }
            .map_err(words)?;
        }
    }

    /// GDB went away in its own way.
    fn lose(&mut self, error: &str) {
        self.stub = State::Gone;
        let _ = say(&format!("gdb: {error}; the guest goes on alone"));
    }

    /// Tells GDB that the machine is gone.
    pub(super) fn over(&mut self) {
        if let State::Connected(GdbStubStateMachine::Running(running)) = std::mem::replace(&mut self.stub, State::Gone)
        {
            // Whether GDB hears it is its own business now.
            let _ = running.report_stop(&mut self.machine, Stop::Exited(0));
        }
    }
}

fn say(line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(anstream::stderr(), "{line}")
}
