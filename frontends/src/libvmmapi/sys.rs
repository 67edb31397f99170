//! The system calls behind libvmmapi, as traits: the modelled kernel answers them in a cell, a script in tests.

use std::sync::Arc;
use vmm::abi::{Errno, Request};
use vmm::kernel::{ControlDevice, Device, Kernel, Mapping};

/// What a process asks of the host kernel before it has a virtual machine open.
pub(crate) trait System: Send + Sync {
    /// `sysctl hw.vmm.create`.
    ///
    /// # Errors
    /// What the kernel says; EEXIST when the name is taken.
    fn vm_create(&self, name: &str) -> Result<(), Errno>;

    /// `sysctl hw.vmm.destroy`.
    ///
    /// # Errors
    /// What the kernel says.
    fn vm_destroy(&self, name: &str) -> Result<(), Errno>;

    /// `open("/dev/vmmctl")`.
    ///
    /// # Errors
    /// What the kernel says; ENOENT where it has none.
    fn open_vmmctl(&self) -> Result<Arc<dyn DeviceFile>, Errno>;

    /// `open("/dev/vmm/NAME")`.
    ///
    /// # Errors
    /// What the kernel says.
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, Errno>;

    /// `open("/dev/vmm.io/NAME.SEGMENT")` and `mmap` of the whole of it.
    ///
    /// # Errors
    /// What the kernel says.
    fn map_devmem(&self, name: &str, segment: &str) -> Result<Arc<dyn SharedMemory>, Errno>;
}

/// An open `/dev/vmm/NAME`.
pub(crate) trait DeviceFile: Send + Sync {
    /// `ioctl`. Pointers inside the argument count from its first byte.
    ///
    /// # Errors
    /// What the kernel says.
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<(), Errno>;

    /// `mmap` of guest physical memory.
    ///
    /// # Errors
    /// What the kernel says.
    fn mmap(&self, gpa: u64, len: u64) -> Result<Arc<dyn SharedMemory>, Errno>;
}

/// Guest memory mapped into the process.
pub(crate) trait SharedMemory: Send + Sync {
    /// Copies bytes in; `false` when the range leaves the mapping.
    #[must_use]
    fn write(&self, at: u64, bytes: &[u8]) -> bool;

    /// Copies bytes out; `false` when the range leaves the mapping.
    #[must_use]
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool;
}

impl System for Kernel {
    fn vm_create(&self, name: &str) -> Result<(), Errno> {
        Kernel::vm_create(self, name)
    }

    fn vm_destroy(&self, name: &str) -> Result<(), Errno> {
        Kernel::vm_destroy(self, name)
    }

    fn open_vmmctl(&self) -> Result<Arc<dyn DeviceFile>, Errno> {
        let device = Kernel::open_vmmctl(self)?;
        Ok(Arc::new(device))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, Errno> {
        let device = Kernel::open(self, name)?;
        Ok(Arc::new(device))
    }

    fn map_devmem(&self, name: &str, segment: &str) -> Result<Arc<dyn SharedMemory>, Errno> {
        let mapping = Kernel::map_devmem(self, name, segment)?;
        Ok(Arc::new(mapping))
    }
}

impl DeviceFile for Device {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<(), Errno> {
        Device::ioctl(self, request, argument)
    }

    fn mmap(&self, gpa: u64, len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        let mapping = Device::mmap(self, gpa, len)?;
        Ok(Arc::new(mapping))
    }
}

/// There is nothing to map: EINVAL.
impl DeviceFile for ControlDevice {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<(), Errno> {
        ControlDevice::ioctl(self, request, argument)
    }

    fn mmap(&self, _gpa: u64, _len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        Err(Errno::EINVAL)
    }
}

impl SharedMemory for Mapping {
    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        Mapping::write(self, at, bytes)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        Mapping::read(self, at, bytes)
    }
}
