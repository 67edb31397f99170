//! F0, `bhyve-10.0`: the kernel activates an AP itself, so this version activates nobody, not even the BSP. \[read+inferred]
//!
//! 1. `vm_create`, `vm_open`. There is no VM_SET_TOPOLOGY yet (D9930).
//! 2. VM_MAXCPU (16) vCPUs, or one without UNRESTRICTED_GUEST; else exit 4.
//! 3. The BSP's capabilities: HLT exit, APIC mode (exit 4). No INVPCID, no IPI_EXIT.
//! 4. Memory, devices, UNRESTRICTED_GUEST, `vcpu_reset`, RIP, tables as in 13.1. \[inferred: 10.0 had neither boot ROMs nor memory
//!    segments, RTC and reset worked without the kernel; the numbers for memory segments are those of 12]
//! 5. `fbsdrun_addcpu` for the BSP: its thread, which writes RIP and runs it. Later kernels want it active: VM_RUN fails with
//!    EINVAL, exit 1.
//! 6. SPINUP_AP: assert that it is an AP of this guest; `vcpu_reset`; HLT exit and APIC mode; assert UNRESTRICTED_GUEST; real mode
//!    at the vector; the thread.
//! 7. DEBUG and IPI are out of range: exit 4.

use super::exits::{self, Action};
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run};
use super::{Personality, ap, monitor, setup, vm_loop};
use crate::libvmmapi::{Exit, Reason, System, V12};
use crate::{FrontendOption, Launch};
use std::sync::Arc;
use vmm::abi::cap;
use vmm::engine::Reg;

/// `VM_MAXCPU`.
const VM_MAXCPU: u16 = 16;

pub(super) struct Bhyve10_0;

impl Personality for Bhyve10_0 {
    fn name(&self) -> &'static str {
        "bhyve-10.0"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 10.0: activates nobody, for its kernel activates an AP itself when the guest starts it"
    }

    /// There is no debug server of this kind yet, no checkpoint, and no memory behind a BAR.
    fn options(&self) -> &'static [FrontendOption] {
        &[FrontendOption::Monitor]
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = setup::open(&process, system, launch, &V12)?;
        let allowed = if vm.capability(BSP, cap::UNRESTRICTED_GUEST).is_ok() { VM_MAXCPU } else { 1 };
        setup::check_vcpus(&process, cpus, allowed)?;
        setup::set_hlt_exit_and_apic_mode(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        setup::boot(&machine, &launch.boot)?;
        let rip = setup::bsp_rip(&machine)?;
        setup::build_tables(&machine, launch)?;
        monitor::look(&machine);
        add_cpu(&machine, BSP, rip);
        machine.mevent_dispatch()
    }

    /// No assertion that the vCPU is active.
    fn thread(&self, machine: &Arc<Machine>, vcpu: i32, start_rip: Option<u64>) -> Run<()> {
        const PLACE: Place = Place { function: "vm_loop", file: "bhyverun.c" };
        if let Some(rip) = start_rip {
            machine.process.assert_ok(machine.vm.set_register(vcpu, Reg::Rip, rip), PLACE)?;
        }
        while vm_loop::run(machine, vcpu)?.is_continue() {}
        Ok(())
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::SpinupAp { vcpu, rip } => Action::SpinupAp { vcpu, rip },
            _ => exits::handle(vcpu, exit),
        }
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        const PLACE: Place = Place { function: "spinup_ap", file: "spinup_ap.c" };
        let Machine { process, vm, .. } = &**machine;
        ap::reset(machine, vcpu)?;
        setup::set_hlt_exit_and_apic_mode(process, vm, machine.apic, vcpu)?;
        process.assert_ok(vm.set_capability(vcpu, cap::UNRESTRICTED_GUEST, 1), PLACE)?;
        ap::realmode(machine, vcpu, rip)?;
        add_cpu(machine, vcpu, 0);
        Ok(())
    }
}

/// `fbsdrun_addcpu`: a thread, and nothing else.
fn add_cpu(machine: &Arc<Machine>, vcpu: i32, rip: u64) {
    machine.has_thread(vcpu);
    machine.start_thread(vcpu, Some(rip));
}
