//! matrix.toml as it is written: the tables and keys, and where in the file something is wrong.

use super::bound::Bound;
use crate::pattern::Pattern;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use toml::Spanned;

/// What is wrong with a matrix file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {key}{message}", key = if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key concerned, with the tables that it stands in; empty when the file is no TOML.
    pub key: String,
    /// What is wrong, and how to put it right.
    pub message: String,
}

/// The text of a file with its name, to say where something is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    /// An error about a key whose value stands at `span`.
    pub(super) fn error(&self, span: Range<usize>, key: &str, message: impl Into<String>) -> ConfigError {
        let (line, column) = self.position(span.start);
        ConfigError { file: self.name.to_owned(), line, column, key: key.to_owned(), message: message.into() }
    }

    /// Line and column of a byte, both from 1.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// Reads the file's tables.
    pub(super) fn parse(&self) -> Result<File, ConfigError> {
        let deserializer =
            toml::Deserializer::parse(self.text).map_err(|error| self.toml_error(&error, String::new()))?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path: Vec<String> = error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    // `Spanned` shows itself as a map with keys of its own.
                    serde_path_to_error::Segment::Map { key } if !key.starts_with("$__") => Some(key.clone()),
                    _ => None,
                })
                .collect();
            self.toml_error(error.inner(), path.join("."))
        })
    }

    /// Reads the tables of kernels and guests alone.
    pub(super) fn parse_kernels_and_guests(&self) -> Result<(Vec<KernelTable>, Vec<GuestTable>), ConfigError> {
        #[derive(serde::Deserialize)]
        struct Parts {
            #[serde(default)]
            kernel: Vec<KernelTable>,
            #[serde(default)]
            guest: Vec<GuestTable>,
        }
        let Parts { kernel, guest } =
            toml::from_str(self.text).map_err(|error| self.toml_error(&error, String::new()))?;
        Ok((kernel, guest))
    }

    fn toml_error(&self, error: &toml::de::Error, key: String) -> ConfigError {
        self.error(error.span().unwrap_or_default(), &key, error.message().trim_end())
    }
}

/// One value, or a list of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Vec<T>, E> {
                Ok(vec![T::deserialize(de::value::StrDeserializer::new(value))?])
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Vec<T>, E> {
                Ok(vec![T::deserialize(de::value::I64Deserializer::new(value))?])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(value) = values.next_element()? {
                    all.push(value);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Values(PhantomData)).map(OneOrMany)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        String::deserialize(deserializer).map(Pattern::new)
    }
}

/// A condition on the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpusPattern {
    /// A number that is in.
    Exactly(u16),
    /// `"!4"`: a number that is kept out.
    Not(u16),
    /// `">= 17"`.
    Within(Bound),
}

impl<'de> Deserialize<'de> for CpusPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpusPattern, D::Error> {
        struct OneCondition;

        impl Visitor<'_> for OneCondition {
            type Value = CpusPattern;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of vCPUs, or a condition such as \">= 17\" or \"!4\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<CpusPattern, E> {
                u16::try_from(value)
                    .map(CpusPattern::Exactly)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<CpusPattern, E> {
                let not = value.strip_prefix('!').and_then(|number| number.trim().parse().ok()).map(CpusPattern::Not);
                not.or_else(|| value.parse().ok().map(CpusPattern::Within))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(OneCondition)
    }
}

/// The whole file.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub axes: AxesTable,
    pub limits: LimitsTable,
    #[serde(default)]
    pub kernel: Vec<KernelTable>,
    #[serde(default)]
    pub guest: Vec<GuestTable>,
    #[serde(default)]
    pub include: Vec<Spanned<CellsTable>>,
    #[serde(default)]
    pub exclude: Vec<Spanned<CellsTable>>,
    #[serde(default)]
    pub expect: Vec<Spanned<ExpectTable>>,
    #[serde(default)]
    pub regression: Vec<RegressionTable>,
    #[serde(default)]
    pub uncovered: Vec<UncoveredTable>,
    #[serde(default)]
    pub race: Vec<Spanned<RaceTable>>,
    #[serde(default)]
    pub support: Vec<Spanned<SupportTable>>,
}

/// `[axes]`: the cells are the product of these.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AxesTable {
    pub kernels: Spanned<Vec<Spanned<String>>>,
    pub frontends: Spanned<Vec<Spanned<String>>>,
    pub guests: Spanned<Vec<Spanned<String>>>,
    pub apic: Spanned<Vec<Spanned<String>>>,
    pub cpus: Spanned<Vec<Spanned<u16>>>,
    pub engines: Spanned<Vec<Spanned<String>>>,
}

/// `[limits]`: how long a cell may take.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsTable {
    pub soft: LimitTable,
    pub kvm: LimitTable,
}

/// Milliseconds: virtual for `soft`, real for `kvm`.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitTable {
    pub base_ms: u32,
    pub per_cpu_ms: u32,
}

/// `[[kernel]]`: a what-if kernel.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KernelTable {
    pub name: Spanned<String>,
    pub base: Spanned<String>,
    #[serde(default)]
    pub with: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub without: Option<Spanned<Vec<String>>>,
    pub about: String,
}

/// `[[guest]]`: an operating system.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GuestTable {
    pub name: Spanned<String>,
    pub about: String,
    /// A package that `spinup guests fetch` fetches, or a path.
    pub kernel: Spanned<String>,
    /// An initial RAM disk that spinup makes, or a path.
    pub initrd: Option<Spanned<String>>,
    pub cmdline: String,
    pub memory_mib: Spanned<u32>,
    pub protocol: Option<Spanned<String>>,
    pub limits: LimitsTable,
    #[serde(default)]
    pub milestones: Vec<MilestoneTable>,
    #[serde(default)]
    pub devices: Vec<Spanned<DeviceTable>>,
}

/// A PCI device of a guest's machine.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceTable {
    pub kind: Spanned<String>,
    pub slot: Option<Spanned<u8>>,
    pub transport: Option<Spanned<String>>,
    /// Of a disk.
    pub file: Option<Spanned<String>>,
    /// Of a disk: `ro` or `snapshot`.
    pub mode: Option<Spanned<String>>,
}

/// A line of a guest's console.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MilestoneTable {
    pub name: String,
    pub line: Pattern,
}

/// Which cells: the table of `[[include]]`, `[[exclude]]` and of `match` in `[[expect]]`. A key left out stands for every
/// value; names may be globs, and `!` before one keeps it out.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CellsTable {
    pub frontend: Option<Spanned<OneOrMany<Pattern>>>,
    pub kernel: Option<Spanned<OneOrMany<Pattern>>>,
    pub guest: Option<Spanned<OneOrMany<Pattern>>>,
    pub apic: Option<Spanned<OneOrMany<Pattern>>>,
    pub cpus: Option<Spanned<OneOrMany<CpusPattern>>>,
    pub engine: Option<Spanned<OneOrMany<Pattern>>>,
}

/// `[[expect]]`: what becomes of some cells, or what bounds are put on them, and why.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectTable {
    #[serde(rename = "match")]
    pub cells: Spanned<CellsTable>,
    pub outcome: Option<Spanned<String>>,
    pub parked_exits_per_s: Option<Spanned<String>>,
    pub reason: String,
    #[serde(rename = "ref")]
    pub reference: String,
}

/// `[[uncovered]]`: something declared that no cell exercises, and why.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UncoveredTable {
    pub what: Spanned<String>,
    pub name: Spanned<String>,
    pub reason: Spanned<String>,
}

/// `[[regression]]`: a cell that shows a known fault, beside one that does not.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegressionTable {
    pub id: Spanned<String>,
    pub about: String,
    pub bad: Spanned<String>,
    pub good: Spanned<String>,
    #[serde(rename = "ref")]
    pub reference: String,
}

/// `[[race]]`: cells on `kvm` that are known to end in more than one way.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RaceTable {
    #[serde(rename = "match")]
    pub cells: Spanned<CellsTable>,
    pub outcomes: Spanned<Vec<String>>,
    pub reason: String,
    #[serde(rename = "ref")]
    pub reference: Spanned<String>,
}

/// `[[support]]`: pairings that matter to a release.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SupportTable {
    #[serde(rename = "match")]
    pub cells: Spanned<CellsTable>,
    pub until: Option<Spanned<toml::value::Datetime>>,
    pub reason: String,
}
