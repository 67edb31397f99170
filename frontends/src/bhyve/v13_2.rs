//! F4, `bhyve-13.2`: eager, with IPI_EXIT (stable/13 from January 2023 on). \[read: a snapshot of stable/13]
//!
//! As [`super::main_0bda8d3e`], except:
//!
//! * IPI_EXIT is part of `fbsdrun_set_capabilities`. So for the BSP it is asserted in step 4, **before memory is set up**.
//! * The BSP's capabilities are not set again when its thread is made, and only APs get UNRESTRICTED_GUEST there.
//! * The thread does not write RIP.
//! * DEBUG sleeps for 1 ms (3b6598f8742c, D39174). \[commit]
//! * SPINUP_AP is unexpected: exit 4.
//!
//! With `-r` the checkpoint is restored before any AP has been touched, which a kernel that allocates a vCPU when it is first
//! touched does not survive: "Failed to restore kernel structs.", exit 1. 9ff3e8b7f090 (D38477) turned the order round, on
//! main. \[commit]

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, setup};
use crate::libvmmapi::{Exit, Reason, System, V13_2, Vm};
use crate::{ApicMode, Launch};
use std::sync::Arc;
use vmm::abi::cap;

/// How long the thread of a suspended AP sleeps before it looks again.
pub(super) const DEBUG_SLEEP_NS: u64 = 1_000_000;

pub(super) struct Bhyve13_2;

impl Personality for Bhyve13_2 {
    fn name(&self) -> &'static str {
        "bhyve-13.2"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 13.2: as bhyve-0bda8d3e, without the SPINUP_AP handler; suspended APs sleep instead of spinning"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::do_open(&process, system, launch, cpus, &V13_2)?;
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        // With IPI_EXIT, so before memory is set up.
        set_capabilities(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        // The BSP's RIP, which is read here, is no longer used: vm_loop does not write it.
        ap::start_eagerly(&machine, launch, spinup_vcpu)
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Ipi { mode, vector, targets } => exits::handle_ipi(mode, vector, targets),
            Reason::Debug => Action::Sleep(DEBUG_SLEEP_NS),
            _ => exits::handle(vcpu, exit),
        }
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::restart(machine, vcpu, rip)
    }
}

/// `fbsdrun_set_capabilities`, with IPI_EXIT in it.
pub(super) fn set_capabilities(process: &Process, vm: &Vm, apic: ApicMode, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "fbsdrun_set_capabilities", file: "bhyverun.c" };
    setup::set_capabilities(process, vm, apic, vcpu)?;
    let result = vm.set_capability(vcpu, cap::IPI_EXIT, 1);
    process.assert(result.is_ok(), "err == 0", PLACE)
}

/// `spinup_vcpu`.
fn spinup_vcpu(machine: &Arc<Machine>, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_vcpu", file: "bhyverun.c" };
    let Machine { process, vm, .. } = &**machine;
    if vcpu != BSP {
        set_capabilities(process, vm, machine.apic, vcpu)?;
        process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
    }
    // RIP is no longer written by vm_loop.
    ap::add_eagerly(machine, vcpu, None)
}
