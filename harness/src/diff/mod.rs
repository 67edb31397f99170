//! The causal diff: where two traces part ways.
//!
//! Traces are compared as partial orders. Only significant events count ([`crate::trace::canonical`]); each lane of one
//! side is aligned with the same lane of the other by what the events are about, decisions first, then the mechanisms
//! between them. Times do not count, nor does the order between lanes beyond what causes say.
//!
//! Two events that were aligned differ when their answers do: what became of an IPI, which set was found, which errno. A
//! difference in a *decision* is a divergence. A difference in a *mechanism* (when a vCPU is allocated, whether there is a
//! rendezvous) is one only if a decision that differs descends from it by cause. The *first* divergence is one before which,
//! on either side, there is no other.

mod align;
mod key;
mod show;
mod words;

pub use show::Amount;

use crate::trace::{CELL_LANE, StoredTrace, canonical, lane};
use align::{Step, align};
use key::{Key, Weight, key};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use vmm::trace::{Event, Record};

const SIDES: [usize; 2] = [0, 1];

/// One-sided events in a row after which a reader has lost sight of where they began.
const LONG_HALF: usize = 8;

/// A line of the alignment: an event of either side, or one of each that are about the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    lane: Arc<str>,
    /// Indices into each side's records.
    events: [Option<usize>; 2],
    /// Whether the sides differ here.
    differs: bool,
    /// Whether that is a divergence, by its own weight or by what descends from it.
    divergent: bool,
}

/// Where two traces part ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The event of each side, as its number in the trace; at least one side has one.
    pub events: [Option<usize>; 2],
    /// What a side without an event went on to do in that lane.
    pub next: [Option<usize>; 2],
    /// The decision that descends from an event which is only a mechanism.
    pub led_to: [Option<usize>; 2],
}

/// Both sides of a comparison.
struct Sides<'a> {
    labels: [String; 2],
    records: [&'a [Record]; 2],
    /// The cause of each event among the significant ones.
    causes: [Vec<Option<usize>>; 2],
    keys: [Vec<Option<Key>>; 2],
}

/// The comparison of two traces.
pub struct Diff<'a> {
    sides: Sides<'a>,
    cells: [String; 2],
    rows: Vec<Row>,
    first: Option<(usize, Divergence)>,
}

impl<'a> Diff<'a> {
    /// Compares two traces.
    #[must_use]
    pub fn new(left: &'a StoredTrace, right: &'a StoredTrace) -> Diff<'a> {
        let both = [left, right];
        let modes_differ = left.cell.apic != right.cell.apic;
        let sides = Sides {
            labels: labels(left, right),
            records: both.map(|side| &side.trace.records[..]),
            causes: both.map(|side| significant_causes(&side.trace.records, &canonical::significant(&side.trace))),
            keys: both.map(|side| {
                let significant = canonical::significant(&side.trace);
                side.trace
                    .records
                    .iter()
                    .zip(significant)
                    .map(|(record, keep)| keep.then(|| key(record, modes_differ)))
                    .collect()
            }),
        };
        let mut rows = sides.align();
        sides.weigh(&mut rows);
        let first = sides.first(&rows);
        let order = sides.causal_order(&rows);
        let first = first.map(|(at, divergence)| {
            (order.iter().position(|&row| row == at).expect("an order has every row"), divergence)
        });
        let rows = order.into_iter().map(|at| rows[at].clone()).collect();
        Diff { cells: both.map(|side| side.cell.to_string()), rows, first, sides }
    }

    /// Whether the traces agree in every significant event.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.iter().all(|row| !row.differs)
    }

    /// How many lines of the alignment differ.
    #[must_use]
    pub fn differences(&self) -> usize {
        self.rows.iter().filter(|row| row.differs).count()
    }

    /// The first divergence in behaviour, if there is one.
    #[must_use]
    pub fn first(&self) -> Option<&Divergence> {
        self.first.as_ref().map(|(_, divergence)| divergence)
    }

    /// Where the right trace parts ways with the left, the good one, in words that do not tell which cells they are of: two
    /// traces that part ways with the same good one in the same words do so for the same reason.
    #[must_use]
    pub fn signature(&self) -> Option<String> {
        let labels = ["the good one".to_owned(), "this one".to_owned()];
        self.first.as_ref().map(|(_, divergence)| words::sentence(&self.sides, &labels, divergence))
    }

    /// Where the traces part ways, in one sentence that names both sides.
    #[must_use]
    pub fn sentence(&self) -> String {
        match (&self.first, self.differences()) {
            (Some((_, divergence)), _) => words::sentence(&self.sides, &self.sides.labels, divergence),
            (None, 0) => "The traces agree in every significant event.".into(),
            (None, 1) => "The traces agree in behaviour; one mechanism differs.".into(),
            (None, count) => format!("The traces agree in behaviour; {count} mechanisms differ."),
        }
    }
}

/// What to call the sides: by what tells their cells apart.
fn labels(left: &StoredTrace, right: &StoredTrace) -> [String; 2] {
    let (l, r) = (&left.cell, &right.cell);
    let parts: [(String, String); 5] = [
        (l.frontend.clone(), r.frontend.clone()),
        (l.kernel.clone(), r.kernel.clone()),
        (l.guest.clone(), r.guest.clone()),
        (format!("{}-{}", l.apic, l.cpus), format!("{}-{}", r.apic, r.cpus)),
        (l.engine.to_string(), r.engine.to_string()),
    ];
    let differing: Vec<usize> = (0..parts.len()).filter(|&i| parts[i].0 != parts[i].1).collect();
    match differing[..] {
        [] if left.seed != right.seed => [format!("seed {}", left.seed), format!("seed {}", right.seed)],
        [] => ["the left".into(), "the right".into()],
        [0, 1] => [l.pairing(), r.pairing()],
        [one] => [parts[one].0.clone(), parts[one].1.clone()],
        _ => {
            let name = |side: fn(&(String, String)) -> &String| {
                differing.iter().map(|&i| side(&parts[i]).as_str()).collect::<Vec<_>>().join("/")
            };
            [name(|part| &part.0), name(|part| &part.1)]
        }
    }
}

/// The nearest significant ancestor of each event.
fn significant_causes(records: &[Record], significant: &[bool]) -> Vec<Option<usize>> {
    let mut nearest: Vec<Option<usize>> = Vec::with_capacity(records.len());
    for record in records {
        let cause = record.cause.and_then(|cause| usize::try_from(cause).ok());
        nearest.push(cause.and_then(|cause| if significant[cause] { Some(cause) } else { nearest[cause] }));
    }
    nearest
}

impl Sides<'_> {
    fn key(&self, side: usize, at: usize) -> &Key {
        self.keys[side][at].as_ref().expect("only significant events are in lanes")
    }

    /// The significant events of each lane.
    fn lanes(&self, side: usize) -> BTreeMap<Arc<str>, Vec<usize>> {
        let mut lanes: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (at, record) in self.records[side].iter().enumerate() {
            if self.keys[side][at].is_some() {
                lanes.entry(lane(record)).or_default().push(at);
            }
        }
        lanes
    }

    /// Aligns lane with lane.
    fn align(&self) -> Vec<Row> {
        let lanes = SIDES.map(|side| self.lanes(side));
        let names: BTreeSet<&Arc<str>> = lanes.iter().flat_map(BTreeMap::keys).collect();
        let mut rows = Vec::new();
        for name in names {
            let [left, right] = [&lanes[0], &lanes[1]].map(|lanes| lanes.get(name).map_or(&[][..], Vec::as_slice));
            self.align_lane(name, left, right, Weight::Decision, &mut rows);
        }
        rows
    }

    /// Aligns what weighs at least as much as `weight`; between two events that match, what weighs less.
    fn align_lane(&self, lane: &Arc<str>, left: &[usize], right: &[usize], weight: Weight, rows: &mut Vec<Row>) {
        let anchors = |side: usize, events: &[usize]| -> Vec<usize> {
            (0..events.len()).filter(|&i| self.key(side, events[i]).weight <= weight).collect()
        };
        let anchors = [anchors(0, left), anchors(1, right)];
        let matched = align(
            &self.subjects(0, anchors[0].iter().map(|&i| left[i])),
            &self.subjects(1, anchors[1].iter().map(|&i| right[i])),
        );
        let between = |left: &[usize], right: &[usize], rows: &mut Vec<Row>| match weight {
            Weight::Decision => self.align_lane(lane, left, right, Weight::Call, rows),
            Weight::Call => self.align_lane(lane, left, right, Weight::Mechanism, rows),
            // Nothing weighs less, so nothing here has a match.
            Weight::Mechanism => {
                let mut halves = [
                    left.iter().map(|&at| self.row(lane, [Some(at), None])).collect::<Vec<_>>(),
                    right.iter().map(|&at| self.row(lane, [None, Some(at)])).collect(),
                ];
                // A long half would tear the beginnings of both apart.
                if halves[0].len() > LONG_HALF && halves[1].len() < halves[0].len() {
                    halves.reverse();
                }
                rows.extend(halves.into_iter().flatten());
            }
        };
        let (mut done_left, mut done_right) = (0, 0);
        for step in matched {
            let Step::Both(i, j) = step else { continue };
            let (i, j) = (anchors[0][i], anchors[1][j]);
            between(&left[done_left..i], &right[done_right..j], rows);
            rows.push(self.row(lane, [Some(left[i]), Some(right[j])]));
            (done_left, done_right) = (i + 1, j + 1);
        }
        between(&left[done_left..], &right[done_right..], rows);
    }

    fn subjects(&self, side: usize, events: impl Iterator<Item = usize>) -> Vec<&str> {
        events.map(|at| self.key(side, at).subject.as_str()).collect()
    }

    fn row(&self, lane: &Arc<str>, events: [Option<usize>; 2]) -> Row {
        let differs = match events {
            [Some(left), Some(right)] => self.key(0, left).answer != self.key(1, right).answer,
            _ => true,
        };
        Row { lane: lane.clone(), events, differs, divergent: false }
    }

    fn is_decision(&self, row: &Row) -> bool {
        SIDES.into_iter().any(|side| row.events[side].is_some_and(|at| self.key(side, at).weight == Weight::Decision))
    }

    /// Says which rows are divergent: decisions that differ, and mechanisms from which one of them descends.
    fn weigh(&self, rows: &mut [Row]) {
        for row in rows.iter_mut() {
            row.divergent = row.differs && self.is_decision(row);
        }
        let mut ancestor = SIDES.map(|side| vec![false; self.records[side].len()]);
        for row in rows.iter().filter(|row| row.divergent) {
            for side in SIDES {
                let mut here = row.events[side].and_then(|at| self.causes[side][at]);
                while let Some(at) = here.filter(|&at| !ancestor[side][at]) {
                    ancestor[side][at] = true;
                    here = self.causes[side][at];
                }
            }
        }
        for row in rows.iter_mut().filter(|row| row.differs) {
            row.divergent |= SIDES.into_iter().any(|side| row.events[side].is_some_and(|at| ancestor[side][at]));
        }
    }

    /// The rows that come directly before each row, on either side: the one before in its lane, and its events' causes.
    fn before(&self, rows: &[Row]) -> Vec<Vec<usize>> {
        let mut row_of = SIDES.map(|side| vec![None; self.records[side].len()]);
        for (i, row) in rows.iter().enumerate() {
            for side in SIDES {
                if let Some(at) = row.events[side] {
                    row_of[side][at] = Some(i);
                }
            }
        }
        let mut last: [BTreeMap<&Arc<str>, usize>; 2] = Default::default();
        rows.iter()
            .enumerate()
            .map(|(i, row)| {
                let mut before = Vec::new();
                for side in SIDES {
                    let Some(at) = row.events[side] else { continue };
                    before.extend(last[side].insert(&row.lane, i));
                    before.extend(self.causes[side][at].and_then(|cause| row_of[side][cause]));
                }
                before
            })
            .collect()
    }

    /// The divergent row before which there is no other: not on its own side, nor by way of a match on the other. Of
    /// several, the one with the shortest history, then by lane and subject: nothing that depends on time, on the schedule
    /// or on which side is which.
    fn first(&self, rows: &[Row]) -> Option<(usize, Divergence)> {
        let before = self.before(rows);
        let mut after = vec![Vec::new(); rows.len()];
        for (at, earlier) in before.iter().enumerate() {
            earlier.iter().for_each(|&earlier| after[earlier].push(at));
        }
        let divergent: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].divergent).collect();
        let follows = reachable(&after, divergent.iter().copied());
        let (follow, lead): (Vec<usize>, Vec<usize>) = divergent.into_iter().partition(|&at| follows[at]);
        let rank = |at: usize| {
            let row = &rows[at];
            let history = reachable(&before, [at]).into_iter().filter(|&earlier| earlier).count();
            let subject = SIDES.into_iter().filter_map(|side| Some(&self.key(side, row.events[side]?).subject)).min();
            // What became of the cell comes after everything, whatever its cause.
            (&*row.lane == CELL_LANE, history, row.lane.clone(), subject.cloned())
        };
        // The sides can contradict each other about what comes first; then each divergence can follow another.
        let candidates =
            if lead.iter().any(|&at| &*rows[at].lane != CELL_LANE) || follow.is_empty() { lead } else { follow };
        let at = candidates.into_iter().min_by_key(|&at| rank(at))?;
        Some((at, self.divergence(rows, at)))
    }

    /// A divergent row with what the other side did in its stead, and what came of it.
    fn divergence(&self, rows: &[Row], at: usize) -> Divergence {
        let row = &rows[at];
        let mut events = row.events;
        let mut next = [None, None];
        for side in SIDES.into_iter().filter(|&side| row.events[side].is_none()) {
            // Rows of a lane stand together. Of the rows between the matches around this one, the other side's first
            // divergent event is its part of the same divergence.
            let lane = |other: &&Row| other.lane == row.lane;
            let gap_start =
                rows[..at].iter().rposition(|other| other.lane != row.lane || other.events.iter().all(Option::is_some));
            let from = gap_start.map_or(0, |matched| matched + 1);
            events[side] = rows[from..]
                .iter()
                .take_while(lane)
                .take_while(|other| other.events.iter().any(Option::is_none))
                .filter(|other| other.divergent)
                .find_map(|other| other.events[side]);
            next[side] = rows[at..]
                .iter()
                .take_while(lane)
                .find_map(|other| other.events[side].filter(|&event| self.key(side, event).weight == Weight::Decision));
        }
        let led_to = SIDES.map(|side| {
            events[side]
                .filter(|&event| self.key(side, event).weight != Weight::Decision)
                .and_then(|event| self.divergent_descendant(rows, side, event, &row.lane))
        });
        Divergence { events, next, led_to }
    }

    /// The first decision that differs and descends from an event, preferably in the same lane.
    fn divergent_descendant(&self, rows: &[Row], side: usize, event: usize, lane: &Arc<str>) -> Option<usize> {
        let mut descends = vec![false; self.records[side].len()];
        descends[event] = true;
        for at in event + 1..descends.len() {
            descends[at] = self.causes[side][at].is_some_and(|cause| descends[cause]);
        }
        rows.iter()
            .filter(|row| row.divergent)
            .filter_map(|row| Some((row.lane != *lane, row.events[side]?)))
            .filter(|&(_, at)| at != event && descends[at] && self.key(side, at).weight == Weight::Decision)
            .min_by_key(|&(elsewhere, _)| elsewhere)
            .map(|(_, at)| at)
    }

    /// The rows in an order that both sides' causes allow, staying in a lane as long as they do.
    fn causal_order(&self, rows: &[Row]) -> Vec<usize> {
        let mut row_of = SIDES.map(|side| vec![usize::MAX; self.records[side].len()]);
        let mut queues: BTreeMap<LaneOrder, VecDeque<usize>> = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            for side in SIDES {
                if let Some(at) = row.events[side] {
                    row_of[side][at] = i;
                }
            }
            queues.entry(LaneOrder::of(&row.lane)).or_default().push_back(i);
        }
        let mut queues: Vec<VecDeque<usize>> = queues.into_values().collect();
        let mut done = vec![false; rows.len()];
        let mut order = Vec::with_capacity(rows.len());
        let mut here = 0;
        while order.len() < rows.len() {
            let ready = |queue: &VecDeque<usize>| {
                queue.front().is_some_and(|&i| {
                    SIDES.into_iter().all(|side| {
                        let cause = rows[i].events[side].and_then(|at| self.causes[side][at]);
                        cause.is_none_or(|cause| row_of[side][cause] == i || done[row_of[side][cause]])
                    })
                })
            };
            if !ready(&queues[here]) {
                here = (0..queues.len())
                    .find(|&lane| ready(&queues[lane]))
                    // The sides can contradict each other about what comes first; then the lane decides.
                    .or_else(|| queues.iter().position(|queue| !queue.is_empty()))
                    .expect("a row is left, so a lane has one");
            }
            let i = queues[here].pop_front().expect("the lane has a row");
            done[i] = true;
            order.push(i);
        }
        order
    }
}

/// What can be reached by one step or more.
fn reachable(steps: &[Vec<usize>], from: impl IntoIterator<Item = usize>) -> Vec<bool> {
    let mut reached = vec![false; steps.len()];
    let mut here: Vec<usize> = from.into_iter().collect();
    while let Some(at) = here.pop() {
        for &next in &steps[at] {
            if !std::mem::replace(&mut reached[next], true) {
                here.push(next);
            }
        }
    }
    reached
}

/// The order in which lanes are shown: threads by name, their numbers as numbers, and what belongs to no thread last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LaneOrder {
    last: bool,
    word: String,
    number: u64,
    name: Arc<str>,
}

impl LaneOrder {
    fn of(name: &Arc<str>) -> LaneOrder {
        let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[word.len()..].parse().unwrap_or(0);
        LaneOrder { last: &**name == CELL_LANE, word: word.to_owned(), number, name: name.clone() }
    }
}

/// What became of a side, by its trace.
fn outcome(records: &[Record]) -> Option<(&str, &str)> {
    records.iter().rev().find_map(|record| match &record.event {
        Event::Outcome { kind, detail } => Some((kind.as_str(), detail.as_str())),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
