//! The local APIC of one vCPU (`vlapic.c`; SDM 3A chapter 11).
//!
//! One register file serves both modes: in xAPIC mode through MMIO at 0xFEE00000, in x2APIC mode through MSRs 0x800 to
//! 0x83F. What reaches beyond the vCPU's own interrupt state is returned as an [`Effect`]; an ICR write is handed out
//! undecided, since what becomes of it is what the kernel's versions differ in.
//!
//! Where FreeBSD is laxer than the manual in x2APIC mode (reserved registers read as 0, writes to read-only registers are
//! ignored, MSR accesses in xAPIC mode do nothing) the manual is followed: #GP(0).

mod destination;
mod icr;
mod timer;
mod vectors;

pub use destination::{Destination, LogicalId, calcdest};
pub use icr::Icr;

use super::GeneralProtection;
use crate::trace::DeliveryMode;
use serde::{Deserialize, Serialize};
use timer::Timer;
use vectors::Vectors;

/// `DEFAULT_APIC_BASE`: where the registers are in xAPIC mode; the page is 4 KiB.
pub const DEFAULT_APIC_BASE: u64 = 0xfee0_0000;

/// MSR IA32_APIC_BASE (SDM 3A 11.4.4).
pub const MSR_APIC_BASE: u32 = 0x1b;

const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const APIC_BASE_ENABLED: u64 = 1 << 11;

/// `VLAPIC_VERSION` 0x14, seven LVT entries, no suppression of EOI broadcasts (SDM 3A 11.4.8).
const VLAPIC_VERSION: u32 = 0x14 | 6 << 16;

/// APIC software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Vector, enable, and the focus check that nothing looks at.
const SVR_DEFINED: u32 = 0x3ff;

const DFR_FLAT: u32 = 0xffff_ffff;
const DFR_RESERVED: u32 = 0x0fff_ffff;

/// ESR: send illegal vector.
const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// ESR: receive illegal vector.
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;

/// Bits of the ICR that an x2APIC wants clear. Bit 12 is not among them: it is ignored, as in FreeBSD.
const ICR_RESERVED: u64 = 0xfff3_2000;

const LVT_VECTOR: u32 = 0xff;
const LVT_DELIVERY_MODE: u32 = 7 << 8;
const LVT_DELIVERY_STATUS: u32 = 1 << 12;
const LVT_POLARITY: u32 = 1 << 13;
const LVT_REMOTE_IRR: u32 = 1 << 14;
const LVT_TRIGGER: u32 = 1 << 15;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_PERIODIC: u32 = 1 << 17;

/// Offsets of the registers in the xAPIC page; an x2APIC MSR is 0x800 + offset / 16 (SDM 3A tables 11-1 and 11-6).
mod offset {
    pub(super) const ID: u16 = 0x020;
    pub(super) const VERSION: u16 = 0x030;
    pub(super) const TPR: u16 = 0x080;
    pub(super) const PPR: u16 = 0x0a0;
    pub(super) const EOI: u16 = 0x0b0;
    pub(super) const LDR: u16 = 0x0d0;
    pub(super) const DFR: u16 = 0x0e0;
    pub(super) const SVR: u16 = 0x0f0;
    pub(super) const ISR0: u16 = 0x100;
    pub(super) const ISR7: u16 = 0x170;
    pub(super) const TMR0: u16 = 0x180;
    pub(super) const TMR7: u16 = 0x1f0;
    pub(super) const IRR0: u16 = 0x200;
    pub(super) const IRR7: u16 = 0x270;
    pub(super) const ESR: u16 = 0x280;
    pub(super) const LVT_CMCI: u16 = 0x2f0;
    pub(super) const ICR_LOW: u16 = 0x300;
    pub(super) const ICR_HIGH: u16 = 0x310;
    pub(super) const LVT_TIMER: u16 = 0x320;
    pub(super) const LVT_THERMAL: u16 = 0x330;
    pub(super) const LVT_PMC: u16 = 0x340;
    pub(super) const LVT_LINT0: u16 = 0x350;
    pub(super) const LVT_LINT1: u16 = 0x360;
    pub(super) const LVT_ERROR: u16 = 0x370;
    pub(super) const INITIAL_COUNT: u16 = 0x380;
    pub(super) const CURRENT_COUNT: u16 = 0x390;
    pub(super) const DIVIDE_CONFIGURATION: u16 = 0x3e0;
    pub(super) const SELF_IPI: u16 = 0x3f0;
}

/// What a register write asks of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An interrupt command is to be carried out.
    Icr(Icr),
    /// An interrupt is no longer in service.
    Eoi {
        /// Which.
        vector: u8,
        /// Whether it was level-triggered: then the I/O APIC hears of it too.
        level: bool,
    },
}

/// An entry of the local vector table (SDM 3A 11.5.1), numbered as in `VM_LAPIC_LOCAL_IRQ` (`APIC_LVT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Lvt {
    /// Local interrupt pin 0: where the 8259s are wired.
    Lint0,
    /// Local interrupt pin 1: NMI.
    Lint1,
    /// The timer.
    Timer,
    /// An error that the local APIC found.
    Error,
    /// Performance counter overflow.
    Pmc,
    /// Thermal sensor.
    Thermal,
    /// Corrected machine check.
    Cmci,
}

impl Lvt {
    /// All entries, in the order of their numbers.
    pub const ALL: [Lvt; 7] = [Lvt::Lint0, Lvt::Lint1, Lvt::Timer, Lvt::Error, Lvt::Pmc, Lvt::Thermal, Lvt::Cmci];

    /// The entry with this number; `None` stands for `EINVAL`.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Lvt> {
        Lvt::ALL.get(usize::try_from(number).ok()?).copied()
    }

    fn from_offset(offset: u16) -> Option<Lvt> {
        Some(match offset {
            offset::LVT_CMCI => Lvt::Cmci,
            offset::LVT_TIMER => Lvt::Timer,
            offset::LVT_THERMAL => Lvt::Thermal,
            offset::LVT_PMC => Lvt::Pmc,
            offset::LVT_LINT0 => Lvt::Lint0,
            offset::LVT_LINT1 => Lvt::Lint1,
            offset::LVT_ERROR => Lvt::Error,
            _ => return None,
        })
    }

    /// The bits that software can change (SDM 3A figure 11-8). TSC-deadline mode is not offered.
    fn writable(self) -> u32 {
        LVT_VECTOR
            | LVT_MASKED
            | match self {
                Lvt::Timer => LVT_TIMER_PERIODIC,
                Lvt::Error => 0,
                Lvt::Lint0 | Lvt::Lint1 => LVT_DELIVERY_MODE | LVT_POLARITY | LVT_TRIGGER,
                Lvt::Pmc | Lvt::Thermal | Lvt::Cmci => LVT_DELIVERY_MODE,
            }
    }

    /// The bits that are not reserved: those that software can change, and the read-only ones.
    fn defined(self) -> u32 {
        let remote_irr = if matches!(self, Lvt::Lint0 | Lvt::Lint1) { LVT_REMOTE_IRR } else { 0 };
        self.writable() | LVT_DELIVERY_STATUS | remote_irr
    }
}

/// What becomes of a local interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalInterrupt {
    /// Nothing: the entry is masked, or in a mode that is not modelled.
    Dropped,
    /// The local APIC has requested a vector of the processor; the vCPU is to be notified.
    Requested {
        /// Which: that of the entry, or that of the error entry if the entry's own was illegal.
        vector: u8,
    },
    /// The vCPU is to get an NMI.
    Nmi,
    /// The vCPU is to take an interrupt from the 8259s.
    ExtInt,
}

/// The local APIC of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlapic {
    vcpuid: u32,
    apic_base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    esr: u32,
    /// Errors since ESR was last written, which is when software gets to see them.
    esr_pending: u32,
    #[serde(with = "icr::as_bits")]
    icr: Icr,
    lvt: [u32; Lvt::ALL.len()],
    timer: Timer,
}

impl Vlapic {
    /// `vlapic_init`: in xAPIC mode, enabled in IA32_APIC_BASE, disabled in SVR. vCPU 0 is the BSP.
    #[must_use]
    pub fn new(vcpuid: u32) -> Vlapic {
        let bsp = if vcpuid == 0 { APIC_BASE_BSP } else { 0 };
        let mut vlapic = Vlapic {
            vcpuid,
            apic_base: DEFAULT_APIC_BASE | APIC_BASE_ENABLED | bsp,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr: Icr::new(),
            lvt: [0; Lvt::ALL.len()],
            timer: Timer::default(),
        };
        vlapic.reset();
        vlapic
    }

    /// `vlapic_reset`, which an INIT does too: every register has its initial value, the timer stands still. ID, mode and
    /// IA32_APIC_BASE stay (SDM 3A 11.4.7.3).
    pub fn reset(&mut self) {
        let Vlapic {
            vcpuid: _,
            apic_base: _,
            tpr,
            ldr: _,
            dfr: _,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_pending,
            icr,
            lvt,
            timer,
        } = self;
        *tpr = 0;
        *svr = 0xff;
        *isr = Vectors::default();
        *tmr = Vectors::default();
        *irr = Vectors::default();
        *esr = 0;
        *esr_pending = 0;
        *icr = Icr::new();
        *lvt = [LVT_MASKED; Lvt::ALL.len()];
        *timer = Timer::default();
        self.reset_logical_id();
    }

    /// `vlapic_set_x2apic_state`: the mode is the frontend's choice, made before the vCPU runs; the guest cannot change it.
    pub fn set_x2apic(&mut self, enabled: bool) {
        if enabled {
            self.apic_base |= APIC_BASE_X2APIC;
        } else {
            self.apic_base &= !APIC_BASE_X2APIC;
        }
        self.reset_logical_id();
    }

    /// LDR and DFR, whose initial values depend on the mode: an x2APIC derives its logical ID from its ID and has no
    /// other destination format than clusters (SDM 3A 11.12.10.2).
    fn reset_logical_id(&mut self) {
        (self.ldr, self.dfr) =
            if self.x2apic() { (1 << (self.vcpuid & 0xf) | (self.vcpuid & 0xffff0) << 12, 0) } else { (0, DFR_FLAT) };
    }

    /// Whether the local APIC is in x2APIC mode.
    #[must_use]
    pub fn x2apic(&self) -> bool {
        self.apic_base & APIC_BASE_X2APIC != 0
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub fn apic_base(&self) -> u64 {
        self.apic_base
    }

    /// The interrupt command register, as it was last written.
    #[must_use]
    pub fn icr(&self) -> Icr {
        self.icr
    }

    /// Writes IA32_APIC_BASE, which the guest can only leave as it is.
    ///
    /// # Errors
    /// When the value is a different one (`vlapic_set_apicbase` returns −1).
    pub fn write_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        if value == self.apic_base { Ok(()) } else { Err(GeneralProtection) }
    }

    /// What [`calcdest`] wants to know.
    #[must_use]
    pub fn logical_id(&self) -> LogicalId {
        LogicalId { ldr: self.ldr, dfr: self.dfr, x2apic: self.x2apic() }
    }

    /// Reads the register at `offset` of the xAPIC page. 0 for what is reserved, and for everything in x2APIC mode.
    #[must_use]
    pub fn mmio_read(&self, offset: u16, now: u64) -> u32 {
        if self.x2apic() {
            return 0;
        }
        match offset & !3 {
            offset::DFR => self.dfr,
            offset::ICR_HIGH => self.icr.high(),
            offset => self.read(offset, now).unwrap_or(0),
        }
    }

    /// Writes the register at `offset` of the xAPIC page. Nothing happens if that is reserved or read-only, and in x2APIC
    /// mode. The ID is read-only too.
    pub fn mmio_write(&mut self, offset: u16, value: u32, now: u64) -> Effect {
        if self.x2apic() {
            return Effect::None;
        }
        match offset {
            offset::LDR => self.ldr = value & 0xff00_0000,
            offset::DFR => self.dfr = value | DFR_RESERVED,
            offset::ICR_HIGH => self.icr.set_high(value),
            offset::ICR_LOW => return self.command(self.icr.with_low(value)),
            _ => return self.write(offset, value, now),
        }
        Effect::None
    }

    /// Reads an MSR of the x2APIC, or IA32_APIC_BASE.
    ///
    /// # Errors
    /// #GP(0) when the register is reserved or write-only, and for every x2APIC register in xAPIC mode (SDM 3A 11.12.2).
    pub fn msr_read(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        if msr == MSR_APIC_BASE {
            return Ok(self.apic_base);
        }
        match self.msr_offset(msr)? {
            offset::ICR_LOW => Ok(self.icr.into_bits()),
            offset => self.read(offset, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR of the x2APIC, or IA32_APIC_BASE.
    ///
    /// # Errors
    /// #GP(0) when the register is reserved or read-only, when a reserved bit is set, and for every x2APIC register in
    /// xAPIC mode (SDM 3A 11.12.1.3, 11.12.2).
    pub fn msr_write(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, GeneralProtection> {
        if msr == MSR_APIC_BASE {
            return self.write_apic_base(value).map(|()| Effect::None);
        }
        let offset = self.msr_offset(msr)?;
        let defined = match offset {
            offset::ICR_LOW => !ICR_RESERVED,
            offset::TPR | offset::SELF_IPI => 0xff,
            offset::EOI | offset::ESR => 0,
            offset::SVR => u64::from(SVR_DEFINED),
            offset::INITIAL_COUNT => 0xffff_ffff,
            offset::DIVIDE_CONFIGURATION => u64::from(Timer::DIVIDE_CONFIGURATION),
            _ => u64::from(Lvt::from_offset(offset).ok_or(GeneralProtection)?.defined()),
        };
        if value & !defined != 0 {
            return Err(GeneralProtection);
        }
        Ok(match offset {
            offset::ICR_LOW => self.command(Icr::from_bits(value)),
            offset::SELF_IPI => {
                self.self_ipi(value as u8);
                Effect::None
            }
            _ => self.write(offset, value as u32, now),
        })
    }

    fn msr_offset(&self, msr: u32) -> Result<u16, GeneralProtection> {
        match msr {
            0x800..=0x83f if self.x2apic() => Ok((msr as u16 - 0x800) << 4),
            _ => Err(GeneralProtection),
        }
    }

    /// Reads a register that both modes have; `None` when there is none, or it cannot be read.
    fn read(&self, offset: u16, now: u64) -> Option<u32> {
        Some(match offset {
            offset::ID if self.x2apic() => self.vcpuid,
            offset::ID => self.vcpuid << 24,
            offset::VERSION => VLAPIC_VERSION,
            offset::TPR => u32::from(self.tpr),
            offset::PPR => u32::from(self.ppr()),
            offset::LDR => self.ldr,
            offset::SVR => self.svr,
            offset::ISR0..=offset::ISR7 if offset & 0xf == 0 => self.isr.word((offset - offset::ISR0) / 16),
            offset::TMR0..=offset::TMR7 if offset & 0xf == 0 => self.tmr.word((offset - offset::TMR0) / 16),
            offset::IRR0..=offset::IRR7 if offset & 0xf == 0 => self.irr.word((offset - offset::IRR0) / 16),
            offset::ESR => self.esr,
            offset::ICR_LOW => self.icr.low(),
            offset::INITIAL_COUNT => self.timer.initial_count(),
            offset::CURRENT_COUNT => self.timer.current_count(now),
            offset::DIVIDE_CONFIGURATION => self.timer.divide_configuration(),
            _ => self.lvt[Lvt::from_offset(offset)? as usize],
        })
    }

    /// Writes a register that both modes write alike.
    fn write(&mut self, offset: u16, value: u32, now: u64) -> Effect {
        match offset {
            offset::TPR => self.tpr = value as u8,
            offset::EOI => return self.eoi(),
            offset::SVR => self.write_svr(value, now),
            offset::ESR => self.esr = std::mem::take(&mut self.esr_pending),
            offset::INITIAL_COUNT => self.timer.set_initial_count(value, now),
            offset::DIVIDE_CONFIGURATION => self.timer.set_divide_configuration(value),
            _ => {
                if let Some(lvt) = Lvt::from_offset(offset) {
                    // The mask bit cannot be cleared while the APIC is software-disabled (SDM 3A 11.4.7.2).
                    let forced = if self.software_enabled() { 0 } else { LVT_MASKED };
                    self.lvt[lvt as usize] = value & lvt.writable() | forced;
                }
            }
        }
        Effect::None
    }

    fn command(&mut self, icr: Icr) -> Effect {
        self.icr = icr.with_pending(false);
        Effect::Icr(self.icr)
    }

    /// A self-IPI is an edge-triggered fixed interrupt (SDM 3A 11.12.11).
    fn self_ipi(&mut self, vector: u8) {
        if vector < 16 {
            self.send_illegal_vector();
        } else {
            self.accept(vector, false);
        }
    }

    /// Disabling stops the timer and masks the LVT; enabling starts a periodic timer again (`vlapic_svr_write_handler`).
    fn write_svr(&mut self, value: u32, now: u64) {
        let was_enabled = self.software_enabled();
        self.svr = value & SVR_DEFINED;
        match (was_enabled, self.software_enabled()) {
            (true, false) => {
                self.timer.stop();
                for lvt in &mut self.lvt {
                    *lvt |= LVT_MASKED;
                }
            }
            (false, true) if self.timer_is_periodic() => self.timer.restart(now),
            _ => {}
        }
    }

    fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else {
            return Effect::None;
        };
        self.isr.set(vector, false);
        Effect::Eoi { vector, level: self.tmr.contains(vector) }
    }

    fn software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    /// Processor priority (SDM 3A 11.8.3.1).
    fn ppr(&self) -> u8 {
        let isrv = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= isrv >> 4 { self.tpr } else { isrv & 0xf0 }
    }

    /// `vlapic_set_intr_ready`: an interrupt arrives. Returns whether it was taken notice of, so that the vCPU is to be
    /// notified; a software-disabled local APIC takes none. An illegal vector is an error instead of an interrupt.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        } else {
            self.irr.set(vector, true);
            self.tmr.set(vector, level);
        }
        true
    }

    /// `vlapic_pending_intr`: the vector that the processor should take, if any has a priority above the processor's.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// `vlapic_intr_accepted`: the processor has taken the vector that [`Vlapic::pending`] told.
    pub fn acknowledge(&mut self, vector: u8) {
        self.irr.set(vector, false);
        self.isr.set(vector, true);
    }

    /// CR8: bits 7:4 of the TPR (SDM 3A 11.8.6.1).
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8, 0 to 15: bits 7:4 of the TPR; the others are cleared.
    pub fn set_cr8(&mut self, tpr: u8) {
        self.tpr = tpr << 4;
    }

    fn timer_is_periodic(&self) -> bool {
        self.lvt[Lvt::Timer as usize] & LVT_TIMER_PERIODIC != 0
    }

    /// When the timer ends its countdown, in nanoseconds. A masked timer counts too.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timer.deadline()
    }

    /// Lets the timer do what is due. Returns whether the vCPU is to be notified.
    pub fn advance(&mut self, now: u64) -> bool {
        self.timer.expire(self.timer_is_periodic(), now) && self.fire(Lvt::Timer) != LocalInterrupt::Dropped
    }

    /// `vlapic_trigger_lvt`: a local interrupt source has something to say. While the local APIC is disabled LINT0 is the
    /// processor's INTR pin and LINT1 its NMI pin (SDM 3A 11.4.3), which FreeBSD takes to hold for software-disabled too.
    pub fn local_interrupt(&mut self, lvt: Lvt) -> LocalInterrupt {
        if self.software_enabled() {
            return self.fire(lvt);
        }
        match lvt {
            Lvt::Lint0 => LocalInterrupt::ExtInt,
            Lvt::Lint1 => LocalInterrupt::Nmi,
            _ => LocalInterrupt::Dropped,
        }
    }

    /// Whether the vCPU takes interrupts from the 8259s: [`Vlapic::local_interrupt`] of LINT0 would say so.
    #[must_use]
    pub fn accepts_extint(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        !self.software_enabled() || lint0 & LVT_MASKED == 0 && delivery_mode(lint0) == DeliveryMode::ExtInt
    }

    /// The vCPU sent a fixed interrupt with a vector below 16 (SDM 3A 11.5.3). Returns whether it is to be notified of
    /// the error.
    pub fn send_illegal_vector(&mut self) -> bool {
        self.error(ESR_SEND_ILLEGAL_VECTOR)
    }

    fn error(&mut self, esr: u32) -> bool {
        self.esr_pending |= esr;
        self.fire(Lvt::Error) != LocalInterrupt::Dropped
    }

    /// `vlapic_fire_lvt`.
    fn fire(&mut self, lvt: Lvt) -> LocalInterrupt {
        let entry = self.lvt[lvt as usize];
        if entry & LVT_MASKED != 0 {
            return LocalInterrupt::Dropped;
        }
        match (delivery_mode(entry), entry as u8) {
            (DeliveryMode::Fixed, 0..16) => {
                self.esr_pending |= ESR_SEND_ILLEGAL_VECTOR;
                // An illegal vector in the error entry itself has nowhere to be reported.
                if lvt == Lvt::Error { LocalInterrupt::Dropped } else { self.fire(Lvt::Error) }
            }
            (DeliveryMode::Fixed, vector) => {
                if self.accept(vector, false) {
                    LocalInterrupt::Requested { vector }
                } else {
                    LocalInterrupt::Dropped
                }
            }
            (DeliveryMode::Nmi, _) => LocalInterrupt::Nmi,
            (DeliveryMode::ExtInt, _) => LocalInterrupt::ExtInt,
            _ => LocalInterrupt::Dropped,
        }
    }
}

fn delivery_mode(lvt: u32) -> DeliveryMode {
    DeliveryMode::from_bits(lvt >> 8)
}

#[cfg(test)]
mod tests;
