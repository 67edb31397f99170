//! Control and debug registers, MSRs, CPUID, time, system tables, and fast system calls.

use super::features::{Feature, Features};
use super::flags::{FIXED, IF, RF, TF, VM};
use super::mem::Bus;
use super::op::{Op, RmDst, Source, flag};
use super::paging::Purpose;
use super::state::{Access, AccessKind, CS, Cpu, FS, GS, Step, Stop, Table, access, cr0, cr4, efer};
use super::word::{R11, RAX, RBX, RCX, RDX, RSP, Word};
use crate::engine::{CpuidEntry, Exit};

/// Bits of DR6 that always read as 1.
pub(super) const DR6_FIXED: u64 = 0xFFFF_0FF0;
/// Bits of DR7 that always read as 1.
pub(super) const DR7_FIXED: u64 = 0x400;
/// How many variable-range MTRRs there are; IA32_MTRRCAP says so.
pub(super) const VARIABLE_MTRRS: usize = 10;

/// MSR numbers.
mod msr {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const SPEC_CTRL: u32 = 0x48;
    pub(super) const PRED_CMD: u32 = 0x49;
    pub(super) const MTRR_CAP: u32 = 0xFE;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10A;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const MTRR_VARIABLE: u32 = 0x200;
    pub(super) const MTRR_VARIABLE_LAST: u32 = MTRR_VARIABLE + 2 * super::VARIABLE_MTRRS as u32 - 1;
    pub(super) const MTRR_FIX64K: u32 = 0x250;
    pub(super) const MTRR_FIX16K: u32 = 0x258;
    pub(super) const MTRR_FIX16K_LAST: u32 = 0x259;
    pub(super) const MTRR_FIX4K: u32 = 0x268;
    pub(super) const MTRR_FIX4K_LAST: u32 = 0x26F;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const MTRR_DEF_TYPE: u32 = 0x2FF;
    pub(super) const EFER: u32 = 0xC000_0080;
    pub(super) const STAR: u32 = 0xC000_0081;
    pub(super) const LSTAR: u32 = 0xC000_0082;
    pub(super) const CSTAR: u32 = 0xC000_0083;
    pub(super) const FMASK: u32 = 0xC000_0084;
    pub(super) const FS_BASE: u32 = 0xC000_0100;
    pub(super) const GS_BASE: u32 = 0xC000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xC000_0102;
    pub(super) const TSC_AUX: u32 = 0xC000_0103;
}

/// IA32_ARCH_CAPABILITIES: what a processor that does not speculate is immune to. RDCL_NO, IBRS_ALL,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO,
/// RFDS_NO, ITS_NO (SDM 4, table 2-2).
const ARCH_CAPABILITIES_VALUE: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;
/// IA32_SPEC_CTRL: IBRS, and nothing else.
const SPEC_CTRL_IBRS: u64 = 1;
/// IA32_PRED_CMD: IBPB, and nothing else.
const PRED_CMD_IBPB: u64 = 1;

/// The address space that CR3 names, while CR4.PCIDE is set.
fn pcid_of(cr3: u64) -> u16 {
    (cr3 & 0xFFF) as u16
}

/// Write-combining and fixed ranges are there.
const MTRR_CAP_VALUE: u64 = 1 << 10 | 1 << 8 | VARIABLE_MTRRS as u64;

impl Cpu {
    /// #GP(0) unless at privilege level 0.
    pub(super) fn check_cpl0(&mut self) -> Step {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }
    /// #UD in real mode and virtual-8086 mode.
    pub(super) fn check_protected(&mut self) -> Step {
        if self.has_real_segments() { Err(self.ud()) } else { Ok(()) }
    }
    /// #GP(0) for SGDT and its like where CR4.UMIP forbids them.
    pub(super) fn check_umip(&mut self) -> Step {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// Replaces the CPUID table, and learns from it which control bits exist.
    pub(super) fn set_cpuid(&mut self, table: &[CpuidEntry]) {
        self.cpuid = table.to_vec();
        let bits = match self.cpuid_values(0x8000_0008, 0) {
            Some([eax, ..]) if (32..=52).contains(&(eax & 0xFF)) => eax & 0xFF,
            // Without a table: the most that there can be.
            _ => 52,
        };
        self.physical_mask = (1 << bits) - 1;
        self.features = Features::of(table);
        self.flush_translations();
    }

    fn cpuid_values(&self, leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
        let matches = |entry: &&CpuidEntry| entry.leaf == leaf && entry.subleaf.is_none_or(|wanted| wanted == subleaf);
        self.cpuid.iter().find(matches).map(|entry| entry.regs)
    }

    /// The time-stamp counter: nanoseconds of virtual time, never going back on any processor of the machine.
    pub(super) fn read_tsc(&self, bus: &mut Bus) -> u64 {
        let now = self.now_ns.wrapping_add(self.executed * super::NS_PER_INSTRUCTION);
        bus.latest_tsc = bus.latest_tsc.max(now);
        bus.latest_tsc.wrapping_add(self.msrs.tsc_offset)
    }

    fn write_cr0(&mut self, bus: &mut Bus, value: u64) -> Step {
        let invalid = value >> 32 != 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0;
        if invalid {
            return Err(self.gp(0));
        }
        let value = value & cr0::DEFINED | cr0::ET;
        if value & cr0::PG != 0 && self.cr0 & cr0::PG == 0 && self.efer & efer::LME != 0 {
            // Activating long mode needs PAE, and a CS that is not 64-bit (SDM 3A 9.8.5).
            if self.cr4 & cr4::PAE == 0 || self.seg(CS).has(access::LONG) {
                return Err(self.gp(0));
            }
        }
        if value & cr0::PG == 0 && self.cr0 & cr0::PG != 0 && (self.is_64() || self.cr4 & cr4::PCIDE != 0) {
            return Err(self.gp(0));
        }
        let changed = self.cr0 ^ value;
        if changed & (cr0::CD | cr0::NW | cr0::PG) != 0 && self.uses_pdptes(value, self.cr4) {
            self.load_pdptes(bus, self.cr3)?;
        }
        self.cr0 = value;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_translations();
        }
        self.derive();
        Ok(())
    }

    /// MOV to CR3; a task switch does the same.
    pub(super) fn write_cr3(&mut self, bus: &mut Bus, value: u64) -> Step {
        /// With PCIDs: the new address space's translations hold still.
        const KEEP: u64 = 1 << 63;
        let pcids = self.cr4 & cr4::PCIDE != 0;
        let keep = pcids && value & KEEP != 0;
        let value = if pcids { value & !KEEP } else { value };
        if self.long && value & !self.physical_mask != 0 {
            return Err(self.gp(0));
        }
        if self.uses_pdptes(self.cr0, self.cr4) {
            self.load_pdptes(bus, value)?;
        }
        let (from, to) = (pcid_of(self.cr3), pcid_of(value));
        self.cr3 = value;
        if pcids {
            self.switch_address_space(from, to, keep);
        } else {
            self.flush_local_translations();
        }
        Ok(())
    }

    fn write_cr4(&mut self, bus: &mut Bus, value: u64) -> Step {
        let turns_on_pcid = value & !self.cr4 & cr4::PCIDE != 0;
        let changed = self.cr4 ^ value;
        let invalid = value & !self.features.cr4() != 0
            || self.long && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || turns_on_pcid && (!self.long || pcid_of(self.cr3) != 0);
        if invalid {
            return Err(self.gp(0));
        }
        let loading = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
        if changed & loading != 0 && self.uses_pdptes(self.cr0, value) {
            self.load_pdptes(bus, self.cr3)?;
        }
        self.cr4 = value;
        let translating = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::LA57;
        if changed & translating != 0 {
            self.flush_translations();
        }
        self.derive();
        self.derive_breakpoints();
        Ok(())
    }

    fn read_msr(&mut self, bus: &mut Bus, index: u32) -> Result<u64, Stop> {
        Ok(match index {
            msr::TSC => self.read_tsc(bus),
            msr::MTRR_CAP if self.features.has(Feature::Mtrr) => MTRR_CAP_VALUE,
            msr::ARCH_CAPABILITIES if self.features.has(Feature::ArchCapabilities) => ARCH_CAPABILITIES_VALUE,
            msr::SPEC_CTRL if self.features.has(Feature::SpecCtrl) => self.msrs.spec_ctrl,
            // It is written only.
            msr::PRED_CMD if self.features.has(Feature::SpecCtrl) => return Err(self.gp(0)),
            msr::EFER => self.efer,
            msr::FS_BASE => self.seg(FS).base,
            msr::GS_BASE => self.seg(GS).base,
            _ => match self.stored_msr(index) {
                Some(value) => *value,
                None => self.outside(Access {
                    kind: AccessKind::RdMsr { index },
                    size: 8,
                    value: 0,
                    retires_at: Some(self.rip()),
                })?,
            },
        })
    }

    fn write_msr(&mut self, bus: &mut Bus, index: u32, value: u64) -> Step {
        let must_be_canonical = matches!(
            index,
            msr::SYSENTER_ESP
                | msr::SYSENTER_EIP
                | msr::LSTAR
                | msr::CSTAR
                | msr::FS_BASE
                | msr::GS_BASE
                | msr::KERNEL_GS_BASE
        );
        if must_be_canonical && !self.canonical_base(value) {
            return Err(self.gp(0));
        }
        match index {
            msr::TSC => {
                let raw = self.read_tsc(bus).wrapping_sub(self.msrs.tsc_offset);
                self.msrs.tsc_offset = value.wrapping_sub(raw);
            }
            msr::MTRR_CAP if self.features.has(Feature::Mtrr) => return Err(self.gp(0)),
            msr::ARCH_CAPABILITIES if self.features.has(Feature::ArchCapabilities) => return Err(self.gp(0)),
            msr::SPEC_CTRL if self.features.has(Feature::SpecCtrl) => {
                if value & !SPEC_CTRL_IBRS != 0 {
                    return Err(self.gp(0));
                }
                self.msrs.spec_ctrl = value;
            }
            msr::PRED_CMD if self.features.has(Feature::SpecCtrl) => {
                if value & !PRED_CMD_IBPB != 0 {
                    return Err(self.gp(0));
                }
            }
            msr::EFER => {
                let changes_lme = (self.efer ^ value) & efer::LME != 0;
                if value & !self.features.efer() != 0 || changes_lme && self.cr0 & cr0::PG != 0 {
                    return Err(self.gp(0));
                }
                self.efer = value;
                self.flush_translations();
                self.derive();
            }
            msr::FS_BASE | msr::GS_BASE => {
                let number = if index == msr::FS_BASE { FS } else { GS };
                self.seg_mut(number).base = value;
                self.derive_seg(number);
            }
            msr::PAT if value.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4..=7)) => {
                return Err(self.gp(0));
            }
            msr::TSC_AUX if value >> 32 != 0 => return Err(self.gp(0)),
            _ => match self.stored_msr(index) {
                Some(stored) => *stored = value,
                None => {
                    self.outside(Access {
                        kind: AccessKind::WrMsr { index },
                        size: 8,
                        value,
                        retires_at: Some(self.rip()),
                    })?;
                }
            },
        }
        Ok(())
    }

    /// An MSR that is plain storage, if it is offered.
    fn stored_msr(&mut self, index: u32) -> Option<&mut u64> {
        let msrs = &mut self.msrs;
        let offered = match index {
            msr::PAT => self.features.has(Feature::Pat),
            msr::TSC_AUX => self.features.has(Feature::Rdtscp) || self.features.has(Feature::Rdpid),
            msr::MTRR_VARIABLE..=msr::MTRR_DEF_TYPE => self.features.has(Feature::Mtrr),
            _ => true,
        };
        if !offered {
            return None;
        }
        Some(match index {
            msr::SYSENTER_CS => &mut msrs.sysenter_cs,
            msr::SYSENTER_ESP => &mut msrs.sysenter_esp,
            msr::SYSENTER_EIP => &mut msrs.sysenter_eip,
            msr::PAT => &mut msrs.pat,
            msr::STAR => &mut msrs.star,
            msr::LSTAR => &mut msrs.lstar,
            msr::CSTAR => &mut msrs.cstar,
            msr::FMASK => &mut msrs.fmask,
            msr::KERNEL_GS_BASE => &mut msrs.kernel_gs_base,
            msr::TSC_AUX => &mut msrs.tsc_aux,
            msr::MTRR_DEF_TYPE => &mut msrs.mtrr_def_type,
            msr::MTRR_VARIABLE..=msr::MTRR_VARIABLE_LAST => {
                &mut msrs.mtrr_variable[(index - msr::MTRR_VARIABLE) as usize]
            }
            msr::MTRR_FIX64K => &mut msrs.mtrr_fixed[0],
            msr::MTRR_FIX16K..=msr::MTRR_FIX16K_LAST => &mut msrs.mtrr_fixed[1 + (index - msr::MTRR_FIX16K) as usize],
            msr::MTRR_FIX4K..=msr::MTRR_FIX4K_LAST => &mut msrs.mtrr_fixed[3 + (index - msr::MTRR_FIX4K) as usize],
            _ => return None,
        })
    }

    /// The width of operands that follow the code size, not a prefix: 64 bits in 64-bit mode, else 32.
    fn system_width(&self) -> u32 {
        if self.is_64() { 8 } else { 4 }
    }
}

/// CPUID.1:ECX.OSXSAVE.
const CPUID_OSXSAVE: u32 = 1 << 27;

/// CPUID.
pub(super) fn cpuid(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let leaf: u32 = cpu.get(RAX);
    let mut values = cpu.cpuid_values(leaf, cpu.get(RCX)).unwrap_or_default();
    if leaf == 1 {
        let enabled = if cpu.cr4 & cr4::OSXSAVE != 0 { CPUID_OSXSAVE } else { 0 };
        values[2] = values[2] & !CPUID_OSXSAVE | enabled;
    }
    for (number, value) in [RAX, RBX, RCX, RDX].into_iter().zip(values) {
        cpu.put(number, value);
    }
    Ok(())
}

fn put_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.put(RAX, value as u32);
    cpu.put(RDX, (value >> 32) as u32);
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl > 0 {
        return Err(cpu.gp(0));
    }
    let tsc = cpu.read_tsc(bus);
    put_edx_eax(cpu, tsc);
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    rdtsc(cpu, bus, op)?;
    cpu.put(RCX, cpu.msrs.tsc_aux as u32);
    Ok(())
}

/// RDPID.
pub(super) fn rdpid(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.put(op.dst, cpu.msrs.tsc_aux);
    Ok(())
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()?;
    let index = cpu.get(RCX);
    let value = cpu.read_msr(bus, index)?;
    put_edx_eax(cpu, value);
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Cpu, bus: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()?;
    let index = cpu.get(RCX);
    let value = u64::from(cpu.get::<u32>(RDX)) << 32 | u64::from(cpu.get::<u32>(RAX));
    cpu.write_msr(bus, index, value)
}

/// MOV from a control register: `extra` is its number.
pub(super) fn mov_from_cr(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let value = match op.extra {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.cr8,
        _ => return Err(cpu.ud()),
    };
    put_system_width(cpu, op.dst, value);
    Ok(())
}

fn put_system_width(cpu: &mut Cpu, number: u8, value: u64) {
    if cpu.is_64() {
        cpu.put(number, value);
    } else {
        cpu.put(number, value as u32);
    }
}

fn get_system_width(cpu: &Cpu, number: u8) -> u64 {
    if cpu.is_64() { cpu.get(number) } else { u64::from(cpu.get::<u32>(number)) }
}

/// MOV to a control register.
pub(super) fn mov_to_cr(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let value = get_system_width(cpu, op.src);
    match op.extra {
        0 => cpu.write_cr0(bus, value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(bus, value),
        4 => cpu.write_cr4(bus, value),
        8 => {
            if value >> 4 != 0 {
                return Err(cpu.gp(0));
            }
            cpu.cr8 = value;
            Err(cpu.leave(Exit::TprWrite { tpr: (value as u8) << 4 }))
        }
        _ => Err(cpu.ud()),
    }
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE is set.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    match number {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => Err(cpu.ud()),
        4 | 5 => Ok(usize::from(number) + 2),
        _ => Ok(usize::from(number & 7)),
    }
}

/// MOV from a debug register.
pub(super) fn mov_from_dr(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let number = debug_register(cpu, op.extra)?;
    cpu.check_cpl0()?;
    cpu.check_general_detection()?;
    let value = cpu.dr[number];
    put_system_width(cpu, op.dst, value);
    Ok(())
}

/// MOV to a debug register.
pub(super) fn mov_to_dr(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let number = debug_register(cpu, op.extra)?;
    cpu.check_cpl0()?;
    let value = get_system_width(cpu, op.src);
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.check_general_detection()?;
    cpu.dr[number] = match number {
        6 => value & 0xE00F | DR6_FIXED,
        7 => value & 0xFFFF_23FF | DR7_FIXED,
        _ => value,
    };
    cpu.derive_breakpoints();
    Ok(())
}

/// CLTS.
pub(super) fn clts(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW: sets TS, EM, MP, and sets but never clears PE.
pub(super) fn lmsw(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let value = u64::from(RmDst::get::<u16>(cpu, bus, op)?);
    let changeable = cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !changeable | value & (changeable | cr0::PE);
    cpu.write_cr0(bus, new)
}

/// SMSW.
pub(super) fn smsw<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_umip()?;
    let value = cpu.cr0;
    if op.has(flag::MEMORY) {
        let offset = cpu.effective_address(op);
        return cpu.write(bus, op.seg, offset, value as u16);
    }
    cpu.put(op.dst, T::of(value));
    Ok(())
}

/// INVLPG.
pub(super) fn invlpg(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let linear = cpu.seg(op.seg).origin.wrapping_add(cpu.effective_address(op)) & cpu.linear_mask;
    cpu.forget_translation(linear);
    Ok(())
}

/// Types of INVPCID.
mod invpcid_type {
    pub(super) const ADDRESS: u64 = 0;
    pub(super) const CONTEXT: u64 = 1;
    pub(super) const ALL: u64 = 2;
    pub(super) const ALL_BUT_GLOBAL: u64 = 3;
}

/// INVPCID.
pub(super) fn invpcid(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let kind = get_system_width(cpu, op.dst);
    let address = cpu.effective_address(op);
    let low: u64 = cpu.read(bus, op.seg, address)?;
    let linear: u64 = cpu.read(bus, op.seg, op.truncate_address(address.wrapping_add(8)))?;
    let pcid = pcid_of(low);
    let names_space = matches!(kind, invpcid_type::ADDRESS | invpcid_type::CONTEXT);
    let invalid = kind > invpcid_type::ALL_BUT_GLOBAL
        || low >> 12 != 0
        || kind == invpcid_type::ADDRESS && !cpu.canonical(linear)
        || names_space && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0;
    if invalid {
        return Err(cpu.gp(0));
    }
    let present = cpu.cr4 & cr4::PCIDE == 0 || pcid_of(cpu.cr3) == pcid;
    match kind {
        invpcid_type::ADDRESS if present => cpu.forget_translation(linear),
        invpcid_type::CONTEXT if present => cpu.flush_local_translations(),
        invpcid_type::ADDRESS | invpcid_type::CONTEXT => cpu.code_pages.forget_space(pcid),
        invpcid_type::ALL => cpu.flush_translations(),
        _ => cpu.flush_local_translations(),
    }
    Ok(())
}

/// MONITOR: ECX must hold no extensions. The address is loaded from, and then nothing waits for it: see [`mwait`].
pub(super) fn monitor(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    check_monitor(cpu)?;
    if cpu.get::<u32>(RCX) != 0 {
        return Err(cpu.gp(0));
    }
    flush_line(cpu, bus, op)
}

/// MWAIT: ends its wait at once, as any processor may (SDM 2B, MWAIT, "false wakeup"); the loop that it stands in looks at the
/// monitored memory again, and other processors have had their turn by then. ECX may ask for interrupts to end the wait though
/// IF is clear, where CPUID offers that.
pub(super) fn mwait(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    check_monitor(cpu)?;
    let known = u32::from(cpu.features.has(Feature::MwaitInterrupts));
    if cpu.get::<u32>(RCX) & !known != 0 {
        return Err(cpu.gp(0));
    }
    Err(cpu.leave(Exit::Pause))
}

/// Beyond privilege level 0 they are no instructions.
fn check_monitor(cpu: &mut Cpu) -> Step {
    if cpu.cpl == 0 { Ok(()) } else { Err(cpu.ud()) }
}

/// CLFLUSH, CLFLUSHOPT and CLWB: there is no cache, but they fault as reads of a byte do.
pub(super) fn flush_line(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let offset = cpu.effective_address(op);
    let linear = cpu.check_segment(op.seg, offset, 1, false)?;
    cpu.resolve(bus, linear, Purpose::Read, cpu.data_context)?;
    Ok(())
}

/// INVD and WBINVD: there is no cache.
pub(super) fn invalidate_caches(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()
}

/// LGDT and (`IDT`) LIDT; `T` is the operand size, of which 16 bits load only 24 bits of base.
pub(super) fn load_table<const IDT: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_cpl0()?;
    let address = cpu.effective_address(op);
    let limit: u16 = cpu.read(bus, op.seg, address)?;
    let at = op.truncate_address(address.wrapping_add(2));
    let base = match T::BITS {
        16 => u64::from(cpu.read::<u32>(bus, op.seg, at)?) & 0xFF_FFFF,
        32 => u64::from(cpu.read::<u32>(bus, op.seg, at)?),
        _ => cpu.read::<u64>(bus, op.seg, at)?,
    };
    if !cpu.canonical_base(base) {
        return Err(cpu.gp(0));
    }
    let table = Table { base, limit };
    if IDT {
        cpu.idtr = table;
    } else {
        cpu.gdtr = table;
    }
    Ok(())
}

/// SGDT and (`IDT`) SIDT. The whole base is stored whatever the operand size, as processors since the 386 do.
pub(super) fn store_table<const IDT: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_umip()?;
    let table = if IDT { cpu.idtr } else { cpu.gdtr };
    let address = cpu.effective_address(op);
    let at = op.truncate_address(address.wrapping_add(2));
    let width = cpu.system_width();
    if width == 8 {
        cpu.open::<u64>(bus, op.seg, at)?;
    } else {
        cpu.open::<u32>(bus, op.seg, at)?;
    }
    cpu.write(bus, op.seg, address, table.limit)?;
    if width == 8 { cpu.write(bus, op.seg, at, table.base) } else { cpu.write(bus, op.seg, at, table.base as u32) }
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_cpl0()?;
    let base = cpu.seg(GS).base;
    cpu.seg_mut(GS).base = cpu.msrs.kernel_gs_base;
    cpu.msrs.kernel_gs_base = base;
    cpu.derive_seg(GS);
    Ok(())
}

/// RDFSBASE, RDGSBASE: `extra` is the segment register.
pub(super) fn read_base<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    check_fsgsbase(cpu)?;
    let base = cpu.seg(op.extra).base;
    cpu.put(op.dst, T::of(base));
    Ok(())
}

/// WRFSBASE, WRGSBASE.
pub(super) fn write_base<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    check_fsgsbase(cpu)?;
    let base = cpu.get::<T>(op.dst).zx();
    if !cpu.canonical_base(base) {
        return Err(cpu.gp(0));
    }
    cpu.seg_mut(op.extra).base = base;
    cpu.derive_seg(op.extra);
    Ok(())
}

fn check_fsgsbase(cpu: &mut Cpu) -> Step {
    if cpu.cr4 & cr4::FSGSBASE == 0 { Err(cpu.ud()) } else { Ok(()) }
}

/// CLAC and (`SET`) STAC.
pub(super) fn alignment_flag<const SET: bool>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    if cpu.cpl > 0 {
        return Err(cpu.ud());
    }
    cpu.eflags = cpu.eflags & !super::flags::AC | if SET { super::flags::AC } else { 0 };
    cpu.derive_flags();
    Ok(())
}

/// SYSCALL (SDM 2).
pub(super) fn syscall(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    if cpu.efer & efer::SCE == 0 || !cpu.is_64() {
        return Err(cpu.ud());
    }
    let rip = cpu.rip();
    cpu.put(RCX, rip);
    cpu.put(R11, cpu.rflags() & !RF);
    let flags = cpu.rflags() & !cpu.msrs.fmask & !RF | FIXED;
    let cs = (cpu.msrs.star >> 32) as u16 & !3;
    let target = cpu.msrs.lstar;
    cpu.enter_flat(cs, cs.wrapping_add(8), 0, true, target);
    cpu.set_rflags(flags);
    // A mask with TF keeps the kernel's entry from being stepped into.
    cpu.trap_due = flags & TF != 0;
    Ok(())
}

/// SYSRET; `T` is the operand size: 64 bits return to 64-bit mode, 32 to compatibility mode.
pub(super) fn sysret<T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    if cpu.efer & efer::SCE == 0 || !cpu.is_64() {
        return Err(cpu.ud());
    }
    cpu.check_cpl0()?;
    let target = cpu.get::<T>(RCX).zx();
    if !cpu.canonical(target) {
        return Err(cpu.gp(0));
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let cs = if T::BITS == 64 { base.wrapping_add(16) } else { base } | 3;
    let flags = cpu.get::<u64>(R11) & 0x3C_7FD7 | FIXED;
    cpu.enter_flat(cs, base.wrapping_add(8) | 3, 3, T::BITS == 64, target);
    cpu.set_rflags(flags);
    Ok(())
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let cs = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected || cs == 0 {
        return Err(cpu.gp(0));
    }
    let long = cpu.long;
    let (mut rip, mut rsp) = (cpu.msrs.sysenter_eip, cpu.msrs.sysenter_esp);
    if !long {
        rip &= 0xFFFF_FFFF;
        rsp &= 0xFFFF_FFFF;
    }
    let flags = cpu.rflags() & !(VM | IF | RF);
    cpu.enter_flat(cs, cs.wrapping_add(8), 0, long, rip);
    cpu.put(RSP, rsp);
    cpu.set_rflags(flags);
    Ok(())
}

/// SYSEXIT.
pub(super) fn sysexit<T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected || base == 0 || cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let (rip, rsp) = (cpu.get::<T>(RDX).zx(), cpu.get::<T>(RCX).zx());
    let is_64 = T::BITS == 64;
    if is_64 && !(cpu.canonical(rip) && cpu.canonical(rsp)) {
        return Err(cpu.gp(0));
    }
    let (cs, ss) = if is_64 { (32, 40) } else { (16, 24) };
    cpu.enter_flat(base.wrapping_add(cs) | 3, base.wrapping_add(ss) | 3, 3, is_64, rip);
    cpu.put(RSP, rsp);
    Ok(())
}

/// RDPMC: there are no counters.
pub(super) fn rdpmc(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    Err(cpu.gp(0))
}
