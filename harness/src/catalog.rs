//! What exists: every frontend and guest by name, with one sentence about each.

/// One frontend or guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The name in cells.
    pub name: &'static str,
    /// What it is, in one sentence.
    pub about: &'static str,
}

/// Every frontend, oldest first.
#[must_use]
pub fn frontends() -> Vec<Part> {
    vec![
        Part { name: "bhyve-13.1", about: "lazy" },
        Part { name: "bhyve-0bda8d3e", about: "eager" },
        Part { name: "bhyve-13.2", about: "eager" },
    ]
}

/// Every guest.
#[must_use]
pub fn guests() -> Vec<Part> {
    ["mp-spec", "linux", "linux-parallel", "triple-fault", "spin-forever", "jump-into-mmio"]
        .map(|name| Part { name, about: "" })
        .to_vec()
}
