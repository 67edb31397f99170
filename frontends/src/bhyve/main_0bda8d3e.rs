//! F3, `bhyve-0bda8d3e`: eager, with IPI_EXIT (main after D35621 and D35623, up to the fork of 13.2's bhyve). \[read]
//!
//! Steps 1 to 5 are those of [`super::v13_1`]. Then:
//!
//! * For each vCPU, the BSP first: read RIP; HLT exit, APIC mode, INVPCID; assert UNRESTRICTED_GUEST; **assert IPI_EXIT**; activate
//!   (exit 71); suspend it if it is an AP (result ignored); its thread, which first writes RIP.
//! * VM_EXITCODE_IPI: INIT suspends each target; STARTUP resets each target, sets it to real mode and resumes it.
//! * SPINUP_AP is still understood, and does the same as a STARTUP: it resumes, and never activates.
//! * DEBUG, which a suspended AP's thread gets at once and again: nothing, so that thread spins. \[commit]

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, setup};
use crate::Launch;
use crate::libvmmapi::{Exit, Reason, System, V13_2};
use std::sync::Arc;
use vmm::abi::cap;
use vmm::engine::Reg;

pub(super) struct Bhyve0bda8d3e;

impl Personality for Bhyve0bda8d3e {
    fn name(&self) -> &'static str {
        "bhyve-0bda8d3e"
    }

    fn about(&self) -> &'static str {
        "main from 0bda8d3e9f7a on: all vCPUs active from the start, INIT and STARTUP handled in userspace (IPI_EXIT)"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::do_open(&process, system, launch, cpus, &V13_2)?;
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        setup::set_capabilities(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        // spinup_vcpu reads every vCPU's RIP again; the BSP's, which is read here, is not used.
        ap::start_eagerly(&machine, launch, spinup_vcpu)
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Ipi { mode, vector, targets } => exits::handle_ipi(mode, vector, targets),
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            Reason::Debug => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    /// Whoever sent the STARTUP, and whichever exit said so.
    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::restart(machine, vcpu, rip)
    }
}

/// `spinup_vcpu`, the same for the BSP as for an AP but for the suspension.
fn spinup_vcpu(machine: &Arc<Machine>, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_vcpu", file: "bhyverun.c" };
    let Machine { process, vm, .. } = &**machine;
    let rip = process.assert_ok(vm.register(vcpu, Reg::Rip), PLACE)?;
    setup::set_capabilities(process, vm, machine.apic, vcpu)?;
    process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
    process.assert_ok(vm.set_capability(vcpu, cap::IPI_EXIT, 1), PLACE)?;
    ap::add_eagerly(machine, vcpu, Some(rip))
}
