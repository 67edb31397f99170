//! Flat images: bytes at an address, entered at the first of them.
//!
//! In real mode the code segment is that of the 64 KiB that the image begins in, 0 for a boot sector at 7C00H; the others are 0, and
//! so is SP: the stack begins at 64 KiB. There is no BIOS: interrupt vectors are 0. In protected mode segments are flat, there is
//! no GDT, and the stack is for the image to set up.

use super::layout::{Layout, Ram};
use super::{Entry, LoadError, Mode, OsImage, Part, Placed, Protocol};

/// Where boot sectors are.
const BOOT_SECTOR: u64 = 0x7c00;
const ONE_MIB: u64 = 0x10_0000;

/// Where everything goes.
pub(super) fn place(image: &OsImage, protocol: Protocol, ram: Ram) -> Result<Placed, LoadError> {
    image.takes(protocol, &[Part::LoadAddress])?;
    if image.kernel.is_empty() {
        return Err(LoadError::Damaged("it is empty"));
    }
    let real = protocol == Protocol::Flat16;
    let at = image.load_at.unwrap_or(if real { BOOT_SECTOR } else { ONE_MIB });
    let len = image.kernel.len() as u64;
    if real && at.saturating_add(len) > ONE_MIB {
        return Err(LoadError::NoRoom("An image that runs in real mode", 1));
    }
    let mut layout = Layout::new(ram);
    layout.file("The image", at, &image.kernel, 0..image.kernel.len(), len)?;
    let entry = Entry::at(if real { Mode::Real } else { Mode::Protected }, at);
    Ok(Placed { pieces: layout.pieces(), entry })
}
