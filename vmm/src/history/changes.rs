//! The commits, in the order in which they landed on main. One commit that did several things is several changes.

use super::{
    Behaviour, ExitMask, InitRendezvous, MaxCpus, RendezvousPending, SpinupVcpu, StartupDestination, StartupEffects,
    VcpuAllocation,
};
use crate::trace::StartupStore;
use std::fmt;

/// How well a rule is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Read in the source of that version.
    Read,
    /// From a commit message, review or mail.
    Commit,
    /// Reasoned from code that was read.
    Inferred,
    /// General knowledge.
    Unverified,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Evidence::Read => "read",
            Evidence::Commit => "commit",
            Evidence::Inferred => "inferred",
            Evidence::Unverified => "unverified",
        })
    }
}

/// One historical change of behaviour.
#[derive(Debug)]
pub struct Change {
    /// The name used in matrix.toml and reports.
    pub name: &'static str,
    /// Commit of FreeBSD's src repository.
    pub commit: &'static str,
    /// Review, if known.
    pub review: Option<&'static str>,
    /// When it landed, as far as known.
    pub date: &'static str,
    /// How well its effect is known.
    pub evidence: Evidence,
    /// What it does, in one sentence.
    pub effect: &'static str,
    /// Changes without which it means nothing.
    pub needs: &'static [&'static str],
    /// Edits the behaviour.
    pub(super) apply: fn(&mut Behaviour),
}

/// Every change, oldest first: the order in which they are applied.
pub const CHANGES: &[Change] = &[
    Change {
        name: "ipi-exit",
        commit: "0bda8d3e9f7a",
        review: Some("D35623"),
        date: "2022-09-07",
        evidence: Evidence::Commit,
        effect: "adds VM_CAP_IPI_EXIT and VM_EXITCODE_IPI, and looks up the destination of INIT and STARTUP among active vCPUs",
        needs: &[],
        apply: |b| {
            b.ipi_exit = true;
            b.destination = StartupDestination::Active;
        },
    },
    Change {
        name: "raw-destination",
        commit: "769b884e2e2",
        review: Some("D37093"),
        date: "2022-10",
        evidence: Evidence::Commit,
        effect: "without IPI_EXIT, takes the destination field of INIT and STARTUP as it is",
        needs: &["ipi-exit"],
        apply: |b| b.destination = StartupDestination::RawUnlessIpiExit,
    },
    Change {
        name: "rendezvous-participants",
        commit: "892feec2211d",
        review: Some("D37390"),
        date: "2022-11",
        evidence: Evidence::Read,
        effect: "a vCPU leaves the guest only for a rendezvous that it takes part in",
        needs: &[],
        apply: |b| b.rendezvous_pending = RendezvousPending::Participants,
    },
    Change {
        name: "startup-cpus",
        commit: "c0f35dbf19c3",
        review: Some("D37173"),
        date: "2022-11-18",
        evidence: Evidence::Read,
        effect: "replaces the local APIC's boot_state by the VM's startup_cpus, under a sleepable mutex",
        needs: &["ipi-exit", "raw-destination"],
        apply: |b| b.startup_store = StartupStore::StartupCpus,
    },
    Change {
        name: "lazy-vcpus",
        commit: "98568a005a19",
        review: Some("D37174"),
        date: "2022-11-18",
        evidence: Evidence::Read,
        effect: "allocates a vCPU when an ioctl first names it",
        needs: &[],
        apply: |b| b.vcpu_allocation = VcpuAllocation::OnFirstUse,
    },
    Change {
        name: "maxcpu-tunable",
        commit: "ee98f99d7a68",
        review: Some("D37175"),
        date: "2022-11",
        evidence: Evidence::Unverified,
        effect: "replaces the compiled-in limit of 16 vCPUs by the tunable hw.vmm.maxcpu",
        needs: &["lazy-vcpus"],
        apply: |b| b.max_cpus = MaxCpus::Tunable,
    },
    Change {
        name: "handle-ipi",
        commit: "7c326ab5bb9a",
        review: Some("D37452"),
        date: "2022-11-23",
        evidence: Evidence::Read,
        effect: "moves the side effects of INIT and STARTUP from the ICR handler to vm_handle_ipi, out of the critical section",
        needs: &["startup-cpus"],
        apply: |b| b.startup_effects = StartupEffects::InHandleIpi,
    },
    Change {
        name: "exit-mask",
        commit: "b265a2e0d764",
        review: Some("D38446"),
        date: "2023-02",
        evidence: Evidence::Commit,
        effect: "the exit to vm_handle_ipi carries ipimask, whom the IPI is for, instead of dmask",
        needs: &["handle-ipi"],
        apply: |b| b.exit_mask = ExitMask::Ipimask,
    },
    Change {
        name: "rendezvous-active",
        commit: "b265a2e0d764",
        review: Some("D38446"),
        date: "2023-02",
        evidence: Evidence::Commit,
        effect: "INIT's rendezvous is held with the active targets only",
        needs: &["handle-ipi"],
        apply: |b| b.init_rendezvous = InitRendezvous::ActiveTargets,
    },
    Change {
        name: "spinup-ffs",
        commit: "b265a2e0d764",
        review: Some("D38446"),
        date: "2023-02",
        evidence: Evidence::Commit,
        effect: "SPINUP_AP names CPU_FFS - 1, the vCPU that starts, instead of its successor",
        needs: &["handle-ipi"],
        apply: |b| b.spinup_vcpu = SpinupVcpu::FfsMinusOne,
    },
];

impl Change {
    /// The change with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Change> {
        CHANGES.iter().find(|change| change.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_needs_are_older() {
        for (i, change) in CHANGES.iter().enumerate() {
            assert!(CHANGES[..i].iter().all(|older| older.name != change.name), "{}", change.name);
            for need in change.needs {
                assert!(CHANGES[..i].iter().any(|older| older.name == *need), "{} needs {need}", change.name);
            }
        }
    }

    #[test]
    fn every_change_changes_something_where_its_needs_are_met() {
        for change in CHANGES {
            let mut before = Behaviour::BASE;
            for need in CHANGES.iter().filter(|other| change.needs.contains(&other.name)) {
                (need.apply)(&mut before);
            }
            let mut after = before;
            (change.apply)(&mut after);
            assert_ne!(before, after, "{}", change.name);
        }
    }
}
