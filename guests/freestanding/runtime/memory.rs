//! Physical memory that no Rust object owns: what firmware and loaders leave there, and real mode's first 64 KiB.

use core::arch::asm;

/// Reads a value of plain data at a physical address below 4 GiB, which is mapped to itself. Alignment does not matter.
pub fn read<T: Plain>(address: u32) -> T {
    // SAFETY: all of it is mapped, any bits make a `T`, and nobody writes to what firmware and loaders leave.
    unsafe { (address as usize as *const T).read_unaligned() }
}

/// Reads 16 bits, at an even physical address, that CPUs in real mode write.
pub(crate) fn read_shared(address: u32) -> u16 {
    // SAFETY: it is mapped and aligned.
    unsafe { (address as usize as *const u16).read_volatile() }
}

/// Whether the `len` bytes at `address` add up to 0, as every table of the firmware does.
pub(crate) fn sums_to_zero(address: u32, len: u32) -> bool {
    (address..address.saturating_add(len)).fold(0u8, |sum, at| sum.wrapping_add(read(at))) == 0
}

/// Fills the page at `address` with a byte.
///
/// # Safety
/// No Rust object lives there.
pub(crate) unsafe fn fill_page(address: u32, byte: u8) {
    // SAFETY: all memory is mapped writable; the rest is the caller's promise.
    unsafe {
        asm!("rep stosq", inout("rdi") u64::from(address) => _, inout("rcx") 4096u64 / 8 => _,
            in("rax") u64::from_ne_bytes([byte; 8]), options(nostack, preserves_flags));
    }
}

/// Copies `len` bytes from one address to another.
///
/// # Safety
/// No Rust object lives at `to`.
pub(crate) unsafe fn copy(from: u32, to: u32, len: u32) {
    // SAFETY: as in `fill_page`.
    unsafe {
        asm!("rep movsb", inout("rsi") u64::from(from) => _, inout("rdi") u64::from(to) => _,
            inout("rcx") u64::from(len) => _, options(nostack, preserves_flags));
    }
}

/// Any bits are a value.
///
/// # Safety
/// They must be.
pub unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
