// The words of the guest `program`: what the harness writes into its ROM. This file is plain constants, so that the crate
// `guests` and the freestanding guest compile the very same lines.
//
// A word: bits 7:0 an operation below, bits 15:8 the vector of a STARTUP, bits 31:16 the number of an AP, from 1 in the
// firmware's order. The list ends with a word that is 0.

/// What stands before the list, in the ROM once.
pub const MARK: [u8; 16] = *b"spinup: program:";
/// How many words there are, the last of them 0.
pub const WORDS: usize = 64;

/// Ends the list.
pub const END: u8 = 0;
/// INIT to an AP: level assert, level de-assert.
pub const INIT: u8 = 1;
/// INIT level assert to an AP.
pub const ASSERT: u8 = 2;
/// INIT level de-assert to an AP.
pub const DEASSERT: u8 = 3;
/// STARTUP with a vector to an AP.
pub const STARTUP: u8 = 4;
/// A fixed interrupt to an AP.
pub const FIXED: u8 = 5;
/// An NMI to an AP.
pub const NMI: u8 = 6;
/// INIT to all but the sender: level assert, level de-assert.
pub const INIT_OTHERS: u8 = 7;
/// STARTUP with a vector to all but the sender.
pub const STARTUP_OTHERS: u8 = 8;
/// Nothing for 3 ms.
pub const WAIT: u8 = 9;
