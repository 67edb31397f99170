//! Builds the guests' boot ROMs into OUT_DIR.

mod init;
mod rom;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=freestanding");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=linux");
    println!("cargo::rerun-if-changed=../vmm/src/trace/report_port.rs");
    let variable = |name| std::env::var(name).expect("cargo sets it for build scripts");
    let out = PathBuf::from(variable("OUT_DIR"));
    let toolchain =
        rom::Toolchain { rustc: variable("RUSTC").into(), host: variable("HOST"), lints: "--cap-lints=allow" };
    // For the test that builds a second time.
    println!("cargo::rustc-env=GUESTS_RUSTC={}", toolchain.rustc.display());
    println!("cargo::rustc-env=GUESTS_HOST={}", toolchain.host);
    let guests = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let built = toolchain.build(&guests.join("freestanding"), &out).and_then(|(programs, kernels)| {
        let write =
            |file: String, bytes: &[u8]| std::fs::write(out.join(file), bytes).expect("OUT_DIR can be written to");
        for (guest, program) in rom::GUESTS.iter().zip(programs) {
            write(format!("{guest}.rom"), &program.rom);
        }
        for (name, kernel) in rom::KERNELS.iter().zip(kernels) {
            write(format!("{name}.elf"), &kernel.elf);
            write(format!("{name}.aout"), &kernel.aout);
        }
        init::build(&toolchain, &guests.join("linux"), &out.join("linux-init"))
    });
    for line in built.err().iter().flat_map(|message| message.lines()) {
        println!("cargo::error={line}");
    }
}
