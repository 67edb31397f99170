//! INIT and STARTUP to the physical destination of everybody: FFH in xAPIC mode, FFFFFFFFH in x2APIC mode.
//!
//! The architecture: that is every local APIC, the sender's among them (SDM 3A 11.6.2.1, 11.12.9). So INIT restarts the BSP at the
//! reset vector, while the APs wait for STARTUP; the BSP sends that from there, and takes none itself, for it does not wait. Few
//! systems dare; those that mean all but self say so by the shorthand (`broadcast`).
//!
//! Kernels differ: the destination is no vCPU's number and an error (13.1), or out of range and ignored (from 769b884e2e2 on);
//! with IPI_EXIT it is all active vCPUs, and userspace suspends the BSP with the rest, for good.
#![no_std]
#![no_main]

use runtime::report::{TEST_BSP_RESTARTS_ON_INIT, TEST_STARTED_ONCE, test};
use runtime::scenario::{ask_for, beat, done, watch};
use runtime::{
    Ap, Bsp, EVERYBODY, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, expect_at, require_all, send,
};

runtime::guest!("broadcast-ff", main, ap = beat, restarted = restarted);

fn main(bsp: Bsp) -> ! {
    ask_for(bsp.aps().len());
    send(EVERYBODY, INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
    watch();
    go_on(&bsp, false)
}

fn restarted(bsp: Bsp) -> ! {
    go_on(&bsp, true)
}

fn go_on(bsp: &Bsp, restarted: bool) -> ! {
    test(TEST_BSP_RESTARTS_ON_INIT, Some(bsp.cpu()), restarted);
    let aps: &[Ap] = runtime::aps();
    expect_at(TRAMPOLINE_VECTOR);
    send(EVERYBODY, STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR);
    require_all(aps);
    watch();
    for ap in aps {
        test(TEST_STARTED_ONCE, Some(ap), ap.arrivals() == (1, TRAMPOLINE_VECTOR));
    }
    done(aps.len())
}
