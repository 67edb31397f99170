//! The generation of main from 0bda8d3e9f7a (D35623) on, and of 13.2: VM_EXITCODE_IPI, the IPI_EXIT capability and the
//! thorough `vcpu_reset` of D35622; VM_RUN still carries its exit by value, as until e17eca327633 (D40113).

use super::exit::Exit;
use super::reset::Since;
use super::{Generation, Vm, run_by_value};
use vmm::abi::Errno;

/// libvmmapi as in 13.2.
pub(crate) struct V13_2;

impl Generation for V13_2 {
    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        run_by_value(&*vm.file, vcpu).map(|raw| Exit::parse_with_ipi(&raw))
    }

    fn reset(&self) -> Since {
        Since::D35622
    }
}
