//! The kernel-side core: what `vmm.ko` does behind `/dev/vmm`.
//!
//! Userspace reaches it through the system calls of [`Kernel`] and [`Device`] alone. Inside, one file holds each part:
//!
//! * `vm`: the virtual machine, its sets of vCPUs, who waits for whom; `vcpu`: one vCPU; `memory`: segments and mappings.
//! * `ioctl`: the dispatcher between bytes and methods.
//! * `run`: VM_RUN; `ipi`: what a write to the ICR does, by the behaviour of the kernel; `rendezvous`.
//! * `run_state`: illumos's way with INIT and STARTUP; `generation`: which requests a kernel knows; `control`: `/dev/vmmctl`;
//!   `snapshot`: VM_SNAPSHOT_REQ.
//! * `board`: the interrupt controllers and timers that vCPUs share; `interrupts`: from them to the local APICs; `cpuid`.

mod board;
mod control;
mod cpuid;
mod generation;
mod interrupts;
mod ioctl;
mod ipi;
mod memory;
mod position;
mod rendezvous;
mod run;
mod run_state;
mod snapshot;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

use crate::abi::vmmctl::VM_MAX_NAMELEN;
use crate::abi::{Errno, Request};
use crate::engine::Engine;
use crate::history::{Boundary, KernelVersion};
use crate::host::{End, Host};
use crate::memory::Segment;
use crate::trace::Event;
use parking_lot::Mutex;
pub use position::Position;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use vm::Vm;

/// A booted host kernel with `vmm.ko` loaded; clones are the same kernel.
#[derive(Clone)]
pub struct Kernel(Arc<Booted>);

struct Booted {
    host: Host,
    version: KernelVersion,
    engine: Arc<dyn Engine>,
    vms: Mutex<Vms>,
}

#[derive(Default)]
struct Vms {
    by_name: BTreeMap<String, Arc<Vm>>,
    /// Kept for what is counted over a whole cell.
    destroyed: Vec<Arc<Vm>>,
    created: u64,
}

/// An open `/dev/vmm/NAME`; clones are the same file.
#[derive(Clone)]
pub struct Device(Arc<Vm>);

pub use control::ControlDevice;
pub use run::Parked;

/// Guest memory mapped into the process.
#[derive(Clone, Debug)]
pub struct Mapping {
    segment: Arc<Segment>,
    offset: u64,
    len: u64,
}

impl Kernel {
    /// Boots a host with this version of `vmm.ko`, whose guests the engine executes.
    #[must_use]
    pub fn boot(host: &Host, version: &KernelVersion, engine: Arc<dyn Engine>) -> Kernel {
        Kernel(Arc::new(Booted { host: host.clone(), version: version.clone(), engine, vms: Mutex::default() }))
    }

    /// `sysctl hw.vmm.create`: makes a VM.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EINVAL` when it is empty or too long; `ENOENT` on illumos, which has no such sysctl.
    pub fn vm_create(&self, name: &str) -> Result<(), Errno> {
        let result = self.sysctl().and_then(|()| self.create(name));
        self.record("sysctl hw.vmm.create", result)
    }

    fn sysctl(&self) -> Result<(), Errno> {
        match self.0.version.behaviour().boundary {
            Boundary::FreeBsd => Ok(()),
            Boundary::Illumos => Err(Errno::ENOENT),
        }
    }

    fn create(&self, name: &str) -> Result<(), Errno> {
        if name.is_empty() || name.len() > VM_MAX_NAMELEN {
            return Err(Errno::EINVAL);
        }
        let number = {
            let mut vms = self.0.vms.lock();
            if vms.by_name.contains_key(name) {
                return Err(Errno::EEXIST);
            }
            vms.created += 1;
            vms.created
        };
        let Booted { host, version, engine, .. } = &*self.0;
        let engine_vm = engine
            .create_vm()
            .unwrap_or_else(|error| host.end(End::HarnessError(format!("The engine has no VM for the cell: {error}"))));
        let vm = Vm::new(host, version, engine_vm, number);
        self.0.vms.lock().by_name.insert(name.to_owned(), vm);
        Ok(())
    }

    /// `sysctl hw.vmm.destroy`: destroys a VM.
    ///
    /// # Errors
    /// `EINVAL` when there is none of this name; `ENOENT` on illumos, which has no such sysctl.
    pub fn vm_destroy(&self, name: &str) -> Result<(), Errno> {
        let result = self.sysctl().and_then(|()| self.destroy(name));
        self.record("sysctl hw.vmm.destroy", result)
    }

    /// Threads that are inside an ioctl of the VM come out first; from then on its device is ENXIO.
    fn destroy(&self, name: &str) -> Result<(), Errno> {
        let vm = self.0.vms.lock().by_name.remove(name).ok_or(Errno::EINVAL)?;
        vm.destroy();
        self.0.vms.lock().destroyed.push(vm);
        Ok(())
    }

    /// Opens `/dev/vmm/NAME`.
    ///
    /// # Errors
    /// `ENOENT` when there is no such VM.
    pub fn open(&self, name: &str) -> Result<Device, Errno> {
        let found = self.find(name);
        self.record("open", found.map(Device))
    }

    /// Opens and maps `/dev/vmm.io/NAME.SEGMENT`, a named memory segment.
    ///
    /// # Errors
    /// `ENOENT` when there is no such VM or segment.
    pub fn map_devmem(&self, name: &str, segment: &str) -> Result<Mapping, Errno> {
        let found = self.find(name).and_then(|vm| vm.lock().memory.named(segment).ok_or(Errno::ENOENT));
        let mapping = found.map(|segment| Mapping { len: segment.len() as u64, segment, offset: 0 });
        self.record("mmap devmem", mapping)
    }

    /// How many instructions the guests of this host have executed; `None` when the engine cannot tell. Not a system
    /// call: for whoever runs the model.
    #[must_use]
    pub fn instructions(&self) -> Option<u64> {
        let vms = self.0.vms.lock();
        vms.by_name.values().chain(&vms.destroyed).map(|vm| vm.instructions()).sum()
    }

    /// Where each vCPU of each VM is, for whoever looks into a cell that was given up. Not a system call.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        let vms: Vec<Arc<Vm>> = self.0.vms.lock().by_name.values().cloned().collect();
        vms.iter().flat_map(|vm| position::of(&mut vm.lock())).collect()
    }

    /// What the vCPUs of this host did while they were suspended, by number, over all VMs. Only those that were. Not a system call: for
    /// whoever runs the model.
    #[must_use]
    pub fn parked(&self) -> BTreeMap<usize, Parked> {
        let vms = self.0.vms.lock();
        let mut all = BTreeMap::<usize, Parked>::new();
        for vm in vms.by_name.values().chain(&vms.destroyed) {
            for (id, parked) in vm.parked() {
                let sum = all.entry(id).or_default();
                sum.exits += parked.exits;
                sum.ns += parked.ns;
            }
        }
        all
    }

    fn find(&self, name: &str) -> Result<Arc<Vm>, Errno> {
        self.0.vms.lock().by_name.get(name).cloned().ok_or(Errno::ENOENT)
    }

    fn record<T>(&self, name: &str, result: Result<T, Errno>) -> Result<T, Errno> {
        let errno = result.as_ref().err().map_or(0, |errno| errno.number());
        self.0.host.emit(None, Event::Syscall { name: name.to_owned(), errno });
        result
    }
}

impl Device {
    /// `ioctl(2)`. `arg` begins with the request's structure; pointers inside it count from its first byte, so what they
    /// point to stands behind the structure in the same bytes.
    ///
    /// # Errors
    /// What the request says; `ENOTTY` for one that this kernel does not know.
    ///
    /// # Panics
    /// When `arg` is smaller than the request says its structure is: that is no behaviour of a kernel.
    pub fn ioctl(&self, request: Request, arg: &mut [u8]) -> Result<(), Errno> {
        self.0.ioctl(request, arg)
    }

    /// `mmap(2)` of guest physical memory; on illumos also of a named segment, at the offset that VM_DEVMEM_GETOFFSET tells.
    ///
    /// # Errors
    /// `EINVAL` when the range is not within one mapping of the guest's.
    pub fn mmap(&self, gpa: u64, len: u64) -> Result<Mapping, Errno> {
        let found = {
            let st = self.0.lock();
            let devmem = self.0.behaviour.boundary == Boundary::Illumos;
            let devmem = devmem.then(|| st.memory.devmem_at(gpa, len)).flatten().map(|segment| (segment, 0));
            devmem.or_else(|| st.memory.find(gpa, len))
        };
        let result = found.map(|(segment, offset)| Mapping { segment, offset, len }).ok_or(Errno::EINVAL);
        let errno = result.as_ref().err().map_or(0, |errno| errno.number());
        self.0.host.emit(None, Event::Syscall { name: "mmap".to_owned(), errno });
        result
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.0.version.name)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Device")
    }
}

impl Mapping {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out; `false` when the range leaves the mapping.
    #[must_use]
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        self.inside(at, bytes.len()) && self.segment.read(self.offset + at, bytes)
    }

    /// Copies bytes in; `false` when the range leaves the mapping.
    #[must_use]
    pub fn write(&self, at: u64, bytes: &[u8]) -> bool {
        self.inside(at, bytes.len()) && self.segment.write(self.offset + at, bytes)
    }

    fn inside(&self, at: u64, len: usize) -> bool {
        at.checked_add(len as u64).is_some_and(|end| end <= self.len)
    }
}
