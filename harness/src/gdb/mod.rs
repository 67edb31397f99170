//! A GDB stub: `spinup run CELL --gdb :PORT`. Every vCPU is a thread; all of them stop together.
//!
//! It stands between the kernel and the engine: an [`Engine`](vmm::engine::Engine) that has another one do the work, and looks before each
//! instruction whether the debugger wants to know of it. The kernel and the frontend notice nothing: slices and virtual time are
//! the same as without a debugger, however long somebody looks at a breakpoint, so the guest runs the same.
//!
//! On `soft` alone, where all vCPUs share a thread and a run can be cut after each instruction.

mod engine;
mod registers;
mod session;
mod target;

pub use engine::DebuggedEngine;

#[cfg(test)]
mod tests;
