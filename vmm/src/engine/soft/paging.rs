//! Address translation: no paging, 32-bit, PAE, 4-level and 5-level paging (SDM 3A chapter 4).

use super::features::Feature;
use super::mem::{Bus, Translation, context};
use super::state::{Cpu, Raised, Step, Stop, cr0, cr4, efer, vector};

/// Page-table entry: present.
const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
/// Accessed.
const A: u64 = 1 << 5;
/// Dirty.
const D: u64 = 1 << 6;
/// Page size: the entry maps a page instead of naming a table.
const PS: u64 = 1 << 7;
/// Global, in an entry that maps a page.
const G: u64 = 1 << 8;
/// Execute-disable.
const XD: u64 = 1 << 63;
/// Address bits of an 8-byte entry.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Reserved low bits of a page-directory-pointer-table entry of PAE paging (SDM 3A table 4-8).
const PDPTE_RESERVED: u64 = 0x1E6;

/// Error code of a page fault.
pub(super) mod error {
    pub(in super::super) const PRESENT: u32 = 1 << 0;
    pub(in super::super) const WRITE: u32 = 1 << 1;
    pub(in super::super) const USER: u32 = 1 << 2;
    pub(in super::super) const RESERVED: u32 = 1 << 3;
    pub(in super::super) const FETCH: u32 = 1 << 4;
}

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    Fetch,
}

/// An entry on the way to a page, for its accessed and dirty bits.
#[derive(Clone, Copy, Default)]
struct Visited {
    gpa: u64,
    entry: u64,
}

/// A walk that arrived.
struct Walk {
    to: Translation,
    visited: [Visited; 5],
    depth: usize,
}

/// The page-directory-pointer-table entries of PAE paging; all ones where there is no memory.
fn read_pdptes(bus: &Bus, cr3: u64) -> [u64; 4] {
    let table = cr3 & 0xFFFF_FFE0;
    std::array::from_fn(|i| bus.read_physical(table + 8 * i as u64).unwrap_or(u64::MAX))
}

impl Cpu {
    /// Finds where a linear address leads; the error is a page fault's error code.
    fn walk(&self, bus: &Bus, linear: u64, purpose: Purpose, context: u64) -> Result<Walk, u32> {
        let to = Translation { gpa: linear & 0xFFFF_FFFF & self.physical_mask, shift: 12, global: false };
        let mut walk = Walk { to, visited: [Visited::default(); 5], depth: 0 };
        if self.cr0 & cr0::PG == 0 {
            return Ok(walk);
        }
        let user_access = context & context::USER != 0;
        let pae = self.cr4 & cr4::PAE != 0;
        let nx_enabled = pae && self.efer & efer::NXE != 0;
        let smep = self.cr4 & cr4::SMEP != 0;
        let mut fault = if user_access { error::USER } else { 0 };
        match purpose {
            Purpose::Read => {}
            Purpose::Write => fault |= error::WRITE,
            Purpose::Fetch if nx_enabled || smep => fault |= error::FETCH,
            Purpose::Fetch => {}
        }

        // Rights are what every level grants.
        let (mut user, mut writable, mut executable) = (true, true, true);
        let (entry_bytes, index_bits) = if pae { (8, 9) } else { (4, 10) };
        let (mut table, mut shift) = match (pae, self.long) {
            (true, true) => (self.cr3 & ADDRESS & self.physical_mask, if self.cr4 & cr4::LA57 != 0 { 48 } else { 39 }),
            (true, false) => {
                // The entry is in a register, and holds no rights.
                let pdpte = self.pdpte[(linear >> 30 & 3) as usize];
                if pdpte & P == 0 {
                    return Err(fault);
                }
                (pdpte & ADDRESS & self.physical_mask, 21)
            }
            (false, _) => (self.cr3 & 0xFFFF_F000, 22),
        };
        let leaf = loop {
            let index = linear >> shift & ((1 << index_bits) - 1);
            let gpa = table + index * entry_bytes;
            // Where there is no memory the bus floats high.
            let entry = if pae {
                bus.read_physical::<u64>(gpa).unwrap_or(u64::MAX)
            } else {
                u64::from(bus.read_physical::<u32>(gpa).unwrap_or(u32::MAX))
            };
            if entry & P == 0 {
                return Err(fault);
            }
            let large = shift != 12
                && entry & PS != 0
                && match shift {
                    21 => true,
                    22 => self.cr4 & cr4::PSE != 0,
                    30 => self.long && self.features.has(Feature::Page1G),
                    _ => false,
                };
            if self.reserved_bits(entry, pae, shift, large, nx_enabled) {
                return Err(fault | error::PRESENT | error::RESERVED);
            }
            user &= entry & U != 0;
            writable &= entry & W != 0;
            executable &= entry & XD == 0 || !pae;
            walk.visited[walk.depth] = Visited { gpa, entry };
            walk.depth += 1;
            if large || shift == 12 {
                break entry;
            }
            table = entry & ADDRESS;
            shift -= index_bits;
        };

        let allowed = match purpose {
            Purpose::Fetch if !executable => false,
            Purpose::Fetch | Purpose::Read => user || !user_access,
            Purpose::Write => (user || !user_access) && (writable || !user_access && self.cr0 & cr0::WP == 0),
        };
        // SMEP and SMAP keep the supervisor away from user pages.
        let prevented = user
            && !user_access
            && match purpose {
                Purpose::Fetch => smep,
                Purpose::Read | Purpose::Write => context & context::SMAP != 0 && self.cr4 & cr4::SMAP != 0,
            };
        if !allowed || prevented {
            return Err(fault | error::PRESENT);
        }
        let offset_mask = (1 << shift) - 1;
        let page = match shift {
            // A 4-Mbyte page's address goes on in bits 20:13 (PSE-36).
            22 => leaf & 0xFFC0_0000 | (leaf >> 13 & 0xFF) << 32,
            _ => leaf & ADDRESS & !offset_mask,
        };
        walk.to = Translation {
            gpa: (page | linear & offset_mask) & self.physical_mask,
            shift,
            global: leaf & G != 0 && self.cr4 & cr4::PGE != 0,
        };
        Ok(walk)
    }

    /// Whether a present entry has a reserved bit set (SDM 3A 4.3 to 4.5, figures of the formats).
    fn reserved_bits(&self, entry: u64, pae: bool, shift: u32, large: bool, nx_enabled: bool) -> bool {
        if !pae {
            // An entry that maps a 4-Mbyte page has address bits from 32 up in bits 13 to 20, as far as there are any: PSE-36
            // addresses at most 40 bits. What is above them up to bit 21 is reserved.
            let address_bits =
                if self.features.has(Feature::Pse36) { self.physical_mask.count_ones().min(40) } else { 32 };
            let reserved = (1 << 22) - (1_u64 << (13 + address_bits - 32));
            return large && entry & reserved != 0;
        }
        let mut reserved = ADDRESS & !self.physical_mask;
        if !nx_enabled {
            reserved |= XD;
        }
        if !self.long {
            reserved |= 0x7FF0_0000_0000_0000;
        }
        match (shift, large) {
            (48 | 39, _) | (30, false) => reserved |= PS,
            (30 | 21, true) => reserved |= ((1 << shift) - 1) & !0x1FFF,
            _ => {}
        }
        entry & reserved != 0
    }

    /// Whether these control registers, and the present EFER, make PAE paging, which has page-directory-pointer-table entries
    /// in registers.
    pub(super) fn uses_pdptes(&self, cr0: u64, cr4: u64) -> bool {
        cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && self.efer & efer::LME == 0
    }

    /// Loads the page-directory-pointer-table entries that CR3 will point to; #GP(0) if a present one has a reserved bit set
    /// (SDM 3A 4.4.1).
    pub(super) fn load_pdptes(&mut self, bus: &Bus, cr3: u64) -> Step {
        let entries = read_pdptes(bus, cr3);
        let reserved = !(ADDRESS & self.physical_mask | 0xFFF) | PDPTE_RESERVED;
        if entries.iter().any(|entry| entry & P != 0 && entry & reserved != 0) {
            return Err(self.gp(0));
        }
        self.pdpte = entries;
        self.pdptes_stale = false;
        Ok(())
    }

    /// Loads them after control registers were set from outside, where nothing can fault.
    pub(super) fn settle_pdptes(&mut self, bus: &Bus) {
        if std::mem::take(&mut self.pdptes_stale) && self.uses_pdptes(self.cr0, self.cr4) {
            self.pdpte = read_pdptes(bus, self.cr3);
        }
    }

    /// Translates a linear address and sets accessed and dirty bits; a failure is a page fault.
    pub(super) fn resolve(
        &mut self,
        bus: &mut Bus,
        linear: u64,
        purpose: Purpose,
        context: u64,
    ) -> Result<Translation, Stop> {
        let walk = match self.walk(bus, linear, purpose, context) {
            Ok(walk) => walk,
            Err(error_code) => {
                self.raised = Raised { vector: vector::PF, error_code: Some(error_code), address: linear };
                return Err(Stop::Fault);
            }
        };
        let pae = self.cr4 & cr4::PAE != 0;
        for (level, visited) in walk.visited[..walk.depth].iter().enumerate() {
            let dirty = purpose == Purpose::Write && level + 1 == walk.depth;
            let updated = visited.entry | A | if dirty { D } else { 0 };
            match (updated != visited.entry, pae) {
                (false, _) => {}
                (true, true) => bus.write_physical(visited.gpa, updated),
                (true, false) => bus.write_physical(visited.gpa, updated as u32),
            }
        }
        Ok(walk.to)
    }

    /// Translates a linear address for reading at the present privilege, changing nothing.
    pub(super) fn peek_translation(&self, bus: &Bus, linear: u64) -> Option<u64> {
        if self.is_64() && !self.canonical(linear) {
            return None;
        }
        // SMAP does not count: the question is asked by the hypervisor, not by the guest.
        let context = self.data_context & !context::SMAP;
        self.walk(bus, linear & self.linear_mask, Purpose::Read, context).ok().map(|walk| walk.to.gpa)
    }
}
