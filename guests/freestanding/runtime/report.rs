//! The report port: what the harness hears of the guest.

#[path = "../../../vmm/src/trace/report_port.rs"]
#[allow(dead_code, reason = "the constants are shared; no guest uses all of them")]
mod report_port;

pub use report_port::*;

use crate::console::Line;
use crate::cpu::Cpu;
use crate::port;

/// Says `code`, with the low 24 bits of `payload`.
pub(crate) fn report(code: u8, payload: u32) {
    port::write_u32(REPORT_PORT, u32::from(code) << 24 | payload & 0xff_ffff);
}

/// Reports a test (`TEST_*`), about one CPU or about all; returns whether it passed.
pub fn test(test: u32, cpu: Option<&Cpu>, passed: bool) -> bool {
    report(if passed { TEST_PASSED } else { TEST_FAILED }, about(test, cpu.map(Cpu::apic_id)));
    let line = Line.text(test_name(test).unwrap_or_default());
    let line = if let Some(cpu) = cpu { line.text(", APIC ID ").decimal(cpu.apic_id()) } else { line };
    line.text(if passed { ": passed" } else { ": FAILED" }).end();
    passed
}

/// Reports what was seen (`SEEN_*`), about one CPU or about all.
pub fn seen(what: u32, cpu: Option<&Cpu>) {
    report(SEEN, about(what, cpu.map(Cpu::apic_id)));
    let line = Line.text("seen: ").text(seen_name(what).unwrap_or_default());
    let line = if let Some(cpu) = cpu { line.text(", APIC ID ").decimal(cpu.apic_id()) } else { line };
    line.end();
}
