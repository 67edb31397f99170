//! Where things are in the guest's memory before the kernel runs.

use super::bytes::put_u64;
use super::{LoadError, Piece};
use crate::libvmmapi::FOUR_GIB;
use std::ops::Range;
use std::sync::Arc;

/// The GDT, one page.
pub(super) const GDT: u64 = 0x1000;
/// PVH's start info with its lists, one page.
pub(super) const START_INFO: u64 = 0x6000;
/// Linux's zero page (`struct boot_params`).
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Page tables that map the first 4 GiB to themselves: PML4, PDPT, four page directories.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// The longest command line that there is room for, without its zero.
pub(super) const CMDLINE_MAX: usize = 0xfff;

/// Where the selectors of the boot protocols point: `__BOOT_CS` and `__BOOT_DS` (boot.rst).
pub(super) const BOOT_CS: u16 = 0x10;
pub(super) const BOOT_DS: u16 = 0x18;

/// The end of conventional memory: above are the EBDA, which is empty, and the hole.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Where the firmware's tables are: MP and ACPI.
const FIRMWARE: Range<u64> = 0xf_0000..0x10_0000;
pub(super) const PAGE: u64 = 4096;

/// The guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ram {
    /// Bytes from 0 on.
    pub(super) low: u64,
    /// Bytes from 4 GiB on.
    pub(super) high: u64,
}

/// What a range of addresses is, as the E820 map says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Usable = 1,
    Reserved = 2,
}

impl Ram {
    /// As `vm_setup_memory` lays it out: at most 3 GiB from 0 on, the rest from 4 GiB on.
    pub(super) fn of(bytes: u64) -> Ram {
        let low = bytes.min(crate::libvmmapi::LOWMEM_LIMIT);
        Ram { low, high: bytes - low }
    }

    /// The map of addresses that the kernel is told.
    pub(super) fn map(self) -> Vec<(Range<u64>, Kind)> {
        let mut map = vec![
            (0..CONVENTIONAL_END, Kind::Usable),
            (FIRMWARE, Kind::Reserved),
            (FIRMWARE.end..self.low.max(FIRMWARE.end), Kind::Usable),
        ];
        if self.high != 0 {
            map.push((FOUR_GIB..FOUR_GIB + self.high, Kind::Usable));
        }
        map
    }
}

/// Memory that fills up.
pub(super) struct Layout {
    ram: Ram,
    pieces: Vec<Piece>,
    taken: Vec<Range<u64>>,
}

impl Layout {
    pub(super) fn new(ram: Ram) -> Layout {
        Layout { ram, pieces: Vec::new(), taken: Vec::new() }
    }

    /// Everything that was put somewhere.
    pub(super) fn pieces(self) -> Vec<Piece> {
        self.pieces
    }

    /// That something does not fit.
    pub(super) fn no_room(&self, what: &'static str) -> LoadError {
        LoadError::NoRoom(what, (self.ram.low + self.ram.high) >> 20)
    }

    /// Takes a range, which has to be usable memory below 4 GiB that nobody else has.
    fn take(&mut self, what: &'static str, at: u64, len: u64) -> Result<(), LoadError> {
        let range = at..at.checked_add(len).ok_or_else(|| self.no_room(what))?;
        if !self.is_free(&range) {
            return Err(self.no_room(what));
        }
        self.taken.push(range);
        Ok(())
    }

    /// Whether a range is usable memory below 4 GiB that nobody has.
    pub(super) fn is_free(&self, range: &Range<u64>) -> bool {
        let usable = self.usable().any(|ram| ram.start <= range.start && range.end <= ram.end);
        usable && !self.taken.iter().any(|other| range.start < other.end && other.start < range.end)
    }

    fn usable(&self) -> impl Iterator<Item = Range<u64>> {
        let map = self.ram.map().into_iter();
        map.filter(|(ram, kind)| *kind == Kind::Usable && ram.start < FOUR_GIB).map(|(ram, _)| ram)
    }

    /// Where what was put somewhere ends.
    pub(super) fn end(&self) -> u64 {
        self.taken.iter().map(|taken| taken.end).max().unwrap_or_default()
    }

    /// The lowest place inside a range for so many bytes, on a multiple of `align`.
    pub(super) fn lowest(&self, len: u64, align: u64, within: Range<u64>) -> Option<u64> {
        let starts = self.usable().map(|ram| ram.start).chain(self.taken.iter().map(|taken| taken.end));
        let starts = starts.chain([within.start]).filter_map(|start| start.checked_next_multiple_of(align));
        starts.filter(|&start| self.fits(start, len, &within)).min()
    }

    /// The highest place likewise.
    pub(super) fn highest(&self, len: u64, align: u64, within: Range<u64>) -> Option<u64> {
        let ends = self.usable().map(|ram| ram.end).chain(self.taken.iter().map(|taken| taken.start));
        let starts = ends.chain([within.end]).filter_map(|end| end.checked_sub(len).map(|start| start / align * align));
        starts.filter(|&start| self.fits(start, len, &within)).max()
    }

    fn fits(&self, start: u64, len: u64, within: &Range<u64>) -> bool {
        start
            .checked_add(len)
            .is_some_and(|end| within.start <= start && end <= within.end && self.is_free(&(start..end)))
    }

    /// Bytes at an address.
    pub(super) fn fixed(&mut self, what: &'static str, at: u64, bytes: Vec<u8>) -> Result<(), LoadError> {
        self.take(what, at, bytes.len() as u64)?;
        self.pieces.push(Piece::new(what, at, bytes));
        Ok(())
    }

    /// A part of a file at an address, with room behind it: `len` bytes in all, which are 0 where the file ends.
    pub(super) fn file(
        &mut self,
        what: &'static str,
        at: u64,
        file: &Arc<[u8]>,
        range: Range<usize>,
        len: u64,
    ) -> Result<(), LoadError> {
        self.take(what, at, len)?;
        self.pieces.push(Piece::of(what, at, file, range));
        Ok(())
    }

    /// The initial RAM disk or a module, as high as it may be and there is room. Returns where it is.
    pub(super) fn top(&mut self, what: &'static str, file: &Arc<[u8]>, last: u64) -> Result<Range<u64>, LoadError> {
        let len = file.len() as u64;
        let mut end = self.ram.low.min(last.saturating_add(1));
        let at = loop {
            let at = end.checked_sub(len).ok_or_else(|| self.no_room(what))? / PAGE * PAGE;
            match self.taken.iter().find(|other| at < other.end && other.start < at + len) {
                Some(other) => end = other.start,
                None => break at,
            }
        };
        self.file(what, at, file, 0..file.len(), len)?;
        Ok(at..at + len)
    }
}

/// The GDT that the boot protocols ask for: flat code at 10H, flat data at 18H.
pub(super) fn gdt(long_mode: bool) -> Vec<u8> {
    let code: u64 = if long_mode { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    [0, 0, code, 0x00cf_9300_0000_ffff].into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Page tables at [`PAGE_TABLES`] that map 4 GiB to themselves, in pages of 2 MiB (SDM 3A 4.5).
pub(super) fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const DIRECTORIES: u64 = 4;
    let page = |number: u64| number * PAGE;
    let mut tables = vec![0; page(2 + DIRECTORIES) as usize];
    let mut map =
        |at: u64, address: u64, bits: u64| put_u64(&mut tables, at as usize, address | PRESENT_WRITABLE | bits);
    map(page(0), PAGE_TABLES + page(1), 0);
    for directory in 0..DIRECTORIES {
        map(page(1) + 8 * directory, PAGE_TABLES + page(2 + directory), 0);
    }
    for large in 0..DIRECTORIES * 512 {
        map(page(2) + 8 * large, large << 21, LARGE);
    }
    tables
}
