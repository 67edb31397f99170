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
use runtime::scenario::{done, start_all_at_a_time};
use runtime::{Bsp, TRAMPOLINE_VECTOR, enable_interrupts, test_counters};

runtime::guest!("many", main);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    start_all_at_a_time(aps);
    test(TEST_STARTED_ONCE, None, aps.iter().all(|ap| ap.arrivals() == (1, TRAMPOLINE_VECTOR)));
    enable_interrupts();
    test_counters(aps);
    done(aps.len())
}
