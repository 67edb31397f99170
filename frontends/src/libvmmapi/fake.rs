//! A kernel for tests: it keeps just enough state to answer, follows a script of exits, and writes down every call.

use super::sys::{DeviceFile, SharedMemory, System};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use vmm::abi::illumos::{self, VmEntry, VmInout, entry_cmd};
use vmm::abi::vmmctl::{VMMCTL_VM_CREATE, VMMCTL_VM_DESTROY};
use vmm::abi::{
    self, Errno, ExitInout, ExitIpi, ExitSuspended, Request, VmExit, exitcode, request_name, v12, v14, v15,
};
use vmm::cpuset::CpuSet;
use vmm::engine::Reg;
use vmm::host::{Host, WaitChannel};
use zerocopy::{FromBytes, IntoBytes};

/// What the vCPUs of the fake wait on when their script is done or they are suspended.
const CHANGED: WaitChannel = WaitChannel(1);

/// The kernel that a test wants.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The VM is there already.
    pub(crate) name_taken: bool,
    /// VM_CAP_IPI_EXIT exists.
    pub(crate) ipi_exit: bool,
    /// VMM_INTERFACE_VERSION, of illumos.
    pub(crate) interface_version: i32,
    /// A vCPU in the debug set comes back from VM_RUN with DEBUG, once for each time that it is suspended.
    pub(crate) debug_exits: bool,
    /// The most vCPUs of a VM.
    pub(crate) maxcpus: u16,
    /// Calls that fail: how they begin in the log, and with what.
    pub(crate) failing: Vec<(&'static str, Errno)>,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            name_taken: false,
            ipi_exit: true,
            interface_version: 18,
            debug_exits: false,
            maxcpus: 16,
            failing: Vec::new(),
        }
    }
}

#[derive(Default)]
struct State {
    log: Vec<String>,
    /// There is a VM.
    created: bool,
    active: CpuSet,
    debug: CpuSet,
    /// Those of the debug set whose VM_RUN has come back with DEBUG.
    told: CpuSet,
    registers: BTreeMap<(i32, i32), u64>,
    descriptors: BTreeMap<(i32, i32), abi::VmSegDesc>,
    /// Length and name.
    segments: BTreeMap<i32, (u64, String)>,
    scripts: BTreeMap<i32, VecDeque<VmExit>>,
    suspended: Option<i32>,
    memory: BTreeMap<String, Vec<u8>>,
}

/// The kernel; clones are the same.
#[derive(Clone)]
pub(crate) struct FakeKernel {
    host: Host,
    rules: Rules,
    state: Arc<Mutex<State>>,
}

impl FakeKernel {
    pub(crate) fn new(host: &Host, rules: Rules) -> FakeKernel {
        let state = State { created: rules.name_taken, ..State::default() };
        FakeKernel { host: host.clone(), rules, state: Arc::new(Mutex::new(state)) }
    }

    /// Appends to what VM_RUN of the vCPU returns.
    pub(crate) fn script(&self, vcpu: i32, exits: impl IntoIterator<Item = VmExit>) {
        self.state.lock().scripts.entry(vcpu).or_default().extend(exits);
    }

    /// Every call so far, one line each; runs of register writes of one vCPU are one line.
    pub(crate) fn calls(&self) -> Vec<String> {
        let mut calls: Vec<String> = Vec::new();
        for line in &self.state.lock().log {
            let is_write = line.starts_with("VM_SET_REGISTER") || line.starts_with("VM_SET_SEGMENT");
            let vcpu = line.split(' ').nth(1).unwrap_or_default();
            let short = if is_write { format!("registers of {vcpu}") } else { line.clone() };
            if !is_write || calls.last() != Some(&short) {
                calls.push(short);
            }
        }
        calls
    }

    /// A register of a vCPU, as last written.
    pub(crate) fn register(&self, vcpu: i32, reg: Reg) -> Option<u64> {
        self.state.lock().registers.get(&(vcpu, reg as i32)).copied()
    }

    /// The base of a segment register, as last written.
    pub(crate) fn base(&self, vcpu: i32, reg: Reg) -> Option<u64> {
        self.state.lock().descriptors.get(&(vcpu, reg as i32)).map(|desc| desc.base)
    }

    /// `len` bytes of a mapping: `ram`, or the name of a segment.
    pub(crate) fn memory(&self, mapping: &str, at: usize, len: usize) -> Vec<u8> {
        self.state.lock().memory[mapping][at..][..len].to_vec()
    }

    /// Notes a call, and fails it if the test wants that.
    fn call(&self, line: String) -> Result<(), Errno> {
        // A thread that was made later has a later clock, and its first turn later: the order is the same for every seed.
        self.host.charge(1);
        let failing = self.rules.failing.iter().find(|(call, _)| line.starts_with(call));
        let result = failing.map_or(Ok(()), |(_, errno)| Err(*errno));
        self.state.lock().log.push(line);
        result
    }

    fn create(&self) -> Result<(), Errno> {
        let taken = std::mem::replace(&mut self.state.lock().created, true);
        if taken { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// The VM is gone with all that was in it.
    fn destroy(&self) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.created, false) {
            return Err(Errno::EINVAL);
        }
        (state.active, state.debug) = (CpuSet::EMPTY, CpuSet::EMPTY);
        state.segments.clear();
        Ok(())
    }

    fn map(&self, mapping: &str, len: u64) -> Arc<dyn SharedMemory> {
        /// No test looks further.
        const KEPT: u64 = 16 << 20;
        self.state.lock().memory.insert(mapping.to_owned(), vec![0; len.min(KEPT) as usize]);
        Arc::new(FakeMemory { kernel: self.clone(), mapping: mapping.to_owned() })
    }

    /// VM_RUN: the next exit of the script, or SUSPENDED; else it waits for either.
    fn run(&self, vcpu: i32) -> VmExit {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(how) = state.suspended {
                    return VmExit::new(exitcode::SUSPENDED, &ExitSuspended { how });
                }
                let debug = state.debug.contains(vcpu as usize);
                if self.rules.debug_exits && debug && state.told.insert(vcpu as usize) {
                    return VmExit { exitcode: exitcode::DEBUG, ..VmExit::default() };
                }
                if let Some(exit) = state.scripts.get_mut(&vcpu).filter(|_| !debug).and_then(VecDeque::pop_front) {
                    return exit;
                }
            }
            self.host.wait(CHANGED, None);
        }
    }
}

struct FakeMemory {
    kernel: FakeKernel,
    mapping: String,
}

impl SharedMemory for FakeMemory {
    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        let mut state = self.kernel.state.lock();
        let memory = state.memory.get_mut(&self.mapping).expect("mapped");
        let Some(range) = memory.get_mut(at as usize..).and_then(|rest| rest.get_mut(..bytes.len())) else {
            return false;
        };
        range.copy_from_slice(bytes);
        true
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
        let state = self.kernel.state.lock();
        let range = state.memory[&self.mapping].get(at as usize..).and_then(|rest| rest.get(..bytes.len()));
        range.map(|range| bytes.copy_from_slice(range)).is_some()
    }
}

impl System for FakeKernel {
    fn vm_create(&self, name: &str) -> Result<(), Errno> {
        self.call(format!("create {name}"))?;
        self.create()
    }

    fn vm_destroy(&self, name: &str) -> Result<(), Errno> {
        self.call(format!("destroy {name}"))?;
        self.destroy()
    }

    fn open_vmmctl(&self) -> Result<Arc<dyn DeviceFile>, Errno> {
        self.call("open /dev/vmmctl".to_owned())?;
        Ok(Arc::new(self.clone()))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, Errno> {
        self.call(format!("open {name}"))?;
        if !self.state.lock().created {
            return Err(Errno::ENOENT);
        }
        Ok(Arc::new(self.clone()))
    }

    fn map_devmem(&self, name: &str, segment: &str) -> Result<Arc<dyn SharedMemory>, Errno> {
        self.call(format!("map {name}.{segment}"))?;
        let segments = self.state.lock().segments.clone();
        let (len, _) = segments.values().find(|(_, name)| name == segment).ok_or(Errno::ENOENT)?;
        Ok(self.map(segment, *len))
    }
}

fn read<T: FromBytes>(argument: &[u8]) -> T {
    T::read_from_prefix(argument).expect("the argument has the size of its structure").0
}

fn write<T: IntoBytes + zerocopy::Immutable>(argument: &mut [u8], value: &T) {
    value.write_to_prefix(argument).expect("the argument has the size of its structure");
}

impl DeviceFile for FakeKernel {
    fn ioctl(&self, request: Request, argument: &mut [u8]) -> Result<(), Errno> {
        let len = illumos::argument_len(request).unwrap_or(request.argument_len());
        assert!(argument.len() >= len, "{}", request_name(request));
        let name = request_name(request);
        match canonical(request) {
            VMMCTL_VM_CREATE | illumos::VMM_CREATE_VM => {
                self.call(name.to_owned())?;
                self.create()?;
            }
            VMMCTL_VM_DESTROY | illumos::VMM_DESTROY_VM => {
                self.call(name.to_owned())?;
                self.destroy()?;
            }
            illumos::VMM_INTERFACE_VERSION => {
                self.call(name.to_owned())?;
                write(argument, &self.rules.interface_version);
            }
            illumos::VM_SET_RUN_STATE => {
                let illumos::VmRunState { vcpuid, state, .. } = read(argument);
                self.call(format!("{name} {vcpuid} {state:#x}"))?;
            }
            illumos::VM_RESET_CPU => {
                let illumos::VmVcpuReset { vcpuid, kind } = read(argument);
                self.call(format!("{name} {vcpuid} {kind}"))?;
            }
            illumos::VM_DEVMEM_GETOFFSET => {
                let illumos::VmDevmemOffset { segid, .. } = read(argument);
                self.call(format!("{name} {segid}"))?;
                let offset = DEVMEM_BASE as i64 + i64::from(segid);
                write(argument, &illumos::VmDevmemOffset { segid, offset, ..Default::default() });
            }
            v14::VM_RUN => {
                let run: v14::VmRun = read(argument);
                self.call(format!("{name} {}", run.cpuid))?;
                let exit = self.run(run.cpuid);
                write(&mut argument[run.vm_exit as usize..], &exit);
                if exit.exitcode == exitcode::IPI {
                    write(&mut argument[run.cpuset as usize..], &exit.payload::<ExitIpi>().dmask);
                }
            }
            illumos::VM_RUN => {
                let entry: VmEntry = read(argument);
                let brings = match entry.cmd {
                    entry_cmd::FULFILL_INOUT => {
                        let inout: VmInout = read(&entry.fulfil);
                        format!(", port {:#x} is {:#x}", inout.port, inout.eax)
                    }
                    entry_cmd::FULFILL_MMIO => {
                        let mmio: illumos::VmMmio = read(&entry.fulfil);
                        format!(", memory at {:#x} is {:#x}", mmio.gpa, mmio.data)
                    }
                    _ => String::new(),
                };
                self.call(format!("{name} {}{brings}", entry.cpuid))?;
                let exit = on_illumos(&self.run(entry.cpuid));
                write(&mut argument[entry.exit_data as usize..], &exit);
            }
            abi::VM_RUN => {
                let run: abi::VmRun = read(argument);
                self.call(format!("{name} {}", run.cpuid))?;
                let vm_exit = self.run(run.cpuid);
                write(argument, &abi::VmRun { vm_exit, ..run });
            }
            abi::VM_SET_CAPABILITY | abi::VM_GET_CAPABILITY => {
                let cap: abi::VmCapability = read(argument);
                let cap_name = ["HALT_EXIT", "MTRAP_EXIT", "PAUSE_EXIT", "UNRESTRICTED_GUEST", "ENABLE_INVPCID"];
                let cap_name = cap_name.get(cap.captype as usize).copied().unwrap_or("IPI_EXIT");
                self.call(format!("{name} {} {cap_name}", cap.cpuid))?;
                if cap.captype == abi::cap::IPI_EXIT && !self.rules.ipi_exit {
                    return Err(Errno::EINVAL);
                }
            }
            abi::VM_SET_TOPOLOGY => {
                let topology: abi::VmCpuTopology = read(argument);
                let abi::VmCpuTopology { sockets, cores, threads, maxcpus } = topology;
                self.call(format!("{name} {sockets} {cores} {threads} {maxcpus}"))?;
                if maxcpus != 0 || sockets * cores * threads > self.rules.maxcpus {
                    return Err(Errno::EINVAL);
                }
            }
            abi::VM_GET_TOPOLOGY => {
                self.call(name.to_owned())?;
                write(argument, &abi::VmCpuTopology { maxcpus: self.rules.maxcpus, ..Default::default() });
            }
            canonical @ (abi::VM_SET_REGISTER | abi::VM_GET_REGISTER) => {
                let mut register: abi::VmRegister = read(argument);
                let reg = Reg::from_number(register.regnum).expect("a register");
                self.call(format!("{name} {} {reg:?}", register.cpuid))?;
                let mut state = self.state.lock();
                let value = state.registers.entry((register.cpuid, register.regnum)).or_default();
                if canonical == abi::VM_SET_REGISTER {
                    *value = register.regval;
                }
                register.regval = *value;
                write(argument, &register);
            }
            canonical @ (abi::VM_SET_SEGMENT_DESCRIPTOR | abi::VM_GET_SEGMENT_DESCRIPTOR) => {
                let desc: abi::VmSegDesc = read(argument);
                let reg = Reg::from_number(desc.regnum).expect("a register");
                self.call(format!("{name} {} {reg:?}", desc.cpuid))?;
                let mut state = self.state.lock();
                let kept = state.descriptors.entry((desc.cpuid, desc.regnum)).or_default();
                if canonical == abi::VM_SET_SEGMENT_DESCRIPTOR {
                    *kept = desc;
                }
                write(argument, &abi::VmSegDesc { cpuid: desc.cpuid, regnum: desc.regnum, ..*kept });
            }
            canonical @ (abi::VM_ACTIVATE_CPU | abi::VM_SUSPEND_CPU | abi::VM_RESUME_CPU) => {
                let abi::VmActivateCpu { vcpuid } = read(argument);
                self.call(format!("{name} {vcpuid}"))?;
                let mut state = self.state.lock();
                let vcpu = vcpuid as usize;
                match canonical {
                    abi::VM_SUSPEND_CPU if vcpuid == -1 => {
                        (state.debug, state.told) = (state.active, CpuSet::EMPTY);
                        drop(state);
                        self.host.wake(CHANGED);
                    }
                    abi::VM_RESUME_CPU if vcpuid == -1 => {
                        state.debug = CpuSet::EMPTY;
                        drop(state);
                        self.host.wake(CHANGED);
                    }
                    abi::VM_ACTIVATE_CPU if !state.active.insert(vcpu) => return Err(Errno::EBUSY),
                    abi::VM_ACTIVATE_CPU => {}
                    _ if !state.active.contains(vcpu) => return Err(Errno::EINVAL),
                    abi::VM_SUSPEND_CPU => {
                        state.debug.insert(vcpu);
                        state.told.remove(vcpu);
                    }
                    _ if !state.debug.remove(vcpu) => return Err(Errno::EINVAL),
                    _ => {
                        drop(state);
                        self.host.wake(CHANGED);
                    }
                }
            }
            abi::VM_SUSPEND => {
                let abi::VmSuspend { how } = read(argument);
                self.call(format!("{name} {}", abi::suspend::name(how)))?;
                if self.state.lock().suspended.replace(how).is_some() {
                    return Err(Errno::EALREADY);
                }
                self.host.wake(CHANGED);
            }
            abi::VM_GET_CPUS => {
                let head: abi::VmCpuset = read(argument);
                self.call(name.to_owned())?;
                let state = self.state.lock();
                let set = if head.which == 0 { state.active } else { state.debug };
                let size = usize::try_from(head.cpusetsize).expect("a size");
                argument[head.cpus as usize..][..size].copy_from_slice(&set.words().as_bytes()[..size]);
            }
            abi::VM_GET_MEMSEG | abi::VM_ALLOC_MEMSEG => {
                // Number and length stand in the same place in every generation; the name stands behind them.
                let segment: abi::VmMemseg = read(argument);
                let bytes = argument.len();
                self.call(format!("{name} {}, {bytes} bytes", segment.segid))?;
                let mut state = self.state.lock();
                if canonical(request) == abi::VM_ALLOC_MEMSEG {
                    state.segments.insert(segment.segid, (segment.len, segment.name()));
                }
                let (len, name) = state.segments.get(&segment.segid).cloned().unwrap_or_default();
                let mut found = abi::VmMemseg { segid: segment.segid, len, ..Default::default() };
                found.name[..name.len()].copy_from_slice(name.as_bytes());
                write(argument, &found);
            }
            abi::VM_REINIT => {
                self.call(name.to_owned())?;
                let mut state = self.state.lock();
                (state.active, state.debug, state.suspended) = (CpuSet::EMPTY, CpuSet::EMPTY, None);
            }
            abi::VM_SNAPSHOT_REQ => {
                /// What every structure is saved as.
                const IMAGE: [u8; 4] = *b"save";
                let mut meta: v14::VmSnapshotMeta =
                    if request == v14::VM_SNAPSHOT_REQ { read(argument) } else { read(&argument[size_of::<u64>()..]) };
                let saves = meta.op == abi::snapshot::op::SAVE;
                let operation = if saves { "save" } else { "restore" };
                self.call(format!("{name} {operation} {}", meta.dev_req))?;
                let buffer = &mut argument[meta.buf as usize..][..IMAGE.len()];
                if saves {
                    buffer.copy_from_slice(&IMAGE);
                } else {
                    assert_eq!(buffer, IMAGE);
                }
                meta.buf += IMAGE.len() as u64;
                meta.buf_rem -= IMAGE.len() as u64;
                let at = if request == v14::VM_SNAPSHOT_REQ { 0 } else { size_of::<u64>() };
                write(&mut argument[at..], &meta);
            }
            abi::VM_MMAP_GETNEXT => {
                self.call(name.to_owned())?;
                return Err(Errno::EINVAL);
            }
            abi::VM_MMAP_MEMSEG => {
                let map: abi::VmMemmap = read(argument);
                let abi::VmMemmap { gpa, segid, segoff, len, prot, .. } = map;
                self.call(format!("{name} {gpa:#x} = segment {segid} + {segoff:#x}, {len:#x} bytes, prot {prot}"))?;
            }
            abi::VM_MUNMAP_MEMSEG => {
                let abi::VmMunmap { gpa, len } = read(argument);
                self.call(format!("{name} {gpa:#x} {len:#x}"))?;
            }
            abi::VM_STATS => {
                let stats: abi::VmStats = read(argument);
                self.call(format!("{name} {}", stats.cpuid))?;
            }
            abi::VM_INJECT_EXCEPTION => {
                let abi::VmException { cpuid, vector, restart_instruction, .. } = read(argument);
                self.call(format!("{name} {cpuid} vector {vector} restart {restart_instruction}"))?;
            }
            abi::VM_SET_X2APIC_STATE => {
                let abi::VmX2apic { cpuid, state } = read(argument);
                self.call(format!("{name} {cpuid} {state}"))?;
            }
            _ => self.call(name.to_owned())?,
        }
        Ok(())
    }

    fn mmap(&self, gpa: u64, len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        self.call(format!("mmap {gpa:#x} {len:#x}"))?;
        let segment = gpa
            .checked_sub(DEVMEM_BASE)
            .and_then(|segid| self.state.lock().segments.get(&(segid as i32)).map(|(_, name)| name.clone()));
        let ram = if gpa == 0 { "ram" } else { "highmem" };
        Ok(self.map(segment.as_deref().unwrap_or(ram), len))
    }
}

/// Where illumos's device holds named segments, one a byte.
const DEVMEM_BASE: u64 = 1 << 40;

/// The request of 13.x that this one is, if its structure is the same as far as it is looked at here.
fn canonical(request: Request) -> Request {
    if [v14::VM_RUN, illumos::VM_RUN].contains(&request) {
        return request;
    }
    let others = [v12::REQUESTS, v14::REQUESTS, v15::REQUESTS, illumos::REQUESTS];
    let found = others.into_iter().flatten().find(|(_, other)| *other == request);
    let named = found.and_then(|(name, _)| abi::REQUESTS.iter().find(|(known, _)| known == name));
    named.map_or(request, |(_, known)| *known)
}

/// An exit of a script as illumos would say it.
fn on_illumos(exit: &VmExit) -> illumos::VmExit {
    let told = match exit.exitcode {
        exitcode::INOUT => {
            let inout: ExitInout = exit.payload();
            let flags = if inout.is_in() { VmInout::IN } else { 0 };
            let (bytes, port, eax) = (inout.bytes(), inout.port, inout.eax);
            illumos::VmExit::new(illumos::exitcode::INOUT, &VmInout { eax, port, bytes, flags, ..Default::default() })
        }
        _ => {
            let mut told = illumos::VmExit { exitcode: exit.exitcode, ..Default::default() };
            told.payload.copy_from_slice(&exit.payload[..illumos::EXIT_PAYLOAD_LEN]);
            told
        }
    };
    illumos::VmExit { rip: exit.rip, inst_length: exit.inst_length, ..told }
}
