//! The errno of each request, row by row: what the kernels have in common and where they differ.

use super::Evidence;

/// One row: an operation that fails, or goes well where one might think that it fails.
#[derive(Debug)]
pub struct ErrnoRow {
    /// Its name in reports.
    pub id: &'static str,
    /// What is asked.
    pub operation: &'static str,
    /// What the kernels say.
    pub answer: &'static str,
    /// How well that is known.
    pub evidence: Evidence,
}

macro_rules! rows {
    ($($id:literal: $operation:literal => $answer:literal, $evidence:ident;)*) => {
        /// Every row. Each is a test of the kernel core over all kernels; a test fails when a row has none.
        pub const ERRNO_ROWS: &[ErrnoRow] = &[$(ErrnoRow {
            id: $id,
            operation: $operation,
            answer: $answer,
            evidence: Evidence::$evidence,
        }),*];
    };
}

rows! {
    "vcpu-number": "any request for a vCPU below 0 or past the last" => "EINVAL", Read;
    "run-inactive": "VM_RUN of a vCPU that is not active" => "EINVAL", Read;
    "run-suspended": "VM_RUN of a vCPU that has been told of the VM's suspension" => "EINVAL", Read;
    "activate-twice": "VM_ACTIVATE_CPU twice" => "EBUSY; ENOTTY before r266933", Read;
    "suspend-cpu-inactive": "VM_SUSPEND_CPU of a vCPU that is not active" => "EINVAL; ENOTTY before r332157", Read;
    "suspend-cpu-again": "VM_SUSPEND_CPU of a suspended vCPU" => "0", Read;
    "suspend-cpu-all": "VM_SUSPEND_CPU of -1" => "0, and debug_cpus is active_cpus", Read;
    "resume-cpu-running": "VM_RESUME_CPU of a vCPU that is not suspended" => "EINVAL", Read;
    "resume-cpu-all": "VM_RESUME_CPU of -1" => "0, and debug_cpus is empty", Read;
    "untouched-register": "a register of a vCPU that no request has named" => "0; from 98568a005a19 on the vCPU is allocated for it", Read;
    "dying-vcpu": "a vCPU that is not allocated, of a VM that is being destroyed" => "EINVAL from 98568a005a19 on", Read;
    "topology-product": "VM_SET_TOPOLOGY with more CPUs than the VM can have" => "EINVAL", Read;
    "topology-maxcpus": "VM_SET_TOPOLOGY with a maxcpus" => "EINVAL; ignored from the tunable on", Read;
    "vm-suspend-twice": "VM_SUSPEND twice" => "EALREADY", Read;
    "vm-suspend-how": "VM_SUSPEND with a reason outside the list" => "EINVAL", Read;
    "reinit-running": "VM_REINIT while suspended_cpus is not active_cpus" => "EBUSY; 0 on illumos", Read;
    "unknown-request": "a request that nobody knows" => "ENOTTY", Read;
    "foreign-request": "a request of another system, or of a generation that the kernel does not keep" => "ENOTTY", Read;
    "get-cpus-size": "VM_GET_CPUS with a set that is empty, larger than the kernel's or too small" => "ERANGE", Read;
    "get-cpus-which": "VM_GET_CPUS of a set that there is not" => "EINVAL", Read;
    "get-cpus-where": "VM_GET_CPUS into nowhere" => "EFAULT", Read;
    "create-exists": "making a VM whose name is taken" => "EEXIST", Read;
    "create-name": "making a VM without a name, or with one that is too long" => "EINVAL", Inferred;
    "destroy-nothing": "destroying a VM that does not exist" => "EINVAL; ENOENT on illumos", Read;
    "destroyed-device": "any request of a VM that has been destroyed" => "ENXIO", Inferred;
    "vmmctl-absent": "opening /dev/vmmctl before 15" => "ENOENT", Read;
    "vmmctl-reserved": "VMMCTL_VM_CREATE with a reserved word" => "EINVAL", Read;
    "capability-range": "a capability past the kernel's last, or below 0" => "EINVAL", Read;
    "capability-backend": "a capability within the range that the processor does not have" => "EOPNOTSUPP, or ENOENT for one that the backend does not know", Read;
    "register-number": "a register that there is not, or a descriptor of one that has none" => "EINVAL", Read;
    "register-set-count": "VM_GET_REGISTER_SET with more registers than there are" => "EINVAL", Read;
    "x2apic-state": "VM_SET_X2APIC_STATE with neither 0 nor 1" => "EINVAL", Read;
    "exception-pending": "VM_INJECT_EXCEPTION while one is pending" => "EBUSY", Read;
    "exception-vector": "VM_INJECT_EXCEPTION of no exception" => "EINVAL", Read;
    "lapic-vector": "VM_LAPIC_IRQ with a vector below 16 or past 255" => "EINVAL", Read;
    "interrupt-lines": "a line of the I/O APIC or of the 8259s that there is not" => "EINVAL", Read;
    "rtc-registers": "VM_RTC_READ and VM_RTC_WRITE outside the RAM" => "EINVAL", Read;
    "memseg-taken": "VM_ALLOC_MEMSEG of a segment that is there" => "EEXIST, EINVAL if it is another", Read;
    "memseg-number": "VM_ALLOC_MEMSEG of a segment past the last" => "EINVAL", Read;
    "mmap-segment": "VM_MMAP_MEMSEG of a segment that is not there" => "EINVAL", Read;
    "mmap-old-segment": "VM_MMAP_MEMSEG of the boot ROM by its number before 15" => "EINVAL from 15 on: only VM_ALLOC_MEMSEG is translated", Read;
    "getnext-end": "VM_MMAP_GETNEXT past the last mapping" => "ENOENT", Inferred;
    "stats-index": "VM_STATS from an index past the last" => "ENOENT", Inferred;
    "stat-desc-index": "VM_STAT_DESC past the last" => "EINVAL", Read;
    "snapshot-buffer": "VM_SNAPSHOT_REQ with a buffer that is too small" => "E2BIG", Read;
    "snapshot-structure": "VM_SNAPSHOT_REQ of a structure that there is not" => "EINVAL", Read;
    "snapshot-unallocated": "restoring a vCPU that is not allocated" => "EINVAL on kernels that allocate on first use", Commit;
    "run-state-pending-init": "VM_SET_RUN_STATE with an INIT pending" => "EINVAL", Read;
    "reset-cpu-kind": "VM_RESET_CPU of a kind that there is not" => "EINVAL", Read;
    "entry-unasked": "VM_RUN on illumos with a result that nobody asked for" => "EINVAL", Inferred;
}
