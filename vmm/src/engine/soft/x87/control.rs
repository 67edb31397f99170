//! Control of the FPU: words, tags, and images of the environment (SDM 1 8.1.8 to 8.1.11).

use super::super::fpu::{F80, Fpu, status};
use super::super::mem::Bus;
use super::super::op::{Mem, Op, Source, Target};
use super::super::state::{Cpu, Step, cr0, vector};
use super::super::word::RAX;

/// WAIT.
pub(in super::super) fn wait(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    let both = cr0::MP | cr0::TS;
    if cpu.cr0 & both == both {
        return Err(cpu.raise(vector::NM));
    }
    cpu.check_pending()
}

/// EMMS.
pub(in super::super) fn emms(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_mmx()?;
    (cpu.fpu.occupied, cpu.fpu.top) = (0, 0);
    Ok(())
}

/// FNINIT.
pub(super) fn fninit(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_x87()?;
    cpu.fpu.init_x87();
    Ok(())
}

/// FNCLEX.
pub(super) fn fnclex(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_x87()?;
    cpu.fpu.status &= !(status::EXCEPTIONS | status::SF | status::ES | status::B);
    Ok(())
}

/// FNSTSW AX.
pub(super) fn fnstsw_ax(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_x87()?;
    let value = cpu.fpu.status_word();
    cpu.put(RAX, value);
    Ok(())
}

/// FNSTSW m16.
pub(super) fn fnstsw(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let value = cpu.fpu.status_word();
    Mem::put(cpu, bus, op, value)
}

/// FNSTCW.
pub(super) fn fnstcw(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let value = cpu.fpu.control;
    Mem::put(cpu, bus, op, value)
}

/// FLDCW.
pub(super) fn fldcw(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let value = Mem::get(cpu, bus, op)?;
    cpu.fpu.set_control(value);
    Ok(())
}

/// FNOP, and FNENI, FNDISI and FNSETPM of older coprocessors, which do nothing.
pub(super) fn fnop(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    Ok(())
}

/// FNENI, FNDISI, FNSETPM of older coprocessors: they do nothing, and do not wait.
pub(super) fn nothing(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    cpu.check_x87()
}

/// FINCSTP, FDECSTP: by how much TOP goes up stands in `extra`.
pub(super) fn turn(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    cpu.fpu.top = (cpu.fpu.top + op.extra) & 7;
    cpu.fpu.set_c1(false);
    Ok(())
}

/// FFREE; `extra` pops (FFREEP, undocumented).
pub(super) fn ffree(cpu: &mut Cpu, _: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    cpu.note_x87(op);
    cpu.fpu.set_c1(false);
    cpu.fpu.free(op.dst);
    cpu.fpu.pop_times(op.extra);
    Ok(())
}

impl Fpu {
    /// The tag word: 0 valid, 1 zero, 2 special, 3 empty, by register number.
    fn tag_word(&self) -> u16 {
        let tag = |number: usize| {
            let F80 { significand, sign_exponent } = self.registers[number];
            match (self.occupied >> number & 1, sign_exponent & 0x7FFF, significand) {
                (0, _, _) => 3,
                (_, 0, 0) => 1,
                (_, 0 | 0x7FFF, _) => 2,
                (_, _, significand) if significand >> 63 == 0 => 2,
                _ => 0_u16,
            }
        };
        (0..8).fold(0, |word, number| word | tag(number) << (2 * number))
    }

    fn set_tag_word(&mut self, value: u16) {
        self.occupied = (0..8).fold(0, |bits, number| bits | u8::from(value >> (2 * number) & 3 != 3) << number);
    }
}

/// Fields of the environment, by their order in memory.
const FIELDS: usize = 7;

/// The environment as its seven fields (SDM 1 figures 8-9 to 8-12). Selectors are deprecated and stored as 0.
fn environment(cpu: &Cpu, wide: bool) -> [u32; FIELDS] {
    let fpu = &cpu.fpu;
    let (ip, data) = (fpu.last_ip as u32, fpu.last_data as u32);
    // What is not stored in 32-bit fields is all ones.
    let word = |value: u16| u32::from(value) | 0xFFFF_0000;
    let opcode = u32::from(fpu.last_opcode);
    let real = !cpu.protected;
    let (ip_high, data_high) = match (real, wide) {
        (false, true) => (opcode << 16, 0xFFFF_0000),
        (false, false) => (0, 0),
        (true, _) => (ip >> 16 << 12 | opcode, data >> 16 << 12),
    };
    let low = |offset: u32| if real || !wide { offset & 0xFFFF | if wide { 0xFFFF_0000 } else { 0 } } else { offset };
    [word(fpu.control), word(fpu.status_word()), word(fpu.tag_word()), low(ip), ip_high, low(data), data_high]
}

fn set_environment(cpu: &mut Cpu, fields: [u32; FIELDS], wide: bool) {
    let real = !cpu.protected;
    let [control, status, tags, ip, ip_high, data, data_high] = fields;
    let fpu = &mut cpu.fpu;
    fpu.control = 0;
    fpu.set_control(control as u16);
    fpu.set_status_word(status as u16);
    fpu.set_tag_word(tags as u16);
    let pointer = |low: u32, high: u32| match (real, wide) {
        (false, true) => u64::from(low),
        (false, false) => u64::from(low & 0xFFFF),
        (true, _) => u64::from(low & 0xFFFF | high >> 12 << 16),
    };
    fpu.last_ip = pointer(ip, ip_high);
    fpu.last_data = pointer(data, data_high);
    fpu.last_opcode = match (real, wide) {
        (false, true) => (ip_high >> 16) as u16 & 0x7FF,
        (false, false) => 0,
        (true, _) => ip_high as u16 & 0x7FF,
    };
}

/// Whether `extra` says that fields are of 32 bits.
fn is_wide(op: &Op) -> bool {
    op.extra != 0
}

/// Offset of a field, or of the registers behind the last one.
fn field_at(op: &Op, offset: u64, i: usize) -> u64 {
    let size = if is_wide(op) { 4 } else { 2 };
    op.truncate_address(offset.wrapping_add(size * i as u64))
}

/// Raises the faults that storing the fields would, so that nothing is stored in part.
fn open_environment(cpu: &mut Cpu, bus: &mut Bus, op: &Op, offset: u64) -> Step {
    for i in 0..FIELDS {
        let at = field_at(op, offset, i);
        if is_wide(op) {
            cpu.open::<u32>(bus, op.seg, at)?
        } else {
            cpu.open::<u16>(bus, op.seg, at)?
        };
    }
    Ok(())
}

fn store_environment(cpu: &mut Cpu, bus: &mut Bus, op: &Op, offset: u64) -> Step {
    let wide = is_wide(op);
    for (i, value) in environment(cpu, wide).into_iter().enumerate() {
        let at = field_at(op, offset, i);
        if wide { cpu.write(bus, op.seg, at, value)? } else { cpu.write(bus, op.seg, at, value as u16)? }
    }
    Ok(())
}

fn read_environment(
    cpu: &mut Cpu,
    bus: &mut Bus,
    op: &Op,
    offset: u64,
) -> Result<[u32; FIELDS], super::super::state::Stop> {
    let mut fields = [0; FIELDS];
    for (i, field) in fields.iter_mut().enumerate() {
        let at = field_at(op, offset, i);
        *field = if is_wide(op) { cpu.read(bus, op.seg, at)? } else { u32::from(cpu.read::<u16>(bus, op.seg, at)?) };
    }
    Ok(fields)
}

/// FNSTENV: masks all exceptions behind it.
pub(super) fn fnstenv(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let offset = cpu.effective_address(op);
    open_environment(cpu, bus, op, offset)?;
    store_environment(cpu, bus, op, offset)?;
    cpu.fpu.set_control(cpu.fpu.control | status::EXCEPTIONS);
    Ok(())
}

/// FLDENV.
pub(super) fn fldenv(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let offset = cpu.effective_address(op);
    let fields = read_environment(cpu, bus, op, offset)?;
    set_environment(cpu, fields, is_wide(op));
    Ok(())
}

/// Offset of a register's significand and of its exponent.
fn register_at(op: &Op, offset: u64, i: u8) -> (u64, u64) {
    let at = field_at(op, offset, FIELDS).wrapping_add(10 * u64::from(i));
    (op.truncate_address(at), op.truncate_address(at.wrapping_add(8)))
}

/// FNSAVE: initializes behind it.
pub(super) fn fnsave(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let offset = cpu.effective_address(op);
    open_environment(cpu, bus, op, offset)?;
    for i in 0..8 {
        let (low, high) = register_at(op, offset, i);
        cpu.open::<u64>(bus, op.seg, low)?;
        cpu.open::<u16>(bus, op.seg, high)?;
    }
    store_environment(cpu, bus, op, offset)?;
    for i in 0..8 {
        let F80 { significand, sign_exponent } = cpu.fpu.registers[cpu.fpu.number(i)];
        let (low, high) = register_at(op, offset, i);
        cpu.write(bus, op.seg, low, significand)?;
        cpu.write(bus, op.seg, high, sign_exponent)?;
    }
    cpu.fpu.init_x87();
    Ok(())
}

/// FRSTOR.
pub(super) fn frstor(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87_waiting()?;
    let offset = cpu.effective_address(op);
    let fields = read_environment(cpu, bus, op, offset)?;
    let mut registers = [F80::default(); 8];
    for (i, register) in (0..8).zip(&mut registers) {
        let (low, high) = register_at(op, offset, i);
        *register = F80 { significand: cpu.read(bus, op.seg, low)?, sign_exponent: cpu.read(bus, op.seg, high)? };
    }
    set_environment(cpu, fields, is_wide(op));
    for (i, register) in (0..8).zip(registers) {
        let number = cpu.fpu.number(i);
        cpu.fpu.registers[number] = register;
    }
    Ok(())
}
