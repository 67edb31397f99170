//! `kvm_run`: the memory that a vCPU shares with KVM.
#![allow(unsafe_code, reason = "KVM reads and writes the memory, so it is accessed through raw pointers")]

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs, kvm_run, kvm_sregs, kvm_sync_regs,
    kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, Ordering};

/// Offset of a field of the exit's description.
macro_rules! exit_field {
    ($($field:ident).+) => {
        offset_of!(kvm_run, __bindgen_anon_1.$($field).+)
    };
}

/// A port access (`KVM_EXIT_IO`): `count` elements of `size` bytes at `data_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Io {
    pub(super) out: bool,
    pub(super) size: u8,
    pub(super) port: u16,
    pub(super) count: u32,
    pub(super) data_offset: u64,
}

/// An access to an address without memory (`KVM_EXIT_MMIO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mmio {
    pub(super) gpa: u64,
    pub(super) size: u8,
    /// The value written.
    pub(super) write: Option<u64>,
}

/// An access to an MSR (`KVM_EXIT_X86_RDMSR`, `KVM_EXIT_X86_WRMSR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Msr {
    pub(super) index: u32,
    /// The value written.
    pub(super) value: u64,
}

/// Data that may have any bytes.
///
/// # Safety
///
/// Every bit pattern must be a value of the type, and the type must have no padding.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: it is an integer.
unsafe impl Plain for u8 {}
// SAFETY: it is an integer.
unsafe impl Plain for u16 {}
// SAFETY: it is an integer.
unsafe impl Plain for u32 {}
// SAFETY: it is an integer.
unsafe impl Plain for u64 {}
// SAFETY: they are integers.
unsafe impl Plain for [u8; 8] {}
// SAFETY: it consists of integers, and KVM's interface has its padding spelt out as fields.
unsafe impl Plain for kvm_regs {}
// SAFETY: as for `kvm_regs`.
unsafe impl Plain for kvm_sregs {}
// SAFETY: as for `kvm_regs`.
unsafe impl Plain for kvm_vcpu_events {}

/// Registers that KVM leaves in and takes from `kvm_run` (`KVM_CAP_SYNC_REGS`).
pub(super) trait Synced: Plain {
    /// Which they are, in `kvm_valid_regs` and `kvm_dirty_regs`.
    const BIT: u64;
    /// Where they lie in `kvm_sync_regs`.
    const OFFSET: usize;
}

impl Synced for kvm_regs {
    const BIT: u64 = KVM_SYNC_X86_REGS as u64;
    const OFFSET: usize = offset_of!(kvm_sync_regs, regs);
}

impl Synced for kvm_sregs {
    const BIT: u64 = KVM_SYNC_X86_SREGS as u64;
    const OFFSET: usize = offset_of!(kvm_sync_regs, sregs);
}

impl Synced for kvm_vcpu_events {
    const BIT: u64 = KVM_SYNC_X86_EVENTS as u64;
    const OFFSET: usize = offset_of!(kvm_sync_regs, events);
}

/// All of them.
pub(super) const SYNCED: u64 = kvm_regs::BIT | kvm_sregs::BIT | kvm_vcpu_events::BIT;

/// A mapping of a vCPU's `kvm_run` of our own, beside that of kvm-ioctls, which lends its own out as one exclusive
/// reference: here a kick can set `immediate_exit` while the vCPU runs, and after it is gone.
///
/// All but [`RunPage::set_immediate_exit`] is for the task that uses the vCPU.
pub(super) struct RunPage {
    map: MmapRaw,
}

impl RunPage {
    /// Maps `kvm_run`, `size` bytes long (`KVM_GET_VCPU_MMAP_SIZE`).
    pub(super) fn map(vcpu: &VcpuFd, size: usize) -> io::Result<RunPage> {
        assert!(size >= size_of::<kvm_run>(), "KVM's kvm_run is shorter than it ever was");
        let page = RunPage { map: MmapOptions::new().len(size).map_raw(vcpu)? };
        page.write(offset_of!(kvm_run, kvm_valid_regs), SYNCED);
        Ok(page)
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.map.len());
        assert!(inside && offset.is_multiple_of(align_of::<T>()), "{offset:#x} is not in kvm_run");
        self.map.as_mut_ptr().wrapping_add(offset).cast()
    }

    fn read<T: Plain>(&self, offset: usize) -> T {
        // SAFETY: `at` proved the place to lie inside the mapping and to be aligned, any bytes are a `T`, and KVM does
        // not write while this vCPU's task is not in KVM_RUN.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn write<T: Plain>(&self, offset: usize, value: T) {
        // SAFETY: as in `read`; KVM takes any bytes.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    /// Whether the present or next `KVM_RUN` shall return with `EINTR` before it enters the guest. For all threads.
    pub(super) fn set_immediate_exit(&self, exit: bool) {
        let place = self.at::<u8>(offset_of!(kvm_run, immediate_exit));
        // SAFETY: the place is valid as long as `self`, and nobody accesses it but through here, and KVM, atomically.
        unsafe { AtomicU8::from_ptr(place) }.store(exit.into(), Ordering::SeqCst);
    }

    pub(super) fn set_request_interrupt_window(&self, wanted: bool) {
        self.write(offset_of!(kvm_run, request_interrupt_window), u8::from(wanted));
    }

    /// `KVM_EXIT_*`.
    pub(super) fn exit_reason(&self) -> u32 {
        self.read(offset_of!(kvm_run, exit_reason))
    }

    /// Registers as KVM left them.
    pub(super) fn synced<T: Synced>(&self) -> T {
        self.read(offset_of!(kvm_run, s) + T::OFFSET)
    }

    /// Registers for KVM to take, if [`RunPage::set_dirty_regs`] says so.
    pub(super) fn set_synced<T: Synced>(&self, value: T) {
        self.write(offset_of!(kvm_run, s) + T::OFFSET, value);
    }

    /// Which registers the next `KVM_RUN` shall take.
    pub(super) fn set_dirty_regs(&self, bits: u64) {
        self.write(offset_of!(kvm_run, kvm_dirty_regs), bits);
    }

    pub(super) fn cr8(&self) -> u64 {
        self.read(offset_of!(kvm_run, cr8))
    }

    pub(super) fn set_cr8(&self, cr8: u64) {
        self.write(offset_of!(kvm_run, cr8), cr8);
    }

    pub(super) fn io(&self) -> Io {
        Io {
            out: u32::from(self.read::<u8>(exit_field!(io.direction))) == kvm_bindings::KVM_EXIT_IO_OUT,
            size: self.read(exit_field!(io.size)),
            port: self.read(exit_field!(io.port)),
            count: self.read(exit_field!(io.count)),
            data_offset: self.read(exit_field!(io.data_offset)),
        }
    }

    /// Reads an element of a port access.
    pub(super) fn io_data(&self, io: &Io, index: u32) -> u32 {
        let bytes: [u8; 4] = std::array::from_fn(|byte| match byte < io.size.into() {
            true => self.read(element(io, index) + byte),
            false => 0,
        });
        u32::from_le_bytes(bytes)
    }

    /// Writes an element of a port access.
    pub(super) fn set_io_data(&self, io: &Io, index: u32, value: u32) {
        for (byte, value) in value.to_le_bytes().into_iter().enumerate().take(io.size.into()) {
            self.write(element(io, index) + byte, value);
        }
    }

    pub(super) fn mmio(&self) -> Mmio {
        let size = u8::try_from(self.read::<u32>(exit_field!(mmio.len))).unwrap_or(8).min(8);
        let written = self.read::<[u8; 8]>(exit_field!(mmio.data));
        let written = u64::from_le_bytes(std::array::from_fn(|i| if i < size.into() { written[i] } else { 0 }));
        Mmio {
            gpa: self.read(exit_field!(mmio.phys_addr)),
            size,
            write: (self.read::<u8>(exit_field!(mmio.is_write)) != 0).then_some(written),
        }
    }

    /// Answers a read from an address without memory.
    pub(super) fn set_mmio_data(&self, value: u64) {
        self.write(exit_field!(mmio.data), value.to_le_bytes());
    }

    pub(super) fn msr(&self) -> Msr {
        Msr { index: self.read(exit_field!(msr.index)), value: self.read(exit_field!(msr.data)) }
    }

    /// Answers an access to an MSR: with the value read, or with #GP.
    pub(super) fn set_msr(&self, answer: Option<u64>) {
        self.write(exit_field!(msr.error), u8::from(answer.is_none()));
        self.write(exit_field!(msr.data), answer.unwrap_or(0));
    }

    /// `KVM_INTERNAL_ERROR_*` and what comes with it.
    pub(super) fn internal_error(&self) -> (u32, Vec<u64>) {
        let data = exit_field!(internal.data);
        let count = self.read::<u32>(exit_field!(internal.ndata)).min(16) as usize;
        let suberror = self.read(exit_field!(internal.suberror));
        (suberror, (0..count).map(|index| self.read(data + 8 * index)).collect())
    }

    /// Why the hardware refused the guest's state.
    pub(super) fn fail_entry_reason(&self) -> u64 {
        self.read(exit_field!(fail_entry.hardware_entry_failure_reason))
    }
}

/// Where an element of a port access lies.
fn element(io: &Io, index: u32) -> usize {
    // Out of range is caught where the place is used.
    usize::try_from(io.data_offset).unwrap_or(usize::MAX).saturating_add(usize::from(io.size) * index as usize)
}
