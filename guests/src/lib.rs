//! The bare-metal SMP guests.
