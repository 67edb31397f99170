//! Tasks as coroutines on one thread, each with a clock of its own.
#![allow(unsafe_code, reason = "a task finds its way back to the scheduler through a pointer to its own stack")]

use super::agenda::{Agenda, Due, NEVER};
use super::random::SplitMix64;
use super::{Body, Cause, End, Fate, Finished, Hook, NO_TASK, Runtime, WaitChannel, Woken};
use super::{run_body, task_panicked, unwind};
use crate::trace::{Event, Recorder, Seq};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use parking_lot::{Mutex, MutexGuard};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ptr;
use std::sync::Arc;

/// Stack of a task, in bytes. Only what is touched takes memory; a guard page lies below.
const STACK_SIZE: usize = 128 * 1024;

/// Shortest and longest slice, in nanoseconds.
const SLICE_NS: (u64, u64) = (2_000, 8_000);

/// What the first and the longest relaxation cost, in nanoseconds.
const RELAX_NS: (u64, u64) = (64, 32_000);

/// Number of a task while it lives.
type TaskId = usize;

thread_local! {
    /// The way back to the scheduler of the task that runs on this thread; null outside any.
    static YIELDER: Cell<*const Yielder<(), ()>> = const { Cell::new(ptr::null()) };
    /// Stacks of tasks that are gone. A cell with 64 vCPUs has some 130 tasks and takes a millisecond: mapping its stacks
    /// anew would take longer than running it.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// The host in virtual time.
pub(super) struct VirtualTime {
    limit_ns: u64,
    state: Mutex<State>,
}

struct State {
    tasks: Vec<Task>,
    /// When each of `tasks` goes on. [`NEVER`] for the one that runs and for those that are gone.
    agenda: Agenda,
    /// Who waits on what, in the order in which they are woken.
    waiters: BTreeSet<(WaitChannel, TaskId)>,
    /// Entries of `tasks` that are free.
    free: Vec<TaskId>,
    /// The task that runs.
    current: Option<TaskId>,
    /// No other task goes on before this, and the cell does not end before it.
    horizon: Due,
    random: SplitMix64,
    recorder: Recorder,
    hooks: Vec<Hook>,
    /// How the cell is to end at the next turn, by the will of somebody outside.
    abandoned: Option<End>,
    /// How the cell ended, and when.
    end: Option<(End, u64)>,
    no_task: Arc<str>,
    started: bool,
}

struct Task {
    name: Arc<str>,
    main: bool,
    clock: u64,
    cause: Option<Seq>,
    /// What it waits on.
    channel: Option<WaitChannel>,
    /// Why its last wait ended.
    woken: Woken,
    /// What it runs, until it has begun.
    body: Option<Body>,
    live: bool,
}

type TaskCoroutine = Coroutine<(), (), Fate, DefaultStack>;

impl VirtualTime {
    pub(super) fn new(seed: u64, limit_ns: u64) -> VirtualTime {
        VirtualTime {
            limit_ns,
            state: Mutex::new(State {
                tasks: Vec::new(),
                agenda: Agenda::new(),
                waiters: BTreeSet::new(),
                free: Vec::new(),
                current: None,
                horizon: NEVER,
                random: SplitMix64::new(seed),
                recorder: Recorder::default(),
                hooks: Vec::new(),
                abandoned: None,
                end: None,
                no_task: Arc::from(NO_TASK),
                started: false,
            }),
        }
    }

    /// The beginning of every call that can switch: the state, or `None` when the task is unwinding and the call has to
    /// return at once.
    fn at_switch_point(&self) -> Option<MutexGuard<'_, State>> {
        if std::thread::panicking() {
            return None;
        }
        let state = self.state.lock();
        if state.end.is_some() && state.current.is_some() {
            drop(state);
            unwind();
        }
        Some(state)
    }

    /// The beginning of a call in which somebody outside can end the cell: nothing of it is in flight there.
    fn at_turn(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = self.at_switch_point()?;
        if let Some(end) = state.abandoned.take() {
            let now = state.context().1;
            self.end_at(state, now, end);
            unwind();
        }
        Some(state)
    }

    /// Lets others go on until the current task is due, and unwinds it if the cell has ended by then.
    fn switch(&self, state: MutexGuard<'_, State>) {
        drop(state);
        let yielder = YIELDER.get();
        assert!(!yielder.is_null(), "a task of virtual time runs on the thread of its cell alone");
        // SAFETY: the pointer was stored by the coroutine that runs on this thread, see `begin`, `resume` and below: it
        // points to the yielder on that coroutine's own stack, which lives until its body has returned, and this is
        // called by its body.
        unsafe { &*yielder }.suspend(());
        YIELDER.set(yielder);
        self.unwind_if_ended();
    }

    /// Picks the task that goes on next, or ends the cell.
    fn pick(&self) -> Option<TaskId> {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return None;
        }
        let (id, due) = state.agenda.first();
        let (end, now) = if due == NEVER {
            let clocks = state.tasks.iter().filter(|task| task.live).map(|task| task.clock);
            (End::Deadlock, clocks.max().unwrap_or(0))
        } else if due.0 > self.limit_ns {
            (End::Deadline, self.limit_ns)
        } else {
            state.agenda.set(id, NEVER);
            state.horizon = state.agenda.first().1.min((self.limit_ns.saturating_add(1), 0));
            state.current = Some(id);
            let task = &mut state.tasks[id];
            task.clock = due.0;
            if let Some(channel) = task.channel.take() {
                // Nobody woke it.
                state.waiters.remove(&(channel, id));
            }
            return Some(id);
        };
        self.end_at(state, now, end);
        None
    }

    /// Runs a task until it switches; takes what it leaves behind when it ends.
    fn resume(&self, id: TaskId, coroutines: &mut Vec<Option<TaskCoroutine>>) {
        if coroutines.len() <= id {
            coroutines.resize_with(id + 1, || None);
        }
        let slot = &mut coroutines[id];
        let coroutine = slot.get_or_insert_with(|| self.begin(id));
        let result = coroutine.resume(());
        YIELDER.set(ptr::null());
        if let CoroutineResult::Return(fate) = result {
            let done = slot.take().expect("it was resumed just now");
            STACKS.with_borrow_mut(|stacks| stacks.push(done.into_stack()));
            self.finish(id, fate);
        }
        self.state.lock().current = None;
    }

    /// Makes the coroutine of a task that has not begun.
    fn begin(&self, id: TaskId) -> TaskCoroutine {
        let body = self.state.lock().tasks[id].body.take().expect("a task without a coroutine has not begun");
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_SIZE).expect("address space for a small stack"));
        Coroutine::with_stack(stack, move |yielder, ()| {
            YIELDER.set(yielder);
            run_body(body)
        })
    }

    /// What follows from the way in which the current task ended.
    fn finish(&self, id: TaskId, fate: Fate) {
        let mut state = self.state.lock();
        let task = &mut state.tasks[id];
        task.live = false;
        let (name, now, cause, main) = (Arc::clone(&task.name), task.clock, task.cause, task.main);
        state.free.push(id);
        match fate {
            Fate::Panicked(message) => {
                let error = task_panicked(&name, &message);
                match &mut state.end {
                    // Never hidden behind another end.
                    Some((end, _)) => *end = error,
                    None => self.end_at(state, now, error),
                }
            }
            Fate::Returned | Fate::Unwound if state.end.is_some() => {}
            Fate::Returned if main => self.end_at(state, now, End::Exit(0)),
            Fate::Returned | Fate::Unwound => {
                state.recorder.record(now, &name, None, Event::TaskEnded, cause);
                if state.tasks.iter().all(|task| !task.live) {
                    self.end_at(state, now, End::Exit(0));
                }
            }
        }
    }

    /// Ends the cell, unless it has ended, and calls the hooks.
    fn end_at(&self, mut state: MutexGuard<'_, State>, now: u64, end: End) {
        if state.end.is_some() {
            return;
        }
        let (name, _, cause) = state.context();
        let name = Arc::clone(name);
        state.recorder.close(now, &name, &end, cause);
        state.end = Some((end, now));
        let hooks = std::mem::take(&mut state.hooks);
        drop(state);
        hooks.iter().for_each(|hook| hook());
    }

    /// Unwinds the tasks that are left when the cell has ended.
    fn tear_down(&self, coroutines: &mut Vec<Option<TaskCoroutine>>) {
        let count = self.state.lock().tasks.len();
        for id in 0..count {
            let mut state = self.state.lock();
            if !state.tasks[id].live {
                continue;
            }
            state.current = Some(id);
            match state.tasks[id].body.take() {
                // It has not begun, and what it has captured may have destructors.
                Some(body) => {
                    drop(state);
                    let fate = run_body(|| drop(body));
                    self.finish(id, fate);
                    self.state.lock().current = None;
                }
                None => {
                    drop(state);
                    // Once is enough: it was resumed in a call that unwinds it, and no other call switches any more.
                    self.resume(id, coroutines);
                }
            }
        }
    }
}

impl State {
    /// The running task's name, clock and cause.
    fn context(&self) -> (&Arc<str>, u64, Option<Seq>) {
        context(&self.tasks, self.current, &self.no_task)
    }

    fn current(&self) -> TaskId {
        self.current.expect("only a task of the cell can switch")
    }

    fn record(&mut self, cause: Cause, vcpu: Option<u16>, event: Event) -> Seq {
        let (name, now, current) = context(&self.tasks, self.current, &self.no_task);
        self.recorder.record(now, name, vcpu, event, cause.or(current))
    }

    /// Makes a task go on at a time.
    fn set_due(&mut self, id: TaskId, at: u64) {
        let due = (at, self.random.next());
        self.agenda.set(id, due);
        self.horizon = self.horizon.min(due);
    }
}

/// [`State::context`], which leaves the rest of the state to the caller.
fn context<'a>(tasks: &'a [Task], current: Option<TaskId>, no_task: &'a Arc<str>) -> (&'a Arc<str>, u64, Option<Seq>) {
    match current {
        Some(id) => (&tasks[id].name, tasks[id].clock, tasks[id].cause),
        None => (no_task, 0, None),
    }
}

impl Runtime for VirtualTime {
    fn name(&self) -> &'static str {
        "virtual time"
    }

    fn run(self: Arc<Self>, name: &str, main: Body) -> Finished {
        assert!(!std::mem::replace(&mut self.state.lock().started, true), "a host runs one cell");
        Arc::clone(&self).spawn(name, main);
        self.state.lock().tasks[0].main = true;
        let mut coroutines = Vec::new();
        while let Some(id) = self.pick() {
            self.resume(id, &mut coroutines);
        }
        self.tear_down(&mut coroutines);
        let mut state = self.state.lock();
        let trace = state.recorder.take();
        let (end, now_ns) = state.end.clone().expect("`pick` gives no task only when the cell has ended");
        Finished { end, now_ns, trace }
    }

    fn spawn(self: Arc<Self>, name: &str, body: Body) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            drop(state);
            return drop(body);
        }
        let event = state.record(Cause::Current, None, Event::TaskSpawned { name: name.to_owned() });
        let clock = state.context().1;
        let task = Task {
            name: Arc::from(name),
            main: false,
            clock,
            cause: Some(event),
            channel: None,
            woken: Woken::Timeout,
            body: Some(body),
            live: true,
        };
        let id = match state.free.pop() {
            Some(id) => {
                state.tasks[id] = task;
                id
            }
            None => {
                state.tasks.push(task);
                state.tasks.len() - 1
            }
        };
        state.set_due(id, clock);
    }

    fn require_task(&self) {
        self.state.lock().current();
    }

    fn end(&self, end: End) {
        let state = self.state.lock();
        let now = state.context().1;
        self.end_at(state, now, end);
    }

    fn abandon(&self, end: End) {
        self.state.lock().abandoned = Some(end);
    }

    fn on_end(&self, hook: Hook) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            drop(state);
            hook();
        } else {
            state.hooks.push(hook);
        }
    }

    fn now(&self) -> u64 {
        self.state.lock().context().1
    }

    fn charge(&self, ns: u64) {
        let mut state = self.state.lock();
        if let Some(id) = state.current {
            let clock = &mut state.tasks[id].clock;
            *clock = clock.saturating_add(ns);
        }
    }

    fn slice(&self) -> u64 {
        let (shortest, longest) = SLICE_NS;
        shortest + self.random() % (longest - shortest + 1)
    }

    fn yield_now(&self) {
        let Some(mut state) = self.at_turn() else { return };
        let id = state.current();
        let due = (state.tasks[id].clock, state.random.next());
        if due >= state.horizon {
            state.agenda.set(id, due);
            self.switch(state);
        }
    }

    fn wait(&self, channel: Option<WaitChannel>, timeout: Option<u64>) -> Woken {
        let Some(mut state) = self.at_turn() else { return Woken::Timeout };
        let id = state.current();
        let due = match timeout {
            Some(ns) => (state.tasks[id].clock.saturating_add(ns), state.random.next()),
            None => NEVER,
        };
        let horizon = state.horizon;
        let task = &mut state.tasks[id];
        if due < horizon {
            // Nobody goes on before, so nobody can wake it.
            task.clock = due.0;
            return Woken::Timeout;
        }
        task.channel = channel;
        task.woken = Woken::Timeout;
        state.waiters.extend(channel.map(|channel| (channel, id)));
        state.agenda.set(id, due);
        self.switch(state);
        self.state.lock().tasks[id].woken
    }

    fn wake(&self, channel: WaitChannel) {
        let mut state = self.state.lock();
        let now = state.context().1;
        while let Some(&waiter) = state.waiters.range((channel, 0)..=(channel, TaskId::MAX)).next() {
            state.waiters.remove(&waiter);
            let id = waiter.1;
            let task = &mut state.tasks[id];
            task.channel = None;
            task.woken = Woken::Wakeup;
            let at = task.clock.max(now);
            state.set_due(id, at);
        }
    }

    fn relax(&self, streak: u32) {
        let (first, longest) = RELAX_NS;
        // 2^16 is beyond the longest; the shift must not be.
        self.charge((first << streak.min(16)).min(longest));
        self.yield_now();
    }

    fn leave(&self) -> bool {
        self.unwind_if_ended();
        false
    }

    fn come_in(&self) {}

    fn unwind_if_ended(&self) {
        drop(self.at_switch_point());
    }

    fn hold(&self) -> bool {
        // The task that asks is the one that runs, and time passes only when it says so.
        !YIELDER.get().is_null() && self.state.lock().end.is_none()
    }

    fn let_go(&self) {}

    fn random(&self) -> u64 {
        self.state.lock().random.next()
    }

    fn emit(&self, cause: Cause, vcpu: Option<u16>, event: Event) -> Seq {
        self.state.lock().record(cause, vcpu, event)
    }

    fn set_cause(&self, cause: Option<Seq>) -> Option<Seq> {
        let mut state = self.state.lock();
        let id = state.current?;
        std::mem::replace(&mut state.tasks[id].cause, cause)
    }

    fn cause(&self) -> Option<Seq> {
        self.state.lock().context().2
    }
}
