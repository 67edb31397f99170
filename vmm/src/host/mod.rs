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
//!
//! A cell ends once, by [`Host::end`] or by its host. Every task is then unwound where it can switch: its destructors run,
//! and in them the calls that can switch return at once. A destructor must therefore not loop on [`Host::wait`], and can
//! neither end the cell nor its task.

mod agenda;
mod random;
#[cfg(test)]
mod tests;
mod threads;
mod virtual_time;

pub use random::SplitMix64;

use crate::trace::{Event, Seq, Trace};
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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
    /// Whoever watches the cell has seen what it waited for, and stopped it.
    Stopped,
    /// The guest has reset its machine as often as it may, this many times.
    Rebooted(u32),
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
    runtime: Arc<dyn Runtime>,
}

impl Host {
    /// A host in virtual time. `seed` picks the interleaving; the cell ends with [`End::Deadline`] when the task whose
    /// turn it is has a clock past `limit_ns`.
    ///
    /// A loop that does nothing but [`Host::yield_now`] makes no time pass and so never ends: it has to
    /// [`Host::relax`], [`Host::charge`] or [`Host::wait`].
    #[must_use]
    pub fn virtual_time(seed: u64, limit_ns: u64) -> Host {
        Host { runtime: Arc::new(virtual_time::VirtualTime::new(seed, limit_ns)) }
    }

    /// A host of threads in real time, ended with [`End::Deadline`] after `limit`.
    #[must_use]
    pub fn threads(limit: Duration) -> Host {
        Host { runtime: Arc::new(threads::Threads::new(limit)) }
    }

    /// Runs a cell: spawns `main` as the first task, and returns when the cell has ended and all its tasks are gone.
    /// Returning from `main` ends the cell with `Exit(0)`, and so does the last task when it ends.
    ///
    /// On threads, a task that does not come back from [`Host::outside`] within two seconds after the end is given up: that
    /// is [`End::HarnessError`].
    ///
    /// # Panics
    /// When the host has run a cell before.
    pub fn run(&self, name: &str, main: impl FnOnce() + Send + 'static) -> Finished {
        Arc::clone(&self.runtime).run(name, Box::new(main))
    }

    // -- for tasks of the cell ------------------------------------------------------------------------------------------

    /// Starts a task, which takes its first turn at the present time of the current one. Emits
    /// [`Event::TaskSpawned`] with the current cause; that event is the new task's first cause.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) {
        Arc::clone(&self.runtime).spawn(name, Box::new(body));
    }

    /// Ends the current task (`pthread_exit`). Its destructors run, then [`Event::TaskEnded`] is emitted, as it is when the
    /// task's body returns.
    ///
    /// # Panics
    /// Outside any task.
    pub fn exit_task(&self) -> ! {
        self.runtime.require_task();
        unwind()
    }

    /// Ends the cell: the current task is unwound now, every other one at its next switch point. The first call wins.
    /// Emits the [`Event`] of that end; the trace is closed behind it.
    ///
    /// # Panics
    /// Outside any task.
    pub fn end(&self, end: End) -> ! {
        self.runtime.require_task();
        self.runtime.end(end);
        unwind()
    }

    /// Ends the cell with [`End::HarnessError`], from outside any of its tasks: for whoever watches it and has waited long
    /// enough. In virtual time the task that runs takes notice where it next yields or waits, so that the state of the cell
    /// is whole; a task that does neither is not stopped.
    pub fn abandon(&self, why: &str) {
        self.runtime.abandon(End::HarnessError(why.to_owned()));
    }

    /// Registers what is called once, from any task, when the cell ends: with it the kernel kicks running vCPUs. Called at
    /// once when the cell has ended already.
    pub fn on_end(&self, hook: impl Fn() + Send + 'static) {
        self.runtime.on_end(Box::new(hook));
    }

    /// The current task's clock, in nanoseconds since the cell began; 0 outside any task in virtual time.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.runtime.now()
    }

    /// In virtual time: the current task has used `ns` nanoseconds; its clock advances, nothing switches. On threads:
    /// nothing, for time passes by itself.
    pub fn charge(&self, ns: u64) {
        self.runtime.charge(ns);
    }

    /// How long the current task may go on before it should call [`Host::yield_now`], in nanoseconds, at least 1: in
    /// virtual time 2 to 8 µs, which the seed varies; on threads 100 ms.
    #[must_use]
    pub fn slice(&self) -> u64 {
        self.runtime.slice()
    }

    /// Lets others go first: in virtual time those whose clock is behind, on threads those that wait for their turn.
    pub fn yield_now(&self) {
        self.runtime.yield_now();
    }

    /// Goes on `ns` nanoseconds later.
    pub fn sleep(&self, ns: u64) {
        self.runtime.wait(None, Some(ns));
    }

    /// Waits until [`Host::wake`] on the channel, or for `timeout` nanoseconds. Who is woken goes on at the waker's time,
    /// in virtual time too.
    pub fn wait(&self, channel: WaitChannel, timeout: Option<u64>) -> Woken {
        self.runtime.wait(Some(channel), timeout)
    }

    /// Wakes all who wait on the channel. Nobody waiting: nothing.
    pub fn wake(&self, channel: WaitChannel) {
        self.runtime.wake(channel);
    }

    /// The current task found nothing to do `streak` times in a row (a PAUSE loop): in virtual time its clock advances by
    /// min(64 ns · 2^`streak`, 32 µs) and others go first; on threads the CPU is offered to others.
    pub fn relax(&self, streak: u32) {
        self.runtime.relax(streak);
    }

    /// Runs `f` while other tasks of the cell may run (threads); plainly calls it in virtual time. `f` must use nothing of
    /// the cell that other tasks use.
    pub fn outside<R>(&self, f: impl FnOnce() -> R) -> R {
        /// Comes back in when `f` panics, too.
        struct Outside<'a>(&'a dyn Runtime, bool);
        impl Drop for Outside<'_> {
            fn drop(&mut self) {
                if self.1 {
                    self.0.come_in();
                }
            }
        }
        let left = self.runtime.leave();
        let outside = Outside(&*self.runtime, left);
        let result = f();
        drop(outside);
        self.runtime.unwind_if_ended();
        result
    }

    /// Runs `f` while the cell stands still, for a debugger: no other task is in the kernel or the frontend, and no time of the
    /// cell passes, however long `f` takes. Tasks that are [`Host::outside`] are not stopped there, but cannot come back. `None`
    /// without having run `f` when the cell has ended, and in virtual time outside any task, where the cell stands still for nobody.
    ///
    /// `f` must not call what can switch.
    pub fn hold<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        /// Lets go when `f` panics, too.
        struct Held<'a>(&'a dyn Runtime);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.0.let_go();
            }
        }
        let _held = self.runtime.hold().then(|| Held(&*self.runtime))?;
        Some(f())
    }

    /// A number from the seed, for decisions that a schedule may vary.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.runtime.random()
    }

    // -- trace ----------------------------------------------------------------------------------------------------------

    /// Records an event of the current task; its cause is the task's current cause. Returns its number, which may stand
    /// for no event once the trace is full or the cell has ended, and is then no cause either.
    pub fn emit(&self, vcpu: Option<u16>, event: Event) -> Seq {
        self.runtime.emit(Cause::Current, vcpu, event)
    }

    /// As [`Host::emit`], with a cause of its own.
    pub fn emit_caused(&self, cause: Option<Seq>, vcpu: Option<u16>, event: Event) -> Seq {
        self.runtime.emit(Cause::Given(cause), vcpu, event)
    }

    /// Sets the current task's cause, and returns the one before.
    pub fn set_cause(&self, cause: Option<Seq>) -> Option<Seq> {
        self.runtime.set_cause(cause)
    }

    /// The current task's cause.
    #[must_use]
    pub fn cause(&self) -> Option<Seq> {
        self.runtime.cause()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.runtime.name())
    }
}

/// What a task runs.
type Body = Box<dyn FnOnce() + Send>;

/// What is called when a cell ends.
type Hook = Box<dyn Fn() + Send>;

/// The task name of events that happen outside any task.
const NO_TASK: &str = "host";

/// Where the cause of an event comes from.
#[derive(Clone, Copy)]
enum Cause {
    /// From the current task.
    Current,
    /// From the caller.
    Given(Option<Seq>),
}

impl Cause {
    fn or(self, current: Option<Seq>) -> Option<Seq> {
        match self {
            Cause::Current => current,
            Cause::Given(cause) => cause,
        }
    }
}

/// What stands behind a [`Host`]; the methods are those of [`Host`] where nothing else is said.
trait Runtime: Send + Sync {
    fn name(&self) -> &'static str;
    fn run(self: Arc<Self>, name: &str, main: Body) -> Finished;
    fn spawn(self: Arc<Self>, name: &str, body: Body);
    /// Panics outside any task.
    fn require_task(&self);
    /// Ends the cell, but does not unwind the current task.
    fn end(&self, end: End);
    /// Ends the cell from outside any task.
    fn abandon(&self, end: End);
    fn on_end(&self, hook: Hook);
    fn now(&self) -> u64;
    fn charge(&self, ns: u64);
    fn slice(&self) -> u64;
    fn yield_now(&self);
    /// Waits on a channel, or on none: then for the time alone.
    fn wait(&self, channel: Option<WaitChannel>, timeout: Option<u64>) -> Woken;
    fn wake(&self, channel: WaitChannel);
    fn relax(&self, streak: u32);
    /// Lets other tasks run while the current one is outside; `false` if it stays in after all.
    fn leave(&self) -> bool;
    /// Undoes a [`Runtime::leave`] that returned `true`. Never unwinds.
    fn come_in(&self);
    /// Unwinds the current task if the cell has ended, unless it is unwinding already.
    fn unwind_if_ended(&self);
    /// Stops the cell and its time; `false` if it cannot be.
    fn hold(&self) -> bool;
    /// Undoes a [`Runtime::hold`] that returned `true`.
    fn let_go(&self);
    fn random(&self) -> u64;
    fn emit(&self, cause: Cause, vcpu: Option<u16>, event: Event) -> Seq;
    fn set_cause(&self, cause: Option<Seq>) -> Option<Seq>;
    fn cause(&self) -> Option<Seq>;
}

/// What travels up the stack of a task that has to end.
struct Unwind;

/// Ends the current task from within.
fn unwind() -> ! {
    // Not `panic!`: the hook has nothing to say about a task that ends as it should.
    resume_unwind(Box::new(Unwind))
}

/// What became of a task's body.
enum Fate {
    Returned,
    Unwound,
    /// It panicked in the sense of Rust; the message.
    Panicked(String),
}

/// Runs a task's body to its end, whatever that is.
fn run_body(body: impl FnOnce()) -> Fate {
    // Unwind safe: what the body shares with others is the cell, which ends with a panic.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => Fate::Returned,
        Err(payload) if payload.is::<Unwind>() => Fate::Unwound,
        Err(payload) => Fate::Panicked(panic_message(&*payload)),
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

/// The end of a cell whose task panicked in the sense of Rust.
fn task_panicked(task: &str, message: &str) -> End {
    End::HarnessError(format!("Task {task} panicked: {message}"))
}
