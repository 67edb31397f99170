//! The debug server (`gdb.c`), as far as `-G w` and a debugger that connects and continues need it.
//!
//! With `w` the BSP counts as suspended from the start, so every vCPU's thread stops before its first VM_RUN. The debugger
//! suspends all vCPUs when it connects, and "continue" resumes all of them. \[read] In the kernel that is one and the same
//! set: an AP that waits there for its STARTUP is resumed too, and runs at the reset vector. a9e4753b4fe2 (D46196) suspends
//! it again. \[commit]; that it looks at the set when the thread begins, and leaves the BSP out, is \[inferred].

use super::machine::{BSP, Machine, index};
use super::process::{Place, Run};
use parking_lot::Mutex;
use std::sync::Arc;
use vmm::cpuset::CpuSet;
use vmm::host::WaitChannel;

/// `idle_vcpus`: the set of suspended or of waiting vCPUs has changed.
const IDLE_VCPUS: WaitChannel = WaitChannel(0xb47e_0002);

/// How long it takes until somebody attaches a debugger, once all is set up: longer than any set-up.
const ATTACH_NS: u64 = 1_000_000;

/// What `gdb.c` knows of the vCPUs.
#[derive(Debug, Default)]
struct Cpus {
    /// Those whose thread has begun.
    active: CpuSet,
    /// Those that the debugger wants to stand still.
    suspended: CpuSet,
    /// Those that do, in their threads.
    waiting: CpuSet,
}

/// The debug server.
#[derive(Debug)]
pub(super) struct Gdb(Mutex<Cpus>);

impl Gdb {
    /// `init_gdb` with `w`.
    pub(super) fn waiting_for_debugger() -> Gdb {
        Gdb(Mutex::new(Cpus { suspended: CpuSet::single(index(BSP)), ..Cpus::default() }))
    }

    /// `_gdb_cpu_suspend`: the thread waits for as long as the debugger wants its vCPU to stand still.
    fn wait(&self, machine: &Machine, vcpu: i32) {
        let host = &machine.process.host;
        self.0.lock().waiting.insert(index(vcpu));
        host.wake(IDLE_VCPUS);
        while self.0.lock().suspended.contains(index(vcpu)) {
            host.wait(IDLE_VCPUS, None);
        }
        self.0.lock().waiting.remove(index(vcpu));
    }
}

/// `gdb_cpu_add`: what the thread of a vCPU begins with.
pub(super) fn cpu_add(machine: &Machine, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "gdb_cpu_add", file: "gdb.c" };
    let Machine { process, vm, personality, gdb, .. } = machine;
    let Some(gdb) = gdb else { return Ok(()) };
    {
        let mut cpus = gdb.0.lock();
        cpus.active.insert(index(vcpu));
        if cpus.suspended.is_empty() {
            return Ok(());
        }
        cpus.suspended.insert(index(vcpu));
    }
    let again = personality.debugger_suspends_aps_again() && vcpu != BSP;
    let suspended = again && process.assert_ok(vm.debug_cpus(), PLACE)?.contains(index(vcpu));
    gdb.wait(machine, vcpu);
    if suspended { process.assert_ok(vm.suspend_cpu(vcpu), PLACE) } else { Ok(()) }
}

/// `gdb_cpu_suspend`: what VM_EXITCODE_DEBUG comes to first.
pub(super) fn cpu_suspend(machine: &Machine, vcpu: i32) {
    if let Some(gdb) = &machine.gdb {
        gdb.wait(machine, vcpu);
    }
}

/// The debugger, if the machine waits for one: a process that connects, and continues once every vCPU stands still.
pub(super) fn start_debugger(machine: &Arc<Machine>) {
    if machine.gdb.is_none() {
        return;
    }
    let machine = Arc::clone(machine);
    machine.process.host.clone().spawn("gdb", move || {
        let Machine { process, vm, gdb: Some(gdb), .. } = &*machine else { return };
        process.host.sleep(ATTACH_NS);
        // new_connection, gdb_suspend_vcpus
        {
            let mut cpus = gdb.0.lock();
            cpus.suspended = cpus.active;
        }
        let _ignored = vm.suspend_all_cpus();
        let all_stand_still = || {
            let cpus = gdb.0.lock();
            cpus.waiting == cpus.suspended
        };
        while !all_stand_still() {
            process.host.wait(IDLE_VCPUS, None);
        }
        // `c`: gdb_resume_vcpus
        let _ignored = vm.resume_all_cpus();
        gdb.0.lock().suspended = CpuSet::EMPTY;
        process.host.wake(IDLE_VCPUS);
    });
}
