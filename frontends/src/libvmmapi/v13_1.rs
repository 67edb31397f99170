//! The generation of FreeBSD 12.x to 13.1: `VM_EXITCODE_MAX` is 24, so there is no VM_EXITCODE_IPI.

use super::exit::Exit;
use super::reset::Since;
use super::sys::DeviceFile;
use super::{Generation, run_by_value};
use vmm::abi::Errno;

/// libvmmapi as in 13.1.
pub(crate) struct V13_1;

impl Generation for V13_1 {
    fn run(&self, file: &dyn DeviceFile, vcpu: i32) -> Result<Exit, Errno> {
        run_by_value(file, vcpu).map(|raw| Exit::parse(&raw))
    }

    fn reset(&self) -> Since {
        Since::Old
    }
}
