//! An NMI to an AP that waits for STARTUP.
//!
//! The architecture: it does not start the AP. Waiting for STARTUP blocks NMIs (SDM 3C, of VMX's activity state wait-for-SIPI), and whether one
//! stays pending until the AP runs is not said; so that is reported as seen. If it does, it comes in real mode, where the
//! trampoline's page has a handler for it.
//!
//! Kernels differ as for `fixed-while-waiting`, except that a local APIC disabled by software takes NMIs.
#![no_std]
#![no_main]

use runtime::interrupts::expect_nmis;
use runtime::report::{SEEN_NMI_KEPT, SEEN_NMI_LOST, TEST_NMI_STARTS_NOTHING, seen, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, LEVEL_ASSERT, NMI, TRAMPOLINE_VECTOR, expect_at, real_mode_nmis, require_all};

runtime::guest!("nmi-while-waiting", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_nmis();
    for ap in aps {
        ap.init();
        ap.send(NMI | LEVEL_ASSERT);
    }
    watch();
    for ap in aps {
        test(TEST_NMI_STARTS_NOTHING, Some(ap), ap.arrivals().0 == 0);
    }
    expect_at(TRAMPOLINE_VECTOR);
    // One by one: in real mode it is not known who counts.
    for ap in aps {
        let before = real_mode_nmis();
        ap.startup(TRAMPOLINE_VECTOR);
        ap.wait_online();
        let kept = real_mode_nmis() != before || ap.nmis() > 0;
        if ap.arrivals().0 > 0 {
            seen(if kept { SEEN_NMI_KEPT } else { SEEN_NMI_LOST }, Some(ap));
        }
    }
    require_all(aps);
    done(aps.len())
}
