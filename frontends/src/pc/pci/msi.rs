//! MSI and MSI-X of a function (PCI 3.0, 6.8).

use super::Interrupt;
use super::config::Config;

const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
/// Where the pending bits begin in the BAR: behind a page for the table, as bhyve lays it out (`pci_emul_add_msixcap`).
const PBA: u64 = 4096;
/// Size of the BAR with table and pending bits, in bytes.
pub(crate) const MSIX_BAR_SIZE: u64 = 8192;

/// A 64-bit MSI capability for one message.
pub(crate) struct Msi {
    at: usize,
}

impl Msi {
    const ENABLE: u32 = 1;

    /// Adds the capability.
    pub(crate) fn new(config: &mut Config) -> Msi {
        const ADDRESS_64: u8 = 1 << 7;
        let at = config.add_capability(MSI, &[ADDRESS_64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // Enable, and how many of its messages are; address; data.
        config.allow(at + 2, &[0x71]);
        config.allow(at + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        Msi { at }
    }

    /// Whether the function sends messages of this kind.
    pub(crate) fn enabled(&self, config: &Config) -> bool {
        config.read(self.at + 2, 2) & Msi::ENABLE != 0
    }

    /// The message.
    pub(crate) fn message(&self, config: &Config) -> Interrupt {
        let address = u64::from(config.read(self.at + 4, 4)) | u64::from(config.read(self.at + 8, 4)) << 32;
        Interrupt::Message { address, data: config.read(self.at + 12, 2) }
    }
}

/// An entry of the table.
#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// An MSI-X capability with its table.
pub(crate) struct Msix {
    at: usize,
    entries: Vec<Entry>,
}

impl Msix {
    const ENABLE: u32 = 1 << 15;
    const FUNCTION_MASK: u32 = 1 << 14;

    /// Adds the capability for so many messages, 1 to 64, with the table in a BAR of [`MSIX_BAR_SIZE`].
    pub(crate) fn new(config: &mut Config, messages: u16, bar: u8) -> Msix {
        let table = u32::from(bar);
        let pba = PBA as u32 | u32::from(bar);
        let body = [&(messages - 1).to_le_bytes()[..], &table.to_le_bytes(), &pba.to_le_bytes()].concat();
        let at = config.add_capability(MSIX, &body);
        config.allow(at + 3, &[0xc0]);
        // Masked after reset (6.8.2.9).
        let entry = Entry { address: 0, data: 0, masked: true, pending: false };
        Msix { at, entries: vec![entry; messages.into()] }
    }

    fn control(&self, config: &Config) -> u32 {
        config.read(self.at + 2, 2)
    }

    /// Whether the function sends messages of this kind.
    pub(crate) fn enabled(&self, config: &Config) -> bool {
        self.control(config) & Msix::ENABLE != 0
    }

    /// Whether there is such a message.
    pub(crate) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// Sends a message, or keeps it while it is masked.
    pub(crate) fn send(&mut self, config: &Config, vector: u16) -> Option<Interrupt> {
        let held = self.control(config) & Msix::FUNCTION_MASK != 0;
        let entry = self.entries.get_mut(usize::from(vector))?;
        entry.pending = entry.masked || held;
        (!entry.pending).then_some(Interrupt::Message { address: entry.address, data: entry.data })
    }

    /// What was kept and is no longer masked: to be asked for when the table or the control word was written.
    pub(crate) fn unmasked(&mut self, config: &Config) -> Vec<Interrupt> {
        if self.control(config) & (Msix::ENABLE | Msix::FUNCTION_MASK) != Msix::ENABLE {
            return Vec::new();
        }
        let kept = self.entries.iter_mut().filter(|entry| entry.pending && !entry.masked);
        kept.map(|entry| {
            entry.pending = false;
            Interrupt::Message { address: entry.address, data: entry.data }
        })
        .collect()
    }

    /// Reads 4 bytes of the BAR.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        if offset >= PBA {
            let first = 32 * ((offset - PBA) / 4) as usize;
            let pending = self.entries.iter().skip(first).take(32).enumerate();
            return pending.fold(0, |bits, (bit, entry)| bits | u32::from(entry.pending) << bit);
        }
        let Some(entry) = self.entries.get((offset / 16) as usize) else { return 0 };
        match offset % 16 {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            _ => entry.masked.into(),
        }
    }

    /// Writes 4 bytes of the BAR.
    pub(crate) fn write(&mut self, offset: u64, data: u32) {
        let Some(entry) = self.entries.get_mut((offset / 16) as usize) else { return };
        match offset % 16 {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(data & !0b11),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(data) << 32,
            8 => entry.data = data,
            _ => entry.masked = data & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_message_waits() {
        let mut config = Config::new(1, 2, [3, 4]);
        let mut msix = Msix::new(&mut config, 3, 1);
        assert_eq!([2, 4, 8].map(|at| config.read(0x40 + at, 4) & 0xffff), [2, 1, 0x1001]);
        let message = Some(Interrupt::Message { address: 0xfee0_1000, data: 0x41 });
        for (at, data) in [(16, 0xfee0_1003), (20, 0), (24, 0x41)] {
            msix.write(at, data);
        }
        config.write(0x42, 2, 0x8000);
        assert!(msix.enabled(&config));
        assert_eq!(msix.send(&config, 1), None, "masked from the start");
        assert_eq!(msix.read(PBA), 0b10);
        assert!(msix.unmasked(&config).is_empty());
        msix.write(28, 0);
        config.write(0x42, 2, 0xc000);
        assert!(msix.unmasked(&config).is_empty(), "the function is masked");
        config.write(0x42, 2, 0x8000);
        assert_eq!(msix.unmasked(&config), message.into_iter().collect::<Vec<_>>());
        assert_eq!((msix.read(PBA), msix.send(&config, 1)), (0, message));
        assert_eq!(msix.send(&config, 3), None, "there is none");
    }

    #[test]
    fn msi_is_what_the_guest_wrote() {
        let mut config = Config::new(1, 2, [3, 4]);
        let msi = Msi::new(&mut config);
        assert!(!msi.enabled(&config));
        for (at, bytes, data) in [(0x44, 4, 0xfee0_2000), (0x48, 4, 0), (0x4c, 2, 0x4123), (0x42, 2, 1)] {
            config.write(at, bytes, data);
        }
        assert!(msi.enabled(&config));
        assert_eq!(msi.message(&config), Interrupt::Message { address: 0xfee0_2000, data: 0x4123 });
        assert_eq!(config.read(0x42, 2), 0x81, "64-bit addresses, one message");
    }
}
