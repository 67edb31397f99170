//! Data accesses: segmentation, the fast path through the translation cache, and the slow path with page crossings, device
//! memory and decoded code.
//!
//! **Accesses that leave the engine.** An instruction that reaches a physical address without memory is abandoned and the
//! run ends. The answer goes into a log, and the next run executes the instruction again from its beginning: its k-th such
//! access takes the k-th entry of the log. Nothing of an abandoned instruction is visible in registers. Memory that it has
//! written already is written again with the same values; a read-modify-write that crosses from memory to a device writes
//! the device's part first, so that it never reads its own result.

use super::mem::{Bus, HostPtr, Translation, context, page_offset};
use super::op::Op;
use super::paging::Purpose;
use super::state::{Access, AccessKind, Cpu, SS, Step, Stop, access, cr4, vector};
use super::word::Word;
use crate::engine::Exit;
use crate::memory::PAGE_SIZE;

/// A memory operand opened for reading and then writing.
#[derive(Clone, Copy)]
pub(super) enum Opened {
    /// Ordinary memory in one page.
    Host(HostPtr),
    /// The linear address of anything else.
    Slow(u64),
}

/// A piece of an operand that lies in one page.
#[derive(Clone, Copy)]
struct Part {
    linear: u64,
    to: Translation,
    size: u32,
    /// Position of the piece in the operand, in bits.
    shift: u32,
}

impl Cpu {
    /// The offset that an instruction's memory operand has in its segment.
    #[inline(always)]
    pub(super) fn effective_address(&self, op: &Op) -> u64 {
        let base: u64 = self.get(op.base);
        let index: u64 = self.get(op.index);
        let address = base.wrapping_add(index << (op.scale & 3)).wrapping_add(i64::from(op.displacement) as u64);
        op.truncate_address(address)
    }

    /// The same for a 64-bit address.
    #[inline(always)]
    pub(super) fn flat_address(&self, op: &Op) -> u64 {
        let base: u64 = self.get(op.base);
        let index: u64 = self.get(op.index);
        base.wrapping_add(index << (op.scale & 3)).wrapping_add(i64::from(op.displacement) as u64)
    }

    #[inline(always)]
    pub(super) fn linear(&self, seg: u8, offset: u64) -> u64 {
        self.seg(seg).origin.wrapping_add(offset) & self.linear_mask
    }

    /// Reads an operand.
    #[inline(always)]
    pub(super) fn read<T: Word>(&mut self, bus: &mut Bus, seg: u8, offset: u64) -> Result<T, Stop> {
        let linear = self.linear(seg, offset);
        if offset.wrapping_add(u64::from(T::BYTES)) <= self.seg(seg).readable
            && let Some(host) = self.tlb.readable::<T>(linear, self.data_context)
        {
            return Ok(host.read());
        }
        self.read_slow(bus, seg, offset, T::BYTES).map(T::of)
    }

    /// Writes an operand.
    #[inline(always)]
    pub(super) fn write<T: Word>(&mut self, bus: &mut Bus, seg: u8, offset: u64, value: T) -> Step {
        let linear = self.linear(seg, offset);
        if offset.wrapping_add(u64::from(T::BYTES)) <= self.seg(seg).writable
            && let Some(host) = self.tlb.writable::<T>(linear, self.data_context)
        {
            host.write(value);
            return Ok(());
        }
        self.write_slow(bus, seg, offset, T::BYTES, value.zx())
    }

    /// Reads an operand at a linear address, in 64-bit mode and a segment without a base.
    #[inline(always)]
    pub(super) fn read_flat<T: Word>(&mut self, bus: &mut Bus, seg: u8, linear: u64) -> Result<T, Stop> {
        if let Some(host) = self.tlb.readable::<T>(linear, self.data_context) {
            return Ok(host.read());
        }
        self.read_slow(bus, seg, linear, T::BYTES).map(T::of)
    }

    /// Writes an operand at a linear address, in 64-bit mode and a segment without a base.
    #[inline(always)]
    pub(super) fn write_flat<T: Word>(&mut self, bus: &mut Bus, seg: u8, linear: u64, value: T) -> Step {
        if let Some(host) = self.tlb.writable::<T>(linear, self.data_context) {
            host.write(value);
            return Ok(());
        }
        self.write_slow(bus, seg, linear, T::BYTES, value.zx())
    }

    /// Opens an operand at a linear address, in 64-bit mode and a segment without a base.
    #[inline(always)]
    pub(super) fn open_flat<T: Word>(&mut self, bus: &mut Bus, seg: u8, linear: u64) -> Result<Opened, Stop> {
        if let Some(host) = self.tlb.writable::<T>(linear, self.data_context) {
            return Ok(Opened::Host(host));
        }
        self.open_slow(bus, seg, linear, T::BYTES).map(Opened::Slow)
    }

    /// Opens an operand for reading and then writing: every fault that either could raise is raised now.
    #[inline(always)]
    pub(super) fn open<T: Word>(&mut self, bus: &mut Bus, seg: u8, offset: u64) -> Result<Opened, Stop> {
        let linear = self.linear(seg, offset);
        if offset.wrapping_add(u64::from(T::BYTES)) <= self.seg(seg).writable
            && let Some(host) = self.tlb.writable::<T>(linear, self.data_context)
        {
            return Ok(Opened::Host(host));
        }
        self.open_slow(bus, seg, offset, T::BYTES).map(Opened::Slow)
    }

    /// Reads an opened operand.
    #[inline(always)]
    pub(super) fn read_opened<T: Word>(&mut self, bus: &mut Bus, opened: Opened) -> Result<T, Stop> {
        match opened {
            Opened::Host(host) => Ok(host.read()),
            Opened::Slow(linear) => self.read_linear(bus, linear, T::BYTES, self.data_context).map(T::of),
        }
    }

    /// Writes an opened operand.
    #[inline(always)]
    pub(super) fn write_opened<T: Word>(&mut self, bus: &mut Bus, opened: Opened, value: T) -> Step {
        match opened {
            Opened::Host(host) => {
                host.write(value);
                Ok(())
            }
            Opened::Slow(linear) => self.write_linear(bus, linear, T::BYTES, value.zx(), self.data_context),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, bus: &mut Bus, seg: u8, offset: u64, size: u32) -> Result<u64, Stop> {
        let linear = self.check_segment(seg, offset, u64::from(size), false)?;
        self.read_linear(bus, linear, size, self.data_context)
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, bus: &mut Bus, seg: u8, offset: u64, size: u32, value: u64) -> Step {
        let linear = self.check_segment(seg, offset, u64::from(size), true)?;
        self.write_linear(bus, linear, size, value, self.data_context)
    }

    #[cold]
    #[inline(never)]
    fn open_slow(&mut self, bus: &mut Bus, seg: u8, offset: u64, size: u32) -> Result<u64, Stop> {
        let linear = self.check_segment(seg, offset, u64::from(size), true)?;
        self.parts(bus, linear, size, Purpose::Write, self.data_context)?;
        Ok(linear)
    }

    /// Segment limit, rights and canonical form. Returns the linear address.
    pub(super) fn check_segment(&mut self, number: u8, offset: u64, size: u64, write: bool) -> Result<u64, Stop> {
        let seg = *self.seg(number);
        let linear = self.linear(number, offset);
        let allowed = if self.is_64() {
            self.canonical(linear) && self.canonical(linear.wrapping_add(size - 1))
        } else {
            let end = if write { seg.writable } else { seg.readable };
            offset + size <= end || self.expand_down_allows(number, offset, size, write)
        };
        if allowed {
            return Ok(linear);
        }
        Err(self.raise_code(if number == SS { vector::SS } else { vector::GP }, 0))
    }

    /// Whether an expand-down data segment covers the bytes.
    fn expand_down_allows(&self, number: u8, offset: u64, size: u64, write: bool) -> bool {
        let seg = self.seg(number);
        let is_expand_down = self.protected
            && seg.usable()
            && seg.has(access::PRESENT | access::CODE_OR_DATA | access::EXPAND_DOWN)
            && !seg.has(access::CODE);
        let highest = if seg.has(access::BIG) { 0xFFFF_FFFF } else { 0xFFFF };
        is_expand_down
            && (!write || seg.has(access::RW))
            && offset > u64::from(seg.limit)
            && offset + size - 1 <= highest
    }

    /// Translates an operand: one part, or two if it crosses a page boundary.
    fn parts(
        &mut self,
        bus: &mut Bus,
        linear: u64,
        size: u32,
        purpose: Purpose,
        context: u64,
    ) -> Result<(Part, Option<Part>), Stop> {
        if context & context::ALIGNED != 0 && linear & u64::from(size - 1) != 0 {
            return Err(self.raise_code(vector::AC, 0));
        }
        let first = u64::from(size).min(PAGE_SIZE - page_offset(linear)) as u32;
        let to = self.resolve(bus, linear, purpose, context)?;
        let low = Part { linear, to, size: first, shift: 0 };
        if first == size {
            return Ok((low, None));
        }
        // Compatibility mode's own addresses wrap at 4 Gbytes; its system structures may lie above.
        let mask = if linear >> 32 == 0 { self.linear_mask } else { u64::MAX };
        let linear = linear.wrapping_add(u64::from(first)) & mask;
        let to = self.resolve(bus, linear, purpose, context)?;
        Ok((low, Some(Part { linear, to, size: size - first, shift: first * 8 })))
    }

    /// Reads up to 8 bytes at a linear address.
    pub(super) fn read_linear(&mut self, bus: &mut Bus, linear: u64, size: u32, context: u64) -> Result<u64, Stop> {
        let (low, high) = self.parts(bus, linear, size, Purpose::Read, context)?;
        let mut value = self.read_part(bus, low, context)?;
        if let Some(high) = high {
            value |= self.read_part(bus, high, context)? << high.shift;
        }
        self.watch(linear, size, false);
        Ok(value)
    }

    /// Puts a page into the translation cache. `write` only if it may be written without further ado.
    fn remember(&mut self, part: Part, context: u64, host: HostPtr, write: bool) {
        if self.may_cache(part.linear) {
            self.tlb.fill(part.linear, context, part.to, host, write);
        }
    }

    fn read_part(&mut self, bus: &mut Bus, part: Part, context: u64) -> Result<u64, Stop> {
        let Some(place) = bus.place(part.to.gpa) else {
            let kind = AccessKind::MmioRead { gpa: part.to.gpa };
            return self.outside(Access { kind, size: part.size as u8, value: 0, retires_at: None });
        };
        self.remember(part, context, place.host, false);
        let mut bytes = [0; 8];
        place.host.read_bytes(&mut bytes[..part.size as usize]);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes up to 8 bytes at a linear address.
    pub(super) fn write_linear(&mut self, bus: &mut Bus, linear: u64, size: u32, value: u64, context: u64) -> Step {
        let (low, high) = self.parts(bus, linear, size, Purpose::Write, context)?;
        // What leaves the engine goes first: see the module's text.
        for part in [Some(low), high].into_iter().flatten() {
            if !bus.place(part.to.gpa).is_some_and(|place| place.write) {
                let kind = AccessKind::MmioWrite { gpa: part.to.gpa };
                let value = low_bytes(value >> part.shift, part.size);
                self.outside(Access { kind, size: part.size as u8, value, retires_at: None })?;
            }
        }
        for part in [Some(low), high].into_iter().flatten() {
            let Some(place) = bus.place(part.to.gpa).filter(|place| place.write) else { continue };
            place.host.write_bytes(&(value >> part.shift).to_le_bytes()[..part.size as usize]);
            self.after_write(bus, part.to.gpa, u64::from(part.size));
            let fast = !bus.has_code(part.to.gpa);
            self.remember(part, context, place.host, fast);
        }
        self.watch(linear, size, true);
        Ok(())
    }

    /// Looks whether a write to memory hit decoded code; if so, the present block ends behind this instruction.
    pub(super) fn after_write(&mut self, bus: &mut Bus, gpa: u64, len: u64) {
        if bus.written(gpa, len) {
            self.block_left = 0;
        }
    }

    /// An access that leaves the engine: the answer from the log, or the end of the run.
    #[cold]
    pub(super) fn outside(&mut self, asked: Access) -> Result<u64, Stop> {
        if let Some(answered) = self.log.get(self.log_used) {
            let same = answered.kind == asked.kind
                && answered.size == asked.size
                && (asked.is_read() || answered.value == asked.value);
            if same {
                self.log_used += 1;
                return Ok(answered.value);
            }
            // Another processor changed what the instruction depends on: what comes now is a new access.
            self.log.truncate(self.log_used);
        }
        let Access { size, value, .. } = asked;
        self.exit = Some(match asked.kind {
            AccessKind::MmioRead { gpa } => Exit::MmioRead { gpa, size },
            AccessKind::MmioWrite { gpa } => Exit::MmioWrite { gpa, size, data: value },
            AccessKind::PortIn { port } => Exit::IoIn { port, size },
            AccessKind::PortOut { port } => Exit::IoOut { port, size, data: value as u32 },
            AccessKind::RdMsr { index } => Exit::RdMsr { index },
            AccessKind::WrMsr { index } => Exit::WrMsr { index, value },
        });
        self.asked = Some(asked);
        Err(Stop::Again)
    }

    /// The context of accesses that the processor makes on its own: descriptor tables, task-state segments.
    pub(super) fn system_context(&self) -> u64 {
        // Without SMAP it is that of the supervisor's data, so that both share the translation cache.
        context::VALID | if self.cr4 & cr4::SMAP != 0 { context::SMAP } else { 0 }
    }

    /// Writes up to 8 bytes at a linear address, quickly if the translation cache knows the page.
    pub(super) fn write_stack(&mut self, bus: &mut Bus, linear: u64, size: u32, value: u64, context: u64) -> Step {
        let fast = match size {
            2 => self.tlb.writable::<u16>(linear, context).map(|host| host.write(value as u16)),
            4 => self.tlb.writable::<u32>(linear, context).map(|host| host.write(value as u32)),
            _ => self.tlb.writable::<u64>(linear, context).map(|host| host.write(value)),
        };
        match fast {
            Some(()) => Ok(()),
            None => self.write_linear(bus, linear, size, value, context),
        }
    }

    /// Reads from a descriptor table or task-state segment: with supervisor rights, and all ones where there is no memory.
    pub(super) fn read_system(&mut self, bus: &mut Bus, linear: u64, size: u32) -> Result<u64, Stop> {
        let linear = linear & if self.long { u64::MAX } else { 0xFFFF_FFFF };
        if self.long && !self.canonical(linear) {
            return Err(self.gp(0));
        }
        let context = self.system_context();
        if let Some(host) = self.tlb.readable::<u64>(linear, context) {
            return Ok(low_bytes(host.read(), size));
        }
        let (low, high) = self.parts(bus, linear, size, Purpose::Read, context)?;
        let mut value = 0;
        for part in [Some(low), high].into_iter().flatten() {
            let mut bytes = [0xFF; 8];
            if let Some(place) = bus.place(part.to.gpa) {
                self.remember(part, context, place.host, false);
                place.host.read_bytes(&mut bytes[..part.size as usize]);
            }
            value |= low_bytes(u64::from_le_bytes(bytes), part.size) << part.shift;
        }
        Ok(value)
    }

    /// Writes to a descriptor or task-state segment with supervisor rights; lost where there is no memory.
    pub(super) fn write_system(&mut self, bus: &mut Bus, linear: u64, size: u32, value: u64) -> Step {
        let linear = linear & if self.long { u64::MAX } else { 0xFFFF_FFFF };
        self.write_memory(bus, linear, size, value, self.system_context())
    }

    /// Writes up to 8 bytes at a linear address, without ever leaving the engine: lost where there is no memory.
    pub(super) fn write_memory(&mut self, bus: &mut Bus, linear: u64, size: u32, value: u64, context: u64) -> Step {
        let (low, high) = self.parts(bus, linear, size, Purpose::Write, context)?;
        for part in [Some(low), high].into_iter().flatten() {
            if let Some(place) = bus.place(part.to.gpa).filter(|place| place.write) {
                place.host.write_bytes(&(value >> part.shift).to_le_bytes()[..part.size as usize]);
                self.after_write(bus, part.to.gpa, u64::from(part.size));
            }
        }
        Ok(())
    }

    /// Ordinary memory from `offset` to the end of its page or segment: where, and how many bytes. `None` if the
    /// translation cache does not know the page, or it needs the slow path.
    pub(super) fn page_run(&self, seg: u8, offset: u64, write: bool) -> Option<(HostPtr, u64)> {
        let linear = self.linear(seg, offset);
        let end = if write { self.seg(seg).writable } else { self.seg(seg).readable };
        let host = if write {
            self.tlb.writable::<u8>(linear, self.data_context)
        } else {
            self.tlb.readable::<u8>(linear, self.data_context)
        }?;
        let in_segment = end.saturating_sub(offset);
        Some((host, in_segment.min(PAGE_SIZE - page_offset(linear))))
    }
}

/// The low `size` bytes of a value.
pub(super) fn low_bytes(value: u64, size: u32) -> u64 {
    value & u64::MAX >> (64 - size * 8)
}
