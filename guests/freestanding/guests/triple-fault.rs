//! Ends in a triple fault: #UD with an IDT that has no room for any gate. #GP, and then #DF, cannot be delivered either
//! (SDM 3A 6.15, interrupt 8).
#![no_std]
#![no_main]

use core::arch::asm;
use runtime::Bsp;

runtime::guest!("triple-fault", main);

fn main(_bsp: Bsp) -> ! {
    let no_idt = [0u16; 5];
    // SAFETY: the machine ends here, as it shall.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_idt, options(noreturn)) };
}
