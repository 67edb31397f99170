//! What a matrix says beside its expectations: which cells are known to race, and which pairings are supported until when.

use super::cells::CellMatch;
use super::file::{ConfigError, RaceTable, Source, SupportTable};
use super::names::Names;
use super::{Kernels, OutcomeKind};
use crate::cell::{Cell, EngineKind};
use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};
use toml::Spanned;

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// `2027-03-31`.
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl FromStr for Date {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Date, &'static str> {
        let date: toml::value::Datetime = text.parse().map_err(|_| "a date is written as 2027-03-31")?;
        Date::of(&date).ok_or("a date has neither time nor zone, as in 2027-03-31")
    }
}

impl Date {
    /// The date of a value of TOML that is nothing but a date.
    fn of(value: &toml::value::Datetime) -> Option<Date> {
        match (value.date, value.time, value.offset) {
            (Some(toml::value::Date { year, month, day }), None, None) => Some(Date { year, month, day }),
            _ => None,
        }
    }

    /// Today, in UTC.
    #[must_use]
    pub fn today() -> Date {
        let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
        Date::of_day(days)
    }

    /// The date so many days after 1970-01-01.
    fn of_day(days: u64) -> Date {
        let (mut days, mut year) = (days, 1970);
        let leap = |year: u16| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        while days >= 365 + u64::from(leap(year)) {
            days -= 365 + u64::from(leap(year));
            year += 1;
        }
        let mut month = 1;
        for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Date { year, month, day: days as u8 + 1 }
    }
}

/// A known race: cells on `kvm`, where time is real, that end now in one way and now in another.
#[derive(Clone, Debug)]
pub(super) struct Race {
    cells: CellMatch,
    outcomes: Vec<OutcomeKind>,
    /// Why, and where that is written.
    words: String,
}

/// Which pairings matter to a release, and until when.
#[derive(Clone, Debug)]
pub(super) struct Support {
    cells: CellMatch,
    until: Option<Date>,
    reason: String,
}

/// Whether a cell matters to a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supported {
    /// It does; `until` a day when one is set.
    Yes {
        /// The last day.
        until: Option<Date>,
    },
    /// It did, until that day.
    Expired {
        /// The last day.
        until: Date,
        /// Why then.
        reason: String,
    },
    /// It never did: the matrix says which do, and this is none of them.
    No,
}

/// The policy of a matrix.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    races: Vec<Race>,
    support: Vec<Support>,
}

impl Policy {
    /// Reads the tables. Each has to match a cell of the matrix.
    pub(super) fn new(
        source: Source<'_>,
        names: &mut Names,
        kernels: &mut Kernels,
        configured: &[Cell],
        (races, support): (&[Spanned<RaceTable>], &[Spanned<SupportTable>]),
    ) -> Result<Policy, ConfigError> {
        let mut policy = Policy::default();
        for table in races {
            let race = table.get_ref();
            let cells = names.cell_match(source, "race.match", race.cells.get_ref(), kernels)?;
            // A cell of the matrix need not be on kvm by default for its race to be known.
            let soft = configured.iter().any(|cell| cells.matches(&Cell { engine: EngineKind::Soft, ..cell.clone() }));
            if soft {
                let message = "soft is deterministic, and has no races: add engine = \"kvm\"";
                return Err(source.error(race.cells.span(), "race.match", message));
            }
            if !configured.iter().any(|cell| cells.matches(&Cell { engine: EngineKind::Kvm, ..cell.clone() })) {
                let message = "matches no cell of the matrix on kvm; correct it or take the race out";
                return Err(source.error(race.cells.span(), "race.match", message));
            }
            let outcomes: Vec<OutcomeKind> = race
                .outcomes
                .get_ref()
                .iter()
                .map(|text| {
                    text.parse().map_err(|error: crate::outcome::OutcomeNameError| {
                        source.error(race.outcomes.span(), "race.outcomes", error.to_string())
                    })
                })
                .collect::<Result<_, _>>()?;
            if outcomes.len() < 2 {
                let message = "a race has more than one outcome; one alone is an [[expect]]";
                return Err(source.error(race.outcomes.span(), "race.outcomes", message));
            }
            if race.reference.get_ref().trim().is_empty() {
                let message = "a race needs the issue that it is written about";
                return Err(source.error(race.reference.span(), "race.ref", message));
            }
            let words = format!("{} [{}]", race.reason, race.reference.get_ref());
            policy.races.push(Race { cells, outcomes, words });
        }
        for table in support {
            let support = table.get_ref();
            let cells = names.cell_match(source, "support.match", support.cells.get_ref(), kernels)?;
            if !configured.iter().any(|cell| cells.matches(cell)) {
                let message = "matches no cell of the matrix; correct it or take it out";
                return Err(source.error(support.cells.span(), "support.match", message));
            }
            let until = match &support.until {
                None => None,
                Some(until) => Some(Date::of(until.get_ref()).ok_or_else(|| {
                    source.error(until.span(), "support.until", "a date has neither time nor zone, as in 2027-03-31")
                })?),
            };
            policy.support.push(Support { cells, until, reason: support.reason.clone() });
        }
        Ok(policy)
    }

    /// Why these outcomes of one cell are no news: they are those of a race that is known.
    pub(super) fn known_race(&self, cell: &Cell, outcomes: &[OutcomeKind]) -> Option<&str> {
        let known =
            |race: &&Race| race.cells.matches(cell) && outcomes.iter().all(|outcome| race.outcomes.contains(outcome));
        self.races.iter().find(known).map(|race| race.words.as_str())
    }

    /// Whether a cell matters to a release on that day. Where several tables speak of it, the longest support counts.
    pub(super) fn supported(&self, cell: &Cell, today: Date) -> Supported {
        if self.support.is_empty() {
            return Supported::Yes { until: None };
        }
        // A support without end is longer than any with one.
        let longest = self
            .support
            .iter()
            .filter(|support| support.cells.matches(cell))
            .max_by_key(|support| (support.until.is_none(), support.until));
        match longest {
            None => Supported::No,
            Some(Support { until: Some(until), reason, .. }) if *until < today => {
                Supported::Expired { until: *until, reason: reason.clone() }
            }
            Some(support) => Supported::Yes { until: support.until },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;

    #[test]
    fn days_are_dates() {
        for (day, date) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_781, "2026-11-24")] {
            assert_eq!(Date::of_day(day).to_string(), date);
            assert_eq!(date.parse(), Ok(Date::of_day(day)));
        }
        assert_eq!(Date::of_day(365 + 364).to_string(), "1971-12-31");
        for text in ["", "2026-13-01", "tomorrow", "2026-11-24T10:00:00Z", "10:00:00"] {
            text.parse::<Date>().expect_err(text);
        }
        assert!(Date::today() > Date::of_day(20_000));
    }

    fn matrix(more: &str) -> Result<Matrix, String> {
        let text = Matrix::built_in().expect("a test keeps it right").source().text.clone();
        Matrix::parse("matrix.toml", &format!("{text}\n{more}")).map_err(|error| error.message)
    }

    #[test]
    fn support_ends_with_its_last_day() {
        let matrix = matrix(
            "[[support]]\nmatch = { frontend = \"bhyve-13.1\", kernel = \"main-*\" }\nuntil = 2027-03-31\nreason = \"until 14.4\"\n\
             [[support]]\nmatch = { frontend = \"bhyve-13.2\" }\nreason = \"of this release\"\n",
        )
        .expect("a policy");
        let on = |cell: &str, day: &str| matrix.supported(&cell.parse().expect("a cell"), day.parse().expect("a day"));
        let old = "bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft";
        let last: Date = "2027-03-31".parse().expect("a day");
        assert_eq!(on(old, "2027-03-31"), Supported::Yes { until: Some(last) });
        assert_eq!(on(old, "2027-04-01"), Supported::Expired { until: last, reason: "until 14.4".into() });
        assert_eq!(on("bhyve-13.2@fbsd-13.2/mp-spec/xapic-2/soft", "2099-01-01"), Supported::Yes { until: None });
        assert_eq!(on("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", "2027-01-01"), Supported::No);
    }

    #[test]
    fn races_are_of_kvm_and_have_an_issue() {
        let race = |cells: &str, outcomes: &str, reference: &str| {
            matrix(&format!(
                "[[race]]\nmatch = {cells}\noutcomes = {outcomes}\nreason = \"it depends\"\nref = \"{reference}\"\n"
            ))
        };
        let kvm = "{ engine = \"kvm\", guest = \"mp-spec\" }";
        let known = race(kvm, "[\"ok\", \"hang\"]", "issue 1").expect("a race");
        let cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/kvm".parse().expect("a cell");
        use OutcomeKind::{Hang, Ok, Panic};
        assert_eq!(known.known_race(&cell, &[Ok, Hang]), Some("it depends [issue 1]"));
        assert_eq!(known.known_race(&cell, &[Ok, Panic]), None);
        let refused = [
            race("{ guest = \"mp-spec\" }", "[\"ok\", \"hang\"]", "issue 1"),
            race(kvm, "[\"ok\"]", "issue 1"),
            race(kvm, "[\"ok\", \"harness-error\"]", "issue 1"),
            race(kvm, "[\"ok\", \"hang\"]", " "),
        ]
        .map(|matrix| matrix.map(drop).expect_err("no race"));
        insta::assert_snapshot!(refused.join("\n"));
    }
}
