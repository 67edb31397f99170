//! Time: the ACPI power management timer (ACPI 4.8.3.3), 3.579545 MHz, of which 24 bits can be trusted.
//!
//! Every poll is one IN and one PAUSE: the PAUSE lets virtual time pass.

use crate::broken::broken;
use crate::cpu::pause;
use crate::port;
use crate::report::BROKEN_PM_TIMER_STUCK;
use core::sync::atomic::{AtomicU16, Ordering};

/// Ticks per second.
const FREQUENCY: u64 = 3_579_545;
/// How many polls may see the same value before the timer counts as dead: even at 1 ns a poll it ticks every 280.
const STUCK_POLLS: u32 = 200_000;

/// Where the timer is; bhyve's place until the FADT says otherwise.
static PORT: AtomicU16 = AtomicU16::new(0x408);

/// Uses the timer at this port (PM_TMR_BLK of the FADT).
pub(crate) fn set_port(port: u16) {
    PORT.store(port, Ordering::Relaxed);
}

/// Lets `us` microseconds pass, 1 s at most.
pub fn delay(us: u32) {
    wait(us, || false);
}

/// Waits until `done`, polling it; `false` when it is not so after `limit_us` microseconds, 1 s at most.
pub(crate) fn wait(limit_us: u32, mut done: impl FnMut() -> bool) -> bool {
    if done() {
        return true;
    }
    let port = PORT.load(Ordering::Relaxed);
    let limit = (u64::from(limit_us) * FREQUENCY).div_ceil(1_000_000) as u32;
    let mut elapsed = 0;
    let mut stuck = 0;
    let mut last = port::read_u32(port);
    loop {
        pause();
        if done() {
            return true;
        }
        if elapsed >= limit {
            return false;
        }
        let now = port::read_u32(port);
        let ticks = now.wrapping_sub(last) & 0xff_ffff;
        last = now;
        elapsed += ticks;
        stuck = if ticks == 0 { stuck + 1 } else { 0 };
        if stuck == STUCK_POLLS {
            broken(BROKEN_PM_TIMER_STUCK);
        }
    }
}
