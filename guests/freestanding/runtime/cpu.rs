//! The CPUs: what the runtime keeps of each, and the instructions that Rust has no words for.

use crate::apic::LocalApic;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

/// How many CPUs a guest can use.
pub(crate) const MAX_CPUS: usize = 1024;
/// The APIC IDs that their CPUs may have are those below.
pub(crate) const MAX_APIC_IDS: usize = 1024;

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
    /// How many NMIs it has taken.
    pub(crate) nmis: AtomicU32,
    /// How often it came up.
    arrivals: AtomicU32,
    /// The STARTUP vector by which it came up the last time.
    vector: AtomicU32,
    /// Counts on while the CPU runs in [`crate::scenario::beat`].
    beats: AtomicU32,
    /// `beats` as somebody noted it.
    noted_beats: AtomicU32,
    /// `arrivals` as somebody noted it.
    noted_arrivals: AtomicU32,
    /// Grows down from the page's end towards the fields above.
    stack: UnsafeCell<[MaybeUninit<u8>; 4096 - FIELDS]>,
}

/// Size of the fields of a [`Cpu`] before its stack.
const FIELDS: usize = 44;

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
        nmis: AtomicU32::new(0),
        arrivals: AtomicU32::new(0),
        vector: AtomicU32::new(0),
        beats: AtomicU32::new(0),
        noted_beats: AtomicU32::new(0),
        noted_arrivals: AtomicU32::new(0),
        stack: UnsafeCell::new([MaybeUninit::uninit(); 4096 - FIELDS]),
    }
}; MAX_CPUS];

/// Which CPU has an APIC ID; 0 for the BSP's and for those that belong to nobody.
pub(crate) static CPU_NUMBER: [AtomicU16; MAX_APIC_IDS] = [const { AtomicU16::new(0) }; MAX_APIC_IDS];

impl Cpu {
    /// Prepares the CPU for being started.
    pub(crate) fn reset(&self, apic_id: u32) {
        self.apic_id.store(apic_id, Ordering::Relaxed);
        self.x2apic.store(false, Ordering::Relaxed);
        self.wakes.store(0, Ordering::Relaxed);
        self.tokens.store(0, Ordering::Relaxed);
        self.ticks.store(0, Ordering::Relaxed);
        self.nmis.store(0, Ordering::Relaxed);
        self.arrivals.store(0, Ordering::Relaxed);
        self.vector.store(0, Ordering::Relaxed);
        self.beats.store(0, Ordering::Relaxed);
        self.noted_beats.store(0, Ordering::Relaxed);
        self.noted_arrivals.store(0, Ordering::Relaxed);
        self.online.store(false, Ordering::Release);
    }

    /// Its number: 0 is the BSP.
    #[must_use]
    pub fn number(&self) -> u32 {
        ((&raw const *self as usize - &raw const CPUS as usize) / size_of::<Cpu>()) as u32
    }

    /// Its APIC ID.
    #[must_use]
    pub fn apic_id(&self) -> u32 {
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

    /// Says that the CPU came up by a STARTUP with this vector, and is ready for interrupts.
    pub(crate) fn arrive(&self, vector: u32) {
        self.vector.store(vector, Ordering::Relaxed);
        self.arrivals.fetch_add(1, Ordering::Release);
        self.online.store(true, Ordering::Release);
    }

    /// How often it came up, and the STARTUP vector by which it did so the last time.
    #[must_use]
    pub fn arrivals(&self) -> (u32, u32) {
        let arrivals = self.arrivals.load(Ordering::Acquire);
        (arrivals, self.vector.load(Ordering::Relaxed))
    }

    /// From here on, [`Cpu::new_arrivals`] begins anew.
    pub fn note_arrivals(&self) {
        self.noted_arrivals.store(self.arrivals().0, Ordering::Relaxed);
    }

    /// How often it came up since that was noted.
    #[must_use]
    pub fn new_arrivals(&self) -> u32 {
        self.arrivals().0 - self.noted_arrivals.load(Ordering::Relaxed)
    }

    /// From here on, [`Cpu::wakes`] begins anew. The CPU itself must not be counting.
    pub fn forget_wakes(&self) {
        self.wakes.store(0, Ordering::Release);
    }

    /// How many wake-up IPIs it has taken.
    #[must_use]
    pub fn wakes(&self) -> u32 {
        self.wakes.load(Ordering::Acquire)
    }

    /// How many NMIs it has taken since it came up.
    #[must_use]
    pub fn nmis(&self) -> u32 {
        self.nmis.load(Ordering::Acquire)
    }

    /// Shows that the CPU runs.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Release);
        pause();
    }

    /// From here on, [`Cpu::has_beaten`] begins anew.
    pub fn note_beats(&self) {
        self.noted_beats.store(self.beats.load(Ordering::Acquire), Ordering::Relaxed);
    }

    /// Whether it has shown that it runs since that was noted.
    #[must_use]
    pub fn has_beaten(&self) -> bool {
        self.beats.load(Ordering::Acquire) != self.noted_beats.load(Ordering::Relaxed)
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
pub fn pause() {
    core::hint::spin_loop();
}

/// Lets interrupts in from here on.
pub fn enable_interrupts() {
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

/// Stops the CPU for good: it halts with interrupts off.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs after this; an NMI or SMI only brings the loop round.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
