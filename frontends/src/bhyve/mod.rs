//! bhyve(8): one module per version, and what the versions share.
//!
//! A [`Personality`] is a version. Its module begins with what that version does, step by step, and its `main` is bhyve's
//! `main` as a list of those steps. The steps themselves are in [`setup`], the vCPU's thread is in [`vm_loop`], the handlers that
//! never changed are in [`exits`]. Each says how well its facts are known: \[read] in that version's source, \[commit] from a commit message,
//! \[inferred] from other code.

mod ap;
mod bar;
mod exits;
mod gdb;
mod inst_emul;
mod lazy_ipi_exit;
mod machine;
mod main_0bda8d3e;
mod main_9cc9abf4;
mod monitor;
mod process;
mod setup;
mod v13_1;
mod v13_2;
mod vm_loop;
mod xmsr;

#[cfg(test)]
mod tests;

use crate::libvmmapi::{Exit, System};
use crate::option::Options;
use crate::{Console, FrontendOption, Launch};
use exits::Action;
use machine::Machine;
use process::{Process, Run};
use std::convert::Infallible;
use std::sync::Arc;
use vmm::host::Host;

/// A version of bhyve.
pub(crate) trait Personality: Send + Sync {
    /// Its name in cells.
    fn name(&self) -> &'static str;

    /// What it is, in one sentence.
    fn about(&self) -> &'static str;

    /// The options that make sense for it.
    fn options(&self) -> &'static [FrontendOption] {
        &[FrontendOption::Monitor, FrontendOption::Gdb, FrontendOption::Passthru]
    }

    /// Whether an AP that was suspended when its thread began is suspended again when the debugger lets go (a9e4753b4fe2,
    /// D46196).
    fn debugger_suspends_aps_again(&self) -> bool {
        false
    }

    /// `main`, after the command line has been read: it ends with the process.
    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Infallible>;

    /// The exit handlers: what is to be done about an exit.
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action;

    /// `spinup_ap`: starts AP `vcpu` at `rip`, the STARTUP vector shifted by 12, for the vCPU `sender`.
    fn spinup_ap(&self, machine: &Arc<Machine>, sender: i32, vcpu: i32, rip: u64) -> Run<()>;
}

/// Every version, oldest first.
pub(crate) const PERSONALITIES: [&dyn Personality; 5] = [
    &v13_1::Bhyve13_1,
    &main_9cc9abf4::Bhyve9cc9abf4,
    &main_0bda8d3e::Bhyve0bda8d3e,
    &v13_2::Bhyve13_2,
    &lazy_ipi_exit::LazyIpiExit,
];

/// Runs the process to its end, which is the cell's.
pub(crate) fn run(
    personality: &'static dyn Personality,
    options: Options,
    host: &Host,
    system: &Arc<dyn System>,
    launch: &Launch,
    console: &Console,
) -> ! {
    let Err(end) = personality.main(Process::new(host, console, options), system, launch);
    host.end(end)
}
