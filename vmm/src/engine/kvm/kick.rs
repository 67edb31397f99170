//! How a vCPU is brought out of the guest: by others with a kick, and by the clock when its budget is spent.
//!
//! Both send a signal, at which `KVM_RUN` returns with `EINTR`. A signal that comes just before `KVM_RUN` would be lost: a
//! kick therefore sets `kvm_run.immediate_exit` first, and the clock's signal repeats until it is disarmed.
#![allow(unsafe_code, reason = "signals and timers have no safe interface that sends them to one thread")]

use super::run_page::RunPage;
use crate::engine::Kick;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use vmm_sys_util::signal::{SIGRTMIN, unblock_signal};

/// How often the clock's signal repeats.
pub(super) const REPEAT: Duration = Duration::from_micros(100);

/// Ends the runs of one vCPU.
pub(super) struct VcpuKick {
    page: Arc<RunPage>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Somebody kicked, and no run has ended for it yet.
    kicked: bool,
    /// The thread that is in a run.
    running: Option<libc::pthread_t>,
}

impl VcpuKick {
    pub(super) fn new(page: Arc<RunPage>) -> VcpuKick {
        VcpuKick { page, state: Mutex::default() }
    }

    /// Begins a run on this thread; it ends with what is returned.
    pub(super) fn running(&self) -> Running<'_> {
        // SAFETY: the call has no precondition.
        let thread = unsafe { libc::pthread_self() };
        self.state.lock().running = Some(thread);
        Running { kick: self }
    }

    /// Whether somebody has kicked since this last said so.
    pub(super) fn take(&self) -> bool {
        let mut state = self.state.lock();
        let kicked = std::mem::take(&mut state.kicked);
        if kicked {
            self.page.set_immediate_exit(false);
        }
        kicked
    }

    /// Runs `f` while the vCPU does not enter the guest.
    pub(super) fn without_guest<R>(&self, f: impl FnOnce() -> R) -> R {
        self.page.set_immediate_exit(true);
        let result = f();
        let state = self.state.lock();
        self.page.set_immediate_exit(state.kicked);
        result
    }
}

impl Kick for VcpuKick {
    fn kick(&self) {
        let mut state = self.state.lock();
        state.kicked = true;
        self.page.set_immediate_exit(true);
        if let Some(thread) = state.running {
            // SAFETY: the thread is in a run, which it cannot leave while the state is locked, so it exists. The result is
            // of no use: the signal's number is good, and nothing else can be wrong.
            let _ = unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
        }
    }
}

/// A run under way.
pub(super) struct Running<'a> {
    kick: &'a VcpuKick,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kick.state.lock().running = None;
    }
}

/// Sends the signal to this thread when `budget` has passed, and again and again, until the result is dropped.
pub(super) fn arm_clock(budget: Duration) -> io::Result<Armed> {
    thread_local! {
        /// One clock is enough for a thread: it runs one vCPU at a time.
        static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
    }
    CLOCK.with_borrow_mut(|clock| {
        let clock = match clock {
            Some(clock) => clock,
            None => clock.insert(Clock::new()?),
        };
        set_timer(clock.timer, budget, REPEAT)?;
        Ok(Armed { timer: clock.timer })
    })
}

/// The clock of this thread, armed.
pub(super) struct Armed {
    timer: libc::timer_t,
}

impl Drop for Armed {
    fn drop(&mut self) {
        // It can only fail for a timer that does not exist.
        let _ = set_timer(self.timer, Duration::ZERO, Duration::ZERO);
    }
}

/// A timer that sends the signal to the thread that made it.
struct Clock {
    timer: libc::timer_t,
}

impl Clock {
    fn new() -> io::Result<Clock> {
        install_handler()?;
        unblock_signal(SIGRTMIN()).map_err(|error| io::Error::other(error.to_string()))?;
        // SAFETY: all zeroes are a `sigevent`.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        // SAFETY: the call has no precondition.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: both pointers are to values that live during the call.
        let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) };
        if result == 0 { Ok(Clock { timer }) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is deleted once. An `Armed` cannot come after it: it is dropped in the
        // function that armed it, and this when the thread ends.
        let _ = unsafe { libc::timer_delete(self.timer) };
    }
}

fn set_timer(timer: libc::timer_t, first: Duration, repeat: Duration) -> io::Result<()> {
    let timespec = |duration: Duration| libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    };
    let setting = libc::itimerspec { it_value: timespec(first), it_interval: timespec(repeat) };
    // SAFETY: the setting lives during the call, and the timer exists; for one that did not, the call would say so.
    let result = unsafe { libc::timer_settime(timer, 0, &setting, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the signal do nothing but interrupt; once per process.
fn install_handler() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int) {}

    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes are a `sigaction`.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = interrupt as *const () as libc::sighandler_t;
        // Other calls go on by themselves when the signal comes too late; KVM_RUN never does.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action lives during the call, and its handler touches nothing.
        let result = unsafe { libc::sigaction(SIGRTMIN(), &action, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    });
    installed.map_err(io::Error::from_raw_os_error)
}
