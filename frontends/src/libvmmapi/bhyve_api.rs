//! What Oxide's bhyve-api has beside illumos's calls: it insists on the version of the interface, and resets a vCPU in one call.

use super::sys::System;
use super::{Vm, call};
use vmm::abi::Errno;
use vmm::abi::illumos::{self, VRK_RESET, VmVcpuReset};

/// The version of the interface that propolis is built for. \[read]
pub(crate) const PINNED_VERSION: i32 = illumos::CURRENT_INTERFACE_VERSION;

/// `api_version`: VMM_INTERFACE_VERSION at `/dev/vmmctl`.
pub(crate) fn api_version(system: &dyn System) -> Result<i32, Errno> {
    call(&*system.open_vmmctl()?, illumos::VMM_INTERFACE_VERSION, 0_i32)
}

impl Vm {
    /// VM_RESET_CPU with VRK_RESET: the state after power-up.
    pub(crate) fn reset_cpu(&self, vcpu: i32) -> Result<(), Errno> {
        self.ioctl(illumos::VM_RESET_CPU, VmVcpuReset { vcpuid: vcpu, kind: VRK_RESET }).map(drop)
    }
}
