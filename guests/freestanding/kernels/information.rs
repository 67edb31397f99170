//! What the loader tells, by either version (Multiboot 0.6.96, 3.3; Multiboot2 2.0, 3.6).

use runtime::memory::read;
use runtime::multiboot::{from_loader, program};

/// The loader's information.
pub(crate) enum Information {
    /// Version 1's, at this address.
    One(u32),
    /// Version 2's.
    Two(u32),
}

/// A text in memory.
#[derive(Clone, Copy)]
pub(crate) struct Text {
    start: u32,
    end: u32,
}

/// A module.
pub(crate) struct Module {
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) string: Text,
}

/// A range of physical memory.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) kind: u32,
}

impl Information {
    /// If a loader of either version left some.
    pub(crate) fn from_loader() -> Option<Information> {
        match from_loader() {
            (0x2bad_b002, at) => Some(Information::One(at)),
            (0x36d7_6289, at) => Some(Information::Two(at)),
            _ => None,
        }
    }

    pub(crate) fn version(&self) -> u32 {
        match self {
            Information::One(_) => 1,
            Information::Two(_) => 2,
        }
    }

    pub(crate) fn command_line(&self) -> Text {
        match *self {
            Information::One(at) => self.text_of_1(at, 2, 16),
            Information::Two(_) => self.tag(1).map_or(Text::EMPTY, |tag| Text::at(tag.contents)),
        }
    }

    pub(crate) fn loader_name(&self) -> Text {
        match *self {
            Information::One(at) => self.text_of_1(at, 9, 64),
            Information::Two(_) => self.tag(2).map_or(Text::EMPTY, |tag| Text::at(tag.contents)),
        }
    }

    /// KiB of memory from 0 on, and from 1 MiB on.
    pub(crate) fn lower_and_upper_kib(&self) -> [u32; 2] {
        let both = |at: u32| [read(at), read(at + 4)];
        match *self {
            Information::One(at) if has(at, 0) => both(at + 4),
            Information::One(_) => [0; 2],
            Information::Two(_) => self.tag(4).map_or([0; 2], |tag| both(tag.contents)),
        }
    }

    /// Shows each module.
    pub(crate) fn modules(&self, mut see: impl FnMut(Module)) {
        match *self {
            Information::One(at) if has(at, 3) => {
                let (count, list) = (read::<u32>(at + 20), read::<u32>(at + 24));
                for module in (0..count).map(|number| list + 16 * number) {
                    see(Module { start: read(module), end: read(module + 4), string: Text::at(read(module + 8)) });
                }
            }
            Information::One(_) => {}
            Information::Two(at) => {
                for tag in Tags::of(at).filter(|tag| tag.kind == 3) {
                    let Tag { contents, .. } = tag;
                    see(Module { start: read(contents), end: read(contents + 4), string: Text::at(contents + 8) });
                }
            }
        }
    }

    /// Shows each range of the memory map.
    pub(crate) fn regions(&self, mut see: impl FnMut(Region)) {
        match *self {
            Information::One(at) if has(at, 6) => {
                let (len, map) = (read::<u32>(at + 44), read::<u32>(at + 48));
                let mut entry = map;
                while entry < map + len {
                    see(Region::at(entry + 4));
                    entry += read::<u32>(entry) + 4;
                }
            }
            Information::One(_) => {}
            Information::Two(_) => {
                let Some(map) = self.tag(6) else { return };
                let size = read::<u32>(map.contents).max(1);
                let mut entry = map.contents + 8;
                while entry < map.end {
                    see(Region::at(entry));
                    entry += size;
                }
            }
        }
    }

    /// A text of version 1, whose address is at an offset if a flag says so.
    fn text_of_1(&self, at: u32, flag: u32, offset: u32) -> Text {
        if has(at, flag) { Text::at(read(at + offset)) } else { Text::EMPTY }
    }

    /// The first tag of this type.
    fn tag(&self, kind: u32) -> Option<Tag> {
        match *self {
            Information::One(_) => None,
            Information::Two(at) => Tags::of(at).find(|tag| tag.kind == kind),
        }
    }
}

/// Whether a flag of version 1 says that its field is there.
fn has(at: u32, flag: u32) -> bool {
    read::<u32>(at) & 1 << flag != 0
}

/// A tag of version 2.
struct Tag {
    kind: u32,
    contents: u32,
    end: u32,
}

/// Those that are left.
struct Tags {
    at: u32,
    end: u32,
}

impl Tags {
    fn of(information: u32) -> Tags {
        Tags { at: information + 8, end: information + read::<u32>(information) }
    }
}

impl Iterator for Tags {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        const HEADER: u32 = 8;
        if self.at + HEADER > self.end {
            return None;
        }
        let (kind, size) = (read(self.at), read::<u32>(self.at + 4).max(HEADER));
        let tag = Tag { kind, contents: self.at + HEADER, end: self.at + size };
        self.at += (size + 7) & !7;
        Some(tag)
    }
}

impl Text {
    const EMPTY: Text = Text { start: 0, end: 0 };

    /// The text at an address, which a zero ends.
    fn at(start: u32) -> Text {
        let mut end = start;
        while read::<u8>(end) != 0 {
            end += 1;
        }
        Text { start, end }
    }

    pub(crate) fn bytes(self) -> impl Iterator<Item = u8> {
        (self.start..self.end).map(read)
    }

    /// What stands between spaces.
    pub(crate) fn words(self) -> impl Iterator<Item = Text> {
        let mut at = self.start;
        core::iter::from_fn(move || {
            while at < self.end && read::<u8>(at) == b' ' {
                at += 1;
            }
            let start = at;
            while at < self.end && read::<u8>(at) != b' ' {
                at += 1;
            }
            (start != at).then_some(Text { start, end: at })
        })
    }

    /// What comes after a prefix, if it begins so.
    pub(crate) fn after(self, prefix: &str) -> Option<Text> {
        let begins = self.bytes().take(prefix.len()).eq(prefix.bytes());
        begins.then_some(Text { start: self.start + prefix.len() as u32, ..self })
    }

    /// The number that it is, up to what is no digit.
    pub(crate) fn decimal(self) -> u32 {
        self.number(10)
    }

    /// Likewise in hexadecimal.
    pub(crate) fn hex(self) -> u32 {
        self.number(16)
    }

    fn number(self, base: u32) -> u32 {
        let digits = self.bytes().map_while(|byte| char::from(byte).to_digit(base));
        digits.fold(0, |number, digit| number.wrapping_mul(base).wrapping_add(digit))
    }
}

impl Module {
    pub(crate) fn range(&self) -> Region {
        Region { start: self.start.into(), len: self.end.saturating_sub(self.start).into(), kind: Region::USABLE }
    }
}

impl Region {
    pub(crate) const USABLE: u32 = 1;

    /// Where this program is.
    pub(crate) fn of_this_program() -> Region {
        let (start, end) = program();
        Region { start: start.into(), len: (end - start).into(), kind: Region::USABLE }
    }

    fn at(entry: u32) -> Region {
        Region { start: read(entry), len: read(entry + 8), kind: read(entry + 16) }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.kind == Region::USABLE
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    pub(crate) fn overlaps(&self, other: &Region) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Whether a usable range has all of this in it.
pub(crate) fn memory_holds(information: &Information, what: &Region) -> bool {
    let mut holds = false;
    information.regions(|region| {
        holds |= region.is_usable() && region.start <= what.start && what.end() <= region.end();
    });
    holds
}
