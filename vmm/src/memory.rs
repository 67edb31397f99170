//! Guest memory: segments of host memory that the kernel allocates, the engine maps into the guest's physical address
//! space, and the frontend maps into its own.
#![allow(
    unsafe_code,
    reason = "guest memory is shared with running guest code, so it is accessed through raw pointers"
)]

use memmap2::MmapRaw;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of a page of guest memory, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// One memory segment (`struct mem_seg`): zeroed, page aligned, shared by kernel, engine and frontend.
pub struct Segment {
    map: MmapRaw,
    /// Counts writes from the host side, so that the software processor knows when decoded code may be stale.
    generation: AtomicU64,
}

impl Segment {
    /// Allocates a zeroed segment of `len` bytes. The host lends a page when it is first written, and reserves nothing.
    ///
    /// # Errors
    /// What the operating system says when it has no memory, or when `len` is 0.
    pub fn new(len: usize) -> std::io::Result<Segment> {
        let map = memmap2::MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
        Ok(Segment { map: map.into(), generation: AtomicU64::new(0) })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the segment has no bytes (never the case for one that was allocated).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first byte of the segment. For engines, which map it: everyone else reads and writes through the methods.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// How often the host side has written to the segment. Writes of the guest do not count.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Copies bytes out of the segment; `false` and nothing copied when the range leaves the segment.
    #[must_use]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(start) = self.range(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: `range` proved that the bytes lie inside the mapping, which lives as long as `self`. The guest may write
        // at the same time; the bytes are plain data, and a torn copy is what real hardware gives too.
        unsafe { std::ptr::copy_nonoverlapping(start.cast_const(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes into the segment; `false` and nothing copied when the range leaves the segment.
    #[must_use]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(start) = self.range(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        self.generation.fetch_add(1, Ordering::AcqRel);
        true
    }

    fn range(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        // SAFETY: `offset` is at most `end`, which is at most the length of the mapping.
        (end <= self.len()).then(|| unsafe { self.as_ptr().add(offset) })
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({:#x} bytes)", self.len())
    }
}

/// What the guest may do with a mapping (`PROT_READ`, `PROT_WRITE`, `PROT_EXEC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// The guest may write; a write to a mapping without it leaves the engine as an MMIO write.
    pub write: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_stays_inside() {
        let segment = Segment::new(8192).expect("memory");
        assert!(segment.write(4094, &[1, 2, 3, 4]));
        let mut bytes = [0; 4];
        assert!(segment.read(4094, &mut bytes));
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(segment.generation(), 1);
        assert!(!segment.write(8190, &[0; 3]));
        assert!(!segment.read(u64::MAX, &mut bytes));
        assert_eq!(segment.generation(), 1);
    }
}
