//! Guest memory as the VM sees it: segments and where they are mapped (`vm_alloc_memseg`, `vm_mmap_memseg`).

use crate::abi::Errno;
use crate::engine::{EngineError, EngineVm};
use crate::history::MemsegAbi;
use crate::memory::{PAGE_SIZE, Protection, Segment};
use std::sync::Arc;

/// `VM_MAX_MEMSEGS` up to 14, and on illumos.
const MAX_SEGMENTS: usize = 4;
/// From 15 on: a segment of system memory for each of 8 domains, and those of three devices. \[read]
const MAX_SEGMENTS_WITH_DOMAINS: usize = 11;
/// `VM_MAX_MEMMAPS`.
const MAX_MAPS: usize = 8;

const PROT_WRITE: i32 = 2;
const PROT_ALL: i32 = 7;
/// `VM_MEMMAP_F_WIRED`.
const FLAG_WIRED: i32 = 1;

/// Where the named segments begin in the VM's device on illumos, and how far apart they are.
const DEVMEM_START: i64 = 1 << 48;
const DEVMEM_SHIFT: u32 = 40;

/// One memory segment.
#[derive(Clone, Debug)]
struct MemSeg {
    memory: Arc<Segment>,
    /// Empty for system memory, else the suffix of its device node.
    name: String,
}

/// One mapping into the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemMap {
    pub(super) gpa: u64,
    pub(super) len: u64,
    pub(super) segid: i32,
    pub(super) segoff: i64,
    pub(super) prot: i32,
    pub(super) flags: i32,
}

/// Why a mapping failed: the caller's fault or the engine's.
#[derive(Debug)]
pub(super) enum MapError {
    Errno(Errno),
    Engine(EngineError),
}

impl From<Errno> for MapError {
    fn from(errno: Errno) -> MapError {
        MapError::Errno(errno)
    }
}

/// The segments and mappings of a VM.
#[derive(Debug)]
pub(super) struct Memory {
    segments: Vec<Option<MemSeg>>,
    maps: Vec<MemMap>,
}

impl Memory {
    /// No segment yet.
    pub(super) fn new(abi: MemsegAbi) -> Memory {
        let slots = if abi == MemsegAbi::Domains { MAX_SEGMENTS_WITH_DOMAINS } else { MAX_SEGMENTS };
        Memory { segments: vec![None; slots], maps: Vec::new() }
    }

    fn slot(&self, segid: i32) -> Result<usize, Errno> {
        usize::try_from(segid).ok().filter(|&slot| slot < self.segments.len()).ok_or(Errno::EINVAL)
    }

    /// VM_ALLOC_MEMSEG. A segment that is there already with the same size is EEXIST, with another EINVAL; one that is larger
    /// than the modelled host is ENOMEM. That this host has no memory is no answer of the modelled one.
    pub(super) fn alloc(&mut self, segid: i32, len: u64, name: String) -> Result<(), MapError> {
        /// What the modelled host has, in bytes: always the same, so that runs on different machines are alike.
        const MOST: u64 = 8 << 30;
        let slot = self.slot(segid)?;
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL.into());
        }
        if let Some(present) = &self.segments[slot] {
            let same = present.memory.len() as u64 == len && present.name.is_empty() == name.is_empty();
            return Err(if same { Errno::EEXIST } else { Errno::EINVAL }.into());
        }
        let bytes = usize::try_from(len).ok().filter(|_| len <= MOST).ok_or(Errno::ENOMEM)?;
        let memory = Segment::new(bytes).map_err(|source| {
            MapError::Engine(EngineError {
                what: format!("Cannot allocate {len} bytes of guest memory"),
                source: Some(source),
            })
        })?;
        self.segments[slot] = Some(MemSeg { memory: Arc::new(memory), name });
        Ok(())
    }

    /// VM_GET_MEMSEG: length and name; length 0 when there is none.
    pub(super) fn segment(&self, segid: i32) -> Result<(u64, &str), Errno> {
        let slot = self.slot(segid)?;
        Ok(self.segments[slot].as_ref().map_or((0, ""), |seg| (seg.memory.len() as u64, seg.name.as_str())))
    }

    /// The memory of the named segment (a device node under `/dev/vmm.io`).
    pub(super) fn named(&self, name: &str) -> Option<Arc<Segment>> {
        let named = self.segments.iter().flatten().find(|seg| !seg.name.is_empty() && seg.name == name);
        named.map(|seg| Arc::clone(&seg.memory))
    }

    /// VM_DEVMEM_GETOFFSET: where a named segment is in the VM's device. Where exactly is no matter; guest memory is below. \[unverified]
    pub(super) fn devmem_offset(&self, segid: i32) -> Result<i64, Errno> {
        let slot = self.slot(segid)?;
        let named = self.segments[slot].as_ref().is_some_and(|seg| !seg.name.is_empty());
        if named { Ok(DEVMEM_START + ((slot as i64) << DEVMEM_SHIFT)) } else { Err(Errno::EINVAL) }
    }

    /// The segment that [`Memory::devmem_offset`] puts at an offset.
    pub(super) fn devmem_at(&self, offset: u64, len: u64) -> Option<Arc<Segment>> {
        let slot = offset.checked_sub(DEVMEM_START as u64)? >> DEVMEM_SHIFT;
        let aligned = offset.trailing_zeros() >= DEVMEM_SHIFT;
        let seg = self.segments.get(usize::try_from(slot).ok()?)?.as_ref()?;
        (aligned && !seg.name.is_empty() && len <= seg.memory.len() as u64).then(|| Arc::clone(&seg.memory))
    }

    /// VM_MMAP_MEMSEG.
    pub(super) fn map(&mut self, engine: &dyn EngineVm, map: MemMap) -> Result<(), MapError> {
        let slot = self.slot(map.segid)?;
        if map.prot == 0 || map.prot & !PROT_ALL != 0 || map.flags & !FLAG_WIRED != 0 {
            return Err(Errno::EINVAL.into());
        }
        let segment = self.segments[slot].as_ref().ok_or(Errno::EINVAL)?;
        let first = u64::try_from(map.segoff).map_err(|_| Errno::EINVAL)?;
        let last = first.checked_add(map.len).ok_or(Errno::EINVAL)?;
        let end = map.gpa.checked_add(map.len).ok_or(Errno::EINVAL)?;
        let aligned = (map.gpa | first | last).is_multiple_of(PAGE_SIZE);
        if first >= last || last > segment.memory.len() as u64 || !aligned {
            return Err(Errno::EINVAL.into());
        }
        if self.maps.len() == MAX_MAPS {
            return Err(Errno::ENOSPC.into());
        }
        if self.maps.iter().any(|other| map.gpa < other.gpa + other.len && other.gpa < end) {
            return Err(Errno::EFAULT.into());
        }
        let protection = Protection { write: map.prot & PROT_WRITE != 0 };
        engine.map(map.gpa, &segment.memory, first, map.len, protection).map_err(MapError::Engine)?;
        self.maps.push(map);
        Ok(())
    }

    /// VM_MUNMAP_MEMSEG: only a mapping as a whole.
    pub(super) fn unmap(&mut self, engine: &dyn EngineVm, gpa: u64, len: u64) -> Result<(), MapError> {
        let at = self.maps.iter().position(|map| map.gpa == gpa && map.len == len).ok_or(Errno::EINVAL)?;
        engine.unmap(gpa, len).map_err(MapError::Engine)?;
        self.maps.remove(at);
        Ok(())
    }

    /// `vm_cleanup` of a VM that is begun anew: system memory stays where it is; devices map theirs again. \[read]
    pub(super) fn unmap_devices(&mut self, engine: &dyn EngineVm) -> Result<(), EngineError> {
        let of_devices = |map: &&MemMap| {
            let segment = self.slot(map.segid).ok().and_then(|slot| self.segments[slot].as_ref());
            segment.is_some_and(|segment| !segment.name.is_empty())
        };
        let maps: Vec<MemMap> = self.maps.iter().filter(of_devices).copied().collect();
        for map in maps {
            engine.unmap(map.gpa, map.len)?;
            self.maps.retain(|other| *other != map);
        }
        Ok(())
    }

    /// VM_MMAP_GETNEXT: the lowest mapping at or above an address.
    pub(super) fn next(&self, gpa: u64) -> Result<MemMap, Errno> {
        self.maps.iter().filter(|map| map.gpa >= gpa).min_by_key(|map| map.gpa).copied().ok_or(Errno::ENOENT)
    }

    /// The memory behind `len` bytes of guest physical memory, and where in it they begin.
    pub(super) fn find(&self, gpa: u64, len: u64) -> Option<(Arc<Segment>, u64)> {
        let end = gpa.checked_add(len)?;
        let map = self.maps.iter().find(|map| map.gpa <= gpa && end <= map.gpa + map.len)?;
        let segment = self.segments[self.slot(map.segid).ok()?].as_ref()?;
        Some((Arc::clone(&segment.memory), map.segoff as u64 + (gpa - map.gpa)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine as _;
    use crate::kernel::tests::scripted::Scripted;

    fn map(gpa: u64, segid: i32, segoff: i64, len: u64) -> MemMap {
        MemMap { gpa, len, segid, segoff, prot: PROT_ALL, flags: 0 }
    }

    fn errno(result: Result<(), MapError>) -> Option<Errno> {
        match result {
            Ok(()) => None,
            Err(MapError::Errno(errno)) => Some(errno),
            Err(MapError::Engine(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn segments_are_allocated_once() {
        let mut memory = Memory::new(MemsegAbi::Suffix16);
        assert_eq!(errno(memory.alloc(0, 8192, String::new())), None);
        assert_eq!(errno(memory.alloc(0, 8192, String::new())), Some(Errno::EEXIST));
        assert_eq!(errno(memory.alloc(0, 4096, String::new())), Some(Errno::EINVAL));
        assert_eq!(errno(memory.alloc(4, 4096, String::new())), Some(Errno::EINVAL));
        assert_eq!(errno(memory.alloc(-1, 4096, String::new())), Some(Errno::EINVAL));
        assert_eq!(errno(memory.alloc(1, 100, "bootrom".into())), Some(Errno::EINVAL));
        assert_eq!(errno(memory.alloc(1, 4096, "bootrom".into())), None);
        assert_eq!(errno(memory.alloc(2, 16 << 30, String::new())), Some(Errno::ENOMEM));
        assert_eq!(memory.segment(1), Ok((4096, "bootrom")));
        assert_eq!(memory.segment(2), Ok((0, "")));
        assert!(memory.named("bootrom").is_some() && memory.named("").is_none());
    }

    #[test]
    fn mappings_are_checked() {
        let engine = Scripted::new().create_vm().expect("a VM");
        let mut memory = Memory::new(MemsegAbi::Suffix16);
        memory.alloc(0, 0x10000, String::new()).expect("memory");
        let mut try_map = |map| errno(memory.map(&*engine, map));
        assert_eq!(try_map(map(0, 1, 0, 0x1000)), Some(Errno::EINVAL), "no such segment");
        assert_eq!(try_map(map(0, 0, 0, 0x11000)), Some(Errno::EINVAL), "past its end");
        assert_eq!(try_map(map(0, 0, -4096, 0x1000)), Some(Errno::EINVAL));
        assert_eq!(try_map(map(0x800, 0, 0, 0x1000)), Some(Errno::EINVAL), "not aligned");
        assert_eq!(try_map(MemMap { prot: 0, ..map(0, 0, 0, 0x1000) }), Some(Errno::EINVAL));
        assert_eq!(try_map(map(0, 0, 0, 0x8000)), None);
        assert_eq!(try_map(map(0x7000, 0, 0, 0x1000)), Some(Errno::EFAULT), "overlaps");
        assert_eq!(try_map(map(0x10_0000, 0, 0x8000, 0x8000)), None);
        assert_eq!(memory.find(0x10_0010, 16).map(|(_, offset)| offset), Some(0x8010));
        assert!(memory.find(0x7ff8, 16).is_none());
        assert_eq!(memory.next(1).map(|map| map.gpa), Ok(0x10_0000));
        assert_eq!(memory.next(0x10_0001), Err(Errno::ENOENT));
        assert_eq!(errno(memory.unmap(&*engine, 0, 0x1000)), Some(Errno::EINVAL));
        assert_eq!(errno(memory.unmap(&*engine, 0, 0x8000)), None);
        assert!(memory.find(0, 1).is_none());
    }
}
