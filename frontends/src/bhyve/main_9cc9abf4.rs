//! F2, `bhyve-9cc9abf4`: eager, without IPI_EXIT (main from 9cc9abf409cc, D35621, to just before 0bda8d3e9f7a, D35623).
//!
//! As [`super::main_0bda8d3e`], without IPI_EXIT and the handler of VM_EXITCODE_IPI. \[commit: code inferred from
//! 0bda8d3e9f7a's] So the kernel says SPINUP_AP, and the handler resets the AP, sets it to real mode and resumes it. The
//! library is the one before D35622, which came a commit later: `vcpu_reset` is the old one. \[inferred]
//!
//! The window was small, but this is the only frontend that shows the off-by-one of SPINUP_AP (7c326ab5bb9a) by itself.

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, setup};
use crate::Launch;
use crate::libvmmapi::{Exit, Reason, System, V13_1};
use std::sync::Arc;
use vmm::abi::cap;
use vmm::engine::Reg;

pub(super) struct Bhyve9cc9abf4;

impl Personality for Bhyve9cc9abf4 {
    fn name(&self) -> &'static str {
        "bhyve-9cc9abf4"
    }

    fn about(&self) -> &'static str {
        "main from 9cc9abf409cc on: all vCPUs active from the start, APs suspended until the kernel says SPINUP_AP"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::do_open(&process, system, launch, cpus, &V13_1)?;
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        setup::set_capabilities(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        // spinup_vcpu reads every vCPU's RIP again; the BSP's, which is read here, is not used.
        ap::start_eagerly(&machine, launch, spinup_vcpu)
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            Reason::Debug => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::restart(machine, vcpu, rip)
    }
}

/// `spinup_vcpu`.
fn spinup_vcpu(machine: &Arc<Machine>, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_vcpu", file: "bhyverun.c" };
    let Machine { process, vm, .. } = &**machine;
    let rip = process.assert_ok(vm.register(vcpu, Reg::Rip), PLACE)?;
    setup::set_capabilities(process, vm, machine.apic, vcpu)?;
    process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
    ap::add_eagerly(machine, vcpu, Some(rip))
}
