//! Devices in a PC, driven as a guest drives them: by ports, memory and rings, with every kind of transport.

use super::queue::tests::Driver;
use super::switch::tests::who_has_the_peer;
use crate::pc::pci::Interrupt;
use crate::pc::ram::Ram;
use crate::pc::{Bus, Effect, Inout, Pc};
use crate::pci_device::tests::numbered;
use crate::{Chipset, Console, DeviceKind, Disk, IsaDevices, PciDevice, Stream, Transport};
use proptest::prelude::*;
use std::sync::Arc;

const SLOT: u8 = 3;
const RING: u32 = 4;
/// Where requests stand in the guest's memory.
const REQUEST: u64 = 0x20000;

/// A PC with one device.
struct Board {
    pc: Pc,
    ram: Arc<Ram>,
    console: Console,
    transport: Transport,
    /// What the devices wanted done outside.
    interrupts: Vec<Interrupt>,
}

impl Board {
    fn new(transport: Transport, kind: DeviceKind) -> Board {
        Board::with(transport, vec![PciDevice { slot: SLOT, transport, kind }])
    }

    fn with(transport: Transport, devices: Vec<PciDevice>) -> Board {
        let (console, ram) = (Console::new(), Arc::new(Ram::new(1 << 20)));
        let bus = Bus { chipset: Chipset::Bhyve, movable_bar: false, devices: &devices, bootrom: true };
        let pc = Pc::new(&console, Arc::<Ram>::clone(&ram), bus, IsaDevices::default(), None);
        Board { pc, ram, console, transport, interrupts: Vec::new() }
    }

    fn note(&mut self, effect: Option<Effect>) {
        match effect {
            None => {}
            Some(Effect::Interrupts(interrupts)) => self.interrupts.extend(interrupts),
            Some(other) => panic!("{other:?}"),
        }
    }

    fn port(&mut self, port: u16, bytes: u8, data: Option<u32>) -> u32 {
        let reaction = self.pc.inout(Inout { port, bytes, data }, 0).expect("no port refuses");
        self.note(reaction.effect);
        reaction.value
    }

    fn config(&mut self, register: u32, bytes: u8, data: Option<u32>) -> u32 {
        self.port(0xcf8, 4, Some(1 << 31 | u32::from(SLOT) << 11 | register & !3));
        self.port(0xcfc + (register & 3) as u16, bytes, data)
    }

    fn read(&mut self, gpa: u64, bytes: u8) -> u64 {
        let (value, effect) = self.pc.read_memory(gpa, bytes).expect("it is claimed");
        self.note(effect);
        value
    }

    fn write(&mut self, gpa: u64, bytes: u8, data: u64) {
        let effect = self.pc.write_memory(gpa, bytes, data).expect("it is claimed");
        self.note(effect);
    }

    fn io(&mut self) -> u16 {
        self.config(0x10, 4, None) as u16 & !3
    }

    /// The modern BAR, by the capability of the common configuration.
    fn modern(&mut self) -> u64 {
        let mut at = self.config(0x34, 1, None);
        while self.config(at, 1, None) != 9 || self.config(at + 3, 1, None) != 1 {
            at = self.config(at + 1, 1, None);
        }
        let bar = self.config(at + 4, 1, None);
        assert_eq!(self.config(at + 8, 4, None), 0, "common configuration begins the BAR");
        u64::from(self.config(0x10 + 4 * bar, 4, None) & !0xf)
    }

    /// Status up to DRIVER_OK with one queue in the ring's page; accepts everything but event indexes.
    fn begin(&mut self, queue: u16) -> u16 {
        const EVENT_IDX: u32 = 1 << 29;
        let page = RING + 8 * u32::from(queue);
        if self.transport == Transport::Legacy {
            let io = self.io();
            self.port(io + 18, 1, Some(3));
            let features = self.port(io, 4, None);
            self.port(io + 4, 4, Some(features & !EVENT_IDX));
            self.port(io + 14, 2, Some(queue.into()));
            let size = self.port(io + 12, 2, None);
            self.port(io + 8, 4, Some(page));
            self.port(io + 18, 1, Some(7));
            return size as u16;
        }
        let common = self.modern();
        self.write(common + 20, 1, 3);
        for half in 0..2_u64 {
            self.write(common, 4, half);
            self.write(common + 8, 4, half);
            let features = self.read(common + 4, 4);
            self.write(common + 12, 4, if half == 0 { features & !u64::from(EVENT_IDX) } else { features });
        }
        self.write(common + 20, 1, 11);
        assert_eq!(self.read(common + 20, 1), 11, "FEATURES_OK");
        self.write(common + 22, 2, queue.into());
        let size = self.read(common + 24, 2);
        let (begin, of_size) = (u64::from(page) << 12, 16 * size);
        let used = (begin + of_size + 4 + 2 * size + 2).next_multiple_of(4096);
        for (at, address) in [(32, begin), (40, begin + of_size), (48, used)] {
            self.write(common + at, 8, address);
        }
        self.write(common + 28, 2, 1);
        self.write(common + 20, 1, 15);
        size as u16
    }

    fn notify(&mut self, queue: u16) {
        if self.transport == Transport::Legacy {
            let io = self.io();
            self.port(io + 16, 2, Some(queue.into()));
        } else {
            let common = self.modern();
            self.write(common + 0x3000 + 4 * u64::from(queue), 2, queue.into());
        }
    }

    fn status(&mut self) -> u32 {
        if self.transport == Transport::Legacy {
            let io = self.io();
            self.port(io + 18, 1, None)
        } else {
            let common = self.modern();
            self.read(common + 20, 1) as u32
        }
    }

    fn isr(&mut self) -> u32 {
        if self.transport == Transport::Legacy {
            let io = self.io();
            self.port(io + 19, 1, None)
        } else {
            let common = self.modern();
            self.read(common + 0x1000, 1) as u32
        }
    }

    /// A request to a disk: its status and the data that came.
    fn disk(&mut self, driver: &mut Driver<'_>, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, Vec<u8>) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes(), data].concat();
        self.ram.put(REQUEST, &header);
        let (answer, status) = (REQUEST + 0x10000, REQUEST + 0x20000);
        driver.send(&[
            (REQUEST, 16, false),
            (REQUEST + 16, data.len() as u32, false),
            (answer, room, true),
            (status, 1, true),
        ]);
        self.ram.put(status, &[0xee]);
        self.notify(0);
        (self.ram.get(status, 1)[0], self.ram.get(answer, room as usize))
    }
}

fn disk(snapshot: bool) -> DeviceKind {
    let disk = Disk::read_only(numbered(40), "numbered.img").expect("whole sectors");
    DeviceKind::Block(if snapshot { disk.snapshot() } else { disk })
}

#[test]
fn devices_have_the_numbers_of_their_kind() {
    let of = |transport, kind| {
        let mut board = Board::new(transport, kind);
        [0x00, 0x2c].map(|register| board.config(register, 4, None))
    };
    let kinds = || [disk(false), DeviceKind::Net, DeviceKind::Console, DeviceKind::Rng { seed: 1 }];
    let legacy = kinds().map(|kind| of(Transport::Legacy, kind));
    assert_eq!(
        legacy,
        [
            [0x1001_1af4, 0x0002_1af4],
            [0x1000_1af4, 0x0001_1af4],
            [0x1003_1af4, 0x0003_1af4],
            [0x1005_1af4, 0x0004_1af4]
        ]
    );
    let modern = kinds().map(|kind| of(Transport::Modern, kind)[0]);
    assert_eq!(modern, [0x1042_1af4, 0x1041_1af4, 0x1043_1af4, 0x1044_1af4]);
}

#[test]
fn a_disk_is_read_and_written_by_every_transport() {
    for transport in Transport::ALL {
        for snapshot in [false, true] {
            let mut board = Board::new(transport, disk(snapshot));
            let size = board.begin(0);
            assert_eq!(size, 128);
            let ram = Arc::clone(&board.ram);
            let mut driver = Driver::new(&ram, RING, size);
            let (status, data) = board.disk(&mut driver, 0, 7, &[], 1024);
            assert_eq!((status, data[0], data[1023]), (0, 7, 8), "{transport:?}");
            assert_eq!(driver.used().2, 1025, "data and status");
            let (status, _) = board.disk(&mut driver, 1, 7, &[0xab; 512], 0);
            assert_eq!(status, if snapshot { 0 } else { 1 }, "{transport:?}");
            let (_, data) = board.disk(&mut driver, 0, 7, &[], 512);
            assert_eq!(data[100], if snapshot { 0xab } else { 7 });
            assert_eq!(board.disk(&mut driver, 0, 40, &[], 512).0, 1, "behind the end");
            assert_eq!(board.disk(&mut driver, 0, u64::MAX, &[], 512).0, 1);
            assert_eq!(board.disk(&mut driver, 4, 0, &[], 0).0, 0, "flush");
            let (status, id) = board.disk(&mut driver, 8, 0, &[], 20);
            assert_eq!((status, &id[..13]), (0, &b"numbered.img\0"[..]));
            assert_eq!(board.disk(&mut driver, 99, 0, &[], 0).0, 2, "unsupported");
        }
    }
}

/// INTA of slot 3 with a boot ROM is pin 16 + (4 + 3) % 8 and PIRQ 7, which goes to the first free ISA interrupt.
#[test]
fn the_line_is_held_until_the_isr_is_read() {
    for transport in Transport::ALL {
        let mut board = Board::new(transport, disk(false));
        assert_eq!(board.config(0x3c, 2, None), 0x0103, "IRQ 3, INTA");
        let size = board.begin(0);
        let ram = Arc::clone(&board.ram);
        let mut driver = Driver::new(&ram, RING, size);
        let line = |level| Interrupt::Line { irq: Some(3), ioapic_pin: Some(23), level };
        board.disk(&mut driver, 0, 0, &[], 512);
        board.disk(&mut driver, 0, 0, &[], 512);
        assert_eq!(board.interrupts, [line(true)]);
        assert_eq!(board.config(6, 2, None) & 8, 8, "interrupt status");
        assert_eq!((board.isr(), board.isr()), (1, 0));
        assert_eq!(board.interrupts, [line(true), line(false)]);
        // INTx off: the line is held back until it is on again.
        board.config(4, 2, Some(0x407));
        board.disk(&mut driver, 0, 0, &[], 512);
        assert_eq!(board.interrupts.len(), 2);
        board.config(4, 2, Some(7));
        assert_eq!(board.interrupts.last(), Some(&line(true)));
    }
}

#[test]
fn messages_go_where_the_table_says() {
    for transport in Transport::ALL {
        let mut board = Board::new(transport, disk(false));
        let table = u64::from(board.config(0x14, 4, None) & !0xf);
        for (at, data) in [(16, 0xfee0_0000_u64), (20, 0), (24, 0x55), (28, 0)] {
            board.write(table + at, 4, data);
        }
        board.config(0x42, 2, Some(0x8000));
        let size = board.begin(0);
        if transport == Transport::Legacy {
            let io = board.io();
            board.port(io + 22, 2, Some(9));
            assert_eq!(board.port(io + 22, 2, None), 0xffff, "no such vector");
            board.port(io + 22, 2, Some(1));
            assert_eq!(board.port(io + 24, 4, None), 40, "capacity is 4 bytes further with MSI-X");
        } else {
            let common = board.modern();
            board.write(common + 26, 2, 1);
            assert_eq!(board.read(common + 0x2000, 8), 40, "capacity");
        }
        let ram = Arc::clone(&board.ram);
        let mut driver = Driver::new(&ram, RING, size);
        board.disk(&mut driver, 0, 0, &[], 512);
        assert_eq!(board.interrupts, [Interrupt::Message { address: 0xfee0_0000, data: 0x55 }], "{transport:?}");
        assert_eq!(board.isr(), 0);
    }
}

#[test]
fn the_window_reaches_the_registers() {
    let mut board = Board::new(Transport::Modern, disk(false));
    let mut at = board.config(0x34, 1, None);
    while board.config(at, 1, None) != 9 || board.config(at + 3, 1, None) != 5 {
        at = board.config(at + 1, 1, None);
    }
    for (register, bytes, value) in [(4, 1, 4), (8, 4, 20), (12, 4, 1), (16, 4, 3)] {
        board.config(at + register, bytes, Some(value));
    }
    assert_eq!((board.status(), board.config(at + 16, 4, None)), (3, 3), "device status");
    board.config(at + 8, 4, Some(0x2000));
    board.config(at + 12, 4, Some(4));
    assert_eq!(board.config(at + 16, 4, None), 40, "capacity");
    board.config(at + 8, 4, Some(0x4000));
    assert_eq!(board.config(at + 16, 4, None), 40, "outside the BAR it stays what it was");
}

#[test]
fn entropy_follows_from_the_seed() {
    let of = |seed| {
        let mut board = Board::new(Transport::Modern, DeviceKind::Rng { seed });
        let size = board.begin(0);
        let ram = Arc::clone(&board.ram);
        let mut driver = Driver::new(&ram, RING, size);
        driver.send(&[(REQUEST, 64, true)]);
        board.notify(0);
        assert_eq!(driver.used(), (1, 0, 64));
        ram.get(REQUEST, 64)
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn the_console_keeps_what_is_sent() {
    let mut board = Board::new(Transport::Legacy, DeviceKind::Console);
    let size = board.begin(1);
    let ram = Arc::clone(&board.ram);
    let mut driver = Driver::new(&ram, RING + 8, size);
    ram.put(REQUEST, b"hello\n");
    driver.send(&[(REQUEST, 6, false)]);
    board.notify(1);
    assert_eq!(board.console.output(Stream::Virtio), b"hello\n");
    assert!(board.console.serial().is_empty());
}

#[test]
fn a_frame_is_answered() {
    for transport in Transport::ALL {
        let mut board = Board::new(transport, DeviceKind::Net);
        let sizes = [0, 1].map(|queue| board.begin(queue));
        let ram = Arc::clone(&board.ram);
        let mut receive = Driver::new(&ram, RING, sizes[0]);
        let mut send = Driver::new(&ram, RING + 8, sizes[1]);
        let header = if transport == Transport::Legacy { 10 } else { 12 };
        let frame = who_has_the_peer();
        ram.put(REQUEST + header, &frame);
        send.send(&[(REQUEST, header as u32 + frame.len() as u32, false)]);
        board.notify(1);
        assert_eq!((send.used().0, receive.used().0), (1, 0), "nowhere to put the answer yet");
        receive.send(&[(REQUEST + 0x1000, 1526, true)]);
        board.notify(0);
        assert_eq!(receive.used(), (1, 0, header as u32 + 60), "{transport:?}");
        assert_eq!(ram.get(REQUEST + 0x1000 + header + 21, 1), [2], "ARP reply");
    }
}

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset() {
    for transport in Transport::ALL {
        let mut board = Board::new(transport, disk(false));
        let size = board.begin(0);
        let ram = Arc::clone(&board.ram);
        let mut driver = Driver::new(&ram, RING, size);
        driver.send(&[(REQUEST, 8, false), (REQUEST, 1, true)]);
        board.notify(0);
        assert_eq!(board.status() & 0x40, 0x40, "half a header");
        assert_eq!(board.isr(), 2, "its configuration changed");
        driver.send(&[(REQUEST, 16, false), (REQUEST, 1, true)]);
        board.notify(0);
        assert_eq!(driver.used().0, 0, "it does nothing more");
        if transport == Transport::Legacy {
            let io = board.io();
            board.port(io + 18, 1, Some(0));
        } else {
            let common = board.modern();
            board.write(common + 20, 1, 0);
        }
        assert_eq!(board.status(), 0);
        board.begin(0);
        let mut again = Driver::new(&ram, RING, size);
        ram.put(u64::from(RING) << 12, &[0; 0x4000]);
        assert_eq!(board.disk(&mut again, 0, 3, &[], 512).1[0], 3, "and works again");
    }
}

fn every_device() -> Vec<PciDevice> {
    let kinds =
        [disk(true), disk(false), DeviceKind::Console, DeviceKind::Rng { seed: 0 }, DeviceKind::Net, DeviceKind::Net];
    let slots = [3, 4, 6, 7, 8, 9];
    let devices = slots.into_iter().zip(kinds).enumerate();
    devices.map(|(i, (slot, kind))| PciDevice { slot, transport: Transport::ALL[i % 3], kind }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest writes to registers, rings and memory, nothing panics, and every access ends.
    #[test]
    fn no_guest_breaks_a_device(
        pages in prop::collection::vec(any::<[u8; 32]>(), 64),
        accesses in prop::collection::vec((0_u8..8, any::<u32>(), any::<u32>(), 0_u32..4), 200..400),
    ) {
        let mut board = Board::with(Transport::Transitional, every_device());
        for (i, bytes) in pages.iter().enumerate() {
            board.ram.put(i as u64 * 0x400, bytes);
        }
        for (kind, at, data, size) in accesses {
            let bytes = 1 << size;
            match kind {
                0 => drop(board.port(0xcf8, 4, Some(1 << 31 | (at % 10) << 11 | data & 0xfc))),
                1 => drop(board.port(0xcfc, bytes.min(4), Some(at))),
                2 => drop(board.port(0x2000 + (at % 0x200) as u16, bytes.min(4), Some(data & 0x7))),
                3 => drop(board.port(0x2000 + (at % 0x200) as u16, bytes.min(4), None)),
                4 => board.write(0xc000_0000 + u64::from(at % 0x20000), bytes, (data & 0x1f).into()),
                5 => board.write(0xc000_0000 + u64::from(at % 0x20000), bytes, data.into()),
                6 => drop(board.read(0xc000_0000 + u64::from(at % 0x20000), bytes)),
                _ => board.ram.put(u64::from(at % 0x8000), &data.to_le_bytes()),
            }
        }
    }
}
