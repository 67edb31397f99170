//! `/dev/vmmctl` of FreeBSD 15 and later: virtual machines are made and destroyed there. The group of the requests is `'V'`.

use super::Request;
use super::macros::layouts;

/// `VM_MAX_NAMELEN`: the longest name of a VM, in bytes. \[unverified]
pub const VM_MAX_NAMELEN: usize = 229;

layouts! {
    /// `struct vmmctl_vm_create`.
    VmmctlVmCreate, 296 bytes {
        /// NUL-terminated.
        name: [u8; VM_MAX_NAMELEN + 1],
        _pad: [u8; 2],
        /// All zero, else EINVAL. A later kernel takes flags in the first word.
        reserved: [i32; 16],
    }

    /// `struct vmmctl_vm_destroy`.
    VmmctlVmDestroy, 296 bytes {
        /// NUL-terminated.
        name: [u8; VM_MAX_NAMELEN + 1],
        _pad: [u8; 2],
        /// All zero, else EINVAL.
        reserved: [i32; 16],
    }
}

/// `VMMCTL_VM_CREATE`: EEXIST when the name is taken.
pub const VMMCTL_VM_CREATE: Request = Request::iowr::<VmmctlVmCreate>(0).in_group(b'V');
/// `VMMCTL_VM_DESTROY`: EINVAL when there is no such VM.
pub const VMMCTL_VM_DESTROY: Request = Request::iowr::<VmmctlVmDestroy>(1).in_group(b'V');

/// Every request of this module with its name.
pub const REQUESTS: &[(&str, Request)] =
    &[("VMMCTL_VM_CREATE", VMMCTL_VM_CREATE), ("VMMCTL_VM_DESTROY", VMMCTL_VM_DESTROY)];

impl VmmctlVmCreate {
    /// The argument for a VM of this name, cut off at [`VM_MAX_NAMELEN`].
    #[must_use]
    pub fn named(name: &str) -> VmmctlVmCreate {
        VmmctlVmCreate { name: super::name_field(name), ..VmmctlVmCreate::default() }
    }
}

impl VmmctlVmDestroy {
    /// The argument for a VM of this name, cut off at [`VM_MAX_NAMELEN`].
    #[must_use]
    pub fn named(name: &str) -> VmmctlVmDestroy {
        VmmctlVmDestroy { name: super::name_field(name), ..VmmctlVmDestroy::default() }
    }
}
