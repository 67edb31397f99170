//! Delivery of interrupts and exceptions in every mode, and who may be interrupted when.

use super::{Bench, CODE};
use crate::engine::{Completion, Exit, Inject, Reg, SegDesc};
use iced_x86::code_asm::*;

const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
/// Handlers: `push vector; hlt` each, 16 bytes apart.
const HANDLERS: u64 = 0x7000;
const STACK0: u64 = 0x9000;
const IST1: u64 = 0xA000;

/// Selectors of the test's GDT.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x18;
const DATA3: u16 = 0x20;
const TASK: u16 = 0x28;

fn handlers(bench: &mut Bench) {
    for vector in 0..=255_u8 {
        // push imm8; hlt
        bench.write(HANDLERS + 16 * u64::from(vector), &[0x6A, vector, 0xF4]);
    }
}

/// An IDT for 64-bit mode whose handlers push their vector and halt; IST 1 for the double fault. A GDT and a TSS too.
pub(super) fn long_mode_idt(bench: &mut Bench) {
    handlers(bench);
    for (i, descriptor) in
        [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF]
            .into_iter()
            .enumerate()
    {
        bench.write64(GDT + 8 * i as u64, descriptor);
    }
    for vector in 0..=255_u64 {
        let handler = HANDLERS + 16 * vector;
        // Vector 0x80 is for INT n from user mode.
        let rights: u64 = if vector == 0x80 { 0xEE } else { 0x8E };
        let ist = u64::from(vector == 8);
        let low = handler & 0xFFFF | u64::from(CODE0) << 16 | ist << 32 | rights << 40 | (handler >> 16 & 0xFFFF) << 48;
        bench.write64(IDT + 16 * vector, low);
        bench.write64(IDT + 16 * vector + 8, handler >> 32);
    }
    bench.write64(TSS + 4, STACK0);
    bench.write64(TSS + 36, IST1);
    let tables = [(Reg::Idtr, IDT, 0xFFF), (Reg::Gdtr, GDT, 0x3F)];
    for (reg, base, limit) in tables {
        bench.cpu.set_desc(reg, SegDesc { base, limit, access: 0 });
    }
    bench.cpu.set_reg(Reg::Tr, u64::from(TASK));
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0x67, access: 0x8B });
}

/// The vector whose handler halted; drops it from the stack, so that RSP points to the frame.
pub(super) fn handled(bench: &mut Bench) -> u64 {
    let stack = bench.cpu.reg(Reg::Rsp);
    let size = if bench.cpu.reg(Reg::Efer) & 0x400 != 0 {
        8
    } else if bench.cpu.reg(Reg::Cr0) & 1 != 0 {
        4
    } else {
        2
    };
    bench.cpu.set_reg(Reg::Rsp, stack + size);
    let bytes: [u8; 8] = bench.read(stack);
    u64::from(bytes[0])
}

fn frame<const N: usize>(bench: &mut Bench) -> [u64; N] {
    let stack = bench.cpu.reg(Reg::Rsp);
    std::array::from_fn(|i| bench.read64(stack + 8 * i as u64))
}

fn frame32<const N: usize>(bench: &mut Bench) -> [u32; N] {
    let stack = bench.cpu.reg(Reg::Rsp);
    std::array::from_fn(|i| u32::from_le_bytes(bench.read(stack + 4 * i as u64)))
}

fn long(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.long_mode(cpl);
    long_mode_idt(&mut bench);
    bench.load(64, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8008);
    bench
}

#[test]
fn real_mode_goes_through_the_vector_table() {
    let mut bench = Bench::new(0x10_0000);
    bench.real_mode();
    handlers(&mut bench);
    bench.write(4 * 0x21, &[0x10, 0x02, 0x00, 0x07]); // 0700:0210
    bench.load(16, 0x8000, |a| {
        a.sti().unwrap();
        a.int(0x21).unwrap();
    });
    bench.cpu.set_reg(Reg::Rsp, 0x6000);
    bench.run_to_hlt();
    assert_eq!(bench.cpu.reg(Reg::Cs), 0x700);
    assert_eq!(handled(&mut bench), 0x21);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x6000 - 6);
    assert_eq!(bench.read(0x5FFA), [0x03, 0x80, 0x00, 0x00, 0x02, 0x02], "IP, CS, FLAGS with IF");
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 0x200, 0);
}

#[test]
fn real_mode_iret_goes_back() {
    let mut bench = Bench::new(0x10_0000);
    bench.real_mode();
    bench.write(4 * 0x21, &[0x00, 0x00, 0x00, 0x07]);
    bench.load(16, 0x7000, |a| {
        a.inc(cx).unwrap();
        a.iret().unwrap();
    });
    bench.load(16, 0x8000, |a| {
        a.sti().unwrap();
        a.stc().unwrap();
        a.int(0x21).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rsp, 0x6000);
    bench.run_to_hlt();
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Rip)), (0, 0x8005));
    assert_eq!(bench.cpu.reg(Reg::Rcx), 1);
    assert_eq!(bench.cpu.reg(Reg::Rflags), 0x203);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x6000);
}

#[test]
fn a_divide_error_points_at_its_instruction() {
    let mut bench = long(0, |a| {
        a.xor(ecx, ecx).unwrap();
        a.div(ecx).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0);
    let [rip, selector, flags, stack, stack_selector] = frame(&mut bench);
    assert_eq!((rip, selector, stack, stack_selector), (CODE + 2, 8, 0x8008, 0x10));
    assert_eq!(flags & 0x1_0000, 0x1_0000, "RF");
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x8000 - 40, "the frame is aligned to 16 bytes");
}

#[test]
fn user_mode_changes_stacks_by_the_tss() {
    let mut bench = long(3, |a| {
        a.int(0x80).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x80);
    assert_eq!(bench.cpu.reg(Reg::Rsp), STACK0 - 40);
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Ss)), (8, 0));
    let [rip, selector, _, stack, stack_selector] = frame(&mut bench);
    assert_eq!((rip, selector, stack, stack_selector), (CODE + 2, u64::from(CODE3 | 3), 0x8008, u64::from(DATA3 | 3)));
}

#[test]
fn int_n_needs_the_gate_s_consent() {
    let mut bench = long(3, |a| {
        a.int(0x81).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 13);
    let [error, rip] = frame(&mut bench);
    assert_eq!((error, rip), (0x81 * 8 + 2, CODE));
}

#[test]
fn iret_returns_to_user_mode() {
    let mut bench = long(0, |a| {
        a.push(i32::from(DATA3 | 3)).unwrap();
        a.push(0x6000).unwrap();
        a.push(0x202).unwrap();
        a.push(i32::from(CODE3 | 3)).unwrap();
        a.push(0x1_1000).unwrap();
        a.iretq().unwrap();
    });
    let mut user = CodeAssembler::new(64).unwrap();
    user.push(rax).unwrap();
    user.cli().unwrap();
    bench.write(0x1_1000, &user.assemble(0x1_1000).unwrap());
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 13, "CLI with IOPL 0");
    let [error, rip, selector, flags, stack, stack_selector] = frame(&mut bench);
    assert_eq!(
        (error, rip, selector, stack, stack_selector),
        (0, 0x1_1001, u64::from(CODE3 | 3), 0x5FF8, u64::from(DATA3 | 3))
    );
    assert_eq!(flags & 0x200, 0x200);
}

#[test]
fn a_page_fault_on_delivery_is_a_double_fault_and_takes_its_ist_stack() {
    let mut bench = long(0, |a| {
        a.mov(rsp, 0x1_8000_0000_u64).unwrap();
        a.mov(rax, qword_ptr(rsp)).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 8);
    assert_eq!(bench.cpu.reg(Reg::Rsp), IST1 - 48);
    let [error, rip] = frame(&mut bench);
    assert_eq!((error, rip), (0, CODE + 10));
    assert_eq!(bench.cpu.reg(Reg::Cr2), 0x1_8000_0000 - 8, "where the frame would have gone");
}

#[test]
fn without_an_idt_a_fault_is_a_shutdown() {
    let mut bench = long(0, |a| {
        a.ud2().unwrap();
    });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 0, access: 0 });
    assert_eq!(bench.run(100), Exit::Shutdown);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE);

    let mut bench = Bench::new(0x10_0000);
    bench.real_mode();
    bench.load(16, 0x8000, |a| {
        a.ud2().unwrap();
    });
    bench.cpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 3, access: 0 });
    assert_eq!(bench.run(100), Exit::Shutdown);
}

/// 32-bit gates in protected mode.
fn protected(cpl: u32, build: impl FnOnce(&mut CodeAssembler)) -> Bench {
    let mut bench = Bench::new(0x10_0000);
    bench.protected_mode(cpl);
    handlers(&mut bench);
    let descriptors = [
        0,
        0x00CF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_FB00_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x0000_8900_0000_0067 | TSS << 16,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        bench.write64(GDT + 8 * i as u64, descriptor);
    }
    for vector in 0..=255_u64 {
        let rights: u64 = match vector {
            0x80 => 0xEF,
            0x81 => 0xE6,
            0x82 => 0x0E,
            0x83 => 0xE5,
            _ => 0x8E,
        };
        let handler = HANDLERS + 16 * vector;
        bench.write64(
            IDT + 8 * vector,
            handler & 0xFFFF | u64::from(CODE0) << 16 | rights << 40 | (handler >> 16) << 48,
        );
    }
    bench.write64(TSS + 4, STACK0 | u64::from(DATA0) << 32);
    for (reg, base, limit) in [(Reg::Idtr, IDT, 0x7FF), (Reg::Gdtr, GDT, 0x3F)] {
        bench.cpu.set_desc(reg, SegDesc { base, limit, access: 0 });
    }
    bench.cpu.set_reg(Reg::Tr, u64::from(TASK));
    bench.cpu.set_desc(Reg::Tr, SegDesc { base: TSS, limit: 0x67, access: 0x8B });
    bench.load(32, CODE, build);
    bench.cpu.set_reg(Reg::Rsp, 0x8000);
    bench
}

#[test]
fn protected_mode_at_one_privilege_pushes_three_words() {
    let mut bench = protected(0, |a| {
        a.int3().unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 3);
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x8000 - 12);
    let [eip, selector, flags] = frame32(&mut bench);
    assert_eq!((u64::from(eip), selector, flags), (CODE + 1, 8, 2), "INT3 is a trap");
}

#[test]
fn protected_mode_across_privileges_takes_the_tss_stack() {
    let mut bench = protected(3, |a| {
        a.int(0x80).unwrap();
    });
    bench.cpu.set_reg(Reg::Rflags, 0x202);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x80);
    assert_eq!(bench.cpu.reg(Reg::Rsp), STACK0 - 20);
    let [eip, selector, flags, stack, stack_selector] = frame32(&mut bench);
    assert_eq!((u64::from(eip), selector, flags), (CODE + 2, u32::from(CODE3 | 3), 0x202));
    assert_eq!((stack, stack_selector), (0x8000, u32::from(DATA3 | 3)));
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 0x200, 0x200, "a trap gate leaves IF alone");
    assert_eq!(bench.cpu.desc(Reg::Ss).access, 0xC093);
}

#[test]
fn a_16_bit_gate_pushes_16_bits() {
    let mut bench = protected(3, |a| {
        a.int(0x81).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x81);
    assert_eq!(bench.cpu.reg(Reg::Rsp), STACK0 - 10);
}

#[test]
fn gates_that_lead_nowhere() {
    // The task gate of INT 0x83 names no task.
    for (vector, expected) in [(0x82, 13), (0x83, 13)] {
        let mut bench = protected(3, |a| {
            a.int(vector).unwrap();
        });
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), expected, "INT {vector:#x}");
        assert!(bench.cpu.take_unimplemented().is_empty());
    }
    // A gate that is not present, of the right privilege.
    let mut bench = protected(0, |a| {
        a.int(0x82).unwrap();
    });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 11);
    let [error] = frame32(&mut bench);
    assert_eq!(error, 0x82 * 8 + 2);
}

#[test]
fn an_injected_interrupt_is_delivered_first() {
    let mut bench = long(0, |a| {
        a.ud2().unwrap();
    });
    bench.cpu.set_reg(Reg::Rflags, 0x202);
    assert!(bench.cpu.interruptible());
    bench.cpu.inject(Inject::Interrupt(0x31));
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x31);
    let [rip, _, flags] = frame(&mut bench);
    assert_eq!((rip, flags), (CODE, 0x202));
    assert!(!bench.cpu.interruptible());
}

#[test]
fn an_injected_exception_pushes_its_error_code() {
    let mut bench = long(0, |a| {
        a.nop().unwrap();
    });
    bench.cpu.inject(Inject::Exception { vector: 13, error_code: Some(0x50) });
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 13);
    let [error, rip] = frame(&mut bench);
    assert_eq!((error, rip), (0x50, CODE));
}

#[test]
fn the_window_opens_behind_the_instruction_after_sti() {
    let mut bench = long(0, |a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.request_interrupt_window(true);
    assert_eq!(bench.run(2), Exit::Budget);
    assert!(!bench.cpu.interruptible());
    assert_eq!(bench.cpu.reg(Reg::IntrShadow), 1);
    assert_eq!(bench.run(100), Exit::InterruptWindow);
    assert_eq!(bench.cpu.reg(Reg::Rip), CODE + 3);
    assert_eq!(bench.cpu.reg(Reg::IntrShadow), 0);
    assert!(bench.cpu.interruptible());
    bench.cpu.request_interrupt_window(false);
    bench.run_to_hlt();
}

#[test]
fn loading_ss_blocks_interrupts_for_one_instruction() {
    let mut bench = long(0, |a| {
        a.mov(eax, i32::from(DATA0)).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(esp, 0x6000).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rflags, 0x202);
    assert_eq!(bench.run(2), Exit::Budget);
    assert!(!bench.cpu.interruptible());
    bench.cpu.inject(Inject::Nmi);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 2);
    let [_, _, _, stack] = frame(&mut bench);
    assert_eq!(stack, 0x6000, "MOV to ESP came first");
}

#[test]
fn sti_and_hlt_wait_for_an_interrupt() {
    let mut bench = long(0, |a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(bench.run(100), Exit::Hlt);
    assert!(bench.cpu.interruptible());
    bench.cpu.inject(Inject::Interrupt(0x20));
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x20);
    let [rip] = frame(&mut bench);
    assert_eq!(rip, CODE + 2);
}

#[test]
fn a_frame_may_go_to_a_device() {
    let mut bench = Bench::new(0x2_0000);
    bench.real_mode();
    bench.write(4 * 0x30, &[0x00, 0x00, 0x00, 0x07]);
    bench.write(0x7000, &[0xF4]);
    bench.load(16, 0x8000, |a| {
        a.ud2().unwrap();
    });
    bench.cpu.set_desc(Reg::Ss, SegDesc { base: 0x10_0000, limit: 0xFFFF, access: 0x93 });
    bench.cpu.set_reg(Reg::Rsp, 0x100);
    bench.cpu.set_reg(Reg::Rflags, 0x202);
    bench.cpu.inject(Inject::Interrupt(0x30));
    assert_eq!(bench.run(100), Exit::MmioWrite { gpa: 0x10_00FE, size: 2, data: 0x202 });
    assert_eq!(bench.answer(Completion::Done), Exit::MmioWrite { gpa: 0x10_00FC, size: 2, data: 0 });
    assert_eq!(bench.answer(Completion::Done), Exit::MmioWrite { gpa: 0x10_00FA, size: 2, data: 0x8000 });
    assert_eq!(bench.cpu.reg(Reg::Rsp), 0x100);
    assert_eq!(bench.answer(Completion::Done), Exit::Hlt);
    assert_eq!((bench.cpu.reg(Reg::Cs), bench.cpu.reg(Reg::Rsp)), (0x700, 0xFA));
}

#[test]
fn nmis_are_blocked_until_iret() {
    let mut bench = long(0, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.inject(Inject::Nmi);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 2);
    bench.load(64, 0xB000, |a| {
        a.nop().unwrap();
        a.iretq().unwrap();
    });
    bench.cpu.inject(Inject::Nmi);
    assert_eq!(bench.run(1), Exit::Budget);
    assert_eq!(bench.cpu.reg(Reg::Rip), 0xB001, "the second waits");
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 2, "IRET lets it in");
    let [rip] = frame(&mut bench);
    assert_eq!(rip, CODE);
}

#[test]
fn the_trap_flag_steps() {
    let mut bench = long(0, |a| {
        a.pushfq().unwrap();
        a.or(dword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.inc(ecx).unwrap();
        a.inc(ecx).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rcx, 0);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 1);
    let [rip, _, flags] = frame(&mut bench);
    let inc = bench.read::<2>(rip);
    assert_eq!(bench.cpu.reg(Reg::Rcx), 1, "behind the first instruction after POPF");
    assert_eq!(inc, [0xFF, 0xC1]);
    assert_eq!(flags & 0x100, 0x100);
    assert_eq!(bench.cpu.reg(Reg::Dr6) & 0x4000, 0x4000);
    assert_eq!(bench.cpu.reg(Reg::Rflags) & 0x100, 0);
}

/// Runs into the single-step trap: the RIP that it was pushed with, and whether TF was.
fn stepped(bench: &mut Bench) -> (u64, bool) {
    bench.run_to_hlt();
    assert_eq!(handled(bench), 1);
    let [rip, _, flags] = frame(bench);
    (rip, flags & 0x100 != 0)
}

#[test]
fn a_software_interrupt_drops_the_single_step_trap() {
    let mut bench = long(0, |a| {
        a.int(0x80).unwrap();
    });
    bench.cpu.set_reg(Reg::Rflags, 0x102);
    bench.run_to_hlt();
    assert_eq!(handled(&mut bench), 0x80, "the handler runs untraced");
    let [_, _, flags] = frame(&mut bench);
    assert_eq!(flags & 0x100, 0x100);
}

#[test]
fn loading_ss_puts_the_single_step_trap_off() {
    let mut bench = long(0, |a| {
        a.mov(ss, eax).unwrap();
        a.mov(esp, 0x6000).unwrap();
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rax, u64::from(DATA0));
    bench.cpu.set_reg(Reg::Rflags, 0x102);
    assert_eq!(stepped(&mut bench), (CODE + 7, true), "behind MOV ESP");
    let [_, _, _, stack] = frame(&mut bench);
    assert_eq!(stack, 0x6000);
}

#[test]
fn the_single_step_trap_ends_a_halt() {
    let mut bench = long(0, |a| {
        a.hlt().unwrap();
    });
    bench.cpu.set_reg(Reg::Rflags, 0x102);
    assert_eq!(stepped(&mut bench), (CODE + 1, true));
}

#[test]
fn system_calls_step_by_the_flags_that_they_leave() {
    for (mask, handler) in [(0x100, None), (0, Some(1))] {
        let mut bench = long(0, |a| {
            for (index, high, low) in [(0xC000_0081_u32, 8, 0), (0xC000_0082, 0, 0xB000), (0xC000_0084, 0, mask)] {
                a.mov(ecx, index).unwrap();
                a.mov(edx, high).unwrap();
                a.mov(eax, low).unwrap();
                a.wrmsr().unwrap();
            }
            a.push(0x102).unwrap();
            a.popfq().unwrap();
            a.syscall().unwrap();
        });
        bench.write(0xB000, &[0xF4]);
        bench.run_to_hlt();
        match handler {
            None => assert_eq!(bench.cpu.reg(Reg::Rip), 0xB001),
            Some(vector) => {
                assert_eq!(handled(&mut bench), vector);
                let [rip] = frame(&mut bench);
                assert_eq!(rip, 0xB000);
            }
        }
    }
}

#[test]
fn faults_of_a_delivery_say_so_in_their_error_codes() {
    // The handler lies beyond the limit of its code segment: #GP(EXT).
    for (external, expected) in [(true, 1), (false, 0)] {
        let mut bench = protected(0, |a| {
            a.int(0x31).unwrap();
        });
        bench.write64(GDT + 0x30, 0x0040_9B00_0000_6FFF);
        bench.write64(IDT + 8 * 0x31, bench.read64(IDT + 8 * 0x31) & !0xFFFF_0000 | 0x30 << 16);
        if external {
            bench.cpu.inject(Inject::Interrupt(0x31));
        }
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), 13);
        let [error] = frame32(&mut bench);
        assert_eq!(error, expected, "external: {external}");
    }
    // The present stack is not canonical: #SS(EXT), which takes an interrupt stack.
    for (external, expected) in [(true, 1), (false, 0)] {
        let mut bench = long(0, |a| {
            a.int(0x31).unwrap();
        });
        bench.write64(IDT + 16 * 12, bench.read64(IDT + 16 * 12) | 1 << 32);
        bench.cpu.set_reg(Reg::Rsp, 0xFFFF_8000_0000_0000);
        if external {
            bench.cpu.inject(Inject::Interrupt(0x31));
        }
        bench.run_to_hlt();
        assert_eq!(handled(&mut bench), 12);
        let [error] = frame(&mut bench);
        assert_eq!(error, expected, "external: {external}");
    }
}
