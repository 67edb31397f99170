//! INIT level de-assert and nothing else.
//!
//! The architecture: since the Pentium 4 it neither resets nor starts anybody (SDM 3A 11.6.1); before, it synchronised arbitration
//! IDs.
//!
//! Kernels differ in the way: handled without a look at the destination (13.1), or refused as an invalid combination
//! (c0f35dbf19c3 on). One that takes it for INIT makes APs wait for a STARTUP, and this guest would not know; one that takes it
//! for a start is seen.
#![no_std]
#![no_main]

use runtime::report::{TEST_DEASSERT_STARTS_NOTHING, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, INIT, TRIGGER_LEVEL};

runtime::guest!("deassert-only", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(0);
    for ap in aps {
        ap.send(INIT | TRIGGER_LEVEL);
    }
    watch();
    for ap in aps {
        test(TEST_DEASSERT_STARTS_NOTHING, Some(ap), ap.arrivals().0 == 0);
    }
    done(0)
}
