//! As many APs as there are, by the universal start-up algorithm with its delays, all at a time: INIT to each, 10 ms once, STARTUP
//! to each, 200 µs, STARTUP to each.
//!
//! The architecture: as for `mp-spec`. In xAPIC mode 255 CPUs have an APIC ID that is not the broadcast's, in x2APIC mode more than
//! any machine has.
//!
//! Kernels differ in how many vCPUs they have (16 until the tunable hw.vmm.maxcpu), in whether STARTUP reaches one whose number does
//! not fit a mask of 256 (VM_RUN_13 on 14), and in what a second STARTUP does long after the first.
#![no_std]
#![no_main]

use runtime::report::{TEST_STARTED_ONCE, test};
use runtime::scenario::{ask_for, done};
use runtime::{Bsp, TRAMPOLINE_VECTOR, delay, enable_interrupts, expect_at, require_all, test_counters};

runtime::guest!("many", main);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_at(TRAMPOLINE_VECTOR);
    for ap in aps {
        ap.init();
    }
    delay(10_000);
    for _ in 0..2 {
        for ap in aps {
            ap.startup(TRAMPOLINE_VECTOR);
        }
        delay(200);
    }
    require_all(aps);
    test(TEST_STARTED_ONCE, None, aps.iter().all(|ap| ap.arrivals() == (1, TRAMPOLINE_VECTOR)));
    enable_interrupts();
    test_counters(aps);
    done(aps.len())
}
