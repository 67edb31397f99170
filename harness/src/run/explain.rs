//! Why a cell is as it is: beside the nearest one that is ok, with pictures.

use super::cell::{Divergence, Execution};
use crate::catalog;
use crate::cell::Cell;
use crate::diff::{Amount, Diff};
use crate::matrix::Matrix;
use crate::trace::{StoredTrace, svg};
use serde::{Deserialize, Serialize};

/// Significant events of a picture: a longer one is for `spinup trace`.
const PICTURE_BYTES: usize = 1 << 20;

/// Bytes of the console that are kept, its end.
const CONSOLE_BYTES: usize = 64 << 10;

/// What a report shows of one cell beside its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Where it parts ways with the nearest cell that is ok; `None` when it is ok itself, or none was found.
    pub divergence: Option<Divergence>,
    /// The aligned traces around that, as text; empty without a divergence.
    pub diff: String,
    /// The picture of its trace; `None` when that is too long.
    pub svg: Option<String>,
    /// What its guest printed on the serial port, and its frontend on standard error.
    pub console: String,
}

impl Explanation {
    /// Explains a cell that ran, beside one that is ok.
    #[must_use]
    pub fn of(bad: &Execution, good: Option<&StoredTrace>) -> Explanation {
        let diff = good.map(|good| Diff::new(good, &bad.trace));
        let marked: Vec<usize> = diff
            .iter()
            .filter_map(Diff::first)
            .flat_map(|first| [first.events[1].or(first.next[1]), first.led_to[1]])
            .flatten()
            .collect();
        let mut picture = Vec::new();
        svg::write_marked(&bad.trace, &marked, &mut picture).expect("a vector takes every byte");
        let divergence = diff
            .as_ref()
            .zip(good)
            .map(|(diff, good)| Divergence { against: good.cell.clone(), sentence: diff.sentence() });
        let diff = diff.map_or(String::new(), |diff| diff.show(Amount::Summary));
        Explanation {
            divergence,
            diff: anstream::adapter::strip_str(&diff).to_string(),
            svg: String::from_utf8(picture).ok().filter(|picture| picture.len() <= PICTURE_BYTES),
            console: console(bad),
        }
    }
}

/// The end of what was printed, with control characters as pictures of themselves.
fn console(run: &Execution) -> String {
    let serial = run.console.serial();
    let serial = &serial[serial.len().saturating_sub(CONSOLE_BYTES)..];
    let mut text: String = String::from_utf8_lossy(serial)
        .chars()
        .filter(|&c| c != '\r')
        .map(|c| match u32::from(c) {
            code @ 0..0x20 if c != '\n' && c != '\t' => char::from_u32(0x2400 + code).unwrap_or(' '),
            _ => c,
        })
        .collect();
    let stderr = run.console.stderr();
    if !stderr.is_empty() {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for line in &stderr[stderr.len().saturating_sub(100)..] {
            text.push_str(&format!("stderr: {line}\n"));
        }
    }
    text
}

/// The cells beside which one is explained, the nearest first: the same with the kernels before its own, then with those
/// after it, then with the other frontends. A what-if kernel that its name makes from another stands just after that one.
#[must_use]
pub fn neighbours(matrix: &Matrix, cell: &Cell) -> Vec<Cell> {
    let kernels: Vec<&str> = matrix.kernels().iter().map(|kernel| &*kernel.name).collect();
    let own = kernels.iter().position(|kernel| *kernel == cell.kernel);
    let (before, after) = match own {
        Some(own) => (&kernels[..own], &kernels[own + 1..]),
        None => kernels.split_at(base_of(&cell.kernel, &kernels).map_or(0, |base| base + 1)),
    };
    let kernels = before.iter().rev().chain(after);
    let frontends =
        catalog::frontends().into_iter().map(|part| part.name).filter(|frontend| *frontend != cell.frontend);
    kernels
        .map(|kernel| Cell { kernel: (*kernel).to_owned(), ..cell.clone() })
        .chain(frontends.map(|frontend| Cell { frontend: frontend.to_owned(), ..cell.clone() }))
        .collect()
}

/// The kernel from which a name makes another, as `fbsd-13.2-exit-mask` does.
fn base_of(name: &str, kernels: &[&str]) -> Option<usize> {
    let is_base = |base: &str| name.strip_prefix(base).is_some_and(|rest| rest.starts_with(['-', '+']));
    (0..kernels.len()).filter(|&at| is_base(kernels[at])).max_by_key(|&at| kernels[at].len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_made_up_stands_after_the_one_that_it_is_made_from() {
        let matrix = Matrix::built_in().expect("right");
        let near = |kernel: &str| -> Vec<String> {
            let cell: Cell = format!("bhyve-13.1@{kernel}/mp-spec/xapic-2/soft").parse().expect("a cell");
            neighbours(&matrix, &cell).into_iter().take(2).map(|cell| cell.kernel).collect()
        };
        let kernels: Vec<&str> = matrix.kernels().iter().map(|kernel| &*kernel.name).collect();
        let at = kernels.iter().position(|kernel| *kernel == "fbsd-13.2").expect("it is in the matrix");
        assert_eq!(near("fbsd-13.2"), [kernels[at - 1], kernels[at - 2]]);
        assert_eq!(near("fbsd-13.2-exit-mask"), [kernels[at], kernels[at - 1]]);
        assert_eq!(near("somebody-elses"), kernels[..2]);
    }
}
