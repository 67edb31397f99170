//! Version 2 (Multiboot2 Specification 2.0).

use super::super::bytes::{u16_at, u32_at};
use super::{Addresses, Header, LOADER_NAME, LoadError, Preference, Relocatable, Told, put_all};

const MAGIC: u32 = 0xe852_50d6;
/// 32-bit protected mode of i386.
const I386: u32 = 0;
/// The header is in the first so many bytes (3.1).
const SEARCHED: usize = 32768;
/// Magic, architecture, length, checksum.
const FIXED: usize = 16;
/// Tags of the header and of the information are aligned so.
const ALIGN: usize = 8;

/// Types of the header's tags (3.1.3 to 3.1.13).
mod tag {
    pub(super) const END: u16 = 0;
    pub(super) const INFORMATION_REQUEST: u16 = 1;
    pub(super) const ADDRESSES: u16 = 2;
    pub(super) const ENTRY: u16 = 3;
    pub(super) const CONSOLE_FLAGS: u16 = 4;
    pub(super) const FRAMEBUFFER: u16 = 5;
    pub(super) const MODULE_ALIGNMENT: u16 = 6;
    pub(super) const EFI_BOOT_SERVICES: u16 = 7;
    pub(super) const EFI_I386_ENTRY: u16 = 8;
    pub(super) const EFI_AMD64_ENTRY: u16 = 9;
    pub(super) const RELOCATABLE: u16 = 10;
}

/// Types of the information's tags (3.6).
mod info {
    pub(super) const END: u32 = 0;
    pub(super) const CMDLINE: u32 = 1;
    pub(super) const LOADER_NAME: u32 = 2;
    pub(super) const MODULE: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const MAP: u32 = 6;
    pub(super) const SECTIONS: u32 = 9;
    pub(super) const OLD_RSDP: u32 = 14;
    pub(super) const NEW_RSDP: u32 = 15;
    pub(super) const LOAD_BASE: u32 = 21;
    /// What a kernel can have if it asks for it.
    pub(super) const KNOWN: [u32; 9] =
        [CMDLINE, LOADER_NAME, MODULE, MEMORY, MAP, SECTIONS, OLD_RSDP, NEW_RSDP, LOAD_BASE];
}

const CUT_OFF: LoadError = LoadError::Damaged("its Multiboot2 header is cut off");

/// Looks for the header: 8-aligned, and its first four words add up to 0. One for another architecture is none.
pub(super) fn header(file: &[u8]) -> Result<Option<Header>, LoadError> {
    let searched = &file[..file.len().min(SEARCHED)];
    let is_header = |&at: &usize| {
        let words = [0, 4, 8, 12].map(|offset| u32_at(searched, at + offset));
        let sum = words.iter().fold(0_u32, |sum, word| sum.wrapping_add(word.unwrap_or_default()));
        words[0] == Some(MAGIC) && words[1] == Some(I386) && words[3].is_some() && sum == 0
    };
    let Some(at) = (0..searched.len()).step_by(ALIGN).find(is_header) else { return Ok(None) };
    let len = u32_at(searched, at + 8).unwrap_or_default() as usize;
    let tags = at.checked_add(len).and_then(|end| searched.get(at + FIXED..end)).ok_or(CUT_OFF)?;
    let mut header = Header { at, ..Header::default() };
    read_tags(tags, &mut header)?;
    Ok(Some(header))
}

fn read_tags(mut tags: &[u8], header: &mut Header) -> Result<(), LoadError> {
    const OPTIONAL: u16 = 1;
    loop {
        let (kind, flags) = (u16_at(tags, 0).ok_or(CUT_OFF)?, u16_at(tags, 2).ok_or(CUT_OFF)?);
        let size = u32_at(tags, 4).ok_or(CUT_OFF)? as usize;
        let contents = tags.get(8..size).ok_or(CUT_OFF)?;
        if kind == tag::END {
            return Ok(());
        }
        let understood = read_tag(kind, contents, header)?;
        if let Err(required) = understood
            && flags & OPTIONAL == 0
        {
            return Err(LoadError::Refused(required));
        }
        tags = tags.get(size.next_multiple_of(ALIGN)..).ok_or(CUT_OFF)?;
    }
}

/// Reads a tag. What cannot be had is refused unless the tag is optional.
fn read_tag(kind: u16, contents: &[u8], header: &mut Header) -> Result<Result<(), &'static str>, LoadError> {
    let word = |number: usize| u32_at(contents, 4 * number).ok_or(CUT_OFF);
    match kind {
        tag::INFORMATION_REQUEST => {
            let mut asked = (0..contents.len() / 4).filter_map(|number| u32_at(contents, 4 * number));
            if !asked.all(|kind| info::KNOWN.contains(&kind)) {
                return Ok(Err("information that there is not"));
            }
        }
        tag::ADDRESSES => {
            header.addresses =
                Some(Addresses { header: word(0)?, load: word(1)?, load_end: word(2)?, bss_end: word(3)? });
        }
        tag::ENTRY => header.entry = Some(word(0)?),
        tag::CONSOLE_FLAGS => {
            const CONSOLE_REQUIRED: u32 = 1;
            if word(0)? & CONSOLE_REQUIRED != 0 {
                return Ok(Err("a console on a screen"));
            }
        }
        tag::FRAMEBUFFER => return Ok(Err("a framebuffer")),
        // Modules are on pages anyway. The entries for EFI count on EFI alone (3.1.9, 3.1.10).
        tag::MODULE_ALIGNMENT | tag::EFI_I386_ENTRY | tag::EFI_AMD64_ENTRY => {}
        tag::EFI_BOOT_SERVICES => return Ok(Err("EFI boot services")),
        tag::RELOCATABLE => {
            let preference = match word(3)? {
                1 => Preference::Lowest,
                2 => Preference::Highest,
                _ => Preference::None,
            };
            header.relocatable = Some(Relocatable { within: (word(0)?, word(1)?), align: word(2)?.max(1), preference });
        }
        _ => return Ok(Err("a feature that Multiboot2 2.0 does not know")),
    }
    Ok(Ok(()))
}

/// The information: total size, reserved, then tags, the last of which says that it is.
pub(super) fn information(told: &Told<'_>) -> Vec<u8> {
    let mut tags = Tags(vec![0; 8]);
    tags.string(info::CMDLINE, &[], told.cmdline);
    tags.string(info::LOADER_NAME, &[], LOADER_NAME);
    for module in &told.modules {
        tags.string(info::MODULE, &[module.range.start as u32, module.range.end as u32], module.string);
    }
    tags.put(info::MEMORY, &told.lower_and_upper_kib(), &[]);
    let map: Vec<u8> = told.ram.map().into_iter().flat_map(|(range, kind)| map_entry(&range, kind as u32)).collect();
    // Size of an entry, version of entries.
    tags.put(info::MAP, &[24, 0], &map);
    if let Some(sections) = &told.sections {
        // The text has 16-bit fields here, the structure in appendix and GRUB have 32-bit ones.
        tags.put(info::SECTIONS, &[sections.count, sections.entry_size, sections.names], &sections.headers);
    }
    if let Some(rsdp) = told.rsdp {
        /// The part that ACPI 1.0 had (ACPI 5.2.5.3).
        const OLD_LEN: usize = 20;
        tags.put(info::OLD_RSDP, &[], &rsdp[..rsdp.len().min(OLD_LEN)]);
        tags.put(info::NEW_RSDP, &[], rsdp);
    }
    if let Some(base) = told.load_base {
        tags.put(info::LOAD_BASE, &[base as u32], &[]);
    }
    tags.put(info::END, &[], &[]);
    let Tags(mut information) = tags;
    let len = information.len() as u32;
    information[..4].copy_from_slice(&len.to_le_bytes());
    information
}

/// Where, how long, and what, numbered as in E820.
fn map_entry(range: &std::ops::Range<u64>, kind: u32) -> [u8; 24] {
    let mut entry = [0; 24];
    entry[..8].copy_from_slice(&range.start.to_le_bytes());
    entry[8..16].copy_from_slice(&(range.end - range.start).to_le_bytes());
    entry[16..20].copy_from_slice(&kind.to_le_bytes());
    entry
}

struct Tags(Vec<u8>);

impl Tags {
    /// A tag: type, size, and what it is about.
    fn put(&mut self, kind: u32, words: &[u32], bytes: &[u8]) {
        let Tags(tags) = self;
        put_all(tags, &[kind, (8 + 4 * words.len() + bytes.len()) as u32]);
        put_all(tags, words);
        tags.extend(bytes);
        tags.resize(tags.len().next_multiple_of(ALIGN), 0);
    }

    /// A tag that ends with a text.
    fn string(&mut self, kind: u32, words: &[u32], text: &str) {
        self.put(kind, words, &[text.as_bytes(), &[0]].concat());
    }
}
