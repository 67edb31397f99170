//! The userspace side: bhyve and its relatives, one module per personality.
//!
//! A [`Frontend`] is a version of a program that runs virtual machines. Its [`Frontend::main`] is the body of a cell's first
//! task: the process. It reaches the kernel through `libvmmapi` alone, which is to say through ioctls; the PC that it builds
//! around the processors is in `pc`.

mod bhyve;
mod console;
mod extras;
mod libvmmapi;
pub mod loader;
mod name;
mod option;
mod pc;
mod pci_device;

pub use console::{Console, Keyboard, Stream};
pub use extras::{Chipset, Extras, FwCfgFile, FwCfgKernel, IsaDevice, IsaDevices, MAX_RERUNS};
pub use name::FrontendNameError;
pub use option::FrontendOption;
pub use pc::{equipped, invariants};
pub use pci_device::{DeviceKind, Disk, PciDevice, SECTOR_SIZE, Transport};

use bhyve::Personality;
use libvmmapi::System;
use loader::OsImage;
use option::Options;
use std::fmt;
use std::sync::Arc;
use vmm::host::Host;
use vmm::kernel::Kernel;

/// The mode that local APICs begin in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ApicMode {
    /// MMIO at 0xFEE00000 (`-a`).
    Xapic,
    /// MSRs from 0x800 on (`-x`).
    X2apic,
}

impl ApicMode {
    /// Both modes.
    pub const ALL: [ApicMode; 2] = [ApicMode::Xapic, ApicMode::X2apic];

    /// The name in cells.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ApicMode::Xapic => "xapic",
            ApicMode::X2apic => "x2apic",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<ApicMode> {
        ApicMode::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for ApicMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `-c cpus=,sockets=,cores=,threads=`: how the vCPUs are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u16,
    /// Cores of each socket.
    pub cores: u16,
    /// Threads of each core.
    pub threads: u16,
}

/// What a VM boots from.
#[derive(Clone, Debug)]
pub enum Boot {
    /// `-l bootrom,…`: the ROM that ends at 4 GiB, 4 KiB to 16 MiB in whole pages.
    Rom(Arc<[u8]>),
    /// No boot ROM: a [`loader`] makes the VM before the frontend runs.
    Loader(Arc<OsImage>),
}

/// A command line: `-H`, no `-P`, `-e` or `-w`, COM1 on the console, a host bridge and an LPC bridge.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The VM's name.
    pub vm_name: String,
    /// `-c`: how many vCPUs.
    pub vcpus: u16,
    /// Their layout; `None` makes each a socket of its own.
    pub topology: Option<Topology>,
    /// `-a` or `-x`.
    pub apic: ApicMode,
    /// `-m`: RAM in bytes, a multiple of 4 KiB.
    pub memory_bytes: u64,
    /// What it boots from.
    pub boot: Boot,
    /// `-A`: ACPI tables beside the MP table.
    pub acpi: bool,
    /// `-s`: PCI devices beside the bridges, each in a slot of its own ([`PciDevice::is_slot`]).
    pub pci: Vec<PciDevice>,
    /// What it has beside the plain machine.
    pub extras: Extras,
}

impl Launch {
    /// A VM of 16 MiB with MP table and ACPI tables.
    #[must_use]
    pub fn new(vm_name: &str, vcpus: u16, apic: ApicMode, boot: Boot) -> Launch {
        Launch {
            vm_name: vm_name.to_owned(),
            vcpus,
            topology: None,
            apic,
            memory_bytes: 16 << 20,
            boot,
            acpi: true,
            pci: Vec::new(),
            extras: Extras::default(),
        }
    }
}

/// A version of a VMM's userspace, with the options that are asked of it.
///
/// Its text ([`fmt::Display`], [`std::str::FromStr`]) is its name in cells: `bhyve-13.1`, `bhyve-13.1+monitor`.
#[derive(Clone, Copy)]
pub struct Frontend {
    personality: &'static dyn Personality,
    options: Options,
}

impl Frontend {
    /// Every frontend without options, oldest first.
    pub fn all() -> impl Iterator<Item = Frontend> {
        bhyve::PERSONALITIES.into_iter().map(|personality| Frontend { personality, options: Options::default() })
    }

    /// The frontend with this name, options included.
    #[must_use]
    pub fn named(name: &str) -> Option<Frontend> {
        name.parse().ok()
    }

    /// The version's name, without options.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.personality.name()
    }

    /// What the version is, in one sentence.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.personality.about()
    }

    /// The options that the version offers.
    #[must_use]
    pub fn offered(&self) -> &'static [FrontendOption] {
        self.personality.options()
    }

    /// The options that are on, in the order of names.
    pub fn options(&self) -> impl Iterator<Item = FrontendOption> + use<> {
        self.options.iter()
    }

    /// The process, from `main` to its end, which is the cell's ([`vmm::host::End::Exit`] or [`vmm::host::End::Abort`]): the
    /// body of the cell's first task.
    pub fn main(&self, host: &Host, kernel: &Kernel, launch: &Launch, console: &Console) -> ! {
        let system: Arc<dyn System> = Arc::new(kernel.clone());
        bhyve::run(self.personality, self.options, host, &system, launch, console)
    }
}

/// The name in cells.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), self.options)
    }
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
