//! What a worker process gives up before it runs a guest: guests, and whatever our own faults make of them, get no file, no
//! network, no other process, and bounded memory and time.

use crate::cell::EngineKind;
use std::time::Duration;

/// Address space of a worker, in bytes: guests with 512 MiB and their traces fit many times over.
const ADDRESS_SPACE: u64 = 8 << 30;

/// Files that a worker may have open: its pipes, /dev/kvm and what KVM makes.
const OPEN_FILES: u64 = 512;

/// Lets this process die with the one that started it, and bounds what it can use.
///
/// # Errors
/// What the host refuses.
#[cfg(target_os = "linux")]
pub(super) fn bound(parent: u32) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before that.
    if getppid().is_none_or(|now| now.as_raw_nonzero().get() as u32 != parent) {
        return Err(std::io::Error::other("the process that this one works for is gone"));
    }
    let bounds =
        [(Resource::As, ADDRESS_SPACE), (Resource::Nofile, OPEN_FILES), (Resource::Core, 0), (Resource::Fsize, 0)];
    for (resource, most) in bounds {
        // Where less is allowed already, more would be refused.
        let most = Some(getrlimit(resource).maximum.map_or(most, |allowed| allowed.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn bound(_parent: u32) -> std::io::Result<()> {
    Ok(())
}

/// Lets the kernel end this process when it has used `more` processor time from now on: for a cell whose watchdog does not
/// get a turn.
#[cfg(target_os = "linux")]
pub(super) fn bound_time(more: Duration) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::time::{ClockId, clock_gettime};
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
    let maximum = getrlimit(Resource::Cpu).maximum;
    // A host that refuses leaves the runner's own clock.
    let _ = setrlimit(Resource::Cpu, Rlimit { current: Some(used + more.as_secs() + 1), maximum });
}

#[cfg(not(target_os = "linux"))]
pub(super) fn bound_time(_more: Duration) {}

/// Leaves this process with the system calls that running cells takes. Others fail with EPERM.
///
/// # Errors
/// Why the host does not do it, in one sentence.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn confine(engines: &[EngineKind]) -> Result<(), String> {
    use libc::{
        SYS_brk, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_dup, SYS_eventfd2,
        SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_futex, SYS_getpid, SYS_getrandom, SYS_gettid, SYS_ioctl,
        SYS_lseek, SYS_madvise, SYS_membarrier, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
        SYS_ppoll, SYS_pread64, SYS_prlimit64, SYS_read, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
        SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_set_robust_list,
        SYS_sigaltstack, SYS_tgkill, SYS_timer_create, SYS_timer_delete, SYS_timer_settime, SYS_write, SYS_writev,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };
    // Memory, time, signals to itself, reading and writing what is open.
    let mut allowed = vec![
        SYS_read,
        // Disks of guests, opened before.
        SYS_pread64,
        SYS_write,
        SYS_writev,
        SYS_close,
        SYS_fstat,
        SYS_lseek,
        SYS_mmap,
        SYS_munmap,
        SYS_mprotect,
        SYS_mremap,
        SYS_madvise,
        SYS_brk,
        SYS_futex,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_nanosleep,
        SYS_ppoll,
        SYS_sched_yield,
        SYS_sched_getaffinity,
        SYS_exit,
        SYS_exit_group,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_restart_syscall,
        SYS_getpid,
        SYS_gettid,
        SYS_getrandom,
        // A thread that is starting does these.
        SYS_rseq,
        SYS_set_robust_list,
    ];
    if engines.contains(&EngineKind::Kvm) {
        // The tasks of its cells are threads, its virtual machines are files, and a timer ends each run.
        allowed.extend([
            SYS_ioctl,
            SYS_eventfd2,
            SYS_fcntl,
            SYS_dup,
            SYS_clone,
            SYS_clone3,
            SYS_membarrier,
            SYS_timer_create,
            SYS_timer_settime,
            SYS_timer_delete,
        ]);
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        allowed.into_iter().map(|number| (number, Vec::new())).collect();
    // Its own processor time may be bounded anew for each cell, and signals go to its own threads alone.
    let is = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let rule = |conditions: Vec<Result<SeccompCondition, _>>| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
    };
    let own_limit = rule(vec![is(0, 0), is(1, u64::from(libc::RLIMIT_CPU))]).map_err(|error| error.to_string())?;
    rules.insert(SYS_prlimit64, vec![own_limit]);
    let own_thread = rule(vec![is(0, u64::from(std::process::id()))]).map_err(|error| error.to_string())?;
    rules.insert(SYS_tgkill, vec![own_thread]);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)
        .map_err(|error| error.to_string())?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())?;
    // It sets no_new_privs too.
    seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn confine(_engines: &[EngineKind]) -> Result<(), String> {
    Ok(())
}
