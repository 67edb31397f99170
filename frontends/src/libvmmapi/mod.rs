//! libvmmapi: the C library through which bhyve speaks to `/dev/vmm`, call for call.
//!
//! What did not change from one version to the next is [`Vm`]. What did is a [`Generation`], one module each: how VM_RUN
//! is called, which exits are known, what `vcpu_reset` writes. Every wrapper is the ioctls that the C function makes, in
//! their order.

pub(crate) mod bhyve_api;
mod exit;
mod illumos;
mod reset;
mod snapshot;
mod sys;
mod v12;
mod v13_1;
mod v13_2;
mod v14;
mod v15;

#[cfg(test)]
pub(crate) mod fake;

pub(crate) use exit::{Exit, Reason};
pub(crate) use illumos::Illumos;
pub(crate) use snapshot::KernelImage;
pub(crate) use sys::{DeviceFile, SharedMemory, System};
pub(crate) use v12::V12;
pub(crate) use v13_1::V13_1;
pub(crate) use v13_2::V13_2;
pub(crate) use v14::V14;
pub(crate) use v15::V15;

use parking_lot::Mutex;
use reset::{Since, Write};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmm::abi::{self, Errno, Request, illumos::VmEntry};
use vmm::cpuset::CpuSet;
use vmm::engine::{Reg, SegDesc};
use zerocopy::{FromBytes, IntoBytes};

/// `VM_SYSMEM`: the memory segment of the guest's RAM.
const VM_SYSMEM: i32 = 0;
/// The vCPU number that stands for all of them in VM_SUSPEND_CPU and VM_RESUME_CPU.
const ALL_CPUS: i32 = -1;
/// `PROT_READ | PROT_WRITE | PROT_EXEC`.
const PROT_ALL: i32 = 7;
/// Where guest RAM below 4 GiB ends at the latest (`lowmem_limit`).
pub(crate) const LOWMEM_LIMIT: u64 = 3 << 30;
/// 4 GiB.
pub(crate) const FOUR_GIB: u64 = 4 << 30;

/// A memory segment beside the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// `VM_BOOTROM`.
    Bootrom,
    /// `VM_FRAMEBUFFER`: here the memory behind the BAR that the guest can move.
    Framebuffer,
}

/// What a version of the library does its own way. The methods with a body do as 13.x does.
pub(crate) trait Generation: Sync {
    /// `vm_create`.
    fn create(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        system.vm_create(name)
    }

    /// `vm_destroy`.
    fn destroy(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        system.vm_destroy(name)
    }

    /// The number of a request whose argument is the same in every generation.
    fn request(&self, request: Request) -> Request {
        request
    }

    /// `sizeof(cpuset_t)` in bytes.
    fn cpuset_size(&self) -> usize {
        32
    }

    /// The number of a memory segment.
    fn segid(&self, segment: Segment) -> i32 {
        match segment {
            Segment::Bootrom => 1,
            Segment::Framebuffer => 2,
        }
    }

    /// VM_GET_MEMSEG: length and name; the length is 0 where there is none.
    fn memseg(&self, file: &dyn DeviceFile, segid: i32) -> Result<(u64, String), Errno> {
        let segment = abi::VmMemseg { segid, ..abi::VmMemseg::default() };
        let segment = call(file, abi::VM_GET_MEMSEG, segment)?;
        Ok((segment.len, segment.name()))
    }

    /// VM_ALLOC_MEMSEG.
    fn alloc_memseg(&self, file: &dyn DeviceFile, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let segment = abi::VmMemseg { segid, len, name: name_field(name)?, ..abi::VmMemseg::default() };
        call(file, abi::VM_ALLOC_MEMSEG, segment).map(drop)
    }

    /// Maps a named memory segment into the process.
    fn map_devmem(&self, vm: &Vm, segid: i32, name: &str, len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        let _ = (segid, len);
        vm.system.map_devmem(&vm.name, name)
    }

    /// VM_RUN, and its exit decoded.
    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno>;

    /// What a port read brings: into RAX, of which the access leaves the rest as it was.
    fn complete_inout(&self, vm: &Vm, vcpu: i32, access: &abi::ExitInout, value: u32) -> Result<(), Errno> {
        if !access.is_in() {
            return Ok(());
        }
        let mask = u32::MAX >> (32 - 8 * u32::from(access.bytes()));
        vm.set_register(vcpu, Reg::Rax, (access.eax & !mask | value & mask).into())
    }

    /// Which writes make up `vcpu_reset`.
    fn reset(&self) -> Since;

    /// VM_SUSPEND.
    fn suspend(&self, file: &dyn DeviceFile, how: i32) -> Result<(), Errno> {
        call(file, abi::VM_SUSPEND, abi::VmSuspend { how }).map(drop)
    }

    /// VM_REINIT.
    fn reinit(&self, file: &dyn DeviceFile) -> Result<(), Errno> {
        file.ioctl(abi::VM_REINIT, &mut [])
    }

    /// VM_STATS: the counters of a vCPU, as many as come at once.
    fn stats(&self, file: &dyn DeviceFile, vcpu: i32) -> Result<Vec<u64>, Errno> {
        let stats = call(file, abi::VM_STATS, abi::VmStats { cpuid: vcpu, ..abi::VmStats::default() })?;
        Ok(stats.statbuf.into_iter().take(usize::try_from(stats.num_entries).unwrap_or(0)).collect())
    }

    /// VM_SNAPSHOT_REQ: saves a structure of the kernel, or restores it from `image`. Returns what was saved.
    fn snapshot(&self, file: &dyn DeviceFile, structure: u32, image: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
        snapshot::request_13(file, structure, image)
    }
}

/// `ioctl` with a structure that goes in and comes back.
fn call<T: IntoBytes + FromBytes>(file: &dyn DeviceFile, request: Request, mut argument: T) -> Result<T, Errno> {
    file.ioctl(request, argument.as_mut_bytes())?;
    Ok(argument)
}

/// VM_RUN with the exit inside its argument, as until e17eca327633 (D40113).
fn run_by_value(file: &dyn DeviceFile, vcpu: i32) -> Result<abi::VmExit, Errno> {
    let run = call(file, abi::VM_RUN, abi::VmRun { cpuid: vcpu, ..abi::VmRun::default() })?;
    Ok(run.vm_exit)
}

/// The name of a memory segment as its structure holds it; EINVAL when it does not fit.
fn name_field<const LEN: usize>(name: &str) -> Result<[u8; LEN], Errno> {
    let mut field = [0; LEN];
    // The last byte is the NUL.
    if name.len() >= field.len() {
        return Err(Errno::EINVAL);
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Ok(field)
}

/// The set in the bytes of a `cpuset_t`, whatever its size.
fn cpuset(bytes: &[u8]) -> CpuSet {
    let bits = bytes
        .iter()
        .enumerate()
        .flat_map(|(i, byte)| (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| 8 * i + bit));
    bits.collect()
}

/// Where the guest's RAM is.
#[derive(Clone)]
pub(crate) struct GuestMemory {
    /// Bytes from guest physical 0 on.
    pub(crate) lowmem: u64,
    /// Bytes from guest physical 4 GiB on.
    pub(crate) highmem: u64,
    mapping: Arc<dyn SharedMemory>,
    high_mapping: Option<Arc<dyn SharedMemory>>,
}

impl GuestMemory {
    /// `paddr_guest2host` and `memcpy`: copies bytes into RAM; `false` when they are not all within the RAM below 4 GiB, or above it.
    #[must_use]
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        self.mapping_of(gpa, bytes.len()).is_some_and(|(mapping, at)| mapping.write(at, bytes))
    }

    /// The same the other way.
    #[must_use]
    pub(crate) fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        self.mapping_of(gpa, bytes.len()).is_some_and(|(mapping, at)| mapping.read(at, bytes))
    }

    /// The mapping that all of these bytes lie in, and where in it they begin.
    fn mapping_of(&self, gpa: u64, len: usize) -> Option<(&dyn SharedMemory, u64)> {
        let len = len as u64;
        if gpa < self.lowmem && len <= self.lowmem - gpa {
            return Some((&*self.mapping, gpa));
        }
        let (mapping, at) = (self.high_mapping.as_deref()?, gpa.checked_sub(FOUR_GIB)?);
        (at < self.highmem && len <= self.highmem - at).then_some((mapping, at))
    }

    /// `vm_snapshot_mem`: all of it; `None` when it cannot be read.
    pub(crate) fn save(&self) -> Option<MemoryImage> {
        let copy = |mapping: &dyn SharedMemory, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            mapping.read(0, &mut bytes).then_some(bytes)
        };
        let low = copy(&*self.mapping, self.lowmem)?;
        let high = self.high_mapping.as_ref().map_or(Some(Vec::new()), |mapping| copy(&**mapping, self.highmem))?;
        Some(MemoryImage { low, high })
    }

    /// `restore_vm_mem`; `false` when it does not fit.
    #[must_use]
    pub(crate) fn restore(&self, image: &MemoryImage) -> bool {
        let high = self.high_mapping.as_ref().is_none_or(|mapping| mapping.write(0, &image.high));
        self.mapping.write(0, &image.low) && high
    }
}

/// A copy of the guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryImage {
    low: Vec<u8>,
    high: Vec<u8>,
}

/// An open virtual machine (`struct vmctx`).
pub(crate) struct Vm {
    name: String,
    system: Arc<dyn System>,
    file: Arc<dyn DeviceFile>,
    generation: &'static dyn Generation,
    /// illumos: what the next VM_RUN of a vCPU brings along.
    entries: Mutex<BTreeMap<i32, VmEntry>>,
}

impl Vm {
    /// `vm_open`.
    pub(crate) fn open(system: &Arc<dyn System>, name: &str, generation: &'static dyn Generation) -> Result<Vm, Errno> {
        let file = system.open(name)?;
        let entries = Mutex::default();
        Ok(Vm { name: name.to_owned(), system: Arc::clone(system), file, generation, entries })
    }

    /// `vm_open` of the same VM by another process.
    pub(crate) fn reopened(&self) -> Result<Vm, Errno> {
        Vm::open(&self.system, &self.name, self.generation)
    }

    /// `vm_create`, and [`Vm::open`].
    pub(crate) fn create(system: &dyn System, name: &str, generation: &dyn Generation) -> Result<(), Errno> {
        generation.create(system, name)
    }

    /// `vm_destroy`.
    pub(crate) fn destroy(&self) -> Result<(), Errno> {
        self.generation.destroy(&*self.system, &self.name)
    }

    fn ioctl<T: IntoBytes + FromBytes>(&self, request: Request, argument: T) -> Result<T, Errno> {
        call(&*self.file, self.generation.request(request), argument)
    }

    // -- the machine ----------------------------------------------------------------------------------------------------

    /// `vm_reinit`.
    pub(crate) fn reinit(&self) -> Result<(), Errno> {
        self.generation.reinit(&*self.file)
    }

    /// `vm_suspend`.
    pub(crate) fn suspend(&self, how: i32) -> Result<(), Errno> {
        self.generation.suspend(&*self.file, how)
    }

    /// `vm_set_topology`.
    pub(crate) fn set_topology(&self, sockets: u16, cores: u16, threads: u16, maxcpus: u16) -> Result<(), Errno> {
        self.ioctl(abi::VM_SET_TOPOLOGY, abi::VmCpuTopology { sockets, cores, threads, maxcpus }).map(drop)
    }

    /// `vm_get_topology`.
    pub(crate) fn topology(&self) -> Result<abi::VmCpuTopology, Errno> {
        self.ioctl(abi::VM_GET_TOPOLOGY, abi::VmCpuTopology::default())
    }

    // -- memory ---------------------------------------------------------------------------------------------------------

    /// `vm_setup_memory` with `VM_MMAP_ALL`: one segment, mapped below 3 GiB and, what does not fit, from 4 GiB on.
    pub(crate) fn setup_memory(&self, bytes: u64) -> Result<GuestMemory, Errno> {
        let lowmem = bytes.min(LOWMEM_LIMIT);
        let highmem = bytes - lowmem;
        let segment = if highmem > 0 { FOUR_GIB + highmem } else { lowmem };
        self.alloc_memseg(VM_SYSMEM, segment, "")?;
        let high_mapping = if highmem > 0 {
            self.mmap_memseg(FOUR_GIB, VM_SYSMEM, FOUR_GIB, highmem, PROT_ALL)?;
            Some(self.file.mmap(FOUR_GIB, highmem)?)
        } else {
            None
        };
        self.mmap_memseg(0, VM_SYSMEM, 0, lowmem, PROT_ALL)?;
        let mapping = self.file.mmap(0, lowmem)?;
        Ok(GuestMemory { lowmem, highmem, mapping, high_mapping })
    }

    /// `vm_create_devmem`.
    pub(crate) fn create_devmem(&self, segment: Segment, name: &str, len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        let segid = self.generation.segid(segment);
        self.alloc_memseg(segid, len, name)?;
        self.generation.map_devmem(self, segid, name, len)
    }

    /// `vm_alloc_memseg`. A segment that is there already will do if it is the same (a loader may have made it).
    fn alloc_memseg(&self, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let (there, its_name) = self.generation.memseg(&*self.file, segid)?;
        if there != 0 {
            return if there == len && its_name == name { Ok(()) } else { Err(Errno::EINVAL) };
        }
        self.generation.alloc_memseg(&*self.file, segid, len, name)
    }

    /// [`Vm::mmap_memseg`] of a segment beside the guest's RAM.
    pub(crate) fn map_segment(
        &self,
        gpa: u64,
        segment: Segment,
        offset: u64,
        len: u64,
        prot: i32,
    ) -> Result<(), Errno> {
        self.mmap_memseg(gpa, self.generation.segid(segment), offset, len, prot)
    }

    /// `vm_mmap_memseg`. A mapping that is there already will do if it is the same. `offset` counts from the segment's
    /// first byte; `prot` is made of `PROT_READ` 1, `PROT_WRITE` 2 and `PROT_EXEC` 4.
    fn mmap_memseg(&self, gpa: u64, segid: i32, offset: u64, len: u64, prot: i32) -> Result<(), Errno> {
        let segoff = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let wanted = abi::VmMemmap { gpa, segid, segoff, len, prot, ..abi::VmMemmap::default() };
        let next = self.ioctl(abi::VM_MMAP_GETNEXT, abi::VmMemmap { gpa, ..abi::VmMemmap::default() });
        if let Ok(there) = next
            && there.gpa == gpa
        {
            return if there == wanted { Ok(()) } else { Err(Errno::EEXIST) };
        }
        self.ioctl(abi::VM_MMAP_MEMSEG, wanted).map(drop)
    }

    /// `vm_munmap_memseg`: takes away one mapping, whole.
    pub(crate) fn munmap_memseg(&self, gpa: u64, len: u64) -> Result<(), Errno> {
        self.ioctl(abi::VM_MUNMAP_MEMSEG, abi::VmMunmap { gpa, len }).map(drop)
    }

    // -- vCPUs ----------------------------------------------------------------------------------------------------------

    /// `vm_run`.
    pub(crate) fn run(&self, vcpu: i32) -> Result<Exit, Errno> {
        self.generation.run(self, vcpu)
    }

    /// `vm_activate_cpu`.
    pub(crate) fn activate_cpu(&self, vcpu: i32) -> Result<(), Errno> {
        self.ioctl(abi::VM_ACTIVATE_CPU, abi::VmActivateCpu { vcpuid: vcpu }).map(drop)
    }

    /// `vm_suspend_cpu`.
    pub(crate) fn suspend_cpu(&self, vcpu: i32) -> Result<(), Errno> {
        self.ioctl(abi::VM_SUSPEND_CPU, abi::VmActivateCpu { vcpuid: vcpu }).map(drop)
    }

    /// `vm_resume_cpu`.
    pub(crate) fn resume_cpu(&self, vcpu: i32) -> Result<(), Errno> {
        self.ioctl(abi::VM_RESUME_CPU, abi::VmActivateCpu { vcpuid: vcpu }).map(drop)
    }

    /// `vm_suspend_all_cpus`: the debug set becomes the active one.
    pub(crate) fn suspend_all_cpus(&self) -> Result<(), Errno> {
        self.suspend_cpu(ALL_CPUS)
    }

    /// `vm_resume_all_cpus`: the debug set becomes empty.
    pub(crate) fn resume_all_cpus(&self) -> Result<(), Errno> {
        self.resume_cpu(ALL_CPUS)
    }

    /// `vm_active_cpus`.
    pub(crate) fn active_cpus(&self) -> Result<CpuSet, Errno> {
        const VM_ACTIVE_CPUS: i32 = 0;
        self.cpus(VM_ACTIVE_CPUS)
    }

    /// `vm_debug_cpus`: those that are suspended one by one or all together.
    pub(crate) fn debug_cpus(&self) -> Result<CpuSet, Errno> {
        const VM_DEBUG_CPUS: i32 = 2;
        self.cpus(VM_DEBUG_CPUS)
    }

    /// `vm_get_cpus`.
    fn cpus(&self, which: i32) -> Result<CpuSet, Errno> {
        const HEAD: usize = size_of::<abi::VmCpuset>();
        let size = self.generation.cpuset_size();
        let head = abi::VmCpuset { which, cpusetsize: size as i32, cpus: HEAD as u64 };
        let mut argument = vec![0; HEAD + size];
        argument[..HEAD].copy_from_slice(head.as_bytes());
        self.file.ioctl(self.generation.request(abi::VM_GET_CPUS), &mut argument)?;
        Ok(cpuset(&argument[HEAD..]))
    }

    /// `vm_get_stats`: the counters of a vCPU.
    pub(crate) fn stats(&self, vcpu: i32) -> Result<Vec<u64>, Errno> {
        self.generation.stats(&*self.file, vcpu)
    }

    /// What the device at the port of an INOUT exit said; 0 for OUT.
    pub(crate) fn complete_inout(&self, vcpu: i32, access: &abi::ExitInout, value: u32) -> Result<(), Errno> {
        self.generation.complete_inout(self, vcpu, access, value)
    }

    /// `vm_set_capability`.
    pub(crate) fn set_capability(&self, vcpu: i32, captype: i32, value: i32) -> Result<(), Errno> {
        let capability = abi::VmCapability { cpuid: vcpu, captype, capval: value, allcpus: 0 };
        self.ioctl(abi::VM_SET_CAPABILITY, capability).map(drop)
    }

    /// `vm_get_capability`.
    pub(crate) fn capability(&self, vcpu: i32, captype: i32) -> Result<i32, Errno> {
        let capability = abi::VmCapability { cpuid: vcpu, captype, capval: 0, allcpus: 0 };
        Ok(self.ioctl(abi::VM_GET_CAPABILITY, capability)?.capval)
    }

    /// `vm_set_x2apic_state`.
    pub(crate) fn set_x2apic_state(&self, vcpu: i32, enabled: bool) -> Result<(), Errno> {
        self.ioctl(abi::VM_SET_X2APIC_STATE, abi::VmX2apic { cpuid: vcpu, state: enabled.into() }).map(drop)
    }

    /// `vm_set_register`.
    pub(crate) fn set_register(&self, vcpu: i32, reg: Reg, value: u64) -> Result<(), Errno> {
        let register = abi::VmRegister { cpuid: vcpu, regnum: reg as i32, regval: value };
        self.ioctl(abi::VM_SET_REGISTER, register).map(drop)
    }

    /// `vm_get_register`.
    pub(crate) fn register(&self, vcpu: i32, reg: Reg) -> Result<u64, Errno> {
        let register = abi::VmRegister { cpuid: vcpu, regnum: reg as i32, regval: 0 };
        Ok(self.ioctl(abi::VM_GET_REGISTER, register)?.regval)
    }

    /// `vm_set_desc`.
    pub(crate) fn set_desc(&self, vcpu: i32, reg: Reg, desc: SegDesc) -> Result<(), Errno> {
        let SegDesc { base, limit, access } = desc;
        let argument = abi::VmSegDesc { cpuid: vcpu, regnum: reg as i32, base, limit, access };
        self.ioctl(abi::VM_SET_SEGMENT_DESCRIPTOR, argument).map(drop)
    }

    /// `vm_get_desc`.
    pub(crate) fn desc(&self, vcpu: i32, reg: Reg) -> Result<SegDesc, Errno> {
        let argument = abi::VmSegDesc { cpuid: vcpu, regnum: reg as i32, ..abi::VmSegDesc::default() };
        let abi::VmSegDesc { base, limit, access, .. } = self.ioctl(abi::VM_GET_SEGMENT_DESCRIPTOR, argument)?;
        Ok(SegDesc { base, limit, access })
    }

    /// `vcpu_reset`. The first error ends it.
    pub(crate) fn vcpu_reset(&self, vcpu: i32) -> Result<(), Errno> {
        reset::writes(self.generation.reset()).try_for_each(|write| match write {
            Write::Register(reg, value) => self.set_register(vcpu, reg, value),
            Write::Descriptor(reg, desc) => self.set_desc(vcpu, reg, desc),
        })
    }

    /// `vm_inject_exception`; the instruction that faulted is restarted.
    pub(crate) fn inject_fault(&self, vcpu: i32, vector: i32, error_code: Option<u32>) -> Result<(), Errno> {
        let exception = abi::VmException {
            cpuid: vcpu,
            vector,
            error_code: error_code.unwrap_or_default(),
            error_code_valid: error_code.is_some().into(),
            restart_instruction: 1,
        };
        self.ioctl(abi::VM_INJECT_EXCEPTION, exception).map(drop)
    }

    // -- interrupts and time --------------------------------------------------------------------------------------------

    /// `vm_isa_pulse_irq`, the same number at both controllers.
    pub(crate) fn isa_pulse_irq(&self, irq: i32) -> Result<(), Errno> {
        self.ioctl(abi::VM_ISA_PULSE_IRQ, abi::VmIsaIrq { atpic_irq: irq, ioapic_irq: irq }).map(drop)
    }

    /// `vm_lapic_msi`.
    pub(crate) fn lapic_msi(&self, addr: u64, msg: u64) -> Result<(), Errno> {
        self.ioctl(abi::VM_LAPIC_MSI, abi::VmLapicMsi { msg, addr }).map(drop)
    }

    /// `vm_isa_assert_irq` and `vm_isa_deassert_irq`; no pin of the I/O APIC is -1.
    pub(crate) fn isa_set_irq(&self, atpic_irq: i32, ioapic_irq: i32, level: bool) -> Result<(), Errno> {
        let request = if level { abi::VM_ISA_ASSERT_IRQ } else { abi::VM_ISA_DEASSERT_IRQ };
        self.ioctl(request, abi::VmIsaIrq { atpic_irq, ioapic_irq }).map(drop)
    }

    /// `vm_ioapic_assert_irq` and `vm_ioapic_deassert_irq`.
    pub(crate) fn ioapic_set_irq(&self, irq: i32, level: bool) -> Result<(), Errno> {
        let request = if level { abi::VM_IOAPIC_ASSERT_IRQ } else { abi::VM_IOAPIC_DEASSERT_IRQ };
        self.ioctl(request, abi::VmIoapicIrq { irq }).map(drop)
    }

    /// `vm_isa_set_irq_trigger` with `LEVEL_TRIGGER`.
    pub(crate) fn isa_set_irq_level_triggered(&self, irq: i32) -> Result<(), Errno> {
        self.ioctl(abi::VM_ISA_SET_IRQ_TRIGGER, abi::VmIsaIrqTrigger { atpic_irq: irq, trigger: 1 }).map(drop)
    }

    /// `vm_ioapic_pincount`.
    pub(crate) fn ioapic_pincount(&self) -> Result<i32, Errno> {
        self.ioctl(abi::VM_IOAPIC_PINCOUNT, 0_i32)
    }

    /// `vm_get_hpet_capabilities`.
    pub(crate) fn hpet_capabilities(&self) -> Result<u32, Errno> {
        Ok(self.ioctl(abi::VM_GET_HPET_CAPABILITIES, abi::VmHpetCap::default())?.capabilities)
    }

    /// `vm_rtc_write`: one byte of NVRAM.
    pub(crate) fn rtc_write(&self, offset: u8, value: u8) -> Result<(), Errno> {
        let data = abi::VmRtcData { offset: offset.into(), value, ..abi::VmRtcData::default() };
        self.ioctl(abi::VM_RTC_WRITE, data).map(drop)
    }

    /// `vm_rtc_settime`, in seconds since 1970.
    pub(crate) fn rtc_settime(&self, secs: i64) -> Result<(), Errno> {
        self.ioctl(abi::VM_RTC_SETTIME, abi::VmRtcTime { secs }).map(drop)
    }
}
