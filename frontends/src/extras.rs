//! What a machine has beside the devices of the plain command line: another chipset, devices on the ISA bus.

use std::fmt;
use std::sync::Arc;

/// The bridges of the PC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Chipset {
    /// bhyve's host and LPC bridge, and its firmware tables.
    #[default]
    Bhyve,
    /// Intel's 440FX with PIIX3 and PIIX4, as QEMU's `pc` has them: what SeaBIOS is built for. No bhyve has it. The boot ROM's last
    /// 128 KiB are copied below 1 MiB too, and the firmware's tables are the firmware's own.
    I440fx,
}

impl Chipset {
    /// Both.
    pub const ALL: [Chipset; 2] = [Chipset::Bhyve, Chipset::I440fx];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Chipset::Bhyve => "bhyve",
            Chipset::I440fx => "i440fx",
        }
    }

    /// The chipset with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Chipset> {
        Chipset::ALL.into_iter().find(|chipset| chipset.name() == name)
    }
}

/// A device that a machine has only if asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IsaDevice {
    /// QEMU's firmware configuration at 0x510, with DMA. bhyve has the part without DMA since 14 (`-l fwcfg=qemu`).
    FwCfg,
    /// The debug console of Bochs at 0xE9.
    Debugcon,
    /// The debug console of QEMU at 0x402, where SeaBIOS and OVMF write their log.
    BiosDebugcon,
    /// QEMU's `isa-debug-exit` at 0xF4: what is written ends the process.
    DebugExit,
    /// QEMU's `pc-testdev`, its ports from 0x2000 on: what is written to 0x2000 + N is the level of interrupt line N.
    IrqPort,
    /// A second UART at 0x2F8 (bhyve: `-l com2`).
    Com2,
    /// System control port A at 0x92: fast reset, and the A20 gate.
    Port92,
}

impl IsaDevice {
    /// Every device.
    pub const ALL: [IsaDevice; 7] = [
        IsaDevice::FwCfg,
        IsaDevice::Debugcon,
        IsaDevice::BiosDebugcon,
        IsaDevice::DebugExit,
        IsaDevice::IrqPort,
        IsaDevice::Com2,
        IsaDevice::Port92,
    ];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            IsaDevice::FwCfg => "fw_cfg",
            IsaDevice::Debugcon => "debugcon",
            IsaDevice::BiosDebugcon => "bios-debugcon",
            IsaDevice::DebugExit => "debug-exit",
            IsaDevice::IrqPort => "irq-port",
            IsaDevice::Com2 => "com2",
            IsaDevice::Port92 => "port92",
        }
    }

    /// The device with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<IsaDevice> {
        IsaDevice::ALL.into_iter().find(|device| device.name() == name)
    }
}

impl fmt::Display for IsaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IsaDevices(u8);

impl IsaDevices {
    /// Whether a device is there.
    #[must_use]
    pub fn has(self, device: IsaDevice) -> bool {
        self.0 & 1 << device as u8 != 0
    }
}

impl FromIterator<IsaDevice> for IsaDevices {
    fn from_iter<T: IntoIterator<Item = IsaDevice>>(devices: T) -> IsaDevices {
        IsaDevices(devices.into_iter().fold(0, |set, device| set | 1 << device as u8))
    }
}

/// A file of the firmware configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgFile {
    /// Its name, such as `etc/show-boot-menu`: up to 55 bytes.
    pub name: String,
    /// Its contents.
    pub contents: Arc<[u8]>,
}

/// What the firmware configuration hands out for a kernel that the firmware is to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgKernel {
    /// The kernel's file, a bzImage.
    pub kernel: Arc<[u8]>,
    /// The initial RAM disk; empty when there is none.
    pub initrd: Arc<[u8]>,
    /// The command line.
    pub cmdline: String,
}

/// What a machine has beside the plain one; by default, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// The bridges.
    pub chipset: Chipset,
    /// The devices.
    pub isa: IsaDevices,
    /// Files of the firmware configuration, for machines that have it.
    pub fw_cfg: Vec<FwCfgFile>,
    /// The kernel that it hands out.
    pub kernel: Option<FwCfgKernel>,
    /// SMBIOS tables.
    pub smbios: bool,
    /// A script runs bhyve again when it ends with 0, which says that the guest has reset the machine (`vmrun.sh`): with a boot ROM on
    /// the VM that is there (VM_REINIT), else on a new one. After [`MAX_RERUNS`] times the cell ends.
    pub rerun: bool,
}

/// How often a machine begins anew by [`Extras::rerun`].
pub const MAX_RERUNS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_sets_hold_what_goes_in() {
        for device in IsaDevice::ALL {
            assert_eq!(IsaDevice::named(device.name()), Some(device));
            let one: IsaDevices = [device].into_iter().collect();
            assert_eq!(IsaDevice::ALL.into_iter().filter(|&other| one.has(other)).collect::<Vec<_>>(), [device]);
        }
        for chipset in Chipset::ALL {
            assert_eq!(Chipset::named(chipset.name()), Some(chipset));
        }
    }
}
