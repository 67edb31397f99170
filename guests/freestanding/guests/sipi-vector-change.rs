//! INIT and STARTUP, an AP that halts with interrupts off, and then INIT and STARTUP at another page: CPU hotplug as Linux does it
//! (`play_dead`), and what firmware leaves to the system that it boots.
//!
//! The architecture: a halted processor takes INIT like any other, and the second STARTUP's vector counts, not the first's
//! (SDM 3A 9.4.4).
//!
//! As in `ap-restart` kernels differ in what INIT is to an AP that has been started; here its thread is not in the guest but
//! sleeps in the kernel, which must let go of it.
#![no_std]
#![no_main]

use runtime::report::{TEST_RESTARTED_AT_NEW_VECTOR, test};
use runtime::scenario::{ask_for, done, expect_of_all, start_all, watch};
use runtime::{Ap, Bsp, SECOND_VECTOR, TRAMPOLINE_VECTOR, expect_at, stop};

runtime::guest!("sipi-vector-change", main, ap = halt);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    start_all(aps, TRAMPOLINE_VECTOR);
    watch();

    expect_at(SECOND_VECTOR);
    for ap in aps {
        ap.init();
        ap.startup(SECOND_VECTOR);
    }
    let restarted = |ap: &Ap| ap.arrivals() == (2, SECOND_VECTOR);
    expect_of_all(aps, restarted);
    for ap in aps {
        test(TEST_RESTARTED_AT_NEW_VECTOR, Some(ap), restarted(ap));
    }
    done(aps.len())
}

fn halt(_: &'static Ap) -> ! {
    stop()
}
