//! A kernel for Multiboot loaders: prints what it is told, starts every AP, and ends through the debug-exit device (QEMU's
//! `isa-debug-exit` at F4H) with 10H, which makes the status 21H; where there is no such device, it powers off.
#![no_std]
#![no_main]

use runtime::scenario::{ask_for, debug_exit, start_all};
use runtime::{Bsp, TRAMPOLINE_VECTOR, enable_interrupts, multiboot, test_counters};

runtime::guest!("multiboot-test", main);

/// What is written to the debug-exit device when everything was right, and when something was not.
const PASSED: u32 = 0x10;
const FAILED: u32 = 0x11;

fn main(bsp: Bsp) -> ! {
    let told = multiboot::tell().is_some();
    let aps = bsp.aps();
    ask_for(aps.len());
    start_all(aps, TRAMPOLINE_VECTOR);
    enable_interrupts();
    let counted = test_counters(aps);
    debug_exit(aps.len(), if told && counted { PASSED } else { FAILED })
}
