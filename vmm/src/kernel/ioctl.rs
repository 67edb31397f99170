//! `vmmdev_ioctl`: from request number and argument bytes to what the VM does, and back to bytes and errno.

use super::generation::{Call, Form, capability_of_illumos};
use super::memory::{MapError, MemMap};
use super::vcpu::{Counter, Vcpu};
use super::vm::{State, Vm};
use crate::abi::illumos::entry_cmd;
use crate::abi::{self, *};
use crate::cpuset::CpuSet;
use crate::device::message::Message;
use crate::device::vhpet;
use crate::device::vioapic::PINS;
use crate::device::vlapic::Lvt;
use crate::engine::{Completion, Reg, SegDesc};
use crate::history::{Boundary, MaxCpus, MemsegAbi};
use crate::trace::Event;
use std::fmt::Write as _;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What the entry to and the return from the kernel take, in nanoseconds of virtual time.
const SYSCALL_NS: u64 = 300;

impl Vm {
    /// `ioctl(2)` on the VM's device node.
    pub(super) fn ioctl(&self, request: Request, arg: &mut [u8]) -> Result<(), Errno> {
        self.host.charge(SYSCALL_NS);
        let Some(call) = self.known(request) else {
            self.record_ioctl(request, None, String::new(), Err(Errno::ENOTTY));
            return Err(Errno::ENOTTY);
        };
        assert!(arg.len() >= call.argument_len, "the caller's buffer is smaller than its own request says");
        let mut st = self.lock();
        if st.destroyed {
            self.record_ioctl(request, None, String::new(), Err(Errno::ENXIO));
            return Err(Errno::ENXIO);
        }
        st.in_ioctl += 1;
        let result = self.ioctl_inside(&mut st, request, call, arg);
        st.in_ioctl -= 1;
        if st.destroyed && st.in_ioctl == 0 {
            self.host.wake(self.device_channel());
        }
        result
    }

    fn ioctl_inside(&self, st: &mut State<'_>, request: Request, call: Call, arg: &mut [u8]) -> Result<(), Errno> {
        if call.request == VM_RUN {
            return self.ioctl_run(st, request, call.form, arg);
        }
        self.hold_notes(st);
        let mut vcpu = None;
        let locked = if of_whole_vm(call.request) { self.lock_all(st) } else { CpuSet::EMPTY };
        let result = self.dispatch(st, call, arg, &mut vcpu);
        for id in locked.iter() {
            self.become_idle(st, id);
        }
        self.record_ioctl(request, vcpu, argument_in_words(call, arg), result);
        self.release_notes(st);
        result
    }

    /// VM_RUN: a success is recorded as the exit that it returns, which is then the cause of what the thread does about it.
    fn ioctl_run(&self, st: &mut State<'_>, request: Request, form: Form, arg: &mut [u8]) -> Result<(), Errno> {
        // Every form begins with the number of the vCPU.
        let cpuid: i32 = load(arg);
        let mut run = |st: &mut State<'_>| {
            let id = self.vcpu_id(st, cpuid)?;
            let exit = if form == Form::Illumos { self.run_entry(st, id, load(arg))? } else { self.vm_run(st, id)? };
            let told = self.copy_out_exit(st, id, form, &exit, arg)?;
            Ok((id, exit, told))
        };
        let (id, exit, told) = match run(st) {
            Ok(done) => done,
            Err(errno) => {
                self.record_ioctl(request, Some(cpuid), String::new(), Err(errno));
                return Err(errno);
            }
        };
        // The loop of a suspended AP's thread is one exit.
        if st.vcpu(id).debug_streak <= 1 {
            let event = Event::Exit {
                code: exit.exitcode,
                name: self.exit_name(exit.exitcode).to_owned(),
                payload: self.payload_in_words(st, id, &exit, told),
            };
            let seq = self.host.emit(Some(id as u16), event);
            self.host.set_cause(Some(seq));
        }
        Ok(())
    }

    fn exit_name(&self, code: u32) -> &'static str {
        match self.behaviour.boundary {
            Boundary::FreeBsd => exitcode::name(code),
            Boundary::Illumos => illumos::exitcode::name(code),
        }
    }

    fn payload_in_words(&self, st: &mut State<'_>, id: usize, exit: &VmExit, told: CpuSet) -> String {
        if self.behaviour.boundary == Boundary::Illumos && exit.exitcode == illumos::exitcode::MMIO {
            let illumos::VmMmio { bytes, read, gpa, data, .. } = exit.payload();
            return if read != 0 {
                format!("read gpa={gpa:#x} bytes={bytes}")
            } else {
                format!("write gpa={gpa:#x} bytes={bytes} data={data:#x}")
            };
        }
        payload_in_words(exit, st.vcpu(id).exit_cpuset, told)
    }

    /// Hands the exit to userspace, in the form in which it asked. Returns whom the mask names there. \[read]
    fn copy_out_exit(
        &self,
        st: &mut State<'_>,
        id: usize,
        form: Form,
        exit: &VmExit,
        arg: &mut [u8],
    ) -> Result<CpuSet, Errno> {
        let is_ipi = exit.exitcode == exitcode::IPI;
        let mask = st.vcpu(id).exit_cpuset;
        let mut told = mask;
        match form {
            // VM_RUN_13 of later kernels makes a mask of 256 bits, as these have it. vCPUs beyond are lost without a word.
            Form::V13 | Form::V12 | Form::V15 => {
                let run: VmRun = load(arg);
                store(arg, &VmRun { vm_exit: *exit, ..run });
                if is_ipi {
                    told = exit.payload::<ExitIpi>().dmask();
                }
            }
            Form::Wide => {
                let mut run: abi::wide::VmRun = load(arg);
                let VmExit { exitcode, inst_length, rip, payload } = *exit;
                run.vm_exit = abi::wide::VmExit { exitcode, inst_length, rip, ..Default::default() };
                run.vm_exit.payload[..EXIT_PAYLOAD_LEN].copy_from_slice(&payload);
                if is_ipi {
                    let ExitIpi { mode, vector, .. } = exit.payload();
                    let ipi = abi::wide::ExitIpi { mode, vector, _pad: [0; 3], dmask: mask.words() };
                    run.vm_exit.payload.copy_from_slice(ipi.as_bytes());
                }
                store(arg, &run);
            }
            Form::V14 => {
                let run: abi::v14::VmRun = load(arg);
                let mut exit_told = *exit;
                if is_ipi {
                    let ExitIpi { mode, vector, .. } = exit.payload();
                    exit_told = VmExit::new(exitcode::IPI, &abi::v14::ExitIpi { mode, vector, _pad: [0; 3] });
                    (exit_told.inst_length, exit_told.rip) = (exit.inst_length, exit.rip);
                }
                user_bytes(arg, run.vm_exit, size_of::<VmExit>())?.copy_from_slice(exit_told.as_bytes());
                if is_ipi {
                    let words = mask.words();
                    let own = &words.as_bytes()[..usize::from(self.behaviour.cpu_setsize) / 8];
                    let size = usize::try_from(run.cpusetsize).map_err(|_| Errno::EFAULT)?;
                    let buffer = user_bytes(arg, run.cpuset, size)?;
                    buffer.fill(0);
                    let known = size.min(own.len());
                    buffer[..known].copy_from_slice(&own[..known]);
                    told = mask.iter().take_while(|&cpu| cpu < 8 * known).collect();
                }
            }
            Form::Illumos => {
                let entry: illumos::VmEntry = load(arg);
                let exit_told = self.exit_of_illumos(st, id, exit);
                user_bytes(arg, entry.exit_data, size_of::<illumos::VmExit>())?.copy_from_slice(exit_told.as_bytes());
            }
        }
        Ok(told)
    }

    // -- illumos ----------------------------------------------------------------------------------------------------

    /// VM_RUN with what userspace made of the last exit. An exit that asks for something comes again until it gets it. EINVAL when userspace
    /// brings what nobody asked for. \[inferred]
    ///
    /// With VEC_FLAG_EXIT_CONSISTENT the vCPU does not enter the guest once nothing is asked for any more: the exit is BOGUS. What was
    /// brought is committed by the run after that. \[inferred]
    fn run_entry(&self, st: &mut State<'_>, id: usize, entry: illumos::VmEntry) -> Result<VmExit, Errno> {
        self.await_idle(st, id);
        self.ensure_engine(st, id);
        let wanted = st.vcpu(id).unfulfilled;
        let wanted_code = wanted.map(|exit| exit.exitcode);
        match (entry.cmd & !entry_cmd::FLAG_EXIT_CONSISTENT, wanted) {
            (entry_cmd::DEFAULT, None) => {}
            (entry_cmd::DEFAULT, Some(again)) => {
                return Ok(VmExit { exitcode: again.exitcode, rip: again.rip, ..VmExit::default() });
            }
            (entry_cmd::DISCARD_INSTR, _) => st.vcpu(id).abandon_in_flight(),
            (entry_cmd::FULFILL_MMIO, Some(_)) if wanted_code == Some(illumos::exitcode::MMIO) => {
                let mmio: illumos::VmMmio = load(&entry.fulfil);
                st.vcpu(id).fulfil(if mmio.read != 0 { Completion::Value(mmio.data) } else { Completion::Done });
            }
            (entry_cmd::FULFILL_INOUT, Some(_)) if wanted_code == Some(illumos::exitcode::INOUT) => {
                let inout: illumos::VmInout = load(&entry.fulfil);
                let value = inout.is_in().then(|| Completion::Value(u64::from(inout.eax)));
                st.vcpu(id).fulfil_inout(value);
            }
            _ => return Err(Errno::EINVAL),
        }
        if entry.cmd & entry_cmd::FLAG_EXIT_CONSISTENT != 0 {
            return Ok(VmExit { exitcode: exitcode::BOGUS, ..VmExit::default() });
        }
        self.vm_run(st, id)
    }

    /// The exit in illumos's own structures. One that asks for something is kept, to be told again.
    fn exit_of_illumos(&self, st: &mut State<'_>, id: usize, exit: &VmExit) -> illumos::VmExit {
        let vcpu = st.vcpu(id);
        if let Some(again) = vcpu.unfulfilled.filter(|again| again.exitcode == exit.exitcode) {
            return again;
        }
        let mut told = match exit.exitcode {
            exitcode::INOUT => {
                let inout: ExitInout = exit.payload();
                let flags = if inout.is_in() { illumos::VmInout::IN } else { 0 };
                let (eax, port, bytes) = (inout.eax, inout.port, inout.bytes());
                let inout = illumos::VmInout { eax, port, bytes, flags, ..illumos::VmInout::default() };
                illumos::VmExit::new(illumos::exitcode::INOUT, &inout)
            }
            exitcode::SUSPENDED => {
                let ExitSuspended { how } = exit.payload();
                let suspended = illumos::ExitSuspended { how, source: -1, when: st.suspended_at };
                illumos::VmExit::new(illumos::exitcode::SUSPENDED, &suspended)
            }
            code => {
                let mut told = illumos::VmExit { exitcode: code, ..illumos::VmExit::default() };
                told.payload.copy_from_slice(&exit.payload[..illumos::EXIT_PAYLOAD_LEN]);
                told
            }
        };
        (told.inst_length, told.rip) = (exit.inst_length, exit.rip);
        if matches!(told.exitcode, illumos::exitcode::INOUT | illumos::exitcode::MMIO) {
            st.vcpu(id).unfulfilled = Some(told);
        }
        told
    }

    /// The requests that illumos alone has.
    fn dispatch_illumos(
        &self,
        st: &mut State<'_>,
        request: Request,
        arg: &mut [u8],
        named: &mut dyn FnMut(i32) -> i32,
    ) -> Result<(), Errno> {
        match request {
            illumos::VM_RESET_CPU => {
                let reset: illumos::VmVcpuReset = load(arg);
                let target = self.idle_vcpu(st, named(reset.vcpuid))?;
                Vm::reset_cpu(target, reset)
            }
            illumos::VM_GET_RUN_STATE => {
                let illumos::VmRunState { vcpuid, .. } = load(arg);
                let state = Vm::get_run_state(self.idle_vcpu(st, named(vcpuid))?, vcpuid);
                store(arg, &state);
                Ok(())
            }
            illumos::VM_SET_RUN_STATE => {
                let wanted: illumos::VmRunState = load(arg);
                let id = self.idle_vcpu(st, named(wanted.vcpuid))?.id;
                self.set_run_state(st, id, wanted)
            }
            illumos::VM_DEVMEM_GETOFFSET => {
                let mut devmem: illumos::VmDevmemOffset = load(arg);
                devmem.offset = st.memory.devmem_offset(devmem.segid)?;
                store(arg, &devmem);
                Ok(())
            }
            // Those of /dev/vmmctl are not the VM's.
            _ => Err(Errno::ENOTTY),
        }
    }

    // ---------------------------------------------------------------------------------------------------------------

    fn record_ioctl(&self, request: Request, vcpu: Option<i32>, detail: String, result: Result<(), Errno>) {
        let event = Event::Ioctl {
            name: request_name(request).to_owned(),
            request: request.0,
            detail,
            errno: result.map_or_else(Errno::number, |()| 0),
        };
        self.host.emit(vcpu.and_then(|id| u16::try_from(id).ok()), event);
    }

    /// Everything but VM_RUN. `vcpu` is set to the vCPU that the request names, for the record.
    fn dispatch(&self, st: &mut State<'_>, call: Call, arg: &mut [u8], vcpu: &mut Option<i32>) -> Result<(), Errno> {
        let Call { request, form, .. } = call;
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
                target.set_capability(self.capability(captype)?, capval)?;
            }
            VM_GET_CAPABILITY => {
                let mut capability: VmCapability = load(arg);
                let target = self.idle_vcpu(st, named(capability.cpuid))?;
                capability.capval = target.capability(self.capability(capability.captype)?)?;
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
            VM_GET_CPUS => self.get_cpus(st, arg)?,
            // illumos's begins with the same word.
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
                let Memseg { segid, len, name } = Memseg::load(form, arg);
                let allocated = st.memory.alloc(self.own_segid(form, segid), len, name);
                self.mapped(allocated)?;
            }
            VM_GET_MEMSEG => {
                let Memseg { segid, .. } = Memseg::load(form, arg);
                let (len, name) = st.memory.segment(self.own_segid(form, segid))?;
                Memseg { segid, len, name: name.to_owned() }.store(form, arg);
            }
            VM_MMAP_MEMSEG => {
                let VmMemmap { gpa, segid, segoff, len, prot, flags, .. } = load(arg);
                let segid = self.mmap_segid(st, segid);
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
            _ if form == Form::Illumos && !REQUESTS.iter().any(|(_, plain)| *plain == request) => {
                self.dispatch_illumos(st, request, arg, &mut named)?;
            }
            _ => self.dispatch_board(st, call, arg, &mut named)?,
        }
        Ok(())
    }

    /// The requests that concern the board's devices, and the statistics.
    fn dispatch_board(
        &self,
        st: &mut State<'_>,
        call: Call,
        arg: &mut [u8],
        named: &mut dyn FnMut(i32) -> i32,
    ) -> Result<(), Errno> {
        let Call { request, form, .. } = call;
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
                let id = self.vcpu_id(st, named(load(arg)))?;
                let counters = st.vcpu(id).counters;
                let (tv_sec, tv_usec) = ((now / 1_000_000_000) as i64, (now / 1_000 % 1_000_000) as i64);
                if form == Form::V13 {
                    let mut stats: VmStats = load(arg);
                    (stats.tv_sec, stats.tv_usec) = (tv_sec, tv_usec);
                    stats.num_entries = copy_stats(&counters, 0, &mut stats.statbuf)?;
                    store(arg, &stats);
                } else {
                    // illumos's vm_stats is laid out as that of 14.
                    let mut stats: abi::v14::VmStats = load(arg);
                    (stats.tv_sec, stats.tv_usec) = (tv_sec, tv_usec);
                    stats.num_entries = copy_stats(&counters, stats.index, &mut stats.statbuf)?;
                    store(arg, &stats);
                }
            }
            VM_STAT_DESC => {
                let mut description: VmStatDesc = load(arg);
                let index = usize::try_from(description.index).map_err(|_| Errno::EINVAL)?;
                let name = Counter::NAMES.get(index).ok_or(Errno::EINVAL)?;
                description.desc = [0; 128];
                description.desc[..name.len()].copy_from_slice(name.as_bytes());
                store(arg, &description);
            }
            VM_SNAPSHOT_REQ => self.snapshot_req(st, form, arg)?,
            // Devices keep the time of the host, which needs no setting right.
            VM_RESTORE_TIME => {}
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

    /// `vm_set_capability`, `vm_get_capability`: the capability by its number here; EINVAL outside the kernel's range.
    fn capability(&self, captype: i32) -> Result<i32, Errno> {
        let b = &self.behaviour;
        if b.boundary == Boundary::Illumos {
            return capability_of_illumos(captype).ok_or(Errno::EINVAL);
        }
        let max = if b.rflags_tf {
            cap::MAX_WITH_RFLAGS_TF
        } else if b.mask_hwintr {
            cap::MAX_WITH_MASK_HWINTR
        } else if b.ipi_exit {
            cap::MAX_WITH_IPI_EXIT
        } else {
            cap::MAX_BEFORE_IPI_EXIT
        };
        if (0..max).contains(&captype) { Ok(captype) } else { Err(Errno::EINVAL) }
    }

    /// `vm_set_topology`.
    fn set_topology(&self, st: &mut State<'_>, topology: VmCpuTopology) -> Result<(), Errno> {
        if matches!(self.behaviour.max_cpus, MaxCpus::CompiledIn(_)) && topology.maxcpus != 0 {
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

    /// VM_GET_CPUS. ERANGE when the caller's set is empty, larger than the kernel's, or too small for the highest member. The debug set is
    /// unknown to kernels without VM_SUSPEND_CPU, and that of the suspended ones to illumos.
    fn get_cpus(&self, st: &State<'_>, arg: &mut [u8]) -> Result<(), Errno> {
        let request: VmCpuset = load(arg);
        let size = usize::try_from(request.cpusetsize).map_err(|_| Errno::ERANGE)?;
        if !(1..=usize::from(self.behaviour.cpu_setsize) / 8).contains(&size) {
            return Err(Errno::ERANGE);
        }
        let set = match request.which {
            0 => st.active,
            1 if self.behaviour.boundary == Boundary::FreeBsd => st.suspended,
            2 if self.behaviour.cpu_suspend => st.debug,
            _ => return Err(Errno::EINVAL),
        };
        let highest = set.iter().last().map_or(0, |cpu| cpu + 1);
        if highest > size * 8 {
            return Err(Errno::ERANGE);
        }
        user_bytes(arg, request.cpus, size)?.copy_from_slice(&set.words().as_bytes()[..size]);
        Ok(())
    }

    /// The number of a memory segment, which 15 moved, in VM_ALLOC_MEMSEG and VM_GET_MEMSEG of older userspace. \[read]
    fn own_segid(&self, form: Form, segid: i32) -> i32 {
        let moved = self.behaviour.memseg == MemsegAbi::Domains && form != Form::V15 && segid != 0;
        if moved { segid.wrapping_add(abi::v15::SEGID_BOOTROM - 1) } else { segid }
    }

    /// The number of a memory segment in VM_MMAP_MEMSEG, whose structure 15 left as it was, so that nothing tells who asks. 15 takes it
    /// as its own \[read]; a kernel without that part of the change takes the number of a domain that has no memory for an old one.
    fn mmap_segid(&self, st: &State<'_>, segid: i32) -> i32 {
        const OLD_DEVICES: std::ops::RangeInclusive<i32> = 1..=3;
        let empty = st.memory.segment(segid).is_ok_and(|(len, _)| len == 0);
        let old = self.behaviour.mmap_old_segids && OLD_DEVICES.contains(&segid) && empty;
        if old { self.own_segid(Form::V13, segid) } else { segid }
    }

    fn mapped(&self, result: Result<(), MapError>) -> Result<(), Errno> {
        match result {
            Ok(()) => Ok(()),
            Err(MapError::Errno(errno)) => Err(errno),
            Err(MapError::Engine(error)) => self.engine_failed(&error),
        }
    }
}

/// Requests for which no vCPU must run (`vcpu_lock_all`). \[read]
fn of_whole_vm(request: Request) -> bool {
    [VM_ALLOC_MEMSEG, VM_MMAP_MEMSEG, VM_MUNMAP_MEMSEG, VM_REINIT, VM_SNAPSHOT_REQ, VM_RESTORE_TIME].contains(&request)
}

/// The structure that an argument begins with.
pub(super) fn load<T: FromBytes>(arg: &[u8]) -> T {
    T::read_from_prefix(arg).expect("the argument is as long as the request says").0
}

/// Puts the structure back.
pub(super) fn store<T: IntoBytes + Immutable>(arg: &mut [u8], value: &T) {
    arg[..size_of::<T>()].copy_from_slice(value.as_bytes());
}

/// `vmm_stat_copy`: statistics from `index` on; how many. EINVAL for an index below 0, ENOENT for one past the last. \[inferred]
fn copy_stats(counters: &[u64], index: i32, buffer: &mut [u64]) -> Result<i32, Errno> {
    let index = usize::try_from(index).map_err(|_| Errno::EINVAL)?;
    let wanted = counters.get(index..).filter(|wanted| !wanted.is_empty()).ok_or(Errno::ENOENT)?;
    let len = wanted.len().min(buffer.len());
    buffer[..len].copy_from_slice(&wanted[..len]);
    Ok(len as i32)
}

/// What every `vm_memseg` says.
struct Memseg {
    segid: i32,
    len: u64,
    name: String,
}

impl Memseg {
    fn load(form: Form, arg: &[u8]) -> Memseg {
        macro_rules! load_as {
            ($type:ty) => {{
                let memseg: $type = load(arg);
                Memseg { segid: memseg.segid, len: memseg.len, name: memseg.name() }
            }};
        }
        match form {
            Form::V12 => load_as!(abi::v12::VmMemseg),
            Form::V13 | Form::V14 | Form::Wide => load_as!(VmMemseg),
            Form::V15 => load_as!(abi::v15::VmMemseg),
            Form::Illumos => load_as!(illumos::VmMemseg),
        }
    }

    fn store(self, form: Form, arg: &mut [u8]) {
        macro_rules! store_as {
            ($type:ty) => {{
                let memseg: $type = load(arg);
                store(arg, &<$type>::new(memseg.segid, self.len, &self.name));
            }};
        }
        match form {
            Form::V12 => store_as!(abi::v12::VmMemseg),
            Form::V13 | Form::V14 | Form::Wide => store_as!(VmMemseg),
            Form::V15 => store_as!(abi::v15::VmMemseg),
            Form::Illumos => store_as!(illumos::VmMemseg),
        }
    }
}

/// The bytes that a pointer in an argument names: it counts from the argument's first byte.
pub(super) fn user_bytes(arg: &mut [u8], pointer: u64, len: usize) -> Result<&mut [u8], Errno> {
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

/// The payload of an exit of FreeBSD's, for the trace.
fn payload_in_words(exit: &VmExit, mask: CpuSet, told: CpuSet) -> String {
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
            let mut words = format!("mode={:#x} vector={:#04x} dmask={told}", ipi.mode, ipi.vector);
            let lost = mask - told;
            if !lost.is_empty() {
                let _ = write!(words, " without {lost}, for whom it has no room");
            }
            words
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
fn argument_in_words(call: Call, arg: &[u8]) -> String {
    match call.request {
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
            format!("{}={capval}", capability_name(call.form, captype))
        }
        VM_GET_CAPABILITY => capability_name(call.form, load::<VmCapability>(arg).captype).to_owned(),
        VM_SET_X2APIC_STATE => format!("state={}", load::<VmX2apic>(arg).state),
        VM_ALLOC_MEMSEG => {
            let Memseg { segid, len, name } = Memseg::load(call.form, arg);
            format!("segid={segid} len={len:#x} name={name:?}")
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
        illumos::VM_SET_RUN_STATE => {
            let illumos::VmRunState { state, sipi_vector, .. } = load(arg);
            format!("state={state:#x} sipi_vector={sipi_vector:#04x}")
        }
        illumos::VM_RESET_CPU => format!("kind={}", load::<illumos::VmVcpuReset>(arg).kind),
        VM_INJECT_EXCEPTION => format!("vector={}", load::<VmException>(arg).vector),
        _ => String::new(),
    }
}

fn register_name(number: i32) -> String {
    Reg::from_number(number).map_or_else(|| number.to_string(), |reg| format!("{reg:?}").to_lowercase())
}

fn capability_name(form: Form, captype: i32) -> &'static str {
    const NAMES: [&str; cap::MAX_WITH_RFLAGS_TF as usize] = [
        "HALT_EXIT",
        "MTRAP_EXIT",
        "PAUSE_EXIT",
        "UNRESTRICTED_GUEST",
        "ENABLE_INVPCID",
        "BPT_EXIT",
        "RDPID",
        "RDTSCP",
        "IPI_EXIT",
        "MASK_HWINTR",
        "RFLAGS_TF",
    ];
    let captype = if form == Form::Illumos { capability_of_illumos(captype).unwrap_or(-1) } else { captype };
    usize::try_from(captype).ok().and_then(|index| NAMES.get(index).copied()).unwrap_or("unknown")
}
