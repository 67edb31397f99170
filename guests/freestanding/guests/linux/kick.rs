//! How Linux kicks one AP: `wakeup_secondary_cpu_via_init` in arch/x86/kernel/smpboot.c, with the delays that it uses on
//! processors of this century (`init_udelay` is 0: Intel family 6 on, AMD family 15 on).

use runtime::{Ap, INIT, LEVEL_ASSERT, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, clear_errors, delay};

/// Errors that mean that an IPI was not accepted. Linux ignores the redirectable-IPI bit.
const ACCEPT_ERRORS: u32 = 0xef;

/// INIT asserted, de-asserted at once, two STARTUPs with 20 µs after each.
pub fn kick(ap: &Ap) {
    clear_errors();
    ap.send(INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
    ap.send(INIT | TRIGGER_LEVEL);
    for _ in 0..2 {
        clear_errors();
        ap.send(STARTUP | TRAMPOLINE_VECTOR);
        // 10 before, and 10 after it has seen that the IPI is sent.
        delay(10);
        delay(10);
        if clear_errors() & ACCEPT_ERRORS != 0 {
            break;
        }
    }
}
