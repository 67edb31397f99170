//! A 16550 whose interrupts are edges, as on bhyve's LPC bridge. What it receives, somebody typed at the console; it notices when the
//! guest looks.

use crate::Console;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// First port.
pub(super) const COM1: u16 = 0x3f8;
/// Last port.
pub(super) const COM1_LAST: u16 = 0x3ff;
/// ISA interrupt.
pub(super) const COM1_IRQ: u8 = 4;

/// Remembers that the interrupt line was pulsed.
#[derive(Clone, Default)]
struct Pulse(Arc<AtomicBool>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

pub(super) struct Uart {
    serial: Serial<Pulse, NoEvents, Console>,
    console: Console,
    pulse: Pulse,
}

impl Uart {
    pub(super) fn new(console: &Console) -> Uart {
        let pulse = Pulse::default();
        Uart { serial: Serial::new(pulse.clone(), console.clone()), console: console.clone(), pulse }
    }

    /// Reads the register at `offset` from the first port. Returns it and whether the interrupt was pulsed.
    pub(super) fn read(&mut self, offset: u8) -> (u8, bool) {
        let typed = self.console.take_typed(self.serial.fifo_capacity());
        // There is room for so many; in loopback mode the line is cut off, and they are lost.
        let _lost = self.serial.enqueue_raw_bytes(&typed);
        let value = self.serial.read(offset);
        (value, self.take_pulse())
    }

    /// Writes the register at `offset` from the first port. Returns whether the interrupt was pulsed.
    pub(super) fn write(&mut self, offset: u8, value: u8) -> bool {
        // In loopback mode a byte more than the receive FIFO holds is lost, on real hardware too (an overrun).
        let _overrun = self.serial.write(offset, value);
        self.take_pulse()
    }

    fn take_pulse(&self) -> bool {
        self.pulse.0.swap(false, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keyboard;

    #[test]
    fn sends_and_interrupts_only_when_told() {
        let console = Console::new();
        let mut uart = Uart::new(&console);
        assert_ne!(uart.read(5).0 & 0x20, 0, "LSR.THRE: ready to send");
        assert!(!uart.write(0, b'a'));
        assert!(uart.write(1, 0x02), "IER.ETHREI: the holding register is empty");
        assert_eq!(uart.read(2).0 & 0xf, 0x2, "IIR says so, and forgets it");
        assert!(uart.write(0, b'b'), "it is empty again at once");
        assert_eq!(console.serial(), b"ab");
    }

    #[test]
    fn receives_what_is_typed() {
        let keyboard = Keyboard::default();
        let mut uart = Uart::new(&Console::new().with_keyboard(keyboard.clone()));
        assert_eq!(uart.read(5).0 & 1, 0, "LSR.DR: nothing is there");
        keyboard.type_in(b"xy");
        assert_eq!(uart.read(5).0 & 1, 1);
        assert_eq!([uart.read(0).0, uart.read(0).0], *b"xy");
        assert_eq!(uart.read(5).0 & 1, 0);
        uart.write(1, 0x01);
        keyboard.type_in(b"z");
        assert!(uart.read(5).1, "IER.ERBFI: the interrupt comes with the byte");
    }
}
