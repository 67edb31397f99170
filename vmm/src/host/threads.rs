//! Tasks as threads in real time, one of them running at a time.

use super::random::SplitMix64;
use super::{Body, Cause, End, Fate, Finished, Hook, NO_TASK, Runtime, WaitChannel, Woken};
use super::{run_body, task_panicked, unwind};
use crate::trace::{Event, Recorder, Seq};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a task may stay outside when the cell has ended and it has been kicked.
const GRACE: Duration = Duration::from_secs(2);

/// Slices are long: what others wait for is the baton, and guests run without it.
const SLICE_NS: u64 = 100_000_000;

/// Number of a task, in the order in which they were spawned.
type TaskId = usize;

thread_local! {
    /// The task that this thread is.
    static TASK: Cell<Option<TaskId>> = const { Cell::new(None) };
}

/// The host of threads.
pub(super) struct Threads {
    limit: Duration,
    state: Mutex<State>,
    /// The cell has ended, or a task has; its clock has stopped, or goes on.
    changed: Condvar,
}

struct State {
    tasks: Vec<Task>,
    /// The task that has the baton: the one that may run.
    holder: Option<TaskId>,
    /// Who waits for the baton, longest first. It is handed from task to task, so none can snatch it.
    queue: VecDeque<TaskId>,
    random: SplitMix64,
    recorder: Recorder,
    hooks: Vec<Hook>,
    /// How the cell ended, and when.
    end: Option<(End, u64)>,
    no_task: Arc<str>,
    /// When the cell began.
    began: Option<Instant>,
    /// Since when the cell is held, if it is: nobody gets the baton, and no time passes.
    held: Option<Instant>,
    /// For how long it was held before.
    held_before: Duration,
    /// How often somebody wanted to hold it, and how often it was let go: one after the other, in order.
    holds: u64,
    holds_over: u64,
}

struct Task {
    name: Arc<str>,
    cause: Option<Seq>,
    whereabouts: Whereabouts,
    /// Why its last wait ended.
    woken: Woken,
    /// Rings when it gets the baton.
    bell: Arc<Condvar>,
    /// Its thread; taken when it is joined.
    thread: Option<JoinHandle<()>>,
}

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// It has the baton or waits for it.
    Inside,
    /// It waits on a channel or for the cell's time to pass.
    Waiting { channel: Option<WaitChannel>, until: Option<Duration> },
    /// It runs without the baton.
    Outside,
    /// It has ended.
    Gone,
}

impl Threads {
    pub(super) fn new(limit: Duration) -> Threads {
        Threads {
            limit,
            state: Mutex::new(State {
                tasks: Vec::new(),
                holder: None,
                queue: VecDeque::new(),
                random: SplitMix64::new(0),
                recorder: Recorder::default(),
                hooks: Vec::new(),
                end: None,
                no_task: Arc::from(NO_TASK),
                began: None,
                held: None,
                held_before: Duration::ZERO,
                holds: 0,
                holds_over: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// The beginning of every call that can switch: the state, or `None` when the task is unwinding and the call has to
    /// return at once.
    fn at_switch_point(&self) -> Option<MutexGuard<'_, State>> {
        if std::thread::panicking() {
            return None;
        }
        let state = self.state.lock();
        if state.end.is_some() && TASK.get().is_some() {
            drop(state);
            unwind();
        }
        Some(state)
    }

    /// Waits for the baton, as the last in the queue.
    fn take_baton(&self, state: &mut MutexGuard<'_, State>, id: TaskId) {
        state.tasks[id].whereabouts = Whereabouts::Inside;
        state.queue.push_back(id);
        if state.holder.is_none() {
            state.pass_baton();
        }
        self.await_baton(state, id);
    }

    /// Waits for the baton, being in the queue.
    fn await_baton(&self, state: &mut MutexGuard<'_, State>, id: TaskId) {
        let bell = Arc::clone(&state.tasks[id].bell);
        while state.holder != Some(id) {
            bell.wait(state);
        }
    }

    /// Hands the baton to the next, or to whoever wants to hold the cell.
    fn hand_on_baton(&self, state: &mut MutexGuard<'_, State>) {
        state.pass_baton();
        if state.held.is_some() {
            self.changed.notify_all();
        }
    }

    /// Gives the baton up, and ends the cell when nobody can ever take it again.
    fn give_up_baton(&self, state: &mut MutexGuard<'_, State>) {
        self.hand_on_baton(state);
        let hopeless =
            |task: &Task| matches!(task.whereabouts, Whereabouts::Gone | Whereabouts::Waiting { until: None, .. });
        if state.tasks.iter().all(hopeless) {
            let gone = state.tasks.iter().all(|task| task.whereabouts == Whereabouts::Gone);
            self.end_with(state, if gone { End::Exit(0) } else { End::Deadlock });
        }
    }

    /// Ends the cell, unless it has ended: everybody who waits is to take the baton and unwind.
    fn end_with(&self, state: &mut MutexGuard<'_, State>, end: End) {
        if state.end.is_some() {
            return;
        }
        let now = state.now();
        let State { tasks, recorder, no_task, .. } = &mut **state;
        let (name, cause) = match TASK.get() {
            Some(id) => (&tasks[id].name, tasks[id].cause),
            None => (&*no_task, None),
        };
        recorder.close(now, name, &end, cause);
        state.end = Some((end, now));
        for id in 0..state.tasks.len() {
            if matches!(state.tasks[id].whereabouts, Whereabouts::Waiting { .. }) {
                state.end_wait(id, Woken::Timeout);
            }
        }
        if state.holder.is_none() {
            state.pass_baton();
        }
        self.changed.notify_all();
        let hooks = std::mem::take(&mut state.hooks);
        MutexGuard::unlocked(state, || hooks.iter().for_each(|hook| hook()));
    }

    /// The life of a task's thread.
    fn live(&self, id: TaskId, body: Body) {
        TASK.set(Some(id));
        {
            let mut state = self.state.lock();
            self.await_baton(&mut state, id);
        }
        let fate = run_body(|| {
            self.unwind_if_ended();
            body();
        });
        let mut state = self.state.lock();
        let task = &state.tasks[id];
        let (name, cause) = (Arc::clone(&task.name), task.cause);
        match fate {
            Fate::Panicked(message) => {
                let error = task_panicked(&name, &message);
                match &mut state.end {
                    // Never hidden behind another end.
                    Some((end, _)) => *end = error,
                    None => self.end_with(&mut state, error),
                }
            }
            Fate::Returned | Fate::Unwound if state.end.is_some() => {}
            Fate::Returned if id == 0 => self.end_with(&mut state, End::Exit(0)),
            Fate::Returned | Fate::Unwound => {
                let now = state.now();
                state.recorder.record(now, &name, None, Event::TaskEnded, cause);
            }
        }
        state.tasks[id].whereabouts = Whereabouts::Gone;
        self.give_up_baton(&mut state);
        self.changed.notify_all();
    }

    /// Waits until the cell has ended, by itself or because its time is up.
    fn await_end(&self, state: &mut MutexGuard<'_, State>) {
        while state.end.is_none() {
            if state.time() >= self.limit {
                self.end_with(state, End::Deadline);
                return;
            }
            wait_until(&self.changed, state, Some(self.limit));
        }
    }

    /// Waits until all tasks are gone; gives up those that stay.
    fn await_tasks(&self, state: &mut MutexGuard<'_, State>) {
        let deadline = Instant::now() + GRACE;
        while let Some(left) = state.tasks.iter().find(|task| task.whereabouts != Whereabouts::Gone) {
            let name = Arc::clone(&left.name);
            if self.changed.wait_until(state, deadline).timed_out() {
                let message = format!("Task {name} did not stop within {} s of the cell's end", GRACE.as_secs());
                if let Some((end, _)) = &mut state.end {
                    *end = End::HarnessError(message);
                }
                return;
            }
        }
        let threads: Vec<_> = state.tasks.iter_mut().filter_map(|task| task.thread.take()).collect();
        MutexGuard::unlocked(state, || {
            for thread in threads {
                // A task's panic is caught and has become the cell's end.
                let _ = thread.join();
            }
        });
    }
}

/// Waits until somebody rings or the cell's time may have come; without a time when it is so far away that the clock cannot tell, or
/// does not come before the cell goes on.
fn wait_until(bell: &Condvar, state: &mut MutexGuard<'_, State>, until: Option<Duration>) {
    let until = until.filter(|_| state.held.is_none());
    match until.and_then(|until| state.began?.checked_add(state.held_before)?.checked_add(until)) {
        Some(until) => {
            let _timed_out = bell.wait_until(state, until);
        }
        None => bell.wait(state),
    }
}

impl State {
    /// For how long the cell has run.
    fn time(&self) -> Duration {
        let until = self.held.unwrap_or_else(Instant::now);
        self.began.map_or(Duration::ZERO, |began| (until - began).saturating_sub(self.held_before))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.time().as_nanos()).unwrap_or(u64::MAX)
    }

    fn current(&self) -> TaskId {
        TASK.get().expect("only a task of the cell can switch")
    }

    fn pass_baton(&mut self) {
        self.holder = if self.held.is_some() { None } else { self.queue.pop_front() };
        if let Some(next) = self.holder {
            self.tasks[next].bell.notify_one();
        }
    }

    /// Lets a task that waits queue for the baton.
    fn end_wait(&mut self, id: TaskId, woken: Woken) {
        self.tasks[id].whereabouts = Whereabouts::Inside;
        self.tasks[id].woken = woken;
        self.queue.push_back(id);
    }

    fn record(&mut self, cause: Cause, vcpu: Option<u16>, event: Event) -> Seq {
        let now = self.now();
        let State { tasks, recorder, no_task, .. } = self;
        match TASK.get() {
            Some(id) => recorder.record(now, &tasks[id].name, vcpu, event, cause.or(tasks[id].cause)),
            None => recorder.record(now, no_task, vcpu, event, cause.or(None)),
        }
    }
}

impl Runtime for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn run(self: Arc<Self>, name: &str, main: Body) -> Finished {
        assert!(self.state.lock().began.replace(Instant::now()).is_none(), "a host runs one cell");
        Arc::clone(&self).spawn(name, main);
        let mut state = self.state.lock();
        self.await_end(&mut state);
        self.await_tasks(&mut state);
        let trace = state.recorder.take();
        let (end, now_ns) = state.end.clone().expect("`await_end` waited for it");
        Finished { end, now_ns, trace }
    }

    fn spawn(self: Arc<Self>, name: &str, body: Body) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            drop(state);
            return drop(body);
        }
        let event = state.record(Cause::Current, None, Event::TaskSpawned { name: name.to_owned() });
        let id = state.tasks.len();
        state.tasks.push(Task {
            name: Arc::from(name),
            cause: Some(event),
            whereabouts: Whereabouts::Inside,
            woken: Woken::Timeout,
            bell: Arc::new(Condvar::new()),
            thread: None,
        });
        state.queue.push_back(id);
        // Without the lock: a body that gets no thread is dropped here, and may call the host from its destructors.
        drop(state);
        let host = Arc::clone(&self);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || host.live(id, body));
        let mut state = self.state.lock();
        match thread {
            Ok(thread) => {
                state.tasks[id].thread = Some(thread);
                if state.holder.is_none() {
                    state.pass_baton();
                }
            }
            Err(error) => {
                state.tasks[id].whereabouts = Whereabouts::Gone;
                state.queue.retain(|&queued| queued != id);
                self.end_with(&mut state, End::HarnessError(format!("Cannot start a thread for task {name}: {error}")));
            }
        }
    }

    fn require_task(&self) {
        self.state.lock().current();
    }

    fn end(&self, end: End) {
        self.end_with(&mut self.state.lock(), end);
    }

    fn abandon(&self, end: End) {
        self.end(end);
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
        self.state.lock().now()
    }

    fn charge(&self, _ns: u64) {}

    fn slice(&self) -> u64 {
        SLICE_NS
    }

    fn yield_now(&self) {
        let Some(mut state) = self.at_switch_point() else { return };
        let id = state.current();
        if !state.queue.is_empty() || state.held.is_some() {
            state.queue.push_back(id);
            self.hand_on_baton(&mut state);
            self.await_baton(&mut state, id);
        }
        drop(state);
        self.unwind_if_ended();
    }

    fn wait(&self, channel: Option<WaitChannel>, timeout: Option<u64>) -> Woken {
        let Some(mut state) = self.at_switch_point() else { return Woken::Timeout };
        let id = state.current();
        let until = timeout.and_then(|ns| state.time().checked_add(Duration::from_nanos(ns)));
        let waiting = Whereabouts::Waiting { channel, until };
        state.tasks[id].whereabouts = waiting;
        self.give_up_baton(&mut state);
        let bell = Arc::clone(&state.tasks[id].bell);
        while state.tasks[id].whereabouts == waiting {
            if until.is_some_and(|until| state.time() >= until) {
                state.end_wait(id, Woken::Timeout);
                if state.holder.is_none() {
                    state.pass_baton();
                }
            } else {
                wait_until(&bell, &mut state, until);
            }
        }
        self.await_baton(&mut state, id);
        let woken = state.tasks[id].woken;
        drop(state);
        self.unwind_if_ended();
        woken
    }

    fn wake(&self, channel: WaitChannel) {
        let mut state = self.state.lock();
        for id in 0..state.tasks.len() {
            let on = state.tasks[id].whereabouts;
            if matches!(on, Whereabouts::Waiting { channel: Some(on), .. } if on == channel) {
                state.end_wait(id, Woken::Wakeup);
            }
        }
        // Called by a thread that has no baton to pass on later.
        if state.holder.is_none() {
            state.pass_baton();
        }
    }

    fn relax(&self, _streak: u32) {
        if self.leave() {
            std::thread::yield_now();
            self.come_in();
        }
        self.unwind_if_ended();
    }

    fn leave(&self) -> bool {
        let (Some(mut state), Some(id)) = (self.at_switch_point(), TASK.get()) else { return false };
        state.tasks[id].whereabouts = Whereabouts::Outside;
        self.give_up_baton(&mut state);
        true
    }

    fn come_in(&self) {
        if let Some(id) = TASK.get() {
            self.take_baton(&mut self.state.lock(), id);
        }
    }

    fn unwind_if_ended(&self) {
        drop(self.at_switch_point());
    }

    fn hold(&self) -> bool {
        let mut state = self.state.lock();
        let number = state.holds;
        state.holds += 1;
        while state.holds_over != number {
            self.changed.wait(&mut state);
        }
        state.held = Some(Instant::now());
        // A task may hold the cell from the inside, too.
        while state.holder.is_some_and(|holder| Some(holder) != TASK.get()) {
            self.changed.wait(&mut state);
        }
        let ended = state.end.is_some();
        drop(state);
        if ended {
            self.let_go();
        }
        !ended
    }

    fn let_go(&self) {
        let mut state = self.state.lock();
        let held = state.held.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.held_before += held;
        state.holds_over += 1;
        if state.holder.is_none() {
            state.pass_baton();
        }
        // Whoever waits for a time has to look at the clock again.
        state.tasks.iter().for_each(|task| {
            task.bell.notify_one();
        });
        self.changed.notify_all();
    }

    fn random(&self) -> u64 {
        self.state.lock().random.next()
    }

    fn emit(&self, cause: Cause, vcpu: Option<u16>, event: Event) -> Seq {
        self.state.lock().record(cause, vcpu, event)
    }

    fn set_cause(&self, cause: Option<Seq>) -> Option<Seq> {
        let id = TASK.get()?;
        std::mem::replace(&mut self.state.lock().tasks[id].cause, cause)
    }

    fn cause(&self) -> Option<Seq> {
        let id = TASK.get()?;
        self.state.lock().tasks[id].cause
    }
}
