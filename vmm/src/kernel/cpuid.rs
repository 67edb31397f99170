//! What CPUID tells the guest (`x86_emulate_cpuid`). The processor is the same on every host, so that a cell does not depend
//! on where it runs; it has what the software processor executes.

use crate::abi::VmCpuTopology;
use crate::engine::CpuidEntry;

/// CPUID.1:EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2, HTT.
/// vmm offers MCE and MCA whatever the host has, for guests that want them, and has no bank of errors (`x86.c`). \[read]
const FEATURES_EDX: u32 = 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26
    | 1 << 28;
/// CPUID.1:ECX: SSE3, SSSE3, CX16, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, XSAVE, and that there is a hypervisor.
const FEATURES_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 26 | 1 << 31;
const FEATURES_ECX_X2APIC: u32 = 1 << 21;
/// CPUID.80000001H:EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// CPUID.80000001H:ECX: LAHF in 64-bit mode, LZCNT, PREFETCHW.
const EXTENDED_ECX: u32 = 1 | 1 << 5 | 1 << 8;

/// CPUID.7:EBX: the x87 data pointer is kept at exceptions only; the selectors beside the x87 pointers are 0. And FSGSBASE,
/// SMEP, fast REP MOVSB and STOSB, INVPCID, ADX, SMAP, CLFLUSHOPT, CLWB.
const STRUCTURED_EBX: u32 = 1 << 6 | 1 << 13 | 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 24;
/// CPUID.7:ECX: UMIP, RDPID, CLDEMOTE.
const STRUCTURED_ECX: u32 = 1 << 2 | 1 << 22 | 1 << 25;
/// CPUID.7:EDX: fast short REP MOVSB, SERIALIZE; IA32_SPEC_CTRL and IA32_PRED_CMD, IA32_ARCH_CAPABILITIES: a processor that
/// does not speculate says so, which spares the guest its mitigations.
const STRUCTURED_EDX: u32 = 1 << 4 | 1 << 14 | 1 << 26 | 1 << 29;
/// CPUID.0DH: XCR0 has x87 and SSE; their area is the legacy region and the header.
const XSAVE_COMPONENTS: u32 = 3;
const XSAVE_BYTES: u32 = 512 + 64;
/// CPUID.0DH.1:EAX: XSAVEOPT, XSAVEC, XGETBV of the components in use.
const XSAVE_FORMS: u32 = 1 | 1 << 1 | 1 << 2;

/// The table of one vCPU.
pub(super) fn table(apic_id: u32, topology: &VmCpuTopology, x2apic: bool) -> Vec<CpuidEntry> {
    let leaf = |leaf, regs| CpuidEntry { leaf, subleaf: None, regs };
    let subleaf = |leaf, subleaf, regs| CpuidEntry { leaf, subleaf: Some(subleaf), regs };
    let threads = u32::from(topology.threads).max(1);
    let per_socket = u32::from(topology.cores).max(1) * threads;
    let ecx = FEATURES_ECX | if x2apic { FEATURES_ECX_X2APIC } else { 0 };
    let vendor = words(b"GenuineIntel");
    let hypervisor = words(b"bhyve bhyve ");
    // SDM 2A table 3-8, leaf 0BH: how many bits of the APIC ID tell the CPUs of a level apart.
    let level = |number: u32, kind: u32, count: u32| {
        subleaf(0xb, number, [ceil_log2(count), count, kind << 8 | number, apic_id])
    };
    vec![
        // The vendor's name stands in EBX, EDX, ECX.
        leaf(0, [0xd, vendor[0], vendor[2], vendor[1]]),
        leaf(1, [0x000306c3, (apic_id & 0xff) << 24 | (per_socket & 0xff) << 16 | 8 << 8, ecx, FEATURES_EDX]),
        subleaf(7, 0, [0, STRUCTURED_EBX, STRUCTURED_ECX, STRUCTURED_EDX]),
        level(0, 1, threads),
        level(1, 2, per_socket),
        subleaf(0xb, 2, [0, 0, 2, apic_id]),
        subleaf(0xd, 0, [XSAVE_COMPONENTS, XSAVE_BYTES, XSAVE_BYTES, 0]),
        subleaf(0xd, 1, [XSAVE_FORMS, XSAVE_BYTES, 0, 0]),
        leaf(0x4000_0000, [0x4000_0000, hypervisor[0], hypervisor[1], hypervisor[2]]),
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, EXTENDED_ECX, EXTENDED_EDX]),
        // Invariant TSC.
        leaf(0x8000_0007, [0, 0, 0, 1 << 8]),
        // 48 bits of linear and 40 of physical address; WBNOINVD.
        leaf(0x8000_0008, [48 << 8 | 40, 1 << 9, 0, 0]),
    ]
}

/// Four characters to a register, the first in its lowest byte.
fn words(text: &[u8; 12]) -> [u32; 3] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| text[4 * i + j])))
}

fn ceil_log2(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::features::{Announced, Feature, Output};

    fn find(table: &[CpuidEntry], leaf: u32, subleaf: Option<u32>) -> [u32; 4] {
        table.iter().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf).expect("the leaf").regs
    }

    /// Bits that announce what nothing in the processor depends on, by leaf, subleaf, place among the registers, and why.
    const NO_GATE: &[(u32, u32, Output, u32, &str)] = &[
        (1, 0, Output::Edx, 9, "APIC: the kernel's"),
        (1, 0, Output::Edx, 14, "MCA: the kernel's"),
        (1, 0, Output::Edx, 28, "HTT: the count of CPUs is valid"),
        (1, 0, Output::Ecx, 21, "x2APIC: the kernel's"),
        (1, 0, Output::Ecx, 31, "there is a hypervisor"),
        (7, 0, Output::Ebx, 6, "the x87 data pointer is kept at exceptions only"),
        (7, 0, Output::Ebx, 9, "fast REP MOVSB"),
        (7, 0, Output::Ebx, 13, "the x87 selectors are not kept"),
        (7, 0, Output::Ecx, 25, "CLDEMOTE: a hint"),
        (7, 0, Output::Edx, 4, "fast short REP MOVSB"),
        (0x8000_0001, 0, Output::Ecx, 8, "PREFETCHW: a hint"),
        (0x8000_0007, 0, Output::Edx, 8, "invariant TSC"),
        (0x8000_0008, 0, Output::Ebx, 9, "WBNOINVD: the same as WBINVD without a cache"),
    ];
    /// Registers whose bits are features.
    const FEATURES: &[(u32, u32, Output)] = &[
        (1, 0, Output::Ecx),
        (1, 0, Output::Edx),
        (7, 0, Output::Ebx),
        (7, 0, Output::Ecx),
        (7, 0, Output::Edx),
        (0xd, 1, Output::Eax),
        (0x8000_0001, 0, Output::Ecx),
        (0x8000_0001, 0, Output::Edx),
        (0x8000_0007, 0, Output::Edx),
        (0x8000_0008, 0, Output::Ebx),
    ];

    /// Every feature that the table offers is one that the software processor has and takes away with its bit, or stands in the
    /// list above.
    #[test]
    fn every_bit_is_a_feature_of_the_processor() {
        let table = table(0, &VmCpuTopology::default(), true);
        for &(leaf, subleaf, register) in FEATURES {
            let entry = table.iter().find(|entry| entry.leaf == leaf && entry.subleaf.is_none_or(|s| s == subleaf));
            let value = entry.expect("the leaf").regs[register as usize];
            for bit in (0..32).filter(|bit| value >> bit & 1 != 0) {
                let announced = Announced { leaf, subleaf, register, bit };
                let is_gated = Feature::ALL.iter().any(|feature| feature.announced() == announced);
                let has_none = NO_GATE.iter().any(|&(l, s, r, b, _)| (l, s, r, b) == (leaf, subleaf, register, bit));
                assert!(is_gated != has_none, "{announced:?}: {}", if is_gated { "twice" } else { "unknown" });
            }
        }
    }

    #[test]
    fn names_and_ids() {
        let topology = VmCpuTopology { sockets: 2, cores: 2, threads: 2, maxcpus: 0 };
        let table = table(5, &topology, true);
        let [_, ebx, ecx, edx] = find(&table, 0, None);
        let name: Vec<u8> = [ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(name, b"GenuineIntel");
        let [_, ebx, ecx, _] = find(&table, 1, None);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (5, 4), "APIC ID, CPUs of the package");
        assert_ne!(ecx & 1 << 21, 0, "x2APIC");
        assert_eq!(find(&table, 0xb, Some(0)), [1, 2, 0x100, 5], "SMT");
        assert_eq!(find(&table, 0xb, Some(1)), [2, 4, 0x201, 5], "core");
        assert_eq!(super::table(5, &topology, false)[1].regs[2] & 1 << 21, 0);
    }

    /// VM_SET_TOPOLOGY takes any product up to the number of vCPUs, and so 0.
    #[test]
    fn the_largest_topology_without_a_cpu() {
        let topology = VmCpuTopology { sockets: 0, cores: u16::MAX, threads: u16::MAX, maxcpus: 0 };
        let table = table(0, &topology, false);
        assert_eq!(find(&table, 0xb, Some(1))[..2], [32, 65535 * 65535]);
        assert_eq!([1, 2, 3, 4, 5, u32::MAX].map(ceil_log2), [0, 1, 2, 2, 3, 32]);
    }
}
