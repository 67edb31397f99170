//! Port input and output.

use super::mem::Bus;
use super::op::{Op, Source};
use super::state::{Access, AccessKind, Cpu, Step, Stop, TR};
use super::word::{RAX, RDX, Word};

/// The port in an instruction's immediate byte.
pub(super) struct PortImm;
/// The port in DX.
pub(super) struct PortDx;

impl Source for PortImm {
    fn get<T: Word>(_: &mut Cpu, _: &mut Bus, op: &Op) -> Result<T, Stop> {
        Ok(T::of(op.immediate & 0xFF))
    }
}

impl Source for PortDx {
    fn get<T: Word>(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Result<T, Stop> {
        Ok(cpu.get(RDX))
    }
}

/// Offset of the I/O map base in a 32-bit or 64-bit task-state segment.
const IO_MAP_BASE: u32 = 0x66;

impl Cpu {
    /// #GP(0) unless IOPL or the task-state segment's I/O permission bit map allow the access (SDM 1 19.5).
    pub(super) fn check_port(&mut self, bus: &mut Bus, port: u16, size: u32) -> Step {
        self.watch_port(port, size);
        if !self.protected || self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = *self.seg(TR);
        // A 16-bit task-state segment has no bit map.
        if tr.kind() & 8 == 0 || tr.limit < IO_MAP_BASE + 1 {
            return Err(self.gp(0));
        }
        let map = self.read_system(bus, tr.base.wrapping_add(u64::from(IO_MAP_BASE)), 2)? as u32;
        let at = map + u32::from(port / 8);
        // Two bytes are read always, so that an access may reach over the end of the first.
        if at + 1 > tr.limit {
            return Err(self.gp(0));
        }
        let bits = self.read_system(bus, tr.base.wrapping_add(u64::from(at)), 2)?;
        let wanted = ((1 << size) - 1) << (port % 8);
        if bits & wanted == 0 { Ok(()) } else { Err(self.gp(0)) }
    }
}

/// IN.
pub(super) fn input<T: Word, P: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let port: u16 = P::get(cpu, bus, op)?;
    cpu.check_port(bus, port, T::BYTES)?;
    let asked =
        Access { kind: AccessKind::PortIn { port }, size: T::BYTES as u8, value: 0, retires_at: Some(cpu.rip()) };
    let value = cpu.outside(asked)?;
    cpu.put(RAX, T::of(value));
    Ok(())
}

/// OUT.
pub(super) fn output<T: Word, P: Source>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    let port: u16 = P::get(cpu, bus, op)?;
    cpu.check_port(bus, port, T::BYTES)?;
    let value = cpu.get::<T>(RAX).zx();
    cpu.outside(Access {
        kind: AccessKind::PortOut { port },
        size: T::BYTES as u8,
        value,
        retires_at: Some(cpu.rip()),
    })?;
    Ok(())
}
