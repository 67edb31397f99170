//! How a machine is stopped for GDB, whole, and let go again.
//!
//! The vCPU that stops holds the cell: no task is in the kernel or the frontend any more, and the cell's time stands still. Then it has the
//! others come out of the guest. They cannot come far: a vCPU that is told to look before it goes on waits to hold the cell itself, and one
//! that has left the guest by itself waits to come back into the kernel. What waits in the kernel, because it is halted or was never
//! started, stays there. So GDB finds all of them at rest, as it does where they take turns.

use super::session::{Reason, Resumption, Session};
use super::wire::{Sighted, Watched};
use parking_lot::{Condvar, Mutex};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use vmm::engine::{Exit, Trap};
use vmm::host::Host;

/// For how many slices the others wait for a step: one that no trap ends, as in user mode on `kvm_pvm`, goes on together with them.
const SLICES_OF_A_STEP: usize = 100;

/// What the vCPUs of a machine and GDB share.
pub(super) struct Debugger {
    host: Host,
    pub(super) session: Mutex<Session>,
    /// vCPUs have to look before they enter the guest.
    look: AtomicBool,
    /// What GDB sent while the guest ran, until somebody has heard it.
    sighted: Mutex<Option<Sighted>>,
    /// Rings when it has been heard.
    heard: Condvar,
}

/// How a vCPU that stopped goes on.
pub(super) enum Next {
    /// Into the guest.
    Guest,
    /// It was there, while the others waited, and left it.
    Left(Exit),
    /// Not at all: the cell has ended.
    End,
}

impl Debugger {
    pub(super) fn new(listener: TcpListener, host: &Host) -> Debugger {
        Debugger {
            host: host.clone(),
            session: Mutex::new(Session::new(listener)),
            look: AtomicBool::new(true),
            sighted: Mutex::new(None),
            heard: Condvar::new(),
        }
    }

    /// Whether a vCPU must call [`Debugger::look`] before it enters the guest. One that is there already is brought out.
    pub(super) fn wants_look(&self) -> bool {
        self.look.load(Ordering::SeqCst)
    }

    /// Waits until GDB lets the machine go, if it has stopped it or wants to; `run` has vCPU `id` run.
    pub(super) fn look(self: &Arc<Debugger>, id: u32, run: impl FnMut() -> Exit) -> Next {
        self.hold(id, run, |session| {
            if let Some(watched) = session.connect() {
                let debugger = Arc::clone(self);
                // It ends with the connection.
                thread::spawn(move || debugger.watch(&watched));
                return Some(Reason::Start);
            }
            let sighted = (*self.sighted.lock())?;
            session.has(sighted).then_some(Reason::Interrupted(sighted))
        })
    }

    /// Stops the machine because vCPU `id` met a trap, unless GDB has let it go since: its traps were others then.
    pub(super) fn trapped(&self, id: u32, trap: Trap, resumed: u64, run: impl FnMut() -> Exit) -> Next {
        self.hold(id, run, |session| (session.resumed == resumed).then_some(Reason::Trap(trap)))
    }

    fn hold(&self, id: u32, mut run: impl FnMut() -> Exit, why: impl FnOnce(&mut Session) -> Option<Reason>) -> Next {
        let held = self.host.hold(|| {
            let mut session = self.session.lock();
            let mut why = why(&mut session).filter(|_| session.is_connected());
            let mut next = Next::Guest;
            if why.is_some() {
                self.bring_out(&session);
            }
            while let Some(reason) = why.take() {
                match session.stop(id, reason) {
                    Resumption::All => {}
                    Resumption::Kill => self.host.abandon("GDB killed the guest"),
                    Resumption::StepAlone => {
                        // The slice may end before the step has been told; it is over when the cell goes on.
                        for _ in 0..SLICES_OF_A_STEP {
                            match run() {
                                Exit::Budget => next = Next::Left(Exit::Budget),
                                Exit::Trap(trap) => {
                                    why = Some(Reason::Trap(trap));
                                    break;
                                }
                                exit => {
                                    next = Next::Left(exit);
                                    break;
                                }
                            }
                        }
                    }
                }
            }
            self.look.store(false, Ordering::SeqCst);
            *self.sighted.lock() = None;
            self.heard.notify_all();
            next
        });
        held.unwrap_or(Next::End)
    }

    /// Has every vCPU look before it enters the guest, and leave it if it is there.
    fn bring_out(&self, session: &Session) {
        self.look.store(true, Ordering::SeqCst);
        session.machine.leave_guest();
    }

    /// Watches the connection while the guest runs, as long as there is one.
    fn watch(self: &Arc<Debugger>, watched: &Watched) {
        loop {
            let sighted = watched.sight();
            let id = {
                let mut session = self.session.lock();
                if !session.is_connected() {
                    return;
                }
                if !session.has(sighted) {
                    continue;
                }
                *self.sighted.lock() = Some(sighted);
                self.bring_out(&session);
                session.machine.vcpus.keys().next().copied().unwrap_or(0)
            };
            // All vCPUs may be waiting in the kernel. Where they take turns, the next whose turn it is looks.
            self.look(id, || Exit::Kicked);
            let mut unheard = self.sighted.lock();
            while *unheard == Some(sighted) {
                self.heard.wait(&mut unheard);
            }
        }
    }

    /// The machine is gone.
    pub(super) fn over(&self) {
        self.session.lock().over();
        *self.sighted.lock() = None;
        self.heard.notify_all();
    }
}
