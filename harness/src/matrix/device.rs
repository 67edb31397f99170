//! The PCI devices of a guest's machine: `devices` of a `[[guest]]`.

use super::ConfigError;
use super::file::{DeviceTable, Source};
use crate::pattern::did_you_mean;
use frontends::{Chipset, DeviceKind, Disk, PciDevice, Transport};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use toml::Spanned;

/// A device that a matrix describes.
#[derive(Clone, Debug)]
pub struct Device {
    slot: u8,
    transport: Transport,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Block(Image),
    Console,
    Rng,
    Net,
}

/// A disk's file.
#[derive(Clone, Debug)]
struct Image {
    path: PathBuf,
    snapshot: bool,
    /// Opened when first asked for, to be read only.
    disk: Arc<OnceLock<Result<Disk, String>>>,
}

impl Image {
    fn open(&self) -> Result<Disk, String> {
        let open = || {
            let id = self.path.file_name().unwrap_or_default().to_string_lossy();
            let disk = std::fs::File::open(&self.path).and_then(|file| Disk::read_only(Arc::new(file), &id));
            disk.map_err(|error| format!("{} cannot be a disk: {error}", self.path.display()))
        };
        self.disk.get_or_init(open).clone()
    }
}

/// What a device can be, by the names of bhyve's command line.
const KINDS: [&str; 4] = ["virtio-blk", "virtio-console", "virtio-rnd", "virtio-net"];
const MODES: [&str; 2] = ["ro", "snapshot"];

impl Device {
    /// Reads the devices of a guest. Those without a slot get the first free ones, in order; files count from `directory`.
    pub(super) fn parse_all(
        source: Source<'_>,
        tables: &[Spanned<DeviceTable>],
        directory: &Path,
        chipset: Chipset,
    ) -> Result<Vec<Device>, ConfigError> {
        let slots = PciDevice::slots(chipset);
        let mut taken: Vec<u8> = Vec::new();
        for slot in tables.iter().filter_map(|table| table.get_ref().slot.as_ref()) {
            let number = *slot.get_ref();
            if !PciDevice::is_slot(number, chipset) || taken.contains(&number) {
                let (first, last, reserved) = (slots.start(), slots.end(), PciDevice::RESERVED_SLOT);
                let message = format!("slot {number} is taken, or none: {first} to {last}, and not {reserved}");
                return Err(source.error(slot.span(), "guest.devices.slot", message));
            }
            taken.push(number);
        }
        let mut devices = Vec::new();
        for table in tables {
            let slot = table.get_ref().slot.as_ref().map(|slot| *slot.get_ref());
            let free = || slots.clone().find(|slot| PciDevice::is_slot(*slot, chipset) && !taken.contains(slot));
            let Some(slot) = slot.or_else(free) else {
                return Err(source.error(table.span(), "guest.devices", "no slot is free"));
            };
            taken.push(slot);
            devices.push(Device::parse(source, table, slot, directory)?);
        }
        devices.sort_by_key(|device| device.slot);
        Ok(devices)
    }

    fn parse(
        source: Source<'_>,
        table: &Spanned<DeviceTable>,
        slot: u8,
        directory: &Path,
    ) -> Result<Device, ConfigError> {
        let DeviceTable { kind, transport, file, mode, .. } = table.get_ref();
        let transport = match transport {
            None => Transport::default(),
            Some(name) => Transport::named(name.get_ref()).ok_or_else(|| {
                unknown(source, "guest.devices.transport", name, &Transport::ALL.map(Transport::name))
            })?,
        };
        let snapshot = match mode {
            None => false,
            Some(name) => match name.get_ref().as_str() {
                "ro" => false,
                "snapshot" => true,
                _ => return Err(unknown(source, "guest.devices.mode", name, &MODES)),
            },
        };
        let of_a_disk = || {
            let span = file.as_ref().or(mode.as_ref()).map(Spanned::span);
            span.map_or(Ok(()), |span| Err(source.error(span, "guest.devices", "`file` and `mode` are for virtio-blk")))
        };
        let kind = match kind.get_ref().as_str() {
            "virtio-blk" => {
                let Some(file) = file else {
                    return Err(source.error(kind.span(), "guest.devices", "a virtio-blk needs a `file`"));
                };
                Kind::Block(Image { path: directory.join(file.get_ref()), snapshot, disk: Arc::default() })
            }
            "virtio-console" => of_a_disk().map(|()| Kind::Console)?,
            "virtio-rnd" => of_a_disk().map(|()| Kind::Rng)?,
            "virtio-net" => of_a_disk().map(|()| Kind::Net)?,
            _ => return Err(unknown(source, "guest.devices.kind", kind, &KINDS)),
        };
        Ok(Device { slot, transport, kind })
    }

    /// Opens what it needs of the host, once.
    ///
    /// # Errors
    /// Why that cannot be had, in one sentence.
    pub(super) fn open(&self) -> Result<(), String> {
        match &self.kind {
            Kind::Block(image) => image.open().map(drop),
            Kind::Console | Kind::Rng | Kind::Net => Ok(()),
        }
    }

    /// The device, new: what an earlier cell wrote to its disk is gone. `seed` is the cell's.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub(super) fn make(&self, seed: u64) -> Result<PciDevice, String> {
        let kind = match &self.kind {
            Kind::Block(image) if image.snapshot => DeviceKind::Block(image.open()?.snapshot()),
            Kind::Block(image) => DeviceKind::Block(image.open()?),
            Kind::Console => DeviceKind::Console,
            Kind::Rng => DeviceKind::Rng { seed },
            Kind::Net => DeviceKind::Net,
        };
        Ok(PciDevice { slot: self.slot, transport: self.transport, kind })
    }
}

fn unknown(source: Source<'_>, key: &str, value: &Spanned<String>, known: &[&'static str]) -> ConfigError {
    let hint = did_you_mean(value.get_ref(), known.iter().copied());
    source.error(value.span(), key, format!("`{}` is none of {}{hint}", value.get_ref(), known.join(", ")))
}

/// `slot 3: virtio-blk (legacy), disk.img, snapshot`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, file) = match &self.kind {
            Kind::Block(image) => (KINDS[0], Some(image)),
            Kind::Console => (KINDS[1], None),
            Kind::Rng => (KINDS[2], None),
            Kind::Net => (KINDS[3], None),
        };
        write!(f, "slot {}: {kind} ({})", self.slot, self.transport.name())?;
        let Some(image) = file else { return Ok(()) };
        write!(f, ", {}, {}", image.path.display(), MODES[usize::from(image.snapshot)])
    }
}
