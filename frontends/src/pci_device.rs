//! The PCI devices that a command line adds (`-s SLOT,KIND`): all of them virtio.

use crate::Chipset;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::{fmt, io};

/// A PCI device of bus 0, function 0 of its slot.
#[derive(Clone, Debug)]
pub struct PciDevice {
    /// Device number ([`PciDevice::is_slot`]).
    pub slot: u8,
    /// How the driver speaks to it.
    pub transport: Transport,
    /// What it is.
    pub kind: DeviceKind,
}

impl PciDevice {
    /// Whether a device can be in this slot beside the bridges of a chipset.
    #[must_use]
    pub fn is_slot(slot: u8, chipset: Chipset) -> bool {
        PciDevice::slots(chipset).contains(&slot) && slot != PciDevice::RESERVED_SLOT
    }

    /// The slot of the device whose BAR the guest can move, of a frontend with `+passthru`.
    pub const RESERVED_SLOT: u8 = 5;

    /// From the first slot that a device can be in beside the bridges of a chipset to the last; [`PciDevice::RESERVED_SLOT`] is none.
    #[must_use]
    pub fn slots(chipset: Chipset) -> RangeInclusive<u8> {
        match chipset {
            // The LPC bridge is in slot 31.
            Chipset::Bhyve => 1..=30,
            // PIIX3 is in slot 1.
            Chipset::I440fx => 2..=30,
        }
    }
}

/// The registers of a virtio device on PCI (virtio 1.2, 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// The legacy interface alone, an I/O BAR: what every bhyve has.
    #[default]
    Legacy,
    /// Legacy and modern beside each other (4.1.2.1).
    Transitional,
    /// Virtio 1 alone: capabilities that point into a memory BAR.
    Modern,
}

impl Transport {
    /// Every one.
    pub const ALL: [Transport; 3] = [Transport::Legacy, Transport::Transitional, Transport::Modern];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Transport::Legacy => "legacy",
            Transport::Transitional => "transitional",
            Transport::Modern => "modern",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| transport.name() == name)
    }
}

/// What a virtio device is (virtio 1.2, chapter 5).
#[derive(Clone, Debug)]
pub enum DeviceKind {
    /// A disk.
    Block(Disk),
    /// A console with one port, whose output is [`crate::Stream::Virtio`].
    Console,
    /// Entropy, the same for the same seed.
    Rng {
        /// The seed.
        seed: u64,
    },
    /// A network interface on the VM's own switch, where a peer answers ARP and ICMP echo at 10.0.2.2.
    Net,
}

impl DeviceKind {
    /// The name in a matrix and on bhyve's command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            DeviceKind::Block(_) => "virtio-blk",
            DeviceKind::Console => "virtio-console",
            DeviceKind::Rng { .. } => "virtio-rnd",
            DeviceKind::Net => "virtio-net",
        }
    }
}

/// Size of a disk's sector in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// What the overlay of a snapshot keeps at once, in bytes.
const PAGE: u64 = 4096;

/// Pages by their number.
type Overlay = Mutex<BTreeMap<u64, Box<[u8]>>>;

/// A disk: a raw file that is never written, and what the guest wrote, which goes with the last clone.
///
/// Clones are the same disk: a VM that begins anew in the same process finds what it wrote.
#[derive(Clone)]
pub struct Disk {
    file: Arc<File>,
    sectors: u64,
    id: String,
    /// Pages that the guest has written; `None` where it must not.
    overlay: Option<Arc<Overlay>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.is_read_only() { "read-only" } else { "snapshot" };
        write!(f, "Disk({}, {} sectors, {mode})", self.id, self.sectors)
    }
}

impl Disk {
    /// A disk that the guest can only read. `id` is what the guest is told as its name, of which 20 bytes count.
    ///
    /// # Errors
    /// What the host says about the file; `InvalidData` when it is not made of whole sectors, or of none.
    pub fn read_only(file: Arc<File>, id: &str) -> io::Result<Disk> {
        let len = file.metadata()?.len();
        if len == 0 || !len.is_multiple_of(SECTOR_SIZE) {
            let message = format!("a disk is made of sectors of {SECTOR_SIZE} bytes, and this file has {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Disk { file, sectors: len / SECTOR_SIZE, id: id.to_owned(), overlay: None })
    }

    /// A disk with the same contents that the guest can write too, into memory.
    #[must_use]
    pub fn snapshot(&self) -> Disk {
        Disk { overlay: Some(Arc::default()), ..self.clone() }
    }

    /// How many sectors it has.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.overlay.is_none()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether so many bytes from this sector on are on the disk.
    fn holds(&self, sector: u64, len: usize) -> bool {
        let bytes = len as u64;
        bytes.is_multiple_of(SECTOR_SIZE)
            && sector.checked_add(bytes / SECTOR_SIZE).is_some_and(|end| end <= self.sectors)
    }

    /// Reads whole sectors.
    ///
    /// # Errors
    /// `InvalidInput` when they are not all on the disk; what the host says.
    pub(crate) fn read(&self, sector: u64, bytes: &mut [u8]) -> io::Result<()> {
        if !self.holds(sector, bytes.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let begin = sector * SECTOR_SIZE;
        self.file.read_exact_at(bytes, begin)?;
        let Some(overlay) = &self.overlay else { return Ok(()) };
        let end = begin + bytes.len() as u64;
        for (page, written) in overlay.lock().range(begin / PAGE..end.div_ceil(PAGE)) {
            let (from, to) = ((page * PAGE).max(begin), ((page + 1) * PAGE).min(end));
            let part = &written[(from - page * PAGE) as usize..(to - page * PAGE) as usize];
            bytes[(from - begin) as usize..(to - begin) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    /// Writes whole sectors.
    ///
    /// # Errors
    /// `ReadOnlyFilesystem` where the disk is one; as [`Disk::read`].
    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(overlay) = &self.overlay else { return Err(io::ErrorKind::ReadOnlyFilesystem.into()) };
        if !self.holds(sector, bytes.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (begin, mut overlay) = (sector * SECTOR_SIZE, overlay.lock());
        let end = begin + bytes.len() as u64;
        for page in begin / PAGE..end.div_ceil(PAGE) {
            let written = match overlay.entry(page) {
                std::collections::btree_map::Entry::Occupied(there) => there.into_mut(),
                std::collections::btree_map::Entry::Vacant(none) => none.insert(self.page_of_file(page)?),
            };
            let (from, to) = ((page * PAGE).max(begin), ((page + 1) * PAGE).min(end));
            let part = &bytes[(from - begin) as usize..(to - begin) as usize];
            written[(from - page * PAGE) as usize..(to - page * PAGE) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    /// A page of the file, with zeros behind its end.
    fn page_of_file(&self, page: u64) -> io::Result<Box<[u8]>> {
        let len = (self.sectors * SECTOR_SIZE - page * PAGE).min(PAGE) as usize;
        let mut bytes = vec![0; PAGE as usize];
        self.file.read_exact_at(&mut bytes[..len], page * PAGE)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    /// A file of so many sectors, each of which has its number in every byte.
    pub(crate) fn numbered(sectors: u8) -> Arc<File> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        for sector in 0..sectors {
            file.write_all(&[sector; SECTOR_SIZE as usize]).expect("it has room");
        }
        Arc::new(file)
    }

    #[test]
    fn a_file_of_no_or_half_sectors_is_no_disk() {
        let mut half = tempfile::tempfile().expect("a temporary file");
        assert_eq!(
            Disk::read_only(Arc::new(half.try_clone().expect("a file")), "x").map_err(|error| error.kind()).err(),
            Some(io::ErrorKind::InvalidData)
        );
        half.write_all(&[0; 700]).expect("it has room");
        assert!(Disk::read_only(Arc::new(half), "x").is_err());
    }

    #[test]
    fn a_read_only_disk_stays_as_it_is() {
        let disk = Disk::read_only(numbered(4), "x").expect("whole sectors");
        assert_eq!(disk.write(0, &[9; 512]).map_err(|error| error.kind()), Err(io::ErrorKind::ReadOnlyFilesystem));
        let mut two = [0; 1024];
        disk.read(2, &mut two).expect("they are there");
        assert_eq!((two[0], two[1023]), (2, 3));
        for (sector, len) in [(3, 1024), (u64::MAX, 512), (0, 511)] {
            assert!(disk.read(sector, &mut two[..len]).is_err(), "{sector} {len}");
        }
    }

    proptest! {
        /// A snapshot is the file with the writes on top of it, and the file stays as it was.
        #[test]
        fn a_snapshot_is_a_copy_that_is_written(writes in prop::collection::vec((0_u64..20, 1_usize..9, 100_u8..), 0..12)) {
            let file = numbered(21);
            let disk = Disk::read_only(Arc::clone(&file), "x").expect("whole sectors").snapshot();
            let mut model: Vec<u8> = (0..21).flat_map(|sector| [sector; 512]).collect();
            for (sector, sectors, value) in writes {
                let (begin, len) = (sector as usize * 512, sectors * 512);
                let wrote = disk.write(sector, &vec![value; len]).is_ok();
                prop_assert_eq!(wrote, begin + len <= model.len());
                if wrote {
                    model[begin..begin + len].fill(value);
                }
            }
            let mut all = vec![0; model.len()];
            disk.clone().read(0, &mut all).expect("it is there");
            prop_assert_eq!(&all, &model);
            let mut below = vec![0; model.len()];
            Disk::read_only(file, "x").expect("whole sectors").read(0, &mut below).expect("it is there");
            prop_assert!(below.chunks(512).zip(0..).all(|(sector, number)| sector.iter().all(|byte| *byte == number)));
        }
    }
}
