//! `spinup show`: what there is.

use super::{Failure, MatrixArgs, print};
use crate::catalog::{self, Part};
use crate::matrix::{Matrix, Regression};
use crate::pattern::did_you_mean;
use crate::report::paint::{BOLD, DIM, paint};
use clap::{Args, ValueEnum};
use std::fmt::Write as _;
use vmm::history::{CHANGES, Change, KernelVersion};

/// Arguments of `spinup show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// What to show
    what: What,
    /// Only the one with this name, in full
    name: Option<String>,
    #[command(flatten)]
    matrix: MatrixArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
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
    let (what, entries): (&str, Vec<Entry>) = match args.what {
        What::Kernels => ("kernel", matrix.kernels().iter().map(kernel).collect()),
        What::Frontends => ("frontend", catalog::frontends().iter().map(part).collect()),
        What::Guests => ("guest", catalog::guests().iter().map(part).collect()),
        What::Changes => ("change", CHANGES.iter().map(|change| self::change(change, &matrix)).collect()),
        What::Regressions => ("regression", matrix.regressions().iter().map(regression).collect()),
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

fn kernel(kernel: &KernelVersion) -> Entry {
    let mut more = vec![("options", kernel.options.to_string())];
    more.extend(kernel.changes().map(|change| ("change", format!("{}: {}", change.name, change.reference()))));
    Entry { name: kernel.name.to_string(), about: kernel.about.to_string(), more }
}

fn part(part: &Part) -> Entry {
    Entry { name: part.name.into(), about: part.about.into(), more: Vec::new() }
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

    #[test]
    fn every_list_and_one_of_each_in_full() {
        let matrix = Matrix::built_in().expect("right");
        let lists: [Vec<Entry>; 3] = [
            matrix.kernels().iter().map(kernel).collect(),
            CHANGES.iter().map(|c| change(c, &matrix)).collect(),
            matrix.regressions().iter().map(regression).collect(),
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
