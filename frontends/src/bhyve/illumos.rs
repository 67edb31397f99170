//! F7, `illumos-bhyve`: the kernel keeps run states, and INIT and STARTUP never come to userspace. \[read]
//!
//! 1. VMM_CREATE_VM at `/dev/vmmctl`; a VM that is there already is begun anew; open; topology: statuses as in FreeBSD.
//! 2. As many vCPUs as the kernel's topology allows. There is no UNRESTRICTED_GUEST to ask for.
//! 3. The BSP's capabilities: HLT exit on (exit 4), APIC mode (exit 4). No INVPCID, no IPI_EXIT.
//! 4. Memory, devices; `vcpu_reset` (asserted) on the BSP; the tables.
//! 5. For each vCPU, the BSP first: APs are reset and set to real mode at 0, and get their capabilities; run state RUN for the BSP,
//!    HALT for APs, asserted; activate (exit 71); thread. It enters VM_RUN and waits there.
//! 6. DEBUG and RUN_STATE do nothing \[inferred]; VM_RUN fails: exit 1.

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run, status};
use super::{Personality, ap, monitor, setup};
use crate::libvmmapi::{Exit, Illumos, Reason, System, Vm};
use crate::{ApicMode, Boot, FrontendOption, Launch};
use std::sync::Arc;
use vmm::abi::illumos::{cap, vrs};

pub(super) struct IllumosBhyve;

impl Personality for IllumosBhyve {
    fn name(&self) -> &'static str {
        "illumos-bhyve"
    }

    fn about(&self) -> &'static str {
        "bhyve of illumos: all vCPUs active from the start, APs halted until the kernel starts them"
    }

    fn options(&self) -> &'static [FrontendOption] {
        &[FrontendOption::Monitor, FrontendOption::Passthru]
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        // Step 1.
        let vm = setup::do_open(&process, system, launch, cpus, &Illumos)?;
        // Step 2.
        setup::check_vcpus(&process, cpus, vm.topology().map_or(1, |topology| topology.maxcpus))?;
        // Step 3.
        set_capabilities(&process, &vm, launch.apic, BSP)?;
        // Step 4.
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        if let Boot::Rom(_) = launch.boot {
            setup::reset_bsp(&machine)?;
        }
        setup::build_tables(&machine, launch)?;
        monitor::look(&machine);
        // Step 5.
        for vcpu in 0..i32::from(cpus.count) {
            spinup_vcpu(&machine, vcpu)?;
        }
        machine.mevent_dispatch()
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Debug | Reason::RunState => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    /// No exit of this kernel asks for it.
    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::reset(machine, vcpu)?;
        ap::realmode(machine, vcpu, rip)
    }
}

/// `bhyve_init_vcpu`.
fn set_capabilities(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    if vm.set_capability(vcpu, cap::HALT_EXIT, 1).is_err() {
        return Err(process.exit(status::ERROR, "VM exit on HLT not supported"));
    }
    setup::set_apic_mode(process, vm, apic, vcpu)
}

/// `bhyve_start_vcpu`.
fn spinup_vcpu(machine: &Arc<Machine>, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "bhyve_start_vcpu", file: "bhyverun_machdep.c" };
    let Machine { process, vm, personality, .. } = &**machine;
    if vcpu != BSP {
        personality.spinup_ap(machine, BSP, vcpu, 0)?;
        set_capabilities(process, vm, machine.apic, vcpu)?;
    }
    let state = if vcpu == BSP { vrs::RUN } else { vrs::HALT };
    process.assert_ok(vm.set_run_state(vcpu, state, 0), PLACE)?;
    machine.activate(vcpu)?;
    machine.start_thread(vcpu, None);
    Ok(())
}
