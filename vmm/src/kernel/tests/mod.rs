//! The kernel as userspace sees it, over every personality: errno and IPIs. The guest is a script of exits, so that these
//! tests need no processor.

mod arguments;
mod errno;
mod idle;
mod parked;
mod run;
mod run_state;
pub(super) mod scripted;
mod snapshot;
mod startup;
mod versions;

use super::{Device, Kernel};
use crate::abi::*;
use crate::cpuset::{CPU_SETSIZE, CpuSet};
use crate::engine::Completion;
use crate::history::{Activation, Behaviour, Boundary, KernelVersion, MemsegAbi, RunAbi};
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
    let behaviour = version.behaviour();
    host.run("frontend", move || {
        let vmm = Vmmapi::create(&kernel, behaviour);
        body(&inside, &vmm);
    })
}

fn kernel(name: &str) -> KernelVersion {
    KernelVersion::named(name).expect("a kernel of this name")
}

/// The ioctls, typed, in the kernel's own generation: what a userspace of its time would call.
#[derive(Clone)]
struct Vmmapi {
    device: Device,
    behaviour: Behaviour,
    /// On illumos: what the next VM_RUN of a vCPU fulfils.
    asked: Arc<std::sync::Mutex<std::collections::BTreeMap<i32, illumos::VmExit>>>,
}

impl Vmmapi {
    /// Makes a VM and opens it, through `/dev/vmmctl` where there are no sysctls.
    fn create(kernel: &Kernel, behaviour: Behaviour) -> Vmmapi {
        if behaviour.boundary == Boundary::Illumos {
            let control = kernel.open_vmmctl().expect("illumos has it");
            let mut arg = illumos::VmCreateReq::named(VM);
            control.ioctl(illumos::VMM_CREATE_VM, arg.as_mut_bytes()).expect("the name is free");
        } else {
            kernel.vm_create(VM).expect("the name is free");
        }
        let device = kernel.open(VM).expect("just created");
        Vmmapi { device, behaviour, asked: Arc::default() }
    }

    /// The number that the kernel gives to a request whose structure all generations share.
    fn own(&self, request: Request) -> Request {
        if self.behaviour.boundary == Boundary::FreeBsd {
            return request;
        }
        let name = request_name(request);
        let theirs = illumos::REQUESTS.iter().find(|(theirs, _)| *theirs == name);
        theirs.map_or(request, |(_, number)| *number)
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(&self, request: Request, mut arg: T) -> Result<T, Errno> {
        self.device.ioctl(self.own(request), arg.as_mut_bytes())?;
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

    fn suspend(&self, how: i32) -> Result<(), Errno> {
        if self.behaviour.boundary == Boundary::Illumos {
            return self.call(illumos::VM_SUSPEND, illumos::VmSuspend { how, source: -1 }).map(drop);
        }
        self.call(VM_SUSPEND, VmSuspend { how }).map(drop)
    }

    fn reinit(&self) -> Result<(), Errno> {
        if self.behaviour.boundary == Boundary::Illumos {
            return self.call(illumos::VM_REINIT, illumos::VmReinit::default()).map(drop);
        }
        self.device.ioctl(VM_REINIT, &mut [])
    }

    fn alloc_memseg(&self, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        if self.behaviour.boundary == Boundary::Illumos {
            return self.call(illumos::VM_ALLOC_MEMSEG, illumos::VmMemseg::new(segid, len, name)).map(drop);
        }
        match self.behaviour.memseg {
            MemsegAbi::Name64 => self.call(v12::VM_ALLOC_MEMSEG, v12::VmMemseg::new(segid, len, name)).map(drop),
            MemsegAbi::Suffix16 => self.call(VM_ALLOC_MEMSEG, VmMemseg::new(segid, len, name)).map(drop),
            MemsegAbi::Domains => self.call(v15::VM_ALLOC_MEMSEG, v15::VmMemseg::new(segid, len, name)).map(drop),
        }
    }

    /// Activates a vCPU, and lets it run where that takes more.
    fn start(&self, vcpuid: i32) {
        let activated = self.activate(vcpuid);
        if self.behaviour.activation == Activation::ByKernel {
            assert_eq!((activated, vcpuid), (Err(Errno::ENOTTY), 0), "the kernel activates vCPU 0 itself");
        } else {
            activated.expect("not active yet");
        }
        if self.behaviour.boundary == Boundary::Illumos {
            let state = illumos::VmRunState { vcpuid, state: illumos::vrs::RUN, ..Default::default() };
            self.call(illumos::VM_SET_RUN_STATE, state).expect("a valid state");
        }
    }

    /// VM_RUN. The payload of illumos's exits fills the beginning of FreeBSD's.
    fn run(&self, cpuid: i32) -> Result<VmExit, Errno> {
        self.run_told(cpuid, CPU_SETSIZE / 8).map(|(exit, _)| exit)
    }

    /// VM_RUN, with the mask of an IPI in a set of `cpusetsize` bytes.
    fn run_told(&self, cpuid: i32, cpusetsize: usize) -> Result<(VmExit, CpuSet), Errno> {
        const EXIT: usize = size_of::<VmExit>();
        match self.behaviour.run {
            RunAbi::ByValue => {
                let exit = self.call(VM_RUN, VmRun { cpuid, ..VmRun::default() })?.vm_exit;
                let ipi = exit.exitcode == exitcode::IPI;
                Ok((exit, if ipi { exit.payload::<ExitIpi>().dmask() } else { CpuSet::EMPTY }))
            }
            RunAbi::ByPointer => {
                let head = size_of::<v14::VmRun>();
                let mut arg = vec![0xa5; head + EXIT + cpusetsize];
                arg[..head].copy_from_slice(v14::VmRun::new(cpuid, cpusetsize).as_bytes());
                self.device.ioctl(v14::VM_RUN, &mut arg)?;
                let exit = VmExit::read_from_bytes(&arg[head..head + EXIT]).expect("136 bytes");
                let mask = &arg[head + EXIT..];
                let members = (0..mask.len() * 8).filter(|cpu| mask[cpu / 8] & 1 << (cpu % 8) != 0);
                let ipi = exit.exitcode == exitcode::IPI;
                Ok((exit, if ipi { members.collect() } else { CpuSet::EMPTY }))
            }
            RunAbi::Entry => {
                let mut asked = self.asked.lock().expect("one thread at a time");
                let entry = match asked.remove(&cpuid) {
                    Some(exit) if exit.exitcode == illumos::exitcode::INOUT => illumos::VmEntry::new(cpuid)
                        .fulfilling(illumos::entry_cmd::FULFILL_INOUT, &exit.payload::<illumos::VmInout>()),
                    Some(exit) => illumos::VmEntry::new(cpuid)
                        .fulfilling(illumos::entry_cmd::FULFILL_MMIO, &exit.payload::<illumos::VmMmio>()),
                    None => illumos::VmEntry::new(cpuid),
                };
                drop(asked);
                let exit = self.enter(entry)?;
                if matches!(exit.exitcode, illumos::exitcode::INOUT | illumos::exitcode::MMIO) {
                    self.asked.lock().expect("one thread at a time").insert(cpuid, exit);
                }
                let mut told = VmExit { exitcode: exit.exitcode, rip: exit.rip, ..VmExit::default() };
                told.payload[..exit.payload.len()].copy_from_slice(&exit.payload);
                Ok((told, CpuSet::EMPTY))
            }
        }
    }

    /// The port that an exit is about.
    fn port(&self, exit: &VmExit) -> Option<u16> {
        let port = match self.behaviour.boundary {
            Boundary::FreeBsd => exit.payload::<ExitInout>().port,
            Boundary::Illumos => exit.payload::<illumos::VmInout>().port,
        };
        (exit.exitcode == exitcode::INOUT).then_some(port)
    }

    /// illumos's VM_RUN.
    fn enter(&self, entry: illumos::VmEntry) -> Result<illumos::VmExit, Errno> {
        let head = size_of::<illumos::VmEntry>();
        let mut arg = vec![0; head + size_of::<illumos::VmExit>()];
        arg[..head].copy_from_slice(entry.as_bytes());
        self.device.ioctl(illumos::VM_RUN, &mut arg)?;
        Ok(illumos::VmExit::read_from_bytes(&arg[head..]).expect("64 bytes"))
    }
}
