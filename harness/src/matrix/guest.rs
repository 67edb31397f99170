//! Operating systems as guests: `[[guest]]` of a matrix.

use super::ConfigError;
use super::device::Device;
use super::file::{GuestTable, LimitTable, LimitsTable, Source};
use crate::cell::is_name;
use crate::pattern::{Pattern, did_you_mean};
use frontends::PciDevice;
use frontends::loader::{OsImage, Protocol};
use guests::os::{Initramfs, Package, cache_directory};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// An operating system that a matrix describes.
#[derive(Clone, Debug)]
pub struct OsGuest {
    /// The name in cells.
    pub name: String,
    /// What it is, in one sentence.
    pub about: String,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// What its console says on the way, in the order in which it is expected.
    pub milestones: Vec<Milestone>,
    /// The PCI devices of its machine beside the bridges, in the order of their slots.
    pub devices: Vec<Device>,
    pub(super) soft: LimitTable,
    pub(super) kvm: LimitTable,
    kernel: FileSource,
    initrd: Option<InitrdSource>,
    cmdline: String,
    protocol: Option<Protocol>,
    /// Read when first asked for.
    image: Arc<OnceLock<Result<Arc<OsImage>, String>>>,
}

/// A line of the console that says how far the guest is.
#[derive(Clone, Debug)]
pub struct Milestone {
    /// What it is called in traces.
    pub name: String,
    /// What the line has in it.
    pub pattern: Pattern,
}

#[derive(Clone, Debug)]
enum FileSource {
    Fetched(Package),
    File(PathBuf),
}

#[derive(Clone, Debug)]
enum InitrdSource {
    Made(Initramfs),
    File(PathBuf),
}

impl FileSource {
    fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            FileSource::Fetched(package) => {
                package.cached(&cache_directory()).map(|cached| cached.bytes).map_err(|missing| missing.to_string())
            }
            FileSource::File(path) => read(path),
        }
    }
}

impl InitrdSource {
    fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            InitrdSource::Made(initramfs) => {
                let package = initramfs.needs().map(|package| FileSource::Fetched(package).read()).transpose()?;
                Ok(initramfs.build(package.as_deref().unwrap_or_default()).into())
            }
            InitrdSource::File(path) => read(path),
        }
    }
}

fn read(path: &Path) -> Result<Arc<[u8]>, String> {
    std::fs::read(path).map(Arc::from).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

impl OsGuest {
    /// Reads a table. A name that is no package or initial RAM disk is a file, which counts from the directory of the
    /// matrix.
    pub(super) fn parse(
        source: Source<'_>,
        table: &GuestTable,
        taken: impl Fn(&str) -> bool,
    ) -> Result<OsGuest, ConfigError> {
        let name = table.name.get_ref();
        if !is_name(name) || taken(name) {
            let message = format!("`{name}` is no name, or another guest has it");
            return Err(source.error(table.name.span(), "guest.name", message));
        }
        let directory = Path::new(source.name).parent().unwrap_or(Path::new(""));
        let looks_like_a_file = |text: &str| text.contains(['/', '.']);
        let unknown = |key, value: &toml::Spanned<String>, known: &[&'static str]| {
            let text = value.get_ref();
            let hint = did_you_mean(text, known.iter().copied());
            let message = format!("`{text}` is none of {}{hint}, and a path has a `/` in it", known.join(", "));
            source.error(value.span(), key, message)
        };
        let kernel = match Package::named(table.kernel.get_ref()) {
            Some(package) => FileSource::Fetched(package),
            None if looks_like_a_file(table.kernel.get_ref()) => {
                FileSource::File(directory.join(table.kernel.get_ref()))
            }
            None => return Err(unknown("guest.kernel", &table.kernel, &Package::ALL.map(Package::name))),
        };
        let initrd = match &table.initrd {
            None => None,
            Some(initrd) => Some(match Initramfs::named(initrd.get_ref()) {
                Some(made) => InitrdSource::Made(made),
                None if looks_like_a_file(initrd.get_ref()) => InitrdSource::File(directory.join(initrd.get_ref())),
                None => return Err(unknown("guest.initrd", initrd, &Initramfs::ALL.map(Initramfs::name))),
            }),
        };
        let protocol = match &table.protocol {
            None => None,
            Some(protocol) => Some(
                Protocol::named(protocol.get_ref())
                    .ok_or_else(|| unknown("guest.protocol", protocol, &Protocol::ALL.map(Protocol::name)))?,
            ),
        };
        if table.memory_mib.get_ref() < &16 {
            return Err(source.error(table.memory_mib.span(), "guest.memory_mib", "an operating system needs 16 MiB"));
        }
        let LimitsTable { soft, kvm } = table.limits;
        let milestones = table
            .milestones
            .iter()
            .map(|milestone| Milestone { name: milestone.name.clone(), pattern: milestone.line.clone() });
        let devices = Device::parse_all(source, &table.devices, directory)?;
        Ok(OsGuest {
            name: name.clone(),
            about: table.about.clone(),
            memory_bytes: u64::from(*table.memory_mib.get_ref()) << 20,
            milestones: milestones.collect(),
            devices,
            soft,
            kvm,
            kernel,
            initrd,
            cmdline: table.cmdline.clone(),
            protocol,
            image: Arc::default(),
        })
    }

    /// The PCI devices of one cell's machine, new; `seed` is the cell's.
    ///
    /// # Errors
    /// Why a disk cannot be had, in one sentence.
    pub fn pci_devices(&self, seed: u64) -> Result<Vec<PciDevice>, String> {
        self.devices.iter().map(|device| device.make(seed)).collect()
    }

    /// The kernel with what belongs to it. The files of disks are opened too.
    ///
    /// # Errors
    /// Why it cannot be had here, in one sentence: it was not fetched, cannot be read, or does not fit.
    pub fn image(&self) -> Result<Arc<OsImage>, String> {
        let read = || {
            let image = OsImage {
                kernel: self.kernel.read()?,
                initrd: self.initrd.as_ref().map(InitrdSource::read).transpose()?,
                cmdline: self.cmdline.clone(),
                protocol: self.protocol,
            };
            self.devices.iter().try_for_each(Device::open)?;
            image.check(self.memory_bytes).map_err(|error| format!("{} cannot be loaded: {error}", self.name))?;
            Ok(Arc::new(image))
        };
        self.image.get_or_init(read).clone()
    }
}
