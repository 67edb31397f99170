//! The kernel-side core of spinup: `vmm.ko` as it behaved at each relevant commit of its history.
//!
//! The crate is read from the outside in:
//!
//! * [`kernel`] is the core itself: virtual machines, vCPUs, the run loop, the ioctl dispatcher. It is reached through
//!   system calls alone (bytes in, bytes and errno out), whose layouts stand in [`abi`].
//! * [`history`] says which commit changed what; a kernel personality is a set of [`history::Change`]s.
//! * [`device`] holds the emulated interrupt and timer hardware. A device touches nothing outside itself: it returns the
//!   work that it caused.
//! * [`engine`] executes guest instructions: the software processor or KVM.
//! * [`host`] is the modelled host: tasks, time, and the end of a cell. [`trace`] is what the cell leaves behind.

pub mod abi;
pub mod cpuset;
pub mod device;
pub mod engine;
pub mod history;
pub mod host;
pub mod kernel;
pub mod memory;
pub mod trace;
