//! The ACPI tables: the CPUs from the MADT, two ports from the FADT (ACPI 5.2).

use crate::memory::{read, sums_to_zero};
use crate::topology::{List, scan};
use crate::{pm_timer, power};

/// Length of the header that every table begins with.
const HEADER: u32 = 36;
/// No table is longer; bhyve's are below 4 KiB.
const MAX_TABLE: u32 = 0x1_0000;

/// Adds the CPUs of the MADT to `list`; `false` when there is no (valid) MADT. Uses the ports of the FADT, if there is one.
pub(crate) fn find(list: &mut List) -> bool {
    let Some(root) = scan(*b"RSD ", is_rsdp).and_then(Root::from_rsdp) else { return false };
    if let Some(fadt) = root.find(*b"FACP") {
        use_ports(fadt);
    }
    let Some(madt) = root.find(*b"APIC") else { return false };
    add_cpus(madt, list);
    true
}

/// The signature goes on, and the part that ACPI 1.0 had adds up (ACPI 5.2.5.3).
fn is_rsdp(at: u32) -> bool {
    read::<u32>(at + 4) == u32::from_le_bytes(*b"PTR ") && sums_to_zero(at, 20)
}

/// A table whose length and sum are right, by its address and length.
#[derive(Clone, Copy)]
struct Table {
    address: u32,
    len: u32,
}

impl Table {
    fn at(address: u32, signature: [u8; 4]) -> Option<Table> {
        let len = read::<u32>(address + 4);
        let valid = read::<u32>(address) == u32::from_le_bytes(signature)
            && (HEADER..=MAX_TABLE).contains(&len)
            && sums_to_zero(address, len);
        valid.then_some(Table { address, len })
    }
}

/// The table of tables: the XSDT, or the RSDT where there is none.
struct Root {
    table: Table,
    /// Bytes in an entry. The upper half of an XSDT's is 0: the tables are below 4 GiB.
    entry: u32,
}

impl Root {
    fn from_rsdp(rsdp: u32) -> Option<Root> {
        let revision = read::<u8>(rsdp + 15);
        let xsdt = if revision >= 2 { u32::try_from(read::<u64>(rsdp + 24)).ok().filter(|&at| at != 0) } else { None };
        match xsdt.and_then(|xsdt| Table::at(xsdt, *b"XSDT")) {
            Some(table) => Some(Root { table, entry: 8 }),
            None => Table::at(read(rsdp + 16), *b"RSDT").map(|table| Root { table, entry: 4 }),
        }
    }

    fn find(&self, signature: [u8; 4]) -> Option<Table> {
        let end = self.table.address + self.table.len;
        let mut at = self.table.address + HEADER;
        while at + self.entry <= end {
            if let Some(table) = Table::at(read(at), signature) {
                return Some(table);
            }
            at += self.entry;
        }
        None
    }
}

/// FADT: PM1a_CNT_BLK and PM_TMR_BLK, as they have been since ACPI 1.0 (ACPI 5.2.9).
fn use_ports(fadt: Table) {
    if fadt.len < 80 {
        return;
    }
    for (offset, set) in [(64, power::set_pm1a_control as fn(u16)), (76, pm_timer::set_port)] {
        match u16::try_from(read::<u32>(fadt.address + offset)) {
            Ok(port) if port != 0 => set(port),
            _ => {}
        }
    }
}

/// MADT: types 0 (local APIC) and 9 (local x2APIC), those that are enabled (ACPI 5.2.12).
fn add_cpus(madt: Table, list: &mut List) {
    const ENABLED: u32 = 1;
    let end = madt.address + madt.len;
    let mut at = madt.address + HEADER + 8;
    while at + 2 <= end {
        let (kind, len) = (read::<u8>(at), u32::from(read::<u8>(at + 1)));
        if len < 2 || at + len > end {
            break;
        }
        match (kind, len) {
            (0, 8..) if read::<u32>(at + 4) & ENABLED != 0 => list.add(u32::from(read::<u8>(at + 3))),
            (9, 16..) if read::<u32>(at + 8) & ENABLED != 0 => list.add(read(at + 4)),
            _ => {}
        }
        at += len;
    }
}
