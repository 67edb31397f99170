//! Operating systems as guests: Debian's kernel on the software processor, by every boot protocol, with few and many CPUs,
//! and the same twice.
//!
//! And firmware and memtest86+, by the matrix's own tables.
//!
//! Each test needs what `spinup guests fetch linux linux-modules busybox seabios ovmf memtest86+` fetches, and is ignored where that is not
//! here. So is everything in a build without optimization, in which a boot takes minutes.

mod checksum;

use checksum::crc32;
use guests::os::{Package, cache_directory};
use libtest_mimic::{Arguments, Failed, Trial};
use spinup::cell::Cell;
use spinup::matrix::Matrix;
use spinup::outcome::OutcomeKind;
use spinup::run::{CellRun, Engines, Setup, run_cell};
use std::io::Write as _;
use std::process::ExitCode;
use vmm::trace::Event;

const MATRIX: &str = include_str!("../../matrix.toml");

/// A test, and what it needs.
struct Test {
    name: &'static str,
    needs: &'static [Package],
    run: fn() -> Result<(), Failed>,
}

const LINUX: &[Package] = &[Package::Linux];
const LINUX_WITH_MODULES: &[Package] = &[Package::Linux, Package::LinuxModules];
const SEABIOS: &[Package] = &[Package::Seabios];
const OVMF: &[Package] = &[Package::Ovmf];

const TESTS: &[Test] = &[
    Test {
        name: "linux_brings_up_2_cpus",
        needs: LINUX,
        run: || comes_up("bhyve-13.2@fbsd-13.2/linux-os/xapic-2/soft"),
    },
    Test {
        name: "linux_brings_up_8_cpus",
        needs: LINUX,
        run: || comes_up("bhyve-13.2@fbsd-13.2/linux-os/xapic-8/soft"),
    },
    Test {
        name: "linux_brings_up_cpus_that_are_activated_lazily",
        needs: LINUX,
        run: || comes_up("bhyve-13.1@fbsd-13.1/linux-os/xapic-2/soft"),
    },
    Test { name: "linux_goes_on_without_an_ap", needs: LINUX, run: an_ap_is_missing },
    Test { name: "the_same_seed_boots_the_same", needs: LINUX, run: the_same_twice },
    Test { name: "the_32_bit_protocol", needs: LINUX, run: || by_protocol("linux", "linux32") },
    Test { name: "vmlinux_by_pvh", needs: LINUX, run: || decompressed("pvh") },
    Test { name: "vmlinux_in_long_mode", needs: LINUX, run: || decompressed("linux64") },
    Test { name: "devices_work_under_every_frontend", needs: LINUX_WITH_MODULES, run: devices_everywhere },
    Test { name: "devices_work_by_the_modern_interface", needs: LINUX_WITH_MODULES, run: || devices_by("modern") },
    Test { name: "devices_work_by_both_interfaces", needs: LINUX_WITH_MODULES, run: || devices_by("transitional") },
    Test { name: "a_restart_is_no_power_off", needs: LINUX, run: restart },
    Test { name: "seabios_comes_to_its_menu_with_1_cpu", needs: SEABIOS, run: || seabios(1) },
    Test { name: "seabios_comes_to_its_menu_with_4_cpus", needs: SEABIOS, run: || seabios(4) },
    Test { name: "seabios_waits_for_aps_that_were_lost", needs: SEABIOS, run: seabios_waits },
    Test { name: "seabios_goes_on_at_the_warm_reset_vector", needs: SEABIOS, run: warm_reset },
    Test { name: "ovmf_comes_to_its_shell_with_1_cpu", needs: OVMF, run: || ovmf("bhyve-13.2@fbsd-13.2", 1) },
    Test { name: "ovmf_comes_to_its_shell_with_4_cpus", needs: OVMF, run: || ovmf("bhyve-13.2@fbsd-13.2", 4) },
    Test { name: "ovmf_comes_to_its_shell_on_illumos", needs: OVMF, run: || ovmf("propolis@illumos", 2) },
    Test { name: "memtest_uses_all_cores", needs: &[Package::Memtest], run: memtest },
    Test { name: "busybox_is_an_init_too", needs: &[Package::Linux, Package::Busybox], run: busybox },
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cache = cache_directory();
    let trials = TESTS
        .iter()
        .map(|test| {
            let missing = test.needs.iter().any(|package| package.cached(&cache).is_err());
            let ignored = missing || cfg!(debug_assertions);
            let trial = Trial::test(test.name, test.run).with_ignored_flag(ignored);
            // What stands beside the name of a test that is ignored.
            match (missing, cfg!(debug_assertions)) {
                (true, _) => {
                    trial.with_kind("needs spinup guests fetch linux linux-modules busybox seabios ovmf memtest86+")
                }
                (false, true) => trial.with_kind("needs --release"),
                (false, false) => trial,
            }
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The matrix, whose paths count from the directory above this crate's, in which tests run.
fn matrix(more: &str) -> Matrix {
    Matrix::parse("../matrix.toml", &format!("{MATRIX}\n{more}")).expect("the tables are right")
}

fn run(matrix: Matrix, cell: &str, seed: u64) -> Result<CellRun, Failed> {
    let cell: Cell = cell.parse().map_err(|error: spinup::cell::CellNameError| error.to_string())?;
    matrix.check_cell(&cell)?;
    let setup = Setup { matrix, engines: Engines::new(), seed, timeout: None };
    Ok(run_cell(&setup, &cell))
}

fn console(run: &CellRun) -> String {
    String::from_utf8_lossy(&run.serial).into_owned()
}

/// The last lines of the console, for a test that failed.
fn tail(run: &CellRun) -> String {
    let console = console(run);
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn expect(holds: bool, what: &str, run: &CellRun) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(format!("{what}: {:?}\n{}", run.result.outcome, tail(run)).into()) }
}

/// Every CPU is up, by the kernel's word, by the init's, and by the vCPU that the report came from.
fn all_up(run: &CellRun) -> Result<(), Failed> {
    let cpus = run.result.cell.cpus;
    expect(run.result.outcome.kind == OutcomeKind::Ok, "not ok", run)?;
    let console = console(run);
    expect(console.contains(&format!("smp: Brought up 1 node, {cpus} CPUs")), "the kernel did not say so", run)?;
    expect(console.contains("reboot: Power down"), "it did not power off", run)?;
    for cpu in 0..cpus {
        expect(console.contains(&format!("cpu {cpu} ok (APIC ID {cpu})")), "a CPU did not say so", run)?;
    }
    let trace = &run.trace.as_ref().expect("the cell ran").trace;
    for record in &trace.records {
        if let Event::Report(vmm::trace::GuestReport::ApOnline { apic_id }) = record.event {
            expect(record.vcpu.map(u32::from) == Some(apic_id), "an AP's report came from another vCPU", run)?;
        }
    }
    let milestones: Vec<&str> = trace
        .records
        .iter()
        .filter_map(|record| if let Event::Milestone { name, .. } = &record.event { Some(name.as_str()) } else { None })
        .collect();
    let expected = ["kernel", "acpi", "smp-start", "smp-done", "init", "power-off"];
    expect(milestones == expected, &format!("the milestones are {milestones:?}"), run)
}

fn comes_up(cell: &str) -> Result<(), Failed> {
    all_up(&run(matrix(""), cell, 0)?)
}

/// A pairing that loses INITs: Linux waits for 10 s, and then goes on with one CPU.
fn an_ap_is_missing() -> Result<(), Failed> {
    let run = run(matrix(""), "bhyve-13.1@main-7c326ab5/linux-os/xapic-2/soft", 0)?;
    expect(run.result.outcome.kind == OutcomeKind::Hang, "not a hang", &run)?;
    expect(!run.result.verdict.is_red(), "not as expected", &run)?;
    let console = console(&run);
    expect(console.contains("smp: Brought up 1 node, 1 CPU"), "the kernel did not go on", &run)?;
    expect(console.contains("cpu 1 is missing"), "the init did not miss it", &run)
}

fn the_same_twice() -> Result<(), Failed> {
    const CELL: &str = "bhyve-13.2@fbsd-13.2/linux-os/xapic-4/soft";
    let [one, two] = [run(matrix(""), CELL, 7)?, run(matrix(""), CELL, 7)?];
    all_up(&one)?;
    expect(one.serial == two.serial, "the second boot log differs", &two)?;
    let [one_hash, two_hash] = [&one, &two].map(|run| run.trace.as_ref().map(|trace| trace.sha256()));
    expect(one_hash == two_hash, "the second trace differs", &two)?;
    expect(one.result.instructions == two.result.instructions, "the second executed other instructions", &two)
}

/// The same guest with another kernel file and protocol.
fn by_protocol(kernel: &str, protocol: &str) -> Result<(), Failed> {
    let guest = format!(
        r#"
[[guest]]
name = "linux-entered"
about = "entered by another protocol"
kernel = "{kernel}"
initrd = "spinup"
protocol = "{protocol}"
cmdline = "console=ttyS0 panic=-1 cryptomgr.notests"
memory_mib = 256
limits = {{ soft = {{ base_ms = 30000, per_cpu_ms = 2000 }}, kvm = {{ base_ms = 60000, per_cpu_ms = 5000 }} }}
milestones = [
    {{ name = "kernel", line = "Linux version " }},
    {{ name = "acpi", line = "ACPI: Early table checksum" }},
    {{ name = "smp-start", line = "smp: Bringing up secondary CPUs" }},
    {{ name = "smp-done", line = "smp: Brought up" }},
    {{ name = "init", line = "Run /init as init process" }},
    {{ name = "power-off", line = "reboot: Power down" }},
]
"#
    );
    all_up(&run(matrix(&guest), "bhyve-13.2@fbsd-13.2/linux-entered/xapic-2/soft", 0)?)
}

/// The program inside the bzImage, taken out as its own stub does.
fn decompressed(protocol: &str) -> Result<(), Failed> {
    let bzimage = Package::Linux.cached(&cache_directory()).map_err(|missing| missing.to_string())?.bytes;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&payload(&bzimage)?)?;
    by_protocol(&file.path().display().to_string(), protocol)
}

/// The payload of a bzImage in LZ4's legacy format: a magic number, then blocks of at most 8 MiB with their length before
/// each; the kernel's build appends the length of the whole.
fn payload(bzimage: &[u8]) -> Result<Vec<u8>, Failed> {
    const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
    const BLOCK: usize = 8 << 20;
    let word = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().expect("4 bytes")) as usize;
    // payload_offset and payload_length of the setup header count from the protected-mode kernel.
    let (offset, len) = (word(0x248), word(0x24c));
    let begin = (usize::from(bzimage[0x1f1]) + 1) * 512 + offset;
    let blocks =
        bzimage[begin..begin + len - 4].strip_prefix(&MAGIC).ok_or("the payload is not in LZ4's legacy format")?;
    let (mut rest, mut program) = (blocks, Vec::with_capacity(word(begin + len - 4)));
    while let Some((head, tail)) = rest.split_first_chunk() {
        let (block, after) = tail.split_at(u32::from_le_bytes(*head) as usize);
        program.extend(lz4_flex::block::decompress(block, BLOCK).map_err(|error| error.to_string())?);
        rest = after;
    }
    Ok(program)
}

fn busybox() -> Result<(), Failed> {
    let run = run(matrix(""), "bhyve-13.2@fbsd-13.2/linux-busybox/xapic-2/soft", 0)?;
    all_up(&run)?;
    let console = console(&run);
    expect(console.contains("busybox: 2 CPUs online"), "busybox did not count", &run)?;
    for cpu in 0..2 {
        expect(console.contains(&format!("busybox: cpu {cpu} counted to 500")), "a CPU did not count", &run)?;
    }
    Ok(())
}

/// A disk whose contents nobody could guess, of so many bytes.
fn disk_image(bytes: usize, seed: u32) -> Result<tempfile::NamedTempFile, Failed> {
    let mut state = seed;
    let contents: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&contents)?;
    Ok(file)
}

/// Linux with two disks, a console, entropy and a network.
fn guest_with_devices(disks: [&tempfile::NamedTempFile; 2], transport: &str) -> String {
    let [one, two] = disks.map(|disk| disk.path().display().to_string());
    format!(
        r#"
[[guest]]
name = "linux-devices"
about = "Linux with a device of each kind"
kernel = "linux"
initrd = "spinup-virtio"
cmdline = "console=ttyS0 panic=-1 cryptomgr.notests"
memory_mib = 256
limits = {{ soft = {{ base_ms = 60000, per_cpu_ms = 2000 }}, kvm = {{ base_ms = 60000, per_cpu_ms = 5000 }} }}
devices = [
    {{ kind = "virtio-blk", file = "{one}", transport = "{transport}" }},
    {{ kind = "virtio-blk", file = "{two}", mode = "snapshot", transport = "{transport}" }},
    {{ kind = "virtio-net", slot = 10, transport = "{transport}" }},
    {{ kind = "virtio-console", transport = "{transport}" }},
    {{ kind = "virtio-rnd", transport = "{transport}" }},
]
"#
    )
}

/// How the frontend's process ended.
fn exit_status(run: &CellRun) -> Option<i32> {
    let records = &run.trace.as_ref()?.trace.records;
    records.iter().rev().find_map(|record| match record.event {
        Event::ProcessExit { status } => Some(status),
        _ => None,
    })
}

/// Runs Linux with devices, checks that each works, and returns what it says of them.
fn devices_on(pairing: &str, transport: &str, power_off: i32) -> Result<Vec<String>, Failed> {
    let images = [disk_image(300 << 10, 1)?, disk_image(64 << 10, 2)?];
    let guest = guest_with_devices([&images[0], &images[1]], transport);
    let run = run(matrix(&guest), &format!("{pairing}/linux-devices/xapic-2/soft"), 3)?;
    expect(run.result.outcome.kind == OutcomeKind::Ok, "not ok", &run)?;
    expect(exit_status(&run) == Some(power_off), &format!("{:?} after power-off", exit_status(&run)), &run)?;
    let console = console(&run);
    for (name, image) in ["vda", "vdb"].into_iter().zip(&images) {
        let contents = std::fs::read(image.path())?;
        let line = format!("{name}: {} bytes, CRC-32 {:08x}", contents.len(), crc32(&contents));
        expect(console.contains(&line), &line, &run)?;
    }
    expect(console.contains("eth0: 10.0.2.2 answers"), "no answer to the ping", &run)?;
    expect(console.contains("hwrng: "), "no entropy", &run)?;
    let said = String::from_utf8_lossy(&run.virtio_console).into_owned();
    expect(said.trim_end() == "spinup-init: hello by virtio", &format!("hvc0 got {said:?}"), &run)?;
    let of_devices = |line: &&str| ["pci ", "vda: ", "vdb: ", "hwrng: "].iter().any(|word| line.starts_with(word));
    Ok(console.lines().filter(of_devices).map(str::to_owned).collect())
}

/// The same devices with the same contents, whoever makes the machine; and each frontend's own status.
fn devices_everywhere() -> Result<(), Failed> {
    let first = devices_on("bhyve-13.2@fbsd-13.2", "legacy", 1)?;
    let listed: Vec<&str> = first.iter().map(String::as_str).filter(|line| line.starts_with("pci ")).collect();
    let expected = [
        "pci 0000:00:00.0 1275:1275 class 060000 driver none",
        "pci 0000:00:01.0 1af4:1001 class 010000 driver virtio-pci",
        "pci 0000:00:02.0 1af4:1001 class 010000 driver virtio-pci",
        "pci 0000:00:03.0 1af4:1003 class 078000 driver virtio-pci",
        "pci 0000:00:04.0 1af4:1005 class 100000 driver virtio-pci",
        "pci 0000:00:0a.0 1af4:1000 class 020000 driver virtio-pci",
        "pci 0000:00:1f.0 8086:7000 class 060100 driver none",
    ];
    if listed != expected {
        return Err(format!("the devices are {listed:#?}").into());
    }
    for (pairing, power_off) in
        [("bhyve-13.1@fbsd-13.1", 1), ("bhyve-15@fbsd-15", 1), ("illumos-bhyve@illumos", 1), ("propolis@illumos", 0)]
    {
        let found = devices_on(pairing, "legacy", power_off)?;
        if found != first {
            return Err(format!("{pairing} has {found:#?}, and bhyve-13.2 has {first:#?}").into());
        }
    }
    Ok(())
}

fn devices_by(transport: &str) -> Result<(), Failed> {
    devices_on("bhyve-13.2@fbsd-13.2", transport, 1).map(drop)
}

/// The reset register ends bhyve with 0, and the guest does not run again.
fn restart() -> Result<(), Failed> {
    let guest = r#"
[[guest]]
name = "linux-restarts"
about = "Linux that restarts the machine at its end"
kernel = "linux"
initrd = "spinup"
cmdline = "console=ttyS0 panic=-1 cryptomgr.notests spinup-restart"
memory_mib = 256
limits = { soft = { base_ms = 30000, per_cpu_ms = 2000 }, kvm = { base_ms = 60000, per_cpu_ms = 5000 } }
"#;
    let run = run(matrix(guest), "bhyve-13.2@fbsd-13.2/linux-restarts/xapic-2/soft", 0)?;
    expect(exit_status(&run) == Some(0), &format!("the status is {:?}", exit_status(&run)), &run)?;
    let console = console(&run);
    expect(console.contains("reboot: Restarting system"), "it did not restart", &run)?;
    expect(console.contains("spinup-init: done"), "its CPUs were not up", &run)?;
    expect(console.matches("Linux version ").count() == 1, "it ran again", &run)
}

/// The milestones that a cell came to, each once.
fn milestones(run: &CellRun) -> Vec<String> {
    let trace = &run.trace.as_ref().expect("the cell ran").trace;
    let mut names: Vec<String> = Vec::new();
    for record in &trace.records {
        if let Event::Milestone { name, .. } = &record.event
            && !names.contains(name)
        {
            names.push(name.clone());
        }
    }
    names
}

fn seabios(cpus: u16) -> Result<(), Failed> {
    let run_on = |pairing: &str| run(matrix(""), &format!("{pairing}/seabios/xapic-{cpus}/soft"), 0);
    let run = run_on("bhyve-13.2@fbsd-13.2")?;
    expect(run.result.outcome.kind == OutcomeKind::Ok, "not ok", &run)?;
    expect(run.result.aps_started == u32::from(cpus) - 1, "not every AP ran", &run)?;
    let log = String::from_utf8_lossy(&run.debug).into_owned();
    let counted = format!("Found {cpus} cpu(s) max supported {cpus} cpu(s)");
    expect(log.contains(&counted), &format!("{counted:?} is not in\n{log}"), &run)?;
    expect(milestones(&run) == ["firmware", "smp", "menu-key", "menu"], "other milestones", &run)?;
    expect(console(&run).contains("Select boot device"), "the menu is not on the serial console", &run)?;
    // 13.1 leaves INIT by a shorthand to userspace, as an error of VM_RUN: so does the bare-metal sender `broadcast` end there.
    let run = run_on("bhyve-13.1@fbsd-13.1")?;
    expect(run.result.outcome.kind == OutcomeKind::Exit(1), "the broadcast was taken", &run)
}

/// A pairing that loses INITs: SeaBIOS waits for as many CPUs as it is told of, for ever.
fn seabios_waits() -> Result<(), Failed> {
    let run = run(matrix(""), "bhyve-13.1@main-7c326ab5/seabios/xapic-2/soft", 0)?;
    expect(run.result.outcome.kind == OutcomeKind::Hang, "not a hang", &run)?;
    expect(milestones(&run) == ["firmware"], "it went on", &run)
}

/// OVMF wakes its APs by INIT and STARTUP to all but itself each time it has work for them, before and after it has memory. It waits for
/// a keyboard that does not answer for most of its time.
fn ovmf(pairing: &str, cpus: u16) -> Result<(), Failed> {
    let run = run(matrix(""), &format!("{pairing}/ovmf/xapic-{cpus}/soft"), 0)?;
    expect(run.result.outcome.kind == OutcomeKind::Ok, "not ok", &run)?;
    expect(run.result.aps_started == u32::from(cpus) - 1, "not every AP ran", &run)?;
    expect(milestones(&run) == ["boot-manager", "shell"], "other milestones", &run)
}

/// A boot sector that begins anew by way of the shutdown code: it puts a far pointer to its own code, or to what IRET and RETF take from
/// there, into 40:67, says B, and resets. There it says W, the shutdown code that it finds (which the firmware clears), and writes 2 to the
/// debug-exit device.
fn warm_reset_disk(shutdown_code: u8, reset: &[u8]) -> Vec<u8> {
    const LOADED_AT: u16 = 0x7c00;
    const WARM: u16 = LOADED_AT + 0x100;
    const STACK: u16 = 0x0600;
    const IRET: u8 = 0x0b;
    const RETF: u8 = 0x0c;
    let store = |at: u16, word: u16| {
        let ([at_low, at_high], [low, high]) = (at.to_le_bytes(), word.to_le_bytes());
        // MOV WORD [at], word
        [0xc7, 0x06, at_low, at_high, low, high]
    };
    // XOR AX, AX; MOV DS, AX
    let mut sector = vec![0x31, 0xc0, 0x8e, 0xd8];
    let by_stack = matches!(shutdown_code, IRET | RETF);
    for (at, word) in
        [(0x467, if by_stack { STACK } else { WARM }), (0x469, 0), (STACK, WARM), (STACK + 2, 0), (STACK + 4, 2)]
    {
        sector.extend(store(at, word));
    }
    // MOV AL, 0FH; OUT 70H, AL; MOV AL, code; OUT 71H, AL; MOV DX, 3F8H; MOV AL, 'B'; OUT DX, AL
    sector.extend([0xb0, 0x0f, 0xe6, 0x70, 0xb0, shutdown_code, 0xe6, 0x71, 0xba, 0xf8, 0x03, 0xb0, b'B', 0xee]);
    sector.extend(reset);
    // HLT; JMP back
    sector.extend([0xf4, 0xeb, 0xfd]);
    sector.resize(usize::from(WARM - LOADED_AT), 0x90);
    // MOV DX, 3F8H; MOV AL, 'W'; OUT DX, AL; MOV AL, 0FH; OUT 70H, AL; IN AL, 71H; ADD AL, '0'; OUT DX, AL; MOV AL, 2; OUT F4H, AL
    sector.extend([0xba, 0xf8, 0x03, 0xb0, b'W', 0xee, 0xb0, 0x0f, 0xe6, 0x70, 0xe4, 0x71, 0x04, b'0', 0xee]);
    sector.extend([0xb0, 2, 0xe6, 0xf4, 0xf4]);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // BIOSes count in cylinders, of which one has 16 heads with 63 sectors.
    sector.resize(1 << 20, 0);
    sector
}

/// SeaBIOS boots from a virtio disk, whose boot sector resets the machine with a shutdown code: 5 and 0AH jump by way of 40:67, 0BH and 0CH
/// return through the stack there; with 0 it boots again, until the script gives up.
fn warm_reset() -> Result<(), Failed> {
    const BY_I8042: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
    const BY_PORT_92: &[u8] = &[0xb0, 0x01, 0xe6, 0x92];
    const BY_CF9: &[u8] = &[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee];
    /// INT3 with an empty IDT: LIDT of zeros at 0700H.
    const BY_TRIPLE_FAULT: &[u8] = &[0x0f, 0x01, 0x1e, 0x00, 0x07, 0xcc];
    let warm = OutcomeKind::Exit(5);
    for (pairing, shutdown_code, reset, outcome) in [
        ("bhyve-13.2@fbsd-13.2", 0x0a, BY_I8042, warm),
        ("bhyve-13.2@fbsd-13.2", 0x05, BY_PORT_92, warm),
        ("bhyve-13.2@fbsd-13.2", 0x0b, BY_CF9, warm),
        ("bhyve-13.2@fbsd-13.2", 0x0c, BY_I8042, warm),
        ("bhyve-15@fbsd-15", 0x0a, BY_I8042, warm),
        ("illumos-bhyve@illumos", 0x0a, BY_I8042, warm),
        ("propolis@illumos", 0x0a, BY_TRIPLE_FAULT, warm),
        ("bhyve-13.2@fbsd-13.2", 0x0a, BY_TRIPLE_FAULT, OutcomeKind::Exit(3)),
        ("bhyve-13.2@fbsd-13.2", 0x00, BY_I8042, OutcomeKind::Hang),
    ] {
        let mut disk = tempfile::NamedTempFile::new()?;
        disk.write_all(&warm_reset_disk(shutdown_code, reset))?;
        let guest = format!(
            r#"
[[guest]]
name = "warm-reset"
about = "a boot sector that resets with a shutdown code"
rom = "seabios"
chipset = "i440fx"
isa = ["fw_cfg", "bios-debugcon", "port92", "debug-exit"]
fw_cfg = {{ "etc/show-boot-menu" = 0 }}
rerun = true
memory_mib = 64
limits = {{ soft = {{ base_ms = 60000, per_cpu_ms = 500 }}, kvm = {{ base_ms = 60000, per_cpu_ms = 5000 }} }}
devices = [{{ kind = "virtio-blk", file = "{}" }}]
"#,
            disk.path().display()
        );
        let run = run(matrix(&guest), &format!("{pairing}/warm-reset/xapic-2/soft"), 0)?;
        let log = String::from_utf8_lossy(&run.debug).into_owned();
        let what = format!("shutdown code {shutdown_code} on {pairing}\n{log}");
        expect(run.result.outcome.kind == outcome, &what, &run)?;
        let said = console(&run);
        if outcome == warm {
            expect(said.ends_with("BW0"), &what, &run)?;
            expect(log.contains(&format!("In resume (status={shutdown_code})")), &what, &run)?;
            expect(log.matches("Booting from 0000:7c00").count() == 1, &what, &run)?;
        } else {
            expect(!said.contains('W'), &what, &run)?;
        }
    }
    Ok(())
}

fn memtest() -> Result<(), Failed> {
    let run = run(matrix(""), "bhyve-13.2@fbsd-13.2/memtest/xapic-4/soft", 0)?;
    expect(run.result.outcome.kind == OutcomeKind::Ok, "not ok", &run)?;
    expect(run.result.aps_started == 3, "not every AP ran", &run)?;
    expect(console(&run).contains("CPU: 4S / 4C / 4T"), "it did not count 4 CPUs", &run)
}
