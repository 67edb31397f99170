//! The engines of a run, and whether they work here.

use crate::cell::EngineKind;
use std::sync::{Arc, OnceLock};
use vmm::engine::Engine;
use vmm::engine::kvm::KvmEngine;
use vmm::engine::soft::SoftEngine;

/// The engines: `soft` always, `kvm` if the host has one that works.
#[derive(Debug)]
pub struct Engines {
    soft: Arc<dyn Engine>,
    /// Probed when first asked for.
    kvm: OnceLock<Result<Arc<dyn Engine>, String>>,
}

impl Engines {
    /// Nothing is probed yet.
    #[must_use]
    pub fn new() -> Engines {
        Engines { soft: Arc::new(SoftEngine::new()), kvm: OnceLock::new() }
    }

    /// The engine.
    ///
    /// # Errors
    /// Why it cannot be used here, in one sentence.
    pub fn get(&self, kind: EngineKind) -> Result<Arc<dyn Engine>, String> {
        match kind {
            EngineKind::Soft => Ok(self.soft.clone()),
            EngineKind::Kvm => {
                self.kvm.get_or_init(|| KvmEngine::probe().map(|engine| Arc::new(engine) as Arc<dyn Engine>)).clone()
            }
        }
    }
}

impl Default for Engines {
    fn default() -> Engines {
        Engines::new()
    }
}
