//! A vCPU's thread: VM_RUN, the personality's handler, the action that it asks for.

use super::bar;
use super::exits::Action;
use super::gdb;
use super::inst_emul::{self, Failure};
use super::machine::{BSP, Machine};
use super::process::{Place, Run, status};
use super::xmsr;
use crate::libvmmapi::{Exit, Reason};
use crate::pc::{Effect, Inout, pm};
use std::ops::ControlFlow;
use std::sync::Arc;
use vmm::abi::{Errno, ExitInstEmul, exitcode, suspend};
use vmm::cpuset::CpuSet;
use vmm::engine::Reg;
use vmm::host::End;
use vmm::trace::Event;

/// In the place of a port for accesses to memory, none of which suspends the VM.
const NO_PORT: u16 = 0;

/// `vm_loop`: runs the vCPU until its thread ends (`Ok`) or the process does (`Err`).
pub(super) fn vm_loop(machine: &Arc<Machine>, vcpu: i32, start_rip: Option<u64>) -> Run<()> {
    const PLACE: Place = Place { function: "vm_loop", file: "bhyverun.c" };
    let Machine { process, vm, personality, .. } = &**machine;
    let active = vm.active_cpus().unwrap_or_default();
    process.assert(active.contains(vcpu as usize), "CPU_ISSET(vcpu, &active_cpus)", PLACE)?;
    if let Some(rip) = start_rip {
        process.assert_ok(vm.set_register(vcpu, Reg::Rip, rip), PLACE)?;
    }
    loop {
        let exit = vm.run(vcpu).map_err(|errno| {
            process.exit(status::VM_RUN_FAILED, &format!("vm_run error -1, errno {}", errno.number()))
        })?;
        if exit.reason == Reason::Debug {
            gdb::cpu_suspend(machine, vcpu);
        }
        let action = personality.handle(vcpu, &exit);
        if perform(machine, vcpu, &exit, action)?.is_break() {
            return Ok(());
        }
    }
}

/// Does what a handler asks for. `Break` when the thread is to end.
fn perform(machine: &Arc<Machine>, vcpu: i32, exit: &Exit, action: Action) -> Run<ControlFlow<()>> {
    let Machine { process, personality, .. } = &**machine;
    match action {
        Action::Continue => {}
        Action::Sleep(ns) => process.host.sleep(ns),
        Action::Inout { access, eax } => inout(machine, vcpu, exit, access, eax)?,
        Action::Rdmsr { code } => rdmsr(machine, vcpu, code)?,
        Action::Wrmsr { code, value } => wrmsr(machine, vcpu, code, value)?,
        Action::EmulateInstruction(inst_emul) => emulate_instruction(machine, vcpu, exit, &inst_emul)?,
        Action::SpinupAp { vcpu: ap, rip } => personality.spinup_ap(machine, vcpu, ap, rip)?,
        Action::SuspendCpus(targets) => suspend_cpus(machine, exit, targets)?,
        Action::StartCpus { targets, rip } => {
            for target in targets.iter() {
                personality.spinup_ap(machine, vcpu, target as i32, rip)?;
            }
        }
        Action::Suspended { how } => {
            machine.delete_cpu(vcpu)?;
            return if vcpu == BSP { Err(suspended(machine, how)) } else { Ok(ControlFlow::Break(())) };
        }
        Action::Abort { lines } => return Err(abort(machine, exit, &lines)),
        Action::AssertionFailed { expression, function } => {
            return Err(process.assertion_failed(expression, Place { function, file: "bhyverun.c" }));
        }
        Action::Unexpected { code } => {
            return Err(process.exit(status::ERROR, &format!("vm_loop: unexpected exitcode {code:#x}")));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// VMEXIT_ABORT: prints and calls `abort()`.
fn abort(machine: &Machine, exit: &Exit, lines: &[String]) -> End {
    lines.iter().for_each(|line| machine.process.eprintln(line));
    let mut words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let Some(first) = words.next() else {
        return End::Abort(format!("The handler of {} failed", exitcode::name(exit.code)));
    };
    let rest: Vec<String> = words.collect();
    End::Abort(if rest.is_empty() { first } else { format!("{first}: {}", rest.join(", ")) })
}

/// The end of the process after the VM was suspended as a whole (`vmexit_suspend`).
fn suspended(machine: &Machine, how: i32) -> End {
    match how {
        suspend::RESET => End::Exit(0),
        suspend::POWEROFF => End::Exit(1),
        suspend::HALT => End::Exit(2),
        suspend::TRIPLEFAULT => End::Exit(3),
        _ => machine.process.exit(100, &format!("vmexit_suspend: invalid reason {how}")),
    }
}

/// `vmexit_inout` and `emulate_inout`.
fn inout(machine: &Machine, vcpu: i32, exit: &Exit, access: Inout, eax: u32) -> Run<()> {
    const PLACE: Place = Place { function: "emulate_inout", file: "inout.c" };
    let Machine { process, vm, pc, .. } = machine;
    process.assert(matches!(access.bytes, 1 | 2 | 4), "bytes == 1 || bytes == 2 || bytes == 4", PLACE)?;
    let Some(reaction) = pc.inout(access) else {
        let direction = if access.data.is_some() { "out" } else { "in" };
        let width = match access.bytes {
            1 => 'b',
            2 => 'w',
            _ => 'l',
        };
        let line = format!("Unhandled {direction}{width} {:#06x} at {:#x}", access.port, exit.rip);
        return Err(abort(machine, exit, &[line]));
    };
    if let Some(effect) = reaction.effect {
        carry_out(machine, vcpu, effect, access.port)?;
    }
    if access.data.is_none() {
        let mask = u32::MAX >> (32 - 8 * u32::from(access.bytes));
        let eax = eax & !mask | reaction.value & mask;
        process.assert_ok(vm.set_register(vcpu, Reg::Rax, eax.into()), PLACE)?;
    }
    Ok(())
}

/// What a device wants done outside itself after an access to `port`.
fn carry_out(machine: &Machine, vcpu: i32, effect: Effect, port: u16) -> Run<()> {
    let Machine { process, vm, .. } = machine;
    match effect {
        // lpc_uart_intr_assert does not look at the result.
        Effect::PulseIrq(irq) => drop(vm.isa_pulse_irq(irq.into())),
        Effect::Suspend(how) => match vm.suspend(how) {
            Ok(()) | Err(Errno::EALREADY) => {}
            Err(_) => {
                let place = suspending_handler(port);
                return Err(process.assertion_failed("error == 0 || errno == EALREADY", place));
            }
        },
        Effect::MoveBar { to } => bar::move_to(machine, to),
        Effect::Report(report) => {
            process.host.emit(u16::try_from(vcpu).ok(), Event::Report(report));
        }
    }
    Ok(())
}

/// The handler behind a port that suspends the VM.
fn suspending_handler(port: u16) -> Place {
    match port {
        pm::PM1_CONTROL => Place { function: "pm1_control_handler", file: "pm.c" },
        pm::RESET => Place { function: "reset_handler", file: "pm.c" },
        _ => Place { function: "atkbdc_sts_ctl_handler", file: "atkbdc.c" },
    }
}

/// `vmexit_rdmsr` with `x86.strictmsr`.
fn rdmsr(machine: &Machine, vcpu: i32, code: u32) -> Run<()> {
    const PLACE: Place = Place { function: "vmexit_rdmsr", file: "bhyverun.c" };
    let Machine { process, vm, .. } = machine;
    let Some(value) = xmsr::rdmsr(code) else {
        process.eprintln(&format!("rdmsr to register {code:#x} on vcpu {vcpu}"));
        return inject_gp(machine, vcpu);
    };
    process.assert_ok(vm.set_register(vcpu, Reg::Rax, value & 0xffff_ffff), PLACE)?;
    process.assert_ok(vm.set_register(vcpu, Reg::Rdx, value >> 32), PLACE)
}

/// `vmexit_wrmsr` with `x86.strictmsr`.
fn wrmsr(machine: &Machine, vcpu: i32, code: u32, value: u64) -> Run<()> {
    if xmsr::wrmsr(code) {
        return Ok(());
    }
    machine.process.eprintln(&format!("wrmsr to register {code:#x}({value:#x}) on vcpu {vcpu}"));
    inject_gp(machine, vcpu)
}

/// `vm_inject_gp`.
fn inject_gp(machine: &Machine, vcpu: i32) -> Run<()> {
    const PLACE: Place = Place { function: "vm_inject_fault", file: "bhyverun.c" };
    const GENERAL_PROTECTION: i32 = 13;
    machine.process.assert_ok(machine.vm.inject_fault(vcpu, GENERAL_PROTECTION, Some(0)), PLACE)
}

/// `vmexit_inst_emul`.
fn emulate_instruction(machine: &Machine, vcpu: i32, exit: &Exit, inst_emul: &ExitInstEmul) -> Run<()> {
    let Machine { vm, pc, .. } = machine;
    let failure = match inst_emul::emulate(vm, pc, vcpu, exit.rip, inst_emul) {
        Ok(None) => return Ok(()),
        Ok(Some(effect)) => return carry_out(machine, vcpu, effect, NO_PORT),
        Err(failure) => failure,
    };
    let mut lines = Vec::new();
    if failure == Failure::Unhandled {
        lines.push(format!("Unhandled memory access to {:#x}", inst_emul.gpa));
    }
    let bytes: String = inst_emul::fetched(inst_emul).iter().map(|byte| format!("{byte:02x}")).collect();
    lines.push(format!("Failed to emulate instruction sequence [ {bytes} ] at {:#x}", exit.rip));
    Err(abort(machine, exit, &lines))
}

/// `vmexit_ipi` for INIT. The first vCPU that cannot be suspended ends it with -1, which is VMEXIT_ABORT.
fn suspend_cpus(machine: &Machine, exit: &Exit, targets: CpuSet) -> Run<()> {
    for target in targets.iter() {
        if machine.vm.suspend_cpu(target as i32).is_err() {
            let line = format!("bhyve: vmexit_ipi: failed to suspend cpu {target}");
            return Err(abort(machine, exit, &[line]));
        }
    }
    Ok(())
}
