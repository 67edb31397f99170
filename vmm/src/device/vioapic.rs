//! The I/O APIC (`vioapic.c`; 82093AA data sheet): 32 pins at 0xFEC00000.

use super::message::Message;
use super::{IrqState, Refused};
use crate::trace::DeliveryMode;
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

/// `VIOAPIC_BASE`: where the registers are; the page is 4 KiB.
pub const VIOAPIC_BASE: u64 = 0xfec0_0000;

/// `REDIR_ENTRIES`: how many pins there are.
pub const PINS: usize = 32;

/// Offsets in the page. There is no EOI register: it came with version 0x20.
const IOREGSEL: u16 = 0x00;
const IOWIN: u16 = 0x10;

/// Registers that IOREGSEL selects.
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;

/// Version 0x11, and the number of the last entry.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

/// A redirection table entry (82093AA 3.2.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct Redirection {
    vector: u8,
    #[bits(3)]
    delivery_mode: u8,
    logical: bool,
    delivery_status: bool,
    active_low: bool,
    remote_irr: bool,
    level: bool,
    masked: bool,
    #[bits(39)]
    __: u64,
    dest: u8,
}

impl Redirection {
    /// As `vioapic_init` leaves an entry: masked. The bit in the high half is FreeBSD's.
    const INITIAL: Redirection = Redirection::from_bits(0x0001_0000_0001_0000);
    /// Remote IRR and delivery status.
    const READ_ONLY: u64 = Redirection::new().with_remote_irr(true).with_delivery_status(true).into_bits();
    /// Mask and polarity: they do not bear on trigger modes.
    const NO_ROUTING: u64 = Redirection::new().with_masked(true).with_active_low(true).into_bits();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    #[serde(with = "as_bits")]
    redirection: Redirection,
    /// Assertions less de-assertions.
    asserted: i32,
}

/// What a register write leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// More than mask and polarity of an entry changed. FreeBSD then recomputes the trigger mode registers of all active
    /// vCPUs in a rendezvous; here a local APIC learns the trigger mode with each interrupt, so that the rendezvous is all
    /// that is left to do.
    pub routing_changed: bool,
    /// An interrupt that was waiting for the entry.
    pub message: Option<Message>,
}

/// The I/O APIC of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vioapic {
    id: u32,
    ioregsel: u8,
    pins: [Pin; PINS],
}

impl Default for Vioapic {
    fn default() -> Vioapic {
        Vioapic::new()
    }
}

impl Vioapic {
    /// `vioapic_init`: all pins masked.
    #[must_use]
    pub fn new() -> Vioapic {
        Vioapic { id: 0, ioregsel: 0, pins: [Pin { redirection: Redirection::INITIAL, asserted: 0 }; PINS] }
    }

    /// Reads four bytes at `offset` of the page: 0 unless it is IOREGSEL or IOWIN. Other sizes read 0 in FreeBSD.
    #[must_use]
    pub fn mmio_read(&self, offset: u16) -> u32 {
        match offset {
            IOREGSEL => self.ioregsel.into(),
            IOWIN => self.read(),
            _ => 0,
        }
    }

    /// Writes four bytes at `offset` of the page; nothing happens unless it is IOREGSEL or IOWIN. FreeBSD ignores writes of
    /// other sizes.
    pub fn mmio_write(&mut self, offset: u16, value: u32) -> Written {
        match offset {
            IOREGSEL => self.ioregsel = value as u8,
            IOWIN => return self.write(value),
            _ => {}
        }
        Written::default()
    }

    /// Changes a pin. Returns the interrupt that results.
    ///
    /// # Errors
    /// When there is no such pin (`EINVAL`).
    pub fn set_pin(&mut self, pin: i32, state: IrqState) -> Result<Option<Message>, Refused> {
        let pin = usize::try_from(pin).ok().and_then(|pin| self.pins.get_mut(pin)).ok_or(Refused)?;
        let mut message = None;
        for step in state.steps() {
            let before = pin.asserted;
            pin.asserted += step;
            if (before, pin.asserted) == (0, 1) {
                message = pin.send();
            }
        }
        Ok(message)
    }

    /// A level-triggered vector has been EOIed. Returns the interrupts of the pins that it was for and that are still
    /// asserted.
    pub fn eoi(&mut self, vector: u8) -> Vec<Message> {
        let served = self.pins.iter_mut().filter(|pin| {
            let redirection = pin.redirection;
            redirection.remote_irr() && redirection.vector() == vector
        });
        served
            .filter_map(|pin| {
                pin.redirection.set_remote_irr(false);
                if pin.asserted > 0 { pin.send() } else { None }
            })
            .collect()
    }

    fn read(&self) -> u32 {
        match self.ioregsel {
            IOAPICID | IOAPICARB => self.id,
            IOAPICVER => VERSION,
            register => self
                .pins
                .get(entry(register))
                .filter(|_| register >= IOREDTBL)
                .map_or(0, |pin| (pin.redirection.into_bits() >> shift(register)) as u32),
        }
    }

    fn write(&mut self, value: u32) -> Written {
        let register = self.ioregsel;
        if register == IOAPICID {
            self.id = value & 0xff00_0000;
        }
        let Some(pin) = self.pins.get_mut(entry(register)).filter(|_| register >= IOREDTBL) else {
            return Written::default();
        };
        let last = pin.redirection.into_bits();
        let writable = 0xffff_ffff << shift(register) & !Redirection::READ_ONLY;
        let new = last & !writable | u64::from(value) << shift(register) & writable;
        pin.redirection = Redirection::from_bits(new);
        // From level to edge: what a guest does to end an interrupt where there is no directed EOI (vioapic_write). [read]
        if !pin.redirection.level() {
            pin.redirection.set_remote_irr(false);
        }
        let routing_changed = (last ^ new) & !Redirection::NO_ROUTING != 0;
        let message = if !pin.redirection.remote_irr() && pin.asserted > 0 { pin.send() } else { None };
        Written { routing_changed, message }
    }
}

impl Pin {
    /// `vioapic_send_intr`.
    fn send(&mut self) -> Option<Message> {
        let redirection = self.redirection;
        if redirection.masked() {
            return None;
        }
        if redirection.level() {
            self.redirection.set_remote_irr(true);
        }
        Some(Message {
            dest: redirection.dest(),
            logical: redirection.logical(),
            mode: DeliveryMode::from_bits(redirection.delivery_mode().into()),
            vector: redirection.vector(),
            level: redirection.level(),
        })
    }
}

/// The pin that a redirection table register belongs to.
fn entry(register: u8) -> usize {
    usize::from(register.wrapping_sub(IOREDTBL) / 2)
}

/// Where in its entry a redirection table register begins.
fn shift(register: u8) -> u32 {
    u32::from(register % 2) * 32
}

/// How a snapshot keeps a redirection entry: as its 64 bits.
mod as_bits {
    use super::Redirection;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(entry: &Redirection, serializer: S) -> Result<S::Ok, S::Error> {
        entry.into_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Redirection, D::Error> {
        u64::deserialize(deserializer).map(Redirection::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    const LOGICAL: u32 = 1 << 11;

    fn set(vioapic: &mut Vioapic, register: u8, value: u32) -> Written {
        assert_eq!(vioapic.mmio_write(IOREGSEL, register.into()), Written::default());
        vioapic.mmio_write(IOWIN, value)
    }

    fn get(vioapic: &mut Vioapic, register: u8) -> u32 {
        vioapic.mmio_write(IOREGSEL, register.into());
        vioapic.mmio_read(IOWIN)
    }

    fn route(vioapic: &mut Vioapic, pin: u8, dest: u8, low: u32) {
        set(vioapic, IOREDTBL + 2 * pin + 1, u32::from(dest) << 24);
        set(vioapic, IOREDTBL + 2 * pin, low);
    }

    #[test]
    fn identification() {
        let mut vioapic = Vioapic::new();
        assert_eq!(get(&mut vioapic, IOAPICVER), 0x001f_0011);
        set(&mut vioapic, IOAPICVER, 0);
        set(&mut vioapic, IOAPICID, 0x0f12_3456);
        assert_eq!(get(&mut vioapic, IOAPICID), 0x0f00_0000);
        assert_eq!(get(&mut vioapic, IOAPICARB), 0x0f00_0000);
        assert_eq!(get(&mut vioapic, IOAPICVER), 0x001f_0011);
        assert_eq!(vioapic.mmio_read(IOREGSEL), 1);
        assert_eq!((get(&mut vioapic, 0x03), get(&mut vioapic, 0x50), get(&mut vioapic, 0xff)), (0, 0, 0));
        assert_eq!(vioapic.mmio_read(0x20), 0);
        for pin in 0..32 {
            assert_eq!(get(&mut vioapic, IOREDTBL + 2 * pin), MASKED);
        }
    }

    #[test]
    fn an_edge_sends_once() {
        let mut vioapic = Vioapic::new();
        route(&mut vioapic, 4, 0b11, LOGICAL | 0x34);
        let message = Message { dest: 0b11, logical: true, mode: DeliveryMode::Fixed, vector: 0x34, level: false };
        assert_eq!(vioapic.set_pin(4, IrqState::Assert), Ok(Some(message)));
        assert_eq!(vioapic.set_pin(4, IrqState::Assert), Ok(None), "a second source on an asserted pin");
        assert_eq!(vioapic.set_pin(4, IrqState::Deassert), Ok(None));
        assert_eq!(vioapic.set_pin(4, IrqState::Pulse), Ok(None), "the first source still holds it");
        assert_eq!(vioapic.set_pin(4, IrqState::Deassert), Ok(None));
        assert_eq!(vioapic.set_pin(4, IrqState::Pulse), Ok(Some(message)));
        assert_eq!(vioapic.set_pin(4, IrqState::Assert), Ok(Some(message)));
        assert_eq!(vioapic.eoi(0x34), [], "only levels are sent again");
    }

    #[test]
    fn a_level_sends_again_at_eoi_as_long_as_it_is_asserted() {
        let mut vioapic = Vioapic::new();
        route(&mut vioapic, 16, 2, LEVEL | 0x50);
        let message = Message { dest: 2, logical: false, mode: DeliveryMode::Fixed, vector: 0x50, level: true };
        assert_eq!(vioapic.set_pin(16, IrqState::Assert), Ok(Some(message)));
        assert_eq!(get(&mut vioapic, IOREDTBL + 32), LEVEL | 1 << 14 | 0x50, "remote IRR");
        assert_eq!(vioapic.eoi(0x51), []);
        assert_eq!(vioapic.eoi(0x50), [message]);
        assert_eq!(vioapic.set_pin(16, IrqState::Deassert), Ok(None));
        assert_eq!(vioapic.eoi(0x50), []);
        assert_eq!(get(&mut vioapic, IOREDTBL + 32), LEVEL | 0x50);
    }

    #[test]
    fn unmasking_sends_what_waits() {
        let mut vioapic = Vioapic::new();
        route(&mut vioapic, 10, 1, MASKED | LEVEL | 0x60);
        assert_eq!(vioapic.set_pin(10, IrqState::Assert), Ok(None));
        let written = set(&mut vioapic, IOREDTBL + 20, LEVEL | 0x60);
        assert!(written.message.is_some_and(|message| message.vector == 0x60));
        assert!(!written.routing_changed, "the mask alone changed");
        let written = set(&mut vioapic, IOREDTBL + 20, LEVEL | 0x61);
        assert_eq!(written, Written { routing_changed: true, message: None }, "not yet EOIed");
    }

    #[test]
    fn there_are_32_pins() {
        let mut vioapic = Vioapic::new();
        assert_eq!(vioapic.set_pin(31, IrqState::Pulse), Ok(None));
        assert_eq!(vioapic.set_pin(32, IrqState::Pulse), Err(Refused));
        assert_eq!(vioapic.set_pin(-1, IrqState::Pulse), Err(Refused));
    }

    proptest! {
        /// Both halves of an entry keep what is written, but for the read-only bits, and touch no other entry.
        #[test]
        fn entries_are_independent(writes in proptest::collection::vec((any::<u8>(), any::<u32>()), 0..100)) {
            let mut vioapic = Vioapic::new();
            let mut model = [0x0001_0000_u32; 64];
            for (register, value) in writes {
                set(&mut vioapic, register, value);
                if let Some(half) = register.checked_sub(IOREDTBL).filter(|half| *half < 64) {
                    model[usize::from(half)] = if half % 2 == 0 { value & !0x5000 } else { value };
                }
            }
            for half in 0..64_u8 {
                prop_assert_eq!(get(&mut vioapic, IOREDTBL + half), model[usize::from(half)]);
            }
        }
    }
}
