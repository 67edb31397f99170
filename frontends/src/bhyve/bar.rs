//! `+passthru`: a PCI device whose memory BAR the guest can move.
//!
//! When it moves, the thread of the vCPU that wrote the register unmaps and maps it, and each of these ioctls locks every vCPU
//! (`vcpu_lock_all`). That is what `pci_passthru.c` does with the memory of a passed-through device
//! (`VM_UNMAP_PPTDEV_MMIO`, `VM_MAP_PPTDEV_MMIO`) and `pci_fbuf.c` with its frame buffer, of which this one takes the place
//! and the ioctls. \[read] With an INIT under way from another vCPU, kernels before f39768e52e51 (D52968) come to a standstill.

use super::machine::Machine;
use super::process::{Run, status};
use crate::libvmmapi::Segment;
use crate::pc::pci::{BAR_BASE, BAR_SIZE};

/// The way of a register write through the emulation of PCI, before the first ioctl: an estimate, in nanoseconds. Others run
/// meanwhile, and what they begin finds this vCPU's thread in userspace.
const PCI_EMULATION_NS: u64 = 3_000;

/// `PROT_READ | PROT_WRITE`.
const PROT_READ_WRITE: i32 = 3;

/// The memory behind the BAR, mapped where the BAR is at first.
pub(super) fn init(machine: &Machine) -> Run<()> {
    let Machine { process, vm, bar, .. } = machine;
    let failed = |errno| process.err(status::ERROR, "init_pci: framebuffer", errno);
    vm.create_devmem(Segment::Framebuffer, "framebuffer", BAR_SIZE).map_err(failed)?;
    vm.map_segment(BAR_BASE, Segment::Framebuffer, 0, BAR_SIZE, PROT_READ_WRITE).map_err(failed)?;
    *bar.lock() = Some(BAR_BASE);
    Ok(())
}

/// `pci_fbuf_baraddr`, first for the old address and then for the new one. Errors are said and change nothing.
pub(super) fn move_to(machine: &Machine, to: Option<u64>) {
    let Machine { process, vm, bar, .. } = machine;
    process.host.charge(PCI_EMULATION_NS);
    process.host.yield_now();
    let from = bar.lock().take();
    if from.is_some_and(|from| vm.munmap_memseg(from, BAR_SIZE).is_err()) {
        process.eprintln("pci_fbuf: munmap_memseg failed");
    }
    let Some(to) = to else { return };
    match vm.map_segment(to, Segment::Framebuffer, 0, BAR_SIZE, PROT_READ_WRITE) {
        Ok(()) => *bar.lock() = Some(to),
        Err(_) => process.eprintln("pci_fbuf: mmap_memseg failed"),
    }
}
