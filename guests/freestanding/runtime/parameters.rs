//! Numbers that are not known when the guest is built: the harness writes them into the ROM.

#[path = "parameter.rs"]
#[allow(dead_code, reason = "the constants are shared; no guest uses all of them")]
mod parameter;

pub use parameter::*;

/// A guest's parameters, as a static of the guest.
#[repr(C, align(4))]
pub struct Parameters {
    mark: [u8; 16],
    numbers: [u32; NUMBERS],
}

impl Parameters {
    /// Parameters that have these values unless somebody has put others in their place.
    #[must_use]
    pub const fn new(numbers: [u32; NUMBERS]) -> Parameters {
        Parameters { mark: MARK, numbers }
    }

    /// One of the numbers, as it is in memory, which is not as the compiler saw it.
    #[must_use]
    pub fn read(&'static self, at: usize) -> u32 {
        let this = &raw const *self;
        // SAFETY: a static; reading the mark keeps it in the ROM.
        let marked = unsafe { (&raw const (*this).mark).cast::<u32>().read_volatile() } == FIRST_OF_MARK;
        let number = self.numbers.get(at).map(|number| {
            // SAFETY: a static's.
            unsafe { (&raw const *number).read_volatile() }
        });
        number.filter(|_| marked).unwrap_or_default()
    }
}

/// The mark's first four bytes: a comparison of all 16 is no integer instruction.
const FIRST_OF_MARK: u32 = u32::from_le_bytes([MARK[0], MARK[1], MARK[2], MARK[3]]);
