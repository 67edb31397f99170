//! Colours. Text is painted always; the streams of [`anstream`] take the paint off where nobody wants it (no terminal,
//! `NO_COLOR`).

use anstyle::{AnsiColor, Style};

/// What matters.
pub const BOLD: Style = Style::new().bold();
/// What can be overlooked.
pub const DIM: Style = Style::new().dimmed();
/// As it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// A failure that was expected.
pub const KNOWN: Style = AnsiColor::Yellow.on_default();
/// What asks for attention.
pub const RED: Style = AnsiColor::Red.on_default().bold();
/// The left side of a diff.
pub const LEFT: Style = AnsiColor::Red.on_default();
/// The right side of a diff.
pub const RIGHT: Style = AnsiColor::Green.on_default();

/// The text in a style.
#[must_use]
pub fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}
