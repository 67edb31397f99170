//! The conformance tests over KVM, where there is one that works.

use super::KvmEngine;
use crate::engine::conformance::conformance_tests;

fn engine() -> Option<KvmEngine> {
    KvmEngine::probe().inspect_err(|reason| eprintln!("Skipped: {reason}")).ok()
}

conformance_tests!(engine());
