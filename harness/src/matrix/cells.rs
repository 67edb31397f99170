//! Sets of cells by their parts, as `[[include]]`, `[[exclude]]` and `match` write them.

use super::file::CpusPattern;
use crate::cell::Cell;
use crate::pattern::NameSet;

/// A set of numbers of vCPUs: numbers, conditions that hold together, and what is kept out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpusSet(pub Vec<CpusPattern>);

impl CpusSet {
    fn contains(&self, cpus: u16) -> bool {
        let (mut named, mut bounded, mut holds, mut wanted) = (false, false, true, false);
        for pattern in &self.0 {
            match *pattern {
                CpusPattern::Not(number) if number == cpus => return false,
                CpusPattern::Not(_) => {}
                CpusPattern::Exactly(number) => {
                    wanted = true;
                    named |= number == cpus;
                }
                CpusPattern::Within(bound) => {
                    (wanted, bounded) = (true, true);
                    holds &= bound.holds(f64::from(cpus));
                }
            }
        }
        named || (bounded && holds) || !wanted && !self.0.is_empty()
    }

    /// The numbers that are written down, when nothing but numbers is.
    pub(super) fn numbers(&self) -> Option<Vec<u16>> {
        self.0
            .iter()
            .map(|pattern| if let CpusPattern::Exactly(number) = *pattern { Some(number) } else { None })
            .collect()
    }
}

/// A set of cells by their parts; a part left out is any.
#[derive(Clone, Debug, Default)]
pub(super) struct CellMatch {
    pub frontend: Option<NameSet>,
    pub kernel: Option<NameSet>,
    pub guest: Option<NameSet>,
    pub apic: Option<NameSet>,
    pub cpus: Option<CpusSet>,
    pub engine: Option<NameSet>,
}

fn holds(part: &Option<NameSet>, name: &str) -> bool {
    part.as_ref().is_none_or(|names| names.contains(name))
}

impl CellMatch {
    pub(super) fn matches(&self, cell: &Cell) -> bool {
        self.matches_pairing(&cell.kernel, &cell.frontend)
            && self.matches_guest(&cell.guest)
            && self.matches_machine(cell)
    }

    pub(super) fn matches_pairing(&self, kernel: &str, frontend: &str) -> bool {
        holds(&self.kernel, kernel) && holds(&self.frontend, frontend)
    }

    pub(super) fn matches_guest(&self, guest: &str) -> bool {
        holds(&self.guest, guest)
    }

    /// What is neither pairing nor guest.
    pub(super) fn matches_machine(&self, cell: &Cell) -> bool {
        holds(&self.apic, cell.apic.name())
            && self.cpus.as_ref().is_none_or(|cpus| cpus.contains(cell.cpus))
            && holds(&self.engine, cell.engine.name())
    }

    /// How specific the set is: how many parts are given, then how many of them by plain names alone.
    pub(super) fn specificity(&self) -> (usize, usize) {
        let CellMatch { frontend, kernel, guest, apic, cpus, engine } = self;
        let names: Vec<&NameSet> = [frontend, kernel, guest, apic, engine].into_iter().flatten().collect();
        let plain_cpus = cpus.as_ref().is_some_and(|cpus| cpus.numbers().is_some());
        (
            names.len() + usize::from(cpus.is_some()),
            names.iter().filter(|names| names.is_plain()).count() + usize::from(plain_cpus),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_conditions_and_exceptions() {
        use CpusPattern::{Exactly, Not, Within};
        let bound = |text: &str| Within(text.parse().expect("a bound"));
        for (patterns, inside, outside) in [
            (vec![Exactly(2), Exactly(4)], vec![2, 4], vec![3]),
            (vec![bound(">= 17")], vec![17, 1000], vec![16]),
            (vec![bound(">= 17"), bound("< 255")], vec![17, 254], vec![16, 255]),
            (vec![Exactly(2), bound(">= 17")], vec![2, 17], vec![3]),
            (vec![Not(4)], vec![2, 3, 5], vec![4]),
            (vec![bound("<= 8"), Not(4)], vec![2, 8], vec![4, 9]),
            (vec![], vec![], vec![1, 2]),
        ] {
            let set = CpusSet(patterns);
            assert!(inside.iter().all(|&cpus| set.contains(cpus)), "{set:?}");
            assert!(outside.iter().all(|&cpus| !set.contains(cpus)), "{set:?}");
        }
    }
}
