//! Which CPUs there are: the firmware says so in the ACPI MADT, or in an MP configuration table.

use crate::broken::broken;
use crate::cpu::{CPU_NUMBER, CPUS, Cpu};
use crate::memory::read;
use crate::report::{BROKEN_APIC_ID_TOO_BIG, BROKEN_NO_TABLES, BROKEN_TOO_MANY_CPUS};
use crate::{acpi, mp_table};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Who told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The ACPI MADT.
    Madt,
    /// The MP configuration table.
    MpTable,
}

/// The CPUs: the BSP, then the APs in the order of the table.
pub(crate) struct Topology {
    /// Where they were found.
    pub(crate) source: Source,
    cpus: usize,
}

impl Topology {
    /// Finds the CPUs, and prepares each for being started. `bsp` is the BSP's own APIC ID.
    pub(crate) fn find(bsp: u32) -> Topology {
        let mut list = List { bsp, cpus: 1 };
        let source = if acpi::find(&mut list) {
            Source::Madt
        } else if mp_table::find(&mut list) {
            Source::MpTable
        } else {
            broken(BROKEN_NO_TABLES)
        };
        FOUND.store(list.cpus, Ordering::Release);
        Topology { source, cpus: list.cpus }
    }

    /// How many CPUs there are, the BSP among them.
    pub(crate) fn cpus(&self) -> u32 {
        self.cpus as u32
    }

    /// The APs.
    pub(crate) fn aps(&self) -> &'static [Cpu] {
        aps()
    }
}

/// How many CPUs were found.
static FOUND: AtomicUsize = AtomicUsize::new(0);

/// The APs that were found.
pub fn aps() -> &'static [Cpu] {
    CPUS.get(1..FOUND.load(Ordering::Acquire)).unwrap_or_default()
}

/// The CPUs found so far.
pub(crate) struct List {
    bsp: u32,
    cpus: usize,
}

impl List {
    /// Adds an enabled CPU of the table. The BSP, which is in it too, is there already, and a CPU may be there as a local
    /// APIC and as a local x2APIC.
    pub(crate) fn add(&mut self, apic_id: u32) {
        let Some(number) = CPU_NUMBER.get(apic_id as usize) else { broken(BROKEN_APIC_ID_TOO_BIG) };
        if apic_id == self.bsp || number.load(Ordering::Relaxed) != 0 {
            return;
        }
        let Some(cpu) = CPUS.get(self.cpus) else { broken(BROKEN_TOO_MANY_CPUS) };
        cpu.reset(apic_id);
        number.store(self.cpus as u16, Ordering::Release);
        self.cpus += 1;
    }
}

/// Looks for a structure of the firmware on a 16-byte boundary: `valid` sees the addresses that begin with `signature`.
///
/// The BIOS area comes first because the structures are there nearly always, its upper half before its lower one, then
/// the first KiB of the extended BIOS data area and the last KiB of base memory (ACPI 5.2.5.1; MP specification 4).
pub(crate) fn scan(signature: [u8; 4], valid: fn(u32) -> bool) -> Option<u32> {
    const EBDA_SEGMENT: u32 = 0x40e;
    const BASE_MEMORY_KIB: u32 = 0x413;
    let signature = u32::from_le_bytes(signature);
    let scan_kib = |start: u32| {
        let usable = (0x400..=0x9_fc00).contains(&start);
        if usable { scan_area(start & !15, 0x400, signature, valid) } else { None }
    };
    scan_area(0xf_0000, 0x1_0000, signature, valid)
        .or_else(|| scan_area(0xe_0000, 0x1_0000, signature, valid))
        .or_else(|| scan_kib(u32::from(read::<u16>(EBDA_SEGMENT)) << 4))
        .or_else(|| scan_kib((u32::from(read::<u16>(BASE_MEMORY_KIB)) << 10).saturating_sub(0x400)))
}

/// Thousands of steps on a guest that may run at 2 MIPS: four at a time, in two instructions each.
fn scan_area(start: u32, len: u32, signature: u32, valid: fn(u32) -> bool) -> Option<u32> {
    let begins = |at| read::<u32>(at) == signature;
    let mut at = start;
    while at < start + len {
        if begins(at) || begins(at + 16) || begins(at + 32) || begins(at + 48) {
            let found = (at..at + 64).step_by(16).find(|&at| begins(at) && valid(at));
            if found.is_some() {
                return found;
            }
        }
        at += 64;
    }
    None
}
