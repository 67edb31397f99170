//! The harness of spinup: everything above the VMM.
//!
//! Read in the direction of the data: [`matrix`] says which [`cell`]s there are and what is expected of each; [`run`]
//! runs them; [`outcome`] says what was observed, from the trace alone; [`matrix::verdict`] compares both; [`report`]
//! tells people and programs. [`trace`] stores, prints and canonicalises traces, and [`diff`] finds where two of them part
//! ways. [`bisect`] asks which change brought a difference about, [`explore`] whether the schedule does, [`fuzz`] what random
//! programs show, and [`coverage`] whether everything that is declared is exercised. [`cli`] is the command line over all of
//! it.

pub mod bisect;
pub mod catalog;
pub mod cell;
pub mod cli;
pub mod coverage;
pub mod ddmin;
pub mod diff;
pub mod explore;
pub mod fuzz;
pub mod matrix;
pub mod outcome;
pub mod pattern;
pub mod report;
pub mod run;
pub mod trace;
