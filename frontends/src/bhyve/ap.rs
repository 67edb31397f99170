//! Starting an AP: what `spinup_ap.c` does in every version.

use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Run};
use super::{checkpoint, monitor, setup};
use crate::Launch;
use std::sync::Arc;
use vmm::engine::{Reg, SegDesc};

/// How `spinup_ap` begins: the vCPU has to be an AP of this guest, and is reset. \[read]
pub(super) fn reset(machine: &Machine, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_ap", file: "spinup_ap.c" };
    let Machine { process, vm, vcpus, .. } = machine;
    process.assert(vcpu != 0, "newcpu != 0", PLACE)?;
    process.assert(vcpu < i32::from(*vcpus), "newcpu < guest_ncpus", PLACE)?;
    process.assert_ok(vm.vcpu_reset(vcpu), PLACE)
}

/// `fbsdrun_addcpu` where every vCPU is active from the start: activates it, suspends it if it is an AP (and does not look at
/// the result), and makes its thread, which first writes `rip` if there is one. When a checkpoint is restored, nobody is
/// suspended. \[read]
pub(super) fn add_eagerly(machine: &Arc<Machine>, vcpu: i32, rip: Option<u64>) -> Run<()> {
    machine.activate(vcpu)?;
    if vcpu != BSP && !checkpoint::restoring(&machine.process) {
        let _ignored = machine.vm.suspend_cpu(vcpu);
    }
    machine.start_thread(vcpu, rip);
    Ok(())
}

/// The rest of main behind memory and devices where every vCPU is active from the start, up to 13.2: the BSP at its beginning,
/// the checkpoint, the BSP's RIP, the tables, and then every vCPU, the BSP first. \[read]
pub(super) fn start_eagerly(
    machine: &Arc<Machine>,
    launch: &Launch,
    spinup_vcpu: fn(&Arc<Machine>, i32) -> Run<()>,
) -> Run<Begin> {
    setup::boot(machine, &launch.boot)?;
    checkpoint::restore(machine)?;
    setup::bsp_rip(machine)?;
    setup::build_tables(machine, launch)?;
    monitor::look(machine);
    if checkpoint::restoring(&machine.process) {
        let _ignored = machine.vm.restore_time();
    }
    for vcpu in 0..i32::from(machine.vcpus) {
        spinup_vcpu(machine, vcpu)?;
    }
    machine.mevent_dispatch()
}

/// The whole of `spinup_ap` where every vCPU is active from the start: reset, real mode, resume. It never activates, and does
/// not look at the result of the last step. \[read]
pub(super) fn restart(machine: &Machine, vcpu: i32, rip: u64) -> Run<()> {
    reset(machine, vcpu)?;
    realmode(machine, vcpu, rip)?;
    let _ignored = machine.vm.resume_cpu(vcpu);
    Ok(())
}

/// `spinup_ap_realmode`: real mode at `rip`, which is the STARTUP vector shifted by 12: CS base is that, RIP 0. The limit and
/// the access rights of CS stay. \[read]
pub(super) fn realmode(machine: &Machine, vcpu: i32, rip: u64) -> Run<()> {
    const PLACE: Place = Place { function: "spinup_ap_realmode", file: "spinup_ap.c" };
    let Machine { process, vm, .. } = machine;
    let vector = rip >> 12;
    process.assert_ok(vm.set_register(vcpu, Reg::Rip, 0), PLACE)?;
    let cs = process.assert_ok(vm.desc(vcpu, Reg::Cs), PLACE)?;
    process.assert_ok(vm.set_desc(vcpu, Reg::Cs, SegDesc { base: vector << 12, ..cs }), PLACE)?;
    process.assert_ok(vm.set_register(vcpu, Reg::Cs, vector << 12 >> 4), PLACE)
}
