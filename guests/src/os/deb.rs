//! Debian packages (deb(5)): an ar archive whose member `data.tar` with some compression holds the files.

use std::io::{self, Read};
use std::ops::ControlFlow;

/// The first file of a package whose path begins with `prefix`, such as `boot/vmlinuz-`; its path and its bytes.
///
/// # Errors
/// When the package cannot be read, or has no such file.
pub(super) fn extract(package: &[u8], prefix: &str) -> io::Result<(String, Vec<u8>)> {
    let mut found = None;
    visit(package, &mut |path, bytes| {
        if !path.starts_with(prefix) {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some((path.to_owned(), all(bytes)?));
        Ok(ControlFlow::Break(()))
    })?;
    found.ok_or_else(|| missing(prefix))
}

/// The first file of a package for each of these ends of a path, in their order.
///
/// # Errors
/// When the package cannot be read, or does not have them all.
pub(super) fn extract_each(package: &[u8], suffixes: &[&str]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = vec![None; suffixes.len()];
    visit(package, &mut |path, bytes| {
        let wanted = suffixes.iter().position(|suffix| path.ends_with(suffix));
        if let Some(place) = wanted.filter(|place| found[*place].is_none()) {
            found[place] = Some((path.to_owned(), all(bytes)?));
        }
        let done = found.iter().all(Option::is_some);
        Ok(if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    found.into_iter().zip(suffixes).map(|(file, suffix)| file.ok_or_else(|| missing(suffix))).collect()
}

fn missing(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the package has no file {file}"))
}

fn all(bytes: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    bytes.read_to_end(&mut contents)?;
    Ok(contents)
}

/// What is called with each file: its path and its bytes.
type Visitor<'a> = dyn FnMut(&str, &mut dyn Read) -> io::Result<ControlFlow<()>> + 'a;

/// Shows `visitor` the files of a package in their order, until it has enough.
fn visit(package: &[u8], visitor: &mut Visitor<'_>) -> io::Result<()> {
    let mut members = ar::Archive::new(package);
    while let Some(member) = members.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        match name.as_str() {
            "data.tar.xz" => return visit_files(lzma_rust2::XzReader::new(member, true), visitor),
            "data.tar.zst" => {
                let data = ruzstd::decoding::StreamingDecoder::new(member).map_err(io::Error::other)?;
                return visit_files(data, visitor);
            }
            "data.tar" => return visit_files(member, visitor),
            other if other.starts_with("data.tar.") => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{other} is compressed as nobody does"),
                ));
            }
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the package has no data.tar"))
}

fn visit_files(data: impl Read, visitor: &mut Visitor<'_>) -> io::Result<()> {
    for file in tar::Archive::new(data).entries()? {
        let mut file = file?;
        let path = file.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        if file.header().entry_type().is_file() && visitor(&path, &mut file)?.is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package with one file.
    fn package(member: &str) -> Vec<u8> {
        let mut data = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(6);
        header.set_mode(0o644);
        data.append_data(&mut header, "./boot/vmlinuz-6.1", &b"kernel"[..]).expect("memory has room");
        let data = data.into_inner().expect("memory has room");
        let mut package = ar::Builder::new(Vec::new());
        for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), (member, &data)] {
            let header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
            package.append(&header, bytes).expect("memory has room");
        }
        package.into_inner().expect("memory has room")
    }

    #[test]
    fn a_file_is_found_by_its_beginning() {
        let package = package("data.tar");
        assert_eq!(
            extract(&package, "boot/vmlinuz-").expect("it is there"),
            ("boot/vmlinuz-6.1".into(), b"kernel".into())
        );
        assert_eq!(extract(&package, "boot/config-").map_err(|e| e.kind()), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn files_are_found_by_their_ends() {
        let package = package("data.tar");
        let found = extract_each(&package, &["vmlinuz-6.1"]).expect("it is there");
        assert_eq!(found, [("boot/vmlinuz-6.1".to_owned(), b"kernel".to_vec())]);
        let error = extract_each(&package, &["vmlinuz-6.1", "virtio.ko"]).expect_err("one is missing");
        assert_eq!(error.to_string(), "the package has no file virtio.ko");
    }

    #[test]
    fn what_is_no_package_is_refused() {
        assert!(extract(b"", "x").is_err());
        assert!(extract(b"!<arch>\n", "x").is_err());
        assert_eq!(extract(&package("data.tar.bz2"), "x").map_err(|e| e.kind()), Err(io::ErrorKind::Unsupported));
        assert!(extract(&package("data.tar.xz"), "x").is_err(), "no xz");
        assert!(extract(&package("data.tar.zst"), "x").is_err(), "no zstd");
    }
}
