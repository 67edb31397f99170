//! From the command line to a machine that is ready for its first vCPU: steps 1 to 5 of every personality, in pieces that
//! each puts together in its own order.

use super::Personality;
use super::bar;
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run, status};
use crate::libvmmapi::{FOUR_GIB, Generation, GuestMemory, Segment, System, Vm};
use crate::pc::isa::fw_cfg::{self, FwCfg};
use crate::pc::{Bus, Pc, acpi, mptable, smbios};
use crate::{ApicMode, Boot, Chipset, FrontendOption, IsaDevice, Launch, loader};
use std::sync::Arc;
use vmm::abi::{Errno, cap};
use vmm::engine::Reg;
use vmm::memory::PAGE_SIZE;

const MAIN: Place = Place { function: "main", file: "bhyverun.c" };

/// Room for the boot ROM below 4 GiB.
const BOOTROM_SIZE: u64 = 16 << 20;
/// `PROT_READ | PROT_EXEC`.
const PROT_READ_EXEC: i32 = 5;

/// What the guest's RTC says when the machine starts, always, so that runs are alike: the day of 13.2-RELEASE, 2023-04-11
/// 00:00 UTC, in seconds since 1970.
const RTC_EPOCH: i64 = 1_681_171_200;

/// A command line after `calc_topology`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpus {
    /// `guest_ncpus`.
    pub(super) count: u16,
    sockets: u16,
    cores: u16,
    threads: u16,
}

/// `calc_topology`: `-c N` is N sockets; a full topology has to multiply to the number of vCPUs. \[read]
pub(super) fn calc_topology(process: &Process, launch: &Launch) -> Run<Cpus> {
    if launch.vcpus == 0 {
        return Err(process.errx(status::ERROR, "Value for 'cpus' out of range: '0'"));
    }
    let Some(topology) = launch.topology else {
        return Ok(Cpus { count: launch.vcpus, sockets: launch.vcpus, cores: 1, threads: 1 });
    };
    let crate::Topology { sockets, cores, threads } = topology;
    let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
    if product > u64::from(u16::MAX) {
        let message = format!("Computed number of vCPUs too high: {product}");
        return Err(process.errx(status::ERROR, &message));
    }
    if product != u64::from(launch.vcpus) {
        let message = format!(
            "Topology ({sockets} sockets, {cores} cores, {threads} threads) does not match {} vCPUs",
            launch.vcpus
        );
        return Err(process.errx(status::ERROR, &message));
    }
    Ok(Cpus { count: launch.vcpus, sockets, cores, threads })
}

/// `do_open`: makes the VM or takes the one that is there, opens it and tells it the topology. \[read]
///
/// A VM without a boot ROM is one that a loader has made; the loader runs first, here.
pub(super) fn do_open(
    process: &Process,
    system: &Arc<dyn System>,
    launch: &Launch,
    cpus: Cpus,
    generation: &'static dyn Generation,
) -> Run<Vm> {
    let vm = open(process, system, launch, generation)?;
    set_topology(process, &vm, cpus)?;
    Ok(vm)
}

/// The part of `do_open` that makes the VM and opens it.
pub(super) fn open(
    process: &Process,
    system: &Arc<dyn System>,
    launch: &Launch,
    generation: &'static dyn Generation,
) -> Run<Vm> {
    run_loader(process, system, launch, generation)?;
    let romboot = matches!(launch.boot, Boot::Rom(_));
    let reinit = match Vm::create(&**system, &launch.vm_name, generation) {
        Ok(()) if romboot => false,
        Ok(()) => return Err(process.exit(status::ERROR, "virtual machine cannot be booted")),
        // A VM that a loader has prepared stays as it is; with a boot ROM it begins anew.
        Err(Errno::EEXIST) => romboot,
        Err(errno) => return Err(process.perror("vm_create", errno)),
    };
    let vm = Vm::open(system, &launch.vm_name, generation).map_err(|errno| process.perror("vm_open", errno))?;
    if reinit {
        vm.reinit().map_err(|errno| process.perror("vm_reinit", errno))?;
    }
    Ok(vm)
}

/// The loader, for a VM without a boot ROM: a program that runs before this one and makes the VM.
pub(super) fn run_loader(
    process: &Process,
    system: &Arc<dyn System>,
    launch: &Launch,
    generation: &'static dyn Generation,
) -> Run<()> {
    let Boot::Loader(image) = &launch.boot else { return Ok(()) };
    if process.rerun
        && let Begin::Reboot = process.begin
        && let Ok(last) = Vm::open(system, &launch.vm_name, generation)
    {
        // bhyvectl --destroy, in the script.
        let _ignored = last.destroy();
    }
    let rsdp = launch.acpi.then(acpi::rsdp);
    loader::run(system, &launch.vm_name, launch.memory_bytes, image, generation, rsdp.as_deref())
        .map_err(|failure| process.exit(status::LOADER, &format!("loader: {failure}")))
}

/// `vm_set_topology`. `maxcpus` is 0: no version lets the command line set it, and 13.1's kernel refuses anything else.
pub(super) fn set_topology(process: &Process, vm: &Vm, cpus: Cpus) -> Run<()> {
    vm.set_topology(cpus.sockets, cpus.cores, cpus.threads, 0)
        .map_err(|_| process.errx(status::EX_OSERR, "vm_set_topology"))
}

/// `num_vcpus_allowed` and what main does with it: as many as the kernel's topology says, or one when real mode is not to
/// be had. \[read]
pub(super) fn check_vcpus_allowed(process: &Process, vm: &Vm, cpus: Cpus) -> Run<()> {
    let allowed =
        vm.capability(BSP, cap::UNRESTRICTED_GUEST).and_then(|_| vm.topology()).map_or(1, |topology| topology.maxcpus);
    check_vcpus(process, cpus, allowed)
}

/// Not more vCPUs than are allowed.
pub(super) fn check_vcpus(process: &Process, cpus: Cpus, allowed: u16) -> Run<()> {
    if cpus.count <= allowed {
        return Ok(());
    }
    let line = format!("{} vCPUs requested but only {allowed} available", cpus.count);
    Err(process.exit(status::ERROR, &line))
}

/// `fbsdrun_set_capabilities` as it was before IPI_EXIT: HLT leaves the guest (`-H`), the APIC mode (`-a`, `-x`), INVPCID
/// if it can be had. \[read]
pub(super) fn set_capabilities(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    set_hlt_exit_and_apic_mode(process, vm, apic, vcpu)?;
    // The result is not looked at, as there.
    let _ignored = vm.set_capability(vcpu, cap::ENABLE_INVPCID, 1);
    Ok(())
}

/// The part of it that 10.0 has already.
pub(super) fn set_hlt_exit_and_apic_mode(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    if vm.capability(vcpu, cap::HALT_EXIT).is_err() {
        return Err(process.exit(status::ERROR, "VM exit on HLT not supported"));
    }
    // The result is not looked at, as there.
    let _ignored = vm.set_capability(vcpu, cap::HALT_EXIT, 1);
    set_apic_mode(process, vm, apic, vcpu)
}

/// `vm_set_x2apic_state`.
pub(super) fn set_apic_mode(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    vm.set_x2apic_state(vcpu, apic == ApicMode::X2apic)
        .map_err(|_| process.exit(status::ERROR, "Unable to set x2apic state (-1)"))
}

/// Memory and devices, in main's order: RAM, the boot ROM's segment, the I/O APIC's pins, the RTC, the SCI, the boot ROM's
/// contents.
pub(super) fn machine(
    process: Process,
    vm: Vm,
    launch: &Launch,
    cpus: Cpus,
    personality: &'static dyn Personality,
) -> Run<Arc<Machine>> {
    let memory = vm
        .setup_memory(launch.memory_bytes)
        .map_err(|errno| process.exit(status::ERROR, &format!("Unable to setup memory ({})", errno.number())))?;

    // init_bootrom
    let bootrom = vm
        .create_devmem(Segment::Bootrom, "bootrom", BOOTROM_SIZE)
        .map_err(|errno| process.err(status::ERROR, "init_bootrom: vm_create_devmem", errno))?;
    // ioapic_init: how many pins PCI devices share.
    let _pins = vm.ioapic_pincount();
    rtc_init(&process, &vm, &memory)?;
    // sci_init
    let _ignored = vm.isa_set_irq_level_triggered(SCI_IRQ);
    // init_pci: the LPC bridge loads the boot ROM.
    let extras = &launch.extras;
    if let Boot::Rom(rom) = &launch.boot {
        let gpa = map_bootrom(&process, &vm, rom.len() as u64)?;
        assert!(bootrom.write(gpa - (FOUR_GIB - BOOTROM_SIZE), rom), "the ROM fits: its size was checked");
        if extras.chipset == Chipset::I440fx {
            // A reset leaves the memory there as it is (SeaBIOS, src/fw/shadow.c, `qemu_prep_reset`): that is how the firmware knows
            // that this is one, and looks at the shutdown code.
            if !matches!(process.begin, Begin::Reboot) {
                shadow_bootrom(&process, &memory, rom)?;
            }
            set_cpus_count(&process, &vm, cpus)?;
        }
    }

    let with_bar = process.options.has(FrontendOption::Passthru);
    let bus = Bus {
        chipset: extras.chipset,
        movable_bar: with_bar,
        devices: &launch.pci,
        bootrom: matches!(launch.boot, Boot::Rom(_)),
    };
    let fw_cfg = extras.isa.has(IsaDevice::FwCfg).then(|| {
        let GuestMemory { lowmem, highmem, .. } = memory;
        FwCfg::new(fw_cfg::Machine { vcpus: cpus.count, lowmem, highmem }, extras)
    });
    let pc = Pc::new(process.console(), Arc::new(memory.clone()), bus, extras.isa, fw_cfg);
    // pci_lintr_route
    for route in pc.routes() {
        let _ignored = vm.isa_set_irq_level_triggered(route.irq.into());
    }
    let machine = Machine::new(process, vm, launch.apic, cpus.count, pc, memory, personality);
    if with_bar {
        bar::init(&machine)?;
    }
    Ok(machine)
}

/// The ACPI interrupt.
const SCI_IRQ: i32 = 9;

/// `rtc_init`: the size of memory in the NVRAM cells where UEFI looks for it, and the time.
fn rtc_init(process: &Process, vm: &Vm, memory: &GuestMemory) -> Run<()> {
    /// 64 KiB chunks above 16 MiB and below 4 GiB.
    const LMEM: [u8; 2] = [0x34, 0x35];
    /// 64 KiB chunks above 4 GiB.
    const HMEM: [u8; 3] = [0x5b, 0x5c, 0x5d];
    const PLACE: Place = Place { function: "rtc_init", file: "rtc.c" };
    let lowmem = (memory.lowmem.wrapping_sub(16 << 20) / (64 << 10)).to_le_bytes();
    let highmem = (memory.highmem / (64 << 10)).to_le_bytes();
    for (cell, value) in LMEM.into_iter().zip(lowmem).chain(HMEM.into_iter().zip(highmem)) {
        process.assert_ok(vm.rtc_write(cell, value), PLACE)?;
    }
    process.assert_ok(vm.rtc_settime(RTC_EPOCH), PLACE)
}

/// `bootrom_loadrom`: checks the size and maps the ROM so that it ends at 4 GiB. Returns where it begins.
fn map_bootrom(process: &Process, vm: &Vm, len: u64) -> Run<u64> {
    let refused = |errno| process.perror("device emulation initialization error", errno);
    if !(PAGE_SIZE..=BOOTROM_SIZE).contains(&len) {
        process.eprintln(&format!("Invalid bootrom size {len}"));
        return Err(refused(Errno::EINVAL));
    }
    if !len.is_multiple_of(PAGE_SIZE) {
        process.eprintln(&format!("Bootrom size {len} is not a multiple of the page size"));
        return Err(refused(Errno::EINVAL));
    }
    let gpa = FOUR_GIB - len;
    vm.map_segment(gpa, Segment::Bootrom, BOOTROM_SIZE - len, len, PROT_READ_EXEC).map_err(|errno| {
        process.eprintln(&format!("bhyve: bootrom_alloc: vm_mmap_mapseg: {errno}"));
        refused(errno)
    })?;
    Ok(gpa)
}

const PC_INIT1: Place = Place { function: "pc_init1", file: "pc_piix.c" };

/// What a PC of QEMU's does for its BIOS beside: the ROM's last 128 KiB are below 1 MiB too (`isa_bios`), here as a copy in RAM.
fn shadow_bootrom(process: &Process, memory: &GuestMemory, rom: &[u8]) -> Run<()> {
    const ONE_MIB: u64 = 1 << 20;
    const ISA_BIOS: usize = 128 << 10;
    let low = &rom[rom.len().saturating_sub(ISA_BIOS)..];
    let written = memory.write(ONE_MIB - low.len() as u64, low);
    process.assert(written, "isa_bios fits", PC_INIT1)
}

/// The CMOS of a PC of QEMU's has the number of vCPUs less one (`rtc_set_cpus_count`).
fn set_cpus_count(process: &Process, vm: &Vm, cpus: Cpus) -> Run<()> {
    const CMOS_SMP_COUNT: u8 = 0x5f;
    // More than 256 are told by fw_cfg alone.
    let count = u8::try_from(cpus.count - 1).unwrap_or(0);
    process.assert_ok(vm.rtc_write(CMOS_SMP_COUNT, count), PC_INIT1)
}

/// With a boot ROM the BSP begins at the reset vector (UNRESTRICTED_GUEST and `vcpu_reset`), else where the loader set it.
/// \[read]
pub(super) fn boot(machine: &Machine, boot: &Boot) -> Run<()> {
    let Machine { process, vm, .. } = machine;
    if let Boot::Loader(_) = boot {
        return Ok(());
    }
    if vm.set_capability(BSP, cap::UNRESTRICTED_GUEST, 1).is_err() {
        let line = "ROM boot failed: unrestricted guest capability not available";
        return Err(process.exit(status::ERROR, line));
    }
    reset_bsp(machine)
}

/// `vcpu_reset` of the BSP.
pub(super) fn reset_bsp(machine: &Machine) -> Run<()> {
    machine.process.assert_ok(machine.vm.vcpu_reset(BSP), MAIN)
}

/// Where the BSP begins, in versions that write that to RIP again.
pub(super) fn bsp_rip(machine: &Machine) -> Run<u64> {
    machine.process.assert_ok(machine.vm.register(BSP, Reg::Rip), MAIN)
}

/// The tables that tell the guest of its processors: the MP table, and ACPI's if asked for (`-A`). A BIOS that is built for QEMU's PC
/// makes its own, and is itself where these would be.
pub(super) fn build_tables(machine: &Machine, launch: &Launch) -> Run<()> {
    let Machine { process, vm, memory, .. } = machine;
    if launch.extras.chipset == Chipset::I440fx {
        return Ok(());
    }
    let routes = machine.pc.routes();
    if !memory.write(mptable::MPTABLE_BASE, &mptable::build(machine.vcpus, &routes)) {
        return Err(process.perror("error to build the guest tables", Errno::ENOMEM));
    }
    if launch.extras.smbios {
        // smbios_build
        let GuestMemory { lowmem, highmem, .. } = *memory;
        let (sockets, cores, threads) = launch
            .topology
            .map_or((machine.vcpus, 1, 1), |topology| (topology.sockets, topology.cores, topology.threads));
        let tables = smbios::build(smbios::Machine { sockets, cores, threads, lowmem, highmem });
        if !memory.write(smbios::SMBIOS_BASE, &tables) {
            return Err(process.perror("error to build the guest tables", Errno::ENOMEM));
        }
    }
    if !launch.acpi {
        return Ok(());
    }
    // acpi_build
    let hpet_capabilities = process.assert_ok(vm.hpet_capabilities(), MAIN)?;
    let tables = acpi::build(acpi::Machine { vcpus: machine.vcpus, hpet_capabilities, routes: &routes });
    let written = tables.iter().all(|(at, table)| memory.write(*at, table));
    process.assert(written, "error == 0", MAIN)
}
