//! Version 1 (Multiboot Specification 0.6.96).

use super::super::bytes::{put_u32, put_u64, u32_at};
use super::{Addresses, Header, LOADER_NAME, LoadError, Told, put_all};

const MAGIC: u32 = 0x1bad_b002;
/// The header is in the first so many bytes (3.1).
const SEARCHED: usize = 8192;

/// Flags of the header (3.1.2): those of bits 15:0 must be understood.
mod wants {
    pub(super) const PAGE_ALIGNED_MODULES: u32 = 1;
    pub(super) const MEMORY: u32 = 1 << 1;
    pub(super) const VIDEO: u32 = 1 << 2;
    pub(super) const MUST_BE_UNDERSTOOD: u32 = 0xffff;
    pub(super) const ADDRESSES: u32 = 1 << 16;
}

/// Looks for the header: 4-aligned, and what it has to add up to adds up.
pub(super) fn header(file: &[u8]) -> Result<Option<Header>, LoadError> {
    let searched = &file[..file.len().min(SEARCHED)];
    let word = |at| u32_at(searched, at);
    let is_header = |&at: &usize| match (word(at), word(at + 4), word(at + 8)) {
        (Some(MAGIC), Some(flags), Some(checksum)) => MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0,
        _ => false,
    };
    let Some(at) = (0..searched.len()).step_by(4).find(is_header) else { return Ok(None) };
    let flags = word(at + 4).unwrap_or_default();
    if flags & wants::VIDEO != 0 {
        return Err(LoadError::Refused("a video mode"));
    }
    if flags & wants::MUST_BE_UNDERSTOOD & !(wants::PAGE_ALIGNED_MODULES | wants::MEMORY) != 0 {
        return Err(LoadError::Refused("a feature that Multiboot 0.6.96 does not know"));
    }
    let mut header = Header { at, ..Header::default() };
    if flags & wants::ADDRESSES != 0 {
        let field =
            |number: usize| word(at + 12 + 4 * number).ok_or(LoadError::Damaged("its Multiboot header is cut off"));
        header.addresses =
            Some(Addresses { header: field(0)?, load: field(1)?, load_end: field(2)?, bss_end: field(3)? });
        header.entry = Some(field(4)?);
    }
    Ok(Some(header))
}

/// Offsets in the information (3.3).
mod field {
    pub(super) const FLAGS: usize = 0;
    pub(super) const MEMORY: usize = 4;
    pub(super) const CMDLINE: usize = 16;
    pub(super) const MODULES: usize = 20;
    pub(super) const SECTIONS: usize = 28;
    pub(super) const MAP: usize = 44;
    pub(super) const LOADER_NAME: usize = 64;
    /// Where it ends.
    pub(super) const END: usize = 116;
}

/// Flags of the information: which fields are there.
mod has {
    pub(super) const MEMORY: u32 = 1;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const SECTIONS: u32 = 1 << 5;
    pub(super) const MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
}

/// The information with all that it points to, at an address.
pub(super) fn information(told: &Told<'_>, at: u64) -> Vec<u8> {
    let mut information = Information { bytes: vec![0; field::END], at: at as u32 };
    let mut flags = has::MEMORY | has::CMDLINE | has::MODULES | has::MAP | has::LOADER_NAME;
    information.set(field::MEMORY, &told.lower_and_upper_kib());
    let cmdline = information.string(told.cmdline);
    information.set(field::CMDLINE, &[cmdline]);
    let name = information.string(LOADER_NAME);
    information.set(field::LOADER_NAME, &[name]);

    let mut modules = Vec::new();
    for module in &told.modules {
        let string = information.string(module.string);
        put_all(&mut modules, &[module.range.start as u32, module.range.end as u32, string, 0]);
    }
    let modules = information.append(&modules);
    information.set(field::MODULES, &[told.modules.len() as u32, modules]);

    if let Some(sections) = &told.sections {
        flags |= has::SECTIONS;
        let headers = information.append(&sections.headers);
        information.set(field::SECTIONS, &[sections.count, sections.entry_size, headers, sections.names]);
    }
    let map = map(told);
    let map_at = information.append(&map);
    information.set(field::MAP, &[map.len() as u32, map_at]);
    information.set(field::FLAGS, &[flags]);
    information.bytes
}

/// The memory map: each entry begins with its own size, which that field does not count.
fn map(told: &Told<'_>) -> Vec<u8> {
    const SIZE: usize = 20;
    let mut map = Vec::new();
    for (range, kind) in told.ram.map() {
        let mut entry = [0; 4 + SIZE];
        put_u32(&mut entry, 0, SIZE as u32);
        put_u64(&mut entry, 4, range.start);
        put_u64(&mut entry, 12, range.end - range.start);
        // Numbered as in E820.
        put_u32(&mut entry, 20, kind as u32);
        map.extend(entry);
    }
    map
}

struct Information {
    bytes: Vec<u8>,
    at: u32,
}

impl Information {
    fn set(&mut self, field: usize, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            put_u32(&mut self.bytes, field + 4 * i, *word);
        }
    }

    /// Puts bytes behind what is there, 4-aligned. Returns their address.
    fn append(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let at = self.at.wrapping_add(self.bytes.len() as u32);
        self.bytes.extend(bytes);
        at
    }

    fn string(&mut self, text: &str) -> u32 {
        self.append(&[text.as_bytes(), &[0]].concat())
    }
}
