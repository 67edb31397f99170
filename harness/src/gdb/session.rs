//! The conversation with GDB.

use super::registers::linear_rip;
use super::target::{Machine, tid};
use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use std::io;
use std::net::{TcpListener, TcpStream};
use vmm::engine::EngineVcpu;

type Stub = GdbStubStateMachine<'static, Machine, TcpStream>;
type Stop = MultiThreadStopReason<u64>;

/// How often a vCPU runs before the connection is looked at for an interrupt.
const RUNS_BETWEEN_LOOKS: u32 = 64;

/// A debugger and its machine.
pub(super) struct Session {
    listener: TcpListener,
    pub(super) machine: Machine,
    stub: State,
    runs: u32,
    /// The vCPU that was let go, where it was, and how many instructions it had executed: a breakpoint there has done its
    /// work until the instruction is done, which an access to a port interrupts.
    let_go: Option<(u32, u64, u64)>,
    /// How many instructions the vCPU that makes a step had executed before.
    step_from: u64,
}

/// How many instructions a vCPU has executed.
fn executed(vcpu: &dyn EngineVcpu) -> u64 {
    vcpu.instructions().unwrap_or(0)
}

enum State {
    /// Nobody has connected yet.
    Waiting,
    Connected(Stub),
    /// GDB went away, or the connection broke: the guest goes on alone.
    Gone,
}

impl Session {
    pub(super) fn new(listener: TcpListener) -> Session {
        Session { listener, machine: Machine::default(), stub: State::Waiting, runs: 0, let_go: None, step_from: 0 }
    }

    /// Whether runs have to be cut after each instruction.
    pub(super) fn watches(&self) -> bool {
        matches!(self.stub, State::Connected(_))
            && (!self.machine.breakpoints.is_empty() || self.machine.stepping.is_some())
    }

    /// Called before a vCPU runs. Returns when it may: at once, or when GDB lets it go.
    pub(super) fn before(&mut self, id: u32, vcpu: &mut dyn EngineVcpu) -> Option<Reason> {
        if let State::Waiting = self.stub {
            return Some(Reason::Start);
        }
        if let State::Gone = self.stub {
            return None;
        }
        if self.watches() {
            let (rip, count) = (linear_rip(vcpu), executed(vcpu));
            let unfinished =
                self.let_go.is_some_and(|(let_go, at, from)| let_go == id && at == rip && count <= from + 1);
            if !unfinished {
                self.let_go.take_if(|(let_go, ..)| *let_go == id);
                if self.machine.breakpoints.contains(&rip) {
                    return Some(Reason::Breakpoint);
                }
            }
            if self.machine.stepping == Some(id) && count > self.step_from {
                return Some(Reason::Stepped);
            }
        }
        self.runs = self.runs.wrapping_add(1);
        (self.runs.is_multiple_of(RUNS_BETWEEN_LOOKS) && self.interrupted()).then_some(Reason::Interrupted)
    }

    /// Whether GDB has sent something while the guest runs, which can only be an interrupt.
    fn interrupted(&mut self) -> bool {
        let State::Connected(GdbStubStateMachine::Running(running)) = &mut self.stub else { return false };
        // An error is found again, and handled, when the byte is read.
        !matches!(running.borrow_conn().peek(), Ok(None))
    }

    /// Stops the machine because of vCPU `id`, and talks to GDB until it lets the machine go.
    pub(super) fn stop(&mut self, id: u32, why: Reason) {
        if let Err(error) = self.talk(id, why) {
            // GDB went away in its own way.
            let _gone = writeln_to_stderr(&format!("gdb: {error}"));
            self.stub = State::Gone;
        }
        let rip = self.machine.vcpus.get(&id).map_or(0, |vcpu| linear_rip(&mut **vcpu.lock()));
        let counts = |id| self.machine.vcpus.get(&id).map_or(0, |vcpu| executed(&**vcpu.lock()));
        self.let_go = Some((id, rip, counts(id)));
        self.step_from = self.machine.stepping.map_or(0, counts);
    }

    fn talk(&mut self, id: u32, why: Reason) -> Result<(), String> {
        let words = |error: io::Error| error.to_string();
        let mut stub = match std::mem::replace(&mut self.stub, State::Gone) {
            State::Gone => return Ok(()),
            State::Waiting => {
                let (connection, _) = self.listener.accept().map_err(words)?;
                connection.set_nodelay(true).map_err(words)?;
                GdbStub::new(connection).run_state_machine(&mut self.machine).map_err(|error| error.to_string())?
            }
            State::Connected(GdbStubStateMachine::Running(running)) if why != Reason::Interrupted => {
                let stop = match why {
                    Reason::Breakpoint => Stop::SwBreak(tid(id)),
                    _ => Stop::SignalWithThread { tid: tid(id), signal: Signal::SIGTRAP },
                };
                running.report_stop(&mut self.machine, stop).map_err(|error| error.to_string())?
            }
            State::Connected(stub) => stub,
        };
        let mut interrupted = false;
        loop {
            stub = match stub {
                GdbStubStateMachine::Idle(mut idle) => {
                    let byte = idle.borrow_conn().read().map_err(words)?;
                    idle.incoming_data(&mut self.machine, byte)
                }
                GdbStubStateMachine::Running(mut running) if why == Reason::Interrupted && !interrupted => {
                    interrupted = true;
                    let byte = running.borrow_conn().read().map_err(words)?;
                    running.incoming_data(&mut self.machine, byte)
                }
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let stop = Stop::SignalWithThread { tid: tid(id), signal: Signal::SIGINT };
                    interrupt.interrupt_handled(&mut self.machine, Some(stop))
                }
                GdbStubStateMachine::Disconnected(_) => return Ok(()),
                running @ GdbStubStateMachine::Running(_) => {
                    self.stub = State::Connected(running);
                    return Ok(());
                }
            }
            .map_err(|error| error.to_string())?;
        }
    }

    /// Tells GDB that the machine is gone.
    pub(super) fn over(&mut self) {
        if let State::Connected(GdbStubStateMachine::Running(running)) = std::mem::replace(&mut self.stub, State::Gone)
        {
            // Whether GDB hears it is its own business now.
            let _heard = running.report_stop(&mut self.machine, Stop::Exited(0));
        }
    }
}

/// Why the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has not begun: GDB has to connect first.
    Start,
    Breakpoint,
    Stepped,
    Interrupted,
}

fn writeln_to_stderr(line: &str) -> io::Result<()> {
    use io::Write as _;
    writeln!(anstream::stderr(), "{line}")
}
