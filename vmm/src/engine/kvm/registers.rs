//! The registers of a vCPU, read from KVM when they are first asked for and written back before the next run, so that a
//! reset of forty registers takes a few calls.

use super::ioctl;
use crate::engine::{Reg, SegDesc};
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable,
    kvm_regs, kvm_segment, kvm_sregs2, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use std::io;

/// What KVM gives and takes in one call.
pub(super) trait Block: Sized {
    fn read(vcpu: &VcpuFd) -> io::Result<Self>;
    fn write(&self, vcpu: &VcpuFd) -> io::Result<()>;
}

impl Block for kvm_regs {
    fn read(vcpu: &VcpuFd) -> io::Result<kvm_regs> {
        Ok(vcpu.get_regs()?)
    }

    fn write(&self, vcpu: &VcpuFd) -> io::Result<()> {
        Ok(vcpu.set_regs(self)?)
    }
}

impl Block for kvm_sregs2 {
    fn read(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
        ioctl::get_sregs2(vcpu)
    }

    fn write(&self, vcpu: &VcpuFd) -> io::Result<()> {
        ioctl::set_sregs2(vcpu, self)
    }
}

impl Block for kvm_debugregs {
    fn read(vcpu: &VcpuFd) -> io::Result<kvm_debugregs> {
        Ok(vcpu.get_debug_regs()?)
    }

    fn write(&self, vcpu: &VcpuFd) -> io::Result<()> {
        Ok(vcpu.set_debug_regs(self)?)
    }
}

impl Block for kvm_vcpu_events {
    fn read(vcpu: &VcpuFd) -> io::Result<kvm_vcpu_events> {
        Ok(vcpu.get_vcpu_events()?)
    }

    fn write(&self, vcpu: &VcpuFd) -> io::Result<()> {
        Ok(vcpu.set_vcpu_events(self)?)
    }
}

/// A block as KVM has it, or as it shall be.
pub(super) struct Cached<T> {
    block: Option<T>,
    dirty: bool,
}

impl<T> Default for Cached<T> {
    fn default() -> Cached<T> {
        Cached { block: None, dirty: false }
    }
}

impl<T: Block> Cached<T> {
    pub(super) fn get(&mut self, vcpu: &VcpuFd) -> io::Result<&T> {
        Ok(self.load(vcpu)?)
    }

    /// For changing it: it will be written back.
    pub(super) fn get_mut(&mut self, vcpu: &VcpuFd) -> io::Result<&mut T> {
        self.dirty = true;
        self.load(vcpu)
    }

    /// Writes it back now, when it was changed.
    pub(super) fn write_back(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        if let (true, Some(block)) = (self.dirty, &self.block) {
            block.write(vcpu)?;
        }
        self.dirty = false;
        Ok(())
    }

    /// Forgets it, for KVM has changed its own.
    pub(super) fn forget(&mut self) {
        *self = Cached::default();
    }

    /// A change that is not written back would be lost.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    fn load(&mut self, vcpu: &VcpuFd) -> io::Result<&mut T> {
        match &mut self.block {
            Some(block) => Ok(block),
            none => Ok(none.insert(T::read(vcpu)?)),
        }
    }
}

/// All registers of a vCPU.
#[derive(Default)]
pub(super) struct Registers {
    pub(super) general: Cached<kvm_regs>,
    pub(super) system: Cached<kvm_sregs2>,
    pub(super) debug: Cached<kvm_debugregs>,
    pub(super) events: Cached<kvm_vcpu_events>,
    /// PDPTEs as they were set last. KVM has some only while PAE paging is on.
    pdptes: [u64; 4],
    /// Whether they were set since PAE paging last took them.
    pdptes_set: bool,
    /// KVM has no such register, and takes the length of an instruction from none.
    entry_instruction_length: u64,
}

impl Registers {
    pub(super) fn get(&mut self, vcpu: &VcpuFd, reg: Reg) -> io::Result<u64> {
        Ok(match reg {
            Reg::Idtr => self.system.get(vcpu)?.idt.base,
            Reg::Gdtr => self.system.get(vcpu)?.gdt.base,
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => {
                let system = self.system.get(vcpu)?;
                let valid = system.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 && !self.pdptes_set;
                let pdptes = if valid { &system.pdptrs } else { &self.pdptes };
                pdptes[reg as usize - Reg::Pdpte0 as usize]
            }
            Reg::IntrShadow => (self.events.get(vcpu)?.interrupt.shadow != 0).into(),
            Reg::EntryInstLength => self.entry_instruction_length,
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Dr6 | Reg::Dr7 => {
                let mut block = *self.debug.get(vcpu)?;
                *debug_register(&mut block, reg)
            }
            Reg::Cr0 | Reg::Cr2 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => {
                let mut block = *self.system.get(vcpu)?;
                *control_register(&mut block, reg)
            }
            Reg::Es | Reg::Cs | Reg::Ss | Reg::Ds | Reg::Fs | Reg::Gs | Reg::Ldtr | Reg::Tr => {
                let mut block = *self.system.get(vcpu)?;
                segment(&mut block, reg).selector.into()
            }
            _ => {
                let mut block = *self.general.get(vcpu)?;
                *general_register(&mut block, reg)
            }
        })
    }

    pub(super) fn set(&mut self, vcpu: &VcpuFd, reg: Reg, value: u64) -> io::Result<()> {
        match reg {
            Reg::Idtr => self.system.get_mut(vcpu)?.idt.base = value,
            Reg::Gdtr => self.system.get_mut(vcpu)?.gdt.base = value,
            Reg::Pdpte0 | Reg::Pdpte1 | Reg::Pdpte2 | Reg::Pdpte3 => {
                let system = self.system.get_mut(vcpu)?;
                if !self.pdptes_set && system.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
                    self.pdptes = system.pdptrs;
                }
                self.pdptes[reg as usize - Reg::Pdpte0 as usize] = value;
                self.pdptes_set = true;
            }
            Reg::IntrShadow => {
                let events = self.events.get_mut(vcpu)?;
                events.interrupt.shadow = if value & 1 != 0 { KVM_X86_SHADOW_INT_STI as u8 } else { 0 };
                events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
            }
            Reg::EntryInstLength => self.entry_instruction_length = value,
            Reg::Dr0 | Reg::Dr1 | Reg::Dr2 | Reg::Dr3 | Reg::Dr6 | Reg::Dr7 => {
                *debug_register(self.debug.get_mut(vcpu)?, reg) = value;
            }
            Reg::Cr0 | Reg::Cr2 | Reg::Cr3 | Reg::Cr4 | Reg::Efer => {
                *control_register(self.system.get_mut(vcpu)?, reg) = value;
            }
            Reg::Es | Reg::Cs | Reg::Ss | Reg::Ds | Reg::Fs | Reg::Gs | Reg::Ldtr | Reg::Tr => {
                segment(self.system.get_mut(vcpu)?, reg).selector = value as u16;
            }
            _ => *general_register(self.general.get_mut(vcpu)?, reg) = value,
        }
        Ok(())
    }

    pub(super) fn desc(&mut self, vcpu: &VcpuFd, reg: Reg) -> io::Result<SegDesc> {
        let mut system = *self.system.get(vcpu)?;
        let table = |table: kvm_dtable| SegDesc { base: table.base, limit: table.limit.into(), access: 0 };
        Ok(match reg {
            Reg::Gdtr => table(system.gdt),
            Reg::Idtr => table(system.idt),
            _ => desc_of_segment(segment(&mut system, reg)),
        })
    }

    pub(super) fn set_desc(&mut self, vcpu: &VcpuFd, reg: Reg, desc: SegDesc) -> io::Result<()> {
        let system = self.system.get_mut(vcpu)?;
        let table = kvm_dtable { base: desc.base, limit: desc.limit as u16, padding: [0; 3] };
        match reg {
            Reg::Gdtr => system.gdt = table,
            Reg::Idtr => system.idt = table,
            _ => {
                let segment = segment(system, reg);
                *segment = segment_of_desc(segment.selector, desc);
            }
        }
        Ok(())
    }

    /// Writes all changes back.
    pub(super) fn write_back(&mut self, vcpu: &VcpuFd) -> io::Result<()> {
        if self.system.is_dirty() {
            let (pdptes, set) = (self.pdptes, self.pdptes_set);
            let system = self.system.get_mut(vcpu)?;
            // Without the flag KVM reads the PDPTEs from the memory at CR3, as MOV to CR3 does (SDM 3A 4.4.1).
            let given = set && pae_paging(system);
            system.flags = if given { KVM_SREGS2_FLAGS_PDPTRS_VALID.into() } else { 0 };
            system.pdptrs = if given { pdptes } else { [0; 4] };
            self.system.write_back(vcpu)?;
            if pae_paging(self.system.get(vcpu)?) {
                self.pdptes_set = false;
                self.system.forget();
            }
        }
        self.general.write_back(vcpu)?;
        self.debug.write_back(vcpu)?;
        // Last: to set the general registers clears a pending exception.
        self.events.write_back(vcpu)
    }

    /// Forgets everything that KVM may have changed.
    pub(super) fn forget(&mut self) {
        let Registers { general, system, debug, events, pdptes: _, pdptes_set: _, entry_instruction_length: _ } = self;
        general.forget();
        system.forget();
        debug.forget();
        events.forget();
    }
}

/// CR0.PG, CR4.PAE, and not EFER.LMA (SDM 3A 4.1.1).
fn pae_paging(system: &kvm_sregs2) -> bool {
    system.cr0 >> 31 & 1 != 0 && system.cr4 >> 5 & 1 != 0 && system.efer >> 10 & 1 == 0
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

fn control_register(system: &mut kvm_sregs2, reg: Reg) -> &mut u64 {
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

fn segment(system: &mut kvm_sregs2, reg: Reg) -> &mut kvm_segment {
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
