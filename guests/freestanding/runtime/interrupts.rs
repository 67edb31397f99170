//! The IDT, and what happens on each vector.

use crate::console::Line;
use crate::cpu::{Cpu, this_cpu};
use crate::power;
use crate::report::{BROKEN, report};
use crate::ring;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The non-maskable interrupt.
const NMI: u8 = 2;
/// Wakes an AP for work.
pub const WAKE: u8 = 0x20;
/// Hands an AP, or the BSP, the token.
pub(crate) const TOKEN: u8 = 0x21;
/// The local APIC's timer.
pub(crate) const TIMER: u8 = 0x22;
/// The local APIC's spurious interrupt; it wants no EOI. Bits 3:0 are hard-wired to 1 on old ones.
pub(crate) const SPURIOUS: u8 = 0x2f;

/// How many vectors the IDT has. Any other is a general protection fault.
const VECTORS: usize = 0x30;
/// Bytes from one entry stub to the next.
pub const STUB_SIZE: usize = 16;

static IDT: Idt<VECTORS> = Idt::new();

/// An interrupt descriptor table in 64-bit mode with so many interrupt gates.
pub struct Idt<const GATES: usize>([[AtomicU64; 2]; GATES]);

impl<const GATES: usize> Default for Idt<GATES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const GATES: usize> Idt<GATES> {
    /// A table of gates that are not present.
    #[must_use]
    pub const fn new() -> Self {
        Idt([const { [const { AtomicU64::new(0) }; 2] }; GATES])
    }

    /// Fills the table in: the gates lead to as many entry stubs, [`STUB_SIZE`] bytes one from the next.
    pub fn fill(&self, stubs: *const u8) {
        const CODE64: u64 = 0x18;
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e;
        let mut address = stubs as u64;
        for [first, _] in &self.0 {
            // SDM 3A 6.14.1. The upper half is zero: the stubs are below 4 GiB.
            let low = address & 0xffff | CODE64 << 16 | PRESENT_INTERRUPT_GATE << 40 | (address & 0xffff_0000) << 32;
            first.store(low, Ordering::Relaxed);
            address += STUB_SIZE as u64;
        }
    }

    /// Loads the table, which has been filled in, into this CPU.
    pub fn load(&'static self) {
        #[repr(C, packed)]
        struct Idtr {
            limit: u16,
            base: u64,
        }
        let idtr = Idtr { limit: size_of_val(&self.0) as u16 - 1, base: self.0.as_ptr() as u64 };
        // SAFETY: the table lives for ever.
        unsafe { asm!("lidt [{}]", in(reg) &raw const idtr, options(readonly, nostack, preserves_flags)) };
    }
}

// One stub for each vector. The processor pushes an error code with some exceptions (SDM 3A table 6-1); the stub pushes a 0
// with all others. The frame is then a multiple of 16 bytes.
global_asm!(
    r#"
    .section .text.interrupt_stubs, "ax", @progbits
    .balign 16
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept {vectors}
    .balign {stub_size}
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    cld
    mov rdi, rsp
    call {dispatch}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
"#,
    vectors = const VECTORS,
    stub_size = const STUB_SIZE,
    dispatch = sym dispatch,
);

/// What is on the stack.
#[repr(C)]
struct Frame {
    /// R11 to R8, RDI, RSI, RDX, RCX, RAX.
    scratch: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
}

/// Whether the guest itself sends NMIs.
static EXPECTS_NMI: AtomicBool = AtomicBool::new(false);

/// NMIs are counted from here on; any NMI before is as unexpected as an exception.
pub fn expect_nmis() {
    EXPECTS_NMI.store(true, Ordering::Release);
}

/// Fills in the IDT, once for all CPUs.
pub(crate) fn init() {
    unsafe extern "C" {
        safe static interrupt_stubs: u8;
    }
    IDT.fill(&raw const interrupt_stubs);
}

/// Loads the IDT into this CPU.
pub(crate) fn load() {
    IDT.load();
}

extern "C" fn dispatch(frame: &Frame) {
    let cpu = this_cpu();
    match frame.vector as u8 {
        WAKE => {
            cpu.wakes.fetch_add(1, Ordering::Release);
            cpu.local_apic().end_of_interrupt();
        }
        TOKEN => {
            cpu.local_apic().end_of_interrupt();
            ring::pass_on(cpu);
        }
        TIMER => {
            cpu.ticks.fetch_add(1, Ordering::Release);
            cpu.local_apic().end_of_interrupt();
        }
        SPURIOUS => {}
        NMI if EXPECTS_NMI.load(Ordering::Acquire) => {
            cpu.nmis.fetch_add(1, Ordering::Release);
        }
        vector => unexpected(cpu, vector, frame),
    }
}

fn unexpected(cpu: &Cpu, vector: u8, frame: &Frame) -> ! {
    report(BROKEN, 0x100 | u32::from(vector));
    Line.text("broken: vector ")
        .decimal(u32::from(vector))
        .text(" on APIC ID ")
        .decimal(cpu.apic_id())
        .text(", error code ")
        .hex(frame.error_code)
        .text(", RIP ")
        .hex(frame.rip)
        .end();
    power::off()
}
