//! The errno table of the project's history, row by row, over every kernel.

use super::*;
use crate::cpuset::CPU_SETSIZE;
use crate::history::{MaxCpus, VcpuAllocation};
use crate::host::End;

/// Runs the same body on every kernel. `body` gets the name for its messages.
fn on_every_kernel(body: impl Fn(&KernelVersion, &Vmmapi) + Send + Clone + 'static) {
    for version in KernelVersion::all() {
        let (inside, body) = (version.clone(), body.clone());
        let finished = on_kernel(&version, Scripted::new(), move |_, vmm| body(&inside, vmm));
        assert_eq!(finished.end, End::Exit(0), "{}", version.name);
    }
}

fn max_cpus(version: &KernelVersion) -> i32 {
    match version.behaviour().max_cpus {
        MaxCpus::CompiledIn => 16,
        MaxCpus::Tunable => i32::from(version.max_cpu_tunable),
    }
}

#[test]
fn numbers_that_are_no_vcpu() {
    on_every_kernel(|version, vmm| {
        for vcpuid in [-1, -7, max_cpus(version), i32::MAX] {
            assert_eq!(vmm.activate(vcpuid), Err(Errno::EINVAL), "{} {vcpuid}", version.name);
            assert_eq!(vmm.run(vcpuid), Err(Errno::EINVAL));
            let register = VmRegister { cpuid: vcpuid, regnum: 0, regval: 0 };
            assert_eq!(vmm.call(VM_GET_REGISTER, register), Err(Errno::EINVAL));
        }
        assert_eq!(vmm.activate(max_cpus(version) - 1), Ok(()));
    });
}

#[test]
fn running_what_must_not_run() {
    on_every_kernel(|version, vmm| {
        assert_eq!(vmm.run(1), Err(Errno::EINVAL), "inactive on {}", version.name);
        vmm.activate(0).expect("not active yet");
        vmm.call(VM_SUSPEND, VmSuspend { how: suspend::POWEROFF }).expect("not suspended yet");
        assert_eq!(vmm.run(0).map(|exit| exit.exitcode), Ok(exitcode::SUSPENDED));
        assert_eq!(vmm.run(0), Err(Errno::EINVAL), "already in suspended_cpus");
    });
}

#[test]
fn activating_suspending_and_resuming() {
    on_every_kernel(|version, vmm| {
        assert_eq!(vmm.suspend_cpu(2), Err(Errno::EINVAL), "inactive on {}", version.name);
        assert_eq!(vmm.activate(2), Ok(()));
        assert_eq!(vmm.activate(2), Err(Errno::EBUSY));
        assert_eq!(vmm.resume_cpu(2), Err(Errno::EINVAL), "not in debug_cpus");
        assert_eq!(vmm.suspend_cpu(2), Ok(()));
        assert_eq!(vmm.suspend_cpu(2), Ok(()), "idempotent");
        assert_eq!(vmm.resume_cpu(2), Ok(()));
        assert_eq!(vmm.resume_cpu(2), Err(Errno::EINVAL));
        vmm.activate(0).expect("not active yet");
        assert_eq!(vmm.suspend_cpu(-1), Ok(()), "all active ones");
        assert_eq!(cpus(vmm, 2, 32), Ok(vec![0, 2]));
        assert_eq!(vmm.resume_cpu(-1), Ok(()));
        assert_eq!(cpus(vmm, 2, 32), Ok(vec![]));
    });
}

/// VM_GET_CPUS: the pointer names the bytes behind the structure.
pub(super) fn cpus(vmm: &Vmmapi, which: i32, cpusetsize: i32) -> Result<Vec<usize>, Errno> {
    const BUFFER: usize = 64;
    let mut arg = [0; size_of::<VmCpuset>() + BUFFER];
    let header = VmCpuset { which, cpusetsize, cpus: size_of::<VmCpuset>() as u64 };
    arg[..size_of::<VmCpuset>()].copy_from_slice(header.as_bytes());
    vmm.0.ioctl(VM_GET_CPUS, &mut arg)?;
    let bits = &arg[size_of::<VmCpuset>()..];
    Ok((0..BUFFER * 8).filter(|cpu| bits[cpu / 8] & 1 << (cpu % 8) != 0).collect())
}

#[test]
fn reading_the_sets() {
    on_every_kernel(|version, vmm| {
        for vcpuid in [0, 3, 15] {
            vmm.activate(vcpuid).expect("not active yet");
        }
        assert_eq!(cpus(vmm, 0, 32), Ok(vec![0, 3, 15]), "{}", version.name);
        assert_eq!(cpus(vmm, 0, 2), Ok(vec![0, 3, 15]), "just large enough");
        assert_eq!(cpus(vmm, 0, 1), Err(Errno::ERANGE), "too small for vCPU 15");
        assert_eq!(cpus(vmm, 0, 0), Err(Errno::ERANGE));
        assert_eq!(cpus(vmm, 0, -1), Err(Errno::ERANGE));
        assert_eq!(cpus(vmm, 0, CPU_SETSIZE as i32 / 8 + 1), Err(Errno::ERANGE));
        assert_eq!(cpus(vmm, 3, 32), Err(Errno::EINVAL));
        let nowhere = VmCpuset { which: 0, cpusetsize: 32, cpus: 1 << 40 };
        assert_eq!(vmm.call(VM_GET_CPUS, nowhere), Err(Errno::EFAULT));
    });
}

#[test]
fn capabilities_end_where_the_kernel_ends() {
    on_every_kernel(|version, vmm| {
        let ipi_exit = if version.behaviour().ipi_exit { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(vmm.set_capability(0, cap::IPI_EXIT, 1), ipi_exit, "{}", version.name);
        assert_eq!(vmm.set_capability(0, cap::HALT_EXIT, 1), Ok(()));
        assert_eq!(vmm.set_capability(0, cap::MAX_WITH_IPI_EXIT, 1), Err(Errno::EINVAL));
        assert_eq!(vmm.set_capability(0, -1, 1), Err(Errno::EINVAL));
        assert_eq!(vmm.set_capability(0, cap::RDTSCP, 1), Err(Errno::EOPNOTSUPP), "the backend's own");
    });
}

#[test]
fn topology() {
    on_every_kernel(|version, vmm| {
        let topology = |sockets, maxcpus| VmCpuTopology { sockets, cores: 2, threads: 2, maxcpus };
        let compiled_in = version.behaviour().max_cpus == MaxCpus::CompiledIn;
        assert_eq!(vmm.call(VM_SET_TOPOLOGY, topology(4, 0)).map(drop), Ok(()), "{}", version.name);
        let with_maxcpus = vmm.call(VM_SET_TOPOLOGY, topology(1, 4)).map(drop);
        assert_eq!(with_maxcpus, if compiled_in { Err(Errno::EINVAL) } else { Ok(()) });
        let too_many = topology(if compiled_in { 5 } else { 65 }, 0);
        assert_eq!(vmm.call(VM_SET_TOPOLOGY, too_many), Err(Errno::EINVAL));
    });
}

#[test]
fn suspending_and_reinitializing_the_vm() {
    on_every_kernel(|version, vmm| {
        vmm.activate(0).expect("not active yet");
        assert_eq!(vmm.call(VM_SUSPEND, VmSuspend { how: suspend::NONE }).map(drop), Err(Errno::EINVAL));
        assert_eq!(vmm.call(VM_SUSPEND, VmSuspend { how: suspend::LAST }).map(drop), Err(Errno::EINVAL));
        assert_eq!(vmm.call(VM_SUSPEND, VmSuspend { how: suspend::RESET }).map(drop), Ok(()), "{}", version.name);
        assert_eq!(vmm.call(VM_SUSPEND, VmSuspend { how: suspend::RESET }).map(drop), Err(Errno::EALREADY));
        assert_eq!(vmm.0.ioctl(VM_REINIT, &mut []), Err(Errno::EBUSY), "suspended_cpus is not active_cpus");
        vmm.run(0).expect("returns SUSPENDED");
        let efer = VmRegister { cpuid: 0, regnum: crate::engine::Reg::Efer as i32, regval: 0x500 };
        vmm.call(VM_SET_REGISTER, efer).expect("a register");
        assert_eq!(vmm.0.ioctl(VM_REINIT, &mut []), Ok(()));
        let read = vmm.call(VM_GET_REGISTER, efer);
        assert_eq!(read.map(|register| register.regval), Ok(0), "registers are as after creation");
        assert_eq!(vmm.activate(0), Ok(()), "nothing is active any more");
    });
}

#[test]
fn requests_that_nobody_knows() {
    on_every_kernel(|version, vmm| {
        let mut arg = [0; 256];
        // VM_RUN of 14 has another size, so another number.
        const VM_RUN_14: Request = Request(0xc020_7601);
        for request in [Request(0), VM_RUN_14, Request(VM_RUN.0 + 0x7f)] {
            assert_eq!(vmm.0.ioctl(request, &mut arg), Err(Errno::ENOTTY), "{} {request:?}", version.name);
        }
    });
}

#[test]
fn names() {
    let finished = on_kernel(&kernel("fbsd-13.2"), Scripted::new(), |host, _| {
        let kernel = Kernel::boot(host, &super::kernel("fbsd-13.1"), Arc::new(Scripted::new()));
        assert_eq!(kernel.open("a").map(drop), Err(Errno::ENOENT));
        assert_eq!(kernel.vm_create("a"), Ok(()));
        assert_eq!(kernel.vm_create("a"), Err(Errno::EEXIST));
        assert_eq!(kernel.map_devmem("a", "bootrom").map(drop), Err(Errno::ENOENT));
        assert_eq!(kernel.vm_destroy("a"), Ok(()));
        assert_eq!(kernel.vm_destroy("a"), Err(Errno::EINVAL));
    });
    assert_eq!(finished.end, End::Exit(0));
}

#[test]
fn a_vcpu_that_nobody_touched_has_registers_and_lazy_kernels_allocate_it_for_them() {
    for version in KernelVersion::all() {
        let finished = on_kernel(&version, Scripted::new(), |_, vmm| {
            let register = VmRegister { cpuid: 3, regnum: crate::engine::Reg::Rip as i32, regval: 0x77 };
            vmm.call(VM_SET_REGISTER, register).expect("a register");
            let read = vmm.call(VM_GET_REGISTER, VmRegister { regval: 0, ..register });
            assert_eq!(read.map(|register| register.regval), Ok(0x77));
        });
        assert_eq!(finished.end, End::Exit(0), "{}", version.name);
        let allocated = |record: &&crate::trace::Record| record.event == crate::trace::Event::VcpuAllocated;
        let lazy = version.behaviour().vcpu_allocation == VcpuAllocation::OnFirstUse;
        let expected = if lazy { 1 } else { 16 };
        assert_eq!(finished.trace.records.iter().filter(allocated).count(), expected, "{}", version.name);
    }
}

#[test]
fn register_numbers_and_descriptors() {
    on_every_kernel(|_, vmm| {
        let register = |regnum| VmRegister { cpuid: 0, regnum, regval: 0 };
        assert_eq!(vmm.call(VM_SET_REGISTER, register(45)).map(drop), Err(Errno::EINVAL));
        assert_eq!(vmm.call(VM_SET_REGISTER, register(-1)).map(drop), Err(Errno::EINVAL));
        let desc = |regnum| VmSegDesc { cpuid: 0, regnum, base: 0x1000, limit: 0xffff, access: 0x93 };
        let (rax, cs) = (0, crate::engine::Reg::Cs as i32);
        assert_eq!(vmm.call(VM_SET_SEGMENT_DESCRIPTOR, desc(rax)).map(drop), Err(Errno::EINVAL));
        assert_eq!(vmm.call(VM_SET_SEGMENT_DESCRIPTOR, desc(cs)).map(drop), Ok(()));
        let read = vmm.call(VM_GET_SEGMENT_DESCRIPTOR, VmSegDesc { base: 0, ..desc(cs) });
        assert_eq!(read, Ok(desc(cs)));
    });
}
