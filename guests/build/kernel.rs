//! Builds the Multiboot test kernel: the bare-metal guests' runtime, with an entry of its own instead of the reset vector.

use crate::rom::{RUNTIME, Toolchain, run};
use std::path::Path;

/// The kernel's name in `scratch` after [`build`].
const KERNEL: &str = "multiboot-test";

/// Compiles the kernel from `sources` (the directory freestanding), after [`Toolchain::build`] has put the runtime into `scratch`.
///
/// # Errors
/// What the compiler said.
pub(crate) fn build(toolchain: &Toolchain, sources: &Path, scratch: &Path) -> Result<(), String> {
    let kernel = sources.join("multiboot");
    run(toolchain
        .command(sources)
        .args(["--crate-type=bin", "--crate-name=multiboot_test", "-Cstrip=symbols", "-o"])
        .arg(scratch.join(KERNEL))
        .arg(format!("--extern=runtime={}", scratch.join(RUNTIME).display()))
        .args(["-Clinker=rust-lld", "-Clinker-flavor=ld.lld", "-Clink-arg=--build-id=none"])
        .arg(format!("-Clink-arg=-T{}", kernel.join("link.ld").display()))
        .arg(kernel.join("main.rs")))
}
