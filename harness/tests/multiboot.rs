//! Kernels by Multiboot and flat images, end to end: the test kernel of `guests/freestanding/kernels` in every form that a
//! loader takes, and a few bytes at an address.

mod checksum;

use checksum::crc32;
use guests::Kernel;
use spinup::cell::{Cell, EngineKind};
use spinup::matrix::Matrix;
use spinup::outcome::OutcomeKind;
use spinup::run::{CellRun, Engines, Setup, run_cell};
use spinup::trace::Canonical;
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

/// 16 at the debug-exit device.
#[track_caller]
fn assert_exit_33(run: &CellRun) {
    let (kind, said) = outcome(run);
    assert_eq!(kind, OutcomeKind::Exit(33), "{}: {said}", run.result.cell);
    assert!(!run.result.verdict.is_red());
    assert_eq!(run.result.aps_started, u32::from(run.result.cell.cpus) - 1);
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
    for (guest, version) in [("multiboot", 1), ("multiboot2", 2), ("multiboot-aout", 1)] {
        let run = run("", &format!("bhyve-13.2@fbsd-13.2/{guest}/xapic-4/soft"));
        assert_exit_33(&run);
        let console = console(&run);
        for line in [
            &*format!("Multiboot {version}, loaded by spinup"),
            "argument: expect-module=935af6f6",
            "argument: debug-exit=16",
            "\"text of the module\", 97 bytes, CRC-32 935af6f6, at ",
            "memory: 639 KiB and 15360 KiB",
            "map: 0 + 9fc00, type 1",
            "map: f0000 + 10000, type 2",
            "map: 100000 + f00000, type 1",
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
    ];
    for (pairing, guest) in pairings.iter().zip(["multiboot", "multiboot2", "multiboot-aout"].into_iter().cycle()) {
        for apic in ["xapic-1", "xapic-2", "x2apic-4"] {
            assert_exit_33(&run("", &format!("{pairing}/{guest}/{apic}/soft")));
        }
    }
    // With more, an AP without work runs from the reset vector after 200 ms, where there is no boot ROM.
    assert_exit_33(&run("", "qemu-bhyve@fbsd-15/multiboot2/xapic-1/soft"));
}

#[test]
fn an_ap_that_is_missing_is_missed() {
    let run = run("", "bhyve-13.1@main-7c326ab5/multiboot2/xapic-2/soft");
    assert_eq!(outcome(&run).0, OutcomeKind::Hang, "{}", outcome(&run).1);
    assert!(!run.result.verdict.is_red(), "{}", outcome(&run).1);
}

#[test]
fn a_module_that_is_not_as_expected_fails_the_test() {
    with_file(Kernel::MultibootTest.file(), |kernel| {
        let right = "expect-module=935af6f6";
        for (arguments, modules, kind) in [
            (right, r#"["multiboot-text"]"#, OutcomeKind::Ok),
            ("", "[]", OutcomeKind::Ok),
            ("expect-module=935af6f7", r#"["multiboot-text"]"#, OutcomeKind::Partial),
            (right, "[]", OutcomeKind::Partial),
            ("", r#"["multiboot-text"]"#, OutcomeKind::Ok),
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

/// The argument says which status, and a failed test makes it another.
#[test]
fn the_status_is_an_argument() {
    with_file(Kernel::MultibootTest.file(), |kernel| {
        for (arguments, status) in [("debug-exit=40", 81), ("debug-exit=40 expect-module=1", 83), ("", 33)] {
            let more = guest(kernel, &format!("isa = [\"debug-exit\"]\ncmdline = \"{arguments}\""));
            let run = run(&more, "bhyve-14@fbsd-14/made/xapic-2/soft");
            assert_eq!(outcome(&run).0, OutcomeKind::Exit(status), "{arguments}: {}", outcome(&run).1);
        }
    });
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The kernel with ELF headers of 32 bits, which take the place of those of 64, and without sections.
fn as_elf32(elf64: &[u8]) -> Vec<u8> {
    const HEADERS_64: usize = 64;
    const HEADERS_32: usize = 52;
    let mut elf32 = elf64.to_vec();
    let put = |file: &mut [u8], at: usize, value: u64| {
        file[at..at + 4].copy_from_slice(&u32::try_from(value).expect("32 bits").to_le_bytes());
    };
    let count = elf64[56];
    elf32[..HEADERS_64 + 56 * usize::from(count)].fill(0);
    elf32[..24].copy_from_slice(&elf64[..24]);
    // EI_CLASS, e_machine; e_entry, e_phoff; e_ehsize, e_phentsize, e_phnum.
    (elf32[4], elf32[18]) = (1, 3);
    put(&mut elf32, 24, u64_at(elf64, 24));
    put(&mut elf32, 28, HEADERS_32 as u64);
    elf32[40..46].copy_from_slice(&[HEADERS_32 as u8, 0, 32, 0, count, 0]);
    for i in 0..usize::from(count) {
        let (from, to) = (HEADERS_64 + 56 * i, HEADERS_32 + 32 * i);
        elf32[to..to + 4].copy_from_slice(&elf64[from..from + 4]);
        // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz.
        for (field_64, field_32) in [(8, 4), (16, 8), (24, 12), (32, 16), (40, 20)] {
            put(&mut elf32, to + field_32, u64_at(elf64, from + field_64));
        }
    }
    elf32
}

#[test]
fn a_32_bit_program_boots_too() {
    with_file(&as_elf32(Kernel::MultibootTest.file()), |kernel| {
        for protocol in ["multiboot", "multiboot2"] {
            let arguments = "cmdline = \"expect-module=935af6f6\"\nmodules = [\"multiboot-text\"]";
            let more = guest(kernel, &format!("protocol = \"{protocol}\"\n{arguments}"));
            assert_ok(&run(&more, "bhyve-13.2@fbsd-13.2/made/x2apic-2/soft"));
        }
    });
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
        (&real, "protocol = \"flat16\"\nload_at = 0x20008", b"R"),
        (&protected, "protocol = \"flat32\"", b"P"),
        (&protected, "protocol = \"flat32\"\nload_at = 0x1000", b"P"),
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

/// The kernel reads from a disk and an entropy device by the legacy interface, by DMA and interrupts; on every engine the same.
#[test]
fn virtio_devices_do_the_same_on_both_engines() {
    const CELL: &str = "multiboot-virtio/xapic-2";
    let image: Vec<u8> = (0..100 * 512_u32).map(|i| ((i * i) >> 7) as u8).collect();
    let disk = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(disk.path(), &image).expect("it is writable");
    let devices = format!(
        "[{{ kind = \"virtio-rnd\", slot = 3 }}, {{ kind = \"virtio-blk\", slot = 4, file = \"{}\" }}]",
        disk.path().display()
    );
    let limits = "{ soft = { base_ms = 1000, per_cpu_ms = 100 }, kvm = { base_ms = 60000, per_cpu_ms = 5000 } }";
    let guest = format!(
        "[[guest]]\nname = \"multiboot-virtio\"\nabout = \"reads from devices\"\nkernel = \"multiboot-test\"\n\
         isa = [\"debug-exit\"]\ncmdline = \"debug-exit=16\"\nmemory_mib = 16\nlimits = {limits}\ndevices = {devices}\n"
    );
    for pairing in ["bhyve-13.2@fbsd-13.2", "bhyve-13.1@fbsd-13.1", "bhyve-15@fbsd-15", "propolis@illumos"] {
        let soft = run(&guest, &format!("{pairing}/{CELL}/soft"));
        assert_exit_33(&soft);
        let said = console(&soft);
        let disk_line =
            format!("virtio-blk: 64 of 100 sectors, CRC-32 {:x}\r\ninterrupts: 2 of 2\r\n", crc32(&image[..64 * 512]));
        assert!(said.contains(&disk_line), "{disk_line:?} is not in\n{said}");
        assert!(said.contains("virtio-rnd: 64 bytes, CRC-32 "), "{said}");
        assert!(said.contains("interrupts: 1 of 1\r\n"), "{said}");
        if let Err(why) = Engines::new().get(EngineKind::Kvm) {
            eprintln!("on kvm it was not tried: {why}");
            continue;
        }
        let kvm = run(&guest, &format!("{pairing}/{CELL}/kvm"));
        assert_exit_33(&kvm);
        assert_eq!(console(&kvm), said, "{pairing}");
        let [soft, kvm] = [soft, kvm].map(|run| Canonical::of(&run.trace.expect("the cell ran").trace).to_string());
        assert_eq!(soft, kvm, "{pairing}");
    }
}

#[test]
fn what_cannot_be_loaded_makes_its_cell_not_applicable() {
    with_file(b"no kernel at all", |kernel| {
        for (keys, why) in [
            ("", "has no Multiboot header"),
            ("protocol = \"multiboot2\"", "no entry for the protocol multiboot2"),
            ("protocol = \"flat16\"\nload_at = 0x1000000", "does not fit"),
            ("protocol = \"flat32\"\ncmdline = \"x\"", "takes no command line"),
        ] {
            let run = run(&guest(kernel, keys), "bhyve-13.2@fbsd-13.2/made/xapic-2/soft");
            assert_eq!(run.result.outcome.kind, OutcomeKind::NotApplicable);
            let detail = &run.result.outcome.detail;
            assert!(detail.contains(why), "{keys}: {detail}");
        }
    });
}
