//! The CPUID table in KVM's form.

use crate::engine::CpuidEntry;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves whose registers are features that the processor has or has not, and bits of them that are not KVM's to grant:
/// they speak of the local APIC and the topology, which are ours, and of the hypervisor.
const FEATURES: [(u32, u32, [u32; 4]); 5] = [
    // EBX holds APIC ID and counts. ECX: x2APIC 21, TSC deadline 24, OSXSAVE 27, hypervisor 31. EDX: APIC 9, HTT 28.
    (1, 0, [!0, !0, 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31, 1 << 9 | 1 << 28]),
    // EAX is the number of subleaves.
    (7, 0, [!0, 0, 0, 0]),
    // State components of XCR0 in EAX and EDX; sizes in EBX and ECX.
    (0xd, 0, [0, !0, !0, 0]),
    // Forms of XSAVE in EAX; a size in EBX.
    (0xd, 1, [0, !0, 0, 0]),
    // EAX and EBX are no features. ECX: CmpLegacy 1, ExtApicSpace 3, topology extensions 22. EDX: APIC 9.
    (0x8000_0001, 0, [!0, !0, 1 << 1 | 1 << 3 | 1 << 22, 1 << 9]),
];

/// The table for `KVM_SET_CPUID2`: `table`, without the features that the host does not support. KVM itself would let the
/// guest see them, and the guest would then use what it does not get.
pub(super) fn table(table: &[CpuidEntry], supported: &CpuId) -> Vec<kvm_cpuid_entry2> {
    table
        .iter()
        .map(|entry| {
            let CpuidEntry { leaf, subleaf, mut regs } = *entry;
            let index = subleaf.unwrap_or(0);
            if let Some((.., free)) = FEATURES.iter().find(|(l, s, _)| (*l, *s) == (leaf, index)) {
                let host = supported.as_slice().iter().find(|host| (host.function, host.index) == (leaf, index));
                let host = host.map_or([0; 4], |host| [host.eax, host.ebx, host.ecx, host.edx]);
                for ((reg, host), free) in regs.iter_mut().zip(host).zip(free) {
                    *reg &= host | free;
                }
            }
            let [eax, ebx, ecx, edx] = regs;
            let flags = if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, padding: [0; 3] }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_intersected_and_everything_else_is_taken_as_given() {
        let host = kvm_cpuid_entry2 { function: 1, ecx: 0x1, edx: 0x10, ..Default::default() };
        let supported = CpuId::from_entries(&[host]).expect("one entry");
        let entries = [
            CpuidEntry { leaf: 0, subleaf: None, regs: [1, 2, 3, 4] },
            CpuidEntry { leaf: 1, subleaf: None, regs: [0xf_0000, 0x0302_0800, 0x8020_0003, 0x1000_0230] },
            CpuidEntry { leaf: 7, subleaf: Some(0), regs: [0, 9, 9, 9] },
        ];
        let table = table(&entries, &supported);
        let regs = |i: usize| [table[i].eax, table[i].ebx, table[i].ecx, table[i].edx];
        assert_eq!(regs(0), [1, 2, 3, 4]);
        assert_eq!(regs(1), [0xf_0000, 0x0302_0800, 0x8020_0001, 0x1000_0210]);
        assert_eq!(regs(2), [0, 0, 0, 0], "the host has no leaf 7");
        assert_eq!([table[1].flags, table[2].flags], [0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX]);
    }
}
