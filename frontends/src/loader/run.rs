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
    const CR0_PE: u64 = 1;
    const CR0_NE: u64 = 1 << 5;
    const CR0_PG: u64 = 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    /// A busy TSS of 32 or 64 bits.
    const TSS: u32 = 0x8b;
    const UNUSABLE: u32 = 1 << 16;
    let Entry { mode, gdt, rip, rax, rbx, rsi } = placed.entry;

    if mode == Mode::Long {
        vm.set_register(BSP, Reg::Efer, EFER_LME_LMA)?;
        vm.set_register(BSP, Reg::Cr4, CR4_PAE)?;
        vm.set_register(BSP, Reg::Cr3, PAGE_TABLES)?;
    } else {
        vm.set_register(BSP, Reg::Cr4, 0)?;
    }
    let cr0 = match mode {
        Mode::Real => CR0_NE,
        Mode::Protected => CR0_PE | CR0_NE,
        Mode::Long => CR0_PE | CR0_NE | CR0_PG,
    };
    vm.set_register(BSP, Reg::Cr0, cr0)?;
    let Segments { code, cs, data, ds, gdtr, idtr } = Segments::of(mode, rip, gdt);
    vm.set_desc(BSP, Reg::Cs, code)?;
    vm.set_register(BSP, Reg::Cs, cs.into())?;
    for register in [Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs, Reg::Ss] {
        vm.set_desc(BSP, register, data)?;
        vm.set_register(BSP, register, ds.into())?;
    }
    vm.set_desc(BSP, Reg::Tr, SegDesc { base: 0, limit: 0xff, access: TSS })?;
    vm.set_register(BSP, Reg::Tr, 0)?;
    vm.set_desc(BSP, Reg::Ldtr, SegDesc { base: 0, limit: 0, access: UNUSABLE })?;
    vm.set_register(BSP, Reg::Ldtr, 0)?;
    vm.set_desc(BSP, Reg::Gdtr, gdtr)?;
    vm.set_desc(BSP, Reg::Idtr, idtr)?;
    vm.set_register(BSP, Reg::Rax, rax)?;
    for register in [Reg::Rcx, Reg::Rdx, Reg::Rbp, Reg::Rdi, Reg::Rsp] {
        vm.set_register(BSP, register, 0)?;
    }
    vm.set_register(BSP, Reg::Rbx, rbx)?;
    vm.set_register(BSP, Reg::Rsi, rsi)?;
    vm.set_register(BSP, Reg::Rflags, 0x2)?;
    vm.set_register(BSP, Reg::Rip, rip - code.base)
}

/// Segment registers, GDTR and IDTR of a mode.
struct Segments {
    code: SegDesc,
    cs: u16,
    data: SegDesc,
    ds: u16,
    gdtr: SegDesc,
    idtr: SegDesc,
}

impl Segments {
    fn of(mode: Mode, rip: u64, gdt: bool) -> Segments {
        /// Present, code, readable, accessed; granular; 32-bit or long; or of real mode.
        const CODE_32: u32 = 0xc09b;
        const CODE_64: u32 = 0xa09b;
        const CODE_REAL: u32 = 0x9b;
        /// Present, data, writable, accessed; granular; 32-bit; or of real mode.
        const DATA: u32 = 0xc093;
        const DATA_REAL: u32 = 0x93;
        const REAL_LIMIT: u32 = 0xffff;
        let table = |base, limit| SegDesc { base, limit, access: 0 };
        if mode == Mode::Real {
            let base = rip & !u64::from(REAL_LIMIT);
            return Segments {
                code: SegDesc { base, limit: REAL_LIMIT, access: CODE_REAL },
                cs: (base >> 4) as u16,
                data: SegDesc { base: 0, limit: REAL_LIMIT, access: DATA_REAL },
                ds: 0,
                gdtr: table(0, REAL_LIMIT),
                idtr: table(0, 0x3ff),
            };
        }
        let flat = |access| SegDesc { base: 0, limit: u32::MAX, access };
        Segments {
            code: flat(if mode == Mode::Long { CODE_64 } else { CODE_32 }),
            cs: BOOT_CS,
            data: flat(DATA),
            ds: BOOT_DS,
            gdtr: if gdt { table(GDT, 31) } else { table(0, 0) },
            idtr: table(0, 0),
        }
    }
}
