//! Debian packages (deb(5)): an ar archive whose member `data.tar` with some compression holds the files.

use std::io::{self, Read};

/// The first file of a package whose path begins with `prefix`, such as `boot/vmlinuz-`; its path and its bytes.
///
/// # Errors
/// When the package cannot be read, or has no such file.
pub(super) fn extract(package: &[u8], prefix: &str) -> io::Result<(String, Vec<u8>)> {
    let mut members = ar::Archive::new(package);
    while let Some(member) = members.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        match name.as_str() {
            "data.tar.xz" => return find(lzma_rust2::XzReader::new(member, true), prefix),
            "data.tar.zst" => {
                let data = ruzstd::decoding::StreamingDecoder::new(member).map_err(io::Error::other)?;
                return find(data, prefix);
            }
            "data.tar" => return find(member, prefix),
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

fn find(data: impl Read, prefix: &str) -> io::Result<(String, Vec<u8>)> {
    for file in tar::Archive::new(data).entries()? {
        let mut file = file?;
        let path = file.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        if file.header().entry_type().is_file() && path.starts_with(prefix) {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            return Ok((path, bytes));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("the package has no file {prefix}…")))
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
    fn what_is_no_package_is_refused() {
        assert!(extract(b"", "x").is_err());
        assert!(extract(b"!<arch>\n", "x").is_err());
        assert_eq!(extract(&package("data.tar.bz2"), "x").map_err(|e| e.kind()), Err(io::ErrorKind::Unsupported));
        assert!(extract(&package("data.tar.xz"), "x").is_err(), "no xz");
        assert!(extract(&package("data.tar.zst"), "x").is_err(), "no zstd");
    }
}
