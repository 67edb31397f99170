//! The harness: matrix, runner, diff, reports.
