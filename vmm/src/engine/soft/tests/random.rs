//! Random integer instructions and register contents, for comparing one way of executing them with another.

use super::{Bench, CODE, Random};
use crate::engine::Reg;
use crate::engine::soft::flags;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};

/// Where the memory operands are, on the host and in the guest.
pub(super) const DATA: u64 = 0x3000_0000;
pub(super) const DATA_LEN: usize = 0x3000;
/// Memory operands start within this many bytes around a page boundary.
pub(super) const MIDDLE: u64 = DATA + 0x1000;

/// Registers by their numbers in instructions; RSP stays what the host needs.
pub(super) const REGS: [Reg; 16] = [
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
pub(super) const RCX: usize = 1;
pub(super) const RBX: usize = 3;
pub(super) const RSP: usize = 4;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;

/// Registers and flags before or after.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) regs: [u64; 16],
    pub(super) flags: u64,
}

impl State {
    pub(super) fn random(random: &mut Random) -> State {
        let mut state = State { regs: std::array::from_fn(|_| random.operand()), flags: 0 };
        state.flags = random.next() & flags::STATUS | 0x202;
        state.regs[RSP] = 0;
        state
    }

    /// Gives a processor these registers and flags.
    pub(super) fn put(&self, bench: &mut Bench) {
        for (reg, value) in REGS.into_iter().zip(self.regs) {
            bench.cpu.set_reg(reg, value);
        }
        bench.cpu.set_reg(Reg::Rflags, self.flags);
    }
}

/// An instruction and what it starts from.
pub(super) struct Case {
    pub(super) instruction: Instruction,
    pub(super) bytes: Vec<u8>,
    pub(super) state: State,
    /// The data area.
    pub(super) memory: Vec<u8>,
}

impl Case {
    /// A random case that does not fault, has a defined result, and touches only registers and the data area.
    pub(super) fn new(random: &mut Random) -> Option<Case> {
        let mut instruction = random_instruction(random)?;
        let mut state = State::random(random);
        aim(&mut instruction, &mut state, random);
        let bytes = encode(&instruction)?;
        let mut memory = vec![0; DATA_LEN];
        for chunk in memory.chunks_mut(8) {
            chunk.copy_from_slice(&random.operand().to_le_bytes());
        }
        let operand = source_value(&instruction, &state, &memory);
        (!excluded(&instruction, &state, operand)).then_some(Case { instruction, bytes, state, memory })
    }

    /// A random instruction that cannot fault whatever came before it, with RBP as the only base and never written.
    pub(super) fn in_program(random: &mut Random) -> Option<Vec<u8>> {
        let mut instruction = random_instruction(random)?;
        let mnemonic = instruction.mnemonic();
        let may_fault = matches!(mnemonic, Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Cmpxchg16b | Mnemonic::Xlatb)
            || is_string(mnemonic);
        // A bit offset in a register leads anywhere.
        let wanders = matches!(mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        let uses_rbp = (0..instruction.op_count()).any(|i| instruction.op_register(i).full_register() == Register::RBP);
        if may_fault || wanders || uses_rbp || is_moffs(instruction.code()) {
            return None;
        }
        if (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory) {
            instruction.set_segment_prefix(Register::None);
            instruction.set_memory_base(Register::RBP);
            instruction.set_memory_index(Register::None);
            instruction.set_memory_displ_size(1);
            instruction.set_memory_displacement64(random.below(100));
        }
        encode(&instruction)
    }
}

fn encode(instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, CODE).ok()?;
    Some(encoder.take_buffer())
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
    instruction.set_segment_prefix(Register::None);
    if is_moffs(instruction.code()) {
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

/// MOV between the accumulator and an absolute address.
pub(super) fn is_moffs(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}
