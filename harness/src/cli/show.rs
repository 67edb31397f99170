//! `spinup show`: what there is.

use super::{Failure, MatrixArgs, print, print_and_exit};
use crate::catalog::{self, Part};
use crate::coverage::Coverage;
use crate::matrix::{Matrix, OsGuest, Regression, RuleUse, Selection};
use crate::pattern::{Pattern, did_you_mean};
use crate::report::paint::{BOLD, DIM, paint};
use crate::report::{exit_status, unexplained};
use crate::run::{CellResult, Engines, Setup, for_each, run_cell};
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use vmm::history::{CHANGES, Change, KernelVersion};

/// Arguments of `spinup show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// What to show
    what: What,
    /// Only the one with this name, in full; of `unexplained`, only cells with this in their name
    name: Option<String>,
    /// Write `unexplained` cells as expectations to be completed
    #[arg(long)]
    toml: bool,
    #[command(flatten)]
    matrix: MatrixArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Kernel personalities: sets of changes
    Kernels,
    /// Frontend personalities
    Frontends,
    /// What boots
    Guests,
    /// Historical commits with an effect on AP start-up
    Changes,
    /// Known regressions of the matrix
    Regressions,
    /// Expectations of the matrix: of how many cells each decides
    Expectations,
    /// Cells of the matrix that are not as expected, those that fail alike together; runs them
    Unexplained,
    /// Whether cells exercise everything that is declared, and by which cell each change shows; runs some
    Coverage,
}

/// One thing to show.
struct Entry {
    name: String,
    about: String,
    /// Further lines, shown when it is asked for by name: a word and what it is.
    more: Vec<(&'static str, String)>,
}

pub(super) fn show(args: &ShowArgs) -> Result<u8, Failure> {
    let matrix = args.matrix.load()?;
    if args.toml && args.what != What::Unexplained {
        return Err(Failure::Usage("--toml is for `show unexplained`".into()));
    }
    let (what, entries): (&str, Vec<Entry>) = match args.what {
        What::Kernels => ("kernel", matrix.kernels().iter().map(kernel).collect()),
        What::Frontends => ("frontend", catalog::frontends().iter().map(frontend).collect()),
        What::Guests => {
            let bare_metal = catalog::guests();
            ("guest", bare_metal.iter().map(part).chain(matrix.os_guests().iter().map(os_guest)).collect())
        }
        What::Changes => ("change", CHANGES.iter().map(|change| self::change(change, &matrix)).collect()),
        What::Regressions => ("regression", matrix.regressions().iter().map(regression).collect()),
        What::Expectations => ("expectation", matrix.rule_uses().iter().map(expectation).collect()),
        What::Unexplained => return unexplained(args, matrix),
        What::Coverage => return coverage(args, matrix),
    };
    let text = match &args.name {
        None => summary(&entries),
        Some(wanted) => match entries.iter().find(|entry| entry.name == *wanted) {
            Some(entry) => in_full(entry),
            None => {
                let hint = did_you_mean(wanted, entries.iter().map(|entry| entry.name.as_str()));
                return Err(Failure::Usage(format!(
                    "no {what} is named `{wanted}`{hint}; `spinup show {what}s` lists them"
                )));
            }
        },
    };
    print(&text)?;
    Ok(0)
}

/// Runs the matrix, and tells what in it is red.
fn unexplained(args: &ShowArgs, matrix: Matrix) -> Result<u8, Failure> {
    let filters = args.name.iter().map(Pattern::new).collect();
    let cells = matrix
        .select(&Selection { filters, ..Selection::default() })
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let setup = Setup { matrix, engines: Engines::new(), seed: 0, timeout: None };
    let jobs = super::jobs(None);
    let mut results: Vec<Option<CellResult>> = vec![None; cells.len()];
    for_each(
        &cells,
        jobs,
        |_| (),
        |(), cell| run_cell(&setup, cell).result,
        |at, result| {
            results[at] = Some(result);
            ControlFlow::Continue(())
        },
    );
    let results: Vec<CellResult> = results.into_iter().flatten().collect();
    let text =
        if args.toml { unexplained::toml(&results, &setup.matrix.configured()) } else { unexplained::render(&results) };
    print_and_exit(&text, exit_status(&results))
}

/// Runs what it takes to see that each change has an effect.
fn coverage(args: &ShowArgs, matrix: Matrix) -> Result<u8, Failure> {
    let setup = Setup { matrix, engines: Engines::new(), seed: 0, timeout: None };
    let jobs = super::jobs(None);
    let mut items = Coverage::of(&setup, jobs).items;
    if let Some(wanted) = &args.name {
        items.retain(|item| item.name == *wanted);
        if items.is_empty() {
            return Err(Failure::Usage(format!("nothing that is declared is named `{wanted}`")));
        }
    }
    let coverage = Coverage { items };
    print_and_exit(&coverage.render(), u8::from(!coverage.is_complete()))
}

fn expectation(rule: &RuleUse) -> Entry {
    let RuleUse { line, cells, outcome, parked_exits_per_s, reason, matches, decides } = rule;
    let expected = outcome
        .map(|outcome| outcome.to_string())
        .into_iter()
        .chain(parked_exits_per_s.map(|bound| format!("parked_exits_per_s {bound}")))
        .collect::<Vec<_>>()
        .join(", ");
    let fate = match (matches, decides) {
        (_, 0) => format!("decides none of {matches} cells: others are more specific everywhere"),
        _ => format!("decides {decides} of {matches} cells"),
    };
    Entry {
        name: format!("line {line}"),
        about: format!("{expected}, {fate}: {cells}"),
        more: vec![("reason", reason.clone())],
    }
}

fn kernel(kernel: &KernelVersion) -> Entry {
    let mut more = vec![("options", kernel.options.to_string())];
    more.extend(kernel.changes().map(|change| ("change", format!("{}: {}", change.name, change.reference()))));
    Entry { name: kernel.name.to_string(), about: kernel.about.to_string(), more }
}

fn frontend(frontend: &Part) -> Entry {
    let options = catalog::frontend_options().filter_map(|(name, about)| {
        name.strip_prefix(frontend.name)
            .filter(|option| option.starts_with('+'))
            .map(|option| format!("{option}: {about}"))
    });
    Entry { more: options.map(|option| ("option", option)).collect(), ..part(frontend) }
}

fn os_guest(guest: &OsGuest) -> Entry {
    let mut more = vec![("memory", format!("{} MiB", guest.memory_bytes >> 20))];
    more.extend(guest.devices.iter().map(|device| ("device", device.to_string())));
    Entry { name: guest.name.clone(), about: guest.about.clone(), more }
}

fn part(part: &Part) -> Entry {
    let more = part.options.iter().map(|option| ("option", format!("+{option}: {}", option.about()))).collect();
    Entry { name: part.name.into(), about: part.about.into(), more }
}

fn change(change: &Change, matrix: &Matrix) -> Entry {
    let kernels: Vec<&str> =
        matrix.kernels().iter().filter(|kernel| kernel.has(change.name)).map(|kernel| &*kernel.name).collect();
    let mut more = vec![("commit", change.commit.to_owned())];
    more.extend(change.review.map(|review| ("review", review.to_owned())));
    more.push(("date", change.date.into()));
    more.push(("evidence", change.evidence.to_string()));
    if !change.needs.is_empty() {
        more.push(("needs", change.needs.join(", ")));
    }
    more.push(("kernels", kernels.join(", ")));
    Entry { name: change.name.into(), about: change.effect.into(), more }
}

fn regression(regression: &Regression) -> Entry {
    let Regression { id, about, bad, good, reference } = regression;
    Entry {
        name: id.clone(),
        about: about.clone(),
        more: vec![
            ("bad", bad.to_string()),
            ("good", good.to_string()),
            ("ref", reference.clone()),
            ("look at it", format!("spinup repro {id}")),
        ],
    }
}

fn summary(entries: &[Entry]) -> String {
    let width = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for Entry { name, about, .. } in entries {
        let _ = writeln!(out, "{}  {about}", paint(BOLD, &format!("{name:width$}")));
    }
    out
}

fn in_full(entry: &Entry) -> String {
    let mut out = format!("{}\n  {}\n", paint(BOLD, &entry.name), entry.about);
    let width = entry.more.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
    for (word, text) in &entry.more {
        let _ = writeln!(out, "  {}  {text}", paint(DIM, &format!("{word:width$}")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use frontends::FrontendOption;

    #[test]
    fn a_frontend_in_full_lists_its_options() {
        let frontends: Vec<Entry> = catalog::frontends().iter().map(part).collect();
        let full = |name: &str| in_full(frontends.iter().find(|entry| entry.name == name).expect("a frontend"));
        let eager = anstream::adapter::strip_str(&full("bhyve-13.2")).to_string();
        for option in FrontendOption::ALL {
            assert!(eager.contains(&format!("  +{option}: ")), "{eager}");
        }
        assert!(!full("propolis").contains('+'));
    }

    #[test]
    fn every_list_and_one_of_each_in_full() {
        let matrix = Matrix::built_in().expect("right");
        let lists: [Vec<Entry>; 4] = [
            matrix.kernels().iter().map(kernel).collect(),
            CHANGES.iter().map(|c| change(c, &matrix)).collect(),
            matrix.regressions().iter().map(regression).collect(),
            matrix.rule_uses().iter().map(expectation).collect(),
        ];
        let mut text = String::new();
        for list in &lists {
            text += &summary(list);
            text += "\n";
            text += &in_full(list.last().expect("something to show"));
            text += "\n";
        }
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
