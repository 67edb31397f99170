//! The tests of the running CPUs: the BSP wakes the APs for a job, takes its own share, and looks at what came of it.
//!
//! Which IPIs are sent, and in what order, does not depend on time: an AP begins a job because of the BSP's IPI, never
//! because it saw it coming, and there is one IPI per job and AP.

use crate::cpu::{Cpu, halt_until, pause, this_cpu};
use crate::interrupts::{TIMER, WAKE};
use crate::report::{TEST_COUNTERS, TEST_PING_PONG, TEST_SPIN_LOCK, TEST_TIMER, test};
use crate::startup::{Ap, LEVEL_ASSERT};
use crate::{pm_timer, ring};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How long a job may take, in µs. The first that fails must be over before the cell is (`[limits]` of matrix.toml), or
/// nobody hears which it was. In virtual time a job takes 2 ms, with 64 CPUs on two slow ones of a host some 50.
const LIMIT_US: u32 = 250_000;
/// How often each CPU does what [`Job::Counters`] counts.
const INCREMENTS: u32 = 100;
/// How often each CPU takes the lock.
const LOCKINGS: u32 = 50;
/// How many times its timer ticks for each CPU: once as a one-shot, then periodically.
const TICKS: u32 = 4;
/// The timer's initial count, in units of 16 ticks: 0.5 ms at bhyve's 128 MHz.
const TIMER_COUNT: u32 = 4000;

/// What the APs are woken for.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Job {
    Counters,
    SpinLock,
    Timer,
}

static JOB: AtomicU32 = AtomicU32::new(0);
/// How many APs have done it.
static FINISHED: AtomicU32 = AtomicU32::new(0);

/// The life of an AP that works: it sleeps until the BSP wakes it, does the job, and sleeps again.
pub fn serve(cpu: &Ap) -> ! {
    let mut served = 0;
    loop {
        halt_until(|| cpu.wakes.load(Ordering::Acquire) != served);
        served += 1;
        let job = JOB.load(Ordering::Acquire);
        if job == Job::Counters as u32 {
            count();
        } else if job == Job::SpinLock as u32 {
            use_lock();
        } else {
            tick_ap(cpu);
        }
        FINISHED.fetch_add(1, Ordering::AcqRel);
    }
}

/// Runs all tests, from the BSP with interrupts on; whether all passed.
pub(crate) fn test_all(aps: &[Ap]) -> bool {
    let bsp = this_cpu();
    let cpus = aps.len() as u32 + 1;
    let counters = test_counters(aps);
    let ping_pong = test(TEST_PING_PONG, None, ring::send_round(bsp, aps));
    let lock = together(aps, Job::SpinLock, use_lock) && GUARDED.read() == cpus * LOCKINGS;
    let lock = test(TEST_SPIN_LOCK, None, lock);
    let timer = together(aps, Job::Timer, || tick_bsp(bsp)) && aps.iter().chain([bsp]).all(ticked);
    let timer = test(TEST_TIMER, None, timer);
    counters && ping_pong && lock && timer
}

/// Runs the test of the counters alone, from the BSP; whether it passed.
pub fn test_counters(aps: &[Ap]) -> bool {
    let right = together(aps, Job::Counters, count) && counted_right(aps.len() as u32 + 1);
    test(TEST_COUNTERS, None, right)
}

/// All CPUs do the job; whether all the APs finished it in time.
fn together(aps: &[Ap], job: Job, own_share: impl FnOnce()) -> bool {
    FINISHED.store(0, Ordering::Relaxed);
    JOB.store(job as u32, Ordering::Release);
    for ap in aps {
        ap.send(LEVEL_ASSERT | u32::from(WAKE));
    }
    own_share();
    pm_timer::wait(LIMIT_US, || FINISHED.load(Ordering::Acquire) == aps.len() as u32)
}

// -- counters ----------------------------------------------------------------------------------------------------------

static ADDED: AtomicU32 = AtomicU32::new(0);
static EXCHANGED: AtomicU32 = AtomicU32::new(0);
static TICKETS: AtomicU32 = AtomicU32::new(0);
static TICKET_SUM: AtomicU32 = AtomicU32::new(0);

/// LOCK ADD, LOCK XADD and a LOCK CMPXCHG loop.
fn count() {
    let mut sum = 0u32;
    for _ in 0..INCREMENTS {
        ADDED.fetch_add(1, Ordering::Relaxed);
        sum = sum.wrapping_add(TICKETS.fetch_add(1, Ordering::Relaxed));
        let mut seen = EXCHANGED.load(Ordering::Relaxed);
        while let Err(now) = EXCHANGED.compare_exchange(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed) {
            seen = now;
        }
    }
    TICKET_SUM.fetch_add(sum, Ordering::Relaxed);
}

/// Nothing was lost, and every ticket was drawn once.
fn counted_right(cpus: u32) -> bool {
    let all = cpus * INCREMENTS;
    // Tickets from 0 on; their sum wraps, as it does on the CPUs.
    let ticket_sum = (u64::from(all) * u64::from(all.saturating_sub(1)) / 2) as u32;
    ADDED.load(Ordering::Relaxed) == all
        && EXCHANGED.load(Ordering::Relaxed) == all
        && TICKETS.load(Ordering::Relaxed) == all
        && TICKET_SUM.load(Ordering::Relaxed) == ticket_sum
}

// -- spin lock ---------------------------------------------------------------------------------------------------------

static LOCKED: AtomicBool = AtomicBool::new(false);
static GUARDED: Guarded = Guarded(UnsafeCell::new(0));

/// A plain variable, read and written in separate instructions.
struct Guarded(UnsafeCell<u32>);

// SAFETY: written under `LOCKED` alone.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// The value. Nobody writes at the time.
    fn read(&self) -> u32 {
        // SAFETY: the cell is alive and aligned.
        unsafe { self.0.get().read_volatile() }
    }

    /// Adds 1. The caller has the lock.
    fn increment(&self) {
        // SAFETY: as in `read`; the lock keeps everybody else away.
        unsafe { self.0.get().write_volatile(self.read() + 1) };
    }
}

fn use_lock() {
    for _ in 0..LOCKINGS {
        while LOCKED.swap(true, Ordering::Acquire) {
            while LOCKED.load(Ordering::Relaxed) {
                pause();
            }
        }
        GUARDED.increment();
        LOCKED.store(false, Ordering::Release);
    }
}

// -- timer -------------------------------------------------------------------------------------------------------------

fn ticks(cpu: &Cpu) -> u32 {
    cpu.ticks.load(Ordering::Acquire)
}

fn ticked(cpu: &Cpu) -> bool {
    ticks(cpu) >= TICKS
}

/// An AP sleeps for every tick: if there is none, the BSP notices.
fn tick_ap(cpu: &Cpu) {
    tick(cpu, |done| halt_until(done));
}

/// The BSP has nobody to notice, so it polls.
fn tick_bsp(cpu: &Cpu) {
    tick(cpu, |done| {
        pm_timer::wait(LIMIT_US, done);
    });
}

/// The timer ticks once as a one-shot, then periodically. `wait` waits for a condition.
fn tick(cpu: &Cpu, wait: impl Fn(&dyn Fn() -> bool)) {
    cpu.local_apic().start_timer(TIMER, TIMER_COUNT, false);
    wait(&|| ticks(cpu) >= 1);
    cpu.local_apic().start_timer(TIMER, TIMER_COUNT, true);
    wait(&|| ticked(cpu));
    cpu.local_apic().stop_timer();
}
