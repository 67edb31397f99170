//! Breakpoints in debug registers, and general detection.

use super::events::{handled, long_mode_idt};
use super::{Bench, CODE};
use crate::engine::{Completion, Exit, Reg};
use iced_x86::code_asm::*;

const VARIABLE: u64 = 0x6000;
const DB: u64 = 1;

fn bench(control: u64, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(0);
    long_mode_idt(&mut bench);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench.cpu.set_reg(Reg::Dr6, 0xFFFF_0FF0);
    bench.cpu.set_reg(Reg::Dr7, control | 0x400);
    bench
}

/// RIP and RFLAGS of the frame of a #DB, and what DR6 says.
fn trapped(bench: &mut Bench) -> (u64, u64, u64) {
    bench.run_to_hlt();
    assert_eq!(handled(bench), DB);
    let stack = bench.cpu.reg(Reg::Rsp);
    (bench.read64(stack), bench.read64(stack + 16), bench.cpu.reg(Reg::Dr6) & 0xE00F)
}

#[test]
fn a_breakpoint_on_execution_is_a_fault_that_rf_suppresses_once() {
    const RF: u64 = 1 << 16;
    let mut bench = bench(1 << 2, |a| {
        a.nop().unwrap();
        a.inc(eax).unwrap();
        a.jmp(CODE + 1).unwrap();
    });
    bench.cpu.set_reg(Reg::Dr1, CODE + 1);
    let (rip, flags, status) = trapped(&mut bench);
    assert_eq!((rip, flags & RF, status), (CODE + 1, 0, 2));
    // The handler sets RF and returns.
    let stack = bench.cpu.reg(Reg::Rsp);
    bench.write64(stack + 16, flags | RF);
    bench.write(0xA000, &[0x48, 0xCF]); // iretq
    bench.cpu.set_reg(Reg::Rip, 0xA000);
    let before = bench.cpu.reg(Reg::Rax);
    let (rip, flags, _) = trapped(&mut bench);
    assert_eq!((rip, flags & RF), (CODE + 1, 0), "the second time round");
    assert_eq!(bench.cpu.reg(Reg::Rax), before + 1);
}

#[test]
fn data_breakpoints_trap_behind_the_instruction() {
    // DR0 writes of 4 bytes, DR2 accesses of 8 bytes.
    const WRITES_4: u64 = 1 | 0b1101 << 16;
    const ACCESSES_8: u64 = 1 << 4 | 0b1011 << 24;
    for (control, at, store, bytes, expected) in [
        (WRITES_4, VARIABLE, true, 8, Some(1)),
        (WRITES_4, VARIABLE + 3, true, 1, Some(1)),
        (WRITES_4, VARIABLE + 4, true, 4, None),
        (WRITES_4, VARIABLE - 3, true, 4, Some(1)),
        (WRITES_4, VARIABLE, false, 4, None),
        (ACCESSES_8, VARIABLE + 7, false, 1, Some(4)),
        (ACCESSES_8, VARIABLE + 7, true, 1, Some(4)),
        (ACCESSES_8, VARIABLE + 8, false, 8, None),
    ] {
        let mut bench = bench(control, |a| {
            // The page is in the translation cache before the breakpoint is set.
            a.mov(rcx, qword_ptr(VARIABLE as i32)).unwrap();
            a.mov(qword_ptr(VARIABLE as i32), rcx).unwrap();
            a.mov(dr7, rax).unwrap();
            match (store, bytes) {
                (true, 1) => a.mov(byte_ptr(rdi), cl).unwrap(),
                (true, 4) => a.mov(dword_ptr(rdi), ecx).unwrap(),
                (true, _) => a.mov(qword_ptr(rdi), rcx).unwrap(),
                (false, 1) => a.mov(cl, byte_ptr(rdi)).unwrap(),
                (false, 4) => a.mov(ecx, dword_ptr(rdi)).unwrap(),
                (false, _) => a.mov(rcx, qword_ptr(rdi)).unwrap(),
            }
            a.ud2().unwrap();
        });
        for dr in [Reg::Dr0, Reg::Dr2] {
            bench.cpu.set_reg(dr, VARIABLE);
        }
        bench.cpu.set_reg(Reg::Dr7, 0x400);
        bench.cpu.set_reg(Reg::Rax, control);
        bench.cpu.set_reg(Reg::Rdi, at);
        let case = format!("DR7 {control:#x}, {bytes} bytes at {at:#x}, store {store}");
        match expected {
            Some(hits) => {
                let (rip, _, status) = trapped(&mut bench);
                assert_eq!(bench.read::<2>(rip), [0x0F, 0x0B], "behind the access: {case}");
                assert_eq!(status, hits, "{case}");
            }
            None => {
                bench.run_to_hlt();
                assert_eq!(handled(&mut bench), 6, "{case}");
            }
        }
    }
}

#[test]
fn a_breakpoint_on_a_port_needs_cr4_de() {
    const PORTS: u64 = 1 | 0b0010 << 16;
    for de in [true, false] {
        let mut bench = bench(PORTS, |a| {
            a.in_(al, 0x71).unwrap();
            a.ud2().unwrap();
        });
        bench.cpu.set_reg(Reg::Dr0, 0x71);
        bench.cpu.set_reg(Reg::Cr4, 0x620 | if de { 8 } else { 0 });
        assert_eq!(bench.run(100), Exit::IoIn { port: 0x71, size: 1 });
        bench.cpu.complete(Completion::Value(0x5A));
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), if de { DB } else { 6 });
        assert_eq!(bench.cpu.reg(Reg::Rax) & 0xFF, 0x5A);
        assert_eq!(bench.cpu.reg(Reg::Dr6) & 0xF, u64::from(de));
    }
}

#[test]
fn a_breakpoint_in_a_repeated_store_traps_between_iterations() {
    let mut bench = bench(1 | 0b0001 << 16, |a| {
        a.rep().stosb().unwrap();
        a.ud2().unwrap();
    });
    bench.cpu.set_reg(Reg::Dr0, VARIABLE + 2);
    bench.cpu.set_reg(Reg::Rdi, VARIABLE);
    bench.cpu.set_reg(Reg::Rcx, 10);
    let (rip, _, status) = trapped(&mut bench);
    assert_eq!((rip, status), (CODE, 1));
    assert_eq!((bench.cpu.reg(Reg::Rcx), bench.cpu.reg(Reg::Rdi)), (7, VARIABLE + 3));
}

#[test]
fn loading_ss_puts_debug_exceptions_off() {
    // MOV SS from a watched byte, then an instruction with a breakpoint of its own.
    let mut bench = bench(1 | 0b1111 << 16 | 1 << 2, |a| {
        a.mov(ss, word_ptr(VARIABLE as i32)).unwrap();
        a.nop().unwrap();
        a.ud2().unwrap();
    });
    bench.write64(VARIABLE, 0x10);
    bench.cpu.set_reg(Reg::Dr0, VARIABLE);
    let nop = CODE + 7;
    assert_eq!(bench.read(nop), [0x90]);
    bench.cpu.set_reg(Reg::Dr1, nop);
    let (rip, _, status) = trapped(&mut bench);
    assert_eq!((rip, status), (nop + 1, 1), "the data breakpoint, behind the next instruction");
}

#[test]
fn general_detection_protects_the_debug_registers() {
    let mut bench = bench(1 << 13, |a| {
        a.mov(rax, dr0).unwrap();
    });
    let (rip, _, status) = trapped(&mut bench);
    assert_eq!((rip, status), (CODE, 1 << 13));
    assert_eq!(bench.cpu.reg(Reg::Dr7) & 1 << 13, 0, "the handler may use them");
}
