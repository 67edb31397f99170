//! The programmable interval timer (`vatpit.c`; 8254 data sheet), and the bit of port 0x61 that shows counter 2.
//!
//! What FreeBSD leaves out is left out here too, since guests meet it: counters are written low byte, high byte and count in
//! binary; modes 1 and 5, which need a gate, are refused; the gates are always open; an initial count of 0 counts 65535;
//! only mode 2 interrupts more than once.

use super::Refused;
use super::clock::{Countdown, Frequency};
use serde::{Deserialize, Serialize};

const FREQUENCY: Frequency = Frequency::hz(1_193_182);

/// The count that a counter gets when it is read before it was written: 100 Hz.
const DEFAULT_COUNT: u16 = 11_932;

const COUNTER0: u16 = 0x40;
const COUNTER2: u16 = 0x42;
const CONTROL: u16 = 0x43;
/// `NMISC_PORT`: system control port B.
const PORT_B: u16 = 0x61;

/// OUT of counter 2 in port B.
const PORT_B_OUT2: u8 = 1 << 5;

const READ_BACK: u8 = 0b11;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;
const STATUS_OUT: u8 = 1 << 7;
const STATUS_NULL_COUNT: u8 = 1 << 6;

/// What a counter does, bits 3:1 of its control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// 0: OUT rises when the count is reached.
    InterruptOnTerminalCount,
    /// 2: a pulse for each count.
    RateGenerator,
    /// 3.
    SquareWave,
    /// 4: one pulse when the count is reached.
    SoftwareTriggeredStrobe,
}

impl Mode {
    fn from_control_word(word: u8) -> Result<Mode, Refused> {
        match word & 0xf {
            0x0 => Ok(Mode::InterruptOnTerminalCount),
            0x4 => Ok(Mode::RateGenerator),
            0x6 => Ok(Mode::SquareWave),
            0x8 => Ok(Mode::SoftwareTriggeredStrobe),
            _ => Err(Refused),
        }
    }
}

/// One of the two bytes of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Half {
    Low,
    High,
}

impl Half {
    fn of(self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        match self {
            Half::Low => low,
            Half::High => high,
        }
    }

    fn other(self) -> Half {
        match self {
            Half::Low => Half::High,
            Half::High => Half::Low,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    mode: Mode,
    /// 0 until the first count is written.
    initial: u16,
    /// When counting began, in nanoseconds.
    loaded: u64,
    /// A control word has been written since the last count.
    null_count: bool,
    /// The low byte of a count whose high byte has not been written yet.
    half_written: Option<u8>,
    /// A latched count, and which byte of it is read next.
    latched_count: Option<(u16, Half)>,
    latched_status: Option<u8>,
    /// Which byte of the running count is read next.
    running: Half,
}

impl Counter {
    fn new() -> Counter {
        Counter {
            mode: Mode::InterruptOnTerminalCount,
            initial: 0,
            loaded: 0,
            null_count: false,
            half_written: None,
            latched_count: None,
            latched_status: None,
            running: Half::Low,
        }
    }

    fn elapsed(&self, now: u64) -> u64 {
        FREQUENCY.ticks(now.saturating_sub(self.loaded))
    }

    fn count(&mut self, now: u64) -> u16 {
        if self.initial == 0 {
            self.initial = DEFAULT_COUNT;
            self.loaded = now;
            self.null_count = false;
        }
        self.initial - (self.elapsed(now) % u64::from(self.initial)) as u16
    }

    /// The output, which is kept track of in mode 0 only.
    fn out(&self, now: u64) -> bool {
        self.mode == Mode::InterruptOnTerminalCount && self.elapsed(now) >= u64::from(self.initial)
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some((self.count(now), Half::Low));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let out = if self.out(now) { STATUS_OUT } else { 0 };
            let null_count = if self.null_count { STATUS_NULL_COUNT } else { 0 };
            self.latched_status = Some(out | null_count);
        }
    }

    fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.latched_count = None;
        self.null_count = true;
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some((count, half)) = self.latched_count {
            self.latched_count = (half == Half::Low).then_some((count, Half::High));
            return half.of(count);
        }
        let byte = self.running.of(self.count(now));
        self.running = self.running.other();
        byte
    }

    /// Returns whether the count is complete, so that counting begins.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let Some(low) = self.half_written.take() else {
            self.half_written = Some(value);
            return false;
        };
        self.initial = match u16::from_le_bytes([low, value]) {
            0 => 0xffff,
            count => count,
        };
        self.loaded = now;
        self.null_count = false;
        self.running = Half::Low;
        true
    }
}

/// The interval timer of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vatpit {
    counters: [Counter; 3],
    /// When counter 0 interrupts.
    countdown: Option<Countdown>,
}

impl Default for Vatpit {
    fn default() -> Vatpit {
        Vatpit::new()
    }
}

impl Vatpit {
    /// The I/O ports of the device.
    pub const PORTS: [u16; 5] = [COUNTER0, COUNTER0 + 1, COUNTER2, CONTROL, PORT_B];

    /// `vatpit_init`: no counter counts.
    #[must_use]
    pub fn new() -> Vatpit {
        Vatpit { counters: [Counter::new(), Counter::new(), Counter::new()], countdown: None }
    }

    /// Reads a byte from a port.
    ///
    /// # Errors
    /// When it is no port of the device, or the control word, which cannot be read.
    pub fn read(&mut self, port: u16, now: u64) -> Result<u8, Refused> {
        match port {
            COUNTER0..=COUNTER2 => Ok(self.counters[usize::from(port - COUNTER0)].read(now)),
            PORT_B => Ok(if self.counters[2].out(now) { PORT_B_OUT2 } else { 0 }),
            _ => Err(Refused),
        }
    }

    /// Writes a byte to a port. Port 0x61, the gate of counter 2 and the speaker, takes everything and does nothing.
    ///
    /// # Errors
    /// When it is no port of the device, or a control word that is not modelled.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Result<(), Refused> {
        match port {
            COUNTER0..=COUNTER2 => {
                let index = usize::from(port - COUNTER0);
                let counter = &mut self.counters[index];
                if counter.write(value, now) && index == 0 {
                    self.countdown = Some(Countdown::new(FREQUENCY, counter.initial.into(), now));
                }
                Ok(())
            }
            CONTROL => self.control(value, now),
            PORT_B => Ok(()),
            _ => Err(Refused),
        }
    }

    fn control(&mut self, word: u8, now: u64) -> Result<(), Refused> {
        if word >> 6 == READ_BACK {
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if word & 2 << index != 0 {
                    if word & READ_BACK_NO_COUNT == 0 {
                        counter.latch_count(now);
                    }
                    if word & READ_BACK_NO_STATUS == 0 {
                        counter.latch_status(now);
                    }
                }
            }
            return Ok(());
        }
        let counter = &mut self.counters[usize::from(word >> 6)];
        match word >> 4 & 3 {
            0b00 => counter.latch_count(now),
            0b11 => counter.set_mode(Mode::from_control_word(word)?),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// When counter 0 interrupts next, in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.countdown.map(Countdown::deadline)
    }

    /// Returns whether counter 0 has interrupted: IRQ 0 of the 8259s and pin 2 of the I/O APIC are to be pulsed.
    pub fn advance(&mut self, now: u64) -> bool {
        let Some(countdown) = self.countdown.filter(|countdown| countdown.deadline() <= now) else {
            return false;
        };
        let counter = &self.counters[0];
        self.countdown = (counter.mode == Mode::RateGenerator).then(|| countdown.next(counter.initial.into(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(vatpit: &mut Vatpit, port: u16, value: u8, now: u64) {
        vatpit.write(port, value, now).expect("the write is one that the device takes");
    }

    fn read(vatpit: &mut Vatpit, port: u16, now: u64) -> u8 {
        vatpit.read(port, now).expect("the port can be read")
    }

    fn program(vatpit: &mut Vatpit, counter: u8, mode: u8, count: u16, now: u64) {
        write(vatpit, CONTROL, counter << 6 | 0x30 | mode << 1, now);
        for byte in count.to_le_bytes() {
            write(vatpit, COUNTER0 + u16::from(counter), byte, now);
        }
    }

    fn read_count(vatpit: &mut Vatpit, counter: u8, now: u64) -> u16 {
        let port = COUNTER0 + u16::from(counter);
        u16::from_le_bytes([read(vatpit, port, now), read(vatpit, port, now)])
    }

    #[test]
    fn a_rate_generator_interrupts_again_and_again() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 0, 2, 11_932, 1000);
        let period = FREQUENCY.ns(11_932);
        assert_eq!(vatpit.next_deadline(), Some(1000 + period));
        assert!(!vatpit.advance(999 + period));
        assert!(vatpit.advance(1000 + period));
        assert_eq!(vatpit.next_deadline(), Some(1000 + FREQUENCY.ns(2 * 11_932)));
        assert!(vatpit.advance(1_000_000_000), "late by many periods");
        assert!(!vatpit.advance(1_000_000_000), "once only");
        assert_eq!(vatpit.next_deadline(), Some(1_000_000_000 + period));
    }

    #[test]
    fn other_modes_interrupt_once() {
        for mode in [0, 3, 4] {
            let mut vatpit = Vatpit::new();
            program(&mut vatpit, 0, mode, 100, 0);
            assert!(vatpit.advance(FREQUENCY.ns(100)), "mode {mode}");
            assert_eq!(vatpit.next_deadline(), None, "mode {mode}");
        }
    }

    #[test]
    fn only_counter_0_interrupts() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 1, 2, 18, 0);
        program(&mut vatpit, 2, 2, 18, 0);
        assert_eq!(vatpit.next_deadline(), None);
    }

    #[test]
    fn what_is_not_modelled_is_refused() {
        let mut vatpit = Vatpit::new();
        // Modes 1 and 5, BCD, one byte only.
        for word in [0x32, 0x3a, 0x35, 0x14, 0x24] {
            assert_eq!(vatpit.write(CONTROL, word, 0), Err(Refused), "{word:#x}");
        }
        assert_eq!(vatpit.read(CONTROL, 0), Err(Refused));
        assert_eq!(vatpit.read(0x44, 0), Err(Refused));
        assert_eq!(vatpit.write(0x44, 0, 0), Err(Refused));
    }

    /// How Linux and FreeBSD measure their clocks: counter 2 in mode 0, and its output at port 0x61.
    #[test]
    fn counter_2_shows_at_port_b() {
        let mut vatpit = Vatpit::new();
        write(&mut vatpit, PORT_B, 1, 0);
        program(&mut vatpit, 2, 0, 59_659, 0);
        let end = FREQUENCY.ns(59_659);
        assert_eq!(read(&mut vatpit, PORT_B, end - 1), 0);
        assert_eq!(read(&mut vatpit, PORT_B, end), PORT_B_OUT2);
        program(&mut vatpit, 2, 3, 59_659, end);
        assert_eq!(read(&mut vatpit, PORT_B, 3 * end), 0);
    }

    #[test]
    fn latched_counts_stand_still() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 0, 2, 0x1234, 0);
        let then = FREQUENCY.ns(0x34);
        write(&mut vatpit, CONTROL, 0x00, then);
        write(&mut vatpit, CONTROL, 0x00, 2 * then);
        assert_eq!(read(&mut vatpit, COUNTER0, 3 * then), 0x00, "the first latch holds");
        assert_eq!(read(&mut vatpit, COUNTER0, 4 * then), 0x12);
        assert_eq!(read_count(&mut vatpit, 0, 0), 0x1234, "then reads follow the counter");
    }

    #[test]
    fn a_control_word_drops_the_latch() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 0, 2, 0x1234, 0);
        write(&mut vatpit, CONTROL, 0x00, 0);
        program(&mut vatpit, 0, 2, 0x5678, 0);
        assert_eq!(read_count(&mut vatpit, 0, 0), 0x5678);
    }

    #[test]
    fn a_count_of_0_counts_65535() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 0, 2, 0, 0);
        assert_eq!(read_count(&mut vatpit, 0, 0), 0xffff);
        assert_eq!(vatpit.next_deadline(), Some(FREQUENCY.ns(0xffff)));
    }

    #[test]
    fn read_back_latches_status_and_count() {
        let mut vatpit = Vatpit::new();
        program(&mut vatpit, 0, 0, 0x0100, 0);
        let end = FREQUENCY.ns(0x100);
        // Status and count of counters 0 and 2.
        write(&mut vatpit, CONTROL, 0b1100_1010, FREQUENCY.ns(0x80));
        assert_eq!(read(&mut vatpit, COUNTER0, end), 0, "status first: OUT is low");
        assert_eq!(read_count(&mut vatpit, 0, end), 0x80);
        // Status alone, of counter 0.
        write(&mut vatpit, CONTROL, 0b1110_0010, end);
        assert_eq!(read(&mut vatpit, COUNTER0, end), STATUS_OUT);
        write(&mut vatpit, CONTROL, 0x34, end);
        write(&mut vatpit, CONTROL, 0b1110_0010, end);
        assert_eq!(read(&mut vatpit, COUNTER0, end), STATUS_NULL_COUNT);
        // Count alone, of counter 0.
        program(&mut vatpit, 0, 2, 0x0100, end);
        write(&mut vatpit, CONTROL, 0b1101_0010, end);
        assert_eq!(read_count(&mut vatpit, 0, 2 * end), 0x100);
    }

    #[test]
    fn a_counter_that_was_never_written_counts_at_100_hz() {
        let mut vatpit = Vatpit::new();
        assert_eq!(read_count(&mut vatpit, 2, 5), DEFAULT_COUNT);
        write(&mut vatpit, CONTROL, 0x80, 5 + FREQUENCY.ns(100));
        assert_eq!(read_count(&mut vatpit, 2, 0), DEFAULT_COUNT - 100);
    }

    proptest! {
        #[test]
        fn counts_down_and_around(count in 1_u16.., ticks in 0_u64..200_000, start in 0_u64..1 << 50) {
            let mut vatpit = Vatpit::new();
            program(&mut vatpit, 1, 2, count, start);
            let expected = u64::from(count) - ticks % u64::from(count);
            prop_assert_eq!(u64::from(read_count(&mut vatpit, 1, start + FREQUENCY.ns(ticks))), expected);
        }

        #[test]
        fn any_sequence_is_answered(accesses: Vec<(bool, u8, u8, u32)>) {
            let (mut vatpit, mut now) = (Vatpit::new(), 0);
            for (reads, port, value, step) in accesses {
                let port = Vatpit::PORTS[usize::from(port) % 5];
                now += u64::from(step);
                if reads {
                    prop_assert_eq!(vatpit.read(port, now).is_err(), port == CONTROL);
                } else {
                    let _ = vatpit.write(port, value, now);
                }
                vatpit.advance(now);
                prop_assert!(vatpit.next_deadline().is_none_or(|deadline| deadline > now));
            }
        }
    }
}
