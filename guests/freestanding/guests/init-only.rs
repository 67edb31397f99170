//! INIT and no STARTUP.
//!
//! The architecture: after INIT an AP waits for STARTUP, for ever if need be (SDM 3A 9.4.3).
//!
//! No kernel of the history starts an AP here. One that treats INIT as a reset and nothing more lets it loose at the reset vector,
//! where it is astray, as a debugger's resume does (D46196).
#![no_std]
#![no_main]

use runtime::report::{TEST_INIT_STARTS_NOTHING, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, delay};

runtime::guest!("init-only", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(0);
    for ap in aps {
        ap.init();
    }
    // As long as a sender waits that is about to send STARTUP.
    delay(10_000);
    watch();
    for ap in aps {
        test(TEST_INIT_STARTS_NOTHING, Some(ap), ap.arrivals().0 == 0);
    }
    done(0)
}
