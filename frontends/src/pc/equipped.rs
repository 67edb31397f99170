//! A PC with every device that a machine can have, under whatever a guest may do to it: accesses to every port and to the hole below
//! 4 GiB, rings in RAM, of which none may panic, and commands of DMA, which may not write outside what they say.
//!
//! As in [`super::invariants`], bytes say what is done: eight an access. The tests give it random ones; so do the targets of `fuzz/`.

use super::isa::fw_cfg::{self, FwCfg, Transfer};
use super::pci::Interrupt;
use super::ram::Ram;
use super::{Bus, Dma, Effect, Inout, Pc};
use crate::extras::{Chipset, Extras, FwCfgFile, IsaDevice};
use crate::pci_device::{DeviceKind, PciDevice, Transport};
use crate::{Console, Keyboard};
use std::sync::Arc;

/// Where somebody listens: the ports of all devices that a machine can have.
const LISTENING: [u16; 14] =
    [0x60, 0x64, 0x92, 0xb2, 0xe9, 0xf4, 0x2f8, 0x3f8, 0x400, 0x510, 0x514, 0xcf8, 0xcfc, 0x2000];

/// RAM in which the virtio devices find whatever a guest has left there.
const RAM_BYTES: usize = 64 << 10;

/// A device of each kind that needs no file, each by another interface.
fn devices() -> [PciDevice; 3] {
    [
        PciDevice { slot: 2, transport: Transport::Modern, kind: DeviceKind::Rng { seed: 1 } },
        PciDevice { slot: 3, transport: Transport::Transitional, kind: DeviceKind::Console },
        PciDevice { slot: 4, transport: Transport::Legacy, kind: DeviceKind::Net },
    ]
}

/// Does to a PC with every optional device what each eight of the bytes say. Returns a sum of what it answered, the same for the
/// same bytes.
pub fn drive(chipset: Chipset, bytes: &[u8]) -> u64 {
    let words = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word));
    let keyboard = Keyboard::default();
    let console = Console::new().with_keyboard(keyboard.clone());
    let file = FwCfgFile { name: "etc/file".into(), contents: vec![1, 2, 3].into() };
    let isa = IsaDevice::ALL.into_iter().collect();
    let extras = Extras { chipset, isa, fw_cfg: vec![file], ..Extras::default() };
    let machine = fw_cfg::Machine { vcpus: 4, lowmem: 64 << 20, highmem: 0 };
    let devices = devices();
    let bus = Bus { chipset, movable_bar: true, devices: &devices, bootrom: true };
    let ram = Arc::new(Ram::new(RAM_BYTES));
    let pc = Pc::new(&console, Arc::<Ram>::clone(&ram), bus, extras.isa, Some(FwCfg::new(machine, &extras)));
    let mut now = 0_u64;
    words.fold(0, |sum: u64, word| {
        let value = (word >> 24) as u32;
        let bytes = 1 << ((word >> 8 & 0xff) % 3);
        let data = (word >> 16 & 1 != 0).then_some(value);
        let answer = match word & 0xf {
            0 | 1 => access(&pc, Inout { port: (word >> 48) as u16, bytes, data }, now),
            2 => {
                let gpa = 0xc000_0000 + (word >> 32 & 0x3fff_ffff);
                match data {
                    Some(data) => pc.write_memory(gpa, 2 * bytes, data.into()).flatten().map_or(0, effect_sum),
                    None => {
                        pc.read_memory(gpa, 2 * bytes).map_or(0, |(value, effect)| value ^ effect.map_or(0, effect_sum))
                    }
                }
            }
            3 => {
                keyboard.type_in(&[value as u8]);
                now = now.saturating_add(word >> 40);
                0
            }
            4 => command(&pc, word),
            5 => u64::from(ram.write(word >> 48, &word.to_le_bytes())),
            // The first registers of the I/O BARs, where virtio devices begin.
            6 => access(&pc, Inout { port: 0x2000 + (word >> 48 & 0xff) as u16, bytes, data }, now),
            _ => {
                let first = LISTENING[(word >> 48) as usize % LISTENING.len()];
                access(&pc, Inout { port: first + (word >> 40 & 7) as u16, bytes, data }, now)
            }
        };
        (sum ^ answer).wrapping_mul(0x0100_0000_01b3)
    })
}

fn access(pc: &Pc, access: Inout, now_ns: u64) -> u64 {
    match pc.inout(access, now_ns) {
        None => u64::MAX,
        Some(reaction) => u64::from(reaction.value) + reaction.effect.map_or(0, effect_sum),
    }
}

/// Which effect it is, as a number.
fn effect_sum(effect: Effect) -> u64 {
    match effect {
        Effect::PulseIrq(irq) => irq.into(),
        Effect::Suspend(how) => 0x100 + how as u64,
        Effect::MoveBar { to } => to.unwrap_or(0x200),
        Effect::Report(_) => 0x300,
        Effect::SetIrq { line, high } => 0x400 + 2 * u64::from(line) + u64::from(high),
        Effect::Exit(status) => 0x500 + status as u64,
        Effect::Interrupts(interrupts) => interrupts.iter().map(interrupt_sum).sum(),
        Effect::FwCfgDma { gpa } => gpa,
    }
}

fn interrupt_sum(interrupt: &Interrupt) -> u64 {
    match *interrupt {
        Interrupt::Message { address, data } => address ^ u64::from(data),
        Interrupt::Line { irq, ioapic_pin, level } => {
            0x600 + u64::from(irq.unwrap_or(0)) + u64::from(ioapic_pin.unwrap_or(0)) + u64::from(level)
        }
    }
}

/// A command of DMA with a random control field; what it writes is as long as it says.
fn command(pc: &Pc, word: u64) -> u64 {
    let control = (word >> 16) as u32 & 0x003f_001f;
    let length = (word >> 40) as u32 & 0x3_ffff;
    let mut bytes = [0; fw_cfg::COMMAND_LEN];
    bytes[..4].copy_from_slice(&control.to_be_bytes());
    bytes[4..8].copy_from_slice(&length.to_be_bytes());
    let mut device = pc.fw_cfg().expect("the machine has it");
    let mut command = device.command(bytes);
    let mut written = 0;
    loop {
        match device.transfer(&mut command) {
            Transfer::Done { error } => return u64::from(error) + written,
            Transfer::Write { gpa, bytes } => {
                assert_eq!(gpa, written, "pieces follow each other");
                written += bytes.len() as u64;
                assert!(written <= u64::from(length), "more was written than asked for");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_access_panics_and_each_is_deterministic(i440fx: bool, bytes in vec(any::<u8>(), 0..8 * 2_000)) {
            let chipset = if i440fx { Chipset::I440fx } else { Chipset::Bhyve };
            prop_assert_eq!(drive(chipset, &bytes), drive(chipset, &bytes));
        }
    }
}
