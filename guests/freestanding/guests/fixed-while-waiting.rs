//! A fixed interrupt to an AP that waits for STARTUP.
//!
//! The architecture: it does not start the AP, which recognises nothing but STARTUP (SDM 3A 9.4.3). INIT has disabled its local APIC
//! by software, so that the interrupt is lost (SDM 3A 11.4.7.2); whether it was is reported as seen.
//!
//! Kernels differ in whether the AP is there to be sent to: a vCPU that is not active is no destination. In another design, any
//! interrupt wakes a parked thread, and it runs (crosvm's condition variable).
#![no_std]
#![no_main]

use runtime::interrupts::WAKE;
use runtime::report::{SEEN_INTERRUPT_KEPT, SEEN_INTERRUPT_LOST, TEST_FIXED_STARTS_NOTHING, seen, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, LEVEL_ASSERT, TRAMPOLINE_VECTOR, expect_at, require_all};

runtime::guest!("fixed-while-waiting", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    for ap in aps {
        ap.init();
        ap.send(LEVEL_ASSERT | u32::from(WAKE));
    }
    watch();
    for ap in aps {
        test(TEST_FIXED_STARTS_NOTHING, Some(ap), ap.arrivals().0 == 0);
    }
    expect_at(TRAMPOLINE_VECTOR);
    for ap in aps {
        ap.startup(TRAMPOLINE_VECTOR);
    }
    require_all(aps);
    watch();
    for ap in aps {
        seen(if ap.wakes() > 0 { SEEN_INTERRUPT_KEPT } else { SEEN_INTERRUPT_LOST }, Some(ap));
    }
    done(aps.len())
}
