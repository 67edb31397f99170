//! Operating systems as guests: where their files come from, and the initial RAM disks that the project makes itself.
//!
//! A kernel is not part of this repository. [`Package`] fetches it from the distribution, once, into a cache, and every use
//! is checked against the hash that was recorded then. What runs on the kernel is ours: [`INIT`], a program that brings
//! every CPU that the kernel started to the report port ([`vmm::trace::report_port`]) and puts it to work.

mod apt;
mod cpio;
mod deb;
mod fetch;
mod initramfs;

pub use fetch::{Cached, FetchError, Missing, Package, cache_directory};
pub use initramfs::Initramfs;

/// Process 1 of Linux guests: a static program for x86-64, built from `linux/`.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/linux-init"));
