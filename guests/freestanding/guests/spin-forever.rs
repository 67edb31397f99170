//! Spins for ever with interrupts off: no PAUSE, no HLT, no exit, and not a jump to itself, which an engine could take for
//! idling.
#![no_std]
#![no_main]

use core::arch::asm;
use runtime::Bsp;

runtime::guest!("spin-forever", main);

fn main(_bsp: Bsp) -> ! {
    // SAFETY: counts in a register.
    unsafe { asm!("cli", "2:", "add rax, 1", "jmp 2b", options(noreturn)) };
}
