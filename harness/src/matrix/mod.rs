//! The matrix: which cells there are, what is expected of each, and which regressions are known. It is written in
//! matrix.toml, of which a copy is built in.

mod bound;
mod cells;
mod device;
pub mod edit;
mod file;
mod guest;
mod kernels;
mod names;
mod policy;
mod rules;
pub mod verdict;

pub use bound::{Bound, BoundError};
pub use device::Device;
pub use file::ConfigError;
pub use guest::{Answer, Milestone, OsGuest, Prepared};
pub use policy::{Date, Supported};

use crate::catalog;
use crate::cell::{Cell, EngineKind, is_name};
use crate::outcome::OutcomeKind;
use crate::pattern::{NameSet, Pattern, did_you_mean};
use cells::CellMatch;
use file::{GuestTable, LimitTable, LimitsTable, RegressionTable, Source};
use frontends::ApicMode;
use kernels::Kernels;
use names::{Names, check_cpus};
use policy::Policy;
use rules::{Rule, Rules};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use toml::Spanned;
use verdict::Verdict;
use vmm::history::{Change, KernelVersion};

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
    /// The bound on the exits per second of a parked vCPU, when one is put.
    pub parked_exits_per_s: Option<Bound>,
}

impl Expectation {
    /// What to think of an outcome, and of what was measured.
    #[must_use]
    pub fn verdict(&self, observed: OutcomeKind, parked_exits_per_s: Option<f64>) -> Verdict {
        match Verdict::of(self.outcome, observed) {
            Verdict::Pass | Verdict::Xfail if self.violation(parked_exits_per_s).is_some() => Verdict::Fail,
            verdict => verdict,
        }
    }

    /// The words of an outcome, and behind them which bound is not kept, if one is not.
    #[must_use]
    pub fn detail(&self, words: String, parked_exits_per_s: Option<f64>) -> String {
        match self.violation(parked_exits_per_s) {
            Some(violation) => format!("{words}; {violation}"),
            None => words,
        }
    }

    /// Which bound is not kept, in words. What was not measured keeps every bound.
    fn violation(&self, parked_exits_per_s: Option<f64>) -> Option<String> {
        let (bound, rate) = (self.parked_exits_per_s?, parked_exits_per_s?);
        (!bound.holds(rate)).then(|| format!("a parked vCPU left the kernel {rate:.0} times a second, not {bound}"))
    }
}

/// An `[[expect]]` of the matrix, and how it fares with the matrix's cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleUse {
    /// The line of its `match`, from 1.
    pub line: usize,
    /// Its `match` as it is written.
    pub cells: String,
    /// The outcome that it expects, if it says so.
    pub outcome: Option<OutcomeKind>,
    /// The bound that it puts on the exits of parked vCPUs, if it does.
    pub parked_exits_per_s: Option<Bound>,
    /// Why.
    pub reason: String,
    /// How many cells it matches.
    pub matches: usize,
    /// Of how many it decides what is expected: it is the most specific that says so.
    pub decides: usize,
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

/// Something declared that no cell exercises, with a reason: an exception from the coverage check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncovered {
    /// `kernel`, `frontend`, `guest` or `change`.
    pub what: String,
    /// Its name.
    pub name: String,
    /// Why no cell exercises it, and what does.
    pub reason: String,
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
    /// A name that makes nothing of what it begins with: why, and what there is a list of.
    #[error("{0}; `spinup show {1}s` lists them")]
    Made(String, &'static str),
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
    kernels: Kernels,
    names: Names,
    os_guests: Vec<OsGuest>,
    includes: Vec<CellMatch>,
    excludes: Vec<CellMatch>,
    /// Every cell of the matrix.
    configured: Vec<Cell>,
    rules: Rules,
    regressions: Vec<Regression>,
    uncovered: Vec<Uncovered>,
    policy: Policy,
    source: Arc<MatrixSource>,
}

/// A matrix as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatrixSource {
    /// What errors call it.
    pub name: String,
    /// The text.
    pub text: String,
}

/// The kernels and the operating systems of a matrix, for whoever needs nothing else of it: reading them does not take long.
#[derive(Clone, Debug)]
pub struct KernelSet {
    kernels: Kernels,
    os_guests: Vec<OsGuest>,
}

impl KernelSet {
    /// The kernels and the operating systems of a matrix in a text.
    ///
    /// # Errors
    /// As [`Matrix::parse`], as far as it concerns them.
    pub fn parse(source: &MatrixSource) -> Result<KernelSet, ConfigError> {
        let source = Source { name: &source.name, text: &source.text };
        let (kernels, guests) = source.parse_kernels_and_guests()?;
        Ok(KernelSet { kernels: Kernels::new(source, &kernels)?, os_guests: os_guests(source, &guests)? })
    }

    /// The kernel with this name, or the one that the name makes.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<KernelVersion> {
        self.kernels.resolve(name).ok()
    }

    /// The operating system with this name.
    #[must_use]
    pub fn os_guest(&self, name: &str) -> Option<&OsGuest> {
        self.os_guests.iter().find(|guest| guest.name == name)
    }
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
        let mut kernels = Kernels::new(source, &file.kernel)?;
        let os_guests = os_guests(source, &file.guest)?;
        let mut names = Names::new(&kernels, &os_guests);
        let axes = Axes {
            kernels: axis(source, "axes.kernels", &file.axes.kernels, |name| names.check_kernel(&kernels, name))?,
            frontends: axis(source, "axes.frontends", &file.axes.frontends, |name| names.check_frontend(name))?,
            guests: axis(source, "axes.guests", &file.axes.guests, |name| names.check_guest(name))?,
            apic: axis(source, "axes.apic", &file.axes.apic, |name| apic_named(name))?,
            cpus: axis(source, "axes.cpus", &file.axes.cpus, check_cpus)?,
            engines: axis(source, "axes.engines", &file.axes.engines, |name| engine_named(name))?,
        };
        for kernel in &axes.kernels {
            kernels.add(kernel);
            names.kernels.add(kernel.clone());
        }
        axes.frontends.iter().for_each(|frontend| names.frontends.add(frontend.clone()));
        axes.guests.iter().for_each(|guest| names.guests.add(guest.clone()));
        let configured = axes.product().collect();
        let LimitsTable { soft, kvm } = file.limits;
        let mut matrix = Matrix {
            axes,
            limits: Limits { soft, kvm },
            kernels,
            names,
            os_guests,
            includes: Vec::new(),
            excludes: Vec::new(),
            configured,
            rules: Rules::default(),
            regressions: Vec::new(),
            uncovered: Vec::new(),
            policy: Policy::default(),
            source: Arc::new(MatrixSource { name: name.to_owned(), text: text.to_owned() }),
        };
        matrix.add_includes(source, &file.include)?;
        for table in &file.exclude {
            let exclude = matrix.names.cell_match(source, "exclude", table.get_ref(), &mut matrix.kernels)?;
            let before = matrix.configured.len();
            matrix.configured.retain(|cell| !exclude.matches(cell));
            if matrix.configured.len() == before {
                return Err(source.error(table.span(), "exclude", "matches no cell of the matrix; take it out"));
            }
            matrix.excludes.push(exclude);
        }
        matrix.add_rules(source, &file.expect)?;
        let tables = (&file.race[..], &file.support[..]);
        matrix.policy = Policy::new(source, &mut matrix.names, &mut matrix.kernels, &matrix.configured, tables)?;
        for table in file.regression {
            matrix.add_regression(source, table)?;
        }
        for table in &file.uncovered {
            matrix.add_uncovered(source, table)?;
        }
        Ok(matrix)
    }

    /// Whether a kernel of the matrix is none that has its name otherwise.
    #[must_use]
    pub fn has_own_kernels(&self) -> bool {
        let named = Kernels::named();
        self.kernels().iter().any(|kernel| named.resolve(&kernel.name).as_ref() != Ok(kernel))
    }

    /// The matrix as it is written.
    #[must_use]
    pub fn source(&self) -> &MatrixSource {
        &self.source
    }

    fn add_includes(&mut self, source: Source<'_>, tables: &[Spanned<file::CellsTable>]) -> Result<(), ConfigError> {
        let mut there: HashSet<Cell> =
            if tables.is_empty() { HashSet::new() } else { self.configured.iter().cloned().collect() };
        for table in tables {
            let include = self.names.cell_match(source, "include", table.get_ref(), &mut self.kernels)?;
            if let Some(cpus) = &include.cpus
                && cpus.numbers().is_none()
            {
                let span = table.get_ref().cpus.as_ref().map_or(table.span(), Spanned::span);
                return Err(source.error(span, "include.cpus", "an [[include]] needs numbers, not conditions"));
            }
            let before = self.configured.len();
            for cell in self.included(&include, &self.axes.engines) {
                if there.insert(cell.clone()) {
                    self.configured.push(cell);
                }
            }
            if self.configured.len() == before {
                return Err(source.error(table.span(), "include", "adds no cell to the matrix; take it out"));
            }
            self.includes.push(include);
        }
        Ok(())
    }

    fn add_rules(&mut self, source: Source<'_>, tables: &[Spanned<file::ExpectTable>]) -> Result<(), ConfigError> {
        let mut rules = Vec::with_capacity(tables.len());
        for table in tables {
            let expect = table.get_ref();
            let outcome = expect
                .outcome
                .as_ref()
                .map(|outcome| {
                    outcome.get_ref().parse().map_err(|error: crate::outcome::OutcomeNameError| {
                        source.error(outcome.span(), "expect.outcome", error.to_string())
                    })
                })
                .transpose()?;
            let parked_exits_per_s = expect
                .parked_exits_per_s
                .as_ref()
                .map(|bound| {
                    bound.get_ref().parse().map_err(|error: bound::BoundError| {
                        source.error(bound.span(), "expect.parked_exits_per_s", error.to_string())
                    })
                })
                .transpose()?;
            if outcome.is_none() && parked_exits_per_s.is_none() {
                let message = "says nothing: give it an `outcome`, or `parked_exits_per_s`";
                return Err(source.error(table.span(), "expect", message));
            }
            let cells = self.names.cell_match(source, "expect.match", expect.cells.get_ref(), &mut self.kernels)?;
            let span = expect.cells.span();
            rules.push(Rule {
                cells,
                outcome,
                parked_exits_per_s,
                reason: expect.reason.clone(),
                reference: expect.reference.clone(),
                line: source.position(span.start).0,
                text: source.text[span.clone()].to_owned(),
                span,
            });
        }
        self.rules = Rules::new(rules, &self.names);
        for (rule, used) in self.rules.uses(&self.names, self.configured.iter().chain(&self.beside())) {
            if used.matches == 0 {
                return Err(source.error(
                    rule.span.clone(),
                    "expect.match",
                    "matches no cell of the matrix; correct it or take the expectation out",
                ));
            }
        }
        Ok(())
    }

    /// The cells that the matrix has beside its own with each of its operating systems that is on no axis: `--guest` boots
    /// them, so that an expectation may be about them.
    fn beside(&self) -> Vec<Cell> {
        let guests = self.os_guests.iter().map(|guest| &guest.name).filter(|name| !self.axes.guests.contains(name));
        let axes = Axes { guests: guests.cloned().collect(), ..self.axes.clone() };
        let stated = |cell: &Cell| self.includes.iter().chain(&self.excludes).any(|cells| cells.matches(cell));
        axes.product().filter(|cell| !stated(cell)).collect()
    }

    fn add_regression(&mut self, source: Source<'_>, table: RegressionTable) -> Result<(), ConfigError> {
        let cell = |key: &str, text: &Spanned<String>| {
            let cell: Cell = text
                .get_ref()
                .parse()
                .map_err(|error: crate::cell::CellNameError| source.error(text.span(), key, error.to_string()))?;
            self.check_cell(&cell).map_err(|message| source.error(text.span(), key, message))?;
            Ok(cell)
        };
        let bad = cell("regression.bad", &table.bad)?;
        let good = cell("regression.good", &table.good)?;
        let id = table.id.get_ref();
        if !is_name(id) || self.regression(id).is_some() {
            return Err(source.error(
                table.id.span(),
                "regression.id",
                format!("`{id}` is no name, or another regression has it"),
            ));
        }
        let RegressionTable { about, reference, .. } = table;
        self.regressions.push(Regression { id: id.clone(), about, bad, good, reference });
        Ok(())
    }

    fn add_uncovered(&mut self, source: Source<'_>, table: &file::UncoveredTable) -> Result<(), ConfigError> {
        let (what, name, reason) = (table.what.get_ref(), table.name.get_ref(), table.reason.get_ref());
        let exists = match what.as_str() {
            "kernel" => self.names.kernels.number(name).is_some(),
            "frontend" => self.names.check_frontend(name).is_ok(),
            "guest" => self.names.guests.number(name).is_some(),
            "change" => Change::named(name).is_some(),
            _ => {
                let message = format!("`{what}` is none of kernel, frontend, guest and change");
                return Err(source.error(table.what.span(), "uncovered.what", message));
            }
        };
        if !exists {
            return Err(source.error(table.name.span(), "uncovered.name", format!("no {what} is named `{name}`")));
        }
        if reason.trim().is_empty() {
            return Err(source.error(table.reason.span(), "uncovered.reason", "an exception needs a reason"));
        }
        self.uncovered.push(Uncovered { what: what.clone(), name: name.clone(), reason: reason.clone() });
        Ok(())
    }

    /// What is declared and knowingly not exercised by any cell.
    #[must_use]
    pub fn uncovered(&self) -> &[Uncovered] {
        &self.uncovered
    }

    /// What is expected of a cell: what the most specific expectation says, and otherwise that it is ok.
    #[must_use]
    pub fn expectation(&self, cell: &Cell) -> Expectation {
        let parked = self.rules.deciding(&self.names, cell, |rule| rule.parked_exits_per_s);
        let outcome = self.rules.deciding(&self.names, cell, |rule| rule.outcome);
        // The reason is that of the outcome; where only a bound is put, that of the bound.
        let rule = outcome.map(|(_, rule)| rule).or(parked.map(|(_, rule)| rule));
        Expectation {
            outcome: outcome.map_or(OutcomeKind::Ok, |(outcome, _)| outcome),
            reason: rule.map(|rule| rule.reason.clone()),
            reference: rule.map(|rule| rule.reference.clone()),
            parked_exits_per_s: parked.map(|(bound, _)| bound),
        }
    }

    /// Each expectation of the matrix in the order of the file, and how it fares with the matrix's cells, those of operating
    /// systems that are on no axis included. One that decides
    /// no cell is dead: others, more specific, say something else everywhere.
    #[must_use]
    pub fn rule_uses(&self) -> Vec<RuleUse> {
        let uses = self.rules.uses(&self.names, self.configured.iter().chain(&self.beside()));
        uses.into_iter()
            .map(|(rule, used)| RuleUse {
                line: rule.line,
                cells: rule.text.clone(),
                outcome: rule.outcome,
                parked_exits_per_s: rule.parked_exits_per_s,
                reason: rule.reason.clone(),
                matches: used.matches,
                decides: used.decides,
            })
            .collect()
    }

    /// Why several outcomes of a cell are no news: they are those of a race that the matrix knows of.
    #[must_use]
    pub fn known_race(&self, cell: &Cell, outcomes: &[OutcomeKind]) -> Option<&str> {
        self.policy.known_race(cell, outcomes)
    }

    /// Whether a cell matters to a release on that day: all do when the matrix says of none.
    #[must_use]
    pub fn supported(&self, cell: &Cell, today: Date) -> Supported {
        self.policy.supported(cell, today)
    }

    /// Every kernel that has a name: the named ones, oldest first, then the what-ifs of the matrix.
    #[must_use]
    pub fn kernels(&self) -> &[KernelVersion] {
        self.kernels.list()
    }

    /// The kernel with this name, or the one that the name makes from another (`fbsd-13.2-exit-mask`).
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<KernelVersion> {
        self.kernels.resolve(name).ok()
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
        self.names.check_cell(&self.kernels, cell)
    }

    /// Every cell of the matrix: the product of its axes, what it includes, without what it excludes.
    #[must_use]
    pub fn configured(&self) -> Vec<Cell> {
        self.configured.clone()
    }

    /// The cells that a selection leaves, in the order of the axes.
    ///
    /// # Errors
    /// When a name is unknown or nothing is left.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Cell>, SelectError> {
        let Selection { apic, cpus, engines, filters, .. } = selection;
        let made_kernel = |name: &str| match self.kernels.resolve(name) {
            Ok(_) => Ok(true),
            Err(Some(why)) => Err(SelectError::Made(why, "change")),
            Err(None) => Ok(false),
        };
        // Only a name that begins as one there is, and goes on, is one that was to be made.
        let is_made = |name: &str| name.contains('+');
        let made_frontend = |name: &str| match self.names.check_frontend(name) {
            Ok(_) => Ok(true),
            Err(why) if is_made(name) => Err(SelectError::Made(why, "frontend")),
            Err(_) => Ok(false),
        };
        let made_guest = |name: &str| match self.names.check_guest(name) {
            Ok(_) => Ok(true),
            Err(why) if is_made(name) => Err(SelectError::Made(why, "guest")),
            Err(_) => Ok(false),
        };
        let Names { kernels, frontends, guests } = &self.names;
        let axes = Axes {
            kernels: chosen("kernel", &selection.kernels, &kernels.list, &self.axes.kernels, made_kernel)?,
            frontends: chosen("frontend", &selection.frontends, &frontends.list, &self.axes.frontends, made_frontend)?,
            guests: chosen("guest", &selection.guests, &guests.list, &self.axes.guests, made_guest)?,
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
        if filters.is_empty() {
            return Ok(cells);
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
            let parts = [frontends, kernels, guests].into_iter().flat_map(|part| &part.list);
            let words = names.iter().chain(parts).map(String::as_str);
            return Err(SelectError::NoCell { filter: idle.to_string(), hint: did_you_mean(idle.as_str(), words) });
        }
        let kept = |name: &String| filters.iter().any(|filter| filter.selects(name));
        Ok(cells.into_iter().zip(&names).filter(|(_, name)| kept(name)).map(|(cell, _)| cell).collect())
    }

    fn cells(&self, axes: &Axes, asked_for: impl Fn(&Cell) -> bool) -> Vec<Cell> {
        let included = self.includes.iter().flat_map(|include| self.included(include, &axes.engines));
        let mut cells: Vec<Cell> = axes
            .product()
            .chain(included.filter(|cell| asked_for(cell)))
            .filter(|cell| !self.excludes.iter().any(|exclude| exclude.matches(cell)))
            .collect();
        let first: Vec<bool> = {
            let mut seen = HashSet::with_capacity(cells.len());
            cells.iter().map(|cell| seen.insert(cell)).collect()
        };
        let mut first = first.into_iter();
        cells.retain(|_| first.next().unwrap_or(false));
        cells
    }

    /// The cells of an `[[include]]`: for each part what matches it among everything known, or the axis.
    fn included(&self, include: &CellMatch, engines: &[EngineKind]) -> Vec<Cell> {
        fn all(names: &Option<NameSet>, known: &[String], axis: &[String]) -> Vec<String> {
            match names {
                None => axis.to_vec(),
                Some(names) if names.only_excludes() => {
                    axis.iter().filter(|name| names.contains(name)).cloned().collect()
                }
                Some(names) => known.iter().filter(|name| names.contains(name)).cloned().collect(),
            }
        }
        let axes = Axes {
            kernels: all(&include.kernel, &self.names.kernels.list, &self.axes.kernels),
            frontends: all(&include.frontend, &self.names.frontends.list, &self.axes.frontends),
            guests: all(&include.guest, &self.names.guests.list, &self.axes.guests),
            apic: match &include.apic {
                None => self.axes.apic.clone(),
                Some(names) => ApicMode::ALL.into_iter().filter(|apic| names.contains(apic.name())).collect(),
            },
            cpus: include.cpus.as_ref().and_then(|cpus| cpus.numbers()).unwrap_or_else(|| self.axes.cpus.clone()),
            engines: match &include.engine {
                None => engines.to_vec(),
                Some(names) => EngineKind::ALL.into_iter().filter(|engine| names.contains(engine.name())).collect(),
            },
        };
        axes.product().collect()
    }
}

/// The names that `patterns` choose among the `known`, or the axis when there are none; a plain name that nothing has may
/// be one that `made` knows how to make.
fn chosen(
    what: &'static str,
    patterns: &[Pattern],
    known: &[String],
    axis: &[String],
    made: impl Fn(&str) -> Result<bool, SelectError>,
) -> Result<Vec<String>, SelectError> {
    if patterns.is_empty() {
        return Ok(axis.to_vec());
    }
    let set = NameSet::new(patterns);
    let mut more = Vec::new();
    for pattern in set.patterns().filter(|pattern| !known.iter().any(|name| pattern.matches(name))) {
        if pattern.is_glob() || !made(pattern.as_str())? {
            let hint = did_you_mean(pattern.as_str(), known.iter().map(String::as_str));
            return Err(SelectError::Unknown { what, name: pattern.to_string(), hint });
        }
        more.push(pattern.as_str().to_owned());
    }
    let from = if set.only_excludes() { axis } else { known };
    Ok(from.iter().chain(&more).filter(|name| set.contains(name)).cloned().collect())
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

/// The names of all guests: the bare-metal ones, then the operating systems.
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

#[cfg(test)]
mod tests;
