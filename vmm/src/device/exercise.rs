//! Devices under whatever a guest may do to them: random accesses, interrupts and time, of which none may panic, and after which no
//! device may have work left that is due already (who runs it would never come to an end).
//!
//! Tests drive the devices from a seeded generator, fuzzers from bytes.

use super::IrqState;
use super::vatpic::Vatpic;
use super::vatpit::Vatpit;
use super::vhpet::Vhpet;
use super::vioapic::Vioapic;
use super::vlapic::{LocalInterrupt, Lvt, Vlapic};
use super::vpmtmr::Vpmtmr;
use super::vrtc::Vrtc;

/// A device that can be exercised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the devices'")]
pub enum Device {
    Vatpic,
    Vatpit,
    Vhpet,
    Vioapic,
    Vlapic,
    Vpmtmr,
    Vrtc,
}

impl Device {
    /// Every device.
    pub const ALL: [Device; 7] =
        [Device::Vatpic, Device::Vatpit, Device::Vhpet, Device::Vioapic, Device::Vlapic, Device::Vpmtmr, Device::Vrtc];
}

/// One random word for each operation: what to do, where and with which value are bits of it.
#[derive(Clone, Copy, Debug)]
struct Word(u64);

impl Word {
    /// Which of `n` operations.
    fn choice(self, n: u64) -> u64 {
        (self.0 & 0xff) % n
    }

    fn port(self, ports: &[u16]) -> u16 {
        ports[(self.0 >> 8) as usize % 256 % ports.len()]
    }

    fn offset(self) -> u16 {
        (self.0 >> 8) as u16 & 0xfff
    }

    fn size(self) -> u8 {
        1 << (self.0 >> 20 & 3)
    }

    fn value(self) -> u64 {
        self.0 >> 24
    }

    /// Nanoseconds, mostly few, sometimes hours.
    fn elapsed(self) -> u64 {
        self.value() >> (self.0 >> 8 & 0x1f)
    }
}

/// Whether a device's next deadline is still to come; if not, its owner would run it for ever.
fn assert_to_come(device: Device, deadline: Option<u64>, now: u64) {
    assert!(deadline.is_none_or(|deadline| deadline > now), "{device:?} is due at {deadline:?}, and it is {now}");
}

/// Does to a device what each of the words says. Returns a sum of what it answered, the same for the same words.
pub fn drive(device: Device, words: impl Iterator<Item = u64>) -> u64 {
    let words = words.map(Word);
    match device {
        Device::Vatpic => drive_vatpic(words),
        Device::Vatpit => drive_vatpit(words),
        Device::Vhpet => drive_vhpet(words),
        Device::Vioapic => drive_vioapic(words),
        Device::Vlapic => drive_vlapic(words),
        Device::Vpmtmr => drive_vpmtmr(words),
        Device::Vrtc => drive_vrtc(words),
    }
}

fn add(sum: u64, answer: u64) -> u64 {
    (sum ^ answer).wrapping_mul(0x0100_0000_01b3)
}

fn state(word: Word) -> IrqState {
    [IrqState::Assert, IrqState::Deassert, IrqState::Pulse][(word.0 >> 16 & 0xff) as usize % 3]
}

fn drive_vatpic(words: impl Iterator<Item = Word>) -> u64 {
    let mut device = Vatpic::new();
    words.fold(0, |sum, word| {
        let answer = match word.choice(6) {
            0 | 1 => device.write(word.port(&Vatpic::PORTS), word.value() as u8).map_or(2, u64::from),
            2 => device.read(word.port(&Vatpic::PORTS)).map_or(0x100, u64::from),
            3 => device.set_irq(i32::from(word.offset() as u8 % 18) - 1, state(word)).map_or(2, u64::from),
            4 => device.set_trigger(i32::from(word.offset() as u8 % 18) - 1, word.value() & 1 != 0).is_ok().into(),
            _ => device.pending().map_or(0x100, |vector| u64::from(device.acknowledge(vector))),
        };
        add(sum, answer)
    })
}

fn drive_vatpit(words: impl Iterator<Item = Word>) -> u64 {
    let (mut device, mut now) = (Vatpit::new(), 0_u64);
    words.fold(0, |sum, word| {
        let answer = match word.choice(4) {
            0 | 1 => device.write(word.port(&Vatpit::PORTS), word.value() as u8, now).is_ok().into(),
            2 => device.read(word.port(&Vatpit::PORTS), now).map_or(0x100, u64::from),
            _ => {
                now = now.saturating_add(word.elapsed());
                let raised = device.advance(now);
                assert_to_come(Device::Vatpit, device.next_deadline(), now);
                raised.into()
            }
        };
        add(sum, answer)
    })
}

fn drive_vhpet(words: impl Iterator<Item = Word>) -> u64 {
    let (mut device, mut now) = (Vhpet::new(), 0_u64);
    words.fold(0, |sum, word| {
        let answer = match word.choice(4) {
            0 | 1 => device.mmio_write(word.offset() & 0x3ff, word.size(), word.value(), now).len() as u64,
            2 => device.mmio_read(word.offset() & 0x3ff, word.size(), now),
            _ => {
                now = now.saturating_add(word.elapsed());
                let interrupts = device.advance(now).len() as u64;
                assert_to_come(Device::Vhpet, device.next_deadline(), now);
                interrupts
            }
        };
        add(sum, answer)
    })
}

fn drive_vioapic(words: impl Iterator<Item = Word>) -> u64 {
    let mut device = Vioapic::new();
    words.fold(0, |sum, word| {
        let answer = match word.choice(5) {
            // The index and data registers, and then anything.
            0 | 1 => device.mmio_write(word.offset() & 0x10, word.value() as u32).routing_changed.into(),
            2 => {
                let offset = if word.value() & 1 == 0 { word.offset() & 0x10 } else { word.offset() };
                device.mmio_read(offset).into()
            }
            3 => {
                let pin = i32::from(word.offset() as u8 % 36) - 2;
                device.set_pin(pin, state(word)).map_or(2, |message| message.is_some().into())
            }
            _ => device.eoi(word.value() as u8).len() as u64,
        };
        add(sum, answer)
    })
}

fn drive_vlapic(words: impl Iterator<Item = Word>) -> u64 {
    let (mut device, mut now) = (Vlapic::new(0), 0_u64);
    words.fold(0, |sum, word| {
        let register = word.offset() & 0xff0;
        let msr = 0x800 | u32::from(word.offset() >> 4 & 0x7f);
        let answer = match word.choice(12) {
            0 | 1 => {
                let _effect = device.mmio_write(register, word.value() as u32, now);
                0
            }
            2 => device.mmio_read(register, now).into(),
            3 => device.msr_write(msr, word.value(), now).is_ok().into(),
            4 => device.msr_read(msr, now).unwrap_or(u64::MAX),
            5 => device.accept(word.value() as u8, word.value() & 0x100 != 0).into(),
            6 => device.pending().map_or(0x100, |vector| {
                device.acknowledge(vector);
                vector.into()
            }),
            7 => {
                device.set_cr8(word.value() as u8 & 0xf);
                device.cr8().into()
            }
            8 => {
                let lvt = Lvt::from_number((word.value() % 7) as i32);
                lvt.map_or(0, |lvt| (device.local_interrupt(lvt) != LocalInterrupt::Dropped).into())
            }
            9 if word.value() & 0x3f == 0 => {
                device.reset();
                device.set_x2apic(word.value() & 0x40 != 0);
                u64::from(device.x2apic())
            }
            9 => device.write_apic_base(word.value()).is_ok().into(),
            _ => {
                now = now.saturating_add(word.elapsed());
                let raised = device.advance(now);
                assert_to_come(Device::Vlapic, device.next_deadline(), now);
                raised.into()
            }
        };
        add(sum, answer)
    })
}

fn drive_vpmtmr(words: impl Iterator<Item = Word>) -> u64 {
    let device = Vpmtmr::new(0);
    words.fold(0, |sum, word| add(sum, device.read(word.value() << (word.0 >> 8 & 0x1f)).into()))
}

fn drive_vrtc(words: impl Iterator<Item = Word>) -> u64 {
    let (mut device, mut now) = (Vrtc::new(0), 0_u64);
    words.fold(0, |sum, word| {
        let answer = match word.choice(8) {
            0..=2 => device.write(word.port(&Vrtc::PORTS), word.value() as u8, now).map_or(2, u64::from),
            3 => device.read(word.port(&Vrtc::PORTS), now).map_or(0x100, |(value, _)| value.into()),
            4 => device.nvram_read(i32::from(word.offset()) - 16, now).map_or(0x100, u64::from),
            5 => device.nvram_write(i32::from(word.offset()) - 16, word.value() as u8).is_ok().into(),
            6 if word.value() & 7 == 0 => device.set_time(word.value() as i64 - (1 << 38), now).map_or(2, u64::from),
            6 => device.get_time(now) as u64,
            _ => {
                now = now.saturating_add(word.elapsed());
                let raised = device.advance(now);
                assert_to_come(Device::Vrtc, device.next_deadline(), now);
                raised.into()
            }
        };
        add(sum, answer)
    })
}

/// Words from a seed: xorshift64* (Vigna 2016), the same everywhere.
pub fn words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// The words in a fuzzer's bytes.
pub fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
}

/// How many operations a test of random accesses does: `SPINUP_RANDOM_OPERATIONS`, or `default`.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn operations(default: usize) -> usize {
    std::env::var("SPINUP_RANDOM_OPERATIONS").map_or(default, |text| text.parse().expect("a number of operations"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Each device has its share of a million operations.
    #[test]
    fn no_device_panics_or_stays_due() {
        let share = operations(1_000_000) / Device::ALL.len();
        for device in Device::ALL {
            for seed in 1..=10 {
                let sum = drive(device, words(seed).take(share / 10));
                assert_eq!(sum, drive(device, words(seed).take(share / 10)), "{device:?} is not deterministic");
            }
        }
    }

    /// The words reach every operation: that other seeds give other answers is the least of it.
    #[test]
    fn seeds_differ() {
        for device in Device::ALL {
            let sums: BTreeSet<u64> = (1..=8).map(|seed| drive(device, words(2 * seed).take(10_000))).collect();
            assert_eq!(sums.len(), 8, "{device:?}");
        }
        assert_eq!(words_of(&[1, 2, 0, 0, 0, 0, 0, 0, 3]).collect::<Vec<_>>(), [0x201, 3]);
    }
}
