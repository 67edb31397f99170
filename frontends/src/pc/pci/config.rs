//! Configuration space of a function: what it holds, which bits the guest can change, where its BARs decode.

/// Configuration registers (PCI 3.0, 6.1).
pub(crate) mod reg {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const SUBCLASS: usize = 0x0a;
    pub(crate) const CLASS: usize = 0x0b;
    pub(crate) const HEADER_TYPE: usize = 0x0e;
    pub(crate) const BAR0: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAP_PTR: usize = 0x34;
    pub(crate) const INT_LINE: usize = 0x3c;
    pub(crate) const INT_PIN: usize = 0x3d;
}

/// Bits of the command register.
pub(crate) mod command {
    pub(crate) const IO: u16 = 1 << 0;
    pub(crate) const MEMORY: u16 = 1 << 1;
    pub(crate) const BUS_MASTER: u16 = 1 << 2;
    pub(crate) const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub(crate) mod status {
    pub(crate) const INTERRUPT: u16 = 1 << 3;
    pub(crate) const CAPABILITIES: u16 = 1 << 4;
}

/// Where the first capability stands; the next follow without a gap, 4-byte aligned.
const FIRST_CAPABILITY: usize = 0x40;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// I/O ports.
    Io,
    /// Memory, 32 bits of address.
    Memory32,
    /// Memory, 64 bits of address: two registers.
    Memory64,
}

/// A base address register.
#[derive(Clone, Copy, Debug)]
struct Bar {
    /// 0 to 5.
    index: usize,
    space: Space,
    /// In bytes, a power of 2.
    size: u64,
}

/// A function's configuration space.
pub(crate) struct Config {
    value: [u8; 256],
    writable: [u8; 256],
    bars: Vec<Bar>,
    /// Where the next capability goes, and the byte that is to point to it.
    next_capability: usize,
    link: usize,
}

impl Config {
    /// Type 0, revision 0, without BARs and capabilities; `class` is the base class and the subclass.
    pub(crate) fn new(vendor: u16, device: u16, class: [u8; 2]) -> Config {
        let mut config = Config {
            value: [0; 256],
            writable: [0; 256],
            bars: Vec::new(),
            next_capability: FIRST_CAPABILITY,
            link: reg::CAP_PTR,
        };
        config.set16(reg::VENDOR, vendor);
        config.set16(reg::DEVICE, device);
        config.value[reg::CLASS] = class[0];
        config.value[reg::SUBCLASS] = class[1];
        config.value[reg::INT_LINE] = 0xff;
        // I/O, memory, bus master, special cycles, MWI, snoop, parity; SERR, fast back-to-back, INTx disable.
        config.allow(reg::COMMAND, &[0x7f, 0x07]);
        config.allow(reg::INT_LINE, &[0xff]);
        config
    }

    /// Sets a byte, whatever the guest can change of it.
    pub(crate) fn set(&mut self, offset: usize, value: u8) {
        self.value[offset] = value;
    }

    /// Sets two bytes.
    pub(crate) fn set16(&mut self, offset: usize, value: u16) {
        self.value[offset..][..2].copy_from_slice(&value.to_le_bytes());
    }

    /// Lets the guest change these bits.
    pub(crate) fn allow(&mut self, offset: usize, writable: &[u8]) {
        self.writable[offset..][..writable.len()].copy_from_slice(writable);
    }

    /// Adds a capability: its ID, then `body` from its third byte on. Returns where it stands.
    ///
    /// # Panics
    /// When configuration space has no room for it.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        self.value[at] = id;
        self.value[at + 2..][..body.len()].copy_from_slice(body);
        self.value[self.link] = at as u8;
        let status = self.command_or_status(reg::STATUS) | status::CAPABILITIES;
        self.set16(reg::STATUS, status);
        self.link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Adds a BAR that decodes at `base` from the start, as every BAR of bhyve's does (`pci_emul_alloc_bar`). `size` is a power
    /// of 2; of an I/O BAR 16 bits of address can be changed.
    pub(crate) fn add_bar(&mut self, index: usize, space: Space, base: u64, size: u64) {
        const IO: u64 = 0b01;
        const MEMORY_64: u64 = 0b100;
        let (kind, mask, enable) = match space {
            Space::Io => (IO, !(size - 1) & 0xffff, command::IO),
            Space::Memory32 => (0, !(size - 1) & 0xffff_ffff, command::MEMORY),
            Space::Memory64 => (MEMORY_64, !(size - 1), command::MEMORY),
        };
        let (at, len) = (reg::BAR0 + 4 * index, if space == Space::Memory64 { 8 } else { 4 });
        self.value[at..][..len].copy_from_slice(&(base | kind).to_le_bytes()[..len]);
        self.allow(at, &mask.to_le_bytes()[..len]);
        let enabled = self.command_or_status(reg::COMMAND) | enable;
        self.set16(reg::COMMAND, enabled);
        self.bars.push(Bar { index, space, size });
    }

    /// Lets all 32 bits of address of the I/O BARs be changed, as QEMU's can; SeaBIOS takes a BAR's size from all of them.
    pub(crate) fn widen_io_bars(&mut self) {
        for bar in self.bars.iter().filter(|bar| bar.space == Space::Io) {
            let (at, mask) = (reg::BAR0 + 4 * bar.index, !(bar.size as u32 - 1));
            self.writable[at..][..4].copy_from_slice(&mask.to_le_bytes());
        }
    }

    /// The command register.
    pub(crate) fn command(&self) -> u16 {
        self.command_or_status(reg::COMMAND)
    }

    fn command_or_status(&self, register: usize) -> u16 {
        self.read(register, 2) as u16
    }

    /// The status register's interrupt bit.
    pub(crate) fn set_interrupt_status(&mut self, pending: bool) {
        let others = self.command_or_status(reg::STATUS) & !status::INTERRUPT;
        self.set16(reg::STATUS, if pending { others | status::INTERRUPT } else { others });
    }

    /// Where a BAR decodes now; `None` while it does not.
    pub(crate) fn decoded(&self, index: usize) -> Option<u64> {
        self.bars.iter().find(|bar| bar.index == index).and_then(|bar| self.base(bar))
    }

    fn base(&self, bar: &Bar) -> Option<u64> {
        let at = reg::BAR0 + 4 * bar.index;
        let low = u64::from(self.read(at, 4));
        let (enable, base) = match bar.space {
            Space::Io => (command::IO, low & !0b11),
            Space::Memory32 => (command::MEMORY, low & !0xf),
            Space::Memory64 => (command::MEMORY, low & !0xf | u64::from(self.read(at + 4, 4)) << 32),
        };
        (self.command() & enable != 0).then_some(base)
    }

    /// The BAR that decodes all of an access, and where in it that is.
    pub(crate) fn claims(&self, io: bool, address: u64, bytes: u8) -> Option<(usize, u64)> {
        self.bars.iter().filter(|bar| (bar.space == Space::Io) == io).find_map(|bar| {
            let offset = address.checked_sub(self.base(bar)?)?;
            (offset < bar.size && u64::from(bytes) <= bar.size - offset).then_some((bar.index, offset))
        })
    }

    /// The size of a BAR in bytes; 0 where there is none.
    pub(crate) fn bar_size(&self, index: usize) -> u64 {
        self.bars.iter().find(|bar| bar.index == index).map_or(0, |bar| bar.size)
    }

    /// 1, 2 or 4 bytes within configuration space.
    pub(crate) fn read(&self, offset: usize, bytes: usize) -> u32 {
        self.value[offset..][..bytes].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
    }

    /// Writes 1, 2 or 4 bytes, of which the bits change that can be changed. A BAR takes 32 bits at once or nothing.
    pub(crate) fn write(&mut self, offset: usize, bytes: usize, data: u32) {
        let bar = |bar: &Bar| {
            let len = if bar.space == Space::Memory64 { 8 } else { 4 };
            (reg::BAR0 + 4 * bar.index..reg::BAR0 + 4 * bar.index + len).contains(&offset)
        };
        if bytes != 4 && self.bars.iter().any(bar) {
            return;
        }
        for (i, byte) in data.to_le_bytes().into_iter().take(bytes).enumerate() {
            let writable = self.writable[offset + i];
            let value = &mut self.value[offset + i];
            *value = *value & !writable | byte & writable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_its_size_and_moves() {
        let mut config = Config::new(1, 2, [3, 4]);
        config.add_bar(0, Space::Io, 0x2000, 64);
        config.add_bar(1, Space::Memory32, 0xc000_0000, 0x2000);
        config.add_bar(4, Space::Memory64, 0xc000_4000, 0x4000);
        assert_eq!(config.command(), command::IO | command::MEMORY);
        for at in [0x10, 0x14, 0x20, 0x24] {
            config.write(at, 4, u32::MAX);
        }
        assert_eq!([0x10, 0x14, 0x20, 0x24].map(|at| config.read(at, 4)), [0xffc1, 0xffff_e000, 0xffff_c004, u32::MAX]);
        config.write(0x20, 4, 0x8000);
        config.write(0x24, 4, 1);
        assert_eq!(config.decoded(4), Some(0x1_0000_8000));
        assert_eq!(config.claims(false, 0x1_0000_bffc, 4), Some((4, 0x3ffc)));
        assert_eq!(config.claims(false, 0x1_0000_bffc, 8), None, "half of it is behind the BAR");
        config.write(0x24, 2, 7);
        assert_eq!(config.decoded(4), Some(0x1_0000_8000), "not 32 bits");
        assert_eq!(config.claims(true, 0xffc0, 1), Some((0, 0)));
        config.widen_io_bars();
        config.write(0x10, 4, u32::MAX);
        assert_eq!((config.read(0x10, 4), config.claims(true, 0xffc0, 1)), (0xffff_ffc1, None));
        config.write(0x10, 4, 0xffc0);
        assert_eq!(config.claims(true, 0xffc0, 1), Some((0, 0)));
        config.write(reg::COMMAND, 2, command::MEMORY.into());
        assert_eq!((config.claims(true, 0xffc0, 1), config.decoded(0)), (None, None), "ports no longer decode");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = Config::new(1, 2, [3, 4]);
        assert_eq!(config.add_capability(0x11, &[0; 10]), 0x40);
        assert_eq!(config.add_capability(0x05, &[0; 11]), 0x4c);
        assert_eq!(config.add_capability(0x09, &[0; 14]), 0x5c);
        assert_eq!(config.read(0x34, 1), 0x40);
        assert_eq!([0x40, 0x4c, 0x5c].map(|at| config.read(at, 2)), [0x4c11, 0x5c05, 0x0009]);
        assert_eq!(config.read(reg::STATUS, 2), 0x10);
    }
}
