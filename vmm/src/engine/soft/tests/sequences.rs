//! Random sequences of instructions of all kinds against the host's processor: what one instruction leaves, the next one
//! takes. A sequence that diverges is shrunk to the instructions that it takes.

use super::Random;
use super::forms::{
    Case, Guest, MIDDLE, STACK, address_space, apart, difference, encode, fpu_image, host_has, instance,
    is_implemented, memory,
};
use super::host::{DATA, HostCpu, NEAR_TARGET, SLOT, State};
use crate::engine::soft::flags;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::cell::RefCell;

/// RBX, the base of every memory operand.
const BASE: usize = 3;

/// Whether a form may stand anywhere in a sequence: it leaves RBX, RSP and undefined flags alone, addresses memory through its
/// r/m operand only, and stores nothing that processors do not agree on.
fn fits(code: Code, bits: u32) -> bool {
    use Mnemonic as M;
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let implicit = |kind: K| {
        matches!(
            kind,
            K::seg_rSI
                | K::es_rDI
                | K::seg_rDI
                | K::seg_rBX_al
                | K::mem_offs
                | K::br16_1
                | K::br16_2
                | K::br32_1
                | K::br32_4
                | K::br64_1
                | K::br64_4
        )
    };
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let excluded = matches!(
        code.mnemonic(),
        M::Ret
            | M::Enter
            | M::Leave
            | M::Jmp
            | M::Call
            | M::Bswap
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnstenv
            | M::Fnsave
            | M::Frstor
            | M::Fldenv
    );
    apart(code, bits).is_none()
        && host_has(code)
        && !excluded
        && !info.is_stack_instruction()
        && !instruction.is_stack_instruction()
        && instruction.rflags_undefined() == 0
        && !(0..info.op_count()).any(|i| implicit(info.op_kind(i)))
}

/// An instruction of a sequence.
fn instruction(codes: &[Code], bits: u32, seed: u64) -> Option<Vec<u8>> {
    let mut random = Random(seed);
    let code = codes[random.below(codes.len() as u64) as usize];
    let in_memory = random.below(2) == 0;
    let mut instruction = instance(code, bits, in_memory, &mut random)?;
    let fixed = |register: Register| matches!(register.full_register().number(), 3 | 4) && register.is_gpr();
    // AH to BH are parts of the low four registers, BH of RBX.
    let operands = 0..instruction.op_count();
    if operands.clone().any(|i| instruction.op_kind(i) == OpKind::Register && fixed(instruction.op_register(i))) {
        return None;
    }
    if in_memory {
        instruction.set_memory_displacement64(16 * random.below(8));
    }
    // An immediate may decide which flags are undefined.
    let fits = is_implemented(&instruction) && instruction.rflags_undefined() == 0;
    fits.then(|| encode(&instruction, bits))?
}

fn sequences_agree(bits: u32) {
    let codes: Vec<Code> = Code::values().filter(|&code| fits(code, bits)).collect();
    assert!(codes.len() > 700, "only {} forms", codes.len());
    let cases = if cfg!(debug_assertions) { 1000 } else { 4000 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let machines = RefCell::new((HostCpu::new(), Guest::new()));
    let executed = RefCell::new(0);
    let strategy = (proptest::num::u64::ANY, proptest::collection::vec(proptest::num::u64::ANY, 1..14));
    let result = runner.run(&strategy, |(start, seeds)| {
        let mut random = Random(start);
        let mut state = State {
            fpu: fpu_image(&mut random),
            regs: std::array::from_fn(|_| random.operand()),
            flags: random.next() & flags::STATUS | 0x202,
            branched: 0,
        };
        state.regs[BASE] = address_space(bits) + (MIDDLE - DATA) - 64;
        state.regs[4] = address_space(bits) + (STACK - DATA);
        if bits != 64 {
            state.narrow();
        }
        let mut bytes = Vec::new();
        for instruction in seeds.iter().filter_map(|&seed| instruction(&codes, bits, seed)) {
            // Room for the jump behind them.
            if bytes.len() + instruction.len() < (NEAR_TARGET - SLOT) as usize - 8 {
                bytes.extend(instruction);
                *executed.borrow_mut() += 1;
            }
        }
        let case = Case { instruction: Instruction::default(), bits, bytes, state, memory: memory(&mut random) };
        let (host, guest) = &mut *machines.borrow_mut();
        host.data().copy_from_slice(&case.memory);
        let (state, fault) = host.run(case.bits, &case.bytes, &case.state);
        let theirs = (state, fault, host.data().to_vec());
        match difference(&case, &theirs, &guest.run(&case)) {
            None => Ok(()),
            Some(what) => Err(TestCaseError::fail(format!("{what} after {:02x?} from {:x?}", case.bytes, case.state))),
        }
    });
    println!("{cases} sequences of {} instructions of {} forms compared with the host", executed.borrow(), codes.len());
    result.expect("sequences agree");
}

#[test]
fn sequences_agree_with_the_host() {
    sequences_agree(64);
}

fn narrow_sequences_agree(bits: u32) {
    if HostCpu::new().has_segments(bits) {
        sequences_agree(bits);
    } else {
        eprintln!("Skipped: the host has no segments of {bits} bits (modify_ldt)");
    }
}

#[test]
fn sequences_of_32_bits_agree_with_the_host() {
    narrow_sequences_agree(32);
}

#[test]
fn sequences_of_16_bits_agree_with_the_host() {
    narrow_sequences_agree(16);
}
