//! `/dev/vmmctl`: where virtual machines are made and destroyed, on FreeBSD from 15 on and on illumos.

use super::Kernel;
use super::ioctl::{load, store};
use crate::abi::illumos::{self, VmCreateReq, VmDestroyReq};
use crate::abi::vmmctl::{VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY, VmmctlVmCreate, VmmctlVmDestroy};
use crate::abi::{Errno, Request, name_in, request_name};
use crate::history::Boundary;
use crate::trace::Event;
use std::fmt;

/// An open `/dev/vmmctl`; clones are the same file.
#[derive(Clone)]
pub struct ControlDevice(Kernel);

impl Kernel {
    /// Opens `/dev/vmmctl`.
    ///
    /// # Errors
    /// `ENOENT` where there is no such device.
    pub fn open_vmmctl(&self) -> Result<ControlDevice, Errno> {
        let there = self.0.version.behaviour().vmmctl;
        self.record("open vmmctl", if there { Ok(ControlDevice(self.clone())) } else { Err(Errno::ENOENT) })
    }
}

impl ControlDevice {
    /// `ioctl(2)`. The requests are those of [`crate::abi::vmmctl`], or of illumos.
    ///
    /// # Errors
    /// What the request says; `ENOTTY` for one that this kernel does not know.
    ///
    /// # Panics
    /// When `arg` is smaller than the request's structure: that is no behaviour of a kernel.
    pub fn ioctl(&self, request: Request, arg: &mut [u8]) -> Result<(), Errno> {
        let (result, detail) = match self.0.0.version.behaviour().boundary {
            Boundary::FreeBsd => self.of_freebsd(request, arg),
            Boundary::Illumos => self.of_illumos(request, arg),
        };
        let errno = result.err().map_or(0, Errno::number);
        let name = request_name(request).to_owned();
        self.0.0.host.emit(None, Event::Ioctl { name, request: request.0, detail, errno });
        result
    }

    /// Reserved words must be zero; a later kernel takes the first of VMMCTL_VM_CREATE for flags (bd16bac27e7e, D53729). \[read]
    fn of_freebsd(&self, request: Request, arg: &[u8]) -> (Result<(), Errno>, String) {
        let (name, reserved) = match request {
            VMMCTL_VM_CREATE => {
                let VmmctlVmCreate { name, reserved, .. } = load(arg);
                (name, reserved)
            }
            VMMCTL_VM_DESTROY => {
                let VmmctlVmDestroy { name, reserved, .. } = load(arg);
                (name, reserved)
            }
            _ => return (Err(Errno::ENOTTY), String::new()),
        };
        let name = name_in(&name[..name.len() - 1]);
        let result = if reserved.iter().any(|&word| word != 0) {
            Err(Errno::EINVAL)
        } else if request == VMMCTL_VM_CREATE {
            self.0.create(&name)
        } else {
            self.0.destroy(&name)
        };
        (result, name)
    }

    /// A VM that does not exist is ENOENT here. VMM_INTERFACE_VERSION is the ioctl's return value there, and here in the argument.
    /// \[read, the errno inferred]
    fn of_illumos(&self, request: Request, arg: &mut [u8]) -> (Result<(), Errno>, String) {
        match request {
            illumos::VMM_CREATE_VM => {
                let VmCreateReq { name, .. } = load(arg);
                let name = name_in(&name);
                let result = if name.len() < illumos::MAX_NAMELEN { self.0.create(&name) } else { Err(Errno::EINVAL) };
                (result, name)
            }
            illumos::VMM_DESTROY_VM => {
                let VmDestroyReq { name } = load(arg);
                let name = name_in(&name);
                (self.0.destroy(&name).map_err(|_| Errno::ENOENT), name)
            }
            illumos::VMM_VM_SUPPORTED => (Ok(()), String::new()),
            illumos::VMM_INTERFACE_VERSION => {
                let version = illumos::CURRENT_INTERFACE_VERSION;
                store(arg, &version);
                (Ok(()), format!("version={version}"))
            }
            _ => (Err(Errno::ENOTTY), String::new()),
        }
    }
}

impl fmt::Debug for ControlDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlDevice")
    }
}
