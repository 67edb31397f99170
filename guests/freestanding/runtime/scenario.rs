//! Scenarios: guests that send IPIs to see what they do, and test what the architecture says about it.
//!
//! Every wait has an end: [`expect`] waits for what must happen, [`watch`] looks on for what must not.

use crate::cpu::enable_interrupts;
use crate::pm_timer;
use crate::power;
use crate::report::{APS_ASKED, DONE, report};
use crate::startup::{
    Ap, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, expect_at, require_all, wait_for_all,
};
use crate::topology::aps;

/// How long something may take that must happen, in µs: where time is real, its host may be busy.
const EXPECT_US: u32 = 100_000;
/// How long to look on for something that must not happen, in µs. bhyve 13.2 looks after a suspended vCPU every 1,000.
const WATCH_US: u32 = 3_000;

/// How long an AP that runs may go without showing it, in µs; likewise.
const BEAT_US: u32 = 20_000;

/// Waits until `done`; whether it came to be so.
pub fn expect(done: impl FnMut() -> bool) -> bool {
    pm_timer::wait(EXPECT_US, done)
}

/// Waits until it is so, or has been so, of each of these APs.
pub fn expect_of_all(aps: &[Ap], is_so: impl Fn(&Ap) -> bool) {
    wait_for_all(EXPECT_US, aps, is_so);
}

/// Gives each of these APs, which [`beat`] if they run, the time to show it: afterwards [`Ap::has_beaten`] tells.
pub fn watch_for_beats(aps: &[Ap]) {
    aps.iter().for_each(Ap::note_beats);
    wait_for_all(BEAT_US, aps, Ap::has_beaten);
}

/// Gives what must not happen the time to happen.
pub fn watch() {
    pm_timer::delay(WATCH_US);
}

/// Reports how many APs the guest is going to start.
pub fn ask_for(aps: usize) {
    report(APS_ASKED, aps as u32);
}

/// Starts these APs by the universal start-up algorithm with its delays, all at a time: INIT to each, 10 ms once, STARTUP to each,
/// 200 µs, STARTUP to each (MP specification B.4). Gives up if any is missing.
pub fn start_all_at_a_time(aps: &[Ap]) {
    ask_for(aps.len());
    expect_at(TRAMPOLINE_VECTOR);
    aps.iter().for_each(Ap::init);
    pm_timer::delay(10_000);
    for _ in 0..2 {
        aps.iter().for_each(|ap| ap.startup(TRAMPOLINE_VECTOR));
        pm_timer::delay(200);
    }
    require_all(aps);
}

/// Ends the guest, which has started so many APs and run all its tests.
pub fn done(aps: usize) -> ! {
    report_done(aps);
    power::off()
}

/// [`done`] through the debug-exit device.
pub fn debug_exit(aps: usize, value: u32) -> ! {
    report_done(aps);
    power::debug_exit(value)
}

/// Reports that the guest has started so many APs and run all its tests.
pub fn report_done(aps: usize) {
    report(DONE, aps as u32);
}

impl Ap {
    /// INIT, asserted and de-asserted (MP specification B.4).
    pub fn init(&self) {
        self.send(INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
        self.send(INIT | TRIGGER_LEVEL);
    }

    /// STARTUP at a page.
    pub fn startup(&self, vector: u32) {
        self.send(STARTUP | LEVEL_ASSERT | vector);
    }

    /// The AP after this CPU in the firmware's order, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<&'static Ap> {
        aps().get(self.number() as usize)
    }
}

/// Starts the APs at a page, and requires that all come up.
pub fn start_all(aps: &[Ap], vector: u32) {
    expect_at(vector);
    for ap in aps {
        ap.init();
        ap.startup(vector);
    }
    require_all(aps);
}

/// The life of an AP that shows that it runs, and takes interrupts.
pub fn beat(ap: &'static Ap) -> ! {
    enable_interrupts();
    loop {
        ap.beat();
    }
}
