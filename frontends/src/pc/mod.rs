//! The PC around the processors, as far as bhyve keeps it in userspace.
//!
//! A device touches nothing outside itself: an access returns its [`Reaction`], and the vCPU's thread makes the system
//! calls. What real machines have and bhyve leaves to the kernel is not here: PIC, PIT, RTC, PM timer, I/O APIC, HPET.
//!
//! bhyve has a few devices more, whose ports and memory answer here like everybody's that is not there: the POST port,
//! fwctl, the VM generation counter with its GPE block.
//!
//! What a machine has beyond that if asked for is in [`isa`], [`piix4`] and [`smbios`].

pub(crate) mod acpi;
pub mod equipped;
pub mod invariants;
pub(crate) mod isa;
mod kbdc;
pub(crate) mod mptable;
pub(crate) mod pci;
mod piix4;
pub(crate) mod pm;
mod ram;
pub(crate) mod smbios;
mod uart;
mod virtio;

use crate::libvmmapi::FOUR_GIB;
use crate::pci_device::PciDevice;
use crate::{Chipset, Console, IsaDevices};
pub(crate) use virtio::Dma;

use isa::Isa;
use isa::fw_cfg::FwCfg;
use kbdc::Kbdc;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use pci::intx::Route;
use pci::{Interrupt, Pci};
use piix4::Piix4Pm;
use pm::Pm;
use std::sync::Arc;
use uart::Uart;
use vmm::trace::GuestReport;
use vmm::trace::report_port::REPORT_PORT;

/// An access to an I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inout {
    /// The port.
    pub(crate) port: u16,
    /// 1, 2 or 4.
    pub(crate) bytes: u8,
    /// What is written; `None` for IN.
    pub(crate) data: Option<u32>,
}

/// What a device wants done outside itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// An edge on an ISA interrupt line.
    PulseIrq(u8),
    /// The VM is to be suspended, for this reason (`enum vm_suspend_how`).
    Suspend(i32),
    /// The memory BAR of slot 5 is to be mapped there, and nowhere else; `None`: nowhere.
    MoveBar {
        /// Guest physical address.
        to: Option<u64>,
    },
    /// PCI devices interrupt, in this order.
    Interrupts(Vec<Interrupt>),
    /// The guest reported to the harness.
    Report(GuestReport),
    /// A level on an interrupt line: of the 8259s and the I/O APIC up to 15, of the I/O APIC alone above.
    SetIrq {
        /// The line's number, 0 to 23.
        line: u8,
        /// Whether it is raised.
        high: bool,
    },
    /// The process is to end with this status.
    Exit(i32),
    /// The firmware configuration is to carry out the command at this address.
    FwCfgDma {
        /// Guest physical address.
        gpa: u64,
    },
}

/// What an access led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reaction {
    /// What IN returns, in the low `bytes` bytes.
    pub(crate) value: u32,
    /// What is to be done outside.
    pub(crate) effect: Option<Effect>,
}

impl Reaction {
    const NOTHING: Reaction = Reaction { value: 0, effect: None };

    fn of(effect: Option<Effect>) -> Reaction {
        Reaction { effect, ..Reaction::NOTHING }
    }

    fn value(value: u32) -> Reaction {
        Reaction { value, ..Reaction::NOTHING }
    }
}

struct Devices {
    uart: Uart,
    pci: Pci,
    power: Power,
    kbdc: Kbdc,
    isa: Isa,
}

/// The registers by which the guest turns the machine off.
enum Power {
    Bhyve(Pm),
    Piix4(Piix4Pm),
}

/// What a PC's bus 0 has beside the bridges.
#[derive(Clone, Copy)]
pub(crate) struct Bus<'a> {
    /// Which bridges.
    pub(crate) chipset: Chipset,
    /// The device of slot 5.
    pub(crate) movable_bar: bool,
    /// Virtio devices.
    pub(crate) devices: &'a [PciDevice],
    /// The VM has a boot ROM, by which interrupt pins are assigned.
    pub(crate) bootrom: bool,
}

/// The devices of one PC, shared by the threads of its vCPUs.
pub(crate) struct Pc {
    devices: Mutex<Devices>,
    /// What PCI devices read and write.
    memory: Arc<dyn Dma>,
}

impl Pc {
    /// A PC after power-up, its COM1 on the console, with these of the ISA devices beyond the plain machine.
    pub(crate) fn new(
        console: &Console,
        memory: Arc<dyn Dma>,
        bus: Bus<'_>,
        isa: IsaDevices,
        fw_cfg: Option<FwCfg>,
    ) -> Pc {
        let pci = Pci::new(bus, console);
        let power = match bus.chipset {
            Chipset::Bhyve => Power::Bhyve(Pm::default()),
            Chipset::I440fx => Power::Piix4(Piix4Pm::default()),
        };
        let isa = Isa::new(isa, fw_cfg, console);
        let devices = Devices { uart: Uart::new(console), pci, power, kbdc: Kbdc::new(), isa };
        Pc { devices: Mutex::new(devices), memory }
    }

    /// Where the interrupt pins of PCI devices go.
    pub(crate) fn routes(&self) -> Vec<Route> {
        self.devices.lock().pci.routes()
    }

    /// The firmware configuration, if the machine has it.
    pub(crate) fn fw_cfg(&self) -> Option<MappedMutexGuard<'_, FwCfg>> {
        MutexGuard::try_map(self.devices.lock(), |devices| devices.isa.fw_cfg()).ok()
    }

    /// Takes over the state of every device from a PC that is no longer used.
    pub(crate) fn restore(&self, other: &Pc) {
        std::mem::swap(&mut *self.devices.lock(), &mut *other.devices.lock());
    }

    /// `emulate_inout` at the time `now_ns`: `None` where the handler refuses the access. Ports without a device read as all ones
    /// and ignore writes (`default_inout`; `-e` is not given).
    pub(crate) fn inout(&self, access: Inout, now_ns: u64) -> Option<Reaction> {
        let mut devices = self.devices.lock();
        let Devices { uart, pci, power, kbdc, isa } = &mut *devices;
        if let Some(reaction) = isa.inout(access) {
            return Some(reaction);
        }
        let Inout { port, bytes, data } = access;
        match (port, data) {
            (uart::COM1..=uart::COM1_LAST, _) => uart_access(uart, access, uart::COM1, uart::COM1_IRQ),
            (REPORT_PORT, Some(word)) if bytes == 4 => {
                Some(Reaction::of(Some(Effect::Report(GuestReport::from_word(word)))))
            }
            (pci::CONFIG_ADDRESS, None) => Some(Reaction::value(pci.read_address(bytes))),
            (pci::CONFIG_ADDRESS, Some(data)) => {
                pci.write_address(bytes, data);
                Some(Reaction::NOTHING)
            }
            (pci::CONFIG_DATA..=pci::CONFIG_DATA_LAST, None) => {
                let value = pci.read_data(port, bytes);
                Some(Reaction { value, effect: pci.take_effect() })
            }
            (pci::CONFIG_DATA..=pci::CONFIG_DATA_LAST, Some(data)) => {
                pci.write_data(port, bytes, data, &*self.memory);
                Some(Reaction::of(pci.take_effect()))
            }
            (kbdc::DATA | kbdc::STATUS, None) => kbdc.read(port, bytes).map(Reaction::value),
            (kbdc::DATA | kbdc::STATUS, Some(data)) => kbdc.write(port, bytes, data),
            _ => {
                let power = match power {
                    Power::Bhyve(pm) => pm.inout(access),
                    Power::Piix4(pm) => pm.inout(access, pci.power_management_base(), now_ns),
                };
                power.unwrap_or_else(|| Some(bar_access(pci, access, &*self.memory)))
            }
        }
    }

    /// A read of `bytes` bytes from memory that is none, and what is to be done outside: the PCI window, a BAR, or, in the hole below
    /// 4 GiB, all ones (`pci_emul_fallback_handler`). `None` above it, where nothing answers.
    pub(crate) fn read_memory(&self, gpa: u64, bytes: u8) -> Option<(u64, Option<Effect>)> {
        let pci = &mut self.devices.lock().pci;
        let value = match in_window(gpa) {
            Some(offset) => pci.read_window(offset, bytes),
            None => pci.read_bar(false, gpa, bytes).or((gpa < FOUR_GIB).then_some(u64::MAX))?,
        };
        Some((value, pci.take_effect()))
    }

    /// A write to such memory, and what is to be done outside.
    pub(crate) fn write_memory(&self, gpa: u64, bytes: u8, data: u64) -> Option<Option<Effect>> {
        let pci = &mut self.devices.lock().pci;
        let answered = match in_window(gpa) {
            Some(offset) => {
                pci.write_window(offset, bytes, data, &*self.memory);
                true
            }
            None => pci.write_bar(false, gpa, bytes, data, &*self.memory),
        };
        (answered || gpa < FOUR_GIB).then(|| pci.take_effect())
    }
}

/// How far from the beginning of the PCI window an address is.
fn in_window(gpa: u64) -> Option<u64> {
    gpa.checked_sub(pci::ECFG_BASE).filter(|offset| *offset < pci::ECFG_SIZE)
}

/// A port that only an I/O BAR may have: where none decodes it, all ones.
fn bar_access(pci: &mut Pci, Inout { port, bytes, data }: Inout, dma: &dyn Dma) -> Reaction {
    let value = match data {
        None => pci.read_bar(true, port.into(), bytes).map_or(u32::MAX, |value| value as u32),
        Some(data) => {
            pci.write_bar(true, port.into(), bytes, data.into(), dma);
            0
        }
    };
    Reaction { value, effect: pci.take_effect() }
}

/// A UART takes bytes, and words as two bytes at the next two ports (`lpc_uart_io_handler`).
fn uart_access(uart: &mut Uart, access: Inout, base: u16, irq: u8) -> Option<Reaction> {
    if access.bytes > 2 {
        return None;
    }
    let mut reaction = Reaction::NOTHING;
    for i in 0..access.bytes {
        let offset = (access.port - base) as u8 + i;
        let pulsed = match access.data {
            Some(data) => uart.write(offset, data.to_le_bytes()[usize::from(i)]),
            None => {
                let (value, pulsed) = uart.read(offset);
                reaction.value |= u32::from(value) << (8 * i);
                pulsed
            }
        };
        if pulsed {
            reaction.effect = Some(Effect::PulseIrq(irq));
        }
    }
    Some(reaction)
}

/// Makes all bytes sum to 0 by setting the one at `at` (ACPI 5.2.3; MP specification 4.1).
fn fix_checksum(table: &mut [u8], at: usize) {
    table[at] = 0;
    table[at] = sum(table).wrapping_neg();
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmm::abi::suspend;

    fn pc() -> (Pc, Console) {
        let console = Console::new();
        let bus = Bus { chipset: Chipset::Bhyve, movable_bar: false, devices: &[], bootrom: true };
        let memory = Arc::new(ram::Ram::new(0));
        (Pc::new(&console, memory, bus, IsaDevices::default(), None), console)
    }

    fn input(pc: &Pc, port: u16, bytes: u8) -> Option<u32> {
        pc.inout(Inout { port, bytes, data: None }, 0).map(|reaction| reaction.value)
    }

    fn output(pc: &Pc, port: u16, bytes: u8, data: u32) -> Option<Option<Effect>> {
        pc.inout(Inout { port, bytes, data: Some(data) }, 0).map(|reaction| reaction.effect)
    }

    #[test]
    fn each_port_reaches_its_device() {
        let (pc, console) = pc();
        assert_eq!(output(&pc, 0x3f8, 1, u32::from(b'x')), Some(None));
        assert_eq!(console.serial(), b"x");
        assert_eq!(output(&pc, 0x404, 2, 5 << 10 | 1 << 13), Some(Some(Effect::Suspend(suspend::POWEROFF))));
        assert_eq!(output(&pc, 0xcf9, 1, 6), Some(Some(Effect::Suspend(suspend::RESET))));
        assert_eq!(output(&pc, 0x64, 1, 0xfe), Some(Some(Effect::Suspend(suspend::RESET))));
        output(&pc, 0xcf8, 4, 0x8000_0000);
        assert_eq!(input(&pc, 0xcfe, 2), Some(0x1275));
        assert_eq!(input(&pc, 0xb2, 1), None, "bhyve's handler takes OUT alone");
    }

    #[test]
    fn reports_are_words() {
        let (pc, _) = pc();
        let report = GuestReport::Done { aps: 3 };
        assert_eq!(output(&pc, 0x5350, 4, 7 << 24 | 3), Some(Some(Effect::Report(report))));
        assert_eq!(output(&pc, 0x5350, 1, 7), Some(None));
        assert_eq!(input(&pc, 0x5350, 4), Some(u32::MAX));
    }

    #[test]
    fn the_hole_reads_as_ones_but_for_the_window() {
        let (pc, _) = pc();
        assert_eq!(pc.read_memory(0xd000_0000, 4), Some((u64::MAX, None)));
        assert_eq!(pc.read_memory(0xe000_0000, 2), Some((0x1275, None)));
        assert_eq!(pc.read_memory(0xf000_0000, 4), Some((u64::MAX, None)));
        assert_eq!((pc.read_memory(4 << 30, 4), pc.write_memory(4 << 30, 4, 0)), (None, None));
    }

    proptest! {
        #[test]
        fn no_access_panics(port: u16, bytes in prop_oneof![Just(1_u8), Just(2), Just(4)], data: Option<u32>) {
            let (pc, _) = pc();
            let _reaction = pc.inout(Inout { port, bytes, data }, 0);
        }

        #[test]
        fn no_memory_access_panics(gpa in 0xdfff_0000_u64..0xf001_0000, size in 0..4_u32, data: u64) {
            let (pc, _) = pc();
            let bytes = 1 << size;
            let _effect = pc.write_memory(gpa, bytes, data);
            let _value = pc.read_memory(gpa, bytes);
        }
    }
}
