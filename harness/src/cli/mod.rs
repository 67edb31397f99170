//! The command line.

mod bisect;
mod expect;
mod explore;
mod fuzz;
mod gate;
mod generate;
mod guests;
mod list;
mod merge;
mod progress;
mod repro;
mod run;
mod show;
mod trace;

use crate::cell::{Cell, EngineKind};
use crate::matrix::{Matrix, Selection};
use crate::pattern::Pattern;
use crate::report::paint::{KNOWN, RED, paint};
use crate::run::{CellRun, Engines, Setup, run_cell};
use ::guests::MAX_CPUS;
use clap::{Args, Parser, Subcommand, ValueEnum};
use frontends::ApicMode;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Boots real SMP guests on every pairing of a VMM userspace version with a VMM kernel version, and shows where two versions
/// part ways.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// When to use colours: NO_COLOR and CLICOLOR_FORCE count, too
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Colour::Auto, global = true)]
    color: Colour,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArgs,
}

const AFTER_HELP: &str = "A cell is FRONTEND@KERNEL/GUEST/APIC-CPUS/ENGINE, for example \
bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft.\n\nExit status: 0 all verdicts are green, 1 some are red, 2 usage or \
configuration, 3 a fault of spinup itself.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run cells and print the grid (the default)
    Run(Box<run::RunArgs>),
    /// List cells without running any
    List(list::ListArgs),
    /// Show what there is: kernels, frontends, guests, changes, regressions or expectations; and which cells are unexplained
    Show(show::ShowArgs),
    /// Run a cell and print its trace
    Trace(trace::TraceArgs),
    /// Compare two cells, or two trace files: where do they part ways?
    Diff(trace::DiffArgs),
    /// Compare results with those of before: exit status 0 only if nothing that is supported got worse
    Gate(Box<gate::GateArgs>),
    /// Join the results of shards and report them as one run
    Merge(merge::MergeArgs),
    /// Say which expectations do not fit results, and rewrite matrix.toml to fit them
    Expect(expect::ExpectArgs),
    /// Print what a shell needs to complete commands
    Completions(generate::CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(generate::ManArgs),
    /// Run a known regression, or any cell that is not ok, beside its good side and print where they part ways
    Repro(repro::ReproArgs),
    /// Which change broke a frontend, and which mended it? A guest over the kernels in the order of their dates
    Bisect(bisect::BisectArgs),
    /// Run a cell under other schedules, and print the seeds that differ
    Explore(explore::ExploreArgs),
    /// Run random programs of INIT, STARTUP and other IPIs over neighbouring kernels, and shrink what differs
    Fuzz(fuzz::FuzzArgs),
    /// Fetch the kernels of operating systems that are guests
    Guests(guests::GuestsArgs),
}

/// The name of the matrix in the directory of a project.
const MATRIX_FILE: &str = "matrix.toml";

/// Options of everything that knows the matrix.
#[derive(Clone, Debug, Args)]
struct MatrixArgs {
    /// Use this matrix; by default matrix.toml in this directory or one above it, and otherwise the built-in one
    #[arg(long, value_name = "FILE")]
    matrix: Option<PathBuf>,
}

impl MatrixArgs {
    fn load(&self) -> Result<Matrix, Failure> {
        match self.path() {
            Some(path) => Matrix::read(&path).map_err(Failure::Usage),
            None => Matrix::built_in().map_err(|error| Failure::Usage(error.to_string())),
        }
    }

    /// The file: the one that was named, or the nearest of its name at or above the working directory.
    fn path(&self) -> Option<PathBuf> {
        let in_reach = || {
            let here = std::env::current_dir().ok()?;
            here.ancestors().map(|dir| dir.join(MATRIX_FILE)).find(|path| path.is_file())
        };
        self.matrix.clone().or_else(in_reach)
    }

    /// What a report says about the matrix.
    fn told(&self) -> &'static str {
        if self.path().is_none() { ", the built-in matrix" } else { "" }
    }
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Colour {
    /// On a terminal
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

impl Colour {
    fn apply(self) {
        match self {
            Colour::Auto => {}
            Colour::Always => anstream::ColorChoice::Always.write_global(),
            Colour::Never => anstream::ColorChoice::Never.write_global(),
        }
    }
}

/// Options of everything that runs cells.
#[derive(Clone, Debug, Args)]
struct CellArgs {
    #[command(flatten)]
    matrix: MatrixArgs,
    /// Seed of the schedule: the same cell and seed give the same trace on `soft`
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Limit for each cell in seconds, virtual on `soft` and real on `kvm`, instead of the matrix's
    #[arg(long, value_name = "S", value_parser = seconds)]
    timeout: Option<Duration>,
}

/// How many cells run at the same time: as many as asked for, or as there are processors.
fn jobs(asked: Option<NonZeroUsize>) -> usize {
    asked.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds such as 2 or 0.5")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() => Ok(limit),
        _ => Err("a number of seconds above 0".into()),
    }
}

impl CellArgs {
    fn setup(&self) -> Result<Setup, Failure> {
        let matrix = self.matrix.load()?;
        Ok(Setup { matrix, engines: Engines::new(), seed: self.seed, timeout: self.timeout })
    }

    /// The options that these were, but for the seed, to repeat a run: what follows a cell's name.
    fn repeated(&self) -> String {
        let mut options = String::new();
        if let Some(matrix) = &self.matrix.matrix {
            options.push_str(&format!(" --matrix {}", matrix.display()));
        }
        if let Some(timeout) = self.timeout {
            options.push_str(&format!(" --timeout {}", timeout.as_secs_f64()));
        }
        options
    }
}

/// Which cells.
#[derive(Clone, Debug, Args)]
struct SelectArgs {
    /// Kernels in place of the matrix's: any that `show kernels` lists, globs too
    #[arg(long, value_name = "K")]
    kernel: Vec<String>,
    /// Frontends in place of the matrix's
    #[arg(long, value_name = "F")]
    frontend: Vec<String>,
    /// Guests in place of the matrix's
    #[arg(long, value_name = "G")]
    guest: Vec<String>,
    /// APIC modes in place of the matrix's
    #[arg(long, value_name = "A", value_parser = apic)]
    apic: Vec<ApicMode>,
    /// Numbers of vCPUs in place of the matrix's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CPUS)))]
    cpus: Vec<u16>,
    /// Engines in place of the matrix's: soft, kvm
    #[arg(long, value_name = "E", value_parser = engine)]
    engine: Vec<EngineKind>,
    /// Only cells whose name has this in it, or matches it if it has `*` or `?`
    #[arg(value_name = "CELL-FILTER")]
    filters: Vec<String>,
}

fn apic(text: &str) -> Result<ApicMode, String> {
    ApicMode::named(text).ok_or_else(|| "xapic or x2apic".into())
}

fn engine(text: &str) -> Result<EngineKind, String> {
    EngineKind::ALL.into_iter().find(|engine| engine.name() == text).ok_or_else(|| "soft or kvm".into())
}

impl SelectArgs {
    fn selection(&self) -> Selection {
        let patterns = |texts: &[String]| texts.iter().map(Pattern::new).collect();
        Selection {
            kernels: patterns(&self.kernel),
            frontends: patterns(&self.frontend),
            guests: patterns(&self.guest),
            apic: self.apic.clone(),
            cpus: self.cpus.clone(),
            engines: self.engine.clone(),
            filters: patterns(&self.filters),
        }
    }

    fn cells(&self, matrix: &Matrix) -> Result<Vec<Cell>, Failure> {
        matrix.select(&self.selection()).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Text for people or lines for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// One line for each
    Text,
    /// One JSON document
    Json,
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
enum Failure {
    /// Usage or configuration: exit status 2.
    Usage(String),
    /// Our own fault, or the machine's: exit status 3.
    Harness(String),
    /// Whoever read our output went away: nothing to say, and nobody to say it to.
    BrokenPipe,
}

impl From<io::Error> for Failure {
    /// Errors of writing the result.
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::BrokenPipe
        } else {
            Failure::Harness(format!("the result cannot be written: {error}"))
        }
    }
}

/// Runs the command line of this process; its exit status.
#[must_use]
pub fn main() -> u8 {
    // Before anything else: each cell may have such a process of its own, and a command line takes a millisecond to make.
    if std::env::args_os().skip(1).eq([crate::run::pool::WORKER]) {
        return match crate::run::worker::work() {
            Ok(()) => 0,
            Err(error) => complain(&error.to_string(), 3),
        };
    }
    let cli = Cli::parse();
    cli.color.apply();
    let done = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(args) => run::run(&args),
        Command::List(args) => list::list(&args),
        Command::Show(args) => show::show(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Diff(args) => trace::diff(&args),
        Command::Gate(args) => gate::gate(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Expect(args) => expect::expect(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        Command::Repro(args) => repro::repro(&args),
        Command::Bisect(args) => bisect::bisect(&args),
        Command::Explore(args) => explore::explore(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Guests(args) => guests::guests(&args),
    };
    match done {
        Ok(status) => status,
        Err(Failure::Usage(message)) => complain(&message, 2),
        Err(Failure::Harness(message)) => complain(&message, 3),
        Err(Failure::BrokenPipe) => 0,
    }
}

fn complain(message: &str, status: u8) -> u8 {
    // If standard error is gone too, the status still tells.
    let _ = writeln!(anstream::stderr(), "{} {message}", paint(RED, "error:"));
    status
}

/// Says what is not as it should be, and stops nobody.
fn warn(message: &str) {
    let _ = writeln!(anstream::stderr(), "{} {message}", paint(KNOWN, "warning:"));
}

/// Prints a result.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a result that has an exit status, which does not depend on whether a reader has had enough.
fn print_and_exit(text: &str, status: u8) -> Result<u8, Failure> {
    match print(text) {
        Ok(()) | Err(Failure::BrokenPipe) => Ok(status),
        Err(failure) => Err(failure),
    }
}

/// The cell with this name, of which all parts exist.
fn named_cell(matrix: &Matrix, text: &str) -> Result<Cell, Failure> {
    let cell: Cell = text.parse().map_err(|error: crate::cell::CellNameError| Failure::Usage(error.to_string()))?;
    matrix.check_cell(&cell).map_err(|message| Failure::Usage(format!("{cell}: {message}")))?;
    Ok(cell)
}

/// Runs a cell that somebody asked for by name, so that it has to run.
fn run_named(setup: &Setup, cell: &Cell) -> Result<(CellRun, crate::trace::StoredTrace), Failure> {
    let mut run = run_cell(setup, cell);
    match run.trace.take() {
        Some(trace) => Ok((run, trace)),
        None => Err(Failure::Usage(format!(
            "{cell} cannot run here: {}; try the same cell on the engine soft",
            run.result.outcome.detail
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        let cli = Cli::try_parse_from(["spinup", "mp-spec", "--kernel", "fbsd-13.1", "--seed", "7"]).expect("a run");
        assert!(cli.command.is_none());
        assert_eq!(cli.run.select.filters, ["mp-spec"]);
        assert_eq!(cli.run.cells.seed, 7);
        let cli = Cli::try_parse_from(["spinup", "run", "mp-spec"]).expect("a run");
        assert!(matches!(cli.command, Some(Command::Run(args)) if args.select.filters == ["mp-spec"]));
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [
            &["spinup", "--apic", "lapic"][..],
            &["spinup", "--engine", "qemu"],
            &["spinup", "--cpus", "0"],
            &["spinup", "--cpus", "1025"],
            &["spinup", "--shard", "3/2"],
            &["spinup", "--timeout", "0"],
            &["spinup", "--timeout", "soon"],
            &["spinup", "-j", "0"],
            &["spinup", "diff", "one"],
            &["spinup", "show", "cats"],
        ] {
            assert!(Cli::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }

    /// The words after `spinup` in a line of an example, as a shell would split them; `None` when the line has none.
    fn example(line: &str) -> Option<Vec<String>> {
        let mut words: Vec<String> = Vec::new();
        let (mut quote, mut open) = (None, false);
        for c in line.chars() {
            match quote {
                Some(end) if c == end => quote = None,
                Some(_) => words.last_mut().expect("a quote begins a word").push(c),
                None if c == '\'' || c == '"' => {
                    quote = Some(c);
                    if !open {
                        words.push(String::new());
                    }
                    open = true;
                }
                None if c.is_whitespace() => open = false,
                None => {
                    if !open {
                        words.push(String::new());
                    }
                    open = true;
                    words.last_mut().expect("pushed just now").push(c);
                }
            }
        }
        let at = words.iter().position(|word| word == "spinup" || word.ends_with("/spinup"))?;
        let command = &words[at..];
        let end = command.iter().position(|word| ["||", "&&", ";", "|"].contains(&word.as_str()));
        Some(command[..end.unwrap_or(command.len())].to_vec())
    }

    #[test]
    fn the_examples_for_continuous_integration_are_command_lines() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ci");
        let mut seen = 0;
        for file in std::fs::read_dir(dir).expect("the examples").flatten() {
            let text = std::fs::read_to_string(file.path()).expect("text");
            let is_markdown = file.path().extension().is_some_and(|extension| extension == "md");
            let lines = text.lines().filter(|line| {
                // In Markdown, a line of a block; elsewhere, one that begins with a command.
                let line = line.trim_start_matches(['-', ' ']).trim_start_matches("run: ");
                let line = line.split_once("_script: ").map_or(line, |(_, command)| command);
                line.starts_with("spinup ")
                    || !is_markdown && (line.starts_with("./spinup ") || line.starts_with("./target/release/spinup "))
            });
            for line in lines {
                // What CI puts in the place of an expression or a variable.
                let line = line
                    .replace("${{ matrix.shard }}", "1")
                    .replace("$CI_NODE_INDEX", "1")
                    .replace("$JOB_COMPLETION_INDEX", "1");
                let words = example(&line).expect("a command of spinup");
                seen += 1;
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("{}: {line}\n{error}", file.path().display());
                }
            }
        }
        assert!(seen >= 8, "only {seen} command lines were found");
    }

    #[test]
    fn help_reads_well() {
        let mut command = Cli::command().term_width(110);
        let mut help = command.render_long_help().to_string();
        for name in [
            "run",
            "list",
            "show",
            "trace",
            "diff",
            "repro",
            "bisect",
            "explore",
            "fuzz",
            "guests",
            "gate",
            "merge",
            "expect",
            "completions",
            "man",
        ] {
            let subcommand = command.find_subcommand_mut(name).expect("a subcommand");
            help.push_str(&format!("\n---- {name} ----\n{}", subcommand.render_help()));
        }
        insta::assert_snapshot!(help);
    }
}
