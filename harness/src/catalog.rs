//! What exists: every frontend and guest by name, with one sentence about each.

use frontends::{Frontend, FrontendOption};
use guests::Guest;

/// One frontend or guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The name in cells.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub about: &'static str,
    /// The options that a frontend offers, as suffixes of its name.
    pub options: &'static [FrontendOption],
}

/// Every frontend, oldest first.
#[must_use]
pub fn frontends() -> Vec<Part> {
    Frontend::all()
        .map(|frontend| Part { name: frontend.name(), about: frontend.about(), options: frontend.offered() })
        .collect()
}

/// Every guest.
#[must_use]
pub fn guests() -> Vec<Part> {
    Guest::ALL.iter().map(|guest| Part { name: guest.name(), about: guest.summary(), options: &[] }).collect()
}

/// Every frontend with each option that it offers: its name in cells, and what the option does.
pub fn frontend_options() -> impl Iterator<Item = (String, &'static str)> {
    Frontend::all().flat_map(|frontend| {
        frontend.offered().iter().map(move |option| (format!("{}+{option}", frontend.name()), option.about()))
    })
}
