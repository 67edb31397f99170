//! The CPU's local APIC, in whichever mode the firmware left it (SDM 3A chapter 11).

use crate::broken::broken;
use crate::cpu::{fence_before_wrmsr, rdmsr, wrmsr};
use crate::interrupts::SPURIOUS;
use crate::pm_timer;
use crate::report::BROKEN_IPI_PENDING;

/// The MSR with the mode of the local APIC (SDM 3A 11.4.4).
pub(crate) const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_APIC_BASE: this is the BSP.
pub(crate) const APIC_BASE_BSP: u32 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub(crate) const APIC_BASE_EXTD: u32 = 1 << 10;
/// Where the registers are in xAPIC mode. Nobody moves them.
pub(crate) const XAPIC_BASE: u32 = 0xfee0_0000;
/// Offset of the ID register; the ID is in bits 31:24.
pub(crate) const XAPIC_ID: u32 = 0x20;
/// The ID register in x2APIC mode; the ID is all 32 bits.
pub(crate) const X2APIC_ID: u32 = X2APIC_MSR + (XAPIC_ID >> 4);

const X2APIC_MSR: u32 = 0x800;

/// The registers that a guest uses, by their offset in xAPIC mode. In x2APIC mode the MSR is 800H + offset / 16.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Register {
    Id = XAPIC_ID,
    Version = 0x30,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    LogicalDestination = 0xd0,
    DestinationFormat = 0xe0,
    SpuriousInterruptVector = 0xf0,
    ErrorStatus = 0x280,
    InterruptCommandLow = 0x300,
    InterruptCommandHigh = 0x310,
    LvtTimer = 0x320,
    LvtThermal = 0x330,
    LvtPerformance = 0x340,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    TimerInitialCount = 0x380,
    TimerDivide = 0x3e0,
}

/// SVR: the local APIC is enabled by software (SDM 3A 11.9).
const SVR_ENABLE: u32 = 1 << 8;
/// ICR: delivery is pending. xAPIC mode only.
const ICR_PENDING: u32 = 1 << 12;
/// LVT: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT timer: periodic.
const LVT_TIMER_PERIODIC: u32 = 1 << 17;
/// Divide configuration: by 16.
const DIVIDE_BY_16: u32 = 0b0011;

/// How long an IPI may be pending, in µs. Hardware takes about 20 (MP specification B.4).
const IPI_PENDING_US: u32 = 100_000;

/// The local APIC of the CPU that this code runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalApic {
    /// Registers in memory.
    XApic,
    /// Registers in MSRs.
    X2Apic,
}

impl LocalApic {
    /// Asks the CPU for the mode.
    pub(crate) fn of_this_cpu() -> LocalApic {
        if rdmsr(IA32_APIC_BASE) as u32 & APIC_BASE_EXTD != 0 { LocalApic::X2Apic } else { LocalApic::XApic }
    }

    fn read(self, register: Register) -> u32 {
        match self {
            // SAFETY: the registers of the local APIC are mapped and readable, and reading them has no side effect.
            LocalApic::XApic => unsafe { ((XAPIC_BASE + register as u32) as *const u32).read_volatile() },
            LocalApic::X2Apic => rdmsr(X2APIC_MSR + (register as u32 >> 4)) as u32,
        }
    }

    fn write(self, register: Register, value: u32) {
        match self {
            // SAFETY: the registers of the local APIC are mapped; no Rust object lives there.
            LocalApic::XApic => unsafe { ((XAPIC_BASE + register as u32) as *mut u32).write_volatile(value) },
            LocalApic::X2Apic => wrmsr(X2APIC_MSR + (register as u32 >> 4), u64::from(value)),
        }
    }

    /// The APIC ID.
    pub(crate) fn id(self) -> u32 {
        let id = self.read(Register::Id);
        match self {
            LocalApic::XApic => id >> 24,
            LocalApic::X2Apic => id,
        }
    }

    /// In xAPIC mode: sets the model of logical destinations (DFR) and the logical ID (LDR) (SDM 3A 11.6.2.2).
    pub(crate) fn set_logical(self, model: u32, id: u32) {
        self.write(Register::DestinationFormat, model);
        self.write(Register::LogicalDestination, id << 24);
    }

    /// Enables the local APIC, with nothing coming from its local sources.
    pub(crate) fn enable(self) {
        // Thermal (5) and performance (4) exist on later processors only, and x2APIC faults on those that do not exist.
        let last_lvt = self.read(Register::Version) >> 16 & 0xff;
        if last_lvt >= 5 {
            self.write(Register::LvtThermal, LVT_MASKED);
        }
        if last_lvt >= 4 {
            self.write(Register::LvtPerformance, LVT_MASKED);
        }
        self.write(Register::LvtTimer, LVT_MASKED);
        self.write(Register::LvtLint0, LVT_MASKED);
        self.write(Register::LvtLint1, LVT_MASKED);
        self.write(Register::LvtError, LVT_MASKED);
        self.write(Register::TaskPriority, 0);
        self.write(Register::SpuriousInterruptVector, SVR_ENABLE | u32::from(SPURIOUS));
    }

    /// Ends the interrupt in service.
    pub(crate) fn end_of_interrupt(self) {
        self.write(Register::EndOfInterrupt, 0);
    }

    /// Clears the error status, and reads it: a write latches what has happened since the last one (SDM 3A 11.5.3).
    pub(crate) fn clear_errors(self) -> u32 {
        self.write(Register::ErrorStatus, 0);
        self.read(Register::ErrorStatus)
    }

    /// Writes the ICR: in xAPIC mode the destination first, because the low half sends; in x2APIC mode at once.
    pub(crate) fn send(self, destination: u32, icr_low: u32) {
        match self {
            LocalApic::XApic => {
                self.write(Register::InterruptCommandHigh, destination << 24);
                self.write(Register::InterruptCommandLow, icr_low);
            }
            LocalApic::X2Apic => {
                // This WRMSR does not wait for the stores before it, as the one to uncached memory does (SDM 3A 11.12.3).
                fence_before_wrmsr();
                wrmsr(
                    X2APIC_MSR + (Register::InterruptCommandLow as u32 >> 4),
                    u64::from(destination) << 32 | u64::from(icr_low),
                );
            }
        }
    }

    /// Waits until the last IPI has been sent; in x2APIC mode there is nothing to wait for (SDM 3A 11.12.9).
    pub(crate) fn wait_sent(self) {
        let sent = || self.read(Register::InterruptCommandLow) & ICR_PENDING == 0;
        if self == LocalApic::XApic && !pm_timer::wait(IPI_PENDING_US, sent) {
            broken(BROKEN_IPI_PENDING);
        }
    }

    /// Starts the timer: `vector` after `count` times 16 ticks, once or again and again.
    pub(crate) fn start_timer(self, vector: u8, count: u32, periodic: bool) {
        let mode = if periodic { LVT_TIMER_PERIODIC } else { 0 };
        self.write(Register::TimerDivide, DIVIDE_BY_16);
        self.write(Register::LvtTimer, mode | u32::from(vector));
        self.write(Register::TimerInitialCount, count);
    }

    /// Stops the timer.
    pub(crate) fn stop_timer(self) {
        self.write(Register::LvtTimer, LVT_MASKED);
        self.write(Register::TimerInitialCount, 0);
    }
}
