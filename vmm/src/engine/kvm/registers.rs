//! The registers of a vCPU.
//!
//! KVM leaves most of them in `kvm_run` whenever `KVM_RUN` returns, and takes them from there when it is called
//! (`KVM_CAP_SYNC_REGS`), so that reading and writing them is nothing but memory accesses. A call of its own for each would
//! cost as much as an exit of the guest.

use super::run_page::{RunPage, Synced};
use crate::engine::{Inject, Reg, SegDesc};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use std::io;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;
/// CR0.PG.
const PG: u64 = 1 << 31;
/// EFER.LME.
const LME: u64 = 1 << 8;
/// EFER.LMA.
const LMA: u64 = 1 << 10;

/// A part of the registers as KVM left it, or as KVM shall take it.
struct Cached<T> {
    value: Option<T>,
    dirty: bool,
}

impl<T> Default for Cached<T> {
    fn default() -> Cached<T> {
        Cached { value: None, dirty: false }
    }
}

impl<T: Synced> Cached<T> {
    fn get(&mut self, page: &RunPage) -> &mut T {
        self.value.get_or_insert_with(|| page.synced())
    }

    /// For changing it: KVM will take it.
    fn get_mut(&mut self, page: &RunPage) -> &mut T {
        self.dirty = true;
        self.get(page)
    }

    /// Puts it where KVM takes it from, and says which part that is.
    fn write_back(&mut self, page: &RunPage) -> u64 {
        match (self.dirty, self.value) {
            (true, Some(value)) => {
                page.set_synced(value);
                T::BIT
            }
            _ => 0,
        }
    }
}

/// All registers of a vCPU, between two calls of `KVM_RUN`.
#[derive(Default)]
pub(super) struct Registers {
    general: Cached<kvm_regs>,
    system: Cached<kvm_sregs>,
    events: Cached<kvm_vcpu_events>,
    /// These alone take calls of their own.
    debug: Cached<kvm_debugregs>,
    /// As they were set last, and nothing more: KVM takes PDPTEs from the memory at CR3, as MOV to CR3 does, and AMD
    /// processors always (SDM 3A 4.4.1, APM 2 15.25.10).
    pdptes: [u64; 4],
    /// As it was set last: KVM has no such register.
    entry_instruction_length: u64,
}

/// What an instruction may have changed.
pub(super) struct Saved {
    general: kvm_regs,
    system: kvm_sregs,
    events: kvm_vcpu_events,
}

impl Registers {
    pub(super) fn get(&mut self, page: &RunPage, vcpu: &VcpuFd, reg: Reg) -> io::Result<u64> {
        Ok(match reg {
            Reg::Idtr => self.system.get(page).idt.base,
            Reg::Gdtr => self.system.get(page).gdt.base,
            Reg::Cr0 | Reg::Cr2 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => *control_register(self.system.get(page), reg),
            Reg::Es | Reg::Cs | Reg::Ss | Reg::Ds | Reg::Fs | Reg::Gs | Reg::Ldtr | Reg::Tr => {
                segment(self.system.get(page), reg).selector.into()
            }
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Dr6 | Reg::Dr7 => *debug_register(self.debug(vcpu)?, reg),
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => self.pdptes[reg as usize - Reg::Pdpte0 as usize],
            Reg::IntrShadow => (self.events.get(page).interrupt.shadow != 0).into(),
            Reg::EntryInstLength => self.entry_instruction_length,
            _ => *general_register(self.general.get(page), reg),
        })
    }

    pub(super) fn set(&mut self, page: &RunPage, vcpu: &VcpuFd, reg: Reg, value: u64) -> io::Result<()> {
        match reg {
            Reg::Idtr => self.system.get_mut(page).idt.base = value,
            Reg::Gdtr => self.system.get_mut(page).gdt.base = value,
            Reg::Cr0 | Reg::Cr2 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => {
                let system = self.system.get_mut(page);
                *control_register(system, reg) = value;
                // LMA follows (SDM 3A 2.2.1). KVM refuses one that does not, as a reset of CR0 alone would leave it.
                let active = system.efer & LME != 0 && system.cr0 & PG != 0;
                system.efer = system.efer & !LMA | if active { LMA } else { 0 };
            }
            Reg::Es | Reg::Cs | Reg::Ss | Reg::Ds | Reg::Fs | Reg::Gs | Reg::Ldtr | Reg::Tr => {
                segment(self.system.get_mut(page), reg).selector = value as u16;
            }
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Dr6 | Reg::Dr7 => {
                *debug_register(self.debug(vcpu)?, reg) = value;
                self.debug.dirty = true;
            }
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => {
                self.pdptes[reg as usize - Reg::Pdpte0 as usize] = value;
            }
            Reg::IntrShadow => {
                let events = self.events.get_mut(page);
                events.interrupt.shadow = if value & 1 != 0 { KVM_X86_SHADOW_INT_STI as u8 } else { 0 };
                events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
            }
            Reg::EntryInstLength => self.entry_instruction_length = value,
            Reg::Rip => {
                self.drop_events(page);
                self.general.get_mut(page).rip = value;
            }
            _ => *general_register(self.general.get_mut(page), reg) = value,
        }
        Ok(())
    }

    pub(super) fn desc(&mut self, page: &RunPage, reg: Reg) -> SegDesc {
        let system = self.system.get(page);
        let table = |table: kvm_dtable| SegDesc { base: table.base, limit: table.limit.into(), access: 0 };
        match reg {
            Reg::Gdtr => table(system.gdt),
            Reg::Idtr => table(system.idt),
            _ => desc_of_segment(segment(system, reg)),
        }
    }

    pub(super) fn set_desc(&mut self, page: &RunPage, reg: Reg, desc: SegDesc) {
        let system = self.system.get_mut(page);
        let table = kvm_dtable { base: desc.base, limit: desc.limit as u16, padding: [0; 3] };
        match reg {
            Reg::Gdtr => system.gdt = table,
            Reg::Idtr => system.idt = table,
            _ => {
                let segment = segment(system, reg);
                *segment = segment_of_desc(segment.selector, desc);
            }
        }
    }

    /// Has an event delivered by the next run. What `KVM_INTERRUPT` and `KVM_NMI` would do takes no call this way.
    pub(super) fn inject(&mut self, page: &RunPage, event: Inject) {
        let events = self.events.get_mut(page);
        match event {
            Inject::Interrupt(vector) => {
                events.interrupt.injected = 1;
                events.interrupt.nr = vector;
                events.interrupt.soft = 0;
            }
            Inject::Nmi => {
                events.nmi.pending = 1;
                events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
            }
            Inject::Exception { vector, error_code } => {
                events.exception.injected = 1;
                events.exception.nr = vector;
                events.exception.has_error_code = error_code.is_some().into();
                events.exception.error_code = error_code.unwrap_or(0);
            }
        }
    }

    /// Drops the events that are on their way in, and the interrupt shadow.
    fn drop_events(&mut self, page: &RunPage) {
        let kvm_vcpu_events { exception, interrupt, nmi, .. } = *self.events.get(page);
        let event = exception.injected | exception.pending | interrupt.injected | nmi.injected | nmi.pending;
        if event | interrupt.shadow == 0 {
            return;
        }
        let events = self.events.get_mut(page);
        (events.exception.injected, events.exception.pending) = (0, 0);
        (events.interrupt.injected, events.interrupt.shadow) = (0, 0);
        (events.nmi.injected, events.nmi.pending) = (0, 0);
        events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    }

    /// Whether an interrupt can be injected: enabled, not in a shadow, and no event on its way in.
    pub(super) fn interruptible(&mut self, page: &RunPage) -> bool {
        let kvm_vcpu_events { exception, interrupt, nmi, .. } = *self.events.get(page);
        let event = exception.injected | exception.pending | interrupt.injected | interrupt.shadow | nmi.injected;
        // An NMI goes first, unless another blocks it.
        let nmi_comes = nmi.pending != 0 && nmi.masked == 0;
        event == 0 && !nmi_comes && self.general.get(page).rflags & IF != 0
    }

    pub(super) fn save(&mut self, page: &RunPage) -> Saved {
        Saved { general: *self.general.get(page), system: *self.system.get(page), events: *self.events.get(page) }
    }

    pub(super) fn restore(&mut self, page: &RunPage, saved: Saved) {
        let Saved { general, system, events } = saved;
        *self.general.get_mut(page) = general;
        *self.system.get_mut(page) = system;
        *self.events.get_mut(page) = events;
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.general.dirty || self.system.dirty || self.events.dirty || self.debug.dirty
    }

    /// Gives KVM what was changed. It takes most of it with the next `KVM_RUN`.
    pub(super) fn write_back(&mut self, page: &RunPage, vcpu: &VcpuFd) -> io::Result<()> {
        if let (true, Some(debug)) = (self.debug.dirty, &self.debug.value) {
            vcpu.set_debug_regs(debug)?;
            self.debug.dirty = false;
        }
        let dirty = self.general.write_back(page) | self.system.write_back(page) | self.events.write_back(page);
        page.set_dirty_regs(dirty);
        Ok(())
    }

    /// Forgets what KVM may have changed since.
    pub(super) fn forget(&mut self) {
        let Registers { general, system, events, debug, pdptes: _, entry_instruction_length: _ } = self;
        *general = Cached::default();
        *system = Cached::default();
        *events = Cached::default();
        *debug = Cached::default();
    }

    fn debug(&mut self, vcpu: &VcpuFd) -> io::Result<&mut kvm_debugregs> {
        match &mut self.debug.value {
            Some(debug) => Ok(debug),
            none => Ok(none.insert(vcpu.get_debug_regs()?)),
        }
    }
}

fn general_register(regs: &mut kvm_regs, reg: Reg) -> &mut u64 {
    match reg {
        Reg::Rax => &mut regs.rax,
        Reg::Rbx => &mut regs.rbx,
        Reg::Rcx => &mut regs.rcx,
        Reg::Rdx => &mut regs.rdx,
        Reg::Rsi => &mut regs.rsi,
        Reg::Rdi => &mut regs.rdi,
        Reg::Rbp => &mut regs.rbp,
        Reg::Rsp => &mut regs.rsp,
        Reg::R8 => &mut regs.r8,
        Reg::R9 => &mut regs.r9,
        Reg::R10 => &mut regs.r10,
        Reg::R11 => &mut regs.r11,
        Reg::R12 => &mut regs.r12,
        Reg::R13 => &mut regs.r13,
        Reg::R14 => &mut regs.r14,
        Reg::R15 => &mut regs.r15,
        Reg::Rip => &mut regs.rip,
        Reg::Rflags => &mut regs.rflags,
        _ => unreachable!("{reg:?} is not a general register"),
    }
}

fn control_register(system: &mut kvm_sregs, reg: Reg) -> &mut u64 {
    match reg {
        Reg::Cr0 => &mut system.cr0,
        Reg::Cr2 => &mut system.cr2,
        Reg::Cr3 => &mut system.cr3,
        Reg::Cr4 => &mut system.cr4,
        Reg::Efer => &mut system.efer,
        _ => unreachable!("{reg:?} is not a control register"),
    }
}

fn debug_register(debug: &mut kvm_debugregs, reg: Reg) -> &mut u64 {
    match reg {
        Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 => &mut debug.db[reg as usize - Reg::Dr0 as usize],
        Reg::Dr6 => &mut debug.dr6,
        Reg::Dr7 => &mut debug.dr7,
        _ => unreachable!("{reg:?} is not a debug register"),
    }
}

fn segment(system: &mut kvm_sregs, reg: Reg) -> &mut kvm_segment {
    match reg {
        Reg::Es => &mut system.es,
        Reg::Cs => &mut system.cs,
        Reg::Ss => &mut system.ss,
        Reg::Ds => &mut system.ds,
        Reg::Fs => &mut system.fs,
        Reg::Gs => &mut system.gs,
        Reg::Ldtr => &mut system.ldt,
        Reg::Tr => &mut system.tr,
        _ => unreachable!("{reg:?} is not a segment register"),
    }
}

/// The hidden part of a segment register in the VMX format (SDM 3C 25.4.1).
fn desc_of_segment(segment: &kvm_segment) -> SegDesc {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let access = u32::from(segment.type_ & 0xf)
        | bit(segment.s, 4)
        | u32::from(segment.dpl & 3) << 5
        | bit(segment.present, 7)
        | bit(segment.avl, 12)
        | bit(segment.l, 13)
        | bit(segment.db, 14)
        | bit(segment.g, 15)
        | bit(segment.unusable, 16);
    SegDesc { base: segment.base, limit: segment.limit, access }
}

fn segment_of_desc(selector: u16, desc: SegDesc) -> kvm_segment {
    let bit = |at: u32| (desc.access >> at & 1) as u8;
    kvm_segment {
        base: desc.base,
        limit: desc.limit,
        selector,
        type_: (desc.access & 0xf) as u8,
        s: bit(4),
        dpl: (desc.access >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: bit(16),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bits of the access rights that have a meaning.
    const ACCESS: u32 = 0x1_f0ff;

    proptest! {
        #[test]
        fn descriptors_survive_kvm_s_format(base: u64, limit: u32, access: u32, selector: u16) {
            let desc = SegDesc { base, limit, access: access & ACCESS };
            let segment = segment_of_desc(selector, desc);
            prop_assert_eq!(segment.selector, selector);
            prop_assert_eq!(desc_of_segment(&segment), desc);
        }
    }

    #[test]
    fn a_flat_code_segment_is_read_as_documented() {
        // 64-bit code: type 1011 (execute, read, accessed), S, present, L, G.
        let desc = SegDesc { base: 0, limit: 0xffff_ffff, access: 0xa09b };
        let segment = segment_of_desc(8, desc);
        assert_eq!((segment.type_, segment.s, segment.dpl, segment.present), (0xb, 1, 0, 1));
        assert_eq!((segment.l, segment.db, segment.g, segment.avl, segment.unusable), (1, 0, 1, 0, 0));
    }
}
