//! The order of xv6 and of the systems that learnt from it (`lapicstartap`): per AP the warm-reset vector, so that processors
//! without STARTUP find their code by way of the reset vector (MP specification B.4); INIT asserted, 200 µs, de-asserted, 100 µs; two
//! STARTUPs with 200 µs after each.
//!
//! The architecture: the shutdown code in CMOS and the vector at 40:67 mean something to firmware at the reset vector alone, where no AP
//! with a STARTUP comes.
//!
//! Kernels do not differ from what they do for `mp-spec`: the de-assert comes late, and there is the RTC's RAM besides.
#![no_std]
#![no_main]

use runtime::{
    Ap, Bsp, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, delay, port, set_warm_reset_vector,
};

/// The RTC's index and data ports.
const CMOS: [u16; 2] = [0x70, 0x71];
/// The shutdown status byte, and its value for a jump by way of 40:67.
const SHUTDOWN_STATUS: u8 = 0x0f;
const JUMP_BY_WARM_RESET_VECTOR: u8 = 0x0a;

runtime::guest!("xv6-order", main);

fn main(bsp: Bsp) -> ! {
    bsp.bring_up(start)
}

fn start(aps: &[Ap]) {
    for ap in aps {
        let [index, data] = CMOS;
        port::write_u8(index, SHUTDOWN_STATUS);
        port::write_u8(data, JUMP_BY_WARM_RESET_VECTOR);
        set_warm_reset_vector(TRAMPOLINE_VECTOR);

        ap.send(INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
        delay(200);
        ap.send(INIT | TRIGGER_LEVEL);
        delay(100);
        for _ in 0..2 {
            ap.send(STARTUP | TRAMPOLINE_VECTOR);
            delay(200);
        }
        ap.wait_online();
    }
}
