//! The Multiboot test kernel, which a loader loads instead of a boot ROM, and a module for it.
//!
//! `freestanding/multiboot/main.rs` says what it does. Built from source as the other guests are, it needs nothing from anywhere.

/// A file that is part of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Own {
    /// The test kernel: a 64-bit ELF program with Multiboot headers of both versions.
    TestKernel,
    /// A short text, the same bytes in every build.
    Text,
}

impl Own {
    /// Every file.
    pub const ALL: [Own; 2] = [Own::TestKernel, Own::Text];

    /// The name in a matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Own::TestKernel => "multiboot-test",
            Own::Text => "multiboot-text",
        }
    }

    /// The file with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Own> {
        Own::ALL.into_iter().find(|own| own.name() == name)
    }

    /// Its contents.
    #[must_use]
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Own::TestKernel => include_bytes!(concat!(env!("OUT_DIR"), "/multiboot-test")),
            Own::Text => include_bytes!("../freestanding/multiboot/text"),
        }
    }
}
