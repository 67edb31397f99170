//! The board: the interrupt controllers and timers that all vCPUs of a VM share, and how they are wired.

use super::snapshot;
use crate::abi::snapshot::req;
use crate::abi::{Errno, VmIsaIrq, VmIsaIrqTrigger};
use crate::device::message::Message;
use crate::device::vatpic::Vatpic;
use crate::device::vatpit::Vatpit;
use crate::device::vhpet::{self, VHPET_BASE, Vhpet};
use crate::device::vioapic::{VIOAPIC_BASE, Vioapic};
use crate::device::vpmtmr::{IO_PMTMR, Vpmtmr};
use crate::device::vrtc::Vrtc;
use crate::device::{IrqState, Refused};
use crate::memory::PAGE_SIZE;

/// The timer's line on the 8259s, and its pin on the I/O APIC (the MADT's override).
const PIT_ATPIC_IRQ: i32 = 0;
const PIT_IOAPIC_PIN: i32 = 2;
/// `VHPET_SIZE`: the registers' address space, in bytes.
const VHPET_SIZE: u64 = 1024;
/// The clock's line on both.
const RTC_IRQ: i32 = 8;

/// The shared devices.
pub(super) struct Board {
    ioapic: Vioapic,
    atpic: Vatpic,
    pit: Vatpit,
    pmtmr: Vpmtmr,
    rtc: Vrtc,
    hpet: Vhpet,
    signals: Signals,
}

/// What the devices have raised.
#[derive(Default)]
pub(super) struct Signals {
    /// Interrupts for local APICs.
    pub(super) messages: Vec<Message>,
    /// The 8259s' INTR rose.
    pub(super) extint: bool,
}

impl From<Refused> for Errno {
    /// What a device refuses is EINVAL at the ioctl boundary.
    fn from(_: Refused) -> Errno {
        Errno::EINVAL
    }
}

impl Board {
    /// The devices of a new VM.
    pub(super) fn new() -> Board {
        Board::at(0)
    }

    /// `vm_reinit`: every device is made anew but the clock, which goes on with its memory (`vm_init` makes an RTC for a new VM
    /// alone, and `vm_cleanup` resets it).
    pub(super) fn reinit(self, now: u64) -> Board {
        let mut rtc = self.rtc;
        rtc.reset();
        Board { rtc, ..Board::at(now) }
    }

    fn at(now: u64) -> Board {
        Board {
            ioapic: Vioapic::new(),
            atpic: Vatpic::new(),
            pit: Vatpit::new(),
            pmtmr: Vpmtmr::new(now),
            rtc: Vrtc::new(0),
            hpet: Vhpet::new(),
            signals: Signals::default(),
        }
    }

    /// What was raised since the last call, if anything.
    pub(super) fn take_signals(&mut self) -> Option<Signals> {
        let raised = self.signals.extint || !self.signals.messages.is_empty();
        raised.then(|| std::mem::take(&mut self.signals))
    }

    // -- snapshots --------------------------------------------------------------------------------------------------

    /// The device that a number of [`req`] stands for, as bytes; `None` when it is none of the board.
    pub(super) fn save(&self, structure: u32) -> Option<Vec<u8>> {
        Some(match structure {
            req::VIOAPIC => snapshot::encode(&self.ioapic),
            req::VATPIC => snapshot::encode(&self.atpic),
            req::VATPIT => snapshot::encode(&self.pit),
            req::VPMTMR => snapshot::encode(&self.pmtmr),
            req::VRTC => snapshot::encode(&self.rtc),
            req::VHPET => snapshot::encode(&self.hpet),
            _ => return None,
        })
    }

    /// Puts a device back as it was saved; EINVAL for bytes that are none. `None` as for [`Board::save`].
    pub(super) fn restore(&mut self, structure: u32, bytes: &[u8]) -> Option<Result<(), Errno>> {
        Some(match structure {
            req::VIOAPIC => snapshot::decode(bytes).map(|device| self.ioapic = device),
            req::VATPIC => snapshot::decode(bytes).map(|device| self.atpic = device),
            req::VATPIT => snapshot::decode(bytes).map(|device| self.pit = device),
            req::VPMTMR => snapshot::decode(bytes).map(|device| self.pmtmr = device),
            req::VRTC => snapshot::decode(bytes).map(|device| self.rtc = device),
            req::VHPET => snapshot::decode(bytes).map(|device| self.hpet = device),
            _ => return None,
        })
    }

    // -- interrupt lines --------------------------------------------------------------------------------------------

    /// VM_IOAPIC_ASSERT_IRQ and its like.
    pub(super) fn set_ioapic_pin(&mut self, pin: i32, state: IrqState) -> Result<(), Errno> {
        let message = self.ioapic.set_pin(pin, state)?;
        self.signals.messages.extend(message);
        Ok(())
    }

    /// VM_ISA_ASSERT_IRQ and its like: a line of the 8259s, and a pin of the I/O APIC unless that is −1.
    pub(super) fn set_isa_irq(&mut self, irq: VmIsaIrq, state: IrqState) -> Result<(), Errno> {
        let rose = self.atpic.set_irq(irq.atpic_irq, state)?;
        self.intr(rose);
        if irq.ioapic_irq != -1 {
            self.set_ioapic_pin(irq.ioapic_irq, state)?;
        }
        Ok(())
    }

    /// VM_ISA_SET_IRQ_TRIGGER.
    pub(super) fn set_isa_trigger(&mut self, trigger: VmIsaIrqTrigger) -> Result<(), Errno> {
        Ok(self.atpic.set_trigger(trigger.atpic_irq, trigger.trigger != 0)?)
    }

    /// `vatpic_notify_intr`: INTR goes to the local APICs' LINT0, and to pin 0 of the I/O APIC.
    fn intr(&mut self, rose: bool) {
        if rose {
            self.signals.extint = true;
            let message = self.ioapic.set_pin(0, IrqState::Pulse).ok().flatten();
            self.signals.messages.extend(message);
        }
    }

    /// The processor acknowledges an external interrupt: the 8259s' vector.
    pub(super) fn acknowledge_extint(&mut self) -> Option<u8> {
        let vector = self.atpic.pending()?;
        let rose = self.atpic.acknowledge(vector);
        self.intr(rose);
        Some(vector)
    }

    /// A local APIC's EOI of a level-triggered vector.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) {
        let messages = self.ioapic.eoi(vector);
        self.signals.messages.extend(messages);
    }

    // -- time -------------------------------------------------------------------------------------------------------

    /// When the next timer of the board is due, in nanoseconds.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        [self.pit.next_deadline(), self.rtc.next_deadline(), self.hpet.next_deadline()].into_iter().flatten().min()
    }

    /// Fires what is due.
    pub(super) fn advance(&mut self, now: u64) {
        if self.pit.advance(now) {
            let irq = VmIsaIrq { atpic_irq: PIT_ATPIC_IRQ, ioapic_irq: PIT_IOAPIC_PIN };
            self.set_isa_irq(irq, IrqState::Pulse).expect("both lines exist");
        }
        let rtc = self.rtc.advance(now);
        self.rtc_interrupt(rtc);
        let hpet = self.hpet.advance(now);
        self.hpet_interrupts(hpet);
    }

    fn rtc_interrupt(&mut self, raised: bool) {
        if raised {
            let irq = VmIsaIrq { atpic_irq: RTC_IRQ, ioapic_irq: RTC_IRQ };
            self.set_isa_irq(irq, IrqState::Pulse).expect("both lines exist");
        }
    }

    fn hpet_interrupts(&mut self, interrupts: Vec<vhpet::Interrupt>) {
        for interrupt in interrupts {
            match interrupt {
                vhpet::Interrupt::Message(message) => self.signals.messages.push(message),
                vhpet::Interrupt::Pin(pin, state) => {
                    self.set_ioapic_pin(pin, state).expect("the HPET is wired to pins that exist");
                }
            }
        }
    }

    // -- ports ------------------------------------------------------------------------------------------------------

    /// `emulate_ioport` for IN. `None` when the port is userspace's.
    pub(super) fn read_port(&mut self, port: u16, size: u8, now: u64) -> Option<Result<u32, Refused>> {
        if port == IO_PMTMR {
            return Some(if size == 4 { Ok(self.pmtmr.read(now)) } else { Err(Refused) });
        }
        let device = PortDevice::at(port)?;
        if size != 1 {
            return Some(Err(Refused));
        }
        let value = match device {
            PortDevice::Atpic => self.atpic.read(port),
            PortDevice::Pit => self.pit.read(port, now),
            PortDevice::Rtc => self.rtc.read(port, now).map(|(value, interrupt)| {
                self.rtc_interrupt(interrupt);
                value
            }),
        };
        Some(value.map(u32::from))
    }

    /// `emulate_ioport` for OUT. `None` when the port is userspace's.
    pub(super) fn write_port(&mut self, port: u16, size: u8, data: u32, now: u64) -> Option<Result<(), Refused>> {
        if port == IO_PMTMR {
            return Some(Err(Refused));
        }
        let device = PortDevice::at(port)?;
        if size != 1 {
            return Some(Err(Refused));
        }
        let value = data as u8;
        Some(match device {
            PortDevice::Atpic => self.atpic.write(port, value).map(|rose| self.intr(rose)),
            PortDevice::Pit => self.pit.write(port, value, now),
            PortDevice::Rtc => self.rtc.write(port, value, now).map(|interrupt| self.rtc_interrupt(interrupt)),
        })
    }

    // -- memory-mapped registers ------------------------------------------------------------------------------------

    /// Reads a register of the I/O APIC or the HPET. `None` when there is none of the board at the address.
    pub(super) fn read_mmio(&mut self, gpa: u64, size: u8, now: u64) -> Option<u64> {
        if let Some(offset) = offset_in(VHPET_BASE, VHPET_SIZE, gpa) {
            return Some(self.hpet.mmio_read(offset, size, now));
        }
        let offset = offset_in(VIOAPIC_BASE, PAGE_SIZE, gpa)?;
        Some(if size == 4 { u64::from(self.ioapic.mmio_read(offset)) } else { 0 })
    }

    /// Writes a register of the I/O APIC or the HPET. `None` when there is none of the board at the address, else whether
    /// the routing of interrupts changed.
    pub(super) fn write_mmio(&mut self, gpa: u64, size: u8, data: u64, now: u64) -> Option<bool> {
        if let Some(offset) = offset_in(VHPET_BASE, VHPET_SIZE, gpa) {
            let interrupts = self.hpet.mmio_write(offset, size, data, now);
            self.hpet_interrupts(interrupts);
            return Some(false);
        }
        let offset = offset_in(VIOAPIC_BASE, PAGE_SIZE, gpa)?;
        if size != 4 {
            return Some(false);
        }
        let written = self.ioapic.mmio_write(offset, data as u32);
        self.signals.messages.extend(written.message);
        Some(written.routing_changed)
    }

    // -- the clock --------------------------------------------------------------------------------------------------

    /// VM_RTC_READ.
    pub(super) fn read_nvram(&mut self, offset: i32, now: u64) -> Result<u8, Errno> {
        Ok(self.rtc.nvram_read(offset, now)?)
    }

    /// VM_RTC_WRITE.
    pub(super) fn write_nvram(&mut self, offset: i32, value: u8) -> Result<(), Errno> {
        Ok(self.rtc.nvram_write(offset, value)?)
    }

    /// VM_RTC_SETTIME, seconds since 1970.
    pub(super) fn set_time(&mut self, secs: i64, now: u64) -> Result<(), Errno> {
        let interrupt = self.rtc.set_time(secs, now).map_err(|_| Errno::EBUSY)?;
        self.rtc_interrupt(interrupt);
        Ok(())
    }

    /// VM_RTC_GETTIME.
    pub(super) fn time(&self, now: u64) -> i64 {
        self.rtc.get_time(now)
    }
}

/// The devices whose ports take single bytes.
#[derive(Clone, Copy)]
enum PortDevice {
    Atpic,
    Pit,
    Rtc,
}

impl PortDevice {
    fn at(port: u16) -> Option<PortDevice> {
        let devices: [(&[u16], PortDevice); 3] =
            [(&Vatpic::PORTS, PortDevice::Atpic), (&Vatpit::PORTS, PortDevice::Pit), (&Vrtc::PORTS, PortDevice::Rtc)];
        devices.into_iter().find(|(ports, _)| ports.contains(&port)).map(|(_, device)| device)
    }
}

fn offset_in(base: u64, size: u64, gpa: u64) -> Option<u16> {
    gpa.checked_sub(base).filter(|&offset| offset < size).map(|offset| offset as u16)
}
