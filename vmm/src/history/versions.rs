//! The kernels: named sets of changes, and what-if sets made from them.

use super::{Behaviour, CHANGES, Change, Lineage, MaxCpus, MemsegAbi, RunAbi, SnapshotAbi, StatsAbi};
use std::fmt;
use std::sync::Arc;

/// A kernel personality: a set of changes and build options.
///
/// [`KernelVersion::parse`] makes one from a name in which changes are added and left out; [`KernelVersion::what_if`] and
/// [`KernelVersion::with_options`] do the same piece by piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelVersion {
    /// The name in cells.
    pub name: Arc<str>,
    /// Where it comes from, in one sentence.
    pub about: Arc<str>,
    /// Whose history the changes are of.
    pub lineage: Lineage,
    /// Which changes it has, in the order of [`CHANGES`].
    changes: Vec<&'static str>,
    /// How it was built, and how its host is configured.
    pub options: BuildOptions,
}

/// How a kernel was built, and what its host has in loader.conf. Named kernels are built as the GENERIC kernel of their time was,
/// with BHYVE_SNAPSHOT added where it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildOptions {
    /// INVARIANTS and WITNESS: a modelled assertion that fails panics the host. Main has them, releases do not.
    pub debug: bool,
    /// COMPAT_FREEBSD12: the requests of 12 that 13 changed.
    pub compat12: bool,
    /// COMPAT_FREEBSD13: the requests of 13 that 14 changed.
    pub compat13: bool,
    /// COMPAT_FREEBSD14: the requests of 14 that 15 changed.
    pub compat14: bool,
    /// `hw.vmm.maxcpu`, where the kernel has it; as the kernel does, a VM takes it down to `CPU_SETSIZE` and up to 1. Its default is the
    /// number of the host's CPUs. The modelled hosts have [`HOST_CPUS_13`] where sets have 256 bits and [`HOST_CPUS_14`] where they
    /// have 1024.
    ///
    /// With more than 255, the destination field of an xAPIC's broadcast, 0xFF, is the number of a vCPU: kernels that use the field as
    /// it is then take a broadcast INIT or STARTUP to be for vCPU 255. A smaller host, on which it is dropped, is `maxcpu=N`.
    pub max_cpu: u16,
}

/// CPUs of the modelled host up to 13.x: as many as xAPIC IDs can name.
pub const HOST_CPUS_13: u16 = 255;
/// CPUs of the modelled host from 14 on.
pub const HOST_CPUS_14: u16 = 1024;

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
    /// A change of another system's history.
    #[error("The change {change} is {of}'s, and {kernel} is a kernel of {lineage}")]
    ForeignChange {
        /// The change.
        change: &'static str,
        /// Whose it is.
        of: Lineage,
        /// The kernel.
        kernel: String,
        /// Whose that is.
        lineage: Lineage,
    },
    /// A text does not begin with the name of a kernel.
    #[error("{text} does not begin with the name of a kernel; the nearest is {nearest}")]
    NoKernel {
        /// The text.
        text: String,
        /// A kernel whose name is like it.
        nearest: &'static str,
    },
    /// A word behind a kernel's name is neither a change nor an option.
    #[error("{word} is neither a change nor a build option; the nearest is {nearest}")]
    UnknownWord {
        /// The word, without its sign.
        word: String,
        /// A known word that is like it.
        nearest: String,
    },
    /// An option that a kernel without certain changes does not have.
    #[error("{kernel} has no {option}: that came with {came_with}")]
    MeaninglessOption {
        /// The kernel.
        kernel: String,
        /// The option.
        option: &'static str,
        /// The changes that brought it, in words.
        came_with: &'static str,
    },
    /// A word that cannot stand behind its sign.
    #[error("{0} cannot be written this way: it is maxcpu=N or +maxcpu=N, with N from 1 to 65535")]
    BadMaxCpu(String),
}

/// A kernel by what it has beyond another.
struct Named {
    name: &'static str,
    about: &'static str,
    lineage: Lineage,
    /// The kernel that it extends; `None`: the lineage's base.
    base: Option<&'static str>,
    adds: &'static [&'static str],
    /// Built with INVARIANTS and WITNESS, as main is.
    debug: bool,
}

const NAMED: &[Named] = &[
    Named {
        name: "fbsd-10.0",
        about: "FreeBSD 10.0: the kernel activates an AP when it accepts its STARTUP",
        lineage: Lineage::FreeBsd,
        base: None,
        adds: &["x2apic-spinup"],
        debug: false,
    },
    Named {
        name: "fbsd-13.1",
        about: "FreeBSD 12.x, 13.0 and 13.1: boot_state machine, every vCPU allocated with the VM",
        lineage: Lineage::FreeBsd,
        base: Some("fbsd-10.0"),
        adds: &["userspace-activation", "suspend-resume-cpu", "topology", "memseg-suffix", "snapshot"],
        debug: false,
    },
    Named {
        name: "main-0bda8d3e",
        about: "main from 0bda8d3e9f7a to before 769b884e2e2: the first breakage of lazy userspace",
        lineage: Lineage::FreeBsd,
        base: Some("fbsd-13.1"),
        adds: &["ipi-exit"],
        debug: true,
    },
    Named {
        name: "main-769b884e",
        about: "main from 769b884e2e2 to before c0f35dbf19c3: the first fix",
        lineage: Lineage::FreeBsd,
        base: Some("main-0bda8d3e"),
        adds: &["raw-destination"],
        debug: true,
    },
    Named {
        name: "main-c0f35dbf",
        about: "main at c0f35dbf19c3: startup_cpus under a sleepable mutex",
        lineage: Lineage::FreeBsd,
        base: Some("main-769b884e"),
        adds: &["rendezvous-participants", "startup-cpus"],
        debug: true,
    },
    Named {
        name: "main-98568a00",
        about: "main from 98568a005a19 to before 7c326ab5bb9a: vCPUs allocated on first use",
        lineage: Lineage::FreeBsd,
        base: Some("main-c0f35dbf"),
        adds: &["lazy-vcpus"],
        debug: true,
    },
    Named {
        name: "main-7c326ab5",
        about: "main from 7c326ab5bb9a to before b265a2e0d764, stable/13 in between: the broken window",
        lineage: Lineage::FreeBsd,
        base: Some("main-98568a00"),
        adds: &["maxcpu-tunable", "handle-ipi"],
        debug: true,
    },
    Named {
        name: "naive-widen",
        about: "a counterfactual: the broken window with only the exit's mask widened",
        lineage: Lineage::FreeBsd,
        base: Some("main-7c326ab5"),
        adds: &["exit-mask"],
        debug: true,
    },
    Named {
        name: "fbsd-13.2",
        about: "FreeBSD 13.2 (5e8827063b9f): the fix of b265a2e0d764 in all three parts",
        lineage: Lineage::FreeBsd,
        base: Some("main-7c326ab5"),
        adds: &["exit-mask", "rendezvous-active", "spinup-ffs"],
        debug: false,
    },
    Named {
        name: "fbsd-14",
        about: "FreeBSD 14.0: VM_RUN with pointers, sets of 1024 vCPUs",
        lineage: Lineage::FreeBsd,
        base: Some("fbsd-13.2"),
        adds: &["mask-hwintr", "vm-run-pointers", "snapshot-meta", "indexed-stats", "cpuset-1024", "lock-all-index"],
        debug: false,
    },
    Named {
        name: "fbsd-15",
        about: "FreeBSD 15.0: /dev/vmmctl, memory domains, lock-all that serves a rendezvous",
        lineage: Lineage::FreeBsd,
        base: Some("fbsd-14"),
        adds: &["rflags-tf", "suspend-destroy", "vmmctl", "memseg-domains", "mmap-segments", "lock-all-rendezvous"],
        debug: false,
    },
    Named {
        name: "illumos",
        about: "illumos and Oxide: INIT and STARTUP by run states in the kernel, no exit",
        lineage: Lineage::Illumos,
        base: None,
        adds: &["illumos-boundary", "run-state"],
        debug: false,
    },
];

impl Named {
    fn find(name: &str) -> Option<&'static Named> {
        NAMED.iter().find(|named| named.name == name)
    }

    fn has(&self, change: &str) -> bool {
        self.adds.contains(&change) || self.base.and_then(Named::find).is_some_and(|base| base.has(change))
    }

    fn version(&self) -> KernelVersion {
        let max_cpu = if self.has("cpuset-1024") { HOST_CPUS_14 } else { HOST_CPUS_13 };
        KernelVersion {
            name: self.name.into(),
            about: self.about.into(),
            lineage: self.lineage,
            changes: CHANGES.iter().map(|change| change.name).filter(|change| self.has(change)).collect(),
            options: BuildOptions { debug: self.debug, compat12: true, compat13: true, compat14: true, max_cpu },
        }
    }
}

/// A word behind a kernel's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Change(&'static str),
    Debug(bool),
    Compat(Compat),
}

/// The COMPAT options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compat {
    Freebsd12,
    Freebsd13,
    Freebsd14,
}

impl Compat {
    /// What the option is about, and the changes with which it began to mean something.
    fn meaning(self) -> (&'static str, &'static str, fn(&Behaviour) -> bool) {
        match self {
            Compat::Freebsd12 => {
                ("compat12", "memseg-suffix", |b| matches!(b.memseg, MemsegAbi::Suffix16 | MemsegAbi::Domains))
            }
            Compat::Freebsd13 => ("compat13", "vm-run-pointers, snapshot-meta and indexed-stats", |b| {
                b.run == RunAbi::ByPointer || b.stats == StatsAbi::Indexed || b.snapshot == SnapshotAbi::WithoutContext
            }),
            Compat::Freebsd14 => ("compat14", "memseg-domains", |b| b.memseg == MemsegAbi::Domains),
        }
    }
}

/// The options that are words, in the form in which they are written.
const OPTION_WORDS: [(&str, Word); 5] = [
    ("debug", Word::Debug(true)),
    ("nodebug", Word::Debug(false)),
    ("compat12", Word::Compat(Compat::Freebsd12)),
    ("compat13", Word::Compat(Compat::Freebsd13)),
    ("compat14", Word::Compat(Compat::Freebsd14)),
];

const MAXCPU: &str = "maxcpu=";

impl KernelVersion {
    /// Every named kernel, oldest first, FreeBSD's before illumos's.
    pub fn all() -> impl Iterator<Item = KernelVersion> {
        NAMED.iter().map(Named::version)
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// [`VersionError::UnknownKernel`].
    pub fn named(name: &str) -> Result<KernelVersion, VersionError> {
        Named::find(name).map(Named::version).ok_or_else(|| VersionError::UnknownKernel(name.to_owned()))
    }

    /// A kernel from a text: the name of one, and any number of words behind it, each with `+` or `-` before it. A word is a
    /// [`Change`] that is added or left out, or an option: `+debug` and `-debug` (or `+nodebug`), `-compat12`, `-compat13`, `-compat14`,
    /// `+maxcpu=N`, for example `fbsd-14-compat13`, `main-98568a00+nodebug`, `fbsd-13.2-exit-mask`.
    ///
    /// Names and words contain `-` themselves: the longest known name counts, and then the longest known word each time. The text is
    /// the kernel's name in cells.
    ///
    /// # Errors
    /// When the text names no kernel or an unknown word, and when the set is inconsistent.
    pub fn parse(text: &str) -> Result<KernelVersion, VersionError> {
        let ends = |rest: &str| rest.is_empty() || rest.starts_with(['+', '-']);
        let base = NAMED
            .iter()
            .filter(|named| text.strip_prefix(named.name).is_some_and(ends))
            .max_by_key(|named| named.name.len())
            .ok_or_else(|| VersionError::NoKernel {
                text: text.to_owned(),
                nearest: nearest(text, NAMED.iter().map(|named| named.name)),
            })?;
        base.version().modified(&text[base.name.len()..])
    }

    /// The kernel that words behind this one's name make of it, as in [`KernelVersion::parse`]: `+exit-mask-debug`.
    ///
    /// # Errors
    /// When a word is unknown, and when the set is inconsistent.
    pub fn modified(&self, words: &str) -> Result<KernelVersion, VersionError> {
        let ends = |rest: &str| rest.is_empty() || rest.starts_with(['+', '-']);
        let mut rest = words;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let mut options = self.options;
        let (mut compat, mut max_cpu) = (Vec::new(), None);
        while let Some(sign) = rest.chars().next() {
            let plus = sign == '+';
            let words = &rest[1..];
            if let Some(number) = words.strip_prefix(MAXCPU) {
                let digits = number.find(['+', '-']).unwrap_or(number.len());
                let bad = || VersionError::BadMaxCpu(format!("{MAXCPU}{}", &number[..digits]));
                let parsed = number[..digits].parse().ok().filter(|&cpus: &u16| cpus > 0 && plus);
                max_cpu = Some(parsed.ok_or_else(bad)?);
                rest = &number[digits..];
                continue;
            }
            let changes = CHANGES.iter().map(|change| (change.name, Word::Change(change.name)));
            let (spelled, word) = changes
                .chain(OPTION_WORDS)
                .filter(|(spelled, _)| words.strip_prefix(spelled).is_some_and(ends))
                .max_by_key(|(spelled, _)| spelled.len())
                .ok_or_else(|| unknown_word(words))?;
            match word {
                // The last word about a change counts.
                Word::Change(name) => {
                    with.retain(|other| *other != name);
                    without.retain(|other| *other != name);
                    if plus { with.push(name) } else { without.push(name) }
                }
                Word::Debug(debug) => options.debug = debug == plus,
                Word::Compat(which) => compat.push((which, plus)),
            }
            rest = &words[spelled.len()..];
        }
        if words.is_empty() {
            return Ok(self.clone());
        }
        let name = format!("{}{words}", self.name);
        let about = format!("{}, changed: {words}", self.name);
        let version = self.what_if(&name, &about, &with, &without)?;
        let behaviour = version.behaviour();
        for (which, plus) in compat {
            let (option, came_with, means) = which.meaning();
            if !means(&behaviour) {
                return Err(VersionError::MeaninglessOption { kernel: version.name.to_string(), option, came_with });
            }
            *options.compat(which) = plus;
        }
        if let Some(max_cpu) = max_cpu {
            if behaviour.max_cpus != MaxCpus::Tunable {
                let kernel = version.name.to_string();
                return Err(VersionError::MeaninglessOption { kernel, option: "maxcpu", came_with: "maxcpu-tunable" });
            }
            options.max_cpu = max_cpu;
        }
        Ok(version.with_options(options))
    }

    /// A what-if kernel: this one with some changes added and some left out.
    ///
    /// # Errors
    /// When a change is unknown or of another lineage, or one that stays needs one that is not there.
    pub fn what_if(
        &self,
        name: &str,
        about: &str,
        with: &[impl AsRef<str>],
        without: &[impl AsRef<str>],
    ) -> Result<KernelVersion, VersionError> {
        for wanted in with.iter().map(AsRef::as_ref).chain(without.iter().map(AsRef::as_ref)) {
            let change = Change::named(wanted).ok_or_else(|| VersionError::UnknownChange(wanted.to_owned()))?;
            if change.lineage != self.lineage {
                let (kernel, lineage) = (self.name.to_string(), self.lineage);
                return Err(VersionError::ForeignChange { change: change.name, of: change.lineage, kernel, lineage });
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

    /// The same set of changes, built otherwise.
    #[must_use]
    pub fn with_options(self, options: BuildOptions) -> KernelVersion {
        KernelVersion { options, ..self }
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
        let mut behaviour = self.lineage.base();
        for change in self.changes() {
            (change.apply)(&mut behaviour);
        }
        behaviour
    }

    /// How many vCPUs a VM can have: `VM_MAXCPU`, or `hw.vmm.maxcpu` within 1 and `CPU_SETSIZE`.
    #[must_use]
    pub fn max_vcpus(&self) -> u16 {
        let behaviour = self.behaviour();
        match behaviour.max_cpus {
            MaxCpus::CompiledIn(cpus) => cpus,
            MaxCpus::Tunable => self.options.max_cpu.clamp(1, behaviour.cpu_setsize),
        }
    }
}

impl BuildOptions {
    fn compat(&mut self, which: Compat) -> &mut bool {
        match which {
            Compat::Freebsd12 => &mut self.compat12,
            Compat::Freebsd13 => &mut self.compat13,
            Compat::Freebsd14 => &mut self.compat14,
        }
    }
}

/// As the configuration files have them: `INVARIANTS WITNESS COMPAT_FREEBSD12 … hw.vmm.maxcpu=255`.
impl fmt::Display for BuildOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BuildOptions { debug, compat12, compat13, compat14, max_cpu } = self;
        if *debug {
            f.write_str("INVARIANTS WITNESS ")?;
        }
        for (has, name) in [(compat12, "12"), (compat13, "13"), (compat14, "14")] {
            if *has {
                write!(f, "COMPAT_FREEBSD{name} ")?;
            }
        }
        write!(f, "hw.vmm.maxcpu={max_cpu}")
    }
}

/// The word at the beginning of the text is not known: it ends at the next `+`, or at the next `-` behind which one is.
fn unknown_word(words: &str) -> VersionError {
    let known = || CHANGES.iter().map(|change| change.name).chain(OPTION_WORDS.map(|(spelled, _)| spelled));
    let signs = words.match_indices(['+', '-']).map(|(at, _)| at);
    let ends = signs.filter(|&at| {
        let rest = &words[at + 1..];
        words[at..].starts_with('+') || rest.starts_with(MAXCPU) || known().any(|word| rest.starts_with(word))
    });
    let end = ends.min().unwrap_or(words.len());
    let word = &words[..end];
    let nearest = if word.starts_with("max") { MAXCPU.to_owned() + "N" } else { nearest(word, known()).to_owned() };
    VersionError::UnknownWord { word: word.to_owned(), nearest }
}

/// The candidate with the smallest edit distance; the first of several.
fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    candidates.min_by_key(|candidate| edit_distance(text, candidate)).expect("there are kernels and changes")
}

/// Levenshtein's distance, in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Boundary, ExitMask, InitRendezvous, SpinupVcpu};
    use crate::trace::StartupStore;

    const NONE: [&str; 0] = [];

    #[test]
    fn every_named_kernel_has_what_its_changes_need() {
        for version in KernelVersion::all() {
            assert_eq!(version.what_if(&version.name, &version.about, &NONE, &NONE), Ok(version.clone()));
        }
    }

    #[test]
    fn every_base_and_every_addition_exists_and_every_change_is_in_a_kernel() {
        for (i, named) in NAMED.iter().enumerate() {
            assert!(named.base.is_none_or(|base| NAMED[..i].iter().any(|older| older.name == base)), "{}", named.name);
            for change in named.adds {
                assert_eq!(Change::named(change).map(|change| change.lineage), Some(named.lineage), "{}", named.name);
            }
        }
        for change in CHANGES {
            assert!(KernelVersion::all().any(|kernel| kernel.has(change.name)), "{}", change.name);
        }
        let newest = KernelVersion::named("fbsd-15").expect("named");
        let freebsds = CHANGES.iter().filter(|change| change.lineage == Lineage::FreeBsd).map(|change| change.name);
        assert!(freebsds.eq(newest.changes().map(|change| change.name)), "15 has all that came before");
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
    fn kernels_are_built_as_their_generic_was() {
        for version in KernelVersion::all() {
            let of_main = version.name.starts_with("main-") || &*version.name == "naive-widen";
            assert_eq!(version.options.debug, of_main, "{}", version.name);
        }
        let limits = ["fbsd-10.0", "main-98568a00", "fbsd-13.2", "fbsd-14", "fbsd-15", "illumos"]
            .map(|name| KernelVersion::named(name).expect("named").max_vcpus());
        assert_eq!(limits, [16, 16, 255, 1024, 1024, 32]);
    }

    #[test]
    fn illumos_goes_its_own_way() {
        let illumos = KernelVersion::named("illumos").expect("named");
        let behaviour = illumos.behaviour();
        assert_eq!((behaviour.boundary, behaviour.startup_store), (Boundary::Illumos, StartupStore::RunState));
        let error = KernelVersion::parse("fbsd-14+run-state").expect_err("a foreign change");
        assert_eq!(error.to_string(), "The change run-state is illumos's, and fbsd-14 is a kernel of FreeBSD");
    }

    #[test]
    fn what_if_kernels_are_checked() {
        let fixed = KernelVersion::named("fbsd-13.2").expect("named");
        let without_mask = fixed.what_if("x", "", &NONE, &["exit-mask"]).expect("a kernel");
        assert_eq!(without_mask.behaviour().exit_mask, ExitMask::Dmask);
        assert_eq!(
            fixed.what_if("x", "", &NONE, &["handle-ipi"]),
            Err(VersionError::MissingNeed { change: "exit-mask", need: "handle-ipi" })
        );
        assert_eq!(fixed.what_if("x", "", &["warp"], &NONE), Err(VersionError::UnknownChange("warp".into())));
        assert_eq!(KernelVersion::named("fbsd-99"), Err(VersionError::UnknownKernel("fbsd-99".into())));
    }

    fn parse(text: &str) -> KernelVersion {
        KernelVersion::parse(text).expect(text)
    }

    #[test]
    fn names_are_parsed_with_what_stands_behind_them() {
        for version in KernelVersion::all() {
            assert_eq!(parse(&version.name), version);
        }
        let without = parse("fbsd-13.2-exit-mask");
        assert_eq!(without.behaviour().exit_mask, ExitMask::Dmask);
        assert_eq!(&*without.name, "fbsd-13.2-exit-mask");
        assert_eq!(without.options, parse("fbsd-13.2").options);
        assert!(!parse("fbsd-14-compat13").options.compat13);
        assert!(parse("fbsd-14-compat13").options.compat12);
        assert!(!parse("main-98568a00+nodebug").options.debug);
        assert!(!parse("main-98568a00-debug").options.debug);
        assert!(parse("fbsd-13.2+debug").options.debug);
        let several = parse("main-7c326ab5+exit-mask+spinup-ffs-debug+maxcpu=64-maxcpu-tunable+maxcpu-tunable");
        assert_eq!(several.options.max_cpu, 64);
        assert!(several.has("exit-mask") && several.has("spinup-ffs") && !several.has("rendezvous-active"));
    }

    #[test]
    fn the_longest_known_word_counts() {
        // `snapshot` and `snapshot-meta` are both changes.
        let kernel = parse("fbsd-14-snapshot-meta");
        assert!(kernel.has("snapshot") && !kernel.has("snapshot-meta"));
        let kernel = parse("fbsd-14-snapshot-meta-snapshot");
        assert!(!kernel.has("snapshot"));
    }

    #[test]
    fn mistakes_are_named() {
        let complaint = |text| KernelVersion::parse(text).expect_err(text).to_string();
        assert_eq!(complaint("fbsd-13.2-handle-ipi"), "The change exit-mask needs handle-ipi, which is left out");
        assert_eq!(
            complaint("fbsd-13.2-exit-msk+debug"),
            "exit-msk is neither a change nor a build option; the nearest is exit-mask"
        );
        assert_eq!(
            complaint("fbsd-14-warp-compat13"),
            "warp is neither a change nor a build option; the nearest is debug"
        );
        assert_eq!(complaint("fsd-14"), "fsd-14 does not begin with the name of a kernel; the nearest is fbsd-14");
        assert_eq!(
            complaint("fbsd-13.1-compat13"),
            "fbsd-13.1-compat13 has no compat13: that came with vm-run-pointers, snapshot-meta and indexed-stats"
        );
        assert_eq!(complaint("fbsd-13.1+maxcpu=4"), "fbsd-13.1+maxcpu=4 has no maxcpu: that came with maxcpu-tunable");
        for text in ["fbsd-14+maxcpu=", "fbsd-14+maxcpu=0", "fbsd-14-maxcpu=4", "fbsd-14+maxcpu=many"] {
            assert!(complaint(text).contains("with N from 1 to 65535"), "{text}");
        }
    }

    #[test]
    fn options_in_words() {
        assert_eq!(
            parse("main-7c326ab5").options.to_string(),
            "INVARIANTS WITNESS COMPAT_FREEBSD12 COMPAT_FREEBSD13 COMPAT_FREEBSD14 hw.vmm.maxcpu=255"
        );
    }
}
