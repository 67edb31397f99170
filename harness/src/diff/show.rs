//! The diff as people read it.

use super::{Diff, Row, SIDES, outcome};
use crate::report::paint::{BOLD, DIM, LEFT, RIGHT, paint};
use crate::trace::{describe, lane};
use anstyle::Style;
use std::fmt::Write as _;
use std::sync::Arc;
use vmm::trace::Event;

/// Common lines shown around a difference.
const CONTEXT: usize = 2;
/// One-sided mechanisms in a row that are shown before the rest is counted.
const RUN: usize = 3;
/// Lines after the first divergence, unless everything is asked for.
const AFTERMATH: usize = 28;

/// How much of the alignment to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// The first divergence with what is around it, and the beginning of what follows from it.
    Summary,
    /// Every difference.
    Full,
}

/// One line of the picture, or what stands for several.
enum Line {
    /// The rows that follow are of this lane.
    Lane(Arc<str>),
    Row(usize),
    /// So many events in common, only on the left, and only on the right.
    Folded([usize; 3]),
    Mechanisms {
        side: usize,
        count: usize,
    },
}

impl Diff<'_> {
    /// The sentence, the aligned traces and the outcomes, with colours.
    #[must_use]
    pub fn show(&self, amount: Amount) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}", paint(BOLD, &self.sentence()));
        if !self.is_empty() {
            let _ = writeln!(out);
            for (side, style, sign) in [(0, LEFT, "−"), (1, RIGHT, "+")] {
                let _ = writeln!(out, "  {}", paint(style, &format!("{sign} {}", self.cells[side])));
            }
            self.show_rows(&mut out, amount);
            let _ = writeln!(out);
        }
        self.show_outcomes(&mut out);
        out
    }

    fn show_rows(&self, out: &mut String, amount: Amount) {
        let lines = self.lines(amount);
        let first = self.first.as_ref().map(|(row, _)| *row);
        let end = match amount {
            Amount::Full => lines.len(),
            Amount::Summary => {
                let at = lines.iter().position(|line| matches!(line, Line::Row(row) if Some(*row) == first));
                lines.len().min(at.unwrap_or(0) + AFTERMATH)
            }
        };
        for line in &lines[..end] {
            match line {
                Line::Lane(lane) => {
                    let _ = writeln!(out, "\n  {}", paint(BOLD, lane));
                }
                Line::Row(at) => self.show_row(out, &self.rows[*at]),
                Line::Folded(counts) => {
                    let _ = writeln!(out, "      {}", paint(DIM, &self.folded(*counts)));
                }
                Line::Mechanisms { side, count } => {
                    let (sign, style) = [("−", LEFT), ("+", RIGHT)][*side];
                    let more = paint(DIM, &format!("⋯ {count} more of this kind"));
                    let _ = writeln!(out, "    {} {more}", paint(style, sign));
                }
            }
        }
        let left: usize = lines[end..]
            .iter()
            .map(|line| match line {
                Line::Row(row) => usize::from(self.rows[*row].differs),
                Line::Mechanisms { count, .. } => *count,
                Line::Folded([_, left, right]) => left + right,
                Line::Lane(_) => 0,
            })
            .sum();
        if left > 0 {
            let differences = if left == 1 { "difference" } else { "differences" };
            let more = format!("⋯ {left} more {differences}; --full shows everything");
            let _ = writeln!(out, "\n      {}", paint(DIM, &more));
        }
    }

    fn show_outcomes(&self, out: &mut String) {
        let outcomes = SIDES.map(|side| outcome(self.sides.records[side]));
        if let [Some((left, left_detail)), Some((right, right_detail))] = outcomes {
            if left == right {
                let _ = writeln!(out, "Both end as {left}: {left_detail}");
            } else {
                let _ = writeln!(
                    out,
                    "{} ends as {}: {left_detail}\n{} ends as {}: {right_detail}",
                    self.sides.labels[0],
                    paint(BOLD, left),
                    self.sides.labels[1],
                    paint(BOLD, right),
                );
            }
        }
    }

    /// `⋯ 12 events in common, 3 only on fbsd-13.1`.
    fn folded(&self, [common, left, right]: [usize; 3]) -> String {
        let events = |count: usize| if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
        let mut parts = Vec::new();
        if common > 0 {
            parts.push(format!("{} in common", events(common)));
        }
        for (count, label) in [(left, &self.sides.labels[0]), (right, &self.sides.labels[1])] {
            if count > 0 {
                let what = if parts.is_empty() { events(count) } else { count.to_string() };
                parts.push(format!("{what} only on {label}"));
            }
        }
        format!("⋯ {}", parts.join(", "))
    }

    /// Which rows to show, and what stands for the others.
    fn lines(&self, amount: Amount) -> Vec<Line> {
        // Where behaviour differs, a mechanism alone is worth a line only beside that.
        let matters = |row: &Row| row.divergent || row.differs && (amount == Amount::Full || self.first.is_none());
        let mut lines = Vec::new();
        let mut next = 0;
        for segment in self.rows.chunk_by(|a, b| a.lane == b.lane) {
            let start = next;
            next += segment.len();
            // A lane that does not differ is no news.
            if segment.iter().all(|row| !row.differs) {
                continue;
            }
            lines.push(Line::Lane(segment[0].lane.clone()));
            let near = |at: usize| {
                segment[at.saturating_sub(CONTEXT)..segment.len().min(at + CONTEXT + 1)].iter().any(matters)
            };
            let mut at = 0;
            while at < segment.len() {
                let row = &segment[at];
                let run = if !near(at) {
                    let run = (at..segment.len()).take_while(|&i| !near(i)).count();
                    let mut counts = [0; 3];
                    for row in &segment[at..at + run] {
                        counts[one_sided(row).map_or(0, |side| side + 1)] += 1;
                    }
                    lines.push(Line::Folded(counts));
                    run
                } else if let Some(side) = one_sided_mechanism(row) {
                    let run = segment[at..].iter().take_while(|row| one_sided_mechanism(row) == Some(side)).count();
                    let shown = if run > RUN + 1 { RUN } else { run };
                    lines.extend((start + at..start + at + shown).map(Line::Row));
                    if shown < run {
                        lines.push(Line::Mechanisms { side, count: run - shown });
                    }
                    run
                } else {
                    lines.push(Line::Row(start + at));
                    1
                };
                at += run;
            }
        }
        lines
    }

    fn show_row(&self, out: &mut String, row: &Row) {
        let parts_ways = |side: usize, at: usize| {
            self.first.as_ref().is_some_and(|(_, divergence)| divergence.events[side] == Some(at))
        };
        let mut line = |sign: &str, style: Style, side: usize, at: usize| {
            let marker = if row.differs && parts_ways(side, at) { paint(BOLD, "▶") } else { " ".into() };
            let text = format!("{sign} {}", self.event_line(side, at));
            let _ = writeln!(out, "  {marker} {}", paint(style, &text));
        };
        match row.events {
            [Some(left), Some(_)] if !row.differs => line(" ", Style::new(), 0, left),
            [left, right] => {
                if let Some(at) = left {
                    line("−", LEFT, 0, at);
                }
                if let Some(at) = right {
                    line("+", RIGHT, 1, at);
                }
            }
        }
    }

    /// An event in words: indented under the interrupt command that it follows from, with the vCPU if the lane does not
    /// say it, and with the thread it was caused by if that is another.
    fn event_line(&self, side: usize, at: usize) -> String {
        let record = &self.sides.records[side][at];
        let cause = self.sides.causes[side][at];
        let mut text = String::new();
        let level = self.level(side, at);
        if level > 0 {
            text.push_str(&"  ".repeat(level - 1));
            text.push_str("↳ ");
        }
        if let Some(vcpu) = record.vcpu.filter(|vcpu| *record.task != *format!("vcpu {vcpu}")) {
            let _ = write!(text, "vCPU {vcpu}: ");
        }
        text.push_str(&describe(&record.event));
        if let Some(cause) = cause.map(|cause| &self.sides.records[side][cause])
            && cause.task != record.task
            // That a thread does what it does because it was created goes without saying, but for its beginning.
            && (!matches!(cause.event, Event::TaskSpawned { .. }) || matches!(record.event, Event::FirstInstruction { .. }))
        {
            let _ = write!(text, "  ← {}", cause.task);
        }
        text
    }

    /// How many steps of cause lie between an event and the interrupt command that led to it in the same lane.
    fn level(&self, side: usize, at: usize) -> usize {
        let records = self.sides.records[side];
        let mut level = 0;
        let mut here = at;
        loop {
            if matches!(records[here].event, Event::IcrWrite { .. }) {
                return level.min(4);
            }
            match self.sides.causes[side][here].filter(|&cause| lane(&records[cause]) == lane(&records[at])) {
                Some(cause) => (here, level) = (cause, level + 1),
                None => return 0,
            }
        }
    }
}

/// The side of an event that the other side does not have.
fn one_sided(row: &Row) -> Option<usize> {
    match row.events {
        [Some(_), None] => Some(0),
        [None, Some(_)] => Some(1),
        _ => None,
    }
}

/// The same, of an event from which no divergence follows.
fn one_sided_mechanism(row: &Row) -> Option<usize> {
    one_sided(row).filter(|_| !row.divergent)
}
