//! A program for INIT and STARTUP that is not known when the guest is built: the harness writes it into the ROM.

#[path = "program_word.rs"]
mod program_word;

pub use program_word::*;

#[repr(C, align(4))]
struct List {
    mark: [u8; 16],
    words: [u32; WORDS],
}

/// The list; INIT and STARTUP to the first AP unless somebody has put something else in their place.
static LIST: List = List {
    mark: MARK,
    words: {
        let mut words = [0; WORDS];
        words[0] = INIT as u32 | 1 << 16;
        words[1] = STARTUP as u32 | 0x08 << 8 | 1 << 16;
        words
    },
};

/// One operation.
#[derive(Clone, Copy)]
pub struct Operation {
    /// Which.
    pub code: u8,
    /// The vector of a STARTUP.
    pub vector: u32,
    /// The number of an AP, from 1.
    pub ap: u32,
}

/// The operations, in their order.
pub fn operations() -> impl Iterator<Item = Operation> {
    let list = &raw const LIST;
    // SAFETY: the list is a static. It is read as it is in memory, which is not as the compiler saw it.
    let word = move |at: usize| unsafe { (&raw const (*list).words).cast::<u32>().add(at).read_volatile() };
    // SAFETY: as above; so the mark is kept.
    let marked = unsafe { (&raw const (*list).mark).read_volatile() } == MARK;
    (0..if marked { WORDS } else { 0 })
        .map(word)
        .map(|word| Operation { code: word as u8, vector: word >> 8 & 0xff, ap: word >> 16 })
        .take_while(|operation| operation.code != END)
}
