//! VM_RUN: the loop that enters the guest and handles what it leaves for (`vm_run`, and `vmx_run` inside it).

use super::cpuid;
use super::ipi::{IcrResult, Ipi};
use super::rendezvous::RendezvousFunction;
use super::vcpu::{Counter, VcpuState};
use super::vm::{ONE_SECOND, State, Vm};
use crate::abi::illumos::{self, VmMmio};
use crate::abi::{
    Errno, ExitInout, ExitInstEmul, ExitMsr, ExitSuspended, ExitVmx, VmExit, VmGuestPaging, cap, exitcode, suspend,
};
use crate::device::vlapic::{DEFAULT_APIC_BASE, Effect, MSR_APIC_BASE};
use crate::engine::{Completion, Exit, Reg};
use crate::history::{Boundary, X2apicStartup};
use crate::host::{End, WaitChannel};
use crate::memory::PAGE_SIZE;
use crate::trace::{DropReason, Event, StartupStore};
use parking_lot::MutexGuard;

/// What a thread in VM_RUN is doing.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunContext {
    pub(super) vcpu: usize,
    /// Between `critical_enter` and `critical_exit`: around `vmmops_run`, where a WRMSR of the guest is emulated.
    pub(super) critical: bool,
}

/// Why `vmmops_run` returned to `vm_run`, behind the critical section.
enum Left {
    Suspended,
    Rendezvous,
    ReqIdle,
    Debug,
    RunState,
    Hlt,
    MmioRead { gpa: u64, size: u8 },
    MmioWrite { gpa: u64, size: u8, data: u64 },
    Port(Exit),
    Ipi(Ipi),
    Userspace(VmExit),
}

/// How `vm_run` goes on.
enum Next {
    /// `retu = false`: back into the guest.
    Guest,
    /// `retu = true`.
    Userspace(VmExit),
}

/// What a suspended vCPU did: how often its thread came out of VM_RUN with VM_EXITCODE_DEBUG, and for how long it did nothing else.
///
/// A thread that comes straight back has a round trip of 2 µs, half a million exits a second and a whole host CPU;
/// one that sleeps a millisecond in between has less than a thousand (D39174).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Exits.
    pub exits: u64,
    /// From the first of them until the vCPU was let in again, in nanoseconds of the cell's time.
    pub ns: u64,
}

impl Parked {
    /// Exits a second; 0 for a vCPU that was not suspended for any time.
    #[must_use]
    pub fn exits_per_second(self) -> f64 {
        if self.ns == 0 { 0.0 } else { self.exits as f64 * 1e9 / self.ns as f64 }
    }
}

/// What it takes a thread to go into VM_RUN and to come out with VM_EXITCODE_DEBUG, userspace's loop included, in nanoseconds. A round figure
/// for a host of the time. \[unverified]
const DEBUG_ROUND_TRIP_NS: u64 = 2_000;
/// A thread that is back after so many nanoseconds did nothing else in between.
const STRAIGHT_BACK_NS: u64 = 20_000;
/// What a switch from the guest to the kernel and back takes, in nanoseconds of virtual time.
const EXIT_NS: u64 = 200;
/// EPT violation (SDM 3C appendix C), and its qualification for an instruction fetch (table 28-7).
const EXIT_REASON_EPT_FAULT: u32 = 48;
const EPT_VIOLATION_INST_FETCH: u64 = 1 << 2;
/// For how many instructions a spinning guest may do something else without it counting as progress.
const SPIN_LOOP_INSTRUCTIONS: u64 = 64;

impl Vm {
    /// VM_RUN.
    ///
    /// The exit is one of FreeBSD's, or for illumos one of the few that it has in their place.
    pub(super) fn vm_run(&self, st: &mut State<'_>, id: usize) -> Result<VmExit, Errno> {
        self.pace_debug_loop(st, id);
        self.give_way(st, id);
        self.await_idle(st, id);
        if !st.active.contains(id) || st.suspended.contains(id) {
            return Err(Errno::EINVAL);
        }
        self.change_state(st, id, VcpuState::Frozen);
        self.ensure_engine(st, id);
        st.vcpu(id).finish_in_flight();
        let result = self.run_until_userspace(st, id);
        self.become_idle(st, id);
        if let Ok(exit) = &result {
            let vcpu = st.vcpu(id);
            vcpu.count(Counter::UserspaceExits);
            if exit.exitcode == exitcode::DEBUG {
                vcpu.debug_streak = vcpu.debug_streak.saturating_add(1);
                vcpu.debug_exit_at = self.host.now();
                vcpu.parked.exits += 1;
            } else {
                (vcpu.debug_streak, vcpu.spin_streak) = (0, 0);
            }
        }
        result
    }

    /// A thread whose vCPU is suspended comes back at once, again and again. It burns host time that way; here the loop
    /// passes in longer and longer steps of virtual time, and anything that concerns the vCPU ends a step. Each step counts for the
    /// exits that a host would have had in it. A thread that slept in between is let in at once.
    fn pace_debug_loop(&self, st: &mut State<'_>, id: usize) {
        const SHORTEST_NS: u64 = 1_000;
        const LONGEST_DOUBLINGS: u32 = 10;
        let vcpu = st.vcpu(id);
        if vcpu.debug_streak == 0 {
            return;
        }
        let back_at = self.host.now();
        let straight_back = back_at - vcpu.debug_exit_at < STRAIGHT_BACK_NS;
        vcpu.spin_streak = if straight_back { vcpu.spin_streak.saturating_add(1) } else { 0 };
        let streak = vcpu.spin_streak;
        if streak > 1 && st.debug.contains(id) && !self.rendezvous_pending(st, id) && !st.is_suspended() {
            self.wait(st, self.vcpu_channel(id), SHORTEST_NS << streak.min(LONGEST_DOUBLINGS));
            let paced = self.host.now() - back_at;
            st.vcpu(id).parked.exits += paced / DEBUG_ROUND_TRIP_NS;
        }
        let now = self.host.now();
        let vcpu = st.vcpu(id);
        vcpu.parked.ns += now - vcpu.debug_exit_at;
    }

    /// Who made the thread come out (VM_EXITCODE_REQIDLE, or another exit that came first) gets hold of the vCPU before the
    /// thread is back, as on a real host, where the way through userspace takes longer than a wake-up. A thread that came
    /// back first would be asked to come out again, for ever.
    fn give_way(&self, st: &mut State<'_>, id: usize) {
        if std::mem::take(&mut st.vcpu(id).gives_way) {
            MutexGuard::unlocked(st, || self.host.yield_now());
        }
    }

    fn run_until_userspace(&self, st: &mut State<'_>, id: usize) -> Result<VmExit, Errno> {
        let outside = RunContext { vcpu: id, critical: false };
        loop {
            let next = match self.vmmops_run(st, id) {
                Left::Suspended => self.handle_suspend(st, id),
                Left::Rendezvous => {
                    self.handle_rendezvous(st, id);
                    Next::Guest
                }
                // illumos has given this exit up; userspace goes on after any BOGUS.
                Left::ReqIdle if self.behaviour.boundary == Boundary::Illumos => {
                    Next::Userspace(bare_exit(exitcode::BOGUS))
                }
                Left::ReqIdle => Next::Userspace(bare_exit(exitcode::REQIDLE)),
                Left::RunState => {
                    self.handle_run_state(st, id);
                    Next::Guest
                }
                Left::Debug => Next::Userspace(bare_exit(exitcode::DEBUG)),
                Left::Hlt => self.handle_hlt(st, id),
                Left::MmioRead { gpa, size } => self.handle_mmio_read(st, id, gpa, size)?,
                Left::MmioWrite { gpa, size, data } => self.handle_mmio_write(st, outside, gpa, size, data)?,
                Left::Port(exit) => self.handle_inout(st, id, exit)?,
                Left::Ipi(ipi) => self.handle_ipi(st, outside, ipi).map_or(Next::Guest, Next::Userspace),
                Left::Userspace(exit) => Next::Userspace(exit),
            };
            if let Next::Userspace(mut exit) = next {
                exit.rip = st.vcpu(id).engine().reg(Reg::Rip);
                return Ok(exit);
            }
        }
    }

    /// `vmmops_run`: all of it inside the critical section.
    fn vmmops_run(&self, st: &mut State<'_>, id: usize) -> Left {
        let ctx = RunContext { vcpu: id, critical: true };
        loop {
            MutexGuard::unlocked(st, || self.host.yield_now());
            self.advance_timers(st, id);
            // The order is that of svm_run and vmx_run. [read]
            if st.is_suspended() {
                return Left::Suspended;
            }
            if self.rendezvous_pending(st, id) {
                return Left::Rendezvous;
            }
            if st.vcpu(id).reqidle {
                return Left::ReqIdle;
            }
            if st.debug.contains(id) {
                return Left::Debug;
            }
            if self.behaviour.startup_store == StartupStore::RunState && !st.vcpu(id).run_state.runs() {
                return Left::RunState;
            }
            let exit = self.enter_guest(st, id);
            st.vcpu(id).count(Counter::Exits);
            match exit {
                // Traps are a debugger's, and nobody else sets any.
                Exit::Budget | Exit::Kicked | Exit::InterruptWindow | Exit::Trap(_) => {}
                Exit::Pause => {
                    st.vcpu(id).count(Counter::Pause);
                    if st.vcpu(id).caps.has(cap::PAUSE_EXIT) {
                        return Left::Userspace(bare_exit(exitcode::PAUSE));
                    }
                    self.relax(st, id);
                }
                Exit::TprWrite { tpr } => st.vcpu(id).vlapic.set_cr8(tpr >> 4),
                Exit::RdMsr { index } => match self.read_msr(st, id, index) {
                    Some(completion) => st.vcpu(id).engine().complete(completion),
                    None => return Left::Userspace(self.msr_exit(st, id, exitcode::RDMSR, &exit, index, 0)),
                },
                Exit::WrMsr { index, value } => match self.write_msr(st, ctx, index, value) {
                    MsrWrite::Done => st.vcpu(id).engine().complete(Completion::Done),
                    MsrWrite::GeneralProtection => st.vcpu(id).engine().complete(Completion::GeneralProtection),
                    MsrWrite::Leave(left) => {
                        st.vcpu(id).engine().complete(Completion::Done);
                        return left;
                    }
                    MsrWrite::Userspace => {
                        return Left::Userspace(self.msr_exit(st, id, exitcode::WRMSR, &exit, index, value));
                    }
                },
                Exit::Hlt => return Left::Hlt,
                Exit::MmioRead { gpa, size } => return Left::MmioRead { gpa, size },
                Exit::MmioWrite { gpa, size, data } => return Left::MmioWrite { gpa, size, data },
                Exit::MmioFetch { .. } => return Left::Userspace(fetch_fault()),
                Exit::IoIn { .. } | Exit::IoOut { .. } => return Left::Port(exit),
                Exit::Shutdown => {
                    self.host.emit(Some(id as u16), Event::TripleFault);
                    // EALREADY: the VM is being suspended for another reason, and that one stays.
                    let _ = self.suspend(st, id, suspend::TRIPLEFAULT);
                }
                Exit::Failed(what) => {
                    self.host.end(End::HarnessError(format!("The engine failed on vCPU {id}: {what}")))
                }
            }
        }
    }

    /// Injects what is due and lets the engine run for one slice.
    fn enter_guest(&self, st: &mut State<'_>, id: usize) -> Exit {
        self.refresh_cpuid(st, id);
        let state = &mut **st;
        let board = &mut state.board;
        let vcpu = state.vcpus[id].as_deref_mut().expect("the vCPU that runs is allocated");
        vcpu.inject_events(|| board.acknowledge_extint());
        if std::mem::take(&mut vcpu.fresh) {
            let (cs, ip) = (vcpu.engine().reg(Reg::Cs) as u16, vcpu.engine().reg(Reg::Rip));
            let cause = vcpu.start_cause;
            let seq = self.host.emit_caused(cause, Some(id as u16), Event::FirstInstruction { cs, ip });
            vcpu.guest_cause = Some(seq);
        }
        // What led to the last exit is over: what the guest does next follows from its having started.
        self.host.set_cause(vcpu.guest_cause);
        let now = self.host.now();
        let until_deadline = state.next_deadline(id).map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
        let budget = self.host.slice().min(until_deadline).max(1);
        let vcpu = state.vcpu(id);
        let tpr = vcpu.vlapic.cr8() << 4;
        let mut engine = vcpu.engine.take().expect("made by ensure_engine, and nobody else runs it");
        engine.set_cr8(tpr);
        engine.set_time(now);
        self.change_state(st, id, VcpuState::Running);
        let (exit, engine) = MutexGuard::unlocked(st, || {
            self.host.outside(move || {
                let exit = engine.run(budget);
                (exit, engine)
            })
        });
        self.change_state(st, id, VcpuState::Frozen);
        let vcpu = st.vcpu(id);
        vcpu.engine = Some(engine);
        self.host.charge(vcpu.engine().elapsed_ns() + EXIT_NS);
        for unimplemented in vcpu.engine().take_unimplemented() {
            let event = Event::Unimplemented { what: unimplemented.what, rip: unimplemented.rip };
            self.host.emit(Some(id as u16), event);
        }
        exit
    }

    fn refresh_cpuid(&self, st: &mut State<'_>, id: usize) {
        let topology = st.topology;
        let vcpu = st.vcpu(id);
        if std::mem::take(&mut vcpu.cpuid_stale) {
            let table = cpuid::table(id as u32, &topology, vcpu.vlapic.x2apic());
            vcpu.engine().set_cpuid(&table);
        }
    }

    /// A PAUSE in a loop: time may pass in longer and longer steps, until the guest does something else.
    fn relax(&self, st: &mut State<'_>, id: usize) {
        let vcpu = st.vcpu(id);
        let executed = vcpu.engine().instructions().unwrap_or(0);
        let spinning = executed - vcpu.pause_instructions <= SPIN_LOOP_INSTRUCTIONS;
        vcpu.pause_instructions = executed;
        vcpu.pause_streak = if spinning { vcpu.pause_streak.saturating_add(1) } else { 0 };
        let streak = vcpu.pause_streak;
        MutexGuard::unlocked(st, || self.host.relax(streak));
    }

    // -- time -------------------------------------------------------------------------------------------------------

    /// Fires the timers that are due: the vCPU's own, and those of the board.
    fn advance_timers(&self, st: &mut State<'_>, id: usize) {
        let now = self.host.now();
        st.vcpu(id).vlapic.advance(now);
        st.board.advance(now);
        self.deliver_signals(st);
    }

    // -- exits that vm_run handles ----------------------------------------------------------------------------------

    /// `vm_handle_suspend`: waits until every active vCPU is suspended, then lets all go to userspace.
    fn handle_suspend(&self, st: &mut State<'_>, id: usize) -> Next {
        st.suspended.insert(id);
        while st.suspended != st.active {
            if st.rendezvous.is_some() {
                self.handle_rendezvous(st, id);
            } else {
                self.sleep(st, id, self.vcpu_channel(id), Some(ONE_SECOND));
            }
        }
        for other in st.suspended.iter() {
            self.notify(st, other);
        }
        Next::Userspace(VmExit::new(exitcode::SUSPENDED, &ExitSuspended { how: st.suspend }))
    }

    /// FROZEN → SLEEPING → FROZEN around a wait.
    pub(super) fn sleep(&self, st: &mut State<'_>, id: usize, channel: WaitChannel, timeout: Option<u64>) {
        self.change_state(st, id, VcpuState::Sleeping);
        MutexGuard::unlocked(st, || self.host.wait(channel, timeout));
        self.change_state(st, id, VcpuState::Frozen);
    }

    /// `vm_handle_hlt`: sleeps until something is there for the vCPU. All active vCPUs halted with interrupts off is the end
    /// of the VM (VM_SUSPEND_HALT); without HALT_EXIT the kernel would not know of the HLT, so there is no such end.
    fn handle_hlt(&self, st: &mut State<'_>, id: usize) -> Next {
        const RFLAGS_IF: u64 = 1 << 9;
        let rflags = st.vcpu(id).engine().reg(Reg::Rflags);
        let interrupts_enabled = rflags & RFLAGS_IF != 0;
        let detects_halt = st.vcpu(id).caps.has(cap::HALT_EXIT);
        st.vcpu(id).count(Counter::Hlt);
        let mut vm_halted = false;
        loop {
            self.advance_timers(st, id);
            let wanted = self.rendezvous_pending(st, id)
                || st.is_suspended()
                || st.vcpu(id).reqidle
                || st.vcpu(id).has_wakeup(interrupts_enabled)
                || st.debug.contains(id)
                || self.behaviour.startup_store == StartupStore::RunState && !st.vcpu(id).run_state.runs();
            if wanted {
                break;
            }
            if !interrupts_enabled && detects_halt {
                st.halted.insert(id);
                if st.halted == st.active {
                    vm_halted = true;
                    break;
                }
            }
            let timeout = st.next_deadline(id).map(|deadline| deadline.saturating_sub(self.host.now()).max(1));
            self.sleep(st, id, self.vcpu_channel(id), timeout);
            // Waking takes time, so that a timer that fires at every tick cannot hold time up.
            self.host.charge(EXIT_NS);
        }
        st.halted.remove(id);
        if vm_halted {
            // EALREADY: as for a triple fault.
            let _ = self.suspend(st, id, suspend::HALT);
        }
        Next::Guest
    }

    // -- port I/O ---------------------------------------------------------------------------------------------------

    /// `vm_handle_inout`: a port of the board, or userspace's. A device that refuses makes VM_RUN fail with EIO.
    fn handle_inout(&self, st: &mut State<'_>, id: usize, exit: Exit) -> Result<Next, Errno> {
        let now = self.host.now();
        st.vcpu(id).count(Counter::Inout);
        match exit {
            Exit::IoIn { port, size } => {
                let Some(value) = st.board.read_port(port, size, now) else {
                    st.vcpu(id).leave_in_flight(&exit);
                    let inout = ExitInout::new(size, true, port, 0);
                    return Ok(Next::Userspace(VmExit::new(exitcode::INOUT, &inout)));
                };
                st.vcpu(id).engine().complete(Completion::Value(u64::from(value.map_err(|_| Errno::EIO)?)));
            }
            Exit::IoOut { port, size, data } => {
                st.vcpu(id).engine().complete(Completion::Done);
                let Some(done) = st.board.write_port(port, size, data, now) else {
                    let inout = ExitInout::new(size, false, port, data);
                    return Ok(Next::Userspace(VmExit::new(exitcode::INOUT, &inout)));
                };
                done.map_err(|_| Errno::EIO)?;
            }
            other => unreachable!("{other:?} is no port access"),
        }
        self.deliver_signals(st);
        Ok(Next::Guest)
    }

    // -- memory-mapped devices --------------------------------------------------------------------------------------

    /// `vm_handle_inst_emul` for a read: the local APIC, the board, or userspace. The local APIC is read in any size, but
    /// on 16-byte boundaries (`lapic_mmio_read`).
    fn handle_mmio_read(&self, st: &mut State<'_>, id: usize, gpa: u64, size: u8) -> Result<Next, Errno> {
        st.vcpu(id).count(Counter::Mmio);
        let now = self.host.now();
        let value = if let Some(offset) = lapic_offset(gpa) {
            let offset = offset & !3;
            if offset & 0xf != 0 {
                return Err(Errno::EINVAL);
            }
            u64::from(st.vcpu(id).vlapic.mmio_read(offset, now))
        } else if let Some(value) = st.board.read_mmio(gpa, size, now) {
            value
        } else {
            return Ok(Next::Userspace(self.foreign_mmio(
                st,
                id,
                VmMmio { bytes: size, read: 1, gpa, ..VmMmio::default() },
            )));
        };
        st.vcpu(id).engine().complete(Completion::Value(value));
        Ok(Next::Guest)
    }

    /// `vm_handle_inst_emul` for a write. The local APIC is written in four bytes on 16-byte boundaries
    /// (`lapic_mmio_write`). The ICR handler's error, "goes to userland", makes VM_RUN fail with EPERM, which is
    /// the number 1 that the handler returned.
    fn handle_mmio_write(
        &self,
        st: &mut State<'_>,
        ctx: RunContext,
        gpa: u64,
        size: u8,
        data: u64,
    ) -> Result<Next, Errno> {
        let id = ctx.vcpu;
        st.vcpu(id).count(Counter::Mmio);
        let now = self.host.now();
        let Some(offset) = lapic_offset(gpa) else {
            let Some(routing_changed) = st.board.write_mmio(gpa, size, data, now) else {
                let mmio = VmMmio { bytes: size, gpa, data, ..VmMmio::default() };
                return Ok(Next::Userspace(self.foreign_mmio(st, id, mmio)));
            };
            st.vcpu(id).engine().complete(Completion::Done);
            if routing_changed && self.behaviour.routing_rendezvous {
                let everybody = st.active;
                self.smp_rendezvous(st, id, everybody, RendezvousFunction::UpdateTmr);
            }
            self.deliver_signals(st);
            return Ok(Next::Guest);
        };
        if size != 4 || offset & 0xf != 0 {
            return Err(Errno::EINVAL);
        }
        st.vcpu(id).engine().complete(Completion::Done);
        let effect = st.vcpu(id).vlapic.mmio_write(offset, data as u32, now);
        match self.lapic_effect(st, ctx, effect, false) {
            IcrResult::Handled => Ok(Next::Guest),
            IcrResult::Unhandled => Err(Errno::EPERM),
            IcrResult::Exit(exit) => Ok(Next::Userspace(exit)),
            IcrResult::Ipi(ipi) => Ok(self.handle_ipi(st, ctx, ipi).map_or(Next::Guest, Next::Userspace)),
        }
    }

    /// What a write to the local APIC asks of others.
    fn lapic_effect(&self, st: &mut State<'_>, ctx: RunContext, effect: Effect, msr: bool) -> IcrResult {
        match effect {
            Effect::None => IcrResult::Handled,
            Effect::Icr(icr) => self.icr_write(st, ctx, icr, msr),
            Effect::Eoi { vector, level } => {
                if level {
                    st.board.end_of_interrupt(vector);
                    self.deliver_signals(st);
                }
                IcrResult::Handled
            }
        }
    }

    /// An access to a device that the kernel does not have. FreeBSD hands the instruction to userspace; illumos has decoded it.
    fn foreign_mmio(&self, st: &mut State<'_>, id: usize, mmio: VmMmio) -> VmExit {
        if self.behaviour.boundary == Boundary::Illumos {
            VmExit::new(illumos::exitcode::MMIO, &mmio)
        } else {
            self.inst_emul(st, id, mmio.gpa)
        }
    }

    /// VM_EXITCODE_INST_EMUL for a device that the kernel does not have.
    fn inst_emul(&self, st: &mut State<'_>, id: usize, gpa: u64) -> VmExit {
        let mut vie = [0; 64];
        let engine = st.vcpu(id).engine();
        let cs = engine.desc(Reg::Cs);
        let rip = engine.reg(Reg::Rip);
        let paging = guest_paging(engine);
        let instruction = engine.translate(cs.base.wrapping_add(rip));
        if let Some(fetch) = instruction {
            const LONGEST_INSTRUCTION: u64 = 15;
            let len = LONGEST_INSTRUCTION.min(PAGE_SIZE - fetch % PAGE_SIZE);
            if let Some((segment, offset)) = st.memory.find(fetch, len)
                && segment.read(offset, &mut vie[..len as usize])
            {
                vie[LONGEST_INSTRUCTION as usize] = len as u8;
            }
        }
        let cs_d = i32::from(cs.access & 1 << 14 != 0);
        let payload = ExitInstEmul { gpa, gla: 0, cs_base: cs.base, cs_d, _pad: 0, paging, vie };
        VmExit::new(exitcode::INST_EMUL, &payload)
    }

    // -- MSRs -------------------------------------------------------------------------------------------------------

    /// `None`: userspace's.
    fn read_msr(&self, st: &mut State<'_>, id: usize, index: u32) -> Option<Completion> {
        if is_lapic_msr(index) {
            let now = self.host.now();
            let value = st.vcpu(id).vlapic.msr_read(index, now);
            return Some(value.map_or(Completion::GeneralProtection, Completion::Value));
        }
        match index {
            // vmx_rdmsr: a processor without machine-check banks. [unverified]
            MSR_MCG_CAP | MSR_MCG_STATUS => Some(Completion::Value(0)),
            MSR_MISC_ENABLE => Some(Completion::Value(MISC_ENABLE)),
            _ => None,
        }
    }

    fn write_msr(&self, st: &mut State<'_>, ctx: RunContext, index: u32, value: u64) -> MsrWrite {
        if !is_lapic_msr(index) {
            return match index {
                MSR_MCG_CAP | MSR_MCG_STATUS => MsrWrite::Done,
                // vmx_wrmsr: Linux clears the execute-disable bit's disable, which is clear; nothing else changes.
                MSR_MISC_ENABLE if (value ^ MISC_ENABLE) & !MISC_ENABLE_XD_DISABLE == 0 => MsrWrite::Done,
                _ => MsrWrite::Userspace,
            };
        }
        let now = self.host.now();
        let Ok(effect) = st.vcpu(ctx.vcpu).vlapic.msr_write(index, value, now) else {
            // vlapic_set_apicbase returns -1, a handler's error. [read]
            return if index == MSR_APIC_BASE { MsrWrite::Userspace } else { MsrWrite::GeneralProtection };
        };
        match self.lapic_effect(st, ctx, effect, true) {
            // Before becd984900 only the handler of MMIO passed the exit on.
            IcrResult::Exit(_) | IcrResult::Ipi(_) if self.behaviour.x2apic_startup == X2apicStartup::Lost => {
                let icr = st.vcpu(ctx.vcpu).vlapic.icr();
                let (mode, vector, why) = (icr.delivery_mode(), icr.vector(), DropReason::ExitLost);
                self.host.emit(Some(ctx.vcpu as u16), Event::IpiDropped { mode, vector, why });
                MsrWrite::Done
            }
            IcrResult::Handled => MsrWrite::Done,
            IcrResult::Unhandled => MsrWrite::Userspace,
            IcrResult::Exit(exit) => MsrWrite::Leave(Left::Userspace(exit)),
            IcrResult::Ipi(ipi) => MsrWrite::Leave(Left::Ipi(ipi)),
        }
    }

    fn msr_exit(&self, st: &mut State<'_>, id: usize, code: u32, exit: &Exit, msr: u32, wval: u64) -> VmExit {
        st.vcpu(id).leave_in_flight(exit);
        VmExit::new(code, &ExitMsr { code: msr, _pad: 0, wval })
    }
}

fn bare_exit(code: u32) -> VmExit {
    VmExit { exitcode: code, ..VmExit::default() }
}

/// An instruction fetch where there is no memory: no instruction can be emulated, so the raw exit goes to userspace.
fn fetch_fault() -> VmExit {
    let payload = ExitVmx {
        exit_reason: EXIT_REASON_EPT_FAULT,
        exit_qualification: EPT_VIOLATION_INST_FETCH,
        ..ExitVmx::default()
    };
    VmExit::new(exitcode::VMX, &payload)
}

/// What becomes of a WRMSR.
enum MsrWrite {
    Done,
    GeneralProtection,
    /// Done, and the run loop ends.
    Leave(Left),
    Userspace,
}

const MSR_MCG_CAP: u32 = 0x179;
const MSR_MCG_STATUS: u32 = 0x17a;
/// IA32_MISC_ENABLE.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// What the guest reads there (`vmx_msr_init`): fast strings; no branch trace storage, no precise event sampling.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;
const MISC_ENABLE_XD_DISABLE: u64 = 1 << 34;

fn is_lapic_msr(index: u32) -> bool {
    index == MSR_APIC_BASE || (0x800..=0x8ff).contains(&index)
}

fn lapic_offset(gpa: u64) -> Option<u16> {
    (gpa & !(PAGE_SIZE - 1) == DEFAULT_APIC_BASE).then_some((gpa % PAGE_SIZE) as u16)
}

/// `vm_copy_guest_paging`: the guest's mode as VM_EXITCODE_INST_EMUL reports it.
fn guest_paging(engine: &mut dyn crate::engine::EngineVcpu) -> VmGuestPaging {
    let cr0 = engine.reg(Reg::Cr0);
    let cr4 = engine.reg(Reg::Cr4);
    let long_mode = engine.reg(Reg::Efer) & 1 << 10 != 0;
    let protected = cr0 & 1 != 0;
    let code_64 = engine.desc(Reg::Cs).access & 1 << 13 != 0;
    let cpu_mode = match (protected, long_mode, code_64) {
        (false, ..) => 0,
        (true, false, _) => 1,
        (true, true, false) => 2,
        (true, true, true) => 3,
    };
    let paging_mode = match (cr0 >> 31 & 1 != 0, long_mode, cr4 & 1 << 5 != 0) {
        (false, ..) => 0,
        (true, false, false) => 1,
        (true, false, true) => 2,
        (true, true, _) => 3,
    };
    let cpl = (engine.desc(Reg::Ss).access >> 5 & 3) as i32;
    VmGuestPaging { cr3: engine.reg(Reg::Cr3), cpl, cpu_mode, paging_mode, _pad: 0 }
}
