//! The report port: what the harness hears of the guest.

#[path = "../../../vmm/src/trace/report_port.rs"]
#[allow(dead_code, reason = "the constants are shared; no guest uses all of them")]
mod report_port;

pub(crate) use report_port::*;

use crate::port;

/// Says `code`, with the low 24 bits of `payload`.
pub(crate) fn report(code: u8, payload: u32) {
    port::write_u32(REPORT_PORT, u32::from(code) << 24 | payload & 0xff_ffff);
}
