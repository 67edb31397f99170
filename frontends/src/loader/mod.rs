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
use multiboot::Multiboot;
use std::fmt;
use std::sync::Arc;

/// A kernel with what belongs to it.
#[derive(Clone, Default)]
pub struct OsImage {
    /// The kernel's file: a bzImage, an ELF program for x86, or what its protocol takes.
    pub kernel: Arc<[u8]>,
    /// The initial RAM disk, if it wants one; by Multiboot it is the first module.
    pub initrd: Option<Arc<[u8]>>,
    /// Modules, for Multiboot.
    pub modules: Vec<Module>,
    /// The kernel's command line, up to 2047 bytes without a zero.
    pub cmdline: String,
    /// The protocol by which to enter it; `None` takes the first of [`Protocol::ALL`] that it has.
    pub protocol: Option<Protocol>,
    /// Where a flat image goes, a guest physical address; `None`: 7C00H for real mode, 1 MiB for protected mode.
    pub load_at: Option<u64>,
}

/// A module of Multiboot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its file.
    pub file: Arc<[u8]>,
    /// Its command line, without a zero.
    pub cmdline: String,
}

impl fmt::Debug for OsImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let initrd = self.initrd.as_ref().map(|initrd| initrd.len());
        let OsImage { kernel, cmdline, protocol, .. } = self;
        write!(f, "OsImage({} bytes, initrd {initrd:?}, {cmdline:?}, {protocol:?})", kernel.len())
    }
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The 64-bit boot protocol of Linux: long mode, RSI points to the zero page.
    Linux64,
    /// PVH: 32-bit protected mode, EBX points to `hvm_start_info` (Xen's x86/HVM direct boot ABI).
    Pvh,
    /// The 32-bit boot protocol of Linux: 32-bit protected mode, ESI points to the zero page.
    Linux32,
    /// Multiboot2: 32-bit protected mode, EBX points to the boot information.
    Multiboot2,
    /// Multiboot, version 1: likewise.
    Multiboot,
    /// A flat image, entered at its beginning in real mode; only if asked for.
    Flat16,
    /// A flat image, entered at its beginning in 32-bit protected mode; only if asked for.
    Flat32,
}

impl Protocol {
    /// Every protocol, the preferred one first.
    pub const ALL: [Protocol; 7] = [
        Protocol::Linux64,
        Protocol::Pvh,
        Protocol::Linux32,
        Protocol::Multiboot2,
        Protocol::Multiboot,
        Protocol::Flat16,
        Protocol::Flat32,
    ];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Linux64 => "linux64",
            Protocol::Pvh => "pvh",
            Protocol::Linux32 => "linux32",
            Protocol::Multiboot2 => "multiboot2",
            Protocol::Multiboot => "multiboot",
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
    /// A Multiboot kernel insists on something that it cannot have.
    #[error("The kernel's Multiboot header asks for {0}.")]
    Multiboot(&'static str),
    /// A flat image cannot be entered in real mode where it is to go.
    #[error("Real mode does not reach {0:#x}.")]
    OutOfReach(u64),
    /// The file's own numbers do not fit together.
    #[error("The kernel's file is damaged: {0}.")]
    Damaged(&'static str),
    /// The kernel cannot be entered as asked.
    #[error("The kernel has no entry for the protocol {0}.")]
    NoSuchEntry(&'static str),
    /// The command line is too long, or contains a zero.
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
    /// Where.
    pub(crate) rip: u64,
    /// RAX: Multiboot's magic number.
    pub(crate) rax: u64,
    /// RBX: PVH's start info, Multiboot's boot information.
    pub(crate) rbx: u64,
    /// RSI: Linux's zero page.
    pub(crate) rsi: u64,
}

/// The mode that the BSP begins in.
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
    fn at(mode: Mode, rip: u64) -> Entry {
        Entry { mode, rip, rax: 0, rbx: 0, rsi: 0 }
    }
}

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
        self.place(Ram::of(memory_bytes)).map(drop)
    }

    /// Where everything goes.
    fn place(&self, ram: Ram) -> Result<Placed, LoadError> {
        match self.protocol {
            Some(Protocol::Flat16) => self.place_flat(ram, Mode::Real),
            Some(Protocol::Flat32) => self.place_flat(ram, Mode::Protected),
            Some(protocol @ (Protocol::Multiboot | Protocol::Multiboot2)) => {
                let header = Multiboot::parse(&self.kernel, protocol)?;
                self.place_multiboot(ram, &header.ok_or(LoadError::NoSuchEntry(protocol.name()))?)
            }
            _ => match self.format() {
                Ok((format, protocol)) => self.place_linux(ram, &format, protocol),
                Err(none @ (LoadError::UnknownFormat | LoadError::NoSuchEntry(_))) if self.protocol.is_none() => {
                    for protocol in [Protocol::Multiboot2, Protocol::Multiboot] {
                        if let Some(header) = Multiboot::parse(&self.kernel, protocol)? {
                            return self.place_multiboot(ram, &header);
                        }
                    }
                    Err(none)
                }
                Err(error) => Err(error),
            },
        }
    }

    /// The format of a kernel that Linux's protocols or PVH enter, and by which.
    fn format(&self) -> Result<(Format, Protocol), LoadError> {
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
        Ok((format, protocol))
    }

    fn check_cmdline(&self, max: usize) -> Result<(), LoadError> {
        let texts = self.modules.iter().map(|module| &module.cmdline).chain([&self.cmdline]);
        if texts.into_iter().any(|text| text.len() > max || text.contains('\0')) {
            return Err(LoadError::CommandLine(max));
        }
        Ok(())
    }

    fn place_flat(&self, ram: Ram, mode: Mode) -> Result<Placed, LoadError> {
        const BOOT_SECTOR: u64 = 0x7c00;
        const ONE_MIB: u64 = 1 << 20;
        let at = self.load_at.unwrap_or(if mode == Mode::Real { BOOT_SECTOR } else { ONE_MIB });
        if mode == Mode::Real && at >= ONE_MIB {
            return Err(LoadError::OutOfReach(at));
        }
        let mut layout = Layout::new(ram);
        layout.file("The image", at, &self.kernel, 0..self.kernel.len(), self.kernel.len() as u64)?;
        if mode == Mode::Protected {
            layout.fixed("The GDT", layout::GDT, layout::gdt(false))?;
        }
        Ok(Placed { pieces: layout.pieces(), entry: Entry::at(mode, at) })
    }

    fn place_multiboot(&self, ram: Ram, header: &Multiboot) -> Result<Placed, LoadError> {
        self.check_cmdline(layout::CMDLINE_MAX)?;
        let mut layout = Layout::new(ram);
        header.place(&self.kernel, &mut layout)?;
        let initrd = self.initrd.iter().map(|initrd| (initrd, ""));
        let modules = self.modules.iter().map(|module| (&module.file, module.cmdline.as_str()));
        let placed = initrd.chain(modules).map(|(file, cmdline)| {
            let range = layout.top("A module", file, u32::MAX.into())?;
            Ok(multiboot::Placed { range, cmdline })
        });
        let placed = placed.collect::<Result<Vec<_>, LoadError>>()?;
        let info = header.info(layout::MULTIBOOT, ram, &self.cmdline, &placed);
        layout.fixed("The boot information", layout::MULTIBOOT, info)?;
        layout.fixed("The GDT", layout::GDT, layout::gdt(false))?;
        let entry = Entry::at(Mode::Protected, header.entry);
        let entry = Entry { rax: header.magic(), rbx: layout::MULTIBOOT, ..entry };
        Ok(Placed { pieces: layout.pieces(), entry })
    }

    fn place_linux(&self, ram: Ram, format: &Format, protocol: Protocol) -> Result<Placed, LoadError> {
        let mut layout = Layout::new(ram);
        let (cmdline_max, initrd_max) = match &format {
            Format::BzImage(image) => (image.cmdline_max, image.initrd_max),
            Format::Elf(_) => (layout::CMDLINE_MAX, u64::from(u32::MAX)),
        };
        self.check_cmdline(cmdline_max.min(layout::CMDLINE_MAX))?;
        let load = match &format {
            Format::BzImage(image) => image.place(&self.kernel, &mut layout)?,
            Format::Elf(program) => program.place(&self.kernel, &mut layout)?,
        };
        let rip = format.entry(protocol).expect("it was asked for above") + load;
        let initrd = self.initrd.as_ref().filter(|initrd| !initrd.is_empty());
        let initrd = initrd.map(|initrd| layout.top("The initial RAM disk", initrd, initrd_max)).transpose()?;
        layout.fixed("The command line", layout::CMDLINE, [self.cmdline.as_bytes(), &[0]].concat())?;
        layout.fixed("The GDT", layout::GDT, layout::gdt(protocol == Protocol::Linux64))?;
        let mut entry = Entry::at(Mode::Protected, rip);
        if protocol == Protocol::Pvh {
            layout.fixed("The start info", layout::START_INFO, pvh::start_info(ram, initrd))?;
            entry.rbx = layout::START_INFO;
        } else {
            let header = match &format {
                Format::BzImage(image) => image.setup_header(&self.kernel),
                Format::Elf(_) => &[],
            };
            layout.fixed("The zero page", layout::ZERO_PAGE, linux::zero_page(header, ram, initrd))?;
            entry.rsi = layout::ZERO_PAGE;
        }
        if protocol == Protocol::Linux64 {
            layout.fixed("The page tables", layout::PAGE_TABLES, layout::page_tables())?;
            entry.mode = Mode::Long;
        }
        Ok(Placed { pieces: layout.pieces(), entry })
    }
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
