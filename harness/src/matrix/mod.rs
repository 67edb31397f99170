//! The matrix: which cells there are, what is expected of each, and which regressions are known. It is written in
//! matrix.toml, of which a copy is built in.

mod file;
mod guest;
pub mod verdict;

pub use file::ConfigError;
pub use guest::{Milestone, OsGuest};

use crate::catalog;
use crate::cell::{Cell, EngineKind, is_name};
use crate::outcome::OutcomeKind;
use crate::pattern::{Pattern, did_you_mean, nearest};
use file::{CellsTable, GuestTable, KernelTable, LimitTable, LimitsTable, OneOrMany, RegressionTable, Source};
use frontends::ApicMode;
use guests::MAX_CPUS;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use vmm::history::{CHANGES, KernelVersion, VersionError};

/// The text of the matrix that is built in.
const DEFAULT: &str = include_str!("../../../matrix.toml");

/// The name by which errors call the matrix that is built in.
const DEFAULT_NAME: &str = "matrix.toml";

/// What is expected of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// What becomes of it.
    pub outcome: OutcomeKind,
    /// Why, when it is not ok.
    pub reason: Option<String>,
    /// Where that is written.
    pub reference: Option<String>,
}

/// A known regression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression {
    /// The name on the command line.
    pub id: String,
    /// What it is, in one sentence.
    pub about: String,
    /// A cell that shows it.
    pub bad: Cell,
    /// A cell that does not.
    pub good: Cell,
    /// Where it is written about.
    pub reference: String,
}

/// Values for the axes that a command line puts in place of the matrix's own, and filters over the cells that result. An
/// empty list leaves the axis as it is.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Kernels by name or glob.
    pub kernels: Vec<Pattern>,
    /// Frontends by name or glob.
    pub frontends: Vec<Pattern>,
    /// Guests by name or glob.
    pub guests: Vec<Pattern>,
    /// APIC modes.
    pub apic: Vec<ApicMode>,
    /// vCPU counts.
    pub cpus: Vec<u16>,
    /// Engines.
    pub engines: Vec<EngineKind>,
    /// A cell stays when its name matches any of these, or when there are none.
    pub filters: Vec<Pattern>,
}

/// Why a selection selects nothing. Each is a sentence with a way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// A name that nothing has.
    #[error("no {what} is named `{name}`{hint}; `spinup show {what}s` lists them")]
    Unknown {
        /// `kernel`, `frontend` or `guest`.
        what: &'static str,
        /// The name.
        name: String,
        /// The nearest name, as a question.
        hint: String,
    },
    /// A filter that no cell passes.
    #[error(
        "no cell matches `{filter}`{hint}; `spinup list` lists the cells, and --kernel, --frontend, --guest, --apic, --cpus and --engine add others"
    )]
    NoCell {
        /// The filter.
        filter: String,
        /// The nearest name, as a question.
        hint: String,
    },
    /// The axes leave nothing.
    #[error("no cell is left: an [[exclude]] of the matrix takes every cell of this selection out")]
    AllExcluded,
}

#[derive(Clone, Debug)]
struct Axes {
    kernels: Vec<String>,
    frontends: Vec<String>,
    guests: Vec<String>,
    apic: Vec<ApicMode>,
    cpus: Vec<u16>,
    engines: Vec<EngineKind>,
}

impl Axes {
    fn product(&self) -> impl Iterator<Item = Cell> + '_ {
        let Axes { kernels, frontends, guests, apic, cpus, engines } = self;
        kernels.iter().flat_map(move |kernel| {
            frontends.iter().flat_map(move |frontend| {
                guests.iter().flat_map(move |guest| {
                    apic.iter().flat_map(move |&apic| {
                        cpus.iter().flat_map(move |&cpus| {
                            engines.iter().map(move |&engine| Cell {
                                frontend: frontend.clone(),
                                kernel: kernel.clone(),
                                guest: guest.clone(),
                                apic,
                                cpus,
                                engine,
                            })
                        })
                    })
                })
            })
        })
    }
}

/// A set of cells by their parts; a part left out is any.
#[derive(Clone, Debug, Default)]
struct CellMatch {
    frontend: Option<Vec<Pattern>>,
    kernel: Option<Vec<Pattern>>,
    guest: Option<Vec<Pattern>>,
    apic: Option<Vec<Pattern>>,
    cpus: Option<Vec<u16>>,
    engine: Option<Vec<Pattern>>,
}

impl CellMatch {
    fn matches(&self, cell: &Cell) -> bool {
        let any = |patterns: &Option<Vec<Pattern>>, name: &str| {
            patterns.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        any(&self.frontend, &cell.frontend)
            && any(&self.kernel, &cell.kernel)
            && any(&self.guest, &cell.guest)
            && any(&self.apic, cell.apic.name())
            && any(&self.engine, cell.engine.name())
            && self.cpus.as_ref().is_none_or(|cpus| cpus.contains(&cell.cpus))
    }

    /// How many parts are given: the more, the more specific.
    fn specificity(&self) -> usize {
        let CellMatch { frontend, kernel, guest, apic, cpus, engine } = self;
        [frontend, kernel, guest, apic, engine].into_iter().filter(|part| part.is_some()).count()
            + usize::from(cpus.is_some())
    }
}

#[derive(Clone, Debug)]
struct Rule {
    cells: CellMatch,
    expectation: Expectation,
    span: Range<usize>,
}

/// How long cells may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    soft: LimitTable,
    kvm: LimitTable,
}

/// The matrix, checked.
#[derive(Clone, Debug)]
pub struct Matrix {
    axes: Axes,
    limits: Limits,
    kernels: Vec<KernelVersion>,
    os_guests: Vec<OsGuest>,
    includes: Vec<CellMatch>,
    excludes: Vec<CellMatch>,
    rules: Vec<Rule>,
    regressions: Vec<Regression>,
}

impl Matrix {
    /// The matrix that is built in.
    ///
    /// # Errors
    /// When the matrix.toml of the build is wrong; a test keeps it right.
    pub fn built_in() -> Result<Matrix, ConfigError> {
        Matrix::parse(DEFAULT_NAME, DEFAULT)
    }

    /// The matrix in a file.
    ///
    /// # Errors
    /// A sentence that begins with the file, and the line and column when the file can be read.
    pub fn read(path: &Path) -> Result<Matrix, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: the matrix cannot be read: {error}", path.display()))?;
        Matrix::parse(&path.display().to_string(), &text).map_err(|error| error.to_string())
    }

    /// The matrix in a text.
    ///
    /// # Errors
    /// Where the text is no matrix: the name of the file, line, column and key.
    pub fn parse(name: &str, text: &str) -> Result<Matrix, ConfigError> {
        let source = Source { name, text };
        let file = source.parse()?;
        let kernels = known_kernels(source, &file.kernel)?;
        let os_guests = os_guests(source, &file.guest)?;
        let names = Names::new(&kernels, &os_guests);
        let axes = Axes {
            kernels: axis(source, "axes.kernels", &file.axes.kernels, |name| names.check_kernel(name))?,
            frontends: axis(source, "axes.frontends", &file.axes.frontends, |name| names.check_frontend(name))?,
            guests: axis(source, "axes.guests", &file.axes.guests, |name| names.check_guest(name))?,
            apic: axis(source, "axes.apic", &file.axes.apic, |name| apic_named(name))?,
            cpus: axis(source, "axes.cpus", &file.axes.cpus, check_cpus)?,
            engines: axis(source, "axes.engines", &file.axes.engines, |name| engine_named(name))?,
        };
        let LimitsTable { soft, kvm } = file.limits;
        let mut matrix = Matrix {
            axes,
            limits: Limits { soft, kvm },
            kernels: kernels.clone(),
            os_guests: os_guests.clone(),
            includes: Vec::new(),
            excludes: Vec::new(),
            rules: Vec::new(),
            regressions: Vec::new(),
        };
        for table in &file.include {
            let include = names.cell_match(source, "include", table.get_ref())?;
            let there = matrix.configured();
            if matrix.included(&include, &matrix.axes.engines).iter().all(|cell| there.contains(cell)) {
                return Err(source.error(table.span(), "include", "adds no cell to the matrix; take it out"));
            }
            matrix.includes.push(include);
        }
        for table in &file.exclude {
            let exclude = names.cell_match(source, "exclude", table.get_ref())?;
            if !matrix.configured().iter().any(|cell| exclude.matches(cell)) {
                return Err(source.error(table.span(), "exclude", "matches no cell of the matrix; take it out"));
            }
            matrix.excludes.push(exclude);
        }
        for table in &file.expect {
            matrix.add_rule(source, &names, table)?;
        }
        matrix.check_rules(source)?;
        for table in file.regression {
            let cell = |key: &str, text: &Spanned<String>| {
                let cell: Cell = text
                    .get_ref()
                    .parse()
                    .map_err(|error: crate::cell::CellNameError| source.error(text.span(), key, error.to_string()))?;
                names.check_cell(&cell).map_err(|message| source.error(text.span(), key, message))?;
                Ok(cell)
            };
            let bad = cell("regression.bad", &table.bad)?;
            let good = cell("regression.good", &table.good)?;
            let id = table.id.get_ref();
            if !is_name(id) || matrix.regression(id).is_some() {
                return Err(source.error(
                    table.id.span(),
                    "regression.id",
                    format!("`{id}` is no name, or another regression has it"),
                ));
            }
            let RegressionTable { about, reference, .. } = table;
            matrix.regressions.push(Regression { id: id.clone(), about, bad, good, reference });
        }
        Ok(matrix)
    }

    fn add_rule(
        &mut self,
        source: Source<'_>,
        names: &Names<'_>,
        table: &Spanned<file::ExpectTable>,
    ) -> Result<(), ConfigError> {
        let expect = table.get_ref();
        let outcome = expect.outcome.get_ref().parse().map_err(|error: crate::outcome::OutcomeNameError| {
            source.error(expect.outcome.span(), "expect.outcome", error.to_string())
        })?;
        let cells = names.cell_match(source, "expect.match", expect.cells.get_ref())?;
        let expectation =
            Expectation { outcome, reason: Some(expect.reason.clone()), reference: Some(expect.reference.clone()) };
        self.rules.push(Rule { cells, expectation, span: expect.cells.span() });
        Ok(())
    }

    /// Every rule matches a cell, and no cell is torn between two rules.
    fn check_rules(&self, source: Source<'_>) -> Result<(), ConfigError> {
        let cells = self.configured();
        for rule in &self.rules {
            if !cells.iter().any(|cell| rule.cells.matches(cell)) {
                return Err(source.error(
                    rule.span.clone(),
                    "expect.match",
                    "matches no cell of the matrix; correct it or take the expectation out",
                ));
            }
        }
        for cell in &cells {
            let best = self.best_rules(cell);
            let Some(first) = best.first() else { continue };
            let Some(other) = best.iter().find(|rule| rule.expectation.outcome != first.expectation.outcome) else {
                continue;
            };
            let (line, _) = source.position(first.span.start);
            return Err(source.error(
                other.span.clone(),
                "expect.match",
                format!(
                    "expects {} of {cell}, but the expectation in line {line}, with as many keys, expects {}; \
                     add a key to one of them",
                    other.expectation.outcome, first.expectation.outcome
                ),
            ));
        }
        Ok(())
    }

    /// The most specific rules for a cell, in the order of the file.
    fn best_rules(&self, cell: &Cell) -> Vec<&Rule> {
        let mut best: Vec<&Rule> = self.rules.iter().filter(|rule| rule.cells.matches(cell)).collect();
        let most = best.iter().map(|rule| rule.cells.specificity()).max();
        best.retain(|rule| Some(rule.cells.specificity()) == most);
        best
    }

    /// What is expected of a cell: what the most specific expectation says, and otherwise that it is ok.
    #[must_use]
    pub fn expectation(&self, cell: &Cell) -> Expectation {
        match self.best_rules(cell).first() {
            Some(rule) => rule.expectation.clone(),
            None => Expectation { outcome: OutcomeKind::Ok, reason: None, reference: None },
        }
    }

    /// Every kernel: the named ones, oldest first, then the what-ifs of the matrix.
    #[must_use]
    pub fn kernels(&self) -> &[KernelVersion] {
        &self.kernels
    }

    /// The kernel with this name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&KernelVersion> {
        self.kernels.iter().find(|kernel| &*kernel.name == name)
    }

    /// The operating systems that this matrix describes.
    #[must_use]
    pub fn os_guests(&self) -> &[OsGuest] {
        &self.os_guests
    }

    /// The operating system with this name.
    #[must_use]
    pub fn os_guest(&self, name: &str) -> Option<&OsGuest> {
        self.os_guests.iter().find(|guest| guest.name == name)
    }

    /// The names of all guests: the bare-metal ones, then the operating systems.
    fn guest_names(&self) -> Vec<&str> {
        guest_names(&self.os_guests)
    }

    /// The known regressions.
    #[must_use]
    pub fn regressions(&self) -> &[Regression] {
        &self.regressions
    }

    /// The regression with this id.
    #[must_use]
    pub fn regression(&self, id: &str) -> Option<&Regression> {
        self.regressions.iter().find(|regression| regression.id == id)
    }

    /// How long a cell may take: in virtual time on `soft`, in real time on `kvm`.
    #[must_use]
    pub fn limit(&self, cell: &Cell) -> Duration {
        let Limits { soft, kvm } = match self.os_guest(&cell.guest) {
            Some(guest) => Limits { soft: guest.soft, kvm: guest.kvm },
            None => self.limits,
        };
        let LimitTable { base_ms, per_cpu_ms } = match cell.engine {
            EngineKind::Soft => soft,
            EngineKind::Kvm => kvm,
        };
        Duration::from_millis(u64::from(base_ms) + u64::from(per_cpu_ms) * u64::from(cell.cpus))
    }

    /// Whether a cell's guest is on the axis of guests, rather than added beside it by an `[[include]]`.
    #[must_use]
    pub fn has_guest_on_axis(&self, guest: &str) -> bool {
        self.axes.guests.iter().any(|on_axis| on_axis == guest)
    }

    /// Whether a cell's names all exist here, and a guest can use its vCPUs.
    ///
    /// # Errors
    /// A sentence with the name that does not and the nearest that does, or with the number of vCPUs that would do.
    pub fn check_cell(&self, cell: &Cell) -> Result<(), String> {
        Names::new(&self.kernels, &self.os_guests).check_cell(cell)
    }

    /// Every cell of the matrix: the product of its axes, what it includes, without what it excludes.
    #[must_use]
    pub fn configured(&self) -> Vec<Cell> {
        self.cells(&self.axes, |_| true)
    }

    /// The cells that a selection leaves, in the order of the axes.
    ///
    /// # Errors
    /// When a name is unknown or nothing is left.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Cell>, SelectError> {
        let kernels: Vec<&str> = self.kernels.iter().map(|kernel| &*kernel.name).collect();
        let frontends: Vec<&str> = catalog::frontends().iter().map(|part| part.name).collect();
        let guests = self.guest_names();
        let Selection { apic, cpus, engines, filters, .. } = selection;
        let axes = Axes {
            kernels: chosen("kernel", &selection.kernels, &kernels, &self.axes.kernels)?,
            frontends: chosen("frontend", &selection.frontends, &frontends, &self.axes.frontends)?,
            guests: chosen("guest", &selection.guests, &guests, &self.axes.guests)?,
            apic: if apic.is_empty() { self.axes.apic.clone() } else { apic.clone() },
            cpus: if cpus.is_empty() { self.axes.cpus.clone() } else { cpus.clone() },
            engines: if engines.is_empty() { self.axes.engines.clone() } else { engines.clone() },
        };
        // A cell that the matrix includes beside its axes stays when it has what was asked for.
        let asked_for = |cell: &Cell| {
            (selection.kernels.is_empty() || axes.kernels.contains(&cell.kernel))
                && (selection.frontends.is_empty() || axes.frontends.contains(&cell.frontend))
                && (selection.guests.is_empty() || axes.guests.contains(&cell.guest))
                && (apic.is_empty() || apic.contains(&cell.apic))
                && (cpus.is_empty() || cpus.contains(&cell.cpus))
                && (engines.is_empty() || engines.contains(&cell.engine))
        };
        let mut cells = self.cells(&axes, asked_for);
        if cells.is_empty() {
            return Err(SelectError::AllExcluded);
        }
        let mut names: Vec<String> = cells.iter().map(Cell::to_string).collect();
        // A cell that is named in full needs no axis to be on.
        for filter in filters {
            if let Ok(cell) = filter.as_str().parse::<Cell>()
                && self.check_cell(&cell).is_ok()
                && !cells.contains(&cell)
            {
                names.push(cell.to_string());
                cells.push(cell);
            }
        }
        if let Some(idle) = filters.iter().find(|filter| !names.iter().any(|name| filter.selects(name))) {
            let words = names.iter().map(String::as_str).chain(frontends).chain(kernels).chain(guests);
            return Err(SelectError::NoCell { filter: idle.to_string(), hint: did_you_mean(idle.as_str(), words) });
        }
        let kept = |name: &String| filters.is_empty() || filters.iter().any(|filter| filter.selects(name));
        Ok(cells.into_iter().zip(&names).filter(|(_, name)| kept(name)).map(|(cell, _)| cell).collect())
    }

    fn cells(&self, axes: &Axes, asked_for: impl Fn(&Cell) -> bool) -> Vec<Cell> {
        let mut seen = BTreeSet::new();
        let included = self.includes.iter().flat_map(|include| self.included(include, &axes.engines));
        axes.product()
            .chain(included.filter(|cell| asked_for(cell)))
            .filter(|cell| !self.excludes.iter().any(|exclude| exclude.matches(cell)))
            .filter(|cell| seen.insert(cell.clone()))
            .collect()
    }

    /// The cells of an `[[include]]`: for each part what matches it among everything known, or the axis.
    fn included(&self, include: &CellMatch, engines: &[EngineKind]) -> Vec<Cell> {
        fn all<'a>(
            patterns: &Option<Vec<Pattern>>,
            known: impl Iterator<Item = &'a str>,
            axis: &[String],
        ) -> Vec<String> {
            match patterns {
                None => axis.to_vec(),
                Some(patterns) => known
                    .filter(|name| patterns.iter().any(|pattern| pattern.matches(name)))
                    .map(str::to_owned)
                    .collect(),
            }
        }
        let (frontends, guests) = (catalog::frontends(), self.guest_names());
        let axes = Axes {
            kernels: all(&include.kernel, self.kernels.iter().map(|kernel| &*kernel.name), &self.axes.kernels),
            frontends: all(&include.frontend, frontends.iter().map(|part| part.name), &self.axes.frontends),
            guests: all(&include.guest, guests.iter().copied(), &self.axes.guests),
            apic: match &include.apic {
                None => self.axes.apic.clone(),
                Some(patterns) => matching(patterns, &ApicMode::ALL, |apic| apic.name()),
            },
            cpus: include.cpus.clone().unwrap_or_else(|| self.axes.cpus.clone()),
            engines: match &include.engine {
                None => engines.to_vec(),
                Some(patterns) => matching(patterns, &EngineKind::ALL, |engine| engine.name()),
            },
        };
        axes.product().collect()
    }
}

fn matching<T: Copy>(patterns: &[Pattern], known: &[T], name: impl Fn(T) -> &'static str) -> Vec<T> {
    known.iter().copied().filter(|&value| patterns.iter().any(|pattern| pattern.matches(name(value)))).collect()
}

/// The names that `patterns` choose among the `known`, or the axis when there are none.
fn chosen(
    what: &'static str,
    patterns: &[Pattern],
    known: &[&str],
    axis: &[String],
) -> Result<Vec<String>, SelectError> {
    if patterns.is_empty() {
        return Ok(axis.to_vec());
    }
    if let Some(idle) = patterns.iter().find(|pattern| !known.iter().any(|name| pattern.matches(name))) {
        let hint = did_you_mean(idle.as_str(), known.iter().copied());
        return Err(SelectError::Unknown { what, name: idle.to_string(), hint });
    }
    Ok(known
        .iter()
        .filter(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        .map(|name| (*name).to_owned())
        .collect())
}

/// The named kernels and the what-ifs; a what-if takes the place of the kernel whose name it has.
fn known_kernels(source: Source<'_>, what_ifs: &[KernelTable]) -> Result<Vec<KernelVersion>, ConfigError> {
    let mut kernels: Vec<KernelVersion> = KernelVersion::all().collect();
    let mut defined = BTreeSet::new();
    for table in what_ifs {
        let name = table.name.get_ref();
        if !is_name(name) {
            let message = format!("`{name}` is no name: letters, digits, `.`, `_` and `-`");
            return Err(source.error(table.name.span(), "kernel.name", message));
        }
        if !defined.insert(name) {
            let message = format!("a [[kernel]] above is already named `{name}`");
            return Err(source.error(table.name.span(), "kernel.name", message));
        }
        let base = table.base.get_ref();
        let Some(base) = kernels.iter().find(|kernel| *kernel.name == **base) else {
            let hint = did_you_mean(base, kernels.iter().map(|kernel| &*kernel.name));
            let message = format!("no kernel is named `{base}`{hint}");
            return Err(source.error(table.base.span(), "kernel.base", message));
        };
        let changes = |list: &Option<Spanned<Vec<String>>>| list.as_ref().map_or(Vec::new(), |l| l.get_ref().clone());
        let (with, without) = (changes(&table.with), changes(&table.without));
        let version = base.what_if(name, &table.about, &with, &without).map_err(|error| {
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
        match kernels.iter_mut().find(|kernel| kernel.name == version.name) {
            Some(shadowed) => *shadowed = version,
            None => kernels.push(version),
        }
    }
    Ok(kernels)
}

/// The operating systems, each with a name of its own.
fn os_guests(source: Source<'_>, tables: &[GuestTable]) -> Result<Vec<OsGuest>, ConfigError> {
    let mut guests: Vec<OsGuest> = Vec::new();
    for table in tables {
        let guest = OsGuest::parse(source, table, |name| guest_names(&guests).contains(&name))?;
        guests.push(guest);
    }
    Ok(guests)
}

fn guest_names(os_guests: &[OsGuest]) -> Vec<&str> {
    let bare_metal = catalog::guests().into_iter().map(|part| part.name);
    bare_metal.chain(os_guests.iter().map(|guest| guest.name.as_str())).collect()
}

/// An axis: not empty, no value twice, each one known.
fn axis<T: Clone + PartialEq, U>(
    source: Source<'_>,
    key: &str,
    values: &Spanned<Vec<Spanned<T>>>,
    check: impl Fn(&T) -> Result<U, String>,
) -> Result<Vec<U>, ConfigError> {
    let list = values.get_ref();
    if list.is_empty() {
        return Err(source.error(values.span(), key, "an axis needs a value"));
    }
    list.iter()
        .enumerate()
        .map(|(i, value)| {
            if list[..i].iter().any(|earlier| earlier.get_ref() == value.get_ref()) {
                return Err(source.error(value.span(), key, "this value is already on the axis"));
            }
            check(value.get_ref()).map_err(|message| source.error(value.span(), key, message))
        })
        .collect()
}

fn apic_named(name: &str) -> Result<ApicMode, String> {
    ApicMode::named(name).ok_or_else(|| format!("`{name}` is no APIC mode: xapic or x2apic"))
}

fn engine_named(name: &str) -> Result<EngineKind, String> {
    EngineKind::ALL
        .into_iter()
        .find(|engine| engine.name() == name)
        .ok_or_else(|| format!("`{name}` is no engine: soft or kvm"))
}

fn check_cpus(&cpus: &u16) -> Result<u16, String> {
    match cpus {
        0 => Err("a cell has at least 1 vCPU".into()),
        1..=MAX_CPUS => Ok(cpus),
        _ => Err(format!("a cell has at most {MAX_CPUS} vCPUs: no guest uses more")),
    }
}

/// The names that exist, to check others against.
struct Names<'a> {
    kernels: Vec<&'a str>,
    frontends: Vec<&'static str>,
    guests: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn new(kernels: &'a [KernelVersion], os_guests: &'a [OsGuest]) -> Names<'a> {
        Names {
            kernels: kernels.iter().map(|kernel| &*kernel.name).collect(),
            frontends: catalog::frontends().iter().map(|part| part.name).collect(),
            guests: guest_names(os_guests),
        }
    }

    fn check(what: &str, name: &str, known: &[&str]) -> Result<String, String> {
        if known.contains(&name) {
            return Ok(name.to_owned());
        }
        let nearest = nearest(name, known.iter().copied());
        Err(match nearest {
            Some(near) => format!("no {what} is named `{name}` (did you mean `{near}`?)"),
            None => format!("no {what} is named `{name}`; there are {}", known.join(", ")),
        })
    }

    fn check_kernel(&self, name: &str) -> Result<String, String> {
        Names::check("kernel", name, &self.kernels)
    }

    fn check_frontend(&self, name: &str) -> Result<String, String> {
        Names::check("frontend", name, &self.frontends)
    }

    fn check_guest(&self, name: &str) -> Result<String, String> {
        Names::check("guest", name, &self.guests)
    }

    fn check_cell(&self, cell: &Cell) -> Result<(), String> {
        self.check_frontend(&cell.frontend)?;
        self.check_kernel(&cell.kernel)?;
        self.check_guest(&cell.guest)?;
        check_cpus(&cell.cpus)?;
        Ok(())
    }

    /// A table of parts, of which each plain name exists and each glob matches one that does.
    fn cell_match(&self, source: Source<'_>, key: &str, table: &CellsTable) -> Result<CellMatch, ConfigError> {
        let part = |what: &str, patterns: &Option<Spanned<OneOrMany<Pattern>>>, known: &[&str]| {
            let Some(patterns) = patterns else { return Ok(None) };
            for pattern in &patterns.get_ref().0 {
                if !known.iter().any(|name| pattern.matches(name)) {
                    let message = Names::check(what, pattern.as_str(), known)
                        .expect_err("a pattern that matches no known name is none of them");
                    return Err(source.error(patterns.span(), &format!("{key}.{what}"), message));
                }
            }
            Ok(Some(patterns.get_ref().0.clone()))
        };
        if let Some(cpus) = &table.cpus {
            for count in &cpus.get_ref().0 {
                check_cpus(count).map_err(|message| source.error(cpus.span(), &format!("{key}.cpus"), message))?;
            }
        }
        Ok(CellMatch {
            frontend: part("frontend", &table.frontend, &self.frontends)?,
            kernel: part("kernel", &table.kernel, &self.kernels)?,
            guest: part("guest", &table.guest, &self.guests)?,
            apic: part("apic", &table.apic, &ApicMode::ALL.map(ApicMode::name))?,
            cpus: table.cpus.as_ref().map(|cpus| cpus.get_ref().0.clone()),
            engine: part("engine", &table.engine, &EngineKind::ALL.map(EngineKind::name))?,
        })
    }
}

#[cfg(test)]
mod tests;
