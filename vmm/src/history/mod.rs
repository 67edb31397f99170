//! The history of AP start-up in `vmm.ko`, as data: which commit changed which behaviour.
//!
//! A kernel is a set of [`Change`]s over the oldest base (13.1). Each change says what it needs and edits a
//! [`Behaviour`]; the kernel core asks the behaviour, never the version. To add a commit, add it to [`changes`] with the
//! behaviour that it brings; to add a kernel that shipped, add a line to [`versions`].

pub mod changes;
pub mod versions;

pub use changes::{CHANGES, Change, Evidence};
pub use versions::{KernelVersion, VersionError};

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
    /// `VM_MAXCPU`, 16, compiled in; VM_SET_TOPOLOGY refuses a `maxcpus`.
    CompiledIn,
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

/// What the kernel core does at each point where history changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Whether VM_CAP_IPI_EXIT and VM_EXITCODE_IPI exist.
    pub ipi_exit: bool,
    /// Where the destination of INIT and STARTUP is looked for.
    pub destination: StartupDestination,
    /// Where it is kept which AP waits for a STARTUP.
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
}

impl Behaviour {
    /// `fbsd-13.1`, the base of every set (12.x, 13.0 and 13.1 behave alike here). \[read]
    pub const BASE: Behaviour = Behaviour {
        ipi_exit: false,
        destination: StartupDestination::RawFromBsp,
        startup_store: crate::trace::StartupStore::BootState,
        startup_effects: StartupEffects::InIcrHandler,
        exit_mask: ExitMask::Dmask,
        init_rendezvous: InitRendezvous::EveryTarget,
        spinup_vcpu: SpinupVcpu::Ffs,
        vcpu_allocation: VcpuAllocation::WithVm,
        max_cpus: MaxCpus::CompiledIn,
        rendezvous_pending: RendezvousPending::AnyRendezvous,
    };
}
