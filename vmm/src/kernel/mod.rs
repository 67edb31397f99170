//! The kernel-side core: what `vmm.ko` does behind `/dev/vmm`.
//!
//! Userspace reaches it through the system calls of [`Kernel`] and [`Device`] alone.

use crate::abi::{Errno, Request};
use crate::engine::Engine;
use crate::history::KernelVersion;
use crate::host::Host;
use crate::memory::Segment;
use std::sync::Arc;

/// A booted host kernel with `vmm.ko` loaded.
#[derive(Clone)]
pub struct Kernel {}

/// An open `/dev/vmm/NAME`.
#[derive(Clone)]
pub struct Device {}

/// Guest memory mapped into the process.
#[derive(Clone, Debug)]
pub struct Mapping {
    segment: Arc<Segment>,
    offset: u64,
    len: u64,
}

#[cfg(any())]
impl Kernel {
    /// Boots the host.
    pub fn boot(host: &Host, version: &KernelVersion, engine: Arc<dyn Engine>) -> Kernel;
    /// `sysctl hw.vmm.create`. EEXIST when the name is taken.
    pub fn vm_create(&self, name: &str) -> Result<(), Errno>;
    /// `sysctl hw.vmm.destroy`.
    pub fn vm_destroy(&self, name: &str) -> Result<(), Errno>;
    /// Opens `/dev/vmm/NAME`.
    pub fn open(&self, name: &str) -> Result<Device, Errno>;
    /// Opens and maps `/dev/vmm.io/NAME.SEGMENT`, a named memory segment.
    pub fn map_devmem(&self, name: &str, segment: &str) -> Result<Mapping, Errno>;
}

#[cfg(any())]
impl Device {
    /// `ioctl(2)`. `arg` begins with the request's structure; pointers inside it count from its first byte, so what they
    /// point to stands behind the structure in the same bytes. Charges the caller's clock.
    pub fn ioctl(&self, request: Request, arg: &mut [u8]) -> Result<(), Errno>;
    /// `mmap(2)` of guest physical memory.
    pub fn mmap(&self, gpa: u64, len: u64) -> Result<Mapping, Errno>;
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
