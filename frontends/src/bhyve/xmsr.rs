//! MSRs that bhyve emulates because guests touch them (`xmsr.c`).
//!
//! bhyve asks the host's CPUID which vendor's list applies. The lists have no number in common but the microcode revision,
//! so here both apply.

/// IA32_PLATFORM_ID.
const PLATFORM_ID: u32 = 0x17;
/// IA32_FEATURE_CONTROL.
const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_BIOS_UPDT_TRIG.
const BIOS_UPDT_TRIG: u32 = 0x79;
/// IA32_BIOS_SIGN_ID: the microcode revision.
const BIOS_SIGN: u32 = 0x8b;
/// MSR_RAPL_POWER_UNIT.
const RAPL_POWER_UNIT: u32 = 0x606;
/// MSR_PKG, DRAM, PP0 and PP1_ENERGY_STATUS.
const ENERGY_STATUS: [u32; 4] = [0x611, 0x619, 0x639, 0x641];
/// Performance counters of Sandy Bridge's uncore.
const UNCORE_PMC: [u32; 2] = [0xd04, 0xc24];
/// AMD's hardware configuration.
const HWCR: u32 = 0xc001_0015;
/// AMD's northbridge, load-store and instruction cache configuration.
const AMD_CFG: [u32; 3] = [0xc001_001f, 0xc001_1020, 0xc001_1021];
/// AMD's P-state limit, control, status and first definition.
const PSTATE: [u32; 4] = [0xc001_0061, 0xc001_0062, 0xc001_0063, 0xc001_0064];

/// AMD's performance event selectors and counters.
fn is_amd_pmc(code: u32) -> bool {
    (0xc001_0000..0xc001_0008).contains(&code)
}

/// `emulate_rdmsr`: the value, or `None` for a register that is not emulated.
pub(super) fn rdmsr(code: u32) -> Option<u64> {
    const FEATURE_CONTROL_LOCK: u64 = 1;
    const TSC_FREQ_SEL: u64 = 1 << 24;
    /// As on a Core i5-2400: 61 µJ, 977 µs, 125 mW.
    const RAPL_UNITS: u64 = 0x000a_1003;
    match code {
        FEATURE_CONTROL => Some(FEATURE_CONTROL_LOCK),
        RAPL_POWER_UNIT => Some(RAPL_UNITS),
        HWCR => Some(TSC_FREQ_SEL),
        PLATFORM_ID | BIOS_SIGN => Some(0),
        _ if ENERGY_STATUS.contains(&code) || AMD_CFG.contains(&code) => Some(0),
        _ if PSTATE.contains(&code) || is_amd_pmc(code) => Some(0),
        _ => None,
    }
}

/// `emulate_wrmsr`: whether the write is swallowed.
pub(super) fn wrmsr(code: u32) -> bool {
    matches!(code, BIOS_UPDT_TRIG | BIOS_SIGN | HWCR)
        || UNCORE_PMC.contains(&code)
        || AMD_CFG.contains(&code)
        || code == PSTATE[1]
        || is_amd_pmc(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2apic_registers_are_not_among_them() {
        for code in 0x800..0x900 {
            assert_eq!(rdmsr(code), None);
            assert!(!wrmsr(code));
        }
    }

    #[test]
    fn registers_that_kernels_probe() {
        assert_eq!(rdmsr(BIOS_SIGN), Some(0));
        assert_eq!(rdmsr(FEATURE_CONTROL), Some(1));
        assert!(wrmsr(BIOS_SIGN));
        assert!(!wrmsr(FEATURE_CONTROL));
    }
}
