//! F1, `bhyve-13.1`: lazy. An AP is activated, and gets its thread, when the guest starts it (12.x, 13.0, 13.1). \[read]
//!
//! 1. `vm_create`; a VM that is there already is begun anew (`vm_reinit`); other errors: exit 4.
//! 2. `vm_open`, exit 4; `vm_set_topology`, exit 71.
//! 3. As many vCPUs as the kernel's topology allows, or one without UNRESTRICTED_GUEST; else exit 4.
//! 4. The BSP's capabilities: HLT exit, APIC mode (exit 4), INVPCID (result ignored). No IPI_EXIT.
//! 5. Memory, devices; UNRESTRICTED_GUEST (exit 4) and `vcpu_reset` (asserted) on the BSP; its RIP; the tables.
//! 6. `fbsdrun_addcpu` for the BSP: activate (exit 71), thread.
//! 7. The thread asserts that its vCPU is active, writes RIP, and runs it.
//! 8. SPINUP_AP: assert that it is an AP of this guest; `vcpu_reset`; capabilities; assert UNRESTRICTED_GUEST; real mode at the
//!    vector; `fbsdrun_addcpu`, which **asserts that the BSP's thread is asking**, activates, and makes the thread.
//! 9. DEBUG does nothing, for there is no debugger. IPI is out of range: exit 4. \[inferred]
//!
//! With `-r` (13.0 and 13.1, WITH_BHYVE_SNAPSHOT), memory, devices and the kernel's structures are restored in step 5 behind
//! `vcpu_reset`, and behind step 6 every AP is added as it was: capabilities, UNRESTRICTED_GUEST, activate, thread. \[read]

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, checkpoint, monitor, setup};
use crate::Launch;
use crate::libvmmapi::{Exit, Reason, System, V13_1};
use std::sync::Arc;
use vmm::abi::cap;
use vmm::engine::Reg;

pub(super) struct Bhyve13_1;

impl Personality for Bhyve13_1 {
    fn name(&self) -> &'static str {
        "bhyve-13.1"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 12.x, 13.0 and 13.1: activates an AP when the kernel says that the guest started it (SPINUP_AP)"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        // Steps 1 and 2.
        let vm = setup::do_open(&process, system, launch, cpus, &V13_1)?;
        // Step 3.
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        // Step 4: no IPI_EXIT.
        setup::set_capabilities(&process, &vm, launch.apic, BSP)?;
        // Step 5.
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::boot(&machine, &launch.boot)?;
        checkpoint::restore(&machine)?;
        let rip = setup::bsp_rip(&machine)?;
        setup::build_tables(&machine, launch)?;
        monitor::look(&machine);
        // Step 6.
        add_cpu(&machine, BSP, BSP, rip)?;
        if checkpoint::restoring(&machine.process) {
            let _ignored = machine.vm.restore_time();
            for vcpu in 1..i32::from(cpus.count) {
                spinup_vcpu(&machine, vcpu)?;
            }
        }
        machine.mevent_dispatch()
    }

    /// Steps 8 and 9. `VM_EXITCODE_MAX` is 24, so libvmmapi of this generation does not know IPI.
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            Reason::Debug => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    /// Step 8. Registers and capabilities are written before the AP is activated.
    fn spinup_ap(&self, machine: &Arc<Machine>, sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        const PLACE: Place = Place { function: "spinup_ap", file: "spinup_ap.c" };
        let Machine { process, vm, .. } = &**machine;
        ap::reset(machine, vcpu)?;
        setup::set_capabilities(process, vm, machine.apic, vcpu)?;
        process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
        ap::realmode(machine, vcpu, rip)?;
        add_cpu(machine, sender, vcpu, 0)
    }
}

/// `spinup_vcpu`: an AP of a checkpoint.
fn spinup_vcpu(machine: &Arc<Machine>, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_vcpu", file: "bhyverun.c" };
    let Machine { process, vm, .. } = &**machine;
    let rip = process.assert_ok(vm.register(vcpu, Reg::Rip), PLACE)?;
    setup::set_capabilities(process, vm, machine.apic, vcpu)?;
    process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
    add_cpu(machine, BSP, vcpu, rip)
}

/// `fbsdrun_addcpu(fromcpu, newcpu, rip)`.
pub(super) fn add_cpu(machine: &Arc<Machine>, from: i32, vcpu: i32, rip: u64) -> Run<()> {
    const PLACE: Place = Place { function: "fbsdrun_addcpu", file: "bhyverun.c" };
    machine.process.assert(from == BSP, "fromcpu == BSP", PLACE)?;
    machine.activate(vcpu)?;
    machine.start_thread(vcpu, Some(rip));
    Ok(())
}
