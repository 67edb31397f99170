//! Ways to boot that need nothing but what the project makes itself, and the devices that a machine has only if asked for: on a kernel
//! and the software processor.

mod cell;

use cell::Cell;
use frontends::loader::{Module, OsImage, Protocol};
use frontends::{ApicMode, Boot, Chipset, Extras, FwCfgFile, IsaDevice, Launch, MAX_RERUNS, Stream};
use std::sync::Arc;
use vmm::host::End;
use vmm::trace::{Event, GuestReport};

/// Virtual time that a cell may take.
const LIMIT_NS: u64 = 30_000_000_000;

fn run(frontend: &str, kernel: &str, launch: Launch) -> Cell {
    Cell::run(LIMIT_NS, frontend, kernel, launch)
}

/// A machine with these devices.
fn machine(vcpus: u16, boot: Boot, isa: &[IsaDevice]) -> Launch {
    let extras = Extras { isa: isa.iter().copied().collect(), ..Extras::default() };
    Launch { extras, ..Launch::new("guest", vcpus, ApicMode::Xapic, boot) }
}

/// CRC-32, as the kernel computes it.
fn checksum(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let step = |crc: u32| crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

fn multiboot(kernel: guests::Kernel, protocol: Protocol) -> Boot {
    let module = |bytes: &[u8], cmdline: &str| Module { file: bytes.into(), cmdline: cmdline.into() };
    Boot::Loader(Arc::new(OsImage {
        kernel: kernel.file().into(),
        modules: vec![module(&[7; 5000], "first a=b"), module(b"xyz", "")],
        cmdline: "one two=2".into(),
        protocol: Some(protocol),
        ..OsImage::default()
    }))
}

/// What the kernel says, whichever version of Multiboot it came by.
#[track_caller]
fn assert_told(cell: &Cell) {
    let serial = cell.serial();
    let first = format!("\"first a=b\", 5000 bytes, CRC-32 {:x}", checksum(&[7; 5000]));
    let second = format!("\"\", 3 bytes, CRC-32 {:x}", checksum(b"xyz"));
    for line in [
        "argument: one\n",
        "argument: two=2\n",
        "memory: 639 KiB and 15360 KiB",
        "map: 0 + 9fc00, type 1",
        "map: f0000 + 10000, type 2",
        "map: 100000 + f00000, type 1",
        &first,
        &second,
        "APIC ID 3 is online",
    ] {
        assert!(serial.contains(line), "{line:?} is not among\n{serial}");
    }
}

#[test]
fn multiboot_kernels_end_through_debug_exit() {
    for (kernel, protocol) in [
        (guests::Kernel::MultibootTest, Protocol::Multiboot),
        (guests::Kernel::MultibootTest, Protocol::Multiboot2),
        (guests::Kernel::MultibootTestAout, Protocol::Multiboot),
    ] {
        let launch = machine(4, multiboot(kernel, protocol), &[IsaDevice::DebugExit]);
        let cell = run("bhyve-13.2", "fbsd-13.2", launch);
        assert_eq!(cell.end, End::Exit(0x21), "{kernel:?} by {protocol:?}:\n{}{}", cell.serial(), cell.stderr);
        assert_told(&cell);
        assert!(cell.reported(GuestReport::Done { aps: 3 }));
        let version = if protocol == Protocol::Multiboot { 1 } else { 2 };
        let begin = format!("Multiboot {version}, loaded by spinup");
        assert!(cell.serial().contains(&begin), "{}", cell.serial());
    }
}

#[test]
fn without_the_device_the_kernel_powers_off() {
    let boot = multiboot(guests::Kernel::MultibootTest, Protocol::Multiboot2);
    let cell = run("bhyve-14", "fbsd-14", machine(2, boot, &[]));
    assert_eq!(cell.end, End::Exit(1), "{}", cell.stderr);
}

/// Code for real mode as a boot sector: writes `text` to a port byte by byte, and HLT.
fn boot_sector(port: u16, text: &[u8]) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let mut code = vec![0xba, low, high];
    for &byte in text {
        code.extend([0xb0, byte, 0xee]);
    }
    // MOV AX, CS; OUT DX, AL; XCHG AL, AH; OUT DX, AL; then debug-exit with 2.
    code.extend([0x8c, 0xc8, 0xee, 0x86, 0xc4, 0xee, 0xb0, 0x02, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]);
    code
}

fn flat(kernel: Vec<u8>, protocol: Protocol, load_at: Option<u64>) -> Boot {
    Boot::Loader(Arc::new(OsImage { kernel: kernel.into(), protocol: Some(protocol), load_at, ..OsImage::default() }))
}

#[test]
fn flat_images_are_entered_where_they_are_put() {
    let devices = [IsaDevice::Debugcon, IsaDevice::DebugExit];
    for (load_at, cs) in [(None, [0, 0]), (Some(0x2_1000), [0, 0x20])] {
        let boot = flat(boot_sector(0xe9, b"real"), Protocol::Flat16, load_at);
        let cell = run("bhyve-13.1", "fbsd-13.1", machine(1, boot, &devices));
        assert_eq!(cell.end, End::Exit(5), "{}", cell.stderr);
        assert_eq!(cell.console.output(Stream::Debug), [&b"real"[..], &cs].concat());
    }
    // MOV EAX, 12345678H; SHR EAX, 28; OUT F4H, AL.
    let code = vec![0xb8, 0x78, 0x56, 0x34, 0x12, 0xc1, 0xe8, 0x1c, 0xe6, 0xf4, 0xf4];
    let cell = run("bhyve-13.1", "fbsd-13.1", machine(1, flat(code, Protocol::Flat32, None), &devices));
    assert_eq!(cell.end, End::Exit(3), "32-bit code: {}", cell.stderr);
}

/// An item of the firmware configuration by DMA, in real mode: the guest puts it into memory and writes it to the debug console.
#[test]
fn firmware_configuration_by_dma() {
    // The command, at 8000H: select the directory (19H) and read 4 bytes to 9000H.
    let command: [u8; 16] = [0, 0x19, 0, 0x0a, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x90, 0];
    let mut code = Vec::new();
    for (i, byte) in command.into_iter().enumerate() {
        // MOV BYTE [8000H + i], byte
        code.extend([0xc6, 0x06, i as u8, 0x80, byte]);
    }
    // MOV DX, 514H; XOR EAX, EAX; OUT DX, EAX; MOV DX, 518H; MOV EAX, 00800000H; OUT DX, EAX.
    code.extend([0xba, 0x14, 0x05, 0x66, 0x31, 0xc0, 0x66, 0xef, 0xba, 0x18, 0x05]);
    code.extend([0x66, 0xb8, 0, 0, 0x80, 0, 0x66, 0xef]);
    // MOV AL, [8003H]; OUT E9H, AL; MOV AL, [9003H]; OUT E9H, AL; OUT F4H, AL.
    code.extend([0xa0, 0x03, 0x80, 0xe6, 0xe9, 0xa0, 0x03, 0x90, 0xe6, 0xe9, 0xe6, 0xf4, 0xf4]);
    let boot = flat(code, Protocol::Flat16, None);
    let mut launch = machine(1, boot, &[IsaDevice::FwCfg, IsaDevice::Debugcon, IsaDevice::DebugExit]);
    launch.extras.fw_cfg = vec![FwCfgFile { name: "opt/one".into(), contents: vec![1].into() }];
    let cell = run("bhyve-15", "fbsd-15", launch);
    assert_eq!(cell.console.output(Stream::Debug), [0, 2], "no error, and two files: {}", cell.stderr);
    assert_eq!(cell.end, End::Exit(5));
}

/// Every way to end the machine by an optional device, each with the frontend's own status for a reset.
#[test]
fn port_92_resets() {
    // MOV AL, 1; OUT 92H, AL; HLT.
    let code = vec![0xb0, 0x01, 0xe6, 0x92, 0xf4];
    let cell = run("bhyve-13.2", "fbsd-13.2", machine(1, flat(code, Protocol::Flat16, None), &[IsaDevice::Port92]));
    assert_eq!(cell.end, End::Exit(0), "{}", cell.stderr);
}

/// How many VMs were begun anew, and how many were made.
fn calls(cell: &Cell, name: &str) -> usize {
    let of_name = |event: &Event| match event {
        Event::Ioctl { name: call, .. } | Event::Syscall { name: call, .. } => call.contains(name),
        _ => false,
    };
    cell.trace.records.iter().filter(|record| of_name(&record.event)).count()
}

/// A boot ROM that does this at the reset vector, in real mode: up to 16 bytes.
fn rom(code: &[u8]) -> Boot {
    let mut rom = vec![0xf4; 4096];
    rom[4096 - 16..][..code.len()].copy_from_slice(code);
    Boot::Rom(rom.into())
}

/// A guest that resets for ever. Run once, the frontend ends with 0; run again and again, the cell ends all the same.
#[test]
fn reboots_are_bounded() {
    // MOV DX, CF9H; MOV AL, 6; OUT DX, AL; HLT.
    let reset = [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4];
    for (frontend, kernel) in [("bhyve-13.1", "fbsd-13.1"), ("bhyve-13.2", "fbsd-13.2"), ("bhyve-15", "fbsd-15")] {
        let once = run(frontend, kernel, machine(2, rom(&reset), &[]));
        assert_eq!(once.end, End::Exit(0), "{frontend}: {}", once.stderr);
        for boot in [rom(&reset), flat(reset.to_vec(), Protocol::Flat16, None)] {
            let anew = matches!(boot, Boot::Rom(_));
            let mut launch = machine(1, boot, &[]);
            launch.extras.rerun = true;
            let cell = run(frontend, kernel, launch);
            assert_eq!(cell.end, End::Rebooted(MAX_RERUNS), "{frontend}: {}", cell.stderr);
            let reinits = if anew { MAX_RERUNS as usize } else { 0 };
            assert_eq!(calls(&cell, "VM_REINIT"), reinits, "{frontend}");
        }
    }
}

/// RAM and CMOS outlive a reset (VM_REINIT), and the boot ROM is mapped again: the first life writes the shutdown code and a byte of
/// RAM and resets, the second finds them.
#[test]
fn a_machine_that_is_begun_anew_goes_on() {
    let code = [
        0xb0, 0x0f, 0xe6, 0x70, 0xe4, 0x71, // IN AL, 71H: the shutdown code
        0x3c, 0x0a, // is it 0AH?
        0x74, 0x10, // then on
        0xb0, 0x0a, 0xe6, 0x71, // no: it becomes 0AH, and
        0xc6, 0x06, 0x00, 0x06, 0x0a, // so does the byte at 0600H
        0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, // reset
        0xa0, 0x00, 0x06, 0xe6, 0xf4, 0xf4, // debug-exit with the byte at 0600H
    ];
    let mut rom = vec![0xf4; 4096];
    rom[..code.len()].copy_from_slice(&code);
    // JMP to the ROM's beginning, F000H in the segment.
    rom[4096 - 16..][..3].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
    for (frontend, kernel) in [
        ("bhyve-13.1", "fbsd-13.1"),
        ("bhyve-13.2", "fbsd-13.2"),
        ("bhyve-14", "fbsd-14"),
        ("bhyve-15", "fbsd-15"),
        ("illumos-bhyve", "illumos"),
        ("propolis", "illumos"),
    ] {
        let mut launch = machine(1, Boot::Rom(rom.as_slice().into()), &[IsaDevice::DebugExit]);
        launch.extras.rerun = true;
        let cell = run(frontend, kernel, launch);
        assert_eq!(cell.end, End::Exit(0x15), "{frontend}: {}", cell.stderr);
        assert_eq!(calls(&cell, "VM_REINIT"), 1, "{frontend}");
    }
}

/// Each way for a guest to end its machine, with the frontend's own status.
#[test]
fn every_end_has_its_status() {
    let power_off: &[u8] = &[0xba, 0x04, 0x04, 0xb8, 0x00, 0x34, 0xef, 0xf4];
    let reset: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    // LIDT of nothing, and INT3.
    let triple_fault: &[u8] = &[0x2e, 0x0f, 0x01, 0x1e, 0xf8, 0xff, 0xcc, 0xf4, 0, 0, 0, 0, 0, 0];
    let halt: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
    let mut lines = Vec::new();
    for (frontend, kernel) in [
        ("bhyve-10.0", "fbsd-10.0"),
        ("bhyve-13.1", "fbsd-13.1"),
        ("bhyve-13.2", "fbsd-13.2"),
        ("bhyve-15", "fbsd-15"),
        ("illumos-bhyve", "illumos"),
        ("propolis", "illumos"),
        ("qemu-bhyve", "fbsd-15"),
    ] {
        for (what, code) in [("power-off", power_off), ("reset", reset), ("triple fault", triple_fault), ("halt", halt)]
        {
            let cell = Cell::run(50_000_000, frontend, kernel, machine(1, rom(code), &[]));
            lines.push(format!("{frontend}@{kernel}, {what}: {:?}", cell.end));
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

/// SeaBIOS, when it is at hand (`spinup guests fetch seabios`): its log on the debug console tells of the CPUs.
#[test]
#[ignore = "needs spinup guests fetch seabios"]
fn seabios_counts_its_cpus() {
    let rom = guests::os::Package::Seabios.cached(&guests::os::cache_directory()).expect("it was fetched").bytes;
    for vcpus in [1, 4] {
        let mut launch = machine(vcpus, Boot::Rom(Arc::clone(&rom)), &[IsaDevice::FwCfg, IsaDevice::BiosDebugcon]);
        launch.extras.chipset = Chipset::I440fx;
        launch.memory_bytes = 64 << 20;
        let cell = Cell::run(10_000_000_000, "bhyve-13.2", "fbsd-13.2", launch);
        let log = String::from_utf8_lossy(&cell.console.output(Stream::Debug)).into_owned();
        assert!(
            log.contains(&format!("Found {vcpus} cpu(s) max supported {vcpus} cpu(s)")),
            "{log}\n{:?}\n{}",
            cell.end,
            cell.stderr
        );
    }
}
