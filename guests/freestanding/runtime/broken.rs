//! What a guest cannot handle.

use crate::console::Line;
use crate::power;
use crate::report::{BROKEN, BROKEN_PANIC, broken_in_words, report};

/// Reports why (`BROKEN_*`), and powers off.
pub fn broken(why: u32) -> ! {
    report(BROKEN, why);
    Line.text("broken: ").text(broken_in_words(why).unwrap_or_default()).end();
    power::off()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    broken(BROKEN_PANIC)
}
