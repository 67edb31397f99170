//! The kernels: the named ones, the what-ifs of the matrix, and those that a name makes from either.

use super::file::{ConfigError, KernelTable, Source};
use crate::cell::is_name;
use crate::pattern::did_you_mean;
use std::collections::BTreeSet;
use toml::Spanned;
use vmm::history::{CHANGES, KernelVersion, VersionError};

/// The kernels that have a name.
#[derive(Clone, Debug)]
pub(super) struct Kernels(Vec<KernelVersion>);

impl Kernels {
    /// The named kernels alone.
    pub(super) fn named() -> Kernels {
        Kernels(KernelVersion::all().collect())
    }

    /// The named kernels and the what-ifs; a what-if takes the place of the kernel whose name it has.
    pub(super) fn new(source: Source<'_>, what_ifs: &[KernelTable]) -> Result<Kernels, ConfigError> {
        let mut kernels = Kernels::named();
        let mut defined = BTreeSet::new();
        for table in what_ifs {
            let name = table.name.get_ref();
            if !is_name(name) {
                let message = format!("`{name}` is no name: letters, digits, `.`, `_`, `-` and `+`");
                return Err(source.error(table.name.span(), "kernel.name", message));
            }
            if !defined.insert(name) {
                let message = format!("a [[kernel]] above is already named `{name}`");
                return Err(source.error(table.name.span(), "kernel.name", message));
            }
            let version = kernels.what_if(source, table)?;
            match kernels.0.iter_mut().find(|kernel| kernel.name == version.name) {
                Some(shadowed) => *shadowed = version,
                None => kernels.0.push(version),
            }
        }
        Ok(kernels)
    }

    fn what_if(&self, source: Source<'_>, table: &KernelTable) -> Result<KernelVersion, ConfigError> {
        let base = self.resolve(table.base.get_ref()).map_err(|why| {
            let base = table.base.get_ref();
            let hint = did_you_mean(base, self.0.iter().map(|kernel| &*kernel.name));
            source.error(
                table.base.span(),
                "kernel.base",
                why.unwrap_or_else(|| format!("no kernel is named `{base}`{hint}")),
            )
        })?;
        let changes = |list: &Option<Spanned<Vec<String>>>| list.as_ref().map_or(Vec::new(), |l| l.get_ref().clone());
        let (with, without) = (changes(&table.with), changes(&table.without));
        let version = base.what_if(table.name.get_ref(), &table.about, &with, &without).map_err(|error| {
            let (key, list) = match &error {
                VersionError::UnknownChange(change) if with.contains(change) => ("kernel.with", &table.with),
                VersionError::UnknownChange(_) => ("kernel.without", &table.without),
                _ => ("kernel.name", &None),
            };
            let hint = match &error {
                VersionError::UnknownChange(change) => did_you_mean(change, CHANGES.iter().map(|change| change.name)),
                _ => String::new(),
            };
            let span = list.as_ref().map_or(table.name.span(), Spanned::span);
            source.error(span, key, format!("{error}{hint}"))
        })?;
        // A change that is there already, or not there to be left out, would make the what-if what its base is.
        for (key, list, wanted) in [("kernel.with", &table.with, false), ("kernel.without", &table.without, true)] {
            let Some(list) = list else { continue };
            if let Some(idle) = list.get_ref().iter().find(|change| base.has(change) != wanted) {
                let has = if wanted { "does not have" } else { "has" };
                let message = format!("`{}` {has} {idle} anyway; take it out", base.name);
                return Err(source.error(list.span(), key, message));
            }
        }
        Ok(version)
    }

    /// Every kernel that has a name: the named ones, oldest first, then the what-ifs.
    pub(super) fn list(&self) -> &[KernelVersion] {
        &self.0
    }

    /// Gives a kernel that a name makes its place in the list, so that it counts as one of the matrix's.
    pub(super) fn add(&mut self, name: &str) {
        if let Ok(kernel) = self.resolve(name)
            && !self.0.contains(&kernel)
        {
            self.0.push(kernel);
        }
    }

    /// The kernel with this name, or the one that the name makes: a kernel followed by words, such as `+CHANGE`, `-CHANGE` and
    /// `+nodebug` ([`KernelVersion::modified`]).
    ///
    /// # Errors
    /// Why the name makes no kernel; `None` when it does not even begin with one.
    pub(super) fn resolve(&self, name: &str) -> Result<KernelVersion, Option<String>> {
        if let Some(kernel) = self.0.iter().find(|kernel| *kernel.name == *name) {
            return Ok(kernel.clone());
        }
        let base = self
            .0
            .iter()
            .filter(|base| name.strip_prefix(&*base.name).is_some_and(|rest| rest.starts_with(['+', '-'])))
            .max_by_key(|base| base.name.len())
            .ok_or(None)?;
        base.modified(&name[base.name.len()..]).map_err(|error| Some(format!("`{name}`: {error}")))
    }
}
