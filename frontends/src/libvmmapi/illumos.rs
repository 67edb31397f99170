//! illumos's libvmmapi: the same calls by other numbers, a VM_RUN that brings the results of the exit before, and run states.
//!
//! The numbers are those of `vmm_dev.h`, plain and without a size. \[read] On a FreeBSD kernel each is unknown: ENOTTY.

use super::exit::Exit;
use super::reset::Since;
use super::sys::{DeviceFile, SharedMemory, System};
use super::{Generation, Vm, call, name_field};
use std::sync::Arc;
use vmm::abi::illumos::{self, VmEntry, VmInout, VmMmio, entry_cmd};
use vmm::abi::{self, Errno, Request};
use zerocopy::{FromBytes, IntoBytes};

/// libvmmapi of illumos. Oxide's bhyve-api says the same in Rust.
pub(crate) struct Illumos;

macro_rules! by_name {
    ($request:expr, $($name:ident)*) => {
        match $request {
            $(abi::$name => illumos::$name,)*
            other => other,
        }
    };
}

impl Generation for Illumos {
    fn create(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        call(&*system.open_vmmctl()?, illumos::VMM_CREATE_VM, illumos::VmCreateReq::named(name)).map(drop)
    }

    fn destroy(&self, system: &dyn System, name: &str) -> Result<(), Errno> {
        call(&*system.open_vmmctl()?, illumos::VMM_DESTROY_VM, illumos::VmDestroyReq::named(name)).map(drop)
    }

    fn request(&self, request: Request) -> Request {
        by_name!(
            request,
            VM_MMAP_MEMSEG VM_MMAP_GETNEXT VM_MUNMAP_MEMSEG VM_SET_TOPOLOGY VM_GET_TOPOLOGY VM_ACTIVATE_CPU VM_GET_CPUS
            VM_SUSPEND_CPU VM_RESUME_CPU VM_SET_CAPABILITY VM_GET_CAPABILITY VM_SET_X2APIC_STATE VM_SET_REGISTER
            VM_GET_REGISTER VM_SET_SEGMENT_DESCRIPTOR VM_GET_SEGMENT_DESCRIPTOR VM_INJECT_EXCEPTION VM_LAPIC_MSI
            VM_ISA_ASSERT_IRQ VM_ISA_DEASSERT_IRQ VM_ISA_PULSE_IRQ VM_ISA_SET_IRQ_TRIGGER VM_IOAPIC_ASSERT_IRQ
            VM_IOAPIC_DEASSERT_IRQ VM_IOAPIC_PINCOUNT VM_GET_HPET_CAPABILITIES VM_RTC_WRITE VM_RTC_SETTIME
        )
    }

    fn memseg(&self, file: &dyn DeviceFile, segid: i32) -> Result<(u64, String), Errno> {
        let segment = illumos::VmMemseg { segid, ..illumos::VmMemseg::default() };
        let segment = call(file, illumos::VM_GET_MEMSEG, segment)?;
        Ok((segment.len, segment.name()))
    }

    fn alloc_memseg(&self, file: &dyn DeviceFile, segid: i32, len: u64, name: &str) -> Result<(), Errno> {
        let segment = illumos::VmMemseg { segid, len, name: name_field(name)?, ..illumos::VmMemseg::default() };
        call(file, illumos::VM_ALLOC_MEMSEG, segment).map(drop)
    }

    /// The segment is a part of the VM's own device.
    fn map_devmem(&self, vm: &Vm, segid: i32, _name: &str, len: u64) -> Result<Arc<dyn SharedMemory>, Errno> {
        let wanted = illumos::VmDevmemOffset { segid, ..illumos::VmDevmemOffset::default() };
        let found = call(&*vm.file, illumos::VM_DEVMEM_GETOFFSET, wanted)?;
        vm.file.mmap(u64::try_from(found.offset).map_err(|_| Errno::EINVAL)?, len)
    }

    fn run(&self, vm: &Vm, vcpu: i32) -> Result<Exit, Errno> {
        const HEAD: usize = size_of::<VmEntry>();
        let entry = vm.entries.lock().remove(&vcpu).unwrap_or_else(|| VmEntry::new(vcpu));
        let mut argument = [0; HEAD + size_of::<illumos::VmExit>()];
        argument[..HEAD].copy_from_slice(entry.as_bytes());
        vm.file.ioctl(illumos::VM_RUN, &mut argument)?;
        let exit = illumos::VmExit::read_from_bytes(&argument[HEAD..]).expect("the exit lies behind the entry");
        Ok(Exit::parse_illumos(&exit))
    }

    /// The next VM_RUN says that the access is done, and what IN reads.
    fn complete_inout(&self, vm: &Vm, vcpu: i32, access: &abi::ExitInout, value: u32) -> Result<(), Errno> {
        let (eax, flags) = if access.is_in() { (value, VmInout::IN) } else { (access.eax, 0) };
        let result = VmInout { eax, port: access.port, bytes: access.bytes(), flags, ..VmInout::default() };
        vm.bring(vcpu, VmEntry::new(vcpu).fulfilling(entry_cmd::FULFILL_INOUT, &result));
        Ok(())
    }

    fn reset(&self) -> Since {
        Since::D35622
    }

    fn suspend(&self, file: &dyn DeviceFile, how: i32) -> Result<(), Errno> {
        const NO_VCPU: i32 = -1;
        call(file, illumos::VM_SUSPEND, illumos::VmSuspend { how, source: NO_VCPU }).map(drop)
    }

    fn reinit(&self, file: &dyn DeviceFile) -> Result<(), Errno> {
        call(file, illumos::VM_REINIT, illumos::VmReinit { flags: 0 }).map(drop)
    }

    fn stats(&self, file: &dyn DeviceFile, vcpu: i32) -> Result<Vec<u64>, Errno> {
        let stats = call(file, illumos::VM_STATS, illumos::VmStats { cpuid: vcpu, ..illumos::VmStats::default() })?;
        Ok(stats.statbuf.into_iter().take(usize::try_from(stats.num_entries).unwrap_or(0)).collect())
    }
}

/// What FreeBSD's library does not have.
impl Vm {
    fn bring(&self, vcpu: i32, entry: VmEntry) {
        self.entries.lock().insert(vcpu, entry);
    }

    /// VM_REINIT with VM_REINIT_F_FORCE_SUSPEND: whether the vCPUs are suspended or not.
    pub(crate) fn force_reinit(&self) -> Result<(), Errno> {
        const FORCE_SUSPEND: u64 = 1;
        self.ioctl(illumos::VM_REINIT, illumos::VmReinit { flags: FORCE_SUSPEND }).map(drop)
    }

    /// The next VM_RUN says that the access of an MMIO exit is done, and what a read reads.
    pub(crate) fn complete_mmio(&self, vcpu: i32, access: VmMmio) {
        self.bring(vcpu, VmEntry::new(vcpu).fulfilling(entry_cmd::FULFILL_MMIO, &access));
    }

    /// `vm_set_run_state`: bits of [`illumos::vrs`], and the vector of a STARTUP.
    pub(crate) fn set_run_state(&self, vcpu: i32, state: u32, sipi_vector: u8) -> Result<(), Errno> {
        let run_state = illumos::VmRunState { vcpuid: vcpu, state, sipi_vector, _pad: [0; 3] };
        self.ioctl(illumos::VM_SET_RUN_STATE, run_state).map(drop)
    }
}
