//! Multiboot, version 1 (Multiboot Specification 0.6.96) and version 2 (Multiboot2 Specification 2.0): a header somewhere at the
//! beginning of the kernel's file, and what the kernel is told.
//!
//! The file is an ELF program, or the header itself says where what goes (the "a.out kludge"). No video mode is set, and there are
//! no boot services of UEFI: a kernel that insists on either is refused.

use super::bytes::{put_u32, u16_at, u32_at};
use super::elf::Elf;
use super::layout::{Layout, Ram};
use super::{LoadError, Protocol};
use std::ops::Range;
use std::sync::Arc;

/// What EAX says at the entry.
const MAGIC_1: u64 = 0x2bad_b002;
const MAGIC_2: u64 = 0x36d7_6289;

/// The name that the kernel is told.
const LOADER_NAME: &str = "spinup";

/// A kernel's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Multiboot {
    version_2: bool,
    load: Load,
    pub(super) entry: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Load {
    Elf(Elf),
    /// Address, bytes of the file, and how many bytes of memory.
    Flat {
        gpa: u64,
        file: Range<usize>,
        memory_len: u64,
    },
}

/// What of a header does not depend on the version.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    /// Where it is in the file.
    at: usize,
    addresses: Option<Addresses>,
    entry: Option<u32>,
}

/// The addresses of a header that says where what goes.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
}

/// A module in memory, with its command line.
pub(super) struct Placed<'a> {
    pub(super) range: Range<u64>,
    pub(super) cmdline: &'a str,
}

impl Multiboot {
    /// Reads the header of a version; `None` when the file has none.
    pub(super) fn parse(file: &[u8], protocol: Protocol) -> Result<Option<Multiboot>, LoadError> {
        let version_2 = protocol == Protocol::Multiboot2;
        let header = if version_2 { header_2(file)? } else { header_1(file)? };
        let Some(header) = header else { return Ok(None) };
        let (load, entry) = match (header.addresses, header.entry) {
            (Some(addresses), Some(entry)) => (addresses.load(header.at, file.len())?, entry.into()),
            (Some(_), None) => return Err(LoadError::Damaged("its header has addresses but no entry")),
            (None, entry) => {
                let elf = Elf::parse(file)?.ok_or(LoadError::UnknownFormat)?;
                let entry = entry.map_or(elf.start(), u64::from);
                (Load::Elf(elf), entry)
            }
        };
        if entry > u32::MAX.into() {
            return Err(LoadError::Damaged("its entry is above 4 GiB"));
        }
        Ok(Some(Multiboot { version_2, load, entry }))
    }

    /// What EAX says.
    pub(super) fn magic(&self) -> u64 {
        if self.version_2 { MAGIC_2 } else { MAGIC_1 }
    }

    /// Puts the kernel where it belongs.
    pub(super) fn place(&self, file: &Arc<[u8]>, layout: &mut Layout) -> Result<(), LoadError> {
        match &self.load {
            Load::Elf(elf) => elf.place(file, layout).map(drop),
            Load::Flat { gpa, file: range, memory_len } => {
                layout.file("The kernel", *gpa, file, range.clone(), *memory_len)
            }
        }
    }

    /// What EBX points to, for memory at `at`.
    pub(super) fn info(&self, at: u64, ram: Ram, cmdline: &str, modules: &[Placed<'_>]) -> Vec<u8> {
        if self.version_2 { info_2(ram, cmdline, modules) } else { info_1(at, ram, cmdline, modules) }
    }
}

impl Addresses {
    /// The part of the file that is loaded begins as far before the header as its address does.
    fn load(self, header_at: usize, file_len: usize) -> Result<Load, LoadError> {
        const WRONG: LoadError = LoadError::Damaged("the addresses in its header do not fit together");
        let Addresses { header, load, load_end, bss_end } = self;
        // All ones (version 2 alone): the file's beginning.
        let before = if load == u32::MAX { header_at } else { header.checked_sub(load).ok_or(WRONG)? as usize };
        let begin = header_at.checked_sub(before).ok_or(WRONG)?;
        let gpa = header.checked_sub(before as u32).ok_or(WRONG)?;
        let len = match load_end {
            0 => file_len - begin,
            end => end.checked_sub(gpa).ok_or(WRONG)? as usize,
        };
        let end = begin.checked_add(len).filter(|end| *end <= file_len).ok_or(WRONG)?;
        let memory_len = match bss_end {
            0 => len as u64,
            end => u64::from(end.checked_sub(gpa).ok_or(WRONG)?).max(len as u64),
        };
        Ok(Load::Flat { gpa: gpa.into(), file: begin..end, memory_len })
    }
}

/// Version 1 (3.1): in the first 8192 bytes, on 4 bytes.
fn header_1(file: &[u8]) -> Result<Option<Header>, LoadError> {
    const MAGIC: u32 = 0x1bad_b002;
    const SEARCH: usize = 8192;
    const VIDEO: u32 = 1 << 2;
    /// Bits 15:0 are requirements; 0 and 1, alignment and memory, are met always.
    const REQUIREMENTS: u32 = 0xffff;
    const MET: u32 = 0b11;
    const ADDRESSES: u32 = 1 << 16;
    let found = (0..SEARCH.min(file.len())).step_by(4).find(|&at| {
        let word = |offset| u32_at(file, at + offset).unwrap_or(0);
        at + 12 <= SEARCH && word(0) == MAGIC && MAGIC.wrapping_add(word(4)).wrapping_add(word(8)) == 0
    });
    let Some(at) = found else { return Ok(None) };
    let word = |offset| u32_at(file, at + offset).ok_or(LoadError::Damaged("its Multiboot header is cut off"));
    let flags = word(4)?;
    if flags & VIDEO != 0 {
        return Err(LoadError::Multiboot("a video mode"));
    }
    if flags & REQUIREMENTS & !MET != 0 {
        return Err(LoadError::Multiboot("what no version of the specification knows"));
    }
    let mut header = Header { at, ..Header::default() };
    if flags & ADDRESSES != 0 {
        let (load, load_end, bss_end) = (word(16)?, word(20)?, word(24)?);
        header.addresses = Some(Addresses { header: word(12)?, load, load_end, bss_end });
        header.entry = Some(word(28)?);
    }
    Ok(Some(header))
}

/// Tags of a header of version 2 (3.1.3 and on).
mod wanted {
    pub(super) const END: u16 = 0;
    pub(super) const INFORMATION: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const ENTRY: u16 = 3;
    pub(super) const CONSOLE: u16 = 4;
    pub(super) const FRAMEBUFFER: u16 = 5;
    pub(super) const MODULE_ALIGN: u16 = 6;
    pub(super) const EFI_BOOT_SERVICES: u16 = 7;
    pub(super) const EFI_I386_ENTRY: u16 = 8;
    pub(super) const EFI_AMD64_ENTRY: u16 = 9;
    pub(super) const RELOCATABLE: u16 = 10;
}

/// Tags of the information of version 2 (3.4.3 and on).
mod told {
    pub(super) const END: u32 = 0;
    pub(super) const CMDLINE: u32 = 1;
    pub(super) const LOADER: u32 = 2;
    pub(super) const MODULE: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const MEMORY_MAP: u32 = 6;
    /// What the kernel may insist on.
    pub(super) const ALL: [u32; 5] = [CMDLINE, LOADER, MODULE, MEMORY, MEMORY_MAP];
}

/// Version 2 (3.1): in the first 32768 bytes, on 8 bytes.
fn header_2(file: &[u8]) -> Result<Option<Header>, LoadError> {
    const MAGIC: u32 = 0xe852_50d6;
    const SEARCH: usize = 32768;
    const I386: u32 = 0;
    const OPTIONAL: u16 = 1;
    const CUT_OFF: LoadError = LoadError::Damaged("its Multiboot2 header is cut off");
    let found = (0..SEARCH.min(file.len())).step_by(8).find(|&at| {
        let word = |offset| u32_at(file, at + offset).unwrap_or(0);
        let sum = [0, 4, 8, 12].into_iter().fold(0_u32, |sum, offset| sum.wrapping_add(word(offset)));
        word(0) == MAGIC && word(4) == I386 && sum == 0
    });
    let Some(at) = found else { return Ok(None) };
    let len = u32_at(file, at + 8).ok_or(CUT_OFF)? as usize;
    let tags = file.get(at..at.checked_add(len).ok_or(CUT_OFF)?).ok_or(CUT_OFF)?;
    let mut header = Header { at, ..Header::default() };
    let mut next = 16;
    loop {
        let tag = tags.get(next..).ok_or(CUT_OFF)?;
        let word = |offset| u32_at(tag, offset).ok_or(CUT_OFF);
        let (kind, flags) = (u16_at(tag, 0).ok_or(CUT_OFF)?, u16_at(tag, 2).ok_or(CUT_OFF)?);
        let size = word(4)? as usize;
        let required = flags & OPTIONAL == 0;
        match kind {
            wanted::END => return Ok(Some(header)),
            wanted::INFORMATION => {
                for offset in (8..size).step_by(4) {
                    if required && !told::ALL.contains(&word(offset)?) {
                        return Err(LoadError::Multiboot("information that there is not"));
                    }
                }
            }
            wanted::ADDRESS => {
                let (load, load_end, bss_end) = (word(12)?, word(16)?, word(20)?);
                header.addresses = Some(Addresses { header: word(8)?, load, load_end, bss_end });
            }
            wanted::ENTRY => header.entry = Some(word(8)?),
            // The serial port is a console; modules begin on pages; the kernel is loaded where it wants to be; entries for UEFI
            // do not count on a BIOS.
            wanted::CONSOLE
            | wanted::MODULE_ALIGN
            | wanted::RELOCATABLE
            | wanted::EFI_I386_ENTRY
            | wanted::EFI_AMD64_ENTRY => {}
            wanted::FRAMEBUFFER if required => return Err(LoadError::Multiboot("a video mode")),
            wanted::EFI_BOOT_SERVICES if required => return Err(LoadError::Multiboot("UEFI's boot services")),
            _ if required && kind > wanted::RELOCATABLE => {
                return Err(LoadError::Multiboot("what no version of the specification knows"));
            }
            _ => {}
        }
        next += size.max(8).checked_next_multiple_of(8).ok_or(CUT_OFF)?;
    }
}

/// KiB of memory below 640 KiB, and from 1 MiB on up to the first hole.
fn lower_and_upper(ram: Ram) -> [u32; 2] {
    let conventional = ram.map().first().map_or(0, |(range, _)| range.end);
    [(conventional >> 10) as u32, (ram.low.saturating_sub(1 << 20) >> 10) as u32]
}

/// Version 1 (3.3).
fn info_1(at: u64, ram: Ram, cmdline: &str, modules: &[Placed<'_>]) -> Vec<u8> {
    const LEN: usize = 116;
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    const LOADER: u32 = 1 << 9;
    const MODULE_LEN: usize = 16;
    let mut info = vec![0; LEN];
    // Where what is appended next will be.
    let behind = |info: &[u8]| at as u32 + info.len() as u32;
    let text = |info: &mut Vec<u8>, text: &str| {
        let place = behind(info);
        info.extend(text.bytes().chain([0]));
        place
    };
    put_u32(&mut info, 0, MEMORY | CMDLINE | MODULES | MEMORY_MAP | LOADER);
    let [lower, upper] = lower_and_upper(ram);
    put_u32(&mut info, 4, lower);
    put_u32(&mut info, 8, upper);
    let map_at = behind(&info);
    for (range, kind) in ram.map() {
        const ENTRY_LEN: u32 = 20;
        info.extend(ENTRY_LEN.to_le_bytes());
        info.extend(range.start.to_le_bytes());
        info.extend((range.end - range.start).to_le_bytes());
        info.extend((kind as u32).to_le_bytes());
    }
    let map_len = behind(&info) - map_at;
    put_u32(&mut info, 44, map_len);
    put_u32(&mut info, 48, map_at);
    let (list_at, list) = (behind(&info), info.len());
    info.resize(list + MODULE_LEN * modules.len(), 0);
    for (i, module) in modules.iter().enumerate() {
        let string = text(&mut info, module.cmdline);
        let entry = list + MODULE_LEN * i;
        for (field, value) in [(0, module.range.start as u32), (4, module.range.end as u32), (8, string)] {
            put_u32(&mut info, entry + field, value);
        }
    }
    put_u32(&mut info, 20, modules.len() as u32);
    put_u32(&mut info, 24, list_at);
    for (field, said) in [(16, cmdline), (64, LOADER_NAME)] {
        let place = text(&mut info, said);
        put_u32(&mut info, field, place);
    }
    info
}

/// Version 2 (3.4).
fn info_2(ram: Ram, cmdline: &str, modules: &[Placed<'_>]) -> Vec<u8> {
    fn tag(info: &mut Vec<u8>, kind: u32, contents: &[u8]) {
        info.extend(kind.to_le_bytes());
        info.extend((8 + contents.len() as u32).to_le_bytes());
        info.extend(contents);
        info.resize(info.len().next_multiple_of(8), 0);
    }
    let words = |words: [u32; 2]| words.map(u32::to_le_bytes).concat();
    let mut info = vec![0; 8];
    tag(&mut info, told::CMDLINE, &[cmdline.as_bytes(), &[0]].concat());
    tag(&mut info, told::LOADER, &[LOADER_NAME.as_bytes(), &[0]].concat());
    for module in modules {
        let place = words([module.range.start as u32, module.range.end as u32]);
        tag(&mut info, told::MODULE, &[&place, module.cmdline.as_bytes(), &[0]].concat());
    }
    tag(&mut info, told::MEMORY, &words(lower_and_upper(ram)));
    const ENTRY_LEN: u32 = 24;
    const VERSION: u32 = 0;
    let mut map = words([ENTRY_LEN, VERSION]);
    for (range, kind) in ram.map() {
        map.extend(range.start.to_le_bytes());
        map.extend((range.end - range.start).to_le_bytes());
        map.extend(words([kind as u32, 0]));
    }
    tag(&mut info, told::MEMORY_MAP, &map);
    tag(&mut info, told::END, &[]);
    let len = info.len() as u32;
    put_u32(&mut info, 0, len);
    info
}
