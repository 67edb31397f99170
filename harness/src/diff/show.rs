//! The diff as people read it.

use super::{Diff, Row, SIDES, outcome};
use crate::report::paint::{BOLD, DIM, LEFT, RIGHT, paint};
use crate::trace::{describe, lane};
use std::fmt::Write as _;
use std::sync::Arc;
use vmm::trace::Event;

/// Common lines shown around a difference.
const CONTEXT: usize = 2;
/// One-sided mechanisms in a row that are shown before the rest is counted.
const RUN: usize = 3;
/// Lines after the first divergence, unless everything is asked for.
const AFTERMATH: usize = 40;

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
    Common(usize),
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
        let lines = self.lines();
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
                Line::Row(at) => self.show_row(out, &self.rows[*at], first == Some(*at)),
                Line::Common(count) => {
                    let events = if *count == 1 { "event" } else { "events" };
                    let _ = writeln!(out, "      {}", paint(DIM, &format!("⋯ {count} {events} in common")));
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
                Line::Lane(_) | Line::Common(_) => 0,
            })
            .sum();
        if left > 0 {
            let _ = writeln!(out, "\n      {}", paint(DIM, &format!("⋯ {left} more differences; --full shows them")));
        }
    }

    fn show_outcomes(&self, out: &mut String) {
        let outcomes = SIDES.map(|side| outcome(self.sides.records[side]));
        if let [Some((left, left_detail)), Some((right, right_detail))] = outcomes {
            if left == right {
                let _ = writeln!(out, "Both end as {left}: {left_detail}.");
            } else {
                let _ = writeln!(
                    out,
                    "{} ends as {}: {left_detail}.\n{} ends as {}: {right_detail}.",
                    self.sides.labels[0],
                    paint(BOLD, left),
                    self.sides.labels[1],
                    paint(BOLD, right),
                );
            }
        }
    }

    /// Which rows to show, and what stands for the others.
    fn lines(&self) -> Vec<Line> {
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
                segment[at.saturating_sub(CONTEXT)..segment.len().min(at + CONTEXT + 1)].iter().any(|row| row.differs)
            };
            let mut at = 0;
            while at < segment.len() {
                let row = &segment[at];
                let run = if !near(at) {
                    let run = (at..segment.len()).take_while(|&i| !near(i)).count();
                    lines.push(Line::Common(run));
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

    fn show_row(&self, out: &mut String, row: &Row, first: bool) {
        let marker = if first { paint(BOLD, "▶") } else { " ".into() };
        let mut line = |sign: &str, style: Option<anstyle::Style>, side: usize, at: usize| {
            let text = self.event_line(side, at);
            let text = style.map_or_else(|| text.clone(), |style| paint(style, &text));
            let sign = style.map_or_else(|| sign.to_owned(), |style| paint(style, sign));
            let _ = writeln!(out, "  {marker} {sign} {text}");
        };
        match row.events {
            [Some(left), Some(_)] if !row.differs => line(" ", None, 0, left),
            [left, right] => {
                if let Some(at) = left {
                    line("−", Some(LEFT), 0, at);
                }
                if let Some(at) = right {
                    line("+", Some(RIGHT), 1, at);
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
        if let Some(cause) = cause.map(|cause| &self.sides.records[side][cause]).filter(|c| c.task != record.task) {
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

/// The side of a mechanism that the other side does not have and from which no divergence follows.
fn one_sided_mechanism(row: &Row) -> Option<usize> {
    match row.events {
        _ if !row.differs || row.divergent => None,
        [Some(_), None] => Some(0),
        [None, Some(_)] => Some(1),
        _ => None,
    }
}
