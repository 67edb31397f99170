//! What of the kernel's file goes where: by the header's address fields, or by the file's ELF headers.

use super::super::elf::{self, Elf, Load};
use super::super::layout::Layout;
use super::sections::Sections;
use super::{Addresses, FOUR_GIB, Header, LoadError, Preference, Relocatable};
use std::sync::Arc;

/// The parts of the kernel.
pub(super) struct Program {
    loads: Vec<Load>,
    entry: u64,
    elf: Option<Elf>,
}

impl Program {
    /// By the address fields if there are some, which go before ELF's (0.6.96, 3.1.2).
    pub(super) fn of(file: &[u8], header: &Header) -> Result<Program, LoadError> {
        if let Some(addresses) = header.addresses {
            let entry = header.entry.ok_or(LoadError::Damaged("its header has addresses, but no entry"))?;
            let load = addresses.load(file, header.at)?;
            return Ok(Program { loads: vec![load], entry: entry.into(), elf: None });
        }
        let elf = Elf::parse(file)?
            .ok_or(LoadError::Damaged("it is no ELF program, and its Multiboot header has no addresses"))?;
        let entry = header.entry.map_or_else(|| elf.physical_entry(), u64::from);
        if entry >= FOUR_GIB {
            return Err(LoadError::Damaged("its entry is not below 4 GiB"));
        }
        Ok(Program { loads: elf.loads()?.to_vec(), entry, elf: Some(elf) })
    }

    /// Its lowest address.
    pub(super) fn base(&self) -> u64 {
        self.loads.iter().map(|load| load.gpa).min().unwrap_or_default()
    }

    /// Where it enters, unless it is moved.
    pub(super) fn entry(&self) -> u64 {
        self.entry
    }

    /// The sections that the file has, if it is loaded by its ELF headers.
    pub(super) fn sections(&self, file: &[u8]) -> Result<Option<Sections>, LoadError> {
        self.elf.as_ref().map_or(Ok(None), |elf| Sections::of(file, elf))
    }

    /// Puts it into memory. Returns by how much it was moved, modulo 2^64.
    pub(super) fn place(
        &self,
        file: &Arc<[u8]>,
        relocatable: Option<Relocatable>,
        layout: &mut Layout,
    ) -> Result<u64, LoadError> {
        let moved = relocatable.map_or(Ok(0), |relocatable| self.moved(relocatable, layout))?;
        elf::place(&self.loads, moved, file, layout)?;
        Ok(moved)
    }

    /// Where it may be moved to: without a preference it stays where it is if it may.
    fn moved(&self, relocatable: Relocatable, layout: &Layout) -> Result<u64, LoadError> {
        let base = self.base();
        let end = self.loads.iter().map(|load| load.gpa.saturating_add(load.memory_len)).max().unwrap_or_default();
        let (len, align) = (end - base, u64::from(relocatable.align));
        let (first, last) = relocatable.within;
        let within = u64::from(first)..u64::from(last).saturating_add(1);
        let stays = within.start <= base && end <= within.end && base.is_multiple_of(align);
        let at = match relocatable.preference {
            Preference::None if stays && layout.is_free(&(base..end)) => Some(base),
            Preference::None | Preference::Lowest => layout.lowest(len, align, within),
            Preference::Highest => layout.highest(len, align, within),
        };
        Ok(at.ok_or_else(|| layout.no_room("The kernel"))?.wrapping_sub(base))
    }
}

impl Addresses {
    /// The one part that the address fields describe; the header is at `at` of the file.
    fn load(self, file: &[u8], at: usize) -> Result<Load, LoadError> {
        /// Version 2: the file is loaded from its beginning on.
        const FROM_THE_BEGINNING: u32 = u32::MAX;
        const DO_NOT_FIT: LoadError = LoadError::Damaged("the addresses in its Multiboot header do not fit it");
        let header = u64::from(self.header);
        let before_header = match self.load {
            FROM_THE_BEGINNING => at as u64,
            load => header.checked_sub(load.into()).ok_or(DO_NOT_FIT)?,
        };
        let gpa = header.checked_sub(before_header).ok_or(DO_NOT_FIT)?;
        let begin = (at as u64).checked_sub(before_header).ok_or(DO_NOT_FIT)? as usize;
        let file_len = file.len() - begin;
        let len = match self.load_end {
            0 => file_len as u64,
            end => u64::from(end).checked_sub(gpa).filter(|&len| len <= file_len as u64).ok_or(DO_NOT_FIT)?,
        };
        let memory_len = match self.bss_end {
            0 => len,
            end => u64::from(end).checked_sub(gpa).filter(|&whole| whole >= len).ok_or(DO_NOT_FIT)?,
        };
        Ok(Load { gpa, virt: gpa, file: begin..begin + len as usize, memory_len })
    }
}
