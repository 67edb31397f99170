//! Which requests a kernel knows, and in which form their arguments come: its own generation's, or an older one's that it was built to
//! keep (COMPAT_FREEBSD12, 13 and 14).

use super::vm::Vm;
use crate::abi::{self, *};
use crate::history::{Activation, Boundary, MemsegAbi, RunAbi, SnapshotAbi, StatsAbi};

/// A request as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// What is asked: the request of the generation of 13 that asks the same, or illumos's own if there is none.
    pub(super) request: Request,
    /// Whose structure the argument is, where they differ.
    pub(super) form: Form,
    /// Its size in bytes.
    pub(super) argument_len: usize,
}

/// The generation of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    V12,
    V13,
    V14,
    V15,
    /// An exit by value with sets of 1024 bits.
    Wide,
    Illumos,
}

impl Vm {
    /// Looks a request up. `None`: ENOTTY.
    pub(super) fn known(&self, request: Request) -> Option<Call> {
        if self.behaviour.boundary == Boundary::Illumos {
            let argument_len = illumos::argument_len(request)?;
            let request = ILLUMOS.iter().find(|(theirs, _)| *theirs == request).map_or(request, |(_, ours)| *ours);
            return Some(Call { request, form: Form::Illumos, argument_len });
        }
        let (asked, form) = self.known_to_freebsd(request)?;
        Some(Call { request: asked, form, argument_len: request.argument_len() })
    }

    fn known_to_freebsd(&self, request: Request) -> Option<(Request, Form)> {
        let b = &self.behaviour;
        let o = &self.options;
        let by_value = b.run == RunAbi::ByValue;
        let small_sets = b.cpu_setsize <= 256;
        let (asked, form, known) = match request {
            VM_RUN => (VM_RUN, Form::V13, if by_value { small_sets } else { o.compat13 }),
            abi::wide::VM_RUN => (VM_RUN, Form::Wide, by_value && !small_sets),
            abi::v14::VM_RUN => (VM_RUN, Form::V14, b.run == RunAbi::ByPointer),

            VM_STATS => (VM_STATS, Form::V13, b.stats == StatsAbi::First || o.compat13),
            abi::v14::VM_STATS => (VM_STATS, Form::V14, b.stats == StatsAbi::Indexed),

            VM_SNAPSHOT_REQ => {
                let known = match b.snapshot {
                    SnapshotAbi::Absent => false,
                    SnapshotAbi::WithContext => true,
                    SnapshotAbi::WithoutContext => o.compat13,
                };
                (VM_SNAPSHOT_REQ, Form::V13, known)
            }
            abi::v14::VM_SNAPSHOT_REQ => (VM_SNAPSHOT_REQ, Form::V14, b.snapshot == SnapshotAbi::WithoutContext),
            VM_RESTORE_TIME => (VM_RESTORE_TIME, Form::V13, b.snapshot != SnapshotAbi::Absent),

            VM_ALLOC_MEMSEG | VM_GET_MEMSEG => {
                let known = match b.memseg {
                    MemsegAbi::Name64 => false,
                    MemsegAbi::Suffix16 => true,
                    MemsegAbi::Domains => o.compat14,
                };
                (request, Form::V13, known)
            }
            abi::v12::VM_ALLOC_MEMSEG => (VM_ALLOC_MEMSEG, Form::V12, b.memseg == MemsegAbi::Name64 || o.compat12),
            abi::v12::VM_GET_MEMSEG => (VM_GET_MEMSEG, Form::V12, b.memseg == MemsegAbi::Name64 || o.compat12),
            abi::v15::VM_ALLOC_MEMSEG => (VM_ALLOC_MEMSEG, Form::V15, b.memseg == MemsegAbi::Domains),
            abi::v15::VM_GET_MEMSEG => (VM_GET_MEMSEG, Form::V15, b.memseg == MemsegAbi::Domains),

            VM_ACTIVATE_CPU | VM_GET_CPUS => (request, Form::V13, b.activation == Activation::ByUserspace),
            VM_SUSPEND_CPU | VM_RESUME_CPU => (request, Form::V13, b.cpu_suspend),
            VM_SET_TOPOLOGY | VM_GET_TOPOLOGY => (request, Form::V13, b.topology),
            _ => (request, Form::V13, REQUESTS.iter().any(|(_, plain)| *plain == request)),
        };
        known.then_some((asked, form))
    }
}

/// illumos's requests that FreeBSD has too.
const ILLUMOS: &[(Request, Request)] = &[
    (illumos::VM_RUN, VM_RUN),
    (illumos::VM_SET_REGISTER, VM_SET_REGISTER),
    (illumos::VM_GET_REGISTER, VM_GET_REGISTER),
    (illumos::VM_SET_SEGMENT_DESCRIPTOR, VM_SET_SEGMENT_DESCRIPTOR),
    (illumos::VM_GET_SEGMENT_DESCRIPTOR, VM_GET_SEGMENT_DESCRIPTOR),
    (illumos::VM_SET_REGISTER_SET, VM_SET_REGISTER_SET),
    (illumos::VM_GET_REGISTER_SET, VM_GET_REGISTER_SET),
    (illumos::VM_INJECT_EXCEPTION, VM_INJECT_EXCEPTION),
    (illumos::VM_SET_CAPABILITY, VM_SET_CAPABILITY),
    (illumos::VM_GET_CAPABILITY, VM_GET_CAPABILITY),
    (illumos::VM_SET_X2APIC_STATE, VM_SET_X2APIC_STATE),
    (illumos::VM_GLA2GPA, VM_GLA2GPA),
    (illumos::VM_GLA2GPA_NOFAULT, VM_GLA2GPA_NOFAULT),
    (illumos::VM_ACTIVATE_CPU, VM_ACTIVATE_CPU),
    (illumos::VM_SET_INTINFO, VM_SET_INTINFO),
    (illumos::VM_GET_INTINFO, VM_GET_INTINFO),
    (illumos::VM_RESTART_INSTRUCTION, VM_RESTART_INSTRUCTION),
    (illumos::VM_REINIT, VM_REINIT),
    (illumos::VM_ALLOC_MEMSEG, VM_ALLOC_MEMSEG),
    (illumos::VM_MMAP_MEMSEG, VM_MMAP_MEMSEG),
    (illumos::VM_MUNMAP_MEMSEG, VM_MUNMAP_MEMSEG),
    (illumos::VM_GET_MEMSEG, VM_GET_MEMSEG),
    (illumos::VM_MMAP_GETNEXT, VM_MMAP_GETNEXT),
    (illumos::VM_LAPIC_IRQ, VM_LAPIC_IRQ),
    (illumos::VM_LAPIC_LOCAL_IRQ, VM_LAPIC_LOCAL_IRQ),
    (illumos::VM_LAPIC_MSI, VM_LAPIC_MSI),
    (illumos::VM_IOAPIC_ASSERT_IRQ, VM_IOAPIC_ASSERT_IRQ),
    (illumos::VM_IOAPIC_DEASSERT_IRQ, VM_IOAPIC_DEASSERT_IRQ),
    (illumos::VM_IOAPIC_PULSE_IRQ, VM_IOAPIC_PULSE_IRQ),
    (illumos::VM_ISA_ASSERT_IRQ, VM_ISA_ASSERT_IRQ),
    (illumos::VM_ISA_DEASSERT_IRQ, VM_ISA_DEASSERT_IRQ),
    (illumos::VM_ISA_PULSE_IRQ, VM_ISA_PULSE_IRQ),
    (illumos::VM_ISA_SET_IRQ_TRIGGER, VM_ISA_SET_IRQ_TRIGGER),
    (illumos::VM_RTC_WRITE, VM_RTC_WRITE),
    (illumos::VM_RTC_READ, VM_RTC_READ),
    (illumos::VM_RTC_SETTIME, VM_RTC_SETTIME),
    (illumos::VM_RTC_GETTIME, VM_RTC_GETTIME),
    (illumos::VM_SUSPEND, VM_SUSPEND),
    (illumos::VM_IOAPIC_PINCOUNT, VM_IOAPIC_PINCOUNT),
    (illumos::VM_GET_HPET_CAPABILITIES, VM_GET_HPET_CAPABILITIES),
    (illumos::VM_STATS, VM_STATS),
    (illumos::VM_STAT_DESC, VM_STAT_DESC),
    (illumos::VM_INJECT_NMI, VM_INJECT_NMI),
    (illumos::VM_GET_X2APIC_STATE, VM_GET_X2APIC_STATE),
    (illumos::VM_SET_TOPOLOGY, VM_SET_TOPOLOGY),
    (illumos::VM_GET_TOPOLOGY, VM_GET_TOPOLOGY),
    (illumos::VM_GET_CPUS, VM_GET_CPUS),
    (illumos::VM_SUSPEND_CPU, VM_SUSPEND_CPU),
    (illumos::VM_RESUME_CPU, VM_RESUME_CPU),
];

/// illumos's number of a capability, as FreeBSD's: it has no UNRESTRICTED_GUEST.
pub(super) fn capability_of_illumos(captype: i32) -> Option<i32> {
    use illumos::cap as theirs;
    match captype {
        theirs::HALT_EXIT => Some(cap::HALT_EXIT),
        theirs::MTRAP_EXIT => Some(cap::MTRAP_EXIT),
        theirs::PAUSE_EXIT => Some(cap::PAUSE_EXIT),
        theirs::ENABLE_INVPCID => Some(cap::ENABLE_INVPCID),
        theirs::BPT_EXIT => Some(cap::BPT_EXIT),
        _ => None,
    }
}
