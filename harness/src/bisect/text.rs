//! The history for people: the strip, the kernels, and each flip with its changes.

use super::{Direction, Edit, Flip, History, MinimalSet, Seen, Signature};
use crate::outcome::OutcomeKind;
use crate::report::paint::{BOLD, DIM, GOOD, KNOWN, RED, paint};
use std::fmt::Write as _;

fn painted(kind: OutcomeKind, text: &str) -> String {
    let style = match kind {
        OutcomeKind::Ok => GOOD,
        OutcomeKind::Partial | OutcomeKind::Hang => KNOWN,
        _ => RED,
    };
    paint(style, text)
}

/// `⧗ hang`, padded.
fn outcome(signature: &Signature, width: usize) -> String {
    let text = format!("{} {}", signature.kind.glyph(), signature.kind);
    let padding = width.saturating_sub(text.chars().count());
    format!("{}{:padding$}", painted(signature.kind, &text), "")
}

/// The changes of a set in words: those that another of them needs go without saying.
fn in_words(set: &MinimalSet) -> String {
    let names: Vec<String> = set
        .edits
        .iter()
        .filter(|edit| !set.needed_by_others(edit))
        .map(|edit| match edit {
            Edit::With(name) => (*name).to_owned(),
            Edit::Without(name) => format!("the lack of {name}"),
            Edit::Build(word) => word.clone(),
        })
        .collect();
    match &names[..] {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last} together", first.join(", ")),
    }
}

/// What a flip does and by which changes, in a few words.
fn by(flip: &Flip) -> String {
    let verb = match flip.direction {
        Direction::Breaks => "broken by",
        Direction::Mends => "mended by",
        Direction::Changes => "changed by",
        Direction::Passes => {
            let steps = flip.walk.iter().filter(|step| step.flips).map(|step| step.edit.name());
            return format!("different in between: {}", steps.collect::<Vec<_>>().join(", then "));
        }
    };
    let sets: Vec<String> = flip.minimal.iter().map(in_words).collect();
    format!("{verb} {}", if sets.is_empty() { "no set of changes".into() } else { sets.join(", or ") })
}

/// The history as text.
#[must_use]
pub fn render(history: &History) -> String {
    let History { cell, kernels, flips, .. } = history;
    let mut out = String::new();
    let strip: Vec<String> =
        kernels.iter().map(|seen| painted(seen.signature.kind, &seen.signature.kind.to_string())).collect();
    let machine = format!("{}-{} on {}", cell.apic, cell.cpus, cell.engine);
    let _ = writeln!(
        out,
        "{} with {}, {machine}: {}\n",
        paint(BOLD, &cell.frontend),
        paint(BOLD, &cell.guest),
        strip.join(" ")
    );
    let name_width = kernels.iter().map(|seen| seen.kernel.chars().count()).max().unwrap_or(0);
    let kind_width = kernels.iter().map(|seen| seen.signature.kind.to_string().chars().count() + 2).max().unwrap_or(0);
    for seen in kernels {
        let flip = flips.iter().find(|flip| flip.to.kernel == seen.kernel);
        let line = format!(
            "  {:name_width$}  {}  {}",
            seen.kernel,
            outcome(&seen.signature, kind_width),
            flip.map_or(String::new(), by)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if flips.is_empty() {
        let _ = writeln!(out, "\nNo kernel differs from the one before it.");
    }
    for flip in flips {
        out.push('\n');
        render_flip(flip, &mut out);
    }
    out
}

fn render_flip(flip: &Flip, out: &mut String) {
    let kinds = format!("{} → {}", flip.from.signature.kind, flip.to.signature.kind);
    let _ = writeln!(out, "{} ({kinds})", paint(BOLD, &format!("{} → {}", flip.from.kernel, flip.to.kernel)));
    let _ = writeln!(out, "  {}", by(flip));
    let _ = writeln!(out, "  {}", flip.sentence);
    let edits = flip.walk.iter().map(|step| &step.edit);
    let name_width = edits.map(|edit| edit.name().len()).max().unwrap_or(0);
    let seen_all = flip.walk.iter().map(|step| &step.seen).chain(without(flip).filter_map(|(_, seen)| seen.as_ref()));
    let kind_width = seen_all.map(|seen| seen.signature.kind.to_string().chars().count() + 2).max().unwrap_or(0);
    let line = |sign: char, edit: &Edit, seen: Option<&Seen>, words: &str| {
        let kind = seen.map_or_else(|| " ".repeat(kind_width), |seen| outcome(&seen.signature, kind_width));
        format!("    {sign} {:name_width$}  {kind}  {words}\n", edit.name())
    };
    out.push_str("\n    in the order of their dates\n");
    for step in &flip.walk {
        out.push_str(&line(step.edit.sign(), &step.edit, Some(&step.seen), &paint(DIM, &step.edit.about())));
    }
    for set in flip.minimal.iter().filter(|set| !set.without.is_empty()) {
        let of = if flip.minimal.len() > 1 { format!(" of {}", in_words(set)) } else { String::new() };
        let _ = writeln!(out, "\n    with all but one{of}");
        for (edit, seen) in &set.without {
            let words = match seen {
                None => "the others need it".to_owned(),
                Some(seen) => seen.signature.divergence.clone().unwrap_or_else(|| seen.outcome.detail.clone()),
            };
            out.push_str(&line('−', edit, seen.as_ref(), &paint(DIM, &words)));
        }
    }
}

fn without(flip: &Flip) -> impl Iterator<Item = &(Edit, Option<Seen>)> {
    flip.minimal.iter().flat_map(|set| &set.without)
}
