//! Power management (`pm.c`): the PM1a registers, the SMI command port and the reset port.

use super::{Effect, Inout, Reaction};
use vmm::abi::suspend;

/// PM1a status, 16 bits.
pub(crate) const PM1_STATUS: u16 = 0x400;
/// PM1a enable, 16 bits.
pub(crate) const PM1_ENABLE: u16 = 0x402;
/// PM1a control, 16 bits.
pub(crate) const PM1_CONTROL: u16 = 0x404;
/// SMI command, 8 bits, write only.
pub(crate) const SMI_COMMAND: u16 = 0xb2;
/// Reset control, 8 bits.
pub(crate) const RESET: u16 = 0xcf9;
/// What turns ACPI mode on when it is written to [`SMI_COMMAND`].
pub(crate) const ACPI_ENABLE: u8 = 0xa0;
/// What turns it off.
pub(crate) const ACPI_DISABLE: u8 = 0xa1;
/// SLP_TYP of S5, as `\_S5` says.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;

/// Bits of PM1 (ACPI 6.5, 4.8.3).
mod pm1 {
    pub(super) const GBL_EN: u16 = 1 << 5;
    pub(super) const PWRBTN_EN: u16 = 1 << 8;
    pub(super) const SCI_EN: u16 = 1;
    pub(super) const SLP_TYP: u16 = 7 << 10;
    pub(super) const SLP_EN: u16 = 1 << 13;
    pub(super) const ALWAYS_ZERO: u16 = 0xc003;
}

/// The registers. No device of ours raises an SCI, so status stays 0.
#[derive(Default)]
pub(super) struct Pm {
    enable: u16,
    control: u16,
    reset: u8,
}

impl Pm {
    /// An access to a port; the outer `None` where it is none of these, the inner one where bhyve's handler refuses the access.
    pub(super) fn inout(&mut self, access: Inout) -> Option<Option<Reaction>> {
        let Inout { port, bytes, data } = access;
        if !matches!(port, PM1_STATUS | PM1_ENABLE | PM1_CONTROL | SMI_COMMAND | RESET) {
            return None;
        }
        Some(match data {
            None => self.read(port, bytes).map(Reaction::value),
            Some(data) => self.write(port, bytes, data),
        })
    }

    /// IN; `None` where bhyve's handler refuses the access.
    fn read(&self, port: u16, bytes: u8) -> Option<u32> {
        match (port, bytes) {
            (PM1_STATUS, 2) => Some(0),
            (PM1_ENABLE, 2) => Some(self.enable.into()),
            (PM1_CONTROL, 2) => Some(self.control.into()),
            (RESET, 1) => Some(self.reset.into()),
            _ => None,
        }
    }

    /// OUT; `None` where bhyve's handler refuses the access.
    fn write(&mut self, port: u16, bytes: u8, data: u32) -> Option<Reaction> {
        match (port, bytes) {
            (PM1_STATUS, 2) => Some(Reaction::NOTHING),
            (PM1_ENABLE, 2) => {
                self.enable = data as u16 & (pm1::PWRBTN_EN | pm1::GBL_EN);
                Some(Reaction::NOTHING)
            }
            (PM1_CONTROL, 2) => {
                let data = data as u16;
                self.control = self.control & pm1::SCI_EN | data & !(pm1::SLP_EN | pm1::ALWAYS_ZERO);
                let sleep = data & pm1::SLP_EN != 0;
                let s5 = (data & pm1::SLP_TYP) >> 10 == u16::from(SLEEP_TYPE_S5);
                Some(Reaction::of((sleep && s5).then_some(Effect::Suspend(suspend::POWEROFF))))
            }
            (SMI_COMMAND, 1) => {
                match data as u8 {
                    ACPI_ENABLE => self.control |= pm1::SCI_EN,
                    ACPI_DISABLE => self.control &= !pm1::SCI_EN,
                    _ => {}
                }
                Some(Reaction::NOTHING)
            }
            (RESET, 1) => {
                self.reset = data as u8;
                // Hard and soft resets are the same.
                Some(Reaction::of((self.reset & 4 != 0).then_some(Effect::Suspend(suspend::RESET))))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_powers_off() {
        for sleep_type in 0..8 {
            let mut pm = Pm::default();
            let reaction = pm.write(PM1_CONTROL, 2, sleep_type << 10 | 1 << 13).expect("16 bits");
            let expected = (sleep_type == 5).then_some(Effect::Suspend(suspend::POWEROFF));
            assert_eq!(reaction.effect, expected, "SLP_TYP {sleep_type}");
            assert_eq!(pm.read(PM1_CONTROL, 2), Some(sleep_type << 10), "SLP_EN is write only");
        }
        assert_eq!(Pm::default().write(PM1_CONTROL, 2, 5 << 10), Some(Reaction::NOTHING), "without SLP_EN");
    }

    #[test]
    fn acpi_mode_follows_the_smi_command() {
        let mut pm = Pm::default();
        pm.write(SMI_COMMAND, 1, ACPI_ENABLE.into());
        pm.write(PM1_CONTROL, 2, 0);
        assert_eq!(pm.read(PM1_CONTROL, 2), Some(1), "SCI_EN is not the guest's to change");
        pm.write(SMI_COMMAND, 1, ACPI_DISABLE.into());
        assert_eq!(pm.read(PM1_CONTROL, 2), Some(0));
    }

    #[test]
    fn wrong_widths_and_directions_are_refused() {
        let mut pm = Pm::default();
        assert_eq!(pm.read(PM1_CONTROL, 4), None);
        assert_eq!(pm.write(PM1_STATUS, 1, 0), None);
        assert_eq!(pm.read(SMI_COMMAND, 1), None);
        assert_eq!(pm.write(RESET, 1, 6).and_then(|r| r.effect), Some(Effect::Suspend(suspend::RESET)));
    }
}
