//! INIT and STARTUP again, to APs that run, at another page: what a kernel does that takes a CPU off line and brings it back, and a
//! crash kernel that inherits running CPUs.
//!
//! The architecture: INIT resets a processor whatever it does, and an AP waits for STARTUP then; STARTUP starts it at its vector
//! (SDM 3A 9.4.4, 11.4.7.3).
//!
//! Kernels differ in what INIT is to an AP that runs. Nothing while boot_state is BS_RUNNING, so that the STARTUP is dropped too
//! (13.1). A note in startup_cpus, while the AP goes on, and STARTUP asks userspace to spin up an AP that it has already
//! (c0f35dbf19c3 on, without IPI_EXIT). A suspension by userspace, and STARTUP a reset (IPI_EXIT).
#![no_std]
#![no_main]

use runtime::report::{TEST_RESTARTED_AT_NEW_VECTOR, TEST_STOPS_ON_INIT, test};
use runtime::scenario::{ask_for, beat, done, expect_of_all, start_all, watch, watch_for_beats};
use runtime::{Ap, Bsp, SECOND_VECTOR, TRAMPOLINE_VECTOR, expect_at};

runtime::guest!("ap-restart", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    start_all(aps, TRAMPOLINE_VECTOR);

    expect_at(SECOND_VECTOR);
    for ap in aps {
        ap.init();
    }
    watch();
    watch_for_beats(aps);
    for ap in aps {
        test(TEST_STOPS_ON_INIT, Some(ap), !ap.has_beaten());
    }
    for ap in aps {
        ap.startup(SECOND_VECTOR);
    }
    let restarted = |ap: &Ap| ap.arrivals() == (2, SECOND_VECTOR);
    expect_of_all(aps, restarted);
    for ap in aps {
        test(TEST_RESTARTED_AT_NEW_VECTOR, Some(ap), restarted(ap));
    }
    done(aps.len())
}
