//! QEMU's firmware configuration (QEMU, docs/specs/fw_cfg.rst): numbered items, read byte by byte or by DMA.
//!
//! bhyve has it since 14 (`-l fwcfg=qemu`, `qemu_fwcfg.c`), without DMA. Writing items is not possible here, as it is not by
//! ports in QEMU since 2.4.

use super::super::{Effect, Inout, Reaction};
use crate::libvmmapi::FOUR_GIB;
use crate::{Extras, FwCfgFile, FwCfgKernel};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which item, 16 bits.
pub(super) const SELECTOR: u16 = 0x510;
/// The next byte of it.
const DATA: u16 = 0x511;
/// Where the guest puts a command of DMA, 64 bits with the highest byte first.
const DMA: u16 = 0x514;
/// The low half of it; writing it starts the command.
const DMA_LOW: u16 = 0x518;
pub(super) const DMA_LAST: u16 = 0x51b;

/// How long a command is that [`FwCfg::command`] takes, in bytes.
pub(crate) const COMMAND_LEN: usize = 16;

/// Numbers of items (QEMU, include/standard-headers/linux/qemu_fw_cfg.h).
mod key {
    pub(super) const SIGNATURE: u16 = 0x00;
    pub(super) const ID: u16 = 0x01;
    pub(super) const UUID: u16 = 0x02;
    pub(super) const RAM_SIZE: u16 = 0x03;
    pub(super) const NOGRAPHIC: u16 = 0x04;
    pub(super) const NB_CPUS: u16 = 0x05;
    pub(super) const KERNEL_ADDR: u16 = 0x07;
    pub(super) const KERNEL_SIZE: u16 = 0x08;
    pub(super) const INITRD_ADDR: u16 = 0x0a;
    pub(super) const INITRD_SIZE: u16 = 0x0b;
    pub(super) const BOOT_MENU: u16 = 0x0e;
    pub(super) const MAX_CPUS: u16 = 0x0f;
    pub(super) const KERNEL_DATA: u16 = 0x11;
    pub(super) const INITRD_DATA: u16 = 0x12;
    pub(super) const CMDLINE_ADDR: u16 = 0x13;
    pub(super) const CMDLINE_SIZE: u16 = 0x14;
    pub(super) const CMDLINE_DATA: u16 = 0x15;
    pub(super) const SETUP_ADDR: u16 = 0x16;
    pub(super) const SETUP_SIZE: u16 = 0x17;
    pub(super) const SETUP_DATA: u16 = 0x18;
    pub(super) const FILE_DIR: u16 = 0x19;
    pub(super) const FILE_FIRST: u16 = 0x20;
}

/// The directory's entries: size and number with the highest byte first, 16 bits reserved, a name with its zero.
const NAME_LEN: usize = 56;

/// The longest transfer that is done at once, in bytes: what a guest asks beyond an item's end is zeros, and may be 4 GiB of them.
const CHUNK: u32 = 64 << 10;

/// What the configuration tells of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// How many vCPUs.
    pub(crate) vcpus: u16,
    /// RAM from 0 on, in bytes.
    pub(crate) lowmem: u64,
    /// RAM from 4 GiB on, in bytes.
    pub(crate) highmem: u64,
}

/// The device.
pub(crate) struct FwCfg {
    items: BTreeMap<u16, Arc<[u8]>>,
    selected: u16,
    at: usize,
    dma_high: u32,
}

/// What a command of DMA wants done with the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Nothing: the command is over, with an error or without.
    Done {
        /// Whether it failed.
        error: bool,
    },
    /// These bytes go to this address; then [`FwCfg::transfer`] says what is next.
    Write {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        bytes: Vec<u8>,
    },
}

/// A command of DMA under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    error: bool,
    read: bool,
    left: u32,
    gpa: u64,
}

impl FwCfg {
    /// The items for a machine.
    pub(crate) fn new(machine: Machine, extras: &Extras) -> FwCfg {
        const VERSION_TRADITIONAL_AND_DMA: u32 = 3;
        let Machine { vcpus, lowmem, highmem } = machine;
        let mut items: BTreeMap<u16, Arc<[u8]>> = BTreeMap::new();
        let mut add = |key, bytes: &[u8]| drop(items.insert(key, bytes.into()));
        add(key::SIGNATURE, b"QEMU");
        add(key::ID, &VERSION_TRADITIONAL_AND_DMA.to_le_bytes());
        add(key::UUID, &[0; 16]);
        add(key::RAM_SIZE, &(lowmem + highmem).to_le_bytes());
        add(key::NOGRAPHIC, &1_u16.to_le_bytes());
        add(key::NB_CPUS, &vcpus.to_le_bytes());
        add(key::MAX_CPUS, &vcpus.to_le_bytes());
        add(key::BOOT_MENU, &1_u16.to_le_bytes());
        if let Some(kernel) = &extras.kernel {
            kernel_items(kernel, lowmem, &mut add);
        }
        let mut files = extras.fw_cfg.clone();
        files.push(FwCfgFile { name: "etc/e820".into(), contents: e820(lowmem, highmem).into() });
        // Guests take the names as they come; QEMU sorts them.
        files.sort_by(|one, other| one.name.cmp(&other.name));
        add(key::FILE_DIR, &directory(&files));
        for (number, file) in (key::FILE_FIRST..).zip(files) {
            items.insert(number, file.contents);
        }
        FwCfg { items, selected: key::SIGNATURE, at: 0, dma_high: 0 }
    }

    fn select(&mut self, key: u16) {
        // Bits 15 and 14 tell of items of the architecture and of writing; none of either is here.
        (self.selected, self.at) = (key, 0);
    }

    /// The next bytes of the item; zeros behind its end, and of one that there is not.
    fn next(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
        if let Some(rest) = self.items.get(&self.selected).and_then(|item| item.get(self.at..)) {
            let len = rest.len().min(bytes.len());
            bytes[..len].copy_from_slice(&rest[..len]);
        }
        self.skip(bytes.len());
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    /// An access to one of its ports; `None` for a width that it does not take.
    pub(super) fn inout(&mut self, access: Inout) -> Option<Reaction> {
        match (access.port, access.bytes, access.data) {
            (SELECTOR, 2, Some(key)) => {
                self.select(key as u16);
                Some(Reaction::NOTHING)
            }
            (SELECTOR | DATA, 1, None) => {
                let mut byte = [0];
                self.next(&mut byte);
                Some(Reaction::value(byte[0].into()))
            }
            (SELECTOR | DATA, 1, Some(_)) => Some(Reaction::NOTHING),
            // The address register reads as a signature.
            (DMA, 4, None) => Some(Reaction::value(u32::from_le_bytes(*b"QEMU"))),
            (DMA_LOW, 4, None) => Some(Reaction::value(u32::from_le_bytes(*b" CFG"))),
            (DMA, 4, Some(high)) => {
                self.dma_high = high.swap_bytes();
                Some(Reaction::NOTHING)
            }
            (DMA_LOW, 4, Some(low)) => {
                let gpa = u64::from(std::mem::take(&mut self.dma_high)) << 32 | u64::from(low.swap_bytes());
                Some(Reaction::of(Some(Effect::FwCfgDma { gpa })))
            }
            _ => None,
        }
    }

    /// Begins a command: control, length and address, each with its highest byte first.
    pub(crate) fn command(&mut self, command: [u8; COMMAND_LEN]) -> Command {
        const READ: u32 = 1 << 1;
        const SKIP: u32 = 1 << 2;
        const SELECT: u32 = 1 << 3;
        const WRITE: u32 = 1 << 4;
        let (control, rest) = command.split_first_chunk().expect("16 bytes have 4");
        let (length, address) = rest.split_first_chunk().expect("12 bytes have 4");
        let control = u32::from_be_bytes(*control);
        let length = u32::from_be_bytes(*length);
        let gpa = u64::from_be_bytes(address.try_into().expect("8 bytes are left"));
        if control & SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & (READ | WRITE) == 0 && control & SKIP != 0 {
            self.skip(length as usize);
        }
        let read = control & READ != 0;
        Command { error: !read && control & WRITE != 0, read, left: if read { length } else { 0 }, gpa }
    }

    /// The next step of a command.
    pub(crate) fn transfer(&mut self, command: &mut Command) -> Transfer {
        if !command.read || command.left == 0 {
            return Transfer::Done { error: command.error };
        }
        let len = command.left.min(CHUNK);
        let gpa = command.gpa;
        let mut bytes = vec![0; len as usize];
        self.next(&mut bytes);
        command.left -= len;
        command.gpa = gpa.wrapping_add(len.into());
        Transfer::Write { gpa, bytes }
    }
}

impl Command {
    /// The guest's memory does not reach so far.
    pub(crate) fn failed(&mut self) {
        (self.error, self.left) = (true, 0);
    }
}

/// What the control field reads when the command is over: 0, or bit 0 after an error.
pub(crate) fn control_after(error: bool) -> [u8; 4] {
    u32::from(error).to_be_bytes()
}

/// The directory: how many files, and an entry for each.
fn directory(files: &[FwCfgFile]) -> Vec<u8> {
    let mut directory = (files.len() as u32).to_be_bytes().to_vec();
    for (number, file) in (key::FILE_FIRST..).zip(files) {
        let mut name = [0; NAME_LEN];
        let len = file.name.len().min(NAME_LEN - 1);
        name[..len].copy_from_slice(&file.name.as_bytes()[..len]);
        directory.extend((file.contents.len() as u32).to_be_bytes());
        directory.extend(number.to_be_bytes());
        directory.extend([0; 2]);
        directory.extend(name);
    }
    directory
}

/// RAM as firmware is told of it: address, length, and type 1 (QEMU, hw/i386/e820_memory_layout.c).
fn e820(lowmem: u64, highmem: u64) -> Vec<u8> {
    const RAM: u32 = 1;
    let mut table = Vec::new();
    for (address, len) in [(0, lowmem), (FOUR_GIB, highmem)].into_iter().filter(|(_, len)| *len != 0) {
        table.extend(u64::to_le_bytes(address));
        table.extend(len.to_le_bytes());
        table.extend(RAM.to_le_bytes());
    }
    table
}

/// A bzImage taken apart as its boot protocol has it (QEMU, `x86_load_linux`): what the firmware's boot code copies where.
fn kernel_items(kernel: &FwCfgKernel, lowmem: u64, add: &mut dyn FnMut(u16, &[u8])) {
    const SETUP_AT: u32 = 0x1_0000;
    const CMDLINE_AT: u32 = 0x2_0000;
    const KERNEL_AT: u32 = 0x10_0000;
    const SETUP_SECTS: usize = 0x1f1;
    /// The last address that kernels before protocol 2.03 take an initial RAM disk at.
    const INITRD_MAX: u64 = 0x3800_0000;
    let FwCfgKernel { kernel, initrd, cmdline } = kernel;
    let sectors = match kernel.get(SETUP_SECTS) {
        None | Some(0) => 4,
        Some(&sectors) => usize::from(sectors),
    };
    let (setup, program) = kernel.split_at(((sectors + 1) * 512).min(kernel.len()));
    let initrd_at = lowmem.min(INITRD_MAX).saturating_sub(initrd.len() as u64) & !0xfff;
    let cmdline = [cmdline.as_bytes(), &[0]].concat();
    for (size_key, size) in [
        (key::SETUP_SIZE, setup.len()),
        (key::KERNEL_SIZE, program.len()),
        (key::INITRD_SIZE, initrd.len()),
        (key::CMDLINE_SIZE, cmdline.len()),
    ] {
        add(size_key, &(size as u32).to_le_bytes());
    }
    for (addr_key, at) in [
        (key::SETUP_ADDR, SETUP_AT),
        (key::KERNEL_ADDR, KERNEL_AT),
        (key::INITRD_ADDR, initrd_at as u32),
        (key::CMDLINE_ADDR, CMDLINE_AT),
    ] {
        add(addr_key, &at.to_le_bytes());
    }
    for (data_key, data) in [
        (key::SETUP_DATA, setup),
        (key::KERNEL_DATA, program),
        (key::INITRD_DATA, &initrd[..]),
        (key::CMDLINE_DATA, &cmdline),
    ] {
        add(data_key, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fw_cfg() -> FwCfg {
        let file = |name: &str, contents: &[u8]| FwCfgFile { name: name.into(), contents: contents.into() };
        let kernel = FwCfgKernel { kernel: vec![7; 5000].into(), initrd: vec![8; 100].into(), cmdline: "a b".into() };
        let extras = Extras {
            fw_cfg: vec![file("etc/x", b"xyz"), file("bootorder", b"/rom\0")],
            kernel: Some(kernel),
            ..Extras::default()
        };
        FwCfg::new(Machine { vcpus: 4, lowmem: 64 << 20, highmem: 1 << 30 }, &extras)
    }

    fn item(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
        device.inout(Inout { port: SELECTOR, bytes: 2, data: Some(key.into()) }).expect("16 bits");
        let mut byte = || device.inout(Inout { port: DATA, bytes: 1, data: None }).expect("8 bits").value as u8;
        (0..len).map(|_| byte()).collect()
    }

    #[test]
    fn items_are_read_byte_by_byte_with_zeros_behind() {
        let mut device = fw_cfg();
        assert_eq!(item(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(item(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!((item(&mut device, 5, 2), item(&mut device, 0xf, 2)), (vec![4, 0], vec![4, 0]));
        assert_eq!(item(&mut device, 0x7777, 3), [0; 3], "there is none");
        assert_eq!(device.inout(Inout { port: SELECTOR, bytes: 4, data: Some(0) }), None);
    }

    #[test]
    fn the_directory_leads_to_the_files() {
        let mut device = fw_cfg();
        let directory = item(&mut device, 0x19, 4 + 3 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 3]);
        let entries: Vec<(String, Vec<u8>)> = directory[4..]
            .chunks(64)
            .map(|entry| {
                let size = u32::from_be_bytes(entry[..4].try_into().expect("4")) as usize;
                let number = u16::from_be_bytes(entry[4..6].try_into().expect("2"));
                let name = String::from_utf8_lossy(&entry[8..]).trim_end_matches('\0').to_owned();
                (name, item(&mut device, number, size))
            })
            .collect();
        assert_eq!(entries[0], ("bootorder".into(), b"/rom\0".to_vec()));
        assert_eq!((entries[1].0.as_str(), entries[1].1.len()), ("etc/e820", 40));
        assert_eq!(entries[2], ("etc/x".into(), b"xyz".to_vec()));
    }

    #[test]
    fn a_kernel_is_taken_apart() {
        let mut device = fw_cfg();
        // setup_sects is 7: 8 sectors in front.
        assert_eq!(item(&mut device, 0x17, 4), 4096_u32.to_le_bytes());
        assert_eq!(item(&mut device, 0x08, 4), 904_u32.to_le_bytes());
        assert_eq!(item(&mut device, 0x15, 4), b"a b\0");
        assert_eq!(item(&mut device, 0x0a, 4), 0x3ff_f000_u32.to_le_bytes());
    }

    #[test]
    fn dma_selects_reads_and_skips() {
        let mut device = fw_cfg();
        assert_eq!(device.inout(Inout { port: DMA, bytes: 4, data: None }).map(|r| r.value), Some(0x554d_4551));
        device.inout(Inout { port: DMA, bytes: 4, data: Some(1_u32.swap_bytes()) }).expect("32 bits");
        let started = device.inout(Inout { port: DMA_LOW, bytes: 4, data: Some(0x1000_u32.swap_bytes()) });
        assert_eq!(started.and_then(|r| r.effect), Some(Effect::FwCfgDma { gpa: 0x1_0000_1000 }));

        let command = |control: u32, length: u32| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&control.to_be_bytes());
            bytes[4..8].copy_from_slice(&length.to_be_bytes());
            bytes[8..].copy_from_slice(&0x2000_u64.to_be_bytes());
            bytes
        };
        // Select the signature and skip two bytes, then read four.
        let mut skip = device.command(command(1 << 3 | 1 << 2, 2));
        assert_eq!(device.transfer(&mut skip), Transfer::Done { error: false });
        let mut read = device.command(command(1 << 1, 4));
        assert_eq!(device.transfer(&mut read), Transfer::Write { gpa: 0x2000, bytes: b"MU\0\0".to_vec() });
        assert_eq!(device.transfer(&mut read), Transfer::Done { error: false });
        let mut write = device.command(command(1 << 4, 4));
        assert_eq!(device.transfer(&mut write), Transfer::Done { error: true }, "nothing can be written");
        let mut long = device.command(command(1 << 1, u32::MAX));
        assert!(matches!(device.transfer(&mut long), Transfer::Write { bytes, .. } if bytes.len() == 64 << 10));
        long.failed();
        assert_eq!(device.transfer(&mut long), Transfer::Done { error: true });
    }
}
