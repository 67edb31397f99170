//! The report files of a run: which formats go where.

use super::file::{is_stream, write_atomically};
use super::{Context, html, json, junit, markdown, tap};
use crate::cell::Cell;
use crate::run::{CellResult, Explanation};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where reports go; `None` for those that nobody asked for.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The document for programs.
    pub json: Option<PathBuf>,
    /// JUnit XML.
    pub junit: Option<PathBuf>,
    /// TAP 14.
    pub tap: Option<PathBuf>,
    /// Markdown.
    pub markdown: Option<PathBuf>,
    /// The page.
    pub html: Option<PathBuf>,
}

/// Everything that reports are made from.
pub struct Contents<'a> {
    /// The results, in the order of the matrix.
    pub results: &'a [CellResult],
    /// What is shown of some cells.
    pub explanations: &'a BTreeMap<Cell, Explanation>,
    /// Where the cells ran.
    pub host: &'a json::Host,
    /// The rest.
    pub context: &'a Context<'a>,
}

impl Files {
    /// The files that are asked for.
    fn each(&self) -> impl Iterator<Item = &Path> {
        [&self.json, &self.junit, &self.tap, &self.markdown, &self.html].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Whether each file can be written, before the work is done for it. Nothing is left behind, and what stands in a
    /// file stays.
    ///
    /// # Errors
    /// A sentence with the file that cannot.
    pub fn probe(&self) -> Result<(), String> {
        for path in self.each().filter(|path| !is_stream(path)) {
            if path.is_dir() {
                return Err(format!("{}: the results cannot be written: it is a directory", path.display()));
            }
            super::file::probe(path)
                .map_err(|error| format!("{}: the results cannot be written: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Writes all of them. One that cannot be written keeps what stood in it, and does not keep the others from being
    /// written.
    ///
    /// # Errors
    /// A sentence for each file that could not.
    pub fn write(&self, contents: &Contents<'_>) -> Result<(), Vec<String>> {
        let Contents { results, explanations, host, context } = contents;
        let mut failures = Vec::new();
        let mut write = |path: &Option<PathBuf>, how: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
            let Some(path) = path else { return };
            if let Err(error) = write_atomically(path, how) {
                failures.push(format!("{}: the results cannot be written: {error}", path.display()));
            }
        };
        write(&self.json, &|out| json::Document::new(host, results).write_to(out));
        write(&self.junit, &|out| junit::write(results, context, out));
        write(&self.tap, &|out| tap::write(results, context, out));
        write(&self.markdown, &|out| markdown::write(results, context, out));
        write(&self.html, &|out| html::write(results, explanations, context, out));
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }
}
