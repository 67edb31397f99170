//! Operating systems and other guests that are not built in: `[[guest]]` of a matrix.

use super::ConfigError;
use super::device::Device;
use super::file::{FwCfgValue, GuestTable, LimitTable, LimitsTable, Source};
use crate::cell::is_name;
use crate::pattern::{Pattern, did_you_mean};
use frontends::loader::{Module, OsImage, Protocol};
use frontends::{Boot, Chipset, Extras, FwCfgFile, FwCfgKernel, IsaDevice, PciDevice};
use guests::os::{Initramfs, Package, cache_directory};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use toml::Spanned;

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
    /// The milestone at which it is stopped and judged by its vCPUs, for one that knows no report port.
    pub stop_at: Option<String>,
    /// What is typed at its console.
    pub answers: Vec<Answer>,
    pub(super) soft: LimitTable,
    pub(super) kvm: LimitTable,
    rom: Option<FileSource>,
    kernel: Option<FileSource>,
    initrd: Option<InitrdSource>,
    modules: Vec<(FileSource, String)>,
    cmdline: String,
    protocol: Option<Protocol>,
    load_at: Option<u64>,
    /// Without the kernel that the firmware configuration hands out, which is read later.
    extras: Extras,
    /// Read when first asked for.
    prepared: Arc<OnceLock<Result<Prepared, String>>>,
}

/// What a machine for the guest is made of.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What it boots from.
    pub boot: Boot,
    /// What it has beside the plain machine.
    pub extras: Extras,
}

/// A line of the console that says how far the guest is.
#[derive(Clone, Debug)]
pub struct Milestone {
    /// What it is called in traces.
    pub name: String,
    /// What the line has in it.
    pub pattern: Pattern,
}

/// A line of the console, and what is typed when it comes.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the line has in it.
    pub pattern: Pattern,
    /// What is typed.
    pub text: String,
}

#[derive(Clone, Debug)]
enum FileSource {
    Fetched(Package),
    Made(guests::Kernel),
    /// A module that is part of spinup.
    Text,
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
            FileSource::Made(kernel) => Ok(kernel.file().into()),
            FileSource::Text => Ok(guests::MODULE.into()),
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

/// Reads the values of a table.
struct Reader<'a> {
    source: Source<'a>,
    /// What paths count from.
    directory: &'a Path,
}

impl Reader<'_> {
    fn unknown(&self, key: &str, value: &Spanned<String>, known: &[&'static str], advice: &str) -> ConfigError {
        let text = value.get_ref();
        let hint = did_you_mean(text, known.iter().copied());
        let message = format!("`{text}` is none of {}{hint}{advice}", known.join(", "));
        self.source.error(value.span(), key, message)
    }

    /// A value that is one of a few words.
    fn word<T>(
        &self,
        key: &str,
        value: &Spanned<String>,
        named: impl Fn(&str) -> Option<T>,
        known: &[&'static str],
    ) -> Result<T, ConfigError> {
        named(value.get_ref()).ok_or_else(|| self.unknown(key, value, known, ""))
    }

    /// A path, or one of a few words.
    fn file<T>(
        &self,
        key: &str,
        value: &Spanned<String>,
        named: impl Fn(&str) -> Option<T>,
        path: impl Fn(PathBuf) -> T,
        known: &[&'static str],
    ) -> Result<T, ConfigError> {
        let text = value.get_ref();
        match named(text) {
            Some(named) => Ok(named),
            None if text.contains(['/', '.']) => Ok(path(self.directory.join(text))),
            None => Err(self.unknown(key, value, known, ", and a path has a `/` in it")),
        }
    }

    fn kernel(&self, key: &str, value: &Spanned<String>) -> Result<FileSource, ConfigError> {
        let named = |text: &str| {
            let fetched = Package::named(text).map(FileSource::Fetched);
            fetched.or_else(|| guests::Kernel::named(text).map(FileSource::Made))
        };
        let known = [&Package::ALL.map(Package::name)[..], &guests::Kernel::ALL.map(guests::Kernel::name)].concat();
        self.file(key, value, named, FileSource::File, &known)
    }

    fn extras(&self, table: &GuestTable) -> Result<Extras, ConfigError> {
        let chipset = |chipset| self.word("guest.chipset", chipset, Chipset::named, &Chipset::ALL.map(Chipset::name));
        let device = |device| self.word("guest.isa", device, IsaDevice::named, &IsaDevice::ALL.map(IsaDevice::name));
        let files = table.fw_cfg.iter().map(|(name, value)| {
            let contents = match value {
                FwCfgValue::Number(number) => number.to_le_bytes().to_vec(),
                FwCfgValue::Text(text) => [text.as_bytes(), &[0]].concat(),
            };
            FwCfgFile { name: name.clone(), contents: contents.into() }
        });
        Ok(Extras {
            chipset: table.chipset.as_ref().map(chipset).transpose()?.unwrap_or_default(),
            isa: table.isa.iter().map(device).collect::<Result<_, _>>()?,
            fw_cfg: files.collect(),
            kernel: None,
            smbios: table.smbios,
            rerun: table.rerun,
        })
    }
}

impl OsGuest {
    /// Reads a table. A name that is no package, kernel or initial RAM disk is a file, which counts from the directory of the
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
        let reader = Reader { source, directory };
        let kernel = table.kernel.as_ref().map(|kernel| reader.kernel("guest.kernel", kernel)).transpose()?;
        let rom = table.rom.as_ref().map(|rom| reader.kernel("guest.rom", rom)).transpose()?;
        if kernel.is_none() && rom.is_none() {
            return Err(source.error(table.name.span(), "guest.kernel", "a guest has a kernel, or a boot ROM (`rom`)"));
        }
        let initrd = |initrd| {
            let named = |text: &str| Initramfs::named(text).map(InitrdSource::Made);
            reader.file("guest.initrd", initrd, named, InitrdSource::File, &Initramfs::ALL.map(Initramfs::name))
        };
        let protocol =
            |protocol| reader.word("guest.protocol", protocol, Protocol::named, &Protocol::ALL.map(Protocol::name));
        if table.memory_mib.get_ref() < &16 {
            return Err(source.error(table.memory_mib.span(), "guest.memory_mib", "an operating system needs 16 MiB"));
        }
        let milestones: Vec<Milestone> = (table.milestones.iter())
            .map(|milestone| Milestone { name: milestone.name.clone(), pattern: milestone.line.clone() })
            .collect();
        if let Some(stop_at) = &table.stop_at
            && !milestones.iter().any(|milestone| milestone.name == *stop_at.get_ref())
        {
            return Err(source.error(stop_at.span(), "guest.stop_at", "no milestone of the guest has this name"));
        }
        let modules = table.modules.iter().map(|module| {
            let (path, cmdline) = module.get_ref().split_once(' ').unwrap_or((module.get_ref(), ""));
            let file = match path {
                guests::MODULE_NAME => FileSource::Text,
                path => FileSource::File(directory.join(path)),
            };
            (file, cmdline.to_owned())
        });
        let answers =
            table.answers.iter().map(|answer| Answer { pattern: answer.line.clone(), text: answer.text.clone() });
        let LimitsTable { soft, kvm } = table.limits;
        let extras = reader.extras(table)?;
        let devices = Device::parse_all(source, &table.devices, directory, extras.chipset)?;
        Ok(OsGuest {
            name: name.clone(),
            about: table.about.clone(),
            memory_bytes: u64::from(*table.memory_mib.get_ref()) << 20,
            milestones,
            stop_at: table.stop_at.as_ref().map(|stop_at| stop_at.get_ref().clone()),
            answers: answers.collect(),
            devices,
            soft,
            kvm,
            rom,
            kernel,
            initrd: table.initrd.as_ref().map(initrd).transpose()?,
            modules: modules.collect(),
            cmdline: table.cmdline.clone(),
            protocol: table.protocol.as_ref().map(protocol).transpose()?,
            load_at: table.load_at.map(u64::from),
            extras,
            prepared: Arc::default(),
        })
    }

    /// The PCI devices of one cell's machine, new; `seed` is the cell's.
    ///
    /// # Errors
    /// Why a disk cannot be had, in one sentence.
    pub fn pci_devices(&self, seed: u64) -> Result<Vec<PciDevice>, String> {
        self.devices.iter().map(|device| device.make(seed)).collect()
    }

    /// Whether it may be too much for an engine that is slow: everything but what is made to be small.
    pub(crate) fn needs_speed(&self) -> bool {
        !matches!(self.kernel, Some(FileSource::Made(_)))
    }

    /// Whether somebody has to read its console along.
    pub(crate) fn is_watched(&self) -> bool {
        !self.milestones.is_empty() || !self.answers.is_empty()
    }

    /// What a machine for it is made of. The files of disks are opened too.
    ///
    /// # Errors
    /// Why it cannot be had here, in one sentence: a file was not fetched, cannot be read, or does not fit.
    pub fn prepare(&self) -> Result<Prepared, String> {
        self.prepared.get_or_init(|| self.read()).clone()
    }

    fn read(&self) -> Result<Prepared, String> {
        self.devices.iter().try_for_each(Device::open)?;
        let kernel = self.kernel.as_ref().map(FileSource::read).transpose()?;
        let initrd = self.initrd.as_ref().map(InitrdSource::read).transpose()?;
        let mut extras = self.extras.clone();
        let boot = match (&self.rom, kernel) {
            (Some(rom), kernel) => {
                let initrd = initrd.unwrap_or_default();
                extras.kernel = kernel.map(|kernel| FwCfgKernel { kernel, initrd, cmdline: self.cmdline.clone() });
                Boot::Rom(rom.read()?)
            }
            (None, Some(kernel)) => {
                let modules = self
                    .modules
                    .iter()
                    .map(|(file, cmdline)| file.read().map(|file| Module { file, cmdline: cmdline.clone() }));
                let image = OsImage {
                    kernel,
                    initrd,
                    modules: modules.collect::<Result<_, _>>()?,
                    cmdline: self.cmdline.clone(),
                    protocol: self.protocol,
                    load_at: self.load_at,
                };
                image.check(self.memory_bytes).map_err(|error| format!("{} cannot be loaded: {error}", self.name))?;
                Boot::Loader(Arc::new(image))
            }
            (None, None) => return Err(format!("{} has neither a kernel nor a boot ROM", self.name)),
        };
        Ok(Prepared { boot, extras })
    }
}
