//! Carries out a list of operations that stands in its ROM, in which the harness puts random ones.
//!
//! What the architecture requires depends on the list; the guest tests nothing. It asks, in the end, for as many APs as have come
//! up, and says which of them still run: what kernels differ on shows when two of them run the same list.
#![no_std]
#![no_main]

use runtime::interrupts::WAKE;
use runtime::program::{
    ASSERT, DEASSERT, FIXED, INIT_OTHERS, NMI, Operation, STARTUP, STARTUP_OTHERS, WAIT, operations,
};
use runtime::report::{SEEN_RUNS, seen};
use runtime::scenario::{ask_for, beat, done, watch, watch_for_beats};
use runtime::{ALL_BUT_SELF, Bsp, LEVEL_ASSERT, SECOND_VECTOR, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, expect_at_either, send};

runtime::guest!("program", main, ap = beat);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    expect_at_either(TRAMPOLINE_VECTOR, SECOND_VECTOR);
    for Operation { code, vector, ap } in operations() {
        let init = runtime::INIT | TRIGGER_LEVEL;
        match code {
            INIT_OTHERS => {
                send(0, init | LEVEL_ASSERT | ALL_BUT_SELF);
                send(0, init | ALL_BUT_SELF);
            }
            STARTUP_OTHERS => send(0, runtime::STARTUP | LEVEL_ASSERT | ALL_BUT_SELF | vector),
            WAIT => watch(),
            _ => {
                // The list may be for a greater machine.
                let Some(ap) = (ap as usize).checked_sub(1).and_then(|ap| aps.get(ap)) else { continue };
                match code {
                    runtime::program::INIT => ap.init(),
                    ASSERT => ap.send(init | LEVEL_ASSERT),
                    DEASSERT => ap.send(init),
                    STARTUP => ap.startup(vector),
                    FIXED => ap.send(LEVEL_ASSERT | u32::from(WAKE)),
                    NMI => ap.send(runtime::NMI | LEVEL_ASSERT),
                    _ => {}
                }
            }
        }
    }
    watch();
    watch_for_beats(aps);
    let mut came = 0;
    for ap in aps {
        came += usize::from(ap.arrivals().0 > 0);
        if ap.has_beaten() {
            seen(SEEN_RUNS, Some(ap));
        }
    }
    ask_for(came);
    done(came)
}
