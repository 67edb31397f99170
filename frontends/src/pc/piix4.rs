//! Power management of the 82371AB (PIIX4) as QEMU has it: PM1 event and control, the timer, the APM ports, the reset port.

use super::{Effect, Inout, Reaction};
use vmm::abi::suspend;

/// PM1 registers and the timer, from PMBASE on (82371AB datasheet, 7.2).
const PM1_STATUS: u16 = 0x00;
const PM1_ENABLE: u16 = 0x02;
const PM1_CONTROL: u16 = 0x04;
const TIMER: u16 = 0x08;
/// How many ports there are.
const PORTS: u16 = 0x40;
/// APM control and status.
const APM_CONTROL: u16 = 0xb2;
const APM_STATUS: u16 = 0xb3;
/// What turns ACPI mode on and off when it is written to APM control, in QEMU's FADT and SeaBIOS's.
const ACPI_ENABLE: u8 = 0xf1;
const ACPI_DISABLE: u8 = 0xf0;
/// Reset control.
const RESET: u16 = 0xcf9;

const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;
/// The sleep type of S5, as PIIX4 has it.
const SLP_TYP_S5: u16 = 0;

/// Hz of the timer (ACPI 4.8.2.1), which has 24 bits.
const TIMER_HZ: u128 = 3_579_545;

/// The registers. Nothing raises an SCI, so status stays 0.
#[derive(Default)]
pub(super) struct Piix4Pm {
    enable: u16,
    control: u16,
    apm: [u8; 2],
    reset: u8,
}

impl Piix4Pm {
    /// An access at the time `now_ns`, with the first port of the power management where the guest has put it. The outer `None` where
    /// the port is none of these; QEMU refuses no access, so the inner one does not come.
    pub(super) fn inout(&mut self, access: Inout, base: Option<u16>, now_ns: u64) -> Option<Option<Reaction>> {
        let Inout { port, data, .. } = access;
        let offset = base.and_then(|base| port.checked_sub(base)).filter(|offset| *offset < PORTS);
        let reaction = match (port, offset, data) {
            (APM_CONTROL | APM_STATUS, _, None) => Reaction::value(self.apm[usize::from(port - APM_CONTROL)].into()),
            (APM_CONTROL | APM_STATUS, _, Some(data)) => {
                self.apm[usize::from(port - APM_CONTROL)] = data as u8;
                match (port, data as u8) {
                    (APM_CONTROL, ACPI_ENABLE) => self.control |= SCI_EN,
                    (APM_CONTROL, ACPI_DISABLE) => self.control &= !SCI_EN,
                    _ => {}
                }
                Reaction::NOTHING
            }
            (RESET, _, None) => Reaction::value(self.reset.into()),
            (RESET, _, Some(data)) => {
                self.reset = data as u8;
                Reaction::of((self.reset & 4 != 0).then_some(Effect::Suspend(suspend::RESET)))
            }
            (_, Some(offset), None) => Reaction::value(self.read(offset, now_ns)),
            (_, Some(offset), Some(data)) => Reaction::of(self.write(offset, data as u16)),
            _ => return None,
        };
        Some(Some(reaction))
    }

    fn read(&self, offset: u16, now_ns: u64) -> u32 {
        match offset {
            PM1_ENABLE => self.enable.into(),
            PM1_CONTROL => self.control.into(),
            TIMER => (u128::from(now_ns) * TIMER_HZ / 1_000_000_000) as u32 & 0xff_ffff,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u16, data: u16) -> Option<Effect> {
        match offset {
            PM1_STATUS => None,
            PM1_ENABLE => {
                self.enable = data;
                None
            }
            PM1_CONTROL => {
                self.control = data & !SLP_EN;
                let off = data & SLP_EN != 0 && data >> 10 & 7 == SLP_TYP_S5;
                off.then_some(Effect::Suspend(suspend::POWEROFF))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u16 = 0x600;

    fn access(pm: &mut Piix4Pm, port: u16, data: Option<u32>) -> Option<Reaction> {
        pm.inout(Inout { port, bytes: 2, data }, Some(BASE), 1_000_000_000).flatten()
    }

    #[test]
    fn the_registers_are_where_the_guest_has_put_them() {
        let mut pm = Piix4Pm::default();
        assert_eq!(access(&mut pm, BASE + TIMER, None).map(|r| r.value), Some(3_579_545), "a second");
        assert_eq!(access(&mut pm, 0x404, Some(1 << 13)), None);
        assert_eq!(pm.inout(Inout { port: BASE, bytes: 2, data: None }, None, 0), None, "not turned on");
        assert!(pm.inout(Inout { port: BASE + TIMER, bytes: 4, data: None }, Some(BASE), u64::MAX).is_some());
    }

    #[test]
    fn sleep_type_0_powers_off() {
        let mut pm = Piix4Pm::default();
        let effect = access(&mut pm, BASE + PM1_CONTROL, Some(1 << 13)).and_then(|r| r.effect);
        assert_eq!(effect, Some(Effect::Suspend(suspend::POWEROFF)));
        assert_eq!(access(&mut pm, BASE + PM1_CONTROL, Some(1 << 13 | 5 << 10)), Some(Reaction::NOTHING));
        assert_eq!(access(&mut pm, RESET, Some(6)).and_then(|r| r.effect), Some(Effect::Suspend(suspend::RESET)));
        access(&mut pm, APM_CONTROL, Some(0xf1));
        assert_eq!(access(&mut pm, BASE + PM1_CONTROL, None).map(|r| r.value & 1), Some(1));
    }
}
