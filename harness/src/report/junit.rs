//! Results as JUnit XML, in the form that Jenkins, GitLab and others read: a suite for each pairing, a case for each cell.
//!
//! An expected failure is a case that was skipped, with the reason: JUnit knows no other word for a failure that is no news.

use super::{Context, told};
use crate::matrix::verdict::Verdict;
use crate::outcome::OutcomeKind;
use crate::run::CellResult;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

/// Writes the document.
///
/// # Errors
/// Of the writer.
pub fn write(results: &[CellResult], context: &Context<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut report = Report::new("spinup");
    report.set_time(context.duration);
    let mut suites: Vec<(String, Vec<&CellResult>)> = Vec::new();
    let mut at = BTreeMap::new();
    for result in results {
        let pairing = result.cell.pairing();
        let index = *at.entry(pairing.clone()).or_insert(suites.len());
        match suites.get_mut(index) {
            Some((_, cells)) => cells.push(result),
            None => suites.push((pairing, vec![result])),
        }
    }
    for (pairing, cells) in suites {
        let mut suite = TestSuite::new(pairing);
        suite.set_time(cells.iter().map(|result| result.duration).sum::<Duration>());
        suite.add_test_cases(cells.into_iter().map(|result| case(result, context)));
        report.add_test_suite(suite);
    }
    let text = report.to_string().map_err(io::Error::other)?;
    out.write_all(without_sum_of_skipped(&text).as_bytes())
}

/// The schema that Jenkins publishes (junit-10.xsd) lets suites say how many cases were skipped, but not all suites together.
fn without_sum_of_skipped(text: &str) -> String {
    let Some((before, rest)) = text.split_once("<testsuites ") else { return text.to_owned() };
    let Some((root, suites)) = rest.split_once('>') else { return text.to_owned() };
    let root: Vec<&str> = root.split(' ').filter(|attribute| !attribute.starts_with("skipped=")).collect();
    format!("{before}<testsuites {}>{suites}", root.join(" "))
}

fn case(result: &CellResult, context: &Context<'_>) -> TestCase {
    let text = told(result);
    let status = match result.verdict {
        Verdict::Pass | Verdict::Flaky => TestCaseStatus::success(),
        Verdict::Xfail | Verdict::NotApplicable | Verdict::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(text.as_str());
            status
        }
        Verdict::Fail | Verdict::Xpass => {
            let ours = result.outcome.kind == OutcomeKind::HarnessError;
            let kind = if ours { NonSuccessKind::Error } else { NonSuccessKind::Failure };
            let mut status = TestCaseStatus::non_success(kind);
            status.set_message(text.as_str());
            status.set_type(result.outcome.kind.name());
            let sentence = result.divergence.as_ref().map(|divergence| divergence.sentence.as_str());
            let repro = context.repro(result);
            let lines: Vec<&str> = [sentence, Some(&repro), result.log.as_deref()].into_iter().flatten().collect();
            status.set_description(lines.join("\n"));
            status
        }
    };
    let mut case = TestCase::new(result.cell.to_string(), status);
    case.set_classname(result.cell.pairing());
    case.set_time(result.duration);
    if result.verdict == Verdict::Flaky {
        case.set_system_out(text.as_str());
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{context, every_verdict};
    use proptest::prelude::*;
    use quick_junit::TestCaseStatus as Status;

    fn written(results: &[CellResult]) -> String {
        let mut out = Vec::new();
        write(results, &context(), &mut out).expect("a vector takes every byte");
        String::from_utf8(out).expect("XML is text")
    }

    #[test]
    fn each_verdict_is_a_case() {
        insta::assert_snapshot!(written(&every_verdict()));
    }

    proptest! {
        /// Whatever a guest makes a frontend say, the document is read back with the same cases.
        #[test]
        fn it_is_well_formed_whatever_cells_say(detail in any::<String>(), log in any::<String>()) {
            let mut results = every_verdict();
            for result in &mut results {
                result.outcome.detail.clone_from(&detail);
                result.log = Some(log.clone());
            }
            let read = Report::deserialize_from_str(&written(&results)).expect("JUnit");
            prop_assert_eq!(read.tests, results.len());
            let red = results.iter().filter(|result| result.verdict.is_red()).count();
            prop_assert_eq!(read.failures + read.errors, red);
            let skipped = read.test_suites.iter().flat_map(|suite| &suite.test_cases);
            let skipped = skipped.filter(|case| matches!(case.status, Status::Skipped { .. })).count();
            prop_assert_eq!(skipped, 4);
        }
    }
}
