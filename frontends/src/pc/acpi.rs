//! The ACPI tables as `acpi.c` of 12.x to 13.x lays them out: RSDP at 0xF2400, then RSDT, XSDT, MADT, FADT, HPET, MCFG,
//! FACS, DSDT.
//!
//! bhyve writes ASL, runs `iasl` and loads what comes out; here the same tables are made directly. The DSDT holds what a
//! guest needs to power off and to find the PCI bus: `\_S5` and `\_SB.PC00`.

use super::pci::intx::Route;
use super::pci::{ECFG_BASE, ECFG_SIZE};
use super::{fix_checksum, pm};

/// `BHYVE_ACPI_BASE`: where the RSDP stands, and the tables behind it.
pub(crate) const ACPI_BASE: u64 = 0xf2400;

const RSDT: u64 = ACPI_BASE + 0x40;
const XSDT: u64 = ACPI_BASE + 0x80;
const MADT: u64 = ACPI_BASE + 0x100;
const FADT_ROOM: u64 = 0x140;
const SMALL_ROOM: u64 = 0x40;

/// The first APIC ID that is not one of a local APIC in xAPIC mode: 255 is the broadcast there.
pub(super) const FIRST_X2APIC_ID: u16 = 255;

const PM_TIMER: u16 = 0x408;
const SCI_IRQ: u8 = 9;
const HPET_ADDRESS: u64 = 0xfed0_0000;
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;

/// What the tables tell of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    /// How many vCPUs; their APIC IDs are their numbers.
    pub(crate) vcpus: u16,
    /// The HPET's capabilities, bits 31:0.
    pub(crate) hpet_capabilities: u32,
    /// Where the interrupt pins of PCI devices go.
    pub(crate) routes: &'a [Route],
}

/// Where each table stands. The room for the MADT grows with the vCPUs (rS346715).
struct Layout {
    fadt: u64,
    hpet: u64,
    mcfg: u64,
    facs: u64,
    dsdt: u64,
}

impl Layout {
    fn of(vcpus: u16) -> Layout {
        let madt_room = (madt(vcpus).len() as u64).next_multiple_of(0x100);
        let fadt = MADT + madt_room;
        let hpet = fadt + FADT_ROOM;
        let mcfg = hpet + SMALL_ROOM;
        let facs = mcfg + SMALL_ROOM;
        Layout { fadt, hpet, mcfg, facs, dsdt: facs + SMALL_ROOM }
    }
}

/// The tables with their guest physical addresses.
pub(crate) fn build(machine: Machine<'_>) -> Vec<(u64, Vec<u8>)> {
    let layout = Layout::of(machine.vcpus);
    let listed = [MADT, layout.fadt, layout.hpet, layout.mcfg];
    vec![
        (ACPI_BASE, rsdp()),
        (RSDT, root_table(*b"RSDT", *b"BVRSDT  ", &listed.map(|at| (at as u32).to_le_bytes()))),
        (XSDT, root_table(*b"XSDT", *b"BVXSDT  ", &listed.map(u64::to_le_bytes))),
        (MADT, madt(machine.vcpus)),
        (layout.fadt, fadt(&layout)),
        (layout.hpet, hpet(machine.hpet_capabilities)),
        (layout.mcfg, mcfg()),
        (layout.facs, facs()),
        (layout.dsdt, dsdt(machine.routes)),
    ]
}

/// Bytes in the order in which a table's chapter lists its fields.
struct Fields(Vec<u8>);

impl Fields {
    /// A table's header (ACPI 5.2.6); length and checksum come with [`Fields::table`].
    fn header(signature: [u8; 4], revision: u8, table_id: [u8; 8]) -> Fields {
        let mut fields = Fields(Vec::new());
        fields.bytes(&signature).u32(0).u8(revision).u8(0).bytes(b"BHYVE ").bytes(&table_id);
        fields.u32(1).bytes(b"SPUP").u32(1);
        fields
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Fields {
        self.0.extend(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Fields {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Fields {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Fields {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Fields {
        self.bytes(&value.to_le_bytes())
    }

    /// A generic address (ACPI 5.2.3.2).
    fn address(&mut self, address: GenericAddress) -> &mut Fields {
        let GenericAddress { space, width, access, address } = address;
        self.u8(space).u8(width).u8(0).u8(access).u64(address)
    }

    /// The table with length and checksum filled in.
    fn table(&mut self) -> Vec<u8> {
        let mut table = std::mem::take(&mut self.0);
        let len = table.len() as u32;
        table[4..8].copy_from_slice(&len.to_le_bytes());
        fix_checksum(&mut table, 9);
        table
    }
}

/// A register's place. `width` in bits; `access` 0 undefined, 1 byte, 2 word, 3 double word.
#[derive(Clone, Copy)]
struct GenericAddress {
    space: u8,
    width: u8,
    access: u8,
    address: u64,
}

impl GenericAddress {
    fn io(port: u16, width: u8, access: u8) -> GenericAddress {
        GenericAddress { space: 1, width, access, address: port.into() }
    }
}

/// Root System Description Pointer, revision 2 (ACPI 5.2.5.3).
fn rsdp() -> Vec<u8> {
    let mut fields = Fields(Vec::new());
    fields.bytes(b"RSD PTR ").u8(0).bytes(b"BHYVE ").u8(2).u32(RSDT as u32);
    fields.u32(36).u64(XSDT).u8(0).bytes(&[0; 3]);
    let mut rsdp = fields.0;
    fix_checksum(&mut rsdp[..20], 8);
    fix_checksum(&mut rsdp, 32);
    rsdp
}

fn root_table<const N: usize>(signature: [u8; 4], table_id: [u8; 8], entries: &[[u8; N]]) -> Vec<u8> {
    Fields::header(signature, 1, table_id).bytes(entries.as_flattened()).table()
}

/// Multiple APIC Description Table (ACPI 5.2.12). APIC IDs from 255 on do not fit into a local APIC's entry and have one of a
/// local x2APIC (5.2.12.12). bhyve's own table has none of those, and wraps.
fn madt(vcpus: u16) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    // Entries of local x2APICs came with revision 3 of the table.
    let revision = if vcpus > FIRST_X2APIC_ID { 3 } else { 1 };
    let mut fields = Fields::header(*b"APIC", revision, *b"BVMADT  ");
    fields.u32(LAPIC_ADDRESS).u32(PCAT_COMPAT);
    for vcpu in 0..vcpus {
        match u8::try_from(vcpu) {
            Ok(id) if u16::from(id) < FIRST_X2APIC_ID => fields.u8(0).u8(8).u8(id).u8(id).u32(ENABLED),
            _ => fields.u8(9).u8(16).u16(0).u32(vcpu.into()).u32(ENABLED).u32(vcpu.into()),
        };
    }
    // One I/O APIC, ID 0, from GSI 0.
    fields.u8(1).u8(12).u8(0).u8(0).u32(IOAPIC_ADDRESS).u32(0);
    // IRQ 0 is pin 2, active high, edge.
    fields.u8(2).u8(10).u8(0).u8(0).u32(2).u16(0b0101);
    // The SCI, active low, level.
    fields.u8(2).u8(10).u8(0).u8(SCI_IRQ).u32(SCI_IRQ.into()).u16(0b1111);
    // NMI at LINT1 of every processor, active high, edge; of those with a local x2APIC in an entry of their own.
    fields.u8(4).u8(6).u8(0xff).u16(0b0101).u8(1);
    if vcpus > FIRST_X2APIC_ID {
        fields.u8(10).u8(12).u16(0b0101).u32(u32::MAX).u8(1).bytes(&[0; 3]);
    }
    fields.table()
}

/// Fixed ACPI Description Table, revision 5 (ACPI 5.2.9).
fn fadt(layout: &Layout) -> Vec<u8> {
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const SLEEP_BUTTON_IS_METHOD: u32 = 1 << 5;
    const PM_TIMER_32_BIT: u32 = 1 << 8;
    const RESET_REGISTER: u32 = 1 << 10;
    const HEADLESS: u32 = 1 << 12;
    const APIC_PHYSICAL_MODE: u32 = 1 << 19;
    const FLAGS: u32 =
        WBINVD | PROC_C1 | SLEEP_BUTTON_IS_METHOD | PM_TIMER_32_BIT | RESET_REGISTER | HEADLESS | APIC_PHYSICAL_MODE;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    const CMOS_CENTURY: u8 = 0x32;
    const RESET_VALUE: u8 = 6;
    const NONE: GenericAddress = GenericAddress { space: 1, width: 0, access: 0, address: 0 };

    let mut fields = Fields::header(*b"FACP", 5, *b"BVFACP  ");
    fields.u32(layout.facs as u32).u32(layout.dsdt as u32).u8(1).u8(0).u16(SCI_IRQ.into());
    fields.u32(pm::SMI_COMMAND.into()).u8(pm::ACPI_ENABLE).u8(pm::ACPI_DISABLE).u8(0).u8(0);
    // Ports: PM1a and PM1b events, PM1a and PM1b control, PM2, timer, GPE0, GPE1; then their lengths.
    fields.u32(pm::PM1_STATUS.into()).u32(0).u32(pm::PM1_CONTROL.into()).u32(0).u32(0);
    fields.u32(PM_TIMER.into()).u32(0).u32(0);
    fields.u8(4).u8(2).u8(0).u8(4).u8(0).u8(0).u8(0).u8(0);
    // Latencies, caches, duty cycle, alarms.
    fields.u16(0).u16(0).u16(0).u16(0).u8(0).u8(0).u8(0).u8(0).u8(CMOS_CENTURY);
    fields.u16(NO_VGA | NO_ASPM).u8(0).u32(FLAGS);
    fields.address(GenericAddress::io(pm::RESET, 8, 1)).u8(RESET_VALUE).bytes(&[0; 3]);
    fields.u64(layout.facs).u64(layout.dsdt);
    fields.address(GenericAddress::io(pm::PM1_STATUS, 32, 2)).address(NONE);
    fields.address(GenericAddress::io(pm::PM1_CONTROL, 16, 2)).address(NONE).address(NONE);
    fields.address(GenericAddress::io(PM_TIMER, 32, 3)).address(NONE).address(NONE);
    // Sleep control and status, of machines with reduced hardware.
    fields.address(NONE).address(NONE);
    fields.table()
}

/// IA-PC HPET Description Table (HPET 1.0a, 3.2.4).
fn hpet(capabilities: u32) -> Vec<u8> {
    const PAGE_PROTECTION_4K: u8 = 1;
    let memory = GenericAddress { space: 0, width: 0, access: 0, address: HPET_ADDRESS };
    let mut fields = Fields::header(*b"HPET", 1, *b"BVHPET  ");
    fields.u32(capabilities).address(memory).u8(0).u16(0).u8(PAGE_PROTECTION_4K).table()
}

/// Memory Mapped Configuration Space (PCI Firmware 3.0, 4.1.2).
fn mcfg() -> Vec<u8> {
    const LAST_BUS: u8 = ((ECFG_SIZE >> 20) - 1) as u8;
    let mut fields = Fields::header(*b"MCFG", 1, *b"BVMCFG  ");
    fields.u64(0).u64(ECFG_BASE).u16(0).u8(0).u8(LAST_BUS).u32(0).table()
}

/// Firmware ACPI Control Structure (ACPI 5.2.10). It has no checksum.
fn facs() -> Vec<u8> {
    const LEN: u32 = 64;
    const VERSION: u8 = 2;
    let mut fields = Fields(Vec::new());
    // Hardware signature, waking vector, lock, flags, 64-bit waking vector.
    fields.bytes(b"FACS").u32(LEN).u32(0).u32(0).u32(0).u32(0).u64(0).u8(VERSION).bytes(&[0; 31]);
    fields.0
}

/// Differentiated System Description Table: header and AML (ACPI 20.2).
fn dsdt(routes: &[Route]) -> Vec<u8> {
    Fields::header(*b"DSDT", 2, *b"BVDSDT  ").bytes(&aml::definitions(routes)).table()
}

/// The few AML encodings that the DSDT needs (ACPI 20.2).
mod aml {
    use super::super::pci::intx::Route;
    use super::super::pci::{ECFG_BASE, ECFG_SIZE, MEMORY_BASE};
    use super::super::pm::SLEEP_TYPE_S5;

    const ZERO: u8 = 0x00;
    const NAME: u8 = 0x08;
    const BYTE: u8 = 0x0a;
    const DWORD: u8 = 0x0c;
    const SCOPE: u8 = 0x10;
    const BUFFER: u8 = 0x11;
    const PACKAGE: u8 = 0x12;
    const METHOD: u8 = 0x14;
    const EXT: u8 = 0x5b;
    const ARG_0: u8 = 0x68;
    const STORE: u8 = 0x70;
    const DEVICE: u8 = 0x82;
    const IF: u8 = 0xa0;
    const RETURN: u8 = 0xa4;
    const ROOT: u8 = b'\\';

    /// `Name (\_S5, Package (2) { 5, Zero })  Scope (\_SB) { Device (PC00) { … } }`. With PCI devices that interrupt, the interrupt
    /// model too, and in the scope the board's own use of the extended configuration window.
    pub(super) fn definitions(routes: &[Route]) -> Vec<u8> {
        let s5 = package(2, &[BYTE, SLEEP_TYPE_S5, ZERO]);
        let mut bytes = vec![NAME, ROOT];
        bytes.extend(b"_S5_");
        bytes.extend(s5);
        let mut scope = pci_root(routes);
        if !routes.is_empty() {
            bytes.extend(interrupt_model());
            scope.extend(motherboard());
        }
        bytes.push(SCOPE);
        bytes.extend(sized(&[&[ROOT][..], b"_SB_", &scope].concat()));
        bytes
    }

    /// `Name (\PICM, Zero)  Method (\_PIC, 1) { Store (Arg0, \PICM) }`: 1 when the system uses the I/O APIC (5.8.1).
    fn interrupt_model() -> Vec<u8> {
        let name = [&[NAME, ROOT][..], b"PICM", &[ZERO]].concat();
        let body = [&[ROOT][..], b"_PIC", &[1, STORE, ARG_0, ROOT], b"PICM"].concat();
        [name, vec![METHOD], sized(&body)].concat()
    }

    /// The PCI host bridge, `PNP0A03`, bus 0. With devices: the windows in which their BARs can be, and where their interrupt pins
    /// go. bhyve has a link device for each PIRQ; here the ISA interrupts are the ones that are routed at the start.
    fn pci_root(routes: &[Route]) -> Vec<u8> {
        let hid = [&[DWORD][..], &eisa_id(b"PNP0A03")].concat();
        let mut body = [name(b"_HID", &hid), name(b"_ADR", &[ZERO]), name(b"_BBN", &[ZERO])].concat();
        if !routes.is_empty() {
            body.extend(name(b"_CRS", &buffer(&windows())));
            body.extend(name(b"PPRT", &routing(routes, |route| route.irq)));
            body.extend(name(b"APRT", &routing(routes, |route| route.ioapic_pin)));
            // Method (_PRT, 0) { If (\PICM) { Return (APRT) } Return (PPRT) }
            let with_ioapic = sized(&[&[ROOT][..], b"PICM", &[RETURN], b"APRT"].concat());
            let method = [&b"_PRT"[..], &[0, IF], &with_ioapic, &[RETURN], b"PPRT"].concat();
            body.push(METHOD);
            body.extend(sized(&method));
        }
        device(b"PC00", &body)
    }

    /// `PNP0C02`: the extended configuration window is nobody else's (PCI Firmware 3.0, 4.1.2).
    fn motherboard() -> Vec<u8> {
        let hid = [&[DWORD][..], &eisa_id(b"PNP0C02")].concat();
        let window = [ECFG_BASE as u32, ECFG_SIZE as u32].map(u32::to_le_bytes);
        // A 32-bit fixed memory range, read-only (6.4.3.4).
        let resources = [&[0x86, 9, 0, 0][..], window.as_flattened(), &END].concat();
        device(b"MBRD", &[name(b"_HID", &hid), name(b"_CRS", &buffer(&resources))].concat())
    }

    /// `_PRT` (6.2.13): for INTA of each slot the interrupt, without a link device.
    fn routing(routes: &[Route], interrupt: fn(&Route) -> u8) -> Vec<u8> {
        const EVERY_FUNCTION: u32 = 0xffff;
        let entry = |route: &Route| {
            let address = u32::from(route.slot) << 16 | EVERY_FUNCTION;
            let values = [&[DWORD][..], &address.to_le_bytes(), &[ZERO, ZERO, BYTE, interrupt(route)]].concat();
            package(4, &values)
        };
        package(routes.len() as u8, &routes.iter().flat_map(entry).collect::<Vec<u8>>())
    }

    /// The end of a list of resources (6.4.2.9).
    const END: [u8; 2] = [0x79, 0];

    /// What the host bridge passes on (6.4.3.5): buses, ports but for those of configuration, memory below its window.
    fn windows() -> Vec<u8> {
        const MEMORY: u8 = 0;
        const IO: u8 = 1;
        const BUS: u8 = 2;
        const FIXED: u8 = 0b1100;
        const WHOLE_RANGE: u8 = 0b11;
        const READ_WRITE: u8 = 1;
        let word = |kind, of_kind, first: u16, last: u16| {
            let fields = [0, first, last, 0, (last - first).wrapping_add(1)].map(u16::to_le_bytes);
            [&[0x88, 13, 0, kind, FIXED, of_kind][..], fields.as_flattened()].concat()
        };
        let (first, last) = (MEMORY_BASE as u32, ECFG_BASE as u32 - 1);
        let memory = [0, first, last, 0, last - first + 1].map(u32::to_le_bytes);
        [
            word(BUS, 0, 0, 0xff),
            // CONFIG_ADDRESS and CONFIG_DATA are the bridge's own (6.4.2.5).
            vec![0x47, 1, 0xf8, 0x0c, 0xf8, 0x0c, 1, 8],
            word(IO, WHOLE_RANGE, 0, 0xcf7),
            word(IO, WHOLE_RANGE, 0xd00, 0xffff),
            [&[0x87, 23, 0, MEMORY, FIXED, READ_WRITE][..], memory.as_flattened()].concat(),
            END.to_vec(),
        ]
        .concat()
    }

    fn device(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&[EXT, DEVICE][..], &sized(&[name, body].concat())].concat()
    }

    fn buffer(bytes: &[u8]) -> Vec<u8> {
        let len = u8::try_from(bytes.len()).expect("no list of resources of ours has 256 bytes");
        [&[BUFFER][..], &sized(&[&[BYTE, len][..], bytes].concat())].concat()
    }

    fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
        [&[NAME][..], name, value].concat()
    }

    fn package(elements: u8, values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![PACKAGE];
        bytes.extend(sized(&[&[elements][..], values].concat()));
        bytes
    }

    /// The contents with their `PkgLength` before them, which counts itself (ACPI 20.2.4).
    pub(super) fn sized(contents: &[u8]) -> Vec<u8> {
        let one_byte = contents.len() + 1;
        let mut bytes = if one_byte < 1 << 6 {
            vec![one_byte as u8]
        } else {
            let total = contents.len() + 2;
            assert!(total < 1 << 12, "no package of ours is longer than 4 KiB");
            vec![1 << 6 | (total & 0xf) as u8, (total >> 4) as u8]
        };
        bytes.extend(contents);
        bytes
    }

    /// `EisaId` (ACPI 19.3.4): three letters of 5 bits and four hexadecimal digits, big-endian.
    pub(super) fn eisa_id(id: &[u8; 7]) -> [u8; 4] {
        let letters = id[..3].iter().fold(0_u32, |value, letter| value << 5 | u32::from(letter - 0x40));
        let digit = |byte: u8| char::from(byte).to_digit(16).expect("the IDs of this module end in four digits");
        let digits = id[3..].iter().fold(0, |value, &byte| value << 4 | digit(byte));
        (letters << 16 | digits).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sum;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Guest memory as a guest sees it: tables by address.
    fn memory(vcpus: u16) -> BTreeMap<u64, Vec<u8>> {
        build(Machine { vcpus, hpet_capabilities: 0x8086_a701, routes: &[] }).into_iter().collect()
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")).into()
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
    }

    fn checked(memory: &BTreeMap<u64, Vec<u8>>, at: u64, signature: &[u8; 4]) -> Vec<u8> {
        let table = memory[&at].clone();
        assert_eq!(&table[..4], signature);
        assert_eq!(word(&table, 4) as usize, table.len());
        assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(signature));
        table
    }

    #[test]
    fn a_guest_finds_every_table() {
        let memory = memory(4);
        let rsdp = &memory[&0xf2400];
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp), rsdp.len()), (&b"RSD PTR "[..], 0, 0, 36));
        let rsdt = checked(&memory, word(rsdp, 16), b"RSDT");
        let xsdt = checked(&memory, long(rsdp, 24), b"XSDT");
        let from_rsdt: Vec<u64> = (36..rsdt.len()).step_by(4).map(|at| word(&rsdt, at)).collect();
        let from_xsdt: Vec<u64> = (36..xsdt.len()).step_by(8).map(|at| long(&xsdt, at)).collect();
        assert_eq!(from_rsdt, from_xsdt);
        for (at, signature) in from_xsdt.iter().zip([b"APIC", b"FACP", b"HPET", b"MCFG"]) {
            checked(&memory, *at, signature);
        }
        let fadt = checked(&memory, from_xsdt[1], b"FACP");
        assert_eq!(fadt.len(), 268);
        assert_eq!((word(&fadt, 36), word(&fadt, 40)), (long(&fadt, 132), long(&fadt, 140)));
        assert_eq!([48, 56, 64, 76].map(|at| word(&fadt, at)), [0xb2, 0x400, 0x404, 0x408]);
        assert_eq!((fadt[46], fadt[116], long(&fadt, 120), fadt[128]), (9, 1, 0xcf9, 6));
        assert_eq!((long(&fadt, 152), long(&fadt, 176), long(&fadt, 212)), (0x400, 0x404, 0x408));
        assert_eq!(&memory[&word(&fadt, 36)][..4], b"FACS");
        assert_eq!(memory[&word(&fadt, 36)].len(), 64);
        checked(&memory, word(&fadt, 40), b"DSDT");
    }

    proptest! {
        #[test]
        fn the_madt_has_an_entry_for_every_vcpu(vcpus in 1_u16..=1024) {
            let memory = memory(vcpus);
            let madt = checked(&memory, 0xf2500, b"APIC");
            let (mut apic_ids, mut counts) = (Vec::new(), [0; 11]);
            let mut rest = &madt[44..];
            while let [kind, len, entry @ ..] = rest {
                counts[usize::from(*kind)] += 1;
                match kind {
                    0 => {
                        prop_assert_eq!(word(entry, 2), 1, "enabled");
                        prop_assert!(entry[1] < 255, "no broadcast");
                        apic_ids.push(u64::from(entry[1]));
                    }
                    9 => {
                        prop_assert_eq!((*len, word(entry, 6)), (16, 1), "enabled");
                        prop_assert!(word(entry, 2) >= 255);
                        apic_ids.push(word(entry, 2));
                    }
                    _ => {}
                }
                rest = &rest[usize::from(*len)..];
            }
            prop_assert_eq!(apic_ids, (0..u64::from(vcpus)).collect::<Vec<_>>());
            let (low, high) = (usize::from(vcpus.min(255)), usize::from(vcpus.saturating_sub(255)));
            prop_assert_eq!(counts, [low, 1, 2, 0, 1, 0, 0, 0, 0, high, usize::from(high > 0)]);
        }

        #[test]
        fn tables_do_not_overlap_and_stay_below_1_mib(vcpus in 1_u16..=1024) {
            let mut end = 0xf2400;
            for (at, table) in memory(vcpus) {
                prop_assert!(at >= end);
                end = at + table.len() as u64;
            }
            prop_assert!(end <= 0x10_0000);
        }

        #[test]
        fn package_lengths_count_themselves(len in 0_usize..4000) {
            let bytes = aml::sized(&vec![0; len]);
            let total = match bytes[0] >> 6 {
                0 => usize::from(bytes[0]),
                _ => usize::from(bytes[0] & 0xf) | usize::from(bytes[1]) << 4,
            };
            prop_assert_eq!(total, bytes.len());
        }
    }

    #[test]
    fn s5_says_5() {
        let aml = aml::definitions(&[]);
        assert_eq!(aml[..12], [0x08, b'\\', b'_', b'S', b'5', b'_', 0x12, 5, 2, 0x0a, 5, 0]);
        assert_eq!(aml::eisa_id(b"PNP0A03"), [0x41, 0xd0, 0x0a, 0x03]);
    }
}
