//! F10, `lazy-ipi-exit`: a counterfactual that tells "supports lazy userspace" from "supports lazy userspace with IPI_EXIT".
//!
//! As [`super::v13_1`], an AP is activated when the guest starts it; but it sets IPI_EXIT on every vCPU (and does not assert
//! that), knows VM_EXITCODE_IPI, and handles it as [`super::main_0bda8d3e`] does, so far as that can be done lazily:
//!
//! * INIT suspends each target.
//! * STARTUP starts each target: one that is not active yet as 13.1 does, one that is by reset, real mode and resume.
//!
//! With IPI_EXIT on, every kernel that has it looks for the targets among active vCPUs, before the mending commits and after:
//! an AP that is not active is never told of. \[read]

use super::exits::{self, Action};
use super::machine::{BSP, Machine, index};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, monitor, setup, v13_1};
use crate::libvmmapi::{Exit, Reason, System, V13_2, Vm};
use crate::{ApicMode, FrontendOption, Launch};
use std::sync::Arc;
use vmm::abi::cap;

pub(super) struct LazyIpiExit;

impl Personality for LazyIpiExit {
    fn name(&self) -> &'static str {
        "lazy-ipi-exit"
    }

    fn about(&self) -> &'static str {
        "a counterfactual: activates an AP when it is started, as 13.1 does, yet with IPI_EXIT, which every kernel ties to active vCPUs"
    }

    fn options(&self) -> &'static [FrontendOption] {
        &[FrontendOption::Monitor, FrontendOption::Passthru]
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::do_open(&process, system, launch, cpus, &V13_2)?;
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        set_capabilities(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::boot(&machine, &launch.boot)?;
        let rip = setup::bsp_rip(&machine)?;
        setup::build_tables(&machine, launch)?;
        monitor::look(&machine);
        v13_1::add_cpu(&machine, BSP, BSP, rip)?;
        machine.mevent_dispatch()
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Ipi { mode, vector, targets } => exits::handle_ipi(mode, vector, targets),
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            Reason::Debug => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        const PLACE: Place = Place { function: "spinup_ap", file: "spinup_ap.c" };
        let Machine { process, vm, .. } = &**machine;
        if vm.active_cpus().unwrap_or_default().contains(index(vcpu)) {
            return ap::restart(machine, vcpu, rip);
        }
        ap::reset(machine, vcpu)?;
        set_capabilities(process, vm, machine.apic, vcpu)?;
        process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
        ap::realmode(machine, vcpu, rip)?;
        v13_1::add_cpu(machine, sender, vcpu, 0)
    }
}

/// The capabilities of 13.1, and IPI_EXIT where the kernel has it.
fn set_capabilities(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    setup::set_capabilities(process, vm, apic, vcpu)?;
    let _ignored = vm.set_capability(vcpu, cap::IPI_EXIT, 1);
    Ok(())
}
