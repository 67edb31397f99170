//! PCI: configuration mechanism 1, the extended configuration window, the two devices of the smallest bhyve command
//! line (`-s 0,hostbridge -s 31,lpc`), one more in slot 5 if asked for, whose memory BAR the guest can move, and the virtio
//! devices of the command line.
//!
//! [`config`] is a function's configuration space with its BARs, [`msi`] and [`intx`] are how it interrupts.

pub(crate) mod config;
pub(crate) mod intx;
pub(crate) mod msi;

use super::virtio::{Dma, Function, Switch};
use super::{Bus, Effect};
use crate::pci_device::PciDevice;
use crate::{Chipset, Console};
use config::{Config, Space, command, reg};
use intx::{Route, Router};
use parking_lot::Mutex;
use std::sync::Arc;

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

/// Where I/O BARs are at first (`PCI_EMUL_IOBASE`).
pub(crate) const IO_BASE: u64 = 0x2000;
/// Where memory BARs are at first, below the window: guest RAM ends there at the latest.
pub(crate) const MEMORY_BASE: u64 = 0xc000_0000;

/// Where the memory BAR of slot 5 is at first.
pub(crate) const BAR_BASE: u64 = 0xc100_0000;
/// Its size in bytes.
pub(crate) const BAR_SIZE: u64 = 4 << 10;
/// Device 5, function 0.
const BAR_DEVFN: u8 = 5 << 3;
/// Of bhyve's LPC bridge: device 31.
const LPC_DEVFN: u8 = 31 << 3;
/// Of the ISA bridge of [`Chipset::I440fx`], and of the power management beside it: device 1, functions 0 and 3.
const PIIX3_DEVFN: u8 = 1 << 3;
const PIIX4_PM_DEVFN: u8 = 1 << 3 | 3;

/// PIIX4: where the power management's ports are, and whether they are there.
const PMBASE: usize = 0x40;
const PMREGMISC: usize = 0x80;

/// An interrupt that leaves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// MSI or MSI-X.
    Message {
        /// Where it is written.
        address: u64,
        /// What is.
        data: u32,
    },
    /// A line is raised or lowered.
    Line {
        /// Its line at the 8259s, where it has one.
        irq: Option<u8>,
        /// Its pin of the I/O APIC, where it has one.
        ioapic_pin: Option<u8>,
        /// Raised.
        level: bool,
    },
}

/// Where the next BAR goes (`pci_emul_alloc_bar`). Those of our devices are small, and all below 4 GiB.
#[derive(Debug)]
pub(crate) struct Addresses {
    io: u64,
    memory: u64,
}

impl Addresses {
    /// The next free address for a BAR, aligned to its size.
    pub(crate) fn next(&mut self, space: Space, size: u64) -> u64 {
        let next = if space == Space::Io { &mut self.io } else { &mut self.memory };
        let base = next.next_multiple_of(size);
        *next = base + size;
        base
    }
}

/// `pci_hostbridge.c`: a NetApp host bridge with a PCI Express capability.
fn host_bridge() -> Config {
    const PCI_EXPRESS: u8 = 0x10;
    let mut config = Config::new(0x1275, 0x1275, [0x06, 0x00]);
    config.set16(reg::COMMAND, command::BUS_MASTER);
    // Version 2, root port; the link is one lane of generation 1.
    let mut body = [0; 0x12];
    body[0] = 0x42;
    body[0x0a..0x0e].copy_from_slice(&0x411_u32.to_le_bytes());
    body[0x10..].copy_from_slice(&0x11_u16.to_le_bytes());
    config.add_capability(PCI_EXPRESS, &body);
    config
}

/// `pci_lpc.c`: a PIIX3-like ISA bridge. Its eight PIRQ routing registers begin disabled.
fn lpc_bridge() -> Config {
    const PIRQ_DISABLED: u8 = 0x80;
    /// IRQ routing enable (inverted) and the interrupt's number.
    const PIRQ_WRITABLE: u8 = 0x8f;
    let mut config = Config::new(0x8086, 0x7000, [0x06, 0x01]);
    config.set16(reg::COMMAND, command::BUS_MASTER);
    for pirq in (0x60..0x64).chain(0x68..0x6c) {
        config.set(pirq, PIRQ_DISABLED);
        config.allow(pirq, &[PIRQ_WRITABLE]);
    }
    config
}

/// A function of [`Chipset::I440fx`], QEMU's by its subsystem's numbers.
fn of_qemu(device: u16, class: [u8; 2]) -> Config {
    const INTEL: u16 = 0x8086;
    let mut config = Config::new(INTEL, device, class);
    config.set16(reg::COMMAND, command::BUS_MASTER);
    by_qemu(&mut config);
    config
}

fn by_qemu(config: &mut Config) {
    config.set16(reg::SUBSYSTEM_VENDOR, 0x1af4);
    config.set16(reg::SUBSYSTEM, 0x1100);
}

/// The 82441FX (QEMU, hw/pci-host/i440fx.c). Its PAM registers are kept, and change nothing: the memory from C0000H on is RAM to
/// read and to write, whatever they say. A VM has room for 8 mappings (`VM_MAX_MEMMAPS`), and PAM has 13 segments in 3 states.
/// SeaBIOS writes there only what it has unlocked (src/fw/shadow.c), and OVMF nothing.
fn i440fx() -> Config {
    const PAM: std::ops::RangeInclusive<usize> = 0x59..=0x5f;
    const SMRAM: usize = 0x72;
    let mut config = of_qemu(0x1237, [0x06, 0x00]);
    PAM.for_each(|pam| config.allow(pam, &[0x33]));
    config.set(SMRAM, 0x02);
    config
}

/// The 82371SB's ISA bridge (QEMU, hw/isa/piix.c).
fn piix3() -> Config {
    const MULTIFUNCTION: u8 = 0x80;
    let mut config = lpc_bridge();
    by_qemu(&mut config);
    config.set(reg::HEADER_TYPE, MULTIFUNCTION);
    config
}

/// The 82371AB's power management (QEMU, hw/acpi/piix4.c), as of a machine without SMM: SMIs are on, so that firmware leaves them
/// alone.
fn piix4_pm() -> Config {
    const DEVACTB_APMC_EN: (usize, u8) = (0x5b, 0x02);
    const SMBHSTBASE: usize = 0x90;
    const SMBHSTCFG: usize = 0xd2;
    let mut config = of_qemu(0x7113, [0x06, 0x80]);
    config.set(reg::INT_PIN, 1);
    config.set(PMBASE, 1);
    config.allow(PMBASE, &[0xc0, 0xff]);
    config.allow(PMREGMISC, &[1]);
    config.set(DEVACTB_APMC_EN.0, DEVACTB_APMC_EN.1);
    config.set(SMBHSTBASE, 1);
    config.allow(SMBHSTBASE, &[0xc0, 0xff]);
    config.allow(SMBHSTCFG, &[0x0f]);
    config
}

/// A device with one 32-bit memory BAR. Its numbers are those of bhyve's frame buffer.
fn movable_bar() -> Config {
    let mut config = Config::new(0xfb5d, 0x40fb, [0x03, 0x00]);
    config.add_bar(0, Space::Memory32, BAR_BASE, BAR_SIZE);
    config
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

/// A virtio device in its slot.
struct Slot {
    route: Route,
    function: Function,
}

/// Bus 0 with its devices.
pub(super) struct Pci {
    /// CONFIG_ADDRESS as written, bits 1:0 cleared.
    address: u32,
    host_bridge: Config,
    lpc_bridge: Config,
    /// Device and function of the latter.
    lpc_devfn: u8,
    /// [`Chipset::I440fx`]'s power management.
    piix4_pm: Option<Config>,
    /// Slot 5.
    movable_bar: Option<Config>,
    router: Router,
    /// In the order of their slots.
    slots: Vec<Slot>,
    /// What the last access led to.
    moved: Option<Option<u64>>,
    raised: Vec<Interrupt>,
}

impl Pci {
    /// The bus after power-up.
    pub(super) fn new(bus: Bus<'_>, console: &Console) -> Pci {
        let (host_bridge, lpc_bridge, lpc_devfn, piix4_pm) = match bus.chipset {
            Chipset::Bhyve => (host_bridge(), lpc_bridge(), LPC_DEVFN, None),
            Chipset::I440fx => (i440fx(), piix3(), PIIX3_DEVFN, Some(piix4_pm())),
        };
        let mut pci = Pci {
            address: 0,
            host_bridge,
            lpc_bridge,
            lpc_devfn,
            piix4_pm,
            movable_bar: bus.movable_bar.then(movable_bar),
            router: Router::default(),
            slots: Vec::new(),
            moved: None,
            raised: Vec::new(),
        };
        let mut addresses = Addresses { io: IO_BASE, memory: MEMORY_BASE };
        let switch = Arc::new(Mutex::new(Switch::default()));
        let mut in_order: Vec<&PciDevice> = bus.devices.iter().collect();
        in_order.sort_by_key(|device| device.slot);
        for device in in_order {
            let mut function = Function::new(device, &mut addresses, console, &switch);
            if bus.chipset == Chipset::I440fx {
                function.widen_io_bars();
            }
            let route = pci.router.route(&mut pci.lpc_bridge, device.slot, bus.bootrom);
            function.set_interrupt_line(route.irq);
            pci.slots.push(Slot { route, function });
        }
        pci
    }

    /// Where the interrupt pin of each slot goes that has one.
    pub(super) fn routes(&self) -> Vec<Route> {
        self.slots.iter().map(|slot| slot.route).collect()
    }

    /// The first port of PIIX4's power management, where the guest has put it and turned it on.
    pub(super) fn power_management_base(&self) -> Option<u16> {
        let pm = self.piix4_pm.as_ref().filter(|pm| pm.read(PMREGMISC, 1) & 1 != 0)?;
        Some(pm.read(PMBASE, 2) as u16 & !1)
    }

    /// What the last access wants done outside.
    pub(super) fn take_effect(&mut self) -> Option<Effect> {
        if let Some(to) = self.moved.take() {
            return Some(Effect::MoveBar { to });
        }
        let raised = std::mem::take(&mut self.raised);
        (!raised.is_empty()).then_some(Effect::Interrupts(raised))
    }

    fn function(&mut self, address: Address) -> Option<&mut Config> {
        match (address.bus, address.devfn) {
            (0, 0) => Some(&mut self.host_bridge),
            (0, BAR_DEVFN) => self.movable_bar.as_mut(),
            (0, PIIX4_PM_DEVFN) => self.piix4_pm.as_mut(),
            (0, devfn) if devfn == self.lpc_devfn => Some(&mut self.lpc_bridge),
            _ => None,
        }
    }

    /// The virtio device at this address.
    fn slot(&self, address: Address) -> Option<usize> {
        let ours = |slot: &Slot| address.bus == 0 && slot.route.slot << 3 == address.devfn;
        self.slots.iter().position(ours)
    }

    /// `pci_cfgrw` of a read. Nobody there, or unaligned: all ones.
    fn read(&mut self, address: Address, bytes: usize) -> u32 {
        let offset = usize::from(address.offset);
        let slot = self.slot(address);
        if slot.is_none() && self.function(address).is_none() || offset % bytes != 0 {
            return u32::MAX;
        }
        match offset {
            0..256 => match slot {
                Some(slot) => {
                    let value = self.slots[slot].function.read_config(offset, bytes);
                    self.settle(slot);
                    value
                }
                None => self.function(address).map_or(u32::MAX, |function| function.read(offset, bytes)),
            },
            // No extended capabilities: a header of zeros (PCI Express 7.9.2).
            256..=0x103 => 0,
            _ => u32::MAX,
        }
    }

    /// `pci_cfgrw` of a write.
    fn write(&mut self, address: Address, bytes: usize, data: u32, dma: &dyn Dma) {
        let offset = usize::from(address.offset);
        if offset % bytes != 0 || offset >= 256 {
            return;
        }
        if let Some(slot) = self.slot(address) {
            self.slots[slot].function.write_config(offset, bytes, data, dma);
            return self.settle_all(slot, dma);
        }
        let Some(function) = self.function(address) else { return };
        let (from, before) = (function.decoded(0), function.read(offset, bytes));
        function.write(offset, bytes, data);
        let (to, after) = (function.decoded(0), function.read(offset, bytes));
        if address.devfn == BAR_DEVFN && from != to {
            self.moved = Some(to);
        }
        if address.devfn == self.lpc_devfn {
            let registers = before.to_le_bytes().into_iter().zip(after.to_le_bytes()).take(bytes);
            for (register, (before, after)) in (offset..).zip(registers) {
                self.raised.extend(self.router.rerouted(register, before, after));
            }
        }
    }

    /// A read of an I/O port, or of memory that is no RAM; `None` where no BAR decodes it.
    pub(super) fn read_bar(&mut self, io: bool, address: u64, bytes: u8) -> Option<u64> {
        let (slot, bar, offset) = self.claimed(io, address, bytes)?;
        let value = self.slots[slot].function.read_bar(bar, offset, bytes);
        self.settle(slot);
        Some(value)
    }

    /// A write likewise; whether a BAR decodes it.
    pub(super) fn write_bar(&mut self, io: bool, address: u64, bytes: u8, data: u64, dma: &dyn Dma) -> bool {
        let Some((slot, bar, offset)) = self.claimed(io, address, bytes) else { return false };
        self.slots[slot].function.write_bar(bar, offset, bytes, data, dma);
        self.settle_all(slot, dma);
        true
    }

    fn claimed(&self, io: bool, address: u64, bytes: u8) -> Option<(usize, usize, u64)> {
        self.slots.iter().enumerate().find_map(|(slot, here)| {
            let (bar, offset) = here.function.claims(io, address, bytes)?;
            Some((slot, bar, offset))
        })
    }

    /// Takes what an access made of a device's interrupts.
    fn settle(&mut self, slot: usize) {
        let Slot { route, function } = &mut self.slots[slot];
        self.raised.extend(function.take_messages());
        if let Some(level) = function.line_change() {
            self.raised.push(self.router.set_level(&self.lpc_bridge, *route, level));
        }
    }

    /// As [`Pci::settle`], after a write: what it sent elsewhere arrives.
    fn settle_all(&mut self, writer: usize, dma: &dyn Dma) {
        self.settle(writer);
        for slot in 0..self.slots.len() {
            self.slots[slot].function.receive(dma);
            self.settle(slot);
        }
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
    pub(super) fn write_data(&mut self, port: u16, bytes: u8, data: u32, dma: &dyn Dma) {
        if let Some(address) = self.selected(port) {
            self.write(address, bytes.into(), data, dma);
        }
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

    /// Write to the window.
    pub(super) fn write_window(&mut self, offset: u64, bytes: u8, data: u64, dma: &dyn Dma) {
        if bytes == 8 {
            self.write_window(offset, 4, data & 0xffff_ffff, dma);
            return self.write_window(offset + 4, 4, data >> 32, dma);
        }
        self.write(Pci::in_window(offset), bytes.into(), data as u32, dma);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pc::ram::Ram;

    fn bus(with_movable_bar: bool) -> Pci {
        let bus = Bus { chipset: Chipset::Bhyve, movable_bar: with_movable_bar, devices: &[], bootrom: true };
        Pci::new(bus, &Console::new())
    }

    fn write_data(pci: &mut Pci, port: u16, bytes: u8, data: u32) -> Option<Effect> {
        pci.write_data(port, bytes, data, &Ram::new(0));
        pci.take_effect()
    }

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
        let mut pci = bus(false);
        assert_eq!(found(&mut pci), [(0, 0x1275_1275), (0xf8, 0x7000_8086)]);
        assert_eq!(found(&mut bus(true)), [(0, 0x1275_1275), (0x28, 0x40fb_fb5d), (0xf8, 0x7000_8086)]);
        pci.write_address(4, 0);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn registers_keep_their_read_only_bits() {
        let mut pci = bus(false);
        pci.write_address(4, ENABLE | 0xf8 << 8 | 0x60);
        write_data(&mut pci, CONFIG_DATA + 1, 1, 0xff);
        assert_eq!(pci.read_data(CONFIG_DATA + 1, 1), 0x8f);
        assert_eq!(pci.read_data(CONFIG_DATA, 2), 0x8f80);
        assert_eq!(pci.read_data(CONFIG_DATA + 1, 2), u32::MAX, "unaligned");
        pci.write_address(4, ENABLE);
        write_data(&mut pci, CONFIG_DATA, 4, 0);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), 0x1275_1275);
    }

    #[test]
    fn the_bar_of_slot_5_moves_while_memory_decodes() {
        let mut pci = bus(true);
        let mut write = |register: u32, data| {
            pci.write_address(4, ENABLE | 5 << 11 | register);
            write_data(&mut pci, CONFIG_DATA, 4, data)
        };
        let moved = |to| Some(Effect::MoveBar { to });
        assert_eq!(write(0x10, 0xc100_0008), None, "where it is");
        assert_eq!(write(0x10, 0xc200_0000), moved(Some(0xc200_0000)));
        assert_eq!(write(0x04, 0), moved(None), "it no longer decodes");
        assert_eq!(write(0x10, u32::MAX), None);
        assert_eq!(write(0x04, 2), moved(Some(0xffff_f000)));
        pci.write_address(4, ENABLE | 5 << 11 | 0x10);
        assert_eq!(pci.read_data(CONFIG_DATA, 4), 0xffff_f000, "4 KiB of memory");
        assert_eq!(write_data(&mut pci, CONFIG_DATA, 2, 0), None, "not 32 bits");
        pci.write_window(5 << 15 | 0x10, 8, 0xc300_0000, &Ram::new(0));
        assert_eq!(pci.take_effect(), moved(Some(0xc300_0000)));
    }

    #[test]
    fn the_window_shows_the_same_functions() {
        let mut pci = bus(false);
        assert_eq!(pci.read_window(0, 4), 0x1275_1275);
        assert_eq!(pci.read_window(31 << 15, 4), 0x7000_8086);
        assert_eq!(pci.read_window(31 << 15, 8) >> 32, 4, "command");
        assert_eq!(pci.read_window(1 << 20, 4), 0xffff_ffff, "bus 1");
        assert_eq!(pci.read_window(0x100, 4), 0, "no extended capabilities");
        pci.write_window(31 << 15 | 0x3c, 1, 5, &Ram::new(0));
        pci.write_address(4, ENABLE | 0xf8 << 8 | 0x3c);
        assert_eq!(pci.read_data(CONFIG_DATA, 1), 5);
    }
}
