//! The two cascaded interrupt controllers of the PC (`vatpic.c`; 8259A data sheet), and their edge/level control registers.
//!
//! In two places the data sheet is followed where FreeBSD lags behind it: a poll command needs no read-register command
//! with it, and an ICW4 without automatic EOI ends that mode.

use super::{IrqState, Refused};
use serde::{Deserialize, Serialize};

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
/// `IO_ELCR1` and `IO_ELCR2`.
const ELCR_MASTER: u16 = 0x4d0;
const ELCR_SLAVE: u16 = 0x4d1;

/// The pin of the master that the slave is wired to.
const CASCADE: u8 = 2;

/// The pins that can be level-triggered: not the timer, the keyboard and the cascade, nor the clock and the FPU.
const CAN_BE_LEVEL: [u8; 2] = [0xf8, 0xde];

const ICW1: u8 = 1 << 4;
const ICW1_IC4: u8 = 1 << 0;
const ICW1_SNGL: u8 = 1 << 1;
const ICW4_8086: u8 = 1 << 0;
const ICW4_AEOI: u8 = 1 << 1;
const ICW4_SFNM: u8 = 1 << 4;
const OCW2_EOI: u8 = 1 << 5;
const OCW2_SL: u8 = 1 << 6;
const OCW2_R: u8 = 1 << 7;
const OCW3: u8 = 1 << 3;
const OCW3_RIS: u8 = 1 << 0;
const OCW3_RR: u8 = 1 << 1;
const OCW3_P: u8 = 1 << 2;
const OCW3_SMM: u8 = 1 << 5;
const OCW3_ESMM: u8 = 1 << 6;

/// What a write to the data port means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Icw2,
    Icw3,
    Icw4,
    Ocw1,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Atpic {
    /// Whether the initialization sequence has been completed.
    ready: bool,
    expects: Expects,
    /// Whether the slave input stays open while it is in service (special fully nested mode); the master's only.
    special_fully_nested: bool,
    auto_eoi: bool,
    rotate: bool,
    special_mask: bool,
    read_service: bool,
    poll: bool,
    /// Vector of pin 0.
    base: u8,
    request: u8,
    service: u8,
    mask: u8,
    /// The pin of the lowest priority; the next one has the highest.
    lowest: u8,
    /// Assertions less de-assertions.
    asserted: [i32; 8],
    /// Whether the output is raised.
    raised: bool,
}

impl Atpic {
    fn new() -> Atpic {
        Atpic {
            ready: false,
            expects: Expects::Ocw1,
            special_fully_nested: false,
            auto_eoi: false,
            rotate: false,
            special_mask: false,
            read_service: false,
            poll: false,
            base: 0,
            request: 0,
            service: 0,
            mask: 0,
            lowest: 0,
            asserted: [0; 8],
            raised: false,
        }
    }

    /// The pins from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8).map(move |step| (lowest + step) & 7)
    }

    /// The pin that a non-specific EOI is for. In special mask mode a masked pin stays in service.
    fn highest_in_service(&self) -> Option<u8> {
        let eligible = if self.special_mask { self.service & !self.mask } else { self.service };
        self.by_priority().find(|pin| eligible & 1 << pin != 0)
    }

    /// The pin whose request the processor should see.
    fn highest_request(&self) -> Option<u8> {
        let blocking = if self.special_mask {
            0
        } else if self.special_fully_nested {
            self.service & !(1 << CASCADE)
        } else {
            self.service
        };
        self.by_priority()
            .take_while(|pin| blocking & 1 << pin == 0)
            .find(|pin| self.request & !self.mask & 1 << pin != 0)
    }

    /// The processor, or a poll, has taken a request.
    fn accept(&mut self, pin: u8) {
        self.raised = false;
        if self.asserted[usize::from(pin)] == 0 {
            self.request &= !(1 << pin);
        }
        if !self.auto_eoi {
            self.service |= 1 << pin;
        } else if self.rotate {
            self.lowest = pin;
        }
    }

    fn write_command(&mut self, value: u8) -> Result<(), Refused> {
        if value & ICW1 != 0 {
            return self.icw1(value);
        }
        match (self.ready, value & OCW3 != 0) {
            (true, true) => self.ocw3(value),
            (true, false) => self.ocw2(value),
            (false, _) => {}
        }
        Ok(())
    }

    fn write_data(&mut self, value: u8, master: bool) -> Result<(), Refused> {
        match self.expects {
            Expects::Icw2 => {
                self.base = value & 0xf8;
                self.expects = Expects::Icw3;
            }
            // The wiring of the cascade is fixed.
            Expects::Icw3 => self.expects = Expects::Icw4,
            Expects::Icw4 => {
                if value & ICW4_8086 == 0 {
                    return Err(Refused);
                }
                self.auto_eoi = value & ICW4_AEOI != 0;
                self.special_fully_nested = master && value & ICW4_SFNM != 0;
                self.expects = Expects::Ocw1;
                self.ready = true;
            }
            Expects::Ocw1 => self.mask = value,
        }
        Ok(())
    }

    /// Begins the initialization sequence. Only cascaded controllers with an ICW4 are modelled.
    fn icw1(&mut self, value: u8) -> Result<(), Refused> {
        self.ready = false;
        self.request = 0;
        self.mask = 0;
        self.lowest = 7;
        self.read_service = false;
        self.poll = false;
        self.special_mask = false;
        self.expects = Expects::Ocw1;
        if value & ICW1_SNGL != 0 || value & ICW1_IC4 == 0 {
            return Err(Refused);
        }
        self.expects = Expects::Icw2;
        Ok(())
    }

    fn ocw2(&mut self, value: u8) {
        self.rotate = value & OCW2_R != 0;
        let named = value & 7;
        match (value & OCW2_EOI != 0, value & OCW2_SL != 0) {
            (true, specific) => {
                if let Some(pin) = if specific { Some(named) } else { self.highest_in_service() } {
                    self.service &= !(1 << pin);
                    if self.rotate {
                        self.lowest = pin;
                    }
                }
            }
            (false, true) if self.rotate => self.lowest = named,
            (false, _) => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & OCW3_ESMM != 0 {
            self.special_mask = value & OCW3_SMM != 0;
        }
        if value & OCW3_RR != 0 {
            self.read_service = value & OCW3_RIS != 0;
        }
        self.poll = value & OCW3_P != 0;
    }

    /// After a poll command, whatever is read next acknowledges the highest request.
    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return self.highest_request().map_or(0, |pin| {
                self.accept(pin);
                0x80 | pin
            });
        }
        match (data_port, self.read_service) {
            (true, _) => self.mask,
            (false, true) => self.service,
            (false, false) => self.request,
        }
    }
}

/// The interrupt controllers of a virtual machine.
///
/// Methods that return whether INTR rose leave it to the caller to tell: LINT0 of every active vCPU, and a pulse at pin 0
/// of the I/O APIC (MultiProcessor Specification 1.4, 3.6.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vatpic {
    master: Atpic,
    slave: Atpic,
    elcr: [u8; 2],
}

impl Default for Vatpic {
    fn default() -> Vatpic {
        Vatpic::new()
    }
}

impl Vatpic {
    /// The I/O ports of the device.
    pub const PORTS: [u16; 6] = [MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR_MASTER, ELCR_SLAVE];

    /// `vatpic_init`: deaf until initialized by ICW1 to ICW4.
    #[must_use]
    pub fn new() -> Vatpic {
        Vatpic { master: Atpic::new(), slave: Atpic::new(), elcr: [0; 2] }
    }

    /// Reads a byte from a port.
    ///
    /// # Errors
    /// When it is no port of the device.
    pub fn read(&mut self, port: u16) -> Result<u8, Refused> {
        Ok(match port {
            ELCR_MASTER => self.elcr[0],
            ELCR_SLAVE => self.elcr[1],
            _ => self.controller(port)?.read(port & 1 != 0),
        })
    }

    /// Writes a byte to a port. Returns whether INTR rose.
    ///
    /// # Errors
    /// When it is no port of the device, or for an initialization as anything but a cascaded controller in 8086 mode.
    pub fn write(&mut self, port: u16, value: u8) -> Result<bool, Refused> {
        match port {
            ELCR_MASTER => self.elcr[0] = value & CAN_BE_LEVEL[0],
            ELCR_SLAVE => self.elcr[1] = value & CAN_BE_LEVEL[1],
            _ => {
                let controller = self.controller(port)?;
                if port & 1 == 0 {
                    controller.write_command(value)?;
                } else {
                    controller.write_data(value, port & !1 == MASTER)?;
                }
                return Ok(controller.ready && self.notify());
            }
        }
        Ok(false)
    }

    /// Changes an interrupt request line, 0 to 15. Returns whether INTR rose. A controller that is not initialized does not
    /// even count.
    ///
    /// # Errors
    /// When there is no such line (`EINVAL`).
    pub fn set_irq(&mut self, irq: i32, state: IrqState) -> Result<bool, Refused> {
        let (index, pin) = line(irq)?;
        let level = self.elcr[index] & 1 << pin != 0;
        let mut rose = false;
        for step in state.steps() {
            let controller = if index == 0 { &mut self.master } else { &mut self.slave };
            if !controller.ready {
                return Ok(false);
            }
            let asserted = &mut controller.asserted[usize::from(pin)];
            let before = *asserted;
            *asserted += step;
            if (before, *asserted) == (0, 1) || level && *asserted > 0 {
                controller.request |= 1 << pin;
            } else if level && (before, *asserted) == (1, 0) {
                controller.request &= !(1 << pin);
            }
            rose |= self.notify();
        }
        Ok(rose)
    }

    /// `VM_ISA_SET_IRQ_TRIGGER`: makes a line level- or edge-triggered.
    ///
    /// # Errors
    /// When there is no such line, or it cannot be level-triggered (`EINVAL`).
    pub fn set_trigger(&mut self, irq: i32, level: bool) -> Result<(), Refused> {
        let (index, pin) = line(irq)?;
        let bit = 1 << pin;
        if !level {
            self.elcr[index] &= !bit;
        } else if CAN_BE_LEVEL[index] & bit != 0 {
            self.elcr[index] |= bit;
        } else {
            return Err(Refused);
        }
        Ok(())
    }

    /// The vector that the processor gets if it acknowledges now, `None` while INTR is low. When the request has gone away
    /// meanwhile the vector is the spurious one, that of pin 7.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        self.master.raised.then(|| {
            let (controller, pin) = match self.master.highest_request() {
                Some(CASCADE) => (&self.slave, self.slave.highest_request()),
                pin => (&self.master, pin),
            };
            controller.base + pin.unwrap_or(7)
        })
    }

    /// The processor has taken the vector that [`Vatpic::pending`] told. Returns whether INTR rose again.
    pub fn acknowledge(&mut self, vector: u8) -> bool {
        let pin = vector & 7;
        if vector & !7 == self.slave.base {
            self.slave.accept(pin);
            self.master.accept(CASCADE);
        } else {
            self.master.accept(pin);
        }
        self.notify()
    }

    fn controller(&mut self, port: u16) -> Result<&mut Atpic, Refused> {
        match port & !1 {
            MASTER => Ok(&mut self.master),
            SLAVE => Ok(&mut self.slave),
            _ => Err(Refused),
        }
    }

    /// `vatpic_notify_intr`: raises the outputs of the controllers that have something to say. Returns whether INTR, the
    /// output of the master, rose.
    fn notify(&mut self) -> bool {
        if !self.slave.raised && self.slave.highest_request().is_some() {
            self.slave.raised = true;
            self.master.request |= 1 << CASCADE;
        }
        let rises = !self.master.raised && self.master.highest_request().is_some();
        self.master.raised |= rises;
        rises
    }
}

/// The controller, 0 for the master, and the pin of an interrupt request line.
fn line(irq: i32) -> Result<(usize, u8), Refused> {
    match irq {
        0..16 => Ok((irq as usize / 8, irq as u8 % 8)),
        _ => Err(Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use IrqState::{Assert, Deassert, Pulse};
    use proptest::prelude::*;

    /// Initialized as PC firmware does, at vectors 0x20 and 0x28, all lines open.
    fn pc_with(icw4: u8) -> Vatpic {
        let mut vatpic = Vatpic::new();
        for (command, data, base, wiring) in [(0x20, 0x21, 0x20, 4), (0xa0, 0xa1, 0x28, 2)] {
            for (port, value) in [(command, 0x11), (data, base), (data, wiring), (data, icw4)] {
                assert_eq!(vatpic.write(port, value), Ok(false));
            }
        }
        vatpic
    }

    fn pc() -> Vatpic {
        pc_with(ICW4_8086)
    }

    fn read(vatpic: &mut Vatpic, port: u16) -> u8 {
        vatpic.read(port).expect("the port is the device's")
    }

    fn write(vatpic: &mut Vatpic, port: u16, value: u8) -> bool {
        vatpic.write(port, value).expect("the port is the device's")
    }

    fn irq(vatpic: &mut Vatpic, irq: i32, state: IrqState) -> bool {
        vatpic.set_irq(irq, state).expect("the line exists")
    }

    /// Takes the pending interrupt.
    fn take(vatpic: &mut Vatpic) -> Option<u8> {
        let vector = vatpic.pending()?;
        vatpic.acknowledge(vector);
        Some(vector)
    }

    #[test]
    fn deaf_until_initialized() {
        let mut vatpic = Vatpic::new();
        assert!(!irq(&mut vatpic, 0, Pulse));
        assert_eq!(vatpic.pending(), None);
        let mut vatpic = pc();
        assert!(irq(&mut vatpic, 0, Pulse));
        assert_eq!(vatpic.pending(), Some(0x20));
    }

    #[test]
    fn other_modes_are_refused() {
        for icw1 in [0x10, 0x13, 0x12] {
            assert_eq!(Vatpic::new().write(0x20, icw1), Err(Refused), "{icw1:#x}");
        }
        let mut vatpic = Vatpic::new();
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4)] {
            assert_eq!(vatpic.write(port, value), Ok(false));
        }
        assert_eq!(vatpic.write(0x21, 0), Err(Refused), "8080 mode");
        assert_eq!(vatpic.read(0x22), Err(Refused));
        assert_eq!(vatpic.write(0x4d2, 0), Err(Refused));
    }

    #[test]
    fn higher_priority_interrupts_what_is_in_service() {
        let mut vatpic = pc();
        assert!(irq(&mut vatpic, 4, Pulse));
        assert_eq!(take(&mut vatpic), Some(0x24));
        assert!(!irq(&mut vatpic, 5, Pulse), "lower");
        assert_eq!(vatpic.pending(), None);
        assert!(irq(&mut vatpic, 1, Pulse), "higher");
        assert_eq!(take(&mut vatpic), Some(0x21));
        write(&mut vatpic, 0x20, 0x0b);
        assert_eq!(read(&mut vatpic, 0x20), 0b1_0010, "in service");
        write(&mut vatpic, 0x20, 0x0a);
        assert_eq!(read(&mut vatpic, 0x20), 0b10_0000, "requested");
        assert!(!write(&mut vatpic, 0x20, 0x20), "EOI of line 1: line 4 still blocks line 5");
        assert!(write(&mut vatpic, 0x20, 0x20), "EOI of line 4");
        assert_eq!(take(&mut vatpic), Some(0x25));
    }

    #[test]
    fn the_slave_comes_through_the_master() {
        let mut vatpic = pc();
        assert!(irq(&mut vatpic, 12, Pulse));
        assert_eq!(take(&mut vatpic), Some(0x2c));
        write(&mut vatpic, 0x20, 0x0b);
        write(&mut vatpic, 0xa0, 0x0b);
        assert_eq!((read(&mut vatpic, 0x20), read(&mut vatpic, 0xa0)), (1 << 2, 1 << 4));
        assert!(!irq(&mut vatpic, 3, Pulse), "below the cascade");
        write(&mut vatpic, 0xa0, 0x20);
        assert!(write(&mut vatpic, 0x20, 0x20));
        assert_eq!(take(&mut vatpic), Some(0x23));
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
        for (icw4, rises) in [(ICW4_8086, false), (ICW4_8086 | ICW4_SFNM, true)] {
            let mut vatpic = pc_with(icw4);
            assert!(irq(&mut vatpic, 12, Pulse));
            assert_eq!(take(&mut vatpic), Some(0x2c));
            assert_eq!(irq(&mut vatpic, 8, Pulse), rises);
            assert_eq!(vatpic.pending(), rises.then_some(0x28));
        }
    }

    #[test]
    fn masked_lines_wait() {
        let mut vatpic = pc();
        write(&mut vatpic, 0x21, 1 << 3);
        assert!(!irq(&mut vatpic, 3, Pulse));
        assert_eq!(read(&mut vatpic, 0x21), 1 << 3);
        assert!(write(&mut vatpic, 0x21, 0), "an edge is remembered");
        assert_eq!(vatpic.pending(), Some(0x23));
    }

    #[test]
    fn a_request_that_goes_away_is_spurious() {
        let mut vatpic = pc();
        write(&mut vatpic, 0x4d0, 0xff);
        assert_eq!(read(&mut vatpic, 0x4d0), 0xf8);
        assert!(irq(&mut vatpic, 5, Assert));
        irq(&mut vatpic, 5, Deassert);
        assert_eq!(vatpic.pending(), Some(0x27));

        let mut vatpic = pc();
        write(&mut vatpic, 0x4d1, 0xff);
        assert_eq!(read(&mut vatpic, 0x4d1), 0xde);
        assert!(irq(&mut vatpic, 9, Assert));
        irq(&mut vatpic, 9, Deassert);
        assert_eq!(vatpic.pending(), Some(0x2f), "the cascade has been latched");
    }

    #[test]
    fn a_level_requests_until_it_is_released() {
        let mut vatpic = pc();
        vatpic.set_trigger(10, true).expect("line 10 can be level-triggered");
        assert!(irq(&mut vatpic, 10, Assert));
        assert!(!irq(&mut vatpic, 10, Assert), "a second source");
        assert_eq!(take(&mut vatpic), Some(0x2a));
        irq(&mut vatpic, 10, Deassert);
        write(&mut vatpic, 0xa0, 0x20);
        assert!(write(&mut vatpic, 0x20, 0x20), "one source is left");
        assert_eq!(take(&mut vatpic), Some(0x2a));
        irq(&mut vatpic, 10, Deassert);
        write(&mut vatpic, 0xa0, 0x20);
        assert!(!write(&mut vatpic, 0x20, 0x20));
    }

    #[test]
    fn lines_that_are_always_edge_triggered() {
        for irq in 0..16 {
            let fixed = [0, 1, 2, 8, 13].contains(&irq);
            assert_eq!(Vatpic::new().set_trigger(irq, true).is_err(), fixed, "line {irq}");
            assert_eq!(Vatpic::new().set_trigger(irq, false), Ok(()));
        }
        for irq in [-1, 16] {
            assert_eq!(Vatpic::new().set_trigger(irq, false), Err(Refused));
            assert_eq!(pc().set_irq(irq, Pulse), Err(Refused));
        }
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service() {
        let mut vatpic = pc_with(ICW4_8086 | ICW4_AEOI);
        assert!(irq(&mut vatpic, 1, Pulse));
        assert_eq!(take(&mut vatpic), Some(0x21));
        assert!(irq(&mut vatpic, 6, Pulse), "nothing blocks it");
        assert_eq!(take(&mut vatpic), Some(0x26));
        // Rotation in automatic EOI mode: what was served last has the lowest priority.
        write(&mut vatpic, 0x20, OCW2_R);
        irq(&mut vatpic, 0, Pulse);
        assert_eq!(take(&mut vatpic), Some(0x20));
        irq(&mut vatpic, 0, Pulse);
        irq(&mut vatpic, 7, Pulse);
        assert_eq!(take(&mut vatpic), Some(0x27));
        // A new ICW4 ends the mode.
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, ICW4_8086)] {
            write(&mut vatpic, port, value);
        }
        irq(&mut vatpic, 1, Pulse);
        assert_eq!(take(&mut vatpic), Some(0x21));
        assert!(!irq(&mut vatpic, 6, Pulse));
    }

    #[test]
    fn rotation() {
        let mut vatpic = pc();
        // Specific: line 3 becomes the lowest, so that line 4 is the highest.
        write(&mut vatpic, 0x20, OCW2_R | OCW2_SL | 3);
        write(&mut vatpic, 0x21, 0xff);
        irq(&mut vatpic, 0, Pulse);
        irq(&mut vatpic, 4, Pulse);
        write(&mut vatpic, 0x21, 0);
        assert_eq!(take(&mut vatpic), Some(0x24));
        // On a non-specific EOI: what is EOIed becomes the lowest, so that line 5 is the highest.
        assert!(write(&mut vatpic, 0x20, OCW2_R | OCW2_EOI));
        assert_eq!(vatpic.pending(), Some(0x20));
        irq(&mut vatpic, 5, Pulse);
        assert_eq!(take(&mut vatpic), Some(0x25), "it is the acknowledgement that decides");
    }

    #[test]
    fn specific_eoi() {
        let mut vatpic = pc();
        irq(&mut vatpic, 4, Pulse);
        take(&mut vatpic);
        irq(&mut vatpic, 1, Pulse);
        take(&mut vatpic);
        write(&mut vatpic, 0x20, OCW2_EOI | OCW2_SL | 4);
        write(&mut vatpic, 0x20, 0x0b);
        assert_eq!(read(&mut vatpic, 0x20), 1 << 1);
    }

    #[test]
    fn special_mask_mode_opens_what_is_in_service() {
        let mut vatpic = pc();
        irq(&mut vatpic, 1, Pulse);
        assert_eq!(take(&mut vatpic), Some(0x21));
        write(&mut vatpic, 0x21, 1 << 1);
        assert!(!irq(&mut vatpic, 6, Pulse));
        assert!(write(&mut vatpic, 0x20, OCW3 | OCW3_ESMM | OCW3_SMM));
        assert_eq!(take(&mut vatpic), Some(0x26));
        write(&mut vatpic, 0x20, OCW2_EOI);
        write(&mut vatpic, 0x20, 0x0b);
        assert_eq!(read(&mut vatpic, 0x20), 1 << 1, "a non-specific EOI passes the masked line over");
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, ICW4_8086)] {
            write(&mut vatpic, port, value);
        }
        assert!(!irq(&mut vatpic, 6, Pulse), "an initialization ends the mode");
    }

    #[test]
    fn polling_takes_the_request() {
        let mut vatpic = pc();
        irq(&mut vatpic, 3, Pulse);
        write(&mut vatpic, 0x20, OCW3 | OCW3_P);
        assert_eq!(read(&mut vatpic, 0x20), 0x83);
        assert_eq!(vatpic.pending(), None);
        write(&mut vatpic, 0x20, OCW3 | OCW3_P);
        assert_eq!(read(&mut vatpic, 0x20), 0);
        write(&mut vatpic, 0x20, OCW3 | OCW3_P);
        write(&mut vatpic, 0x20, OCW3 | OCW3_RR | OCW3_RIS);
        assert_eq!(read(&mut vatpic, 0x20), 1 << 3, "another command takes the poll back");
    }

    proptest! {
        /// Fully nested mode: lines 0, 1, 8 to 15, 3 to 7 in this order, each taken once for each edge, and an EOI for the
        /// slave and one for the master after each.
        #[test]
        fn fully_nested_order(lines in proptest::collection::btree_set(0_i32..16, 1..16)) {
            let mut vatpic = pc();
            write(&mut vatpic, 0x21, 0xff);
            write(&mut vatpic, 0xa1, 0xff);
            for &line in lines.iter().filter(|&&line| line != 2) {
                prop_assert!(!irq(&mut vatpic, line, Pulse));
            }
            write(&mut vatpic, 0xa1, 0);
            write(&mut vatpic, 0x21, 0);
            let order = [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
            for line in order.into_iter().filter(|line| lines.contains(line)) {
                prop_assert_eq!(take(&mut vatpic), Some(0x20 + line as u8));
                if line >= 8 {
                    write(&mut vatpic, 0xa0, 0x20);
                }
                write(&mut vatpic, 0x20, 0x20);
            }
            prop_assert_eq!(vatpic.pending(), None);
        }

        #[test]
        fn any_sequence_is_answered(accesses: Vec<(u8, u8, u8)>) {
            let mut vatpic = Vatpic::new();
            for (choice, value, extra) in accesses {
                let port = Vatpic::PORTS[usize::from(extra) % 6];
                match choice % 5 {
                    0 => { let _ = vatpic.write(port, value); }
                    1 => { prop_assert!(vatpic.read(port).is_ok()); }
                    2 => { prop_assert!(vatpic.set_irq(i32::from(extra % 16), Pulse).is_ok()); }
                    _ => { take(&mut vatpic); }
                }
            }
        }
    }
}
