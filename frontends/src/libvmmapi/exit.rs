//! Exits of VM_RUN as types.

use vmm::abi::illumos::{self, VmMmio};
use vmm::abi::{
    ExitInout, ExitInstEmul, ExitIpi, ExitMsr, ExitSpinupAp, ExitSuspended, ExitVmx, VmExit, exitcode, v14,
};
use vmm::cpuset::CpuSet;

/// Why VM_RUN returned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    /// The exit code as it came.
    pub(crate) code: u32,
    /// RIP of the instruction that exited.
    pub(crate) rip: u64,
    /// Its length in bytes; 0 when RIP is where the vCPU goes on.
    pub(crate) inst_length: i32,
    /// The code and its payload, decoded.
    pub(crate) reason: Reason,
}

/// An exit code with its payload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reason {
    /// IN or OUT.
    Inout(ExitInout),
    /// An exit of the processor that the kernel does not handle.
    Vmx(ExitVmx),
    /// Nothing: the kernel only wanted the thread to pass through userspace.
    Bogus,
    /// RDMSR of a register that the kernel does not know.
    Rdmsr {
        /// The register.
        code: u32,
    },
    /// WRMSR of a register that the kernel does not know.
    Wrmsr {
        /// The register.
        code: u32,
        /// What the guest wrote.
        value: u64,
    },
    /// HLT.
    Hlt,
    /// One instruction was executed under MTRAP_EXIT.
    Mtrap,
    /// An access to memory that the kernel does not emulate.
    InstEmul(Box<ExitInstEmul>),
    /// illumos: an access to memory that the kernel does not emulate, the instruction decoded.
    Mmio(VmMmio),
    /// illumos: an instruction that the kernel cannot emulate; its bytes.
    NotEmulated(Vec<u8>),
    /// illumos: the vCPU's run state is to be looked at.
    RunState,
    /// The guest started an AP.
    SpinupAp {
        /// Which.
        vcpu: i32,
        /// Where it begins: the STARTUP vector shifted by 12.
        rip: u64,
    },
    /// The VM is suspended as a whole.
    Suspended {
        /// `enum vm_suspend_how`.
        how: i32,
    },
    /// Somebody wants the vCPU to be idle.
    Reqidle,
    /// The vCPU is in the debug set, so it executes nothing.
    Debug,
    /// INIT or STARTUP, for userspace to handle (IPI_EXIT).
    Ipi {
        /// The ICR's delivery mode bits, unshifted: 0x500 or 0x600.
        mode: u32,
        /// The vector.
        vector: u8,
        /// For whom.
        targets: CpuSet,
    },
    /// A code that this generation does not know; or PAUSE, which is not asked for; or one of those that the modelled kernel
    /// never gives to userspace (INOUT_STR, for engines split string instructions; TASK_SWITCH, SVM, BPT and the like).
    Other,
}

impl Exit {
    /// Decodes what all generations have in common.
    pub(super) fn parse(raw: &VmExit) -> Exit {
        let reason = match raw.exitcode {
            exitcode::INOUT => Reason::Inout(raw.payload()),
            exitcode::VMX => Reason::Vmx(raw.payload()),
            exitcode::BOGUS => Reason::Bogus,
            exitcode::RDMSR => Reason::Rdmsr { code: raw.payload::<ExitMsr>().code },
            exitcode::WRMSR => {
                let msr = raw.payload::<ExitMsr>();
                Reason::Wrmsr { code: msr.code, value: msr.wval }
            }
            exitcode::HLT => Reason::Hlt,
            exitcode::MTRAP => Reason::Mtrap,
            exitcode::INST_EMUL => Reason::InstEmul(Box::new(raw.payload())),
            exitcode::SPINUP_AP => {
                let spinup = raw.payload::<ExitSpinupAp>();
                Reason::SpinupAp { vcpu: spinup.vcpu, rip: spinup.rip }
            }
            exitcode::SUSPENDED => Reason::Suspended { how: raw.payload::<ExitSuspended>().how },
            exitcode::REQIDLE => Reason::Reqidle,
            exitcode::DEBUG => Reason::Debug,
            _ => Reason::Other,
        };
        Exit { code: raw.exitcode, rip: raw.rip, inst_length: raw.inst_length, reason }
    }

    /// As [`Exit::parse`], with the exit code that 0bda8d3e9f7a added (D35623).
    pub(super) fn parse_with_ipi(raw: &VmExit) -> Exit {
        let exit = Exit::parse(raw);
        if raw.exitcode != exitcode::IPI {
            return exit;
        }
        let ipi = raw.payload::<ExitIpi>();
        Exit { reason: Reason::Ipi { mode: ipi.mode, vector: ipi.vector, targets: ipi.dmask() }, ..exit }
    }

    /// As [`Exit::parse_with_ipi`], with the set beside the exit, as from 14 on (e17eca327633, D40113).
    pub(super) fn parse_with_set(raw: &VmExit, targets: impl FnOnce() -> CpuSet) -> Exit {
        let exit = Exit::parse(raw);
        if raw.exitcode != exitcode::IPI {
            return exit;
        }
        let ipi = raw.payload::<v14::ExitIpi>();
        Exit { reason: Reason::Ipi { mode: ipi.mode, vector: ipi.vector, targets: targets() }, ..exit }
    }

    /// Decodes an exit of illumos, whose codes are a number space of their own.
    pub(super) fn parse_illumos(raw: &illumos::VmExit) -> Exit {
        use illumos::exitcode;
        let reason = match raw.exitcode {
            exitcode::INOUT => {
                let inout = raw.payload::<illumos::VmInout>();
                Reason::Inout(ExitInout::new(inout.bytes, inout.is_in(), inout.port, inout.eax))
            }
            exitcode::MMIO => Reason::Mmio(raw.payload()),
            exitcode::INST_EMUL => {
                let exit = raw.payload::<illumos::ExitInstEmul>();
                Reason::NotEmulated(exit.inst[..usize::from(exit.num_valid).min(15)].to_vec())
            }
            exitcode::VMX => Reason::Vmx(raw.payload()),
            exitcode::BOGUS => Reason::Bogus,
            exitcode::RDMSR => Reason::Rdmsr { code: raw.payload::<ExitMsr>().code },
            exitcode::WRMSR => {
                let msr = raw.payload::<ExitMsr>();
                Reason::Wrmsr { code: msr.code, value: msr.wval }
            }
            exitcode::HLT => Reason::Hlt,
            exitcode::MTRAP => Reason::Mtrap,
            exitcode::SUSPENDED => Reason::Suspended { how: raw.payload::<illumos::ExitSuspended>().how },
            exitcode::RUN_STATE => Reason::RunState,
            exitcode::DEBUG => Reason::Debug,
            _ => Reason::Other,
        };
        Exit { code: raw.exitcode, rip: raw.rip, inst_length: raw.inst_length, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_generations_differ_in_ipi_alone() {
        let targets: CpuSet = [1, 3].into_iter().collect();
        let raw = VmExit::new(exitcode::IPI, &ExitIpi::new(0x600, 8, targets));
        assert_eq!(Exit::parse(&raw).reason, Reason::Other);
        assert_eq!(Exit::parse(&raw).code, 24);
        assert_eq!(Exit::parse_with_ipi(&raw).reason, Reason::Ipi { mode: 0x600, vector: 8, targets });
    }

    #[test]
    fn from_14_on_the_set_is_beside_the_exit() {
        let by_value: CpuSet = [1, 3].into_iter().collect();
        let raw = VmExit::new(exitcode::IPI, &ExitIpi::new(0x500, 8, by_value));
        let beside: CpuSet = [2, 200].into_iter().collect();
        let exit = Exit::parse_with_set(&raw, || beside);
        assert_eq!(exit.reason, Reason::Ipi { mode: 0x500, vector: 8, targets: beside });
        let hlt = VmExit { exitcode: exitcode::HLT, ..VmExit::default() };
        assert_eq!(Exit::parse_with_set(&hlt, || unreachable!("no IPI")).reason, Reason::Hlt);
    }

    #[test]
    fn the_codes_of_illumos_are_its_own() {
        let of = |code: u32| Exit::parse_illumos(&illumos::VmExit { exitcode: code, ..Default::default() }).reason;
        assert_eq!(of(exitcode::SPINUP_AP), Reason::RunState, "10");
        assert_eq!(of(exitcode::INOUT_STR), Reason::Mmio(VmMmio::default()), "15");
        assert_eq!(of(exitcode::IPI), Reason::Other, "24, HT");
        assert_eq!(of(exitcode::REQIDLE), Reason::Other, "20");
        let inst = illumos::ExitInstEmul { inst: [0x0f; 15], num_valid: 2 };
        let exit = illumos::VmExit::new(illumos::exitcode::INST_EMUL, &inst);
        assert_eq!(Exit::parse_illumos(&exit).reason, Reason::NotEmulated(vec![0x0f, 0x0f]));
        let more = illumos::ExitInstEmul { num_valid: 200, ..inst };
        let exit = illumos::VmExit::new(illumos::exitcode::INST_EMUL, &more);
        assert_eq!(Exit::parse_illumos(&exit).reason, Reason::NotEmulated(vec![0x0f; 15]));
    }

    proptest! {
        #[test]
        fn unknown_codes_are_kept_and_nothing_panics(code: u32, rip: u64, payload: [u8; 32]) {
            let mut raw = VmExit { exitcode: code, rip, ..VmExit::default() };
            raw.payload[..32].copy_from_slice(&payload);
            for exit in [Exit::parse(&raw), Exit::parse_with_ipi(&raw)] {
                prop_assert_eq!((exit.code, exit.rip), (code, rip));
                if code > exitcode::IPI {
                    prop_assert_eq!(exit.reason, Reason::Other);
                }
            }
        }

        #[test]
        fn spinup_ap_survives(vcpu: i32, rip: u64) {
            let raw = VmExit::new(exitcode::SPINUP_AP, &ExitSpinupAp { vcpu, _pad: 0, rip });
            prop_assert_eq!(Exit::parse(&raw).reason, Reason::SpinupAp { vcpu, rip });
        }
    }
}
