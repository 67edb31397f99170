//! The rows of [`ERRNO_ROWS`], each over every kernel: one body that knows where the kernels differ.

use super::*;
use crate::engine::Reg;
use crate::history::{ERRNO_ROWS, MaxCpus, SnapshotAbi, StatsAbi, VcpuAllocation};
use crate::host::End;
use crate::trace::{Event, Record};

/// What a row's body may use.
struct Case<'a> {
    kernel: &'a Kernel,
    version: &'a KernelVersion,
    vmm: &'a Vmmapi,
}

impl Case<'_> {
    fn illumos(&self) -> bool {
        self.vmm.behaviour.boundary == Boundary::Illumos
    }

    /// The errno of a request that the kernel may not have.
    fn where_known<T>(&self, known: bool, answer: Result<T, Errno>) -> Result<T, Errno> {
        if known { answer } else { Err(Errno::ENOTTY) }
    }

    fn activation(&self) -> bool {
        self.vmm.behaviour.activation == Activation::ByUserspace
    }

    fn tunable(&self) -> bool {
        self.vmm.behaviour.max_cpus == MaxCpus::Tunable
    }
}

type Body = fn(&Case<'_>);

/// A test for each row.
const BODIES: &[(&str, Body)] = &[
    ("vcpu-number", |case| {
        let limit = i32::from(case.version.max_vcpus());
        for vcpuid in [-1, -7, limit, i32::MAX] {
            let activate = case.where_known(case.activation(), Err(Errno::EINVAL));
            assert_eq!(case.vmm.activate(vcpuid), activate);
            assert_eq!(case.vmm.run(vcpuid), Err(Errno::EINVAL));
            assert_eq!(case.vmm.call(VM_GET_REGISTER, register(vcpuid, Reg::Rax, 0)), Err(Errno::EINVAL));
            assert_eq!(case.vmm.set_capability(vcpuid, cap::HALT_EXIT, 1), Err(Errno::EINVAL));
            assert_eq!(case.vmm.call(VM_INJECT_NMI, VmNmi { cpuid: vcpuid }), Err(Errno::EINVAL));
        }
        assert_eq!(case.vmm.call(VM_GET_REGISTER, register(limit - 1, Reg::Rax, 0)).map(drop), Ok(()));
    }),
    ("run-inactive", |case| assert_eq!(case.vmm.run(1), Err(Errno::EINVAL))),
    ("run-suspended", |case| {
        case.vmm.start(0);
        case.vmm.suspend(suspend::POWEROFF).expect("not suspended yet");
        assert_eq!(case.vmm.run(0).map(|exit| exit.exitcode), Ok(exitcode::SUSPENDED));
        assert_eq!(case.vmm.run(0), Err(Errno::EINVAL));
    }),
    ("activate-twice", |case| {
        assert_eq!(case.vmm.activate(2), case.where_known(case.activation(), Ok(())));
        assert_eq!(case.vmm.activate(2), case.where_known(case.activation(), Err(Errno::EBUSY)));
    }),
    ("suspend-cpu-inactive", |case| {
        let known = case.vmm.behaviour.cpu_suspend;
        assert_eq!(case.vmm.suspend_cpu(2), case.where_known(known, Err(Errno::EINVAL)));
    }),
    ("suspend-cpu-again", |case| {
        if case.vmm.behaviour.cpu_suspend {
            case.vmm.activate(2).expect("not active yet");
            assert_eq!([case.vmm.suspend_cpu(2), case.vmm.suspend_cpu(2)], [Ok(()); 2]);
        }
    }),
    ("suspend-cpu-all", |case| {
        if case.vmm.behaviour.cpu_suspend {
            for vcpuid in [0, 2] {
                case.vmm.activate(vcpuid).expect("not active yet");
            }
            assert_eq!(case.vmm.suspend_cpu(-1), Ok(()));
            assert_eq!(cpus(case.vmm, 2, 32), Ok(vec![0, 2]));
        }
    }),
    ("resume-cpu-running", |case| {
        let known = case.vmm.behaviour.cpu_suspend;
        assert_eq!(case.vmm.resume_cpu(2), case.where_known(known, Err(Errno::EINVAL)));
        if known {
            case.vmm.activate(2).expect("not active yet");
            assert_eq!(case.vmm.resume_cpu(2), Err(Errno::EINVAL));
            case.vmm.suspend_cpu(2).expect("active");
            assert_eq!([case.vmm.resume_cpu(2), case.vmm.resume_cpu(2)], [Ok(()), Err(Errno::EINVAL)]);
        }
    }),
    ("resume-cpu-all", |case| {
        if case.vmm.behaviour.cpu_suspend {
            case.vmm.activate(3).expect("not active yet");
            case.vmm.suspend_cpu(3).expect("active");
            assert_eq!([case.vmm.resume_cpu(-1), case.vmm.resume_cpu(-1)], [Ok(()); 2]);
            assert_eq!(cpus(case.vmm, 2, 32), Ok(vec![]));
        }
    }),
    ("untouched-register", |case| {
        case.vmm.call(VM_SET_REGISTER, register(3, Reg::Rip, 0x77)).expect("a register");
        let read = case.vmm.call(VM_GET_REGISTER, register(3, Reg::Rip, 0));
        assert_eq!(read.map(|register| register.regval), Ok(0x77));
        let lazy = case.vmm.behaviour.vcpu_allocation == VcpuAllocation::OnFirstUse;
        let allocated = case.vmm.device.0.lock().vcpus.iter().flatten().count();
        assert_eq!(allocated, if lazy { 1 } else { usize::from(case.version.max_vcpus()) });
    }),
    ("dying-vcpu", |case| {
        let vm = &case.vmm.device.0;
        let mut st = vm.lock();
        vm.vcpu_id(&mut st, 1).expect("a vCPU");
        st.destroyed = true;
        assert_eq!(vm.vcpu_id(&mut st, 1), Ok(1), "it is there");
        let lazy = vm.behaviour.vcpu_allocation == VcpuAllocation::OnFirstUse;
        assert_eq!(vm.vcpu_id(&mut st, 2), if lazy { Err(Errno::EINVAL) } else { Ok(2) });
    }),
    ("topology-product", |case| {
        let limit = case.version.max_vcpus();
        let of = |sockets| case.vmm.call(VM_SET_TOPOLOGY, VmCpuTopology { sockets, cores: 1, threads: 1, maxcpus: 0 });
        let known = case.vmm.behaviour.topology;
        assert_eq!(of(limit).map(drop), case.where_known(known, Ok(())));
        assert_eq!(of(limit + 1).map(drop), case.where_known(known, Err(Errno::EINVAL)));
    }),
    ("topology-maxcpus", |case| {
        let topology = VmCpuTopology { sockets: 1, cores: 2, threads: 2, maxcpus: 4 };
        let answer = if case.tunable() { Ok(()) } else { Err(Errno::EINVAL) };
        let answer = case.where_known(case.vmm.behaviour.topology, answer);
        assert_eq!(case.vmm.call(VM_SET_TOPOLOGY, topology).map(drop), answer);
    }),
    ("vm-suspend-twice", |case| {
        case.vmm.start(0);
        let twice = [case.vmm.suspend(suspend::RESET), case.vmm.suspend(suspend::RESET)];
        assert_eq!(twice, [Ok(()), Err(Errno::EALREADY)]);
    }),
    ("vm-suspend-how", |case| {
        let destroy = if case.vmm.behaviour.destroy_suspends { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(case.vmm.suspend(suspend::NONE), Err(Errno::EINVAL));
        assert_eq!(case.vmm.suspend(suspend::LAST_WITH_DESTROY), Err(Errno::EINVAL));
        assert_eq!(case.vmm.suspend(suspend::DESTROY), destroy);
    }),
    ("reinit-running", |case| {
        case.vmm.start(0);
        let expected = if case.illumos() { Ok(()) } else { Err(Errno::EBUSY) };
        assert_eq!(case.vmm.reinit(), expected);
        if !case.illumos() {
            case.vmm.suspend(suspend::RESET).expect("not suspended yet");
            assert_eq!(case.vmm.reinit(), Err(Errno::EBUSY), "suspended_cpus is not active_cpus");
            case.vmm.run(0).expect("returns SUSPENDED");
            case.vmm.call(VM_SET_REGISTER, register(0, Reg::Efer, 0x500)).expect("a register");
            assert_eq!(case.vmm.reinit(), Ok(()));
        }
        let read = case.vmm.call(VM_GET_REGISTER, register(0, Reg::Efer, 0));
        assert_eq!(read.map(|register| register.regval), Ok(0), "registers are as after creation");
        case.vmm.start(0);
    }),
    ("unknown-request", |case| {
        let mut arg = [0; 256];
        for request in [Request(0), Request(VM_RUN.0 + 0x7f), Request(0x76_7fff)] {
            assert_eq!(case.vmm.device.ioctl(request, &mut arg), Err(Errno::ENOTTY), "{request:?}");
        }
    }),
    ("foreign-request", |case| {
        let b = case.vmm.behaviour;
        let freebsd = !case.illumos();
        let knows = [
            (VM_RUN, freebsd),
            (v14::VM_RUN, b.run == RunAbi::ByPointer),
            (illumos::VM_RUN, case.illumos()),
            (VM_STATS, freebsd),
            (v14::VM_STATS, b.stats == StatsAbi::Indexed),
            (v12::VM_GET_MEMSEG, freebsd),
            (VM_GET_MEMSEG, freebsd && b.memseg != MemsegAbi::Name64),
            (v15::VM_GET_MEMSEG, b.memseg == MemsegAbi::Domains),
            (VM_SNAPSHOT_REQ, b.snapshot != SnapshotAbi::Absent),
            (v14::VM_SNAPSHOT_REQ, b.snapshot == SnapshotAbi::WithoutContext),
            (illumos::VM_SET_RUN_STATE, case.illumos()),
        ];
        case.touch();
        for (request, known) in knows {
            // No vCPU and no segment has this number, so that what is known is refused for another reason.
            let mut arg = [0x7f; 1024];
            let errno = case.vmm.device.ioctl(request, &mut arg).expect_err("no such vCPU or segment");
            assert_eq!(errno != Errno::ENOTTY, known, "{} {request:x?}", request_name(request));
        }
    }),
    ("get-cpus-size", |case| {
        if !case.activation() {
            assert_eq!(cpus(case.vmm, 0, 32), Err(Errno::ENOTTY));
            return;
        }
        for vcpuid in [0, 3, 15] {
            case.vmm.activate(vcpuid).expect("not active yet");
        }
        assert_eq!(cpus(case.vmm, 0, 32), Ok(vec![0, 3, 15]));
        assert_eq!(cpus(case.vmm, 0, 2), Ok(vec![0, 3, 15]), "just large enough");
        assert_eq!(cpus(case.vmm, 0, 1), Err(Errno::ERANGE), "too small for vCPU 15");
        let largest = i32::from(case.vmm.behaviour.cpu_setsize / 8);
        assert_eq!(cpus(case.vmm, 0, largest), Ok(vec![0, 3, 15]));
        for size in [0, -1, largest + 1] {
            assert_eq!(cpus(case.vmm, 0, size), Err(Errno::ERANGE), "{size}");
        }
    }),
    ("get-cpus-which", |case| {
        let known = |answer| case.where_known(case.activation(), answer);
        assert_eq!(cpus(case.vmm, 3, 32), known(Err(Errno::EINVAL)));
        assert_eq!(cpus(case.vmm, 1, 32), known(if case.illumos() { Err(Errno::EINVAL) } else { Ok(vec![]) }));
        assert_eq!(cpus(case.vmm, 2, 32), known(Ok(vec![])));
    }),
    ("get-cpus-where", |case| {
        let nowhere = VmCpuset { which: 0, cpusetsize: 32, cpus: 1 << 40 };
        let answer = case.where_known(case.activation(), Err(Errno::EFAULT));
        assert_eq!(case.vmm.call(VM_GET_CPUS, nowhere), answer);
    }),
    ("create-exists", |case| {
        assert_eq!(create(case, "a"), Ok(()));
        assert_eq!(create(case, "a"), Err(Errno::EEXIST));
        assert_eq!(case.kernel.open("b").map(drop), Err(Errno::ENOENT));
        assert_eq!(case.kernel.map_devmem("a", "bootrom").map(drop), Err(Errno::ENOENT));
    }),
    ("create-name", |case| {
        assert_eq!(create(case, ""), Err(Errno::EINVAL));
        if !case.illumos() {
            assert_eq!(case.kernel.vm_create(&"a".repeat(230)), Err(Errno::EINVAL));
            assert_eq!(case.kernel.vm_create(&"a".repeat(229)), Ok(()));
        }
    }),
    ("destroy-nothing", |case| {
        assert_eq!(destroy(case, "a"), Err(if case.illumos() { Errno::ENOENT } else { Errno::EINVAL }));
        create(case, "a").expect("the name is free");
        assert_eq!(destroy(case, "a"), Ok(()));
        assert_eq!(create(case, "a"), Ok(()), "the name is free again");
    }),
    ("destroyed-device", |case| {
        destroy(case, VM).expect("it exists");
        assert_eq!(case.vmm.run(0), Err(Errno::ENXIO));
        assert_eq!(case.kernel.open(VM).map(drop), Err(Errno::ENOENT));
    }),
    ("vmmctl-absent", |case| {
        let there = case.vmm.behaviour.vmmctl;
        assert_eq!(case.kernel.open_vmmctl().map(drop), if there { Ok(()) } else { Err(Errno::ENOENT) });
        assert_eq!(case.kernel.vm_create("a"), if case.illumos() { Err(Errno::ENOENT) } else { Ok(()) });
    }),
    ("vmmctl-reserved", |case| {
        if !case.vmm.behaviour.vmmctl || case.illumos() {
            return;
        }
        let control = case.kernel.open_vmmctl().expect("15 has it");
        let mut arg = vmmctl::VmmctlVmCreate::named("a");
        for word in 0..arg.reserved.len() {
            arg.reserved = [0; 16];
            arg.reserved[word] = 1;
            assert_eq!(control.ioctl(vmmctl::VMMCTL_VM_CREATE, arg.as_mut_bytes()), Err(Errno::EINVAL));
        }
        let mut arg = vmmctl::VmmctlVmCreate::named("a");
        assert_eq!(control.ioctl(vmmctl::VMMCTL_VM_CREATE, arg.as_mut_bytes()), Ok(()));
        assert_eq!(control.ioctl(vmmctl::VMMCTL_VM_CREATE, arg.as_mut_bytes()), Err(Errno::EEXIST));
        let mut arg = vmmctl::VmmctlVmDestroy::named("a");
        assert_eq!(control.ioctl(vmmctl::VMMCTL_VM_DESTROY, arg.as_mut_bytes()), Ok(()));
        assert_eq!(control.ioctl(vmmctl::VMMCTL_VM_DESTROY, arg.as_mut_bytes()), Err(Errno::EINVAL));
        assert_eq!(control.ioctl(VM_RUN, &mut [0; 144]), Err(Errno::ENOTTY));
    }),
    ("capability-range", |case| {
        let b = case.vmm.behaviour;
        let last = match () {
            () if case.illumos() => illumos::cap::MAX,
            () if b.rflags_tf => cap::MAX_WITH_RFLAGS_TF,
            () if b.mask_hwintr => cap::MAX_WITH_MASK_HWINTR,
            () if b.ipi_exit => cap::MAX_WITH_IPI_EXIT,
            () => cap::MAX_BEFORE_IPI_EXIT,
        };
        for captype in [-1, last, i32::MAX] {
            assert_eq!(case.vmm.set_capability(0, captype, 1), Err(Errno::EINVAL), "{captype}");
            let get = VmCapability { cpuid: 0, captype, ..VmCapability::default() };
            assert_eq!(case.vmm.call(VM_GET_CAPABILITY, get), Err(Errno::EINVAL));
        }
        assert_eq!(case.vmm.set_capability(0, cap::HALT_EXIT, 1), Ok(()));
        let ipi_exit = if b.ipi_exit { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(case.vmm.set_capability(0, cap::IPI_EXIT, 1), ipi_exit);
    }),
    ("capability-backend", |case| {
        if !case.illumos() {
            assert_eq!(case.vmm.set_capability(0, cap::RDTSCP, 1), Err(Errno::EOPNOTSUPP));
        }
        if case.vmm.behaviour.rflags_tf {
            assert_eq!(case.vmm.set_capability(0, cap::RFLAGS_TF, 1), Err(Errno::ENOENT), "AMD's alone");
        }
    }),
    ("register-number", |case| {
        for regnum in [-1, Reg::ALL.len() as i32] {
            let register = VmRegister { cpuid: 0, regnum, regval: 0 };
            assert_eq!(case.vmm.call(VM_SET_REGISTER, register), Err(Errno::EINVAL));
        }
        let desc = |reg: Reg| VmSegDesc { cpuid: 0, regnum: reg as i32, base: 0x1000, limit: 0xffff, access: 0x93 };
        assert_eq!(case.vmm.call(VM_SET_SEGMENT_DESCRIPTOR, desc(Reg::Rax)), Err(Errno::EINVAL));
        assert_eq!(case.vmm.call(VM_SET_SEGMENT_DESCRIPTOR, desc(Reg::Cs)).map(drop), Ok(()));
        let read = case.vmm.call(VM_GET_SEGMENT_DESCRIPTOR, VmSegDesc { base: 0, ..desc(Reg::Cs) });
        assert_eq!(read, Ok(desc(Reg::Cs)));
    }),
    ("register-set-count", |case| {
        let set = VmRegisterSet { cpuid: 0, count: Reg::ALL.len() as u32 + 1, regnums: 24, regvals: 24 };
        assert_eq!(case.vmm.call(VM_GET_REGISTER_SET, set), Err(Errno::EINVAL));
        let nowhere = VmRegisterSet { count: 1, ..set };
        assert_eq!(case.vmm.call(VM_GET_REGISTER_SET, nowhere), Err(Errno::EFAULT));
    }),
    ("x2apic-state", |case| {
        let set = |state| case.vmm.call(VM_SET_X2APIC_STATE, VmX2apic { cpuid: 0, state }).map(drop);
        assert_eq!([set(2), set(-1), set(1)], [Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(())]);
        let get = case.vmm.call(VM_GET_X2APIC_STATE, VmX2apic::default());
        assert_eq!(get, Ok(VmX2apic { cpuid: 0, state: 1 }));
    }),
    ("exception-pending", |case| {
        let inject = || {
            let exception = VmException { vector: 6, ..VmException::default() };
            case.vmm.call(VM_INJECT_EXCEPTION, exception).map(drop)
        };
        assert_eq!([inject(), inject()], [Ok(()), Err(Errno::EBUSY)]);
    }),
    ("exception-vector", |case| {
        for vector in [-1, 32] {
            let exception = VmException { vector, ..VmException::default() };
            assert_eq!(case.vmm.call(VM_INJECT_EXCEPTION, exception), Err(Errno::EINVAL));
        }
    }),
    ("lapic-vector", |case| {
        let irq = |vector| case.vmm.call(VM_LAPIC_IRQ, VmLapicIrq { cpuid: 0, vector }).map(drop);
        assert_eq!([irq(15), irq(256), irq(16)], [Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(())]);
    }),
    ("interrupt-lines", |case| {
        for irq in [-1, 32] {
            assert_eq!(case.vmm.call(VM_IOAPIC_PULSE_IRQ, VmIoapicIrq { irq }), Err(Errno::EINVAL));
        }
        assert_eq!(case.vmm.call(VM_IOAPIC_PULSE_IRQ, VmIoapicIrq { irq: 4 }).map(drop), Ok(()));
        let isa = |atpic_irq, ioapic_irq| case.vmm.call(VM_ISA_PULSE_IRQ, VmIsaIrq { atpic_irq, ioapic_irq }).map(drop);
        assert_eq!([isa(16, -1), isa(4, 32), isa(4, -1)], [Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(())]);
        assert_eq!(case.vmm.call(VM_IOAPIC_PINCOUNT, 0_i32), Ok(32));
    }),
    ("rtc-registers", |case| {
        let write = |offset| case.vmm.call(VM_RTC_WRITE, VmRtcData { offset, value: 7, _pad: [0; 3] }).map(drop);
        assert_eq!([write(-1), write(0), write(128)], [Err(Errno::EINVAL); 3]);
        assert_eq!(write(0x40), Ok(()));
        let read = case.vmm.call(VM_RTC_READ, VmRtcData { offset: 0x40, ..VmRtcData::default() });
        assert_eq!(read.map(|rtc| rtc.value), Ok(7));
    }),
    ("memseg-taken", |case| {
        case.touch();
        assert_eq!(case.vmm.alloc_memseg(0, 8192, ""), Ok(()));
        assert_eq!(case.vmm.alloc_memseg(0, 8192, ""), Err(Errno::EEXIST));
        assert_eq!(case.vmm.alloc_memseg(0, 4096, ""), Err(Errno::EINVAL));
    }),
    ("memseg-number", |case| {
        case.touch();
        let last = if case.vmm.behaviour.memseg == MemsegAbi::Domains { 10 } else { 3 };
        assert_eq!(case.vmm.alloc_memseg(last, 4096, "rom"), Ok(()));
        assert_eq!(case.vmm.alloc_memseg(last + 1, 4096, "ram"), Err(Errno::EINVAL));
        assert_eq!(case.vmm.alloc_memseg(-1, 4096, "ram"), Err(Errno::EINVAL));
    }),
    ("mmap-segment", |case| {
        case.touch();
        assert_eq!(map(case, 0), Err(Errno::EINVAL));
        case.vmm.alloc_memseg(0, 4096, "").expect("memory");
        assert_eq!(map(case, 0), Ok(()));
    }),
    ("mmap-old-segment", |case| {
        const BOOTROM: i32 = 1;
        case.touch();
        if case.illumos() || case.vmm.behaviour.memseg == MemsegAbi::Name64 {
            // There is but one generation of its structure.
            case.vmm.alloc_memseg(BOOTROM, 4096, "bootrom").expect("memory");
        } else {
            // As a userspace that knows nothing of 15 allocates it.
            let old = VmMemseg::new(BOOTROM, 4096, "bootrom");
            assert_eq!(case.vmm.call(VM_ALLOC_MEMSEG, old).map(drop), Ok(()));
            let found = case.vmm.call(VM_GET_MEMSEG, VmMemseg { len: 0, ..old });
            assert_eq!(found.map(|memseg| (memseg.len, memseg.name())), Ok((4096, "bootrom".to_owned())));
        }
        let moved = !case.vmm.behaviour.mmap_old_segids;
        assert_eq!(map(case, BOOTROM), if moved { Err(Errno::EINVAL) } else { Ok(()) });
        if moved {
            assert_eq!(map(case, v15::SEGID_BOOTROM), Ok(()));
        }
    }),
    ("getnext-end", |case| {
        case.touch();
        case.vmm.alloc_memseg(0, 4096, "").expect("memory");
        map(case, 0).expect("it is there");
        let next = |gpa| case.vmm.call(VM_MMAP_GETNEXT, VmMemmap { gpa, ..VmMemmap::default() });
        assert_eq!(next(0).map(|memmap| memmap.len), Ok(4096));
        assert_eq!(next(1), Err(Errno::ENOENT));
    }),
    ("stats-index", |case| {
        let known = case.illumos() || case.vmm.behaviour.stats == StatsAbi::Indexed;
        let from = |index| {
            let stats = v14::VmStats { index, ..v14::VmStats::default() };
            let request = if case.illumos() { illumos::VM_STATS } else { v14::VM_STATS };
            case.vmm.call(request, stats).map(|stats| stats.num_entries)
        };
        let all = from(0);
        assert_eq!(all.is_ok(), known);
        if let Ok(all) = all {
            assert_eq!([from(all - 1), from(all), from(-1)], [Ok(1), Err(Errno::ENOENT), Err(Errno::EINVAL)]);
        }
    }),
    ("stat-desc-index", |case| {
        let describe = |index| {
            let mut arg = [0; size_of::<VmStatDesc>()];
            arg[..4].copy_from_slice(i32::to_le_bytes(index).as_slice());
            case.vmm.device.ioctl(case.vmm.own(VM_STAT_DESC), &mut arg).map(|()| crate::abi::name_in(&arg[4..]))
        };
        assert_eq!(describe(0), Ok("total number of vm exits".to_owned()));
        assert_eq!([describe(64), describe(-1)], [const { Err(Errno::EINVAL) }; 2]);
    }),
    ("run-state-pending-init", |case| {
        use illumos::vrs;
        if !case.illumos() {
            return;
        }
        let set = |state| {
            let state = illumos::VmRunState { vcpuid: 1, state, sipi_vector: 8, _pad: [0; 3] };
            case.vmm.call(illumos::VM_SET_RUN_STATE, state).map(drop)
        };
        for state in [vrs::PEND_INIT, vrs::INIT | vrs::PEND_INIT, vrs::RUN | 4] {
            assert_eq!(set(state), Err(Errno::EINVAL), "{state:#x}");
        }
        for state in [vrs::HALT, vrs::INIT, vrs::RUN, vrs::INIT | vrs::PEND_SIPI] {
            assert_eq!(set(state), Ok(()));
            let got = case.vmm.call(illumos::VM_GET_RUN_STATE, illumos::VmRunState { vcpuid: 1, ..Default::default() });
            assert_eq!(got.map(|got| (got.state, got.sipi_vector)), Ok((state, 8)));
        }
    }),
    ("reset-cpu-kind", |case| {
        if case.illumos() {
            let reset = |kind| case.vmm.call(illumos::VM_RESET_CPU, illumos::VmVcpuReset { vcpuid: 0, kind }).map(drop);
            assert_eq!([reset(2), reset(illumos::VRK_RESET)], [Err(Errno::EINVAL), Ok(())]);
            let read = |reg| case.vmm.call(VM_GET_REGISTER, register(0, reg, 0)).map(|register| register.regval);
            assert_eq!([read(Reg::Rip), read(Reg::Cs), read(Reg::Rdx)], [Ok(0xfff0), Ok(0xf000), Ok(0xf00)]);
        }
    }),
    ("entry-unasked", |case| {
        use illumos::entry_cmd;
        if case.illumos() {
            case.vmm.start(0);
            for cmd in [entry_cmd::FULFILL_MMIO, entry_cmd::FULFILL_INOUT, 4] {
                let entry = illumos::VmEntry { cmd, ..illumos::VmEntry::new(0) };
                assert_eq!(case.vmm.enter(entry), Err(Errno::EINVAL), "{cmd}");
            }
        }
    }),
];

impl Case<'_> {
    /// Names vCPU 0, so that there is one when all are locked.
    fn touch(&self) {
        self.vmm.call(VM_GET_REGISTER, register(0, Reg::Rax, 0)).expect("vCPU 0");
    }
}

fn register(cpuid: i32, reg: Reg, regval: u64) -> VmRegister {
    VmRegister { cpuid, regnum: reg as i32, regval }
}

fn map(case: &Case<'_>, segid: i32) -> Result<(), Errno> {
    let memmap = VmMemmap { segid, len: 4096, prot: 7, ..VmMemmap::default() };
    case.vmm.call(VM_MMAP_MEMSEG, memmap).map(drop)
}

fn create(case: &Case<'_>, name: &str) -> Result<(), Errno> {
    if !case.illumos() {
        return case.kernel.vm_create(name);
    }
    let control = case.kernel.open_vmmctl().expect("illumos has it");
    control.ioctl(illumos::VMM_CREATE_VM, illumos::VmCreateReq::named(name).as_mut_bytes())
}

fn destroy(case: &Case<'_>, name: &str) -> Result<(), Errno> {
    if !case.illumos() {
        return case.kernel.vm_destroy(name);
    }
    let control = case.kernel.open_vmmctl().expect("illumos has it");
    control.ioctl(illumos::VMM_DESTROY_VM, illumos::VmDestroyReq::named(name).as_mut_bytes())
}

/// VM_GET_CPUS: the pointer names the bytes behind the structure.
pub(super) fn cpus(vmm: &Vmmapi, which: i32, cpusetsize: i32) -> Result<Vec<usize>, Errno> {
    const BUFFER: usize = 160;
    let mut arg = [0; size_of::<VmCpuset>() + BUFFER];
    let header = VmCpuset { which, cpusetsize, cpus: size_of::<VmCpuset>() as u64 };
    arg[..size_of::<VmCpuset>()].copy_from_slice(header.as_bytes());
    vmm.device.ioctl(vmm.own(VM_GET_CPUS), &mut arg)?;
    let bits = &arg[size_of::<VmCpuset>()..];
    Ok((0..BUFFER * 8).filter(|cpu| bits[cpu / 8] & 1 << (cpu % 8) != 0).collect())
}

#[test]
fn every_row_over_every_kernel() {
    for version in KernelVersion::all() {
        for (id, body) in BODIES {
            let host = Host::virtual_time(0, 5_000_000_000);
            let kernel = Kernel::boot(&host, &version, Arc::new(Scripted::new()));
            let of = version.clone();
            let finished = host.run("frontend", move || {
                let vmm = Vmmapi::create(&kernel, of.behaviour());
                body(&Case { kernel: &kernel, version: &of, vmm: &vmm });
            });
            assert_eq!(finished.end, End::Exit(0), "{id} on {}", version.name);
        }
    }
}

#[test]
fn every_declared_row_has_a_test() {
    let snapshots = super::snapshot::ROWS;
    let tested: Vec<_> = BODIES.iter().map(|(id, _)| *id).chain(snapshots.iter().copied()).collect();
    for row in ERRNO_ROWS {
        assert_eq!(tested.iter().filter(|id| **id == row.id).count(), 1, "{}", row.id);
    }
    assert_eq!(tested.len(), ERRNO_ROWS.len(), "and no other");
}

#[test]
fn what_an_ioctl_failed_with_is_in_the_trace() {
    let finished = on_kernel(&kernel("fbsd-14"), Scripted::new(), |_, vmm| {
        vmm.activate(-1).expect_err("no vCPU");
    });
    let failed =
        |record: &Record| matches!(&record.event, Event::Ioctl { name, errno: 22, .. } if name == "VM_ACTIVATE_CPU");
    assert!(finished.trace.records.iter().any(failed));
}
