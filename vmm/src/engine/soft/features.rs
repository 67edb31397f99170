//! What the processor has is what its CPUID table offers: an instruction that is not offered raises #UD, and a bit of a control
//! register or MSR that is not offered is reserved.
//!
//! Instructions are looked at when they are decoded, so that none costs more for it. A processor that has no table yet has
//! everything, apart from 57-bit linear addresses, which change what an address is.

use super::state::{cr4, efer};
use crate::engine::CpuidEntry;
use iced_x86::{Code, CodeSize, CpuidFeature, Instruction, Mnemonic};

/// A register that CPUID returns a feature in, by its place in [`CpuidEntry::regs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where CPUID announces a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) leaf: u32,
    pub(crate) subleaf: u32,
    pub(crate) register: Output,
    pub(crate) bit: u32,
}

macro_rules! features {
    ($($name:ident: ($leaf:literal, $subleaf:literal) $register:ident $bit:literal,)*) => {
        /// A feature that instructions, control bits, MSRs or page-table formats depend on (SDM 2A, CPUID).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub(crate) enum Feature { $($name,)* }

        impl Feature {
            /// All of them.
            pub(crate) const ALL: &[Feature] = &[$(Feature::$name,)*];

            /// Where it is announced.
            pub(crate) fn announced(self) -> Announced {
                match self {
                    $(Feature::$name => {
                        Announced { leaf: $leaf, subleaf: $subleaf, register: Output::$register, bit: $bit }
                    })*
                }
            }
        }
    };
}

features! {
    Fpu: (1, 0) Edx 0,
    Vme: (1, 0) Edx 1,
    De: (1, 0) Edx 2,
    Pse: (1, 0) Edx 3,
    Tsc: (1, 0) Edx 4,
    Msr: (1, 0) Edx 5,
    Pae: (1, 0) Edx 6,
    Mce: (1, 0) Edx 7,
    Cx8: (1, 0) Edx 8,
    Sep: (1, 0) Edx 11,
    Mtrr: (1, 0) Edx 12,
    Pge: (1, 0) Edx 13,
    Cmov: (1, 0) Edx 15,
    Pat: (1, 0) Edx 16,
    Pse36: (1, 0) Edx 17,
    Clfsh: (1, 0) Edx 19,
    Mmx: (1, 0) Edx 23,
    Fxsr: (1, 0) Edx 24,
    Sse: (1, 0) Edx 25,
    Sse2: (1, 0) Edx 26,
    Sse3: (1, 0) Ecx 0,
    Monitor: (1, 0) Ecx 3,
    Ssse3: (1, 0) Ecx 9,
    Cx16: (1, 0) Ecx 13,
    Pcid: (1, 0) Ecx 17,
    Sse41: (1, 0) Ecx 19,
    Sse42: (1, 0) Ecx 20,
    Movbe: (1, 0) Ecx 22,
    Popcnt: (1, 0) Ecx 23,
    Xsave: (1, 0) Ecx 26,
    MwaitInterrupts: (5, 0) Ecx 1,
    FsGsBase: (7, 0) Ebx 0,
    Bmi1: (7, 0) Ebx 3,
    Smep: (7, 0) Ebx 7,
    Invpcid: (7, 0) Ebx 10,
    Adx: (7, 0) Ebx 19,
    Smap: (7, 0) Ebx 20,
    Clflushopt: (7, 0) Ebx 23,
    Clwb: (7, 0) Ebx 24,
    Umip: (7, 0) Ecx 2,
    La57: (7, 0) Ecx 16,
    Rdpid: (7, 0) Ecx 22,
    Serialize: (7, 0) Edx 14,
    SpecCtrl: (7, 0) Edx 26,
    ArchCapabilities: (7, 0) Edx 29,
    Xsaveopt: (0xD, 1) Eax 0,
    Xsavec: (0xD, 1) Eax 1,
    XinUse: (0xD, 1) Eax 2,
    LahfIn64: (0x8000_0001, 0) Ecx 0,
    Lzcnt: (0x8000_0001, 0) Ecx 5,
    Syscall: (0x8000_0001, 0) Edx 11,
    Nx: (0x8000_0001, 0) Edx 20,
    Page1G: (0x8000_0001, 0) Edx 26,
    Rdtscp: (0x8000_0001, 0) Edx 27,
    LongMode: (0x8000_0001, 0) Edx 29,
}
const _: () = assert!(Feature::ALL.len() <= 64, "they are bits of a word");

/// Bits of CR4 that a feature brings.
const CR4_BITS: &[(Feature, u64)] = &[
    (Feature::Vme, cr4::VME | cr4::PVI),
    (Feature::Tsc, cr4::TSD),
    (Feature::De, cr4::DE),
    (Feature::Pse, cr4::PSE),
    (Feature::Pae, cr4::PAE),
    (Feature::Mce, cr4::MCE),
    (Feature::Pge, cr4::PGE),
    (Feature::Fxsr, cr4::OSFXSR),
    (Feature::Sse, cr4::OSXMMEXCPT),
    (Feature::Umip, cr4::UMIP),
    (Feature::La57, cr4::LA57),
    (Feature::FsGsBase, cr4::FSGSBASE),
    (Feature::Pcid, cr4::PCIDE),
    (Feature::Xsave, cr4::OSXSAVE),
    (Feature::Smep, cr4::SMEP),
    (Feature::Smap, cr4::SMAP),
];

/// Bits of IA32_EFER that a feature brings.
const EFER_BITS: &[(Feature, u64)] =
    &[(Feature::Syscall, efer::SCE), (Feature::LongMode, efer::LME | efer::LMA), (Feature::Nx, efer::NXE)];

/// A set of features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features(u64);

impl Features {
    /// All of them.
    pub(super) const ALL: Features = Features(u64::MAX >> (64 - Feature::ALL.len()));

    /// What a table offers: a leaf that it does not have is zero.
    pub(super) fn of(table: &[CpuidEntry]) -> Features {
        if table.is_empty() {
            return Features::ALL.without(Feature::La57);
        }
        let offered = |feature: &&Feature| {
            let Announced { leaf, subleaf, register, bit } = feature.announced();
            let matches =
                |entry: &&CpuidEntry| entry.leaf == leaf && entry.subleaf.is_none_or(|number| number == subleaf);
            table.iter().find(matches).is_some_and(|entry| entry.regs[register as usize] >> bit & 1 != 0)
        };
        Features(Feature::ALL.iter().filter(offered).fold(0, |bits, &feature| bits | 1 << feature as u8))
    }

    pub(super) fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    pub(super) fn without(self, feature: Feature) -> Features {
        Features(self.0 & !(1 << feature as u8))
    }

    /// Bits of CR4 that are not reserved. Performance-monitoring counters (PCE) are no feature of CPUID.
    pub(super) fn cr4(self) -> u64 {
        cr4::PCE | self.bits(CR4_BITS)
    }

    /// Bits of IA32_EFER that are not reserved.
    pub(super) fn efer(self) -> u64 {
        self.bits(EFER_BITS)
    }

    fn bits(self, table: &[(Feature, u64)]) -> u64 {
        table.iter().filter(|(feature, _)| self.has(*feature)).fold(0, |bits, (_, more)| bits | more)
    }

    /// Whether everything that an instruction needs is offered.
    pub(super) fn offer(self, instruction: &Instruction) -> bool {
        needed(instruction).all(|feature| self.has(feature))
    }

    /// The instruction that the processor takes an instruction for, where a feature that is not offered gives a prefix its
    /// meaning: TZCNT is BSF, LZCNT is BSR (SDM 2). WBNOINVD is WBINVD, which does the same here.
    pub(super) fn taken_for(self, instruction: &Instruction) -> Option<Instruction> {
        use Code::*;
        let (feature, code) = match instruction.code() {
            Tzcnt_r16_rm16 => (Feature::Bmi1, Bsf_r16_rm16),
            Tzcnt_r32_rm32 => (Feature::Bmi1, Bsf_r32_rm32),
            Tzcnt_r64_rm64 => (Feature::Bmi1, Bsf_r64_rm64),
            Lzcnt_r16_rm16 => (Feature::Lzcnt, Bsr_r16_rm16),
            Lzcnt_r32_rm32 => (Feature::Lzcnt, Bsr_r32_rm32),
            Lzcnt_r64_rm64 => (Feature::Lzcnt, Bsr_r64_rm64),
            _ => return None,
        };
        let mut plain = *instruction;
        plain.set_code(code);
        (!self.has(feature)).then_some(plain)
    }
}

/// The features without which an instruction is no instruction. Hints are none: without their feature they do nothing.
pub(super) fn needed(instruction: &Instruction) -> impl Iterator<Item = Feature> {
    let mnemonic = instruction.mnemonic();
    let is_hint =
        matches!(mnemonic, Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2);
    let lahf = matches!(mnemonic, Mnemonic::Lahf | Mnemonic::Sahf) && instruction.code_size() == CodeSize::Code64;
    let of_code = instruction.cpuid_features().iter().filter(move |_| !is_hint).filter_map(|feature| of_iced(*feature));
    of_code.chain(lahf.then_some(Feature::LahfIn64))
}

/// The feature by iced-x86's name, if instructions depend on it.
fn of_iced(feature: CpuidFeature) -> Option<Feature> {
    Some(match feature {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => Feature::Fpu,
        CpuidFeature::TSC => Feature::Tsc,
        CpuidFeature::MSR => Feature::Msr,
        CpuidFeature::CX8 => Feature::Cx8,
        CpuidFeature::SEP => Feature::Sep,
        CpuidFeature::CMOV => Feature::Cmov,
        CpuidFeature::CLFSH => Feature::Clfsh,
        CpuidFeature::MMX => Feature::Mmx,
        CpuidFeature::FXSR => Feature::Fxsr,
        CpuidFeature::SSE => Feature::Sse,
        CpuidFeature::SSE2 => Feature::Sse2,
        CpuidFeature::SSE3 => Feature::Sse3,
        CpuidFeature::MONITOR => Feature::Monitor,
        CpuidFeature::SSSE3 => Feature::Ssse3,
        CpuidFeature::CMPXCHG16B => Feature::Cx16,
        CpuidFeature::SSE4_1 => Feature::Sse41,
        CpuidFeature::SSE4_2 => Feature::Sse42,
        CpuidFeature::MOVBE => Feature::Movbe,
        CpuidFeature::POPCNT => Feature::Popcnt,
        CpuidFeature::XSAVE => Feature::Xsave,
        CpuidFeature::XSAVEOPT => Feature::Xsaveopt,
        CpuidFeature::XSAVEC => Feature::Xsavec,
        CpuidFeature::FSGSBASE => Feature::FsGsBase,
        CpuidFeature::INVPCID => Feature::Invpcid,
        CpuidFeature::ADX => Feature::Adx,
        CpuidFeature::SMAP => Feature::Smap,
        CpuidFeature::CLFLUSHOPT => Feature::Clflushopt,
        CpuidFeature::CLWB => Feature::Clwb,
        CpuidFeature::RDPID => Feature::Rdpid,
        CpuidFeature::SERIALIZE => Feature::Serialize,
        CpuidFeature::SYSCALL => Feature::Syscall,
        CpuidFeature::RDTSCP => Feature::Rdtscp,
        _ => return None,
    })
}
