//! The vocabulary of the trace.

use super::report_port as port;
use crate::cpuset::CpuSet;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where an event belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// What the guest reported, or what became of its instructions.
    Guest,
    /// The kernel-side core.
    Kernel,
    /// The boundary between userspace and kernel.
    Abi,
    /// The frontend.
    Frontend,
}

/// Delivery mode of an interrupt command (SDM 3A 11.6.1, bits 10:8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    RemoteRead,
    Nmi,
    Init,
    Startup,
    ExtInt,
}

impl DeliveryMode {
    /// From bits 10:8 of an ICR, LVT entry, redirection entry or MSI data.
    #[must_use]
    pub fn from_bits(bits: u32) -> DeliveryMode {
        use DeliveryMode::*;
        [Fixed, LowestPriority, Smi, RemoteRead, Nmi, Init, Startup, ExtInt][(bits & 7) as usize]
    }
}

impl fmt::Display for DeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeliveryMode::Fixed => "FIXED",
            DeliveryMode::LowestPriority => "LOWPRIO",
            DeliveryMode::Smi => "SMI",
            DeliveryMode::RemoteRead => "RR",
            DeliveryMode::Nmi => "NMI",
            DeliveryMode::Init => "INIT",
            DeliveryMode::Startup => "STARTUP",
            DeliveryMode::ExtInt => "EXTINT",
        })
    }
}

/// Destination shorthand of an interrupt command (SDM 3A 11.6.1, bits 19:18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum Shorthand {
    None,
    #[serde(rename = "self")]
    Itself,
    AllIncludingSelf,
    AllExcludingSelf,
}

/// The rule by which a kernel found the vCPUs that an IPI is for. These words appear in traces and diffs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationRule {
    /// `vlapic_calcdest`: among the active vCPUs.
    CalcdestActive,
    /// A shorthand, applied to the active vCPUs.
    ShorthandActive,
    /// The number in the destination field, whether active or not.
    RawDest,
}

impl DestinationRule {
    /// As in "resolved it …": the rule in words, for a sentence.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            DestinationRule::CalcdestActive => "resolved it among active vCPUs",
            DestinationRule::ShorthandActive => "applied the shorthand to active vCPUs",
            DestinationRule::RawDest => "used the raw destination",
        }
    }
}

/// Why an IPI reached nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// The set of destinations is empty.
    NoDestination,
    /// INIT level de-assert does nothing (SDM 3A 11.6.1).
    InitDeassert,
    /// The combination of mode, trigger and shorthand is not valid.
    InvalidCombination,
    /// The target does not wait for a STARTUP.
    NotWaitingForSipi,
    /// The target's start-up state does not accept an INIT.
    NotInInitState,
    /// The destination is the sender itself, or no vCPU of the machine.
    DestinationOutOfRange,
    /// INIT and STARTUP are taken in physical mode only.
    LogicalDestination,
    /// Vectors 0 to 15 are illegal.
    IllegalVector,
    /// The exit that a STARTUP by WRMSR is to cause is lost on its way (before becd984900).
    ExitLost,
    /// The local APICs of all targets are disabled by software, and take no fixed interrupt (SDM 3A 11.4.7.2).
    SoftwareDisabled,
}

/// Where a kernel keeps which AP waits for a STARTUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartupStore {
    /// Per local APIC (until c0f35dbf19c3).
    BootState,
    /// Per VM (from c0f35dbf19c3 on).
    StartupCpus,
    /// Per vCPU, as one of its run states (illumos).
    RunState,
}

/// What a bare-metal guest said at the report port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum GuestReport {
    /// The BSP reached its main program.
    Boot {
        /// Whether its local APIC is in x2APIC mode.
        x2apic: bool,
    },
    /// The CPUs were counted.
    CpusFound {
        /// How many, the BSP among them.
        cpus: u32,
        /// Whether the MP table told, rather than the MADT.
        mp_table: bool,
    },
    /// The sender begins to wait for an AP.
    ApAwaited {
        /// Its APIC ID.
        apic_id: u32,
    },
    /// An AP says that it runs.
    ApOnline {
        /// Its APIC ID.
        apic_id: u32,
    },
    /// How many APs the guest is going to start.
    ApsAsked {
        /// How many.
        aps: u32,
    },
    /// A test passed.
    TestPassed {
        /// Which, `TEST_*` of the report port.
        test: u32,
        /// The CPU that it is about, if about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        apic_id: Option<u32>,
    },
    /// A test failed.
    TestFailed {
        /// Which, `TEST_*` of the report port.
        test: u32,
        /// The CPU that it is about, if about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        apic_id: Option<u32>,
    },
    /// What the guest saw where the architecture leaves a choice.
    Seen {
        /// What, `SEEN_*` of the report port.
        what: u32,
        /// The CPU that it is about, if about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        apic_id: Option<u32>,
    },
    /// A CPU says that it runs where nobody sent it.
    Stray {
        /// Its APIC ID.
        apic_id: u32,
        /// The STARTUP vector of the page where it began; `None`: the reset vector.
        vector: Option<u8>,
    },
    /// An AP never reported.
    ApMissing {
        /// Its APIC ID.
        apic_id: u32,
    },
    /// All APs came up and all tests ran.
    Done {
        /// How many APs.
        aps: u32,
    },
    /// The guest gave up waiting.
    GaveUp {
        /// How many APs came up.
        aps: u32,
    },
    /// The guest met something that it cannot handle.
    Broken {
        /// Why, `BROKEN_*` of the report port; 100H + the vector of an unexpected interrupt or exception.
        code: u32,
    },
    /// A word that is no report.
    Unknown {
        /// The word.
        word: u32,
    },
}

impl GuestReport {
    /// Decodes a word written to the report port.
    #[must_use]
    pub fn from_word(word: u32) -> GuestReport {
        let payload = word & 0xff_ffff;
        match (word >> 24) as u8 {
            port::BOOT => GuestReport::Boot { x2apic: payload & 1 != 0 },
            port::CPUS_FOUND => GuestReport::CpusFound { cpus: payload & 0xffff, mp_table: payload & 0x1_0000 != 0 },
            port::AP_AWAITED => GuestReport::ApAwaited { apic_id: payload },
            port::AP_ONLINE => GuestReport::ApOnline { apic_id: payload },
            port::APS_ASKED => GuestReport::ApsAsked { aps: payload },
            port::TEST_PASSED => {
                let (test, apic_id) = port::about_whom(payload);
                GuestReport::TestPassed { test, apic_id }
            }
            port::TEST_FAILED => {
                let (test, apic_id) = port::about_whom(payload);
                GuestReport::TestFailed { test, apic_id }
            }
            port::SEEN => {
                let (what, apic_id) = port::about_whom(payload);
                GuestReport::Seen { what, apic_id }
            }
            port::STRAY => {
                let place = payload >> 16;
                let vector = (place != port::RESET_VECTOR).then_some(place as u8);
                GuestReport::Stray { apic_id: payload & 0xffff, vector }
            }
            port::AP_MISSING => GuestReport::ApMissing { apic_id: payload },
            port::DONE => GuestReport::Done { aps: payload },
            port::GAVE_UP => GuestReport::GaveUp { aps: payload },
            port::BROKEN => GuestReport::Broken { code: payload },
            _ => GuestReport::Unknown { word },
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    // -- guest ------------------------------------------------------------------------------------------------------
    /// The guest wrote to the report port.
    Report(GuestReport),
    /// The console of an operating system said how far it is.
    Milestone {
        /// What the line stands for.
        name: String,
        /// The line.
        line: String,
    },
    /// The first instruction of a vCPU since it was made, reset or started is about to run.
    FirstInstruction {
        /// CS selector.
        cs: u16,
        /// Instruction pointer.
        ip: u64,
    },
    /// The guest's vCPU met a triple fault.
    TripleFault,
    /// The software processor does not implement what the guest executed; the guest got #UD.
    Unimplemented {
        /// The instruction.
        what: String,
        /// Where.
        rip: u64,
    },

    // -- kernel -----------------------------------------------------------------------------------------------------
    /// A guest's write to the ICR, decoded.
    IcrWrite {
        /// The register as written.
        icr: u64,
        /// Delivery mode.
        mode: DeliveryMode,
        /// Vector.
        vector: u8,
        /// Destination field: 8 bits in xAPIC, 32 in x2APIC mode.
        dest: u32,
        /// Shorthand.
        shorthand: Shorthand,
        /// Whether the destination is logical.
        logical: bool,
        /// Level: asserted.
        assert: bool,
        /// Whether it came as WRMSR (x2APIC) rather than as MMIO.
        msr: bool,
    },
    /// The destination of an INIT, STARTUP, NMI or fixed IPI was resolved.
    DestinationResolved {
        /// Delivery mode.
        mode: DeliveryMode,
        /// By which rule.
        rule: DestinationRule,
        /// The set that the rule looked in: the active vCPUs, or the destination as written.
        among: CpuSet,
        /// What it found.
        targets: CpuSet,
    },
    /// The mask that the exit to the run loop carries, when it is not the set that was resolved.
    ExitMask {
        /// Delivery mode.
        mode: DeliveryMode,
        /// The set that the IPI is for.
        ipimask: CpuSet,
        /// The set that the exit names.
        dmask: CpuSet,
    },
    /// An IPI was delivered.
    IpiDelivered {
        /// Delivery mode.
        mode: DeliveryMode,
        /// Vector.
        vector: u8,
        /// To whom.
        targets: CpuSet,
    },
    /// An IPI was dropped.
    IpiDropped {
        /// Delivery mode.
        mode: DeliveryMode,
        /// Vector.
        vector: u8,
        /// Why.
        why: DropReason,
    },
    /// The local APIC handed the ICR write to userspace ("goes to userland", return 1).
    IcrUnhandled {
        /// Delivery mode.
        mode: DeliveryMode,
    },
    /// A vCPU's structure was allocated.
    VcpuAllocated,
    /// A vCPU joined the active set.
    VcpuActivated,
    /// A vCPU joined the debug set.
    VcpuSuspended,
    /// A vCPU left the debug set.
    VcpuResumed,
    /// A vCPU's local APIC was reset.
    VlapicReset,
    /// Some vCPUs began or ceased to wait for a STARTUP.
    StartupState {
        /// Whose state changed.
        targets: CpuSet,
        /// Whether they wait now.
        waiting: bool,
        /// Where it is kept.
        store: StartupStore,
    },
    /// A rendezvous began.
    RendezvousBegun {
        /// Who has to run the function.
        targets: CpuSet,
    },
    /// All members have run the function.
    RendezvousDone {
        /// Who ran it.
        targets: CpuSet,
    },
    /// The VM was suspended as a whole.
    VmSuspended {
        /// `enum vm_suspend_how` in words.
        how: String,
    },
    /// The modelled host kernel panicked.
    Panic {
        /// What the console would say.
        message: String,
    },

    // -- abi --------------------------------------------------------------------------------------------------------
    /// VM_RUN returned to userspace.
    Exit {
        /// The exit code's number.
        code: u32,
        /// Its name.
        name: String,
        /// Its payload, in words; empty if it has none.
        payload: String,
    },
    /// An ioctl other than a successful VM_RUN, which is an [`Event::Exit`].
    Ioctl {
        /// Its name, or `unknown`.
        name: String,
        /// Request number.
        request: u32,
        /// What it was about (register, capability, GPA…); empty when the vCPU says it all.
        detail: String,
        /// 0, or the errno.
        errno: i32,
    },
    /// A system call other than ioctl.
    Syscall {
        /// `sysctl hw.vmm.create`, `open`, `mmap`…
        name: String,
        /// 0, or the errno.
        errno: i32,
    },

    // -- frontend ---------------------------------------------------------------------------------------------------
    /// A task was created.
    TaskSpawned {
        /// Its name.
        name: String,
    },
    /// A task ended.
    TaskEnded,
    /// The frontend wrote to its standard error.
    Message {
        /// One line.
        text: String,
    },
    /// The frontend's process ended.
    ProcessExit {
        /// Exit status.
        status: i32,
    },
    /// The frontend's process was killed by SIGABRT.
    Abort {
        /// The failed assertion, or what it said.
        message: String,
    },
    /// The cell's time was up.
    Deadline,
    /// Every task waits and nothing can wake any of them.
    Deadlock,
    /// What became of the cell; the last event.
    Outcome {
        /// `ok`, `hang`…
        kind: String,
        /// The words behind it.
        detail: String,
    },
}

impl Event {
    /// The layer to which the event belongs.
    #[must_use]
    pub fn layer(&self) -> Layer {
        use Event::*;
        match self {
            Report(_) | Milestone { .. } | FirstInstruction { .. } | TripleFault | Unimplemented { .. } => Layer::Guest,
            IcrWrite { .. }
            | DestinationResolved { .. }
            | ExitMask { .. }
            | IpiDelivered { .. }
            | IpiDropped { .. }
            | IcrUnhandled { .. }
            | VcpuAllocated
            | VcpuActivated
            | VcpuSuspended
            | VcpuResumed
            | VlapicReset
            | StartupState { .. }
            | RendezvousBegun { .. }
            | RendezvousDone { .. }
            | VmSuspended { .. }
            | Panic { .. } => Layer::Kernel,
            Exit { .. } | Ioctl { .. } | Syscall { .. } => Layer::Abi,
            TaskSpawned { .. }
            | TaskEnded
            | Message { .. }
            | ProcessExit { .. }
            | Abort { .. }
            | Deadline
            | Deadlock
            | Outcome { .. } => Layer::Frontend,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_whom_it_is_about() {
        for apic_id in [None, Some(0), Some(1), Some(1023)] {
            let word = u32::from(port::TEST_FAILED) << 24 | port::about(port::TEST_TIMER, apic_id);
            assert_eq!(GuestReport::from_word(word), GuestReport::TestFailed { test: port::TEST_TIMER, apic_id });
        }
        let stray = |place: u32| GuestReport::from_word(u32::from(port::STRAY) << 24 | place << 16 | 0x3ff);
        assert_eq!(stray(8), GuestReport::Stray { apic_id: 1023, vector: Some(8) });
        assert_eq!(stray(port::RESET_VECTOR), GuestReport::Stray { apic_id: 1023, vector: None });
    }

    #[test]
    fn what_a_report_is_about_has_one_name() {
        for name in [port::test_name, port::seen_name, port::broken_in_words] {
            let names: Vec<&str> = (0..256).map_while(|number| name(number + 1)).collect();
            assert!(names.len() >= 6 && (names.len() as u32 + 2..256).all(|number| name(number).is_none()));
            assert!(names.iter().enumerate().all(|(i, name)| !names[..i].contains(name)), "{names:?}");
        }
    }
}
