//! An AP moves the BAR of a PCI device to and fro, while the BSP sends INIT and STARTUP to it again and again: what Windows with
//! several CPUs and a frame buffer does now and then, and the two locks of D52968.
//!
//! The architecture: as for `ap-restart`. The device is 0:5.0, vendor FB5DH, device 40FBH, with a memory BAR of 4 KiB. Without it the AP
//! has nothing to move, and the INITs and STARTUPs are all there is.
//!
//! Kernels differ: moving a BAR maps memory, for which userspace locks all vCPUs of the VM; INIT holds a rendezvous with them. Until
//! f39768e52e51 each can wait for the other, for good. Where INIT does nothing to an AP that runs, the first round fails.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, Ordering};
use runtime::pci::{read_config, write_config};
use runtime::report::{SEEN_BAR_MOVES, SEEN_NO_DEVICE, TEST_RESTARTED_AT_NEW_VECTOR, seen, test};
use runtime::scenario::{ask_for, beat, done, expect, start_all};
use runtime::{Ap, Bsp, SECOND_VECTOR, TRAMPOLINE_VECTOR, delay, expect_at, serve};

runtime::guest!("bar-remap", main, ap = move_bar);

/// How often the AP that moves the BAR is restarted.
const ROUNDS: u32 = 16;
/// For how long it moves the BAR at least before it is restarted, in µs: not the same in each round.
const MOVING_US: u32 = 30;

const SLOT: u32 = 5;
const ID: u32 = 0x40fb_fb5d;
const BAR: u32 = 0x10;
const PLACES: [u32; 2] = [0xc100_0000, 0xc110_0000];

static DEVICE_IS_THERE: AtomicBool = AtomicBool::new(false);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    let there = read_config(SLOT, 0) == ID;
    DEVICE_IS_THERE.store(there, Ordering::Release);
    if there {
        write_config(SLOT, BAR, PLACES[1]);
        let moved = read_config(SLOT, BAR) & !0xf == PLACES[1];
        seen(if moved { SEEN_BAR_MOVES } else { SEEN_NO_DEVICE }, None);
    } else {
        seen(SEEN_NO_DEVICE, None);
    }
    start_all(aps, TRAMPOLINE_VECTOR);
    if let Some(ap) = aps.first() {
        let restarted = (1..=ROUNDS).all(|round| restart(ap, round));
        test(TEST_RESTARTED_AT_NEW_VECTOR, Some(ap), restarted);
    }
    done(aps.len())
}

/// Lets the AP move the BAR, and restarts it; whether it came up again where it should.
fn restart(ap: &Ap, round: u32) -> bool {
    let vector = if round % 2 == 0 { TRAMPOLINE_VECTOR } else { SECOND_VECTOR };
    delay(MOVING_US + 7 * round);
    expect_at(vector);
    // Without an exit, so that the ioctl that locks every vCPU finds this one in the guest when it sends INIT.
    for i in 0..3000 + 977 * round {
        core::hint::black_box(i);
    }
    ap.init();
    ap.startup(vector);
    expect(|| ap.arrivals() == (round + 1, vector))
}

/// The first AP moves the BAR, for as long as it lives; the others sleep.
fn move_bar(ap: &'static Ap) -> ! {
    if ap.number() != 1 {
        serve(ap)
    }
    if !DEVICE_IS_THERE.load(Ordering::Acquire) {
        beat(ap)
    }
    loop {
        for place in PLACES {
            write_config(SLOT, BAR, place);
        }
    }
}
