//! What holds of every device, whatever is done to it: each function here drives one with any bytes, and panics when something does
//! not hold. The tests give them random bytes; so do the targets of `fuzz/`.
//!
//! A step is eight bytes: what to do, how much time passes before, where, and a value. What is left over is no step. Every device
//! goes through each step in bounded time, whatever came before; a timer fires when it is due, and never lies in the past afterwards:
//! a kernel that waits for it would wait for nothing again and again.

use super::IrqState;
use super::message::Message;
use super::vatpic::Vatpic;
use super::vatpit::Vatpit;
use super::vhpet::{self, Vhpet};
use super::vioapic::{PINS, Vioapic};
use super::vlapic::{Effect, LocalInterrupt, Lvt, Vlapic};
use super::vpmtmr::Vpmtmr;
use super::vrtc::Vrtc;

/// One step.
struct Step {
    what: u8,
    at: u16,
    value: u32,
    /// Nanoseconds since the device was made.
    now: u64,
}

impl Step {
    fn state(&self) -> IrqState {
        [IrqState::Assert, IrqState::Deassert, IrqState::Pulse][usize::from(self.at >> 8) % 3]
    }
}

/// The steps that bytes stand for. Half of them take no time, the others 1 ns to some hours.
fn steps(bytes: &[u8]) -> impl Iterator<Item = Step> {
    const LONGEST_SHIFT: u8 = 44;
    let mut now = 0_u64;
    bytes.as_chunks().0.iter().map(move |&[what, wait, at @ .., v0, v1, v2, v3]: &[u8; 8]| {
        if wait & 0x80 != 0 {
            now = now.saturating_add(1 << (wait % LONGEST_SHIFT));
        }
        Step { what, at: u16::from_le_bytes(at), value: u32::from_le_bytes([v0, v1, v2, v3]), now }
    })
}

/// A port of a device: one of its own, or any.
fn port(ports: &[u16], step: &Step) -> u16 {
    if step.what & 0x80 != 0 { step.at } else { ports[usize::from(step.at) % ports.len()] }
}

/// When a device that has just done what was due is due again.
#[track_caller]
fn assert_ahead(deadline: Option<u64>, now: u64) {
    assert!(deadline.is_none_or(|deadline| deadline > now), "due at {deadline:?}, and it is {now}");
}

/// The local APIC, in the mode that the first byte says.
pub fn vlapic(bytes: &[u8]) {
    const SVR: u16 = 0xf0;
    const SVR_ENABLE: u32 = 1 << 8;
    const LVT: [u16; 7] = [0x2f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
    const LVT_MASKED: u32 = 1 << 16;
    let x2apic = bytes.first().is_some_and(|first| first & 1 != 0);
    let mut vlapic = Vlapic::new(1);
    vlapic.set_x2apic(x2apic);
    let register = |vlapic: &Vlapic, offset: u16, now| {
        if x2apic {
            let msr = 0x800 + u32::from(offset >> 4);
            vlapic.msr_read(msr, now).expect("it can be read") as u32
        } else {
            vlapic.mmio_read(offset, now)
        }
    };
    for step in steps(bytes) {
        let Step { what, at, value, now } = step;
        let notified = vlapic.advance(now);
        assert!(!notified || register(&vlapic, SVR, now) & SVR_ENABLE != 0, "disabled, and its timer notifies");
        assert_ahead(vlapic.next_deadline(), now);
        let in_service = vlapic.clone();
        let effect = match what % 8 {
            0 | 1 => vlapic.mmio_write(at & 0xfff, value, now),
            2 | 3 => vlapic.msr_write(0x800 + u32::from(at & 0x3f), value.into(), now).unwrap_or(Effect::None),
            4 => vlapic.msr_write(u32::from(at), value.into(), now).unwrap_or(Effect::None),
            5 => {
                vlapic.accept(value as u8, at & 1 != 0);
                Effect::None
            }
            6 => {
                let happened = vlapic.local_interrupt(Lvt::ALL[usize::from(at) % Lvt::ALL.len()]);
                if let LocalInterrupt::Requested { vector } = happened {
                    assert!(vector >= 16, "vector {vector} is an exception's");
                }
                Effect::None
            }
            _ => {
                vlapic.set_cr8(value as u8 & 0xf);
                Effect::None
            }
        };
        if let Effect::Eoi { vector, .. } = effect {
            let word = 0x100 + u16::from(vector / 32) * 16;
            let was = register(&in_service, word, now) >> (vector % 32) & 1;
            assert_eq!(was, 1, "EOI of {vector}, which is not in service");
        }
        if register(&vlapic, SVR, now) & SVR_ENABLE == 0 {
            assert!(LVT.iter().all(|&lvt| register(&vlapic, lvt, now) & LVT_MASKED != 0), "disabled, and not masked");
        }
        if let Some(vector) = vlapic.pending() {
            assert!(vector >= 16, "vector {vector} is an exception's");
            assert!(vector >> 4 > register(&vlapic, 0xa0, now) as u8 >> 4, "vector {vector} is held back by the PPR");
            if at & 2 != 0 {
                vlapic.acknowledge(vector);
                assert!(vlapic.pending().is_none_or(|next| next >> 4 > vector >> 4), "its own class is held back");
            }
        }
    }
}

/// The I/O APIC.
pub fn vioapic(bytes: &[u8]) {
    let mut vioapic = Vioapic::new();
    for Step { what, at, value, .. } in steps(bytes) {
        let step = Step { what, at, value, now: 0 };
        match what % 4 {
            0 => {
                let message = vioapic.mmio_write(if at & 1 == 0 { 0 } else { 0x10 }, value).message;
                assert!(message.is_none_or(|message| sent_by_some_pin(&vioapic, message)));
            }
            1 => drop(vioapic.mmio_write(at & 0xfff, value)),
            2 => {
                let pin = i32::from(at as u8 % (PINS as u8 + 1));
                let sent = vioapic.set_pin(pin, step.state());
                assert_eq!(sent.is_err(), pin == PINS as i32, "there are {PINS} pins");
                if let Ok(Some(message)) = sent {
                    assert!(sent_by(&vioapic, pin as u8, message), "pin {pin} is not set up so: {message:?}");
                }
            }
            _ => {
                let messages = vioapic.eoi(value as u8);
                assert!(messages.len() <= PINS);
                for message in messages {
                    assert_eq!((message.vector, message.level), (value as u8, true), "not of the vector that ended");
                    assert!(sent_by_some_pin(&vioapic, message));
                }
            }
        }
    }
}

fn sent_by_some_pin(vioapic: &Vioapic, message: Message) -> bool {
    (0..PINS as u8).any(|pin| sent_by(vioapic, pin, message))
}

/// Whether the pin's redirection entry is one that sends the message (82093AA 3.2.4).
fn sent_by(vioapic: &Vioapic, pin: u8, message: Message) -> bool {
    const REMOTE_IRR: u32 = 1 << 14;
    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    let mut reader = vioapic.clone();
    let mut entry = |register| {
        reader.mmio_write(0, register);
        reader.mmio_read(0x10)
    };
    let (low, high) = (entry(0x10 + 2 * u32::from(pin)), entry(0x11 + 2 * u32::from(pin)));
    low & MASKED == 0
        && low as u8 == message.vector
        && high >> 24 == u32::from(message.dest)
        && (low & LEVEL != 0) == message.level
        && (!message.level || low & REMOTE_IRR != 0)
}

/// The 8259s.
pub fn vatpic(bytes: &[u8]) {
    let mut vatpic = Vatpic::new();
    for step in steps(bytes) {
        let rose = match step.what % 4 {
            0 | 1 => vatpic.write(port(&Vatpic::PORTS, &step), step.value as u8).unwrap_or(false),
            2 => vatpic.set_irq(i32::from(step.at as u8 % 17), step.state()).unwrap_or(false),
            _ => {
                let polled = vatpic.read(port(&Vatpic::PORTS, &step));
                // A poll takes the request that INTR stands for, as an acknowledgement does.
                polled.is_ok_and(|_| false)
            }
        };
        assert!(!rose || vatpic.pending().is_some(), "INTR rose, and there is no vector");
        if step.at & 0x80 != 0
            && let Some(vector) = vatpic.pending()
        {
            let rose = vatpic.acknowledge(vector);
            assert_eq!(rose, vatpic.pending().is_some(), "INTR falls when it is acknowledged");
        }
        if step.value & 0x100 != 0 {
            // EINVAL where it cannot be.
            let _refused = vatpic.set_trigger(i32::from(step.at as u8 % 17), step.value & 1 != 0);
        }
    }
}

/// The 8254.
pub fn vatpit(bytes: &[u8]) {
    let mut vatpit = Vatpit::new();
    for step in steps(bytes) {
        let due = vatpit.next_deadline();
        let fired = vatpit.advance(step.now);
        assert_eq!(fired, due.is_some_and(|due| due <= step.now), "due at {due:?}, at {}", step.now);
        assert_ahead(vatpit.next_deadline(), step.now);
        let port = port(&Vatpit::PORTS, &step);
        if step.what & 1 == 0 {
            let _refused = vatpit.write(port, step.value as u8, step.now);
        } else {
            let _refused = vatpit.read(port, step.now);
        }
    }
}

/// The HPET. What it does to the I/O APIC's pins adds up to what its status register says.
pub fn vhpet(bytes: &[u8]) {
    const STATUS: u16 = 0x20;
    let mut vhpet = Vhpet::new();
    let mut asserted = [0_i32; PINS];
    for Step { what, at, value, now } in steps(bytes) {
        let due = vhpet.next_deadline();
        let mut interrupts = vhpet.advance(now);
        assert!(interrupts.is_empty() || due.is_some_and(|due| due <= now), "due at {due:?}, at {now}");
        assert_ahead(vhpet.next_deadline(), now);
        let offset = if what & 0x80 == 0 { at & 0x1f8 | (at >> 9 & 4) } else { at };
        let size = 1 << (what >> 4 & 3);
        let size = if what & 0x40 == 0 { 4 } else { size };
        match what % 4 {
            0 => drop(vhpet.mmio_read(offset, size, now)),
            _ => interrupts.extend(vhpet.mmio_write(offset, size, value.into(), now)),
        }
        for interrupt in interrupts {
            match interrupt {
                vhpet::Interrupt::Pin(pin, state) => {
                    assert!((24..32).contains(&pin), "the HPET is not wired to pin {pin}");
                    asserted[pin as usize] += state.steps().iter().sum::<i32>();
                }
                vhpet::Interrupt::Message(message) => assert!(!message.level, "a message is an edge"),
            }
        }
        let status = vhpet.mmio_read(STATUS, 4, now) as u32;
        assert!(asserted.iter().all(|&pin| pin >= 0), "de-asserted more often than asserted: {asserted:?}");
        assert_eq!(asserted.iter().sum::<i32>(), status.count_ones() as i32, "{asserted:?}");
    }
}

/// The clock with its memory.
pub fn vrtc(bytes: &[u8]) {
    const LAST_SECOND: i64 = 253_402_300_799;
    let mut vrtc = Vrtc::new(0);
    for step in steps(bytes) {
        let Step { what, at, value, now } = step;
        let due = vrtc.next_deadline();
        let fired = vrtc.advance(now);
        assert!(!fired || due.is_some_and(|due| due <= now), "due at {due:?}, at {now}");
        assert_ahead(vrtc.next_deadline(), now);
        match what % 8 {
            0..=2 => drop(vrtc.write(port(&Vrtc::PORTS, &step), value as u8, now)),
            3..=4 => drop(vrtc.read(port(&Vrtc::PORTS, &step), now)),
            5 => drop(vrtc.nvram_write(i32::from(at), value as u8)),
            6 => drop(vrtc.nvram_read(i32::from(at), now)),
            _ => {
                let secs =
                    if at & 1 == 0 { i64::from(value) << (at >> 8 & 7) } else { LAST_SECOND - i64::from(at >> 8) };
                if vrtc.set_time(secs, now).is_ok() && (0..=LAST_SECOND).contains(&secs) {
                    // A time that the clock has been set to before does not begin anew (`vrtc_time_update`).
                    assert!(vrtc.get_time(now) >= secs, "set to {secs}, and shows {}", vrtc.get_time(now));
                }
            }
        }
        assert!((-1..=LAST_SECOND).contains(&vrtc.get_time(now)));
    }
}

/// The power management timer: as many ticks as time has passed.
pub fn vpmtmr(bytes: &[u8]) {
    let vpmtmr = Vpmtmr::new(0);
    let mut last = (0_u64, 0_u32);
    for Step { now, .. } in steps(bytes) {
        let counter = vpmtmr.read(now);
        let ticks = (u128::from(now - last.0) * 3_579_545 / 1_000_000_000) as u32;
        let counted = counter.wrapping_sub(last.1);
        assert!(counted.wrapping_sub(ticks) <= 1, "{counted} ticks in {} ns", now - last.0);
        last = (now, counter);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Bytes of whole steps, whose small numbers reach further than random ones.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => any::<u8>(), 1 => 0_u8..4, 1 => Just(0xff_u8)];
        vec(byte, 0..8 * 400)
    }

    macro_rules! hold {
        ($($device:ident),*) => {
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(512))]
                $(
                    #[test]
                    fn $device(bytes in bytes()) {
                        super::$device(&bytes);
                    }
                )*
            }
        };
    }

    hold!(vlapic, vioapic, vatpic, vatpit, vhpet, vrtc, vpmtmr);
}
