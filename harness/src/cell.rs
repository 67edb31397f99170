//! A cell: one frontend on one kernel with one guest, and the name by which everybody calls it.

use frontends::ApicMode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The software processor, in virtual time.
    Soft,
    /// The host's KVM, in real time.
    Kvm,
}

impl EngineKind {
    /// Both, in the order of the axes.
    pub const ALL: [EngineKind; 2] = [EngineKind::Soft, EngineKind::Kvm];

    /// The name in cells.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Soft => "soft",
            EngineKind::Kvm => "kvm",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One cell of the matrix. Its text is its name everywhere: `frontend@kernel/guest/apic-cpus/engine`.
///
/// The order of cells is that of their fields, which is not the order of the matrix: that follows the axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// The userspace side.
    pub frontend: String,
    /// The kernel side.
    pub kernel: String,
    /// What boots.
    pub guest: String,
    /// The local APICs' mode.
    pub apic: ApicMode,
    /// How many vCPUs.
    pub cpus: u16,
    /// What executes it.
    pub engine: EngineKind,
}

/// Why a text is no cell's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no cell: {problem}; a cell reads like bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft")]
pub struct CellNameError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Cell {
    /// `frontend@kernel`.
    #[must_use]
    pub fn pairing(&self) -> String {
        format!("{}@{}", self.frontend, self.kernel)
    }

    /// The relative path of a file for this cell, with an extension. It is the cell's name: names consist of characters
    /// that every file system takes ([`is_name`]), and the slashes become directories.
    #[must_use]
    pub fn file(&self, extension: &str) -> PathBuf {
        PathBuf::from(format!("{self}.{extension}"))
    }
}

/// Whether a text may name a frontend, kernel or guest: letters, digits, `.`, `_` and `-`, not beginning with a sign. What
/// is made from another adds to its name with `+` and `-`, and may give a number after `=`: `bhyve-13.1+monitor`,
/// `fbsd-13.2-exit-mask`, `fbsd-14+maxcpu=16`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '='))
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { frontend, kernel, guest, apic, cpus, engine } = self;
        write!(f, "{frontend}@{kernel}/{guest}/{apic}-{cpus}/{engine}")
    }
}

impl FromStr for Cell {
    type Err = CellNameError;

    fn from_str(text: &str) -> Result<Cell, CellNameError> {
        let error = |problem: String| CellNameError { text: text.to_owned(), problem };
        let parts: Vec<&str> = text.split('/').collect();
        let [pairing, guest, machine, engine] = parts[..] else {
            return Err(error(format!("between slashes it has not 4 parts but {}", parts.len())));
        };
        let (frontend, kernel) =
            pairing.split_once('@').ok_or_else(|| error(format!("`{pairing}` is no frontend@kernel")))?;
        for name in [frontend, kernel, guest] {
            if !is_name(name) {
                return Err(error(format!("`{name}` is no name")));
            }
        }
        let (apic, cpus) = machine.rsplit_once('-').ok_or_else(|| error(format!("`{machine}` is no apic-cpus")))?;
        let apic = ApicMode::named(apic).ok_or_else(|| error(format!("`{apic}` is neither xapic nor x2apic")))?;
        let cpus = cpus
            .parse()
            .ok()
            .filter(|&n: &u16| n > 0 && n.to_string() == cpus)
            .ok_or_else(|| error(format!("`{cpus}` is no number of vCPUs")))?;
        let engine = EngineKind::ALL
            .into_iter()
            .find(|known| known.name() == engine)
            .ok_or_else(|| error(format!("`{engine}` is neither soft nor kvm")))?;
        Ok(Cell { frontend: frontend.into(), kernel: kernel.into(), guest: guest.into(), apic, cpus, engine })
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cell, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_name_of_the_design_is_a_cell() {
        let name = "bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft";
        let cell: Cell = name.parse().expect("a cell");
        assert_eq!(cell.pairing(), "bhyve-13.1@main-7c326ab5");
        assert_eq!((cell.apic, cell.cpus, cell.engine), (ApicMode::Xapic, 2, EngineKind::Soft));
        assert_eq!(cell.to_string(), name);
        assert_eq!(cell.file("jsonl").to_str(), Some("bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft.jsonl"));
    }

    #[test]
    fn what_is_no_cell_says_why() {
        let problems: Vec<String> = [
            "bhyve-13.1@fbsd-13.1",
            "bhyve-13.1/mp-spec/xapic-2/soft",
            "bhyve-13.1@../mp-spec/xapic-2/soft",
            "bhyve-13.1@../mp-spec/xapic-2",
            "a@b/c/xapic/soft",
            "a@b/c/lapic-2/soft",
            "a@b/c/xapic-0/soft",
            "a@b/c/xapic-02/soft",
            "a@b/c/xapic-2/qemu",
        ]
        .iter()
        .map(|text| text.parse::<Cell>().expect_err(text).to_string())
        .collect();
        insta::assert_snapshot!(problems.join("\n"));
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(
            frontend in "[a-z0-9][a-zA-Z0-9._+=-]{0,12}",
            kernel in "[a-z0-9][a-zA-Z0-9._+=-]{0,12}",
            guest in "[a-z0-9][a-zA-Z0-9._-]{0,12}",
            apic in prop::sample::select(&ApicMode::ALL[..]),
            cpus in 1u16..,
            engine in prop::sample::select(&EngineKind::ALL[..]),
        ) {
            let cell = Cell { frontend, kernel, guest, apic, cpus, engine };
            prop_assert_eq!(cell.to_string().parse::<Cell>(), Ok(cell));
        }
    }
}
