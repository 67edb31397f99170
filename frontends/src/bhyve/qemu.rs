//! F9, `qemu-bhyve`: QEMU with a bhyve accelerator, a fork that FreeBSD does not ship. \[read: accelerator and thread loop of the fork]
//!
//! 1. A VM of this name is destroyed; one is made (`vm_openf`, VMMAPI_OPEN_CREATE) and told the topology.
//! 2. For each vCPU, in its thread: HLT exit, APIC mode, INVPCID, IPI_EXIT, UNRESTRICTED_GUEST; the BSP is reset (asserted); activate;
//!    suspend. Results are only printed. The fork always turns x2APIC off; here the launch says.
//! 3. The BSP's thread resumes its vCPU and runs it. An AP is halted: its thread looks for work every millisecond, and **does not call
//!    VM_RUN** \[read], so it serves no rendezvous: the sender of an INIT waits for it in the kernel. After 200 ms without work the
//!    thread takes it that an interrupt was lost, and runs the vCPU from the reset vector. \[read] With one AP its INIT is there by
//!    then; with more, those that are not started yet go astray in the guest's firmware.
//! 4. VM_EXITCODE_IPI: INIT marks the target and kicks it; STARTUP activates it (EBUSY is fine), suspends it, leaves the vector and wakes
//!    it. What follows is done by the target's thread: INIT resets the registers, and an AP is halted again until its STARTUP;
//!    STARTUP counts only after an INIT, and sets real mode at the vector.
//! 5. Each time the thread enters the guest anew it resumes its vCPU first. DEBUG is how a kick ends VM_RUN.
//! 6. Reset and power-off: exit 0. Other ends of the VM leave the threads as they are. VM_RUN fails: the thread says so, and
//!    tries again for ever; here the process ends with 1.
//!
//! The devices, ROM and tables around the processors are bhyve's, for QEMU's own are not the point.

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run, status};
use super::{Personality, ap, monitor, setup, vm_loop};
use crate::libvmmapi::{Exit, Reason, System, V15, Vm};
use crate::{ApicMode, Boot, FrontendOption, Launch};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use vmm::abi::{Errno, cap, exitcode, suspend};
use vmm::host::{End, WaitChannel, Woken};

/// `cpu_interrupt`: a vCPU has work.
const WORK: WaitChannel = WaitChannel(0xb47e_0005);

/// How long a halted vCPU's thread looks for work: 200 times 1 ms.
const HALT_POLL_NS: u64 = 200_000_000;

/// After reset and power-off.
const ENDED: i32 = 0;

/// What QEMU keeps of each vCPU, shared by the threads.
#[derive(Debug, Default)]
pub(super) struct Cpus(Mutex<BTreeMap<i32, Cpu>>);

#[derive(Clone, Copy, Debug, Default)]
struct Cpu {
    halted: bool,
    /// CPU_INTERRUPT_INIT.
    init: bool,
    /// CPU_INTERRUPT_SIPI, and the vector.
    sipi: Option<u8>,
    /// An INIT came, and no STARTUP since.
    wait_for_sipi: bool,
}

impl Cpu {
    fn has_work(self) -> bool {
        self.init || self.sipi.is_some()
    }
}

impl Cpus {
    fn with<R>(&self, vcpu: i32, f: impl FnOnce(&mut Cpu) -> R) -> R {
        f(self.0.lock().entry(vcpu).or_default())
    }
}

pub(super) struct QemuBhyve;

impl Personality for QemuBhyve {
    fn name(&self) -> &'static str {
        "qemu-bhyve"
    }

    fn about(&self) -> &'static str {
        "QEMU with a bhyve accelerator: all vCPUs active and suspended, APs halted outside VM_RUN until their STARTUP comes as an IPI exit"
    }

    fn options(&self) -> &'static [FrontendOption] {
        &[FrontendOption::Monitor, FrontendOption::Passthru]
    }

    fn program(&self) -> &'static str {
        "qemu-system-x86_64"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        // Step 1.
        let vm = open(&process, system, launch)?;
        setup::set_topology(&process, &vm, cpus)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::build_tables(&machine, launch)?;
        monitor::look(&machine);
        // Steps 2 and 3.
        for vcpu in 0..i32::from(cpus.count) {
            init_vcpu(&machine, launch, vcpu)?;
            machine.start_thread(vcpu, None);
        }
        machine.mevent_dispatch()
    }

    /// `qemu_bhyve_cpu_thread_fn` and `bhyve_vcpu_exec`.
    fn thread(&self, machine: &Arc<Machine>, vcpu: i32, _start_rip: Option<u64>) -> Run<()> {
        let Machine { vm, qemu, .. } = &**machine;
        loop {
            if qemu.with(vcpu, |cpu| cpu.halted && !cpu.has_work()) {
                wait_for_work(machine, vcpu);
            }
            process_work(machine, vcpu)?;
            if qemu.with(vcpu, |cpu| cpu.halted) {
                continue;
            }
            let _ignored = vm.resume_cpu(vcpu);
            loop {
                let exit = vm_loop::enter(machine, vcpu)?;
                if vm_loop::handle(machine, vcpu, &exit)?.is_break() {
                    return Ok(());
                }
                if exit.reason == Reason::Debug || qemu.with(vcpu, |cpu| cpu.has_work()) {
                    break;
                }
            }
        }
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Ipi { mode, vector, targets } => exits::handle_ipi_leniently(mode, vector, targets),
            Reason::Debug => Action::Continue,
            Reason::Other if exit.code == exitcode::PAUSE => Action::Continue,
            Reason::Suspended { how: suspend::RESET | suspend::POWEROFF } => Action::Exit { status: ENDED, line: None },
            Reason::Suspended { .. } => Action::Park,
            _ => exits::handle(vcpu, exit),
        }
    }

    /// STARTUP.
    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        let Machine { process, vm, qemu, .. } = &**machine;
        let _idempotent = vm.activate_cpu(vcpu);
        let _ignored = vm.suspend_cpu(vcpu);
        qemu.with(vcpu, |cpu| cpu.sipi = Some((rip >> 12) as u8));
        process.host.wake(WORK);
        Ok(())
    }

    /// INIT.
    fn init_ap(&self, machine: &Machine, _exit: &Exit, vcpu: i32) -> Run<()> {
        let Machine { process, vm, qemu, .. } = machine;
        qemu.with(vcpu, |cpu| cpu.init = true);
        // qemu_cpu_kick: the signal's handler suspends the vCPU, which ends its VM_RUN.
        let _ignored = vm.suspend_cpu(vcpu);
        process.host.wake(WORK);
        Ok(())
    }

    fn vm_run_failed(&self, process: &Process, errno: Errno) -> End {
        process.exit(status::VM_RUN_FAILED, &format!("Error running vm: {errno} (errno={}, error=-1)", errno.number()))
    }
}

/// `do_open`: the last VM of this name is destroyed first.
fn open(process: &Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Vm> {
    let name = &launch.vm_name;
    if let Ok(last) = Vm::open(system, name, &V15) {
        let _ignored = last.destroy();
    }
    // `-kernel`
    setup::run_loader(process, system, launch, &V15)?;
    let made = match launch.boot {
        Boot::Rom(_) => Vm::create(&**system, name, &V15),
        Boot::Loader(_) => Ok(()),
    };
    made.and_then(|()| Vm::open(system, name, &V15)).map_err(|errno| {
        let line = format!("bhyve: vm_openf('{name}') failed: {errno} (errno={})", errno.number());
        process.exit(status::VM_RUN_FAILED, &line)
    })
}

/// `bhyve_init_vcpu`.
fn init_vcpu(machine: &Machine, launch: &Launch, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "bhyve_init_vcpu", file: "bhyve-all.c" };
    let Machine { process, vm, qemu, .. } = machine;
    let _printed = vm.capability(vcpu, cap::HALT_EXIT);
    let _printed = vm.set_capability(vcpu, cap::HALT_EXIT, 1);
    let _printed = vm.set_capability(vcpu, cap::PAUSE_EXIT, 0);
    let _printed = vm.set_x2apic_state(vcpu, launch.apic == ApicMode::X2apic);
    let _printed = vm.set_capability(vcpu, cap::ENABLE_INVPCID, 1);
    let _printed = vm.set_capability(vcpu, cap::IPI_EXIT, 1);
    let _printed = vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1);
    if vcpu == BSP && matches!(launch.boot, Boot::Rom(_)) {
        process.assert_ok(vm.vcpu_reset(vcpu), PLACE)?;
    }
    qemu.with(vcpu, |cpu| cpu.halted = vcpu != BSP);
    let _printed = vm.activate_cpu(vcpu);
    let _printed = vm.suspend_cpu(vcpu);
    machine.has_thread(vcpu);
    Ok(())
}

/// The loop of a halted vCPU; at its end the vCPU is no longer halted, unless there is work.
fn wait_for_work(machine: &Machine, vcpu: i32) {
    let host = &machine.process.host;
    let until = host.now().saturating_add(HALT_POLL_NS);
    while machine.qemu.with(vcpu, |cpu| !cpu.has_work()) {
        let left = until.saturating_sub(host.now());
        if left == 0 || host.wait(WORK, Some(left)) == Woken::Timeout {
            machine.qemu.with(vcpu, |cpu| cpu.halted = cpu.halted && cpu.has_work());
            return;
        }
    }
}

/// `bhyve_vcpu_pre_run` for INIT and STARTUP.
fn process_work(machine: &Machine, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "vmm_set_registers", file: "bhyve-all.c" };
    let Machine { process, vm, qemu, .. } = machine;
    if qemu.with(vcpu, |cpu| std::mem::take(&mut cpu.init)) {
        process.assert_ok(vm.vcpu_reset(vcpu), PLACE)?;
        qemu.with(vcpu, |cpu| (cpu.wait_for_sipi, cpu.halted) = (true, vcpu != BSP));
    }
    let Some(vector) = qemu.with(vcpu, |cpu| cpu.sipi.take()) else { return Ok(()) };
    if qemu.with(vcpu, |cpu| std::mem::take(&mut cpu.wait_for_sipi)) {
        ap::realmode(machine, vcpu, u64::from(vector) << 12)?;
        qemu.with(vcpu, |cpu| cpu.halted = false);
    }
    Ok(())
}
