//! Guests that a loader loads, operating systems above all: `[[guest]]` of a matrix.

use super::ConfigError;
use super::file::{GuestTable, LimitTable, LimitsTable, Source};
use crate::cell::is_name;
use crate::pattern::{Pattern, did_you_mean};
use frontends::loader::{Module, OsImage, Protocol};
use guests::multiboot::Own;
use guests::os::{Initramfs, Package, cache_directory};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// An operating system, or another kernel or image, that a matrix describes.
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
    /// The milestone at which it has done what it is for, if it goes on for ever.
    pub goal: Option<String>,
    pub(super) soft: LimitTable,
    pub(super) kvm: LimitTable,
    kernel: FileSource,
    initrd: Option<InitrdSource>,
    modules: Vec<ModuleSource>,
    cmdline: String,
    protocol: Option<Protocol>,
    load: Option<u64>,
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
    Own(Own),
    File(PathBuf),
}

#[derive(Clone, Debug)]
enum InitrdSource {
    Made(Initramfs),
    File(PathBuf),
}

#[derive(Clone, Debug)]
struct ModuleSource {
    file: FileSource,
    string: String,
}

impl FileSource {
    fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            FileSource::Fetched(package) => {
                package.cached(&cache_directory()).map(|cached| cached.bytes).map_err(|missing| missing.to_string())
            }
            FileSource::Own(own) => Ok(own.bytes().into()),
            FileSource::File(path) => read(path),
        }
    }
}

impl ModuleSource {
    fn read(&self) -> Result<Module, String> {
        Ok(Module { file: self.file.read()?, string: self.string.clone() })
    }
}

impl InitrdSource {
    fn read(&self) -> Result<Arc<[u8]>, String> {
        match self {
            InitrdSource::Made(initramfs @ Initramfs::Spinup) => Ok(initramfs.build(&[]).into()),
            InitrdSource::Made(initramfs @ Initramfs::Busybox) => {
                let busybox = FileSource::Fetched(Package::Busybox).read()?;
                Ok(initramfs.build(&busybox).into())
            }
            InitrdSource::File(path) => read(path),
        }
    }
}

fn read(path: &Path) -> Result<Arc<[u8]>, String> {
    std::fs::read(path).map(Arc::from).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

impl OsGuest {
    /// Reads a table. A name that is no package, file of spinup's own or initial RAM disk is a file, which counts from the
    /// directory of the matrix.
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
        let unknown = |key, value: &toml::Spanned<String>, known: &[&str]| {
            let text = value.get_ref();
            let hint = did_you_mean(text, known.iter().copied());
            let message = format!("`{text}` is none of {}{hint}, and a path has a `/` in it", known.join(", "));
            source.error(value.span(), key, message)
        };
        let own_names = Own::ALL.map(Own::name);
        let own_or_file = |text: &str| match Own::named(text) {
            Some(own) => Some(FileSource::Own(own)),
            None => looks_like_a_file(text).then(|| FileSource::File(directory.join(text))),
        };
        let kernel = match Package::named(table.kernel.get_ref()) {
            Some(package) => FileSource::Fetched(package),
            None => own_or_file(table.kernel.get_ref()).ok_or_else(|| {
                let known: Vec<&str> = Package::ALL.map(Package::name).into_iter().chain(own_names).collect();
                unknown("guest.kernel", &table.kernel, &known)
            })?,
        };
        let modules = table.modules.iter().map(|module| {
            let (file, string) = module.get_ref().split_once(' ').unwrap_or((module.get_ref(), ""));
            let file = own_or_file(file).ok_or_else(|| unknown("guest.modules", module, &own_names))?;
            Ok(ModuleSource { file, string: string.to_owned() })
        });
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
        if let Some(goal) = &table.goal
            && !table.milestones.iter().any(|milestone| milestone.name == *goal.get_ref())
        {
            let message = format!("`{}` is none of the guest's milestones", goal.get_ref());
            return Err(source.error(goal.span(), "guest.goal", message));
        }
        Ok(OsGuest {
            name: name.clone(),
            about: table.about.clone(),
            memory_bytes: u64::from(*table.memory_mib.get_ref()) << 20,
            milestones: milestones.collect(),
            goal: table.goal.as_ref().map(|goal| goal.get_ref().clone()),
            soft,
            kvm,
            kernel,
            initrd,
            modules: modules.collect::<Result<_, ConfigError>>()?,
            cmdline: table.cmdline.clone(),
            protocol,
            load: table.load,
            image: Arc::default(),
        })
    }

    /// Whether it may be too much for an engine that is slow: everything but what is made to be small.
    #[must_use]
    pub fn needs_speed(&self) -> bool {
        !matches!(self.kernel, FileSource::Own(_))
    }

    /// The kernel with what belongs to it.
    ///
    /// # Errors
    /// Why it cannot be had here, in one sentence: it was not fetched, cannot be read, or does not fit.
    pub fn image(&self) -> Result<Arc<OsImage>, String> {
        let read = || {
            let image = OsImage {
                kernel: self.kernel.read()?,
                initrd: self.initrd.as_ref().map(InitrdSource::read).transpose()?,
                modules: self.modules.iter().map(ModuleSource::read).collect::<Result<_, String>>()?,
                cmdline: self.cmdline.clone(),
                protocol: self.protocol,
                load: self.load,
            };
            image.check(self.memory_bytes).map_err(|error| format!("{} cannot be loaded: {error}", self.name))?;
            Ok(Arc::new(image))
        };
        self.image.get_or_init(read).clone()
    }
}
