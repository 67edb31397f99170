//! The MultiProcessor table (MP specification 1.4, chapter 4) as `mptbl.c` builds it.

use super::acpi::FIRST_X2APIC_ID;
use super::fix_checksum;
use super::pci::intx::Route;

/// Where the floating pointer structure stands; the configuration table follows it.
pub(crate) const MPTABLE_BASE: u64 = 0xf0000;

const FLOATING_POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPEC_REV_1_4: u8 = 4;
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// The ACPI interrupt, level triggered and active low.
const SCI_IRQ: u8 = 9;

/// Entry types (MP specification table 4-3).
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IOAPIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (MP specification table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;

/// The floating pointer structure and the configuration table behind it, for vCPUs whose APIC IDs are their numbers, and PCI
/// devices whose interrupt pins go there. vCPUs
/// from 255 on are left out: the table cannot say them. (bhyve wraps, and lists the same numbers again.)
pub(crate) fn build(vcpus: u16, routes: &[Route]) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = (0..FIRST_X2APIC_ID.min(vcpus) as u8).map(processor).collect();
    entries.push(bus(PCI_BUS, b"PCI   "));
    entries.push(bus(ISA_BUS, b"ISA   "));
    entries.push(ioapic());
    entries.extend((0..16).map(isa_interrupt));
    entries.extend(routes.iter().map(pci_interrupt));
    entries.extend([local_interrupt(EXTINT, 0), local_interrupt(NMI, 1)]);

    let mut table = vec![0; HEADER_LEN];
    let count = entries.len() as u16;
    for entry in entries {
        table.extend(entry);
    }
    let len = table.len() as u16;
    table[0..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&len.to_le_bytes());
    table[6] = SPEC_REV_1_4;
    table[8..16].copy_from_slice(b"BHyVe   ");
    table[16..28].copy_from_slice(b"Hypervisor  ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LAPIC_ADDRESS.to_le_bytes());
    fix_checksum(&mut table, 7);

    let mut bytes = vec![0; FLOATING_POINTER_LEN];
    let table_at = MPTABLE_BASE as u32 + FLOATING_POINTER_LEN as u32;
    bytes[0..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table_at.to_le_bytes());
    bytes[8] = 1; // length in units of 16 bytes
    bytes[9] = SPEC_REV_1_4;
    fix_checksum(&mut bytes, 10);
    bytes.extend(table);
    bytes
}

/// An enabled processor; number 0 is the BSP. Signature and features are those of a Core i7.
fn processor(apic_id: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    const APIC_VERSION: u8 = 0x10;
    const SIGNATURE: u32 = 6 << 8 | 26 << 4 | 5;
    const FEATURES: u32 = 0xbfeb_fbff;
    let flags = if apic_id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    let mut bytes = vec![entry::PROCESSOR, apic_id, APIC_VERSION, flags];
    bytes.extend(SIGNATURE.to_le_bytes());
    bytes.extend(FEATURES.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

fn bus(id: u8, name: &[u8; 6]) -> Vec<u8> {
    let mut bytes = vec![entry::BUS, id];
    bytes.extend(name);
    bytes
}

fn ioapic() -> Vec<u8> {
    const ID: u8 = 0;
    const VERSION: u8 = 0x11;
    const ENABLED: u8 = 1;
    let mut bytes = vec![entry::IOAPIC, ID, VERSION, ENABLED];
    bytes.extend(IOAPIC_ADDRESS.to_le_bytes());
    bytes
}

/// The ISA interrupt at a pin of the I/O APIC: the PIC at pin 0, IRQ 0 at pin 2, else its own number.
fn isa_interrupt(pin: u8) -> Vec<u8> {
    const CONFORMING: u8 = 0;
    const ACTIVE_LOW_LEVEL: u8 = 0b1111;
    let (kind, irq) = match pin {
        0 => (EXTINT, 0),
        2 => (INT, 0),
        _ => (INT, pin),
    };
    let flags = if pin == SCI_IRQ { ACTIVE_LOW_LEVEL } else { CONFORMING };
    vec![entry::IO_INTERRUPT, kind, flags, 0, ISA_BUS, irq, 0, pin]
}

/// INTA of a slot (MP specification D.3): level triggered, active low.
fn pci_interrupt(route: &Route) -> Vec<u8> {
    const ACTIVE_LOW_LEVEL: u8 = 0b1111;
    const INTA: u8 = 0;
    vec![entry::IO_INTERRUPT, INT, ACTIVE_LOW_LEVEL, 0, PCI_BUS, route.slot << 2 | INTA, 0, route.ioapic_pin]
}

/// What arrives at LINT0 or LINT1 of every local APIC.
fn local_interrupt(kind: u8, pin: u8) -> Vec<u8> {
    const EVERY_APIC: u8 = 0xff;
    vec![entry::LOCAL_INTERRUPT, kind, 0, 0, PCI_BUS, 0, EVERY_APIC, pin]
}

#[cfg(test)]
mod tests {
    use super::super::sum;
    use super::*;
    use proptest::prelude::*;

    /// What a guest reads from the table: APIC IDs of the processors with their flags, and how many entries of each type.
    fn parse(bytes: &[u8]) -> (Vec<(u8, u8)>, [usize; 5]) {
        assert_eq!(&bytes[..4], b"_MP_");
        assert_eq!(sum(&bytes[..16]), 0);
        let at = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes")) as usize - MPTABLE_BASE as usize;
        let table = &bytes[at..];
        assert_eq!(&table[..4], b"PCMP");
        let len = usize::from(u16::from_le_bytes([table[4], table[5]]));
        assert_eq!(len, table.len());
        assert_eq!(sum(table), 0);
        let (mut processors, mut counts) = (Vec::new(), [0; 5]);
        let mut rest = &table[44..];
        for _ in 0..u16::from_le_bytes([table[34], table[35]]) {
            counts[usize::from(rest[0])] += 1;
            if rest[0] == entry::PROCESSOR {
                processors.push((rest[1], rest[3]));
            }
            rest = &rest[if rest[0] == entry::PROCESSOR { 20 } else { 8 }..];
        }
        assert!(rest.is_empty());
        (processors, counts)
    }

    proptest! {
        #[test]
        fn every_vcpu_below_255_has_its_entry(vcpus in 1_u16..=1024) {
            let (processors, counts) = parse(&build(vcpus, &[]));
            prop_assert_eq!(counts, [usize::from(vcpus.min(255)), 2, 1, 16, 2]);
            for (i, (apic_id, flags)) in processors.into_iter().enumerate() {
                prop_assert_eq!(usize::from(apic_id), i);
                prop_assert_eq!(flags, if i == 0 { 3 } else { 1 });
            }
        }
    }

    #[test]
    fn irq_0_arrives_at_pin_2() {
        assert_eq!(isa_interrupt(2)[5..], [0, 0, 2]);
        assert_eq!(isa_interrupt(9)[1..4], [INT, 0b1111, 0]);
        assert_eq!(isa_interrupt(0)[1], EXTINT);
    }
}
