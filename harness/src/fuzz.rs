//! Random programs of INIT, STARTUP and other IPIs ([`guests::program`]) over neighbouring kernels: where two of them treat the
//! same program differently, which change makes the difference, and what is the shortest program that shows it.
//!
//! Of many programs that the same change makes go otherwise, with the same frontend and between the same outcomes, one is
//! reported. A difference that no change between the two kernels accounts for is a fault: of a kernel here, or of ours.

use crate::bisect::edits::{Edit, apply, edits_between, lineage};
use crate::cell::{Cell, EngineKind};
use crate::ddmin::minimal;
use crate::diff::Diff;
use crate::outcome::OutcomeKind;
use crate::report::paint::{BOLD, DIM, GOOD, RED, paint};
use crate::run::{Setup, for_each, run_cell};
use crate::trace::{StoredTrace, lane};
use frontends::ApicMode;
use guests::program::{Operation, Program, VECTORS};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use vmm::trace::{Event, GuestReport};

/// What to fuzz.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The frontends.
    pub frontends: Vec<String>,
    /// The kernels, each compared with the one before it; those of the history when there are none.
    pub kernels: Vec<String>,
    /// The APIC modes.
    pub apic: Vec<ApicMode>,
    /// How many vCPUs.
    pub cpus: u16,
    /// How many programs.
    pub programs: usize,
    /// How many operations a program has at most.
    pub length: usize,
}

/// A difference between two kernels, and the shortest program that was found to show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The cell on the earlier kernel.
    pub before: Cell,
    /// The later kernel.
    pub after: String,
    /// What becomes of the cell on either.
    pub outcomes: [OutcomeKind; 2],
    /// The first change, in the order of their dates, with which the earlier kernel goes otherwise; `None` when none does.
    pub change: Option<Edit>,
    /// Where the traces part ways.
    pub sentence: String,
    /// How many of the random programs showed the same.
    pub programs: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fuzzed {
    /// How many cells ran, those of the shrinking not counted.
    pub cells: usize,
    /// The differences, by frontend, APIC mode and change.
    pub findings: Vec<Finding>,
    /// Cells that ended by a fault of our own.
    pub our_faults: Vec<Cell>,
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same programs from the same seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The bound is small, so that the bias is too.
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }

    /// What starts APs comes more often than what must not.
    fn operation(&mut self, aps: u16) -> Operation {
        let ap = 1 + u16::try_from(self.below(usize::from(aps))).unwrap_or(0);
        let vector = VECTORS[self.below(VECTORS.len())];
        match self.below(16) {
            0..4 => Operation::Init(ap),
            4..9 => Operation::Startup(ap, vector),
            9 => Operation::Assert(ap),
            10 => Operation::Deassert(ap),
            11 => Operation::Fixed(ap),
            12 => Operation::Nmi(ap),
            13 => Operation::InitOthers,
            14 => Operation::StartupOthers(vector),
            _ => Operation::Wait,
        }
    }

    fn program(&mut self, aps: u16, length: usize) -> Vec<Operation> {
        let count = 1 + self.below(length);
        (0..count).map(|_| self.operation(aps)).collect()
    }
}

/// What of a run two kernels are compared by: what became of it, and what each CPU did, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Behaviour {
    kind: OutcomeKind,
    lanes: BTreeMap<String, Vec<String>>,
}

fn behaviour(kind: OutcomeKind, trace: &StoredTrace) -> Behaviour {
    let mut lanes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in &trace.trace.records {
        let seen = match &record.event {
            // How many APs came is said again in the end.
            Event::Report(GuestReport::ApsAsked { .. } | GuestReport::Done { .. }) => continue,
            Event::Report(report) => format!("{report:?}"),
            Event::FirstInstruction { cs, ip } => format!("{cs:x}:{ip:x}"),
            Event::TripleFault => "triple fault".to_owned(),
            _ => continue,
        };
        lanes.entry(lane(record).to_string()).or_default().push(seen);
    }
    Behaviour { kind, lanes }
}

/// Runs cells of one frontend, APIC mode and number of vCPUs.
struct Runner<'a> {
    setup: &'a Setup,
    model: Cell,
    our_faults: Vec<Cell>,
}

impl Runner<'_> {
    fn cell(&self, kernel: &str, operations: &[Operation]) -> Cell {
        let program = Program::new(operations.to_vec()).expect("a plan's programs are short enough");
        // A list of nothing has no text.
        let guest = if operations.is_empty() { program.guest() + "w" } else { program.guest() };
        Cell { kernel: kernel.to_owned(), guest, ..self.model.clone() }
    }

    fn run(&mut self, kernel: &str, operations: &[Operation]) -> Option<Ran> {
        let cell = self.cell(kernel, operations);
        let run = run_cell(self.setup, &cell);
        let kind = run.result.outcome.kind;
        if kind == OutcomeKind::HarnessError {
            self.our_faults.push(cell);
            return None;
        }
        let trace = run.trace?;
        Some(Ran { behaviour: behaviour(kind, &trace), trace })
    }

    /// The first change with which `before` goes otherwise.
    fn cause(&mut self, edits: &[Edit], before: &str, behaviour: &Behaviour, program: &[Operation]) -> Option<Edit> {
        (0..edits.len()).find_map(|at| {
            let kernel = apply(before, &edits[..=at]);
            let there = self.run(&kernel, program)?;
            (there.behaviour != *behaviour).then(|| edits[at].clone())
        })
    }

    /// What a program shows between two kernels, if anything.
    fn compare(&mut self, step: &Step<'_>, program: &[Operation]) -> Option<Shown> {
        let left = self.run(step.before, program)?;
        let right = self.run(step.after, program)?;
        self.shown(step, program, &left, &right)
    }

    /// The same, of a program that ran on both.
    fn shown(&mut self, step: &Step<'_>, program: &[Operation], left: &Ran, right: &Ran) -> Option<Shown> {
        if left.behaviour == right.behaviour {
            return None;
        }
        let change = self.cause(&step.edits, step.before, &left.behaviour, program);
        let sentence = Diff::new(&left.trace, &right.trace).sentence();
        Some(Shown { outcomes: [left.behaviour.kind, right.behaviour.kind], change, sentence })
    }
}

/// What a program did on a kernel.
struct Ran {
    behaviour: Behaviour,
    trace: StoredTrace,
}

/// From one kernel of a walk to the next.
struct Step<'a> {
    before: &'a str,
    after: &'a str,
    /// What lies between them.
    edits: Vec<Edit>,
}

/// What a program shows between two kernels.
struct Shown {
    outcomes: [OutcomeKind; 2],
    change: Option<Edit>,
    sentence: String,
}

/// What makes two findings one.
type Kind = (String, [OutcomeKind; 2]);

impl Shown {
    fn kind(&self) -> Kind {
        (self.change.as_ref().map_or(String::new(), Edit::to_string), self.outcomes)
    }
}

/// Runs a plan, `jobs` pairs of frontend and APIC mode at a time.
///
/// # Errors
/// A sentence, when a kernel is unknown.
pub fn fuzz(setup: &Setup, plan: &Plan, jobs: usize) -> Result<Fuzzed, String> {
    let kernels = if plan.kernels.is_empty() {
        lineage(&setup.matrix, None, None).map_err(|error| error.to_string())?
    } else {
        plan.kernels.clone()
    };
    let mut steps = Vec::new();
    for pair in kernels.windows(2) {
        let edits = edits_between(&setup.matrix, &pair[0], &pair[1]).map_err(|error| error.to_string())?;
        steps.push(Step { before: &pair[0], after: &pair[1], edits });
    }
    let mut random = Random(setup.seed);
    let programs: Vec<Vec<Operation>> =
        (0..plan.programs).map(|_| random.program(plan.cpus - 1, plan.length)).collect();
    let models: Vec<Cell> = plan
        .frontends
        .iter()
        .flat_map(|frontend| {
            plan.apic.iter().map(|&apic| Cell {
                frontend: frontend.clone(),
                kernel: kernels[0].clone(),
                guest: "program".into(),
                apic,
                cpus: plan.cpus,
                engine: EngineKind::Soft,
            })
        })
        .collect();
    let mut of_model = vec![(Vec::new(), Vec::new()); models.len()];
    for_each(
        &models,
        jobs,
        |_| (),
        |(), model| {
            let mut runner = Runner { setup, model: model.clone(), our_faults: Vec::new() };
            (findings(&mut runner, &steps, &programs), runner.our_faults)
        },
        |at, found| {
            of_model[at] = found;
            ControlFlow::Continue(())
        },
    );
    let (findings, faults): (Vec<_>, Vec<_>) = of_model.into_iter().unzip();
    let mut our_faults: Vec<Cell> = faults.into_iter().flatten().collect();
    our_faults.sort();
    our_faults.dedup();
    let cells = kernels.len() * programs.len() * models.len();
    Ok(Fuzzed { cells, findings: findings.into_iter().flatten().collect(), our_faults })
}

/// The differences that programs show, each with the shortest program. Each step begins where the one before it ended.
fn findings(runner: &mut Runner<'_>, steps: &[Step<'_>], programs: &[Vec<Operation>]) -> Vec<Finding> {
    let run_all = |runner: &mut Runner<'_>, kernel: &str| -> Vec<Option<Ran>> {
        programs.iter().map(|program| runner.run(kernel, program)).collect()
    };
    let Some(first) = steps.first() else { return Vec::new() };
    let mut lefts = run_all(runner, first.before);
    let mut findings = Vec::new();
    for step in steps {
        let rights = run_all(runner, step.after);
        let mut kinds: BTreeMap<Kind, Vec<&Vec<Operation>>> = BTreeMap::new();
        for (program, sides) in programs.iter().zip(lefts.iter().zip(&rights)) {
            if let (Some(left), Some(right)) = sides
                && let Some(shown) = runner.shown(step, program, left, right)
            {
                kinds.entry(shown.kind()).or_default().push(program);
            }
        }
        for (kind, shown_by) in kinds {
            let shortest = shown_by.iter().min_by_key(|program| program.len()).expect("a program showed it");
            let program = minimal(shortest, |part| runner.compare(step, part).is_some_and(|it| it.kind() == kind));
            let Some(Shown { outcomes, change, sentence }) = runner.compare(step, &program) else { continue };
            findings.push(Finding {
                before: runner.cell(step.before, &program),
                after: step.after.to_owned(),
                outcomes,
                change,
                sentence,
                programs: shown_by.len(),
            });
        }
        lefts = rights;
    }
    findings
}

impl Fuzzed {
    /// Whether every difference is accounted for by a change.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.findings.iter().all(|finding| finding.change.is_some())
    }

    /// The result for people.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            let Finding { before, after, outcomes, change, sentence, programs } = finding;
            let later = Cell { kernel: after.clone(), ..before.clone() };
            let by = match change {
                Some(edit) => format!("{} {}", paint(GOOD, &edit.to_string()), paint(DIM, &edit.reference())),
                None => paint(RED, "no change between them accounts for it"),
            };
            let _ = writeln!(out, "{} → {after}: {by}", paint(BOLD, &before.to_string()));
            let _ = writeln!(out, "  {} → {}, shown by {programs} programs", outcomes[0], outcomes[1]);
            let _ = writeln!(out, "  {sentence}");
            let _ = writeln!(out, "  {}\n", paint(DIM, &format!("spinup diff {before} {later}")));
        }
        for cell in &self.our_faults {
            let _ = writeln!(out, "{} {cell} ended by a fault of spinup itself\n", paint(RED, "?"));
        }
        let unexplained = self.findings.iter().filter(|finding| finding.change.is_none()).count();
        let _ = writeln!(
            out,
            "{} cells, {} differences, {unexplained} of them by no known change.",
            self.cells,
            self.findings.len()
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use crate::run::Engines;

    fn fuzzed(frontend: &str, kernels: &[&str], programs: usize, jobs: usize) -> Fuzzed {
        let matrix = Matrix::built_in().expect("right");
        let setup = Setup { matrix, engines: Engines::new(), seed: 1, timeout: None };
        let plan = Plan {
            frontends: vec![frontend.into()],
            kernels: kernels.iter().map(|&kernel| kernel.into()).collect(),
            apic: vec![ApicMode::Xapic],
            cpus: 3,
            programs,
            length: 8,
        };
        fuzz(&setup, &plan, jobs).expect("the kernels exist")
    }

    #[test]
    fn the_broken_window_is_found_again_and_shrunk_to_two_operations() {
        let fuzzed = fuzzed("bhyve-13.1", &["main-98568a00", "main-7c326ab5"], 12, 1);
        assert!(fuzzed.is_explained() && fuzzed.our_faults.is_empty(), "{}", fuzzed.render());
        let by_handle_ipi = |finding: &&Finding| finding.change == Some(Edit::With("handle-ipi"));
        let finding = fuzzed.findings.iter().find(by_handle_ipi).expect("the change shows");
        let program = Program::of_guest(&finding.before.guest).expect("a program").expect("a right one");
        assert!(
            matches!(program.operations(), [Operation::Init(a), Operation::Startup(b, _)] if a == b),
            "{program}: INIT and STARTUP to the same AP are enough"
        );
    }

    #[test]
    fn a_kernel_does_not_differ_from_itself_and_programs_depend_on_the_seed_alone() {
        let same = fuzzed("bhyve-13.2", &["fbsd-13.2", "fbsd-13.2"], 8, 1);
        assert_eq!((same.findings.len(), same.cells), (0, 16));
        let programs = |seed| Random(seed).program(2, 20);
        assert_eq!(programs(3), programs(3));
        assert_ne!(programs(3), programs(4));
    }
}
