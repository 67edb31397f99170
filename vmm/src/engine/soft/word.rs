//! Operand widths: what an instruction's handler is generic over.

/// The register file as handlers see it: 16 general registers in encoding order, [`ZERO`], [`RIP`], and padding that lets
/// an index be masked instead of checked.
pub(super) type RegFile = [u64; 32];

pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RBX: u8 = 3;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;
pub(super) const R11: u8 = 11;
/// Always zero: base and index of an address that has none.
pub(super) const ZERO: u8 = 16;
/// The address of the next instruction while one executes, of the next one to execute between instructions.
pub(super) const RIP: u8 = 17;
/// Set in a byte register's number for AH, CH, DH and BH.
pub(super) const HIGH_BYTE: u8 = 0x20;

/// An operand of 8, 16, 32 or 64 bits.
pub(super) trait Word: Copy + Eq + Send + 'static {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: u32;
    /// The low bits of a value.
    fn of(value: u64) -> Self;
    /// Zero-extended.
    fn zx(self) -> u64;
    /// Sign-extended.
    fn sx(self) -> u64;
    /// Reads a register of this width.
    fn get(regs: &RegFile, number: u8) -> Self;
    /// Writes a register of this width: a 32-bit write clears the upper half, narrower ones keep the rest.
    fn put(regs: &mut RegFile, number: u8, value: Self);
}

macro_rules! word {
    ($unsigned:ty, $signed:ty, |$regs:ident, $number:ident| $get:expr, |$file:ident, $n:ident, $value:ident| $put:expr) => {
        impl Word for $unsigned {
            const BITS: u32 = <$unsigned>::BITS;
            const BYTES: u32 = <$unsigned>::BITS / 8;
            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn zx(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn sx(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn get($regs: &RegFile, $number: u8) -> Self {
                $get
            }
            #[inline(always)]
            fn put($file: &mut RegFile, $n: u8, $value: Self) {
                $put
            }
        }
    };
}

#[inline(always)]
fn slot(number: u8) -> usize {
    usize::from(number & 31)
}

/// How far AH, CH, DH and BH lie above bit 0 of their register.
#[inline(always)]
fn byte_shift(number: u8) -> u32 {
    u32::from(number & HIGH_BYTE) >> 2
}

word!(u8, i8, |regs, number| (regs[slot(number)] >> byte_shift(number)) as u8, |regs, number, value| {
    let shift = byte_shift(number);
    let reg = &mut regs[slot(number)];
    *reg = *reg & !(0xFF << shift) | u64::from(value) << shift;
});
word!(u16, i16, |regs, number| regs[slot(number)] as u16, |regs, number, value| {
    let reg = &mut regs[slot(number)];
    *reg = *reg & !0xFFFF | u64::from(value);
});
word!(u32, i32, |regs, number| regs[slot(number)] as u32, |regs, number, value| {
    regs[slot(number)] = u64::from(value);
});
word!(u64, i64, |regs, number| regs[slot(number)], |regs, number, value| {
    regs[slot(number)] = value;
});
