//! Every form of every instruction that user mode can execute and this processor has, against the host's processor: the same
//! state in, the same state out, exceptions included. Forms are iced-x86's `Code`s, with their r/m operand in a register and
//! in memory.

use super::host::{DATA, DATA_LEN, Fault, HostCpu, NEAR_TARGET, SLOT, State, TARGET};
use super::random::REGS;
use super::{Bench, Random};
use crate::engine::soft::decode;
use crate::engine::soft::flags;
use crate::engine::{Exit, FpuState, Reg};
use crate::memory::{Protection, Segment};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory operands lie around the boundary of the first two pages, the stack in the third.
const MIDDLE: u64 = DATA + 0x1000;
const STACK: u64 = DATA + 0x2800;

/// Why a form is not compared with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Apart {
    /// Not an instruction of 64-bit mode.
    NotIn64Bit,
    /// The processor lacks it: #UD and a recorded event.
    Lacking,
    /// Privileged, or it depends on what only a system sets up: tests of their own compare these.
    System,
    /// What it returns depends on the host: time, random numbers, identification, approximations.
    HostDependent,
    /// It would leave the test: system calls, far transfers, segment registers.
    Leaves,
}

/// Whether a form is compared with the host's processor.
fn apart(code: Code) -> Option<Apart> {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.is_instruction() || !info.mode64() || !info.long_mode() || info.fwait() {
        return Some(Apart::NotIn64Bit);
    }
    if info.encoding() != EncodingKind::Legacy {
        return Some(Apart::Lacking);
    }
    match code.mnemonic() {
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd | M::Cli | M::Sti => {
            return Some(Apart::System);
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw | M::Xsetbv => {
            return Some(Apart::System);
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => return Some(Apart::System),
        M::Rdtsc | M::Rdtscp | M::Rdpid | M::Rdpmc | M::Cpuid | M::Xgetbv | M::Rdrand | M::Rdseed | M::Pause => {
            return Some(Apart::HostDependent);
        }
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => {
            return Some(Apart::HostDependent);
        }
        // PREFETCHW with a register: #UD on AMD's processors, nothing on Intel's.
        M::Reservednop if info.op_code() == 0x0D => return Some(Apart::HostDependent),
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => return Some(Apart::HostDependent),
        M::Syscall | M::Sysenter | M::Int | M::Int1 | M::Int3 | M::Retf | M::Iret | M::Iretd | M::Iretq => {
            return Some(Apart::Leaves);
        }
        M::Lss | M::Lfs | M::Lgs => return Some(Apart::Leaves),
        _ => {}
    }
    if info.is_privileged() || info.must_be_cpl0() {
        return Some(Apart::System);
    }
    let leaves = (0..info.op_count()).any(|i| {
        use OpCodeOperandKind as K;
        matches!(
            info.op_kind(i),
            K::seg_reg
                | K::es
                | K::cs
                | K::ss
                | K::ds
                | K::fs
                | K::gs
                | K::farbr2_2
                | K::farbr4_2
                | K::br16_1
                | K::br16_2
        )
    });
    let far = matches!(
        code,
        Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            // With an operand-size prefix, AMD's processors truncate RIP and Intel's do not (SDM 2A, Jcc; APM 3, Jcc).
            | Code::Retnw
            | Code::Retnw_imm16
            | Code::Call_rm16
            | Code::Jmp_rm16
    );
    (leaves || far).then_some(Apart::Leaves)
}

/// A random instruction of a form, with its memory operand in memory or not; `None` if there is none such.
fn instance(code: Code, in_memory: bool, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    let register = |first: Register, count: u64, random: &mut Random| first + random.below(count) as u32;
    for i in 0..info.op_count() {
        let kind = info.op_kind(i);
        let either =
            matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem);
        let memory = matches!(kind, K::mem | K::mem_offs) || either && in_memory;
        has_memory |= memory;
        if memory {
            instruction.set_op_kind(i, OpKind::Memory);
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_displ_size(1);
            if kind == K::mem_offs {
                instruction.set_memory_base(Register::None);
                instruction.set_memory_displ_size(8);
            }
            continue;
        }
        let operand = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => register(Register::AL, 20, random),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                register(Register::AX, 16, random)
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode => {
                register(Register::EAX, 16, random)
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode => {
                register(Register::RAX, 16, random)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => register(Register::MM0, 8, random),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => register(Register::XMM0, 16, random),
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => register(Register::ST0, 8, random),
            _ => Register::None,
        };
        if operand != Register::None {
            instruction.set_op_kind(i, OpKind::Register);
            instruction.set_op_register(i, operand);
            continue;
        }
        let value = random.next();
        match kind {
            K::imm8 | K::imm8_const_1 => {
                instruction.set_op_kind(
                    i,
                    if i == 1 && code == Code::Enterq_imm16_imm8 { OpKind::Immediate8_2nd } else { OpKind::Immediate8 },
                );
                let value = match code {
                    Code::Enterq_imm16_imm8 | Code::Enterw_imm16_imm8 => value % 8,
                    _ if kind == K::imm8_const_1 => 1,
                    _ => value & 0xFF,
                };
                if i == 1 && matches!(code, Code::Enterq_imm16_imm8 | Code::Enterw_imm16_imm8) {
                    instruction.set_op_kind(i, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(value as u8);
                } else {
                    instruction.set_immediate8(value as u8);
                }
            }
            K::imm8sex16 => {
                instruction.set_op_kind(i, OpKind::Immediate8to16);
                instruction.set_immediate8to16(i16::from(value as i8));
            }
            K::imm8sex32 => {
                instruction.set_op_kind(i, OpKind::Immediate8to32);
                instruction.set_immediate8to32(i32::from(value as i8));
            }
            K::imm8sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate8to64);
                instruction.set_immediate8to64(i64::from(value as i8));
            }
            K::imm16 => {
                instruction.set_op_kind(i, OpKind::Immediate16);
                let small = matches!(code, Code::Retnq_imm16 | Code::Enterq_imm16_imm8 | Code::Enterw_imm16_imm8);
                instruction.set_immediate16(if small { value as u16 % 64 } else { value as u16 });
            }
            K::imm32 => {
                instruction.set_op_kind(i, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate32to64);
                instruction.set_immediate32to64(i64::from(value as i32));
            }
            K::imm64 => {
                instruction.set_op_kind(i, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            K::seg_rSI => instruction.set_op_kind(i, OpKind::MemorySegRSI),
            K::es_rDI => instruction.set_op_kind(i, OpKind::MemoryESRDI),
            K::seg_rDI => instruction.set_op_kind(i, OpKind::MemorySegRDI),
            K::seg_rBX_al => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_base(Register::RBX);
                instruction.set_memory_index(Register::AL);
            }
            K::br64_1 | K::br64_4 => {
                instruction.set_op_kind(i, OpKind::NearBranch64);
                instruction.set_near_branch64(if kind == K::br64_1 { NEAR_TARGET } else { TARGET });
            }
            _ => return None,
        }
    }
    (has_memory == in_memory).then_some(instruction)
}

fn encode(instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, SLOT).ok()?;
    let bytes = encoder.take_buffer();
    // What is encoded must be the form that was meant.
    let decoded = Decoder::with_ip(64, &bytes, SLOT, DecoderOptions::NONE).decode();
    (decoded.code() == instruction.code()).then_some(bytes)
}

/// Bit patterns that floating point goes wrong at.
fn single(random: &mut Random) -> u32 {
    let sign = (random.next() as u32) << 31;
    sign | match random.below(12) {
        0 => 0,
        1 => 0x3F80_0000,
        2 => random.below(1 << 23) as u32,
        3 => 0x7F80_0000,
        4 => 0x7FC0_0000 | random.below(1 << 22) as u32,
        5 => 0x7F80_0001 | random.below(1 << 22) as u32,
        6 => 0x7F7F_FFFF - random.below(4) as u32,
        7 => 0x0080_0000 + random.below(4) as u32,
        8 => (random.below(200) as f32 / 2.0).to_bits(),
        9 | 10 => (120 + random.below(16) as u32) << 23 | random.below(1 << 23) as u32,
        _ => random.next() as u32 >> 1,
    }
}

fn double(random: &mut Random) -> u64 {
    let sign = random.next() << 63;
    sign | match random.below(14) {
        0 => 0,
        1 => 1.0_f64.to_bits(),
        2 => random.below(1 << 52),
        3 => 0x7FF0_0000_0000_0000,
        4 => 0x7FF8_0000_0000_0000 | random.below(1 << 51),
        5 => 0x7FF0_0000_0000_0001 | random.below(1 << 51),
        6 => 0x7FEF_FFFF_FFFF_FFFF - random.below(4),
        7 => 0x0010_0000_0000_0000 + random.below(4),
        8 => (random.below(200) as f64 / 2.0).to_bits(),
        9 | 10 => (1016 + random.below(16)) << 52 | random.below(1 << 52),
        // Around the limits of single precision and of integers.
        11 => (1023 - 155 + random.below(40)) << 52 | random.below(1 << 52),
        12 => (1023 + 20 + random.below(110)) << 52 | random.below(1 << 52),
        _ => random.next() >> 1,
    }
}

fn extended(random: &mut Random) -> [u8; 10] {
    let integer = 1 << 63;
    let (exponent, significand) = match random.below(16) {
        0 => (0, 0),
        1 => (0x3FFF, integer),
        2 => (0, random.next() >> random.below(63)),
        3 => (0x7FFF, integer),
        4 => (0x7FFF, integer | 1 << 62 | random.next() >> 2),
        5 => (0x7FFF, integer | 1 | random.next() >> 2),
        6 => (0x7FFE, u64::MAX - random.below(4)),
        7 => (1, integer + random.below(4)),
        8 => (0x3FFF + random.below(6) as u16, integer | random.next() << 50),
        9 | 10 => (0x3FF8 + random.below(16) as u16, integer | random.next()),
        11 => (0x3FFF - 1080 + random.below(90) as u16, integer | random.next()),
        12 => (0x3FFF + 10 + random.below(60) as u16, integer | random.next()),
        13 => (random.next() as u16 & 0x7FFF, random.next()),
        14 => (0x3FFF + 960 + random.below(100) as u16, integer | random.next() << 11),
        _ => (random.next() as u16 & 0x7FFF, integer | random.next()),
    };
    let sign = (random.next() as u16) << 15;
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

fn vector(random: &mut Random) -> [u8; 16] {
    let mut bytes = [0; 16];
    match random.below(4) {
        0 => bytes.chunks_exact_mut(4).for_each(|chunk| chunk.copy_from_slice(&single(random).to_le_bytes())),
        1 => bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&double(random).to_le_bytes())),
        2 => bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.operand().to_le_bytes())),
        _ => {
            bytes.chunks_exact_mut(2).for_each(|chunk| chunk.copy_from_slice(&(random.operand() as u16).to_le_bytes()))
        }
    }
    bytes
}

/// An FXSAVE image. Unmasked exceptions are pending now and then.
fn fpu_image(random: &mut Random) -> [u8; 512] {
    let mut image = [0; 512];
    let control = match random.below(4) {
        0 => random.next() as u16 & 0x1F3F | 0x40,
        1 | 2 => 0x037F | (random.next() as u16 & 3) << 10,
        _ => 0x007F | random.next() as u16 & 0xF00,
    };
    let mut status = random.next() as u16 & 0x7F7F;
    if random.below(4) != 0 {
        status &= !0x3F;
    }
    if random.below(16) != 0 {
        status &= !(!control & 0x3F);
    }
    if status & !control & 0x3F != 0 {
        status |= 0x8080;
    }
    image[..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = match random.below(4) {
        0 => random.next() as u8,
        1 => 0,
        _ => 0xFF,
    };
    if random.below(2) == 0 {
        // Room to push.
        let top = status >> 11 & 7;
        image[4] &= !(1 << ((top + 7) & 7));
    }
    let mut mxcsr = random.next() as u32 & 0xE07F | 0x1F80;
    if random.below(4) == 0 {
        mxcsr = random.next() as u32 & 0xFFFF;
    }
    if random.below(2) == 0 {
        mxcsr &= !0x3F;
    }
    if random.below(2) == 0 {
        mxcsr &= !0x8040;
    }
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&0xFFFF_u32.to_le_bytes());
    for i in 0..8 {
        image[32 + 16 * i..42 + 16 * i].copy_from_slice(&extended(random));
    }
    for i in 0..16 {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&vector(random));
    }
    image
}

fn memory(random: &mut Random) -> Vec<u8> {
    let mut memory = vec![0; DATA_LEN];
    for chunk in memory.chunks_mut(16) {
        if random.below(3) == 0 {
            chunk[..10].copy_from_slice(&extended(random));
        } else {
            chunk.copy_from_slice(&vector(random));
        }
    }
    memory
}

/// A case: an instruction and all that it starts from.
pub(super) struct Case {
    pub(super) instruction: Instruction,
    pub(super) bytes: Vec<u8>,
    pub(super) state: State,
    pub(super) memory: Vec<u8>,
}

impl Case {
    pub(super) fn new(code: Code, in_memory: bool, random: &mut Random) -> Option<Case> {
        let mut instruction = instance(code, in_memory, random)?;
        let mut state = State {
            fpu: fpu_image(random),
            regs: std::array::from_fn(|_| random.operand()),
            flags: random.next() & flags::STATUS | 0x202,
            branched: 0,
        };
        state.regs[4] = STACK + 8 * random.below(4);
        let mut memory = memory(random);
        aim(&mut instruction, &mut state, &mut memory, random);
        let bytes = encode(&instruction)?;
        let mut decoder = Decoder::with_ip(64, &bytes, SLOT, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (!is_undefined(&instruction, &state, &memory)).then_some(Case { instruction, bytes, state, memory })
    }
}

fn gpr(number: usize) -> Register {
    Register::RAX + number as u32
}

/// Points memory operands and branches to where they may go.
fn aim(instruction: &mut Instruction, state: &mut State, memory: &mut [u8], random: &mut Random) {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let is = |i: u32, kind: OpKind| i < instruction.op_count() && instruction.op_kind(i) == kind;
    let any = |kind: OpKind| (0..5).any(|i| is(i, kind));
    if any(OpKind::MemorySegRSI) || any(OpKind::MemoryESRDI) || any(OpKind::MemorySegRDI) {
        let around = |random: &mut Random| MIDDLE - 200 + random.below(400);
        state.regs[6] = around(random);
        state.regs[7] = if random.below(2) == 0 { around(random) } else { state.regs[6] + random.below(20) - 10 };
        state.regs[1] = random.below(50);
        if random.below(4) == 0 {
            state.flags |= flags::DF;
        }
        match (instruction.code().op_code().can_use_rep_prefix(), random.below(3)) {
            (true, 0) => instruction.set_has_rep_prefix(true),
            (true, 1) if instruction.code().op_code().can_use_repne_prefix() => instruction.set_has_repne_prefix(true),
            _ => {}
        }
        return;
    }
    if mnemonic == M::Xlatb {
        state.regs[3] = MIDDLE - random.below(256);
        return;
    }
    if matches!(mnemonic, M::Ret | M::Leave | M::Enter) {
        let stack = state.regs[4];
        let at = (stack - DATA) as usize;
        memory[at..at + 8].copy_from_slice(&TARGET.to_le_bytes());
        if mnemonic != M::Ret {
            state.regs[5] = STACK - 8 * random.below(64);
        }
        return;
    }
    if matches!(mnemonic, M::Popf | M::Popfq) {
        // No single steps, and no alignment checks.
        let at = (state.regs[4] - DATA) as usize;
        let value = random.next() & (flags::STATUS | flags::DF) | flags::IF | flags::FIXED;
        memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
        return;
    }
    let is_transfer = matches!(mnemonic, M::Jmp | M::Call);
    if is_transfer && is(0, OpKind::Register) {
        let number = instruction.op0_register().full_register().number();
        state.regs[number] = TARGET;
        return;
    }
    if !any(OpKind::Memory) {
        return;
    }
    let size = instruction.memory_size().size() as u64;
    let needs = match mnemonic {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => 512,
        _ => size.max(1),
    };
    let mut target = match random.below(8) {
        0 => MIDDLE - random.below(needs + 1),
        1 => MIDDLE + 1 + random.below(400),
        _ => MIDDLE - 0x200 + 64 * random.below(12),
    };
    if random.below(8) == 0 && needs >= 16 {
        target += 8;
    }
    if matches!(
        instruction.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    ) {
        instruction.set_memory_displacement64(target);
        return;
    }
    let at = (target - DATA) as usize;
    if is_transfer {
        memory[at..at + 8].copy_from_slice(&TARGET.to_le_bytes());
    }
    if matches!(mnemonic, M::Fxrstor | M::Fxrstor64) && random.below(4) != 0 {
        memory[at..at + 512].copy_from_slice(&fpu_image(random));
    }
    if matches!(mnemonic, M::Fxrstor | M::Fxrstor64) {
        // AMD's processors have one bit of MXCSR more.
        memory[at + 26] &= !2;
    }
    if mnemonic == M::Ldmxcsr && random.below(4) != 0 {
        memory[at + 2..at + 4].fill(0);
    } else if mnemonic == M::Ldmxcsr {
        // One bit more, as above.
        memory[at + 2] &= !2;
    }
    let pick = |random: &mut Random| [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][random.below(15) as usize];
    let base = pick(random);
    let index = pick(random);
    let displacement = random.next() as i8;
    instruction.set_memory_base(gpr(base));
    instruction.set_memory_displ_size(1);
    instruction.set_memory_displacement64(i64::from(displacement) as u64);
    let mut index_part = 0;
    if index != base && random.below(3) == 0 {
        let scale = 1 << random.below(4);
        instruction.set_memory_index(gpr(index));
        instruction.set_memory_index_scale(scale);
        state.regs[index] = random.below(64);
        index_part = state.regs[index] * u64::from(scale);
    }
    state.regs[base] = target.wrapping_sub(i64::from(displacement) as u64).wrapping_sub(index_part);
    let is_bit_test = matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc);
    if is_bit_test && instruction.op1_kind() == OpKind::Register {
        // The bit offset reaches beyond the operand.
        let offset = instruction.op1_register().full_register().number();
        if offset != base && !(instruction.memory_index() != Register::None && offset == index) {
            state.regs[offset] = (random.next() as i16 >> 4) as i64 as u64;
        }
    }
    if instruction.code().op_code().can_use_lock_prefix() && random.below(4) == 0 {
        instruction.set_has_lock_prefix(true);
    }
    if mnemonic == M::Cmpxchg16b || mnemonic == M::Cmpxchg8b {
        // Equal half of the time.
        if random.below(2) == 0 {
            let half = size as usize / 2;
            let part = |at: usize| {
                let mut bytes = [0; 8];
                bytes[..half].copy_from_slice(&memory[at..at + half]);
                u64::from_le_bytes(bytes)
            };
            if base > 2 && index > 2 {
                (state.regs[0], state.regs[2]) = (part(at), part(at + half));
            }
        }
    }
}

/// Whether the manual leaves the result, not only flags, undefined; or the bit offset of a bit test leads out of the data.
fn is_undefined(instruction: &Instruction, state: &State, memory: &[u8]) -> bool {
    use Mnemonic as M;
    let bits = match instruction.op_count() {
        0 => 0,
        _ if instruction.op0_kind() == OpKind::Register => instruction.op0_register().size() as u32 * 8,
        _ => instruction.memory_size().size() as u32 * 8,
    };
    let source = |i: u32| -> u64 {
        match instruction.op_kind(i) {
            OpKind::Register => state.regs[instruction.op_register(i).full_register().number()],
            OpKind::Memory => {
                let part = |r: Register| if r == Register::None { 0 } else { state.regs[r.number()] };
                let index = part(instruction.memory_index()) * u64::from(instruction.memory_index_scale());
                let address = part(instruction.memory_base())
                    .wrapping_add(index)
                    .wrapping_add(instruction.memory_displacement64());
                let at = (address - DATA) as usize;
                u64::from_le_bytes(memory[at..at + 8].try_into().expect("8 bytes"))
            }
            _ => instruction.immediate(i),
        }
    };
    match instruction.mnemonic() {
        M::Bsf | M::Bsr => source(1) << (64 - bits) == 0,
        M::Shld | M::Shrd if bits == 16 => source(2) & 31 > 16,
        M::Bswap => bits == 16,
        M::Bt | M::Bts | M::Btr | M::Btc
            if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
        {
            let offset = (source(1) << (64 - bits)) as i64 >> (64 - bits);
            offset.unsigned_abs() > 0x4000
        }
        _ => false,
    }
}

/// Runs a case in software.
pub(super) struct Guest {
    bench: Bench,
    data: Arc<Segment>,
    code: Arc<Segment>,
}

impl Guest {
    pub(super) fn new() -> Guest {
        let mut bench = Bench::new(0x10_0000);
        let data = Arc::new(Segment::new(DATA_LEN).expect("memory"));
        let code = Arc::new(Segment::new(0x1000).expect("memory"));
        bench.vm.map(DATA, &data, 0, DATA_LEN as u64, Protection { write: true }).expect("a good mapping");
        bench.vm.map(SLOT & !0xFFF, &code, 0, 0x1000, Protection { write: true }).expect("a good mapping");
        bench.long_mode(3);
        super::events::long_mode_idt(&mut bench);
        for target in [NEAR_TARGET, TARGET] {
            assert!(code.write(target & 0xFFF, &[0xEB, 0xFE]));
        }
        Guest { bench, data, code }
    }

    pub(super) fn run(&mut self, case: &Case) -> (State, Option<Fault>, Vec<u8>) {
        let Case { bytes, state, memory, .. } = case;
        let bench = &mut self.bench;
        let mut code = bytes.clone();
        code.extend([0xEB, 0xFE]);
        assert!(self.code.write(SLOT & 0xFFF, &code));
        assert!(self.data.write(0, memory));
        bench.flat_segments(0xA09B, 3);
        for (reg, value) in REGS.into_iter().zip(state.regs) {
            bench.cpu.set_reg(reg, value);
        }
        bench.cpu.set_reg(Reg::Rflags, state.flags);
        bench.cpu.set_reg(Reg::Rip, SLOT);
        bench.cpu.set_fpu(&FpuState { image: state.fpu, xcr0: 1 });
        let exit = bench.run(1000);
        let mut result = state.clone();
        let fault = match exit {
            Exit::Pause => None,
            Exit::Hlt => {
                let vector = super::events::handled(bench);
                let has_code = matches!(vector, 8 | 10..=14 | 17);
                let frame = bench.cpu.reg(Reg::Rsp) + if has_code { 8 } else { 0 };
                let stacked = [16, 24].map(|at| bench.read64(frame + at));
                bench.cpu.set_reg(Reg::Rflags, stacked[0]);
                bench.cpu.set_reg(Reg::Rsp, stacked[1]);
                Some(vector as Fault)
            }
            exit => unreachable!("{exit:?} from {} {bytes:02x?}", case.instruction),
        };
        for (place, reg) in result.regs.iter_mut().zip(REGS) {
            *place = bench.cpu.reg(reg);
        }
        result.flags = bench.cpu.reg(Reg::Rflags);
        result.fpu = bench.cpu.fpu().image;
        result.branched = u64::from([NEAR_TARGET, TARGET].contains(&bench.cpu.reg(Reg::Rip)));
        let mut after = vec![0; DATA_LEN];
        assert!(self.data.read(0, &mut after));
        (result, fault, after)
    }
}

/// Bytes of an FXSAVE image that processors do not agree on: the last opcode and pointers, the mask of MXCSR, and what is
/// behind the registers.
fn comparable(image: &[u8]) -> Vec<u8> {
    let mut image = image[..416].to_vec();
    image[6..24].fill(0);
    image[28..32].fill(0);
    // The reserved byte beside the tags, and those beside the registers.
    image[5] = 0;
    for i in 0..8 {
        image[42 + 16 * i..48 + 16 * i].fill(0);
    }
    image
}

/// What differs between the host's result and ours, in words; `None` if nothing does.
fn difference(
    case: &Case,
    (host, host_fault, host_memory): &(State, Option<Fault>, Vec<u8>),
    (ours, our_fault, our_memory): &(State, Option<Fault>, Vec<u8>),
) -> Option<String> {
    if host_fault != our_fault {
        return Some(format!("exception: host {host_fault:?}, ours {our_fault:?}"));
    }
    for (i, (host, ours)) in host.regs.iter().zip(ours.regs).enumerate() {
        if *host != ours {
            return Some(format!("{:?}: host {host:#x}, ours {ours:#x}", REGS[i]));
        }
    }
    if host.branched != ours.branched {
        return Some(format!("branch: host {}, ours {}", host.branched, ours.branched));
    }
    let mask = match our_fault {
        None => super::native::defined_flags(&case.instruction, &case.state.regs) | flags::DF,
        Some(_) => flags::STATUS,
    };
    if (host.flags ^ ours.flags) & mask != 0 {
        return Some(format!("flags: host {:#x}, ours {:#x}", host.flags & mask, ours.flags & mask));
    }
    let (theirs, mine) = (comparable(&host.fpu), comparable(&ours.fpu));
    if let Some(at) = (0..theirs.len()).find(|&i| theirs[i] != mine[i]) {
        let start = if at < 32 { at & !3 } else { at & !15 };
        let len = if at < 32 { 4 } else { 16 };
        return Some(format!(
            "FXSAVE image at {start}: host {:02x?}, ours {:02x?} (words: host {:02x?}, ours {:02x?})",
            &theirs[start..start + len],
            &mine[start..start + len],
            &theirs[..6],
            &mine[..6]
        ));
    }
    let ignored = ignored_memory(case);
    let at =
        (0..DATA_LEN).find(|&i| host_memory[i] != our_memory[i] && !ignored.iter().any(|range| range.contains(&i)))?;
    Some(format!(
        "memory at {:#x}: host {:02x?}, ours {:02x?}",
        DATA + at as u64,
        &host_memory[at & !7..(at & !7) + 16],
        &our_memory[at & !7..(at & !7) + 16]
    ))
}

/// Stored parts of an x87 environment that processors do not agree on.
fn ignored_memory(case: &Case) -> Vec<std::ops::Range<usize>> {
    use Mnemonic as M;
    let instruction = &case.instruction;
    let start = || {
        let part = |r: Register| if r == Register::None { 0 } else { case.state.regs[r.number()] };
        let index = part(instruction.memory_index()) * u64::from(instruction.memory_index_scale());
        let address =
            part(instruction.memory_base()).wrapping_add(index).wrapping_add(instruction.memory_displacement64());
        (address - DATA) as usize
    };
    let parts = match (instruction.mnemonic(), instruction.code()) {
        (M::Fxsave | M::Fxsave64, _) => [6..24, 28..32],
        (M::Fnstenv | M::Fnsave, Code::Fnstenv_m14byte | Code::Fnsave_m94byte) => [6..14, 0..0],
        (M::Fnstenv | M::Fnsave, _) => [12..28, 0..0],
        _ => return Vec::new(),
    };
    parts.into_iter().map(|part| start() + part.start..start() + part.end).collect()
}

/// Whether this processor has an instruction.
fn is_implemented(instruction: &Instruction) -> bool {
    !decode::decode(instruction).lacking
}

/// What came of one form.
#[derive(Default)]
struct Tally {
    cases: u32,
    faults: u32,
    divergences: u32,
    example: String,
}

fn host_has(code: Code) -> bool {
    let has = |feature: &CpuidFeature| match feature {
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
        CpuidFeature::LZCNT => is_x86_feature_detected!("lzcnt"),
        CpuidFeature::BMI1 => is_x86_feature_detected!("bmi1"),
        CpuidFeature::ADX => is_x86_feature_detected!("adx"),
        CpuidFeature::MOVBE => is_x86_feature_detected!("movbe"),
        CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        CpuidFeature::CLFLUSHOPT | CpuidFeature::CLWB | CpuidFeature::SERIALIZE | CpuidFeature::CLDEMOTE => false,
        _ => true,
    };
    code.cpuid_features().iter().all(has)
}

/// Compares every form with the host, `cases` random cases each, and prints what it found.
fn compare_all(cases: u32, seed: u64, wanted: impl Fn(Code) -> bool) -> BTreeMap<String, Tally> {
    let (mut host, mut guest) = (HostCpu::new(), Guest::new());
    let mut tallies = BTreeMap::new();
    for code in Code::values().filter(|&code| apart(code).is_none() && host_has(code) && wanted(code)) {
        for in_memory in [false, true] {
            // Each form has its own numbers, so that one more form changes nothing about the others.
            let mut random = Random(seed ^ (code as u64) << 20 ^ u64::from(in_memory) << 60);
            let mut tally = Tally::default();
            for _ in 0..cases {
                let Some(case) = Case::new(code, in_memory, &mut random) else { continue };
                if !is_implemented(&case.instruction) {
                    continue;
                }
                host.data().copy_from_slice(&case.memory);
                let (state, fault) = host.run(&case.bytes, &case.state);
                let theirs = (state, fault, host.data().to_vec());
                let ours = guest.run(&case);
                tally.cases += 1;
                tally.faults += u32::from(ours.1.is_some());
                if let Some(what) = difference(&case, &theirs, &ours) {
                    if tally.divergences == 0 {
                        let fpu = &case.state.fpu;
                        tally.example = format!(
                            "{} {:02x?}: {what}\n    regs {:x?} flags {:#x} FCW {:02x?} FSW {:02x?} tags {:02x} MXCSR {:02x?}",
                            case.instruction,
                            case.bytes,
                            case.state.regs,
                            case.state.flags,
                            &fpu[..2],
                            &fpu[2..4],
                            fpu[4],
                            &fpu[24..26]
                        );
                        for i in 0..3 {
                            tally.example += &format!("\n    ST{i} {:02x?}", &fpu[32 + 16 * i..42 + 16 * i]);
                        }
                        for i in 0..case.instruction.op_count() {
                            if case.instruction.op_kind(i) == OpKind::Register
                                && case.instruction.op_register(i).is_xmm()
                            {
                                let n = case.instruction.op_register(i).number();
                                tally.example += &format!("\n    xmm{n} {:02x?}", &fpu[160 + 16 * n..176 + 16 * n]);
                            }
                        }
                    }
                    tally.divergences += 1;
                }
            }
            if tally.cases > 0 {
                tallies.insert(format!("{code:?}{}", if in_memory { " (memory)" } else { "" }), tally);
            }
        }
    }
    tallies
}

/// `SPINUP_FORM_CASES` is the number of random cases of each form, `SPINUP_FORMS` a part of the names of those wanted.
#[test]
fn every_form_agrees_with_the_host() {
    let cases = std::env::var("SPINUP_FORM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60);
    let only = std::env::var("SPINUP_FORMS").unwrap_or_default();
    let tallies = compare_all(cases, 1, |code| format!("{code:?}").contains(&only));
    let (mut total, mut faults) = (0, 0);
    let mut diverging = Vec::new();
    for (form, tally) in &tallies {
        total += tally.cases;
        faults += tally.faults;
        if tally.divergences > 0 {
            diverging.push(form);
            eprintln!("{form}: {} of {} diverge\n  {}", tally.divergences, tally.cases, tally.example);
        }
    }
    println!(
        "{} forms compared with the host, {total} cases, {faults} of them with exceptions, {} forms diverge",
        tallies.len(),
        diverging.len()
    );
    assert!(diverging.is_empty(), "{diverging:?}");
    assert!(!only.is_empty() || tallies.len() > 1900, "only {} forms were compared", tallies.len());
}
