//! Configuration of PCI's bus 0, functions 0, by configuration mechanism 1 (PCI 3.0, 3.2.2.3.2).

use crate::port;

/// Where the register is selected.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// The register that was selected.
pub const CONFIG_DATA: u16 = 0xcfc;
/// The bit of [`CONFIG_ADDRESS`] that makes accesses of [`CONFIG_DATA`] go there.
pub const CONFIG_ENABLE: u32 = 1 << 31;

/// Reads a register of the device in a slot; all ones when there is none.
pub fn read_config(slot: u32, register: u32) -> u32 {
    select(slot, register);
    port::read_u32(CONFIG_DATA)
}

/// Writes a register of the device in a slot.
pub fn write_config(slot: u32, register: u32, value: u32) {
    select(slot, register);
    port::write_u32(CONFIG_DATA, value);
}

fn select(slot: u32, register: u32) {
    port::write_u32(CONFIG_ADDRESS, CONFIG_ENABLE | slot << 11 | register);
}
