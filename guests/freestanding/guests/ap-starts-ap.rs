//! The BSP starts the first AP, which starts the second, and so on: firmware that wakes its packages in a tree, a hypervisor
//! whose CPU 0 is not the host's.
//!
//! The architecture: any processor may send INIT and STARTUP (MP specification B.4; SDM 3A 11.6.1). With two CPUs nothing is
//! tested beyond what the BSP does.
//!
//! Kernels differ in whom they let send: the BSP alone, for another it is an error (13.1), or everybody (from 0bda8d3e9f7a on). And
//! userspace of 13.1 asserts that it is the BSP's thread that asks for an AP.
#![no_std]
#![no_main]

use runtime::scenario::{ask_for, beat, done};
use runtime::{Ap, Bsp, TRAMPOLINE_VECTOR, expect_at, require_all};

runtime::guest!("ap-starts-ap", main, ap = start_the_next);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    expect_at(TRAMPOLINE_VECTOR);
    start_after(bsp.cpu());
    require_all(aps);
    done(aps.len())
}

fn start_the_next(ap: &'static Ap) -> ! {
    start_after(ap);
    beat(ap)
}

fn start_after(cpu: &Ap) {
    if let Some(next) = cpu.next() {
        next.init();
        next.startup(TRAMPOLINE_VECTOR);
    }
}
