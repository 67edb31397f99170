//! The engines of a run, and whether they work here.

use super::speed;
use crate::cell::EngineKind;
use crate::matrix::OsGuest;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, LazyLock, Mutex, OnceLock, PoisonError};
use vmm::engine::Engine;
use vmm::engine::soft::SoftEngine;

/// The engines: `soft` always, `kvm` if the host has one that works.
#[derive(Debug)]
pub struct Engines {
    soft: Arc<dyn Engine>,
    /// Probed when first asked for.
    kvm: OnceLock<Result<Arc<dyn Engine>, String>>,
    /// Measured when first asked for.
    kvm_mips: OnceLock<Result<f64, String>>,
    /// How many more cells may run on `kvm` now: their limits are real time, which cells that share a processor take from
    /// one another.
    kvm_slots: LazyLock<Mutex<usize>>,
    kvm_slot_free: Condvar,
}

/// Leave to run a cell; others wait for it to be dropped.
#[derive(Debug)]
#[must_use = "the leave ends when it is dropped"]
pub struct Slot<'a>(Option<&'a Engines>);

impl Engines {
    /// Nothing is probed yet.
    #[must_use]
    pub fn new() -> Engines {
        Engines {
            soft: Arc::new(SoftEngine::new()),
            kvm: OnceLock::new(),
            kvm_mips: OnceLock::new(),
            // Counted when first asked for: that takes a look into the host's control groups.
            kvm_slots: LazyLock::new(|| Mutex::new(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))),
            kvm_slot_free: Condvar::new(),
        }
    }

    /// The engine.
    ///
    /// # Errors
    /// Why it cannot be used here, in one sentence.
    pub fn get(&self, kind: EngineKind) -> Result<Arc<dyn Engine>, String> {
        match kind {
            EngineKind::Soft => Ok(self.soft.clone()),
            EngineKind::Kvm => self.kvm.get_or_init(probe_kvm).clone(),
        }
    }

    /// The engine for a cell with this guest: an operating system needs one that is fast enough. `soft` always is, for its
    /// time is its own.
    ///
    /// # Errors
    /// Why it cannot be used here, in one sentence: with the measured speed when it is too slow.
    pub fn get_for(&self, kind: EngineKind, os_guest: Option<&OsGuest>) -> Result<Arc<dyn Engine>, String> {
        let engine = self.get(kind)?;
        if kind == EngineKind::Kvm && os_guest.is_some_and(OsGuest::needs_speed) {
            let mips = self.kvm_mips.get_or_init(|| speed::measure(&*engine)).clone()?;
            if mips < speed::NEEDED_MIPS {
                return Err(format!(
                    "{} executes {mips:.1} million instructions a second in ring 0, and an operating system needs {}",
                    engine.backend(),
                    speed::NEEDED_MIPS
                ));
            }
        }
        Ok(engine)
    }

    /// Waits until a cell may run on the engine: at once on `soft`, on `kvm` one cell for each of the host's processors.
    pub fn slot(&self, kind: EngineKind) -> Slot<'_> {
        if kind == EngineKind::Soft {
            return Slot(None);
        }
        let slots = self.kvm_slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slots = self.kvm_slot_free.wait_while(slots, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *slots -= 1;
        Slot(Some(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(engines) = self.0 {
            *engines.kvm_slots.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            engines.kvm_slot_free.notify_one();
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn probe_kvm() -> Result<Arc<dyn Engine>, String> {
    Ok(Arc::new(vmm::engine::kvm::KvmEngine::probe()?))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn probe_kvm() -> Result<Arc<dyn Engine>, String> {
    Err("KVM runs guests of x86-64 on Linux on x86-64 only".to_owned())
}

impl Default for Engines {
    fn default() -> Engines {
        Engines::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_cells_run_on_kvm_than_there_are_processors() {
        let engines = Engines::new();
        let processors = *engines.kvm_slots.lock().expect("nobody panicked");
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 * processors {
                scope.spawn(|| {
                    let _slot = engines.slot(EngineKind::Kvm);
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=processors).contains(&most.load(Ordering::SeqCst)));
        assert_eq!(*engines.kvm_slots.lock().expect("nobody panicked"), processors, "every slot is free again");
    }
}
