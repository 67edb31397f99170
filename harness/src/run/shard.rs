//! Shards: parts of a run for several machines, which together are the whole.

use crate::cell::Cell;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    part: usize,
    of: usize,
}

/// Where continuous integration says which part a machine is to run: the variables, and the number of the first part.
const VARIABLES: [(&str, &str, usize); 3] = [
    // Bazel test sharding.
    ("TEST_SHARD_INDEX", "TEST_TOTAL_SHARDS", 0),
    // GitLab and CircleCI. GitLab counts from 1, and CircleCI has CIRCLE_NODE_INDEX.
    ("CI_NODE_INDEX", "CI_NODE_TOTAL", 1),
    // An indexed job of Kubernetes; the manifest has to repeat `completions`, which its pods are not told.
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", 0),
];
const CIRCLE: (&str, &str, usize) = ("CIRCLE_NODE_INDEX", "CIRCLE_NODE_TOTAL", 0);

impl Shard {
    /// The part that the environment asks for.
    ///
    /// # Errors
    /// A sentence about a variable that makes no sense.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Shard>, String> {
        for (index, total, first) in VARIABLES.into_iter().chain([CIRCLE]) {
            let (Some(index_text), Some(total_text)) = (variable(index), variable(total)) else { continue };
            let number = |name: &str, text: &str| {
                text.trim().parse::<usize>().map_err(|_| format!("{name} is `{text}`, which is no number"))
            };
            let (at, of) = (number(index, &index_text)?, number(total, &total_text)?);
            let part = (at + 1).checked_sub(first).filter(|part| (1..=of).contains(part));
            let part = part.ok_or_else(|| format!("{index} is {at} and {total} is {of}: that is no part of a run"))?;
            return Ok((of > 1).then_some(Shard { part, of }));
        }
        Ok(None)
    }

    /// The cells of this part, in their order. Parts are of as equal length as can be by how long cells took before; a cell
    /// that nobody has measured counts as the average. Each part can tell its cells without knowing of the others, if all
    /// are told the same durations.
    #[must_use]
    pub fn of(self, cells: Vec<Cell>, took: &BTreeMap<Cell, Duration>) -> Vec<Cell> {
        let known: Vec<Duration> = cells.iter().filter_map(|cell| took.get(cell).copied()).collect();
        if known.is_empty() {
            return cells.into_iter().skip(self.part - 1).step_by(self.of).collect();
        }
        let average = known.iter().sum::<Duration>() / u32::try_from(known.len()).unwrap_or(u32::MAX);
        let weight = |cell: &Cell| took.get(cell).copied().unwrap_or(average);
        // The longest first, each to the part that has the least so far.
        let mut order: Vec<usize> = (0..cells.len()).collect();
        order.sort_by_key(|&at| (std::cmp::Reverse(weight(&cells[at])), at));
        let mut loads = vec![(Duration::ZERO, 0usize); self.of];
        let mut mine = vec![false; cells.len()];
        for at in order {
            let part = (0..self.of).min_by_key(|&part| (loads[part], part)).expect("there is a part");
            loads[part].0 += weight(&cells[at]);
            loads[part].1 += 1;
            mine[at] = part + 1 == self.part;
        }
        cells.into_iter().zip(mine).filter(|(_, mine)| *mine).map(|(cell, _)| cell).collect()
    }
}

/// A text is no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shard is I/N with I from 1 to N, such as 1/4")]
pub struct ShardError;

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Shard, ShardError> {
        let (part, of) = text.split_once('/').ok_or(ShardError)?;
        let shard = Shard { part: part.parse().map_err(|_| ShardError)?, of: of.parse().map_err(|_| ShardError)? };
        if (1..=shard.of).contains(&shard.part) { Ok(shard) } else { Err(ShardError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cells(count: u16) -> Vec<Cell> {
        (1..=count).map(|cpus| format!("a@b/c/xapic-{cpus}/soft").parse().expect("a cell")).collect()
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in ["", "1", "0/3", "4/3", "1/0", "a/3", "1/3/5", "-1/3"] {
            assert_eq!(text.parse::<Shard>(), Err(ShardError), "{text}");
        }
    }

    #[test]
    fn the_environment_says_which_part() {
        let of = |variables: &[(&str, &str)]| {
            Shard::of_environment(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let shard = |text: &str| Ok(Some(text.parse().expect("a shard")));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("TEST_SHARD_INDEX", "0"), ("TEST_TOTAL_SHARDS", "3")]), shard("1/3"));
        assert_eq!(of(&[("CI_NODE_INDEX", "3"), ("CI_NODE_TOTAL", "3")]), shard("3/3"));
        assert_eq!(of(&[("CIRCLE_NODE_INDEX", "2"), ("CIRCLE_NODE_TOTAL", "3")]), shard("3/3"));
        assert_eq!(of(&[("JOB_COMPLETION_INDEX", "1"), ("JOB_COMPLETIONS", "2")]), shard("2/2"));
        assert_eq!(of(&[("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "1")]), Ok(None), "a job that is not split");
        assert_eq!(of(&[("JOB_COMPLETION_INDEX", "1")]), Ok(None), "nobody says of how many");
        for (index, total) in [("0", "3"), ("4", "3"), ("x", "3"), ("1", ""), ("1", "0")] {
            let error = of(&[("CI_NODE_INDEX", index), ("CI_NODE_TOTAL", total)]).expect_err("nonsense");
            assert!(error.contains("CI_NODE"), "{error}");
        }
    }

    #[test]
    fn parts_are_of_equal_length_rather_than_number() {
        let all = cells(9);
        let slow = all[4].clone();
        let took: BTreeMap<Cell, Duration> =
            all.iter().map(|cell| (cell.clone(), Duration::from_millis(if *cell == slow { 80 } else { 10 }))).collect();
        let part = |text: &str| text.parse::<Shard>().expect("a shard").of(all.clone(), &took);
        assert_eq!(part("1/2"), [slow]);
        assert_eq!(part("2/2").len(), 8);
    }

    proptest! {
        #[test]
        fn shards_are_a_partition(count in 0u16..50, of in 1usize..8, took in prop::collection::vec(0u64..100, 0..50)) {
            let all = cells(count);
            let took = all.iter().cloned().zip(took.into_iter().map(Duration::from_millis)).collect();
            let mut joined: Vec<Cell> = (1..=of)
                .flat_map(|part| format!("{part}/{of}").parse::<Shard>().expect("a shard").of(all.clone(), &took))
                .collect();
            joined.sort_unstable();
            prop_assert_eq!(joined, all);
        }
    }
}
