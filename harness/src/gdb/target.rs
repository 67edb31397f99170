//! The machine as the GDB stub sees it.

use super::registers;
use gdbstub::arch::Arch;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm::engine::{EngineVcpu, Kick};
use vmm::memory::{PAGE_SIZE, Segment};

/// A vCPU that the kernel and the debugger share.
#[derive(Clone)]
pub(super) struct StoppableVcpu {
    /// Locked while the vCPU is in the guest.
    pub(super) engine: Arc<Mutex<Box<dyn EngineVcpu>>>,
    pub(super) kick: Arc<dyn Kick>,
    /// It is in the guest, or about to enter it.
    pub(super) in_guest: Arc<AtomicBool>,
}

/// Guest memory at an address.
#[derive(Clone)]
pub(super) struct Mapping {
    pub(super) gpa: u64,
    pub(super) len: u64,
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
}

/// A machine under the debugger.
#[derive(Default)]
pub(super) struct Machine {
    /// The vCPUs by APIC ID.
    pub(super) vcpus: BTreeMap<u32, StoppableVcpu>,
    pub(super) memory: Vec<Mapping>,
    /// Linear addresses at which any vCPU stops.
    pub(super) breakpoints: BTreeSet<u64>,
    /// The vCPU that stops after one instruction.
    pub(super) stepping: Option<u32>,
    /// The others are not to go on meanwhile.
    pub(super) others_wait: bool,
}

/// The thread of a vCPU: numbers from 1.
pub(super) fn tid(id: u32) -> Tid {
    Tid::new(id as usize + 1).expect("it is not 0")
}

impl Machine {
    /// Has every vCPU that is in the guest leave it.
    pub(super) fn leave_guest(&self) {
        self.vcpus.values().filter(|vcpu| vcpu.in_guest.load(Ordering::SeqCst)).for_each(|vcpu| vcpu.kick.kick());
    }

    fn vcpu(&self, tid: Tid) -> Option<MutexGuard<'_, Box<dyn EngineVcpu>>> {
        Some(self.vcpus.get(&id(tid))?.engine.lock())
    }

    /// Calls `with` with each part of a linear range that lies in one page of memory: the segment, the offset in it, and
    /// the range's bytes. Returns how many bytes were there before the first that are not.
    fn each_page(
        &self,
        tid: Tid,
        start: u64,
        len: usize,
        mut with: impl FnMut(&Segment, u64, std::ops::Range<usize>),
    ) -> usize {
        let Some(mut vcpu) = self.vcpu(tid) else { return 0 };
        let mut done = 0;
        while done < len {
            let linear = start.wrapping_add(done as u64);
            let in_page = (PAGE_SIZE - linear % PAGE_SIZE).min((len - done) as u64);
            let Some(gpa) = vcpu.translate(linear) else { break };
            let Some(mapping) = self.memory.iter().find(|m| m.gpa <= gpa && gpa + in_page <= m.gpa + m.len) else {
                break;
            };
            let part = done..done + in_page as usize;
            with(&mapping.segment, mapping.offset + (gpa - mapping.gpa), part.clone());
            done = part.end;
        }
        done
    }
}

fn id(tid: Tid) -> u32 {
    u32::try_from(tid.get() - 1).unwrap_or(u32::MAX)
}

impl Target for Machine {
    type Arch = X86_64_SSE;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Machine>> {
        Some(self)
    }
}

impl MultiThreadBase for Machine {
    fn read_registers(&mut self, regs: &mut <X86_64_SSE as Arch>::Registers, tid: Tid) -> TargetResult<(), Machine> {
        let mut vcpu = self.vcpu(tid).ok_or(TargetError::NonFatal)?;
        *regs = registers::read(&mut **vcpu);
        Ok(())
    }

    fn write_registers(&mut self, regs: &<X86_64_SSE as Arch>::Registers, tid: Tid) -> TargetResult<(), Machine> {
        let mut vcpu = self.vcpu(tid).ok_or(TargetError::NonFatal)?;
        registers::write(&mut **vcpu, regs);
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Machine> {
        let len = data.len();
        let read = self.each_page(tid, start, len, |segment, offset, part| {
            assert!(segment.read(offset, &mut data[part]), "the mapping lies inside its segment");
        });
        if read == 0 { Err(TargetError::NonFatal) } else { Ok(read) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Machine> {
        let written = self.each_page(tid, start, data.len(), |segment, offset, part| {
            assert!(segment.write(offset, &data[part]), "the mapping lies inside its segment");
        });
        if written == data.len() { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        self.vcpus.keys().for_each(|&id| thread_is_active(tid(id)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Machine>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Machine>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Machine {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Infallible> {
        let text = format!("vCPU {}", id(tid));
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

/// All vCPUs go on together, but for a step of the one that stopped, for which GDB may want the others to wait. Nobody can go on alone for
/// longer: what a vCPU leaves the guest for may need the others.
impl MultiThreadResume for Machine {
    fn resume(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.stepping = None;
        self.others_wait = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _tid: Tid, _signal: Option<Signal>) -> Result<(), Infallible> {
        Ok(())
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Machine>> {
        Some(self)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Machine>> {
        Some(self)
    }
}

impl MultiThreadSchedulerLocking for Machine {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.others_wait = true;
        Ok(())
    }
}

impl MultiThreadSingleStep for Machine {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<(), Infallible> {
        self.stepping = Some(id(tid));
        Ok(())
    }
}

impl Breakpoints for Machine {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Machine>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Machine>> {
        Some(self)
    }
}

/// No breakpoint touches the guest's memory, so both kinds are the same.
impl SwBreakpoint for Machine {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Machine> {
        Ok(self.breakpoints.insert(addr))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Machine> {
        Ok(self.breakpoints.remove(&addr))
    }
}

impl HwBreakpoint for Machine {
    fn add_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Machine> {
        self.add_sw_breakpoint(addr, kind)
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Machine> {
        self.remove_sw_breakpoint(addr, kind)
    }
}
