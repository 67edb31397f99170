//! Real threads, real time.
