//! The history of AP start-up in `vmm.ko`, as data: which commit changed which behaviour.
//!
//! A kernel is a set of [`Change`]s over the oldest base of its [`Lineage`], plus [`BuildOptions`]. Each change says what it needs
//! and edits a [`Behaviour`]; the kernel core asks the behaviour, never the version.
//!
//! # Adding a commit
//!
//! 1. If it brings a behaviour that no kernel has had: a field of [`Behaviour`] (or a value of its type), set to what kernels did
//!    before in [`Behaviour::BASE`], and the place in [`crate::kernel`] that asks for it.
//! 2. One entry in [`changes::CHANGES`], where its date belongs: commit, review, date, evidence, effect, what it needs, and the
//!    function that edits the behaviour. From then on it is a word of what-if kernels (`fbsd-14+NAME`), of `bisect` and of
//!    `spinup show changes`.
//! 3. If a kernel that shipped has it: its name in the `adds` of that kernel in [`versions`].
//!
//! The tests of this module find an entry that changes nothing, needs something that does not exist, or stands out of order.

pub mod changes;
pub mod errno_rows;
pub mod versions;

pub use changes::{CHANGES, Change, Evidence, Lineage};
pub use errno_rows::{ERRNO_ROWS, ErrnoRow};
pub use versions::{BuildOptions, KernelVersion, VersionError};

/// Where a kernel looks for the destination of INIT and STARTUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartupDestination {
    /// The destination field as it is, when the BSP sends; anybody else's goes to userspace as an error.
    RawFromBsp,
    /// `vlapic_calcdest`: among the active vCPUs, whoever sends.
    Active,
    /// As `Active` when the sender has IPI_EXIT, else the destination field as it is, whoever sends.
    RawUnlessIpiExit,
}

/// Where a kernel changes the start-up state of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartupEffects {
    /// In the ICR handler, which for x2APIC runs inside the run loop's critical section.
    InIcrHandler,
    /// In `vm_handle_ipi`, after the critical section.
    InHandleIpi,
}

/// Which mask the exit from the ICR handler to `vm_handle_ipi` carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitMask {
    /// `dmask`, what `vlapic_calcdest` found, even when the IPI is for others: the wrong variable.
    Dmask,
    /// `ipimask`, whom the IPI is for.
    Ipimask,
}

/// Who takes part in the rendezvous that resets the local APICs on INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitRendezvous {
    /// Every vCPU in the mask.
    EveryTarget,
    /// The active vCPUs in the mask.
    ActiveTargets,
}

/// How SPINUP_AP names the vCPU, given the mask of those that start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpinupVcpu {
    /// `CPU_FFS(mask)`: one too many.
    Ffs,
    /// `CPU_FFS(mask) - 1`.
    FfsMinusOne,
}

/// When the structure of a vCPU is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuAllocation {
    /// All of them with the VM.
    WithVm,
    /// On the first ioctl that names the vCPU.
    OnFirstUse,
}

/// How many vCPUs a VM can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxCpus {
    /// `VM_MAXCPU`, compiled in; VM_SET_TOPOLOGY refuses a `maxcpus`.
    CompiledIn(u16),
    /// `hw.vmm.maxcpu`; VM_SET_TOPOLOGY ignores `maxcpus`.
    Tunable,
}

/// Which vCPUs leave the guest for a rendezvous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RendezvousPending {
    /// All of them, whenever one is under way.
    AnyRendezvous,
    /// Those that have to take part.
    Participants,
}

/// Who activates an AP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The kernel: vCPU 0 with the VM, an AP on a STARTUP that it accepts. VM_ACTIVATE_CPU and VM_GET_CPUS do not exist.
    ByKernel,
    /// Userspace, by VM_ACTIVATE_CPU.
    ByUserspace,
}

/// What becomes of a STARTUP that comes as WRMSR and is to leave the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X2apicStartup {
    /// The exit is lost: only the handler of MMIO passes it on.
    Lost,
    /// As for MMIO.
    AsMmio,
}

/// Which requests and structures the boundary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// FreeBSD's, in the generation that the `…Abi` fields say.
    FreeBsd,
    /// illumos's.
    Illumos,
}

/// Where VM_RUN puts the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAbi {
    /// Into its argument, the mask of an IPI too.
    ByValue,
    /// Where the argument points.
    ByPointer,
    /// Where `vm_entry` points; the argument brings the result of the last exit (illumos).
    Entry,
}

/// Which `vm_memseg` there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemsegAbi {
    /// A name of 64 bytes (12).
    Name64,
    /// A name of 16 bytes (13 and 14).
    Suffix16,
    /// That, and the memory domains (15). The segments of devices are numbered from 8.
    Domains,
}

/// Which `vm_stats` there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsAbi {
    /// The first 64 statistics.
    First,
    /// 64 from an index on.
    Indexed,
}

/// Which `vm_snapshot_meta` there is, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotAbi {
    /// VM_SNAPSHOT_REQ does not exist.
    Absent,
    /// With a pointer in front that nobody uses (13).
    WithContext,
    /// Without it.
    WithoutContext,
}

/// How all vCPUs are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAll {
    /// One after the other, waiting for each to become idle: for ever, if it waits for a rendezvous with one that is locked.
    OneByOne,
    /// The same, but running a rendezvous for those that are locked.
    ServesRendezvous,
}

/// What the kernel core does at each point where history changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Whether VM_CAP_IPI_EXIT and VM_EXITCODE_IPI exist.
    pub ipi_exit: bool,
    /// Where the destination of INIT and STARTUP is looked for.
    pub destination: StartupDestination,
    /// Where it is kept which AP waits for a STARTUP; with run states the kernel does it all, without an exit (illumos).
    pub startup_store: crate::trace::StartupStore,
    /// Where the start-up state changes.
    pub startup_effects: StartupEffects,
    /// Which mask leaves the ICR handler.
    pub exit_mask: ExitMask,
    /// Who takes part in INIT's rendezvous.
    pub init_rendezvous: InitRendezvous,
    /// How SPINUP_AP names the vCPU.
    pub spinup_vcpu: SpinupVcpu,
    /// When vCPUs are allocated.
    pub vcpu_allocation: VcpuAllocation,
    /// How many there can be.
    pub max_cpus: MaxCpus,
    /// Who leaves the guest for a rendezvous.
    pub rendezvous_pending: RendezvousPending,
    /// Whether all active vCPUs rendezvous when the guest changes the I/O APIC's routing (`vioapic_update_tmr`).
    pub routing_rendezvous: bool,
    /// Who activates an AP.
    pub activation: Activation,
    /// What becomes of a STARTUP by WRMSR.
    pub x2apic_startup: X2apicStartup,
    /// Whether VM_SUSPEND_CPU, VM_RESUME_CPU and VM_EXITCODE_DEBUG exist.
    pub cpu_suspend: bool,
    /// Whether VM_SET_TOPOLOGY and VM_GET_TOPOLOGY exist.
    pub topology: bool,
    /// `CPU_SETSIZE`: how many vCPUs a `cpuset_t` can name.
    pub cpu_setsize: u16,
    /// Whether VM_CAP_MASK_HWINTR exists.
    pub mask_hwintr: bool,
    /// Whether VM_CAP_RFLAGS_TF exists.
    pub rflags_tf: bool,
    /// Whether `/dev/vmmctl` exists.
    pub vmmctl: bool,
    /// Whether destroying a VM suspends it first.
    pub destroy_suspends: bool,
    /// How all vCPUs are locked.
    pub lock_all: LockAll,
    /// Whether locking all vCPUs begins with no error. If not, and there is no vCPU, the error is what stood on the stack.
    pub lock_all_error_set: bool,
    /// Which requests and structures the boundary has.
    pub boundary: Boundary,
    /// Where VM_RUN puts the exit.
    pub run: RunAbi,
    /// Which `vm_memseg` there is.
    pub memseg: MemsegAbi,
    /// Whether VM_MMAP_MEMSEG understands the segment numbers of before [`MemsegAbi::Domains`].
    pub mmap_old_segids: bool,
    /// Which `vm_stats` there is.
    pub stats: StatsAbi,
    /// Which `vm_snapshot_meta` there is.
    pub snapshot: SnapshotAbi,
}

impl Behaviour {
    /// FreeBSD's vmm.ko of 2013, before anything that is in the list: boot_state, the BSP alone starts APs, the kernel activates
    /// them, x2APIC guests do not get theirs. \[read for what 10.0 and 13.1 have in common, commit for the rest]
    ///
    /// Requests that are not mentioned in the list of changes are taken to have existed from the beginning. The memory requests of
    /// 10.0 itself were others (VM_MAP_MEMORY); those of 12 stand in for them.
    pub const BASE: Behaviour = Behaviour {
        ipi_exit: false,
        destination: StartupDestination::RawFromBsp,
        startup_store: crate::trace::StartupStore::BootState,
        startup_effects: StartupEffects::InIcrHandler,
        exit_mask: ExitMask::Dmask,
        init_rendezvous: InitRendezvous::EveryTarget,
        spinup_vcpu: SpinupVcpu::Ffs,
        vcpu_allocation: VcpuAllocation::WithVm,
        max_cpus: MaxCpus::CompiledIn(16),
        rendezvous_pending: RendezvousPending::AnyRendezvous,
        routing_rendezvous: true,
        activation: Activation::ByKernel,
        x2apic_startup: X2apicStartup::Lost,
        cpu_suspend: false,
        topology: false,
        cpu_setsize: 256,
        mask_hwintr: false,
        rflags_tf: false,
        vmmctl: false,
        destroy_suspends: false,
        lock_all: LockAll::OneByOne,
        lock_all_error_set: true,
        boundary: Boundary::FreeBsd,
        run: RunAbi::ByValue,
        memseg: MemsegAbi::Name64,
        mmap_old_segids: true,
        stats: StatsAbi::First,
        snapshot: SnapshotAbi::Absent,
    };

    /// What illumos started from: FreeBSD's vmm.ko of 12. \[inferred]
    pub const ILLUMOS_BASE: Behaviour = Behaviour {
        activation: Activation::ByUserspace,
        x2apic_startup: X2apicStartup::AsMmio,
        cpu_suspend: true,
        topology: true,
        ..Behaviour::BASE
    };
}
