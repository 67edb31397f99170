//! Writing files so that a reader sees the whole of before or the whole of now.

use std::io::{self, Write};
use std::path::Path;

/// Whether what stands at a path takes bytes without being a file: a pipe, a terminal, /dev/null.
#[must_use]
pub fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Writes a file beside its place and moves it there when it is whole. A link stays, and what it leads to is replaced; a
/// stream ([`is_stream`]) is written to.
///
/// # Errors
/// When the directory of the file does not let itself be written.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if is_stream(path) {
        let mut out = io::BufWriter::new(std::fs::File::options().write(true).open(path)?);
        write(&mut out)?;
        return out.flush();
    }
    let target = std::fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let mut file = beside(path)?;
    {
        let mut out = io::BufWriter::new(&mut file);
        write(&mut out)?;
        out.flush()?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A file beside another, which takes its place or vanishes.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".spinup-");
    // As a file made in the ordinary way, rather than for the owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(dir)
}

/// Whether [`write_atomically`] could write a file here; nothing is left behind.
///
/// # Errors
/// What would keep it from it.
pub fn probe(path: &Path) -> io::Result<()> {
    let target = std::fs::canonicalize(path);
    beside(target.as_deref().unwrap_or(path)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_readable_by_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("results.json");
        std::fs::write(&path, "before").expect("a file");
        write_atomically(&path, |_| Err(io::Error::other("no"))).expect_err("it failed");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "before");
        write_atomically(&path, |out| out.write_all(b"after")).expect("room");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "after");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "nothing is left beside it");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = dir.path().join("plain");
            std::fs::write(&plain, "").expect("a file");
            let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
            assert_eq!(mode(&path), mode(&plain));
        }
    }
}
