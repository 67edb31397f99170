//! Translation in every paging mode: where pages lead, who may use them, and what a fault reports.

use super::events::{handled, long_mode_idt};
use super::{Bench, Build, CODE, PDPT, PML4};
use crate::engine::{CpuidEntry, Exit, Reg, SegDesc};
use iced_x86::code_asm::*;

/// Page tables of the tests, behind those of `Bench::long_mode`.
const DIRECTORY: u64 = 0x3_0000;
const TABLE: u64 = 0x3_1000;
/// A linear address of its own: page-directory-pointer entry 1.
const LINEAR: u64 = 1 << 30;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

/// 64-bit mode in which `LINEAR` is mapped by `entry`.
fn bench(cpl: u32, entry: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x40_0000);
    bench.long_mode(cpl);
    long_mode_idt(&mut bench);
    bench.write64(PDPT + 8, DIRECTORY | P | W | U);
    bench.write64(DIRECTORY, TABLE | P | W | U);
    bench.write64(TABLE, entry);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Rdi, LINEAR + 0x10);
    bench
}

/// The page fault's error code, if the code ended in one at the expected address.
fn fault(bench: &mut Bench) -> u64 {
    bench.run_to_hlt();
    assert_eq!(handled(bench), 14);
    assert_eq!(bench.cpu.reg(Reg::Cr2), LINEAR + 0x10);
    let stack = bench.cpu.reg(Reg::Rsp);
    bench.read64(stack)
}

fn load(a: &mut CodeAssembler) {
    a.mov(eax, dword_ptr(rdi)).unwrap();
    a.hlt().unwrap();
}

fn store(a: &mut CodeAssembler) {
    a.mov(dword_ptr(rdi), 7).unwrap();
    a.hlt().unwrap();
}

fn modify(a: &mut CodeAssembler) {
    a.add(dword_ptr(rdi), 7).unwrap();
    a.hlt().unwrap();
}

fn jump(a: &mut CodeAssembler) {
    a.jmp(rdi).unwrap();
}

#[test]
fn error_codes_say_what_went_wrong() {
    let page = 0x5_0000;
    let cases: [(u32, u64, Build, u64); 12] = [
        (0, 0, load, 0),
        (0, 0, store, 2),
        (0, 0, modify, 2),
        (0, 0, jump, 0x10),
        (3, 0, load, 4),
        (3, page | P | W, load, 5),
        (3, page | P | W, store, 7),
        (3, page | P | U, store, 7),
        (0, page | P, store, 3),
        (0, page | P | NX, jump, 0x11),
        (3, page | P | U | NX, jump, 0x15),
        (0, page | P | 1 << 51, load, 9),
    ];
    for (cpl, entry, code, expected) in cases {
        let mut bench = bench(cpl, entry, code);
        // 40 bits of physical address.
        bench.announce(&[CpuidEntry { leaf: 0x8000_0008, subleaf: None, regs: [0x3028, 0, 0, 0] }]);
        assert_eq!(fault(&mut bench), expected, "CPL {cpl}, entry {entry:#x}");
    }
}

#[test]
fn the_supervisor_may_write_read_only_pages_without_write_protection() {
    let mut bench = bench(0, 0x5_0000 | P, store);
    bench.cpu.set_reg(Reg::Cr0, 0x8000_0031);
    bench.run_to_hlt();
    assert_eq!(bench.read::<4>(0x5_0010), [7, 0, 0, 0]);
}

#[test]
fn execute_disable_is_reserved_unless_enabled() {
    let mut bench = bench(0, 0x5_0000 | P | NX, load);
    bench.cpu.set_reg(Reg::Efer, 0x500);
    assert_eq!(fault(&mut bench), 9);
}

#[test]
fn accessed_and_dirty_bits_follow_the_accesses() {
    let mut bench = bench(0, 0x5_0000 | P | W, |a| {
        a.mov(eax, dword_ptr(rdi)).unwrap();
        a.mov(rbx, qword_ptr(TABLE as i32)).unwrap();
        a.mov(dword_ptr(rdi), 7).unwrap();
        a.mov(rcx, qword_ptr(TABLE as i32)).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x5_0000 | P | W | A, "a read");
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0x5_0000 | P | W | A | D, "a write");
    assert_eq!(bench.read64(DIRECTORY) & (A | D), A);
    assert_eq!(bench.read64(PML4) & (A | D), A);
}

#[test]
fn a_changed_entry_counts_after_invlpg() {
    let mut bench = bench(0, 0x5_0000 | P | W, |a| {
        a.mov(eax, dword_ptr(rdi)).unwrap();
        a.mov(rbx, 0x5_1000 | P | W).unwrap();
        a.mov(qword_ptr(TABLE as i32), rbx).unwrap();
        a.invlpg(ptr(rdi)).unwrap();
        a.mov(ecx, dword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    bench.write(0x5_0010, &[1, 0, 0, 0]);
    bench.write(0x5_1010, &[2, 0, 0, 0]);
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Rax), bench.cpu.reg(Reg::Rcx)), (1, 2));
}

#[test]
fn smep_and_smap_keep_the_supervisor_from_user_pages() {
    let user_page = 0x5_0000 | P | W | U;
    for (bit, code, expected) in [(20, jump as Build, 0x11), (21, load, 1), (21, store, 3)] {
        let mut bench = bench(0, user_page, code);
        // Everything else is the supervisor's.
        bench.write64(PDPT, PS | P | W);
        bench.cpu.set_reg(Reg::Cr4, 0x620 | 1 << bit);
        assert_eq!(fault(&mut bench), expected, "CR4 bit {bit}");
    }
    // AC lets the supervisor through.
    let mut bench = bench(0, user_page, load);
    bench.write64(PDPT, PS | P | W);
    bench.cpu.set_reg(Reg::Cr4, 0x620 | 1 << 21);
    bench.cpu.set_reg(Reg::Rflags, 0x4_0002);
    bench.run_to_hlt();
}

#[test]
fn an_operand_across_two_pages() {
    let mut bench = bench(0, 0x5_0000 | P | W, |a| {
        a.mov(rax, 0x8877_6655_4433_2211_u64).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.mov(rbx, qword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    bench.write64(TABLE + 8, 0x6_0000 | P | W);
    bench.cpu.set_reg(Reg::Rdi, LINEAR + 0xFFD);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x8877_6655_4433_2211);
    assert_eq!(bench.read(0x5_0FFD), [0x11, 0x22, 0x33]);
    assert_eq!(bench.read(0x6_0000), [0x44, 0x55, 0x66, 0x77, 0x88]);

    // If the second page cannot be written, nothing is.
    bench.write64(TABLE + 8, 0x6_0000 | P);
    bench.write(0x5_0FFD, &[0; 3]);
    let tables = bench.cpu.reg(Reg::Cr3);
    bench.cpu.set_reg(Reg::Cr3, tables);
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 14);
    assert_eq!(bench.cpu.reg(Reg::Cr2), LINEAR + 0x1000);
    assert_eq!(bench.read(0x5_0FFD), [0; 3]);
}

#[test]
fn large_pages() {
    let mut bench = bench(0, 0, load);
    bench.write64(DIRECTORY, 0x20_0000 | PS | P | W);
    bench.write(0x20_0010, &[5, 0, 0, 0]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 5);
    assert_eq!(bench.cpu.translate(LINEAR + 0x1F_FFFF), Some(0x3F_FFFF));
    // A reserved address bit of a 2-Mbyte page.
    bench.write64(DIRECTORY, 0x20_0000 | 1 << 13 | PS | P | W);
    let tables = bench.cpu.reg(Reg::Cr3);
    bench.cpu.set_reg(Reg::Cr3, tables);
    bench.cpu.set_reg(Reg::Rip, CODE);
    assert_eq!(fault(&mut bench), 9);
}

#[test]
fn non_canonical_addresses() {
    for (register, vector) in [(rdi, 13), (rsp, 12)] {
        let mut bench = bench(0, 0, |a| {
            a.mov(rbx, 0x8000_0000_0000_u64).unwrap();
            a.xchg(rbx, register).unwrap();
            a.mov(eax, dword_ptr(register)).unwrap();
        });
        // A stack that the handler can use.
        bench.write64(0x4000 + 16 * vector, bench.read64(0x4000 + 16 * vector) | 1 << 32);
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), vector);
    }
}

#[test]
fn page_tables_without_memory_read_as_ones() {
    let mut bench = bench(0, 0, load);
    bench.write64(DIRECTORY, 0x8000_0000 | P | W);
    bench.announce(&[CpuidEntry { leaf: 0x8000_0008, subleaf: None, regs: [0x3028, 0, 0, 0] }]);
    assert_eq!(fault(&mut bench), 9, "reserved bits are set");
}

/// Protected mode, with paging as CR4 (`mode`) says; `build` fills the tables.
fn paged(mode: u64, tables: impl FnOnce(&Bench), build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x80_0000);
    bench.protected_mode(0);
    tables(&bench);
    bench.cpu.set_reg(Reg::Cr3, PML4);
    bench.cpu.set_reg(Reg::Cr4, mode);
    bench.cpu.set_reg(Reg::Cr0, 0x8001_0031);
    bench.load(32, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Rdi, LINEAR + 0x10);
    bench
}

fn load_store(a: &mut CodeAssembler) {
    a.mov(eax, dword_ptr(edi)).unwrap();
    a.mov(dword_ptr(edi), 9).unwrap();
    a.hlt().unwrap();
}

#[test]
fn thirty_two_bit_paging() {
    let write32 = |bench: &Bench, at: u64, value: u32| bench.write(at, &value.to_le_bytes());
    let mut bench = paged(
        0x10,
        |bench| {
            write32(bench, PML4, 0x83); // 4 Mbytes one to one
            write32(bench, PML4 + 4 * 256, TABLE as u32 | 3);
            write32(bench, TABLE, 0x5_0003);
        },
        load_store,
    );
    bench.write(0x5_0010, &[4, 3, 2, 1]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x0102_0304);
    assert_eq!(bench.read(0x5_0010), [9, 0, 0, 0]);
    assert_eq!(bench.read::<4>(TABLE), [0x63, 0, 5, 0], "accessed and dirty");

    // Without PSE the large entry names a table.
    let mut bench = paged(
        0,
        |bench| {
            write32(bench, PML4, 0x2083);
            for page in 0..1024 {
                write32(bench, 0x2000 + 4 * page, (page as u32) << 12 | 3);
            }
        },
        |a| {
            a.hlt().unwrap();
        },
    );
    bench.run_to_hlt();
    assert_eq!(bench.cpu.translate(0x3F_F123), Some(0x3F_F123));
    assert_eq!(bench.cpu.translate(0x40_0000), None);
}

#[test]
fn pae_paging() {
    let mut bench = paged(
        0x20,
        |bench| {
            bench.write64(PML4, 0x2001);
            bench.write64(PML4 + 8, DIRECTORY | P);
            bench.write64(0x2000, PS | P | W);
            bench.write64(DIRECTORY, TABLE | P | W);
            bench.write64(TABLE, 0x5_0000 | P | W);
            bench.write64(DIRECTORY + 8, 0x40_0000 | PS | P | W);
        },
        load_store,
    );
    bench.write(0x5_0010, &[4, 3, 2, 1]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x0102_0304);
    assert_eq!(bench.read(0x5_0010), [9, 0, 0, 0]);
    assert_eq!(bench.read64(TABLE), 0x5_0000 | P | W | A | D);
    assert_eq!(bench.read64(PML4 + 8), DIRECTORY | P, "directory pointers have no accessed bit");
    assert_eq!(bench.cpu.translate(LINEAR + 0x20_1234), Some(0x40_1234));
}

/// PAE paging as in `pae_paging`, with a second table of directory pointers at `OTHER`, whose entry 2 is `other`.
fn with_pdptes(other: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let setup = |bench: &Bench| {
        for table in [PML4, OTHER] {
            bench.write64(table, 0x2001);
            bench.write64(table + 8, DIRECTORY | P);
        }
        bench.write64(OTHER + 16, other);
        bench.write64(0x2000, PS | P | W);
        bench.write64(DIRECTORY, TABLE | P | W);
        bench.write64(TABLE, 0x5_0000 | P | W);
    };
    paged(0x20, setup, build)
}

const OTHER: u64 = 0x6020;
const PDPTES: [Reg; 4] = [Reg::Pdpte0, Reg::Pdpte1, Reg::Pdpte2, Reg::Pdpte3];

#[test]
fn directory_pointers_are_loaded_with_control_registers_only() {
    for reload in [
        (|a: &mut CodeAssembler| {
            a.mov(eax, cr3).unwrap();
            a.mov(cr3, eax).unwrap();
        }) as Build,
        |a| {
            a.mov(eax, cr4).unwrap();
            a.or(eax, 0x80).unwrap();
            a.mov(cr4, eax).unwrap();
        },
        |a| {
            a.mov(eax, cr0).unwrap();
            a.or(eax, 0x4000_0000).unwrap();
            a.mov(cr0, eax).unwrap();
        },
    ] {
        let mut bench = with_pdptes(0, |a| {
            a.mov(dword_ptr(PML4 + 8), 0).unwrap();
            a.invlpg(byte_ptr(edi)).unwrap();
            a.mov(ebx, dword_ptr(edi)).unwrap();
            a.hlt().unwrap();
            reload(a);
            a.hlt().unwrap();
        });
        bench.write(0x5_0010, &[4, 3, 2, 1]);
        bench.run_to_hlt();
        assert_eq!(bench.cpu.reg(Reg::Rbx), 0x0102_0304, "the entry in the register counts");
        assert_eq!(PDPTES.map(|reg| bench.cpu.reg(reg)), [0x2001, DIRECTORY | P, 0, 0]);
        bench.run_to_hlt();
        assert_eq!(bench.cpu.reg(Reg::Pdpte1), 0);
        assert_eq!(bench.cpu.translate(LINEAR), None);
    }
}

#[test]
fn directory_pointers_with_reserved_bits_are_refused() {
    let load = |a: &mut CodeAssembler| {
        a.mov(eax, OTHER as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.hlt().unwrap();
    };
    for (entry, good) in [
        (P, true),
        (P | 0x18, true),
        (0x1E6, true),
        (P | W, false),
        (P | U, false),
        (P | A, false),
        (P | 0x100, false),
        (P | NX, false),
        (P | 1 << 52, false),
    ] {
        let mut bench = with_pdptes(entry, load);
        // Without an IDT, #GP ends in a triple fault.
        let exit = bench.run(10);
        assert_eq!(exit, if good { Exit::Hlt } else { Exit::Shutdown }, "entry {entry:#x}");
        let (table, third) = if good { (OTHER, entry) } else { (PML4, 0) };
        assert_eq!((bench.cpu.reg(Reg::Cr3), bench.cpu.reg(Reg::Pdpte2)), (table, third), "entry {entry:#x}");
    }
}

#[test]
fn directory_pointers_can_be_set() {
    let mut bench = with_pdptes(0, |a| {
        a.mov(ebx, dword_ptr(0xC000_0010_u32)).unwrap();
        a.hlt().unwrap();
    });
    bench.write(0x5_0010, &[4, 3, 2, 1]);
    bench.cpu.set_reg(Reg::Pdpte3, DIRECTORY | P);
    assert_eq!(bench.cpu.translate(0xC000_0000), Some(0x5_0000));
    assert_eq!(bench.cpu.reg(Reg::Pdpte0), 0x2001, "the others are those that CR3 points to");
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x0102_0304);
}

#[test]
fn the_alignment_check_is_for_user_mode_with_ac() {
    let code = |a: &mut CodeAssembler| {
        a.mov(eax, dword_ptr(rdi + 1)).unwrap();
        a.jmp(CODE + 3).unwrap();
    };
    let mut bench = bench(3, 0x5_0000 | P | W | U, code);
    bench.cpu.set_reg(Reg::Cr0, 0x8005_0031);
    bench.cpu.set_reg(Reg::Rflags, 2);
    assert_eq!(bench.run(100), Exit::Pause);
    bench.cpu.set_reg(Reg::Rflags, 0x4_0002);
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 17);
}

#[test]
fn a_frame_does_not_go_to_a_user_page_under_smap() {
    let mut bench = bench(0, 0x5_0000 | P | W | U, |a| {
        a.ud2().unwrap();
    });
    bench.write64(PDPT, PS | P | W);
    bench.cpu.set_reg(Reg::Cr4, 0x620 | 1 << 21);
    bench.cpu.set_reg(Reg::Rsp, LINEAR + 0x800);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 8, "the double fault has a stack of its own");
    assert_eq!(bench.cpu.reg(Reg::Cr2), LINEAR + 0x7F8);
    // AC lets it through, as it does any other access to the stack.
    bench.cpu.set_reg(Reg::Rflags, 0x4_0002);
    bench.cpu.set_reg(Reg::Rsp, LINEAR + 0x800);
    bench.cpu.set_reg(Reg::Rip, CODE);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rip), 0x7000 + 16 * 6 + 3, "the handler of #UD");
    assert_eq!(bench.read64(0x5_0800 - 40), CODE);
}

#[test]
fn system_structures_above_4_gbytes_serve_compatibility_mode() {
    // The TSS lies at the end of a page above 4 Gbytes, so that RSP0 crosses into the next.
    const HIGH: u64 = 0xFFFF_8000_0000_0000;
    let mut bench = bench(3, 0, |a| {
        a.int(0x80).unwrap();
    });
    bench.write64(PML4 + 8 * 256, 0x3_2000 | P | W);
    bench.write64(0x3_2000, 0x3_3000 | P | W);
    bench.write64(0x3_3000, 0x3_4000 | P | W);
    bench.write64(0x3_4000, 0x5_0000 | P | W);
    bench.write64(0x3_4008, 0x6_0000 | P | W);
    bench.write(0x5_0FFC, &0x9000_u32.to_le_bytes());
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: HIGH + 0xFF8, limit: 0x67, access: 0x8B });
    let code = bench.cpu.desc(Reg::Cs);
    bench.cpu.set_desc(Reg::Cs, SegDesc { access: 0xC0FB, ..code });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x80);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x9000 - 40);
}

#[test]
fn an_instruction_does_not_go_on_at_a_non_canonical_address() {
    // The last page of the lower half, and the first one of the upper half, whose table entries follow each other.
    const END: u64 = 0x8000_0000_0000;
    let mut bench = bench(0, 0, |a| {
        a.mov(rax, END - 1).unwrap();
        a.jmp(rax).unwrap();
    });
    bench.write64(PML4 + 8 * 255, 0x3_2000 | P | W);
    bench.write64(0x3_2000 + 8 * 511, 0x3_3000 | P | W);
    bench.write64(0x3_3000 + 8 * 511, 0x3_4000 | P | W);
    bench.write64(0x3_4000 + 8 * 511, 0x5_0000 | P | W);
    bench.write64(PML4 + 8 * 256, 0x3_5000 | P | W);
    bench.write64(0x3_5000, 0x3_6000 | P | W);
    bench.write64(0x3_6000, 0x3_7000 | P | W);
    bench.write64(0x3_7000, 0x5_1000 | P | W);
    bench.write(0x5_0FFF, &[0xB8, 1, 0, 0, 0, 0xF4]);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 13);
    let stack = bench.cpu.reg(Reg::Rsp);
    assert_eq!(bench.read64(stack + 8), END - 1, "at the instruction");
}
