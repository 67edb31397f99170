//! The command line of spinup.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(spinup::cli::main())
}
