//! A decoded instruction, and the kinds of operands that handlers are generic over.

use super::access::Opened;
use super::mem::Bus;
use super::state::{Cpu, Step, Stop};
use super::word::Word;

/// What executes a decoded instruction. RIP is already that of the next one.
pub(super) type Handler = fn(&mut Cpu, &mut Bus, &Op) -> Step;

/// A decoded instruction. What the fields mean beyond their names is up to the handler.
#[derive(Clone, Copy)]
pub(super) struct Op {
    pub(super) run: Handler,
    /// Immediate, sign-extended; or the distance of a near branch; or a 64-bit address.
    pub(super) immediate: u64,
    pub(super) displacement: i32,
    /// First register operand.
    pub(super) dst: u8,
    /// Second register operand.
    pub(super) src: u8,
    /// Registers of the memory operand; [`super::word::ZERO`] where there is none.
    pub(super) base: u8,
    pub(super) index: u8,
    /// Binary logarithm of the index's factor.
    pub(super) scale: u8,
    /// Segment register of the memory operand.
    pub(super) seg: u8,
    /// How many high bits of an address are cut off: 0, 32 or 48.
    pub(super) address_cut: u8,
    /// Bits of [`flag`].
    pub(super) flags: u8,
    /// Length of the instruction in bytes.
    pub(super) len: u8,
    /// Handler-specific.
    pub(super) extra: u8,
    /// How many instructions the block has that begins with this one; 0 inside a block.
    pub(super) block_len: u8,
}

const _: () = assert!(size_of::<Op>() <= 32, "the hot loop reads these");

/// Bits of [`Op::flags`].
pub(super) mod flag {
    /// The r/m operand is memory.
    pub(in super::super) const MEMORY: u8 = 1 << 0;
    /// F3: REP or REPE.
    pub(in super::super) const REP: u8 = 1 << 1;
    /// F2: REPNE.
    pub(in super::super) const REPNE: u8 = 1 << 2;
    /// The r/m operand is memory in 64-bit mode, with a 64-bit address and in a segment without a base.
    pub(in super::super) const FLAT: u8 = 1 << 3;
    /// The second operand of a vector shift is the immediate.
    pub(in super::super) const IMMEDIATE: u8 = 1 << 4;
    /// The CPUID table does not offer the instruction.
    pub(in super::super) const NOT_OFFERED: u8 = 1 << 5;
}

impl Op {
    #[inline(always)]
    pub(super) fn truncate_address(&self, address: u64) -> u64 {
        let cut = u32::from(self.address_cut & 63);
        address << cut >> cut
    }
    /// All ones in the bits of an address.
    pub(super) fn address_mask(&self) -> u64 {
        self.truncate_address(u64::MAX)
    }
    pub(super) fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// An operand that is read.
pub(super) trait Source {
    fn get<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<T, Stop>;
}

/// An operand that is written, or read and written.
pub(super) trait Target {
    type Opened: Copy;
    fn open<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<Self::Opened, Stop>;
    fn read<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, opened: Self::Opened) -> Result<T, Stop>;
    fn write<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, opened: Self::Opened, value: T) -> Step;
    /// Writes without having read.
    fn put<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, value: T) -> Step;
}

/// The first register operand.
pub(super) struct Dst;
/// The second register operand.
pub(super) struct Src;
/// The immediate.
pub(super) struct Imm;
/// The memory operand.
pub(super) struct Mem;
/// The memory operand in 64-bit mode, with a 64-bit address and in a segment without a base.
pub(super) struct Flat;
/// An r/m operand that is an instruction's first: memory or the first register.
pub(super) struct RmDst;
/// An r/m operand that is an instruction's second: memory or the second register.
pub(super) struct RmSrc;

/// A memory operand that has an address.
pub(super) trait Address {
    fn address(cpu: &Cpu, op: &Op) -> u64;
}

impl Address for Mem {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.effective_address(op)
    }
}

impl Address for Flat {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.flat_address(op)
    }
}

impl Source for Dst {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Result<T, Stop> {
        Ok(cpu.get(op.dst))
    }
}

impl Source for Src {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Result<T, Stop> {
        Ok(cpu.get(op.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<T: Word>(_: &mut Cpu, _: &mut Bus, op: &Op) -> Result<T, Stop> {
        Ok(T::of(op.immediate))
    }
}

impl Source for Mem {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<T, Stop> {
        let offset = cpu.effective_address(op);
        cpu.read(bus, op.seg, offset)
    }
}

impl Source for Flat {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<T, Stop> {
        let linear = cpu.flat_address(op);
        cpu.read_flat(bus, op.seg, linear)
    }
}

impl Source for RmDst {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<T, Stop> {
        if op.has(flag::MEMORY) { Mem::get(cpu, bus, op) } else { Dst::get(cpu, bus, op) }
    }
}

impl Source for RmSrc {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<T, Stop> {
        if op.has(flag::MEMORY) { Mem::get(cpu, bus, op) } else { Src::get(cpu, bus, op) }
    }
}

impl Target for Dst {
    type Opened = ();
    #[inline(always)]
    fn open<T: Word>(_: &mut Cpu, _: &mut Bus, _: &Op) -> Result<(), Stop> {
        Ok(())
    }
    #[inline(always)]
    fn read<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op, (): ()) -> Result<T, Stop> {
        Ok(cpu.get(op.dst))
    }
    #[inline(always)]
    fn write<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op, (): (), value: T) -> Step {
        cpu.put(op.dst, value);
        Ok(())
    }
    #[inline(always)]
    fn put<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op, value: T) -> Step {
        cpu.put(op.dst, value);
        Ok(())
    }
}

impl Target for Mem {
    type Opened = Opened;
    #[inline(always)]
    fn open<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<Opened, Stop> {
        let offset = cpu.effective_address(op);
        cpu.open::<T>(bus, op.seg, offset)
    }
    #[inline(always)]
    fn read<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, opened: Opened) -> Result<T, Stop> {
        cpu.read_opened(bus, opened)
    }
    #[inline(always)]
    fn write<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, opened: Opened, value: T) -> Step {
        cpu.write_opened(bus, opened, value)
    }
    #[inline(always)]
    fn put<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, value: T) -> Step {
        let offset = cpu.effective_address(op);
        cpu.write(bus, op.seg, offset, value)
    }
}

impl Target for Flat {
    type Opened = Opened;
    #[inline(always)]
    fn open<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<Opened, Stop> {
        let linear = cpu.flat_address(op);
        cpu.open_flat::<T>(bus, op.seg, linear)
    }
    #[inline(always)]
    fn read<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, opened: Opened) -> Result<T, Stop> {
        cpu.read_opened(bus, opened)
    }
    #[inline(always)]
    fn write<T: Word>(cpu: &mut Cpu, bus: &mut Bus, _: &Op, opened: Opened, value: T) -> Step {
        cpu.write_opened(bus, opened, value)
    }
    #[inline(always)]
    fn put<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, value: T) -> Step {
        let linear = cpu.flat_address(op);
        cpu.write_flat(bus, op.seg, linear, value)
    }
}

impl Target for RmDst {
    type Opened = Option<Opened>;
    #[inline(always)]
    fn open<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Result<Option<Opened>, Stop> {
        if op.has(flag::MEMORY) { Mem::open::<T>(cpu, bus, op).map(Some) } else { Ok(None) }
    }
    #[inline(always)]
    fn read<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, opened: Option<Opened>) -> Result<T, Stop> {
        match opened {
            Some(opened) => cpu.read_opened(bus, opened),
            None => Ok(cpu.get(op.dst)),
        }
    }
    #[inline(always)]
    fn write<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, opened: Option<Opened>, value: T) -> Step {
        match opened {
            Some(opened) => cpu.write_opened(bus, opened, value),
            None => Dst::put(cpu, bus, op, value),
        }
    }
    #[inline(always)]
    fn put<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op, value: T) -> Step {
        if op.has(flag::MEMORY) { Mem::put(cpu, bus, op, value) } else { Dst::put(cpu, bus, op, value) }
    }
}
