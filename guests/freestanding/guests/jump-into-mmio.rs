//! Jumps to D0000000H, where the machine has neither memory nor a device: an instruction fetch that no VMM can answer.
#![no_std]
#![no_main]

use core::arch::asm;
use runtime::Bsp;

runtime::guest!("jump-into-mmio", main);

fn main(_bsp: Bsp) -> ! {
    // SAFETY: the address is mapped in the page tables; what happens there is what the guest is for.
    unsafe { asm!("jmp rax", in("rax") 0xd000_0000u64, options(noreturn)) };
}
