//! The BSP sends INIT to itself: by its APIC ID, then by the shorthand `self`. Old systems reboot that way.
//!
//! The architecture: INIT by ID restarts the BSP at the reset vector, in the state that INIT leaves (SDM 3A 10.1.1). With
//! the shorthand INIT is no valid combination (SDM 3A table 11-3), so what comes of it is reported as seen, not judged.
//!
//! Kernels differ: an error (13.1), ignored (from 769b884e2e2 on, and the shorthand from c0f35dbf19c3 on in any case), or the BSP is
//! suspended by userspace, and nobody is left to wake it (IPI_EXIT).
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};
use runtime::report::{
    SEEN_SELF_SHORTHAND_IGNORED, SEEN_SELF_SHORTHAND_RESTARTS, TEST_BSP_RESTARTS_ON_INIT, seen, test,
};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, INIT, LEVEL_ASSERT, SELF, TRIGGER_LEVEL, send};

runtime::guest!("self-init", main, ap = beat, restarted = restarted);

/// Whether the shorthand has been used.
static BY_SHORTHAND: AtomicBool = AtomicBool::new(false);

fn main(bsp: Bsp) -> ! {
    let _aps = bsp.aps();
    ask_for(0);
    bsp.cpu().send(INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
    watch();
    test(TEST_BSP_RESTARTS_ON_INIT, Some(bsp.cpu()), false);
    by_shorthand(&bsp)
}

fn restarted(bsp: Bsp) -> ! {
    if BY_SHORTHAND.load(Ordering::Relaxed) {
        seen(SEEN_SELF_SHORTHAND_RESTARTS, Some(bsp.cpu()));
        done(0)
    }
    test(TEST_BSP_RESTARTS_ON_INIT, Some(bsp.cpu()), true);
    by_shorthand(&bsp)
}

fn by_shorthand(bsp: &Bsp) -> ! {
    BY_SHORTHAND.store(true, Ordering::Relaxed);
    send(0, SELF | INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
    watch();
    seen(SEEN_SELF_SHORTHAND_IGNORED, Some(bsp.cpu()));
    done(0)
}
