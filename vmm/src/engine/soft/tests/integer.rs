//! Integer instructions that the host cannot check: those of 16-bit and 32-bit code, and those that use the stack.

use super::{Bench, CODE};
use crate::engine::{Reg, SegDesc};
use iced_x86::code_asm::*;

const AF: u64 = 0x10;
const CF: u64 = 1;

fn protected(build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(0);
    bench.load(32, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

fn real(build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x12_0000);
    bench.real_mode();
    bench.load(16, 0x8000, build);
    bench.cpu.set_reg(Reg::Rsp, 0x6000);
    bench
}

#[test]
fn daa_and_das_keep_sums_and_differences_decimal() {
    let bcd = |n: u64| n / 10 << 4 | n % 10;
    let mut add = protected(|a| {
        a.add(al, bl).unwrap();
        a.daa().unwrap();
        a.hlt().unwrap();
    });
    let mut sub = protected(|a| {
        a.sub(al, bl).unwrap();
        a.das().unwrap();
        a.hlt().unwrap();
    });
    for x in 0..100 {
        for y in (0..100).step_by(7) {
            for (bench, result, carry) in
                [(&mut add, (x + y) % 100, x + y > 99), (&mut sub, (100 + x - y) % 100, x < y)]
            {
                bench.cpu.set_reg(Reg::Rax, bcd(x));
                bench.cpu.set_reg(Reg::Rbx, bcd(y));
                bench.cpu.set_reg(Reg::Rip, CODE);
                bench.run_to_hlt();
                assert_eq!(bench.cpu.reg(Reg::Rax), bcd(result), "{x} and {y}");
                assert_eq!(bench.cpu.reg(Reg::Rflags) & CF != 0, carry, "{x} and {y}");
            }
        }
    }
}

#[test]
fn ascii_adjustments() {
    let mut bench = protected(|a| {
        a.mov(eax, 0x0039).unwrap();
        a.add(al, 0x35).unwrap(); // '9' + '5'
        a.aaa().unwrap();
        a.mov(ecx, eax).unwrap();
        a.pushfd().unwrap();
        a.mov(eax, 0x0203).unwrap();
        a.sub(al, 8).unwrap();
        a.aas().unwrap();
        a.mov(edx, eax).unwrap();
        a.mov(eax, 63).unwrap();
        a.aam(10).unwrap();
        a.mov(ebx, eax).unwrap();
        a.aad(10).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0x0104, "14");
    assert_eq!(bench.read64(0x7FFC) & (AF | CF), AF | CF);
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0x0105, "23 - 8 = 15");
    assert_eq!(bench.cpu.reg(Reg::Rbx), 0x0603);
    assert_eq!(bench.cpu.reg(Reg::Rax), 63);
}

#[test]
fn pusha_and_popa_skip_the_stack_pointer() {
    let mut bench = protected(|a| {
        a.pushad().unwrap();
        a.popad().unwrap();
        a.pusha().unwrap();
        a.hlt().unwrap();
    });
    let regs = [Reg::Rax, Reg::Rcx, Reg::Rdx, Reg::Rbx, Reg::Rbp, Reg::Rsi, Reg::Rdi];
    for (i, reg) in regs.into_iter().enumerate() {
        bench.cpu.set_reg(reg, 0x1111_1111 * (i as u64 + 1));
    }
    bench.run_to_hlt();
    for (i, reg) in regs.into_iter().enumerate() {
        assert_eq!(bench.cpu.reg(reg), 0x1111_1111 * (i as u64 + 1));
    }
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x7FF0);
    assert_eq!(bench.read(0x7FF0), [0x77, 0x77, 0x66, 0x66, 0x55, 0x55, 0x00, 0x80], "DI, SI, BP, SP");
    assert_eq!(bench.read(0x7FE0), [0x77, 0x77, 0x77, 0x77], "EDI of PUSHAD");
}

#[test]
fn a_push_that_faults_changes_nothing() {
    let mut bench = protected(|a| {
        a.pushad().unwrap();
    });
    // The fourth push would leave the segment.
    bench.cpu.set_desc(Reg::Ss, SegDesc { base: 0, limit: u32::MAX, access: 0xC097 });
    bench.cpu.set_desc(Reg::Ss, SegDesc { base: 0, limit: 0x7FF3, access: 0x4097 });
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.write(0x7FE0, &[0xEE; 32]);
    assert_eq!(bench.run(10), crate::engine::Exit::Shutdown, "there is no IDT");
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x8000);
    assert_eq!(bench.read(0x7FF4), [0xEE; 12]);
}

#[test]
fn enter_copies_the_display_and_leave_undoes_it() {
    let mut bench = protected(|a| {
        a.mov(ebp, 0x7100).unwrap();
        a.mov(dword_ptr(0x70FC), 0xAAAA).unwrap();
        a.mov(dword_ptr(0x70F8), 0xBBBB).unwrap();
        a.enter(0x20, 3).unwrap();
        a.mov(ecx, esp).unwrap();
        a.mov(edx, ebp).unwrap();
        a.leave().unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0x7FFC);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0x7FFC - 12 - 0x20);
    let word = |at: u64| u32::from_le_bytes(bench.read(at));
    assert_eq!([word(0x7FFC), word(0x7FF8), word(0x7FF4), word(0x7FF0)], [0x7100, 0xAAAA, 0xBBBB, 0x7FFC]);
    assert_eq!((bench.cpu.reg(Reg::Rsp), bench.cpu.reg(Reg::Rbp)), (0x8000, 0x7100));
}

#[test]
fn pop_into_memory_by_the_stack_pointer_uses_the_new_one() {
    let mut bench = protected(|a| {
        a.push(0x1234).unwrap();
        a.pop(dword_ptr(esp + 8)).unwrap();
        a.push(0x5678).unwrap();
        a.pop(esp).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.read64(0x8008) as u32, 0x1234);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x5678);
}

#[test]
fn loops_count_by_the_address_size() {
    let mut bench = real(|a| {
        let (mut first, mut second) = (a.create_label(), a.create_label());
        a.mov(ecx, 0x0001_0003).unwrap();
        a.set_label(&mut first).unwrap();
        a.inc(ax).unwrap();
        a.loop_(first).unwrap();
        a.mov(edx, ecx).unwrap();
        a.mov(cx, 10).unwrap();
        a.set_label(&mut second).unwrap();
        a.inc(bx).unwrap();
        a.cmp(bx, 4).unwrap();
        a.loopne(second).unwrap();
        let mut end = a.create_label();
        a.jcxz(end).unwrap();
        a.xor(cx, cx).unwrap();
        a.jcxz(end).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 3);
    assert_eq!(bench.cpu.reg(Reg::Rdx), 0x0001_0000, "LOOP leaves the upper half of ECX");
    assert_eq!(bench.cpu.reg(Reg::Rbx), 4);
}

#[test]
fn string_instructions_wrap_at_the_address_size() {
    let mut bench = real(|a| {
        a.cld().unwrap();
        a.mov(edi, 0x0001_FFFE).unwrap();
        a.mov(ax, 0x4142).unwrap();
        a.mov(cx, 2).unwrap();
        a.rep().stosw().unwrap();
        a.hlt().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rdi), 0x0001_0002);
    assert_eq!(bench.read(0xFFFE), [0x42, 0x41]);
    assert_eq!(bench.read(0), [0x42, 0x41]);
}

#[test]
fn string_sources_take_segment_overrides() {
    let mut bench = real(|a| {
        a.mov(ax, 0x1000).unwrap();
        a.mov(fs, ax).unwrap();
        a.mov(si, 4).unwrap();
        a.mov(di, 0x100).unwrap();
        a.db(&[0x64, 0xA5]).unwrap(); // movsw es:[di], fs:[si]
        a.std().unwrap();
        a.lodsb().unwrap();
        a.hlt().unwrap();
    });
    bench.write(0x1_0004, &[0xCD, 0xAB]);
    bench.write(6, &[0x77]);
    bench.run_to_hlt();
    assert_eq!(bench.read(0x100), [0xCD, 0xAB]);
    assert_eq!(bench.cpu.reg(Reg::Rax) & 0xFF, 0x77);
    assert_eq!(bench.cpu.reg(Reg::Rsi), 5, "LODSB went down");
}

#[test]
fn far_pointers_load_both_halves() {
    let mut bench = real(|a| {
        a.les(bx, dword_ptr(0x500)).unwrap();
        a.mov(al, byte_ptr(bx).es()).unwrap();
        a.lds(si, dword_ptr(0x504)).unwrap();
        a.hlt().unwrap();
    });
    bench.write(0x500, &[0x34, 0x12, 0x00, 0x20, 0x78, 0x56, 0x00, 0x30]);
    bench.write(0x2_0000 + 0x1234, &[0x99]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax) & 0xFF, 0x99);
    assert_eq!((bench.cpu.reg(Reg::Es), bench.cpu.reg(Reg::Rbx)), (0x2000, 0x1234));
    assert_eq!((bench.cpu.reg(Reg::Ds), bench.cpu.reg(Reg::Rsi)), (0x3000, 0x5678));
    assert_eq!(bench.cpu.desc(Reg::Ds).base, 0x3_0000);
}

#[test]
fn real_mode_limits_are_64_kbytes_unless_they_were_raised() {
    let code = |a: &mut CodeAssembler| {
        a.mov(ebx, 0x11_0000).unwrap();
        a.mov(al, byte_ptr(ebx)).unwrap();
        a.hlt().unwrap();
    };
    let mut bench = real(code);
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 0x3FF, access: 0 });
    bench.write(13 * 4, &[0x00, 0x70, 0x00, 0x00]);
    bench.write(0x7000, &[0xF4]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rip), 0x7001, "#GP");

    let mut bench = real(code);
    bench.cpu.set_desc(Reg::Ds, SegDesc { base: 0, limit: u32::MAX, access: 0x8093 });
    bench.write(0x11_0000, &[0x42]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax) & 0xFF, 0x42, "unreal mode");
}

#[test]
fn bound_and_into() {
    let mut bench = protected(|a| {
        a.mov(dword_ptr(0x500), -5).unwrap();
        a.mov(dword_ptr(0x504), 5).unwrap();
        a.mov(eax, -5).unwrap();
        a.bound(eax, qword_ptr(0x500)).unwrap();
        a.into().unwrap();
        a.mov(ecx, 1).unwrap();
        a.mov(eax, 6).unwrap();
        a.bound(eax, qword_ptr(0x500)).unwrap();
    });
    assert_eq!(bench.run(100), crate::engine::Exit::Shutdown, "there is no IDT");
    assert_eq!(bench.cpu.reg(Reg::Rcx), 1);
    let at = bench.cpu.reg(Reg::Rip);
    assert_eq!(bench.read::<2>(at), [0x62, 0x05]);
}

#[test]
fn calls_and_returns_by_operand_size() {
    let mut bench = protected(|a| {
        let (mut callee, mut behind) = (a.create_label(), a.create_label());
        a.push(0x55).unwrap();
        a.call(callee).unwrap();
        a.jmp(behind).unwrap();
        a.set_label(&mut callee).unwrap();
        a.mov(eax, dword_ptr(esp + 4)).unwrap();
        a.ret_1(4).unwrap();
        a.set_label(&mut behind).unwrap();
        a.mov(ecx, esp).unwrap();
        a.push(0x9000).unwrap();
        a.db(&[0x66, 0xC3]).unwrap(); // a 16-bit RET
    });
    bench.write(0x9000, &[0xF4]);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rax), 0x55);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 0x8000);
    assert_eq!((bench.cpu.reg(Reg::Rip), bench.cpu.reg(Reg::Rsp)), (0x9001, 0x7FFE));
}

#[test]
fn a_jump_in_16_bit_code_stays_in_16_bits() {
    let mut bench = real(|a| {
        a.hlt().unwrap();
    });
    // jmp backwards over offset 0, to 0xFFF0.
    bench.write(0x0010, &[0xE9, 0xDD, 0xFF]);
    bench.write(0xFFF0, &[0xF4]);
    bench.cpu.set_reg(Reg::Rip, 0x10);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rip), 0xFFF1);
}

#[test]
fn running_off_the_end_of_a_segment_is_a_fault() {
    let mut bench = real(|a| {
        a.hlt().unwrap();
    });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 0x3FF, access: 0 });
    bench.write(13 * 4, &[0x00, 0x70, 0x00, 0x00]);
    bench.write(0x7000, &[0xF4]);
    bench.write(0xFFFD, &[0x90, 0x90, 0xB8]); // nop; nop; mov ax, imm16 across the end
    bench.cpu.set_reg(Reg::Rip, 0xFFFD);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Rip), 0x7001);
    assert_eq!(bench.read(0x5FFA), [0xFF, 0xFF], "the instruction that crosses the limit");
}

#[test]
fn popf_changes_what_the_privilege_allows() {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(3);
    bench.load(32, CODE, |a| {
        a.push(0x0024_7FD7).unwrap();
        a.popfd().unwrap();
        a.jmp(CODE + 6).unwrap();
    });
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Rflags, 2);
    // Without TF, which would trap.
    bench.write(CODE + 2, &[0x7E]);
    assert_eq!(bench.run(2), crate::engine::Exit::Budget);
    let flags = bench.cpu.reg(Reg::Rflags);
    assert_eq!(flags & 0x3200, 0, "neither IOPL nor IF");
    assert_eq!(flags & 0x24_4CD5, 0x24_4CD5, "ID, AC, NT, OF, DF and the status flags");
}
