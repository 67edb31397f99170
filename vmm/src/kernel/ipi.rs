//! What a write to the ICR does: `vlapic_icrlo_write_handler`, `vm_handle_ipi`, and the start-up state behind them, as
//! the behaviour of the kernel at hand says.
//!
//! The rules of each kernel, with their evidence, stand with the changes in [`crate::history::changes`] and with the
//! functions below.

use super::rendezvous::RendezvousFunction;
use super::run::RunContext;
use super::vcpu::BootState;
use super::vm::{State, Vm};
use crate::abi::{ExitSpinupAp, VmExit, exitcode};
use crate::cpuset::CpuSet;
use crate::device::vlapic::{Destination, Icr, calcdest};
use crate::history::{Activation, ExitMask, InitRendezvous, SpinupVcpu, StartupDestination, StartupEffects};
use crate::trace::{DeliveryMode, DestinationRule, DropReason, Event, Shorthand, StartupStore};

/// What the ICR handler returns to the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IcrResult {
    /// The guest goes on.
    Handled,
    /// The handler returned 1, "goes to userland": an error.
    Unhandled,
    /// The run loop ends with this exit; userspace sees it.
    Exit(VmExit),
    /// The run loop ends with VM_EXITCODE_IPI, which `vm_handle_ipi` looks at first.
    Ipi(Ipi),
}

/// The payload of VM_EXITCODE_IPI on its way to `vm_handle_ipi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ipi {
    pub(super) mode: DeliveryMode,
    pub(super) vector: u8,
    pub(super) mask: CpuSet,
}

impl Ipi {
    /// The exit as userspace gets it: the mode is that of the ICR, unshifted.
    fn exit(self) -> VmExit {
        let mode = Icr::new().with_delivery_mode(self.mode).low();
        VmExit::new(exitcode::IPI, &crate::abi::ExitIpi::new(mode, self.vector, self.mask))
    }
}

/// The page that a STARTUP's vector names (SDM 3A 11.6.1: 000VV000H).
fn startup_rip(vector: u8) -> u64 {
    u64::from(vector) << 12
}

fn spinup_ap(vcpu: usize, vector: u8) -> VmExit {
    VmExit::new(exitcode::SPINUP_AP, &ExitSpinupAp { vcpu: vcpu as i32, _pad: 0, rip: startup_rip(vector) })
}

impl Vm {
    /// SPINUP_AP for a vCPU that was started. Until VM_ACTIVATE_CPU the kernel has activated it by then (10.0, \[read]).
    fn spin_up(&self, st: &mut State<'_>, started: usize, named: usize, vector: u8) -> VmExit {
        if self.behaviour.activation == Activation::ByKernel && !st.active.contains(started) {
            self.alloc_vcpu(st, started);
            self.activate(st, started).expect("it is not active");
        }
        spinup_ap(named, vector)
    }

    /// The exit of an IPI, whose mask stands in `vm_exitinfo_cpuset` as well from e17eca327633 on.
    fn ipi_exit(&self, st: &mut State<'_>, ctx: RunContext, ipi: Ipi) -> VmExit {
        st.vcpu(ctx.vcpu).exit_cpuset = ipi.mask;
        ipi.exit()
    }

    /// Handles a write to the ICR by vCPU `ctx.vcpu`. `msr` says that it came as WRMSR.
    pub(super) fn icr_write(&self, st: &mut State<'_>, ctx: RunContext, icr: Icr, msr: bool) -> IcrResult {
        let sender = ctx.vcpu;
        let x2apic = st.vcpu(sender).vlapic.x2apic();
        let seq = self.host.emit(
            Some(sender as u16),
            Event::IcrWrite {
                icr: icr.into_bits(),
                mode: icr.delivery_mode(),
                vector: icr.vector(),
                dest: icr.dest(x2apic),
                shorthand: icr.shorthand(),
                logical: icr.logical(),
                assert: icr.assert(),
                msr,
            },
        );
        self.host.set_cause(Some(seq));
        let ipi = IcrCommand { icr, sender, x2apic };
        let result = match icr.delivery_mode() {
            // Modes that the filter of c0f35dbf19c3 refuses.
            DeliveryMode::Init if icr.level_triggered() && !icr.assert() => {
                self.drop_ipi(ipi, DropReason::InitDeassert)
            }
            _ if !self.is_valid(icr) => self.drop_ipi(ipi, DropReason::InvalidCombination),
            DeliveryMode::Fixed | DeliveryMode::Nmi => self.send_interrupt(st, ipi),
            DeliveryMode::Init | DeliveryMode::Startup => self.send_startup(st, ctx, ipi),
            _ => IcrResult::Unhandled,
        };
        if result == IcrResult::Unhandled {
            let seq = self.host.emit(Some(sender as u16), Event::IcrUnhandled { mode: icr.delivery_mode() });
            self.host.set_cause(Some(seq));
        }
        result
    }

    /// The validity filter that c0f35dbf19c3 brought: which combinations of mode, trigger and shorthand are looked at. \[read]
    fn is_valid(&self, icr: Icr) -> bool {
        if self.behaviour.startup_store != StartupStore::StartupCpus {
            return true;
        }
        let edge_or_assert = !icr.level_triggered() || icr.assert();
        let to_others = matches!(icr.shorthand(), Shorthand::None | Shorthand::AllExcludingSelf);
        match icr.delivery_mode() {
            DeliveryMode::Fixed => edge_or_assert,
            DeliveryMode::LowestPriority | DeliveryMode::Smi | DeliveryMode::Nmi | DeliveryMode::Init => {
                to_others && edge_or_assert
            }
            DeliveryMode::Startup => to_others,
            DeliveryMode::RemoteRead => !icr.level_triggered() && icr.shorthand() == Shorthand::None,
            DeliveryMode::ExtInt => false,
        }
    }

    pub(super) fn drop_ipi(&self, ipi: IcrCommand, why: DropReason) -> IcrResult {
        let event = Event::IpiDropped { mode: ipi.icr.delivery_mode(), vector: ipi.icr.vector(), why };
        self.host.emit(Some(ipi.sender as u16), event);
        IcrResult::Handled
    }

    pub(super) fn resolved(&self, ipi: IcrCommand, rule: DestinationRule, among: CpuSet, targets: CpuSet) {
        let event = Event::DestinationResolved { mode: ipi.icr.delivery_mode(), rule, among, targets };
        let seq = self.host.emit(Some(ipi.sender as u16), event);
        self.host.set_cause(Some(seq));
    }

    /// `vlapic_calcdest`.
    pub(super) fn calcdest(&self, st: &State<'_>, destination: Destination, lowest_priority: bool) -> CpuSet {
        calcdest(destination, lowest_priority, st.active, self.max_cpus, |id| {
            st.allocated(id).map(|vcpu| vcpu.vlapic.logical_id())
        })
    }

    /// `dmask`: the destination by shorthand or by `vlapic_calcdest`, both among the active vCPUs.
    pub(super) fn dmask(&self, st: &State<'_>, ipi: IcrCommand) -> (DestinationRule, CpuSet) {
        let own = CpuSet::single(ipi.sender);
        match ipi.icr.shorthand() {
            Shorthand::None => {
                (DestinationRule::CalcdestActive, self.calcdest(st, ipi.icr.destination(ipi.x2apic), false))
            }
            Shorthand::Itself => (DestinationRule::ShorthandActive, own),
            Shorthand::AllIncludingSelf => (DestinationRule::ShorthandActive, st.active),
            Shorthand::AllExcludingSelf => (DestinationRule::ShorthandActive, st.active - own),
        }
    }

    /// FIXED and NMI: delivered in the kernel.
    fn send_interrupt(&self, st: &mut State<'_>, ipi: IcrCommand) -> IcrResult {
        let (mode, vector) = (ipi.icr.delivery_mode(), ipi.icr.vector());
        if mode == DeliveryMode::Fixed && vector < 16 {
            st.vcpu(ipi.sender).vlapic.send_illegal_vector();
            return self.drop_ipi(ipi, DropReason::IllegalVector);
        }
        let (rule, targets) = self.dmask(st, ipi);
        self.resolved(ipi, rule, st.active, targets);
        if targets.is_empty() {
            return self.drop_ipi(ipi, DropReason::NoDestination);
        }
        let mut taken = false;
        for id in targets.iter() {
            let vcpu = st.vcpu(id);
            if mode == DeliveryMode::Nmi {
                vcpu.nmi_pending = true;
            } else if !vcpu.vlapic.accept(vector, false) {
                continue;
            }
            taken = true;
            self.notify(st, id);
        }
        if !taken {
            return self.drop_ipi(ipi, DropReason::SoftwareDisabled);
        }
        self.host.emit(Some(ipi.sender as u16), Event::IpiDelivered { mode, vector, targets });
        IcrResult::Handled
    }

    /// INIT and STARTUP.
    fn send_startup(&self, st: &mut State<'_>, ctx: RunContext, ipi: IcrCommand) -> IcrResult {
        match (self.behaviour.destination, self.behaviour.startup_store) {
            (_, StartupStore::RunState) => self.startup_by_run_state(st, ipi),
            (StartupDestination::RawFromBsp, _) => self.startup_from_bsp(st, ipi),
            (_, StartupStore::BootState) => self.startup_by_boot_state(st, ipi),
            (_, StartupStore::StartupCpus) => self.startup_by_startup_cpus(st, ctx, ipi),
        }
    }

    // -- fbsd-13.1 (12.x, 13.0, 13.1) \[read] ------------------------------------------------------------------------

    /// The destination field is used as it is, when the BSP sends it to an AP: neither the active set nor the shorthand
    /// nor the destination mode is looked at. Anything else is an error.
    fn startup_from_bsp(&self, st: &mut State<'_>, ipi: IcrCommand) -> IcrResult {
        let init = ipi.icr.delivery_mode() == DeliveryMode::Init;
        if init && !ipi.icr.assert() {
            return self.drop_ipi(ipi, DropReason::InitDeassert);
        }
        let dest = ipi.dest();
        if ipi.sender != 0 || dest == 0 || dest >= self.max_cpus {
            return IcrResult::Unhandled;
        }
        self.resolved(ipi, DestinationRule::RawDest, CpuSet::single(dest), CpuSet::single(dest));
        if init { self.boot_state_init(st, ipi, dest) } else { self.boot_state_startup(st, ipi, dest) }
    }

    /// boot_state stands in the target's local APIC. No kernel that shipped has both boot_state and vCPUs that are not
    /// allocated; one that had would follow a NULL pointer. \[inferred]
    fn require_local_apic(&self, st: &State<'_>, target: usize) {
        if st.allocated(target).is_none() {
            self.panic(format!(
                "page fault while in kernel mode: vm_lapic(NULL): vcpu {target} is not allocated, \
                 but the ICR handler looks at its boot_state"
            ));
        }
    }

    /// BS_INIT becomes BS_SIPI; any other state stays, so that the INIT of a running AP does nothing.
    fn boot_state_init(&self, st: &mut State<'_>, ipi: IcrCommand, target: usize) -> IcrResult {
        self.require_local_apic(st, target);
        if st.vcpu(target).boot_state != BootState::Init {
            return self.drop_ipi(ipi, DropReason::NotInInitState);
        }
        st.vcpu(target).boot_state = BootState::Sipi;
        self.startup_state(ipi.sender, CpuSet::single(target), true);
        IcrResult::Handled
    }

    /// BS_SIPI becomes BS_RUNNING, and userspace is told to spin up the AP.
    fn boot_state_startup(&self, st: &mut State<'_>, ipi: IcrCommand, target: usize) -> IcrResult {
        self.require_local_apic(st, target);
        if st.vcpu(target).boot_state != BootState::Sipi {
            return self.drop_ipi(ipi, DropReason::NotWaitingForSipi);
        }
        st.vcpu(target).boot_state = BootState::Running;
        self.startup_state(ipi.sender, CpuSet::single(target), false);
        IcrResult::Exit(self.spin_up(st, target, target, ipi.icr.vector()))
    }

    // -- main-0bda8d3e, main-769b884e: boot_state, with IPI_EXIT beside it \[inferred] --------------------------------

    fn startup_by_boot_state(&self, st: &mut State<'_>, ipi: IcrCommand) -> IcrResult {
        let init = ipi.icr.delivery_mode() == DeliveryMode::Init;
        if init && !ipi.icr.assert() {
            return self.drop_ipi(ipi, DropReason::InitDeassert);
        }
        let ipi_exit = st.vcpu(ipi.sender).ipi_exit();
        if !ipi_exit && self.behaviour.destination == StartupDestination::RawUnlessIpiExit {
            let Ok(target) = self.raw_destination(ipi) else {
                return self.drop_ipi(ipi, DropReason::DestinationOutOfRange);
            };
            self.resolved(ipi, DestinationRule::RawDest, CpuSet::single(target), CpuSet::single(target));
            return if init { self.boot_state_init(st, ipi, target) } else { self.boot_state_startup(st, ipi, target) };
        }
        let (rule, targets) = self.dmask(st, ipi);
        self.resolved(ipi, rule, st.active, targets);
        if targets.is_empty() {
            return self.drop_ipi(ipi, DropReason::NoDestination);
        }
        IcrResult::Ipi(ipi.with_mask(targets))
    }

    // -- main-c0f35dbf and later: startup_cpus \[read] ----------------------------------------------------------------

    /// With IPI_EXIT, `ipimask` is `dmask`; without, it is the destination field as it is.
    fn startup_by_startup_cpus(&self, st: &mut State<'_>, ctx: RunContext, ipi: IcrCommand) -> IcrResult {
        let (dmask_rule, dmask) = self.dmask(st, ipi);
        let (rule, ipimask) = if st.vcpu(ipi.sender).ipi_exit() {
            (dmask_rule, dmask)
        } else {
            match self.raw_destination(ipi) {
                Ok(target) => (DestinationRule::RawDest, CpuSet::single(target)),
                Err(why) => return self.drop_ipi(ipi, why),
            }
        };
        let among = |rule, targets| if rule == DestinationRule::RawDest { targets } else { st.active };
        match self.behaviour.startup_effects {
            StartupEffects::InIcrHandler => {
                self.resolved(ipi, rule, among(rule, ipimask), ipimask);
                self.startup_in_icr_handler(st, ctx, ipi, dmask, ipimask)
            }
            StartupEffects::InHandleIpi => {
                // The mask of the exit decides who is reached, whatever the handler had found before.
                let (rule, mask) = match self.behaviour.exit_mask {
                    ExitMask::Dmask => (dmask_rule, dmask),
                    ExitMask::Ipimask => (rule, ipimask),
                };
                self.resolved(ipi, rule, among(rule, mask), mask);
                if mask != ipimask {
                    let mode = ipi.icr.delivery_mode();
                    let event = Event::ExitMask { mode, ipimask, dmask: mask };
                    let seq = self.host.emit(Some(ipi.sender as u16), event);
                    self.host.set_cause(Some(seq));
                }
                if ipimask.is_empty() {
                    return self.drop_ipi(ipi, DropReason::NoDestination);
                }
                IcrResult::Ipi(ipi.with_mask(mask))
            }
        }
    }

    /// The destination of an INIT or STARTUP whose sender has no IPI_EXIT: the destination field, physical, not the sender.
    fn raw_destination(&self, ipi: IcrCommand) -> Result<usize, DropReason> {
        if ipi.icr.logical() {
            return Err(DropReason::LogicalDestination);
        }
        let dest = ipi.dest();
        if dest >= self.max_cpus || dest == ipi.sender {
            return Err(DropReason::DestinationOutOfRange);
        }
        Ok(dest)
    }

    /// Until 7c326ab5bb9a: the side effects in the ICR handler itself, in the critical section if it is a WRMSR.
    fn startup_in_icr_handler(
        &self,
        st: &mut State<'_>,
        ctx: RunContext,
        ipi: IcrCommand,
        dmask: CpuSet,
        ipimask: CpuSet,
    ) -> IcrResult {
        let init = ipi.icr.delivery_mode() == DeliveryMode::Init;
        if st.vcpu(ipi.sender).ipi_exit() {
            let reached = if init { ipimask } else { self.start_cpus(st, ctx, ipimask) };
            if reached.is_empty() {
                return self
                    .drop_ipi(ipi, if init { DropReason::NoDestination } else { DropReason::NotWaitingForSipi });
            }
            // The exit names dmask, those that did not wait for a STARTUP among them.
            return IcrResult::Ipi(ipi.with_mask(dmask));
        }
        if init {
            self.await_start(st, ctx, ipimask);
            return IcrResult::Handled;
        }
        match self.start_cpus(st, ctx, ipimask).iter().next() {
            Some(target) => IcrResult::Exit(self.spin_up(st, target, target, ipi.icr.vector())),
            None => self.drop_ipi(ipi, DropReason::NotWaitingForSipi),
        }
    }

    /// `vm_handle_ipi`, in `vm_run` behind the critical section. `None`: handled, the guest goes on.
    pub(super) fn handle_ipi(&self, st: &mut State<'_>, ctx: RunContext, ipi: Ipi) -> Option<VmExit> {
        let ipi_exit = st.vcpu(ctx.vcpu).ipi_exit();
        if self.behaviour.startup_store == StartupStore::BootState {
            return self.handle_ipi_by_boot_state(st, ctx, ipi, ipi_exit);
        }
        if ipi.mode == DeliveryMode::Init {
            let reset = match self.behaviour.init_rendezvous {
                InitRendezvous::EveryTarget => ipi.mask,
                InitRendezvous::ActiveTargets => ipi.mask & st.active,
            };
            self.smp_rendezvous(st, ctx.vcpu, reset, RendezvousFunction::VlapicReset);
            self.await_start(st, ctx, ipi.mask);
            if ipi.mask.is_empty() {
                self.dropped_in_handle_ipi(ctx, ipi);
            }
            return ipi_exit.then(|| self.ipi_exit(st, ctx, ipi));
        }
        let started = match self.behaviour.startup_effects {
            StartupEffects::InIcrHandler => ipi.mask,
            StartupEffects::InHandleIpi => self.start_cpus(st, ctx, ipi.mask),
        };
        if started.is_empty() {
            self.dropped_in_handle_ipi(ctx, ipi);
            return None;
        }
        if ipi_exit {
            return Some(self.ipi_exit(st, ctx, Ipi { mask: started, ..ipi }));
        }
        let first = started.ffs() - 1;
        let named = match self.behaviour.spinup_vcpu {
            SpinupVcpu::Ffs => started.ffs(),
            SpinupVcpu::FfsMinusOne => first,
        };
        Some(self.spin_up(st, first, named, ipi.vector))
    }

    fn dropped_in_handle_ipi(&self, ctx: RunContext, ipi: Ipi) {
        let why = if ipi.mask.is_empty() { DropReason::NoDestination } else { DropReason::NotWaitingForSipi };
        self.host.emit(Some(ctx.vcpu as u16), Event::IpiDropped { mode: ipi.mode, vector: ipi.vector, why });
    }

    /// Between 0bda8d3e9f7a and c0f35dbf19c3, for targets that are active. \[inferred]
    fn handle_ipi_by_boot_state(
        &self,
        st: &mut State<'_>,
        ctx: RunContext,
        ipi: Ipi,
        ipi_exit: bool,
    ) -> Option<VmExit> {
        if ipi.mode == DeliveryMode::Init {
            self.smp_rendezvous(st, ctx.vcpu, ipi.mask, RendezvousFunction::VlapicResetAwaitSipi);
            self.startup_state(ctx.vcpu, ipi.mask, true);
            return ipi_exit.then(|| self.ipi_exit(st, ctx, ipi));
        }
        let waiting = |id: &usize| st.allocated(*id).is_some_and(|vcpu| vcpu.boot_state == BootState::Sipi);
        let started: CpuSet = ipi.mask.iter().filter(waiting).collect();
        let Some(first) = started.iter().next() else {
            self.dropped_in_handle_ipi(ctx, ipi);
            return None;
        };
        for id in started.iter() {
            st.vcpu(id).boot_state = BootState::Running;
        }
        self.startup_state(ctx.vcpu, started, false);
        Some(if ipi_exit {
            self.ipi_exit(st, ctx, Ipi { mask: started, ..ipi })
        } else {
            self.spin_up(st, first, first, ipi.vector)
        })
    }

    // -- startup_cpus -----------------------------------------------------------------------------------------------

    /// `vm_await_start`: the set waits for a STARTUP from now on, running or not.
    fn await_start(&self, st: &mut State<'_>, ctx: RunContext, waiting: CpuSet) {
        self.lock_rendezvous_mtx(ctx);
        st.startup |= waiting;
        if !waiting.is_empty() {
            self.startup_state(ctx.vcpu, waiting, true);
        }
    }

    /// `vm_start_cpus`: those of the set that wait for a STARTUP; they wait no longer.
    fn start_cpus(&self, st: &mut State<'_>, ctx: RunContext, tostart: CpuSet) -> CpuSet {
        self.lock_rendezvous_mtx(ctx);
        let started = st.startup & tostart;
        st.startup -= started;
        if !started.is_empty() {
            self.startup_state(ctx.vcpu, started, false);
        }
        started
    }

    fn startup_state(&self, by: usize, targets: CpuSet, waiting: bool) {
        let store = self.behaviour.startup_store;
        let seq = self.host.emit(Some(by as u16), Event::StartupState { targets, waiting, store });
        self.host.set_cause(Some(seq));
    }

    /// `mtx_lock(&vm->rendezvous_mtx)`: a blockable mutex, which must not be taken in a critical section. WITNESS finds that
    /// in a kernel with INVARIANTS; without, it goes well as long as nobody holds the mutex. \[commit]
    fn lock_rendezvous_mtx(&self, ctx: RunContext) {
        if ctx.critical && self.options.debug {
            self.panic(
                "acquiring blockable sleep lock with spinlock or critical section held (sleep mutex) vm rendezvous lock"
                    .to_owned(),
            );
        }
    }
}

/// An ICR write with what decoding it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcrCommand {
    pub(super) icr: Icr,
    pub(super) sender: usize,
    x2apic: bool,
}

impl IcrCommand {
    /// `vm_apicid2vcpuid` of the destination field: the identity in every version. \[read]
    fn dest(self) -> usize {
        self.icr.dest(self.x2apic) as usize
    }

    fn with_mask(self, mask: CpuSet) -> Ipi {
        Ipi { mode: self.icr.delivery_mode(), vector: self.icr.vector(), mask }
    }
}
