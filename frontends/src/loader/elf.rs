//! ELF programs (System V ABI, chapters 4 and 5): 64-bit and 32-bit, loaded at their physical addresses. A note tells where
//! PVH enters (`XEN_ELFNOTE_PHYS32_ENTRY`).

use super::bytes::{u16_at, u32_at, u64_at};
use super::layout::Layout;
use super::{LoadError, Protocol};
use std::sync::Arc;

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What a program's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    wide: bool,
    entry: u64,
    pvh_entry: Option<u64>,
    loads: Vec<Load>,
}

/// A part of a file that belongs into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Where it goes.
    pub(super) gpa: u64,
    /// Where the program thinks that it is.
    pub(super) virt: u64,
    /// Which part.
    pub(super) file: std::ops::Range<usize>,
    /// How long it is in memory, where what the file does not have is 0.
    pub(super) memory_len: u64,
}

impl Elf {
    /// Reads the headers; `None` when the file is no ELF program for x86.
    pub(super) fn parse(file: &[u8]) -> Result<Option<Elf>, LoadError> {
        const CLASS: usize = 4;
        const DATA: usize = 5;
        const LITTLE_ENDIAN: u8 = 1;
        if file.get(..4) != Some(b"\x7fELF") || file.get(DATA) != Some(&LITTLE_ENDIAN) {
            return Ok(None);
        }
        let wide = file.get(CLASS) == Some(&2);
        let machine = u16_at(file, 18);
        if machine != Some(if wide { EM_X86_64 } else { EM_386 }) {
            return Ok(None);
        }
        Elf::headers(file, wide).ok_or(LoadError::Damaged("a header points behind its end")).map(Some)
    }

    fn headers(file: &[u8], wide: bool) -> Option<Elf> {
        // An address or a size: at one offset in Elf64, at another in Elf32.
        let word = |header: &[u8], in_64, in_32| {
            if wide { u64_at(header, in_64) } else { u32_at(header, in_32).map(u64::from) }
        };
        let index = |value: u64| usize::try_from(value).ok();
        let headers = index(word(file, 32, 28)?)?;
        let (size, count) = if wide { (54, 56) } else { (42, 44) };
        let (size, count) = (usize::from(u16_at(file, size)?), usize::from(u16_at(file, count)?));
        let mut elf = Elf { wide, entry: word(file, 24, 24)?, pvh_entry: None, loads: Vec::new() };
        for i in 0..count {
            let header = file.get(headers.checked_add(i * size)?..)?;
            let kind = u32_at(header, 0)?;
            if kind != PT_LOAD && kind != PT_NOTE {
                continue;
            }
            // Elf64_Phdr: p_offset 8, p_vaddr 16, p_paddr 24, p_filesz 32, p_memsz 40; Elf32_Phdr: 4, 8, 12, 16, 20.
            let begin = index(word(header, 8, 4)?)?;
            let end = begin.checked_add(index(word(header, 32, 16)?)?)?;
            let bytes = file.get(begin..end)?;
            let memory_len = word(header, 40, 20)?;
            if kind == PT_NOTE {
                elf.pvh_entry = elf.pvh_entry.or(pvh_entry(bytes));
            } else if memory_len != 0 {
                let memory_len = memory_len.max(bytes.len() as u64);
                let (virt, gpa) = (word(header, 16, 8)?, word(header, 24, 12)?);
                elf.loads.push(Load { gpa, virt, file: begin..end, memory_len });
            }
        }
        Some(elf)
    }

    /// Where the protocol enters it. The plain entry of a 64-bit program is in long mode, that of a 32-bit one is not.
    pub(super) fn entry(&self, protocol: Protocol) -> Option<u64> {
        match protocol {
            Protocol::Linux64 => self.wide.then_some(self.entry),
            Protocol::Linux32 => (!self.wide).then_some(self.entry),
            Protocol::Pvh => self.pvh_entry,
            Protocol::Multiboot | Protocol::Multiboot2 | Protocol::Flat16 | Protocol::Flat32 => None,
        }
    }

    /// Whether it is a 64-bit program.
    pub(super) fn is_wide(&self) -> bool {
        self.wide
    }

    /// The plain entry as a physical address. A kernel that is linked for another place gives it as a virtual one, which the
    /// segment that it is in translates, as in GRUB.
    pub(super) fn physical_entry(&self) -> u64 {
        let inside = |load: &&Load| self.entry.checked_sub(load.virt).is_some_and(|offset| offset < load.memory_len);
        let segment = self.loads.iter().find(inside);
        segment.map_or(self.entry, |load| (self.entry - load.virt).wrapping_add(load.gpa))
    }

    /// Its segments.
    pub(super) fn loads(&self) -> Result<&[Load], LoadError> {
        if self.loads.is_empty() { Err(LoadError::Damaged("it has nothing to load")) } else { Ok(&self.loads) }
    }

    /// Puts its segments where they belong. Addresses are absolute, so they count from 0.
    pub(super) fn place(&self, file: &Arc<[u8]>, layout: &mut Layout) -> Result<u64, LoadError> {
        place(self.loads()?, 0, file, layout)?;
        Ok(0)
    }
}

/// Puts parts of a file where they belong, moved by so many bytes modulo 2^64.
pub(super) fn place(loads: &[Load], moved: u64, file: &Arc<[u8]>, layout: &mut Layout) -> Result<(), LoadError> {
    for load in loads {
        layout.file("The kernel", load.gpa.wrapping_add(moved), file, load.file.clone(), load.memory_len)?;
    }
    Ok(())
}

/// Looks for Xen's note: name and description are padded to 4 bytes (System V ABI, 5, "Note Section").
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    loop {
        let (name_len, desc_len) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize);
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12_usize.checked_add(name_len)?)?;
        let desc_at = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            return u32_at(desc, 0).map(u64::from);
        }
        notes = notes.get(desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?..)?;
    }
}
