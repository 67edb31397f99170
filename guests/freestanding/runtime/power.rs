//! Off.

use crate::cpu;
use crate::port;
use core::sync::atomic::{AtomicU16, Ordering};

/// PM1 control: enter the sleeping state (ACPI 4.8.3.2.1).
const SLP_EN: u16 = 1 << 13;
/// PM1 control: soft off. The `\_S5` package of the DSDT would say so; bhyve's says 5.
const SLP_TYP_S5: u16 = 5 << 10;

/// Where PM1a control is; bhyve's place until the FADT says otherwise.
static PM1A_CONTROL: AtomicU16 = AtomicU16::new(0x404);

/// Uses PM1a control at this port (PM1a_CNT_BLK of the FADT).
pub(crate) fn set_pm1a_control(port: u16) {
    PM1A_CONTROL.store(port, Ordering::Relaxed);
}

/// QEMU's `isa-debug-exit`.
const DEBUG_EXIT: u16 = 0xf4;

/// Ends the machine through the debug-exit device, which makes of `value` a status of twice as much and one; powers it off where there
/// is none.
pub(crate) fn debug_exit(value: u32) -> ! {
    port::write_u32(DEBUG_EXIT, value);
    off()
}

/// Powers the machine off. Where that has no effect, the CPU stops.
pub(crate) fn off() -> ! {
    port::write_u16(PM1A_CONTROL.load(Ordering::Relaxed), SLP_TYP_S5 | SLP_EN);
    cpu::stop()
}
