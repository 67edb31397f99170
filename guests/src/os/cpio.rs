//! cpio archives in the format that Linux unpacks (Documentation/driver-api/early-userspace/buffer-format.rst): `newc`.

/// What an entry is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    Directory,
    /// An executable file with these bytes.
    Program(&'a [u8]),
    /// A file with these bytes.
    File(&'a [u8]),
    /// A symbolic link to this path.
    Link(&'a str),
    /// A character device with this major and minor number.
    CharDevice(u32, u32),
}

/// An archive that is being written. The same entries give the same bytes: everything belongs to root, and is as old as
/// Unix.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an entry. Its directory has to be there already.
    pub(super) fn add(&mut self, path: &str, kind: Kind<'_>) -> &mut Archive {
        const S_IFDIR: u32 = 0o04_0000;
        const S_IFREG: u32 = 0o10_0000;
        const S_IFLNK: u32 = 0o12_0000;
        const S_IFCHR: u32 = 0o02_0000;
        let (mode, contents, device) = match kind {
            Kind::Directory => (S_IFDIR | 0o755, &[][..], (0, 0)),
            Kind::Program(bytes) => (S_IFREG | 0o755, bytes, (0, 0)),
            Kind::File(bytes) => (S_IFREG | 0o644, bytes, (0, 0)),
            Kind::Link(to) => (S_IFLNK | 0o777, to.as_bytes(), (0, 0)),
            Kind::CharDevice(major, minor) => (S_IFCHR | 0o600, &[][..], (major, minor)),
        };
        self.entries += 1;
        self.entry(path, self.entries, mode, contents, device);
        self
    }

    /// The archive with its trailer.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[], (0, 0));
        std::mem::take(&mut self.bytes)
    }

    fn entry(&mut self, path: &str, inode: u32, mode: u32, contents: &[u8], (major, minor): (u32, u32)) {
        const LINKS: u32 = 1;
        let len = u32::try_from(contents.len()).expect("no file of an initial RAM disk has 4 GiB");
        let name_len = path.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [inode, mode, 0, 0, LINKS, 0, len, 0, 0, major, minor, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads an archive back: name, mode and contents.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |i: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * i..][..8]).expect("digits");
                u32::from_str_radix(digits, 16).expect("a hexadecimal number")
            };
            let (mode, len, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..][..name_len - 1].to_vec()).expect("a name");
            assert_eq!(archive[110 + name_len - 1], 0);
            let from = (110 + name_len).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(archive.len(), from);
                return entries;
            }
            entries.push((name, mode, archive[from..][..len].to_vec()));
            archive = &archive[(from + len).next_multiple_of(4)..];
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(files: Vec<(String, Vec<u8>)>) {
            let mut archive = Archive::default();
            for (name, bytes) in &files {
                archive.add(name, Kind::File(bytes));
            }
            let read = entries(&archive.finish());
            let expected: Vec<_> = files.into_iter().map(|(name, bytes)| (name, 0o10_0644, bytes)).collect();
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn every_kind() {
        let mut archive = Archive::default();
        archive.add("dev", Kind::Directory).add("dev/console", Kind::CharDevice(5, 1));
        archive.add("init", Kind::Program(b"x")).add("sh", Kind::Link("init"));
        let read = entries(&archive.finish());
        let modes: Vec<(&str, u32)> = read.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(modes, [("dev", 0o4_0755), ("dev/console", 0o2_0600), ("init", 0o10_0755), ("sh", 0o12_0777)]);
        assert_eq!((&read[2].2[..], &read[3].2[..]), (&b"x"[..], &b"init"[..]));
    }
}
