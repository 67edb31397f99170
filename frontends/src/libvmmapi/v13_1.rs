//! The generation of FreeBSD 13.0 and 13.1: `VM_EXITCODE_MAX` is 24, so there is no VM_EXITCODE_IPI.

use super::exit::Exit;
use super::reset::Since;
use super::{Generation, Vm, run_by_value};
use vmm::abi::Errno;

/// libvmmapi as in 13.1.
pub(crate) struct V13_1;

impl Generation for V13_1 {
    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        run_by_value(&*vm.file, vcpu).map(|raw| Exit::parse(&raw))
    }

    fn reset(&self) -> Since {
        Since::Old
    }
}
