//! Virtio devices of PCI's bus 0 by the legacy interface (virtio 1.2, 2.7 and 4.1.4.8): bytes of an entropy device, sectors of a disk, by
//! one request at a time. Each request is to interrupt the BSP by MSI.

use crate::crc32;
use core::sync::atomic::{AtomicU32, Ordering, fence};
use runtime::console::Line;
use runtime::pci::{read_config, write_config};
use runtime::scenario::expect;
use runtime::{Bsp, port};

/// The interrupt whose handler counts (`WAKE` of the runtime).
const VECTOR: u32 = 0x20;

/// The numbers of transitional devices (virtio 1.2, 4.1.2.1): device and vendor.
const BLOCK: u32 = 0x1001_1af4;
const ENTROPY: u32 = 0x1005_1af4;

/// How much of a disk is read.
const SECTORS: usize = 64;
const SECTOR_SIZE: usize = 512;
/// How many bytes of entropy are asked for.
const ENTROPY_BYTES: u32 = 64;

/// The largest queue that there is room for.
const LARGEST_QUEUE: usize = 128;

/// Descriptors and the available ring in the first page, the used ring in the second.
#[repr(C, align(4096))]
struct Rings([[AtomicU32; 1024]; 2]);

/// Memory that devices read and write.
#[repr(C, align(4096))]
struct Buffer([AtomicU32; SECTORS * SECTOR_SIZE / 4]);

static RINGS: [Rings; 2] = [const { Rings([const { [const { AtomicU32::new(0) }; 1024] }; 2]) }; 2];
static DATA: Buffer = Buffer([const { AtomicU32::new(0) }; SECTORS * SECTOR_SIZE / 4]);
/// A disk's request: type, reserved, sector (64 bits); and behind it the status.
static REQUEST: [AtomicU32; 5] = [const { AtomicU32::new(0) }; 5];

/// Reads from every such device there is; whether all of it went well.
pub(crate) fn read_all(bsp: &Bsp) -> bool {
    let mut rings = RINGS.iter();
    let mut well = true;
    for slot in 0..32 {
        let read: fn(&mut Device) -> Option<()> = match read_config(slot, 0) {
            ENTROPY => read_entropy,
            BLOCK => read_disk,
            _ => continue,
        };
        let Some(rings) = rings.next() else { return false };
        bsp.cpu().forget_wakes();
        let (done, requests) = match Device::new(slot, rings) {
            Some(mut device) => (read(&mut device).is_some(), device.requests.into()),
            None => (false, 0),
        };
        let interrupted = expect(|| bsp.cpu().wakes() >= requests) && bsp.cpu().wakes() == requests;
        Line.text("interrupts: ").decimal(bsp.cpu().wakes()).text(" of ").decimal(requests).end();
        well &= done && interrupted;
    }
    well
}

fn read_entropy(device: &mut Device) -> Option<()> {
    device.describe(0, address(&DATA.0), ENTROPY_BYTES, WRITE);
    let len = device.request()?;
    Line.text("virtio-rnd: ")
        .decimal(len)
        .text(" bytes, CRC-32 ")
        .hex(crc32::of_memory(address(&DATA.0), address(&DATA.0) + len).into())
        .end();
    (len == ENTROPY_BYTES).then_some(())
}

fn read_disk(device: &mut Device) -> Option<()> {
    const STATUS: u32 = 16;
    const NO_STATUS: u32 = 0xff;
    let capacity = device.read_u32(CONFIG);
    let mut crc = None;
    device.describe(0, address(&REQUEST), STATUS, NEXT);
    device.describe(1, address(&DATA.0), (SECTORS * SECTOR_SIZE) as u32, NEXT | WRITE);
    device.describe(2, address(&REQUEST) + STATUS, 1, WRITE);
    // Twice, so that the rings go on; the type of a read is 0.
    for _ in 0..2 {
        REQUEST[4].store(NO_STATUS, Ordering::Relaxed);
        let len = device.request()?;
        let status = REQUEST[4].load(Ordering::Relaxed);
        let read = crc32::of_memory(address(&DATA.0), address(&DATA.0) + (SECTORS * SECTOR_SIZE) as u32);
        if len != (SECTORS * SECTOR_SIZE) as u32 + 1 || status != 0 || crc.is_some_and(|crc| crc != read) {
            Line.text("virtio-blk: ").decimal(len).text(" bytes, status ").decimal(status).end();
            return None;
        }
        crc = Some(read);
    }
    Line.text("virtio-blk: ")
        .decimal(SECTORS as u32)
        .text(" of ")
        .decimal(capacity)
        .text(" sectors, CRC-32 ")
        .hex(crc.unwrap_or_default().into())
        .end();
    Some(())
}

/// Flags of a descriptor (2.7.5).
const NEXT: u32 = 1;
const WRITE: u32 = 2;

/// Registers in BAR 0 (4.1.4.8).
const DRIVER_FEATURES: u16 = 4;
const QUEUE_PAGE: u16 = 8;
const QUEUE_SIZE: u16 = 12;
const QUEUE_SELECT: u16 = 14;
const QUEUE_NOTIFY: u16 = 16;
const STATUS: u16 = 18;
const CONFIG: u16 = 20;

/// A device whose queue 0 is set up.
struct Device {
    ports: u16,
    rings: &'static Rings,
    queue_size: usize,
    requests: u16,
}

impl Device {
    /// Sets the device of a slot up (3.1.1); `None` when it is not as it should be.
    fn new(slot: u32, rings: &'static Rings) -> Option<Device> {
        const COMMAND: u32 = 0x04;
        const IO_AND_BUS_MASTER: u32 = 1 | 4;
        const BAR0: u32 = 0x10;
        let bar = read_config(slot, BAR0);
        write_config(slot, COMMAND, read_config(slot, COMMAND) & 0xffff | IO_AND_BUS_MASTER);
        enable_msi(slot)?;
        let mut device = Device { ports: bar as u16 & !3, rings, queue_size: 0, requests: 0 };
        // Reset; ACKNOWLEDGE and DRIVER; no feature is wanted.
        for status in [0, 1, 1 | 2] {
            port::write_u8(device.ports + STATUS, status);
        }
        port::write_u32(device.ports + DRIVER_FEATURES, 0);
        port::write_u16(device.ports + QUEUE_SELECT, 0);
        device.queue_size = port::read_u16(device.ports + QUEUE_SIZE).into();
        if bar & 1 == 0 || !(3..=LARGEST_QUEUE).contains(&device.queue_size) {
            return None;
        }
        port::write_u32(device.ports + QUEUE_PAGE, address(&rings.0) >> 12);
        port::write_u8(device.ports + STATUS, 1 | 2 | 4);
        Some(device)
    }

    fn read_u32(&self, register: u16) -> u32 {
        port::read_u32(self.ports + register)
    }

    /// Fills in a descriptor; with [`NEXT`] the one behind it follows.
    fn describe(&self, number: usize, address: u32, len: u32, flags: u32) {
        let [descriptors, _] = &self.rings.0;
        let mut words = descriptors.iter().skip(4 * number);
        let mut put = |value| {
            if let Some(word) = words.next() {
                word.store(value, Ordering::Relaxed);
            }
        };
        // One by one: an array of them would be SSE's, which is off.
        put(address);
        put(0);
        put(len);
        put(flags | (number as u32 + 1) << 16);
    }

    /// Makes the chain that begins with descriptor 0 available, and waits for its end. How many bytes were written; `None` when it does
    /// not end.
    fn request(&mut self) -> Option<u32> {
        let [first_page, used] = &self.rings.0;
        let available = first_page.get(4 * self.queue_size)?;
        let written = used.get(2 + 2 * (usize::from(self.requests) & (self.queue_size - 1)))?;
        self.requests += 1;
        let requests = u32::from(self.requests);
        // Every entry of the available ring is 0, the first descriptor; the index stands in the upper half, behind the flags.
        available.store(requests << 16, Ordering::Release);
        fence(Ordering::SeqCst);
        port::write_u16(self.ports + QUEUE_NOTIFY, 0);
        let ended = expect(|| used[0].load(Ordering::Acquire) >> 16 == requests);
        ended.then(|| written.load(Ordering::Relaxed))
    }
}

/// Has the function interrupt the BSP by MSI (PCI 3.0, 6.8.1).
fn enable_msi(slot: u32) -> Option<()> {
    const CAPABILITIES: u32 = 0x34;
    const MSI: u32 = 5;
    const ENABLE: u32 = 1 << 16;
    const TO_APIC_0: u32 = 0xfee0_0000;
    let mut at = read_config(slot, CAPABILITIES) & 0xfc;
    while at != 0 {
        let capability = read_config(slot, at);
        if capability & 0xff == MSI {
            write_config(slot, at + 4, TO_APIC_0);
            write_config(slot, at + 8, 0);
            write_config(slot, at + 12, VECTOR);
            write_config(slot, at, capability | ENABLE);
            return Some(());
        }
        at = capability >> 8 & 0xfc;
    }
    None
}

fn address<T>(memory: &'static T) -> u32 {
    &raw const *memory as usize as u32
}
