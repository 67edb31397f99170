//! Builds a guest: the freestanding sources with the toolchain at hand, then a boot ROM of the linked program.
//!
//! The build script uses this, and so does the test that builds a second time and compares.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests, by the names of their sources in freestanding/guests.
pub(crate) const GUESTS: [&str; 25] = [
    "mp-spec",
    "linux",
    "linux-parallel",
    "xv6-order",
    "many",
    "broadcast",
    "broadcast-ff",
    "logical",
    "ap-starts-ap",
    "ap-restart",
    "sipi-vector-change",
    "double-sipi",
    "sipi-first",
    "init-only",
    "deassert-only",
    "self-init",
    "fixed-while-waiting",
    "nmi-while-waiting",
    "bar-remap",
    "program",
    "ending",
    "random-io",
    "triple-fault",
    "spin-forever",
    "jump-into-mmio",
];

/// The kernels for Multiboot loaders, by the names of their sources in freestanding/kernels.
pub(crate) const KERNELS: [&str; 1] = ["multiboot-test"];

/// Size of a ROM in bytes: the window of 64 KiB that real mode sees at the reset vector.
pub(crate) const ROM_SIZE: usize = 0x1_0000;

/// What a ROM has where nothing is.
const ERASED: u8 = 0xff;

/// What compiles the guests.
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// Its own platform.
    pub(crate) host: String,
    /// What it does about lints, as an argument. Cargo sees nothing of what it says.
    pub(crate) lints: &'static str,
}

impl Toolchain {
    /// The guests are x86-64 programs without an operating system. A Linux host's own target will do for that (with the
    /// linker that comes with the compiler); other hosts need the bare one.
    fn target(&self) -> &str {
        if self.host.starts_with("x86_64-") && self.host.contains("-linux-") {
            &self.host
        } else {
            "x86_64-unknown-none"
        }
    }

    pub(crate) fn command(&self, sources: &Path) -> Command {
        let mut command = Command::new(&self.rustc);
        command
            .args(["--edition=2024", "--target", self.target(), self.lints, "--remap-path-prefix"])
            .arg(format!("{}=guests/freestanding", sources.display()))
            .args(["-Cpanic=abort", "-Copt-level=s", "-Ccodegen-units=1", "-Cdebuginfo=0", "-Coverflow-checks=no"])
            .args(["-Crelocation-model=static", "-Cno-redzone=yes", "-Cforce-unwind-tables=no"])
            // The software processor has integer instructions only, and they would need CR4.OSFXSR besides.
            .args(["-Cno-vectorize-loops", "-Cno-vectorize-slp"]);
        command
    }

    /// Compiles all guests from `sources` (the directory freestanding), and makes their ROMs, in the order of [`GUESTS`], and the
    /// kernels in the order of [`KERNELS`]. `scratch` is a directory for what comes in between.
    ///
    /// # Errors
    /// What the compiler said, or what is wrong with a program.
    pub(crate) fn build(&self, sources: &Path, scratch: &Path) -> Result<(Vec<Program>, Vec<Kernel>), String> {
        let runtime = scratch.join("libruntime.rlib");
        run(self
            .command(sources)
            .args(["--crate-type=rlib", "--crate-name=runtime", "-o"])
            .arg(&runtime)
            .arg(sources.join("runtime/lib.rs")))?;
        let link = |directory: &str, script: &str, name: &str| {
            let source = sources.join(directory).join(format!("{name}.rs"));
            self.link(sources, &source, script, &runtime, &scratch.join(name))
        };
        let guests = GUESTS.iter().map(|guest| {
            let elf = link("guests", "runtime/link.ld", guest)?;
            Program::from_elf(&elf).ok_or_else(|| format!("{guest} is not an ELF program that fits its ROM"))
        });
        let kernels = KERNELS.iter().map(|kernel| {
            let elf = link("kernels", "runtime/kernel.ld", kernel)?;
            Kernel::from_elf(elf).ok_or_else(|| format!("{kernel} is not an ELF program with a Multiboot header"))
        });
        Ok((guests.collect::<Result<_, _>>()?, kernels.collect::<Result<_, _>>()?))
    }

    fn link(
        &self,
        sources: &Path,
        source: &Path,
        script: &str,
        runtime: &Path,
        program: &Path,
    ) -> Result<Vec<u8>, String> {
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        run(self
            .command(sources)
            .args(["--crate-type=bin", "--crate-name", &name.replace('-', "_"), "-Cstrip=symbols", "-o"])
            .arg(program)
            .arg(format!("--extern=runtime={}", runtime.display()))
            .args(["-Clinker=rust-lld", "-Clinker-flavor=ld.lld", "-Clink-arg=--build-id=none"])
            .arg(format!("-Clink-arg=--defsym=ROM_SIZE={ROM_SIZE:#x}"))
            .arg(format!("-Clink-arg=-T{}", sources.join(script).display()))
            .arg(source))?;
        std::fs::read(program).map_err(|error| format!("{}: {error}", program.display()))
    }
}

pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{said}\nbuilding a guest (with rustc, and the rust-lld that rustup installs with it) failed: {command:?}"
    ))
}

/// What came of a guest's sources.
pub(crate) struct Program {
    /// The boot ROM, which ends at 4 GiB.
    pub(crate) rom: Vec<u8>,
    /// Where in the ROM its 64-bit code lies.
    pub(crate) code: Range<usize>,
}

impl Program {
    /// Puts the segments of a linked program where their physical addresses are in the ROM.
    fn from_elf(elf: &[u8]) -> Option<Program> {
        const PT_LOAD: u32 = 1;
        const PF_X: u32 = 1;
        const PHDR_SIZE: usize = 56;
        let rom_base = (1u64 << 32) - ROM_SIZE as u64;
        let mut program = Program { rom: vec![ERASED; ROM_SIZE], code: 0..0 };
        let headers = elf.get(usize::try_from(u64_at(elf, 32)?).ok()?..)?;
        for header in headers.chunks_exact(PHDR_SIZE).take(u16_at(elf, 56)?.into()) {
            // Elf64_Phdr: p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
            if u32_at(header, 0)? != PT_LOAD {
                continue;
            }
            let from = usize::try_from(u64_at(header, 8)?).ok()?;
            let to = usize::try_from(u64_at(header, 24)?.checked_sub(rom_base)?).ok()?;
            let len = usize::try_from(u64_at(header, 32)?).ok()?;
            program.rom.get_mut(to..to + len)?.copy_from_slice(elf.get(from..from + len)?);
            if u32_at(header, 4)? & PF_X != 0 {
                program.code = to..to + len;
            }
        }
        (!program.code.is_empty()).then_some(program)
    }
}

/// A kernel for Multiboot loaders, in two forms.
pub(crate) struct Kernel {
    /// An ELF program, whose header says nothing of addresses.
    pub(crate) elf: Vec<u8>,
    /// The bytes from where they are loaded on, with a header that says where everything goes (the "a.out kludge").
    pub(crate) aout: Vec<u8>,
}

impl Kernel {
    fn from_elf(elf: Vec<u8>) -> Option<Kernel> {
        const PT_LOAD: u32 = 1;
        const PHDR_SIZE: usize = 56;
        const MAGIC: u32 = 0x1bad_b002;
        const ADDRESSES: u32 = 1 << 16;
        const HEADER_SEARCH: usize = 8192;
        let headers = elf.get(usize::try_from(u64_at(&elf, 32)?).ok()?..)?;
        let headers = headers.chunks_exact(PHDR_SIZE).take(u16_at(&elf, 56)?.into());
        let loads: Vec<&[u8]> = headers.filter(|header| u32_at(header, 0) == Some(PT_LOAD)).collect();
        let field = |header: &[u8], at| u64_at(header, at).and_then(|value| usize::try_from(value).ok());
        let base = loads.iter().filter_map(|load| field(load, 24)).min()?;
        let (mut aout, mut bss_end) = (Vec::new(), base);
        for load in &loads {
            let (from, to, len) = (field(load, 8)?, field(load, 24)? - base, field(load, 32)?);
            aout.resize(aout.len().max(to + len), 0);
            if len != 0 {
                aout[to..to + len].copy_from_slice(elf.get(from..from + len)?);
            }
            bss_end = bss_end.max(field(load, 24)? + field(load, 40)?);
        }
        let at = (0..HEADER_SEARCH).step_by(4).find(|&at| u32_at(&aout, at) == Some(MAGIC))?;
        let flags = u32_at(&aout, at + 4)? | ADDRESSES;
        let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags);
        let entry = field(&elf, 24)?;
        let words = [flags as usize, checksum as usize, base + at, base, base + aout.len(), bss_end, entry];
        for (word, value) in aout.get_mut(at + 4..at + 32)?.chunks_exact_mut(4).zip(words) {
            word.copy_from_slice(&u32::try_from(value).ok()?.to_le_bytes());
        }
        Some(Kernel { elf, aout })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
