//! Aligning two sequences: the longest common subsequence.

/// A step of an alignment: indices into the left and the right sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Both(usize, usize),
    Left(usize),
    Right(usize),
}

impl Step {
    fn swapped(self) -> Step {
        match self {
            Step::Both(left, right) => Step::Both(right, left),
            Step::Left(at) => Step::Right(at),
            Step::Right(at) => Step::Left(at),
        }
    }
}

/// Aligns two sequences so that as many equal elements as possible stand side by side, early ones first. Swapping the
/// sequences swaps the alignment and does nothing else: where several alignments are equally good, the elements decide,
/// not the side on which they stand.
pub(super) fn align<T: Ord>(left: &[T], right: &[T]) -> Vec<Step> {
    if left > right {
        return align_ordered(right, left).into_iter().map(Step::swapped).collect();
    }
    align_ordered(left, right)
}

fn align_ordered<T: Ord>(left: &[T], right: &[T]) -> Vec<Step> {
    let prefix = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    let rest = left.len().min(right.len()) - prefix;
    let suffix = left.iter().rev().zip(right.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (inner_left, inner_right) = (&left[prefix..left.len() - suffix], &right[prefix..right.len() - suffix]);

    let mut steps: Vec<Step> = (0..prefix).map(|i| Step::Both(i, i)).collect();
    steps.extend(inner(inner_left, inner_right).into_iter().map(|step| match step {
        Step::Both(i, j) => Step::Both(prefix + i, prefix + j),
        Step::Left(i) => Step::Left(prefix + i),
        Step::Right(j) => Step::Right(prefix + j),
    }));
    steps.extend((0..suffix).map(|i| Step::Both(left.len() - suffix + i, right.len() - suffix + i)));
    steps
}

fn inner<T: Ord>(left: &[T], right: &[T]) -> Vec<Step> {
    // common[i][j]: the length of the longest common subsequence of left[i..] and right[j..].
    let width = right.len() + 1;
    let mut common = vec![0u32; (left.len() + 1) * width];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            common[i * width + j] = if left[i] == right[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut steps = Vec::with_capacity(left.len().max(right.len()));
    while i < left.len() && j < right.len() {
        if left[i] == right[j] {
            steps.push(Step::Both(i, j));
            (i, j) = (i + 1, j + 1);
        } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
            steps.push(Step::Left(i));
            i += 1;
        } else {
            steps.push(Step::Right(j));
            j += 1;
        }
    }
    steps.extend((i..left.len()).map(Step::Left));
    steps.extend((j..right.len()).map(Step::Right));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn early_elements_are_matched_first() {
        assert_eq!(align(b"ab", b"abab")[..2], [Step::Both(0, 0), Step::Both(1, 1)]);
        assert_eq!(align(b"xay", b"a"), [Step::Left(0), Step::Both(1, 0), Step::Left(2)]);
    }

    proptest! {
        #[test]
        fn an_alignment_is_one(left in "[abc]{0,12}", right in "[abc]{0,12}") {
            let (left, right) = (left.as_bytes(), right.as_bytes());
            let steps = align(left, right);
            let lefts: Vec<usize> = steps.iter().filter_map(|step| match *step {
                Step::Both(i, _) | Step::Left(i) => Some(i),
                Step::Right(_) => None,
            }).collect();
            let rights: Vec<usize> = steps.iter().filter_map(|step| match *step {
                Step::Both(_, j) | Step::Right(j) => Some(j),
                Step::Left(_) => None,
            }).collect();
            prop_assert!(lefts.into_iter().eq(0..left.len()));
            prop_assert!(rights.into_iter().eq(0..right.len()));
            for step in &steps {
                if let Step::Both(i, j) = *step {
                    prop_assert_eq!(left[i], right[j]);
                }
            }
            let swapped: Vec<Step> = align(right, left).into_iter().map(Step::swapped).collect();
            let sort = |steps: &[Step]| {
                let mut both: Vec<_> = steps.iter().filter_map(|s| match *s { Step::Both(i, j) => Some((i, j)), _ => None }).collect();
                both.sort_unstable();
                both
            };
            prop_assert_eq!(sort(&steps), sort(&swapped));
        }
    }
}
