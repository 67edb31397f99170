//! Patterns over names, and the nearest name when none matches.

use std::fmt;

/// A pattern over names: `*` stands for any run of characters (slashes too), `?` for one; the rest for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is a pattern.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Pattern {
        Pattern(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern stands for more than itself.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if !self.is_glob() {
            return self.0 == name;
        }
        let (pattern, name): (Vec<char>, Vec<char>) = (self.0.chars().collect(), name.chars().collect());
        let (mut p, mut n) = (0, 0);
        // The last star seen, and where in the name it was tried: the only place to go back to.
        let mut retry = None;
        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    retry = Some((p, n));
                    p += 1;
                }
                Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
                _ => match &mut retry {
                    Some((star, from)) => {
                        *from += 1;
                        (p, n) = (*star + 1, *from);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == '*')
    }

    /// As a filter over cell names: a glob matches the whole name, anything else a part of it.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        if self.is_glob() { self.matches(name) } else { name.contains(&self.0) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of names as it is written: patterns, of which those after a `!` keep names out. Without any other, everything
/// that is not kept out is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameSet {
    wanted: Vec<Pattern>,
    unwanted: Vec<Pattern>,
}

impl NameSet {
    /// The set that a list of patterns stands for.
    #[must_use]
    pub fn new(patterns: &[Pattern]) -> NameSet {
        let mut set = NameSet::default();
        for pattern in patterns {
            match pattern.0.strip_prefix('!') {
                Some(unwanted) => set.unwanted.push(Pattern::new(unwanted)),
                None => set.wanted.push(pattern.clone()),
            }
        }
        set
    }

    /// Whether the name is in the set.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        (self.wanted.is_empty() || self.wanted.iter().any(|pattern| pattern.matches(name)))
            && !self.unwanted.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether names are kept out and none is asked for: the set is what is left of another.
    #[must_use]
    pub fn only_excludes(&self) -> bool {
        self.wanted.is_empty() && !self.unwanted.is_empty()
    }

    /// Whether every name in it is written down.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.unwanted.is_empty() && !self.wanted.iter().any(Pattern::is_glob)
    }

    /// The patterns of both kinds, without `!`.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.wanted.iter().chain(&self.unwanted)
    }
}

/// The candidate that a mistyped name most likely means, if any is near enough to be worth a question.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// ` (did you mean …?)`, or nothing: what an error says after an unknown name.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, matches) in [
            ("bhyve-13.1", "bhyve-13.1", true),
            ("bhyve-13.1", "bhyve-13.2", false),
            ("bhyve-*", "bhyve-13.2", true),
            ("*-13.?", "bhyve-13.2", true),
            ("*@fbsd-*/soft", "bhyve-13.2@fbsd-13.1/mp-spec/xapic-2/soft", true),
            ("*@fbsd-*/kvm", "bhyve-13.2@fbsd-13.1/mp-spec/xapic-2/soft", false),
            ("*aab", "aaab", true),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn an_exclamation_mark_keeps_names_out() {
        let set = |patterns: &[&str]| NameSet::new(&patterns.iter().copied().map(Pattern::new).collect::<Vec<_>>());
        for (patterns, name, is_in) in [
            (&["linux*"][..], "linux-parallel", true),
            (&["linux*", "!linux-parallel"], "linux-parallel", false),
            (&["!linux-parallel", "linux*"], "linux", true),
            (&["!linux*"], "mp-spec", true),
            (&["!linux*"], "linux", false),
            (&[], "linux", true),
        ] {
            assert_eq!(set(patterns).contains(name), is_in, "{patterns:?} {name}");
        }
        assert!(set(&["!linux"]).only_excludes() && !set(&["mp-spec", "!linux"]).only_excludes());
        assert!(set(&["linux", "mp-spec"]).is_plain() && !set(&["linux*"]).is_plain() && !set(&["!linux"]).is_plain());
    }

    #[test]
    fn a_filter_without_glob_selects_by_part() {
        assert!(Pattern::new("mp-spec").selects("a@b/mp-spec/xapic-2/soft"));
        assert!(!Pattern::new("mp-*").selects("a@b/mp-spec/xapic-2/soft"));
    }

    #[test]
    fn the_nearest_name_is_suggested_and_nonsense_is_not() {
        let kernels = ["fbsd-13.1", "main-7c326ab5", "naive-widen", "fbsd-13.2"];
        assert_eq!(nearest("naive-wide", kernels), Some("naive-widen"));
        assert_eq!(nearest("main-7c326ab", kernels), Some("main-7c326ab5"));
        assert_eq!(nearest("quux", kernels), None);
        assert_eq!(did_you_mean("fbsd-13.3", ["fbsd-13.2"]), " (did you mean `fbsd-13.2`?)");
    }

    proptest! {
        #[test]
        fn a_pattern_made_by_widening_a_name_matches_it(name in "[ab/-]{0,12}", cuts in prop::collection::vec((0usize..13, 0usize..4), 0..3)) {
            let mut pattern: Vec<char> = name.chars().collect();
            for (at, len) in cuts {
                let at = at.min(pattern.len());
                let end = (at + len).min(pattern.len());
                pattern.splice(at..end, ['*']);
            }
            prop_assert!(Pattern::new(pattern.into_iter().collect::<String>()).matches(&name));
        }
    }
}
