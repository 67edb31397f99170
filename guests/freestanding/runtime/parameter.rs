// What the harness writes into the ROMs of guests that take parameters. This file is plain constants, so that the crate `guests`
// and the freestanding guests compile the very same lines.

/// What stands before the parameters, in the ROM once.
pub const MARK: [u8; 16] = *b"spinup: numbers:";
/// How many numbers there are.
pub const NUMBERS: usize = 4;

/// `random-io`: where the seed of its random numbers is.
pub const SEED: usize = 0;
/// `random-io`: where it says how many accesses all CPUs together make.
pub const ACCESSES: usize = 1;
/// `random-io`: where it says whether it spares what ends the machine (0) or nothing (1).
pub const WILD: usize = 2;

/// `ending`: where the way is.
pub const WAY: usize = 0;
/// `ending`: soft off by PM1a control.
pub const OFF: u32 = 0;
/// `ending`: reset by the reset control register, CF9H.
pub const CF9: u32 = 1;
/// `ending`: reset by the keyboard controller, FEH to port 64H.
pub const I8042: u32 = 2;
/// `ending`: a triple fault of the BSP.
pub const TRIPLE_FAULT: u32 = 3;
/// `ending`: every CPU halts with interrupts off.
pub const HALT: u32 = 4;
