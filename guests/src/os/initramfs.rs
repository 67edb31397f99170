//! The initial RAM disks of Linux guests.

use super::cpio::{Archive, Kind};
use super::{INIT, Package};

/// An initial RAM disk that the project makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Initramfs {
    /// Nothing but [`INIT`], as process 1.
    Spinup,
    /// [`INIT`] with the drivers of virtio devices: it loads them, and tries each device.
    Virtio,
    /// busybox as process 1: its `init` runs a script, which counts on each CPU with `taskset`, runs [`INIT`] for the
    /// report port, and powers off.
    Busybox,
}

/// The script of [`Initramfs::Busybox`].
const RC: &[u8] = b"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
cpus=$(busybox nproc)
echo \"busybox: $cpus CPUs online\"
cpu=0
while [ $cpu -lt $cpus ]; do
    busybox taskset -c $cpu busybox sh -c \"i=0; while [ \\$i -lt 500 ]; do i=\\$((i+1)); done; echo busybox: cpu $cpu counted to \\$i\"
    cpu=$((cpu+1))
done
/bin/spinup-init
busybox poweroff -f
";

impl Initramfs {
    /// Every initial RAM disk.
    pub const ALL: [Initramfs; 3] = [Initramfs::Spinup, Initramfs::Virtio, Initramfs::Busybox];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Initramfs::Spinup => "spinup",
            Initramfs::Virtio => "spinup-virtio",
            Initramfs::Busybox => "busybox",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Initramfs> {
        Initramfs::ALL.into_iter().find(|initramfs| initramfs.name() == name)
    }

    /// The package that it is made of, beside [`INIT`].
    #[must_use]
    pub fn needs(self) -> Option<Package> {
        match self {
            Initramfs::Spinup => None,
            Initramfs::Virtio => Some(Package::LinuxModules),
            Initramfs::Busybox => Some(Package::Busybox),
        }
    }

    /// The archive; `package` is the file of the package that it needs.
    #[must_use]
    pub fn build(self, package: &[u8]) -> Vec<u8> {
        let mut archive = Archive::default();
        archive.add("dev", Kind::Directory).add("dev/console", Kind::CharDevice(5, 1));
        archive.add("sys", Kind::Directory);
        match self {
            Initramfs::Spinup | Initramfs::Virtio => archive.add("init", Kind::Program(INIT)),
            Initramfs::Busybox => archive
                .add("proc", Kind::Directory)
                .add("bin", Kind::Directory)
                .add("bin/busybox", Kind::Program(package))
                .add("bin/spinup-init", Kind::Program(INIT))
                .add("etc", Kind::Directory)
                .add("etc/inittab", Kind::File(b"::sysinit:/etc/rc\n"))
                .add("etc/rc", Kind::Program(RC))
                .add("init", Kind::Link("bin/busybox")),
        };
        let mut bytes = archive.finish();
        if self == Initramfs::Virtio {
            // Linux unpacks archives one behind the other.
            bytes.extend(package);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_is_a_static_program_for_this_machine() {
        assert_eq!(&INIT[..4], b"\x7fELF");
        assert_eq!(INIT[18], 62, "EM_X86_64");
        assert!(INIT.len() < 64 << 10, "small: {} bytes", INIT.len());
        let phnum = usize::from(INIT[56]);
        let types: Vec<u8> = (0..phnum).map(|i| INIT[64 + 56 * i]).collect();
        assert!(!types.contains(&3), "PT_INTERP: no interpreter");
    }

    #[test]
    fn the_same_every_time() {
        for initramfs in Initramfs::ALL {
            assert_eq!(initramfs.build(b"busybox"), initramfs.build(b"busybox"));
            assert_eq!(Initramfs::named(initramfs.name()), Some(initramfs));
        }
    }
}
