//! The generation of FreeBSD 15: VMs are made and destroyed at `/dev/vmmctl`, memory segments name the memory domains that
//! they come from, and the boot ROM's segment has another number. All else is as in 14.

use super::exit::Exit;
use super::reset::Since;
use super::sys::{DeviceFile, System};
use super::{Generation, Segment, Vm, call, name_field, snapshot, v14};
use vmm::abi::vmmctl::{VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY, VmmctlVmCreate, VmmctlVmDestroy};
use vmm::abi::{Errno, v15};

/// libvmmapi as in 15.
pub(crate) struct V15;

impl Generation for V15 {
    fn create(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        call(&*system.open_vmmctl()?, VMMCTL_VM_CREATE, VmmctlVmCreate::named(name)).map(drop)
    }

    fn destroy(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        call(&*system.open_vmmctl()?, VMMCTL_VM_DESTROY, VmmctlVmDestroy::named(name)).map(drop)
    }

    fn cpuset_size(&self) -> usize {
        v14::CPUSET_SIZE
    }

    fn segid(&self, segment: Segment) -> i32 {
        match segment {
            Segment::Bootrom => v15::SEGID_BOOTROM,
            Segment::Framebuffer => v15::SEGID_BOOTROM + 1,
        }
    }

    fn memseg(&self, file: &dyn DeviceFile, segid: i32) -> Result<(u64, String), Errno> {
        let segment = call(file, v15::VM_GET_MEMSEG, v15::VmMemseg { segid, ..v15::VmMemseg::default() })?;
        Ok((segment.len, segment.name()))
    }

    fn alloc_memseg(&self, file: &dyn DeviceFile, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let segment = v15::VmMemseg { segid, len, name: name_field(name)?, ..v15::VmMemseg::default() };
        call(file, v15::VM_ALLOC_MEMSEG, segment).map(drop)
    }

    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        v14::run(&*vm.file, vcpu)
    }

    fn reset(&self) -> Since {
        Since::D35622
    }

    fn stats(&self, file: &dyn DeviceFile, vcpu: i32) -> Result<Vec<u64>, Errno> {
        v14::stats(file, vcpu)
    }

    fn snapshot(&self, file: &dyn DeviceFile, structure: u32, image: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        snapshot::request_14(file, structure, image)
    }
}
