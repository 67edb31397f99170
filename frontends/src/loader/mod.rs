//! The program that loads a kernel before bhyve runs: what `bhyveload` is to FreeBSD and `grub-bhyve` to others.
//!
//! It makes the VM, gives it its memory, copies the kernel there as the kernel's boot protocol says, and writes the BSP's
//! registers. Then bhyve finds the VM (`vm_create` says EEXIST) and, having no boot ROM, runs it from where RIP points. All of
//! this goes through libvmmapi, as the real loaders do. \[inferred: from what bhyve expects of a VM without a boot ROM]
//!
//! What to copy where is a pure function of the files and the size of memory (`OsImage::place`); the module of each format
//! and protocol cites its specification.

mod bytes;
mod bzimage;
mod elf;
mod flat;
mod layout;
mod linux;
mod multiboot;
mod pvh;
mod run;

#[cfg(test)]
mod tests;

pub(crate) use run::run;

use bzimage::BzImage;
use elf::Elf;
use layout::{Layout, Ram};
use multiboot::Version;
use std::fmt;
use std::sync::Arc;

/// A kernel with what belongs to it.
#[derive(Clone, Default)]
pub struct OsImage {
    /// The kernel's file: a bzImage, an ELF program for x86, whatever has a Multiboot header, or a flat image.
    pub kernel: Arc<[u8]>,
    /// The initial RAM disk, if it wants one; by Multiboot it is the first module.
    pub initrd: Option<Arc<[u8]>>,
    /// Modules, for Multiboot.
    pub modules: Vec<Module>,
    /// The kernel's command line, up to 4095 bytes without a zero, or fewer if it says so.
    pub cmdline: String,
    /// The protocol by which to enter it; `None` takes the first of [`Protocol::ALL`] that it has. A flat image has to be
    /// called one.
    pub protocol: Option<Protocol>,
    /// Where a flat image goes, a guest physical address; `None`: 7C00H for real mode, 1 MiB for protected mode.
    pub load_at: Option<u64>,
}

/// A file that a Multiboot kernel gets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Module {
    /// Its contents.
    pub file: Arc<[u8]>,
    /// Its command line, without a zero.
    pub cmdline: String,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:?}", self.file.len(), self.cmdline)
    }
}

impl fmt::Debug for OsImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let initrd = self.initrd.as_ref().map(|initrd| initrd.len());
        let OsImage { kernel, modules, cmdline, protocol, load_at, .. } = self;
        let len = kernel.len();
        write!(
            f,
            "OsImage({len} bytes, initrd {initrd:?}, {modules:?}, {cmdline:?}, {protocol:?}, load at {load_at:x?})"
        )
    }
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Multiboot 2: 32-bit protected mode, EAX 36D76289H, EBX points to its information.
    Multiboot2,
    /// Multiboot 1: the same, EAX 2BADB002H.
    Multiboot,
    /// The 64-bit boot protocol of Linux: long mode, RSI points to the zero page.
    Linux64,
    /// PVH: 32-bit protected mode, EBX points to `hvm_start_info` (Xen's x86/HVM direct boot ABI).
    Pvh,
    /// The 32-bit boot protocol of Linux: 32-bit protected mode, ESI points to the zero page.
    Linux32,
    /// No protocol: a flat image is entered at its first byte in real mode.
    Flat16,
    /// Likewise in 32-bit protected mode.
    Flat32,
}

impl Protocol {
    /// Every protocol, the preferred one first: a Multiboot header says more about a program than its plain entry.
    pub const ALL: [Protocol; 7] = [
        Protocol::Multiboot2,
        Protocol::Multiboot,
        Protocol::Linux64,
        Protocol::Pvh,
        Protocol::Linux32,
        Protocol::Flat16,
        Protocol::Flat32,
    ];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Multiboot2 => "multiboot2",
            Protocol::Multiboot => "multiboot",
            Protocol::Linux64 => "linux64",
            Protocol::Pvh => "pvh",
            Protocol::Linux32 => "linux32",
            Protocol::Flat16 => "flat16",
            Protocol::Flat32 => "flat32",
        }
    }

    /// The protocol with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.name() == name)
    }
}

/// Why a kernel cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file is no kernel that this loader knows.
    #[error("The file is neither a bzImage nor an ELF program for x86, and has no Multiboot header.")]
    UnknownFormat,
    /// The file's own numbers do not fit together.
    #[error("The kernel's file is damaged: {0}.")]
    Damaged(&'static str),
    /// The kernel cannot be entered as asked.
    #[error("The kernel has no entry for the protocol {0}.")]
    NoSuchEntry(&'static str),
    /// The kernel says that it needs something that is not to be had.
    #[error("The kernel requires {0}.")]
    Refused(&'static str),
    /// The protocol has no place for something that goes with the kernel.
    #[error("The protocol {0} takes no {1}.")]
    NotTaken(&'static str, &'static str),
    /// The command line, or a module's string, is too long or contains a zero.
    #[error("The command line is longer than the {0} bytes that the kernel takes, or contains a zero.")]
    CommandLine(usize),
    /// What has to be in memory does not fit there.
    #[error("{0} does not fit into {1} MiB of memory.")]
    NoRoom(&'static str, u64),
}

/// A kernel in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// What is copied into memory: guest physical addresses and bytes. They do not overlap.
    pub(crate) pieces: Vec<Piece>,
    /// How the BSP begins.
    pub(crate) entry: Entry,
}

/// Bytes and where they go.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) what: &'static str,
    pub(crate) gpa: u64,
    /// The file that the bytes come from, and which of them.
    file: Arc<[u8]>,
    range: std::ops::Range<usize>,
}

impl Piece {
    fn new(what: &'static str, gpa: u64, bytes: Vec<u8>) -> Piece {
        let range = 0..bytes.len();
        Piece { what, gpa, file: bytes.into(), range }
    }

    fn of(what: &'static str, gpa: u64, file: &Arc<[u8]>, range: std::ops::Range<usize>) -> Piece {
        Piece { what, gpa, file: Arc::clone(file), range }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}, {:#x} bytes", self.what, self.gpa, self.range.len())
    }
}

/// How the BSP begins. All other general registers are 0, interrupts are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: Mode,
    /// Whether there is a GDT ([`layout::GDT`]).
    pub(crate) gdt: bool,
    /// Where: a linear address.
    pub(crate) rip: u64,
    /// RAX: Multiboot's magic number.
    pub(crate) rax: u64,
    /// RBX: PVH's start info, or Multiboot's information.
    pub(crate) rbx: u64,
    /// RSI: Linux's zero page.
    pub(crate) rsi: u64,
}

/// The mode of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Real mode; CS is the segment of 64 KiB that RIP is in.
    Real,
    /// 32-bit protected mode without paging.
    Protected,
    /// Long mode with memory mapped to itself.
    Long,
}

impl Entry {
    /// An entry there with all registers 0.
    fn at(mode: Mode, rip: u64) -> Entry {
        Entry { mode, gdt: false, rip, rax: 0, rbx: 0, rsi: 0 }
    }
}

/// What can go with a kernel, and not with every protocol. Each takes a command line, but for flat images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Initrd,
    Modules,
    LoadAddress,
}

/// A file by the protocols of Linux and PVH.
enum Format {
    BzImage(BzImage),
    Elf(Elf),
}

impl OsImage {
    /// Whether this can be loaded into a VM with so much memory, in bytes.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self, memory_bytes: u64) -> Result<(), LoadError> {
        self.place(Ram::of(memory_bytes), None).map(drop)
    }

    /// Where everything goes. `rsdp` is what the guest will find of ACPI.
    fn place(&self, ram: Ram, rsdp: Option<&[u8]>) -> Result<Placed, LoadError> {
        match self.protocol {
            Some(Protocol::Multiboot) => multiboot::place(self, Version::One, ram, rsdp),
            Some(Protocol::Multiboot2) => multiboot::place(self, Version::Two, ram, rsdp),
            Some(protocol @ (Protocol::Flat16 | Protocol::Flat32)) => flat::place(self, protocol, ram),
            Some(Protocol::Linux64 | Protocol::Linux32 | Protocol::Pvh) => self.place_kernel(ram),
            None => match multiboot::version_of(&self.kernel) {
                Some(version) => multiboot::place(self, version, ram, rsdp),
                None => self.place_kernel(ram),
            },
        }
    }

    /// Refuses what the protocol has no place for: all but these parts.
    fn takes(&self, protocol: Protocol, taken: &[Part]) -> Result<(), LoadError> {
        let is_flat = matches!(protocol, Protocol::Flat16 | Protocol::Flat32);
        let left_over = [
            (self.initrd.is_some() && !taken.contains(&Part::Initrd), "initial RAM disk"),
            (!self.modules.is_empty() && !taken.contains(&Part::Modules), "modules"),
            (self.load_at.is_some() && !taken.contains(&Part::LoadAddress), "load address"),
            (is_flat && !self.cmdline.is_empty(), "command line"),
        ];
        match left_over.into_iter().find(|(is_there, _)| *is_there) {
            Some((_, what)) => Err(LoadError::NotTaken(protocol.name(), what)),
            None => Ok(()),
        }
    }

    /// Where everything of a bzImage or an ELF program goes by the protocols of Linux or PVH.
    fn place_kernel(&self, ram: Ram) -> Result<Placed, LoadError> {
        let format = if let Some(image) = BzImage::parse(&self.kernel)? {
            Format::BzImage(image)
        } else if let Some(program) = Elf::parse(&self.kernel)? {
            Format::Elf(program)
        } else {
            return Err(LoadError::UnknownFormat);
        };
        let protocol = match self.protocol {
            Some(protocol) => {
                format.entry(protocol).map(|_| protocol).ok_or(LoadError::NoSuchEntry(protocol.name()))?
            }
            None => Protocol::ALL
                .into_iter()
                .find(|&protocol| format.entry(protocol).is_some())
                .ok_or(LoadError::NoSuchEntry("of any kind"))?,
        };
        self.takes(protocol, &[Part::Initrd])?;
        let mut layout = Layout::new(ram);
        let (cmdline_max, initrd_max) = match &format {
            Format::BzImage(image) => (image.cmdline_max, image.initrd_max),
            Format::Elf(_) => (layout::CMDLINE_MAX, u64::from(u32::MAX)),
        };
        checked_string(&self.cmdline, cmdline_max.min(layout::CMDLINE_MAX))?;
        let load = match &format {
            Format::BzImage(image) => image.place(&self.kernel, &mut layout)?,
            Format::Elf(program) => program.place(&self.kernel, &mut layout)?,
        };
        let rip = format.entry(protocol).expect("it was asked for above") + load;
        let initrd = self.initrd.as_ref().filter(|initrd| !initrd.is_empty());
        let initrd = initrd.map(|initrd| layout.top("The initial RAM disk", initrd, initrd_max)).transpose()?;
        layout.fixed("The command line", layout::CMDLINE, [self.cmdline.as_bytes(), &[0]].concat())?;
        layout.fixed("The GDT", layout::GDT, layout::gdt(protocol == Protocol::Linux64))?;
        let mut entry = Entry { gdt: true, ..Entry::at(Mode::Protected, rip) };
        match protocol {
            Protocol::Pvh => {
                layout.fixed("The start info", layout::START_INFO, pvh::start_info(ram, initrd))?;
                entry.rbx = layout::START_INFO;
            }
            _ => {
                let header = match &format {
                    Format::BzImage(image) => image.setup_header(&self.kernel),
                    Format::Elf(_) => &[],
                };
                layout.fixed("The zero page", layout::ZERO_PAGE, linux::zero_page(header, ram, initrd))?;
                entry.rsi = layout::ZERO_PAGE;
            }
        }
        if protocol == Protocol::Linux64 {
            layout.fixed("The page tables", layout::PAGE_TABLES, layout::page_tables())?;
            entry.mode = Mode::Long;
        }
        Ok(Placed { pieces: layout.pieces(), entry })
    }
}

/// A text that has a place in memory, where a zero ends it.
fn checked_string(text: &str, max: usize) -> Result<&str, LoadError> {
    if text.len() > max || text.contains('\0') { Err(LoadError::CommandLine(max)) } else { Ok(text) }
}

impl Format {
    /// Where the protocol enters the kernel: an offset from where a bzImage is loaded, an address for a program.
    fn entry(&self, protocol: Protocol) -> Option<u64> {
        match self {
            Format::BzImage(image) => image.entry(protocol),
            Format::Elf(program) => program.entry(protocol),
        }
    }
}
