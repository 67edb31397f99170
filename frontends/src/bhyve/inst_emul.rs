//! Instructions whose memory operand is no memory: `vmexit_inst_emul` and the library behind it.
//!
//! The kernel emulates its own devices; what comes to userspace is the hole below 4 GiB. Of the instructions that
//! libvmm's table lists, the moves are here: they are what accesses a device. Others fail, as an instruction outside the
//! table fails there.

use crate::libvmmapi::Vm;
use crate::pc::{Effect, Pc};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use vmm::abi::{Errno, ExitInstEmul};
use vmm::engine::Reg;

/// Why an instruction was not emulated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The address is above 4 GiB, where no BAR is (ESRCH).
    Unhandled,
    /// The instruction is none of those above, or a register could not be read or written.
    Instruction,
}

impl From<Errno> for Failure {
    fn from(_: Errno) -> Failure {
        Failure::Instruction
    }
}

/// Where a move takes its value from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Memory,
    Register(Part),
    Immediate(u64),
}

/// A general register or the part of one that an operand names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    reg: Reg,
    /// AH, CH, DH, BH begin at bit 8.
    shift: u32,
    bytes: u32,
}

/// What a move does, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    source: Source,
    /// The register that a load goes to.
    destination: Option<Part>,
    /// Width of the memory operand.
    bytes: u8,
    sign_extend: bool,
    /// Length of the instruction.
    len: u64,
}

/// The bytes of the instruction that the kernel fetched.
pub(super) fn fetched(exit: &ExitInstEmul) -> &[u8] {
    let (bytes, rest) = exit.vie.split_at(15);
    &bytes[..usize::from(rest[0]).min(15)]
}

/// Emulates the instruction at `rip`, and sets RIP behind it. Returns what is to be done outside the PC.
pub(super) fn emulate(vm: &Vm, pc: &Pc, vcpu: i32, rip: u64, exit: &ExitInstEmul) -> Result<Option<Effect>, Failure> {
    let instruction = decode(fetched(exit), exit.paging.cpu_mode, exit.cs_d != 0).ok_or(Failure::Instruction)?;
    vm.set_register(vcpu, Reg::Rip, rip.wrapping_add(instruction.len))?;
    let (value, effect) = match instruction.source {
        Source::Memory => pc.read_memory(exit.gpa, instruction.bytes).ok_or(Failure::Unhandled)?,
        Source::Immediate(value) => (value, None),
        Source::Register(part) => (vm.register(vcpu, part.reg)? >> part.shift, None),
    };
    match instruction.destination {
        None => {
            let value = value & mask(instruction.bytes.into());
            pc.write_memory(exit.gpa, instruction.bytes, value).ok_or(Failure::Unhandled)
        }
        Some(part) => {
            let value = extend(value, instruction.bytes, instruction.sign_extend);
            let old = if part.bytes < 4 { vm.register(vcpu, part.reg)? } else { 0 };
            let mask = mask(part.bytes) << part.shift;
            vm.set_register(vcpu, part.reg, old & !mask | value << part.shift & mask)?;
            Ok(effect)
        }
    }
}

fn mask(bytes: u32) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

fn extend(value: u64, bytes: u8, signed: bool) -> u64 {
    let unused = 64 - 8 * u32::from(bytes);
    if signed { ((value << unused) as i64 >> unused) as u64 } else { value & mask(bytes.into()) }
}

/// Decodes a move; `None` for anything else. `cpu_mode` is `enum vm_cpu_mode`, `cs_d` the default size of the code
/// segment.
fn decode(bytes: &[u8], cpu_mode: i32, cs_d: bool) -> Option<Move> {
    const CPU_MODE_64BIT: i32 = 3;
    let bitness = match (cpu_mode, cs_d) {
        (CPU_MODE_64BIT, _) => 64,
        (_, true) => 32,
        (_, false) => 16,
    };
    let instruction = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
    if instruction.code() == Code::INVALID || instruction.op_count() != 2 {
        return None;
    }
    let sign_extend = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx => false,
        Mnemonic::Movsx | Mnemonic::Movsxd => true,
        _ => return None,
    };
    let (source, destination) = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Memory) => (Source::Memory, Some(part(instruction.op0_register())?)),
        (OpKind::Memory, OpKind::Register) => (Source::Register(part(instruction.op1_register())?), None),
        (OpKind::Memory, _) => (Source::Immediate(immediate(&instruction)), None),
        _ => return None,
    };
    let bytes = instruction.memory_size().size() as u8;
    Some(Move { source, destination, bytes, sign_extend, len: instruction.len() as u64 })
}

fn immediate(instruction: &Instruction) -> u64 {
    instruction.immediate(1)
}

/// The general register that an operand names; `None` for segment and control registers.
fn part(register: Register) -> Option<Part> {
    const FULL: [(Register, Reg); 16] = [
        (Register::RAX, Reg::Rax),
        (Register::RBX, Reg::Rbx),
        (Register::RCX, Reg::Rcx),
        (Register::RDX, Reg::Rdx),
        (Register::RSI, Reg::Rsi),
        (Register::RDI, Reg::Rdi),
        (Register::RBP, Reg::Rbp),
        (Register::RSP, Reg::Rsp),
        (Register::R8, Reg::R8),
        (Register::R9, Reg::R9),
        (Register::R10, Reg::R10),
        (Register::R11, Reg::R11),
        (Register::R12, Reg::R12),
        (Register::R13, Reg::R13),
        (Register::R14, Reg::R14),
        (Register::R15, Reg::R15),
    ];
    let high_byte = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
    let full = register.full_register();
    let (_, reg) = FULL.into_iter().find(|(known, _)| *known == full)?;
    Some(Part { reg, shift: if high_byte { 8 } else { 0 }, bytes: register.size() as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moves() {
        let eax = Part { reg: Reg::Rax, shift: 0, bytes: 4 };
        let load = Move { source: Source::Memory, destination: Some(eax), bytes: 4, sign_extend: false, len: 2 };
        assert_eq!(decode(&[0x8b, 0x07], 3, false), Some(load), "mov eax, [rdi]");
        assert_eq!(decode(&[0x8b, 0x07], 1, true), Some(load), "mov eax, [edi]");
        let ax = Part { bytes: 2, ..eax };
        assert_eq!(
            decode(&[0x8b, 0x05], 0, false),
            Some(Move { destination: Some(ax), bytes: 2, ..load }),
            "mov ax, [di]"
        );
        let ch = Part { reg: Reg::Rcx, shift: 8, bytes: 1 };
        let store = Move { source: Source::Register(ch), destination: None, bytes: 1, sign_extend: false, len: 2 };
        assert_eq!(decode(&[0x88, 0x2f], 3, false), Some(store), "mov [rdi], ch");
        let immediate = decode(&[0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff], 3, false).expect("mov qword [rdi], -1");
        assert_eq!((immediate.source, immediate.bytes, immediate.len), (Source::Immediate(u64::MAX), 8, 7));
        let movsx = decode(&[0x48, 0x0f, 0xbe, 0x07], 3, false).expect("movsx rax, byte [rdi]");
        assert_eq!((movsx.bytes, movsx.sign_extend), (1, true));
    }

    #[test]
    fn others_are_refused() {
        assert_eq!(decode(&[0x01, 0x07], 3, false), None, "add [rdi], eax");
        assert_eq!(decode(&[0x89, 0xc7], 3, false), None, "mov edi, eax");
        assert_eq!(decode(&[0x8e, 0x07], 3, false), None, "mov es, [rdi]");
        assert_eq!(decode(&[0x8b], 3, false), None, "cut off");
    }

    #[test]
    fn values_are_extended() {
        assert_eq!(extend(0x1ff, 1, false), 0xff);
        assert_eq!(extend(0x1ff, 1, true), u64::MAX);
        assert_eq!(extend(0x7f, 1, true), 0x7f);
        assert_eq!(extend(u64::MAX, 8, true), u64::MAX);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: [u8; 15], mode in 0..4, cs_d: bool) {
            if let Some(decoded) = decode(&bytes, mode, cs_d) {
                prop_assert!([1, 2, 4, 8].contains(&decoded.bytes));
                prop_assert!(decoded.len <= 15);
            }
        }
    }
}
