//! From a name in cells to a frontend: `bhyve-13.1`, `bhyve-13.1+monitor`.

use crate::option::{FrontendOption, Options};
use crate::{Frontend, bhyve};
use std::str::FromStr;

/// Why a text names no frontend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontendNameError {
    /// There is no such frontend.
    #[error("no frontend is named `{name}`{hint}")]
    Frontend {
        /// The part before the first `+`.
        name: String,
        /// ` (did you mean …?)`, or which there are.
        hint: String,
    },
    /// There is no such option, or this frontend has no use for it.
    #[error("{frontend} has no option `+{option}`{hint}")]
    Option {
        /// The frontend.
        frontend: &'static str,
        /// The option, without its `+`.
        option: String,
        /// ` (did you mean …?)`, or which there are.
        hint: String,
    },
    /// The options are right, but a name lists each once and in the order of [`FrontendOption::ALL`], so that a cell has one
    /// name.
    #[error("the options of `{name}` are written `{right}`")]
    Order {
        /// What was written.
        name: String,
        /// What should be.
        right: String,
    },
    /// Two options of which bhyve has only one at a time.
    #[error("`+restore` and `+passthru` do not go together: bhyve cannot checkpoint a passed-through device")]
    Together,
}

/// ` (did you mean …?)` with the nearest, or a list of all when none is near.
fn hint(name: &str, known: &[&'static str], none: &str) -> String {
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((_, near)) => format!(" (did you mean `{near}`?)"),
        None if known.is_empty() => none.to_owned(),
        None => format!("; there are {}", known.join(", ")),
    }
}

/// The frontend of a name in cells, with its options.
impl FromStr for Frontend {
    type Err = FrontendNameError;

    fn from_str(text: &str) -> Result<Frontend, FrontendNameError> {
        let mut parts = text.split('+');
        let name = parts.next().unwrap_or_default();
        let found = bhyve::PERSONALITIES.into_iter().find(|personality| personality.name() == name);
        let Some(personality) = found else {
            let known: Vec<&'static str> = bhyve::PERSONALITIES.iter().map(|known| known.name()).collect();
            return Err(FrontendNameError::Frontend { name: name.to_owned(), hint: hint(name, &known, "") });
        };
        let mut options = Options::default();
        for part in parts {
            let offered = personality.options();
            let Some(option) = FrontendOption::named(part).filter(|option| offered.contains(option)) else {
                let known: Vec<&'static str> = offered.iter().map(|option| option.name()).collect();
                return Err(FrontendNameError::Option {
                    frontend: personality.name(),
                    option: part.to_owned(),
                    hint: hint(part, &known, "; it has none"),
                });
            };
            options = options.with(option);
        }
        if options.has(FrontendOption::Restore) && options.has(FrontendOption::Passthru) {
            return Err(FrontendNameError::Together);
        }
        let frontend = Frontend { personality, options };
        let right = frontend.to_string();
        if right == text { Ok(frontend) } else { Err(FrontendNameError::Order { name: text.to_owned(), right }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn error(name: &str) -> String {
        name.parse::<Frontend>().expect_err(name).to_string()
    }

    #[test]
    fn names_are_parsed_and_written_alike() {
        for frontend in Frontend::all() {
            assert_eq!(frontend.to_string(), frontend.name());
            for option in frontend.offered() {
                let name = format!("{}+{option}", frontend.name());
                let with: Frontend = name.parse().expect("an option that it offers");
                assert_eq!(with.to_string(), name);
                assert_eq!((with.name(), with.options().collect::<Vec<_>>()), (frontend.name(), vec![*option]));
            }
        }
        let both: Frontend = "bhyve-13.2+monitor+gdb".parse().expect("in order");
        assert_eq!(both.options().collect::<Vec<_>>(), [FrontendOption::Monitor, FrontendOption::Gdb]);
    }

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<&str> = Frontend::all().map(|frontend| frontend.name()).collect();
        assert_eq!(names.len(), Frontend::all().count());
        assert!(names.iter().all(|name| !name.contains('+')));
    }

    #[test]
    fn what_is_no_frontend_says_the_nearest() {
        assert_eq!(error("bhyve-13.3"), "no frontend is named `bhyve-13.3` (did you mean `bhyve-13.2`?)");
        assert_eq!(error("bhyve-13.1+monitr"), "bhyve-13.1 has no option `+monitr` (did you mean `monitor`?)");
        assert_eq!(
            error("bhyve-13.1+qq"),
            "bhyve-13.1 has no option `+qq`; there are monitor, gdb, restore, passthru, ndebug"
        );
        assert_eq!(
            error("bhyve-13.1+gdb+monitor"),
            "the options of `bhyve-13.1+gdb+monitor` are written `bhyve-13.1+monitor+gdb`"
        );
        assert_eq!(error("bhyve-13.1+gdb+gdb"), "the options of `bhyve-13.1+gdb+gdb` are written `bhyve-13.1+gdb`");
        assert!(error("bhyve-13.1+restore+passthru").starts_with("`+restore` and `+passthru` do not go together"));
        assert_eq!(error("propolis+gdb"), "propolis has no option `+gdb`; it has none");
        assert!(error("").starts_with("no frontend is named ``; there are "));
    }
}
