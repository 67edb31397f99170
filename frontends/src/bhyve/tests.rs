//! Each version's calls in order, and its ways to end, against a scripted kernel.

use super::{PERSONALITIES, run};
use crate::libvmmapi::System;
use crate::libvmmapi::fake::{FakeKernel, Rules};
use crate::loader::OsImage;
use crate::{ApicMode, Boot, Console, Frontend, FrontendOption, Launch, Topology};
use std::sync::Arc;
use vmm::abi::illumos::{self, VmMmio};
use vmm::abi::{
    Errno, ExitInout, ExitInstEmul, ExitIpi, ExitMsr, ExitSpinupAp, ExitSuspended, ExitVmx, VmExit, exitcode, suspend,
};
use vmm::cpuset::CpuSet;
use vmm::engine::Reg;
use vmm::host::{End, Host};
use vmm::trace::{Event, GuestReport, Trace};

struct Cell {
    end: End,
    kernel: FakeKernel,
    console: Console,
    trace: Trace,
}

impl Cell {
    fn stderr(&self) -> String {
        self.console.stderr().join("\n")
    }

    fn called(&self, call: &str) -> bool {
        self.kernel.calls().iter().any(|line| line == call)
    }
}

fn launch(vcpus: u16) -> Launch {
    Launch::new("guest", vcpus, ApicMode::Xapic, Boot::Rom(vec![0xf4; 4096].into()))
}

fn launched(name: &str, rules: Rules, launch: Launch, scripts: Vec<(i32, Vec<VmExit>)>) -> Cell {
    let host = Host::virtual_time(1, 1_000_000_000);
    let kernel = FakeKernel::new(&host, rules);
    for (vcpu, exits) in scripts {
        kernel.script(vcpu, exits);
    }
    let console = Console::new();
    let system: Arc<dyn System> = Arc::new(kernel.clone());
    let Frontend { personality, options } = name.parse().expect("a frontend");
    let (task_host, task_console) = (host.clone(), console.clone());
    let finished = host.run("main", move || run(personality, options, &task_host, &system, &launch, &task_console));
    Cell { end: finished.end, kernel, console, trace: finished.trace }
}

fn cell(name: &str, vcpus: u16, scripts: Vec<(i32, Vec<VmExit>)>) -> Cell {
    launched(name, Rules::default(), launch(vcpus), scripts)
}

fn spinup_ap(vcpu: i32, rip: u64) -> VmExit {
    VmExit::new(exitcode::SPINUP_AP, &ExitSpinupAp { vcpu, _pad: 0, rip })
}

fn ipi(mode: u32, targets: &[usize]) -> VmExit {
    VmExit::new(exitcode::IPI, &ExitIpi::new(mode, 8, targets.iter().copied().collect::<CpuSet>()))
}

fn out(bytes: u8, port: u16, eax: u32) -> VmExit {
    VmExit::new(exitcode::INOUT, &ExitInout::new(bytes, false, port, eax))
}

const INIT: u32 = 0x500;
const STARTUP: u32 = 0x600;

/// `do_open`, `num_vcpus_allowed` and the BSP's capabilities: what all versions begin with.
const OPEN: &[&str] = &[
    "create guest",
    "open guest",
    "VM_SET_TOPOLOGY 2 1 1 0",
    "VM_GET_CAPABILITY 0 UNRESTRICTED_GUEST",
    "VM_GET_TOPOLOGY",
];

const MEMORY_AND_DEVICES: &[&str] = &[
    "VM_GET_MEMSEG 0, 32 bytes",
    "VM_ALLOC_MEMSEG 0, 32 bytes",
    "VM_MMAP_GETNEXT",
    "VM_MMAP_MEMSEG 0x0 = segment 0 + 0x0, 0x1000000 bytes, prot 7",
    "mmap 0x0 0x1000000",
    "VM_GET_MEMSEG 1, 32 bytes",
    "VM_ALLOC_MEMSEG 1, 32 bytes",
    "map guest.bootrom",
    "VM_IOAPIC_PINCOUNT",
    "VM_RTC_WRITE",
    "VM_RTC_WRITE",
    "VM_RTC_WRITE",
    "VM_RTC_WRITE",
    "VM_RTC_WRITE",
    "VM_RTC_SETTIME",
    "VM_ISA_SET_IRQ_TRIGGER",
    "VM_MMAP_GETNEXT",
    "VM_MMAP_MEMSEG 0xfffff000 = segment 1 + 0xfff000, 0x1000 bytes, prot 5",
];

/// UNRESTRICTED_GUEST and `vcpu_reset` of the BSP, its RIP, and the tables.
const ROM_AND_TABLES: &[&str] =
    &["VM_SET_CAPABILITY 0 UNRESTRICTED_GUEST", "registers of 0", "VM_GET_REGISTER 0 Rip", "VM_GET_HPET_CAPABILITIES"];

fn capabilities(vcpu: i32) -> Vec<String> {
    vec![
        format!("VM_GET_CAPABILITY {vcpu} HALT_EXIT"),
        format!("VM_SET_CAPABILITY {vcpu} HALT_EXIT"),
        format!("VM_SET_X2APIC_STATE {vcpu} 0"),
        format!("VM_SET_CAPABILITY {vcpu} ENABLE_INVPCID"),
    ]
}

fn sequence(parts: &[&[&str]]) -> Vec<String> {
    parts.concat().into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn assert_calls(cell: &Cell, expected: &[Vec<String>]) {
    let expected = expected.concat();
    let calls = cell.kernel.calls();
    for (i, (call, expected)) in calls.iter().zip(&expected).enumerate() {
        assert_eq!(call, expected, "call {i} of {calls:#?}");
    }
    assert_eq!(calls.len(), expected.len(), "{calls:#?}");
}

#[test]
fn f1_activates_an_ap_when_the_guest_starts_it() {
    let cell = cell("bhyve-13.1", 2, vec![(0, vec![spinup_ap(1, 0x8000)])]);
    let expected = [
        sequence(&[OPEN]),
        capabilities(0),
        sequence(&[MEMORY_AND_DEVICES, ROM_AND_TABLES]),
        // Steps 6 and 7.
        sequence(&[&["VM_ACTIVATE_CPU 0", "VM_GET_CPUS", "registers of 0", "VM_RUN 0"]]),
        // Step 8.
        sequence(&[&["registers of 1"]]),
        capabilities(1),
        sequence(&[&[
            "VM_SET_CAPABILITY 1 UNRESTRICTED_GUEST",
            "registers of 1",
            "VM_GET_SEGMENT_DESCRIPTOR 1 Cs",
            "registers of 1",
            "VM_ACTIVATE_CPU 1",
            "VM_RUN 0",
            "VM_GET_CPUS",
            "registers of 1",
            "VM_RUN 1",
        ]]),
    ];
    assert_calls(&cell, &expected);
    assert_eq!(cell.end, End::Deadlock, "both vCPUs run for ever");
    let kernel = &cell.kernel;
    assert_eq!((kernel.register(1, Reg::Cs), kernel.base(1, Reg::Cs)), (Some(0x800), Some(0x8000)));
    assert_eq!((kernel.register(1, Reg::Rip), kernel.register(1, Reg::Cr0)), (Some(0), Some(0x20)));
    assert_eq!((kernel.register(0, Reg::Rip), kernel.base(0, Reg::Cs)), (Some(0xfff0), Some(0xffff_0000)));
    assert_eq!(kernel.register(1, Reg::R8), None, "the old vcpu_reset");
}

#[test]
fn f3_activates_every_vcpu_and_suspends_the_aps() {
    let cell = cell("bhyve-0bda8d3e", 2, vec![(0, vec![ipi(INIT, &[1]), ipi(STARTUP, &[1])])]);
    let spinup = |vcpu: i32| {
        [
            sequence(&[&[&format!("VM_GET_REGISTER {vcpu} Rip")]]),
            capabilities(vcpu),
            sequence(&[&[
                &format!("VM_SET_CAPABILITY {vcpu} UNRESTRICTED_GUEST"),
                &format!("VM_SET_CAPABILITY {vcpu} IPI_EXIT"),
                &format!("VM_ACTIVATE_CPU {vcpu}"),
            ]]),
        ]
        .concat()
    };
    let expected = [
        sequence(&[OPEN]),
        capabilities(0),
        sequence(&[MEMORY_AND_DEVICES, ROM_AND_TABLES]),
        spinup(0),
        spinup(1),
        sequence(&[&["VM_SUSPEND_CPU 1", "VM_GET_CPUS", "registers of 0", "VM_RUN 0"]]),
        // INIT, then STARTUP.
        sequence(&[&["VM_SUSPEND_CPU 1", "VM_RUN 0", "registers of 1", "VM_GET_SEGMENT_DESCRIPTOR 1 Cs"]]),
        sequence(&[&["registers of 1", "VM_RESUME_CPU 1", "VM_RUN 0"]]),
        // The AP's thread comes to its turn.
        sequence(&[&["VM_GET_CPUS", "registers of 1", "VM_RUN 1"]]),
    ];
    assert_calls(&cell, &expected);
    assert_eq!(cell.kernel.register(1, Reg::R8), Some(0), "the new vcpu_reset");
}

#[test]
fn f2_is_eager_without_ipi_exit_and_resumes_on_spinup_ap() {
    let cell = cell("bhyve-9cc9abf4", 2, vec![(0, vec![spinup_ap(1, 0x8000)])]);
    let spinup = |vcpu: i32| {
        [
            sequence(&[&[&format!("VM_GET_REGISTER {vcpu} Rip")]]),
            capabilities(vcpu),
            sequence(&[&[&format!("VM_SET_CAPABILITY {vcpu} UNRESTRICTED_GUEST"), &format!("VM_ACTIVATE_CPU {vcpu}")]]),
        ]
        .concat()
    };
    let expected = [
        sequence(&[OPEN]),
        capabilities(0),
        sequence(&[MEMORY_AND_DEVICES, ROM_AND_TABLES]),
        spinup(0),
        spinup(1),
        sequence(&[&["VM_SUSPEND_CPU 1", "VM_GET_CPUS", "registers of 0", "VM_RUN 0"]]),
        sequence(&[&["registers of 1", "VM_GET_SEGMENT_DESCRIPTOR 1 Cs", "registers of 1", "VM_RESUME_CPU 1"]]),
        sequence(&[&["VM_RUN 0", "VM_GET_CPUS", "registers of 1", "VM_RUN 1"]]),
    ];
    assert_calls(&cell, &expected);
    assert_eq!(cell.kernel.register(1, Reg::R8), None, "the old vcpu_reset");
    let told = self::cell("bhyve-9cc9abf4", 2, vec![(0, vec![ipi(INIT, &[1])])]);
    assert_eq!(told.stderr(), "vm_loop: unexpected exitcode 0x18");
}

#[test]
fn f10_is_lazy_with_ipi_exit() {
    let script = vec![ipi(STARTUP, &[1]), ipi(INIT, &[1]), ipi(STARTUP, &[1])];
    let cell = cell("lazy-ipi-exit", 2, vec![(0, script)]);
    let calls = cell.kernel.calls();
    let of = |wanted: &str| calls.iter().filter(|call| call.starts_with(wanted)).cloned().collect::<Vec<_>>();
    assert_eq!(of("VM_ACTIVATE_CPU"), ["VM_ACTIVATE_CPU 0", "VM_ACTIVATE_CPU 1"], "once, when it is started");
    let of_ap = of("VM_ACTIVATE_CPU 1").len() + of("VM_SUSPEND_CPU 1").len() + of("VM_RESUME_CPU 1").len();
    assert_eq!(of_ap, 3, "INIT and the second STARTUP find it active");
    let first_run = calls.iter().position(|call| call == "VM_RUN 0").expect("it runs");
    assert!(calls[..first_run].contains(&"VM_SET_CAPABILITY 0 IPI_EXIT".to_owned()));
    assert!(!calls[..first_run].iter().any(|call| call.contains(" 1 IPI_EXIT")));
    let without = launched("lazy-ipi-exit", Rules { ipi_exit: false, ..Rules::default() }, launch(2), vec![]);
    assert!(without.called("VM_RUN 0"), "it is not asserted");
}

/// What was called before the first VM_RUN, and from there on.
fn around_first_run(cell: &Cell) -> (Vec<String>, Vec<String>) {
    let calls = cell.kernel.calls();
    let at = calls.iter().position(|call| call.starts_with("VM_RUN")).expect("it runs");
    (calls[..at].to_vec(), calls[at..].to_vec())
}

#[test]
fn a_monitor_reads_every_vcpu_before_the_first_run_and_activates_none() {
    for frontend in Frontend::all().filter(|frontend| frontend.offered().contains(&FrontendOption::Monitor)) {
        let with = cell(&format!("{}+monitor", frontend.name()), 2, vec![]);
        let without = cell(frontend.name(), 2, vec![]);
        let (mut before, after) = around_first_run(&with);
        let opened = before.iter().rposition(|call| call == "open guest").expect("the monitor opens the VM");
        for vcpu in 0..2 {
            let reads = before.iter().position(|call| *call == format!("VM_STATS {vcpu}")).expect("it is read");
            let touched = ["Rip", "Rflags", "Cr0"].map(|reg| format!("VM_GET_REGISTER {vcpu} {reg}"));
            assert_eq!(before[reads - 3..reads], touched, "{}", frontend.name());
            before.drain(reads - 4..=reads);
        }
        assert!(opened > 2);
        let (expected_before, expected_after) = around_first_run(&without);
        assert_eq!((before, after), (expected_before, expected_after), "{}: nothing else changes", frontend.name());
    }
}

#[test]
fn a_debugger_holds_every_vcpu_and_lets_all_go() {
    for frontend in Frontend::all().filter(|frontend| frontend.offered().contains(&FrontendOption::Gdb)) {
        let cell = cell(&format!("{}+gdb", frontend.name()), 2, vec![]);
        let (before, after) = around_first_run(&cell);
        let all = before.iter().position(|call| call == "VM_SUSPEND_CPU -1").expect("it suspends all");
        assert_eq!(before[all + 1], "VM_RESUME_CPU -1", "{}", frontend.name());
        let lazy = frontend.name() == "bhyve-13.1";
        assert_eq!(after.contains(&"VM_RUN 1".to_owned()), !lazy, "{after:?}");
        let suspensions = |calls: &[String]| calls.iter().filter(|call| *call == "VM_SUSPEND_CPU 1").count();
        let again = suspensions(&before[all..]) + suspensions(&after);
        assert_eq!(again > 0, frontend.personality.debugger_suspends_aps_again(), "{}", frontend.name());
    }
}

#[test]
fn a_bar_that_the_guest_moves_is_mapped_elsewhere() {
    let select = out(4, 0xcf8, 1 << 31 | 5 << 11 | 0x10);
    let script = || vec![(0, vec![select, out(4, 0xcfc, 0xc200_0000), out(4, 0xcfc, 0xfff0_0000)])];
    for frontend in Frontend::all().filter(|frontend| frontend.offered().contains(&FrontendOption::Passthru)) {
        let with = cell(&format!("{}+passthru", frontend.name()), 1, script());
        let calls = with.kernel.calls();
        let maps: Vec<_> = calls.iter().filter(|call| call.contains("MAP_MEMSEG 0x")).map(String::as_str).collect();
        let segid = if ["bhyve-15", "qemu-bhyve"].contains(&frontend.name()) { 9 } else { 2 };
        let bar = |at: &str| format!("VM_MMAP_MEMSEG {at} = segment {segid} + 0x0, 0x1000 bytes, prot 3");
        let expected = [
            &bar("0xc1000000"),
            "VM_MUNMAP_MEMSEG 0xc1000000 0x1000",
            &bar("0xc2000000"),
            "VM_MUNMAP_MEMSEG 0xc2000000 0x1000",
            &bar("0xfff00000"),
        ];
        assert_eq!(maps[maps.len() - expected.len()..], expected, "{}", frontend.name());
        let without = cell(frontend.name(), 1, script());
        let segment = format!("segment {segid}");
        assert!(!without.kernel.calls().iter().any(|call| call.contains(&segment)), "{}", frontend.name());
    }
    let rules = Rules { failing: vec![("VM_MMAP_MEMSEG 0xc2000000", Errno::EEXIST)], ..Rules::default() };
    let refused = launched("bhyve-13.2+passthru", rules, launch(1), script());
    assert_eq!(refused.stderr(), "pci_fbuf: mmap_memseg failed");
    assert!(!refused.called("VM_MUNMAP_MEMSEG 0xc2000000 0x1000"), "what was not mapped is not unmapped");
}

#[test]
fn f4_asserts_ipi_exit_before_memory_and_leaves_rip_alone() {
    let cell = cell("bhyve-13.2", 2, vec![]);
    let expected = [
        sequence(&[OPEN]),
        capabilities(0),
        sequence(&[&["VM_SET_CAPABILITY 0 IPI_EXIT"], MEMORY_AND_DEVICES, ROM_AND_TABLES, &["VM_ACTIVATE_CPU 0"]]),
        capabilities(1),
        sequence(&[&[
            "VM_SET_CAPABILITY 1 IPI_EXIT",
            "VM_SET_CAPABILITY 1 UNRESTRICTED_GUEST",
            "VM_ACTIVATE_CPU 1",
            "VM_SUSPEND_CPU 1",
            "VM_GET_CPUS",
            "VM_RUN 0",
            "VM_GET_CPUS",
            "VM_RUN 1",
        ]]),
    ];
    assert_calls(&cell, &expected);
}

#[test]
fn eager_frontends_abort_on_a_kernel_without_ipi_exit() {
    let rules = Rules { ipi_exit: false, ..Rules::default() };
    let f3 = launched("bhyve-0bda8d3e", rules.clone(), launch(2), vec![]);
    let message = "Assertion failed: (error == 0), function spinup_vcpu, file bhyverun.c.";
    assert_eq!(f3.end, End::Abort(message.to_owned()));
    assert_eq!(f3.stderr(), message);
    assert_eq!(f3.kernel.calls().last().map(String::as_str), Some("VM_SET_CAPABILITY 0 IPI_EXIT"));
    assert!(f3.called("mmap 0x0 0x1000000"));

    let f4 = launched("bhyve-13.2", rules, launch(2), vec![]);
    let message = "Assertion failed: (err == 0), function fbsdrun_set_capabilities, file bhyverun.c.";
    assert_eq!(f4.end, End::Abort(message.to_owned()));
    assert!(!f4.called("mmap 0x0 0x1000000"), "before memory is set up");
}

#[test]
fn x2apic_is_asked_for() {
    let launch = Launch { apic: ApicMode::X2apic, ..launch(1) };
    let cell = launched("bhyve-13.2", Rules::default(), launch, vec![]);
    assert!(cell.called("VM_SET_X2APIC_STATE 0 1"));
}

/// The versions of FreeBSD's bhyve that make a VM by sysctl, and know the topology.
const BY_SYSCTL: [&str; 6] =
    ["bhyve-13.1", "bhyve-9cc9abf4", "bhyve-0bda8d3e", "bhyve-13.2", "bhyve-14", "lazy-ipi-exit"];

#[test]
fn a_vm_that_is_there_is_begun_anew() {
    let taken = Rules { name_taken: true, ..Rules::default() };
    let first_calls =
        |name: &str, n: usize| launched(name, taken.clone(), launch(1), vec![]).kernel.calls()[..n].to_vec();
    for name in BY_SYSCTL {
        assert_eq!(first_calls(name, 4), ["create guest", "open guest", "VM_REINIT", "VM_SET_TOPOLOGY 1 1 1 0"]);
        let busy = Rules { failing: vec![("VM_REINIT", Errno::EBUSY)], ..taken.clone() };
        let cell = launched(name, busy, launch(1), vec![]);
        assert_eq!((&cell.end, &*cell.stderr()), (&End::Exit(4), "vm_reinit: Device busy"));
    }
    assert_eq!(first_calls("bhyve-10.0", 3), ["create guest", "open guest", "VM_REINIT"]);
    assert_eq!(first_calls("bhyve-15", 2), ["open guest", "VM_REINIT"]);
    let illumos = ["open /dev/vmmctl", "VMM_CREATE_VM", "open guest", "VM_REINIT"];
    assert_eq!(first_calls("illumos-bhyve", 4), illumos);
    let qemu = ["open guest", "open /dev/vmmctl", "VMMCTL_VM_DESTROY", "open /dev/vmmctl", "VMMCTL_VM_CREATE"];
    assert_eq!(first_calls("qemu-bhyve", 5), qemu);
    let propolis = launched("propolis", taken, launch(1), vec![]);
    assert_eq!((&propolis.end, &*propolis.stderr()), (&End::Exit(1), "propolis: VMM_CREATE_VM: File exists"));
}

/// A program that a loader can load: an ELF header and one segment.
fn os_image() -> Arc<OsImage> {
    let mut kernel = vec![0; 64 + 56];
    kernel[..6].copy_from_slice(b"\x7fELF\x02\x01");
    kernel[18] = 62;
    kernel[24..32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    kernel[32] = 64;
    kernel[54] = 56;
    kernel[56] = 1;
    kernel[64] = 1;
    kernel[64 + 24..64 + 32].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    kernel[64 + 32] = 16;
    kernel[64 + 40] = 16;
    Arc::new(OsImage { kernel: kernel.into(), ..OsImage::default() })
}

#[test]
fn a_vm_that_a_loader_made_is_run_as_it_is() {
    for personality in PERSONALITIES {
        let launch = Launch { boot: Boot::Loader(os_image()), ..launch(1) };
        let poweroff = VmExit::new(exitcode::SUSPENDED, &ExitSuspended { how: suspend::POWEROFF });
        let cell = launched(personality.name(), Rules::default(), launch, vec![(0, vec![poweroff])]);
        let status = if personality.program() == "bhyve" { 1 } else { 0 };
        assert_eq!(cell.end, End::Exit(status), "{}", personality.name());
        let calls = cell.kernel.calls();
        let begins: Vec<&String> =
            calls.iter().filter(|call| call.starts_with("create") || call.starts_with("open")).collect();
        if BY_SYSCTL.contains(&personality.name()) {
            assert_eq!(begins, ["create guest", "open guest", "create guest", "open guest"], "loader and bhyve");
        }
        assert!(!cell.called("VM_REINIT"));
        assert!(
            !calls.iter().any(|call| call.starts_with("VM_MMAP_MEMSEG") && !call.contains("segment 0")),
            "no boot ROM"
        );
        assert_eq!(cell.kernel.register(0, Reg::Rip), Some(0x20_0000), "{}", personality.name());
        assert_eq!(cell.kernel.base(0, Reg::Cs), Some(0));
    }
}

#[test]
fn a_loader_that_fails_ends_the_cell() {
    for personality in PERSONALITIES {
        let image = OsImage { kernel: Arc::from(*b"no kernel"), ..(*os_image()).clone() };
        let launch = Launch { boot: Boot::Loader(Arc::new(image)), ..launch(1) };
        let cell = launched(personality.name(), Rules::default(), launch, vec![]);
        let said = "loader: The file is neither a bzImage nor an ELF program for x86, and has no Multiboot header.";
        assert_eq!((&cell.end, &*cell.stderr()), (&End::Exit(64), said));
    }
}

#[test]
fn errors_of_the_set_up_are_told_as_there() {
    const BOOTROM: &str = "bhyve: init_bootrom: vm_create_devmem: Inappropriate ioctl for device";
    const ROM_BOOT: &str = "ROM boot failed: unrestricted guest capability not available";
    const ACTIVATE: &str = "bhyve: could not activate CPU 0: Device busy";
    type Case = (&'static str, Errno, End, &'static str);
    let create: Case = ("create", Errno::EPERM, End::Exit(4), "vm_create: Operation not permitted");
    let open: Case = ("open guest", Errno::EPERM, End::Exit(4), "vm_open: Operation not permitted");
    let topology: Case = ("VM_SET_TOPOLOGY", Errno::EINVAL, End::Exit(71), "bhyve: vm_set_topology");
    let allowed = "2 vCPUs requested but only 1 available";
    let allowed: Case = ("VM_GET_CAPABILITY 0 UNRESTRICTED_GUEST", Errno::ENOENT, End::Exit(4), allowed);
    let halt: Case = ("VM_GET_CAPABILITY 0 HALT_EXIT", Errno::ENOENT, End::Exit(4), "VM exit on HLT not supported");
    let x2apic: Case = ("VM_SET_X2APIC_STATE", Errno::EINVAL, End::Exit(4), "Unable to set x2apic state (-1)");
    let memory: Case = ("VM_ALLOC_MEMSEG 0", Errno::ENOMEM, End::Exit(4), "Unable to setup memory (12)");
    let bootrom: Case = ("VM_ALLOC_MEMSEG 1", Errno::ENOTTY, End::Exit(4), BOOTROM);
    let real_mode: Case = ("VM_SET_CAPABILITY 0 UNRESTRICTED_GUEST", Errno::EINVAL, End::Exit(4), ROM_BOOT);
    let activate: Case = ("VM_ACTIVATE_CPU 0", Errno::EBUSY, End::Exit(71), ACTIVATE);
    let run: Case = ("VM_RUN", Errno::EINVAL, End::Exit(1), "vm_run error -1, errno 22");

    let in_all = [halt.clone(), x2apic.clone(), memory.clone(), real_mode.clone()];
    let mut frontends: Vec<(&str, Vec<Case>)> = Vec::new();
    for name in BY_SYSCTL {
        let own = [&create, &open, &topology, &allowed, &bootrom, &activate, &run].map(Clone::clone);
        frontends.push((name, [&in_all[..], &own].concat()));
    }
    let own = [&create, &open, &allowed, &bootrom, &run].map(Clone::clone);
    frontends.push(("bhyve-10.0", [&in_all[..], &own].concat()));
    let own = [
        ("open guest", Errno::EPERM, End::Exit(4), "bhyve: vm_openf: Operation not permitted"),
        ("open /dev/vmmctl", Errno::ENOENT, End::Exit(4), "bhyve: vm_openf: No such file or directory"),
        ("VMMCTL_VM_CREATE", Errno::EINVAL, End::Exit(4), "bhyve: vm_openf: Invalid argument"),
        ("VM_ALLOC_MEMSEG 8", Errno::ENOTTY, End::Exit(4), BOOTROM),
        ("VM_RUN", Errno::EINVAL, End::Exit(4), "vm_run error -1, errno 22"),
        topology.clone(),
        allowed.clone(),
        activate.clone(),
    ];
    frontends.push(("bhyve-15", [&in_all[..], &own].concat()));
    let own = [
        ("open /dev/vmmctl", Errno::ENOENT, End::Exit(4), "vm_create: No such file or directory"),
        ("VMM_CREATE_VM", Errno::ENOTTY, End::Exit(4), "vm_create: Inappropriate ioctl for device"),
        ("VM_SET_CAPABILITY 0 HALT_EXIT", Errno::ENOENT, End::Exit(4), "VM exit on HLT not supported"),
    ];
    let shared = [&open, &topology, &x2apic, &memory, &bootrom, &activate, &run].map(Clone::clone);
    frontends.push(("illumos-bhyve", [&own[..], &shared].concat()));
    frontends.push((
        "propolis",
        vec![
            (
                "open /dev/vmmctl",
                Errno::ENOENT,
                End::Exit(1),
                "propolis: VMM_INTERFACE_VERSION: No such file or directory",
            ),
            (
                "VMM_INTERFACE_VERSION",
                Errno::ENOTTY,
                End::Exit(1),
                "propolis: VMM_INTERFACE_VERSION: Inappropriate ioctl for device",
            ),
            ("VM_ACTIVATE_CPU 1", Errno::EBUSY, End::Exit(1), "propolis: vCPU 1: VM_ACTIVATE_CPU: Device busy"),
            ("VM_RUN", Errno::EINVAL, End::Exit(1), "propolis: VM_RUN: Invalid argument"),
        ],
    ));
    let no_vmmctl = "bhyve: vm_openf('guest') failed: No such file or directory (errno=2)";
    let no_run = "Error running vm: Invalid argument (errno=22, error=-1)";
    frontends.push((
        "qemu-bhyve",
        vec![
            ("open /dev/vmmctl", Errno::ENOENT, End::Exit(1), no_vmmctl),
            ("VM_RUN", Errno::EINVAL, End::Exit(1), no_run),
        ],
    ));
    assert_eq!(frontends.len(), PERSONALITIES.len());
    for (name, cases) in frontends {
        for (call, errno, end, stderr) in cases {
            let rules = Rules { failing: vec![(call, errno)], ..Rules::default() };
            let cell = launched(name, rules, launch(2), vec![]);
            assert_eq!((&cell.end, &*cell.stderr()), (&end, stderr), "{name} {call}");
        }
    }
}

/// The script by which a version is told to start AP 1.
fn start_ap_1(name: &str) -> Vec<VmExit> {
    match name {
        "bhyve-10.0" | "bhyve-13.1" | "bhyve-9cc9abf4" => vec![spinup_ap(1, 0x8000)],
        "illumos-bhyve" | "propolis" => vec![],
        "lazy-ipi-exit" => vec![ipi(STARTUP, &[1])],
        _ => vec![ipi(INIT, &[1]), ipi(STARTUP, &[1])],
    }
}

/// What each version calls from its start to the start of an AP. Reviewed against the steps at the head of its module.
#[test]
fn start_up_sequences() {
    for frontend in Frontend::all() {
        let cell = cell(frontend.name(), 2, vec![(0, start_ap_1(frontend.name()))]);
        assert_eq!(cell.end, End::Deadlock, "{}: both vCPUs run for ever", frontend.name());
        let mut lines: Vec<String> = Vec::new();
        for call in cell.kernel.calls() {
            match lines.last_mut() {
                // Five cells of NVRAM.
                Some(last) if *last == call && call == "VM_RTC_WRITE" => {}
                _ => lines.push(call),
            }
        }
        insta::assert_snapshot!(format!("start_up_of_{}", frontend.name()), lines.join("\n"));
    }
}

#[test]
fn propolis_refuses_another_version_of_the_interface() {
    let rules = Rules { interface_version: 17, ..Rules::default() };
    let cell = launched("propolis", rules, launch(1), vec![]);
    assert_eq!((&cell.end, &*cell.stderr()), (&End::Exit(1), "propolis: kernel VMM API version is 17, 18 is expected"));
    assert!(!cell.called("VMM_CREATE_VM"));
}

#[test]
fn propolis_panics_on_exits_that_never_come_and_ends_on_unknown_ones() {
    let of = |code: u32| cell("propolis", 1, vec![(0, vec![VmExit { exitcode: code, ..VmExit::default() }])]);
    for (code, name) in [(5, "HLT"), (7, "PAUSE"), (10, "RUN_STATE"), (24, "HT")] {
        let message = format!("panicked: Unexpected internal exit: VM_EXITCODE_{name}");
        assert_eq!(of(code).end, End::Abort(message));
    }
    assert_eq!(of(21).end, End::Exit(1));
    assert_eq!(of(99).stderr(), "propolis: vCPU 0 cannot handle exit 99 at 0x0");
}

#[test]
fn propolis_begins_anew_after_a_reset() {
    let reset = out(1, 0xcf9, 6);
    let cell = cell("propolis", 2, vec![(0, vec![reset])]);
    let calls = cell.kernel.calls();
    let of = |call: &str| calls.iter().filter(|line| *line == call).count();
    assert_eq!((of("VMM_CREATE_VM"), of("VM_REINIT"), of("VM_SUSPEND reset")), (1, 1, 1));
    assert_eq!((of("VM_RESET_CPU 1 0"), of("VM_SET_RUN_STATE 0 0x2")), (2, 2));
}

#[test]
fn illumos_brings_results_into_the_next_vm_run() {
    let input = VmExit::new(exitcode::INOUT, &ExitInout::new(1, true, 0x3fd, 0x1122_3344));
    for name in ["illumos-bhyve", "propolis"] {
        let cell = cell(name, 1, vec![(0, vec![out(1, 0x3f8, u32::from(b'!')), input])]);
        assert_eq!(cell.console.serial(), b"!");
        let calls = cell.kernel.calls();
        let runs: Vec<_> = calls.iter().filter(|call| call.starts_with("VM_RUN")).map(String::as_str).collect();
        assert_eq!(runs, ["VM_RUN 0", "VM_RUN 0, port 0x3f8 is 0x21", "VM_RUN 0, port 0x3fd is 0x60"], "{name}");
    }
    let mmio = VmMmio { bytes: 4, read: 1, gpa: 0xe000_0000, ..VmMmio::default() };
    let cell = cell("illumos-bhyve", 1, vec![(0, vec![VmExit::new(illumos::exitcode::MMIO, &mmio)])]);
    assert!(cell.called("VM_RUN 0, memory at 0xe0000000 is 0x12751275"));
}

#[test]
fn qemu_keeps_a_halted_ap_out_of_the_kernel_until_its_startup() {
    let early = cell("qemu-bhyve", 2, vec![(0, vec![ipi(STARTUP, &[1])])]);
    let activated = |cell: &Cell| cell.kernel.calls().iter().filter(|call| *call == "VM_ACTIVATE_CPU 1").count();
    assert_eq!(activated(&early), 2, "once at the start, once idempotently");
    assert_eq!(early.kernel.base(1, Reg::Cs), None, "a STARTUP without an INIT does not count");
    let proper = cell("qemu-bhyve", 2, vec![(0, vec![ipi(INIT, &[1]), ipi(STARTUP, &[1]), ipi(STARTUP, &[1])])]);
    assert_eq!(proper.kernel.base(1, Reg::Cs), Some(0x8000));
    let reads = proper.kernel.calls().iter().filter(|call| *call == "VM_GET_SEGMENT_DESCRIPTOR 1 Cs").count();
    assert_eq!(reads, 1, "nor does a second one");
    let nobody = cell("qemu-bhyve", 2, vec![]);
    let first_of_ap = nobody.trace.records.last().expect("an end").t_ns;
    assert!(nobody.called("VM_RUN 1") && first_of_ap >= 200_000_000, "it runs after 200 ms, started or not");
}

/// Reports by which every one of two vCPUs is online.
fn both_online() -> Vec<VmExit> {
    vec![out(4, 0x5350, 1 << 24), out(4, 0x5350, 3 << 24 | 1)]
}

#[test]
fn a_checkpoint_is_restored_by_a_new_process_in_the_order_of_its_version() {
    let poweroff = out(2, 0x404, 5 << 10 | 1 << 13);
    for frontend in Frontend::all().filter(|frontend| frontend.offered().contains(&FrontendOption::Restore)) {
        let name = frontend.name();
        let rules = Rules { debug_exits: true, ..Rules::default() };
        // The AP gets to its script only after the restore: before, it waits for a STARTUP.
        let scripts = vec![(0, both_online()), (1, vec![poweroff])];
        let cell = launched(&format!("{name}+restore"), rules.clone(), launch(2), scripts);
        assert_eq!(cell.end, End::Exit(1), "{name} {:?}", cell.console.stderr());
        let calls = cell.kernel.calls();
        let destroyed = ["destroy guest", "VMMCTL_VM_DESTROY"];
        let end = calls.iter().position(|call| destroyed.contains(&call.as_str())).expect("the first process ends");
        let (first, second) = calls.split_at(end);
        let paused = first.iter().position(|call| call == "VM_SUSPEND_CPU -1").expect("a pause");
        let saves = |calls: &[String]| calls.iter().filter(|call| call.starts_with("VM_SNAPSHOT_REQ save")).count();
        assert_eq!((saves(&first[paused..]), saves(&calls)), (9, 9), "{name}");
        let restored: Vec<usize> =
            (0..second.len()).filter(|i| second[*i].starts_with("VM_SNAPSHOT_REQ restore")).collect();
        assert_eq!(restored.len(), 9, "{name}");
        let ap = second.iter().position(|call| call == "VM_ACTIVATE_CPU 1").expect("the AP is added");
        let first_after_9ff3e8b7f090 = ["bhyve-14", "bhyve-15"].contains(&name);
        assert_eq!(ap < restored[0], first_after_9ff3e8b7f090, "{name}: {second:#?}");
        let touched = second[..restored[0]].iter().any(|call| call.split(' ').nth(1) == Some("1"));
        assert!(first_after_9ff3e8b7f090 || !touched || name == "bhyve-13.1+monitor", "{name}: {second:#?}");

        let failing = vec![("VM_SNAPSHOT_REQ restore 2", Errno::EINVAL)];
        let scripts = vec![(0, both_online())];
        let refused = launched(&format!("{name}+restore"), Rules { failing, ..rules.clone() }, launch(2), scripts);
        assert_eq!((&refused.end, &*refused.stderr()), (&End::Exit(1), "Failed to restore kernel structs."), "{name}");

        let failing = vec![("VM_SNAPSHOT_REQ save 6", Errno::ENOTTY)];
        let scripts = vec![(0, both_online())];
        let not_taken = launched(&format!("{name}+restore"), Rules { failing, ..rules }, launch(2), scripts);
        assert_eq!(not_taken.stderr(), "Failed to snapshot vm kernel data.", "{name}");
        assert!(not_taken.called("VM_RESUME_CPU -1") && not_taken.end == End::Deadlock, "{name}: the VM goes on");
    }
}

/// illumos has 32 at most, 13.x 256.
#[test]
fn a_thousand_vcpus() {
    for name in ["bhyve-14", "bhyve-15", "qemu-bhyve"] {
        let rules = Rules { maxcpus: 1024, ..Rules::default() };
        let cell = launched(name, rules, launch(1000), vec![]);
        assert!(cell.called("VM_ACTIVATE_CPU 999") && cell.called("VM_RUN 999"), "{name}: {:?}", cell.console.stderr());
        assert_eq!(cell.kernel.memory("ram", 0xf2400, 8), b"RSD PTR ");
    }
}

/// The set of an IPI exit is as wide as the kernel's from 14 on.
#[test]
fn all_members_of_a_mask_are_started() {
    let raw = ipi(STARTUP, &[2, 255]);
    for name in ["bhyve-14", "bhyve-15"] {
        let rules = Rules { maxcpus: 256, ..Rules::default() };
        let cell = launched(name, rules, launch(256), vec![(0, vec![raw])]);
        let calls = cell.kernel.calls();
        let resumed: Vec<_> =
            calls.iter().filter(|call| call.starts_with("VM_RESUME_CPU")).map(String::as_str).collect();
        assert_eq!(resumed, ["VM_RESUME_CPU 0", "VM_RESUME_CPU 2", "VM_RESUME_CPU 255"]);
    }
}

#[test]
fn invpcid_may_be_missing() {
    let rules = Rules { failing: vec![("VM_SET_CAPABILITY 0 ENABLE_INVPCID", Errno::ENOENT)], ..Rules::default() };
    assert!(launched("bhyve-13.1", rules, launch(1), vec![]).called("VM_RUN 0"));
}

#[test]
fn topologies() {
    let with = |vcpus, sockets, cores, threads| {
        let launch = Launch { topology: Some(Topology { sockets, cores, threads }), ..launch(vcpus) };
        launched("bhyve-13.2", Rules::default(), launch, vec![])
    };
    assert!(with(8, 2, 2, 2).called("VM_SET_TOPOLOGY 2 2 2 0"));
    let mismatch = with(8, 2, 2, 1);
    assert_eq!(mismatch.end, End::Exit(4));
    assert_eq!(mismatch.stderr(), "bhyve: Topology (2 sockets, 2 cores, 1 threads) does not match 8 vCPUs");
    assert!(mismatch.kernel.calls().is_empty());
    let many = with(8, 256, 256, 2);
    assert_eq!(
        (many.end.clone(), many.stderr()),
        (End::Exit(4), "bhyve: Computed number of vCPUs too high: 131072".to_owned())
    );
    let too_many = launched("bhyve-13.1", Rules::default(), launch(64), vec![]);
    assert_eq!((too_many.end.clone(), too_many.stderr()), (End::Exit(71), "bhyve: vm_set_topology".to_owned()));
}

#[test]
fn memory_that_does_not_fit_goes_above_4_gib() {
    let launch = Launch { memory_bytes: (3 << 30) + (32 << 20), ..launch(1) };
    let cell = launched("bhyve-13.1", Rules::default(), launch, vec![]);
    let expected = [
        "VM_MMAP_MEMSEG 0x100000000 = segment 0 + 0x100000000, 0x2000000 bytes, prot 7",
        "mmap 0x100000000 0x2000000",
        "VM_MMAP_MEMSEG 0x0 = segment 0 + 0x0, 0xc0000000 bytes, prot 7",
        "mmap 0x0 0xc0000000",
    ];
    let calls = cell.kernel.calls();
    let maps: Vec<_> = calls.iter().filter(|call| call.contains("segment 0") || call.starts_with("mmap")).collect();
    assert_eq!(maps, expected.iter().collect::<Vec<_>>());
}

#[test]
fn boot_roms_have_whole_pages() {
    for (len, message) in
        [(100, "Invalid bootrom size 100"), (5000, "Bootrom size 5000 is not a multiple of the page size")]
    {
        let launch = Launch { boot: Boot::Rom(vec![0; len].into()), ..launch(1) };
        let cell = launched("bhyve-13.1", Rules::default(), launch, vec![]);
        assert_eq!(cell.end, End::Exit(4));
        assert_eq!(cell.console.stderr()[0], message);
    }
}

#[test]
fn the_guest_finds_rom_and_tables() {
    let cell = cell("bhyve-13.1", 2, vec![]);
    assert_eq!(cell.kernel.memory("bootrom", 0xff_f000, 4096), vec![0xf4; 4096]);
    assert_eq!(cell.kernel.memory("bootrom", 0, 16), [0; 16]);
    assert_eq!(cell.kernel.memory("ram", 0xf0000, 4), b"_MP_");
    assert_eq!(cell.kernel.memory("ram", 0xf2400, 8), b"RSD PTR ");

    let without = launched("bhyve-13.1", Rules::default(), Launch { acpi: false, ..launch(2) }, vec![]);
    assert_eq!(without.kernel.memory("ram", 0xf0000, 4), b"_MP_");
    assert_eq!(without.kernel.memory("ram", 0xf2400, 8), [0; 8]);
    assert!(!without.called("VM_GET_HPET_CAPABILITIES"));
}

#[test]
fn f1_asserts_that_the_ap_is_one_of_its_own() {
    for (vcpu, expression) in [(2, "newcpu < guest_ncpus"), (0, "newcpu != 0")] {
        let cell = cell("bhyve-13.1", 2, vec![(0, vec![spinup_ap(vcpu, 0x8000)])]);
        let message = format!("Assertion failed: ({expression}), function spinup_ap, file spinup_ap.c.");
        assert_eq!(cell.end, End::Abort(message));
    }
}

#[test]
fn f1_lets_only_the_bsp_start_aps() {
    let cell = cell("bhyve-13.1", 3, vec![(0, vec![spinup_ap(1, 0x8000)]), (1, vec![spinup_ap(2, 0x9000)])]);
    let message = "Assertion failed: (fromcpu == BSP), function fbsdrun_addcpu, file bhyverun.c.";
    assert_eq!(cell.end, End::Abort(message.to_owned()));
    assert!(cell.called("VM_SET_CAPABILITY 2 UNRESTRICTED_GUEST"), "the assertion comes last");
    assert!(!cell.called("VM_ACTIVATE_CPU 2"));
}

#[test]
fn f1_does_not_start_an_ap_twice() {
    let cell = cell("bhyve-13.1", 2, vec![(0, vec![spinup_ap(1, 0x8000), spinup_ap(1, 0x8000)])]);
    assert_eq!(cell.end, End::Exit(71));
    assert_eq!(cell.stderr(), "bhyve: could not activate CPU 1: Device busy");
}

#[test]
fn exit_codes_that_a_version_does_not_know() {
    let f4 = cell("bhyve-13.2", 2, vec![(0, vec![spinup_ap(1, 0x8000)])]);
    assert_eq!((f4.end.clone(), f4.stderr()), (End::Exit(4), "vm_loop: unexpected exitcode 0xa".to_owned()));
    let f1 = cell("bhyve-13.1", 2, vec![(0, vec![ipi(INIT, &[1])])]);
    assert_eq!((f1.end.clone(), f1.stderr()), (End::Exit(4), "vm_loop: unexpected exitcode 0x18".to_owned()));
}

#[test]
fn f3_still_understands_spinup_ap_and_resumes() {
    let cell = cell("bhyve-0bda8d3e", 2, vec![(0, vec![spinup_ap(1, 0x8000)])]);
    assert!(cell.called("VM_RESUME_CPU 1"));
    assert_eq!(cell.kernel.base(1, Reg::Cs), Some(0x8000));
    assert_eq!(cell.kernel.calls().iter().filter(|call| call.starts_with("VM_ACTIVATE_CPU")).count(), 2);
}

#[test]
fn an_ap_that_cannot_be_suspended_aborts() {
    for name in ["bhyve-0bda8d3e", "bhyve-13.2"] {
        let cell = cell(name, 2, vec![(0, vec![ipi(INIT, &[7])])]);
        let message = "bhyve: vmexit_ipi: failed to suspend cpu 7";
        assert_eq!(cell.end, End::Abort(message.to_owned()));
    }
    let asserted = cell("bhyve-13.2", 2, vec![(0, vec![ipi(STARTUP, &[7])])]);
    assert!(matches!(asserted.end, End::Abort(message) if message.contains("newcpu < guest_ncpus")));
}

#[test]
fn f4_sleeps_while_an_ap_is_suspended() {
    let debug = VmExit { exitcode: exitcode::DEBUG, ..VmExit::default() };
    let script = || vec![(0, vec![debug; 3].into_iter().chain([out(1, 0xcf9, 6)]).collect())];
    let ended_at = |cell: &Cell| cell.trace.records.last().expect("an end").t_ns;
    let f4 = cell("bhyve-13.2", 1, script());
    assert_eq!((&f4.end, ended_at(&f4) / 1_000_000), (&End::Exit(0), 3));
    let f3 = cell("bhyve-0bda8d3e", 1, script());
    assert_eq!((&f3.end, ended_at(&f3) / 1_000_000), (&End::Exit(0), 0));
}

#[test]
fn the_bsp_waits_for_the_aps_and_says_why_it_ends() {
    let poweroff = out(2, 0x404, 5 << 10 | 1 << 13);
    for personality in PERSONALITIES.into_iter().filter(|personality| personality.program() == "bhyve") {
        let name = personality.name();
        let start =
            if name == "illumos-bhyve" { vec![] } else { start_ap_1(name).split_off(start_ap_1(name).len() - 1) };
        // The AP powers the machine off, after the BSP has gone back to the guest.
        let cell = cell(name, 2, vec![(0, start), (1, vec![poweroff])]);
        assert_eq!(cell.end, End::Exit(1), "{}", personality.name());
        assert!(cell.called("VM_SUSPEND poweroff"));
        let ended: Vec<_> = cell.trace.records.iter().filter(|record| record.event == Event::TaskEnded).collect();
        assert_eq!(ended.first().map(|record| &*record.task), Some("vcpu 1"));
    }
    for (how, status) in
        [(suspend::RESET, 0), (suspend::POWEROFF, 1), (suspend::HALT, 2), (suspend::TRIPLEFAULT, 3), (9, 100)]
    {
        let exit = VmExit::new(exitcode::SUSPENDED, &ExitSuspended { how });
        let cell = cell("bhyve-13.1", 1, vec![(0, vec![exit])]);
        assert_eq!(cell.end, End::Exit(status));
        assert_eq!(cell.stderr(), if status == 100 { "vmexit_suspend: invalid reason 9" } else { "" });
    }
}

#[test]
fn unknown_msrs_fault() {
    let wrmsr = VmExit::new(exitcode::WRMSR, &ExitMsr { code: 0x830, _pad: 0, wval: 0x1_0000_4500 });
    let rdmsr = VmExit::new(exitcode::RDMSR, &ExitMsr { code: 0x1234, _pad: 0, wval: 0 });
    let known = VmExit::new(exitcode::RDMSR, &ExitMsr { code: 0x3a, _pad: 0, wval: 0 });
    let cell = cell("bhyve-13.1", 1, vec![(0, vec![wrmsr, rdmsr, known])]);
    let stderr = ["wrmsr to register 0x830(0x100004500) on vcpu 0", "rdmsr to register 0x1234 on vcpu 0"];
    assert_eq!(cell.console.stderr(), stderr);
    let faults = cell.kernel.calls().iter().filter(|call| *call == "VM_INJECT_EXCEPTION 0 vector 13 restart 1").count();
    assert_eq!(faults, 2);
    assert_eq!((cell.kernel.register(0, Reg::Rax), cell.kernel.register(0, Reg::Rdx)), (Some(1), Some(0)));
}

#[test]
fn ports_answer_and_report() {
    let input = VmExit::new(exitcode::INOUT, &ExitInout::new(1, true, 0x3fd, 0x1122_3344));
    let report = out(4, 0x5350, 3 << 24 | 1);
    let cell = cell("bhyve-13.1", 1, vec![(0, vec![out(1, 0x3f8, u32::from(b'!')), report, input])]);
    assert_eq!(cell.console.serial(), b"!");
    assert_eq!(cell.kernel.register(0, Reg::Rax).map(|rax| rax & !0xff), Some(0x1122_3300));
    let reports: Vec<_> = cell.trace.records.iter().filter(|record| matches!(record.event, Event::Report(_))).collect();
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].vcpu, &reports[0].event), (Some(0), &Event::Report(GuestReport::ApOnline { apic_id: 1 })));
}

#[test]
fn what_cannot_be_emulated_aborts() {
    let cell_of = |exit| cell("bhyve-13.1", 1, vec![(0, vec![exit])]);
    let port = cell_of(VmExit { rip: 0x1000, ..out(1, 0x404, 0) });
    assert_eq!(port.end, End::Abort("Unhandled outb 0x0404 at 0x1000".to_owned()));
    let vmx = cell_of(VmExit::new(exitcode::VMX, &ExitVmx { exit_reason: 48, ..ExitVmx::default() }));
    assert!(matches!(&vmx.end, End::Abort(message) if message.contains("exit_reason 48 (EPT violation)")));
    assert_eq!(vmx.console.stderr().len(), 9);

    let mut inst_emul = ExitInstEmul { gpa: 0xd000_0000, ..ExitInstEmul::default() };
    inst_emul.paging.cpu_mode = 3;
    inst_emul.vie[..2].copy_from_slice(&[0x01, 0x07]); // add [rdi], eax
    inst_emul.vie[15] = 2;
    let add = cell_of(VmExit { rip: 0x1000, ..VmExit::new(exitcode::INST_EMUL, &inst_emul) });
    assert_eq!(add.end, End::Abort("Failed to emulate instruction sequence [ 0107 ] at 0x1000".to_owned()));
    inst_emul.vie[0] = 0x89; // mov [rdi], eax
    inst_emul.gpa = 5 << 30;
    let high = cell_of(VmExit { rip: 0x1000, ..VmExit::new(exitcode::INST_EMUL, &inst_emul) });
    let message = "Failed to emulate instruction sequence [ 8907 ] at 0x1000";
    assert_eq!(high.console.stderr(), ["Unhandled memory access to 0x140000000", message]);
}

#[test]
fn memory_that_is_none_reads_as_ones() {
    let mut inst_emul = ExitInstEmul { gpa: 0xd000_0000, ..ExitInstEmul::default() };
    inst_emul.paging.cpu_mode = 3;
    inst_emul.vie[..3].copy_from_slice(&[0x48, 0x8b, 0x07]); // mov rax, [rdi]
    inst_emul.vie[15] = 3;
    let exit = VmExit { rip: 0x1000, ..VmExit::new(exitcode::INST_EMUL, &inst_emul) };
    let cell = cell("bhyve-13.1", 1, vec![(0, vec![exit])]);
    assert_eq!(cell.kernel.register(0, Reg::Rax), Some(u64::MAX));
    assert_eq!(cell.kernel.register(0, Reg::Rip), Some(0x1003));
}
