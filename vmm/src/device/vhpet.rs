//! The high precision event timer (`vhpet.c`; IA-PC HPET specification 1.0a): a 32-bit counter at 2²⁴ Hz and eight timers,
//! each with the pins 24 to 31 of the I/O APIC and messages of its own. There is no legacy replacement routing.

use super::IrqState;
use super::clock::Frequency;
use super::message::Message;
use serde::{Deserialize, Serialize};

/// `VHPET_BASE`: where the registers are.
pub const VHPET_BASE: u64 = 0xfed0_0000;

/// The general capabilities register: the period of a tick in femtoseconds, Intel's vendor number, a 32-bit counter, eight
/// timers, revision 1. `VM_GET_HPET_CAPABILITIES` returns its low half.
pub const CAPABILITIES: u64 = (FEMTOSECONDS_PER_S / FREQUENCY_HZ) << 32 | 0x8086 << 16 | (TIMERS as u64 - 1) << 8 | 1;

const FEMTOSECONDS_PER_S: u64 = 1_000_000_000_000_000;
const FREQUENCY_HZ: u64 = 1 << 24;
const FREQUENCY: Frequency = Frequency::hz(FREQUENCY_HZ);
const TIMERS: usize = 8;

const REG_CAPABILITIES: u16 = 0x00;
const REG_CONFIG: u16 = 0x10;
const REG_STATUS: u16 = 0x20;
const REG_COUNTER: u16 = 0xf0;
/// The registers of timer n begin at 0x100 + 0x20 n.
const REG_TIMERS: u16 = 0x100;
const REG_TIMERS_END: u16 = REG_TIMERS + 0x20 * TIMERS as u16;
const REG_TIMER_CONFIG: u16 = 0x00;
const REG_TIMER_COMPARATOR: u16 = 0x08;
const REG_TIMER_FSB: u16 = 0x10;

/// General configuration: the counter counts.
const CONFIG_ENABLE: u64 = 1 << 0;

const TIMER_LEVEL: u64 = 1 << 1;
const TIMER_INTERRUPT: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
const TIMER_CAN_BE_PERIODIC: u64 = 1 << 4;
const TIMER_CAN_COUNT_64_BITS: u64 = 1 << 5;
const TIMER_SET_COMPARATOR: u64 = 1 << 6;
const TIMER_32_BITS: u64 = 1 << 8;
const TIMER_ROUTE: u64 = 0x1f << 9;
const TIMER_FSB: u64 = 1 << 14;
const TIMER_CAN_FSB: u64 = 1 << 15;
/// The pins that a timer can be routed to: 24 to 31.
const TIMER_PINS: u64 = 0xff00_0000 << 32;
const TIMER_READ_ONLY: u64 = 0xffff_ffff << 32 | TIMER_CAN_FSB | TIMER_CAN_COUNT_64_BITS | TIMER_CAN_BE_PERIODIC;

/// What the HPET asks of the I/O APIC and the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// A pin of the I/O APIC changes.
    Pin(i32, IrqState),
    /// A message goes out.
    Message(Message),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Timer {
    config: u64,
    fsb: u64,
    comparator: u32,
    /// What a periodic timer adds to its comparator each time; 0 in a one-shot timer.
    rate: u32,
    /// Whether the timer's level-triggered interrupt is asserted: its bit of the status register.
    asserted: bool,
    /// When the counter reaches the comparator, in nanoseconds. `None` while the counter stands still.
    due: Option<u64>,
}

impl Timer {
    fn is(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// The pin of the I/O APIC that the timer is routed to, 0 if to none.
    fn pin(&self) -> i32 {
        if self.is(TIMER_FSB) { 0 } else { ((self.config & TIMER_ROUTE) >> 9) as i32 }
    }

    /// `vhpet_timer_interrupt`.
    fn interrupt(&mut self) -> Option<Interrupt> {
        if !self.is(TIMER_INTERRUPT) || self.asserted {
            return None;
        }
        if self.is(TIMER_FSB) {
            return Message::from_msi(self.fsb >> 32, self.fsb & 0xffff_ffff).ok().map(Interrupt::Message);
        }
        if self.pin() == 0 {
            return None;
        }
        self.asserted = self.is(TIMER_LEVEL);
        Some(Interrupt::Pin(self.pin(), if self.asserted { IrqState::Assert } else { IrqState::Pulse }))
    }

    /// De-asserts the timer's interrupt, if it is asserted, at the pin where that happened.
    fn deassert(&mut self, pin: i32) -> Option<Interrupt> {
        std::mem::take(&mut self.asserted).then_some(Interrupt::Pin(pin, IrqState::Deassert))
    }

    /// Moves a periodic timer's comparator past the counter, by whole periods.
    fn adjust_comparator(&mut self, counter: u32) {
        if let Some(periods) = counter.wrapping_sub(self.comparator).checked_div(self.rate) {
            self.comparator = self.comparator.wrapping_add(periods.wrapping_add(1).wrapping_mul(self.rate));
        }
    }

    /// `vhpet_timer_update_config`.
    fn write_config(&mut self, data: u64, mask: u64) -> Option<Interrupt> {
        let old_pin = self.pin();
        let old = self.config;
        let fixed = TIMER_READ_ONLY | TIMER_32_BITS;
        self.config = merge(old, data, mask) & !fixed | old & TIMER_READ_ONLY;
        if self.config == old {
            return None;
        }
        // A route that is not offered is none.
        if self.pin() != 0 && self.config >> 32 & 1 << self.pin() == 0 {
            self.config &= !TIMER_ROUTE;
        }
        if !self.is(TIMER_PERIODIC) {
            self.rate = 0;
        }
        // An asserted interrupt that could not be taken back any more is taken back now.
        if !self.is(TIMER_INTERRUPT) || !self.is(TIMER_LEVEL) || self.pin() != old_pin {
            return self.deassert(old_pin);
        }
        None
    }

    /// Returns whether the comparator or the rate changed.
    fn write_comparator(&mut self, data: u64, mask: u64) -> bool {
        let before = (self.comparator, self.rate);
        if self.is(TIMER_PERIODIC) {
            self.rate = merge(self.rate.into(), data, mask) as u32;
            if self.is(TIMER_SET_COMPARATOR) {
                self.comparator = self.rate;
            }
        } else {
            self.comparator = merge(self.comparator.into(), data, mask) as u32;
        }
        self.config &= !TIMER_SET_COMPARATOR;
        (self.comparator, self.rate) != before
    }
}

/// The HPET of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vhpet {
    enabled: bool,
    /// The counter at `base`, or for good while it stands still.
    counter_base: u32,
    /// Nanoseconds.
    base: u64,
    timers: [Timer; TIMERS],
}

impl Default for Vhpet {
    fn default() -> Vhpet {
        Vhpet::new()
    }
}

impl Vhpet {
    /// `vhpet_init`: the counter stands at 0.
    #[must_use]
    pub fn new() -> Vhpet {
        let timer = Timer {
            config: TIMER_PINS | TIMER_CAN_BE_PERIODIC | TIMER_CAN_FSB,
            fsb: 0,
            comparator: u32::MAX,
            rate: 0,
            asserted: false,
            due: None,
        };
        Vhpet { enabled: false, counter_base: 0, base: 0, timers: std::array::from_fn(|_| timer.clone()) }
    }

    /// Reads `size` bytes at `offset`: 0 unless they are 4 or 8, naturally aligned.
    #[must_use]
    pub fn mmio_read(&self, offset: u16, size: u8, now: u64) -> u64 {
        let Some(mask) = access_mask(offset, size) else {
            return 0;
        };
        let register = match offset & !7 {
            REG_CAPABILITIES => CAPABILITIES,
            REG_CONFIG => u64::from(self.enabled) * CONFIG_ENABLE,
            REG_STATUS => self.timers.iter().rev().fold(0, |status, timer| status << 1 | u64::from(timer.asserted)),
            REG_COUNTER => self.counter(now).into(),
            register => timer_register(register).map_or(0, |(index, register)| match (&self.timers[index], register) {
                (timer, REG_TIMER_CONFIG) => timer.config,
                (timer, REG_TIMER_COMPARATOR) => timer.comparator.into(),
                (timer, REG_TIMER_FSB) => timer.fsb,
                _ => 0,
            }),
        };
        (register & mask) >> (mask.trailing_zeros())
    }

    /// Writes `size` bytes at `offset`: nothing happens unless they are 4 or 8, naturally aligned. Returns the interrupts
    /// that result.
    pub fn mmio_write(&mut self, offset: u16, size: u8, value: u64, now: u64) -> Vec<Interrupt> {
        let Some(mask) = access_mask(offset, size) else {
            return Vec::new();
        };
        let data = value << mask.trailing_zeros();
        match offset & !7 {
            REG_CONFIG => self.write_config(data, mask, now),
            REG_STATUS => {
                let cleared = self.timers.iter_mut().enumerate().filter(|(index, _)| data & mask & 1 << index != 0);
                cleared.filter_map(|(_, timer)| timer.deassert(timer.pin())).collect()
            }
            REG_COUNTER => {
                self.counter_base = merge(self.counter(now).into(), data, mask) as u32;
                if self.enabled {
                    self.start_counting(now);
                }
                Vec::new()
            }
            register => {
                let Some((index, register)) = timer_register(register) else {
                    return Vec::new();
                };
                let timer = &mut self.timers[index];
                match register {
                    REG_TIMER_CONFIG => timer.write_config(data, mask).into_iter().collect(),
                    REG_TIMER_COMPARATOR => {
                        if timer.write_comparator(data, mask) && self.enabled {
                            self.start_timer(index, now);
                        }
                        Vec::new()
                    }
                    REG_TIMER_FSB => {
                        timer.fsb = merge(timer.fsb, data, mask);
                        Vec::new()
                    }
                    _ => Vec::new(),
                }
            }
        }
    }

    /// When a timer is due, in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.iter().filter_map(|timer| timer.due).min()
    }

    /// Does what is due. Returns the interrupts that result. A one-shot timer is due again when the counter has wrapped.
    pub fn advance(&mut self, now: u64) -> Vec<Interrupt> {
        let mut interrupts = Vec::new();
        for index in 0..TIMERS {
            if self.timers[index].due.is_some_and(|due| due <= now) {
                self.start_timer(index, now);
                // Reached at this very tick: it was this that was due.
                if self.timers[index].due.is_some_and(|due| due <= now) {
                    self.timers[index].due = Some(self.when(now, 1 << 32));
                }
                interrupts.extend(self.timers[index].interrupt());
            }
        }
        interrupts
    }

    fn counter(&self, now: u64) -> u32 {
        if self.enabled { self.counter_base.wrapping_add(self.elapsed(now) as u32) } else { self.counter_base }
    }

    fn elapsed(&self, now: u64) -> u64 {
        FREQUENCY.ticks(now.saturating_sub(self.base))
    }

    /// When the counter will have counted `ticks` more.
    fn when(&self, now: u64, ticks: u64) -> u64 {
        self.base.saturating_add(FREQUENCY.ns(self.elapsed(now) + ticks))
    }

    fn write_config(&mut self, data: u64, mask: u64, now: u64) -> Vec<Interrupt> {
        let enabled = merge(u64::from(self.enabled) * CONFIG_ENABLE, data, mask) & CONFIG_ENABLE != 0;
        if enabled == self.enabled {
            return Vec::new();
        }
        if enabled {
            self.enabled = true;
            self.start_counting(now);
            return Vec::new();
        }
        self.counter_base = self.counter(now);
        self.enabled = false;
        // What was due already is not lost.
        let overdue = self.timers.iter_mut().filter_map(|timer| {
            let due = timer.due.take();
            if due.is_some_and(|due| due < now) { timer.interrupt() } else { None }
        });
        overdue.collect()
    }

    fn start_counting(&mut self, now: u64) {
        self.base = now;
        for index in 0..TIMERS {
            self.start_timer(index, now);
        }
    }

    fn start_timer(&mut self, index: usize, now: u64) {
        let counter = self.counter(now);
        let timer = &mut self.timers[index];
        timer.adjust_comparator(counter);
        let ticks = timer.comparator.wrapping_sub(counter);
        self.timers[index].due = Some(if ticks == 0 { now } else { self.when(now, ticks.into()) });
    }
}

/// The timer that a register belongs to, and which of its registers it is.
fn timer_register(offset: u16) -> Option<(usize, u16)> {
    (REG_TIMERS..REG_TIMERS_END)
        .contains(&offset)
        .then(|| (usize::from((offset - REG_TIMERS) / 0x20), (offset - REG_TIMERS) % 0x20))
}

/// The bits of an 8-byte register that an access is to.
fn access_mask(offset: u16, size: u8) -> Option<u64> {
    match (size, offset & 7) {
        (8, 0) => Some(u64::MAX),
        (4, 0) => Some(0xffff_ffff),
        (4, 4) => Some(0xffff_ffff << 32),
        _ => None,
    }
}

fn merge(register: u64, data: u64, mask: u64) -> u64 {
    register & !mask | data & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::DeliveryMode;
    use proptest::prelude::*;

    const TICK: u64 = 1 << 24;

    fn ns(ticks: u64) -> u64 {
        FREQUENCY.ns(ticks)
    }

    fn timer(index: u16, register: u16) -> u16 {
        REG_TIMERS + 0x20 * index + register
    }

    fn route(pin: u64) -> u64 {
        pin << 9
    }

    /// Counting from time 0.
    fn enabled() -> Vhpet {
        let mut vhpet = Vhpet::new();
        assert_eq!(vhpet.mmio_write(REG_CONFIG, 4, CONFIG_ENABLE, 0), []);
        vhpet
    }

    #[test]
    fn capabilities() {
        let vhpet = Vhpet::new();
        assert_eq!(vhpet.mmio_read(REG_CAPABILITIES, 8, 0), 0x038d_7ea4_8086_0701);
        assert_eq!(vhpet.mmio_read(REG_CAPABILITIES + 4, 4, 0), 0x038d_7ea4, "60 ns less a little");
        for index in 0..8 {
            assert_eq!(vhpet.mmio_read(timer(index, REG_TIMER_CONFIG), 8, 0), 0xff00_0000_0000_8010);
            assert_eq!(vhpet.mmio_read(timer(index, REG_TIMER_COMPARATOR), 8, 0), 0xffff_ffff);
        }
    }

    #[test]
    fn only_aligned_accesses_of_4_and_8_bytes_count() {
        let mut vhpet = Vhpet::new();
        for (offset, size) in [(REG_COUNTER, 1), (REG_COUNTER, 2), (REG_COUNTER + 4, 8), (REG_COUNTER + 2, 4)] {
            assert_eq!(vhpet.mmio_write(offset, size, 7, 0), []);
            assert_eq!(vhpet.mmio_read(REG_CAPABILITIES + offset % 8, size, 0), 0, "{offset:#x}, {size} bytes");
        }
        assert_eq!(vhpet, Vhpet::new());
    }

    #[test]
    fn the_counter_counts_while_enabled() {
        let mut vhpet = Vhpet::new();
        assert_eq!(vhpet.mmio_read(REG_COUNTER, 8, 1_000_000_000), 0);
        vhpet.mmio_write(REG_CONFIG, 8, 0b11, 1_000_000_000);
        assert_eq!(vhpet.mmio_read(REG_CONFIG, 8, 0), CONFIG_ENABLE, "no legacy replacement");
        assert_eq!(vhpet.mmio_read(REG_COUNTER, 8, 2_000_000_000), TICK);
        vhpet.mmio_write(REG_COUNTER, 4, 0xffff_fff0, 2_000_000_000);
        assert_eq!(vhpet.mmio_read(REG_COUNTER, 4, 2_000_000_000 + ns(0x20)), 0x10, "32 bits");
        vhpet.mmio_write(REG_CONFIG, 4, 0, 3_000_000_000);
        assert_eq!(vhpet.mmio_read(REG_COUNTER, 8, 9_000_000_000), TICK - 0x10);
        assert_eq!(vhpet.next_deadline(), None);
    }

    #[test]
    fn one_shot_edge() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(0, REG_TIMER_CONFIG), 8, route(24) | TIMER_INTERRUPT, 0);
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 4, TICK, 0);
        assert_eq!(vhpet.next_deadline(), Some(1_000_000_000));
        assert_eq!(vhpet.advance(999_999_999), []);
        assert_eq!(vhpet.advance(1_000_000_000), [Interrupt::Pin(24, IrqState::Pulse)]);
        assert_eq!(vhpet.advance(1_000_000_000), [], "at the same tick");
        let wrapped = ns(TICK + (1 << 32));
        assert_eq!(vhpet.timers[0].due, Some(wrapped));
        assert_eq!(vhpet.advance(wrapped), [Interrupt::Pin(24, IrqState::Pulse)]);
    }

    #[test]
    fn a_comparator_behind_the_counter_waits_for_the_wrap() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 4, 0x10, ns(0x20));
        assert_eq!(vhpet.timers[0].due, Some(ns((1 << 32) + 0x10)));
    }

    #[test]
    fn a_level_is_asserted_until_its_status_is_cleared() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(2, REG_TIMER_CONFIG), 8, route(26) | TIMER_INTERRUPT | TIMER_LEVEL, 0);
        vhpet.mmio_write(timer(2, REG_TIMER_COMPARATOR), 8, 100, 0);
        assert_eq!(vhpet.advance(ns(100)), [Interrupt::Pin(26, IrqState::Assert)]);
        assert_eq!(vhpet.mmio_read(REG_STATUS, 8, 0), 1 << 2);
        vhpet.mmio_write(timer(2, REG_TIMER_COMPARATOR), 8, 200, ns(100));
        assert_eq!(vhpet.advance(ns(200)), [], "asserted already");
        assert_eq!(vhpet.mmio_write(REG_STATUS, 4, 1 << 1, 0), [], "another timer's");
        assert_eq!(vhpet.mmio_write(REG_STATUS, 4, 1 << 2, 0), [Interrupt::Pin(26, IrqState::Deassert)]);
        assert_eq!((vhpet.mmio_read(REG_STATUS, 8, 0), vhpet.mmio_write(REG_STATUS, 4, 1 << 2, 0)), (0, vec![]));
    }

    #[test]
    fn an_asserted_interrupt_is_taken_back_when_its_configuration_changes() {
        let level = route(26) | TIMER_INTERRUPT | TIMER_LEVEL;
        for (config, taken_back) in [
            (level & !TIMER_INTERRUPT, true),
            (level & !TIMER_LEVEL, true),
            (level | TIMER_FSB, true),
            (route(27) | TIMER_INTERRUPT | TIMER_LEVEL, true),
            (level | TIMER_PERIODIC, false),
            (level, false),
        ] {
            let mut vhpet = enabled();
            vhpet.mmio_write(timer(1, REG_TIMER_CONFIG), 8, level, 0);
            vhpet.mmio_write(timer(1, REG_TIMER_COMPARATOR), 8, 100, 0);
            assert_eq!(vhpet.advance(ns(100)), [Interrupt::Pin(26, IrqState::Assert)]);
            let interrupts = vhpet.mmio_write(timer(1, REG_TIMER_CONFIG), 4, config, ns(100));
            assert_eq!(interrupts == [Interrupt::Pin(26, IrqState::Deassert)], taken_back, "{config:#x}");
            assert_eq!(vhpet.mmio_read(REG_STATUS, 8, 0) == 0, taken_back);
        }
    }

    #[test]
    fn messages() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(7, REG_TIMER_FSB), 4, 0x41, 0);
        vhpet.mmio_write(timer(7, REG_TIMER_FSB) + 4, 4, 0xfee0_1000, 0);
        assert_eq!(vhpet.mmio_read(timer(7, REG_TIMER_FSB), 8, 0), 0xfee0_1000_0000_0041);
        vhpet.mmio_write(timer(7, REG_TIMER_CONFIG), 8, TIMER_FSB | TIMER_INTERRUPT, 0);
        vhpet.mmio_write(timer(7, REG_TIMER_COMPARATOR), 8, 5, 0);
        let message = Message { dest: 1, logical: false, mode: DeliveryMode::Fixed, vector: 0x41, level: false };
        assert_eq!(vhpet.advance(ns(5)), [Interrupt::Message(message)]);
    }

    #[test]
    fn routes_that_are_not_offered_are_none() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(0, REG_TIMER_CONFIG), 8, route(2) | TIMER_INTERRUPT | TIMER_32_BITS, 0);
        assert_eq!(vhpet.mmio_read(timer(0, REG_TIMER_CONFIG), 4, 0), 0x8010 | TIMER_INTERRUPT);
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 8, 5, 0);
        assert_eq!(vhpet.advance(ns(5)), []);
    }

    #[test]
    fn periodic() {
        let mut vhpet = Vhpet::new();
        let config = route(24) | TIMER_INTERRUPT | TIMER_PERIODIC | TIMER_SET_COMPARATOR;
        vhpet.mmio_write(timer(0, REG_TIMER_CONFIG), 8, config, 0);
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 8, 1000, 0);
        assert_eq!(vhpet.mmio_read(timer(0, REG_TIMER_CONFIG), 4, 0) & TIMER_SET_COMPARATOR, 0);
        vhpet.mmio_write(REG_COUNTER, 8, 500, 0);
        vhpet.mmio_write(timer(0, REG_TIMER_CONFIG), 8, config, 0);
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 8, 400, 0);
        vhpet.mmio_write(REG_CONFIG, 4, CONFIG_ENABLE, 0);
        assert_eq!(vhpet.next_deadline(), Some(ns(300)), "the next of 400, 800, 1200… after 500");
        assert_eq!(vhpet.advance(ns(300)), [Interrupt::Pin(24, IrqState::Pulse)]);
        assert_eq!(vhpet.next_deadline(), Some(ns(700)));
        assert_eq!(vhpet.advance(ns(5000)), [Interrupt::Pin(24, IrqState::Pulse)], "once, however late");
        assert_eq!(vhpet.next_deadline(), Some(ns(5100)));
    }

    #[test]
    fn stopping_the_counter_does_not_lose_what_was_due() {
        let mut vhpet = enabled();
        vhpet.mmio_write(timer(0, REG_TIMER_CONFIG), 8, route(24) | TIMER_INTERRUPT, 0);
        vhpet.mmio_write(timer(0, REG_TIMER_COMPARATOR), 8, 100, 0);
        assert_eq!(vhpet.mmio_write(REG_CONFIG, 4, 0, ns(200)), [Interrupt::Pin(24, IrqState::Pulse)]);
        assert_eq!(vhpet.next_deadline(), None);
    }

    proptest! {
        /// The comparator of a periodic timer ends up within a period ahead of the counter.
        #[test]
        fn a_periodic_comparator_is_ahead(comparator: u32, rate in 1_u32..1 << 30, counter: u32) {
            let mut timer = Vhpet::new().timers[0].clone();
            timer.comparator = comparator;
            timer.rate = rate;
            timer.adjust_comparator(counter);
            let ahead = timer.comparator.wrapping_sub(counter);
            prop_assert!((1..=rate).contains(&ahead), "{ahead}");
        }

        #[test]
        fn any_sequence_is_answered(accesses: Vec<(u16, bool, u64, u32)>) {
            let (mut vhpet, mut now) = (Vhpet::new(), 0);
            for (offset, wide, value, step) in accesses {
                now += u64::from(step);
                let (offset, size) = if wide { (offset & 0x1f8, 8) } else { (offset & 0x1fc, 4) };
                vhpet.mmio_write(offset, size, value, now);
                let _ = vhpet.mmio_read(offset, size, now);
                vhpet.advance(now);
                prop_assert!(vhpet.next_deadline().is_none_or(|deadline| deadline > now));
            }
        }
    }
}
