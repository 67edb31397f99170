//! What turns one kernel into another, and which kernels follow one another.

use super::BisectError;
use crate::matrix::Matrix;
use std::fmt;
use vmm::history::{BuildOptions, CHANGES, Change, KernelVersion, MaxCpus};

/// A step from one kernel to another: a change that is added or left out, or another way of building.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The change is added.
    With(&'static str),
    /// The change is left out.
    Without(&'static str),
    /// A build option is switched: the word as it stands behind a kernel's name, its sign included.
    Build(String),
}

impl Edit {
    /// The change; `None` of a build option.
    #[must_use]
    pub fn change(&self) -> Option<&'static Change> {
        match self {
            Edit::With(name) | Edit::Without(name) => Change::named(name),
            Edit::Build(_) => None,
        }
    }

    /// The name of the change or of the option.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Edit::With(name) | Edit::Without(name) => name,
            Edit::Build(word) => &word[1..],
        }
    }

    /// `+` or `−`, as people read it.
    #[must_use]
    pub fn sign(&self) -> char {
        match self {
            Edit::With(_) => '+',
            Edit::Without(_) => '−',
            Edit::Build(word) => {
                if word.starts_with('-') {
                    '−'
                } else {
                    '+'
                }
            }
        }
    }

    /// Whether this one makes no sense without the other: a change that is added needs what it needs, and one that is left
    /// out takes with it what needs it.
    #[must_use]
    pub fn needs(&self, other: &Edit) -> bool {
        match (self, other) {
            (Edit::With(name), Edit::With(need)) => {
                Change::named(name).is_some_and(|change| change.needs.contains(need))
            }
            (Edit::Without(need), Edit::Without(name)) => {
                Change::named(name).is_some_and(|change| change.needs.contains(need))
            }
            _ => false,
        }
    }

    pub(super) fn is_of_the_same_commit(&self, other: &Edit) -> bool {
        let commit = |edit: &Edit| edit.change().filter(|change| is_hash(change)).map(|change| change.commit);
        commit(self).is_some() && commit(self) == commit(other)
    }

    /// `b265a2e0d764 (D38446), 2023-02`.
    #[must_use]
    pub fn reference(&self) -> String {
        match self.change() {
            None => "a build option".into(),
            Some(Change { commit, review: None, date, .. }) => format!("{commit}, {date}"),
            Some(Change { commit, review: Some(review), date, .. }) => format!("{commit} ({review}), {date}"),
        }
    }

    /// What it does, with where that is written.
    #[must_use]
    pub fn about(&self) -> String {
        match self.change() {
            Some(change) => format!("{}: {}", self.reference(), change.effect),
            None => self.reference(),
        }
    }
}

/// Whether a change's commit is known by its hash, rather than by where its effect was read.
fn is_hash(change: &Change) -> bool {
    !change.commit.contains(' ')
}

/// As a kernel's name has it: `+exit-mask`.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edit::With(name) => write!(f, "+{name}"),
            Edit::Without(name) => write!(f, "-{name}"),
            Edit::Build(word) => f.write_str(word),
        }
    }
}

/// The name of the kernel that edits make of another.
pub(crate) fn apply(kernel: &str, edits: &[Edit]) -> String {
    edits.iter().fold(kernel.to_owned(), |name, edit| name + &edit.to_string())
}

fn kernel(matrix: &Matrix, name: &str) -> Result<KernelVersion, BisectError> {
    matrix.kernel(name).ok_or_else(|| BisectError::UnknownKernel(name.to_owned()))
}

/// What turns one kernel into another, in an order in which each step is a kernel: what is left out, the newest first, then
/// what is added, the oldest first, then how it is built.
pub(crate) fn edits_between(matrix: &Matrix, from: &str, to: &str) -> Result<Vec<Edit>, BisectError> {
    let (from, to) = (kernel(matrix, from)?, kernel(matrix, to)?);
    let differ = |less: &KernelVersion, more: &KernelVersion| -> Vec<&'static str> {
        let only = |change: &&Change| more.has(change.name) && !less.has(change.name);
        CHANGES.iter().filter(only).map(|change| change.name).collect()
    };
    let without = differ(&to, &from).into_iter().rev().map(Edit::Without);
    Ok(without.chain(differ(&from, &to).into_iter().map(Edit::With)).chain(built_otherwise(&from, &to)).collect())
}

/// The build options in which two kernels differ, as far as they mean something to the second.
fn built_otherwise(from: &KernelVersion, to: &KernelVersion) -> Vec<Edit> {
    let BuildOptions { debug, compat12, compat13, compat14, max_cpu } = to.options;
    let was = from.options;
    let switched = [
        ("debug", was.debug, debug),
        ("compat12", was.compat12, compat12),
        ("compat13", was.compat13, compat13),
        ("compat14", was.compat14, compat14),
    ];
    let mut edits: Vec<Edit> = switched
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(word, _, is)| Edit::Build(format!("{}{word}", if is { '+' } else { '-' })))
        .collect();
    if was.max_cpu != max_cpu && to.behaviour().max_cpus == MaxCpus::Tunable {
        edits.push(Edit::Build(format!("+maxcpu={max_cpu}")));
    }
    edits
}

fn contains(more: &KernelVersion, less: &KernelVersion) -> bool {
    less.changes().all(|change| more.has(change.name))
}

/// Whether the kernel has each commit whole or not at all. One that has a part of a commit never was.
fn is_historical(kernel: &KernelVersion) -> bool {
    let of_commit = |change: &'static Change| CHANGES.iter().filter(move |other| other.commit == change.commit);
    kernel
        .changes()
        .filter(|change| is_hash(change))
        .all(|change| of_commit(change).all(|other| kernel.has(other.name)))
}

/// The kernels from one to another, each of which has what the one before it has; those that never were are left out unless
/// they were asked for.
pub(crate) fn lineage(matrix: &Matrix, from: Option<&str>, to: Option<&str>) -> Result<Vec<String>, BisectError> {
    let from = from.map(|name| kernel(matrix, name)).transpose()?;
    let to = to.map(|name| kernel(matrix, name)).transpose()?;
    let mut chain: Vec<KernelVersion> = from.into_iter().collect();
    for next in matrix.kernels().iter().filter(|next| is_historical(next)) {
        let follows = chain.last().is_none_or(|last| contains(next, last) && !contains(last, next));
        if follows && to.as_ref().is_none_or(|to| contains(to, next) && !contains(next, to)) {
            chain.push(next.clone());
        }
    }
    chain.extend(to);
    Ok(chain.into_iter().map(|kernel| kernel.name.to_string()).collect())
}
