//! The MP configuration table (MP specification 1.4, chapter 4).

use crate::memory::{read, sums_to_zero};
use crate::topology::{List, scan};

/// Length of the configuration table's header.
const HEADER: u32 = 44;
/// Entry type: processor.
const PROCESSOR: u8 = 0;
/// Length of a processor entry; every other has 8 bytes.
const PROCESSOR_LEN: u32 = 20;
/// CPU flags: usable.
const ENABLED: u8 = 1;

/// Adds the CPUs of the table to `list`; `false` when there is no (valid) one.
pub(crate) fn find(list: &mut List) -> bool {
    let adds_up = |pointer| sums_to_zero(pointer, 16 * u32::from(read::<u8>(pointer + 8)));
    let Some(pointer) = scan(*b"_MP_", adds_up) else { return false };
    let table = read::<u32>(pointer + 4);
    let len = u32::from(read::<u16>(table + 4));
    if read::<u32>(table) != u32::from_le_bytes(*b"PCMP") || len < HEADER || !sums_to_zero(table, len) {
        return false;
    }
    let mut at = table + HEADER;
    while at < table + len {
        if read::<u8>(at) == PROCESSOR {
            if read::<u8>(at + 3) & ENABLED != 0 {
                list.add(u32::from(read::<u8>(at + 1)));
            }
            at += PROCESSOR_LEN;
        } else {
            at += 8;
        }
    }
    true
}
