//! Ctrl-C: once, and what runs is finished; twice, and it ends at once. Reports are written either way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// How far somebody wants a run to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// SIGINT has come since somebody looked.
    interrupted: Arc<AtomicBool>,
    /// SIGTERM has come.
    terminated: Arc<AtomicBool>,
    level: Arc<AtomicU8>,
}

impl Stop {
    /// Nobody wants it to stop.
    #[must_use]
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Listens to SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub fn listen(&self) -> io::Result<()> {
        signal_hook::flag::register(signal_hook::consts::SIGINT, self.interrupted.clone())?;
        signal_hook::flag::register(signal_hook::consts::SIGTERM, self.terminated.clone())?;
        Ok(())
    }

    /// Asks for what another Ctrl-C asks for.
    pub fn ask(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    fn level(&self) -> u8 {
        if self.interrupted.swap(false, Ordering::Relaxed) {
            // It saturates far above 2.
            let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |level| level.checked_add(1));
        }
        self.level.load(Ordering::Relaxed)
    }

    /// Whether no further cell is to begin.
    #[must_use]
    pub fn soon(&self) -> bool {
        self.level() > 0 || self.now()
    }

    /// Whether what runs is to end at once.
    #[must_use]
    pub fn now(&self) -> bool {
        self.level() > 1 || self.terminated.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_is_soon_and_twice_is_now() {
        let stop = Stop::new();
        assert!(!stop.soon() && !stop.now());
        stop.ask();
        assert!(stop.soon() && !stop.now());
        assert!(stop.soon() && !stop.now(), "looking twice is not asking twice");
        stop.ask();
        assert!(stop.soon() && stop.now());
    }
}
