//! FreeBSD's order, which is the MultiProcessor Specification's universal start-up algorithm (MP specification 1.4, B.4;
//! `ipi_startup` in FreeBSD's sys/x86/x86/mp_x86.c): AP by AP, INIT asserted and de-asserted, 10 ms, two STARTUPs with
//! 200 µs after each.
#![no_std]
#![no_main]

use runtime::{Ap, Bsp, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, delay};

runtime::guest!("mp-spec", main);

fn main(bsp: Bsp) -> ! {
    bsp.bring_up(start)
}

fn start(aps: &[Ap]) {
    for ap in aps {
        ap.send(INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
        ap.send(INIT | TRIGGER_LEVEL);
        delay(10_000);
        ap.send(STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR);
        delay(200);
        ap.send(STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR);
        delay(200);
        ap.wait_online();
    }
}
