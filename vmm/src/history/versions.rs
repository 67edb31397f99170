//! The kernels: named sets of changes, and what-if sets made from them.

use super::{Behaviour, CHANGES, Change};
use std::sync::Arc;

/// A kernel personality: a set of changes and build options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelVersion {
    /// The name in cells.
    pub name: Arc<str>,
    /// Where it comes from, in one sentence.
    pub about: Arc<str>,
    /// Which changes it has, in the order of [`CHANGES`].
    changes: Vec<&'static str>,
    /// Built with INVARIANTS: a modelled assertion that fails panics the host.
    pub invariants: bool,
    /// `hw.vmm.maxcpu`, where the kernel has it.
    pub max_cpu_tunable: u16,
}

/// Why a set of changes is no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// No kernel has this name.
    #[error("No kernel is named {0}")]
    UnknownKernel(String),
    /// No change has this name.
    #[error("No change is named {0}")]
    UnknownChange(String),
    /// A change is there without one that it needs.
    #[error("The change {change} needs {need}, which is left out")]
    MissingNeed {
        /// The change.
        change: &'static str,
        /// What it needs.
        need: &'static str,
    },
}

/// `hw.vmm.maxcpu` of a named kernel: more than any guest of ours uses, so that the host's CPUs do not matter. The xAPIC's
/// broadcast destination, 255, is no vCPU then, as on any host of the time.
const MAX_CPU_TUNABLE: u16 = 255;

/// A kernel by what it has beyond another.
struct Named {
    name: &'static str,
    about: &'static str,
    /// The kernel that it extends; `None`: [`Behaviour::BASE`].
    base: Option<&'static str>,
    adds: &'static [&'static str],
}

const NAMED: &[Named] = &[
    Named {
        name: "fbsd-13.1",
        about: "FreeBSD 12.x, 13.0 and 13.1: boot_state machine, every vCPU allocated with the VM",
        base: None,
        adds: &[],
    },
    Named {
        name: "main-0bda8d3e",
        about: "main from 0bda8d3e9f7a to before 769b884e2e2: the first breakage of lazy userspace",
        base: Some("fbsd-13.1"),
        adds: &["ipi-exit"],
    },
    Named {
        name: "main-769b884e",
        about: "main from 769b884e2e2 to before c0f35dbf19c3: the first fix",
        base: Some("main-0bda8d3e"),
        adds: &["raw-destination"],
    },
    Named {
        name: "main-c0f35dbf",
        about: "main at c0f35dbf19c3: startup_cpus under a sleepable mutex",
        base: Some("main-769b884e"),
        adds: &["rendezvous-participants", "startup-cpus"],
    },
    Named {
        name: "main-98568a00",
        about: "main from 98568a005a19 to before 7c326ab5bb9a: vCPUs allocated on first use",
        base: Some("main-c0f35dbf"),
        adds: &["lazy-vcpus"],
    },
    Named {
        name: "main-7c326ab5",
        about: "main from 7c326ab5bb9a to before b265a2e0d764, stable/13 in between: the broken window",
        base: Some("main-98568a00"),
        adds: &["maxcpu-tunable", "handle-ipi"],
    },
    Named {
        name: "naive-widen",
        about: "a counterfactual: the broken window with only the exit's mask widened",
        base: Some("main-7c326ab5"),
        adds: &["exit-mask"],
    },
    Named {
        name: "fbsd-13.2",
        about: "FreeBSD 13.2 (5e8827063b9f): the fix of b265a2e0d764 in all three parts",
        base: Some("main-7c326ab5"),
        adds: &["exit-mask", "rendezvous-active", "spinup-ffs"],
    },
];

impl Named {
    fn find(name: &str) -> Option<&'static Named> {
        NAMED.iter().find(|named| named.name == name)
    }

    fn has(&self, change: &str) -> bool {
        self.adds.contains(&change) || self.base.and_then(Named::find).is_some_and(|base| base.has(change))
    }
}

impl KernelVersion {
    /// Every named kernel, oldest first.
    pub fn all() -> impl Iterator<Item = KernelVersion> {
        NAMED.iter().map(|named| KernelVersion {
            name: named.name.into(),
            about: named.about.into(),
            changes: CHANGES.iter().map(|change| change.name).filter(|change| named.has(change)).collect(),
            invariants: true,
            max_cpu_tunable: MAX_CPU_TUNABLE,
        })
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// [`VersionError::UnknownKernel`].
    pub fn named(name: &str) -> Result<KernelVersion, VersionError> {
        KernelVersion::all()
            .find(|version| &*version.name == name)
            .ok_or_else(|| VersionError::UnknownKernel(name.to_owned()))
    }

    /// A what-if kernel: this one with some changes added and some left out.
    ///
    /// # Errors
    /// When a change is unknown, or one that stays needs one that is not there.
    pub fn what_if(
        &self,
        name: &str,
        about: &str,
        with: &[impl AsRef<str>],
        without: &[impl AsRef<str>],
    ) -> Result<KernelVersion, VersionError> {
        for wanted in with.iter().map(AsRef::as_ref).chain(without.iter().map(AsRef::as_ref)) {
            if Change::named(wanted).is_none() {
                return Err(VersionError::UnknownChange(wanted.to_owned()));
            }
        }
        let changes: Vec<&'static str> = CHANGES
            .iter()
            .map(|change| change.name)
            .filter(|change| self.has(change) || with.iter().any(|w| w.as_ref() == *change))
            .filter(|change| without.iter().all(|w| w.as_ref() != *change))
            .collect();
        let version = KernelVersion { name: name.into(), about: about.into(), changes, ..self.clone() };
        for change in version.changes() {
            if let Some(need) = change.needs.iter().find(|need| !version.has(need)) {
                return Err(VersionError::MissingNeed { change: change.name, need });
            }
        }
        Ok(version)
    }

    /// Whether the kernel has the change.
    #[must_use]
    pub fn has(&self, change: &str) -> bool {
        self.changes.contains(&change)
    }

    /// The kernel's changes, oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &'static Change> + '_ {
        CHANGES.iter().filter(|change| self.has(change.name))
    }

    /// What the kernel does, after all its changes.
    #[must_use]
    pub fn behaviour(&self) -> Behaviour {
        let mut behaviour = Behaviour::BASE;
        for change in self.changes() {
            (change.apply)(&mut behaviour);
        }
        behaviour
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{ExitMask, InitRendezvous, SpinupVcpu};

    #[test]
    fn every_named_kernel_has_what_its_changes_need() {
        for version in KernelVersion::all() {
            let none: [&str; 0] = [];
            assert_eq!(version.what_if(&version.name, &version.about, &none, &none), Ok(version.clone()));
        }
    }

    #[test]
    fn every_base_and_every_addition_exists() {
        for (i, named) in NAMED.iter().enumerate() {
            assert!(named.base.is_none_or(|base| NAMED[..i].iter().any(|older| older.name == base)), "{}", named.name);
            assert!(named.adds.iter().all(|change| Change::named(change).is_some()), "{}", named.name);
        }
        let broken = KernelVersion::named("main-7c326ab5").expect("named");
        let names: Vec<_> = broken.changes().map(|change| change.name).collect();
        assert_eq!(names, CHANGES[..7].iter().map(|change| change.name).collect::<Vec<_>>(), "all up to handle-ipi");
    }

    #[test]
    fn naive_widen_is_a_set_between_the_broken_window_and_the_fix() {
        let [broken, naive, fixed] = ["main-7c326ab5", "naive-widen", "fbsd-13.2"].map(|name| {
            let version = KernelVersion::named(name).expect("named");
            version.behaviour()
        });
        assert_eq!(naive, Behaviour { exit_mask: ExitMask::Ipimask, ..broken });
        assert_eq!(
            fixed,
            Behaviour { init_rendezvous: InitRendezvous::ActiveTargets, spinup_vcpu: SpinupVcpu::FfsMinusOne, ..naive }
        );
    }

    #[test]
    fn what_if_kernels_are_checked() {
        let fixed = KernelVersion::named("fbsd-13.2").expect("named");
        let none: [&str; 0] = [];
        let without_mask = fixed.what_if("x", "", &none, &["exit-mask"]).expect("a kernel");
        assert_eq!(without_mask.behaviour().exit_mask, ExitMask::Dmask);
        assert_eq!(
            fixed.what_if("x", "", &none, &["handle-ipi"]),
            Err(VersionError::MissingNeed { change: "exit-mask", need: "handle-ipi" })
        );
        assert_eq!(fixed.what_if("x", "", &["warp"], &none), Err(VersionError::UnknownChange("warp".into())));
        assert_eq!(KernelVersion::named("fbsd-99"), Err(VersionError::UnknownKernel("fbsd-99".into())));
    }
}
