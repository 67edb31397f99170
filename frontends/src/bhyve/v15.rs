//! F6, `bhyve-15`: eager, every vCPU suspended at first (main and 15). \[read]
//!
//! As [`super::v14`], except:
//!
//! * `vm_openf`: a VM that is there is begun anew; else (ENOENT) one is made at `/dev/vmmctl`. Errors: exit 4. A kernel before 15
//!   has no `/dev/vmmctl`.
//! * That the suspension of a vCPU succeeds is asserted.
//! * A debugger that lets go suspends again each AP that waits for its STARTUP (a9e4753b4fe2, D46196). \[commit]
//! * After VM_RUN has failed: exit 4. So is a VM that is destroyed by somebody else (VM_SUSPEND_DESTROY).

use super::exits::Action;
use super::machine::{BSP, Machine};
use super::process::{Begin, Place, Process, Run, status};
use super::v13_2::set_capabilities;
use super::{Personality, ap, checkpoint, monitor, setup, v14, vm_loop};
use crate::libvmmapi::{Exit, Generation, Reason, System, V15, Vm};
use crate::{Boot, Launch};
use std::sync::Arc;
use vmm::abi::{Errno, suspend};
use vmm::host::End;

pub(super) struct Bhyve15;

impl Personality for Bhyve15 {
    fn name(&self) -> &'static str {
        "bhyve-15"
    }

    fn about(&self) -> &'static str {
        "FreeBSD 15 and main: as bhyve-14, with VMs made at /dev/vmmctl; a debugger leaves APs that wait suspended"
    }

    fn debugger_suspends_aps_again(&self) -> bool {
        true
    }

    fn main(&'static self, process: Process, system: &Arc<dyn System>, launch: &Launch) -> Run<Begin> {
        const PLACE: Place = Place { function: "fbsdrun_addcpu", file: "bhyverun.c" };
        let cpus = setup::calc_topology(&process, launch)?;
        let vm = open(&process, system, launch, &V15)?;
        setup::set_topology(&process, &vm, cpus)?;
        setup::check_vcpus_allowed(&process, &vm, cpus)?;
        set_capabilities(&process, &vm, launch.apic, BSP)?;
        let machine = setup::machine(process, vm, launch, cpus, self)?;
        monitor::look(&machine);
        for vcpu in 0..i32::from(cpus.count) {
            // bhyve_start_vcpu
            match vcpu {
                BSP => setup::boot(&machine, &launch.boot)?,
                _ => v14::init_ap(&machine, vcpu)?,
            }
            machine.activate(vcpu)?;
            machine.process.assert_ok(machine.vm.suspend_cpu(vcpu), PLACE)?;
            machine.start_thread(vcpu, None);
        }
        checkpoint::restore(&machine)?;
        setup::build_tables(&machine, launch)?;
        v14::let_go(&machine)?;
        machine.mevent_dispatch()
    }

    fn handle(&self, vcpu: i32, exit: &Exit) -> Action {
        match exit.reason {
            Reason::Suspended { how: suspend::DESTROY } => Action::Exit { status: status::ERROR, line: None },
            _ => v14::handle(vcpu, exit),
        }
    }

    fn spinup_ap(&self, machine: &Arc<Machine>, _sender: i32, vcpu: i32, rip: u64) -> Run<()> {
        ap::restart(machine, vcpu, rip)
    }

    fn vm_run_failed(&self, process: &Process, errno: Errno) -> End {
        vm_loop::vm_run_failed(process, errno, status::ERROR)
    }
}

/// `do_open` up to the topology: `vm_openf` with VMMAPI_OPEN_REINIT and, where there is no such VM, with VMMAPI_OPEN_CREATE.
fn open(process: &Process, system: &Arc<dyn System>, launch: &Launch, generation: &'static dyn Generation) -> Run<Vm> {
    let failed = |errno| process.err(status::ERROR, "vm_openf", errno);
    setup::run_loader(process, system, launch, generation)?;
    let romboot = matches!(launch.boot, Boot::Rom(_));
    let name = &launch.vm_name;
    match Vm::open(system, name, generation) {
        Ok(vm) => {
            if romboot {
                vm.reinit().map_err(failed)?;
            }
            Ok(vm)
        }
        Err(Errno::ENOENT) if !romboot => Err(process.errx(status::ERROR, "no bootrom was configured")),
        Err(Errno::ENOENT) => {
            Vm::create(&**system, name, generation).map_err(failed)?;
            Vm::open(system, name, generation).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}
