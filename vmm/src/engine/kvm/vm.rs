//! A virtual machine: its memory slots, and what is agreed on with KVM for all its vCPUs.
#![allow(unsafe_code, reason = "guest memory is handed to KVM by its address")]

use super::vcpu::Vcpu;
use super::{Abilities, refused};
use crate::engine::{EngineError, EngineVcpu, EngineVm};
use crate::memory::{Protection, Segment};
use kvm_bindings::{KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MEM_READONLY, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What KVM must be able to do.
pub(super) const REQUIRED: &[Cap] = &[
    Cap::UserMemory,
    Cap::ReadonlyMem,
    Cap::ImmediateExit,
    Cap::VcpuEvents,
    Cap::Debugregs,
    Cap::SetTssAddr,
    Cap::X86UserSpaceMsr,
    Cap::X86MsrFilter,
];

/// Three pages that KVM on Intel processors needs for real mode, below the firmware's 16 MiB at the end of 4 GiB.
const TSS_ADDRESS: usize = 0xfeff_d000;

/// MSRs of the local APIC, which KVM must not keep for itself: first and count. The x2APIC's (800h–8FFh) cannot be filtered,
/// but KVM refuses them, having no local APIC.
const LOCAL_APIC_MSRS: [(u32, u32); 2] = [
    (0x1b, 1),  // IA32_APIC_BASE
    (0x6e0, 1), // IA32_TSC_DEADLINE
];

/// A virtual machine.
pub(super) struct Vm {
    fd: VmFd,
    /// Length of a vCPU's `kvm_run`, in bytes.
    run_size: usize,
    abilities: Arc<Abilities>,
    memory: Arc<Memory>,
}

/// What lies where in the guest's physical address space.
#[derive(Default)]
pub(super) struct Memory {
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    /// By guest physical address.
    mappings: BTreeMap<u64, Mapping>,
    /// Numbers of slots that were deleted.
    free: Vec<u32>,
}

struct Mapping {
    len: u64,
    slot: u32,
    /// Held as long as KVM has its address.
    segment: Arc<Segment>,
    offset: u64,
}

impl Vm {
    pub(super) fn new(kvm: &Kvm, abilities: Arc<Abilities>) -> Result<Vm, EngineError> {
        let fd = kvm.create_vm().map_err(|error| refused("Cannot make a virtual machine", error))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(|error| refused("Cannot place the TSS", error))?;

        let reasons = MsrExitReason::Unknown | MsrExitReason::Inval | MsrExitReason::Filter;
        let mut cap = kvm_enable_cap { cap: Cap::X86UserSpaceMsr as u32, ..Default::default() };
        cap.args[0] = reasons.bits().into();
        fd.enable_cap(&cap).map_err(|error| refused("Cannot have MSR accesses leave the guest", error))?;
        let deny = [0];
        let filters = LOCAL_APIC_MSRS.map(|(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap: &deny,
        });
        fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &filters)
            .map_err(|error| refused("Cannot filter the local APIC's MSRs", error))?;

        // An instruction that KVM cannot emulate shall always end the run, and not become #UD in user mode.
        if fd.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
            let mut cap = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
            cap.args[0] = 1;
            fd.enable_cap(&cap).map_err(|error| refused("Cannot have emulation failures leave the guest", error))?;
        }
        let run_size = fd.run_size();
        Ok(Vm { fd, run_size, abilities, memory: Arc::default() })
    }
}

impl Memory {
    /// Reads guest memory; `false` when the bytes are not in one mapping.
    pub(super) fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let slots = self.slots.lock();
        let Some((start, mapping)) = slots.mappings.range(..=gpa).next_back() else { return false };
        let inside = mapping.len.checked_sub(gpa - start).is_some_and(|left| bytes.len() as u64 <= left);
        inside && mapping.segment.read(mapping.offset + (gpa - start), bytes)
    }

    /// Whether a guest physical address has no memory.
    pub(super) fn is_unmapped(&self, gpa: u64) -> bool {
        let slots = self.slots.lock();
        let below = slots.mappings.range(..=gpa).next_back();
        below.is_none_or(|(start, mapping)| gpa - start >= mapping.len)
    }
}

impl EngineVm for Vm {
    fn map(
        &self,
        gpa: u64,
        segment: &Arc<Segment>,
        offset: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), EngineError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= segment.len() as u64);
        assert!(inside, "{len:#x} bytes from {offset:#x} are not in a segment of {:#x} bytes", segment.len());
        let mut slots = self.memory.slots.lock();
        let next = slots.mappings.len() as u32;
        let slot = slots.free.last().copied().unwrap_or(next);
        let region = kvm_userspace_memory_region {
            slot,
            flags: if protection.write { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: segment.as_ptr() as u64 + offset,
        };
        // SAFETY: the region lies inside the segment, which is kept until the slot is deleted; guest memory is only ever
        // accessed through raw pointers.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|error| refused(format!("Cannot map {len:#x} bytes at {gpa:#x}"), error))?;
        slots.free.pop();
        slots.mappings.insert(gpa, Mapping { len, slot, segment: Arc::clone(segment), offset });
        Ok(())
    }

    fn unmap(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        let mut slots = self.memory.slots.lock();
        let Some(slot) = slots.mappings.get(&gpa).filter(|mapping| mapping.len == len).map(|mapping| mapping.slot)
        else {
            return Err(EngineError { what: format!("{len:#x} bytes at {gpa:#x} are not a mapping"), source: None });
        };
        let region = kvm_userspace_memory_region { slot, guest_phys_addr: gpa, ..Default::default() };
        // SAFETY: a size of zero deletes the slot.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(|error| refused(format!("Cannot unmap {len:#x} bytes at {gpa:#x}"), error))?;
        slots.mappings.remove(&gpa);
        slots.free.push(slot);
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn EngineVcpu>, EngineError> {
        let fd = self.fd.create_vcpu(id.into()).map_err(|error| refused(format!("Cannot make vCPU {id}"), error))?;
        Ok(Box::new(Vcpu::new(fd, self.run_size, Arc::clone(&self.memory), Arc::clone(&self.abilities))?))
    }
}
