//! The cache of what is fetched: one directory for each package with the file and `record.toml`, which says where it came
//! from and what its hash is.

use super::apt::{Apt, Offer};
use super::cpio::{Archive, Kind};
use super::deb;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Package {
    /// Debian's kernel for virtual machines, `linux-image-cloud-amd64`: a bzImage.
    Linux,
    /// The drivers of virtio devices from the same package: an archive of modules for an initial RAM disk.
    LinuxModules,
    /// Debian's `busybox-static`.
    Busybox,
    /// Debian's `memtest86+`: a bzImage of its own, which starts every CPU.
    Memtest,
    /// Debian's `seabios`: a BIOS for QEMU's PC, 256 KiB.
    Seabios,
    /// Debian's `ovmf`: UEFI for QEMU's PC, with its variables in one file of 2 MiB.
    Ovmf,
}

/// A package in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The file, checked against the hash that was recorded when it was fetched.
    pub bytes: Arc<[u8]>,
    /// Where it came from.
    pub record: Record,
}

/// Where a file came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The package's file, with its version.
    pub package: String,
    /// SHA-256 of the package, as the distribution's signed lists have it.
    pub package_sha256: String,
    /// The file's path inside the package.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Why a package is not at hand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Nobody fetched it.
    #[error("{0} is not here; `spinup guests fetch {0}` fetches it")]
    NotFetched(&'static str),
    /// The file is not what was fetched.
    #[error("{0} has changed since it was fetched; `spinup guests fetch {0}` fetches it again")]
    Changed(&'static str),
}

/// Why a package cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// apt cannot do it, neither with the system's lists nor with lists of its own.
    #[error("{package} cannot be fetched: {with_lists_of_its_own} (with the system's lists: {with_system_lists})")]
    Apt {
        /// The package's name here.
        package: &'static str,
        /// What it said first.
        with_system_lists: String,
        /// What it said then.
        with_lists_of_its_own: String,
    },
    /// What came is not what the lists say.
    #[error("{file} has the SHA-256 {found}, but the distribution's lists say {expected}")]
    Hash {
        /// The package's file.
        file: String,
        /// The hash in the lists.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The package cannot be unpacked.
    #[error("{file} cannot be unpacked: {source}")]
    Unpack {
        /// The package's file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be written.
    #[error("{path} cannot be written: {source}", path = path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where fetched packages are: `target/spinup-guests` of the source tree that spinup was built from.
#[must_use]
pub fn cache_directory() -> PathBuf {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR"));
    guests.parent().unwrap_or(guests).join("target/spinup-guests")
}

impl Package {
    /// Everything.
    pub const ALL: [Package; 6] =
        [Package::Linux, Package::LinuxModules, Package::Busybox, Package::Memtest, Package::Seabios, Package::Ovmf];

    /// The name on the command line and in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Package::Linux => "linux",
            Package::LinuxModules => "linux-modules",
            Package::Busybox => "busybox",
            Package::Memtest => "memtest86+",
            Package::Seabios => "seabios",
            Package::Ovmf => "ovmf",
        }
    }

    /// The package with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Package> {
        Package::ALL.into_iter().find(|package| package.name() == name)
    }

    /// What it is, in one line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Package::Linux => "Debian's kernel for virtual machines (linux-image-cloud-amd64)",
            Package::LinuxModules => "the drivers of virtio devices from the same package",
            Package::Busybox => "Debian's static busybox (busybox-static)",
            Package::Memtest => "Debian's memtest86+ for x86-64 (memtest86+)",
            Package::Seabios => "Debian's BIOS for QEMU's PC (seabios)",
            Package::Ovmf => "Debian's UEFI for QEMU's PC (ovmf)",
        }
    }

    /// The file that is kept of a package, and its path there.
    fn contents(self, package: &[u8]) -> io::Result<(String, Vec<u8>)> {
        match self {
            Package::Linux => deb::extract(package, "boot/vmlinuz-"),
            Package::LinuxModules => modules(package),
            Package::Busybox => deb::extract(package, "bin/busybox"),
            Package::Memtest => deb::extract(package, "boot/memtest86+x64.bin"),
            Package::Seabios => deb::extract(package, "usr/share/seabios/bios-256k.bin"),
            Package::Ovmf => deb::extract(package, "usr/share/ovmf/OVMF.fd"),
        }
    }

    /// The distribution's name of it.
    fn resolve(self, apt: &Apt) -> Result<String, String> {
        match self {
            Package::Linux | Package::LinuxModules => apt.dependency("linux-image-cloud-amd64", "linux-image-"),
            Package::Busybox => Ok("busybox-static".to_owned()),
            Package::Memtest | Package::Seabios | Package::Ovmf => Ok(self.name().to_owned()),
        }
    }

    fn directory(self, cache: &Path) -> PathBuf {
        cache.join(self.name())
    }

    /// The file from the cache, if it is the one that was fetched.
    ///
    /// # Errors
    /// Why it is not.
    pub fn cached(self, cache: &Path) -> Result<Cached, Missing> {
        let directory = self.directory(cache);
        let record = std::fs::read_to_string(directory.join(RECORD)).ok().and_then(|text| toml::from_str(&text).ok());
        let (Some(record), Ok(bytes)) = (record, std::fs::read(directory.join(FILE))) else {
            return Err(Missing::NotFetched(self.name()));
        };
        let record: Record = record;
        if sha256(&bytes) != record.sha256 {
            return Err(Missing::Changed(self.name()));
        }
        Ok(Cached { bytes: bytes.into(), record })
    }

    /// Fetches the newest version that the distribution has, and puts it into the cache.
    ///
    /// The system's lists are tried first. Where it has none, or they are too old, lists are fetched into the cache, which
    /// needs no root.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn fetch(self, cache: &Path) -> Result<Cached, FetchError> {
        let directory = self.directory(cache);
        let written = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| FetchError::Write { path: path.to_owned(), source })
        };
        written(&directory, std::fs::create_dir_all(&directory))?;
        let scratch =
            tempfile::tempdir_in(&directory).map_err(|source| FetchError::Write { path: directory.clone(), source })?;
        let (offer, package) = self.download(&Apt::system(), scratch.path()).or_else(|with_system_lists| {
            self.download_without_root(&cache.join("apt"), scratch.path()).map_err(|with_lists_of_its_own| {
                FetchError::Apt { package: self.name(), with_system_lists, with_lists_of_its_own }
            })
        })?;
        let found = sha256(&package);
        if found != offer.sha256 {
            return Err(FetchError::Hash { file: offer.file, expected: offer.sha256, found });
        }
        let (file, bytes) =
            self.contents(&package).map_err(|source| FetchError::Unpack { file: offer.file.clone(), source })?;
        let record = Record { package: offer.file, package_sha256: found, file, sha256: sha256(&bytes) };
        // Each in one step, the record last: a file that does not match its record is found out.
        let text = toml::to_string(&record).expect("four texts become TOML");
        for (name, contents) in [(FILE, &bytes[..]), (RECORD, text.as_bytes())] {
            let (new, path) = (scratch.path().join(name), directory.join(name));
            written(&path, std::fs::write(&new, contents).and_then(|()| std::fs::rename(&new, &path)))?;
        }
        Ok(Cached { bytes: bytes.into(), record })
    }

    fn download_without_root(self, lists: &Path, scratch: &Path) -> Result<(Offer, Vec<u8>), String> {
        let (apt, complaint) = Apt::private(lists)?;
        self.download(&apt, scratch).map_err(|error| match complaint {
            Some(complaint) => format!("{complaint}; {error}"),
            None => error,
        })
    }

    fn download(self, apt: &Apt, scratch: &Path) -> Result<(Offer, Vec<u8>), String> {
        let package = self.resolve(apt)?;
        let offer = apt.offer(&package)?;
        let path = apt.download(&package, scratch)?;
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((offer, bytes))
    }
}

/// The drivers that virtio devices need, each after those that it needs itself.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "drivers/char/virtio_console.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];

/// An archive with the drivers as `modules/00.ko` and so on, in the order in which they are to be loaded.
fn modules(package: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let files = deb::extract_each(package, &MODULES)?;
    let mut archive = Archive::default();
    archive.add("modules", Kind::Directory);
    for (number, (_, module)) in files.iter().enumerate() {
        archive.add(&format!("modules/{number:02}.ko"), Kind::File(module));
    }
    let release = files.first().map_or("", |(path, _)| path.split_once("/kernel/").map_or(path, |(before, _)| before));
    Ok((release.to_owned(), archive.finish()))
}

const RECORD: &str = "record.toml";
const FILE: &str = "file";

fn sha256(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_checked() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let package = Package::Busybox;
        assert_eq!(package.cached(cache.path()), Err(Missing::NotFetched("busybox")));
        let directory = package.directory(cache.path());
        std::fs::create_dir_all(&directory).expect("it is writable");
        let record = Record {
            package: "busybox-static_1.deb".into(),
            package_sha256: sha256(b"deb"),
            file: "bin/busybox".into(),
            sha256: sha256(b"busybox"),
        };
        std::fs::write(directory.join(RECORD), toml::to_string(&record).expect("texts")).expect("it is writable");
        assert_eq!(package.cached(cache.path()), Err(Missing::NotFetched("busybox")), "a record without its file");
        std::fs::write(directory.join(FILE), b"busybox").expect("it is writable");
        assert_eq!(package.cached(cache.path()).map(|cached| cached.record), Ok(record));
        std::fs::write(directory.join(FILE), b"busyb0x").expect("it is writable");
        assert_eq!(package.cached(cache.path()), Err(Missing::Changed("busybox")));
    }

    #[test]
    fn names_parse() {
        for package in Package::ALL {
            assert_eq!(Package::named(package.name()), Some(package));
        }
    }
}
