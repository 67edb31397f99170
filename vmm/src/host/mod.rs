//! The modelled host on which a cell runs: its tasks, its time, its trace, and its end.
//!
//! Kernel and frontend code sees only [`Host`]: it spawns, yields, sleeps, waits and wakes. Two hosts stand behind it:
//!
//! * [`Host::virtual_time`]: every task is a coroutine on one thread. Each task has a clock of its own; the runnable task
//!   whose clock is lowest goes next, so tasks advance side by side as on a machine with a CPU for each, and time jumps
//!   when all of them sleep. A seed decides ties and the lengths of slices: the same cell and seed give the same schedule
//!   on every machine.
//! * [`Host::threads`]: every task is a thread and time is real.
//!
//! On both, **one task of a cell runs at a time**: code between two calls that can switch ([`Host::yield_now`],
//! [`Host::sleep`], [`Host::wait`], [`Host::outside`]) is atomic. A lock must not be held across such a call, and a wake-up
//! between testing a condition and waiting for it cannot be lost. On threads, [`Host::outside`] alone lets others run at
//! the same time: that is where guests execute.

mod threads;
mod virtual_time;

use crate::trace::{Event, Seq, Trace};
use std::sync::Arc;
use std::time::Duration;

/// How a cell ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The frontend's process ended with this status.
    Exit(i32),
    /// The frontend's process was killed by SIGABRT; the failed assertion.
    Abort(String),
    /// The modelled host kernel panicked; what its console says.
    Panic(String),
    /// The time limit passed.
    Deadline,
    /// Every task waits without a time limit, and nobody is left to wake them.
    Deadlock,
    /// Our own fault: a task of ours panicked in the sense of Rust, or an engine failed.
    HarnessError(String),
}

/// What is left of a cell that ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// When, in nanoseconds of the cell's time.
    pub now_ns: u64,
    /// What happened.
    pub trace: Trace,
}

/// What a waiter waits on: any number that waiter and waker agree on (the address in `msleep`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaitChannel(pub u64);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Somebody called [`Host::wake`].
    Wakeup,
    /// The time passed.
    Timeout,
}

/// A handle on the host of one cell; clones are the same host.
#[derive(Clone)]
pub struct Host {
    // private: Arc of the runtime and the recorder
}

#[cfg(any())] // THE API TO IMPLEMENT; remove this attribute
impl Host {
    /// A host in virtual time. `seed` picks the interleaving; the cell ends with [`End::Deadline`] when the task whose
    /// turn it is has a clock past `limit_ns`.
    pub fn virtual_time(seed: u64, limit_ns: u64) -> Host;
    /// A host of threads in real time, ended with [`End::Deadline`] after `limit`.
    pub fn threads(limit: Duration) -> Host;

    /// Runs a cell: spawns `main` as the first task, and returns when the cell has ended and all its tasks are gone.
    /// Returning from `main` ends the cell with Exit(0).
    pub fn run(&self, name: &str, main: impl FnOnce() + Send + 'static) -> Finished;

    // ---- for tasks of the cell ----
    /// Starts a task (emits TaskSpawned with the current cause; the new task's first cause is that event).
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static);
    /// Ends the current task (pthread_exit). Emits TaskEnded. Unwinds; destructors run.
    pub fn exit_task(&self) -> !;
    /// Ends the cell: every other task is unwound at its next switch point, the current one now. The first call wins.
    /// Emits ProcessExit / Abort / Panic / Deadline / Deadlock accordingly.
    pub fn end(&self, end: End) -> !;
    /// Called once, from any task, when the cell ends: lets the kernel kick running vCPUs.
    pub fn on_end(&self, hook: impl Fn() + Send + 'static);

    /// The current task's clock, ns since the cell began.
    pub fn now(&self) -> u64;
    /// Virtual time: the current task has used `ns`; its clock advances, nothing switches. Threads: nothing.
    pub fn charge(&self, ns: u64);
    /// How long the current task may run now before it should call `preempt`, in ns (>= 1): in virtual time a slice whose
    /// length the seed varies; on threads a large constant (100 ms).
    pub fn slice(&self) -> u64;
    /// Yields if another task's clock is behind the current one's (virtual time); threads: lets waiters for the baton go.
    pub fn yield_now(&self);
    pub fn sleep(&self, ns: u64);
    /// Waits until `wake(channel)`, or for `timeout` ns. A waiter that is woken has its clock advanced to the waker's.
    pub fn wait(&self, channel: WaitChannel, timeout: Option<u64>) -> Woken;
    /// Wakes all who wait on the channel. Nobody waiting: nothing.
    pub fn wake(&self, channel: WaitChannel);
    /// The current task found nothing to do `streak` times in a row (PAUSE loop): in virtual time advances its clock by
    /// min(64 ns << streak, 32 µs) and yields; on threads yields the CPU.
    pub fn relax(&self, streak: u32);
    /// Runs `f` while other tasks of the cell may run (threads); plainly calls it in virtual time.
    pub fn outside<R>(&self, f: impl FnOnce() -> R) -> R;
    /// A number from the seed, for decisions that a schedule may vary.
    pub fn random(&self) -> u64;

    // ---- trace ----
    /// Records an event of the current task; its cause is the task's current cause. Returns its number.
    pub fn emit(&self, vcpu: Option<u16>, event: Event) -> Seq;
    /// As `emit`, with a cause of its own.
    pub fn emit_caused(&self, cause: Option<Seq>, vcpu: Option<u16>, event: Event) -> Seq;
    /// Sets the current task's cause, and returns the one before.
    pub fn set_cause(&self, cause: Option<Seq>) -> Option<Seq>;
    /// The current task's cause.
    pub fn cause(&self) -> Option<Seq>;
}
