//! F5, `bhyve-14`: eager, every vCPU suspended at first (the generation of 14.0). \[read]
//!
//! 1. As 13.2 up to the BSP's capabilities, IPI_EXIT asserted among them **before memory is set up**. VM_RUN is the new one
//!    (e17eca327633, D40113): a kernel without it says ENOTTY.
//! 2. Memory, devices; UNRESTRICTED_GUEST (exit 4) and `vcpu_reset` (asserted) on the BSP.
//! 3. For each vCPU, the BSP first: APs get their capabilities and UNRESTRICTED_GUEST, asserted; activate (exit 71); **suspend, the
//!    BSP too** (result ignored); thread, which does not write RIP.
//! 4. With `-r` the checkpoint is restored now, after every vCPU has been touched (9ff3e8b7f090, D38477).
//! 5. The guest's tables. With `-r` the time (exit 71).
//! 6. Resume the BSP; with `-r` every vCPU. \[inferred for 14.0: as in 15]
//! 7. IPI: INIT suspends each target; STARTUP resets, sets to real mode and resumes each.
//! 8. DEBUG sleeps for 1 ms; HLT and PAUSE do nothing. SPINUP_AP is unexpected: exit 4. VM_RUN fails: exit 1.

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run, status};
use super::v13_2::{DEBUG_SLEEP_NS, set_capabilities};
use super::{Personality, ap, checkpoint, monitor, setup};
use crate::Launch;
use crate::libvmmapi::{Exit, Reason, System, V14};
use std::sync::Arc;
use vmm::abi::{cap, exitcode};

pub(super) struct Bhyve14;

impl Personality for Bhyve14 {
    fn name(&self) -> &'static str {
        "bhyve-14"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 14.0: all vCPUs active and suspended from the start, the BSP resumed last; the new VM_RUN"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::do_open(&process, system, launch, cpus, &V14)?;
        // Step 1.
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        set_capabilities(&process, &vm, launch.apic, BSP)?;
        // Step 2.
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::boot(&machine, &launch.boot)?;
        monitor::look(&machine);
        // Step 3.
        for vcpu in 0..i32::from(cpus.count) {
            if vcpu != BSP {
                init_ap(&machine, vcpu)?;
            }
            machine.activate(vcpu)?;
            let _ignored = machine.vm.suspend_cpu(vcpu);
            machine.start_thread(vcpu, None);
        }
        // Steps 4 and 5.
        checkpoint::restore(&machine)?;
        setup::build_tables(&machine, launch)?;
        // Step 6.
        let_go(&machine)?;
        machine.mevent_dispatch()
    }

    /// Steps 7 and 8.
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        handle(vcpu, exit)
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::restart(machine, vcpu, rip)
    }
}

/// What an AP gets before it is activated.
pub(super) fn init_ap(machine: &Machine, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_vcpu", file: "bhyverun.c" };
    let Machine { process, vm, .. } = machine;
    set_capabilities(process, vm, machine.apic, vcpu)?;
    process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)
}

/// The end of main: the BSP may run, or all that a checkpoint holds.
pub(super) fn let_go(machine: &Machine) -> Run<()> {
    let Machine { process, vm, .. } = machine;
    if !checkpoint::restoring(process) {
        let _ignored = vm.resume_cpu(BSP);
        return Ok(());
    }
    vm.restore_time().map_err(|errno| process.err(status::EX_OSERR, "Unable to restore time", errno))?;
    for vcpu in 0..i32::from(machine.vcpus) {
        let _ignored = vm.resume_cpu(vcpu);
    }
    Ok(())
}

/// The handlers of 14 and 15.
pub(super) fn handle(vcpu: i32, exit: &Exit) -> Action {
    match exit.reason {
        Reason::Ipi { mode, vector, targets } => exits::handle_ipi(mode, vector, targets),
        Reason::Debug => Action::Sleep(DEBUG_SLEEP_NS),
        Reason::Other if exit.code == exitcode::PAUSE => Action::Continue,
        _ => exits::handle(vcpu, exit),
    }
}
