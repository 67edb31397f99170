//! Control registers, MSRs, CPUID, fast system calls, system tables.

use super::events::{handled, long_mode_idt};
use super::{Bench, Build, CODE};
use crate::engine::{CpuidEntry, Exit, Reg, SegDesc};
use iced_x86::code_asm::*;

fn bench(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(cpl);
    long_mode_idt(&mut bench);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

fn wrmsr(a: &mut CodeAssembler, index: u32, value: u64) {
    a.mov(ecx, index).unwrap();
    a.mov(eax, value as u32).unwrap();
    a.mov(edx, (value >> 32) as u32).unwrap();
    a.wrmsr().unwrap();
}

#[test]
fn syscall_and_sysret() {
    let mut bench = bench(0, |a| {
        wrmsr(a, 0xC000_0081, 0x0010_0008_0000_0000); // STAR: kernel 08, user 10
        wrmsr(a, 0xC000_0082, 0x1_2000);
        wrmsr(a, 0xC000_0084, 0x200);
        a.mov(ecx, 0x1_1000).unwrap();
        a.mov(r11d, 0x202).unwrap();
        a.sysretq().unwrap();
    });
    bench.write(0x1_1000, &[0x0F, 0x05]); // syscall
    bench.write(0x1_2000, &[0xF4]);
    assert_eq!(bench.run(15), Exit::Budget);
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Ss)), (0x23, 0x1B));
    assert_eq!(bench.cpu.desc(Reg::Cs).access, 0xA0FB);
    assert_eq!(bench.cpu.desc(Reg::Ss).access, 0xC0F3);
    assert_eq!(bench.cpu.reg(Reg::Rip), 0x1_1000);
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Ss)), (8, 0x10));
    assert_eq!((bench.cpu.reg(Reg::Rcx), bench.cpu.reg(Reg::R11)), (0x1_1002, 0x202));
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 0x200, 0, "FMASK");
}

#[test]
fn compatibility_mode() {
    // SYSRETD to 32-bit code, which addresses and computes in 32 bits and comes back by SYSENTER.
    let mut bench = bench(0, |a| {
        wrmsr(a, 0xC000_0081, 0x0010_0008_0000_0000);
        wrmsr(a, 0x174, 8);
        wrmsr(a, 0x175, 0x6000);
        wrmsr(a, 0x176, 0x1_2000);
        a.mov(ecx, 0x1_1000).unwrap();
        a.mov(r11d, 0x2).unwrap();
        a.sysret().unwrap();
    });
    let mut code = CodeAssembler::new(32).unwrap();
    code.mov(eax, 0xFFFF_FFFF_u32).unwrap();
    code.inc(eax).unwrap(); // 40, which would be a REX prefix
    code.mov(ebx, dword_ptr(eax + 0x500)).unwrap();
    code.sysenter().unwrap();
    bench.write(0x1_1000, &code.assemble(0x1_1000).unwrap());
    bench.write(0x500, &[0x78, 0x56, 0x34, 0x12]);
    bench.write(0x1_2000, &[0x48, 0xFF, 0xC0, 0xF4]); // inc rax; hlt
    // The data segments are user segments in compatibility mode too.
    for reg in [Reg::Ds, Reg::Es] {
        bench.cpu.set_desc(reg, SegDesc { base: 0, limit: u32::MAX, access: 0xC0F3 });
    }
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rbx)), (1, 0x1234_5678));
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Rsp)), (8, 0x6000));
}

#[test]
fn gs_bases() {
    let mut bench = bench(0, |a| {
        wrmsr(a, 0xC000_0101, 0x6000);
        wrmsr(a, 0xC000_0102, 0x6100);
        wrmsr(a, 0xC000_0100, 0x6200);
        a.mov(eax, dword_ptr(8).gs()).unwrap();
        a.swapgs().unwrap();
        a.mov(ebx, dword_ptr(8).gs()).unwrap();
        a.mov(esi, dword_ptr(8).fs()).unwrap();
        a.hlt().unwrap();
    });
    for (at, value) in [(0x6008, 1), (0x6108, 2), (0x6208, 3)] {
        bench.write64(at, value);
    }
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rbx), bench.cpu.reg(Reg::Rsi)), (1, 2, 3));
    assert_eq!(bench.cpu.desc(Reg::Gs).base, 0x6100);
}

#[test]
fn msrs_keep_what_is_written_and_refuse_nonsense() {
    for (index, value, kept) in [
        (0x277, 0x0007_0106_0007_0406, true),
        (0x277, 0x0207_0406_0007_0406, false),
        (0xC000_0082, 0x8000_0000_0000, false),
        (0xC000_0082, 0xFFFF_8000_0000_0000, true),
        (0xC000_0103, 1 << 32, false),
        (0x2FF, 0xC06, true),
        (0x26F, 0x0606_0606_0606_0606, true),
        (0x200, 0x8000_0006, true),
        (0xFE, 0, false),
        (0xC000_0080, 0x501, true),
        (0xC000_0080, 0x1501, false),
        (0xC000_0080, 0x001, false),
    ] {
        let mut bench = bench(0, |a| {
            wrmsr(a, index, value);
            a.xor(eax, eax).unwrap();
            a.xor(edx, edx).unwrap();
            a.rdmsr().unwrap();
            a.hlt().unwrap();
        });
        bench.run_to_hlt();
        let in_code = (CODE..CODE + 0x100).contains(&bench.cpu.reg(Reg::Rip));
        assert_eq!(in_code, kept, "MSR {index:#x} = {value:#x}");
        if kept {
            assert_eq!(bench.cpu.reg(Reg::Rdx) << 32 | bench.cpu.reg(Reg::Rax), value, "MSR {index:#x}");
        } else {
            assert_eq!(handled(&mut bench), 13);
        }
    }
}

#[test]
fn speculation_is_controlled_if_cpuid_says_so() {
    // CPUID.7:EDX bit 26: IA32_SPEC_CTRL and IA32_PRED_CMD; bit 29: IA32_ARCH_CAPABILITIES.
    const ANNOUNCED: u32 = 1 << 26 | 1 << 29;
    let write = |index: u32, value: u64| {
        move |a: &mut CodeAssembler| {
            wrmsr(a, index, value);
            a.hlt().unwrap();
        }
    };
    for (index, value, good) in
        [(0x48, 1, true), (0x48, 4, false), (0x49, 1, true), (0x49, 2, false), (0x10A, 0, false)]
    {
        let mut bench = bench(0, write(index, value));
        bench.announce(&[CpuidEntry { leaf: 7, subleaf: Some(0), regs: [0, 0, 0, ANNOUNCED] }]);
        bench.run_to_hlt();
        let in_code = (CODE..CODE + 0x100).contains(&bench.cpu.reg(Reg::Rip));
        assert_eq!(in_code, good, "MSR {index:#x} = {value:#x}");
    }
    let mut bench = bench(0, |a| {
        a.mov(ecx, 0x10A).unwrap();
        a.rdmsr().unwrap();
        a.hlt().unwrap();
    });
    bench.announce(&[CpuidEntry { leaf: 7, subleaf: Some(0), regs: [0; 4] }]);
    assert_eq!(bench.run(100), Exit::RdMsr { index: 0x10A }, "not announced: it is not the engine's");
    bench.announce(&[CpuidEntry { leaf: 7, subleaf: Some(0), regs: [0, 0, 0, ANNOUNCED] }]);
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax) & 0x21, 0x21, "RDCL_NO and MDS_NO");
}

#[test]
fn cpuid_answers_from_the_table() {
    let mut bench = bench(0, |a| {
        a.mov(eax, 4).unwrap();
        a.mov(ecx, 1).unwrap();
        a.cpuid().unwrap();
        a.mov(esi, ebx).unwrap();
        a.mov(rax, 0xFFFF_FFFF_0000_0001_u64).unwrap();
        a.cpuid().unwrap();
        a.mov(edi, eax).unwrap();
        a.mov(eax, 0x77).unwrap();
        a.cpuid().unwrap();
        a.hlt().unwrap();
    });
    bench.announce(&[
        CpuidEntry { leaf: 1, subleaf: None, regs: [0x663, 2, 3, 4] },
        CpuidEntry { leaf: 4, subleaf: Some(0), regs: [10, 11, 12, 13] },
        CpuidEntry { leaf: 4, subleaf: Some(1), regs: [20, 21, 22, 23] },
    ]);
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rsi), bench.cpu.reg(Reg::Rdi)), (21, 0x663));
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rdx)), (0, 0), "leaves that are not there are zero");
}

#[test]
fn control_registers_refuse_what_cannot_be() {
    let cases: [(&str, Build); 5] = [
        ("PG without PE", |a| {
            a.mov(rax, 0x8000_0000_u64).unwrap();
            a.mov(cr0, rax).unwrap();
        }),
        ("NW without CD", |a| {
            a.mov(rax, 0xA000_0031_u64).unwrap();
            a.mov(cr0, rax).unwrap();
        }),
        ("long mode without PAE", |a| {
            a.mov(rax, 0x600_u64).unwrap();
            a.mov(cr4, rax).unwrap();
        }),
        ("57-bit addresses", |a| {
            a.mov(rax, 0x1620_u64).unwrap();
            a.mov(cr4, rax).unwrap();
        }),
        ("CR8 above 15", |a| {
            a.mov(eax, 16).unwrap();
            a.mov(cr8, rax).unwrap();
        }),
    ];
    for (what, case) in cases {
        let mut bench = bench(0, case);
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), 13, "{what}");
    }
}

#[test]
fn system_tables_are_stored_and_loaded() {
    let mut bench = bench(0, |a| {
        a.sgdt(ptr(0x600)).unwrap();
        a.sidt(ptr(0x610)).unwrap();
        a.mov(word_ptr(0x620), 0x1234).unwrap();
        a.mov(dword_ptr(0x622), 0x5678).unwrap();
        a.mov(dword_ptr(0x626), 0).unwrap();
        a.lgdt(ptr(0x620)).unwrap();
        a.smsw(eax).unwrap();
        a.mov(ebx, 9).unwrap();
        a.lmsw(bx).unwrap();
        a.mov(rcx, cr0).unwrap();
        a.clts().unwrap();
        a.mov(rdx, cr0).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.read(0x600), [0x3F, 0, 0x00, 0x50, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.read(0x610), [0xFF, 0x0F, 0x00, 0x40, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.cpu.desc(Reg::Gdtr), SegDesc { base: 0x5678, limit: 0x1234, access: 0 });
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x8001_0031);
    assert_eq!((bench.cpu.reg(Reg::Rcx), bench.cpu.reg(Reg::Rdx)), (0x8001_0039, 0x8001_0031));
}

#[test]
fn the_kernel_may_set_registers_in_any_order() {
    // As vmm_reset does: CR0 to 0x20, the rest one by one.
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    assert_eq!(bench.run(0), Exit::Budget, "memory is zero: ADD [RAX], AL");
    for reg in Reg::ALL {
        bench.cpu.set_reg(reg, 0);
        if reg.has_descriptor() {
            let access = match reg {
                Reg::Cs | Reg::Ds | Reg::Es | Reg::Fs | Reg::Gs | Reg::Ss => 0x93,
                Reg::Tr => 0x8B,
                Reg::Ldtr => 0x82,
                _ => 0,
            };
            bench.cpu.set_desc(reg, SegDesc { base: 0, limit: 0xFFFF, access });
        }
    }
    bench.cpu.set_reg(Reg::Rflags, 2);
    bench.cpu.set_reg(Reg::Cr0, 0x20);
    bench.cpu.set_reg(Reg::Cs, 0x9A00);
    bench.cpu.set_desc(Reg::Cs, SegDesc { base: 0x9_A000, limit: 0xFFFF, access: 0x93 });
    bench.cpu.set_reg(Reg::Rip, 0);
    bench.write(0x9_A000, &[0x8C, 0xC8, 0xF4]); // mov ax, cs; hlt
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x9A00);
    assert_eq!(bench.cpu.reg(Reg::Efer), 0);
}
