//! Interrupt pins: which PIRQ and which pin of the I/O APIC each has, and the state of the lines (`pci_irq.c`, `ioapic.c`).

use super::Interrupt;
use super::config::Config;

/// Registers of the LPC bridge that route a PIRQ to an ISA interrupt.
const ROUTES: [usize; 8] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
/// A PIRQ goes nowhere.
const PIRQ_DISABLED: u8 = 0x80;
/// The interrupt's number in a routing register.
const PIRQ_IRQ: u8 = 0x0f;
/// Interrupts that a PIRQ can go to: 3 to 7, 9 to 12, 14 and 15 (`PERMITTED_IRQS`).
const PERMITTED: u16 = 0xdef8;
/// Of those, what others have: COM1, the SCI, the mouse (`pci_irq_reserve`).
const RESERVED: u16 = 1 << 4 | 1 << 9 | 1 << 12;
/// The first pin of the I/O APIC for PCI.
const FIRST_PCI_PIN: u8 = 16;

/// Where the interrupt pin of a slot goes. All of our functions use INTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The slot.
    pub(crate) slot: u8,
    /// The pin of the I/O APIC.
    pub(crate) ioapic_pin: u8,
    /// Which of the eight PIRQs.
    pirq: usize,
    /// The ISA interrupt that it is routed to at first.
    pub(crate) irq: u8,
}

/// The bridge's router.
#[derive(Debug, Default)]
pub(super) struct Router {
    /// How many functions hold each PIRQ.
    active: [u8; 8],
    /// How many slots share each.
    used: [u8; 8],
    /// How many PIRQs go to each ISA interrupt.
    irqs: [u8; 16],
    routed: u8,
}

impl Router {
    /// `pci_lintr_route`: a PIRQ and a pin of the I/O APIC for a slot. With a boot ROM both follow from the slot, else they are
    /// taken in turn. Sets the routing register.
    pub(super) fn route(&mut self, lpc: &mut Config, slot: u8, bootrom: bool) -> Route {
        const PCI_PINS: u8 = 16;
        // (4 + slot + pin) % 8
        let fixed = (4 + slot) % 8;
        let ioapic_pin = FIRST_PCI_PIN + if bootrom { fixed } else { self.routed % PCI_PINS };
        self.routed += 1;
        let least_used = (0..8).min_by_key(|&pirq| self.used[pirq]).unwrap_or(0);
        let pirq = if bootrom { usize::from(fixed) } else { least_used };
        self.used[pirq] += 1;
        if lpc.read(ROUTES[pirq], 1) as u8 == PIRQ_DISABLED {
            let free = (0..16_u8).filter(|irq| PERMITTED & !RESERVED & 1 << irq != 0);
            let irq = free.min_by_key(|irq| self.irqs[usize::from(*irq)]).expect("some interrupts are permitted");
            self.irqs[usize::from(irq)] += 1;
            lpc.set(ROUTES[pirq], irq);
        }
        Route { slot, ioapic_pin, pirq, irq: lpc.read(ROUTES[pirq], 1) as u8 & PIRQ_IRQ }
    }

    /// `pci_irq_assert`, `pci_irq_deassert`.
    pub(super) fn set_level(&mut self, lpc: &Config, route: Route, level: bool) -> Interrupt {
        let active = &mut self.active[route.pirq];
        let edge = if level { *active == 0 } else { *active == 1 };
        *active = if level { active.saturating_add(1) } else { active.saturating_sub(1) };
        let irq = if edge { routed_to(lpc.read(ROUTES[route.pirq], 1) as u8) } else { None };
        Interrupt::Line { irq, ioapic_pin: Some(route.ioapic_pin), level }
    }

    /// `pirq_write`: what follows when a routing register is written while its PIRQ is held.
    pub(super) fn rerouted(&self, register: usize, from: u8, to: u8) -> Vec<Interrupt> {
        let held = ROUTES.iter().position(|route| *route == register).is_some_and(|pirq| self.active[pirq] > 0);
        if !held || from == to {
            return Vec::new();
        }
        let line =
            |value, level| routed_to(value).map(|irq| Interrupt::Line { irq: Some(irq), ioapic_pin: None, level });
        [line(from, false), line(to, true)].into_iter().flatten().collect()
    }
}

/// `pirq_valid_irq`.
fn routed_to(register: u8) -> Option<u8> {
    let irq = register & PIRQ_IRQ;
    (register & PIRQ_DISABLED == 0 && PERMITTED & 1 << irq != 0).then_some(irq)
}

/// The line of one function, which is level triggered (`pci_lintr_assert`, `pci_lintr_deassert`, `pci_lintr_update`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Line {
    /// The function wants no interrupt.
    #[default]
    Idle,
    /// The line is held.
    Asserted,
    /// It would be held, if INTx were not turned off.
    Pending,
}

impl Line {
    /// The function wants an interrupt, or no longer; `permitted`: INTx is not turned off. Returns the new level, if it changed.
    pub(crate) fn update(&mut self, wanted: bool, permitted: bool) -> Option<bool> {
        let before = *self == Line::Asserted;
        *self = match (wanted, permitted) {
            (false, _) => Line::Idle,
            (true, true) => Line::Asserted,
            (true, false) => Line::Pending,
        };
        let now = *self == Line::Asserted;
        (before != now).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lpc() -> Config {
        super::super::lpc_bridge()
    }

    #[test]
    fn pins_are_taken_in_turn_or_follow_from_the_slot() {
        let (mut router, mut bridge) = (Router::default(), lpc());
        let routes: Vec<_> = (1..=9).map(|slot| router.route(&mut bridge, slot, false)).collect();
        let irqs: Vec<_> = routes.iter().map(|route| (route.ioapic_pin, route.pirq, route.irq)).collect();
        let expected = [
            (16, 0, 3),
            (17, 1, 5),
            (18, 2, 6),
            (19, 3, 7),
            (20, 4, 10),
            (21, 5, 11),
            (22, 6, 14),
            (23, 7, 15),
            (24, 0, 3),
        ];
        assert_eq!(irqs, expected);
        let route = Router::default().route(&mut lpc(), 3, true);
        assert_eq!((route.ioapic_pin, route.pirq), (23, 7));
    }

    #[test]
    fn a_shared_pirq_is_held_until_the_last_lets_go() {
        let (mut router, mut bridge) = (Router::default(), lpc());
        let routes: Vec<_> = [1, 9].map(|slot| router.route(&mut bridge, slot, true)).into();
        assert_eq!(routes[0].pirq, routes[1].pirq);
        let pin = Some(routes[0].ioapic_pin);
        let line = |irq, level| Interrupt::Line { irq, ioapic_pin: pin, level };
        assert_eq!(router.set_level(&bridge, routes[0], true), line(Some(3), true));
        assert_eq!(router.set_level(&bridge, routes[1], true), line(None, true));
        assert_eq!(
            router.rerouted(ROUTES[routes[0].pirq], 3, 5),
            [(3, false), (5, true)].map(|(irq, level)| Interrupt::Line { irq: Some(irq), ioapic_pin: None, level })
        );
        assert_eq!(router.set_level(&bridge, routes[0], false), line(None, false));
        assert_eq!(router.set_level(&bridge, routes[1], false), line(Some(3), false));
        assert!(router.rerouted(ROUTES[routes[0].pirq], 5, 6).is_empty());
    }

    #[test]
    fn a_line_waits_while_intx_is_off() {
        let mut line = Line::Idle;
        assert_eq!(line.update(true, false), None);
        assert_eq!(line.update(true, true), Some(true));
        assert_eq!(line.update(true, false), Some(false));
        assert_eq!((line.update(false, true), line), (None, Line::Idle));
    }
}
