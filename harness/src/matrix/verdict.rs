//! Verdicts: what was observed beside what was expected.

use crate::outcome::OutcomeKind;
use serde::{Deserialize, Serialize};

/// What to think of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is ok, as it should be.
    Pass,
    /// Something else than expected, and not ok.
    Fail,
    /// The failure that was expected.
    Xfail,
    /// Ok, though a failure was expected.
    Xpass,
    /// It has had several of the outcomes that a race is known to have.
    Flaky,
    /// It cannot be built here.
    #[serde(rename = "n/a")]
    NotApplicable,
    /// It did not run: the run ended before its turn.
    Skipped,
}

impl Verdict {
    /// What to think of an outcome where another was expected.
    #[must_use]
    pub fn of(expected: OutcomeKind, observed: OutcomeKind) -> Verdict {
        match (expected, observed) {
            (_, OutcomeKind::NotApplicable) => Verdict::NotApplicable,
            (OutcomeKind::Ok, OutcomeKind::Ok) => Verdict::Pass,
            (_, OutcomeKind::Ok) => Verdict::Xpass,
            (expected, observed) if expected == observed => Verdict::Xfail,
            _ => Verdict::Fail,
        }
    }

    /// The word in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Xfail => "xfail",
            Verdict::Xpass => "xpass",
            Verdict::Flaky => "flaky",
            Verdict::NotApplicable => "n/a",
            Verdict::Skipped => "skipped",
        }
    }

    /// Whether it asks for somebody's attention.
    #[must_use]
    pub fn is_red(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::Xpass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_foreseen_is_red() {
        use OutcomeKind::*;
        for (expected, observed, verdict) in [
            (Ok, Ok, Verdict::Pass),
            (Ok, Hang, Verdict::Fail),
            (Hang, Hang, Verdict::Xfail),
            (Hang, Ok, Verdict::Xpass),
            (Hang, Panic, Verdict::Fail),
            (Exit(3), Exit(3), Verdict::Xfail),
            (Exit(3), Exit(4), Verdict::Fail),
            (Hang, NotApplicable, Verdict::NotApplicable),
            (Ok, HarnessError, Verdict::Fail),
        ] {
            assert_eq!(Verdict::of(expected, observed), verdict, "{expected} {observed}");
        }
        assert!(Verdict::Xpass.is_red() && Verdict::Fail.is_red() && !Verdict::Xfail.is_red());
    }
}
