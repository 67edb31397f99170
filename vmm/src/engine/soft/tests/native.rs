//! The host's own processor as the oracle: random user-mode integer instructions run natively and in software, and
//! registers, defined flags and memory must agree.
#![allow(unsafe_code, reason = "runs generated machine code on the host")]

use super::{Bench, CODE, Random};
use crate::engine::soft::flags;
use crate::engine::{Exit, Reg};
use crate::memory::{Protection, Segment};
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};
use std::sync::Arc;

/// Where the memory operands are, on the host and in the guest.
const DATA: u64 = 0x3000_0000;
const DATA_LEN: usize = 0x3000;
/// Memory operands start within this many bytes around a page boundary.
const MIDDLE: u64 = DATA + 0x1000;

/// Registers by their numbers in instructions; RSP stays what the host needs.
const REGS: [Reg; 16] = [
    Reg::Rax,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rbx,
    Reg::Rsp,
    Reg::Rbp,
    Reg::Rsi,
    Reg::Rdi,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];
const RCX: usize = 1;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

/// What the native trampoline loads and stores.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    regs: [u64; 16],
    flags: u64,
}

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

/// A random encoding of an integer instruction: any opcode that the list of mnemonics lets through.
fn random_instruction(random: &mut Random) -> Option<Instruction> {
    let mut bytes = [0_u8; 15];
    for byte in &mut bytes {
        *byte = random.next() as u8;
    }
    let mut at = 0;
    let mut prefix = |bytes: &mut [u8; 15], value: u8| {
        bytes[at] = value;
        at += 1;
    };
    match random.below(8) {
        0 | 1 => prefix(&mut bytes, 0x66),
        2 => prefix(&mut bytes, 0xF3),
        3 => prefix(&mut bytes, 0xF2),
        _ => {}
    }
    if random.below(2) == 0 {
        prefix(&mut bytes, 0x40 | random.below(16) as u8);
    }
    if random.below(3) == 0 {
        prefix(&mut bytes, 0x0F);
        if random.below(8) == 0 {
            prefix(&mut bytes, 0x38);
        }
    }
    let instruction = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
    if instruction.is_invalid() || !wanted(instruction.mnemonic()) {
        return None;
    }
    let operands = 0..instruction.op_count();
    let uses_rsp = operands.clone().any(|i| instruction.op_register(i).full_register() == Register::RSP);
    // MOVSD and CMPSD are names of SSE instructions too; those use XMM registers.
    let uses_special = operands.clone().any(|i| {
        let register = instruction.op_register(i);
        register != Register::None && !register.is_gpr()
    });
    (!uses_rsp && !uses_special && !instruction.has_lock_prefix()).then_some(instruction)
}

fn wanted(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    let name = format!("{mnemonic:?}");
    if is_string(mnemonic) {
        return true;
    }
    // TZCNT, LZCNT, POPCNT, ADCX, ADOX and MOVBE are left to hosts that have them: every x86-64 host of today.
    name.starts_with("Cmov")
        || name.starts_with("Set") && name != "Setssbsy"
        || matches!(
            mnemonic,
            Add | Adc
                | Sub
                | Sbb
                | Cmp
                | And
                | Or
                | Xor
                | Test
                | Inc
                | Dec
                | Neg
                | Not
                | Shl
                | Sal
                | Shr
                | Sar
                | Rol
                | Ror
                | Rcl
                | Rcr
                | Shld
                | Shrd
                | Mul
                | Imul
                | Div
                | Idiv
                | Bt
                | Bts
                | Btr
                | Btc
                | Bsf
                | Bsr
                | Tzcnt
                | Lzcnt
                | Popcnt
                | Bswap
                | Movbe
                | Xadd
                | Xchg
                | Cmpxchg
                | Cmpxchg8b
                | Cmpxchg16b
                | Adcx
                | Adox
                | Cbw
                | Cwde
                | Cdqe
                | Cwd
                | Cdq
                | Cqo
                | Lea
                | Mov
                | Movzx
                | Movsx
                | Movsxd
                | Clc
                | Stc
                | Cmc
                | Lahf
                | Sahf
                | Xlatb
                | Nop
        )
}

fn is_string(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}");
    ["Movs", "Stos", "Lods", "Cmps", "Scas"]
        .into_iter()
        .any(|stem| name.strip_prefix(stem).is_some_and(|width| matches!(width, "b" | "w" | "d" | "q")))
}

/// Points a memory operand into the data area.
fn aim(instruction: &mut Instruction, state: &mut State, random: &mut Random) {
    if is_string(instruction.mnemonic()) {
        let around = |random: &mut Random| MIDDLE - 200 + random.below(400);
        // Close together now and then, so that the ranges overlap.
        state.regs[RSI] = around(random);
        state.regs[RDI] = if random.below(2) == 0 { around(random) } else { state.regs[RSI] + random.below(20) - 10 };
        state.regs[RCX] = random.below(50);
        if random.below(4) == 0 {
            state.flags |= flags::DF;
        }
        instruction.set_segment_prefix(Register::None);
        return;
    }
    if !(0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory) {
        return;
    }
    if instruction.mnemonic() == Mnemonic::Xlatb {
        state.regs[RBX] = MIDDLE - random.below(256);
        instruction.set_segment_prefix(Register::None);
        return;
    }
    let target = if instruction.mnemonic() == Mnemonic::Cmpxchg16b {
        MIDDLE - 32 + random.below(4) * 16
    } else {
        MIDDLE - 24 + random.below(48)
    };
    let moffs = matches!(
        instruction.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    );
    instruction.set_segment_prefix(Register::None);
    if moffs {
        instruction.set_memory_displ_size(8);
        instruction.set_memory_displacement64(target);
        return;
    }
    // Both registers may be operands too; that is part of the test.
    let pick = |random: &mut Random| [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 15][random.below(12) as usize];
    let base = pick(random);
    let gpr = |number: usize| Register::RAX + number as u32;
    instruction.set_memory_base(gpr(base));
    let displacement = random.next() as i8;
    let index = pick(random);
    let mut index_part = 0;
    if index != base && random.below(2) == 0 {
        let scale = 1 << random.below(4);
        instruction.set_memory_index(gpr(index));
        instruction.set_memory_index_scale(scale);
        state.regs[index] = random.below(64);
        index_part = state.regs[index] * u64::from(scale);
    } else {
        instruction.set_memory_index(Register::None);
    }
    instruction.set_memory_displ_size(1);
    instruction.set_memory_displacement64(i64::from(displacement) as u64);
    state.regs[base] = target.wrapping_sub(i64::from(displacement) as u64).wrapping_sub(index_part);
    // The bit offset of BT reaches beyond its operand.
    if matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op1_kind() == OpKind::Register
    {
        let offset = instruction.op1_register().full_register().number();
        let near = (random.next() as i16 >> 4) as i64 as u64;
        if offset != base && !(instruction.memory_index() != Register::None && offset == index) {
            state.regs[offset] = near;
        }
    }
}

/// Whether the native instruction would fault, or has a result that the manual leaves undefined.
fn excluded(instruction: &Instruction, state: &State, operand: u64) -> bool {
    let width = |i: u32| match instruction.op_kind(i) {
        OpKind::Register => instruction.op_register(i).size(),
        _ => instruction.memory_size().size(),
    };
    let bits = if instruction.op_count() > 0 { width(0) as u32 * 8 } else { 0 };
    match instruction.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv => {
            let (rax, rdx) = (state.regs[0], state.regs[2]);
            let mask = u64::MAX >> (64 - bits);
            let divisor = operand & mask;
            let dividend = if bits == 8 {
                u128::from(rax & 0xFFFF)
            } else {
                u128::from(rdx & mask) << bits | u128::from(rax & mask)
            };
            if divisor == 0 {
                return true;
            }
            if instruction.mnemonic() == Mnemonic::Div {
                return dividend / u128::from(divisor) > u128::from(mask);
            }
            let unused = 128 - 2 * bits;
            let dividend = (dividend << unused) as i128 >> unused;
            let divisor = i128::from((divisor << (64 - bits)) as i64 >> (64 - bits));
            let Some(quotient) = dividend.checked_div(divisor) else { return true };
            quotient != quotient << (128 - bits) >> (128 - bits)
        }
        Mnemonic::Bsf | Mnemonic::Bsr => operand << (64 - bits) == 0,
        Mnemonic::Shld | Mnemonic::Shrd if bits == 16 => {
            let count = if instruction.op2_kind() == OpKind::Register {
                state.regs[1]
            } else {
                u64::from(instruction.immediate8())
            };
            count & 31 > 16
        }
        Mnemonic::Bswap => bits == 16,
        // The bit offset may lead out of the data area when its register is a base or index as well.
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
        {
            let offset = state.regs[instruction.op1_register().full_register().number()];
            let offset = (offset << (64 - bits)) as i64 >> (64 - bits);
            offset.unsigned_abs() > 0x4000
        }
        _ => false,
    }
}

/// Flags that the manual defines after this instruction with these operands.
fn defined_flags(instruction: &Instruction, state: &State) -> u64 {
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
        if instruction.op_kind(i) == OpKind::Register { state.regs[1] } else { u64::from(instruction.immediate8()) }
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
    let rounds = if cfg!(debug_assertions) { 20_000 } else { 300_000 };
    let mut random = Random(1);
    let mut native = Native::new();
    let mut bench = Bench::new(0x10_0000);
    let guest_data = Arc::new(Segment::new(DATA_LEN).expect("memory"));
    bench.vm.map(DATA, &guest_data, 0, DATA_LEN as u64, Protection { write: true }).expect("a good mapping");
    bench.long_mode(3);
    let mut tried = std::collections::BTreeSet::new();
    let mut done = 0;
    while done < rounds {
        let Some(mut instruction) = random_instruction(&mut random) else { continue };
        let mut state = State { regs: std::array::from_fn(|_| random.operand()), flags: 0 };
        state.flags = random.next() & flags::STATUS | 0x202;
        state.regs[RSP] = 0;
        aim(&mut instruction, &mut state, &mut random);
        let mut encoder = Encoder::new(64);
        if encoder.encode(&instruction, CODE).is_err() {
            continue;
        }
        let bytes = encoder.take_buffer();
        let mut before = vec![0; DATA_LEN];
        for chunk in before.chunks_mut(8) {
            chunk.copy_from_slice(&random.operand().to_le_bytes());
        }
        let operand = source_value(&instruction, &state, &before);
        if excluded(&instruction, &state, operand) {
            continue;
        }
        data().copy_from_slice(&before);
        let expected = native.run(&bytes, &state);

        let mut code = bytes.clone();
        code.extend([0xEB, 0xFE]); // jmp $
        bench.write(CODE, &code);
        assert!(guest_data.write(0, &before));
        for (reg, value) in REGS.into_iter().zip(state.regs) {
            bench.cpu.set_reg(reg, value);
        }
        bench.cpu.set_reg(Reg::Rflags, state.flags);
        bench.cpu.set_reg(Reg::Rip, CODE);
        let exit = bench.run(1000);
        let context = || format!("{instruction} {bytes:02x?} {:?}\nfrom {state:x?}", instruction.code());
        assert_eq!(exit, Exit::Pause, "{}", context());
        assert_eq!(bench.cpu.reg(Reg::Rip), CODE + bytes.len() as u64, "{}", context());
        for (number, reg) in REGS.into_iter().enumerate().filter(|&(number, _)| number != RSP) {
            assert_eq!(bench.cpu.reg(reg), expected.regs[number], "{reg:?} after {}", context());
        }
        let mask = defined_flags(&instruction, &state);
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

/// The value of the operand that faults and undefined results depend on: the r/m operand.
fn source_value(instruction: &Instruction, state: &State, memory: &[u8]) -> u64 {
    let i = if matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) { 1 } else { 0 };
    if !matches!(instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr | Mnemonic::Div | Mnemonic::Idiv) {
        return 0;
    }
    match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
            state.regs[register.full_register().number()] >> if high { 8 } else { 0 }
        }
        OpKind::Memory => {
            let part = |register: Register| if register == Register::None { 0 } else { state.regs[register.number()] };
            let address = part(instruction.memory_base())
                .wrapping_add(
                    part(instruction.memory_index()).wrapping_mul(u64::from(instruction.memory_index_scale())),
                )
                .wrapping_add(instruction.memory_displacement64());
            let at = (address - DATA) as usize;
            u64::from_le_bytes(memory[at..at + 8].try_into().expect("8 bytes"))
        }
        _ => 0,
    }
}
