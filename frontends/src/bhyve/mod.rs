//! bhyve(8) and its relatives: one module per version, and what the versions share.
//!
//! A [`Personality`] is a version: of FreeBSD's bhyve, of illumos's, of propolis, of QEMU's accelerator, or one that never was. Its
//! module begins with what that version does, step by step, and its `main` is the program's `main` as a list of those steps.
//!
//! * Steps that several take: [`setup`], up to a machine that is ready for its first vCPU; [`ap`], the start of an AP.
//! * The life of the threads: [`machine`], [`vm_loop`]; [`exits`], the handlers that never changed; [`inst_emul`], [`xmsr`].
//! * What an option adds: [`monitor`], [`gdb`], [`checkpoint`], [`bar`].
//!
//! Each says how well its facts are known: \[read] in that version's source, \[commit] from a commit message, \[inferred] from
//! other code.

mod ap;
mod bar;
mod checkpoint;
mod exits;
mod gdb;
mod illumos;
mod inst_emul;
mod lazy_ipi_exit;
mod machine;
mod main_0bda8d3e;
mod main_9cc9abf4;
mod monitor;
mod process;
mod propolis;
mod qemu;
mod setup;
mod v10_0;
mod v13_1;
mod v13_2;
mod v14;
mod v15;
mod vm_loop;
mod xmsr;

#[cfg(test)]
mod tests;

use crate::libvmmapi::{Exit, System};
use crate::option::Options;
use crate::{Console, FrontendOption, Launch, MAX_RERUNS};
use exits::Action;
use machine::Machine;
use process::{Begin, Process, Run, status};
use std::sync::Arc;
use vmm::abi::Errno;
use vmm::host::{End, Host};

/// A version of bhyve.
pub(crate) trait Personality: Send + Sync {
    /// Its name in cells.
    fn name(&self) -> &'static str;

    /// What it is, in one sentence.
    fn about(&self) -> &'static str;

    /// The options that make sense for it.
    fn options(&self) -> &'static [FrontendOption] {
        &FrontendOption::ALL
    }

    /// Whether an AP that was suspended when its thread began is suspended again when the debugger lets go (a9e4753b4fe2,
    /// D46196).
    fn debugger_suspends_aps_again(&self) -> bool {
        false
    }

    /// The program that it is a version of.
    fn program(&self) -> &'static str {
        "bhyve"
    }

    /// `main`, after the command line has been read. It ends with the process, or with what the next one begins with.
    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin>;

    /// The thread of a vCPU. `start_rip` is where it sets RIP first, in versions where it does.
    fn thread(&self, machine: &Arc<Machine>, vcpu: i32, start_rip: Option<u64>) -> Run<()> {
        vm_loop::vm_loop(machine, vcpu, start_rip)
    }

    /// The end of the process after VM_RUN has failed.
    fn vm_run_failed(&self, process: &Process, errno: Errno) -> End {
        vm_loop::vm_run_failed(process, errno, status::VM_RUN_FAILED)
    }

    /// The exit handlers: what is to be done about an exit.
    fn handle(&self, vcpu: i32, exit: &Exit) -> Action;

    /// INIT for `vcpu`, which an exit says.
    fn init_ap(&self, machine: &Machine, exit: &Exit, vcpu: i32) -> Run<()> {
        vm_loop::suspend_cpu(machine, exit, vcpu)
    }

    /// `spinup_ap`: starts AP `vcpu` at `rip`, the STARTUP vector shifted by 12, for the vCPU `sender`.
    fn spinup_ap(&self, machine: &Arc<Machine>, sender: i32, vcpu: i32, rip: u64) -> Run<()>;
}

/// Every version, oldest first.
pub(crate) const PERSONALITIES: [&dyn Personality; 11] = [
    &v10_0::Bhyve10_0,
    &v13_1::Bhyve13_1,
    &main_9cc9abf4::Bhyve9cc9abf4,
    &main_0bda8d3e::Bhyve0bda8d3e,
    &v13_2::Bhyve13_2,
    &v14::Bhyve14,
    &v15::Bhyve15,
    &illumos::IllumosBhyve,
    &propolis::Propolis,
    &qemu::QemuBhyve,
    &lazy_ipi_exit::LazyIpiExit,
];

/// Runs the process to its end, which is the cell's; with `+restore` or a script that runs it again, those after it too.
pub(crate) fn run(
    personality: &'static dyn Personality,
    options: Options,
    host: &Host,
    system: &Arc<dyn System>,
    launch: &Launch,
    console: &Console,
) -> ! {
    let rerun = launch.extras.rerun;
    let (mut begin, mut reruns) = (Begin::Fresh, 0);
    loop {
        if rerun && matches!(begin, Begin::Reboot) {
            reruns += 1;
            if reruns > MAX_RERUNS {
                host.end(End::Rebooted(MAX_RERUNS));
            }
        }
        let process = Process::new(host, console, options, personality.program(), begin, rerun);
        match personality.main(process, system, launch) {
            Ok(next) => begin = next,
            Err(end) => host.end(end),
        }
    }
}
