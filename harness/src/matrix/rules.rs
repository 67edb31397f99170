//! Expectations: which rule decides what is expected of a cell.
//!
//! A rule may say which outcome is expected, or put a bound on what is measured, or both; each of these is decided for
//! itself, by the most specific rule that matches the cell and says something about it. More keys are more specific; of as
//! many keys, more that are plain names (without `*`, `?`, `!` or a condition); of as many of those, the later in the file.

use super::bound::Bound;
use super::cells::CellMatch;
use super::names::Names;
use crate::cell::Cell;
use crate::outcome::OutcomeKind;
use std::cmp::Reverse;
use std::ops::Range;

/// An expectation as it is written.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub cells: CellMatch,
    pub outcome: Option<OutcomeKind>,
    pub parked_exits_per_s: Option<Bound>,
    pub reason: String,
    pub reference: String,
    /// Where its `match` stands.
    pub span: Range<usize>,
    /// The line of its `match`, from 1.
    pub line: usize,
    /// Its `match` as it is written.
    pub text: String,
}

/// How a rule fares with the cells of the matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// How many cells it matches.
    pub matches: usize,
    /// Of how many it decides something.
    pub decides: usize,
}

/// The rules, ready to be asked about thousands of cells.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// The most specific first.
    rules: Vec<Rule>,
    /// For each rule, which of the numbered guests it matches.
    guests: Vec<Vec<bool>>,
    /// For each numbered kernel and frontend, the numbers of the rules that match the pairing, in their order.
    pairings: Vec<Vec<usize>>,
    frontends: usize,
}

impl Rules {
    /// The rules, in the order of the file.
    pub(super) fn new(rules: Vec<Rule>, names: &Names) -> Rules {
        let mut numbered: Vec<(usize, Rule)> = rules.into_iter().enumerate().collect();
        numbered.sort_by_key(|(at, rule)| Reverse((rule.cells.specificity(), *at)));
        let rules: Vec<Rule> = numbered.into_iter().map(|(_, rule)| rule).collect();
        let guests =
            rules.iter().map(|rule| names.guests.list.iter().map(|guest| rule.cells.matches_guest(guest)).collect());
        let pairings = names.kernels.list.iter().flat_map(|kernel| {
            let rules = &rules;
            names.frontends.list.iter().map(move |frontend| {
                (0..rules.len()).filter(|&rule| rules[rule].cells.matches_pairing(kernel, frontend)).collect()
            })
        });
        Rules { guests: guests.collect(), pairings: pairings.collect(), frontends: names.frontends.list.len(), rules }
    }

    /// The rules that match a cell, the most specific first.
    fn matching<'a>(&'a self, names: &Names, cell: &'a Cell) -> Box<dyn Iterator<Item = usize> + 'a> {
        let numbers = (
            names.kernels.number(&cell.kernel),
            names.frontends.number(&cell.frontend),
            names.guests.number(&cell.guest),
        );
        match numbers {
            (Some(kernel), Some(frontend), Some(guest)) => Box::new(
                self.pairings[kernel * self.frontends + frontend]
                    .iter()
                    .copied()
                    .filter(move |&rule| self.guests[rule][guest] && self.rules[rule].cells.matches_machine(cell)),
            ),
            // Made for the occasion, on a command line.
            _ => Box::new((0..self.rules.len()).filter(move |&rule| self.rules[rule].cells.matches(cell))),
        }
    }

    /// The most specific rule that matches a cell and says what is asked for.
    pub(super) fn deciding<T>(
        &self,
        names: &Names,
        cell: &Cell,
        says: impl Fn(&Rule) -> Option<T>,
    ) -> Option<(T, &Rule)> {
        self.matching(names, cell).find_map(|rule| says(&self.rules[rule]).map(|said| (said, &self.rules[rule])))
    }

    /// Each rule and how it fares with the cells, in the order of the file.
    pub(super) fn uses<'a>(&self, names: &Names, cells: impl Iterator<Item = &'a Cell>) -> Vec<(&Rule, Use)> {
        let mut uses = vec![Use::default(); self.rules.len()];
        for cell in cells {
            let (mut outcome, mut parked) = (false, false);
            for at in self.matching(names, cell) {
                let rule = &self.rules[at];
                uses[at].matches += 1;
                let decides = (rule.outcome.is_some() && !outcome) || (rule.parked_exits_per_s.is_some() && !parked);
                uses[at].decides += usize::from(decides);
                outcome |= rule.outcome.is_some();
                parked |= rule.parked_exits_per_s.is_some();
            }
        }
        let mut uses: Vec<(&Rule, Use)> = self.rules.iter().zip(uses).collect();
        uses.sort_by_key(|(rule, _)| rule.span.start);
        uses
    }
}
