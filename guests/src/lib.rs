//! The bare-metal SMP guests: programs without an operating system that start the application processors (APs) the way
//! systems in the field do, use them, and say at the report port ([`vmm::trace::report_port`]) how far they came.
//!
//! They are built from source (`freestanding/`) by the build script, with the toolchain that builds this crate. Each is a
//! boot ROM: the frontend maps it so that it ends at 4 GiB, and the BSP starts at F000:FFF0 in real mode.

use std::fmt;
use std::str::FromStr;

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guest {
    /// Starts the APs as FreeBSD does.
    MpSpec,
}
