//! What holds of the devices of the PC, whatever is done to them: each function here drives some with any bytes, and panics when
//! something does not hold. The tests give them random bytes; so do the targets of `fuzz/`.
//!
//! An access is eight bytes: its kind, its size, where it goes, and a value. What is left over is none.

use super::ram::Ram;
use super::{Bus, Effect, Inout, Pc, kbdc, pci, pm, uart};
use crate::{Chipset, Console, IsaDevices};
use std::sync::Arc;
use vmm::abi::suspend;
use vmm::trace::report_port::REPORT_PORT;

/// One access.
struct Access {
    what: u8,
    bytes: u8,
    at: u16,
    value: u32,
}

fn accesses(bytes: &[u8]) -> impl Iterator<Item = Access> {
    bytes.as_chunks().0.iter().map(|&[what, size, at @ .., v0, v1, v2, v3]: &[u8; 8]| Access {
        what,
        bytes: 1 << (size % 3),
        at: u16::from_le_bytes(at),
        value: u32::from_le_bytes([v0, v1, v2, v3]),
    })
}

/// A PC with the device whose BAR moves or without, and nothing else beside the bridges; it has no RAM, for no device here looks there.
fn new(console: &Console, movable_bar: bool) -> Pc {
    let bus = Bus { chipset: Chipset::Bhyve, movable_bar, devices: &[], bootrom: true };
    Pc::new(console, Arc::new(Ram::new(0)), bus, IsaDevices::default(), None)
}

/// A read of the hole below 4 GiB, which has no effect.
fn read_hole(pc: &Pc, gpa: u64, bytes: u8) -> u64 {
    let (value, effect) = pc.read_memory(gpa, bytes).expect("the hole answers");
    assert_eq!(effect, None, "a read of {gpa:#x}");
    value
}

/// A write to it.
fn write_hole(pc: &Pc, gpa: u64, bytes: u8, data: u64) -> Option<Effect> {
    pc.write_memory(gpa, bytes, data).expect("the hole answers")
}

/// Accesses to these ports alone.
fn ports(bytes: &[u8], ports: &[u16]) {
    let console = Console::new();
    let pc = new(&console, false);
    for Access { what, bytes, at, value } in accesses(bytes) {
        let port = ports[usize::from(at) % ports.len()];
        access(&pc, Inout { port, bytes, data: (what & 1 != 0).then_some(value) });
    }
}

/// An access to a port, which has no effect but its device's.
fn access(pc: &Pc, inout: Inout) {
    let Some(reaction) = pc.inout(inout, 0) else {
        assert_ne!(inout.port, REPORT_PORT, "nobody refuses a report");
        return;
    };
    let Inout { port, bytes, data } = inout;
    match reaction.effect {
        None => {}
        Some(Effect::PulseIrq(irq)) => {
            assert_eq!(irq, uart::COM1_IRQ);
            assert!((uart::COM1..=uart::COM1_LAST).contains(&port), "port {port:#x} has no interrupt");
        }
        Some(Effect::Suspend(how)) => {
            let value = data.expect("no IN ends a machine");
            match (port, bytes) {
                (pm::PM1_CONTROL, 2) => assert_eq!((how, value >> 10 & 0xf), (suspend::POWEROFF, 8 | 5)),
                (pm::RESET, 1) => assert_eq!((how, value & 4), (suspend::RESET, 4)),
                (kbdc::STATUS, 1) => assert_eq!((how, value & 0xff), (suspend::RESET, 0xfe)),
                _ => panic!("port {port:#x} ends no machine"),
            }
        }
        Some(Effect::MoveBar { to }) => {
            assert!((pci::CONFIG_DATA..=pci::CONFIG_DATA_LAST).contains(&port), "port {port:#x} moves no BAR");
            assert_bar(to);
        }
        Some(effect @ (Effect::Interrupts(_) | Effect::SetIrq { .. } | Effect::Exit(_) | Effect::FwCfgDma { .. })) => {
            panic!("no device here does that: {effect:?}")
        }
        Some(Effect::Report(_)) => assert_eq!((port, bytes), (REPORT_PORT, 4)),
    }
}

/// A BAR is on a boundary of its size, below 4 GiB.
fn assert_bar(to: Option<u64>) {
    assert!(to.is_none_or(|to| to % pci::BAR_SIZE == 0 && to < 4 << 30), "{to:x?}");
}

/// COM1.
pub fn uart(bytes: &[u8]) {
    ports(bytes, &std::array::from_fn::<u16, 8, _>(|offset| uart::COM1 + offset as u16));
}

/// The power management registers.
pub fn pm(bytes: &[u8]) {
    ports(bytes, &[pm::PM1_STATUS, pm::PM1_ENABLE, pm::PM1_CONTROL, pm::SMI_COMMAND, pm::RESET]);
}

/// The keyboard controller.
pub fn kbdc(bytes: &[u8]) {
    ports(bytes, &[kbdc::DATA, kbdc::STATUS]);
}

/// PCI, by both mechanisms, with the device whose BAR moves: both show the same, and what a function is does not change.
pub fn pci(bytes: &[u8]) {
    const IDENTITIES: [(u32, u32); 3] = [(0, 0x1275_1275), (5 << 3, 0x40fb_fb5d), (31 << 3, 0x7000_8086)];
    let pc = new(&Console::new(), true);
    for Access { what, bytes, at, value } in accesses(bytes) {
        let (devfn, _) = IDENTITIES[usize::from(at >> 8) % IDENTITIES.len()];
        let register = u32::from(at) & 0xff;
        let window = pci::ECFG_BASE + u64::from(devfn << 12 | register);
        let by_ports = |bytes, data| {
            let address = 1 << 31 | devfn << 8 | register & !3;
            access(&pc, Inout { port: pci::CONFIG_ADDRESS, bytes: 4, data: Some(address) });
            let port = pci::CONFIG_DATA + (register & 3) as u16;
            pc.inout(Inout { port, bytes, data }, 0).expect("nobody refuses")
        };
        match what % 4 {
            0 => match by_ports(bytes, Some(value)).effect {
                None => {}
                Some(Effect::MoveBar { to }) => assert_bar(to),
                Some(effect) => panic!("PCI does not do that: {effect:?}"),
            },
            1 => match write_hole(&pc, window, if what & 4 == 0 { bytes } else { 8 }, value.into()) {
                None => {}
                Some(Effect::MoveBar { to }) => assert_bar(to),
                Some(effect) => panic!("PCI does not do that: {effect:?}"),
            },
            2 => {
                let (port, data) = (pci::CONFIG_DATA + (at & 3), (at & 4 != 0).then_some(value));
                access(&pc, Inout { port: pci::CONFIG_ADDRESS, bytes, data: Some(value) });
                access(&pc, Inout { port, bytes, data });
            }
            _ => {
                let seen = u64::from(by_ports(bytes, None).value);
                let mask = u64::MAX >> (64 - 8 * u32::from(bytes));
                assert_eq!(
                    read_hole(&pc, window, bytes) & mask,
                    seen & mask,
                    "{devfn:#x} {register:#x}, {bytes} bytes"
                );
            }
        }
        for (devfn, identity) in IDENTITIES {
            assert_eq!(read_hole(&pc, pci::ECFG_BASE + u64::from(devfn << 12), 4), u64::from(identity));
        }
    }
}

/// Every port and the whole hole below 4 GiB, without the device whose BAR moves: nothing else has an effect.
pub fn pc(bytes: &[u8]) {
    const HOLE: u64 = 0xc000_0000;
    let console = Console::new();
    let pc = new(&console, false);
    for Access { what, bytes, at, value } in accesses(bytes) {
        let data = (what & 1 != 0).then_some(value);
        if what & 2 == 0 {
            access(&pc, Inout { port: at, bytes, data });
            continue;
        }
        let gpa = HOLE + (u64::from(at) << 14 | u64::from(value) & 0x3fff);
        let bytes = if what & 4 == 0 { bytes } else { 8 };
        match data {
            Some(data) => assert_eq!(write_hole(&pc, gpa, bytes, data.into()), None, "{gpa:#x} has no effect"),
            None => drop(read_hole(&pc, gpa, bytes)),
        }
    }
    assert!(console.serial().len() <= bytes.len(), "no more comes out than went in");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Bytes of whole accesses, whose small numbers reach further than random ones.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => any::<u8>(), 1 => 0_u8..4, 1 => Just(0xff_u8)];
        vec(byte, 0..8 * 400)
    }

    macro_rules! hold {
        ($($devices:ident),*) => {
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(256))]
                $(
                    #[test]
                    fn $devices(bytes in bytes()) {
                        super::$devices(&bytes);
                    }
                )*
            }
        };
    }

    hold!(uart, pm, kbdc, pci, pc);
}
