//! The kernel as userspace sees it, over every personality: errno and IPIs. The guest is a script of exits, so that these
//! tests need no processor.

mod arguments;
mod errno;
mod idle;
mod run;
pub(super) mod scripted;
mod startup;

use super::{Device, Kernel};
use crate::abi::*;
use crate::engine::Completion;
use crate::history::KernelVersion;
use crate::host::{Finished, Host};
use scripted::Scripted;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const VM: &str = "test";

/// Runs `body` as the frontend of a VM on the kernel; `script` is what the guest does.
fn on_kernel(
    version: &KernelVersion,
    script: Scripted,
    body: impl FnOnce(&Host, &Vmmapi) + Send + 'static,
) -> Finished {
    on_kernel_seeded(0, version, script, body)
}

/// [`on_kernel`] with an interleaving of its own.
fn on_kernel_seeded(
    seed: u64,
    version: &KernelVersion,
    script: Scripted,
    body: impl FnOnce(&Host, &Vmmapi) + Send + 'static,
) -> Finished {
    const LIMIT_NS: u64 = 5_000_000_000;
    let host = Host::virtual_time(seed, LIMIT_NS);
    let kernel = Kernel::boot(&host, version, Arc::new(script));
    let inside = host.clone();
    host.run("frontend", move || {
        kernel.vm_create(VM).expect("the name is free");
        let device = kernel.open(VM).expect("just created");
        body(&inside, &Vmmapi(device));
    })
}

fn kernel(name: &str) -> KernelVersion {
    KernelVersion::named(name).expect("a kernel of this name")
}

/// The ioctls, typed.
#[derive(Clone)]
struct Vmmapi(Device);

impl Vmmapi {
    fn call<T: IntoBytes + FromBytes + Immutable>(&self, request: Request, mut arg: T) -> Result<T, Errno> {
        self.0.ioctl(request, arg.as_mut_bytes())?;
        Ok(arg)
    }

    fn activate(&self, vcpuid: i32) -> Result<(), Errno> {
        self.call(VM_ACTIVATE_CPU, VmActivateCpu { vcpuid }).map(drop)
    }

    fn suspend_cpu(&self, vcpuid: i32) -> Result<(), Errno> {
        self.call(VM_SUSPEND_CPU, VmActivateCpu { vcpuid }).map(drop)
    }

    fn resume_cpu(&self, vcpuid: i32) -> Result<(), Errno> {
        self.call(VM_RESUME_CPU, VmActivateCpu { vcpuid }).map(drop)
    }

    fn set_capability(&self, cpuid: i32, captype: i32, capval: i32) -> Result<(), Errno> {
        self.call(VM_SET_CAPABILITY, VmCapability { cpuid, captype, capval, allcpus: 0 }).map(drop)
    }

    fn set_x2apic(&self, cpuid: i32) -> Result<(), Errno> {
        self.call(VM_SET_X2APIC_STATE, VmX2apic { cpuid, state: 1 }).map(drop)
    }

    fn run(&self, cpuid: i32) -> Result<VmExit, Errno> {
        self.call(VM_RUN, VmRun { cpuid, ..VmRun::default() }).map(|run| run.vm_exit)
    }
}
