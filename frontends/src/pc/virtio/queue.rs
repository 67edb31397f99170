//! A split virtqueue from the device's side (virtio 1.2, 2.7).
//!
//! The rings are read and written by copies, through [`Dma`]: the engine has to hear of every write to guest memory, for there
//! may be decoded instructions of it. Crates that hand out slices of guest memory write past it.
//!
//! Nothing that the guest writes is trusted: an index, a length or an address that cannot be is [`Broken`], and no chain is
//! followed further than [`MAX_DESCRIPTORS`].

use std::sync::atomic::{Ordering, fence};

/// The guest's memory, as a device reaches it.
pub(crate) trait Dma: Send + Sync {
    /// Copies bytes out of guest physical memory; `false` when they are not all RAM.
    #[must_use]
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool;

    /// Copies bytes in; `false` when they are not all RAM.
    #[must_use]
    fn write(&self, gpa: u64, bytes: &[u8]) -> bool;
}

/// The driver broke a rule: the device does nothing more before it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// How many descriptors a chain has at most, those of an indirect table included (bhyve's `VQ_MAX_DESCRIPTORS`).
const MAX_DESCRIPTORS: usize = 512;
/// How many bytes the buffers of a chain have at most.
const MAX_CHAIN_BYTES: u64 = 4 << 20;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    gpa: u64,
    len: u32,
}

/// A chain of buffers that the driver made available: what the device reads, then what it writes (2.7.4.2).
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

fn total(buffers: &[Buffer]) -> usize {
    buffers.iter().map(|buffer| buffer.len as usize).sum()
}

/// The parts of `buffers` that bytes `at..at + len` of them all lie in: address, and which bytes of the range.
fn parts(buffers: &[Buffer], at: usize, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> + '_ {
    let mut begin = 0;
    buffers.iter().filter_map(move |buffer| {
        let (first, end) = (begin, begin + buffer.len as usize);
        begin = end;
        let (from, to) = (first.max(at), end.min(at + len));
        (from < to).then(|| (buffer.gpa.saturating_add((from - first) as u64), from - at..to - at))
    })
}

impl Chain {
    /// How many bytes there are to read.
    pub(crate) fn readable(&self) -> usize {
        total(&self.readable)
    }

    /// How many bytes there is room for.
    pub(crate) fn writable(&self) -> usize {
        total(&self.writable)
    }

    /// Reads `len` bytes from byte `at` on of what is readable, however it is cut into buffers (2.7.4.3).
    pub(crate) fn read(&self, dma: &dyn Dma, at: usize, len: usize) -> Result<Vec<u8>, Broken> {
        if at.checked_add(len).is_none_or(|end| end > self.readable()) {
            return Err(Broken);
        }
        let mut bytes = vec![0; len];
        for (gpa, range) in parts(&self.readable, at, len) {
            if !dma.read(gpa, &mut bytes[range]) {
                return Err(Broken);
            }
        }
        Ok(bytes)
    }

    /// Writes bytes from byte `at` on of what is writable.
    pub(crate) fn write(&self, dma: &dyn Dma, at: usize, bytes: &[u8]) -> Result<(), Broken> {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.writable()) {
            return Err(Broken);
        }
        for (gpa, range) in parts(&self.writable, at, bytes.len()) {
            if !dma.write(gpa, &bytes[range]) {
                return Err(Broken);
            }
        }
        Ok(())
    }
}

/// A descriptor (2.7.5).
struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const SIZE: u64 = 16;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn read(dma: &dyn Dma, table: u64, index: u16) -> Result<Descriptor, Broken> {
        let bytes: [u8; 16] = read(dma, table, Descriptor::SIZE * u64::from(index))?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Ok(Descriptor {
            gpa: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

fn read<const LEN: usize>(dma: &dyn Dma, base: u64, offset: u64) -> Result<[u8; LEN], Broken> {
    let mut bytes = [0; LEN];
    let gpa = base.checked_add(offset).ok_or(Broken)?;
    if dma.read(gpa, &mut bytes) { Ok(bytes) } else { Err(Broken) }
}

fn read16(dma: &dyn Dma, base: u64, offset: u64) -> Result<u16, Broken> {
    read(dma, base, offset).map(u16::from_le_bytes)
}

fn write(dma: &dyn Dma, base: u64, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
    let gpa = base.checked_add(offset).ok_or(Broken)?;
    if dma.write(gpa, bytes) { Ok(()) } else { Err(Broken) }
}

/// A virtqueue.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    max: u16,
    /// How many descriptors it has: a power of 2, at most the device's maximum.
    size: u16,
    /// Guest physical addresses of the three parts.
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// The driver has made it.
    pub(super) ready: bool,
    /// The MSI-X message for its interrupts.
    pub(super) vector: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub(super) event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// `next_used` when the driver was last told, or would have been.
    told: u16,
}

impl Queue {
    /// A queue after reset, of at most so many descriptors, a power of 2.
    pub(super) fn new(max: u16) -> Queue {
        Queue {
            max,
            size: max,
            descriptors: 0,
            available: 0,
            used: 0,
            ready: false,
            vector: super::NO_VECTOR,
            event_idx: false,
            next_available: 0,
            next_used: 0,
            told: 0,
        }
    }

    /// As after reset.
    pub(super) fn reset(&mut self) {
        *self = Queue::new(self.max);
    }

    /// How many descriptors it has.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Sets how many it has; what is no power of 2, or too many, changes nothing.
    pub(super) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max {
            self.size = size;
        }
    }

    /// Lays the three parts out behind each other from a page on, as the legacy interface has them (2.7.2).
    pub(super) fn set_legacy_page(&mut self, page: u32) {
        const ALIGN: u64 = 4096;
        let (begin, size) = (u64::from(page) * ALIGN, u64::from(self.size));
        self.descriptors = begin;
        self.available = begin + Descriptor::SIZE * size;
        self.used = (self.available + 4 + 2 * size + 2).next_multiple_of(ALIGN);
        self.ready = page != 0;
    }

    /// The page where a legacy driver has laid it out; 0 before it has.
    pub(super) fn legacy_page(&self) -> u32 {
        if self.ready { (self.descriptors >> 12) as u32 } else { 0 }
    }

    /// The next chain that the driver made available.
    pub(crate) fn pop(&mut self, dma: &dyn Dma) -> Result<Option<Chain>, Broken> {
        if !self.ready || !self.has_available(dma)? {
            return Ok(None);
        }
        // What the index says is there is there: the driver wrote it before (2.7.13.3).
        fence(Ordering::SeqCst);
        let slot = u64::from(self.next_available % self.size);
        let head = read16(dma, self.available, 4 + 2 * slot)?;
        self.next_available = self.next_available.wrapping_add(1);
        self.chain(dma, head).map(Some)
    }

    fn has_available(&self, dma: &dyn Dma) -> Result<bool, Broken> {
        let ahead = || Ok(read16(dma, self.available, 2)?.wrapping_sub(self.next_available));
        let mut count = ahead()?;
        if count == 0 && self.event_idx {
            // avail_event: a notification is wanted for the next. One that came in between is seen now (2.7.10).
            let at = 4 + 8 * u64::from(self.size);
            write(dma, self.used, at, &self.next_available.to_le_bytes())?;
            fence(Ordering::SeqCst);
            count = ahead()?;
        }
        if count > self.size { Err(Broken) } else { Ok(count > 0) }
    }

    fn chain(&self, dma: &dyn Dma, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let (mut table, mut size, mut index) = (self.descriptors, u32::from(self.size), head);
        let (mut bytes, mut indirect) = (0, false);
        for _ in 0..=MAX_DESCRIPTORS {
            if u32::from(index) >= size {
                return Err(Broken);
            }
            let descriptor = Descriptor::read(dma, table, index)?;
            if descriptor.flags & Descriptor::INDIRECT != 0 {
                // A table of its own, whole entries, no table in it, nothing behind it (2.7.5.3).
                let entries = descriptor.len / Descriptor::SIZE as u32;
                let whole = descriptor.len % Descriptor::SIZE as u32 == 0 && entries > 0;
                if indirect || !whole || descriptor.flags & Descriptor::NEXT != 0 {
                    return Err(Broken);
                }
                (table, size, index, indirect) = (descriptor.gpa, entries, 0, true);
                continue;
            }
            bytes += u64::from(descriptor.len);
            let buffer = Buffer { gpa: descriptor.gpa, len: descriptor.len };
            let written = descriptor.flags & Descriptor::WRITE != 0;
            if bytes > MAX_CHAIN_BYTES || !written && !chain.writable.is_empty() {
                return Err(Broken);
            }
            if written { &mut chain.writable } else { &mut chain.readable }.push(buffer);
            if descriptor.flags & Descriptor::NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(Broken)
    }

    /// Returns a chain to the driver, with so many bytes written into it.
    pub(crate) fn push(&mut self, dma: &dyn Dma, chain: &Chain, written: usize) -> Result<(), Broken> {
        let slot = u64::from(self.next_used % self.size);
        let element = [u32::from(chain.head).to_le_bytes(), (written as u32).to_le_bytes()];
        write(dma, self.used, 4 + 8 * slot, element.as_flattened())?;
        self.next_used = self.next_used.wrapping_add(1);
        fence(Ordering::SeqCst);
        write(dma, self.used, 2, &self.next_used.to_le_bytes())
    }

    /// Whether the driver is to be interrupted for what was returned since it was last asked (2.7.7, 2.7.10).
    pub(super) fn take_interrupt(&mut self, dma: &dyn Dma) -> Result<bool, Broken> {
        const NO_INTERRUPT: u16 = 1;
        if self.next_used == self.told {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.told, self.next_used), self.next_used);
        if self.event_idx {
            let event = read16(dma, self.available, 4 + 2 * u64::from(self.size))?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(read16(dma, self.available, 0)? & NO_INTERRUPT == 0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pc::ram::Ram;
    use proptest::prelude::*;

    /// A driver with one queue: the parts in the legacy layout from `page` on.
    pub(crate) struct Driver<'a> {
        pub(crate) ram: &'a Ram,
        pub(crate) page: u32,
        pub(crate) size: u16,
        available: u16,
        free: u16,
    }

    impl<'a> Driver<'a> {
        pub(crate) fn new(ram: &'a Ram, page: u32, size: u16) -> Driver<'a> {
            Driver { ram, page, size, available: 0, free: 0 }
        }

        fn layout(&self) -> Queue {
            let mut queue = Queue::new(self.size);
            queue.set_legacy_page(self.page);
            queue
        }

        pub(crate) fn descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
            let bytes =
                [&gpa.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            self.ram.put(self.layout().descriptors + 16 * u64::from(index), &bytes);
        }

        pub(crate) fn make_available(&mut self, head: u16) {
            let queue = self.layout();
            self.ram.put(queue.available + 4 + 2 * u64::from(self.available % self.size), &head.to_le_bytes());
            self.available = self.available.wrapping_add(1);
            self.ram.put(queue.available + 2, &self.available.to_le_bytes());
        }

        /// A chain of buffers, of which the device writes those with `true`.
        pub(crate) fn send(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
            let head = self.free;
            for (i, (gpa, len, writable)) in buffers.iter().enumerate() {
                let last = i + 1 == buffers.len();
                let flags = if *writable { 2 } else { 0 } | u16::from(!last);
                let index = (head + i as u16) % self.size;
                self.descriptor(index, *gpa, *len, flags, (index + 1) % self.size);
            }
            self.free = (head + buffers.len() as u16) % self.size;
            self.make_available(head);
            head
        }

        /// The used ring: index, and the element before it.
        pub(crate) fn used(&self) -> (u16, u32, u32) {
            let used = self.layout().used;
            let index = u16::from_le_bytes(self.ram.get(used + 2, 2).try_into().expect("2 bytes"));
            let at = used + 4 + 8 * u64::from(index.wrapping_sub(1) % self.size);
            let word = |at| u32::from_le_bytes(self.ram.get(at, 4).try_into().expect("4 bytes"));
            (index, word(at), word(at + 4))
        }
    }

    #[test]
    fn a_chain_is_read_and_written_across_its_buffers() {
        let ram = Ram::new(0x10000);
        let mut driver = Driver::new(&ram, 1, 8);
        let mut queue = driver.layout();
        assert!(queue.pop(&ram).expect("sound").is_none());
        ram.put(0x8000, b"abc");
        ram.put(0x8100, b"def");
        let head = driver.send(&[(0x8000, 3, false), (0x8100, 3, false), (0x8200, 2, true), (0x8300, 4, true)]);
        let chain = queue.pop(&ram).expect("sound").expect("a chain");
        assert_eq!((chain.readable(), chain.writable()), (6, 6));
        assert_eq!(chain.read(&ram, 2, 3).expect("inside"), b"cde");
        assert_eq!(chain.read(&ram, 2, 5), Err(Broken));
        chain.write(&ram, 1, b"xyz").expect("inside");
        assert_eq!((ram.get(0x8201, 1), ram.get(0x8300, 2)), (b"x".to_vec(), b"yz".to_vec()));
        assert_eq!(chain.write(&ram, 6, b"!"), Err(Broken));
        queue.push(&ram, &chain, 4).expect("it has room");
        assert_eq!(driver.used(), (1, head.into(), 4));
        assert_eq!((queue.take_interrupt(&ram), queue.take_interrupt(&ram)), (Ok(true), Ok(false)));
    }

    #[test]
    fn indirect_tables_and_what_is_wrong_with_them() {
        let of = |len: u32, flags: u16, inner: u16| {
            let ram = Ram::new(0x10000);
            let mut driver = Driver::new(&ram, 1, 8);
            let mut queue = driver.layout();
            driver.descriptor(0, 0x9000, len, flags, 1);
            for i in 0..2_u64 {
                let flags: u16 = if i == 0 { 1 } else { inner };
                let bytes =
                    [&0x8000_u64.to_le_bytes()[..], &7_u32.to_le_bytes(), &flags.to_le_bytes(), &[1, 0]].concat();
                ram.put(0x9000 + 16 * i, &bytes);
            }
            driver.make_available(0);
            queue.pop(&ram).map(|chain| chain.map(|chain| (chain.readable(), chain.writable())))
        };
        assert_eq!(of(32, 4, 2), Ok(Some((7, 7))));
        assert_eq!(of(16, 4, 2), Err(Broken), "its next is behind the table");
        assert_eq!(of(24, 4, 2), Err(Broken), "half an entry");
        assert_eq!(of(0, 4, 2), Err(Broken), "empty");
        assert_eq!(of(32, 5, 2), Err(Broken), "something behind the table");
        assert_eq!(of(32, 4, 4), Err(Broken), "a table in a table");
        assert_eq!(of(32, 4, 1), Err(Broken), "a loop");
    }

    #[test]
    fn events_say_when_to_interrupt() {
        let ram = Ram::new(0x10000);
        let mut driver = Driver::new(&ram, 1, 8);
        let mut queue = driver.layout();
        queue.event_idx = true;
        let used_event = queue.available + 4 + 16;
        ram.put(used_event, &1_u16.to_le_bytes());
        let mut interrupts = Vec::new();
        for _ in 0..4 {
            driver.send(&[(0x8000, 1, true)]);
            let chain = queue.pop(&ram).expect("sound").expect("a chain");
            queue.push(&ram, &chain, 1).expect("it has room");
            interrupts.push(queue.take_interrupt(&ram).expect("sound"));
        }
        assert_eq!(interrupts, [false, true, false, false], "after the second, for event 1");
        assert!(queue.pop(&ram).expect("sound").is_none());
        assert_eq!(ram.get(queue.used + 4 + 64, 2), [4, 0], "avail_event");
    }

    proptest! {
        /// Whatever is in memory and in the registers, a queue ends its work.
        #[test]
        fn a_bad_driver_gets_nothing(
            memory in prop::collection::vec(any::<u8>(), 8192),
            (descriptors, available, used) in (0_u64..9000, 0_u64..9000, 0_u64..9000),
            shift in 0_u32..5,
            event_idx: bool,
        ) {
            let ram = Ram::new(8192);
            ram.put(0, &memory);
            let mut queue = Queue::new(1 << shift);
            queue.ready = true;
            (queue.descriptors, queue.available, queue.used, queue.event_idx) = (descriptors, available, used, event_idx);
            for _ in 0..64 {
                let Ok(Some(chain)) = queue.pop(&ram) else { break };
                prop_assert!(chain.readable() + chain.writable() <= MAX_CHAIN_BYTES as usize);
                let _read = chain.read(&ram, 0, chain.readable());
                if chain.write(&ram, 0, &vec![0xaa; chain.writable()]).is_err() || queue.push(&ram, &chain, 1).is_err() {
                    break;
                }
                let _interrupt = queue.take_interrupt(&ram);
            }
        }
    }
}
