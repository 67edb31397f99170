//! The generation of FreeBSD 10 to 12: names of memory segments have 64 bytes, so VM_ALLOC_MEMSEG and VM_GET_MEMSEG have
//! numbers of their own (kept by later kernels under COMPAT_FREEBSD12). All else is as in 13.1, of which the boot ROM of this
//! generation is a part: 10.0 itself knew neither boot ROMs nor memory segments, and took guests from `bhyveload` into memory
//! from VM_MAP_MEMORY. \[inferred]

use super::exit::Exit;
use super::reset::Since;
use super::sys::DeviceFile;
use super::{Generation, Vm, call, name_field, run_by_value};
use vmm::abi::{Errno, v12};

/// libvmmapi as in 12.x and before.
pub(crate) struct V12;

impl Generation for V12 {
    fn memseg(&self, file: &dyn DeviceFile, segid: i32) -> Result<(u64, String), Errno> {
        let segment = call(file, v12::VM_GET_MEMSEG, v12::VmMemseg { segid, ..v12::VmMemseg::default() })?;
        Ok((segment.len, segment.name()))
    }

    fn alloc_memseg(&self, file: &dyn DeviceFile, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let segment = v12::VmMemseg { segid, len, name: name_field(name)?, ..v12::VmMemseg::default() };
        call(file, v12::VM_ALLOC_MEMSEG, segment).map(drop)
    }

    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        run_by_value(&*vm.file, vcpu).map(|raw| Exit::parse(&raw))
    }

    fn reset(&self) -> Since {
        Since::Old
    }
}
