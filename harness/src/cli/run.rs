//! `spinup run`: runs a selection of cells, prints the grid, and writes reports.

use super::progress::Progress;
use super::{CellArgs, Failure, SelectArgs, complain, print_and_exit};
use crate::cell::Cell;
use crate::matrix::verdict::Verdict;
use crate::report::files::{Contents, Files};
use crate::report::{self, file, grid, json, markdown};
use crate::run::journal::{self, Journal, JournalError};
use crate::run::{Campaign, CellResult, Explanation, Manner, Setup, Shard, Stop, debug_cell, run_cell};
use clap::Args;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the JSON document is brought up to date while cells are running, if that takes next to no time.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// It takes at most one part in so many.
const JSON_SHARE: u32 = 20;

/// Exit status of a run that was interrupted, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Arguments of `spinup run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) select: SelectArgs,
    #[command(flatten)]
    pub(super) cells: CellArgs,
    #[command(flatten)]
    pub(super) runner: RunnerArgs,
    /// Run only the I-th of N parts; by default what TEST_SHARD_INDEX, CI_NODE_INDEX, CIRCLE_NODE_INDEX or
    /// JOB_COMPLETION_INDEX say
    #[arg(long, value_name = "I/N", help_heading = "Sharing")]
    shard: Option<Shard>,
    /// Make the parts as long as each other, by the durations in these results
    #[arg(long, value_name = "RESULTS", help_heading = "Sharing")]
    durations: Vec<PathBuf>,
    /// Go on with the run that was killed while it wrote to --json
    #[arg(long, requires = "json", help_heading = "Sharing")]
    resume: bool,
    /// Run each cell N times, with as many seeds; cells that end in more than one way are red
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Flakes")]
    repeat: NonZeroU32,
    /// Run with one seed after the other until a cell is red
    #[arg(long, conflicts_with_all = ["repeat", "resume"], help_heading = "Flakes")]
    until_fail: bool,
    #[command(flatten)]
    pub(super) files: FileArgs,
    /// Let GDB debug the guest of the one cell that is selected: wait for its connection to this address
    #[arg(long, value_name = "[HOST]:PORT", help_heading = "Debugging", conflicts_with_all = ["resume", "repeat", "until_fail", "trace_dir"])]
    gdb: Option<String>,
    /// Write the trace of each cell as a file of its name below this directory
    #[arg(long, value_name = "DIR", help_heading = "Reports")]
    trace_dir: Option<PathBuf>,
}

/// How cells are run.
#[derive(Clone, Debug, Args)]
pub(super) struct RunnerArgs {
    /// Cells that run at the same time, on `kvm` never more than there are processors; as many by default
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Give each cell a process of its own
    #[arg(long)]
    isolate: bool,
    /// Give a cell up after so much real time, and say where it was
    #[arg(long, value_name = "S", default_value = "120", value_parser = super::seconds)]
    give_up_after: Duration,
}

impl RunnerArgs {
    /// How many cells run at the same time.
    pub(super) fn jobs(&self) -> usize {
        super::jobs(self.jobs)
    }

    /// The manner of a run in which each cell runs once and nobody wants its trace.
    pub(super) fn manner(&self) -> Manner {
        let RunnerArgs { isolate, give_up_after, .. } = *self;
        let (jobs, patience) = (self.jobs(), give_up_after);
        Manner { jobs, isolate, repeat: 1, patience, hash: false, trace: false }
    }
}

/// Where reports go.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Reports")]
pub(super) struct FileArgs {
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write them as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write them as TAP 14
    #[arg(long, value_name = "FILE")]
    tap: Option<PathBuf>,
    /// Write them as Markdown, which goes to $GITHUB_STEP_SUMMARY too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write them as one HTML page, with the traces of red cells
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

impl FileArgs {
    pub(super) fn files(&self) -> Files {
        let FileArgs { json, junit, tap, markdown, html } = self.clone();
        Files { json, junit, tap, markdown, html }
    }
}

/// What a run left.
pub(super) struct Ran {
    pub(super) setup: Setup,
    pub(super) results: Vec<CellResult>,
    explanations: BTreeMap<Cell, Explanation>,
    pub(super) duration: Duration,
    /// What went wrong beside the cells: files that could not be written.
    failures: Vec<String>,
}

impl Ran {
    /// Results of a run of before.
    pub(super) fn of(setup: Setup, results: Vec<CellResult>) -> Ran {
        let duration = results.iter().map(|result| result.duration).sum();
        Ran { setup, results, explanations: BTreeMap::new(), duration, failures: Vec::new() }
    }
}

pub(super) fn run(args: &RunArgs) -> Result<u8, Failure> {
    let mut ran = match &args.gdb {
        Some(address) => debug(args, address)?,
        None => run_cells(args)?,
    };
    report(args, &mut ran)
}

/// Runs the one cell that is selected under GDB, in this process: a worker has no network.
fn debug(args: &RunArgs, address: &str) -> Result<Ran, Failure> {
    let setup = args.cells.setup()?;
    let cells = selected(args, &setup)?;
    let [cell] = &cells[..] else {
        return Err(Failure::Usage(format!("--gdb is for one cell, and {} are selected", cells.len())));
    };
    let Ok(engine) = setup.engines.get_for(cell.engine, setup.matrix.os_guest(&cell.guest)) else {
        // It is not applicable, and says why.
        let result = run_cell(&setup, cell).result;
        return Ok(Ran::of(setup, vec![result]));
    };
    let lacks = engine.lacks_traps().map_err(|why| Failure::Usage(format!("--gdb: {why}")))?;
    let address = if address.starts_with(':') { format!("127.0.0.1{address}") } else { address.to_owned() };
    let listener = TcpListener::bind(&address).map_err(|error| Failure::Usage(format!("{address}: {error}")))?;
    let bound = listener.local_addr().map_err(|error| Failure::Harness(error.to_string()))?;
    // To standard error, where the guest's outcome is not.
    let mut told = anstream::stderr();
    if let Some(lacks) = lacks {
        let _ = writeln!(told, "note: {lacks}");
    }
    let _ = writeln!(told, "waiting for gdb: target remote {bound}");
    let result = debug_cell(&setup, cell, &listener).result;
    Ok(Ran::of(setup, vec![result]))
}

/// Runs what the arguments select.
pub(super) fn run_cells(args: &RunArgs) -> Result<Ran, Failure> {
    let setup = args.cells.setup()?;
    let cells = selected(args, &setup)?;
    args.files.files().probe().map_err(Failure::Harness)?;
    let stop = Stop::new();
    stop.listen().map_err(|error| Failure::Harness(format!("signals cannot be watched: {error}")))?;
    let mut ran = Ran {
        setup,
        results: Vec::new(),
        explanations: BTreeMap::new(),
        duration: Duration::ZERO,
        failures: Vec::new(),
    };
    let began = Instant::now();
    loop {
        run_once(args, &mut ran, &cells, &stop)?;
        if !args.until_fail || stop.soon() || ran.results.iter().any(|result| result.verdict.is_red()) {
            break;
        }
        ran.setup.seed = ran.setup.seed.wrapping_add(1);
    }
    if !stop.soon() {
        let manner = args.runner.manner();
        let campaign = Campaign::new(&ran.setup, manner, &stop, &Progress::Silent);
        ran.explanations = campaign.explain(&mut ran.results, args.files.html.is_some());
    }
    ran.duration = began.elapsed();
    Ok(ran)
}

fn selected(args: &RunArgs, setup: &Setup) -> Result<Vec<Cell>, Failure> {
    let cells = args.select.cells(&setup.matrix)?;
    let shard = match args.shard {
        Some(shard) => Some(shard),
        None => Shard::of_environment(|name| std::env::var(name).ok()).map_err(Failure::Usage)?,
    };
    let Some(shard) = shard else { return Ok(cells) };
    let mut took = BTreeMap::new();
    for path in &args.durations {
        let document = json::Document::read(path).map_err(Failure::Usage)?;
        took.extend(
            document.cells.into_iter().filter(|result| !result.duration.is_zero()).map(|r| (r.cell, r.duration)),
        );
    }
    let cells = shard.of(cells, &took);
    if cells.is_empty() {
        return Err(Failure::Usage("this shard has no cell: there are fewer cells than shards".into()));
    }
    Ok(cells)
}

/// Runs the cells once and keeps journal, document and traces up to date.
fn run_once(args: &RunArgs, ran: &mut Ran, cells: &[Cell], stop: &Stop) -> Result<(), Failure> {
    let setup = &ran.setup;
    let skipped = |cell| CellResult::without_run(setup, cell, Verdict::Skipped, "it did not run".into());
    let mut results: Vec<CellResult> = cells.iter().map(skipped).collect();
    // A stream gets the end alone.
    let kept = args.files.json.as_deref().filter(|path| !file::is_stream(path));
    let mut journal = match kept.filter(|_| !args.until_fail) {
        Some(path) => Some(open_journal(args, setup, cells, path, &mut results)?),
        None => None,
    };
    let places: Vec<usize> = (0..cells.len()).filter(|&at| results[at].verdict == Verdict::Skipped).collect();
    let open: Vec<Cell> = places.iter().map(|&at| cells[at].clone()).collect();

    let host = json::Host::here(&setup.engines, cells.iter().map(|cell| cell.engine).collect::<BTreeSet<_>>());
    let mut document = kept.map(|path| Kept { path, host: &host, written: Instant::now(), took: Duration::ZERO });
    // At once, so that what stood there before is not taken for this run's.
    if let Some(kept) = &mut document {
        kept.write(&results).map_err(Failure::Harness)?;
    }
    let manner = Manner {
        repeat: args.repeat.get(),
        hash: args.files.json.is_some(),
        trace: args.trace_dir.is_some(),
        ..args.runner.manner()
    };
    let progress = Progress::new(open.len(), manner.jobs);
    let mut failures: Vec<String> = Vec::new();
    let mut trace_dir = args.trace_dir.as_deref();
    Campaign::new(setup, manner, stop, &progress).run(&open, |at, result, trace| {
        progress.done();
        if let (Some(dir), Some(trace)) = (trace_dir, trace)
            && let Err(error) = write_trace(dir, &result.cell, &trace)
        {
            failures.push(format!("the trace of {} cannot be written: {error}; no more are", result.cell));
            trace_dir = None;
        }
        // What is in the journal is done: the trace has to be there before.
        if let Some(open) = &mut journal
            && let Err(error) = open.add(&result)
        {
            failures.push(format!("the journal cannot be written: {error}; --resume will run again what comes now"));
            journal = None;
        }
        results[places[at]] = result;
        if document.as_mut().is_some_and(|kept| kept.is_due())
            && let Some(Err(failure)) = document.as_mut().map(|kept| kept.write(&results))
        {
            failures.push(failure);
            document = None;
        }
        ControlFlow::Continue(())
    });
    progress.finish();
    // Its end is the document's: see `report`.
    drop(journal);
    ran.results = results;
    ran.failures.append(&mut failures);
    Ok(())
}

fn open_journal(
    args: &RunArgs,
    setup: &Setup,
    cells: &[Cell],
    json: &Path,
    results: &mut [CellResult],
) -> Result<Journal, Failure> {
    let path = journal::beside(json);
    let names: Vec<String> = cells.iter().map(Cell::to_string).collect();
    let source = setup.matrix.source();
    let run = format!("{:?}", (&source.text, names, setup.seed, setup.timeout, args.repeat));
    let run = base16ct::lower::encode_string(&Sha256::digest(run));
    let (journal, found) = Journal::open(&path, &run, args.resume).map_err(|error| {
        let message = format!("{}: {error}", path.display());
        match error {
            JournalError::Io(source) => Failure::Harness(format!("{message}: {source}")),
            JournalError::Taken | JournalError::OtherRun => Failure::Usage(message),
        }
    })?;
    let places: BTreeMap<&Cell, usize> = cells.iter().enumerate().map(|(at, cell)| (cell, at)).collect();
    for result in found {
        if let Some(&at) = places.get(&result.cell) {
            results[at] = result;
        }
    }
    Ok(journal)
}

/// The document while cells are running.
struct Kept<'a> {
    path: &'a Path,
    host: &'a json::Host,
    written: Instant,
    /// How long the last time took.
    took: Duration,
}

impl Kept<'_> {
    fn is_due(&self) -> bool {
        self.written.elapsed() > JSON_INTERVAL.max(self.took * JSON_SHARE)
    }

    fn write(&mut self, results: &[CellResult]) -> Result<(), String> {
        let began = Instant::now();
        json::Document::new(self.host, results)
            .write(self.path)
            .map_err(|error| format!("{}: the results cannot be written: {error}", self.path.display()))?;
        (self.written, self.took) = (Instant::now(), began.elapsed());
        Ok(())
    }
}

fn write_trace(dir: &Path, cell: &Cell, trace: &[u8]) -> io::Result<()> {
    let path = dir.join(cell.file("jsonl"));
    std::fs::create_dir_all(path.parent().expect("a cell's file stands in a directory"))?;
    file::write_atomically(&path, |out| out.write_all(trace))
}

/// Prints the grid and writes every report that was asked for; the exit status.
pub(super) fn report(args: &RunArgs, ran: &mut Ran) -> Result<u8, Failure> {
    let failures = std::mem::take(&mut ran.failures);
    let publication = Publication {
        setup: &ran.setup,
        cells: &args.cells,
        files: &args.files,
        guests_by_name: !args.select.guest.is_empty(),
        duration: ran.duration,
    };
    publication.publish(&ran.results, &ran.explanations, failures)
}

/// What reports are made of beside results.
pub(super) struct Publication<'a> {
    pub(super) setup: &'a Setup,
    pub(super) cells: &'a CellArgs,
    pub(super) files: &'a FileArgs,
    /// Whether guests were asked for by name, so that all of them stand in the grid.
    pub(super) guests_by_name: bool,
    pub(super) duration: Duration,
}

impl Publication<'_> {
    /// Prints the grid and writes the reports; the exit status. `failures` is what went wrong before.
    pub(super) fn publish(
        &self,
        results: &[CellResult],
        explanations: &BTreeMap<Cell, Explanation>,
        mut failures: Vec<String>,
    ) -> Result<u8, Failure> {
        let Publication { setup, cells, files, guests_by_name, duration } = *self;
        let kernels: Vec<&str> = setup.matrix.kernels().iter().map(|kernel| &*kernel.name).collect();
        let context = report::Context {
            kernels: &kernels,
            beside: &|cell| !guests_by_name && !setup.matrix.has_guest_on_axis(&cell.guest),
            repeated: &cells.repeated(),
            matrix: cells.matrix.told(),
            duration,
            seed: setup.seed,
        };
        let engines: BTreeSet<_> = results.iter().map(|result| result.cell.engine).collect();
        let host = json::Host::here(&setup.engines, engines);
        let contents = Contents { results, explanations, host: &host, context: &context };
        let stopped = results.iter().any(|result| result.verdict == Verdict::Skipped);
        match files.files().write(&contents) {
            // With the document whole, nothing is left to go on with.
            Ok(()) if !stopped && failures.is_empty() => {
                if let Some(json) = &files.json {
                    // It is not there when the document went to a stream.
                    let _ = std::fs::remove_file(journal::beside(json));
                }
            }
            Ok(()) => {}
            Err(mut more) => failures.append(&mut more),
        }
        if let Err(failure) = step_summary(results, &context) {
            failures.push(failure);
        }
        let mut text = grid::render(results, &context, report::stdout_width());
        if std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true") {
            text.push_str(&markdown::annotations(results, &context));
        }
        let mut status = if stopped { INTERRUPTED } else { report::exit_status(results) };
        for failure in &failures {
            status = complain(failure, 3);
        }
        print_and_exit(&text, status)
    }
}

/// Adds the Markdown to the summary of a job on GitHub, when this is one.
fn step_summary(results: &[CellResult], context: &report::Context<'_>) -> Result<(), String> {
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else { return Ok(()) };
    let mut text = Vec::new();
    markdown::write(results, context, &mut text).expect("a vector takes every byte");
    let open = std::fs::File::options().append(true).create(true).open(&path);
    open.and_then(|mut file| file.write_all(&text))
        .map_err(|error| format!("{}: the summary cannot be written: {error}", Path::new(&path).display()))
}
