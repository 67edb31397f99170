//! `+restore`: checkpoint and restore (`snapshot.c`, WITH_BHYVE_SNAPSHOT).
//!
//! Somebody asks for a checkpoint that ends the VM (`bhyvectl --suspend`) as soon as every vCPU has reported to the harness.
//! bhyve suspends all vCPUs, waits until each thread has come back, saves memory, the kernel's structures and its own devices,
//! destroys the VM and exits with 0. \[read] A new process then begins with what was saved (`-r`). A checkpoint that fails is
//! said, and the VM goes on. \[read]
//!
//! The work of the checkpoint thread is done by the main thread here, which has nothing else to do, and the devices go from one
//! process to the other as they are.

use super::machine::{BSP, MEVENT, Machine, index};
use super::process::{Begin, Process, Run};
use crate::FrontendOption;
use crate::libvmmapi::{KernelImage, MemoryImage};
use crate::pc::Pc;
use parking_lot::Mutex;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use vmm::cpuset::CpuSet;
use vmm::host::WaitChannel;
use vmm::trace::GuestReport;

/// `vcpus_can_run`: the checkpoint is over.
const VCPUS_CAN_RUN: WaitChannel = WaitChannel(0xb47e_0004);

/// The status of a process that cannot restore what it was given. \[read]
const RESTORE_FAILED: i32 = 1;

/// What a checkpoint file holds.
pub(crate) struct Checkpoint {
    memory: MemoryImage,
    kernel: KernelImage,
    /// The process that has ended, for its devices.
    devices: Arc<Machine>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checkpoint")
    }
}

/// A checkpoint that is to be taken.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The vCPUs that have reported to the harness.
    reported: CpuSet,
    /// It is asked for.
    requested: bool,
    /// `checkpoint_active`.
    active: bool,
    /// `vcpus_active`: those that have a thread.
    threads: CpuSet,
    /// `vcpus_suspended`: those whose thread stands still.
    suspended: CpuSet,
    /// The process has exited, and its threads with it.
    exited: bool,
}

impl Pending {
    /// With `+restore`, one; the process that restores takes no other.
    pub(super) fn of(process: &Process) -> Option<Pending> {
        let wanted = process.options.has(FrontendOption::Restore) && matches!(process.begin, Begin::Fresh);
        wanted.then(Pending::default)
    }
}

/// The guest reported: once the last of the vCPUs has, the checkpoint is asked for.
pub(super) fn reported(machine: &Machine, report: &GuestReport) {
    let Some(Pending(state)) = &machine.checkpoint else { return };
    let mut state = state.lock();
    match *report {
        GuestReport::Boot { .. } => drop(state.reported.insert(index(BSP))),
        GuestReport::ApOnline { apic_id } => drop(state.reported.insert(apic_id as usize)),
        _ => {}
    }
    if state.reported.len() >= usize::from(machine.vcpus) && !state.requested {
        state.requested = true;
        machine.process.host.wake(MEVENT);
    }
}

/// Whether a checkpoint is to be taken now.
pub(super) fn requested(machine: &Machine) -> bool {
    machine.checkpoint.as_ref().is_some_and(|Pending(state)| {
        let state = state.lock();
        state.requested && !state.active && !state.exited
    })
}

/// `checkpoint_cpu_add`: what the thread of a vCPU begins with. No checkpoint is asked for before every vCPU has one.
pub(super) fn cpu_add(machine: &Machine, vcpu: i32) {
    if let Some(Pending(state)) = &machine.checkpoint {
        state.lock().threads.insert(index(vcpu));
    }
}

/// `checkpoint_cpu_suspend`: the thread of the vCPU stands still.
pub(super) fn cpu_suspend(machine: &Machine, vcpu: i32) {
    if let Some(Pending(state)) = &machine.checkpoint {
        state.lock().suspended.insert(index(vcpu));
        machine.process.host.wake(MEVENT);
    }
}

/// `checkpoint_cpu_resume`: waits until the checkpoint, if there is one, is over. `Break` when the process is.
pub(super) fn cpu_resume(machine: &Machine, vcpu: i32) -> ControlFlow<()> {
    let Some(Pending(state)) = &machine.checkpoint else { return ControlFlow::Continue(()) };
    while state.lock().active {
        machine.process.host.wait(VCPUS_CAN_RUN, None);
    }
    let mut state = state.lock();
    state.suspended.remove(index(vcpu));
    if state.exited { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// `vm_checkpoint` with `stop_vm`. `None` when it has failed, and the VM goes on.
pub(super) fn take(machine: &Arc<Machine>) -> Option<Checkpoint> {
    let Machine { process, vm, memory, checkpoint, .. } = &**machine;
    let Pending(state) = checkpoint.as_ref()?;
    // vm_vcpu_pause
    state.lock().active = true;
    let _ignored = vm.suspend_all_cpus();
    let all_stand_still = || {
        let state = state.lock();
        state.threads == state.suspended
    };
    while !all_stand_still() {
        process.host.wait(MEVENT, None);
    }
    let taken = match (memory.save(), vm.save_kernel()) {
        (None, _) => Err("Could not write guest memory to file"),
        (_, Err(_)) => Err("Failed to snapshot vm kernel data."),
        (Some(memory), Ok(kernel)) => Ok(Checkpoint { memory, kernel, devices: Arc::clone(machine) }),
    };
    {
        let mut state = state.lock();
        state.requested = false;
        state.active = false;
        state.exited = taken.is_ok();
    }
    match &taken {
        Ok(_) => drop(vm.destroy()),
        Err(message) => {
            process.eprintln(message);
            // vm_vcpu_resume
            let _ignored = vm.resume_all_cpus();
        }
    }
    process.host.wake(VCPUS_CAN_RUN);
    taken.ok()
}

/// The part of main that restores a checkpoint (`-r`), if there is one: memory, devices, the kernel's structures.
pub(super) fn restore(machine: &Machine) -> Run<()> {
    let Machine { process, vm, memory, pc, .. } = machine;
    let Begin::Restore(checkpoint) = &process.begin else { return Ok(()) };
    if !memory.restore(&checkpoint.memory) {
        return Err(process.exit(RESTORE_FAILED, "Failed to restore VM memory."));
    }
    let devices: &Pc = &checkpoint.devices.pc;
    pc.restore(devices);
    vm.restore_kernel(&checkpoint.kernel).map_err(|_| process.exit(RESTORE_FAILED, "Failed to restore kernel structs."))
}

/// Whether the process restores a checkpoint.
pub(super) fn restoring(process: &Process) -> bool {
    matches!(process.begin, Begin::Restore(_))
}
