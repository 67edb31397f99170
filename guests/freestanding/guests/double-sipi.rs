//! INIT, then two STARTUPs back to back with different vectors.
//!
//! The architecture: the first starts the AP, which does not wait for another then; the second is dropped (SDM 3A 9.4.4.1; the
//! universal start-up algorithm sends the same vector twice because of that).
//!
//! Kernels differ in when an AP ceases to wait: with the first STARTUP (boot_state, startup_cpus), or when its thread takes it, so
//! that the second overwrites the vector (illumos, KVM's local APIC).
#![no_std]
#![no_main]

use runtime::report::{TEST_FIRST_STARTUP_WINS, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{Bsp, SECOND_VECTOR, TRAMPOLINE_VECTOR, expect_at_either, require_all};

runtime::guest!("double-sipi", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_at_either(TRAMPOLINE_VECTOR, SECOND_VECTOR);
    for ap in aps {
        ap.init();
        ap.startup(TRAMPOLINE_VECTOR);
        ap.startup(SECOND_VECTOR);
    }
    require_all(aps);
    watch();
    for ap in aps {
        test(TEST_FIRST_STARTUP_WINS, Some(ap), ap.arrivals() == (1, TRAMPOLINE_VECTOR));
    }
    done(aps.len())
}
