//! The serial console: COM1, a 16550, 115200 8N1, polled. Output only.

use crate::port;
use core::sync::atomic::{AtomicU32, Ordering};

const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

/// Line status: the transmit FIFO is empty.
const THRE: u8 = 1 << 5;
/// How many bytes an empty transmit FIFO takes.
const FIFO_SIZE: u32 = 16;
/// How often to look for an empty FIFO. Whoever reads the console may be slow; the tests must not wait for that.
const POLLS: u32 = 1000;

/// How many bytes can still go out unasked.
static ROOM: AtomicU32 = AtomicU32::new(0);

/// Sets the UART up.
pub(crate) fn init() {
    const DLAB: u8 = 1 << 7;
    const EIGHT_BITS: u8 = 0b11;
    port::write_u8(INTERRUPT_ENABLE, 0);
    port::write_u8(LINE_CONTROL, DLAB | EIGHT_BITS);
    port::write_u8(DATA, 1);
    port::write_u8(INTERRUPT_ENABLE, 0);
    port::write_u8(LINE_CONTROL, EIGHT_BITS);
    port::write_u8(FIFO_CONTROL, 0b111);
    port::write_u8(MODEM_CONTROL, 0b11);
}

fn put(byte: u8) {
    let mut room = ROOM.load(Ordering::Relaxed);
    if room == 0 {
        let mut polls = 0;
        while port::read_u8(LINE_STATUS) & THRE == 0 && polls < POLLS {
            crate::cpu::pause();
            polls += 1;
        }
        room = FIFO_SIZE;
    }
    ROOM.store(room - 1, Ordering::Relaxed);
    port::write_u8(DATA, byte);
}

/// One line of output, written piece by piece.
#[must_use = "a line ends with `end`"]
pub struct Line;

impl Line {
    /// Text.
    pub fn text(self, text: &str) -> Line {
        text.bytes().for_each(put);
        self
    }

    /// Bytes as they are.
    pub fn bytes(self, bytes: impl Iterator<Item = u8>) -> Line {
        bytes.for_each(put);
        self
    }

    /// A number in decimal.
    pub fn decimal(self, number: u32) -> Line {
        let line = if number >= 10 { self.decimal(number / 10) } else { self };
        put(b'0' + (number % 10) as u8);
        line
    }

    /// A number in hexadecimal, without leading zeros.
    pub fn hex(self, number: u64) -> Line {
        let line = if number >= 16 { self.hex(number >> 4) } else { self };
        let digit = (number & 15) as u8;
        put(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
        line
    }

    /// The line's end.
    pub fn end(self) {
        put(b'\r');
        put(b'\n');
    }
}
