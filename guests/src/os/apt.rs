//! Packages of the distribution, by apt and without root.
//!
//! apt checks that its lists are signed; the hash of a package comes from the lists.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// apt with the options that make it look in one place or another.
#[derive(Debug)]
pub(super) struct Apt {
    options: Vec<OsString>,
}

/// A package as apt would download it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// The file's name, without a directory.
    pub(super) file: String,
    /// SHA-256 in lower-case hexadecimal digits.
    pub(super) sha256: String,
}

impl Apt {
    /// With the lists that the system has.
    pub(super) fn system() -> Apt {
        Apt { options: Vec::new() }
    }

    /// With lists of its own in a directory, which it fetches: this needs no root.
    ///
    /// # Errors
    /// What apt says.
    pub(super) fn private(directory: &Path) -> Result<Apt, String> {
        let mut options = Vec::new();
        for (option, place) in [("Dir::State", "state"), ("Dir::State::lists", "state/lists"), ("Dir::Cache", "cache")]
        {
            let place = directory.join(place);
            std::fs::create_dir_all(place.join("partial")).map_err(|error| format!("{}: {error}", place.display()))?;
            options.push("-o".into());
            options.push([option.as_ref(), "=".as_ref(), place.as_os_str()].into_iter().collect());
        }
        // What is installed does not matter, and nobody else may read the directory.
        options.extend(["-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root"].map(OsString::from));
        let apt = Apt { options };
        apt.run("apt-get", &["update", "-q"], directory)?;
        Ok(apt)
    }

    /// The package that a metapackage needs whose name begins with `prefix`, in its newest version.
    ///
    /// # Errors
    /// What apt says, or that there is none.
    pub(super) fn dependency(&self, metapackage: &str, prefix: &str) -> Result<String, String> {
        let said = self.run("apt-cache", &["show", "--no-all-versions", metapackage], Path::new("."))?;
        dependency(&said, prefix).ok_or_else(|| format!("{metapackage} does not depend on any {prefix}…"))
    }

    /// What `download` would fetch.
    ///
    /// # Errors
    /// What apt says.
    pub(super) fn offer(&self, package: &str) -> Result<Offer, String> {
        let said = self.run("apt-get", &["download", "-qq", "--print-uris", package], Path::new("."))?;
        offer(&said).ok_or_else(|| format!("apt knows no SHA-256 of {package}: {}", said.trim()))
    }

    /// Fetches a package into a directory.
    ///
    /// # Errors
    /// What apt says.
    pub(super) fn download(&self, package: &str, directory: &Path) -> Result<PathBuf, String> {
        self.run("apt-get", &["download", "-q", package], directory)?;
        let files = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
        let mut debs =
            files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "deb"));
        debs.next().ok_or_else(|| format!("apt-get download left no file of {package}"))
    }

    fn run(&self, program: &str, arguments: &[&str], directory: &Path) -> Result<String, String> {
        let mut command = Command::new(program);
        command.args(&self.options).args(arguments).current_dir(directory).env("LC_ALL", "C");
        let output = command.output().map_err(|error| format!("{program} cannot be run: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("E:")).collect();
        let why = if errors.is_empty() { said.trim().to_owned() } else { errors.join(" ") };
        Err(format!("{program} {}: {why}", arguments.join(" ")))
    }
}

/// From a paragraph of package control data (deb-control(5)): `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`.
fn dependency(control: &str, prefix: &str) -> Option<String> {
    let depends = control.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let mut names = depends.split([',', '|']).filter_map(|alternative| alternative.split_whitespace().next());
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

/// From a line of `--print-uris`: `'URI' FILE SIZE SHA256:DIGITS`.
fn offer(line: &str) -> Option<Offer> {
    let mut words = line.lines().last()?.split_whitespace().skip(1);
    let file = words.next()?.to_owned();
    let sha256 = words.find_map(|word| word.strip_prefix("SHA256:"))?.to_owned();
    Some(Offer { file, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_says_is_understood() {
        let control = "Package: linux-image-cloud-amd64\nDepends: initramfs-tools | dracut, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(dependency(control, "linux-image-").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency(control, "linux-headers-"), None);
        assert_eq!(dependency("", "x"), None);
        let line = "'http://deb.debian.org/pool/b.deb' b_1%3a1.deb 928188 SHA256:00be\n";
        assert_eq!(offer(line), Some(Offer { file: "b_1%3a1.deb".into(), sha256: "00be".into() }));
        assert_eq!(offer("'http://deb.debian.org/pool/b.deb' b.deb 928188 MD5Sum:00be"), None);
        assert_eq!(offer(""), None);
    }
}
