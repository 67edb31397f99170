//! `vcpu_reset`: the state of a vCPU after power-up, written register by register.

use vmm::engine::Reg::{self, *};
use vmm::engine::SegDesc;

/// One ioctl of `vcpu_reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// VM_SET_REGISTER.
    Register(Reg, u64),
    /// VM_SET_SEGMENT_DESCRIPTOR.
    Descriptor(Reg, SegDesc),
}

/// Since when a write is part of `vcpu_reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Since {
    /// 12.0 and before. \[read]
    Old,
    /// D35622, September 2022. \[read]
    D35622,
}

const fn desc(base: u64, limit: u32, access: u32) -> SegDesc {
    SegDesc { base, limit, access }
}

/// Present, readable and writable, accessed, 16-bit, byte granular.
const REAL_MODE_DATA: SegDesc = desc(0, 0xffff, 0x93);

/// The writes of one version of `vcpu_reset`, in order. CR0 is CR0_NE alone, deliberately not the manual's value (SDM 3A
/// table 10-1), which Windows does not survive.
pub(super) fn writes(version: Since) -> impl Iterator<Item = Write> {
    use Since::*;
    use Write::*;
    const TABLE: &[(Since, Write)] = &[
        (Old, Register(Rflags, 0x2)),
        (Old, Register(Rip, 0xfff0)),
        (Old, Register(Cr0, 0x20)),
        (D35622, Register(Cr2, 0)),
        (Old, Register(Cr3, 0)),
        (Old, Register(Cr4, 0)),
        (Old, Descriptor(Cs, desc(0xffff_0000, 0xffff, 0x93))),
        (Old, Register(Cs, 0xf000)),
        (Old, Descriptor(Ss, REAL_MODE_DATA)),
        (Old, Descriptor(Ds, REAL_MODE_DATA)),
        (Old, Descriptor(Es, REAL_MODE_DATA)),
        (Old, Descriptor(Fs, REAL_MODE_DATA)),
        (Old, Descriptor(Gs, REAL_MODE_DATA)),
        (Old, Register(Ss, 0)),
        (Old, Register(Ds, 0)),
        (Old, Register(Es, 0)),
        (Old, Register(Fs, 0)),
        (Old, Register(Gs, 0)),
        (D35622, Register(Efer, 0)),
        (Old, Register(Rax, 0)),
        (Old, Register(Rbx, 0)),
        (Old, Register(Rcx, 0)),
        (Old, Register(Rdx, 0xf00)),
        (Old, Register(Rsi, 0)),
        (Old, Register(Rdi, 0)),
        (Old, Register(Rbp, 0)),
        (Old, Register(Rsp, 0)),
        (D35622, Register(R8, 0)),
        (D35622, Register(R9, 0)),
        (D35622, Register(R10, 0)),
        (D35622, Register(R11, 0)),
        (D35622, Register(R12, 0)),
        (D35622, Register(R13, 0)),
        (D35622, Register(R14, 0)),
        (D35622, Register(R15, 0)),
        (Old, Descriptor(Gdtr, desc(0, 0xffff, 0))),
        (Old, Descriptor(Idtr, desc(0, 0xffff, 0))),
        (Old, Descriptor(Tr, desc(0, 0, 0x8b))),
        (Old, Register(Tr, 0)),
        (Old, Descriptor(Ldtr, desc(0, 0xffff, 0x82))),
        (Old, Register(Ldtr, 0)),
        (D35622, Register(Dr6, 0xffff_0ff0)),
        (D35622, Register(Dr7, 0x400)),
        (D35622, Register(IntrShadow, 0)),
    ];
    TABLE.iter().filter(move |(since, _)| *since <= version).map(|(_, write)| *write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d35622_adds_what_the_old_one_forgot() {
        let old: Vec<Write> = writes(Since::Old).collect();
        let added: Vec<Write> = writes(Since::D35622).filter(|write| !old.contains(write)).collect();
        let register = |reg, value| Write::Register(reg, value);
        let mut expected = vec![register(Cr2, 0), register(Efer, 0)];
        expected.extend([R8, R9, R10, R11, R12, R13, R14, R15].map(|reg| register(reg, 0)));
        expected.extend([register(Dr6, 0xffff_0ff0), register(Dr7, 0x400), register(IntrShadow, 0)]);
        assert_eq!(added, expected);
        assert_eq!(old.len() + added.len(), writes(Since::D35622).count());
    }

    #[test]
    fn every_register_is_written_once() {
        let targets: Vec<_> = writes(Since::D35622)
            .map(|write| match write {
                Write::Register(reg, _) => (reg, false),
                Write::Descriptor(reg, _) => (reg, true),
            })
            .collect();
        let distinct: std::collections::BTreeSet<_> = targets.iter().collect();
        assert_eq!(distinct.len(), targets.len());
    }
}
