//! `spinup guests`: the files of operating systems.

use super::{Failure, print};
use ::guests::os::{Cached, Package, cache_directory};
use clap::{Args, Subcommand};
use std::fmt::Write as _;

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
}

#[derive(Debug, Args)]
struct FetchArgs {
    /// Which: linux, busybox, memtest86+, seabios, ovmf
    #[arg(required = true, value_name = "PACKAGE", value_parser = package)]
    packages: Vec<Package>,
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
    }
    print(&text)?;
    Ok(0)
}

fn line(package: Package, what: &str) -> String {
    format!("{:10}  {what}\n", package.name())
}

fn from(cached: &Cached) -> String {
    let record = &cached.record;
    let mut text = format!("{} of {}, {} bytes", record.file, record.package, cached.bytes.len());
    let _ = write!(text, ", SHA-256 {}", record.sha256);
    text
}
