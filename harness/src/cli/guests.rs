//! `spinup guests`: the files of operating systems.

use super::{Failure, MatrixArgs, print};
use crate::pattern::did_you_mean;
use ::guests::os::{Cached, Package, cache_directory};
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `spinup guests`.
#[derive(Debug, Args)]
pub(super) struct GuestsArgs {
    #[command(subcommand)]
    command: GuestsCommand,
}

#[derive(Debug, Subcommand)]
enum GuestsCommand {
    /// Fetch packages from the distribution with apt, without root, into target/spinup-guests
    Fetch(FetchArgs),
    /// Show which packages there are, and which are here
    List,
    /// Write what a guest boots from into a directory: kernel, initrd, cmdline and memory-mib
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct FetchArgs {
    /// Which: linux, linux-modules, busybox, memtest86+
    #[arg(required = true, value_name = "PACKAGE", value_parser = package)]
    packages: Vec<Package>,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// A guest that is an operating system: linux-os, linux-busybox, or another of the matrix
    guest: String,
    /// The directory to write into; made if it is not there
    directory: PathBuf,
    #[command(flatten)]
    matrix: MatrixArgs,
}

fn package(text: &str) -> Result<Package, String> {
    let names = Package::ALL.map(Package::name);
    Package::named(text).ok_or_else(|| names.join(", "))
}

pub(super) fn guests(args: &GuestsArgs) -> Result<u8, Failure> {
    let cache = cache_directory();
    let mut text = String::new();
    match &args.command {
        GuestsCommand::Fetch(FetchArgs { packages }) => {
            for package in packages {
                let cached = package.fetch(&cache).map_err(|error| Failure::Harness(error.to_string()))?;
                text += &line(*package, &from(&cached));
            }
        }
        GuestsCommand::List => {
            for package in Package::ALL {
                let state = package.cached(&cache).map_or_else(|missing| missing.to_string(), |cached| from(&cached));
                text += &line(package, &format!("{}; {state}", package.about()));
            }
        }
        GuestsCommand::Export(args) => text = export(args)?,
    }
    print(&text)?;
    Ok(0)
}

/// Writes a guest's files; what it wrote, for people.
fn export(args: &ExportArgs) -> Result<String, Failure> {
    let matrix = args.matrix.load()?;
    let guest = matrix.os_guest(&args.guest).ok_or_else(|| {
        let hint = did_you_mean(&args.guest, matrix.os_guests().iter().map(|guest| guest.name.as_str()));
        Failure::Usage(format!("no operating system of the matrix is named `{}`{hint}", args.guest))
    })?;
    let image = guest.image().map_err(Failure::Usage)?;
    let memory = format!("{}\n", guest.memory_bytes >> 20);
    let cmdline = format!("{}\n", image.cmdline);
    let files = [
        ("kernel", Some(&*image.kernel)),
        ("initrd", image.initrd.as_deref()),
        ("cmdline", Some(cmdline.as_bytes())),
        ("memory-mib", Some(memory.as_bytes())),
    ];
    std::fs::create_dir_all(&args.directory).map_err(|error| unwritten(&args.directory, &error))?;
    let mut text = String::new();
    for (name, bytes) in files {
        let Some(bytes) = bytes else { continue };
        let path = args.directory.join(name);
        std::fs::write(&path, bytes).map_err(|error| unwritten(&path, &error))?;
        let _ = writeln!(text, "{}  {} bytes", path.display(), bytes.len());
    }
    Ok(text)
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Harness(format!("{} cannot be written: {error}", path.display()))
}

fn line(package: Package, what: &str) -> String {
    format!("{:13}  {what}\n", package.name())
}

fn from(cached: &Cached) -> String {
    let record = &cached.record;
    let mut text = format!("{} of {}, {} bytes", record.file, record.package, cached.bytes.len());
    let _ = write!(text, ", SHA-256 {}", record.sha256);
    text
}
