//! The exit handlers that did not change between the personalities: what an exit asks for, as a pure function.
//!
//! A handler of bhyve returns VMEXIT_CONTINUE (0) or VMEXIT_ABORT (-1). Here it returns the [`Action`] that the vCPU's
//! thread then takes (`super::vm_loop`).

use crate::libvmmapi::{Exit, Reason};
use crate::pc::Inout;
use vmm::abi::illumos::VmMmio;
use vmm::abi::{ExitInout, ExitInstEmul, ExitVmx};
use vmm::cpuset::CpuSet;

/// What a vCPU's thread does about an exit before it runs the vCPU again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Nothing (VMEXIT_CONTINUE).
    Continue,
    /// Sleep for so many nanoseconds.
    Sleep(u64),
    /// Ask the PC about an I/O port.
    Inout {
        /// What the guest does.
        access: Inout,
        /// The same as the kernel said it.
        exit: ExitInout,
    },
    /// Emulate RDMSR.
    Rdmsr {
        /// The register.
        code: u32,
    },
    /// RDMSR reads this.
    ReadMsrAs(u64),
    /// Emulate WRMSR.
    Wrmsr {
        /// The register.
        code: u32,
        /// What the guest wrote.
        value: u64,
    },
    /// Emulate an instruction that touches memory which is none.
    EmulateInstruction(Box<ExitInstEmul>),
    /// illumos: read or write memory which is none.
    Mmio(VmMmio),
    /// `spinup_ap`: one AP, at the vector shifted by 12.
    SpinupAp {
        /// Which.
        vcpu: i32,
        /// Where.
        rip: u64,
    },
    /// INIT: suspend each of these.
    SuspendCpus(CpuSet),
    /// STARTUP: `spinup_ap` for each of these.
    StartCpus {
        /// Which.
        targets: CpuSet,
        /// Where: the vector shifted by 12.
        rip: u64,
    },
    /// `vmexit_suspend`: the thread ends; the BSP's ends the process once it is the last.
    Suspended {
        /// `enum vm_suspend_how`.
        how: i32,
    },
    /// Print and end the process.
    Exit {
        /// With which status.
        status: i32,
        /// What goes to standard error.
        line: Option<String>,
    },
    /// End the thread, which is as good as a thread that gets the same exit for ever.
    Park,
    /// End the thread; when the BSP's is the last, the VM begins anew.
    Reboot,
    /// Print and abort (VMEXIT_ABORT).
    Abort {
        /// What goes to standard error.
        lines: Vec<String>,
    },
    /// An assertion of a handler does not hold.
    AssertionFailed {
        /// The expression.
        expression: &'static str,
        /// The handler, which is in `bhyverun.c`.
        function: &'static str,
    },
    /// There is no handler for the exit code.
    Unexpected {
        /// The exit code.
        code: u32,
    },
}

/// What the handlers that all personalities share do. PAUSE has none, for `-P` is not given; SPINUP_AP, DEBUG and IPI are
/// each personality's own, and what it leaves to this function is unexpected.
pub(super) fn handle(vcpu: i32, exit: &Exit) -> Action {
    match &exit.reason {
        Reason::Inout(inout) => {
            let data = (!inout.is_in()).then_some(inout.eax);
            Action::Inout { access: Inout { port: inout.port, bytes: inout.bytes(), data }, exit: *inout }
        }
        Reason::Rdmsr { code } => Action::Rdmsr { code: *code },
        Reason::Wrmsr { code, value } => Action::Wrmsr { code: *code, value: *value },
        Reason::Vmx(vmx) => Action::Abort { lines: vmx_lines(vcpu, exit, vmx) },
        Reason::Bogus => finished(exit, "vmexit_bogus"),
        Reason::Reqidle => finished(exit, "vmexit_reqidle"),
        Reason::Mtrap => finished(exit, "vmexit_mtrap"),
        // `-H` is given. The exit itself has let others run.
        Reason::Hlt => Action::Continue,
        Reason::InstEmul(inst_emul) => Action::EmulateInstruction(inst_emul.clone()),
        Reason::Mmio(mmio) => Action::Mmio(*mmio),
        Reason::NotEmulated(bytes) => Action::Abort { lines: vec![not_emulated(bytes, exit.rip)] },
        Reason::Suspended { how } => Action::Suspended { how: *how },
        Reason::Debug | Reason::RunState | Reason::SpinupAp { .. } | Reason::Ipi { .. } | Reason::Other => {
            Action::Unexpected { code: exit.code }
        }
    }
}

/// As [`handle_ipi`], for a userspace that takes whatever comes: no targets, no work.
pub(super) fn handle_ipi_leniently(mode: u32, vector: u8, targets: CpuSet) -> Action {
    match handle_ipi(mode, vector, targets) {
        Action::Abort { .. } => Action::Continue,
        action => action,
    }
}

/// Exits that leave nothing to do assert that no instruction is to be skipped.
fn finished(exit: &Exit, function: &'static str) -> Action {
    if exit.inst_length == 0 {
        Action::Continue
    } else {
        Action::AssertionFailed { expression: "vme->inst_length == 0", function }
    }
}

/// `vmexit_vmx`: the exit in full.
fn vmx_lines(vcpu: i32, exit: &Exit, vmx: &ExitVmx) -> Vec<String> {
    vec![
        format!("vm exit[{vcpu}]"),
        "\treason\t\tVMX".to_owned(),
        format!("\trip\t\t{:#018x}", exit.rip),
        format!("\tinst_length\t{}", exit.inst_length),
        format!("\tstatus\t\t{}", vmx.status),
        format!("\texit_reason\t{} ({})", vmx.exit_reason, vmx_exit_reason(vmx.exit_reason)),
        format!("\tqualification\t{:#018x}", vmx.exit_qualification),
        format!("\tinst_type\t\t{}", vmx.inst_type),
        format!("\tinst_error\t\t{}", vmx.inst_error),
    ]
}

/// `vmexit_vmx_desc`, for the reasons that a guest can bring about (SDM 3D appendix C).
fn vmx_exit_reason(reason: u32) -> &'static str {
    match reason {
        0 => "Exception or non-maskable interrupt (NMI)",
        2 => "Triple fault",
        33 => "VM-entry failure due to invalid guest state",
        48 => "EPT violation",
        49 => "EPT misconfiguration",
        _ => "Unknown",
    }
}

/// What is said about an instruction that nobody can emulate.
pub(super) fn not_emulated(bytes: &[u8], rip: u64) -> String {
    let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Failed to emulate instruction sequence [ {bytes} ] at {rip:#x}")
}

/// What `vmexit_ipi` does about INIT and STARTUP, the same from 0bda8d3e to 15. \[read]
///
/// It returns -1 for any other mode and for an INIT without targets; a STARTUP without targets is fine. And -1 is what
/// `bhyverun.h` of all versions since 11 defines VMEXIT_ABORT as, so it aborts. \[read]
pub(super) fn handle_ipi(mode: u32, vector: u8, targets: CpuSet) -> Action {
    const INIT: u32 = 0x500;
    const STARTUP: u32 = 0x600;
    match mode {
        INIT if !targets.is_empty() => Action::SuspendCpus(targets),
        STARTUP => Action::StartCpus { targets, rip: u64::from(vector) << 12 },
        _ => Action::Abort { lines: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::abi::exitcode;

    fn exit(code: u32, reason: Reason) -> Exit {
        Exit { code, rip: 0x1234, inst_length: 0, reason }
    }

    #[test]
    fn in_and_out() {
        let out = ExitInout::new(2, false, 0x404, 0x3400);
        let access = Inout { port: 0x404, bytes: 2, data: Some(0x3400) };
        assert_eq!(handle(0, &exit(exitcode::INOUT, Reason::Inout(out))), Action::Inout { access, exit: out });
        let input = ExitInout::new(1, true, 0x3fd, 0x1234);
        let access = Inout { port: 0x3fd, bytes: 1, data: None };
        assert_eq!(handle(0, &exit(exitcode::INOUT, Reason::Inout(input))), Action::Inout { access, exit: input });
    }

    #[test]
    fn nothing_to_do_unless_an_instruction_is_left() {
        for (code, reason) in [
            (exitcode::BOGUS, Reason::Bogus),
            (exitcode::REQIDLE, Reason::Reqidle),
            (exitcode::MTRAP, Reason::Mtrap),
            (exitcode::HLT, Reason::Hlt),
        ] {
            assert_eq!(handle(1, &exit(code, reason)), Action::Continue);
        }
        let bogus = Exit { inst_length: 2, ..exit(exitcode::BOGUS, Reason::Bogus) };
        assert!(matches!(handle(1, &bogus), Action::AssertionFailed { function: "vmexit_bogus", .. }));
    }

    #[test]
    fn what_has_no_handler_is_unexpected() {
        for code in [exitcode::PAUSE, 99] {
            assert_eq!(handle(0, &exit(code, Reason::Other)), Action::Unexpected { code });
        }
    }

    #[test]
    fn a_vmx_exit_is_printed_and_aborts() {
        let vmx = ExitVmx { exit_reason: 48, exit_qualification: 4, ..ExitVmx::default() };
        let Action::Abort { lines } = handle(2, &exit(exitcode::VMX, Reason::Vmx(vmx))) else {
            panic!("no abort");
        };
        assert_eq!(lines[0], "vm exit[2]");
        assert_eq!(lines[2], "\trip\t\t0x0000000000001234");
        assert_eq!(lines[5], "\texit_reason\t48 (EPT violation)");
        assert_eq!(lines[6], "\tqualification\t0x0000000000000004");
    }

    #[test]
    fn ipi_exits() {
        let targets: CpuSet = [1, 2].into_iter().collect();
        assert_eq!(handle_ipi(0x500, 0, targets), Action::SuspendCpus(targets));
        assert_eq!(handle_ipi(0x600, 0x08, targets), Action::StartCpus { targets, rip: 0x8000 });
        assert_eq!(handle_ipi(0x500, 0, CpuSet::EMPTY), Action::Abort { lines: Vec::new() });
        assert_eq!(handle_ipi(0x200, 0, targets), Action::Abort { lines: Vec::new() });
    }
}
