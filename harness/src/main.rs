//! The command line of spinup.

use std::process::ExitCode;

/// Exit status of a fault of our own, which a panic outside any cell is: no thread to be had, no memory for a stack.
const OUR_FAULT: u8 = 3;

fn main() -> ExitCode {
    ExitCode::from(std::panic::catch_unwind(spinup::cli::main).unwrap_or(OUR_FAULT))
}
