//! Random accesses to ports, memory-mapped registers, MSRs and the PCI bus, as many as its ROM says, from a seed that stands there too.
//!
//! It tests nothing but that the machine stands it. Left out is what ends the machine or the BSP by design: the reset and power-off
//! registers, accesses that bhyve aborts on or that the kernel refuses, IPIs, and IA32_APIC_BASE. What an MSR refuses by #GP is passed over, NMIs are
//! counted, and interrupts stay off.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use runtime::interrupts::{expect_nmis, skip_refused_msrs};
use runtime::scenario::{ask_for, done};
use runtime::{Bsp, port};

runtime::guest!("random-io", main);

/// What the crate `guests` writes into the ROM behind the mark.
#[repr(C, align(8))]
struct Settings {
    #[allow(dead_code, reason = "by it the settings are found")]
    mark: [u8; 16],
    seed: u64,
    operations: u64,
}

static SETTINGS: Settings = Settings { mark: *b"spinup: randomio", seed: 1, operations: 50_000 };

/// The generator's state.
static STATE: AtomicU64 = AtomicU64::new(0);

/// xorshift64* (Vigna 2016).
fn random() -> u64 {
    let mut state = STATE.load(Ordering::Relaxed);
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    STATE.store(state, Ordering::Relaxed);
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn main(_bsp: Bsp) -> ! {
    ask_for(0);
    expect_nmis();
    skip_refused_msrs();
    let settings = &raw const SETTINGS;
    // SAFETY: the settings are a static. They are read as they are in memory, which is not as the compiler saw them.
    let (seed, mut left) =
        unsafe { ((&raw const (*settings).seed).read_volatile(), (&raw const (*settings).operations).read_volatile()) };
    STATE.store(seed | 1, Ordering::Relaxed);
    while left != 0 {
        let word = random();
        match word & 7 {
            0 | 1 => byte_port(word),
            2 => wide_port(word),
            3 => pci(word),
            4 | 5 => memory(word),
            _ => msr(word),
        }
        left -= 1;
    }
    done(0)
}

/// Whether a byte written to or read from the port does not end the machine, or fail VM_RUN: the kernel's 8259s, 8254 and RTC refuse what
/// makes no sense to them with EIO.
fn harmless(port: u16) -> bool {
    !matches!(port, 0x20 | 0x21 | 0x40..=0x43 | 0x60..=0x64 | 0x70 | 0xa0 | 0xa1 | 0xb2)
        && !matches!(port, 0x400..=0x40b | 0x4d0 | 0x4d1 | 0xcf9 | 0x5350..=0x5353)
}

fn byte_port(word: u64) {
    let port = (word >> 16) as u16;
    // Half of them where the devices are.
    let port = if word & 8 == 0 { port & 0x4ff } else { port };
    if !harmless(port) {
        return;
    }
    if word & 16 == 0 {
        port::write_u8(port, (word >> 32) as u8);
    } else {
        port::read_u8(port);
    }
}

fn wide_port(word: u64) {
    let port = (word >> 16) as u16 | 0x8000;
    match word >> 8 & 3 {
        0 => port::write_u16(port, (word >> 32) as u16),
        1 => port::write_u32(port, (word >> 32) as u32),
        _ => drop(port::read_u32(port)),
    }
}

/// A configuration register of the buses that have devices.
fn pci(word: u64) {
    const CONFIG_ADDRESS: u16 = 0xcf8;
    const CONFIG_DATA: u16 = 0xcfc;
    const ENABLE: u32 = 1 << 31;
    port::write_u32(CONFIG_ADDRESS, ENABLE | (word >> 16) as u32 & 0x1_fffc);
    let data = CONFIG_DATA + (word >> 8 & 3) as u16;
    match word >> 10 & 3 {
        0 => port::write_u8(data, (word >> 40) as u8),
        1 => port::write_u32(CONFIG_DATA, (word >> 32) as u32),
        2 => drop(port::read_u8(data)),
        _ => drop(port::read_u32(CONFIG_DATA)),
    }
}

/// The local APIC, the I/O APIC, the HPET, the PCI window, and the hole where nobody is.
fn memory(word: u64) {
    const ICR_LOW: u64 = 0x300;
    let offset = word >> 16 & 0xffc;
    let address = match word >> 8 & 7 {
        0 | 1 if offset & 0xff0 != ICR_LOW => 0xfee0_0000 | offset & 0xff0,
        2 | 3 => 0xfec0_0000 | offset & 0x10,
        4 | 5 => 0xfed0_0000 | offset & 0x3fc,
        6 => 0xe000_0000 | word >> 16 & 0xff_fffc,
        _ => 0xc000_0000 | word >> 16 & 0xf_fffc,
    };
    let at = address as usize as *mut u32;
    // SAFETY: nobody's memory is there, only registers, and no interrupt that they raise is taken.
    unsafe {
        if word & 8 == 0 {
            at.write_volatile((word >> 32) as u32);
        } else {
            at.read_volatile();
        }
    }
}

fn msr(word: u64) {
    const APIC_BASE: u32 = 0x1b;
    const X2APIC_ICR: u32 = 0x830;
    const EFER: u32 = 0xc000_0080;
    let number = (word >> 32) as u32;
    let number = match word >> 8 & 3 {
        0 => number & 0xfff,
        1 => 0xc000_0000 | number & 0x1ff,
        2 => 0x800 | number & 0x3f,
        _ => number,
    };
    // The system-call and segment-base registers are not in use.
    if matches!(number, APIC_BASE | X2APIC_ICR | EFER) {
        return;
    }
    let value = random();
    // SAFETY: what the register refuses is passed over; those that matter to this program are left out above.
    unsafe {
        if word & 8 == 0 {
            asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32);
        } else {
            asm!("rdmsr", in("ecx") number, out("eax") _, out("edx") _);
        }
    }
}
