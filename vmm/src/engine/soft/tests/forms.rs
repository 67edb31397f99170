//! Every form of every instruction that user mode can execute and this processor has, against the host's processor: the same
//! state in, the same state out, exceptions included, in 64-bit mode and in code segments of 32 and of 16 bits beneath it.
//! Forms are iced-x86's `Code`s, with their r/m operand in a register and in memory.

use super::host::{CODE, DATA, DATA_LEN, Fault, HostCpu, NEAR_TARGET, SLOT, State, TARGET};
use super::random::{REGS, is_moffs};
use super::{Bench, Random};
use crate::engine::soft::decode;
use crate::engine::soft::flags;
use crate::engine::{Exit, FpuState, Reg, SegDesc};
use crate::memory::{Protection, Segment};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory operands lie around the boundary of the first two pages, the stack in the third.
pub(super) const MIDDLE: u64 = DATA + 0x1000;
pub(super) const STACK: u64 = DATA + 0x2800;

/// Where the data area begins for code of this many bits: its segments are based there, but for the flat ones of 64-bit mode.
pub(super) fn address_space(bits: u32) -> u64 {
    if bits == 64 { DATA } else { 0 }
}

/// Where code of this many bits takes an address in the page of the code to be.
pub(super) fn code_offset(bits: u32, at: u64) -> u64 {
    if bits == 64 { at } else { at - CODE }
}

/// Why a form is not compared with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Apart {
    /// Not an instruction of the mode.
    NotInMode,
    /// The processor lacks it: #UD and a recorded event.
    Lacking,
    /// Privileged, or it depends on what only a system sets up: tests of their own compare these.
    System,
    /// What it returns depends on the host: time, random numbers, identification.
    HostDependent,
    /// Its result may differ in the last bits.
    Approximate,
    /// It would leave the test: system calls, far transfers, segment registers.
    Leaves,
}

/// Instructions whose result the manual gives to some bits only.
pub(super) fn is_approximate(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss) || is_transcendental(mnemonic)
}

fn is_transcendental(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fsin | M::Fcos | M::Fsincos | M::Fptan)
}

/// Whether code of this many bits has the form. FWAIT's combinations are two instructions.
pub(super) fn is_in_mode(code: Code, bits: u32) -> bool {
    let info = code.op_code();
    let has = match bits {
        16 => info.mode16(),
        32 => info.mode32(),
        _ => info.mode64(),
    };
    info.is_instruction() && has && !info.fwait()
}

/// Why a form is not compared with the host's processor; `None` if it is.
pub(super) fn apart(code: Code, bits: u32) -> Option<Apart> {
    use Mnemonic as M;
    let info = code.op_code();
    let in_long_mode = if bits == 64 { info.long_mode() } else { info.compatibility_mode() };
    if !is_in_mode(code, bits) || !in_long_mode {
        return Some(Apart::NotInMode);
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
        mnemonic if is_approximate(mnemonic) => return Some(Apart::Approximate),
        M::Syscall | M::Sysenter | M::Int | M::Int1 | M::Int3 | M::Retf | M::Iret | M::Iretd | M::Iretq => {
            return Some(Apart::Leaves);
        }
        M::Lss | M::Lfs | M::Lgs | M::Lds | M::Les => return Some(Apart::Leaves),
        _ => {}
    }
    if info.is_privileged() || info.must_be_cpl0() {
        return Some(Apart::System);
    }
    let leaves = (0..info.op_count()).any(|i| {
        use OpCodeOperandKind as K;
        matches!(
            info.op_kind(i),
            K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs | K::farbr2_2 | K::farbr4_2
        )
    });
    if bits == 64 && truncates_rip(code) {
        return Some(Apart::HostDependent);
    }
    let far = matches!(
        code,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664
    );
    (leaves || far).then_some(Apart::Leaves)
}

/// Near branches with operands of 16 bits: in 64-bit mode, AMD's processors truncate RIP and Intel's do not (SDM 2A, Jcc; APM
/// 3, Jcc).
pub(super) fn truncates_rip(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count()).any(|i| matches!(info.op_kind(i), OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2))
        || matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Call_rm16 | Code::Jmp_rm16)
}

fn is_enter(code: Code) -> bool {
    matches!(code, Code::Enterw_imm16_imm8 | Code::Enterd_imm16_imm8 | Code::Enterq_imm16_imm8)
}

fn is_return(code: Code) -> bool {
    matches!(code.mnemonic(), Mnemonic::Ret | Mnemonic::Retf)
}

/// Bytes of the addresses of an instruction: the mode's own, or now and then those that a prefix asks for.
fn address_size(bits: u32, random: &mut Random) -> u32 {
    match bits {
        64 => 8,
        32 if random.below(6) == 0 => 2,
        16 if random.below(3) != 0 => 2,
        _ => 4,
    }
}

/// A general register as addresses of this many bytes use it.
fn sized(register: Register, address_size: u32) -> Register {
    let first = match address_size {
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + register.number() as u32
}

/// The operands of string instructions: the source at rSI, the destination at rDI, and the destination that may have a
/// segment prefix.
fn string_kinds(address_size: u32) -> [OpKind; 3] {
    match address_size {
        2 => [OpKind::MemorySegSI, OpKind::MemoryESDI, OpKind::MemorySegDI],
        4 => [OpKind::MemorySegESI, OpKind::MemoryESEDI, OpKind::MemorySegEDI],
        _ => [OpKind::MemorySegRSI, OpKind::MemoryESRDI, OpKind::MemorySegRDI],
    }
}

/// A random instruction of a form, with its memory operand in memory or not; `None` if there is none such.
pub(super) fn instance(code: Code, bits: u32, in_memory: bool, random: &mut Random) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    let address_size = address_size(bits, random);
    let count = if bits == 64 { 16 } else { 8 };
    let bytes = if bits == 64 { 20 } else { 8 };
    let register = |first: Register, count: u64, random: &mut Random| first + random.below(count) as u32;
    for i in 0..info.op_count() {
        let kind = info.op_kind(i);
        let either =
            matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem);
        let memory = matches!(kind, K::mem | K::mem_offs) || either && in_memory;
        has_memory |= memory;
        if memory {
            instruction.set_op_kind(i, OpKind::Memory);
            instruction.set_memory_base(sized(Register::RBX, address_size));
            instruction.set_memory_displ_size(1);
            if kind == K::mem_offs {
                instruction.set_memory_base(Register::None);
                instruction.set_memory_displ_size(address_size);
            }
            continue;
        }
        let operand = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => register(Register::AL, bytes, random),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                register(Register::AX, count, random)
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode => {
                register(Register::EAX, count, random)
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode => {
                register(Register::RAX, count, random)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => register(Register::MM0, 8, random),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => register(Register::XMM0, count, random),
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => register(Register::ST0, 8, random),
            K::seg_reg => register(Register::ES, 6, random),
            K::cr_reg => [Register::CR0, Register::CR2, Register::CR3, Register::CR4][random.below(4) as usize],
            K::dr_reg => register(Register::DR0, 8, random),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
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
                let value = match code {
                    _ if is_enter(code) => value % 8,
                    _ if kind == K::imm8_const_1 => 1,
                    _ => value & 0xFF,
                };
                if i == 1 && is_enter(code) {
                    instruction.set_op_kind(i, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(value as u8);
                } else {
                    instruction.set_op_kind(i, OpKind::Immediate8);
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
                let small = is_enter(code) || is_return(code);
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
            K::seg_rSI => instruction.set_op_kind(i, string_kinds(address_size)[0]),
            K::es_rDI => instruction.set_op_kind(i, string_kinds(address_size)[1]),
            K::seg_rDI => instruction.set_op_kind(i, string_kinds(address_size)[2]),
            K::seg_rBX_al => {
                instruction.set_op_kind(i, OpKind::Memory);
                instruction.set_memory_base(sized(Register::RBX, address_size));
                instruction.set_memory_index(Register::AL);
            }
            K::br16_1 | K::br16_2 => {
                instruction.set_op_kind(i, OpKind::NearBranch16);
                let target = if kind == K::br16_1 { NEAR_TARGET } else { TARGET };
                instruction.set_near_branch16(code_offset(bits, target) as u16);
            }
            K::br32_1 | K::br32_4 => {
                instruction.set_op_kind(i, OpKind::NearBranch32);
                let target = if kind == K::br32_1 { NEAR_TARGET } else { TARGET };
                instruction.set_near_branch32(code_offset(bits, target) as u32);
            }
            K::br64_1 | K::br64_4 => {
                instruction.set_op_kind(i, OpKind::NearBranch64);
                instruction.set_near_branch64(if kind == K::br64_1 { NEAR_TARGET } else { TARGET });
            }
            K::farbr2_2 => {
                instruction.set_op_kind(i, OpKind::FarBranch16);
                instruction.set_far_branch16(code_offset(bits, TARGET) as u16);
            }
            K::farbr4_2 => {
                instruction.set_op_kind(i, OpKind::FarBranch32);
                instruction.set_far_branch32(code_offset(bits, TARGET) as u32);
            }
            _ => return None,
        }
    }
    (has_memory == in_memory).then_some(instruction)
}

pub(super) fn encode(instruction: &Instruction, bits: u32) -> Option<Vec<u8>> {
    let at = code_offset(bits, SLOT);
    let mut encoder = Encoder::new(bits);
    encoder.encode(instruction, at).ok()?;
    let bytes = encoder.take_buffer();
    // What is encoded must be the form that was meant.
    let decoded = Decoder::with_ip(bits, &bytes, at, DecoderOptions::NONE).decode();
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
pub(super) fn fpu_image(random: &mut Random) -> [u8; 512] {
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

pub(super) fn memory(random: &mut Random) -> Vec<u8> {
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
    /// Of the code segment.
    pub(super) bits: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) state: State,
    pub(super) memory: Vec<u8>,
}

impl Case {
    pub(super) fn new(code: Code, bits: u32, in_memory: bool, random: &mut Random) -> Option<Case> {
        Case::adjusted(code, bits, in_memory, random, |_, _, _, _| {})
    }

    /// A case that something is changed about before it is encoded: the instruction, what it starts from, and the memory.
    pub(super) fn adjusted(
        code: Code,
        bits: u32,
        in_memory: bool,
        random: &mut Random,
        adjust: impl FnOnce(&mut Instruction, &mut State, &mut [u8], &mut Random),
    ) -> Option<Case> {
        let mut instruction = instance(code, bits, in_memory, random)?;
        let mut state = State {
            fpu: fpu_image(random),
            regs: std::array::from_fn(|_| random.operand()),
            flags: random.next() & flags::STATUS | 0x202,
            branched: 0,
        };
        state.regs[4] = address_space(bits) + (STACK - DATA) + 8 * random.below(4);
        if bits == 16 {
            // A stack of 16 bits leaves the rest of ESP alone.
            state.regs[4] |= random.next() & 0xFFFF_0000;
        }
        let mut memory = memory(random);
        aim(&mut instruction, bits, &mut state, &mut memory, random);
        adjust(&mut instruction, &mut state, &mut memory, random);
        if bits != 64 {
            state.narrow();
        }
        let bytes = encode(&instruction, bits)?;
        let mut decoder = Decoder::with_ip(bits, &bytes, code_offset(bits, SLOT), DecoderOptions::NONE);
        let instruction = decoder.decode();
        let case = Case { instruction, bits, bytes, state, memory };
        (!is_undefined(&case)).then_some(case)
    }

    /// Where in the data area the memory operand lies.
    pub(super) fn operand_at(&self) -> usize {
        address(&self.instruction, &self.state).wrapping_sub(address_space(self.bits)) as usize
    }
}

/// The effective address of the memory operand (SDM 1 3.7.5).
pub(super) fn address(instruction: &Instruction, state: &State) -> u64 {
    let part = |r: Register| if r == Register::None { 0 } else { state.regs[r.number()] };
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let size = [base.size(), index.size(), instruction.memory_displ_size() as usize].into_iter().max().unwrap_or(8);
    let address = part(base)
        .wrapping_add(part(index).wrapping_mul(u64::from(instruction.memory_index_scale())))
        .wrapping_add(instruction.memory_displacement64());
    address & u64::MAX.checked_shr(64 - 8 * size as u32).unwrap_or(0)
}

/// Points memory operands and branches to where they may go.
fn aim(instruction: &mut Instruction, bits: u32, state: &mut State, memory: &mut [u8], random: &mut Random) {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    let is = |i: u32, kind: OpKind| i < instruction.op_count() && instruction.op_kind(i) == kind;
    let any = |kind: OpKind| (0..5).any(|i| is(i, kind));
    let start = address_space(bits);
    let middle = start + (MIDDLE - DATA);
    let target_ip = code_offset(bits, TARGET);
    let string_size = [2, 4, 8].into_iter().find(|&size| string_kinds(size).into_iter().any(any));
    if let Some(size) = string_size {
        let around = |random: &mut Random| middle - 200 + random.below(400);
        state.regs[6] = around(random);
        state.regs[7] = if random.below(2) == 0 { around(random) } else { state.regs[6] + random.below(20) - 10 };
        state.regs[1] = random.below(50);
        if size == 2 {
            // The rest of the registers does not count.
            [1, 6, 7].into_iter().for_each(|i| state.regs[i] |= random.next() & 0xFFFF_0000);
        }
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
    let stack_at = (state.regs[4].wrapping_sub(start) & 0xFFFF) as usize;
    if mnemonic == M::Xlatb {
        state.regs[3] = middle - random.below(256);
        return;
    }
    if matches!(mnemonic, M::Ret | M::Leave | M::Enter) {
        memory[stack_at..stack_at + 8].copy_from_slice(&target_ip.to_le_bytes());
        if mnemonic != M::Ret {
            state.regs[5] = start + (STACK - DATA) - 8 * random.below(64);
        }
        return;
    }
    if matches!(mnemonic, M::Popf | M::Popfd | M::Popfq) {
        // No single steps, and no alignment checks.
        let value = random.next() & (flags::STATUS | flags::DF) | flags::IF | flags::FIXED;
        memory[stack_at..stack_at + 8].copy_from_slice(&value.to_le_bytes());
        return;
    }
    let is_transfer = matches!(mnemonic, M::Jmp | M::Call);
    if is_transfer && is(0, OpKind::Register) {
        let number = instruction.op0_register().full_register().number();
        state.regs[number] = target_ip;
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
        0 => middle - random.below(needs + 1),
        1 => middle + 1 + random.below(400),
        _ => middle - 0x200 + 64 * random.below(12),
    };
    if random.below(8) == 0 && needs >= 16 {
        target += 8;
    }
    if is_moffs(instruction.code()) {
        instruction.set_memory_displacement64(target);
        return;
    }
    let at = (target - start) as usize;
    if is_transfer {
        memory[at..at + 8].copy_from_slice(&target_ip.to_le_bytes());
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
    let (base, index) = address_memory(instruction, bits, state, target, random);
    // A branch to what lies there would lead anywhere, and processors differ in the bits of MXCSR.
    let keeps_target = is_transfer || matches!(mnemonic, M::Fxrstor | M::Ldmxcsr);
    if bits != 64 && random.below(12) == 0 && !keeps_target {
        // Across the limit of the segment, or far beyond it (SDM 3A 5.3).
        let at = if random.below(2) == 0 { DATA_LEN as u64 - random.below(needs + 1) } else { 0x4000 };
        let displacement = instruction.memory_displacement64();
        instruction.set_memory_displ_size(if instruction.memory_base().size() == 2 { 2 } else { 4 });
        instruction.set_memory_displacement64(displacement.wrapping_add(at - target) & 0xFFFF_FFFF);
    }
    let is_bit_test = matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc);
    if is_bit_test && instruction.op1_kind() == OpKind::Register {
        // The bit offset reaches beyond the operand.
        let offset = instruction.op1_register().full_register().number();
        if offset != base && index != Some(offset) {
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
            if base > 2 && index.is_none_or(|index| index > 2) {
                (state.regs[0], state.regs[2]) = (part(at), part(at + half));
            }
        }
    }
}

/// Addresses `target` with a base, a displacement and perhaps an index; the numbers of both registers.
fn address_memory(
    instruction: &mut Instruction,
    bits: u32,
    state: &mut State,
    target: u64,
    random: &mut Random,
) -> (usize, Option<usize>) {
    let address_size = instruction.memory_base().size() as u32;
    if address_size == 2 {
        return address_memory_16(instruction, state, target, random);
    }
    let pick = |random: &mut Random| match bits {
        64 => [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][random.below(15) as usize],
        _ => [0, 1, 2, 3, 5, 6, 7][random.below(7) as usize],
    };
    let base = pick(random);
    let index = pick(random);
    let displacement = random.next() as i8;
    instruction.set_memory_base(sized(gpr(base), address_size));
    instruction.set_memory_displ_size(1);
    instruction.set_memory_displacement64(i64::from(displacement) as u64);
    let mut index_part = 0;
    let mut indexed = None;
    if index != base && random.below(3) == 0 {
        let scale = 1 << random.below(4);
        instruction.set_memory_index(sized(gpr(index), address_size));
        instruction.set_memory_index_scale(scale);
        state.regs[index] = random.below(64);
        index_part = state.regs[index] * u64::from(scale);
        indexed = Some(index);
    }
    state.regs[base] = target.wrapping_sub(i64::from(displacement) as u64).wrapping_sub(index_part);
    (base, indexed)
}

/// The same with the registers that addresses of 16 bits are made of (SDM 2A, table 2-1).
fn address_memory_16(
    instruction: &mut Instruction,
    state: &mut State,
    target: u64,
    random: &mut Random,
) -> (usize, Option<usize>) {
    const PAIRS: [(usize, Option<usize>); 8] =
        [(3, Some(6)), (3, Some(7)), (5, Some(6)), (5, Some(7)), (6, None), (7, None), (5, None), (3, None)];
    let (base, index) = PAIRS[random.below(8) as usize];
    let displacement = random.next() as i16 >> if random.below(2) == 0 { 8 } else { 0 };
    instruction.set_memory_base(Register::AX + base as u32);
    instruction.set_memory_index(index.map_or(Register::None, |index| Register::AX + index as u32));
    instruction.set_memory_displ_size(2);
    instruction.set_memory_displacement64(u64::from(displacement as u16));
    let index_part = index.map_or(0, |index| state.regs[index]);
    let value = target.wrapping_sub(u64::from(displacement as u16)).wrapping_sub(index_part);
    state.regs[base] = state.regs[base] & !0xFFFF | value & 0xFFFF;
    (base, index)
}

fn gpr(number: usize) -> Register {
    Register::RAX + number as u32
}

/// Whether the manual leaves the result, not only flags, undefined; or the bit offset of a bit test leads out of the data.
fn is_undefined(case: &Case) -> bool {
    use Mnemonic as M;
    let Case { instruction, state, memory, .. } = case;
    let bits = match instruction.op_count() {
        0 => 0,
        _ if instruction.op0_kind() == OpKind::Register => instruction.op0_register().size() as u32 * 8,
        _ => instruction.memory_size().size() as u32 * 8,
    };
    let source = |i: u32| -> u64 {
        match instruction.op_kind(i) {
            OpKind::Register => state.regs[instruction.op_register(i).full_register().number()],
            OpKind::Memory => {
                let at = case.operand_at();
                // Behind the limit of the segment nothing is read.
                memory.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
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
        // As on the host, INTO may be used by all (the gate's DPL).
        let overflow_gate = bench.cpu.desc(Reg::Idtr).base + 16 * 4;
        bench.write(overflow_gate + 5, &[0xEE]);
        for target in [NEAR_TARGET, TARGET] {
            assert!(code.write(target & 0xFFF, &[0xEB, 0xFE]));
        }
        Guest { bench, data, code }
    }

    pub(super) fn run(&mut self, case: &Case) -> (State, Option<Fault>, Vec<u8>) {
        let Case { bits, bytes, state, memory, .. } = case;
        let bench = &mut self.bench;
        let mut code = bytes.clone();
        code.extend([0xEB, 0xFE]);
        assert!(self.code.write(SLOT & 0xFFF, &code));
        assert!(self.data.write(0, memory));
        bench.flat_segments(0xA09B, 3);
        if *bits != 64 {
            based_segments(bench, *bits);
        }
        for (reg, value) in REGS.into_iter().zip(state.regs) {
            bench.cpu.set_reg(reg, value);
        }
        bench.cpu.set_reg(Reg::Rflags, state.flags);
        bench.cpu.set_reg(Reg::Rip, code_offset(*bits, SLOT));
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
        let rip = bench.cpu.reg(Reg::Rip);
        result.branched = u64::from([NEAR_TARGET, TARGET].into_iter().any(|target| code_offset(*bits, target) == rip));
        let mut after = vec![0; DATA_LEN];
        assert!(self.data.read(0, &mut after));
        (result, fault, after)
    }
}

/// The segments of code of 32 or 16 bits: code in the page of the code, data and stack in the data area, as in [`HostCpu`].
fn based_segments(bench: &mut Bench, bits: u32) {
    let wide = if bits == 32 { 0x4000 } else { 0 };
    for reg in [Reg::Cs, Reg::Ss, Reg::Ds, Reg::Es] {
        let desc = match reg {
            Reg::Cs => SegDesc { base: CODE, limit: 0xFFF, access: 0xFB | wide },
            _ => SegDesc { base: DATA, limit: DATA_LEN as u32 - 1, access: 0xF3 | wide },
        };
        bench.cpu.set_desc(reg, desc);
    }
}

/// Bytes of an FXSAVE image that processors do not agree on: the last opcode and pointers, the mask of MXCSR, and what is
/// behind the registers.
pub(super) fn comparable(image: &[u8]) -> Vec<u8> {
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
pub(super) fn difference(
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
    let mask = compared_flags(case, *our_fault);
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
    let around = at & !7..(at & !7) + 8;
    Some(format!(
        "memory at {:#x}: host {:02x?}, ours {:02x?}",
        DATA + at as u64,
        &host_memory[around.clone()],
        &our_memory[around]
    ))
}

/// Stored parts of an x87 environment that processors do not agree on.
pub(super) fn ignored_memory(case: &Case) -> Vec<std::ops::Range<usize>> {
    use Mnemonic as M;
    let instruction = &case.instruction;
    let start = case.operand_at();
    let parts = match (instruction.mnemonic(), instruction.code()) {
        (M::Fxsave | M::Fxsave64, _) => [6..24, 28..32],
        (M::Fnstenv | M::Fnsave, Code::Fnstenv_m14byte | Code::Fnsave_m94byte) => [6..14, 0..0],
        (M::Fnstenv | M::Fnsave, _) => [12..28, 0..0],
        _ => return Vec::new(),
    };
    let inside = |at: usize| start.saturating_add(at).min(DATA_LEN);
    parts.into_iter().map(|part| inside(part.start)..inside(part.end)).collect()
}

/// A hash of bytes (FNV-1a).
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) fn new() -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325)
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    pub(super) fn folded(self) -> u32 {
        (self.0 ^ self.0 >> 32) as u32
    }
}

/// Everything of a result that is compared, as one number.
fn digest(case: &Case, result: &(State, Option<Fault>, Vec<u8>)) -> u32 {
    let mut hash = Fnv::new();
    hash_result(&mut hash, case, result);
    hash.folded()
}

/// Takes everything of a result that is compared into a hash.
pub(super) fn hash_result(hash: &mut Fnv, case: &Case, (state, fault, memory): &(State, Option<Fault>, Vec<u8>)) {
    let mut take = |bytes: &[u8]| hash.take(bytes);
    take(&[fault.map_or(0xFF, |vector| vector), state.branched as u8]);
    state.regs.iter().for_each(|value| take(&value.to_le_bytes()));
    take(&(state.flags & compared_flags(case, *fault)).to_le_bytes());
    take(&comparable(&state.fpu));
    let mut memory = memory.clone();
    for range in ignored_memory(case) {
        memory[range].fill(0);
    }
    take(&memory);
}

/// Flags that are defined behind a case.
fn compared_flags(case: &Case, fault: Option<Fault>) -> u64 {
    match fault {
        None => super::native::defined_flags(&case.instruction, &case.state.regs) | flags::DF,
        Some(_) => flags::STATUS,
    }
}

/// Whether this processor has an instruction.
pub(super) fn is_implemented(instruction: &Instruction) -> bool {
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

pub(super) fn host_has(code: Code) -> bool {
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
fn compare_all(bits: u32, cases: u32, seed: u64, wanted: impl Fn(Code) -> bool) -> BTreeMap<String, Tally> {
    let (mut host, mut guest) = (HostCpu::new(), Guest::new());
    let mut tallies = BTreeMap::new();
    if !host.has_segments(bits) {
        return tallies;
    }
    for code in Code::values().filter(|&code| apart(code, bits).is_none() && host_has(code) && wanted(code)) {
        for in_memory in [false, true] {
            // Each form has its own numbers, so that one more form changes nothing about the others.
            let mut random = Random(seed ^ (code as u64) << 20 ^ u64::from(in_memory) << 60);
            let mut tally = Tally::default();
            for _ in 0..cases {
                let Some(case) = Case::new(code, bits, in_memory, &mut random) else { continue };
                if !is_implemented(&case.instruction) {
                    continue;
                }
                host.data().copy_from_slice(&case.memory);
                let (state, fault) = host.run(case.bits, &case.bytes, &case.state);
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

/// Compares every form with the host. `SPINUP_FORM_CASES` is the number of random cases of each form, `SPINUP_FORMS` a part
/// of the names of those wanted.
fn every_form_agrees(bits: u32, default_cases: u32, at_least: usize) {
    let cases = std::env::var("SPINUP_FORM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default_cases);
    let only = std::env::var("SPINUP_FORMS").unwrap_or_default();
    let tallies = compare_all(bits, cases, 1, |code| format!("{code:?}").contains(&only));
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
        "{} forms of {bits} bits compared with the host, {total} cases, {faults} of them with exceptions, {} forms diverge",
        tallies.len(),
        diverging.len()
    );
    assert!(diverging.is_empty(), "{diverging:?}");
    assert!(!only.is_empty() || tallies.len() > at_least, "only {} forms were compared", tallies.len());
}

#[test]
fn every_form_agrees_with_the_host() {
    every_form_agrees(64, 60, 1900);
}

/// Compares the forms of code segments of 32 or 16 bits, where the host lends such segments.
fn every_narrow_form_agrees(bits: u32) {
    if HostCpu::new().has_segments(bits) {
        every_form_agrees(bits, 30, 1500);
    } else {
        eprintln!("Skipped: the host has no segments of {bits} bits (modify_ldt)");
    }
}

#[test]
fn every_form_of_32_bits_agrees_with_the_host() {
    every_narrow_form_agrees(32);
}

#[test]
fn every_form_of_16_bits_agrees_with_the_host() {
    every_narrow_form_agrees(16);
}

/// A register of an FXSAVE image as a significand and an exponent with its sign.
fn register(image: &[u8], i: usize) -> (u64, u16) {
    let at = 32 + 16 * i;
    let significand = u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes"));
    (significand, u16::from_le_bytes([image[at + 8], image[at + 9]]))
}

/// How far two registers are apart in units of the last place, across a change of the exponent too; huge if they are of
/// different kinds.
fn units_apart(a: (u64, u16), b: (u64, u16)) -> u128 {
    let key = |(significand, exponent): (u64, u16)| (u128::from(exponent) << 63) + u128::from(significand << 1 >> 1);
    if a.1 >> 15 == b.1 >> 15 { key(a).abs_diff(key(b)) } else { u128::MAX }
}

/// Whether a transcendental instruction's operands are in the range that the manual defines, and where processors reduce
/// the argument in the same way.
fn is_in_range(case: &Case) -> bool {
    use Mnemonic as M;
    let value = |i: usize| {
        let (significand, exponent) = register(&case.state.fpu, i);
        let magnitude = significand as f64 * 2.0_f64.powi(i32::from(exponent & 0x7FFF) - 16383 - 63);
        if exponent & 0x8000 != 0 { -magnitude } else { magnitude }
    };
    match case.instruction.mnemonic() {
        M::F2xm1 => value(0).abs() <= 1.0,
        M::Fyl2xp1 => value(0).abs() < 0.29,
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan => value(0).abs() < 0.78,
        _ => true,
    }
}

/// The transcendental instructions: stack, tags and exceptions are the host's, and results within a unit in the last place of
/// the host's, which is itself within one of the truth.
#[test]
fn transcendental_instructions_are_close_to_the_host() {
    let (mut host, mut guest) = (HostCpu::new(), Guest::new());
    let (mut compared, mut worst) = (0, 0);
    let mut failures = BTreeMap::new();
    for code in Code::values().filter(|code| is_transcendental(code.mnemonic())) {
        let mut random = Random(code as u64);
        for _ in 0..3000 {
            let Some(mut case) = Case::new(code, 64, false, &mut random) else { continue };
            // Near one more often than not, where the instructions do something.
            if random.below(4) != 0 {
                for i in 0..2 {
                    let exponent = 0x3FFF - random.below(12) as u16 + random.below(3) as u16;
                    let bytes = (random.next() | 1 << 63).to_le_bytes();
                    case.state.fpu[32 + 16 * i..40 + 16 * i].copy_from_slice(&bytes);
                    case.state.fpu[40 + 16 * i..42 + 16 * i].copy_from_slice(&exponent.to_le_bytes());
                }
            }
            if !is_in_range(&case) {
                continue;
            }
            host.data().copy_from_slice(&case.memory);
            let (theirs, their_fault) = host.run(case.bits, &case.bytes, &case.state);
            let (ours, our_fault, _) = guest.run(&case);
            assert_eq!(their_fault, our_fault, "{}", case.instruction);
            compared += 1;
            // Whether a result is exact or rounded up, and so whether that is pending, is a matter of its last bits.
            let words = |image: &[u8; 512]| {
                let status = u16::from_le_bytes([image[2], image[3]]);
                (image[0], image[1], status & !0x82A0, image[4])
            };
            let distance = (0..8).map(|i| units_apart(register(&theirs.fpu, i), register(&ours.fpu, i))).max();
            let distance = distance.expect("eight registers");
            if words(&theirs.fpu) != words(&ours.fpu) || distance > 1 {
                let entry = failures.entry(format!("{code:?}")).or_insert((0, String::new()));
                entry.0 += 1;
                if entry.0 == 1 {
                    let show = |image: &[u8; 512]| {
                        let registers: Vec<_> = (0..3).map(|i| register(image, i)).collect();
                        format!("{:02x?} {registers:x?}", &image[..5])
                    };
                    entry.1 =
                        format!("{} -> host {}, ours {}", show(&case.state.fpu), show(&theirs.fpu), show(&ours.fpu));
                }
            } else {
                worst = worst.max(distance);
            }
        }
    }
    println!("{compared} transcendental results compared with the host, {worst} units in the last place apart at most");
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(compared > 10_000, "only {compared}");
}

/// RCP and RSQRT: within twice the manual's 1.5 × 2^-12 of the host, and the same for zeros, infinities and NaNs.
#[test]
fn approximations_are_close_to_the_host() {
    let (mut host, mut guest) = (HostCpu::new(), Guest::new());
    let mut compared = 0;
    for code in [Code::Rcpps_xmm_xmmm128, Code::Rcpss_xmm_xmmm32, Code::Rsqrtps_xmm_xmmm128, Code::Rsqrtss_xmm_xmmm32] {
        let mut random = Random(code as u64);
        for _ in 0..3000 {
            let Some(case) = Case::new(code, 64, false, &mut random) else { continue };
            let (theirs, their_fault) = host.run(case.bits, &case.bytes, &case.state);
            let (ours, our_fault, _) = guest.run(&case);
            assert_eq!(their_fault, our_fault, "{}", case.instruction);
            assert_eq!(theirs.fpu[24..28], ours.fpu[24..28], "MXCSR after {}", case.instruction);
            let lanes = |image: &[u8; 512]| -> Vec<f32> {
                image[160..416]
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes")))
                    .collect()
            };
            for (theirs, ours) in lanes(&theirs.fpu).into_iter().zip(lanes(&ours.fpu)) {
                let near = theirs.to_bits() == ours.to_bits()
                    || f64::from(theirs - ours).abs() <= f64::from(theirs.abs()) * 3.0 / 4096.0;
                assert!(near, "{} gives {theirs:e} on the host, {ours:e} here", case.instruction);
            }
            compared += 1;
        }
    }
    println!("{compared} approximations compared with the host");
    assert!(compared > 10_000, "only {compared}");
}

/// What a host's processor made of the cases of every form of this many bits: `form digest`, a line each.
pub(super) fn record_of(bits: u32) -> String {
    format!("{}/src/engine/soft/tests/forms{bits}.txt", env!("CARGO_MANIFEST_DIR"))
}

/// Set to record anew.
pub(super) const RECORD: &str = "SPINUP_RECORD_FORMS";
/// Cases of each form that are recorded.
const RECORDED_CASES: usize = 16;

/// A form's recorded cases.
fn recorded_cases(code: Code, bits: u32, in_memory: bool) -> Vec<Case> {
    let mut random = Random(code as u64 ^ u64::from(in_memory) << 32);
    let cases = std::iter::repeat_with(|| Case::new(code, bits, in_memory, &mut random)).take(RECORDED_CASES);
    cases.flatten().filter(|case| is_implemented(&case.instruction)).collect()
}

/// The digests of a form's cases as one number.
pub(super) fn sum(digests: impl Iterator<Item = u32>) -> String {
    format!("{:08x}", digests.fold(0_u32, |sum, digest| sum.rotate_left(5) ^ digest))
}

/// Replays what was recorded from a host's processor, for hosts that cannot be asked themselves.
fn recorded_results(bits: u32, at_least: usize) {
    let forms = || {
        Code::values()
            .filter(|&code| apart(code, bits).is_none())
            .flat_map(|code| [(code, false), (code, true)])
            .map(|(code, in_memory)| (code, in_memory, recorded_cases(code, bits, in_memory)))
            .filter(|(.., cases)| !cases.is_empty())
    };
    let name = |code: Code, in_memory: bool| format!("{code:?}{}", if in_memory { "/memory" } else { "" });
    let record = record_of(bits);
    if std::env::var_os(RECORD).is_some() {
        let mut host = HostCpu::new();
        assert!(host.has_segments(bits), "only a host with such segments can be recorded");
        let mut text = String::new();
        for (code, in_memory, cases) in forms().filter(|&(code, ..)| host_has(code)) {
            let digests = cases.iter().map(|case| {
                host.data().copy_from_slice(&case.memory);
                let (state, fault) = host.run(bits, &case.bytes, &case.state);
                digest(case, &(state, fault, host.data().to_vec()))
            });
            text += &format!("{} {}\n", name(code, in_memory), sum(digests));
        }
        std::fs::write(&record, text).expect("the record can be written");
    }
    let recorded = std::fs::read_to_string(&record).expect("the record is part of the repository");
    let recorded: BTreeMap<&str, &str> = recorded.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut guest = Guest::new();
    let (mut replayed, mut diverging) = (0, Vec::new());
    for (code, in_memory, cases) in forms() {
        let name = name(code, in_memory);
        let Some(&wanted) = recorded.get(&*name) else { continue };
        if sum(cases.iter().map(|case| digest(case, &guest.run(case)))) != wanted {
            diverging.push(name);
        }
        replayed += 1;
    }
    println!("{replayed} recorded forms of {bits} bits replayed, {} diverge", diverging.len());
    assert!(diverging.is_empty(), "{diverging:?}");
    assert_eq!(replayed, recorded.len(), "every recorded form is still there");
    assert!(replayed > at_least, "only {replayed}");
}

#[test]
fn recorded_results_of_a_host() {
    recorded_results(64, 1900);
}

#[test]
fn recorded_results_of_a_host_in_32_bits() {
    recorded_results(32, 1500);
}

#[test]
fn recorded_results_of_a_host_in_16_bits() {
    recorded_results(16, 1500);
}
