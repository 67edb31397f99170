//! F1, `bhyve-13.1`: lazy. An AP is activated, and gets its thread, when the guest starts it (12.x, 13.0, 13.1). \[read]

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Place, Process, Run};
use super::{Personality, ap, setup};
use crate::Launch;
use crate::libvmmapi::{Exit, Reason, System, V13_1};
use std::convert::Infallible;
use std::sync::Arc;
use vmm::abi::cap;

pub(super) struct Bhyve13_1;

impl Personality for Bhyve13_1 {
    fn name(&self) -> &'static str {
        "bhyve-13.1"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 12.x, 13.0 and 13.1: activates an AP when the kernel says that the guest started it (SPINUP_AP)"
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Infallible> {
        let cpus = setup::calc_topology(&process, launch)?;
        // Steps 1 and 2.
        let vm = setup::do_open(&process, system, launch, cpus, &V13_1)?;
        // Step 3.
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        // Step 4: no IPI_EXIT.
        setup::set_capabilities(&process, &vm, launch.apic, BSP)?;
        // Step 5.
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        let rip = setup::boot_from_rom(&machine)?;
        setup::build_tables(&machine, launch.acpi)?;
        // Step 6: the BSP alone.
        add_cpu(&machine, BSP, BSP, rip)?;
        machine.mevent_dispatch()
    }

    /// Steps 8 and 9. IPI (24) is out of range here, for `VM_EXITCODE_MAX` is 24. \[inferred]
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            // gdb_cpu_suspend does nothing without a debugger.
            Reason::Debug => Action::Continue,
            _ => exits::handle(vcpu, exit),
        }
    }

    /// Step 8: registers and capabilities of the AP are written before it is activated. \[read]
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

/// `fbsdrun_addcpu(fromcpu, newcpu, rip)`: only the BSP's thread may add vCPUs. \[read]
fn add_cpu(machine: &Arc<Machine>, from: i32, vcpu: i32, rip: u64) -> Run<()> {
    const PLACE: Place = Place { function: "fbsdrun_addcpu", file: "bhyverun.c" };
    machine.process.assert(from == BSP, "fromcpu == BSP", PLACE)?;
    machine.activate(vcpu)?;
    machine.start_thread(vcpu, Some(rip));
    Ok(())
}
