//! The CPUs: what the runtime keeps of each, and the instructions that Rust has no words for.

use crate::apic::LocalApic;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

/// How many CPUs a guest can use.
pub(crate) const MAX_CPUS: usize = 64;

/// What belongs to one CPU, its stack included. A page of its own, so that the stack pointer tells which CPU runs.
#[repr(C, align(4096))]
pub struct Cpu {
    apic_id: AtomicU32,
    x2apic: AtomicBool,
    online: AtomicBool,
    /// How often it was woken by a wake-up IPI.
    pub(crate) wakes: AtomicU32,
    /// How many tokens it has passed on.
    pub(crate) tokens: AtomicU32,
    /// How often its timer has ticked.
    pub(crate) ticks: AtomicU32,
    /// Grows down from the page's end towards the fields above.
    stack: UnsafeCell<[MaybeUninit<u8>; 4096 - 20]>,
}

const _: () = assert!(size_of::<Cpu>() == 4096, "the boot code and `this_cpu` count in pages");

// SAFETY: the fields are atomics, and only the CPU itself touches its stack, by its stack pointer.
unsafe impl Sync for Cpu {}

/// The CPUs: the BSP, then the APs in the firmware's order. Not initialised before `Cpu::reset`.
#[unsafe(link_section = ".bss.noinit")]
pub(crate) static CPUS: [Cpu; MAX_CPUS] = [const {
    Cpu {
        apic_id: AtomicU32::new(0),
        x2apic: AtomicBool::new(false),
        online: AtomicBool::new(false),
        wakes: AtomicU32::new(0),
        tokens: AtomicU32::new(0),
        ticks: AtomicU32::new(0),
        stack: UnsafeCell::new([MaybeUninit::uninit(); 4096 - 20]),
    }
}; MAX_CPUS];

/// Which CPU has an APIC ID; 0 for the BSP's and for those that belong to nobody.
pub(crate) static CPU_NUMBER: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

impl Cpu {
    /// Prepares the CPU for being started.
    pub(crate) fn reset(&self, apic_id: u32) {
        self.apic_id.store(apic_id, Ordering::Relaxed);
        self.x2apic.store(false, Ordering::Relaxed);
        self.wakes.store(0, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        self.ticks.store(0, Ordering::Relaxed);
        self.online.store(false, Ordering::Release);
    }

    /// Its number: 0 is the BSP.
    pub(crate) fn number(&self) -> u32 {
        ((&raw const *self as usize - &raw const CPUS as usize) / size_of::<Cpu>()) as u32
    }

    /// Its APIC ID.
    pub(crate) fn apic_id(&self) -> u32 {
        self.apic_id.load(Ordering::Relaxed)
    }

    /// Its local APIC. To be used by the CPU itself.
    pub(crate) fn local_apic(&self) -> LocalApic {
        if self.x2apic.load(Ordering::Relaxed) { LocalApic::X2Apic } else { LocalApic::XApic }
    }

    /// Keeps what the CPU found its local APIC to be.
    pub(crate) fn set_local_apic(&self, apic: LocalApic) {
        self.x2apic.store(apic == LocalApic::X2Apic, Ordering::Relaxed);
    }

    /// Says that the CPU is ready for interrupts.
    pub(crate) fn set_online(&self) {
        self.online.store(true, Ordering::Release);
    }

    /// Whether it is.
    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

/// The CPU that this code runs on.
pub(crate) fn this_cpu() -> &'static Cpu {
    let stack_pointer: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack_pointer, options(nomem, nostack, preserves_flags)) };
    // SAFETY: every stack is inside a `Cpu`, aligned to its size, so the page's beginning is the `Cpu`'s.
    unsafe { &*((stack_pointer & !(size_of::<Cpu>() - 1)) as *const Cpu) }
}

/// Reads an MSR.
pub(crate) fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the guest runs at ring 0, and reading an MSR changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR of the local APIC.
pub(crate) fn wrmsr(index: u32, value: u64) {
    // SAFETY: the registers of the local APIC do not touch memory. The compiler must not move accesses to memory across:
    // an IPI publishes what was written before.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    };
}

/// Makes everything written so far visible before a following WRMSR that does not do so itself.
pub(crate) fn fence_before_wrmsr() {
    // SAFETY: fences have no other effect.
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Tells the CPU, and whoever emulates it, that it polls.
pub(crate) fn pause() {
    core::hint::spin_loop();
}

/// Lets interrupts in from here on.
pub(crate) fn enable_interrupts() {
    // SAFETY: the IDT is loaded, and its handlers keep all registers and work on atomics alone.
    unsafe { asm!("sti", options(nostack)) };
}

/// Sleeps until `done`, which an interrupt makes true. Leaves interrupts off.
pub(crate) fn halt_until(done: impl Fn() -> bool) {
    loop {
        // SAFETY: turning interrupts off takes nothing from anybody.
        unsafe { asm!("cli", options(nostack)) };
        if done() {
            return;
        }
        // SAFETY: as in `enable_interrupts`. An interrupt that came since CLI ends HLT: STI lets none in before it.
        unsafe { asm!("sti", "hlt", options(nostack)) };
    }
}

/// Stops the CPU for good.
pub(crate) fn stop() -> ! {
    loop {
        // SAFETY: nothing runs after this; an NMI or SMI only brings the loop round.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
