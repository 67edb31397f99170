//! The host's own processor as the oracle: random user-mode integer instructions run natively and in software, and
//! registers, defined flags and memory must agree.
#![allow(unsafe_code, reason = "runs generated machine code on the host")]

use super::random::{Case, DATA, DATA_LEN, REGS, RSP, State};
use super::{Bench, CODE, Random};
use crate::engine::soft::flags;
use crate::engine::{Exit, Reg};
use crate::memory::{Protection, Segment};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::sync::Arc;

/// An executable page and a data area at a fixed address.
struct Native {
    code: *mut u8,
    state: Box<State>,
}

fn map(at: u64, len: usize, executable: bool) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE | if executable { libc::PROT_EXEC } else { 0 };
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: a new anonymous mapping, at an address that nothing else uses (NOREPLACE).
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_ne!(mapped, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    mapped.cast()
}

impl Native {
    fn new() -> Native {
        assert_eq!(map(DATA, DATA_LEN, false) as u64, DATA);
        Native { code: map(0, 0x1000, true), state: Box::new(State { regs: [0; 16], flags: 0 }) }
    }

    /// Runs an instruction that touches neither the stack nor memory outside the data area, and does not fault.
    fn run(&mut self, instruction: &[u8], state: &State) -> State {
        *self.state = state.clone();
        let at = std::ptr::from_mut(&mut *self.state) as u64;
        let mut code = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]; // push rbx, rbp, r12-r15
        code.extend([0x48, 0xB8]); // mov rax, state
        code.extend(at.to_le_bytes());
        code.extend([0xFF, 0xB0]); // push [rax + flags]
        code.extend(128_u32.to_le_bytes());
        code.push(0x9D); // popfq
        for number in (0..16_u8).rev().filter(|&number| usize::from(number) != RSP) {
            code.extend([0x48 | (number >> 3) << 2, 0x8B, 0x40 | (number & 7) << 3, number * 8]); // mov reg, [rax + 8 n]
        }
        code.extend(instruction);
        code.extend([0x48, 0xA3]); // mov [state.rax], rax
        code.extend(at.to_le_bytes());
        code.extend([0x48, 0xB8]);
        code.extend(at.to_le_bytes());
        for number in (1..16_u8).filter(|&number| usize::from(number) != RSP) {
            code.extend([0x48 | (number >> 3) << 2, 0x89, 0x40 | (number & 7) << 3, number * 8]);
        }
        code.extend([0x9C, 0x8F, 0x80]); // pushfq; pop [rax + flags]
        code.extend(128_u32.to_le_bytes());
        code.push(0xFC); // cld
        code.extend([0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3]);
        assert!(code.len() < 0x1000);
        // SAFETY: the page is ours and large enough; the code saves what the calling convention wants saved, and the
        // instruction under test touches only registers and the data area. The state outlives the call.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.code, code.len());
            let function: extern "C" fn() = std::mem::transmute(self.code);
            function();
            std::ptr::read_volatile(&*self.state)
        }
    }
}

/// The data area of the host.
fn data() -> &'static mut [u8] {
    // SAFETY: mapped by `Native::new` for the rest of the process; this test alone uses it.
    unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN) }
}

/// Flags that the manual defines after this instruction with these operands.
pub(super) fn defined_flags(instruction: &Instruction, regs: &[u64; 16]) -> u64 {
    use iced_x86::RflagsBits as F;
    let undefined = instruction.rflags_undefined();
    let mut mask = flags::STATUS;
    for (bit, flag) in [
        (F::OF, flags::OF),
        (F::SF, flags::SF),
        (F::ZF, flags::ZF),
        (F::AF, flags::AF),
        (F::CF, flags::CF),
        (F::PF, flags::PF),
    ] {
        if undefined & bit != 0 {
            mask &= !flag;
        }
    }
    let count = |i: u32| {
        if instruction.op_kind(i) == OpKind::Register { regs[1] } else { u64::from(instruction.immediate8()) }
    };
    let width = if instruction.op_count() == 0 {
        0
    } else if instruction.op0_kind() == OpKind::Register {
        instruction.op0_register().size() as u64 * 8
    } else {
        instruction.memory_size().size() as u64 * 8
    };
    let masked = |count: u64| count & if width == 64 { 63 } else { 31 };
    match instruction.mnemonic() {
        // CF is undefined when everything is shifted out; OF beyond a count of one.
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            if masked(count(1)) >= width {
                mask &= !flags::CF;
            }
            if masked(count(1)) > 1 {
                mask &= !flags::OF;
            }
            if masked(count(1)) != 0 {
                mask &= !flags::AF;
            }
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr if masked(count(1)) > 1 => mask &= !flags::OF,
        Mnemonic::Shld | Mnemonic::Shrd => {
            if masked(count(2)) > 1 {
                mask &= !flags::OF;
            }
            if masked(count(2)) != 0 {
                mask &= !flags::AF;
            }
        }
        _ => {}
    }
    mask
}

#[test]
fn agrees_with_the_host() {
    let rounds = if cfg!(debug_assertions) { 20_000 } else { 60_000 };
    let mut random = Random(1);
    let mut native = Native::new();
    let mut bench = Bench::new(0x10_0000);
    let guest_data = Arc::new(Segment::new(DATA_LEN).expect("memory"));
    bench.vm.map(DATA, &guest_data, 0, DATA_LEN as u64, Protection { write: true }).expect("a good mapping");
    bench.long_mode(3);
    let mut tried = std::collections::BTreeSet::new();
    let mut done = 0;
    while done < rounds {
        let Some(case) = Case::new(&mut random) else { continue };
        let Case { instruction, bytes, state, memory: before } = case;
        data().copy_from_slice(&before);
        let expected = native.run(&bytes, &state);

        let mut code = bytes.clone();
        code.extend([0xEB, 0xFE]); // jmp $
        bench.write(CODE, &code);
        assert!(guest_data.write(0, &before));
        state.put(&mut bench);
        bench.cpu.set_reg(Reg::Rip, CODE);
        let exit = bench.run(1000);
        let context = || format!("{instruction} {bytes:02x?} {:?}\nfrom {state:x?}", instruction.code());
        assert_eq!(exit, Exit::Pause, "{}", context());
        assert_eq!(bench.cpu.reg(Reg::Rip), CODE + bytes.len() as u64, "{}", context());
        for (number, reg) in REGS.into_iter().enumerate().filter(|&(number, _)| number != RSP) {
            assert_eq!(bench.cpu.reg(reg), expected.regs[number], "{reg:?} after {}", context());
        }
        let mask = defined_flags(&instruction, &state.regs);
        let (ours, theirs) = (bench.cpu.reg(Reg::Rflags) & mask, expected.flags & mask);
        assert_eq!(ours, theirs, "flags {ours:#x} for {theirs:#x} after {}", context());
        let mut after = vec![0; DATA_LEN];
        assert!(guest_data.read(0, &mut after));
        assert!(after == *data(), "memory after {}", context());
        tried.insert(format!("{:?}", instruction.code()));
        done += 1;
    }
    assert!(tried.len() > 300, "only {} encodings were tried", tried.len());
}
