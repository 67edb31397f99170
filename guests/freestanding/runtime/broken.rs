//! What a guest cannot handle.

use crate::console::Line;
use crate::power;
use crate::report::{BROKEN, report};

/// Why a guest gives in. The number is the payload of the report `BROKEN`; an exception's is 100H + its vector.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Broken {
    /// Neither a MADT nor an MP table was found.
    NoTables = 1,
    /// The firmware tells of more CPUs than the guest can use.
    TooManyCpus = 2,
    /// An APIC ID above 1023.
    ApicIdTooBig = 3,
    /// The PM timer does not advance.
    PmTimerStuck = 4,
    /// An IPI stays pending.
    IpiPending = 5,
    /// The guest's own fault: a panic.
    Panic = 6,
}

impl Broken {
    fn in_words(self) -> &'static str {
        match self {
            Broken::NoTables => "no MADT and no MP table",
            Broken::TooManyCpus => "too many CPUs",
            Broken::ApicIdTooBig => "an APIC ID above 1023",
            Broken::PmTimerStuck => "the PM timer does not advance",
            Broken::IpiPending => "an IPI stays pending",
            Broken::Panic => "panic",
        }
    }
}

/// Reports and powers off.
pub(crate) fn broken(why: Broken) -> ! {
    report(BROKEN, why as u32);
    Line.text("broken: ").text(why.in_words()).end();
    power::off()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    broken(Broken::Panic)
}
