//! One virtual machine: its vCPUs, the sets that say what they may do, and who waits for whom.

use super::board::Board;
use super::memory::Memory;
use super::rendezvous::Rendezvous;
use super::run::Parked;
use super::vcpu::{Vcpu, VcpuState};
use crate::abi::{Errno, VmCpuTopology, suspend};
use crate::cpuset::CpuSet;
use crate::engine::{EngineError, EngineVm, Kick};
use crate::history::{Activation, Behaviour, Boundary, BuildOptions, KernelVersion, LockAll, VcpuAllocation};
use crate::host::{End, Host, WaitChannel};
use crate::trace::Event;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

/// How long a sleeping thread waits before it looks again (`hz` ticks), in nanoseconds.
pub(super) const ONE_SECOND: u64 = 1_000_000_000;

/// A virtual machine.
pub(super) struct Vm {
    pub(super) host: Host,
    pub(super) behaviour: Behaviour,
    pub(super) options: BuildOptions,
    pub(super) max_cpus: usize,
    pub(super) engine: Arc<dyn EngineVm>,
    /// Distinguishes the wait channels of several VMs on one host.
    number: u64,
    state: Mutex<VmState>,
    /// The kicks of all vCPUs, for the end of the cell.
    kicks: Arc<Mutex<Vec<Arc<dyn Kick>>>>,
}

/// What changes while the VM lives.
pub(super) struct VmState {
    pub(super) vcpus: Vec<Option<Box<Vcpu>>>,
    pub(super) active: CpuSet,
    pub(super) suspended: CpuSet,
    pub(super) debug: CpuSet,
    pub(super) halted: CpuSet,
    /// `startup_cpus`: who waits for a STARTUP, from c0f35dbf19c3 on.
    pub(super) startup: CpuSet,
    /// `enum vm_suspend_how`.
    pub(super) suspend: i32,
    /// When it was set, in nanoseconds.
    pub(super) suspended_at: u64,
    /// How many threads are inside an ioctl of the device, and whether it is being destroyed.
    pub(super) in_ioctl: u32,
    pub(super) destroyed: bool,
    pub(super) rendezvous: Option<Rendezvous>,
    pub(super) topology: VmCpuTopology,
    pub(super) memory: Memory,
    pub(super) board: Board,
    /// While an ioctl is handled: what it changed, to be recorded behind the ioctl itself.
    deferred: Option<Vec<(usize, Event)>>,
}

/// The VM's state, locked. No task of the cell may be switched while it is held: waits go through [`Vm::wait`].
pub(super) type State<'a> = MutexGuard<'a, VmState>;

impl Vm {
    pub(super) fn new(host: &Host, version: &KernelVersion, engine: Arc<dyn EngineVm>, number: u64) -> Arc<Vm> {
        let behaviour = version.behaviour();
        let max_cpus = usize::from(version.max_vcpus());
        let kicks: Arc<Mutex<Vec<Arc<dyn Kick>>>> = Arc::default();
        let at_the_end = Arc::clone(&kicks);
        host.on_end(move || at_the_end.lock().iter().for_each(|kick| kick.kick()));
        let vm = Vm {
            host: host.clone(),
            behaviour,
            options: version.options,
            max_cpus,
            engine,
            number,
            state: Mutex::new(VmState::new(max_cpus, Memory::new(behaviour.memseg))),
            kicks,
        };
        vm.init_vcpus(&mut vm.lock());
        Arc::new(vm)
    }

    pub(super) fn lock(&self) -> State<'_> {
        self.state.lock()
    }

    /// How many instructions the vCPUs have executed, if the engine counts them.
    pub(super) fn instructions(&self) -> Option<u64> {
        let st = self.lock();
        st.vcpus.iter().flatten().filter_map(|vcpu| Some(vcpu.engine.as_ref()?.instructions())).sum()
    }

    /// What the vCPUs did while they were suspended; only those that were.
    pub(super) fn parked(&self) -> Vec<(usize, Parked)> {
        let st = self.lock();
        st.vcpus.iter().flatten().filter(|vcpu| vcpu.parked.exits > 0).map(|vcpu| (vcpu.id, vcpu.parked)).collect()
    }

    /// `vm_init`: the vCPUs that exist from the start.
    fn init_vcpus(&self, st: &mut State<'_>) {
        if self.behaviour.vcpu_allocation == VcpuAllocation::WithVm {
            for id in 0..self.max_cpus {
                self.alloc_vcpu(st, id);
            }
        }
        self.activate_bsp(st);
    }

    /// `vm_create` of 10.0 activates vCPU 0, since nobody else can. \[inferred]
    fn activate_bsp(&self, st: &mut State<'_>) {
        if self.behaviour.activation == Activation::ByKernel {
            self.alloc_vcpu(st, 0);
            self.activate(st, 0).expect("nothing is active in a new VM");
        }
    }

    /// VM_REINIT: back to the state after creation; RAM, the clock with its memory, and the topology are kept, and what devices have
    /// mapped is mapped no longer (`vm_cleanup` and `vm_init`, their second argument false). illumos does not ask that the VM be
    /// suspended before. \[read]
    pub(super) fn reinit(&self, st: &mut State<'_>) -> Result<(), Errno> {
        if st.suspended != st.active && self.behaviour.boundary == Boundary::FreeBsd {
            return Err(Errno::EBUSY);
        }
        let mut memory = std::mem::replace(&mut st.memory, Memory::new(self.behaviour.memseg));
        memory.unmap_devices(&*self.engine).unwrap_or_else(|error| self.engine_failed(&error));
        let mut fresh = VmState::new(self.max_cpus, memory);
        fresh.board = std::mem::replace(&mut st.board, Board::new()).reinit(self.host.now());
        fresh.topology = st.topology;
        fresh.deferred = st.deferred.take();
        let vcpus = std::mem::take(&mut st.vcpus).into_iter();
        fresh.vcpus = vcpus.map(|vcpu| vcpu.map(|vcpu| Box::new(vcpu.reinit()))).collect();
        fresh.in_ioctl = st.in_ioctl;
        **st = fresh;
        self.activate_bsp(st);
        Ok(())
    }

    pub(super) fn alloc_vcpu(&self, st: &mut State<'_>, id: usize) {
        if st.vcpus[id].is_none() {
            st.vcpus[id] = Some(Box::new(Vcpu::new(id)));
            self.note(st, id, Event::VcpuAllocated);
        }
    }

    /// `vm_alloc_vcpu` for a number from userspace: EINVAL when there can be no such vCPU.
    pub(super) fn vcpu_id(&self, st: &mut State<'_>, vcpuid: i32) -> Result<usize, Errno> {
        let id = usize::try_from(vcpuid).ok().filter(|&id| id < self.max_cpus).ok_or(Errno::EINVAL)?;
        // vm_disable_vcpu_creation
        if st.destroyed && st.allocated(id).is_none() {
            return Err(Errno::EINVAL);
        }
        self.alloc_vcpu(st, id);
        Ok(id)
    }

    /// Makes sure that the engine's vCPU exists.
    pub(super) fn ensure_engine(&self, st: &mut State<'_>, id: usize) {
        if st.vcpu(id).kick.is_some() {
            return;
        }
        let engine = self.engine.create_vcpu(id as u32).unwrap_or_else(|error| self.engine_failed(&error));
        let kick = engine.kick_handle();
        self.kicks.lock().push(Arc::clone(&kick));
        let vcpu = st.vcpu(id);
        vcpu.engine = Some(engine);
        vcpu.kick = Some(kick);
    }

    /// Ends the cell: the engine failed on the host's side.
    pub(super) fn engine_failed(&self, error: &EngineError) -> ! {
        let source = error.source.as_ref().map_or(String::new(), |source| format!(": {source}"));
        self.host.end(End::HarnessError(format!("{error}{source}")))
    }

    /// Records an event of a vCPU now, or behind the ioctl that is being handled.
    pub(super) fn note(&self, st: &mut State<'_>, id: usize, event: Event) {
        match &mut st.deferred {
            Some(deferred) => deferred.push((id, event)),
            None => self.record(st, id, event),
        }
    }

    fn record(&self, st: &mut State<'_>, id: usize, event: Event) {
        let starts = matches!(event, Event::VcpuActivated | Event::VcpuResumed);
        let seq = self.host.emit(Some(id as u16), event);
        if starts {
            st.vcpu(id).start_cause = Some(seq);
        }
    }

    /// Holds back what happens until [`Vm::release_notes`].
    pub(super) fn hold_notes(&self, st: &mut State<'_>) {
        st.deferred = Some(Vec::new());
    }

    /// Records what was held back.
    pub(super) fn release_notes(&self, st: &mut State<'_>) {
        for (id, event) in st.deferred.take().into_iter().flatten() {
            self.record(st, id, event);
        }
    }

    /// The modelled host kernel panics: the cell ends.
    pub(super) fn panic(&self, message: String) -> ! {
        self.host.end(End::Panic(message))
    }

    // -- waiting ----------------------------------------------------------------------------------------------------

    /// What the thread of a vCPU sleeps on in the kernel.
    pub(super) fn vcpu_channel(&self, id: usize) -> WaitChannel {
        WaitChannel(self.number << 32 | id as u64)
    }

    /// What waits for the end of a rendezvous (`&vm->rendezvous_func`).
    pub(super) fn rendezvous_channel(&self) -> WaitChannel {
        WaitChannel(self.number << 32 | 1 << 20)
    }

    /// What a locker of all vCPUs waits on: one of them becomes idle, or begins a rendezvous.
    pub(super) fn lock_all_channel(&self) -> WaitChannel {
        WaitChannel(self.number << 32 | 1 << 23)
    }

    /// What waits for the last thread to leave the device (`destroy_dev`).
    pub(super) fn device_channel(&self) -> WaitChannel {
        WaitChannel(self.number << 32 | 1 << 22)
    }

    /// What waits for a vCPU to become idle (`&vcpu->state`).
    fn idle_channel(&self, id: usize) -> WaitChannel {
        WaitChannel(self.number << 32 | 1 << 21 | id as u64)
    }

    /// Waits with the state unlocked. What others do meanwhile is recorded as they do it, whatever is held back here.
    pub(super) fn wait(&self, st: &mut State<'_>, channel: WaitChannel, timeout: u64) {
        let held = st.deferred.take();
        MutexGuard::unlocked(st, || self.host.wait(channel, Some(timeout)));
        st.deferred = held;
    }

    /// `vcpu_set_state` with `from_idle`: waits until the vCPU is idle, and asks the thread that runs it to come out.
    pub(super) fn await_idle(&self, st: &mut State<'_>, id: usize) {
        while st.vcpu(id).state != VcpuState::Idle {
            st.vcpu(id).reqidle = true;
            self.notify(st, id);
            self.wait(st, self.idle_channel(id), ONE_SECOND);
        }
    }

    /// `vcpu_lock_all`: waits for each vCPU to be idle and keeps it FROZEN, for whoever changes the whole VM. Returns those
    /// that are to [become idle](Vm::become_idle) again.
    ///
    /// A vCPU that has begun a rendezvous does not become idle before all its participants have run the function, and one that is
    /// locked, or whose thread is the one that locks, does not: the two wait for each other for ever. From f39768e52e51 on the
    /// locker runs the function for those that it has locked, and locks whoever is idle first (D52968). \[commit]
    ///
    /// From 98568a005a19 on an error was returned that had no value where no vCPU was allocated, and the way back from an error
    /// counted an unsigned index down to less than 0. Both together: the thread never returns, if the value on the stack was not
    /// 0. It is taken not to be. \[read, the value inferred]
    pub(super) fn lock_all(&self, st: &mut State<'_>) -> CpuSet {
        let allocated: CpuSet = (0..self.max_cpus).filter(|&id| st.allocated(id).is_some()).collect();
        if allocated.is_empty() && !self.behaviour.lock_all_error_set {
            loop {
                MutexGuard::unlocked(st, || self.host.sleep(ONE_SECOND));
            }
        }
        let mut locked = CpuSet::EMPTY;
        match self.behaviour.lock_all {
            LockAll::OneByOne => {
                for id in allocated.iter() {
                    self.await_idle(st, id);
                    self.change_state(st, id, VcpuState::Frozen);
                    locked.insert(id);
                }
            }
            LockAll::ServesRendezvous => {
                while locked != allocated {
                    for id in (allocated - locked).iter() {
                        if st.vcpu(id).state == VcpuState::Idle {
                            self.change_state(st, id, VcpuState::Frozen);
                            locked.insert(id);
                        }
                    }
                    self.serve_rendezvous(st, locked);
                    if locked != allocated {
                        for id in (allocated - locked).iter() {
                            st.vcpu(id).reqidle = true;
                            self.notify(st, id);
                        }
                        self.wait(st, self.lock_all_channel(), ONE_SECOND);
                    }
                }
            }
        }
        locked
    }

    /// Whoever holds the vCPU lets go of it: FROZEN → IDLE, and those who waited for that may go on.
    pub(super) fn become_idle(&self, st: &mut State<'_>, id: usize) {
        self.change_state(st, id, VcpuState::Idle);
        let vcpu = st.vcpu(id);
        vcpu.gives_way |= std::mem::take(&mut vcpu.reqidle);
        self.host.wake(self.idle_channel(id));
        self.host.wake(self.lock_all_channel());
    }

    /// `vcpu_require_state`.
    pub(super) fn change_state(&self, st: &mut State<'_>, id: usize, new: VcpuState) {
        let old = st.vcpu(id).state;
        if st.vcpu(id).state.change(new).is_err() {
            self.panic(format!("Error EBUSY setting state of vcpu {id} from {old:?} to {new:?}"));
        }
    }

    /// `vcpu_notify_event` on a vCPU that exists: a running guest is left, a sleeping thread looks again.
    pub(super) fn notify(&self, st: &mut State<'_>, id: usize) {
        let vcpu = st.vcpu(id);
        if vcpu.state == VcpuState::Running
            && let Some(kick) = &vcpu.kick
        {
            kick.kick();
        }
        self.host.wake(self.vcpu_channel(id));
    }

    /// `vmmdev_lookup_and_destroy`: no ioctl begins any more, and those that are under way end before the VM does. From 15 on the VM is
    /// suspended for it; before, a thread that sleeps in a HLT is waited for until something else wakes it. \[commit]
    pub(super) fn destroy(&self) {
        let mut st = self.lock();
        st.destroyed = true;
        if self.behaviour.destroy_suspends {
            // EALREADY: suspended for another reason, which wakes everybody as well.
            let _ = self.suspend(&mut st, 0, suspend::DESTROY);
        }
        while st.in_ioctl > 0 {
            self.wait(&mut st, self.device_channel(), ONE_SECOND);
        }
    }

    // -- the sets ---------------------------------------------------------------------------------------------------

    /// `vm_activate_cpu`.
    pub(super) fn activate(&self, st: &mut State<'_>, id: usize) -> Result<(), Errno> {
        if !st.active.insert(id) {
            return Err(Errno::EBUSY);
        }
        st.vcpu(id).fresh = true;
        self.note(st, id, Event::VcpuActivated);
        Ok(())
    }

    /// VM_SUSPEND_CPU: one vCPU, or all active ones (−1).
    pub(super) fn suspend_cpu(&self, st: &mut State<'_>, vcpuid: i32) -> Result<(), Errno> {
        let chosen = if vcpuid == -1 {
            st.debug = st.active;
            st.active
        } else {
            let id = self.vcpu_id(st, vcpuid)?;
            if !st.active.contains(id) {
                return Err(Errno::EINVAL);
            }
            st.debug.insert(id);
            CpuSet::single(id)
        };
        for id in chosen.iter() {
            self.note(st, id, Event::VcpuSuspended);
            self.notify(st, id);
        }
        Ok(())
    }

    /// VM_RESUME_CPU: one vCPU, or all (−1).
    pub(super) fn resume_cpu(&self, st: &mut State<'_>, vcpuid: i32) -> Result<(), Errno> {
        let chosen = if vcpuid == -1 {
            st.debug
        } else {
            let id = self.vcpu_id(st, vcpuid)?;
            if !st.debug.contains(id) {
                return Err(Errno::EINVAL);
            }
            CpuSet::single(id)
        };
        st.debug -= chosen;
        for id in chosen.iter() {
            self.note(st, id, Event::VcpuResumed);
            // Only a thread that is paced in its loop of DEBUG exits waits here.
            self.host.wake(self.vcpu_channel(id));
        }
        Ok(())
    }

    /// `vm_suspend`.
    pub(super) fn suspend(&self, st: &mut State<'_>, by: usize, how: i32) -> Result<(), Errno> {
        let last = if self.behaviour.destroy_suspends { suspend::LAST_WITH_DESTROY } else { suspend::LAST };
        if how <= suspend::NONE || how >= last {
            return Err(Errno::EINVAL);
        }
        if st.suspend != suspend::NONE {
            return Err(Errno::EALREADY);
        }
        st.suspend = how;
        st.suspended_at = self.host.now();
        self.note(st, by, Event::VmSuspended { how: suspend::name(how).to_owned() });
        for id in st.active.iter() {
            self.notify(st, id);
        }
        Ok(())
    }
}

impl VmState {
    fn new(max_cpus: usize, memory: Memory) -> VmState {
        VmState {
            vcpus: (0..max_cpus).map(|_| None).collect(),
            active: CpuSet::EMPTY,
            suspended: CpuSet::EMPTY,
            debug: CpuSet::EMPTY,
            halted: CpuSet::EMPTY,
            startup: CpuSet::EMPTY,
            suspend: suspend::NONE,
            suspended_at: 0,
            in_ioctl: 0,
            destroyed: false,
            rendezvous: None,
            topology: VmCpuTopology { sockets: 1, cores: 1, threads: 1, maxcpus: max_cpus as u16 },
            memory,
            board: Board::new(),
            deferred: None,
        }
    }

    /// A vCPU that is known to be allocated.
    pub(super) fn vcpu(&mut self, id: usize) -> &mut Vcpu {
        self.vcpus[id].as_mut().expect("looked up by vcpu_id, or a member of the active set")
    }

    /// `vm_vcpu`: a vCPU, if it is allocated.
    pub(super) fn allocated(&self, id: usize) -> Option<&Vcpu> {
        self.vcpus.get(id)?.as_deref()
    }

    /// When the next timer is due, the vCPU's own or one of the board, in nanoseconds.
    pub(super) fn next_deadline(&mut self, id: usize) -> Option<u64> {
        [self.vcpu(id).vlapic.next_deadline(), self.board.next_deadline()].into_iter().flatten().min()
    }

    /// Whether the VM is suspended and the vCPU must not go on.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspend != suspend::NONE
    }

    /// The CPUID tables of all vCPUs are to be made again.
    pub(super) fn stale_cpuid(&mut self) {
        for vcpu in self.vcpus.iter_mut().flatten() {
            vcpu.cpuid_stale = true;
        }
    }
}
