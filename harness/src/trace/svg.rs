//! A trace as a picture: time goes down, each task has a lane for each of its layers, causes across lanes and IPIs are arrows.

use super::{StoredTrace, canonical, describe, lane};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Arc;
use vmm::cpuset::CpuSet;
use vmm::trace::{Event, Layer, Record};

// In pixels.
const ROW: usize = 20;
const COLUMN: usize = 18;
const TASK_GAP: usize = 14;
const TOP: usize = 64;
const LEFT: usize = 96;
const LABEL_GAP: usize = 24;
/// Width of a character of the labels.
const CHARACTER: usize = 7;

/// So many calls of the same kind in a row stand alone; more are one row.
const LONGEST_RUN: usize = 3;

/// Layers from left to right, as a cause travels: the letter at their head.
const LAYERS: [(Layer, char); 4] =
    [(Layer::Guest, 'G'), (Layer::Kernel, 'K'), (Layer::Abi, 'A'), (Layer::Frontend, 'F')];

const STYLE: &str = "\
text{font:12px ui-monospace,monospace;fill:#24292f}.t{fill:#6e7781;text-anchor:end}.h{text-anchor:middle}\
.lane{stroke:#d0d7de}.guest{fill:#1a7f37}.kernel{fill:#cf222e}.abi{fill:#9a6700}.frontend{fill:#0969da}\
.cause{fill:none;stroke:#8c959f}.ipi{fill:none;stroke:#cf222e;stroke-width:1.5}\
path.broken{fill:none;stroke:#cf222e;stroke-width:3;stroke-dasharray:6 3}circle.broken{fill:#cf222e;stroke:#cf222e;stroke-width:4}\
text.broken{fill:#cf222e;font-weight:bold}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.lane{stroke:#30363d}text.broken{fill:#ff7b72}}";

/// Writes the significant events of a trace as one SVG document.
///
/// # Errors
/// Of the writer.
pub fn write(trace: &StoredTrace, out: impl Write) -> io::Result<()> {
    write_marked(trace, &[], out)
}

/// Writes the picture with some events in red, by their numbers in the trace: where it parts ways with another. The arrow
/// that leads to such an event is red too, and an IPI that got lost there is an arrow to nowhere.
///
/// # Errors
/// Of the writer.
pub fn write_marked(trace: &StoredTrace, marked: &[usize], mut out: impl Write) -> io::Result<()> {
    out.write_all(Picture::of(trace, marked).draw(&trace.cell.to_string()).as_bytes())
}

/// A lane of the picture.
type Lane = (usize, Layer);

/// One line of the picture: an event, or a run of calls of the same kind.
struct Row {
    lane: Lane,
    t_ns: u64,
    label: String,
    count: usize,
    /// What makes a run: the name of a call that succeeded.
    call: Option<String>,
    /// The row of the cause.
    cause: Option<usize>,
    /// Whether it is the creation of a task.
    spawns: bool,
    /// Whom an IPI went to.
    ipi: CpuSet,
    /// Whether it is an IPI that reached nobody.
    lost: bool,
    /// Whether it is to stand out.
    marked: bool,
}

struct Picture {
    /// The tasks, in the order in which they appear.
    tasks: Vec<Arc<str>>,
    /// Where each lane stands.
    lanes: BTreeMap<Lane, usize>,
    rows: Vec<Row>,
    /// The task that runs a vCPU.
    threads: BTreeMap<usize, usize>,
}

impl Picture {
    fn of(trace: &StoredTrace, marked: &[usize]) -> Picture {
        let mut picture =
            Picture { tasks: Vec::new(), lanes: BTreeMap::new(), rows: Vec::new(), threads: BTreeMap::new() };
        let records = &trace.trace.records;
        // The row of each event; that of its cause for one that has none.
        let mut row_of: Vec<Option<usize>> = Vec::with_capacity(records.len());
        for (at, (record, keep)) in records.iter().zip(canonical::significant(&trace.trace)).enumerate() {
            let cause = record.cause.and_then(|cause| *row_of.get(usize::try_from(cause).ok()?)?);
            row_of.push(if keep { Some(picture.add(record, cause)) } else { cause });
            if let Some(row) = row_of[at].filter(|_| marked.contains(&at)) {
                picture.rows[row].marked = true;
            }
        }
        picture.place_lanes();
        picture
    }

    fn add(&mut self, record: &Record, cause: Option<usize>) -> usize {
        let name = lane(record);
        let task = self.tasks.iter().position(|task| *task == name).unwrap_or_else(|| {
            self.tasks.push(name);
            self.tasks.len() - 1
        });
        let lane = (task, record.layer);
        self.lanes.insert(lane, 0);
        if let (Event::FirstInstruction { .. }, Some(vcpu)) = (&record.event, record.vcpu) {
            self.threads.insert(usize::from(vcpu), task);
        }
        let call = match &record.event {
            Event::Ioctl { name, errno: 0, .. } => Some(name.clone()),
            _ => None,
        };
        if let (Some(name), Some(last)) = (&call, self.rows.last_mut())
            && last.call.as_ref() == Some(name)
            && last.lane == lane
            && self.run_length(name) >= LONGEST_RUN
        {
            let last = self.rows.last_mut().expect("just looked at");
            last.count += 1;
            return self.rows.len() - 1;
        }
        let vcpu = record.vcpu.map_or(String::new(), |vcpu| format!("vCPU {vcpu}: "));
        let ipi = match record.event {
            Event::IpiDelivered { targets, .. } => targets,
            _ => CpuSet::EMPTY,
        };
        let lost = matches!(record.event, Event::IpiDropped { .. });
        let spawns = matches!(record.event, Event::TaskSpawned { .. });
        let label = format!("{vcpu}{}", describe(&record.event));
        self.rows.push(Row { lane, t_ns: record.t_ns, label, count: 1, call, cause, spawns, ipi, lost, marked: false });
        self.rows.len() - 1
    }

    /// How many rows at the end are calls of this name.
    fn run_length(&self, name: &str) -> usize {
        self.rows.iter().rev().take_while(|row| row.call.as_deref() == Some(name)).count()
    }

    fn place_lanes(&mut self) {
        let mut x = LEFT;
        for task in 0..self.tasks.len() {
            for (layer, _) in LAYERS {
                if let Some(place) = self.lanes.get_mut(&(task, layer)) {
                    *place = x;
                    x += COLUMN;
                }
            }
            x += TASK_GAP;
        }
    }

    fn draw(&self, title: &str) -> String {
        let labels = self.lanes.values().max().copied().unwrap_or(LEFT) + LABEL_GAP;
        let longest = self.rows.iter().map(|row| label(row).chars().count()).max().unwrap_or(0);
        let width = labels + CHARACTER * longest.max(title.chars().count()) + LABEL_GAP;
        let bottom = TOP + ROW * self.rows.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\
             <title>{title}</title><style>{STYLE}</style>\
             <defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\">\
             <path d=\"M0 0 8 4 0 8z\" fill=\"context-stroke\"/></marker></defs>\n\
             <text x=\"8\" y=\"18\">{title}</text>\n",
            height = bottom + ROW,
            title = escape(title),
        );
        self.draw_lanes(&mut svg, bottom);
        self.draw_arrows(&mut svg);
        for (index, row) in self.rows.iter().enumerate() {
            let y = row_y(index);
            let (ms, us) = (row.t_ns / 1_000_000, row.t_ns / 1_000 % 1_000);
            let layer = format!("{:?}", row.lane.1).to_lowercase();
            let (class, text) = if row.marked { ("broken", " class=\"broken\"") } else { (layer.as_str(), "") };
            let _ = writeln!(
                svg,
                "<text class=\"t\" x=\"{}\" y=\"{}\">{ms}.{us:03}</text>\
                 <circle class=\"{class}\" cx=\"{}\" cy=\"{y}\" r=\"4\"/><text{text} x=\"{labels}\" y=\"{}\">{}</text>",
                LEFT - LABEL_GAP,
                y + 4,
                self.lanes[&row.lane],
                y + 4,
                escape(&label(row)),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_lanes(&self, svg: &mut String, bottom: usize) {
        for (task, name) in self.tasks.iter().enumerate() {
            let places: Vec<usize> =
                LAYERS.iter().filter_map(|(layer, _)| self.lanes.get(&(task, *layer))).copied().collect();
            let (Some(first), Some(last)) = (places.first(), places.last()) else { continue };
            let _ = writeln!(
                svg,
                "<text class=\"h\" x=\"{}\" y=\"{}\">{}</text>",
                usize::midpoint(*first, *last),
                if task % 2 == 0 { TOP - 30 } else { TOP - 18 },
                escape(name)
            );
        }
        for ((_, layer), x) in &self.lanes {
            let letter = LAYERS.iter().find(|(known, _)| known == layer).map_or(' ', |(_, letter)| *letter);
            let _ = writeln!(
                svg,
                "<text class=\"h\" x=\"{x}\" y=\"{}\">{letter}</text>\
                 <line class=\"lane\" x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{bottom}\"/>",
                TOP - 4
            );
        }
    }

    /// Whether a cause is worth an arrow: it lies in another lane, and is not merely what the whole task came from.
    fn worth_an_arrow(&self, cause: usize, row: usize) -> bool {
        let (from, to) = (self.rows[cause].lane, self.rows[row].lane);
        let before = self.rows[..row].iter().rposition(|other| other.lane.0 == to.0);
        match before {
            _ if from == to => false,
            Some(before) if from.0 == to.0 => before == cause,
            Some(_) => !self.rows[cause].spawns,
            None => true,
        }
    }

    fn draw_arrows(&self, svg: &mut String) {
        let mut arrow = |class: &str, (x1, y1): (usize, usize), (x2, y2): (usize, usize)| {
            let middle = usize::midpoint(y1, y2);
            let _ = writeln!(
                svg,
                "<path class=\"{class}\" marker-end=\"url(#arrow)\" d=\"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}\"/>"
            );
        };
        for (index, row) in self.rows.iter().enumerate() {
            let here = (self.lanes[&row.lane], row_y(index));
            let worth_it = |cause: &usize| {
                let spawns = self.rows[*cause].spawns;
                self.worth_an_arrow(*cause, index) || row.marked && *cause != index && !spawns
            };
            if let Some(cause) = row.cause.filter(worth_it) {
                let class = if row.marked { "broken" } else { "cause" };
                arrow(class, (self.lanes[&self.rows[cause].lane], row_y(cause)), (here.0, here.1 - 4));
            }
            if row.lost && row.marked {
                arrow("broken", here, (here.0 + COLUMN, here.1 + ROW));
            }
            let targets = row.ipi.iter().filter_map(|vcpu| self.threads.get(&vcpu));
            for target in targets.filter_map(|task| self.lanes.get(&(*task, Layer::Guest))) {
                arrow("ipi", here, (*target, here.1 + ROW));
            }
        }
    }
}

fn row_y(index: usize) -> usize {
    TOP + ROW * index + ROW / 2
}

fn label(row: &Row) -> String {
    match (&row.call, row.count) {
        (Some(name), 2..) => format!("⋯ {} more {name}", row.count),
        _ => row.label.clone(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{Builder, any_trace};
    use proptest::prelude::*;
    use vmm::trace::{DeliveryMode, Trace};

    fn drawn(trace: Trace) -> String {
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
        let mut out = Vec::new();
        write(&StoredTrace { cell, seed: 0, trace: Arc::new(trace) }, &mut out).expect("a vector takes every byte");
        String::from_utf8(out).expect("text")
    }

    fn ioctl(detail: &str) -> Event {
        Event::Ioctl { name: "VM_SET_REGISTER".into(), request: 0, detail: detail.into(), errno: 0 }
    }

    #[test]
    fn an_ipi_is_an_arrow_and_a_long_run_of_calls_is_one_row() {
        let mut trace = Builder::new();
        for task in ["vcpu 0", "vcpu 1"] {
            let vcpu = u16::from(task == "vcpu 1");
            trace.emit(task, Some(vcpu), Event::FirstInstruction { cs: 0, ip: 0 });
        }
        for register in ["rax=1", "rbx=2", "rcx<3", "rdx=4", "rsi=5", "rdi=6"] {
            trace.emit("main", Some(1), ioctl(register));
        }
        let targets = CpuSet::single(1);
        trace.emit("vcpu 0", Some(0), Event::IpiDelivered { mode: DeliveryMode::Fixed, vector: 0x20, targets });
        insta::assert_snapshot!(drawn(trace.finish()));
    }

    #[test]
    fn what_is_marked_is_red_with_the_arrow_that_leads_to_it() {
        let mut trace = Builder::new();
        let first = trace.emit("main", None, ioctl("before"));
        let lost =
            Event::IpiDropped { mode: DeliveryMode::Init, vector: 0, why: vmm::trace::DropReason::NoDestination };
        let at = trace.emit_caused(first, "vcpu 0", Some(0), lost);
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
        let stored = StoredTrace { cell, seed: 0, trace: Arc::new(trace.finish()) };
        let mut out = Vec::new();
        write_marked(&stored, &[usize::try_from(at).expect("few")], &mut out).expect("a vector takes every byte");
        let svg = String::from_utf8(out).expect("text");
        assert_eq!(svg.matches("<circle class=\"broken\"").count(), 1);
        assert_eq!(svg.matches("<text class=\"broken\"").count(), 1);
        assert_eq!(svg.matches("<path class=\"broken\"").count(), 2, "from its cause, and to nowhere: {svg}");
    }

    proptest! {
        /// No event is lost: each is a row or counted in one, and whatever it says the document stays well-formed.
        #[test]
        fn every_significant_event_is_in_a_row(trace in any_trace()) {
            let expected = canonical::significant(&trace).into_iter().filter(|keep| *keep).count();
            let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
            let stored = StoredTrace { cell, seed: 0, trace: Arc::new(trace) };
            let picture = Picture::of(&stored, &[]);
            prop_assert_eq!(picture.rows.iter().map(|row| row.count).sum::<usize>(), expected);
            let svg = drawn(Arc::try_unwrap(stored.trace).expect("the only one"));
            prop_assert_eq!(svg.matches("<circle").count(), picture.rows.len());
            let between_tags = svg.split('>').map(|piece| piece.split('<').count());
            prop_assert!(between_tags.into_iter().all(|pieces| pieces <= 2), "an unescaped bracket");
        }
    }
}
