//! `vmmdev_ioctl`: from request number and argument bytes to what the VM does, and back to bytes and errno.

use super::memory::{MapError, MemMap};
use super::vcpu::{Counter, Vcpu};
use super::vm::{State, Vm};
use crate::abi::*;
use crate::cpuset::{CPU_SETSIZE, CpuSet};
use crate::device::message::Message;
use crate::device::vhpet;
use crate::device::vioapic::PINS;
use crate::device::vlapic::Lvt;
use crate::engine::{Reg, SegDesc};
use crate::history::MaxCpus;
use crate::trace::Event;
use std::fmt::Write as _;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What the entry to and the return from the kernel take, in nanoseconds of virtual time.
const SYSCALL_NS: u64 = 300;

impl Vm {
    /// `ioctl(2)` on the VM's device node.
    pub(super) fn ioctl(&self, request: Request, arg: &mut [u8]) -> Result<(), Errno> {
        self.host.charge(SYSCALL_NS);
        if !REQUESTS.iter().any(|(_, known)| *known == request) {
            self.record_ioctl(request, None, arg, Err(Errno::ENOTTY));
            return Err(Errno::ENOTTY);
        }
        assert!(arg.len() >= request.argument_len(), "the caller's buffer is smaller than its own request says");
        let mut st = self.lock();
        if request == VM_RUN {
            return self.ioctl_run(&mut st, arg);
        }
        self.hold_notes(&mut st);
        let mut vcpu = None;
        let locked = if of_whole_vm(request) { self.lock_all(&mut st) } else { CpuSet::EMPTY };
        let result = self.dispatch(&mut st, request, arg, &mut vcpu);
        for id in locked.iter() {
            self.become_idle(&mut st, id);
        }
        self.record_ioctl(request, vcpu, arg, result);
        self.release_notes(&mut st);
        result
    }

    /// VM_RUN: a success is recorded as the exit that it returns, which is then the cause of what the thread does about it.
    fn ioctl_run(&self, st: &mut State<'_>, arg: &mut [u8]) -> Result<(), Errno> {
        let mut run: VmRun = load(arg);
        let result = self.vcpu_id(st, run.cpuid).and_then(|id| Ok((id, self.vm_run(st, id)?)));
        let (id, exit) = match result {
            Ok(done) => done,
            Err(errno) => {
                self.record_ioctl(VM_RUN, Some(run.cpuid), arg, Err(errno));
                return Err(errno);
            }
        };
        run.vm_exit = exit;
        store(arg, &run);
        // The loop of a suspended AP's thread is one exit.
        if st.vcpu(id).debug_streak <= 1 {
            let event = Event::Exit {
                code: exit.exitcode,
                name: exitcode::name(exit.exitcode).to_owned(),
                payload: payload_in_words(&exit),
            };
            let seq = self.host.emit(Some(id as u16), event);
            self.host.set_cause(Some(seq));
        }
        Ok(())
    }

    fn record_ioctl(&self, request: Request, vcpu: Option<i32>, arg: &[u8], result: Result<(), Errno>) {
        let event = Event::Ioctl {
            name: request_name(request).to_owned(),
            request: request.0,
            detail: argument_in_words(request, arg),
            errno: result.map_or_else(Errno::number, |()| 0),
        };
        self.host.emit(vcpu.and_then(|id| u16::try_from(id).ok()), event);
    }

    /// Everything but VM_RUN. `vcpu` is set to the vCPU that the request names, for the record.
    fn dispatch(
        &self,
        st: &mut State<'_>,
        request: Request,
        arg: &mut [u8],
        vcpu: &mut Option<i32>,
    ) -> Result<(), Errno> {
        let mut named = |id: i32| {
            *vcpu = Some(id);
            id
        };
        match request {
            VM_SET_REGISTER => {
                let VmRegister { cpuid, regnum, regval } = load(arg);
                let reg = Reg::from_number(regnum);
                let id = self.idle_vcpu(st, named(cpuid))?.id;
                let suspended = st.debug.contains(id);
                let target = st.vcpu(id);
                target.set_register(reg.ok_or(Errno::EINVAL)?, regval);
                // Userspace that emulates an instruction sets RIP too; one that starts an AP does so while it is suspended.
                target.fresh |= suspended && regnum == Reg::Rip as i32;
            }
            VM_GET_REGISTER => {
                let mut register: VmRegister = load(arg);
                let reg = Reg::from_number(register.regnum);
                let target = self.idle_vcpu(st, named(register.cpuid))?;
                register.regval = target.register(reg.ok_or(Errno::EINVAL)?);
                store(arg, &register);
            }
            VM_SET_REGISTER_SET | VM_GET_REGISTER_SET => {
                let set: VmRegisterSet = load(arg);
                let target = self.idle_vcpu(st, named(set.cpuid))?;
                register_set(target, set, request == VM_SET_REGISTER_SET, arg)?;
            }
            VM_SET_SEGMENT_DESCRIPTOR => {
                let VmSegDesc { cpuid, regnum, base, limit, access } = load(arg);
                let reg = descriptor_register(regnum);
                let target = self.idle_vcpu(st, named(cpuid))?;
                target.set_descriptor(reg?, SegDesc { base, limit, access });
            }
            VM_GET_SEGMENT_DESCRIPTOR => {
                let desc: VmSegDesc = load(arg);
                let reg = descriptor_register(desc.regnum);
                let target = self.idle_vcpu(st, named(desc.cpuid))?;
                let SegDesc { base, limit, access } = target.engine().desc(reg?);
                store(arg, &VmSegDesc { base, limit, access, ..desc });
            }
            VM_SET_CAPABILITY => {
                let VmCapability { cpuid, captype, capval, .. } = load(arg);
                let target = self.idle_vcpu(st, named(cpuid))?;
                self.check_capability(captype)?;
                target.set_capability(captype, capval)?;
            }
            VM_GET_CAPABILITY => {
                let mut capability: VmCapability = load(arg);
                let target = self.idle_vcpu(st, named(capability.cpuid))?;
                self.check_capability(capability.captype)?;
                capability.capval = target.capability(capability.captype)?;
                store(arg, &capability);
            }
            VM_SET_X2APIC_STATE => {
                let VmX2apic { cpuid, state } = load(arg);
                let target = self.idle_vcpu(st, named(cpuid))?;
                let enabled = match state {
                    0 => false,
                    1 => true,
                    _ => return Err(Errno::EINVAL),
                };
                target.vlapic.set_x2apic(enabled);
                target.cpuid_stale = true;
            }
            VM_GET_X2APIC_STATE => {
                let mut x2apic: VmX2apic = load(arg);
                let target = self.idle_vcpu(st, named(x2apic.cpuid))?;
                x2apic.state = i32::from(target.vlapic.x2apic());
                store(arg, &x2apic);
            }
            VM_ACTIVATE_CPU => {
                let VmActivateCpu { vcpuid } = load(arg);
                let id = self.idle_vcpu(st, named(vcpuid))?.id;
                self.activate(st, id)?;
            }
            VM_SUSPEND_CPU => {
                let VmActivateCpu { vcpuid } = load(arg);
                self.suspend_cpu(st, named(vcpuid))?;
            }
            VM_RESUME_CPU => {
                let VmActivateCpu { vcpuid } = load(arg);
                self.resume_cpu(st, named(vcpuid))?;
            }
            VM_GET_CPUS => get_cpus(st, arg)?,
            VM_SUSPEND => {
                let VmSuspend { how } = load(arg);
                self.suspend(st, 0, how)?;
            }
            VM_REINIT => self.reinit(st)?,
            VM_SET_TOPOLOGY => self.set_topology(st, load(arg))?,
            VM_GET_TOPOLOGY => store(arg, &VmCpuTopology { maxcpus: self.max_cpus as u16, ..st.topology }),
            VM_INJECT_NMI => {
                let VmNmi { cpuid } = load(arg);
                let id = self.vcpu_id(st, named(cpuid))?;
                st.vcpu(id).nmi_pending = true;
                self.notify(st, id);
            }
            VM_INJECT_EXCEPTION => {
                let exception: VmException = load(arg);
                let target = self.idle_vcpu(st, named(exception.cpuid))?;
                let vector = u8::try_from(exception.vector).ok().filter(|&v| v < 32).ok_or(Errno::EINVAL)?;
                target.inject_exception(vector, (exception.error_code_valid != 0).then_some(exception.error_code))?;
            }
            // The kernel restarts an instruction that it has not completed anyway.
            VM_RESTART_INSTRUCTION => {
                self.idle_vcpu(st, named(load(arg)))?;
            }
            VM_GET_INTINFO => {
                let mut intinfo: VmIntinfo = load(arg);
                intinfo.info1 = self.idle_vcpu(st, named(intinfo.vcpuid))?.intinfo;
                intinfo.info2 = 0;
                store(arg, &intinfo);
            }
            VM_SET_INTINFO => {
                let VmIntinfo { vcpuid, info1, .. } = load(arg);
                self.idle_vcpu(st, named(vcpuid))?.set_intinfo(info1)?;
            }
            VM_GLA2GPA | VM_GLA2GPA_NOFAULT => {
                let mut gla2gpa: VmGla2Gpa = load(arg);
                let target = self.idle_vcpu(st, named(gla2gpa.vcpuid))?;
                let translated = target.engine().translate(gla2gpa.gla);
                gla2gpa.fault = i32::from(translated.is_none());
                gla2gpa.gpa = translated.unwrap_or(0);
                store(arg, &gla2gpa);
            }
            VM_ALLOC_MEMSEG => {
                let memseg: VmMemseg = load(arg);
                st.memory.alloc(memseg.segid, memseg.len, memseg.name())?;
            }
            VM_GET_MEMSEG => {
                let mut memseg: VmMemseg = load(arg);
                let (len, name) = st.memory.segment(memseg.segid)?;
                memseg.len = len;
                memseg.name = [0; 16];
                let known = name.len().min(memseg.name.len() - 1);
                memseg.name[..known].copy_from_slice(&name.as_bytes()[..known]);
                store(arg, &memseg);
            }
            VM_MMAP_MEMSEG => {
                let VmMemmap { gpa, segid, segoff, len, prot, flags, .. } = load(arg);
                let mapped = st.memory.map(&*self.engine, MemMap { gpa, len, segid, segoff, prot, flags });
                self.mapped(mapped)?;
            }
            VM_MUNMAP_MEMSEG => {
                let VmMunmap { gpa, len } = load(arg);
                let unmapped = st.memory.unmap(&*self.engine, gpa, len);
                self.mapped(unmapped)?;
            }
            VM_MMAP_GETNEXT => {
                let memmap: VmMemmap = load(arg);
                let MemMap { gpa, len, segid, segoff, prot, flags } = st.memory.next(memmap.gpa)?;
                store(arg, &VmMemmap { gpa, segid, _pad: 0, segoff, len, prot, flags });
            }
            VM_LAPIC_IRQ => {
                let VmLapicIrq { cpuid, vector } = load(arg);
                let id = self.vcpu_id(st, named(cpuid))?;
                let vector = u8::try_from(vector).ok().filter(|&v| v >= 16).ok_or(Errno::EINVAL)?;
                if st.vcpu(id).vlapic.accept(vector, false) {
                    self.notify(st, id);
                }
            }
            VM_LAPIC_LOCAL_IRQ => {
                let VmLapicIrq { cpuid, vector } = load(arg);
                let lvt = Lvt::from_number(vector).ok_or(Errno::EINVAL)?;
                let targets = if cpuid == -1 { st.active } else { CpuSet::single(self.vcpu_id(st, named(cpuid))?) };
                for id in targets.iter() {
                    self.local_interrupt(st, id, lvt);
                }
            }
            VM_LAPIC_MSI => {
                let VmLapicMsi { msg, addr } = load(arg);
                let message = Message::from_msi(addr, msg).map_err(|_| Errno::EINVAL)?;
                self.deliver_message(st, message);
            }
            _ => self.dispatch_board(st, request, arg, &mut named)?,
        }
        Ok(())
    }

    /// The requests that concern the board's devices, and the statistics.
    fn dispatch_board(
        &self,
        st: &mut State<'_>,
        request: Request,
        arg: &mut [u8],
        named: &mut dyn FnMut(i32) -> i32,
    ) -> Result<(), Errno> {
        use crate::device::IrqState::{Assert, Deassert, Pulse};
        let now = self.host.now();
        match request {
            VM_IOAPIC_ASSERT_IRQ => st.board.set_ioapic_pin(load::<VmIoapicIrq>(arg).irq, Assert)?,
            VM_IOAPIC_DEASSERT_IRQ => st.board.set_ioapic_pin(load::<VmIoapicIrq>(arg).irq, Deassert)?,
            VM_IOAPIC_PULSE_IRQ => st.board.set_ioapic_pin(load::<VmIoapicIrq>(arg).irq, Pulse)?,
            VM_IOAPIC_PINCOUNT => store(arg, &(PINS as i32)),
            VM_ISA_ASSERT_IRQ => st.board.set_isa_irq(load(arg), Assert)?,
            VM_ISA_DEASSERT_IRQ => st.board.set_isa_irq(load(arg), Deassert)?,
            VM_ISA_PULSE_IRQ => st.board.set_isa_irq(load(arg), Pulse)?,
            VM_ISA_SET_IRQ_TRIGGER => st.board.set_isa_trigger(load(arg))?,
            VM_RTC_READ => {
                let mut rtc: VmRtcData = load(arg);
                rtc.value = st.board.read_nvram(rtc.offset, now)?;
                store(arg, &rtc);
            }
            VM_RTC_WRITE => {
                let VmRtcData { offset, value, .. } = load(arg);
                st.board.write_nvram(offset, value)?;
            }
            VM_RTC_SETTIME => st.board.set_time(load::<VmRtcTime>(arg).secs, now)?,
            VM_RTC_GETTIME => store(arg, &VmRtcTime { secs: st.board.time(now) }),
            VM_GET_HPET_CAPABILITIES => store(arg, &VmHpetCap { capabilities: vhpet::CAPABILITIES as u32 }),
            VM_STATS => {
                let mut stats: VmStats = load(arg);
                let id = self.vcpu_id(st, named(stats.cpuid))?;
                stats.num_entries = Counter::COUNT as i32;
                (stats.tv_sec, stats.tv_usec) = ((now / 1_000_000_000) as i64, (now / 1_000 % 1_000_000) as i64);
                stats.statbuf[..Counter::COUNT].copy_from_slice(&st.vcpu(id).counters);
                store(arg, &stats);
            }
            VM_STAT_DESC => {
                let mut description: VmStatDesc = load(arg);
                let index = usize::try_from(description.index).map_err(|_| Errno::EINVAL)?;
                let name = Counter::NAMES.get(index).ok_or(Errno::EINVAL)?;
                description.desc = [0; 128];
                description.desc[..name.len()].copy_from_slice(name.as_bytes());
                store(arg, &description);
            }
            // No kernel here is built with BHYVE_SNAPSHOT yet.
            VM_SNAPSHOT_REQ | VM_RESTORE_TIME => return Err(Errno::ENOTTY),
            other => unreachable!("{} stands in REQUESTS", request_name(other)),
        }
        self.deliver_signals(st);
        Ok(())
    }

    /// A vCPU that nobody runs: `vcpu_lock_one`.
    fn idle_vcpu<'s>(&self, st: &'s mut State<'_>, vcpuid: i32) -> Result<&'s mut Vcpu, Errno> {
        let id = self.vcpu_id(st, vcpuid)?;
        self.await_idle(st, id);
        self.ensure_engine(st, id);
        Ok(st.vcpu(id))
    }

    /// `vm_set_capability`, `vm_get_capability`: EINVAL outside the kernel's range.
    fn check_capability(&self, captype: i32) -> Result<(), Errno> {
        let max = if self.behaviour.ipi_exit { cap::MAX_WITH_IPI_EXIT } else { cap::MAX_BEFORE_IPI_EXIT };
        if (0..max).contains(&captype) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// `vm_set_topology`.
    fn set_topology(&self, st: &mut State<'_>, topology: VmCpuTopology) -> Result<(), Errno> {
        if self.behaviour.max_cpus == MaxCpus::CompiledIn && topology.maxcpus != 0 {
            return Err(Errno::EINVAL);
        }
        let VmCpuTopology { sockets, cores, threads, .. } = topology;
        let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if product > self.max_cpus as u64 {
            return Err(Errno::EINVAL);
        }
        st.topology = topology;
        st.stale_cpuid();
        Ok(())
    }

    fn mapped(&self, result: Result<(), MapError>) -> Result<(), Errno> {
        match result {
            Ok(()) => Ok(()),
            Err(MapError::Errno(errno)) => Err(errno),
            Err(MapError::Engine(error)) => self.engine_failed(&error),
        }
    }
}

/// Requests for which no vCPU must run (`vcpu_lock_all`). \[inferred]
fn of_whole_vm(request: Request) -> bool {
    [VM_ALLOC_MEMSEG, VM_MMAP_MEMSEG, VM_MUNMAP_MEMSEG, VM_REINIT].contains(&request)
}

fn load<T: FromBytes>(arg: &[u8]) -> T {
    T::read_from_prefix(arg).expect("the argument is as long as the request says").0
}

fn store<T: IntoBytes + Immutable>(arg: &mut [u8], value: &T) {
    arg[..size_of::<T>()].copy_from_slice(value.as_bytes());
}

/// The bytes that a pointer in an argument names: it counts from the argument's first byte.
fn user_bytes(arg: &mut [u8], pointer: u64, len: usize) -> Result<&mut [u8], Errno> {
    let start = usize::try_from(pointer).map_err(|_| Errno::EFAULT)?;
    let end = start.checked_add(len).ok_or(Errno::EFAULT)?;
    arg.get_mut(start..end).ok_or(Errno::EFAULT)
}

fn descriptor_register(number: i32) -> Result<Reg, Errno> {
    Reg::from_number(number).filter(|reg| reg.has_descriptor()).ok_or(Errno::EINVAL)
}

/// VM_SET_REGISTER_SET and VM_GET_REGISTER_SET.
fn register_set(vcpu: &mut Vcpu, set: VmRegisterSet, write: bool, arg: &mut [u8]) -> Result<(), Errno> {
    const VM_REG_LAST: u32 = Reg::ALL.len() as u32;
    if set.count == 0 || set.count > VM_REG_LAST {
        return Err(Errno::EINVAL);
    }
    for i in 0..u64::from(set.count) {
        let number = user_bytes(arg, set.regnums + 4 * i, 4)?;
        let reg = Reg::from_number(load(number)).ok_or(Errno::EINVAL)?;
        let value = user_bytes(arg, set.regvals + 8 * i, 8)?;
        if write {
            vcpu.set_register(reg, load(value));
        } else {
            store(value, &vcpu.register(reg));
        }
    }
    Ok(())
}

/// VM_GET_CPUS.
fn get_cpus(st: &State<'_>, arg: &mut [u8]) -> Result<(), Errno> {
    let request: VmCpuset = load(arg);
    let set = match request.which {
        0 => st.active,
        1 => st.suspended,
        2 => st.debug,
        _ => return Err(Errno::EINVAL),
    };
    let size = usize::try_from(request.cpusetsize).map_err(|_| Errno::ERANGE)?;
    let highest = set.iter().last().map_or(0, |cpu| cpu + 1);
    if !(1..=CPU_SETSIZE / 8).contains(&size) || highest > size * 8 {
        return Err(Errno::ERANGE);
    }
    user_bytes(arg, request.cpus, size)?.copy_from_slice(&set.words().as_bytes()[..size]);
    Ok(())
}

/// The payload of an exit, for the trace.
fn payload_in_words(exit: &VmExit) -> String {
    match exit.exitcode {
        exitcode::INOUT => {
            let inout: ExitInout = exit.payload();
            let direction = if inout.is_in() { "in" } else { "out" };
            let mut words = format!("{direction} port={:#x} bytes={}", inout.port, inout.bytes());
            if !inout.is_in() {
                let _ = write!(words, " eax={:#x}", inout.eax);
            }
            words
        }
        exitcode::SPINUP_AP => {
            let ExitSpinupAp { vcpu, rip, .. } = exit.payload();
            format!("vcpu={vcpu} rip={rip:#x}")
        }
        exitcode::IPI => {
            let ipi: ExitIpi = exit.payload();
            format!("mode={:#x} vector={:#04x} dmask={}", ipi.mode, ipi.vector, ipi.dmask())
        }
        exitcode::SUSPENDED => suspend::name(exit.payload::<ExitSuspended>().how).to_owned(),
        exitcode::RDMSR => format!("msr={:#x}", exit.payload::<ExitMsr>().code),
        exitcode::WRMSR => {
            let ExitMsr { code, wval, .. } = exit.payload();
            format!("msr={code:#x} wval={wval:#x}")
        }
        exitcode::INST_EMUL => format!("gpa={:#x}", exit.payload::<ExitInstEmul>().gpa),
        exitcode::VMX => {
            let ExitVmx { exit_reason, exit_qualification, .. } = exit.payload();
            format!("reason={exit_reason} qualification={exit_qualification:#x}")
        }
        _ => String::new(),
    }
}

/// What an ioctl is about, for the trace, beyond the vCPU.
fn argument_in_words(request: Request, arg: &[u8]) -> String {
    match request {
        VM_SET_REGISTER => {
            let VmRegister { regnum, regval, .. } = load(arg);
            format!("{}={regval:#x}", register_name(regnum))
        }
        VM_GET_REGISTER => register_name(load::<VmRegister>(arg).regnum),
        VM_SET_SEGMENT_DESCRIPTOR => {
            let VmSegDesc { regnum, base, limit, access, .. } = load(arg);
            format!("{} base={base:#x} limit={limit:#x} access={access:#x}", register_name(regnum))
        }
        VM_GET_SEGMENT_DESCRIPTOR => register_name(load::<VmSegDesc>(arg).regnum),
        VM_SET_CAPABILITY => {
            let VmCapability { captype, capval, .. } = load(arg);
            format!("{}={capval}", capability_name(captype))
        }
        VM_GET_CAPABILITY => capability_name(load::<VmCapability>(arg).captype).to_owned(),
        VM_SET_X2APIC_STATE => format!("state={}", load::<VmX2apic>(arg).state),
        VM_ALLOC_MEMSEG => {
            let memseg: VmMemseg = load(arg);
            format!("segid={} len={:#x} name={:?}", memseg.segid, memseg.len, memseg.name())
        }
        VM_MMAP_MEMSEG => {
            let VmMemmap { gpa, segid, len, prot, .. } = load(arg);
            format!("segid={segid} gpa={gpa:#x} len={len:#x} prot={prot}")
        }
        VM_SET_TOPOLOGY => {
            let VmCpuTopology { sockets, cores, threads, maxcpus } = load(arg);
            format!("sockets={sockets} cores={cores} threads={threads} maxcpus={maxcpus}")
        }
        VM_SUSPEND => suspend::name(load::<VmSuspend>(arg).how).to_owned(),
        VM_INJECT_EXCEPTION => format!("vector={}", load::<VmException>(arg).vector),
        _ => String::new(),
    }
}

fn register_name(number: i32) -> String {
    Reg::from_number(number).map_or_else(|| number.to_string(), |reg| format!("{reg:?}").to_lowercase())
}

fn capability_name(captype: i32) -> &'static str {
    const NAMES: [&str; cap::MAX_WITH_IPI_EXIT as usize] = [
        "HALT_EXIT",
        "MTRAP_EXIT",
        "PAUSE_EXIT",
        "UNRESTRICTED_GUEST",
        "ENABLE_INVPCID",
        "BPT_EXIT",
        "RDPID",
        "RDTSCP",
        "IPI_EXIT",
    ];
    usize::try_from(captype).ok().and_then(|index| NAMES.get(index).copied()).unwrap_or("unknown")
}
