//! Builds the guests' boot ROMs into OUT_DIR.

mod rom;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=freestanding");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=../vmm/src/trace/report_port.rs");
    let variable = |name| std::env::var(name).expect("cargo sets it for build scripts");
    let out = PathBuf::from(variable("OUT_DIR"));
    let toolchain =
        rom::Toolchain { rustc: variable("RUSTC").into(), host: variable("HOST"), lints: "--cap-lints=allow" };
    // For the test that builds a second time.
    println!("cargo::rustc-env=GUESTS_RUSTC={}", toolchain.rustc.display());
    println!("cargo::rustc-env=GUESTS_HOST={}", toolchain.host);
    let sources = Path::new(&variable("CARGO_MANIFEST_DIR")).join("freestanding");
    match toolchain.build(&sources, &out) {
        Ok(programs) => {
            for (guest, program) in rom::GUESTS.iter().zip(programs) {
                std::fs::write(out.join(format!("{guest}.rom")), program.rom).expect("OUT_DIR can be written to");
            }
        }
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}
