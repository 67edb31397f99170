//! A GDB stub: `spinup run CELL --gdb :PORT`. Every vCPU is a thread; all of them stop together.
//!
//! It stands between the kernel and the engine: an [`Engine`](vmm::engine::Engine) that has another one do the work, with the traps that GDB
//! asks for. The kernel and the frontend notice nothing: however long somebody looks at a breakpoint, no time passes for the cell. On `soft`
//! slices are the same as without a debugger, too, so the guest runs the same. On `kvm` the guest's TSC alone goes on, for it is the host's.

mod debugger;
mod engine;
mod registers;
mod session;
mod target;
mod wire;

pub use engine::DebuggedEngine;

#[cfg(test)]
mod tests;
