//! PCI: configuration mechanism 1, the extended configuration window, the two devices of the smallest bhyve command
//! line (`-s 0,hostbridge -s 31,lpc`), and one more in slot 5 if asked for, whose memory BAR the guest can move.

use super::Effect;
use crate::Chipset;

/// CONFIG_ADDRESS, 32 bits.
pub(super) const CONFIG_ADDRESS: u16 = 0xcf8;
/// First byte of CONFIG_DATA.
pub(super) const CONFIG_DATA: u16 = 0xcfc;
/// Last byte of CONFIG_DATA.
pub(super) const CONFIG_DATA_LAST: u16 = 0xcff;
/// Where the extended configuration window begins (`PCI_EMUL_ECFG_BASE`).
pub(crate) const ECFG_BASE: u64 = 0xe000_0000;
/// Its length: 256 buses of 1 MiB.
pub(crate) const ECFG_SIZE: u64 = 256 << 20;

const ENABLE: u32 = 1 << 31;

/// Where the memory BAR of slot 5 is at first.
pub(crate) const BAR_BASE: u64 = 0xc100_0000;
/// Its size in bytes.
pub(crate) const BAR_SIZE: u64 = 4 << 10;
/// Device 5, function 0.
const BAR_DEVFN: u8 = 5 << 3;

/// Configuration registers (PCI 3.0, 6.1).
mod reg {
    pub(super) const VENDOR: usize = 0x00;
    pub(super) const DEVICE: usize = 0x02;
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const SUBCLASS: usize = 0x0a;
    pub(super) const CLASS: usize = 0x0b;
    pub(super) const BAR0: usize = 0x10;
    pub(super) const CAP_PTR: usize = 0x34;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const HEADER_TYPE: usize = 0x0e;
    pub(super) const SUBSYSTEM: usize = 0x2c;
    pub(super) const INT_LINE: usize = 0x3c;
    pub(super) const INT_PIN: usize = 0x3d;
}

/// Memory decoding in the command register.
const COMMAND_MEMORY: u8 = 0x02;

/// PIIX4: where the power management's ports are, and whether they are there.
const PMBASE: usize = 0x40;
const PMREGMISC: usize = 0x80;

/// What a function's configuration space holds, and which bits the guest can change.
struct Function {
    value: [u8; 256],
    writable: [u8; 256],
}

impl Function {
    fn new(vendor: u16, device: u16, subclass: u8) -> Function {
        const CLASS_BRIDGE: u8 = 0x06;
        const BUS_MASTER: u8 = 0x04;
        let mut function = Function { value: [0; 256], writable: [0; 256] };
        function.value[reg::VENDOR..][..2].copy_from_slice(&vendor.to_le_bytes());
        function.value[reg::DEVICE..][..2].copy_from_slice(&device.to_le_bytes());
        function.value[reg::CLASS] = CLASS_BRIDGE;
        function.value[reg::SUBCLASS] = subclass;
        function.value[reg::COMMAND] = BUS_MASTER;
        function.value[reg::INT_LINE] = 0xff;
        // I/O, memory, bus master, special cycles, MWI, snoop, parity; SERR, fast back-to-back, INTx disable.
        function.writable[reg::COMMAND] = 0x7f;
        function.writable[reg::COMMAND + 1] = 0x07;
        function.writable[reg::INT_LINE] = 0xff;
        function
    }

    /// `pci_hostbridge.c`: a NetApp host bridge with a PCI Express capability.
    fn host_bridge() -> Function {
        const SUBCLASS_HOST: u8 = 0x00;
        const CAP: usize = 0x40;
        let mut function = Function::new(0x1275, 0x1275, SUBCLASS_HOST);
        function.value[reg::STATUS] = 0x10; // a capability list
        function.value[reg::CAP_PTR] = CAP as u8;
        // Capability 0x10, none after it, version 2 root port; the link is one lane of generation 1.
        function.value[CAP..][..4].copy_from_slice(&[0x10, 0, 0x42, 0]);
        function.value[CAP + 0x0c..][..4].copy_from_slice(&0x411_u32.to_le_bytes());
        function.value[CAP + 0x12..][..2].copy_from_slice(&0x11_u16.to_le_bytes());
        function
    }

    /// `pci_lpc.c`: a PIIX3-like ISA bridge. Its eight PIRQ routing registers begin disabled.
    fn lpc_bridge() -> Function {
        const SUBCLASS_ISA: u8 = 0x01;
        const PIRQ_DISABLED: u8 = 0x80;
        /// IRQ routing enable (inverted) and the interrupt's number.
        const PIRQ_WRITABLE: u8 = 0x8f;
        let mut function = Function::new(0x8086, 0x7000, SUBCLASS_ISA);
        for pirq in (0x60..0x64).chain(0x68..0x6c) {
            function.value[pirq] = PIRQ_DISABLED;
            function.writable[pirq] = PIRQ_WRITABLE;
        }
        function
    }

    /// A device with one 32-bit memory BAR that decodes from the start, as every BAR of bhyve's does. Its numbers are those
    /// of bhyve's frame buffer.
    fn movable_bar() -> Function {
        const SUBCLASS_VGA: u8 = 0x00;
        const CLASS_DISPLAY: u8 = 0x03;
        let mut function = Function::new(0xfb5d, 0x40fb, SUBCLASS_VGA);
        function.value[reg::CLASS] = CLASS_DISPLAY;
        function.value[reg::COMMAND] = COMMAND_MEMORY;
        function.value[reg::BAR0..][..4].copy_from_slice(&(BAR_BASE as u32).to_le_bytes());
        function.writable[reg::BAR0..][..4].copy_from_slice(&(!(BAR_SIZE as u32 - 1)).to_le_bytes());
        function
    }

    /// The functions of [`Chipset::I440fx`], each a device of QEMU's by its subsystem's numbers.
    fn of_qemu(device: u16, subclass: u8) -> Function {
        const INTEL: u16 = 0x8086;
        const QEMU_SUBSYSTEM: u32 = 0x1100_1af4;
        let mut function = Function::new(INTEL, device, subclass);
        function.value[reg::SUBSYSTEM..][..4].copy_from_slice(&QEMU_SUBSYSTEM.to_le_bytes());
        function
    }

    /// The 82441FX (QEMU, hw/pci-host/i440fx.c). Its PAM registers are kept, and change nothing: the memory from C0000H on is RAM to
    /// read and to write, whatever they say.
    fn i440fx() -> Function {
        const SUBCLASS_HOST: u8 = 0x00;
        const PAM: std::ops::RangeInclusive<usize> = 0x59..=0x5f;
        const SMRAM: usize = 0x72;
        let mut function = Function::of_qemu(0x1237, SUBCLASS_HOST);
        PAM.for_each(|pam| function.writable[pam] = 0x33);
        function.value[SMRAM] = 0x02;
        function
    }

    /// The 82371SB's ISA bridge (QEMU, hw/isa/piix.c).
    fn piix3() -> Function {
        const MULTIFUNCTION: u8 = 0x80;
        let mut function = Function::lpc_bridge();
        function.value[reg::SUBSYSTEM..][..4].copy_from_slice(&0x1100_1af4_u32.to_le_bytes());
        function.value[reg::HEADER_TYPE] = MULTIFUNCTION;
        function
    }

    /// The 82371AB's power management (QEMU, hw/acpi/piix4.c), as of a machine without SMM: SMIs are on, so that firmware leaves them
    /// alone.
    fn piix4_pm() -> Function {
        const SUBCLASS_OTHER: u8 = 0x80;
        const DEVACTB_APMC_EN: (usize, u8) = (0x5b, 0x02);
        const SMBHSTBASE: usize = 0x90;
        const SMBHSTCFG: usize = 0xd2;
        let mut function = Function::of_qemu(0x7113, SUBCLASS_OTHER);
        function.value[reg::INT_PIN] = 1;
        function.value[PMBASE] = 1;
        function.writable[PMBASE..][..2].copy_from_slice(&[0xc0, 0xff]);
        function.writable[PMREGMISC] = 1;
        function.value[DEVACTB_APMC_EN.0] = DEVACTB_APMC_EN.1;
        function.value[SMBHSTBASE] = 1;
        function.writable[SMBHSTBASE..][..2].copy_from_slice(&[0xc0, 0xff]);
        function.writable[SMBHSTCFG] = 0x0f;
        function
    }

    /// Where memory decodes in BAR 0.
    fn decoded_bar(&self) -> Option<u64> {
        let decodes = self.value[reg::COMMAND] & COMMAND_MEMORY != 0;
        decodes.then(|| self.read(reg::BAR0, 4).into())
    }

    fn read(&self, offset: usize, bytes: usize) -> u32 {
        self.value[offset..][..bytes].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte))
    }

    fn write(&mut self, offset: usize, bytes: usize, data: u32) {
        for (i, byte) in data.to_le_bytes().into_iter().take(bytes).enumerate() {
            let writable = self.writable[offset + i];
            let value = &mut self.value[offset + i];
            *value = *value & !writable | byte & writable;
        }
    }
}

/// A function and a byte within its configuration space.
#[derive(Clone, Copy)]
struct Address {
    bus: u8,
    /// Device and function as in CONFIG_ADDRESS: 5 and 3 bits.
    devfn: u8,
    /// 0 to 255, or to 4095 through the window.
    offset: u16,
}

/// Bus 0 with its devices.
pub(super) struct Pci {
    /// CONFIG_ADDRESS as written, bits 1:0 cleared.
    address: u32,
    host_bridge: Function,
    lpc_bridge: Function,
    /// Device and function of the latter.
    lpc_devfn: u8,
    /// [`Chipset::I440fx`]'s power management.
    piix4_pm: Option<Function>,
    /// Slot 5.
    movable_bar: Option<Function>,
}

impl Pci {
    /// The bus after power-up, with the device of slot 5 or without.
    pub(super) fn new(movable_bar: bool, chipset: Chipset) -> Pci {
        let movable_bar = movable_bar.then(Function::movable_bar);
        let (host_bridge, lpc_bridge, lpc_devfn, piix4_pm) = match chipset {
            Chipset::Bhyve => (Function::host_bridge(), Function::lpc_bridge(), 0xf8, None),
            Chipset::I440fx => (Function::i440fx(), Function::piix3(), 0x08, Some(Function::piix4_pm())),
        };
        Pci { address: 0, host_bridge, lpc_bridge, lpc_devfn, piix4_pm, movable_bar }
    }

    fn function(&mut self, address: Address) -> Option<&mut Function> {
        const PIIX4_PM_DEVFN: u8 = 0x0b;
        match (address.bus, address.devfn) {
            (0, 0) => Some(&mut self.host_bridge),
            (0, BAR_DEVFN) => self.movable_bar.as_mut(),
            (0, PIIX4_PM_DEVFN) => self.piix4_pm.as_mut(),
            (0, devfn) if devfn == self.lpc_devfn => Some(&mut self.lpc_bridge),
            _ => None,
        }
    }

    /// The first port of PIIX4's power management, where the guest has put it and turned it on.
    pub(super) fn power_management_base(&self) -> Option<u16> {
        let pm = self.piix4_pm.as_ref().filter(|pm| pm.value[PMREGMISC] & 1 != 0)?;
        Some(pm.read(PMBASE, 2) as u16 & !1)
    }

    /// `pci_cfgrw` of a read. Nobody there, or unaligned: all ones.
    fn read(&mut self, address: Address, bytes: usize) -> u32 {
        let offset = usize::from(address.offset);
        match self.function(address) {
            Some(function) if offset % bytes == 0 && offset < 256 => function.read(offset, bytes),
            // No extended capabilities: a header of zeros (PCI Express 7.9.2).
            Some(_) if offset % bytes == 0 && offset <= 0x103 => 0,
            _ => u32::MAX,
        }
    }

    /// `pci_cfgrw` of a write. A BAR takes 32 bits at once or nothing; when it then decodes elsewhere, it is to be moved.
    fn write(&mut self, address: Address, bytes: usize, data: u32) -> Option<Effect> {
        let offset = usize::from(address.offset);
        if offset % bytes != 0 || offset >= 256 {
            return None;
        }
        let function = self.function(address)?;
        if (reg::BAR0..reg::BAR0 + 4).contains(&offset) && bytes != 4 {
            return None;
        }
        let from = function.decoded_bar();
        function.write(offset, bytes, data);
        let to = function.decoded_bar();
        (address.devfn == BAR_DEVFN && from != to).then_some(Effect::MoveBar { to })
    }

    /// IN from CONFIG_ADDRESS: narrower accesses find nobody.
    pub(super) fn read_address(&self, bytes: u8) -> u32 {
        if bytes == 4 { self.address } else { u32::MAX }
    }

    /// OUT to CONFIG_ADDRESS.
    pub(super) fn write_address(&mut self, bytes: u8, data: u32) {
        if bytes == 4 {
            self.address = data & !0x7f00_0003;
        }
    }

    fn selected(&self, port: u16) -> Option<Address> {
        let offset = self.address as u8 as u16 + (port - CONFIG_DATA);
        let [_, devfn, bus, _] = self.address.to_le_bytes();
        (self.address & ENABLE != 0).then_some(Address { bus, devfn, offset })
    }

    /// IN from a port of CONFIG_DATA.
    pub(super) fn read_data(&mut self, port: u16, bytes: u8) -> u32 {
        self.selected(port).map_or(u32::MAX, |address| self.read(address, bytes.into()))
    }

    /// OUT to a port of CONFIG_DATA.
    pub(super) fn write_data(&mut self, port: u16, bytes: u8, data: u32) -> Option<Effect> {
        let address = self.selected(port)?;
        self.write(address, bytes.into(), data)
    }

    fn in_window(offset: u64) -> Address {
        // Bits 11:0 offset, 19:12 device and function, 27:20 bus (PCI Express 7.2.2).
        let [devfn, bus] = [12, 20].map(|shift| (offset >> shift) as u8);
        Address { bus, devfn, offset: offset as u16 & 0xfff }
    }

    /// Read from the window, `offset` bytes from [`ECFG_BASE`]; 8-byte accesses are two of 4, as there.
    pub(super) fn read_window(&mut self, offset: u64, bytes: u8) -> u64 {
        if bytes == 8 {
            return self.read_window(offset, 4) | self.read_window(offset + 4, 4) << 32;
        }
        self.read(Pci::in_window(offset), bytes.into()).into()
    }

    /// Write to the window. No 8-byte write covers two registers that move the BAR.
    pub(super) fn write_window(&mut self, offset: u64, bytes: u8, data: u64) -> Option<Effect> {
        if bytes == 8 {
            let low = self.write_window(offset, 4, data & 0xffff_ffff);
            return low.or(self.write_window(offset + 4, 4, data >> 32));
        }
        self.write(Pci::in_window(offset), bytes.into(), data as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_are_where_they_belong() {
        let found = |pci: &mut Pci| {
            let mut found = Vec::new();
            for devfn in 0..=0xff_u32 {
                pci.write_address(4, ENABLE | devfn << 8);
                let id = pci.read_data(CONFIG_DATA, 4);
                if id != u32::MAX {
                    found.push((devfn, id));
                }
            }
            found
        };
        let mut pci = Pci::new(false, Chipset::Bhyve);
        assert_eq!(found(&mut pci), [(0, 0x1275_1275), (0xf8, 0x7000_8086)]);
        assert_eq!(
            found(&mut Pci::new(true, Chipset::Bhyve)),
            [(0, 0x1275_1275), (0x28, 0x40fb_fb5d), (0xf8, 0x7000_8086)]
        );
        pci.write_address(4, 0);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn registers_keep_their_read_only_bits() {
        let mut pci = Pci::new(false, Chipset::Bhyve);
        pci.write_address(4, ENABLE | 0xf8 << 8 | 0x60);
        pci.write_data(CONFIG_DATA + 1, 1, 0xff);
        assert_eq!(pci.read_data(CONFIG_DATA + 1, 1), 0x8f);
        assert_eq!(pci.read_data(CONFIG_DATA, 2), 0x8f80);
        assert_eq!(pci.read_data(CONFIG_DATA + 1, 2), u32::MAX, "unaligned");
        pci.write_address(4, ENABLE);
        pci.write_data(CONFIG_DATA, 4, 0);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), 0x1275_1275);
    }

    #[test]
    fn the_bar_of_slot_5_moves_while_memory_decodes() {
        let mut pci = Pci::new(true, Chipset::Bhyve);
        let mut write = |register: u32, data| {
            pci.write_address(4, ENABLE | 5 << 11 | register);
            pci.write_data(CONFIG_DATA, 4, data)
        };
        let moved = |to| Some(Effect::MoveBar { to });
        assert_eq!(write(0x10, 0xc100_0008), None, "where it is");
        assert_eq!(write(0x10, 0xc200_0000), moved(Some(0xc200_0000)));
        assert_eq!(write(0x04, 0), moved(None), "it no longer decodes");
        assert_eq!(write(0x10, u32::MAX), None);
        assert_eq!(write(0x04, 2), moved(Some(0xffff_f000)));
        pci.write_address(4, ENABLE | 5 << 11 | 0x10);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), 0xffff_f000, "4 KiB of memory");
        assert_eq!(pci.write_data(CONFIG_DATA, 2, 0), None, "not 32 bits");
        assert_eq!(pci.write_window(5 << 15 | 0x10, 8, 0xc300_0000), moved(Some(0xc300_0000)));
    }

    #[test]
    fn the_window_shows_the_same_functions() {
        let mut pci = Pci::new(false, Chipset::Bhyve);
        assert_eq!(pci.read_window(0, 4), 0x1275_1275);
        assert_eq!(pci.read_window(31 << 15, 4), 0x7000_8086);
        assert_eq!(pci.read_window(31 << 15, 8) >> 32, 4, "command");
        assert_eq!(pci.read_window(1 << 20, 4), 0xffff_ffff, "bus 1");
        assert_eq!(pci.read_window(0x100, 4), 0, "no extended capabilities");
        pci.write_window(31 << 15 | 0x3c, 1, 5);
        pci.write_address(4, ENABLE | 0xf8 << 8 | 0x3c);
        assert_eq!(pci.read_data(CONFIG_DATA, 1), 5);
    }
}
