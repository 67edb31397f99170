//! bzImage (Linux, Documentation/arch/x86/boot.rst): a setup header in front, then the protected-mode kernel, which
//! decompresses itself.

use super::bytes::{u16_at, u32_at, u64_at};
use super::layout::Layout;
use super::{LoadError, Protocol};
use std::sync::Arc;

/// Offsets of the setup header's fields.
pub(super) mod field {
    pub(in super::super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    /// The operand of a short jump at 200H: the header ends so many bytes behind 202H.
    pub(super) const JUMP: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(in super::super) const TYPE_OF_LOADER: usize = 0x210;
    pub(in super::super) const LOADFLAGS: usize = 0x211;
    pub(in super::super) const RAMDISK_IMAGE: usize = 0x218;
    pub(in super::super) const RAMDISK_SIZE: usize = 0x21c;
    pub(in super::super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// Where a kernel goes that says nothing else.
const ONE_MIB: u64 = 0x10_0000;
/// The 64-bit entry's distance from the first byte.
const ENTRY_64: u64 = 0x200;

/// What a setup header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// Where the protected-mode kernel begins in the file.
    kernel: usize,
    /// Where the setup header ends in the file.
    header_end: usize,
    /// Where it would like to be, if it can be moved there.
    preferred: Option<u64>,
    /// The memory that it needs from where it is loaded on, at least its own length.
    init_size: u64,
    has_64_bit_entry: bool,
    /// The longest command line, without its zero.
    pub(super) cmdline_max: usize,
    /// The last address of the initial RAM disk at most.
    pub(super) initrd_max: u64,
}

impl BzImage {
    /// Reads the setup header; `None` when there is none.
    pub(super) fn parse(file: &[u8]) -> Result<Option<BzImage>, LoadError> {
        const LOADED_HIGH: u8 = 1;
        const XLF_KERNEL_64: u16 = 1;
        if u16_at(file, field::BOOT_FLAG) != Some(0xaa55) || file.get(field::MAGIC..field::MAGIC + 4) != Some(b"HdrS") {
            return Ok(None);
        }
        let cut_off = LoadError::Damaged("its setup header is cut off");
        let (Some(version), Some(&loadflags)) = (u16_at(file, field::VERSION), file.get(field::LOADFLAGS)) else {
            return Err(cut_off);
        };
        if version < 0x202 || loadflags & LOADED_HIGH == 0 {
            return Err(LoadError::Damaged("it is older than protocol 2.02, or a zImage, which loads below 1 MiB"));
        }
        // 0 means 4 (boot.rst, setup_sects).
        let sectors = match file[field::SETUP_SECTS] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let kernel = (sectors + 1) * 512;
        if file.len() <= kernel {
            return Err(LoadError::Damaged("it ends before its protected-mode kernel"));
        }
        let header_end = field::MAGIC + usize::from(file[field::JUMP]);
        // Fields of later versions are missing from earlier headers.
        let since = |minimum: u16| version >= minimum;
        let long = |at| u32_at(file, at).ok_or(cut_off.clone());
        let relocatable = since(0x205) && file[field::RELOCATABLE] != 0;
        let wide = |at| u64_at(file, at).ok_or(cut_off.clone());
        let len = (file.len() - kernel) as u64;
        Ok(Some(BzImage {
            kernel,
            header_end,
            preferred: match (relocatable, since(0x20a)) {
                (true, true) => Some(wide(field::PREF_ADDRESS)?),
                (true, false) => Some(ONE_MIB.next_multiple_of(u64::from(long(field::KERNEL_ALIGNMENT)?).max(1))),
                (false, _) => None,
            },
            init_size: if since(0x20a) { u64::from(long(field::INIT_SIZE)?).max(len) } else { len },
            has_64_bit_entry: since(0x20c) && u16_at(file, field::XLOADFLAGS).unwrap_or(0) & XLF_KERNEL_64 != 0,
            cmdline_max: if since(0x206) { long(field::CMDLINE_SIZE)? as usize } else { 255 },
            initrd_max: if since(0x203) { long(field::INITRD_ADDR_MAX)?.into() } else { 0x37ff_ffff },
        }))
    }

    /// Where the protocol enters it, from where it is loaded.
    pub(super) fn entry(&self, protocol: Protocol) -> Option<u64> {
        match protocol {
            Protocol::Linux64 => self.has_64_bit_entry.then_some(ENTRY_64),
            Protocol::Linux32 => Some(0),
            _ => None,
        }
    }

    /// Puts the protected-mode kernel into memory, and returns where.
    pub(super) fn place(&self, file: &Arc<[u8]>, layout: &mut Layout) -> Result<u64, LoadError> {
        let at = self.preferred.unwrap_or(ONE_MIB).max(ONE_MIB);
        layout.file("The kernel", at, file, self.kernel..file.len(), self.init_size)?;
        Ok(at)
    }

    /// The part of the file that goes into the zero page, from [`field::SETUP_SECTS`] on.
    pub(super) fn setup_header<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        &file[field::SETUP_SECTS..self.header_end.min(file.len())]
    }
}
