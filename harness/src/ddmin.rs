//! Delta debugging: the smallest part of a list that still does what the whole does (Zeller and Hildebrandt, "Simplifying
//! and isolating failure-inducing input", 2002).

/// A sublist of `items`, in their order, for which `holds` and from which no single item can be taken so that it still
/// does. `holds` is taken to be true of `items` themselves.
pub fn minimal<T: Clone>(items: &[T], mut holds: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut here = items.to_vec();
    let mut chunks = 2;
    while !here.is_empty() {
        let size = here.len().div_ceil(chunks);
        let without = |at: usize| -> Vec<T> {
            let end = (at + size).min(here.len());
            here[..at].iter().chain(&here[end..]).cloned().collect()
        };
        let starts = (0..here.len()).step_by(size);
        let chunk = |at: usize| here[at..(at + size).min(here.len())].to_vec();
        // A chunk alone is the greater step, but of two chunks each is what the other leaves.
        let alone = (chunks > 2).then(|| starts.clone().map(chunk).find(|part| holds(part))).flatten();
        if let Some(part) = alone {
            (here, chunks) = (part, 2);
        } else if let Some(rest) = starts.map(without).find(|rest| holds(rest)) {
            here = rest;
            chunks = (chunks - 1).max(2);
        } else if size == 1 {
            break;
        } else {
            chunks = (chunks * 2).min(here.len());
        }
    }
    here
}

/// Up to `most` sublists as [`minimal`] finds them, each different from the others: what else would do in place of some
/// item of one that was found.
pub fn minimal_sets<T: Clone + PartialEq>(
    items: &[T],
    most: usize,
    mut holds: impl FnMut(&[T]) -> bool,
) -> Vec<Vec<T>> {
    let mut found: Vec<Vec<T>> = Vec::new();
    // Lists still to be searched; each leaves out an item of every set that was found on the way to it.
    let mut searched = vec![items.to_vec()];
    let mut at = 0;
    while at < searched.len() && found.len() < most {
        let list = searched[at].clone();
        at += 1;
        if !holds(&list) {
            continue;
        }
        let set = minimal(&list, &mut holds);
        for item in &set {
            let rest: Vec<T> = list.iter().filter(|other| *other != item).cloned().collect();
            if !searched.contains(&rest) {
                searched.push(rest);
            }
        }
        if !found.contains(&set) {
            found.push(set);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn has(list: &[u8], wanted: &[u8]) -> bool {
        wanted.iter().all(|item| list.contains(item))
    }

    #[test]
    fn what_is_not_needed_goes() {
        let items: Vec<u8> = (0..100).collect();
        assert_eq!(minimal(&items, |list| has(list, &[7])), [7]);
        assert_eq!(minimal(&items, |list| has(list, &[3, 50, 99])), [3, 50, 99]);
        assert_eq!(minimal(&items, |_| true), [0u8; 0]);
        assert_eq!(minimal(&[1u8, 2], |list| has(list, &[1, 2])), [1, 2]);
        assert_eq!(minimal(&[0u8; 0], |_| true), [0u8; 0]);
    }

    #[test]
    fn every_way_to_the_same_end_is_found() {
        let items: Vec<u8> = (0..8).collect();
        let either = |list: &[u8]| has(list, &[1, 6]) || has(list, &[3]);
        let mut sets = minimal_sets(&items, 4, either);
        sets.sort();
        assert_eq!(sets, [vec![1, 6], vec![3]]);
        assert_eq!(minimal_sets(&items, 1, either).len(), 1);
        assert!(minimal_sets(&items, 4, |_| false).is_empty());
    }

    proptest! {
        #[test]
        fn no_item_of_a_minimum_can_go(wanted in prop::collection::btree_set(0u8..30, 0..6), odd: bool) {
            let wanted: Vec<u8> = wanted.into_iter().collect();
            let items: Vec<u8> = (0..30).collect();
            // Not monotonous when `odd`: as with sets of changes, some lists are no kernel at all.
            let holds = |list: &[u8]| has(list, &wanted) && (!odd || list.len() % 2 == wanted.len() % 2 || list.len() == 30);
            let set = minimal(&items, holds);
            prop_assert!(holds(&set));
            for at in 0..set.len() {
                let mut less = set.clone();
                less.remove(at);
                prop_assert!(!holds(&less));
            }
            if !odd {
                prop_assert_eq!(set, wanted);
            }
        }
    }
}
