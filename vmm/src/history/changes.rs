//! The commits, in the order in which they landed on main. One commit that did several things is several changes.

use super::{
    Activation, Behaviour, Boundary, ExitMask, InitRendezvous, LockAll, MaxCpus, MemsegAbi, RendezvousPending, RunAbi,
    SnapshotAbi, SpinupVcpu, StartupDestination, StartupEffects, StatsAbi, VcpuAllocation, X2apicStartup,
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

/// Whose history a change or a kernel belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// FreeBSD's vmm.ko, from before 10.0.
    FreeBsd,
    /// illumos's, which began as a port of FreeBSD's and went its own way.
    Illumos,
}

impl Lineage {
    /// What the lineage's kernels do before any change.
    #[must_use]
    pub fn base(self) -> Behaviour {
        match self {
            Lineage::FreeBsd => Behaviour::BASE,
            Lineage::Illumos => Behaviour::ILLUMOS_BASE,
        }
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lineage::FreeBsd => "FreeBSD",
            Lineage::Illumos => "illumos",
        })
    }
}

/// One historical change of behaviour.
#[derive(Debug)]
pub struct Change {
    /// The name used in matrix.toml and reports.
    pub name: &'static str,
    /// Whose change it is. A kernel has only those of its own lineage.
    pub lineage: Lineage,
    /// Commit of the lineage's src repository, or where it was read if the commit is not known.
    pub commit: &'static str,
    /// Review, if known.
    pub review: Option<&'static str>,
    /// When it landed, as far as known: YYYY, YYYY-MM or YYYY-MM-DD.
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
        name: "x2apic-spinup",
        lineage: Lineage::FreeBsd,
        commit: "becd984900",
        review: None,
        date: "2013",
        evidence: Evidence::Commit,
        effect: "a STARTUP that is sent through the x2APIC's MSR leaves the kernel as SPINUP_AP too, not only one sent through MMIO",
        needs: &[],
        apply: |b| b.x2apic_startup = X2apicStartup::AsMmio,
    },
    Change {
        name: "userspace-activation",
        lineage: Lineage::FreeBsd,
        commit: "r266933",
        review: None,
        date: "2014-05",
        evidence: Evidence::Unverified,
        effect: "leaves it to userspace to activate vCPUs, by VM_ACTIVATE_CPU; VM_GET_CPUS tells which are",
        needs: &[],
        apply: |b| b.activation = Activation::ByUserspace,
    },
    Change {
        name: "suspend-resume-cpu",
        lineage: Lineage::FreeBsd,
        commit: "r332157",
        review: Some("D14466"),
        date: "2018-04",
        evidence: Evidence::Commit,
        effect: "adds VM_SUSPEND_CPU, VM_RESUME_CPU, the debug set and VM_EXITCODE_DEBUG",
        needs: &["userspace-activation"],
        apply: |b| b.cpu_suspend = true,
    },
    Change {
        name: "topology",
        lineage: Lineage::FreeBsd,
        commit: "r332298",
        review: Some("D9930"),
        date: "2018-04-08",
        evidence: Evidence::Read,
        effect: "adds VM_SET_TOPOLOGY and VM_GET_TOPOLOGY",
        needs: &[],
        apply: |b| b.topology = true,
    },
    Change {
        name: "memseg-suffix",
        lineage: Lineage::FreeBsd,
        commit: "read in 13.0",
        review: None,
        date: "2019",
        evidence: Evidence::Read,
        effect: "shortens the name in vm_memseg from 64 to 16 bytes; COMPAT_FREEBSD12 keeps the old requests",
        needs: &[],
        apply: |b| b.memseg = MemsegAbi::Suffix16,
    },
    Change {
        name: "snapshot",
        lineage: Lineage::FreeBsd,
        commit: "483d953a86a2",
        review: Some("D19495"),
        date: "2020-05",
        evidence: Evidence::Commit,
        effect: "adds VM_SNAPSHOT_REQ and VM_RESTORE_TIME (option BHYVE_SNAPSHOT)",
        needs: &[],
        apply: |b| b.snapshot = SnapshotAbi::WithContext,
    },
    Change {
        name: "ipi-exit",
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
        commit: "98568a005a19",
        review: Some("D37174"),
        date: "2022-11-18",
        evidence: Evidence::Read,
        effect: "allocates a vCPU when an ioctl first names it; vcpu_lock_all gets an unsigned index and no initial value of its error",
        needs: &[],
        apply: |b| {
            b.vcpu_allocation = VcpuAllocation::OnFirstUse;
            b.lock_all_error_set = false;
        },
    },
    Change {
        name: "maxcpu-tunable",
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
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
        lineage: Lineage::FreeBsd,
        commit: "b265a2e0d764",
        review: Some("D38446"),
        date: "2023-02",
        evidence: Evidence::Commit,
        effect: "SPINUP_AP names CPU_FFS - 1, the vCPU that starts, instead of its successor",
        needs: &["handle-ipi"],
        apply: |b| b.spinup_vcpu = SpinupVcpu::FfsMinusOne,
    },
    Change {
        name: "mask-hwintr",
        lineage: Lineage::FreeBsd,
        commit: "fefac543590d",
        review: Some("D39949"),
        date: "2023-05",
        evidence: Evidence::Commit,
        effect: "adds VM_CAP_MASK_HWINTR, which holds external interrupts back while a debugger steps",
        needs: &["ipi-exit"],
        apply: |b| b.mask_hwintr = true,
    },
    Change {
        name: "vm-run-pointers",
        lineage: Lineage::FreeBsd,
        commit: "e17eca327633",
        review: Some("D40113"),
        date: "2023-05",
        evidence: Evidence::Read,
        effect: "VM_RUN puts the exit and the mask of an IPI where its argument points; COMPAT_FREEBSD13 keeps the old request with a mask of 256 bits",
        needs: &["ipi-exit"],
        apply: |b| b.run = RunAbi::ByPointer,
    },
    Change {
        name: "snapshot-meta",
        lineage: Lineage::FreeBsd,
        commit: "read in 14.0",
        review: None,
        date: "2023-05",
        evidence: Evidence::Read,
        effect: "takes the unused pointer out of vm_snapshot_meta; COMPAT_FREEBSD13 keeps the old request",
        needs: &["snapshot"],
        apply: |b| b.snapshot = SnapshotAbi::WithoutContext,
    },
    Change {
        name: "indexed-stats",
        lineage: Lineage::FreeBsd,
        commit: "read in 14.0",
        review: None,
        date: "2023",
        evidence: Evidence::Read,
        effect: "VM_STATS takes the index of the first statistic wanted; COMPAT_FREEBSD13 keeps the old request",
        needs: &[],
        apply: |b| b.stats = StatsAbi::Indexed,
    },
    Change {
        name: "cpuset-1024",
        lineage: Lineage::FreeBsd,
        commit: "announced for 14.0",
        review: None,
        date: "2023-08",
        evidence: Evidence::Unverified,
        effect: "raises CPU_SETSIZE, and with it the most vCPUs that a VM can have, from 256 to 1024",
        needs: &["maxcpu-tunable"],
        apply: |b| b.cpu_setsize = 1024,
    },
    Change {
        name: "lock-all-index",
        lineage: Lineage::FreeBsd,
        commit: "read in 15",
        review: None,
        date: "2023",
        evidence: Evidence::Unverified,
        effect: "vcpu_lock_all begins with no error, and unlocks with an index of its own after one",
        needs: &["lazy-vcpus"],
        apply: |b| b.lock_all_error_set = true,
    },
    Change {
        name: "rflags-tf",
        lineage: Lineage::FreeBsd,
        commit: "e3b4fe645e50",
        review: Some("D42296"),
        date: "2023-12",
        evidence: Evidence::Commit,
        effect: "adds VM_CAP_RFLAGS_TF and VM_EXITCODE_DB, with which a debugger steps on AMD",
        needs: &["mask-hwintr"],
        apply: |b| b.rflags_tf = true,
    },
    Change {
        name: "suspend-destroy",
        lineage: Lineage::FreeBsd,
        commit: "read in 15",
        review: None,
        date: "2024",
        evidence: Evidence::Commit,
        effect: "destroying a VM suspends it with VM_SUSPEND_DESTROY, so that threads asleep in the kernel come out",
        needs: &[],
        apply: |b| b.destroy_suspends = true,
    },
    Change {
        name: "vmmctl",
        lineage: Lineage::FreeBsd,
        commit: "a97f683fe3c4",
        review: Some("D47028"),
        date: "2024-11",
        evidence: Evidence::Read,
        effect: "adds /dev/vmmctl, where virtual machines are made and destroyed, beside the sysctls",
        needs: &[],
        apply: |b| b.vmmctl = true,
    },
    Change {
        name: "memseg-domains",
        lineage: Lineage::FreeBsd,
        commit: "a4197ea47777",
        review: Some("D44565"),
        date: "2025",
        evidence: Evidence::Read,
        effect: "vm_memseg names the memory domains, and the boot ROM's segment is number 8; COMPAT_FREEBSD14 keeps the old requests",
        needs: &["memseg-suffix"],
        apply: |b| b.memseg = MemsegAbi::Domains,
    },
    Change {
        name: "mmap-segments",
        lineage: Lineage::FreeBsd,
        commit: "a4197ea47777",
        review: Some("D44565"),
        date: "2025",
        evidence: Evidence::Read,
        effect: "VM_MMAP_MEMSEG knows the new segment numbers alone, for which no COMPAT option stands in: userspace before 15 cannot map its boot ROM (reported on freebsd-virtualization, 2026-06)",
        needs: &["memseg-domains"],
        apply: |b| b.mmap_old_segids = false,
    },
    Change {
        name: "lock-all-rendezvous",
        lineage: Lineage::FreeBsd,
        commit: "f39768e52e51",
        review: Some("D52968"),
        date: "2025",
        evidence: Evidence::Commit,
        effect: "vcpu_lock_all runs a rendezvous on behalf of the vCPUs that it has locked, so that the two cannot wait for each other",
        needs: &["lock-all-index"],
        apply: |b| b.lock_all = LockAll::ServesRendezvous,
    },
    Change {
        name: "illumos-boundary",
        lineage: Lineage::Illumos,
        commit: "illumos-gate usr/src/uts/intel/sys/vmm_dev.h",
        review: None,
        date: "2020",
        evidence: Evidence::Read,
        effect: "request numbers, structures, capabilities and exit codes of its own, /dev/vmmctl, 32 vCPUs",
        needs: &[],
        apply: |b| {
            b.boundary = Boundary::Illumos;
            b.run = RunAbi::Entry;
            b.max_cpus = MaxCpus::CompiledIn(crate::abi::illumos::VM_MAXCPU as u16);
            b.vmmctl = true;
        },
    },
    Change {
        name: "run-state",
        lineage: Lineage::Illumos,
        commit: "illumos-gate usr/src/uts/intel/io/vmm/vmm.c",
        review: None,
        date: "2020",
        evidence: Evidence::Read,
        effect: "the kernel carries out INIT and STARTUP by a run state of each vCPU, without an exit; APs wait inside VM_RUN, and there is no rendezvous",
        needs: &["illumos-boundary"],
        apply: |b| {
            b.startup_store = StartupStore::RunState;
            // vioapic_write tells nobody: a local APIC learns the trigger mode with each interrupt. [read]
            b.routing_rendezvous = false;
        },
    },
];

impl Change {
    /// The change with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Change> {
        CHANGES.iter().find(|change| change.name == name)
    }

    /// Where it comes from, in one line: commit, review, date, evidence.
    #[must_use]
    pub fn reference(&self) -> String {
        let review = self.review.map_or(String::new(), |review| format!(" ({review})"));
        format!("{}{review}, {} [{}]", self.commit, self.date, self.evidence)
    }

    /// Whether the change needs another, be it by way of a third.
    #[must_use]
    pub fn needs_in_the_end(&self, name: &str) -> bool {
        self.needs
            .iter()
            .any(|&need| need == name || Change::named(need).is_some_and(|need| need.needs_in_the_end(name)))
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
    fn references_in_one_line() {
        let reference = |name| Change::named(name).expect("a change").reference();
        assert_eq!(reference("exit-mask"), "b265a2e0d764 (D38446), 2023-02 [commit]");
        assert_eq!(reference("x2apic-spinup"), "becd984900, 2013 [commit]");
    }

    /// Dates are as exact as they are known; where they overlap the list decides.
    #[test]
    fn changes_stand_in_the_order_of_their_dates() {
        for lineage in [Lineage::FreeBsd, Lineage::Illumos] {
            let dates: Vec<_> =
                CHANGES.iter().filter(|change| change.lineage == lineage).map(|change| change.date).collect();
            for pair in dates.windows(2) {
                let known = pair[0].len().min(pair[1].len());
                assert!(pair[0][..known] <= pair[1][..known], "{pair:?}");
            }
        }
    }

    #[test]
    fn a_change_needs_changes_of_its_own_lineage() {
        for change in CHANGES {
            for need in change.needs {
                assert_eq!(
                    Change::named(need).map(|need| need.lineage),
                    Some(change.lineage),
                    "{} {need}",
                    change.name
                );
            }
        }
    }

    #[test]
    fn every_change_changes_something_where_its_needs_are_met() {
        for change in CHANGES {
            let mut before = change.lineage.base();
            for need in CHANGES.iter().filter(|other| change.needs_in_the_end(other.name)) {
                (need.apply)(&mut before);
            }
            let mut after = before;
            (change.apply)(&mut after);
            assert_ne!(before, after, "{}", change.name);
        }
    }
}
