//! Running one cell: where the harness meets the frontends, the guests and the kernel.

use super::Setup;
use crate::cell::{Cell, EngineKind};
use crate::matrix::verdict::Verdict;
use crate::matrix::{Expectation, OsGuest};
use crate::outcome::{Observed, Outcome, OutcomeKind, observe};
use crate::trace::{CELL_LANE, StoredTrace};
use frontends::{Boot, Console, Frontend, Launch};
use guests::Guest;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::host::{Finished, Host};
use vmm::kernel::Kernel;
use vmm::trace::{Event, Record};

/// What the VM is called on its host.
const VM_NAME: &str = "guest";

/// The cell's first task, the frontend's process: the same word for every frontend, so that traces of two can be compared.
const MAIN_TASK: &str = "main";

/// What is to be said about a cell that ran.
#[derive(Clone, Debug)]
pub struct CellResult {
    /// The cell.
    pub cell: Cell,
    /// The seed of its schedule.
    pub seed: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// What was expected.
    pub expectation: Expectation,
    /// What to think of it.
    pub verdict: Verdict,
    /// How many APs reported.
    pub aps_started: u32,
    /// How long it took, in real time.
    pub duration: Duration,
    /// How many instructions its guest executed; `None` when the engine cannot tell.
    pub instructions: Option<u64>,
    /// SHA-256 of the trace as it is stored; `None` when nobody asked for it or there is none.
    pub trace_sha256: Option<String>,
}

/// What a cell left behind.
#[derive(Clone, Debug)]
pub struct CellRun {
    /// What is to be said about it.
    pub result: CellResult,
    /// What happened; `None` when the cell is not applicable.
    pub trace: Option<StoredTrace>,
    /// What the guest sent to its serial port.
    pub serial: Vec<u8>,
}

/// Runs a cell whose names exist in the matrix.
///
/// # Panics
/// When they do not: [`crate::matrix::Matrix::check_cell`] says so before.
#[must_use]
pub fn run_cell(setup: &Setup, cell: &Cell) -> CellRun {
    let _slot = setup.engines.slot(cell.engine);
    let began = Instant::now();
    let kernel = setup.matrix.kernel(&cell.kernel).expect("the matrix knows the cell's kernel");
    let frontend = Frontend::named(&cell.frontend).expect("the catalog knows the cell's frontend");
    let expectation = setup.matrix.expectation(cell);
    let os_guest = setup.matrix.os_guest(&cell.guest);
    let built = setup.engines.get(cell.engine).and_then(|engine| Ok((engine, launch(cell, os_guest)?)));
    let (engine, launch) = match built {
        Ok(built) => built,
        Err(why) => {
            let result = CellResult::without_run(setup, cell, Verdict::NotApplicable, why);
            return CellRun { result, trace: None, serial: Vec::new() };
        }
    };
    let limit = setup.timeout.unwrap_or_else(|| setup.matrix.limit(cell));
    let host = match cell.engine {
        EngineKind::Soft => Host::virtual_time(setup.seed, u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
        EngineKind::Kvm => Host::threads(limit),
    };
    let console = console(&host, os_guest);
    let booted = Kernel::boot(&host, kernel, engine);
    let finished = {
        let (inside, booted, console) = (host.clone(), booted.clone(), console.clone());
        host.run(MAIN_TASK, move || frontend.main(&inside, &booted, &launch, &console))
    };
    let Finished { end, now_ns, mut trace } = finished;
    let seen = Observed::from_trace(&trace);
    let outcome = observe(cell.cpus, &end, &seen);
    let last = trace.records.last();
    let event = Event::Outcome { kind: outcome.kind.to_string(), detail: outcome.detail.clone() };
    trace.records.push(Record {
        seq: trace.records.len() as u64,
        t_ns: now_ns,
        layer: event.layer(),
        task: last.map_or_else(|| CELL_LANE.into(), |last| last.task.clone()),
        vcpu: None,
        event,
        cause: last.map(|last| last.seq),
    });
    let result = CellResult {
        cell: cell.clone(),
        seed: setup.seed,
        verdict: Verdict::of(expectation.outcome, outcome.kind),
        outcome,
        expectation,
        aps_started: seen.aps_started(),
        duration: began.elapsed(),
        instructions: booted.instructions(),
        trace_sha256: None,
    };
    let trace = Some(StoredTrace { cell: cell.clone(), seed: setup.seed, trace: Arc::new(trace) });
    CellRun { result, trace, serial: console.serial() }
}

/// The cell's command line: what its guest boots from.
fn launch(cell: &Cell, os_guest: Option<&OsGuest>) -> Result<Launch, String> {
    if let Some(os_guest) = os_guest {
        let launch = Launch::new(VM_NAME, cell.cpus, cell.apic, Boot::Loader(os_guest.image()?));
        return Ok(Launch { memory_bytes: os_guest.memory_bytes, ..launch });
    }
    let guest: Guest = cell.guest.parse().expect("the catalog knows the cell's guest");
    Ok(Launch::new(VM_NAME, cell.cpus, cell.apic, Boot::Rom(guest.rom().into())))
}

/// The cell's console. Lines that are milestones of an operating system are events.
fn console(host: &Host, os_guest: Option<&OsGuest>) -> Console {
    let Some(os_guest) = os_guest.filter(|guest| !guest.milestones.is_empty()) else {
        return Console::new();
    };
    let (host, milestones) = (host.clone(), os_guest.milestones.clone());
    Console::watched(move |line| {
        if let Some(milestone) = milestones.iter().find(|milestone| milestone.pattern.selects(line)) {
            let line = without_time(line).to_owned();
            host.emit(None, Event::Milestone { name: milestone.name.clone(), line });
        }
    })
}

/// A line of Linux's log without the time in front, `[    0.256124] `, which the trace has by itself.
fn without_time(line: &str) -> &str {
    let time = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match time {
        Some((time, text)) if time.bytes().all(|byte| matches!(byte, b' ' | b'.' | b'0'..=b'9')) => text,
        _ => line,
    }
}

impl CellResult {
    /// A cell that did not run, for a reason.
    #[must_use]
    pub fn without_run(setup: &Setup, cell: &Cell, verdict: Verdict, why: String) -> CellResult {
        CellResult {
            cell: cell.clone(),
            seed: setup.seed,
            outcome: Outcome { kind: OutcomeKind::NotApplicable, detail: why },
            expectation: setup.matrix.expectation(cell),
            verdict,
            aps_started: 0,
            duration: Duration::ZERO,
            instructions: None,
            trace_sha256: None,
        }
    }
}
