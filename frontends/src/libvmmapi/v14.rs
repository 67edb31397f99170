//! The generation of FreeBSD 14 (e17eca327633, D40113): VM_RUN takes pointers, to the exit and to a `cpuset_t` of 1024 bits
//! that userspace says the size of; VM_STATS counts from an index; the snapshot request lost a pointer. A kernel before 14
//! knows none of these numbers: ENOTTY.

use super::exit::Exit;
use super::reset::Since;
use super::sys::DeviceFile;
use super::{Generation, Vm, call, cpuset, snapshot};
use vmm::abi::{self, Errno, v14};
use zerocopy::{FromBytes, IntoBytes};

/// `sizeof(cpuset_t)` from 14 on: `CPU_SETSIZE` is 1024.
pub(super) const CPUSET_SIZE: usize = 128;

/// libvmmapi as in 14.0.
pub(crate) struct V14;

/// VM_RUN with the exit and the set behind its structure.
pub(super) fn run(file: &dyn DeviceFile, vcpu: i32) -> Result<Exit, Errno> {
    const HEAD: usize = size_of::<v14::VmRun>();
    const EXIT: usize = size_of::<abi::VmExit>();
    let mut argument = [0; HEAD + EXIT + CPUSET_SIZE];
    argument[..HEAD].copy_from_slice(v14::VmRun::new(vcpu, CPUSET_SIZE).as_bytes());
    file.ioctl(v14::VM_RUN, &mut argument)?;
    let (exit, set) = argument[HEAD..].split_at(EXIT);
    let exit = abi::VmExit::read_from_bytes(exit).expect("EXIT bytes lie before the set");
    Ok(Exit::parse_with_set(&exit, || cpuset(set)))
}

/// VM_STATS from the first counter on.
pub(super) fn stats(file: &dyn DeviceFile, vcpu: i32) -> Result<Vec<u64>, Errno> {
    let stats = call(file, v14::VM_STATS, v14::VmStats { cpuid: vcpu, ..v14::VmStats::default() })?;
    Ok(stats.statbuf.into_iter().take(usize::try_from(stats.num_entries).unwrap_or(0)).collect())
}

impl Generation for V14 {
    fn cpuset_size(&self) -> usize {
        CPUSET_SIZE
    }

    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        run(&*vm.file, vcpu)
    }

    fn reset(&self) -> Since {
        Since::D35622
    }

    fn stats(&self, file: &dyn DeviceFile, vcpu: i32) -> Result<Vec<u64>, Errno> {
        stats(file, vcpu)
    }

    fn snapshot(&self, file: &dyn DeviceFile, structure: u32, image: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        snapshot::request_14(file, structure, image)
    }
}
