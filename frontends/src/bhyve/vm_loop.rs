//! A vCPU's thread: VM_RUN, the personality's handler, the action that it asks for.

use super::bar;
use super::checkpoint;
use super::exits::{Action, not_emulated};
use super::gdb;
use super::inst_emul::{self, Failure};
use super::machine::{BSP, Machine};
use super::process::{Place, Process, Run, status};
use super::xmsr;
use crate::libvmmapi::{Exit, Reason, Vm};
use crate::pc::isa::fw_cfg::{self, Transfer};
use crate::pc::pci::Interrupt;
use crate::pc::{Effect, Inout, pm};
use std::ops::ControlFlow;
use std::sync::Arc;
use vmm::abi::illumos::VmMmio;
use vmm::abi::{Errno, ExitInout, ExitInstEmul, exitcode, suspend};
use vmm::engine::Reg;
use vmm::host::End;
use vmm::trace::Event;

/// In the place of a port for accesses to memory, none of which suspends the VM.
const NO_PORT: u16 = 0;

/// `vm_loop`: runs the vCPU until its thread ends (`Ok`) or the process does (`Err`).
pub(super) fn vm_loop(machine: &Arc<Machine>, vcpu: i32, start_rip: Option<u64>) -> Run<()> {
    const PLACE: Place = Place { function: "vm_loop", file: "bhyverun.c" };
    let Machine { process, vm, .. } = &**machine;
    let active = vm.active_cpus().unwrap_or_default();
    process.assert(active.contains(vcpu as usize), "CPU_ISSET(vcpu, &active_cpus)", PLACE)?;
    if let Some(rip) = start_rip {
        process.assert_ok(vm.set_register(vcpu, Reg::Rip, rip), PLACE)?;
    }
    while run(machine, vcpu)?.is_continue() {}
    Ok(())
}

/// VM_RUN, and what its exit asks for. `Break` when the thread is to end.
pub(super) fn run(machine: &Arc<Machine>, vcpu: i32) -> Run<ControlFlow<()>> {
    let exit = enter(machine, vcpu)?;
    handle(machine, vcpu, &exit)
}

/// VM_RUN.
pub(super) fn enter(machine: &Machine, vcpu: i32) -> Run<Exit> {
    let Machine { process, vm, personality, .. } = machine;
    vm.run(vcpu).map_err(|errno| personality.vm_run_failed(process, errno))
}

/// What an exit asks for. `Break` when the thread is to end.
pub(super) fn handle(machine: &Arc<Machine>, vcpu: i32, exit: &Exit) -> Run<ControlFlow<()>> {
    if exit.reason == Reason::Debug {
        // vmexit_debug
        checkpoint::cpu_suspend(machine, vcpu);
        gdb::cpu_suspend(machine, vcpu);
        if checkpoint::cpu_resume(machine, vcpu).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    perform(machine, vcpu, exit, machine.personality.handle(vcpu, exit))
}

/// What every bhyve says when VM_RUN has failed, and with which status it then ends.
pub(super) fn vm_run_failed(process: &Process, errno: Errno, status: i32) -> End {
    process.exit(status, &format!("vm_run error -1, errno {}", errno.number()))
}

/// Does what a handler asks for. `Break` when the thread is to end.
fn perform(machine: &Arc<Machine>, vcpu: i32, exit: &Exit, action: Action) -> Run<ControlFlow<()>> {
    let Machine { process, personality, .. } = &**machine;
    match action {
        Action::Continue => {}
        Action::Sleep(ns) => process.host.sleep(ns),
        Action::Inout { access, exit: inout } => self::inout(machine, vcpu, exit, access, &inout)?,
        Action::Mmio(access) => mmio(machine, vcpu, access)?,
        Action::ReadMsrAs(value) => set_msr_result(machine, vcpu, value)?,
        Action::Rdmsr { code } => rdmsr(machine, vcpu, code)?,
        Action::Wrmsr { code, value } => wrmsr(machine, vcpu, code, value)?,
        Action::EmulateInstruction(inst_emul) => emulate_instruction(machine, vcpu, exit, &inst_emul)?,
        Action::SpinupAp { vcpu: ap, rip } => personality.spinup_ap(machine, vcpu, ap, rip)?,
        Action::SuspendCpus(targets) => {
            for target in targets.iter() {
                personality.init_ap(machine, exit, target as i32)?;
            }
        }
        Action::StartCpus { targets, rip } => {
            for target in targets.iter() {
                personality.spinup_ap(machine, vcpu, target as i32, rip)?;
            }
        }
        Action::Suspended { how } => {
            machine.delete_cpu(vcpu)?;
            if vcpu == BSP {
                if !(process.rerun && how == suspend::RESET) {
                    return Err(suspended(machine, how));
                }
                // exit(0), and the script runs it again.
                machine.reboot();
            }
            return Ok(ControlFlow::Break(()));
        }
        Action::Exit { status, line } => {
            line.iter().for_each(|line| process.eprintln(line));
            return Err(End::Exit(status));
        }
        Action::Park => return Ok(ControlFlow::Break(())),
        Action::Reboot => {
            machine.delete_cpu(vcpu)?;
            if vcpu == BSP {
                machine.reboot();
            }
            return Ok(ControlFlow::Break(()));
        }
        Action::Abort { lines } => return Err(abort(machine, exit, &lines)),
        Action::AssertionFailed { expression, function } => {
            process.assert(false, expression, Place { function, file: "bhyverun.c" })?;
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
fn inout(machine: &Machine, vcpu: i32, exit: &Exit, access: Inout, inout: &ExitInout) -> Run<()> {
    const PLACE: Place = Place { function: "emulate_inout", file: "inout.c" };
    let Machine { process, vm, pc, .. } = machine;
    process.assert(matches!(access.bytes, 1 | 2 | 4), "bytes == 1 || bytes == 2 || bytes == 4", PLACE)?;
    let Some(reaction) = pc.inout(access, process.host.now()) else {
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
    process.assert_ok(vm.complete_inout(vcpu, inout, reaction.value), PLACE)
}

/// `vmexit_mmio` of illumos: what is no RAM; where nothing answers, all ones.
fn mmio(machine: &Machine, vcpu: i32, access: VmMmio) -> Run<()> {
    let Machine { vm, pc, .. } = machine;
    let (data, effect) = if access.read != 0 {
        pc.read_memory(access.gpa, access.bytes).unwrap_or((u64::MAX, None))
    } else {
        (access.data, pc.write_memory(access.gpa, access.bytes, access.data).flatten())
    };
    vm.complete_mmio(vcpu, VmMmio { data, ..access });
    match effect {
        Some(effect) => carry_out(machine, vcpu, effect, NO_PORT),
        None => Ok(()),
    }
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
        // pci_generate_msi, pci_irq_assert and their like do not look at the result either.
        Effect::Interrupts(interrupts) => {
            for each in interrupts {
                let _ignored = interrupt(vm, each);
            }
        }
        // The kernel refuses lines that it does not have; nobody looks, as at a pulse.
        Effect::SetIrq { line, high } if line < ISA_LINES => drop(vm.isa_set_irq(line.into(), line.into(), high)),
        Effect::SetIrq { line, high } => drop(vm.ioapic_set_irq(line.into(), high)),
        Effect::Exit(status) => {
            return Err(
                process.exit(status, &format!("the guest ended the machine by isa-debug-exit, status {status}"))
            );
        }
        Effect::FwCfgDma { gpa } => fw_cfg_dma(machine, gpa),
        Effect::Report(report) => {
            checkpoint::reported(machine, &report);
            process.host.emit(u16::try_from(vcpu).ok(), Event::Report(report));
        }
    }
    Ok(())
}

/// `pci_generate_msi`; `pci_irq_assert` and `pci_irq_deassert`.
fn interrupt(vm: &Vm, interrupt: Interrupt) -> Result<(), Errno> {
    const NO_PIN: i32 = -1;
    match interrupt {
        Interrupt::Message { address, data } => vm.lapic_msi(address, data.into()),
        Interrupt::Line { irq: Some(irq), ioapic_pin, level } => {
            vm.isa_set_irq(irq.into(), ioapic_pin.map_or(NO_PIN, i32::from), level)
        }
        Interrupt::Line { irq: None, ioapic_pin: Some(pin), level } => vm.ioapic_set_irq(pin.into(), level),
        Interrupt::Line { irq: None, ioapic_pin: None, .. } => Ok(()),
    }
}

/// Interrupt lines that the 8259s have.
const ISA_LINES: u8 = 16;

/// `fw_cfg_dma_transfer`: the command, and how it ended in its place. One that is not in RAM is passed over.
fn fw_cfg_dma(machine: &Machine, gpa: u64) {
    let Machine { pc, memory, .. } = machine;
    let mut command = [0; fw_cfg::COMMAND_LEN];
    let Some(mut device) = pc.fw_cfg() else { return };
    if !memory.read(gpa, &mut command) {
        return;
    }
    let mut command = device.command(command);
    let error = loop {
        match device.transfer(&mut command) {
            Transfer::Done { error } => break error,
            Transfer::Write { gpa, bytes } if memory.write(gpa, &bytes) => {}
            Transfer::Write { .. } => command.failed(),
        }
    };
    let written = memory.write(gpa, &fw_cfg::control_after(error));
    debug_assert!(written, "the command was read from there");
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
    let Some(value) = xmsr::rdmsr(code) else {
        machine.process.eprintln(&format!("rdmsr to register {code:#x} on vcpu {vcpu}"));
        return inject_gp(machine, vcpu);
    };
    set_msr_result(machine, vcpu, value)
}

/// What RDMSR brings: EDX and EAX.
fn set_msr_result(machine: &Machine, vcpu: i32, value: u64) -> Run<()> {
    const PLACE: Place = Place { function: "vmexit_rdmsr", file: "bhyverun.c" };
    let Machine { process, vm, .. } = machine;
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
    lines.push(not_emulated(inst_emul::fetched(inst_emul), exit.rip));
    Err(abort(machine, exit, &lines))
}

/// `vmexit_ipi` for INIT and one target: a vCPU that cannot be suspended ends it with -1, which is VMEXIT_ABORT.
pub(super) fn suspend_cpu(machine: &Machine, exit: &Exit, target: i32) -> Run<()> {
    machine.vm.suspend_cpu(target).map_err(|_| {
        let line = format!("bhyve: vmexit_ipi: failed to suspend cpu {target}");
        abort(machine, exit, &[line])
    })
}
