//! The names that exist: those that are listed, and those that are made from them.

use super::cells::{CellMatch, CpusSet};
use super::file::{CellsTable, ConfigError, CpusPattern, OneOrMany, Source};
use super::guest::OsGuest;
use super::kernels::Kernels;
use crate::catalog;
use crate::cell::{Cell, EngineKind};
use crate::pattern::{NameSet, Pattern, nearest};
use frontends::{ApicMode, Frontend};
use guests::MAX_CPUS;
use std::collections::HashMap;
use toml::Spanned;

/// Names with their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbered {
    pub list: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Numbered {
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Numbered {
        let mut numbered = Numbered::default();
        names.into_iter().for_each(|name| numbered.add(name));
        numbered
    }

    pub(super) fn add(&mut self, name: String) {
        if !self.numbers.contains_key(&name) {
            self.numbers.insert(name.clone(), self.list.len());
            self.list.push(name);
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }
}

/// The names that exist, to check others against.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub kernels: Numbered,
    pub frontends: Numbered,
    pub guests: Numbered,
}

impl Names {
    pub(super) fn new(kernels: &Kernels, os_guests: &[OsGuest]) -> Names {
        Names {
            kernels: Numbered::new(kernels.list().iter().map(|kernel| kernel.name.to_string())),
            frontends: Numbered::new(catalog::frontends().iter().map(|part| part.name.to_owned())),
            guests: Numbered::new(super::guest_names(os_guests).into_iter().map(str::to_owned)),
        }
    }

    fn unknown(what: &str, name: &str, known: &[String]) -> String {
        match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("no {what} is named `{name}` (did you mean `{near}`?)"),
            None => format!("no {what} is named `{name}`; there are {}", known.join(", ")),
        }
    }

    pub(super) fn check_kernel(&self, kernels: &Kernels, name: &str) -> Result<String, String> {
        if self.kernels.number(name).is_some() {
            return Ok(name.to_owned());
        }
        match kernels.resolve(name) {
            Ok(kernel) => Ok(kernel.name.to_string()),
            Err(Some(why)) => Err(why),
            Err(None) => Err(Names::unknown("kernel", name, &self.kernels.list)),
        }
    }

    pub(super) fn check_frontend(&self, name: &str) -> Result<String, String> {
        match name.parse::<Frontend>() {
            Ok(frontend) => Ok(frontend.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn check_guest(&self, name: &str) -> Result<String, String> {
        match guests::checked_name(name) {
            Some(checked) => checked,
            None if self.guests.number(name).is_some() => Ok(name.to_owned()),
            None => Err(Names::unknown("guest", name, &self.guests.list)),
        }
    }

    pub(super) fn check_cell(&self, kernels: &Kernels, cell: &Cell) -> Result<(), String> {
        self.check_frontend(&cell.frontend)?;
        self.check_kernel(kernels, &cell.kernel)?;
        self.check_guest(&cell.guest)?;
        check_cpus(&cell.cpus)?;
        Ok(())
    }

    /// A table of parts, of which each plain name exists and each glob matches one that does. Names that are made from
    /// others are known from now on.
    pub(super) fn cell_match(
        &mut self,
        source: Source<'_>,
        key: &str,
        table: &CellsTable,
        kernels: &mut Kernels,
    ) -> Result<CellMatch, ConfigError> {
        for (made, span) in made_names(&table.kernel, &self.kernels) {
            self.check_kernel(kernels, &made)
                .map_err(|message| source.error(span, &format!("{key}.kernel"), message))?;
            kernels.add(&made);
            self.kernels.add(made);
        }
        for (made, span) in made_names(&table.frontend, &self.frontends) {
            self.check_frontend(&made).map_err(|message| source.error(span, &format!("{key}.frontend"), message))?;
            self.frontends.add(made);
        }
        for (made, span) in made_names(&table.guest, &self.guests) {
            self.check_guest(&made).map_err(|message| source.error(span, &format!("{key}.guest"), message))?;
            self.guests.add(made);
        }
        let part = |what: &str, patterns: &Option<Spanned<OneOrMany<Pattern>>>, known: &[String]| {
            let Some(patterns) = patterns else { return Ok(None) };
            let names = NameSet::new(&patterns.get_ref().0);
            for pattern in names.patterns() {
                if !known.iter().any(|name| pattern.matches(name)) {
                    let message = Names::unknown(what, pattern.as_str(), known);
                    return Err(source.error(patterns.span(), &format!("{key}.{what}"), message));
                }
            }
            Ok(Some(names))
        };
        if let Some(cpus) = &table.cpus {
            for count in &cpus.get_ref().0 {
                if let CpusPattern::Exactly(count) | CpusPattern::Not(count) = count {
                    check_cpus(count).map_err(|message| source.error(cpus.span(), &format!("{key}.cpus"), message))?;
                }
            }
        }
        Ok(CellMatch {
            frontend: part("frontend", &table.frontend, &self.frontends.list)?,
            kernel: part("kernel", &table.kernel, &self.kernels.list)?,
            guest: part("guest", &table.guest, &self.guests.list)?,
            apic: part("apic", &table.apic, &ApicMode::ALL.map(|mode| mode.name().to_owned()))?,
            cpus: table.cpus.as_ref().map(|cpus| CpusSet(cpus.get_ref().0.clone())),
            engine: part("engine", &table.engine, &EngineKind::ALL.map(|engine| engine.name().to_owned()))?,
        })
    }
}

/// The plain names of a table that are not listed.
fn made_names(
    patterns: &Option<Spanned<OneOrMany<Pattern>>>,
    known: &Numbered,
) -> Vec<(String, std::ops::Range<usize>)> {
    let Some(patterns) = patterns else { return Vec::new() };
    let names = NameSet::new(&patterns.get_ref().0);
    names
        .patterns()
        .filter(|pattern| !pattern.is_glob() && known.number(pattern.as_str()).is_none())
        .map(|pattern| (pattern.as_str().to_owned(), patterns.span()))
        .collect()
}

pub(super) fn check_cpus(&cpus: &u16) -> Result<u16, String> {
    match cpus {
        0 => Err("a cell has at least 1 vCPU".into()),
        1..=MAX_CPUS => Ok(cpus),
        _ => Err(format!("a cell has at most {MAX_CPUS} vCPUs: no guest uses more")),
    }
}
