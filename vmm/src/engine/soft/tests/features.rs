//! What CPUID offers is there, and what it does not offer is not: every feature, from both sides.

use super::events::{handled, long_mode_idt};
use super::table::forms;
use super::{Bench, CODE, PDPT, PML4};
use crate::engine::soft::decode;
use crate::engine::soft::features::{Announced, Feature, Features, needed};
use crate::engine::{CpuidEntry, Exit, Reg};
use iced_x86::code_asm::*;
use std::collections::BTreeMap;

/// A table that announces a set of features and nothing else.
fn leaves(features: Features) -> Vec<CpuidEntry> {
    let mut leaves: BTreeMap<(u32, u32), [u32; 4]> = BTreeMap::new();
    for &feature in Feature::ALL {
        let Announced { leaf, subleaf, register, bit } = feature.announced();
        let regs = leaves.entry((leaf, subleaf)).or_default();
        regs[register as usize] |= u32::from(features.has(feature)) << bit;
    }
    let entry = |((leaf, subleaf), regs)| CpuidEntry { leaf, subleaf: Some(subleaf), regs };
    leaves.into_iter().map(entry).collect()
}

/// A table that announces everything but 57-bit addresses.
pub(super) fn all_leaves() -> Vec<CpuidEntry> {
    leaves(Features::ALL.without(Feature::La57))
}

fn bench(features: Features, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    long_mode_idt(&mut bench);
    bench.cpu.set_cpuid(&leaves(features));
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

/// The exception that the code ends in, if it does not reach its end.
fn outcome(features: Features, build: impl FnOnce(&mut CodeAssembler)) -> Option<u64> {
    let mut bench = bench(features, |a| {
        build(a);
        a.hlt().unwrap();
    });
    // Pages of the supervisor, so that SMEP and SMAP do not matter.
    bench.write64(PML4, PDPT | 3);
    bench.run_to_hlt();
    let in_code = (CODE..CODE + 0x100).contains(&bench.cpu.reg(Reg::Rip));
    (!in_code).then(|| handled(&mut bench))
}

/// With the feature nothing happens, without it this exception.
#[track_caller]
fn decides(feature: Feature, exception: u64, build: impl Fn(&mut CodeAssembler)) {
    assert_eq!(outcome(Features::ALL, &build), None, "{feature:?} is offered");
    assert_eq!(outcome(Features::ALL.without(feature), &build), Some(exception), "{feature:?} is not offered");
}

#[test]
fn a_table_announces_what_it_says() {
    assert_eq!(Features::of(&leaves(Features::ALL)), Features::ALL);
    for &feature in Feature::ALL {
        let set = Features::ALL.without(feature);
        assert_eq!(Features::of(&leaves(set)), set, "{feature:?}");
    }
    assert!(!Features::of(&[]).has(Feature::La57));
}

/// Features that no instruction and no control bit alone depends on; the tests below take them one by one.
const OTHERS: &[Feature] = &[
    Feature::Mtrr,
    Feature::Pat,
    Feature::Pse36,
    Feature::MwaitInterrupts,
    Feature::Bmi1,
    Feature::Lzcnt,
    Feature::SpecCtrl,
    Feature::ArchCapabilities,
    Feature::XinUse,
    Feature::LahfIn64,
    Feature::Page1G,
];

#[test]
fn every_feature_decides_something() {
    let forms = forms();
    for &feature in Feature::ALL {
        let without = Features::ALL.without(feature);
        let controls = without.cr4() != Features::ALL.cr4() || without.efer() != Features::ALL.efer();
        let instructions = forms.values().any(|form| needed(form).any(|needed| needed == feature));
        assert!(controls || instructions || OTHERS.contains(&feature), "{feature:?}");
    }
}

#[test]
fn instructions_that_are_not_offered_are_lacking() {
    let mut gated = 0;
    for (code, form) in forms() {
        assert_eq!(
            decode::decode_offered(form, Features::ALL).lacking,
            decode::decode(form).lacking,
            "{code:?} with everything"
        );
        for feature in needed(form) {
            assert!(
                decode::decode_offered(form, Features::ALL.without(feature)).lacking,
                "{code:?} without {feature:?}"
            );
            gated += 1;
        }
    }
    assert!(gated > 600, "{gated} pairs of an instruction and a feature");
}

#[test]
fn what_is_not_offered_is_undefined_and_recorded() {
    let mut bench = bench(Features::ALL.without(Feature::Popcnt), |a| {
        a.popcnt(eax, ecx).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 6);
    let recorded = bench.cpu.take_unimplemented();
    assert_eq!((recorded[0].what.as_str(), recorded[0].rip), ("popcnt, which CPUID does not offer", CODE));
}

#[test]
fn processors_of_one_machine_may_differ() {
    let mut bench = bench(Features::ALL, |a| {
        a.popcnt(eax, ecx).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rcx, 0xFF);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 8);
    // The same code on the same pages, by the same short cut.
    bench.cpu.set_cpuid(&leaves(Features::ALL.without(Feature::Popcnt)));
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 6);
    for i in 0..300 {
        // More tables than keys have room for.
        let kinds = Feature::ALL.iter().enumerate().take(Feature::LahfIn64 as usize).skip(Feature::Sse3 as usize);
        let kinds = kinds.filter(|(bit, _)| i >> (bit % 9) & 1 != 0);
        let set = kinds.fold(Features::ALL, |set, (_, &feature)| set.without(feature));
        bench.cpu.set_cpuid(&leaves(set));
        bench.cpu.set_reg(Reg::Rip, CODE);
        bench.cpu.set_reg(Reg::Rsp, 0x8000);
        bench.run_to_hlt();
        let executed = bench.cpu.reg(Reg::Rip) == CODE + 5;
        assert_eq!(executed, set.has(Feature::Popcnt), "table {i}");
    }
}

#[test]
fn control_bits_are_reserved_unless_offered() {
    for &feature in Feature::ALL {
        let without = Features::ALL.without(feature);
        let bits = Features::ALL.cr4() & !without.cr4();
        // PAE and 57-bit addresses are not to be changed in long mode, and PCIDs need it.
        if bits != 0 && ![Feature::Pae, Feature::La57].contains(&feature) {
            decides(feature, 13, |a| {
                a.mov(rax, 0x620_u64 | bits).unwrap();
                a.mov(rcx, cr4).unwrap();
                a.or(rax, rcx).unwrap();
                a.mov(cr4, rax).unwrap();
            });
        }
    }
    for (feature, bit) in [(Feature::Syscall, 1), (Feature::Nx, 1 << 11)] {
        decides(feature, 13, |a| {
            a.mov(ecx, 0xC000_0080_u32).unwrap();
            a.mov(eax, 0x500 | bit).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        });
    }
}

#[test]
fn control_bits_of_address_translation() {
    for (feature, bit) in [(Feature::Pae, 0x20), (Feature::La57, 0x1000)] {
        for (set, good) in [(Features::ALL, true), (Features::ALL.without(feature), false)] {
            let mut bench = Bench::new(0x10_0000);
            bench.protected_mode(0);
            bench.cpu.set_cpuid(&leaves(set));
            bench.load(32, CODE, |a| {
                a.mov(eax, bit).unwrap();
                a.mov(cr4, eax).unwrap();
                a.hlt().unwrap();
            });
            let exit = bench.run(10);
            // Without an IDT, #GP ends in a triple fault.
            assert_eq!(exit == Exit::Hlt, good, "{feature:?}");
        }
    }
    let lme = |set| {
        let mut bench = Bench::new(0x10_0000);
        bench.protected_mode(0);
        bench.cpu.set_cpuid(&leaves(set));
        bench.load(32, CODE, |a| {
            a.mov(ecx, 0xC000_0080_u32).unwrap();
            a.mov(eax, 0x100).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
            a.hlt().unwrap();
        });
        bench.run(10) == Exit::Hlt
    };
    assert!(lme(Features::ALL) && !lme(Features::ALL.without(Feature::LongMode)));
}

#[test]
fn msrs_that_are_not_offered_are_not_the_engine_s() {
    for (feature, index) in
        [(Feature::Mtrr, 0x2FF), (Feature::Mtrr, 0xFE), (Feature::Mtrr, 0x20F), (Feature::Pat, 0x277)]
            .into_iter()
            .chain([(Feature::SpecCtrl, 0x48), (Feature::ArchCapabilities, 0x10A)])
    {
        let run = |set| {
            let mut bench = bench(set, |a| {
                a.mov(ecx, index).unwrap();
                a.rdmsr().unwrap();
                a.hlt().unwrap();
            });
            bench.run(10)
        };
        assert_eq!(run(Features::ALL), Exit::Hlt, "MSR {index:#x}");
        assert_eq!(run(Features::ALL.without(feature)), Exit::RdMsr { index }, "MSR {index:#x}");
    }
}

#[test]
fn prefixes_that_mean_nothing_without_their_feature() {
    let count = |set| {
        let mut bench = bench(set, |a| {
            a.mov(ecx, 0x0000_1000).unwrap();
            a.tzcnt(eax, ecx).unwrap();
            a.lzcnt(edx, ecx).unwrap();
            a.hlt().unwrap();
        });
        bench.run_to_hlt();
        (bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rdx))
    };
    assert_eq!(count(Features::ALL), (12, 19));
    assert_eq!(count(Features::ALL.without(Feature::Lzcnt)), (12, 12), "BSR");
    // BSF of zero leaves its destination alone; TZCNT gives 32.
    let of_zero = |set| {
        let mut bench = bench(set, |a| {
            a.mov(eax, 77).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.tzcnt(eax, ecx).unwrap();
            a.hlt().unwrap();
        });
        bench.run_to_hlt();
        bench.cpu.reg(Reg::Rax)
    };
    assert_eq!((of_zero(Features::ALL), of_zero(Features::ALL.without(Feature::Bmi1))), (32, 77));
}

#[test]
fn pages_of_1_gbyte() {
    let run = |set| {
        let mut bench = bench(set, |a| {
            a.mov(ebx, dword_ptr(0x4000_0000)).unwrap();
            a.hlt().unwrap();
        });
        // The first Gbyte, where the code is, goes by 2-Mbyte pages, which everybody has.
        bench.write64(PDPT, 0x3007);
        bench.write64(0x3000, 0x87);
        bench.write64(PDPT + 8, 0x87);
        bench.run_to_hlt();
        let reserved = handled(&mut bench) == 14;
        let stack = bench.cpu.reg(Reg::Rsp);
        reserved.then(|| bench.read64(stack))
    };
    assert_eq!(run(Features::ALL), None);
    assert_eq!(run(Features::ALL.without(Feature::Page1G)), Some(0x9), "the size bit is reserved");
}

#[test]
fn lahf_in_64_bit_mode() {
    decides(Feature::LahfIn64, 6, |a| a.lahf().unwrap());
    decides(Feature::LahfIn64, 6, |a| a.sahf().unwrap());
}

#[test]
fn page_size_extension_of_36_bits() {
    // Address bit 32 in an entry that maps a 4-Mbyte page, and bit 21, which is always reserved.
    for (set, entry, good) in [
        (Features::ALL, 1 << 13, true),
        (Features::ALL, 1 << 21, false),
        (Features::ALL.without(Feature::Pse36), 1 << 13, false),
        (Features::ALL.without(Feature::Pse36), 0, true),
    ] {
        let mut bench = Bench::new(0x10_0000);
        bench.protected_mode(0);
        bench.cpu.set_cpuid(&leaves(set));
        bench.write(0x2_0000, &0x83_u32.to_le_bytes());
        bench.write(0x2_0004, &(0x83_u32 | entry).to_le_bytes());
        bench.cpu.set_reg(Reg::Cr3, 0x2_0000);
        bench.cpu.set_reg(Reg::Cr4, 0x10);
        bench.cpu.set_reg(Reg::Cr0, 0x8000_0031);
        let expected = good.then_some(u64::from(entry) << 19 | 0x1234);
        assert_eq!(bench.cpu.translate(0x40_1234), expected.filter(|_| good), "entry {entry:#x}");
    }
}

#[test]
fn monitor_and_mwait() {
    let run = |set, cpl, build: super::Build| {
        let mut bench = bench(set, build);
        bench.flat_segments(0xA09B, cpl);
        let exit = bench.run(20);
        let vector = if exit == Exit::Hlt { handled(&mut bench) } else { u64::MAX };
        (exit, vector)
    };
    let wait: super::Build = |a| {
        a.mov(eax, 0x600).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.monitor().unwrap();
        a.mov(ecx, 1).unwrap();
        a.mwait().unwrap();
    };
    assert_eq!(run(Features::ALL, 0, wait).0, Exit::Pause);
    assert_eq!(run(Features::ALL, 3, wait), (Exit::Hlt, 6));
    assert_eq!(run(Features::ALL.without(Feature::Monitor), 0, wait), (Exit::Hlt, 6));
    assert_eq!(run(Features::ALL.without(Feature::MwaitInterrupts), 0, wait), (Exit::Hlt, 13));
    let extension: super::Build = |a| {
        a.mov(ecx, 1).unwrap();
        a.monitor().unwrap();
    };
    assert_eq!(run(Features::ALL, 0, extension), (Exit::Hlt, 13));
    let nowhere: super::Build = |a| {
        a.mov(rax, 0x7FFF_0000_0000_u64).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.monitor().unwrap();
    };
    assert_eq!(run(Features::ALL, 0, nowhere), (Exit::Hlt, 14));
}

#[test]
fn extended_control_registers() {
    decides(Feature::XinUse, 13, |a| {
        a.mov(eax, 0x4_0620).unwrap();
        a.mov(cr4, rax).unwrap();
        a.mov(ecx, 1).unwrap();
        a.xgetbv().unwrap();
    });
}

#[test]
fn there_is_no_system_management_mode_to_resume_from() {
    let mut bench = bench(Features::ALL, |a| a.db(&[0x0F, 0xAA]).unwrap());
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 6);
    assert!(bench.cpu.take_unimplemented().is_empty());
}
