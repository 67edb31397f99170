//! INIT and STARTUP by the shorthand for all but self, and a count of who arrives: SeaBIOS, OVMF, test kernels. A second STARTUP
//! follows when all of them run.
//!
//! The architecture: the shorthand means every other local APIC; the destination field does not count (SDM 3A 11.6.1). A STARTUP
//! to an AP that does not wait for one does nothing.
//!
//! Kernels differ in what they take the shorthand for. 13.1 does not look at it: the destination is 0, the sender, which is an
//! error. From 769b884e2e2 on the destination counts unless userspace has asked for IPI_EXIT. With IPI_EXIT, c0f35dbf19c3 names
//! all the shorthand's CPUs to userspace at every STARTUP as long as one of them waits.
#![no_std]
#![no_main]

use runtime::report::{TEST_LATE_STARTUP_IGNORED, TEST_STARTED_ONCE, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{
    ALL_BUT_SELF, Bsp, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, expect_at, require_all, send,
};

runtime::guest!("broadcast", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_at(TRAMPOLINE_VECTOR);
    send(0, ALL_BUT_SELF | INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
    send(0, ALL_BUT_SELF | STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR);
    require_all(aps);
    for ap in aps {
        test(TEST_STARTED_ONCE, Some(ap), ap.arrivals() == (1, TRAMPOLINE_VECTOR));
    }
    send(0, ALL_BUT_SELF | STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR);
    watch();
    for ap in aps {
        test(TEST_LATE_STARTUP_IGNORED, Some(ap), ap.arrivals().0 == 1);
    }
    done(aps.len())
}
