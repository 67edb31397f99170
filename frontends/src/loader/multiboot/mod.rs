//! Multiboot, versions 1 and 2 (Multiboot Specification 0.6.96; Multiboot2 Specification 2.0): a header in the kernel's file
//! says what it wants, and information about the machine is in memory when it is entered, in 32-bit protected mode.
//!
//! The versions differ in how the header and the information are written (`v1`, `v2`); what they say is the same. Modules
//! and the information lie behind the kernel, modules on pages. The memory of either may be used by the kernel once it has
//! read them, so nothing of it is below 1 MiB, where start-up code is wont to write.

mod program;
mod sections;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use super::layout::{CMDLINE_MAX, Layout, PAGE, Ram};
use super::{Entry, LoadError, Mode, OsImage, Part, Placed, Protocol, checked_string};
use crate::libvmmapi::FOUR_GIB;
use program::Program;
use sections::Sections;
use std::ops::Range;
use std::sync::Arc;

/// How the loader calls itself.
const LOADER_NAME: &str = "spinup";
/// Modules and the information are above.
const ONE_MIB: u64 = 0x10_0000;

/// The versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 0.6.96.
    One,
    /// 2.0.
    Two,
}

impl Version {
    /// What EAX holds at the entry.
    fn magic(self) -> u64 {
        match self {
            Version::One => 0x2bad_b002,
            Version::Two => 0x36d7_6289,
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Version::One => Protocol::Multiboot,
            Version::Two => Protocol::Multiboot2,
        }
    }

    fn header(self, file: &[u8]) -> Result<Option<Header>, LoadError> {
        match self {
            Version::One => v1::header(file),
            Version::Two => v2::header(file),
        }
    }
}

/// Which version's header the file has, the newer first, even if it cannot be loaded.
pub(super) fn version_of(file: &[u8]) -> Option<Version> {
    [Version::Two, Version::One].into_iter().find(|version| !matches!(version.header(file), Ok(None)))
}

/// What a header says. Pages for modules and information about memory need no asking here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Header {
    /// Where it is in the file.
    at: usize,
    /// Where the file's contents go, instead of what an ELF header says.
    addresses: Option<Addresses>,
    /// Where it enters, likewise.
    entry: Option<u32>,
    /// How it may be moved.
    relocatable: Option<Relocatable>,
}

/// The address fields, "a.out kludge" (0.6.96, 3.1.3; 2.0, 3.1.6): physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    /// Where the header goes.
    header: u32,
    /// Where the first byte goes.
    load: u32,
    /// Where what is loaded ends; 0 for the file's end.
    load_end: u32,
    /// Where the zeroed memory behind ends; 0 for none.
    bss_end: u32,
}

/// The relocatable tag (2.0, 3.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Relocatable {
    /// Where it may lie, all of it.
    within: (u32, u32),
    align: u32,
    preference: Preference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preference {
    None,
    Lowest,
    Highest,
}

/// A module in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlacedModule<'a> {
    range: Range<u64>,
    string: &'a str,
}

/// What the kernel is told.
struct Told<'a> {
    ram: Ram,
    cmdline: &'a str,
    modules: Vec<PlacedModule<'a>>,
    sections: Option<Sections>,
    /// The RSDP that the guest will find, if there is one.
    rsdp: Option<&'a [u8]>,
    /// Where a kernel that may be moved is.
    load_base: Option<u64>,
}

impl Told<'_> {
    /// KiB of conventional memory, and from 1 MiB to the first hole.
    fn lower_and_upper_kib(&self) -> [u32; 2] {
        let map = self.ram.map();
        let kib_from =
            |start| map.iter().find(|(range, _)| range.start == start).map_or(0, |(range, _)| range.end - start);
        [kib_from(0), kib_from(ONE_MIB)].map(|bytes| (bytes / 1024) as u32)
    }

    /// The information as it is at an address.
    fn information(&self, version: Version, at: u64) -> Vec<u8> {
        match version {
            Version::One => v1::information(self, at),
            Version::Two => v2::information(self),
        }
    }
}

/// Where everything goes. `rsdp` is what the guest will find of ACPI.
pub(super) fn place(image: &OsImage, version: Version, ram: Ram, rsdp: Option<&[u8]>) -> Result<Placed, LoadError> {
    let protocol = version.protocol();
    image.takes(protocol, &[Part::Initrd, Part::Modules])?;
    let header = version.header(&image.kernel)?.ok_or(LoadError::NoSuchEntry(protocol.name()))?;
    let program = Program::of(&image.kernel, &header)?;
    let mut layout = Layout::new(ram);
    let moved = program.place(&image.kernel, header.relocatable, &mut layout)?;
    let kernel_end = layout.end().max(ONE_MIB);

    let mut modules = Vec::new();
    let initrd = image.initrd.iter().map(|initrd| (initrd, ""));
    for (file, string) in initrd.chain(image.modules.iter().map(|module| (&module.file, module.cmdline.as_str()))) {
        let len = file.len();
        let at = behind(&mut layout, kernel_end, "A module", file, 0..len, PAGE)?;
        modules.push(PlacedModule { range: at..at + len as u64, string: checked_string(string, CMDLINE_MAX)? });
    }
    let sections = program.sections(&image.kernel)?;
    let sections = sections.map(|sections| sections.place(&image.kernel, kernel_end, &mut layout)).transpose()?;
    let told = Told {
        ram,
        cmdline: checked_string(&image.cmdline, CMDLINE_MAX)?,
        modules,
        sections,
        rsdp,
        load_base: header.relocatable.map(|_| program.base().wrapping_add(moved)),
    };
    let len = told.information(version, 0).len();
    let at = free(&layout, kernel_end, len as u64, PAGE).ok_or_else(|| layout.no_room("The boot information"))?;
    layout.fixed("The boot information", at, told.information(version, at))?;
    let entry = Entry {
        rax: version.magic(),
        rbx: at,
        ..Entry::at(Mode::Protected, program.entry().wrapping_add(moved) & u64::from(u32::MAX))
    };
    Ok(Placed { pieces: layout.pieces(), entry })
}

/// The lowest free place behind the kernel, or before it if there is none.
fn free(layout: &Layout, kernel_end: u64, len: u64, align: u64) -> Option<u64> {
    layout.lowest(len, align, kernel_end..FOUR_GIB).or_else(|| layout.lowest(len, align, ONE_MIB..FOUR_GIB))
}

/// Puts a part of a file there, and returns where.
fn behind(
    layout: &mut Layout,
    kernel_end: u64,
    what: &'static str,
    file: &Arc<[u8]>,
    range: Range<usize>,
    align: u64,
) -> Result<u64, LoadError> {
    let len = range.len() as u64;
    let at = free(layout, kernel_end, len, align).ok_or_else(|| layout.no_room(what))?;
    layout.file(what, at, file, range, len)?;
    Ok(at)
}

/// Appends 32-bit numbers.
fn put_all(bytes: &mut Vec<u8>, words: &[u32]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}
