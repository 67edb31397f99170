//! The guest's physical address space and the translation cache: everything that touches guest memory through host
//! pointers.
//!
//! A [`HostPtr`] points into a mapped segment. It is made from the map, kept only in translation caches, and these are
//! emptied ([`super::state::Cpu::catch_up`]) before they are used again after the map has changed. The map cannot change
//! during a run: whoever runs holds the machine's lock.
#![allow(unsafe_code, reason = "guest memory is reached through host pointers that translation caches remember")]

use super::word::Word;
use crate::memory::{PAGE_SIZE, Segment};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Offset of an address in its page.
#[inline(always)]
pub(super) fn page_offset(address: u64) -> u64 {
    address & (PAGE_SIZE - 1)
}

/// The page of an address.
#[inline(always)]
pub(super) fn page_of(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

/// Hashes page numbers and block keys: the same on every host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FixedHasher(u64);

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        // Fibonacci hashing; the table takes its index from the low bits and its tags from the high ones.
        let mixed = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map with the same order of everything on every host.
pub(super) type FixedMap<V> = HashMap<u64, V, BuildHasherDefault<FixedHasher>>;

/// A byte of guest memory, and those behind it in its page.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostPtr(*mut u8);

impl HostPtr {
    /// Reads an operand that does not leave the page.
    #[inline(always)]
    pub(super) fn read<T: Word>(self) -> T {
        // SAFETY: the pointer was made for an access of this size inside a page of a mapped segment, and segments stay
        // mapped during a run (see the module's text). Guest memory is plain bytes; any value is a `T`.
        unsafe { self.0.cast::<T>().read_unaligned() }
    }
    /// Writes an operand that does not leave the page.
    #[inline(always)]
    pub(super) fn write<T: Word>(self, value: T) {
        // SAFETY: as in `read`; the translation was made for writing.
        unsafe { self.0.cast::<T>().write_unaligned(value) }
    }
    /// The byte `by` bytes behind (or, as two's complement, before) this one, in the same page.
    #[inline]
    pub(super) fn offset(self, by: u64) -> HostPtr {
        HostPtr(self.0.wrapping_add(by as usize))
    }
    /// Copies `count` operands of `width` bytes, first to last, as string instructions do; neither range leaves its page.
    #[inline]
    pub(super) fn copy_from(self, source: HostPtr, count: usize, width: usize) {
        let len = count * width;
        let ahead = (self.0 as usize).wrapping_sub(source.0 as usize);
        // With the destination at least as far ahead as the range is long (or behind the source, which wraps around to a
        // large number), no operand is read after it was written.
        if ahead >= len {
            // SAFETY: both ranges lie in pages of mapped segments, as the caller made sure; `copy` allows overlap.
            unsafe { std::ptr::copy(source.0, self.0, len) }
            return;
        }
        for i in 0..count {
            let mut operand = [0; 8];
            source.offset((i * width) as u64).read_bytes(&mut operand[..width]);
            self.offset((i * width) as u64).write_bytes(&operand[..width]);
        }
    }
    /// Writes the same operand `count` times.
    #[inline]
    pub(super) fn fill<T: Word>(self, value: T, count: usize) {
        for i in 0..count {
            self.offset(i as u64 * u64::from(T::BYTES)).write(value);
        }
    }
    /// Copies bytes out; they must not leave the page.
    #[inline]
    pub(super) fn read_bytes(self, bytes: &mut [u8]) {
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(self.0.cast_const(), bytes.as_mut_ptr(), bytes.len()) }
    }
    /// Copies bytes in; they must not leave the page.
    #[inline]
    pub(super) fn write_bytes(self, bytes: &[u8]) {
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len()) }
    }
}

/// A mapping of a part of a segment.
struct Region {
    gpa: u64,
    end: u64,
    segment: Arc<Segment>,
    offset: u64,
    write: bool,
}

/// Where a guest physical address leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The byte itself.
    pub(super) host: HostPtr,
    /// Whether the guest may write there.
    pub(super) write: bool,
}

/// How many pages that became pages with code are remembered, for processors that catch up.
const MARKS_LOG: usize = 64;
/// After how many writes beside its code a page is taken for data: its code is decoded again if it runs again.
const WRITES_BESIDE_CODE: u32 = 256;

/// What is known of a page with decoded code.
#[derive(Clone, Copy, Default)]
struct Marks {
    /// A bit for each 64 bytes: decoded code lies there.
    chunks: u64,
    /// Writes that hit none of them.
    beside: u32,
}

/// The guest's physical address space, and which parts of it hold decoded code.
pub(super) struct Bus {
    /// Sorted by address.
    regions: Vec<Region>,
    map_epoch: u64,
    /// Physical pages with decoded code.
    marks: FixedMap<Marks>,
    /// The last pages that became such pages, each where [`Bus::marks_epoch`] pointed before.
    marks_log: [u64; MARKS_LOG],
    marks_epoch: u64,
    /// Pages whose decoded code a write made stale.
    stale: Vec<u64>,
    code_generation: u64,
    host_writes: u64,
    /// The latest time that any processor has read as its TSC, without its offset.
    pub(super) latest_tsc: u64,
}

impl Default for Bus {
    fn default() -> Bus {
        Bus {
            regions: Vec::new(),
            map_epoch: 0,
            marks: FixedMap::default(),
            marks_log: [0; MARKS_LOG],
            marks_epoch: 0,
            stale: Vec::new(),
            code_generation: 0,
            host_writes: 0,
            latest_tsc: 0,
        }
    }
}

/// What is wrong with a mapping that was asked for.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum MapError {
    #[error("A guest mapping is not page aligned")]
    Unaligned,
    #[error("A guest mapping leaves its segment")]
    OutsideSegment,
    #[error("A guest mapping overlaps another")]
    Overlap,
    #[error("There is no such guest mapping to remove")]
    Unknown,
}

impl Bus {
    /// Adds a mapping.
    pub(super) fn map(
        &mut self,
        gpa: u64,
        segment: &Arc<Segment>,
        offset: u64,
        len: u64,
        write: bool,
    ) -> Result<(), MapError> {
        if [gpa, offset, len].into_iter().any(|value| page_offset(value) != 0) || len == 0 {
            return Err(MapError::Unaligned);
        }
        let end = gpa.checked_add(len).ok_or(MapError::OutsideSegment)?;
        if offset.checked_add(len).is_none_or(|end| end > segment.len() as u64) {
            return Err(MapError::OutsideSegment);
        }
        let at = self.regions.partition_point(|region| region.gpa < gpa);
        let free = at.checked_sub(1).is_none_or(|before| self.regions[before].end <= gpa)
            && self.regions.get(at).is_none_or(|behind| end <= behind.gpa);
        if !free {
            return Err(MapError::Overlap);
        }
        self.regions.insert(at, Region { gpa, end, segment: Arc::clone(segment), offset, write });
        self.map_changed();
        Ok(())
    }

    /// Removes a mapping.
    pub(super) fn unmap(&mut self, gpa: u64, len: u64) -> Result<(), MapError> {
        let known = |region: &Region| region.gpa == gpa && region.end.wrapping_sub(gpa) == len;
        let at = self.regions.iter().position(known).ok_or(MapError::Unknown)?;
        self.regions.remove(at);
        self.map_changed();
        Ok(())
    }

    fn map_changed(&mut self) {
        self.map_epoch += 1;
        self.marks.clear();
        self.code_generation += 1;
        self.host_writes = self.count_host_writes();
    }

    /// Goes up when the map changes.
    pub(super) fn map_epoch(&self) -> u64 {
        self.map_epoch
    }
    /// Goes up when a page becomes one that holds decoded code.
    pub(super) fn marks_epoch(&self) -> u64 {
        self.marks_epoch
    }
    /// The pages that became such pages since the epoch was `seen`, or `None` if that is too long ago.
    pub(super) fn marked_since(&self, seen: u64) -> Option<impl Iterator<Item = u64>> {
        (self.marks_epoch - seen <= MARKS_LOG as u64)
            .then(|| (seen..self.marks_epoch).map(|epoch| self.marks_log[epoch as usize % MARKS_LOG]))
    }
    /// Goes up when the host side wrote to memory, or the map changed: each block must then be compared with memory before it
    /// runs.
    pub(super) fn code_generation(&self) -> u64 {
        self.code_generation
    }
    /// Whether there are pages for [`Bus::take_stale_page`].
    #[inline(always)]
    pub(super) fn has_stale_pages(&self) -> bool {
        !self.stale.is_empty()
    }
    /// A page whose decoded code a write has made stale since it was asked for the last time.
    pub(super) fn take_stale_page(&mut self) -> Option<u64> {
        self.stale.pop()
    }

    /// Has every decoded block looked up anew.
    pub(super) fn forget_blocks(&mut self) {
        self.code_generation += 1;
    }

    fn count_host_writes(&self) -> u64 {
        self.regions.iter().map(|region| region.segment.generation()).fold(0, u64::wrapping_add)
    }

    /// Notices writes from the host side.
    pub(super) fn catch_up(&mut self) {
        let writes = self.count_host_writes();
        if writes != self.host_writes {
            self.host_writes = writes;
            self.code_generation += 1;
        }
    }

    /// Where a guest physical address leads, if there is memory.
    pub(super) fn place(&self, gpa: u64) -> Option<Place> {
        let at = self.regions.partition_point(|region| region.end <= gpa);
        let region = self.regions.get(at).filter(|region| region.gpa <= gpa)?;
        let offset = (region.offset + (gpa - region.gpa)) as usize;
        // SAFETY: `map` checked that the region lies inside its segment, and `gpa` lies inside the region.
        let host = HostPtr(unsafe { region.segment.as_ptr().add(offset) });
        Some(Place { host, write: region.write })
    }

    /// Reads from memory; `None` where there is none. The operand must not leave its page.
    pub(super) fn read_physical<T: Word>(&self, gpa: u64) -> Option<T> {
        Some(self.place(gpa)?.host.read())
    }

    /// Writes to memory, if there is any that may be written. The operand must not leave its page.
    pub(super) fn write_physical<T: Word>(&mut self, gpa: u64, value: T) {
        if let Some(place) = self.place(gpa).filter(|place| place.write) {
            place.host.write(value);
            self.written(gpa, u64::from(T::BYTES));
        }
    }

    /// Notes that bytes hold decoded code. True if their page held none before: translations for writing must go.
    pub(super) fn mark_code(&mut self, gpa: u64, len: u64) -> bool {
        let page = page_of(gpa);
        let marks = self.marks.entry(page).or_default();
        let new_page = marks.chunks == 0;
        marks.chunks |= chunk_mask(gpa, len);
        if new_page {
            self.marks_log[self.marks_epoch as usize % MARKS_LOG] = page;
            self.marks_epoch += 1;
        }
        new_page
    }

    /// Whether any decoded code lies in this page.
    pub(super) fn has_code(&self, gpa: u64) -> bool {
        self.marks.contains_key(&page_of(gpa))
    }

    /// Notes that bytes in one page were written. True if decoded code is stale now.
    pub(super) fn written(&mut self, gpa: u64, len: u64) -> bool {
        let page = page_of(gpa);
        let Some(marks) = self.marks.get_mut(&page) else { return false };
        marks.beside += 1;
        let hit = marks.chunks & chunk_mask(gpa, len) != 0 || marks.beside > WRITES_BESIDE_CODE;
        if hit {
            self.marks.remove(&page);
            self.stale.push(page);
        }
        hit
    }
}

/// The 64-byte chunks of a page that `len` bytes from `gpa` touch.
fn chunk_mask(gpa: u64, len: u64) -> u64 {
    let first = page_offset(gpa) >> 6;
    let last = (page_offset(gpa) + len - 1).min(PAGE_SIZE - 1) >> 6;
    u64::MAX >> (63 - last) & u64::MAX << first
}

/// The context of an access: the low bits of a tag in the translation cache.
pub(super) mod context {
    /// Always set, so that an empty entry matches nothing.
    pub(in super::super) const VALID: u64 = 1 << 11;
    /// The access is made with user privilege.
    pub(in super::super) const USER: u64 = 1 << 0;
    /// The access must not touch user pages.
    pub(in super::super) const SMAP: u64 = 1 << 1;
    /// The access must be aligned. Never cached, so that the slow path sees every access.
    pub(in super::super) const ALIGNED: u64 = 1 << 2;
}

/// Where a linear address leads, and how far that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) gpa: u64,
    /// Binary logarithm of the page's size.
    pub(super) shift: u32,
    /// The page is global: it is the same in every address space.
    pub(super) global: bool,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Linear page and context for which reads are allowed, or 0.
    read: u64,
    /// The same for writes.
    write: u64,
    /// Host address minus linear address.
    addend: u64,
    /// Guest physical page, and bits of [`kind`].
    gpa: u64,
}

/// What an entry of the translation cache is a piece of: low bits of [`Entry::gpa`].
mod kind {
    pub(super) const GLOBAL: u64 = 1 << 0;
    /// Where the binary logarithm of the page's size stands.
    pub(super) const SHIFT_AT: u32 = 1;
    pub(super) const SHIFT_MASK: u64 = 0x3F;
}

const TLB_ENTRIES: usize = 512;

/// Translations from linear pages to host pages, for data. Large pages are remembered in pieces of 4 Kbytes.
pub(super) struct Tlb {
    entries: Box<[Entry; TLB_ENTRIES]>,
    /// Some entry may be a piece of a large page.
    has_large: bool,
}

impl Tlb {
    pub(super) fn new() -> Tlb {
        let entries = vec![Entry::default(); TLB_ENTRIES].into_boxed_slice();
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!("the length is the same constant"));
        Tlb { entries, has_large: false }
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        // The higher bits keep buffers apart that lie a power of two from each other, as buffers do. They leave the lowest
        // bit alone, so that neighbouring pages never share an entry.
        (linear >> 12 ^ linear >> 20 & !1) as usize % TLB_ENTRIES
    }

    /// What the entry of an operand's first byte must hold for the operand to lie in that page and context. An operand that
    /// goes on in the next page asks for that page, which is never in this entry.
    #[inline(always)]
    fn tag<T: Word>(linear: u64, context: u64) -> u64 {
        page_of(linear.wrapping_add(u64::from(T::BYTES) - 1)) | context
    }

    /// The operand's host address if it lies in one page that may be read in this context.
    #[inline(always)]
    pub(super) fn readable<T: Word>(&self, linear: u64, context: u64) -> Option<HostPtr> {
        let entry = &self.entries[Tlb::slot(linear)];
        (entry.read == Tlb::tag::<T>(linear, context))
            .then(|| HostPtr(std::ptr::with_exposed_provenance_mut(entry.addend.wrapping_add(linear) as usize)))
    }

    /// The operand's host address if it lies in one page that may be written in this context.
    #[inline(always)]
    pub(super) fn writable<T: Word>(&self, linear: u64, context: u64) -> Option<HostPtr> {
        let entry = &self.entries[Tlb::slot(linear)];
        (entry.write == Tlb::tag::<T>(linear, context))
            .then(|| HostPtr(std::ptr::with_exposed_provenance_mut(entry.addend.wrapping_add(linear) as usize)))
    }

    /// Remembers a translation. `write` only if the page may be written without further ado.
    pub(super) fn fill(&mut self, linear: u64, context: u64, to: Translation, host: HostPtr, write: bool) {
        if context & context::ALIGNED != 0 {
            return;
        }
        let tag = page_of(linear) | context;
        let global = if to.global { kind::GLOBAL } else { 0 };
        let gpa = page_of(to.gpa) | u64::from(to.shift) << kind::SHIFT_AT | global;
        self.has_large |= to.shift != 12;
        let entry = &mut self.entries[Tlb::slot(linear)];
        let keep_write = entry.write == tag && entry.gpa == gpa;
        *entry = Entry {
            read: tag,
            write: if write || keep_write { tag } else { 0 },
            addend: (host.0.expose_provenance() as u64).wrapping_sub(linear),
            gpa,
        };
    }

    pub(super) fn flush(&mut self) {
        self.entries.fill(Entry::default());
        self.has_large = false;
    }

    /// Forgets the translations of pages that are not global.
    pub(super) fn flush_local(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.gpa & kind::GLOBAL == 0) {
            *entry = Entry::default();
        }
    }

    /// Forgets the page that an address lies in, whatever its size.
    pub(super) fn forget(&mut self, linear: u64) {
        if self.has_large {
            let covers = |entry: &Entry| (entry.read ^ linear) >> (entry.gpa >> kind::SHIFT_AT & kind::SHIFT_MASK) == 0;
            for entry in self.entries.iter_mut().filter(|entry| entry.read != 0 && covers(entry)) {
                *entry = Entry::default();
            }
            return;
        }
        let entry = &mut self.entries[Tlb::slot(linear)];
        if page_of(entry.read) == page_of(linear) {
            *entry = Entry::default();
        }
    }

    /// Forgets which pages may be written.
    pub(super) fn forget_writes(&mut self) {
        for entry in self.entries.iter_mut() {
            entry.write = 0;
        }
    }

    /// Forgets that a physical page may be written.
    pub(super) fn forget_writes_to(&mut self, gpa: u64) {
        for entry in self.entries.iter_mut().filter(|entry| page_of(entry.gpa) == page_of(gpa)) {
            entry.write = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(pages: u64) -> Arc<Segment> {
        Arc::new(Segment::new((pages * PAGE_SIZE) as usize).expect("memory"))
    }

    #[test]
    fn mappings_do_not_overlap_and_stay_inside_their_segment() {
        let (mut bus, memory) = (Bus::default(), segment(4));
        assert!(bus.map(0x2000, &memory, 0, 0x2000, true).is_ok());
        assert!(matches!(bus.map(0x3000, &memory, 0, 0x1000, true), Err(MapError::Overlap)));
        assert!(matches!(bus.map(0x1000, &memory, 0, 0x2000, true), Err(MapError::Overlap)));
        assert!(matches!(bus.map(0x8000, &memory, 0x3000, 0x2000, true), Err(MapError::OutsideSegment)));
        assert!(matches!(bus.map(0x8001, &memory, 0, 0x1000, true), Err(MapError::Unaligned)));
        assert!(bus.map(0x4000, &memory, 0x2000, 0x1000, false).is_ok());
        assert!(bus.place(0x1FFF).is_none());
        assert!(bus.place(0x2000).is_some_and(|place| place.write));
        assert!(bus.place(0x4FFF).is_some_and(|place| !place.write));
        assert!(bus.place(0x5000).is_none());
        assert!(matches!(bus.unmap(0x2000, 0x1000), Err(MapError::Unknown)));
        assert!(bus.unmap(0x2000, 0x2000).is_ok());
        assert!(bus.place(0x2000).is_none());
    }

    #[test]
    fn a_physical_address_leads_into_the_segment_at_the_mapping_s_offset() {
        let (mut bus, memory) = (Bus::default(), segment(4));
        bus.map(0x10_0000, &memory, 0x1000, 0x3000, true).expect("a good mapping");
        bus.write_physical(0x10_1008, 0x1122_3344_u32);
        let mut bytes = [0; 4];
        assert!(memory.read(0x2008, &mut bytes));
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
    }

    #[test]
    fn only_writes_to_chunks_with_code_make_code_stale() {
        let mut bus = Bus::default();
        assert!(bus.mark_code(0x1040, 16));
        assert!(!bus.mark_code(0x1080, 1));
        assert!(!bus.written(0x1000, 64));
        assert!(!bus.written(0x10C0, 8));
        assert!(bus.written(0x103F, 2));
        assert!(!bus.written(0x1040, 1), "the page is forgotten until it is decoded again");
    }

    #[test]
    fn an_operand_of_two_pages_is_never_found() {
        let (mut bus, memory) = (Bus::default(), segment(4));
        bus.map(0, &memory, 0, 0x4000, true).expect("a good mapping");
        let host = bus.place(0).expect("memory").host;
        // Carries into the bits that the entry depends on, and the end of the address space.
        for page in (9..64).map(|bit| u64::MAX << 12 >> (63 - bit) & !0xFFF).chain([0x7000, u64::MAX << 12]) {
            let next = page.wrapping_add(0x1000);
            let mut tlb = Tlb::new();
            for (page, gpa) in [(page, 0x1000), (next, 0x2000)] {
                tlb.fill(page, context::VALID, Translation { gpa, shift: 12, global: false }, host, true);
            }
            for offset in 0xFF9..0x1000 {
                assert!(tlb.readable::<u64>(page | offset, context::VALID).is_none(), "{page:#x} {offset:#x}");
                assert!(tlb.writable::<u64>(page | offset, context::VALID).is_none());
                assert!(tlb.readable::<u8>(page | offset, context::VALID).is_some());
            }
            assert!(tlb.readable::<u64>(page | 0xFF8, context::VALID).is_some());
            assert!(tlb.readable::<u64>(next, context::VALID).is_some());
        }
    }

    #[test]
    fn chunks_cover_their_bytes() {
        assert_eq!(chunk_mask(0, 1), 1);
        assert_eq!(chunk_mask(63, 2), 3);
        assert_eq!(chunk_mask(0xFFF, 1), 1 << 63);
        assert_eq!(chunk_mask(0, 4096), u64::MAX);
    }
}
