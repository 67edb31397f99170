//! Builds the init of Linux guests: a static program, with the toolchain that builds the bare-metal guests.

use crate::rom::{Toolchain, run};
use std::path::Path;

/// Compiles `sources` (the directory linux) to `program`.
///
/// # Errors
/// What the compiler said.
pub(crate) fn build(toolchain: &Toolchain, sources: &Path, program: &Path) -> Result<(), String> {
    run(toolchain
        .command(sources)
        .args(["--crate-type=bin", "--crate-name=init", "-Cstrip=symbols", "-o"])
        .arg(program)
        .args(["-Clinker=rust-lld", "-Clinker-flavor=ld.lld", "-Clink-arg=--build-id=none"])
        .arg(format!("-Clink-arg=-T{}", sources.join("link.ld").display()))
        .arg(sources.join("init.rs")))
}
