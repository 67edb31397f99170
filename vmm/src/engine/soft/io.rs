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
/// Size of the software interrupt redirection bit map.
const REDIRECTION_BYTES: u32 = 32;

impl Cpu {
    /// #GP(0) unless IOPL or the task-state segment's I/O permission bit map allow the access (SDM 1 19.5). In virtual-8086
    /// mode IOPL does not count.
    pub(super) fn check_port(&mut self, bus: &mut Bus, port: u16, size: u32) -> Step {
        self.watch_port(port, size);
        if !self.protected || !self.is_virtual() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = *self.seg(TR);
        let Some(map) = self.io_map(bus)? else { return Err(self.gp(0)) };
        let at = map + u32::from(port / 8);
        // Two bytes are read always, so that an access may reach over the end of the first.
        if at + 1 > tr.limit {
            return Err(self.gp(0));
        }
        let bits = self.read_system(bus, tr.base.wrapping_add(u64::from(at)), 2)?;
        let wanted = ((1 << size) - 1) << (port % 8);
        if bits & wanted == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Where the I/O permission bit map begins in the task-state segment; a 16-bit one has none.
    fn io_map(&mut self, bus: &mut Bus) -> Result<Option<u32>, Stop> {
        let tr = *self.seg(TR);
        if tr.kind() & 8 == 0 || tr.limit < IO_MAP_BASE + 1 {
            return Ok(None);
        }
        let map = self.read_system(bus, tr.base.wrapping_add(u64::from(IO_MAP_BASE)), 2)?;
        Ok(Some(map as u32))
    }

    /// Whether virtual-8086 mode extensions leave INT n to the 8086 program: the bit of the vector is clear in the software
    /// interrupt redirection bit map, which lies below the I/O permission bit map (SDM 3A 20.3.3.4). #GP(0) if it is not there.
    pub(super) fn interrupt_is_redirected(&mut self, bus: &mut Bus, vector: u8) -> Result<bool, Stop> {
        let tr = *self.seg(TR);
        let map = self.io_map(bus)?.and_then(|map| map.checked_sub(REDIRECTION_BYTES));
        let at = map.map(|map| map + u32::from(vector / 8)).filter(|&at| at <= tr.limit);
        let Some(at) = at else { return Err(self.gp(0)) };
        let byte = self.read_system(bus, tr.base.wrapping_add(u64::from(at)), 1)?;
        Ok(byte >> (vector % 8) & 1 == 0)
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
