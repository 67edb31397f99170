//! The ring: a token that goes from CPU to CPU by IPI, and round again.

use crate::cpu::{CPUS, Cpu};
use crate::interrupts::TOKEN;
use crate::pm_timer;
use crate::startup::{Ap, LEVEL_ASSERT};
use core::sync::atomic::{AtomicU32, Ordering};

/// How often the token goes round.
const ROUNDS: u32 = 2;
/// How long it may take, in µs; as for a job.
const LIMIT_US: u32 = 250_000;

/// How many CPUs are in the ring, the BSP among them.
static MEMBERS: AtomicU32 = AtomicU32::new(0);

/// Sends the token round, from the BSP; whether it came back as often as it should, by way of all.
pub(crate) fn send_round(bsp: &Cpu, aps: &[Ap]) -> bool {
    MEMBERS.store(aps.len() as u32 + 1, Ordering::Release);
    send_to_next(bsp);
    let came_back = || bsp.tokens.load(Ordering::Acquire) == ROUNDS;
    pm_timer::wait(LIMIT_US, came_back) && aps.iter().all(|ap| ap.tokens.load(Ordering::Acquire) == ROUNDS)
}

/// The token has come to this CPU: it goes to the next, unless it is the BSP's and has gone round often enough.
pub(crate) fn pass_on(cpu: &Cpu) {
    let tokens = cpu.tokens.fetch_add(1, Ordering::AcqRel) + 1;
    if cpu.number() != 0 || tokens < ROUNDS {
        send_to_next(cpu);
    }
}

fn send_to_next(cpu: &Cpu) {
    let next = cpu.number() + 1;
    let next = if next < MEMBERS.load(Ordering::Acquire) { next } else { 0 };
    if let Some(next) = CPUS.get(next as usize) {
        next.send(LEVEL_ASSERT | u32::from(TOKEN));
    }
}
