//! Linux up to 6.4: kicks one AP, and waits for it before the next (`do_boot_cpu` in arch/x86/kernel/smpboot.c).
#![no_std]
#![no_main]

#[path = "linux/kick.rs"]
mod kick;

use runtime::{Ap, Bsp};

runtime::guest!("linux", main);

fn main(bsp: Bsp) -> ! {
    bsp.bring_up(start)
}

fn start(aps: &[Ap]) {
    for ap in aps {
        kick::kick(ap);
        ap.wait_online();
    }
}
