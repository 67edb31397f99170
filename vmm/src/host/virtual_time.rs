//! Coroutines in virtual time.
