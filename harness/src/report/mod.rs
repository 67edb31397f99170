//! Results for people and programs.

pub mod paint;
