//! Linux from 6.5 on: kicks all APs, then waits for each (`cpuhp_bringup_cpus_parallel` in kernel/cpu.c). They find their
//! stacks by their APIC IDs, several at a time.
#![no_std]
#![no_main]

#[path = "linux/kick.rs"]
mod kick;

use runtime::{Ap, Bsp};

runtime::guest!("linux-parallel", main);

fn main(bsp: Bsp) -> ! {
    bsp.bring_up(start)
}

fn start(aps: &[Ap]) {
    aps.iter().for_each(kick::kick);
    aps.iter().for_each(Ap::wait_online);
}
