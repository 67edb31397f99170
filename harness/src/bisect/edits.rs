//! What turns one kernel into another, and which kernels follow one another.

use super::BisectError;
use crate::matrix::Matrix;
use std::fmt;
use vmm::history::{CHANGES, Change, KernelVersion};

/// A change that is added, or left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The change is added.
    With(&'static str),
    /// The change is left out.
    Without(&'static str),
}

impl Edit {
    /// The change itself.
    #[must_use]
    pub fn change(&self) -> &'static Change {
        let (Edit::With(name) | Edit::Without(name)) = self;
        Change::named(name).expect("an edit names a change")
    }

    /// Whether this one makes no sense without the other: a change that is added needs what it needs, and one that is left
    /// out takes with it what needs it.
    #[must_use]
    pub fn needs(&self, other: &Edit) -> bool {
        match (self, other) {
            (Edit::With(_), Edit::With(need)) => self.change().needs.contains(need),
            (Edit::Without(need), Edit::Without(_)) => other.change().needs.contains(need),
            _ => false,
        }
    }

    pub(super) fn is_of_the_same_commit(&self, other: &Edit) -> bool {
        self.change().commit == other.change().commit
    }

    /// `b265a2e0d764 (D38446), 2023-02`.
    #[must_use]
    pub fn reference(&self) -> String {
        let Change { commit, review, date, .. } = self.change();
        review.map_or(format!("{commit}, {date}"), |review| format!("{commit} ({review}), {date}"))
    }
}

/// As a kernel's name has it: `+exit-mask`.
impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edit::With(name) => write!(f, "+{name}"),
            Edit::Without(name) => write!(f, "-{name}"),
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
/// what is added, the oldest first.
pub(crate) fn edits_between(matrix: &Matrix, from: &str, to: &str) -> Result<Vec<Edit>, BisectError> {
    let (from, to) = (kernel(matrix, from)?, kernel(matrix, to)?);
    let differ = |less: &KernelVersion, more: &KernelVersion| -> Vec<&'static str> {
        let only = |change: &&Change| more.has(change.name) && !less.has(change.name);
        CHANGES.iter().filter(only).map(|change| change.name).collect()
    };
    let without = differ(&to, &from).into_iter().rev().map(Edit::Without);
    Ok(without.chain(differ(&from, &to).into_iter().map(Edit::With)).collect())
}

fn contains(more: &KernelVersion, less: &KernelVersion) -> bool {
    less.changes().all(|change| more.has(change.name))
}

/// Whether the kernel has each commit whole or not at all. One that has a part of a commit never was.
fn is_historical(kernel: &KernelVersion) -> bool {
    kernel
        .changes()
        .all(|change| CHANGES.iter().filter(|other| other.commit == change.commit).all(|other| kernel.has(other.name)))
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
