//! ELF section headers, of which Multiboot tells the kernel, for its symbols above all (0.6.96, 3.3; 2.0, 3.6.7).

use super::super::bytes::{put_u32, put_u64, u16_at, u32_at, u64_at};
use super::super::elf::Elf;
use super::super::layout::Layout;
use super::{LoadError, behind};
use std::ops::Range;
use std::sync::Arc;

const DAMAGED: LoadError = LoadError::Damaged("a section header points behind its end");

/// The table of section headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) count: u32,
    /// Bytes in a header.
    pub(super) entry_size: u32,
    /// The section with the sections' names.
    pub(super) names: u32,
    /// The headers as they are in the file, with the addresses of what was loaded because of them.
    pub(super) headers: Vec<u8>,
    wide: bool,
}

impl Sections {
    /// Reads the table; `None` where the program has none.
    pub(super) fn of(file: &[u8], elf: &Elf) -> Result<Option<Sections>, LoadError> {
        let wide = elf.is_wide();
        // e_shoff, then e_shentsize, e_shnum and e_shstrndx.
        let (at, fields) = if wide { (u64_at(file, 40), 58) } else { (u32_at(file, 32).map(u64::from), 46) };
        let field = |number: usize| u16_at(file, fields + 2 * number).map(usize::from).ok_or(DAMAGED);
        let (size, count, names) = (field(0)?, field(1)?, field(2)?);
        let at = at.and_then(|at| usize::try_from(at).ok()).ok_or(DAMAGED)?;
        if at == 0 || count == 0 {
            return Ok(None);
        }
        if size < if wide { 64 } else { 40 } {
            return Err(LoadError::Damaged("its section headers are too short"));
        }
        let headers = at.checked_add(size * count).and_then(|end| file.get(at..end)).ok_or(DAMAGED)?.to_vec();
        Ok(Some(Sections { count: count as u32, entry_size: size as u32, names: names as u32, headers, wide }))
    }

    /// Puts sections that no segment has loaded, symbols and names, behind the kernel, and their addresses into the headers.
    pub(super) fn place(
        mut self,
        file: &Arc<[u8]>,
        kernel_end: u64,
        layout: &mut Layout,
    ) -> Result<Sections, LoadError> {
        let wide = self.wide;
        for header in self.headers.chunks_exact_mut(self.entry_size as usize) {
            if let Some((range, align)) = not_loaded(header, wide, file.len())? {
                let at = behind(layout, kernel_end, "A section", file, range, align)?;
                if wide { put_u64(header, 16, at) } else { put_u32(header, 12, at as u32) }
            }
        }
        Ok(self)
    }
}

/// Where in the file a section is that has no address, and how it is aligned; `None` for one that has, or that is empty.
fn not_loaded(header: &[u8], wide: bool, file_len: usize) -> Result<Option<(Range<usize>, u64)>, LoadError> {
    const SHT_NULL: u32 = 0;
    const SHT_NOBITS: u32 = 8;
    // Elf64_Shdr: sh_type 4, sh_addr 16, sh_offset 24, sh_size 32, sh_addralign 48; Elf32_Shdr: 4, 12, 16, 20, 32.
    let word = |in_64, in_32| if wide { u64_at(header, in_64) } else { u32_at(header, in_32).map(u64::from) };
    let kind = u32_at(header, 4).ok_or(DAMAGED)?;
    let [addr, offset, size, align] =
        [(16, 12), (24, 16), (32, 20), (48, 32)].map(|(in_64, in_32)| word(in_64, in_32).unwrap_or_default());
    if kind == SHT_NULL || kind == SHT_NOBITS || addr != 0 || size == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(size).filter(|&end| end <= file_len as u64).ok_or(DAMAGED)?;
    Ok(Some((offset as usize..end as usize, align.max(1))))
}
