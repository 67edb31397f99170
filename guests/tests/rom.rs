//! What must be true of every ROM, whatever runs it.

#[path = "../build/rom.rs"]
mod rom;

use guests::Guest;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, FlowControl, Mnemonic};
use std::path::{Path, PathBuf};

/// Builds all guests again, from a copy of the sources in another place, and without any warning.
fn rebuild() -> (Vec<rom::Program>, Vec<rom::Kernel>) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = place.path().join("elsewhere/guests/freestanding");
    copy(&manifest.join("freestanding"), &sources);
    // The runtime compiles this file of the crate vmm, by its path.
    let port = "vmm/src/trace/report_port.rs";
    let copied_port = place.path().join("elsewhere").join(port);
    std::fs::create_dir_all(copied_port.parent().expect("it is in a directory")).expect("a directory");
    std::fs::copy(manifest.join("..").join(port), copied_port).expect("the report port's constants");
    let toolchain = rom::Toolchain {
        rustc: PathBuf::from(env!("GUESTS_RUSTC")),
        host: env!("GUESTS_HOST").to_owned(),
        lints: "-Dwarnings",
    };
    toolchain.build(&sources, place.path()).unwrap_or_else(|message| panic!("{message}"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("the sources") {
        let entry = entry.expect("an entry of the sources");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a source file");
        }
    }
}

#[test]
fn every_guest_is_built_and_known() {
    assert_eq!(Guest::ALL.map(Guest::name), rom::GUESTS);
    for guest in Guest::ALL {
        let text = [b"spinup guest ".as_slice(), guest.name().as_bytes()];
        assert!(contains(guest.rom(), text[0]) && contains(guest.rom(), text[1]), "{guest} does not say its name");
    }
}

#[test]
fn the_size_suits_every_frontend() {
    for guest in Guest::ALL {
        let len = guest.rom().len();
        assert!(len.is_multiple_of(4096) && len <= 0x1_0000, "{guest}: {len} bytes");
    }
}

#[test]
fn the_reset_vector_jumps_to_code_in_the_real_mode_window() {
    for guest in Guest::ALL {
        let rom = guest.rom();
        let mut decoder = Decoder::with_ip(16, &rom[rom.len() - 16..], 0xfff0, DecoderOptions::NONE);
        let jump = decoder.decode();
        assert_eq!(jump.flow_control(), FlowControl::UnconditionalBranch, "{guest}");
        let target = usize::try_from(jump.near_branch_target()).expect("16 bits");
        assert!(target >= 0x1_0000 - rom.len(), "{guest}: {target:#x} is not in the ROM");
        let at = rom.len() - (0x1_0000 - target);
        let first = Decoder::with_ip(16, &rom[at..], target as u64, DecoderOptions::NONE).decode();
        assert_eq!(first.mnemonic(), Mnemonic::Cli, "{guest}: {first}");
    }
}

#[test]
fn the_same_source_gives_the_same_bytes_wherever_it_is() {
    let (programs, kernels) = rebuild();
    for (guest, again) in Guest::ALL.into_iter().zip(programs) {
        assert!(guest.rom() == again.rom, "{guest} differs when built again");
    }
    assert_eq!(rom::KERNELS, ["multiboot-test"]);
    for kernel in kernels {
        assert!(guests::Kernel::MultibootTest.file() == kernel.elf, "the kernel differs when built again");
        assert!(guests::Kernel::MultibootTestAout.file() == kernel.aout, "the flat kernel differs when built again");
    }
}

/// The software processor has the general-purpose instructions only.
#[test]
fn only_general_purpose_instructions_are_in_the_code() {
    use CpuidFeature::*;
    let general = [INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64, MSR, PAUSE, CPUID, CMOV, MULTIBYTENOP];
    for (guest, program) in Guest::ALL.into_iter().zip(rebuild().0) {
        let code = &program.rom[program.code.clone()];
        assert!(code.len() > 0x400, "{guest}: no code found");
        for instruction in Decoder::new(64, code, DecoderOptions::NONE) {
            let at = program.code.start as u64 + instruction.ip();
            assert!(!instruction.is_invalid(), "{guest}: no instruction at {at:#x} in the ROM");
            // The fences came with SSE2, but work on no register of it.
            if matches!(instruction.mnemonic(), Mnemonic::Mfence | Mnemonic::Lfence) {
                continue;
            }
            for feature in instruction.cpuid_features() {
                assert!(general.contains(feature), "{guest}: {instruction} ({feature:?}) at {at:#x} in the ROM");
            }
        }
    }
}

/// A panic brings its message and the path of its source along.
#[test]
fn nothing_that_can_panic_is_linked_in() {
    for guest in Guest::ALL {
        for text in [".rs", "panicked", "index out of bounds", "unwrap"] {
            assert!(!contains(guest.rom(), text.as_bytes()), "{guest} contains {text:?}");
        }
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
