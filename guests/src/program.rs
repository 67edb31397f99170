//! Programs for the guest `program`: short lists of operations on APs, written as a suffix of its name.
//!
//! `program+i1.s1=8.w.S=9` is INIT to the first AP, STARTUP 08H to it, 3 ms of nothing, STARTUP 09H to all but the sender:
//!
//! | word | operation |
//! |---|---|
//! | `i1` | INIT to AP 1, level assert and level de-assert |
//! | `a1` | INIT level assert to AP 1 |
//! | `d1` | INIT level de-assert to AP 1 |
//! | `s1=8` | STARTUP to AP 1, vector 08H or 09H |
//! | `f1` | a fixed interrupt to AP 1 |
//! | `n1` | an NMI to AP 1 |
//! | `I` | INIT to all but the sender |
//! | `S=8` | STARTUP to all but the sender |
//! | `w` | nothing for 3 ms |

use crate::Guest;
use std::fmt;
use std::str::FromStr;

/// The words of a program as they stand in the ROM.
#[path = "../freestanding/runtime/program_word.rs"]
pub mod program_word;

use program_word::{MARK, WORDS};

/// What stands between the guest's name and a program.
const SIGN: char = '+';

/// The vectors that a STARTUP of a program may have: the pages that the guest expects APs at.
pub const VECTORS: [u8; 2] = [8, 9];

/// One operation of a program. APs count from 1, in the firmware's order; one that there is not is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// INIT, level assert and level de-assert.
    Init(u16),
    /// INIT level assert.
    Assert(u16),
    /// INIT level de-assert.
    Deassert(u16),
    /// STARTUP with a vector.
    Startup(u16, u8),
    /// A fixed interrupt.
    Fixed(u16),
    /// An NMI.
    Nmi(u16),
    /// INIT to all but the sender.
    InitOthers,
    /// STARTUP with a vector to all but the sender.
    StartupOthers(u8),
    /// Nothing for 3 ms.
    Wait,
}

impl Operation {
    fn word(self) -> u32 {
        let (code, vector, ap) = match self {
            Operation::Init(ap) => (program_word::INIT, 0, ap),
            Operation::Assert(ap) => (program_word::ASSERT, 0, ap),
            Operation::Deassert(ap) => (program_word::DEASSERT, 0, ap),
            Operation::Startup(ap, vector) => (program_word::STARTUP, vector, ap),
            Operation::Fixed(ap) => (program_word::FIXED, 0, ap),
            Operation::Nmi(ap) => (program_word::NMI, 0, ap),
            Operation::InitOthers => (program_word::INIT_OTHERS, 0, 0),
            Operation::StartupOthers(vector) => (program_word::STARTUP_OTHERS, vector, 0),
            Operation::Wait => (program_word::WAIT, 0, 0),
        };
        u32::from(code) | u32::from(vector) << 8 | u32::from(ap) << 16
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Init(ap) => write!(f, "i{ap}"),
            Operation::Assert(ap) => write!(f, "a{ap}"),
            Operation::Deassert(ap) => write!(f, "d{ap}"),
            Operation::Startup(ap, vector) => write!(f, "s{ap}={vector}"),
            Operation::Fixed(ap) => write!(f, "f{ap}"),
            Operation::Nmi(ap) => write!(f, "n{ap}"),
            Operation::InitOthers => f.write_str("I"),
            Operation::StartupOthers(vector) => write!(f, "S={vector}"),
            Operation::Wait => f.write_str("w"),
        }
    }
}

/// Why a text is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// A word is no operation.
    #[error(
        "`{0}` is no operation of a program: i1 a1 d1 s1=8 f1 n1 I S=8 w, with an AP from 1 on and a vector of 8 or 9"
    )]
    Operation(String),
    /// There are more operations than there is room for.
    #[error("a program has at most {most} operations, not {0}", most = WORDS - 1)]
    Length(usize),
}

impl FromStr for Operation {
    type Err = ProgramError;

    fn from_str(text: &str) -> Result<Operation, ProgramError> {
        let error = || ProgramError::Operation(text.to_owned());
        let number = |digits: &str| digits.parse().ok().filter(|&ap: &u16| ap > 0).ok_or_else(error);
        let vector = |digits: &str| digits.parse().ok().filter(|vector| VECTORS.contains(vector)).ok_or_else(error);
        let (kind, rest) = text.split_at_checked(1).ok_or_else(error)?;
        let operation = match (kind, rest.split_once('=')) {
            ("s", Some((ap, at))) => Operation::Startup(number(ap)?, vector(at)?),
            ("S", Some(("", at))) => Operation::StartupOthers(vector(at)?),
            ("i", None) => Operation::Init(number(rest)?),
            ("a", None) => Operation::Assert(number(rest)?),
            ("d", None) => Operation::Deassert(number(rest)?),
            ("f", None) => Operation::Fixed(number(rest)?),
            ("n", None) => Operation::Nmi(number(rest)?),
            ("I", None) if rest.is_empty() => Operation::InitOthers,
            ("w", None) if rest.is_empty() => Operation::Wait,
            _ => return Err(error()),
        };
        // One text for each operation: no leading zeros, no signs.
        if operation.to_string() == text { Ok(operation) } else { Err(error()) }
    }
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program(Vec<Operation>);

impl Program {
    /// A program of these operations.
    ///
    /// # Errors
    /// [`ProgramError::Length`], when there are too many.
    pub fn new(operations: Vec<Operation>) -> Result<Program, ProgramError> {
        if operations.len() < WORDS { Ok(Program(operations)) } else { Err(ProgramError::Length(operations.len())) }
    }

    /// The operations.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.0
    }

    /// The guest's name in cells, with the program.
    #[must_use]
    pub fn guest(&self) -> String {
        format!("{}{SIGN}{self}", Guest::Program)
    }

    /// The program in a guest's name; `None` when the name is not that of the guest `program` with one.
    #[must_use]
    pub fn of_guest(name: &str) -> Option<Result<Program, ProgramError>> {
        name.strip_prefix(Guest::Program.name())?.strip_prefix(SIGN).map(str::parse)
    }

    /// The guest's boot ROM with the program in it.
    #[must_use]
    pub fn rom(&self) -> Vec<u8> {
        let mut rom = Guest::Program.rom().to_vec();
        let mark = rom.windows(MARK.len()).position(|bytes| bytes == MARK).expect("a test finds the mark in the ROM");
        let words = &mut rom[mark + MARK.len()..][..4 * WORDS];
        words.fill(0);
        for (word, operation) in words.chunks_exact_mut(4).zip(&self.0) {
            word.copy_from_slice(&operation.word().to_le_bytes());
        }
        rom
    }
}

impl crate::Made for Program {
    fn name(&self) -> String {
        self.guest()
    }

    fn rom(&self) -> Vec<u8> {
        Program::rom(self)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(Operation::to_string).collect();
        f.write_str(&words.join("."))
    }
}

impl FromStr for Program {
    type Err = ProgramError;

    fn from_str(text: &str) -> Result<Program, ProgramError> {
        Program::new(text.split('.').map(str::parse).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_part_of_the_guests_name() {
        let name = "program+i1.a2.d2.s1=8.f1.n1.I.S=9.w";
        let program = Program::of_guest(name).expect("a program").expect("a right one");
        assert_eq!(program.operations().len(), 9);
        assert_eq!(program.guest(), name);
        for none in ["program", "programs+w", "mp-spec+w", ""] {
            assert_eq!(Program::of_guest(none), None, "{none}");
        }
        for wrong in ["", "i", "i0", "i01", "i1=8", "s1", "s1=7", "S8", "I1", "w1", "x", "i1..w", "é"] {
            let error = wrong.parse::<Program>().expect_err(wrong);
            assert!(matches!(error, ProgramError::Operation(_)), "{wrong}");
        }
        assert_eq!(Program::new(vec![Operation::Wait; WORDS]), Err(ProgramError::Length(WORDS)));
    }

    #[test]
    fn the_rom_has_one_place_for_a_program() {
        let rom = Guest::Program.rom();
        assert_eq!(rom.windows(MARK.len()).filter(|bytes| *bytes == MARK).count(), 1);
        let default: Program = "i1.s1=8".parse().expect("a program");
        assert_eq!(default.rom(), rom, "what the ROM has of itself");
        let longest = Program::new(vec![Operation::Nmi(1); WORDS - 1]).expect("it fits").rom();
        let differs: Vec<usize> = (0..rom.len()).filter(|&at| rom[at] != longest[at]).collect();
        assert!(differs.last().zip(differs.first()).is_some_and(|(last, first)| last - first < 4 * WORDS));
    }
}
