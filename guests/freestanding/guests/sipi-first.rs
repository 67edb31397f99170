//! STARTUP before any INIT, then the whole sequence at another page.
//!
//! The architecture: an AP waits for STARTUP from power-up on, so that the STARTUP starts it (SDM 3A 9.4.3); the MultiProcessor
//! Specification lets it begin in the halted state as well, which INIT alone ends (B.4). So what came of it is reported as seen.
//! In either case INIT takes back what was before, and the AP runs where the STARTUP after it says.
//!
//! Kernels differ: the STARTUP is dropped (boot_state, startup_cpus), or latched until the next INIT discards it (illumos). One
//! that kept it beyond INIT would start the AP at the wrong page, at the wrong time.
#![no_std]
#![no_main]

use runtime::report::{
    SEEN_STARTED_WITHOUT_INIT, SEEN_WAITED_FOR_INIT, TEST_INIT_DISCARDS_STARTUP, TEST_STARTED_AFTER_INIT, seen, test,
};
use runtime::scenario::{ask_for, beat, done, watch, watch_for_beats};
use runtime::{Bsp, SECOND_VECTOR, TRAMPOLINE_VECTOR, expect_at, require_all};

runtime::guest!("sipi-first", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_at(TRAMPOLINE_VECTOR);
    for ap in aps {
        ap.startup(TRAMPOLINE_VECTOR);
    }
    watch();
    for ap in aps {
        let started = ap.arrivals().0 > 0;
        seen(if started { SEEN_STARTED_WITHOUT_INIT } else { SEEN_WAITED_FOR_INIT }, Some(ap));
        ap.note_arrivals();
    }

    for ap in aps {
        ap.init();
    }
    watch();
    watch_for_beats(aps);
    for ap in aps {
        test(TEST_INIT_DISCARDS_STARTUP, Some(ap), ap.new_arrivals() == 0 && !ap.has_beaten());
    }
    expect_at(SECOND_VECTOR);
    for ap in aps {
        ap.startup(SECOND_VECTOR);
    }
    require_all(aps);
    watch();
    for ap in aps {
        let started = ap.new_arrivals() == 1 && ap.arrivals().1 == SECOND_VECTOR;
        test(TEST_STARTED_AFTER_INIT, Some(ap), started);
    }
    done(aps.len())
}
