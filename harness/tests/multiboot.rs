//! Kernels by Multiboot and flat images, end to end: the test kernel of `guests/freestanding/multiboot` in every form that a
//! loader takes, and a few bytes at an address.

use guests::multiboot::Own;
use spinup::cell::Cell;
use spinup::matrix::Matrix;
use spinup::outcome::OutcomeKind;
use spinup::run::{CellRun, Engines, Setup, run_cell};
use std::path::Path;
use vmm::trace::{Event, GuestReport, report_port};

const MATRIX: &str = include_str!("../../matrix.toml");

/// Runs a cell, of the built-in matrix with more tables.
fn run(more: &str, cell: &str) -> CellRun {
    let matrix = Matrix::parse("matrix.toml", &format!("{MATRIX}\n{more}")).expect("the tables are right");
    let cell: Cell = cell.parse().expect("a name of a cell");
    matrix.check_cell(&cell).expect("its parts exist");
    run_cell(&Setup { matrix, engines: Engines::new(), seed: 0, timeout: None }, &cell)
}

fn console(run: &CellRun) -> String {
    String::from_utf8_lossy(&run.serial).into_owned()
}

fn outcome(run: &CellRun) -> (OutcomeKind, String) {
    (run.result.outcome.kind, format!("{}\n{}", run.result.outcome.detail, console(run)))
}

#[track_caller]
fn assert_ok(run: &CellRun) {
    let (kind, said) = outcome(run);
    assert_eq!(kind, OutcomeKind::Ok, "{}: {said}", run.result.cell);
}

/// The tests that the guest says it has passed.
fn passed(run: &CellRun) -> Vec<u32> {
    let records = &run.trace.as_ref().expect("the cell ran").trace.records;
    let passed = records.iter().filter_map(|record| match record.event {
        Event::Report(GuestReport::TestPassed { test, .. }) => Some(test),
        _ => None,
    });
    passed.collect()
}

/// A `[[guest]]` with a kernel of the test's own making.
fn guest(kernel: &Path, keys: &str) -> String {
    let limits = "{ soft = { base_ms = 250, per_cpu_ms = 50 }, kvm = { base_ms = 1000, per_cpu_ms = 250 } }";
    let kernel = kernel.display();
    format!(
        "[[guest]]\nname = \"made\"\nabout = \"made by a test\"\nkernel = \"{kernel}\"\nmemory_mib = 16\nlimits = {limits}\n{keys}\n"
    )
}

/// A file in a directory of the test's own.
fn with_file(contents: &[u8], test: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("kernel.bin");
    std::fs::write(&path, contents).expect("it is writable");
    test(&path);
}

#[test]
fn the_kernel_tells_what_it_was_told() {
    for version in [1, 2] {
        let run = run("", &format!("bhyve-13.2@fbsd-13.2/multiboot{version}/xapic-4/soft"));
        assert_ok(&run);
        let console = console(&run);
        for line in [
            &*format!("Multiboot {version}, loaded by spinup"),
            "argument: expect-module=935af6f6",
            "argument: debug-exit=16",
            "\"text of the module\", 97 bytes at ",
            "CRC-32 935af6f6",
            "memory 0 + 9fc00, type 1",
            "memory f0000 + 10000, type 2",
            "memory 100000 + f00000, type 1",
            "4 CPUs in the MADT",
        ] {
            assert!(console.contains(line), "no {line:?} in {console}");
        }
        let tests = [report_port::TEST_MODULES, report_port::TEST_MEMORY_MAP, report_port::TEST_COUNTERS];
        assert_eq!(passed(&run), tests);
    }
}

#[test]
fn every_frontend_boots_it_with_few_and_many_cpus() {
    let pairings = [
        "bhyve-10.0@fbsd-10.0",
        "bhyve-13.1@fbsd-13.1",
        "bhyve-13.2@fbsd-13.2",
        "bhyve-14@fbsd-14",
        "bhyve-15@fbsd-15",
        "illumos-bhyve@illumos",
        "propolis@illumos",
        "qemu-bhyve@fbsd-15",
    ];
    for (pairing, guest) in pairings.iter().zip(["multiboot1", "multiboot2"].into_iter().cycle()) {
        for apic in ["xapic-1", "xapic-2", "x2apic-4"] {
            assert_ok(&run("", &format!("{pairing}/{guest}/{apic}/soft")));
        }
    }
}

#[test]
fn an_ap_that_is_missing_is_missed() {
    let run = run("", "bhyve-13.1@main-7c326ab5/multiboot2/xapic-2/soft");
    assert_eq!(outcome(&run).0, OutcomeKind::Hang, "{}", outcome(&run).1);
    assert!(!run.result.verdict.is_red(), "{}", outcome(&run).1);
}

#[test]
fn a_module_that_is_not_as_expected_fails_the_test() {
    with_file(Own::TestKernel.bytes(), |kernel| {
        let right = "expect-module=935af6f6";
        for (arguments, modules, kind) in [
            (right, r#"["multiboot-text"]"#, OutcomeKind::Ok),
            ("", "[]", OutcomeKind::Ok),
            ("expect-module=935af6f7", r#"["multiboot-text"]"#, OutcomeKind::Partial),
            (right, "[]", OutcomeKind::Partial),
            ("", r#"["multiboot-text"]"#, OutcomeKind::Partial),
            (right, r#"["multiboot-text", "multiboot-text"]"#, OutcomeKind::Partial),
        ] {
            let more = guest(kernel, &format!("cmdline = \"{arguments}\"\nmodules = {modules}"));
            let run = run(&more, "bhyve-13.2@fbsd-13.2/made/xapic-2/soft");
            let (found, said) = outcome(&run);
            assert_eq!(found, kind, "{arguments:?} with {modules}: {said}");
            assert_eq!(said.contains("test `modules` failed"), kind == OutcomeKind::Partial, "{said}");
        }
    });
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The kernel with ELF headers of 32 bits, which take the place of those of 64.
fn as_elf32(elf64: &[u8]) -> Vec<u8> {
    let mut elf32 = elf64.to_vec();
    elf32[4] = 1;
    elf32[18] = 3;
    let put = |file: &mut [u8], at: usize, value: u64| {
        file[at..at + 4].copy_from_slice(&u32::try_from(value).expect("32 bits").to_le_bytes());
    };
    let entry = u64_at(elf64, 24);
    // e_entry, e_phoff; no sections; e_ehsize, e_phentsize, e_phnum.
    elf32[24..84].fill(0);
    put(&mut elf32, 24, entry);
    put(&mut elf32, 28, 52);
    elf32[40..46].copy_from_slice(&[52, 0, 32, 0, 1, 0]);
    // p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz: of the one segment.
    for (field, value) in [0, 4, 8, 12, 16, 20].into_iter().zip([1].into_iter().chain([8, 16, 24, 32, 40].map(|at| u64_at(elf64, 64 + at)))) {
        put(&mut elf32, 52 + field, value);
    }
    elf32
}

/// The kernel without ELF headers: its Multiboot 1 header says that the address fields count.
fn as_flat_with_addresses(elf: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    let mut flat = elf.to_vec();
    flat[..64 + 56].fill(0);
    let word = |file: &[u8], at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes"));
    let at = (0..8192).step_by(4).find(|&at| word(&flat, at) == MAGIC).expect("it has a header");
    let flags = word(&flat, at + 4) | ADDRESSES;
    flat[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
    flat[at + 8..at + 12].copy_from_slice(&0_u32.wrapping_sub(MAGIC).wrapping_sub(flags).to_le_bytes());
    flat
}

#[test]
fn other_forms_of_the_kernel_boot_too() {
    let elf64 = Own::TestKernel.bytes();
    for (form, protocols) in [
        (as_elf32(elf64), &["multiboot1", "multiboot2"][..]),
        (as_flat_with_addresses(elf64), &["multiboot1"]),
    ] {
        with_file(&form, |kernel| {
            for protocol in protocols {
                let more = guest(
                    kernel,
                    &format!("protocol = \"{protocol}\"\ncmdline = \"expect-module=935af6f6\"\nmodules = [\"multiboot-text\"]"),
                );
                assert_ok(&run(&more, "bhyve-13.2@fbsd-13.2/made/x2apic-2/soft"));
            }
        });
    }
}

/// Says a letter, BOOT and DONE, and powers off; with operands of 32 bits where the prefix says so.
fn flat_image(letter: u8, word: &[u8], long: &[u8]) -> Vec<u8> {
    let mov_dx = |port: u16| [word, &[0xba], &port.to_le_bytes()].concat();
    let report = |code: u8| [&mov_dx(report_port::REPORT_PORT), long, &[0xb8, 0, 0, 0, code], long, &[0xef]].concat();
    [
        &mov_dx(0x3f8)[..],
        &[0xb0, letter, 0xee], // MOV AL, OUT DX, AL
        &report(report_port::BOOT),
        &report(report_port::DONE),
        &mov_dx(0x404), // PM1a control: S5
        word,
        &[0xb8, 0, 0x34],
        word,
        &[0xef, 0xf4],
    ]
    .concat()
}

#[test]
fn flat_images_are_entered_in_either_mode() {
    const OPERAND_SIZE: &[u8] = &[0x66];
    // The same prefix means the other size in each.
    let (real, protected) = (flat_image(b'R', &[], OPERAND_SIZE), flat_image(b'P', OPERAND_SIZE, &[]));
    for (image, keys, letter) in [
        (&real, "protocol = \"flat16\"", b"R"),
        (&real, "protocol = \"flat16\"\nload = 0x20008", b"R"),
        (&protected, "protocol = \"flat32\"", b"P"),
        (&protected, "protocol = \"flat32\"\nload = 0x1000", b"P"),
    ] {
        with_file(image, |kernel| {
            for pairing in ["bhyve-13.2@fbsd-13.2", "propolis@illumos", "qemu-bhyve@fbsd-15"] {
                let run = run(&guest(kernel, keys), &format!("{pairing}/made/xapic-1/soft"));
                assert_ok(&run);
                assert_eq!(run.serial, letter, "{keys}");
            }
        });
    }
}

#[test]
fn what_cannot_be_loaded_makes_its_cell_not_applicable() {
    with_file(b"no kernel at all", |kernel| {
        for (keys, why) in [
            ("", "has no Multiboot header"),
            ("protocol = \"multiboot2\"", "no entry for the protocol multiboot2"),
            ("protocol = \"flat16\"\nload = 0x1000000", "does not fit"),
            ("protocol = \"flat32\"\ncmdline = \"x\"", "takes no command line"),
        ] {
            let run = run(&guest(kernel, keys), "bhyve-13.2@fbsd-13.2/made/xapic-2/soft");
            assert_eq!(run.result.outcome.kind, OutcomeKind::NotApplicable);
            let detail = &run.result.outcome.detail;
            assert!(detail.contains(why), "{keys}: {detail}");
        }
    });
}
