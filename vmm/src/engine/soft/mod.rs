//! The software processor.
