//! Running one cell: where the harness meets the frontends, the guests and the kernel.

use super::Setup;
use crate::cell::{Cell, EngineKind};
use crate::gdb::DebuggedEngine;
use crate::matrix::verdict::Verdict;
use crate::matrix::{Expectation, OsGuest, Prepared};
use crate::outcome::{Observed, Outcome, OutcomeKind, observe};
use crate::trace::{CELL_LANE, StoredTrace, describe, lane};
use frontends::{Boot, Console, Frontend, Keyboard, Launch, Stream};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm::engine::Engine;
use vmm::history::KernelVersion;
use vmm::host::{End, Finished, Host};
use vmm::kernel::{Kernel, Parked};
use vmm::trace::{Event, Record, Trace};

/// What the VM is called on its host.
const VM_NAME: &str = "guest";

/// The cell's first task, the frontend's process: the same word for every frontend, so that traces of two can be compared.
const MAIN_TASK: &str = "main";

/// How many events before the end of a cell that was given up are told.
const LAST_EVENTS: usize = 12;

/// What is to be said about a cell that ran.
#[derive(Clone, Debug, PartialEq)]
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
    /// How many times in a second of virtual time a vCPU that waited for its STARTUP in userspace left the kernel, on the
    /// average of all that did; 0 when none did, `None` where time is not virtual.
    pub parked_exits_per_s: Option<f64>,
    /// SHA-256 of the trace as it is stored; `None` when nobody asked for it or there is none.
    pub trace_sha256: Option<String>,
    /// What became of it each time, when it ran more than once.
    pub tries: Vec<Try>,
    /// Where a red cell parts ways with the nearest one that is ok, as far as somebody looked.
    pub divergence: Option<Divergence>,
    /// What is left of a cell that was our own fault: positions of vCPUs, last events, standard error of its process.
    pub log: Option<String>,
}

/// One of several runs of the same cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// The seed of its schedule.
    pub seed: u64,
    /// What became of it.
    pub outcome: OutcomeKind,
}

/// Where a cell parts ways with another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The other cell, which is ok.
    pub against: Cell,
    /// In one sentence.
    pub sentence: String,
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
    /// What it sent to its virtio console.
    pub virtio_console: Vec<u8>,
    /// What it sent to its debug console.
    pub debug: Vec<u8>,
}

/// Everything that a cell needs in order to run, whatever is expected of it.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The cell, whose frontend and guest exist.
    pub cell: &'a Cell,
    /// Its kernel.
    pub kernel: &'a KernelVersion,
    /// What its guest is, if an operating system.
    pub os_guest: Option<&'a OsGuest>,
    /// What executes its guest.
    pub engine: Arc<dyn Engine>,
    /// The seed of its schedule.
    pub seed: u64,
    /// How long it may take: in virtual time on `soft`, in real time on `kvm`.
    pub limit: Duration,
    /// Where GDB connects that debugs its guest, if one is to. While it has stopped the guest, no time passes.
    pub gdb: Option<&'a TcpListener>,
}

/// What a cell did, before anybody compares it with what was expected.
#[derive(Clone, Debug)]
pub struct Execution {
    /// What became of it.
    pub outcome: Outcome,
    /// How many APs reported.
    pub aps_started: u32,
    /// How long it took, in real time.
    pub duration: Duration,
    /// How many instructions its guest executed; `None` when the engine cannot tell.
    pub instructions: Option<u64>,
    /// As in [`CellResult`].
    pub parked_exits_per_s: Option<f64>,
    /// What happened.
    pub trace: StoredTrace,
    /// What its frontend and its guest printed.
    pub console: Console,
    /// Where everything was when the cell ended by our own fault.
    pub whereabouts: Option<String>,
}

/// Runs a cell whose names exist in the matrix.
///
/// # Panics
/// When they do not: [`crate::matrix::Matrix::check_cell`] says so before.
#[must_use]
pub fn run_cell(setup: &Setup, cell: &Cell) -> CellRun {
    run_seeded(setup, cell, setup.seed)
}

/// [`run_cell`] under a schedule of its own.
///
/// # Panics
/// As [`run_cell`].
#[must_use]
pub fn run_seeded(setup: &Setup, cell: &Cell, seed: u64) -> CellRun {
    run(setup, cell, seed, None)
}

/// [`run_cell`] with its guest under the GDB that connects to `listener`.
///
/// # Panics
/// As [`run_cell`].
#[must_use]
pub fn debug_cell(setup: &Setup, cell: &Cell, listener: &TcpListener) -> CellRun {
    run(setup, cell, setup.seed, Some(listener))
}

fn run(setup: &Setup, cell: &Cell, seed: u64, gdb: Option<&TcpListener>) -> CellRun {
    let _slot = setup.engines.slot(cell.engine);
    let kernel = setup.matrix.kernel(&cell.kernel).expect("the matrix knows the cell's kernel");
    let os_guest = setup.matrix.os_guest(&cell.guest);
    let executed = setup.engines.get_for(cell.engine, os_guest).and_then(|engine| {
        execute(&Job { cell, kernel: &kernel, os_guest, engine, seed, limit: setup.limit(cell), gdb }, |_| ())
    });
    let execution = match executed {
        Ok(execution) => execution,
        Err(why) => {
            let result = CellResult::without_run(setup, cell, Verdict::NotApplicable, why);
            return CellRun { result, trace: None, serial: Vec::new(), debug: Vec::new(), virtio_console: Vec::new() };
        }
    };
    let expectation = setup.matrix.expectation(cell);
    let Execution { mut outcome, aps_started, duration, instructions, parked_exits_per_s, trace, whereabouts, console } =
        execution;
    outcome.detail = expectation.detail(outcome.detail, parked_exits_per_s);
    let result = CellResult {
        cell: cell.clone(),
        seed,
        verdict: expectation.verdict(outcome.kind, parked_exits_per_s),
        outcome,
        expectation,
        aps_started,
        duration,
        instructions,
        parked_exits_per_s,
        trace_sha256: None,
        tries: Vec::new(),
        divergence: None,
        log: whereabouts,
    };
    let [debug, virtio_console] = [Stream::Debug, Stream::Virtio].map(|stream| console.output(stream));
    CellRun { result, trace: Some(trace), serial: console.serial(), debug, virtio_console }
}

/// Runs a cell; `began` gets its host before it does anything, to watch it with.
///
/// # Errors
/// Why its guest, an operating system, or its debugger cannot be had here.
///
/// # Panics
/// When its frontend or its guest do not exist.
pub fn execute(job: &Job<'_>, began: impl FnOnce(&Host)) -> Result<Execution, String> {
    let Job { cell, kernel, os_guest, engine, seed, limit, gdb } = job;
    let start = Instant::now();
    let frontend = Frontend::named(&cell.frontend).expect("the catalog knows the cell's frontend");
    let launch = launch(cell, *os_guest, *seed)?;
    let host = match cell.engine {
        EngineKind::Soft => Host::virtual_time(*seed, u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)),
        EngineKind::Kvm => Host::threads(*limit),
    };
    began(&host);
    let engine: Arc<dyn Engine> = match gdb {
        Some(listener) => {
            let listener = listener.try_clone().map_err(|error| format!("Cannot listen for GDB: {error}"))?;
            Arc::new(DebuggedEngine::new(engine.clone(), listener, &host))
        }
        None => engine.clone(),
    };
    let booted = Kernel::boot(&host, kernel, engine);
    let console = console(&host, *os_guest);
    let finished = {
        let (inside, booted, console) = (host.clone(), booted.clone(), console.clone());
        host.run(MAIN_TASK, move || frontend.main(&inside, &booted, &launch, &console))
    };
    let Finished { end, now_ns, mut trace } = finished;
    let seen = Observed::from_trace(&trace);
    let seen = if os_guest.is_some_and(|guest| guest.stop_at.is_some()) { seen.by_vcpus() } else { seen };
    let outcome = observe(cell.cpus, &end, &seen);
    let whereabouts = matches!(end, End::HarnessError(_)).then(|| whereabouts(&booted, &trace));
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
    Ok(Execution {
        outcome,
        aps_started: seen.aps_started(),
        duration: start.elapsed(),
        instructions: booted.instructions(),
        parked_exits_per_s: (cell.engine == EngineKind::Soft).then(|| parked_exits_per_s(&booted)),
        trace: StoredTrace { cell: (*cell).clone(), seed: *seed, trace: Arc::new(trace) },
        console,
        whereabouts,
    })
}

/// How often a parked vCPU left the kernel, on the average of all that were parked.
fn parked_exits_per_s(booted: &Kernel) -> f64 {
    let mut all = Parked::default();
    for parked in booted.parked().into_values() {
        all.exits += parked.exits;
        all.ns += parked.ns;
    }
    all.exits_per_second()
}

/// Where each vCPU is, and what happened last.
fn whereabouts(booted: &Kernel, trace: &Trace) -> String {
    let mut text = String::new();
    for position in booted.positions() {
        let _ = writeln!(text, "{position}");
    }
    let records = &trace.records;
    for record in &records[records.len().saturating_sub(LAST_EVENTS)..] {
        let (ms, ns) = (record.t_ns / 1_000_000, record.t_ns % 1_000_000);
        let _ = writeln!(text, "{ms}.{ns:06} ms, {}: {}", lane(record), describe(&record.event));
    }
    text
}

/// The cell's command line: what its guest boots from.
fn launch(cell: &Cell, os_guest: Option<&OsGuest>, seed: u64) -> Result<Launch, String> {
    if let Some(os_guest) = os_guest {
        let Prepared { boot, extras } = os_guest.prepare()?;
        let pci = os_guest.pci_devices(seed)?;
        let launch = Launch::new(VM_NAME, cell.cpus, cell.apic, boot);
        return Ok(Launch { memory_bytes: os_guest.memory_bytes, extras, pci, ..launch });
    }
    let rom = guests::rom_named(&cell.guest).expect("the catalog knows the cell's guest");
    Ok(Launch::new(VM_NAME, cell.cpus, cell.apic, Boot::Rom(rom.into())))
}

/// The cell's console. Lines that are milestones of an operating system are events; some are answered, and at one the cell is over.
fn console(host: &Host, os_guest: Option<&OsGuest>) -> Console {
    let Some(os_guest) = os_guest.filter(|guest| guest.is_watched()) else {
        return Console::new();
    };
    let (host, milestones, stop_at) = (host.clone(), os_guest.milestones.clone(), os_guest.stop_at.clone());
    let (answers, keyboard) = (os_guest.answers.clone(), Keyboard::default());
    let typist = keyboard.clone();
    let console = Console::watched(move |line| {
        for answer in answers.iter().filter(|answer| answer.pattern.selects(line)) {
            typist.type_in(answer.text.as_bytes());
        }
        if let Some(milestone) = milestones.iter().find(|milestone| milestone.pattern.selects(line)) {
            let line = without_time(line).to_owned();
            host.emit(None, Event::Milestone { name: milestone.name.clone(), line });
            if stop_at.as_ref() == Some(&milestone.name) {
                host.end(End::Stopped);
            }
        }
    });
    console.with_keyboard(keyboard)
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
        let outcome = Outcome { kind: OutcomeKind::NotApplicable, detail: why };
        CellResult { verdict, ..CellResult::without_trace(setup, cell, outcome) }
    }

    /// A cell that ended so, and left nothing else behind.
    #[must_use]
    pub fn without_trace(setup: &Setup, cell: &Cell, outcome: Outcome) -> CellResult {
        let expectation = setup.matrix.expectation(cell);
        CellResult {
            cell: cell.clone(),
            seed: setup.seed,
            verdict: Verdict::of(expectation.outcome, outcome.kind),
            outcome,
            expectation,
            aps_started: 0,
            duration: Duration::ZERO,
            instructions: None,
            parked_exits_per_s: None,
            trace_sha256: None,
            tries: Vec::new(),
            divergence: None,
            log: None,
        }
    }
}
