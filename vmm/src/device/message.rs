//! Interrupt messages: what the I/O APIC and MSI-capable devices send to the local APICs.

use super::Refused;
use super::vlapic::Destination;
use crate::trace::DeliveryMode;

/// An interrupt on its way to local APICs. Of the modes, only FIXED, LOWPRIO and EXTINT lead anywhere
/// (`vlapic_deliver_intr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination, always in the 8-bit format of the xAPIC.
    pub dest: u8,
    /// Whether the destination is logical.
    pub logical: bool,
    /// Delivery mode.
    pub mode: DeliveryMode,
    /// Vector.
    pub vector: u8,
    /// Whether the interrupt is level-triggered.
    pub level: bool,
}

impl Message {
    /// The message that a write of `data` to `address` stands for (`lapic_intr_msi`; SDM 3A 11.11). It is edge-triggered
    /// whatever it says, and logical only if the redirection hint is set too.
    ///
    /// # Errors
    /// When the address is not in 0xFEExxxxx.
    pub fn from_msi(address: u64, data: u64) -> Result<Message, Refused> {
        const REDIRECTION_HINT_AND_LOGICAL: u64 = 0b1100;
        if address & 0xfff0_0000 != 0xfee0_0000 {
            return Err(Refused);
        }
        Ok(Message {
            dest: (address >> 12) as u8,
            logical: address & REDIRECTION_HINT_AND_LOGICAL == REDIRECTION_HINT_AND_LOGICAL,
            mode: DeliveryMode::from_bits((data >> 8) as u32),
            vector: data as u8,
            level: false,
        })
    }

    /// Whom the message is for.
    #[must_use]
    pub fn destination(self) -> Destination {
        Destination { dest: self.dest.into(), logical: self.logical, x2apic: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xfee0_300c, 0xc141).expect("the address is that of the local APICs");
        assert_eq!(
            message,
            Message { dest: 3, logical: true, mode: DeliveryMode::LowestPriority, vector: 0x41, level: false }
        );
        assert_eq!(message.destination(), Destination { dest: 3, logical: true, x2apic: false });
        for address in [0xfee0_3004, 0xfee0_3008, 0xfee0_3000] {
            assert!(!Message::from_msi(address, 0x41).expect("the address is right").logical, "{address:#x}");
        }
        assert_eq!(Message::from_msi(0xfec0_0000, 0x41), Err(Refused));
    }
}
