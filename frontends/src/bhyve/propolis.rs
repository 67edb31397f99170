//! F8, `propolis`: Oxide's userspace, on illumos's interface. \[read]
//!
//! 1. VMM_INTERFACE_VERSION at `/dev/vmmctl` must say 18, which the server is built for; else it refuses.
//! 2. VMM_CREATE_VM, open, memory, boot ROM. Errors are errors of the instance.
//! 3. For each vCPU: **activate**, which fails the instance when it fails; reset (VRK_RESET); HLT exit, APIC mode; for the BSP alone run
//!    state RUN, and RIP 0xFFF0.
//! 4. The threads of all vCPUs are made and held, then let go.
//! 5. Ports and memory are answered in the next VM_RUN. MSRs that the kernel does not know read as 0 and take any write. \[unverified]
//! 6. HLT, PAUSE, BPT and MTRAP were never asked for, and what the kernel keeps to itself (RUN_STATE, HT and the like) never
//!    comes: **panic**, which aborts. Other exits end the instance.
//! 7. Power-off ends the process with 0. Reset, and a triple fault: the VM is begun anew with FORCE_SUSPEND, and step 3 follows
//!    again.
//!
//! On FreeBSD there is no `/dev/vmmctl`, or it does not know the first of these numbers: ENOTTY. \[inferred] The devices are
//! bhyve's, and so are the tables, which OVMF or the guest's own firmware gets otherwise there; statuses are 1 for any failure.
//! \[unverified]

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Process, Run};
use super::{Personality, setup, vm_loop};
use crate::libvmmapi::{Exit, Illumos, Reason, System, Vm, bhyve_api};
use crate::{ApicMode, Boot, FrontendOption, Launch};
use std::sync::Arc;
use vmm::abi::illumos::{cap, exitcode, vrs};
use vmm::abi::{Errno, suspend};
use vmm::engine::Reg;
use vmm::host::End;

/// After any failure.
const FAILED: i32 = 1;
/// After the guest has powered itself off.
const POWERED_OFF: i32 = 0;
/// Where a processor begins.
const RESET_RIP: u64 = 0xfff0;

pub(super) struct Propolis;

impl Personality for Propolis {
    fn name(&self) -> &'static str {
        "propolis"
    }

    fn about(&self) -> &'static str {
        "Oxide's propolis: insists on version 18 of illumos's interface, leaves APs to the kernel, panics on exits that never come"
    }

    fn options(&self) -> &'static [FrontendOption] {
        &[]
    }

    fn program(&self) -> &'static str {
        "propolis"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        // Step 1.
        let version =
            bhyve_api::api_version(&**system).map_err(|errno| failed(&process, "VMM_INTERFACE_VERSION", errno))?;
        if version != bhyve_api::PINNED_VERSION {
            let wanted = bhyve_api::PINNED_VERSION;
            return Err(process.errx(FAILED, &format!("kernel VMM API version is {version}, {wanted} is expected")));
        }
        // Step 2.
        let vm = open(&process, system, launch)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::build_tables(&machine, launch)?;
        // Step 3.
        for vcpu in 0..i32::from(cpus.count) {
            init_vcpu(&machine, launch, vcpu)
                .map_err(|(what, errno)| failed(&machine.process, &format!("vCPU {vcpu}: {what}"), errno))?;
        }
        // Step 4.
        for vcpu in 0..i32::from(cpus.count) {
            machine.start_thread(vcpu, None);
        }
        machine.mevent_dispatch()
    }

    fn thread(&self, machine: &Arc<Machine>, vcpu: i32, _start_rip: Option<u64>) -> Run<()> {
        while vm_loop::run(machine, vcpu)?.is_continue() {}
        Ok(())
    }

    /// Steps 5 to 7.
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match &exit.reason {
            Reason::Rdmsr { .. } => Action::ReadMsrAs(0),
            Reason::Wrmsr { .. } => Action::Continue,
            Reason::Suspended { how: suspend::RESET | suspend::TRIPLEFAULT } => Action::Reboot,
            Reason::Suspended { how: suspend::POWEROFF | suspend::HALT } => {
                Action::Exit { status: POWERED_OFF, line: None }
            }
            Reason::Inout(_) | Reason::Mmio(_) | Reason::Bogus => exits::handle(vcpu, exit),
            Reason::Hlt | Reason::Mtrap | Reason::RunState | Reason::Other if is_internal(exit.code) => {
                let name = exitcode::name(exit.code);
                Action::Abort { lines: vec![format!("panicked: Unexpected internal exit: VM_EXITCODE_{name}")] }
            }
            _ => {
                let line = format!("propolis: vCPU {vcpu} cannot handle exit {} at {:#x}", exit.code, exit.rip);
                Action::Exit { status: FAILED, line: Some(line) }
            }
        }
    }

    /// No exit asks for it.
    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, _rip: u64) -> Run<()> {
        machine.vm.reset_cpu(vcpu).map_err(|errno| failed(&machine.process, "VM_RESET_CPU", errno))
    }

    fn vm_run_failed(&self, process: &Process, errno: Errno) -> End {
        failed(process, "VM_RUN", errno)
    }
}

/// The exits that make it panic.
fn is_internal(code: u32) -> bool {
    use exitcode::{BPT, HLT, HT, IOAPIC_EOI, MMIO_EMUL, MONITOR, MTRAP, MWAIT, PAUSE, RUN_STATE, VMINSN};
    [HLT, PAUSE, BPT, MTRAP, MWAIT, MONITOR, VMINSN, IOAPIC_EOI, MMIO_EMUL, HT, RUN_STATE].contains(&code)
}

fn failed(process: &Process, what: &str, errno: Errno) -> End {
    process.err(FAILED, what, errno)
}

/// The VM, new or, after a reset, the same.
fn open(process: &Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Vm> {
    let name = &launch.vm_name;
    let open = || Vm::open(system, name, &Illumos).map_err(|errno| failed(process, "open", errno));
    if matches!(process.begin, Begin::Reboot) {
        let vm = open()?;
        vm.force_reinit().map_err(|errno| failed(process, "VM_REINIT", errno))?;
        return Ok(vm);
    }
    setup::run_loader(process, system, launch, &Illumos)?;
    if let Boot::Rom(_) = launch.boot {
        Vm::create(&**system, name, &Illumos).map_err(|errno| failed(process, "VMM_CREATE_VM", errno))?;
    }
    open()
}

/// Step 3. An error says which call it was.
fn init_vcpu(machine: &Machine, launch: &Launch, vcpu: i32) -> Result<(), (&'static str, Errno)> {
    let vm = &machine.vm;
    // Where a loader has placed a kernel, the BSP begins as the loader has set it.
    let loaded = vcpu == BSP && matches!(launch.boot, Boot::Loader(_));
    vm.activate_cpu(vcpu).map_err(|errno| ("VM_ACTIVATE_CPU", errno))?;
    machine.has_thread(vcpu);
    if !loaded {
        vm.reset_cpu(vcpu).map_err(|errno| ("VM_RESET_CPU", errno))?;
    }
    vm.set_capability(vcpu, cap::HALT_EXIT, 1).map_err(|errno| ("VM_SET_CAPABILITY", errno))?;
    vm.set_x2apic_state(vcpu, launch.apic == ApicMode::X2apic).map_err(|errno| ("VM_SET_X2APIC_STATE", errno))?;
    if vcpu == BSP {
        vm.set_run_state(vcpu, vrs::RUN, 0).map_err(|errno| ("VM_SET_RUN_STATE", errno))?;
    }
    if vcpu == BSP && !loaded {
        vm.set_register(vcpu, Reg::Rip, RESET_RIP).map_err(|errno| ("VM_SET_REGISTER", errno))?;
    }
    Ok(())
}
