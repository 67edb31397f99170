//! The loader as a program.

use super::layout::{BOOT_CS, BOOT_DS, GDT, PAGE_TABLES, Ram};
use super::{Entry, LoadError, Mode, OsImage, Placed};
use crate::libvmmapi::{Generation, System, Vm};
use std::sync::Arc;
use vmm::abi::{Errno, cap};
use vmm::engine::{Reg, SegDesc};

/// The vCPU that boots.
const BSP: i32 = 0;

/// Why the loader ended without a VM that can run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A system call failed.
    #[error("{call}: {errno}")]
    Call { call: &'static str, errno: Errno },
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Names the call that an error comes from.
trait Calling<T> {
    fn calling(self, call: &'static str) -> Result<T, Failure>;
}

impl<T> Calling<T> for Result<T, Errno> {
    fn calling(self, call: &'static str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::Call { call, errno })
    }
}

/// Makes the VM and loads the kernel into it. `rsdp` is what bhyve is going to put into the guest's memory, if anything.
pub(crate) fn run(
    system: &Arc<dyn System>,
    vm_name: &str,
    memory_bytes: u64,
    image: &OsImage,
    generation: &'static dyn Generation,
    rsdp: Option<&[u8]>,
) -> Result<(), Failure> {
    let placed = image.place(Ram::of(memory_bytes), rsdp)?;
    Vm::create(&**system, vm_name, generation).calling("vm_create")?;
    let vm = Vm::open(system, vm_name, generation).calling("vm_open")?;
    // Protected mode without paging, and APs in real mode, need it; grub-bhyve asks for it too. It comes before memory, for it
    // makes the kernel allocate the vCPU: see `vcpu_lock_all` where there is none (98568a005a19).
    vm.set_capability(BSP, cap::UNRESTRICTED_GUEST, 1).calling("vm_set_capability")?;
    let memory = vm.setup_memory(memory_bytes).calling("vm_setup_memory")?;
    for piece in &placed.pieces {
        assert!(memory.write(piece.gpa, piece.bytes()), "every piece was placed inside memory: {piece:?}");
    }
    enter(&vm, &placed).calling("vm_set_register")
}

/// Writes the BSP's registers as the boot protocols ask for (boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol";
/// Xen, pvh.pandoc; Multiboot 0.6.96, 3.2; Multiboot2 2.0, 3.3).
fn enter(vm: &Vm, placed: &Placed) -> Result<(), Errno> {
    const CR0_PE_NE: u64 = 1 | 1 << 5;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    /// Present, code, readable, accessed; granular; 32-bit or long.
    const CODE_32: u32 = 0xc09b;
    const CODE_64: u32 = 0xa09b;
    /// Present, data, writable, accessed; granular; 32-bit.
    const DATA: u32 = 0xc093;
    /// A busy TSS of 32 or 64 bits.
    const TSS: u32 = 0x8b;
    const UNUSABLE: u32 = 1 << 16;
    let Entry { mode, gdt, rip, rax, rbx, rsi, rsp } = placed.entry;
    if mode == Mode::Real {
        return enter_real_mode(vm, rip, rsp);
    }
    let long_mode = mode == Mode::Long;
    let flat = |access| SegDesc { base: 0, limit: u32::MAX, access };

    if long_mode {
        vm.set_register(BSP, Reg::Efer, EFER_LME_LMA)?;
        vm.set_register(BSP, Reg::Cr4, CR4_PAE)?;
        vm.set_register(BSP, Reg::Cr3, PAGE_TABLES)?;
        vm.set_register(BSP, Reg::Cr0, CR0_PE_NE | CR0_PG)?;
    } else {
        vm.set_register(BSP, Reg::Cr4, 0)?;
        vm.set_register(BSP, Reg::Cr0, CR0_PE_NE)?;
    }
    vm.set_desc(BSP, Reg::Cs, flat(if long_mode { CODE_64 } else { CODE_32 }))?;
    vm.set_register(BSP, Reg::Cs, BOOT_CS.into())?;
    for data in [Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs, Reg::Ss] {
        vm.set_desc(BSP, data, flat(DATA))?;
        vm.set_register(BSP, data, BOOT_DS.into())?;
    }
    vm.set_desc(BSP, Reg::Tr, SegDesc { base: 0, limit: 0xff, access: TSS })?;
    vm.set_register(BSP, Reg::Tr, 0)?;
    vm.set_desc(BSP, Reg::Ldtr, SegDesc { base: 0, limit: 0, access: UNUSABLE })?;
    vm.set_register(BSP, Reg::Ldtr, 0)?;
    vm.set_desc(BSP, Reg::Gdtr, SegDesc { base: GDT, limit: if gdt { 31 } else { 0 }, access: 0 })?;
    vm.set_desc(BSP, Reg::Idtr, SegDesc { base: 0, limit: 0, access: 0 })?;
    vm.set_register(BSP, Reg::Rax, rax)?;
    for register in [Reg::Rcx, Reg::Rdx, Reg::Rbp, Reg::Rdi] {
        vm.set_register(BSP, register, 0)?;
    }
    vm.set_register(BSP, Reg::Rsp, rsp)?;
    vm.set_register(BSP, Reg::Rbx, rbx)?;
    vm.set_register(BSP, Reg::Rsi, rsi)?;
    vm.set_register(BSP, Reg::Rflags, 0x2)?;
    vm.set_register(BSP, Reg::Rip, rip)
}

/// Writes them for real mode, as `vcpu_reset` does, but for where it begins: in the segment of the entry, or in segment 0.
fn enter_real_mode(vm: &Vm, at: u64, rsp: u64) -> Result<(), Errno> {
    const CR0_NE: u64 = 1 << 5;
    const SEGMENT_LIMIT: u32 = 0xffff;
    /// Present, writable, accessed.
    const SEGMENT: u32 = 0x93;
    const TSS: u32 = 0x8b;
    const LDT: u32 = 0x82;
    let segment = if at < 0x1_0000 { 0 } else { at >> 4 };
    vm.set_register(BSP, Reg::Cr4, 0)?;
    vm.set_register(BSP, Reg::Cr0, CR0_NE)?;
    vm.set_desc(BSP, Reg::Cs, SegDesc { base: segment << 4, limit: SEGMENT_LIMIT, access: SEGMENT })?;
    vm.set_register(BSP, Reg::Cs, segment)?;
    for data in [Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs, Reg::Ss] {
        vm.set_desc(BSP, data, SegDesc { base: 0, limit: SEGMENT_LIMIT, access: SEGMENT })?;
        vm.set_register(BSP, data, 0)?;
    }
    for (register, access) in [(Reg::Tr, TSS), (Reg::Ldtr, LDT)] {
        vm.set_desc(BSP, register, SegDesc { base: 0, limit: SEGMENT_LIMIT, access })?;
        vm.set_register(BSP, register, 0)?;
    }
    for register in [Reg::Gdtr, Reg::Idtr] {
        vm.set_desc(BSP, register, SegDesc { base: 0, limit: SEGMENT_LIMIT, access: 0 })?;
    }
    for register in [Reg::Rax, Reg::Rbx, Reg::Rcx, Reg::Rdx, Reg::Rbp, Reg::Rsi, Reg::Rdi] {
        vm.set_register(BSP, register, 0)?;
    }
    vm.set_register(BSP, Reg::Rsp, rsp)?;
    vm.set_register(BSP, Reg::Rflags, 0x2)?;
    vm.set_register(BSP, Reg::Rip, at - (segment << 4))
}
