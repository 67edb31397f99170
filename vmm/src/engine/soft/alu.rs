//! Integer arithmetic and logic (SDM 2, by mnemonic).
//!
//! Flags that the manual leaves undefined come out as they do: processors differ there among themselves. That goes for the
//! overflow flag of shifts by more than one, and for most flags of multiplications and bit scans.

use super::flags::Status;
use super::mem::Bus;
use super::op::{Address, Mem, Op, RmDst, RmSrc, Source, Target, flag};
use super::state::{Cpu, Step, vector};
use super::word::{RAX, RBX, RCX, RDX, Word};

/// An operation on two operands that sets all status flags.
pub(super) trait Binary {
    /// Whether the result is written to the first operand.
    const WRITES: bool = true;
    fn apply<T: Word>(status: Status, a: T, b: T) -> (T, Status);
}

macro_rules! binary {
    ($($name:ident, $writes:literal, |$status:ident, $a:ident, $b:ident| $result:expr, $flags:ident;)*) => {$(
        pub(super) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Word>($status: Status, $a: T, $b: T) -> (T, Status) {
                let result = T::of($result);
                (result, binary!(@$flags $a $b result))
            }
        }
    )*};
    (@add $a:ident $b:ident $result:ident) => { Status::add($a, $b, $result) };
    (@sub $a:ident $b:ident $result:ident) => { Status::sub($a, $b, $result) };
    (@logic $a:ident $b:ident $result:ident) => { Status::logic($result) };
}

binary! {
    Add, true, |_status, a, b| a.zx().wrapping_add(b.zx()), add;
    Adc, true, |status, a, b| a.zx().wrapping_add(b.zx()).wrapping_add(u64::from(status.cf())), add;
    Sub, true, |_status, a, b| a.zx().wrapping_sub(b.zx()), sub;
    Sbb, true, |status, a, b| a.zx().wrapping_sub(b.zx()).wrapping_sub(u64::from(status.cf())), sub;
    Cmp, false, |_status, a, b| a.zx().wrapping_sub(b.zx()), sub;
    And, true, |_status, a, b| a.zx() & b.zx(), logic;
    Or, true, |_status, a, b| a.zx() | b.zx(), logic;
    Xor, true, |_status, a, b| a.zx() ^ b.zx(), logic;
    Test, false, |_status, a, b| a.zx() & b.zx(), logic;
}

/// ADD and its kin.
pub(super) fn binary<O: Binary, T: Word, D: Target + Source, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = S::get(cpu, bus, op)?;
    if O::WRITES {
        let opened = D::open::<T>(cpu, bus, op)?;
        let a: T = D::read(cpu, bus, op, opened)?;
        let (result, status) = O::apply(cpu.status, a, b);
        D::write(cpu, bus, op, opened, result)?;
        cpu.status = status;
    } else {
        let a: T = <D as Source>::get(cpu, bus, op)?;
        cpu.status = O::apply(cpu.status, a, b).1;
    }
    Ok(())
}

/// An operation on one operand.
pub(super) trait Unary {
    fn apply<T: Word>(status: Status, a: T) -> (T, Status);
}

macro_rules! unary {
    ($($name:ident, |$status:ident, $a:ident| $result:expr;)*) => {$(
        pub(super) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Word>($status: Status, $a: T) -> (T, Status) {
                $result
            }
        }
    )*};
}

unary! {
    Inc, |status, a| {
        let result = T::of(a.zx().wrapping_add(1));
        (result, Status::add(a, T::of(1), result).with_cf(status.cf()))
    };
    Dec, |status, a| {
        let result = T::of(a.zx().wrapping_sub(1));
        (result, Status::sub(a, T::of(1), result).with_cf(status.cf()))
    };
    Neg, |_status, a| {
        let result = T::of(a.zx().wrapping_neg());
        (result, Status::sub(T::of(0), a, result))
    };
    Not, |status, a| (T::of(!a.zx()), status);
}

/// INC and its kin.
pub(super) fn unary<O: Unary, T: Word, D: Target>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let opened = D::open::<T>(cpu, bus, op)?;
    let a: T = D::read(cpu, bus, op, opened)?;
    let (result, status) = O::apply(cpu.status, a);
    D::write(cpu, bus, op, opened, result)?;
    cpu.status = status;
    Ok(())
}

/// A shift or rotate; `count` is masked already and not 0.
pub(super) trait Shift {
    fn apply<T: Word>(status: Status, a: T, count: u32) -> (T, Status);
}

fn top<T: Word>(value: T) -> bool {
    value.zx() >> (T::BITS - 1) & 1 != 0
}

pub(super) struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Word>(_: Status, a: T, count: u32) -> (T, Status) {
        // A byte or word may be shifted by more than its width.
        let wide = u128::from(a.zx()) << count;
        let result = T::of(wide as u64);
        let cf = wide >> T::BITS & 1 != 0;
        (result, Status::result(result, cf, cf != top(result)))
    }
}

pub(super) struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Word>(_: Status, a: T, count: u32) -> (T, Status) {
        let before_last = a.zx() >> (count - 1);
        let result = T::of(before_last >> 1);
        // OF is defined for a count of 1 (the sign changed: the old sign); beyond, hardware goes by the last step.
        (result, Status::result(result, before_last & 1 != 0, top(T::of(before_last))))
    }
}

pub(super) struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Word>(_: Status, a: T, count: u32) -> (T, Status) {
        let before_last = a.sx() as i64 >> (count - 1);
        let result = T::of((before_last >> 1) as u64);
        (result, Status::result(result, before_last & 1 != 0, false))
    }
}

pub(super) struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Word>(status: Status, a: T, count: u32) -> (T, Status) {
        let n = count % T::BITS;
        let a = a.zx();
        let result = if n == 0 { T::of(a) } else { T::of(a << n | a >> (T::BITS - n)) };
        let cf = result.zx() & 1 != 0;
        (result, status.with_cf_of(cf, cf != top(result)))
    }
}

pub(super) struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Word>(status: Status, a: T, count: u32) -> (T, Status) {
        let n = count % T::BITS;
        let a = a.zx();
        let result = if n == 0 { T::of(a) } else { T::of(a >> n | a << (T::BITS - n)) };
        let cf = top(result);
        let of = cf != (result.zx() >> (T::BITS - 2) & 1 != 0);
        (result, status.with_cf_of(cf, of))
    }
}

pub(super) struct Rcl;
impl Shift for Rcl {
    #[inline(always)]
    fn apply<T: Word>(status: Status, a: T, count: u32) -> (T, Status) {
        let n = count % (T::BITS + 1);
        let ring = u128::from(status.cf()) << T::BITS | u128::from(a.zx());
        let turned = if n == 0 { ring } else { ring << n | ring >> (T::BITS + 1 - n) };
        let result = T::of(turned as u64);
        let cf = turned >> T::BITS & 1 != 0;
        (result, status.with_cf_of(cf, cf != top(result)))
    }
}

pub(super) struct Rcr;
impl Shift for Rcr {
    #[inline(always)]
    fn apply<T: Word>(status: Status, a: T, count: u32) -> (T, Status) {
        let n = count % (T::BITS + 1);
        let ring = u128::from(status.cf()) << T::BITS | u128::from(a.zx());
        let turned = if n == 0 { ring } else { ring >> n | ring << (T::BITS + 1 - n) };
        let result = T::of(turned as u64);
        let cf = turned >> T::BITS & 1 != 0;
        let of = top(result) != (result.zx() >> (T::BITS - 2) & 1 != 0);
        (result, status.with_cf_of(cf, of))
    }
}

/// SHL and its kin; the count is the immediate or CL.
pub(super) fn shift<O: Shift, T: Word, D: Target, C: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let count = u32::from(C::get::<u8>(cpu, bus, op)?) & if T::BITS == 64 { 63 } else { 31 };
    let opened = D::open::<T>(cpu, bus, op)?;
    let a: T = D::read(cpu, bus, op, opened)?;
    let (result, status) = if count == 0 { (a, cpu.status) } else { O::apply(cpu.status, a, count) };
    D::write(cpu, bus, op, opened, result)?;
    cpu.status = status;
    Ok(())
}

/// SHLD (`LEFT`) and SHRD.
pub(super) fn double_shift<const LEFT: bool, T: Word, C: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let count = u32::from(C::get::<u8>(cpu, bus, op)?) & if T::BITS == 64 { 63 } else { 31 };
    let fill: T = cpu.get(op.src);
    let opened = RmDst::open::<T>(cpu, bus, op)?;
    let a: T = RmDst::read(cpu, bus, op, opened)?;
    if count == 0 {
        // A 32-bit register is still written, which clears its upper half.
        return RmDst::write(cpu, bus, op, opened, a);
    }
    // For counts above 16 the manual leaves a 16-bit result undefined; the operands are shifted through each other, then
    // the first comes round again.
    let (a, b) = (u128::from(a.zx()), u128::from(fill.zx()));
    let bits = T::BITS;
    let (result, cf) = if LEFT {
        let pattern = a << bits | b;
        let pattern = if bits == 16 { pattern << 16 | a } else { pattern };
        let width = if bits == 16 { 48 } else { 2 * bits };
        let result = T::of((pattern >> (width - bits - count)) as u64);
        (result, pattern >> (width - count) & 1 != 0)
    } else {
        let pattern = b << bits | a;
        let pattern = if bits == 16 { a << 32 | pattern } else { pattern };
        (T::of((pattern >> count) as u64), pattern >> (count - 1) & 1 != 0)
    };
    let of = if LEFT { cf != top(result) } else { top(result) != (result.zx() >> (bits - 2) & 1 != 0) };
    RmDst::write(cpu, bus, op, opened, result)?;
    cpu.status = Status::result(result, cf, of);
    Ok(())
}

/// MUL: rDX:rAX = rAX * r/m (AX = AL * r/m8).
pub(super) fn mul<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = RmDst::get(cpu, bus, op)?;
    let a: T = cpu.get(RAX);
    let product = u128::from(a.zx()) * u128::from(b.zx());
    let (low, high) = (T::of(product as u64), T::of((product >> T::BITS) as u64));
    put_product(cpu, low, high);
    let overflow = high.zx() != 0;
    cpu.status = Status::result(low, overflow, overflow);
    Ok(())
}

/// IMUL with one operand.
pub(super) fn imul1<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = RmDst::get(cpu, bus, op)?;
    let a: T = cpu.get(RAX);
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let (low, high) = (T::of(product as u64), T::of((product >> T::BITS) as u64));
    put_product(cpu, low, high);
    let overflow = i128::from(low.sx() as i64) != product;
    cpu.status = Status::result(low, overflow, overflow);
    Ok(())
}

fn put_product<T: Word>(cpu: &mut Cpu, low: T, high: T) {
    if T::BITS == 8 {
        cpu.put(RAX, (high.zx() << 8 | low.zx()) as u16);
    } else {
        cpu.put(RAX, low);
        cpu.put(RDX, high);
    }
}

/// IMUL with two (`B` is the source, the destination the other factor) or three operands (`B` is the immediate).
pub(super) fn imul<T: Word, A: Source, B: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let a: T = A::get(cpu, bus, op)?;
    let b: T = B::get(cpu, bus, op)?;
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    let result = T::of(product as u64);
    cpu.put(op.dst, result);
    let overflow = i128::from(result.sx() as i64) != product;
    cpu.status = Status::result(result, overflow, overflow);
    Ok(())
}

/// DIV.
pub(super) fn div<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let divisor = u128::from(RmDst::get::<T>(cpu, bus, op)?.zx());
    let dividend = dividend::<T>(cpu);
    if divisor == 0 {
        return Err(cpu.raise(vector::DE));
    }
    let (quotient, remainder) = (dividend / divisor, dividend % divisor);
    if quotient >> T::BITS != 0 {
        return Err(cpu.raise(vector::DE));
    }
    put_quotient(cpu, T::of(quotient as u64), T::of(remainder as u64));
    Ok(())
}

/// IDIV.
pub(super) fn idiv<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let divisor = i128::from(RmDst::get::<T>(cpu, bus, op)?.sx() as i64);
    let unused = 128 - 2 * T::BITS;
    let dividend = (dividend::<T>(cpu) << unused) as i128 >> unused;
    // The one quotient that i128 cannot hold overflows narrower operands too.
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
        return Err(cpu.raise(vector::DE));
    };
    let result = T::of(quotient as u64);
    if i128::from(result.sx() as i64) != quotient {
        return Err(cpu.raise(vector::DE));
    }
    put_quotient(cpu, result, T::of(remainder as u64));
    Ok(())
}

fn dividend<T: Word>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        u128::from(cpu.get::<u16>(RAX))
    } else {
        u128::from(cpu.get::<T>(RDX).zx()) << T::BITS | u128::from(cpu.get::<T>(RAX).zx())
    }
}

fn put_quotient<T: Word>(cpu: &mut Cpu, quotient: T, remainder: T) {
    if T::BITS == 8 {
        cpu.put(RAX, (remainder.zx() << 8 | quotient.zx()) as u16);
    } else {
        cpu.put(RAX, quotient);
        cpu.put(RDX, remainder);
    }
}

/// What BT and its kin do with the bit.
pub(super) mod bit {
    pub(in super::super) const TEST: u8 = 0;
    pub(in super::super) const SET: u8 = 1;
    pub(in super::super) const RESET: u8 = 2;
    pub(in super::super) const COMPLEMENT: u8 = 3;
}

/// BT, BTS, BTR, BTC with an immediate or register bit offset `B`. With a register and a memory operand the offset reaches
/// beyond the operand, both ways.
pub(super) fn bit_test<const WHAT: u8, T: Word, B: Source, const FROM_REGISTER: bool>(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
) -> Step {
    let offset: T = B::get(cpu, bus, op)?;
    let mask = T::of(1 << (offset.zx() % u64::from(T::BITS)));
    let change = |value: T| match WHAT {
        bit::SET => T::of(value.zx() | mask.zx()),
        bit::RESET => T::of(value.zx() & !mask.zx()),
        _ => T::of(value.zx() ^ mask.zx()),
    };
    if !op.has(flag::MEMORY) {
        let value: T = cpu.get(op.dst);
        if WHAT != bit::TEST {
            cpu.put(op.dst, change(value));
        }
        cpu.status = cpu.status.with_cf(value.zx() & mask.zx() != 0);
        return Ok(());
    }
    let mut address = cpu.effective_address(op);
    if FROM_REGISTER {
        let operands = offset.sx() as i64 >> T::BITS.trailing_zeros();
        address = op.truncate_address(address.wrapping_add((operands * i64::from(T::BYTES)) as u64));
    }
    let value: T;
    if WHAT == bit::TEST {
        value = cpu.read(bus, op.seg, address)?;
    } else {
        let opened = cpu.open::<T>(bus, op.seg, address)?;
        value = cpu.read_opened(bus, opened)?;
        cpu.write_opened(bus, opened, change(value))?;
    }
    cpu.status = cpu.status.with_cf(value.zx() & mask.zx() != 0);
    Ok(())
}

/// BSF and (`REVERSE`) BSR. A zero source leaves the destination alone.
pub(super) fn bit_scan<const REVERSE: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = RmSrc::get(cpu, bus, op)?;
    if value.zx() != 0 {
        let index = if REVERSE { 63 - value.zx().leading_zeros() } else { value.zx().trailing_zeros() };
        cpu.put(op.dst, T::of(u64::from(index)));
    }
    cpu.status = Status::logic(value);
    Ok(())
}

/// TZCNT and (`LEADING`) LZCNT.
pub(super) fn count_zeros<const LEADING: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = RmSrc::get(cpu, bus, op)?;
    let count =
        if LEADING { value.zx().leading_zeros() - (64 - T::BITS) } else { value.zx().trailing_zeros().min(T::BITS) };
    let result = T::of(u64::from(count));
    cpu.put(op.dst, result);
    cpu.status = Status::result(result, count == T::BITS, false);
    Ok(())
}

/// POPCNT.
pub(super) fn popcnt<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = RmSrc::get(cpu, bus, op)?;
    cpu.put(op.dst, T::of(u64::from(value.zx().count_ones())));
    // PF is clear whatever the result.
    cpu.status = Status::from_bits(if value.zx() == 0 { super::flags::ZF } else { 0 });
    Ok(())
}

/// BSWAP. On a 16-bit register the result is undefined; processors give 0.
pub(super) fn bswap<T: Word>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let value: T = cpu.get(op.dst);
    cpu.put(op.dst, if T::BITS == 16 { T::of(0) } else { T::of(value.zx().swap_bytes() >> (64 - T::BITS)) });
    Ok(())
}

/// MOVBE.
pub(super) fn movbe<T: Word, D: Target, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = S::get(cpu, bus, op)?;
    D::put(cpu, bus, op, T::of(value.zx().swap_bytes() >> (64 - T::BITS)))
}

/// XADD.
pub(super) fn xadd<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = cpu.get(op.src);
    let opened = RmDst::open::<T>(cpu, bus, op)?;
    let a: T = RmDst::read(cpu, bus, op, opened)?;
    let (sum, status) = Add::apply(cpu.status, a, b);
    if op.has(flag::MEMORY) {
        RmDst::write(cpu, bus, op, opened, sum)?;
        cpu.put(op.src, a);
    } else {
        cpu.put(op.src, a);
        cpu.put(op.dst, sum);
    }
    cpu.status = status;
    Ok(())
}

/// XCHG.
pub(super) fn xchg<T: Word, D: Target>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = cpu.get(op.src);
    let opened = D::open::<T>(cpu, bus, op)?;
    let a: T = D::read(cpu, bus, op, opened)?;
    D::write(cpu, bus, op, opened, b)?;
    cpu.put(op.src, a);
    Ok(())
}

/// CMPXCHG. The destination is written either way (a locked cycle always ends in a write).
pub(super) fn cmpxchg<T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let new: T = cpu.get(op.src);
    let expected: T = cpu.get(RAX);
    let opened = RmDst::open::<T>(cpu, bus, op)?;
    let old: T = RmDst::read(cpu, bus, op, opened)?;
    let equal = old == expected;
    let (_, status) = Cmp::apply(cpu.status, expected, old);
    if equal {
        RmDst::write(cpu, bus, op, opened, new)?;
    } else {
        if op.has(flag::MEMORY) {
            RmDst::write(cpu, bus, op, opened, old)?;
        }
        cpu.put(RAX, old);
    }
    cpu.status = status;
    Ok(())
}

/// CMPXCHG8B.
pub(super) fn cmpxchg8b(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let pair = |cpu: &Cpu, high, low| u64::from(cpu.get::<u32>(high)) << 32 | u64::from(cpu.get::<u32>(low));
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let opened = Mem::open::<u64>(cpu, bus, op)?;
    let old: u64 = Mem::read(cpu, bus, op, opened)?;
    let equal = old == expected;
    Mem::write(cpu, bus, op, opened, if equal { new } else { old })?;
    if !equal {
        cpu.put(RAX, old as u32);
        cpu.put(RDX, (old >> 32) as u32);
    }
    cpu.status = cpu.status.with_zf(equal);
    Ok(())
}

/// CMPXCHG16B.
pub(super) fn cmpxchg16b(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let address = cpu.effective_address(op);
    let linear = cpu.check_segment(op.seg, address, 16, true)?;
    if linear % 16 != 0 {
        return Err(cpu.gp(0));
    }
    // Aligned, so both halves lie in one page.
    let low = cpu.open::<u64>(bus, op.seg, address)?;
    let high = cpu.open::<u64>(bus, op.seg, address.wrapping_add(8))?;
    let old: (u64, u64) = (cpu.read_opened(bus, low)?, cpu.read_opened(bus, high)?);
    let expected = (cpu.get::<u64>(RAX), cpu.get::<u64>(RDX));
    let equal = old == expected;
    let new = if equal { (cpu.get::<u64>(RBX), cpu.get::<u64>(RCX)) } else { old };
    cpu.write_opened(bus, low, new.0)?;
    cpu.write_opened(bus, high, new.1)?;
    if !equal {
        cpu.put(RAX, old.0);
        cpu.put(RDX, old.1);
    }
    cpu.status = cpu.status.with_zf(equal);
    Ok(())
}

/// ADCX and (`OVERFLOW`) ADOX: addition with a carry flag of its own.
pub(super) fn add_carry_only<const OVERFLOW: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let b: T = RmSrc::get(cpu, bus, op)?;
    let a: T = cpu.get(op.dst);
    let carry = if OVERFLOW { cpu.status.of() } else { cpu.status.cf() };
    let sum = u128::from(a.zx()) + u128::from(b.zx()) + u128::from(carry);
    cpu.put(op.dst, T::of(sum as u64));
    let carry = sum >> T::BITS != 0;
    let (cf, of) = if OVERFLOW { (cpu.status.cf(), carry) } else { (carry, cpu.status.of()) };
    cpu.status = cpu.status.with_cf_of(cf, of);
    Ok(())
}

/// AAA and (`SUBTRACT`) AAS.
pub(super) fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let ax: u16 = cpu.get(RAX);
    let adjust = ax & 0xF > 9 || cpu.status.af();
    let sum = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    cpu.put(RAX, sum & 0xFF0F);
    cpu.status = Status::result(sum as u8 & 0xF, adjust, false).with_af(adjust);
    Ok(())
}

/// DAA and (`SUBTRACT`) DAS.
pub(super) fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let al: u8 = cpu.get(RAX);
    let (old_cf, old_af) = (cpu.status.cf(), cpu.status.af());
    let low = al & 0xF > 9 || old_af;
    let high = al > 0x99 || old_cf;
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let result = if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    // DAS: a borrow from the first step sets CF too.
    let cf = high || SUBTRACT && low && al < 6;
    cpu.put(RAX, result);
    cpu.status = Status::result(result, cf, false).with_af(low);
    Ok(())
}

/// AAM.
pub(super) fn aam(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let base = op.immediate as u8;
    if base == 0 {
        return Err(cpu.raise(vector::DE));
    }
    let al: u8 = cpu.get(RAX);
    cpu.put(RAX, u16::from(al / base) << 8 | u16::from(al % base));
    cpu.status = Status::logic(al % base);
    Ok(())
}

/// AAD.
pub(super) fn aad(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let ax: u16 = cpu.get(RAX);
    let result = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.immediate as u8));
    cpu.put(RAX, u16::from(result));
    cpu.status = Status::logic(result);
    Ok(())
}

/// CBW, CWDE, CDQE: `T` is the result.
pub(super) fn extend_accumulator<From: Word, T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let value: From = cpu.get(RAX);
    cpu.put(RAX, T::of(value.sx()));
    Ok(())
}

/// CWD, CDQ, CQO.
pub(super) fn extend_into_dx<T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let value: T = cpu.get(RAX);
    cpu.put(RDX, T::of((value.sx() as i64 >> 63) as u64));
    Ok(())
}

/// LEA.
pub(super) fn lea<T: Word, M: Address>(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    let address = M::address(cpu, op);
    cpu.put(op.dst, T::of(address));
    Ok(())
}

/// MOV.
pub(super) fn mov<T: Word, D: Target, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = S::get(cpu, bus, op)?;
    D::put(cpu, bus, op, value)
}

/// MOV between the accumulator and a 64-bit address; `LOAD` into the accumulator.
pub(super) fn mov_offset<const LOAD: bool, T: Word>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    if LOAD {
        let value: T = cpu.read(bus, op.seg, op.immediate)?;
        cpu.put(RAX, value);
        Ok(())
    } else {
        let value: T = cpu.get(RAX);
        cpu.write(bus, op.seg, op.immediate, value)
    }
}

/// MOVZX.
pub(super) fn movzx<T: Word, From: Word, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: From = S::get(cpu, bus, op)?;
    cpu.put(op.dst, T::of(value.zx()));
    Ok(())
}

/// MOVSX and MOVSXD.
pub(super) fn movsx<T: Word, From: Word, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: From = S::get(cpu, bus, op)?;
    cpu.put(op.dst, T::of(value.sx()));
    Ok(())
}

/// CMOVcc. The source is read (and may fault) either way, and a 32-bit destination loses its upper half either way.
pub(super) fn cmov<T: Word, S: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value: T = S::get(cpu, bus, op)?;
    let value = if cpu.status.condition(op.extra) { value } else { cpu.get(op.dst) };
    cpu.put(op.dst, value);
    Ok(())
}

/// SETcc.
pub(super) fn setcc(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let value = u8::from(cpu.status.condition(op.extra));
    RmDst::put(cpu, bus, op, value)
}

/// CLC.
pub(super) fn clc(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.status = cpu.status.with_cf(false);
    Ok(())
}
/// STC.
pub(super) fn stc(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.status = cpu.status.with_cf(true);
    Ok(())
}
/// CMC.
pub(super) fn cmc(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.status = cpu.status.with_cf(!cpu.status.cf());
    Ok(())
}
/// CLD.
pub(super) fn cld(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.eflags &= !super::flags::DF;
    Ok(())
}
/// STD.
pub(super) fn std(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.eflags |= super::flags::DF;
    Ok(())
}
/// LAHF.
pub(super) fn lahf(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let flags = cpu.rflags() as u8;
    cpu.put(RAX | super::word::HIGH_BYTE, flags);
    Ok(())
}
/// SAHF.
pub(super) fn sahf(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let flags = u64::from(cpu.get::<u8>(RAX | super::word::HIGH_BYTE));
    let of = cpu.status.of();
    let status = Status::from_bits(flags);
    cpu.status = status.with_cf_of(status.cf(), of);
    Ok(())
}

/// XLAT.
pub(super) fn xlat(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let al: u8 = cpu.get(RAX);
    let address = op.truncate_address(cpu.get::<u64>(RBX).wrapping_add(u64::from(al)));
    let value: u8 = cpu.read(bus, op.seg, address)?;
    cpu.put(RAX, value);
    Ok(())
}

/// NOP in all its lengths, ENDBR, PREFETCH, fences: nothing that this processor does shows.
pub(super) fn nop(_: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    Ok(())
}

/// Source of a shift count in CL.
pub(super) struct Cl;
impl Source for Cl {
    #[inline(always)]
    fn get<T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Result<T, super::state::Stop> {
        Ok(cpu.get(RCX))
    }
}
