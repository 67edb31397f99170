//! The running machine: what all threads of the process share, and the life of vCPU threads.

use super::Personality;
use super::checkpoint::{self, Pending};
use super::gdb::{self, Gdb};
use super::process::{Begin, Process, Run, status};
use super::qemu;
use crate::libvmmapi::{GuestMemory, Vm};
use crate::pc::{Dma, Pc};
use crate::{ApicMode, FrontendOption};
use parking_lot::Mutex;
use std::sync::Arc;
use vmm::cpuset::CpuSet;
use vmm::host::WaitChannel;

/// The vCPU that boots.
pub(super) const BSP: i32 = 0;

/// What `mevent_dispatch` waits on.
pub(super) const MEVENT: WaitChannel = WaitChannel(0xb47e_0000);
/// `resetcpu_cond`: a vCPU's thread is about to end.
const RESETCPU: WaitChannel = WaitChannel(0xb47e_0001);

/// Devices reach the guest's RAM through the process's mapping of it.
impl Dma for GuestMemory {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        GuestMemory::read(self, gpa, bytes)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        GuestMemory::write(self, gpa, bytes)
    }
}

/// A machine with its memory and devices.
pub(crate) struct Machine {
    pub(super) process: Process,
    pub(super) vm: Vm,
    pub(super) apic: ApicMode,
    /// `guest_ncpus`.
    pub(super) vcpus: u16,
    pub(super) pc: Pc,
    /// The checkpoint that is to be taken, if any is.
    pub(super) checkpoint: Option<Pending>,
    pub(super) memory: GuestMemory,
    pub(super) personality: &'static dyn Personality,
    /// The debug server (`-G`).
    pub(super) gdb: Option<Gdb>,
    /// Where the BAR of `+passthru` is mapped.
    pub(super) bar: Mutex<Option<u64>>,
    /// What QEMU's threads tell each other.
    pub(super) qemu: qemu::Cpus,
    /// The VM is to be begun anew.
    reboot: Mutex<bool>,
    /// The vCPUs that have a thread.
    cpumask: Mutex<CpuSet>,
}

impl Machine {
    pub(super) fn new(
        process: Process,
        vm: Vm,
        apic: ApicMode,
        vcpus: u16,
        pc: Pc,
        memory: GuestMemory,
        personality: &'static dyn Personality,
    ) -> Arc<Machine> {
        let checkpoint = Pending::of(&process);
        let gdb = process.options.has(FrontendOption::Gdb).then(Gdb::waiting_for_debugger);
        let (bar, cpumask) = (Mutex::new(None), Mutex::new(CpuSet::EMPTY));
        let (qemu, reboot) = (qemu::Cpus::default(), Mutex::new(false));
        Arc::new(Machine {
            process,
            vm,
            apic,
            vcpus,
            pc,
            memory,
            personality,
            checkpoint,
            gdb,
            bar,
            qemu,
            reboot,
            cpumask,
        })
    }

    /// The part of `fbsdrun_addcpu` that every version begins with: activates the vCPU and notes that it has a thread.
    pub(super) fn activate(&self, vcpu: i32) -> Run<()> {
        self.vm
            .activate_cpu(vcpu)
            .map_err(|errno| self.process.err(status::EX_OSERR, &format!("could not activate CPU {vcpu}"), errno))?;
        self.has_thread(vcpu);
        Ok(())
    }

    /// Notes that the vCPU has a thread, or soon will.
    pub(super) fn has_thread(&self, vcpu: i32) {
        self.cpumask.lock().insert(index(vcpu));
    }

    /// The part that it ends with: the vCPU's thread. `start_rip` is where the thread sets RIP first, in versions where it
    /// does.
    pub(super) fn start_thread(self: &Arc<Machine>, vcpu: i32, start_rip: Option<u64>) {
        let machine = Arc::clone(self);
        self.process.host.spawn(&format!("vcpu {vcpu}"), move || {
            checkpoint::cpu_add(&machine, vcpu);
            let started = gdb::cpu_add(&machine, vcpu);
            if let Err(end) = started.and_then(|()| machine.personality.thread(&machine, vcpu, start_rip)) {
                machine.process.host.end(end);
            }
        });
    }

    /// `fbsdrun_deletecpu`, and what `vmexit_suspend` does with it: an AP's thread tells the BSP's and may end, the BSP's
    /// waits until it is the last.
    pub(super) fn delete_cpu(&self, vcpu: i32) -> Run<()> {
        if !self.cpumask.lock().remove(index(vcpu)) {
            let line = format!("Attempting to delete unknown cpu {vcpu}");
            return Err(self.process.exit(status::ERROR, &line));
        }
        if vcpu != BSP {
            self.process.host.wake(RESETCPU);
            return Ok(());
        }
        while !self.cpumask.lock().is_empty() {
            self.process.host.wait(RESETCPU, None);
        }
        Ok(())
    }

    /// `mevent_dispatch`: the main thread has nothing more to do, unless a checkpoint is to be taken or the VM to be begun
    /// anew.
    pub(super) fn mevent_dispatch(self: &Arc<Machine>) -> Run<Begin> {
        gdb::start_debugger(self);
        loop {
            if std::mem::take(&mut *self.reboot.lock()) {
                return Ok(Begin::Reboot);
            }
            if checkpoint::requested(self)
                && let Some(taken) = checkpoint::take(self)
            {
                return Ok(Begin::Restore(Box::new(taken)));
            }
            self.process.host.wait(MEVENT, None);
        }
    }

    /// Has the main thread begin the VM anew; the caller is the last thread.
    pub(super) fn reboot(&self) {
        *self.reboot.lock() = true;
        self.process.host.wake(MEVENT);
    }
}

/// A vCPU's place in a set; those that are no vCPU have none.
pub(super) fn index(vcpu: i32) -> usize {
    usize::try_from(vcpu).unwrap_or(usize::MAX)
}
