//! Red cells, few words for many of them: cells that fail alike are put together into products of kernels, frontends,
//! guests and machines, so that a person can explain each once, and an `[[expect]]` can be written for it.

use crate::cell::Cell;
use crate::outcome::OutcomeKind;
use crate::report::paint::{BOLD, DIM, RED, paint};
use crate::run::CellResult;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The parts of a cell by which cells are put together, in the order in which that is tried: what most likely makes no
/// difference comes first.
const PARTS: usize = 6;

/// What cells have in common when they fail alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    expected: OutcomeKind,
    observed: OutcomeKind,
    why: String,
}

/// A product of values: each cell that takes one of each is in it.
type Product = [BTreeSet<String>; PARTS];

/// Red cells that fail alike.
#[derive(Clone, Debug)]
struct Group {
    fault: Fault,
    example: CellResult,
    products: Vec<Product>,
}

fn parts(cell: &Cell) -> [String; PARTS] {
    let Cell { frontend, kernel, guest, apic, cpus, engine } = cell;
    // Numbers sort as numbers when they are as wide as each other.
    [format!("{cpus:05}"), apic.to_string(), engine.to_string(), guest.clone(), kernel.clone(), frontend.clone()]
}

/// The words of an outcome without what depends on how many APs there are, and which.
fn why(result: &CellResult) -> String {
    let detail = match result.outcome.kind {
        OutcomeKind::Hang | OutcomeKind::Partial => {
            result.outcome.detail.rsplit_once(": ").map_or(&*result.outcome.detail, |(why, _aps)| why)
        }
        _ => &result.outcome.detail,
    };
    let mut words = String::new();
    for c in detail.chars() {
        match c {
            '0'..='9' if words.ends_with('#') => {}
            '0'..='9' => words.push('#'),
            _ => words.push(c),
        }
    }
    words
}

/// Puts cells together, part by part, wherever all the other parts agree.
fn products(cells: &[[String; PARTS]]) -> Vec<Product> {
    let mut products: Vec<Product> =
        cells.iter().map(|parts| parts.clone().map(|part| BTreeSet::from([part]))).collect();
    for part in 0..PARTS {
        let mut joined: BTreeMap<Product, BTreeSet<String>> = BTreeMap::new();
        for mut product in products {
            let values = std::mem::take(&mut product[part]);
            joined.entry(product).or_default().extend(values);
        }
        products = joined
            .into_iter()
            .map(|(mut product, values)| {
                product[part] = values;
                product
            })
            .collect();
    }
    products
}

fn groups(results: &[CellResult]) -> Vec<Group> {
    let mut alike: BTreeMap<Fault, Vec<&CellResult>> = BTreeMap::new();
    for result in results.iter().filter(|result| result.verdict.is_red()) {
        let fault = Fault { expected: result.expectation.outcome, observed: result.outcome.kind, why: why(result) };
        alike.entry(fault).or_default().push(result);
    }
    let mut groups: Vec<Group> = alike
        .into_iter()
        .map(|(fault, results)| {
            let cells: Vec<[String; PARTS]> = results.iter().map(|result| parts(&result.cell)).collect();
            Group { fault, example: results[0].clone(), products: products(&cells) }
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.cells()));
    groups
}

fn cells(product: &Product) -> usize {
    product.iter().map(BTreeSet::len).product()
}

impl Group {
    fn cells(&self) -> usize {
        self.products.iter().map(cells).sum()
    }
}

/// How many cells, in words.
fn count(cells: usize) -> String {
    format!("{cells} cell{}", if cells == 1 { "" } else { "s" })
}

fn without_zeros(value: &str) -> &str {
    let digits = value.trim_start_matches('0');
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { value } else { digits }
}

/// The red cells for people, the most frequent fault first.
#[must_use]
pub fn render(results: &[CellResult]) -> String {
    let groups = groups(results);
    let mut out = String::new();
    if groups.is_empty() {
        return format!("Every one of {} is as expected.\n", count(results.len()));
    }
    for group in &groups {
        let Fault { expected, observed, why } = &group.fault;
        let kind = paint(RED, &format!("{} {observed}", observed.glyph()));
        let _ =
            writeln!(out, "{kind}, expected {expected}: {why} {}", paint(DIM, &format!("({})", count(group.cells()))));
        for product in &group.products {
            let [cpus, apic, engine, guest, kernel, frontend] = product
                .each_ref()
                .map(|values| values.iter().map(|value| without_zeros(value)).collect::<Vec<_>>().join(" "));
            let _ = writeln!(
                out,
                "  {} @ {} / {} / {apic} / {cpus} / {engine}",
                paint(BOLD, &frontend),
                paint(BOLD, &kernel),
                paint(BOLD, &guest)
            );
        }
        let _ = writeln!(out, "  {}\n", paint(DIM, &format!("spinup repro {}", group.example.cell)));
    }
    let red: usize = groups.iter().map(Group::cells).sum();
    let _ = writeln!(out, "{red} of {} are unexplained, in {} ways.", count(results.len()), groups.len());
    out
}

/// The red cells as expectations to be completed: everything but the reason and the reference. `matrix` is every cell that
/// there is, those that did not run too.
#[must_use]
pub fn toml(results: &[CellResult], matrix: &[Cell]) -> String {
    let mut every: Product = Default::default();
    for cell in matrix {
        for (values, value) in every.iter_mut().zip(parts(cell)) {
            values.insert(value);
        }
    }
    let mut out = String::new();
    for group in groups(results) {
        let Fault { expected, observed, .. } = &group.fault;
        for product in &group.products {
            let keys: Vec<String> = ["cpus", "apic", "engine", "guest", "kernel", "frontend"]
                .into_iter()
                .enumerate()
                .rev()
                // A part of which every value is in is left out.
                .filter(|&(part, _)| product[part] != every[part])
                .map(|(part, key)| format!("{key} = {}", values(key, &product[part], &every[part])))
                .collect();
            let _ = writeln!(
                out,
                "[[expect]] # {}, expected {expected}, such as {}: {}\nmatch = {{ {} }}\noutcome = \"{observed}\"\n\
                 reason = \"\"\nref = \"\"\n",
                count(cells(product)),
                group.example.cell,
                group.example.outcome.detail.replace('\n', " "),
                keys.join(", ")
            );
        }
    }
    out
}

/// The values of a part as a match writes them: one, a list, or what is left out when that is shorter.
fn values(key: &str, values: &BTreeSet<String>, every: &BTreeSet<String>) -> String {
    let quoted = |value: &String, not: &str| match key {
        "cpus" if not.is_empty() => without_zeros(value).to_owned(),
        _ => format!("\"{not}{}\"", without_zeros(value)),
    };
    let left_out: Vec<String> = every.difference(values).map(|value| quoted(value, "!")).collect();
    let list: Vec<String> = values.iter().map(|value| quoted(value, "")).collect();
    let shorter = if left_out.len() * 3 <= list.len() { left_out } else { list };
    match &shorter[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::result;
    use proptest::prelude::*;

    fn results() -> Vec<CellResult> {
        let mut results = Vec::new();
        for kernel in ["fbsd-13.1", "main-7c326ab5", "naive-widen", "fbsd-13.2"] {
            for frontend in ["bhyve-13.1", "bhyve-13.2"] {
                for guest in ["mp-spec", "linux", "linux-parallel", "broadcast"] {
                    for machine in ["xapic-2", "xapic-4", "x2apic-2", "x2apic-4"] {
                        let observed = match (kernel, frontend, guest) {
                            ("main-7c326ab5", "bhyve-13.1", _) => OutcomeKind::Hang,
                            ("fbsd-13.1", "bhyve-13.2", _) => OutcomeKind::Abort,
                            ("naive-widen" | "fbsd-13.2", "bhyve-13.2", "mp-spec" | "linux" | "broadcast")
                                if machine == "x2apic-4" =>
                            {
                                OutcomeKind::Exit(4)
                            }
                            _ => OutcomeKind::Ok,
                        };
                        let cell = format!("{frontend}@{kernel}/{guest}/{machine}/soft");
                        results.push(result(&cell, OutcomeKind::Ok, observed));
                    }
                }
            }
        }
        results
    }

    #[test]
    fn many_cells_in_few_lines() {
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&results())).to_string());
        let green: Vec<CellResult> = results().into_iter().filter(|result| !result.verdict.is_red()).collect();
        assert_eq!(render(&green[..1]), "Every one of 1 cell is as expected.\n");
    }

    #[test]
    fn expectations_to_be_completed() {
        let cells: Vec<Cell> = results().into_iter().map(|result| result.cell).collect();
        insta::assert_snapshot!(toml(&results(), &cells));
    }

    proptest! {
        #[test]
        fn products_cover_each_cell_once(picks in prop::collection::btree_set((0u8..3, 0u8..2, 0u8..3, 0u8..4), 0..40)) {
            let cells: Vec<[String; PARTS]> = picks
                .iter()
                .map(|(a, b, c, d)| [a.to_string(), b.to_string(), String::new(), c.to_string(), d.to_string(), String::new()])
                .collect();
            let products = products(&cells);
            let in_it = |cell: &[String; PARTS], product: &Product| cell.iter().zip(product).all(|(part, set)| set.contains(part));
            for cell in &cells {
                prop_assert_eq!(products.iter().filter(|product| in_it(cell, product)).count(), 1);
            }
            prop_assert_eq!(products.iter().map(super::cells).sum::<usize>(), cells.len());
        }
    }
}
