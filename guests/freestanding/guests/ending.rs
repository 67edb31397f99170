//! Starts its APs, and ends the machine in the way that stands in its ROM: power-off, a reset in one of three ways, or every CPU
//! halted for good. It begins the same way again whenever the machine is begun anew.
//!
//! The architecture: PM1a control with SLP_EN and the SLP_TYP of `\_S5` is soft off (ACPI 6.5, 4.8.3.2.1); 6 to the reset control
//! register resets (PIIX3, 2.5.2); so does the pulse command FEH of the keyboard controller; a triple fault shuts the processor
//! down (SDM 3A 6.15, interrupt 8), which a PC takes for a reset. CPUs that have halted with interrupts off wait for an NMI that nobody
//! sends.
//!
//! Frontends differ: bhyve ends with a status for each, propolis begins the VM anew.
#![no_std]
#![no_main]

use core::arch::asm;
use runtime::parameters::{CF9, I8042, OFF, Parameters, TRIPLE_FAULT, WAY};
use runtime::scenario::{ask_for, done, report_done, start_all};
use runtime::{Ap, Bsp, TRAMPOLINE_VECTOR, port, stop};

runtime::guest!("ending", main, ap = halt, restarted = begin_anew);

static PARAMETERS: Parameters = Parameters::new([OFF, 0, 0, 0]);

const RESET_CONTROL: u16 = 0xcf9;
/// Reset control: reset the CPU, and the whole system with it.
const RESET_SYSTEM: u8 = 0b110;
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    start_all(aps, TRAMPOLINE_VECTOR);
    let way = PARAMETERS.read(WAY);
    if way == OFF {
        done(aps.len())
    }
    report_done(aps.len());
    match way {
        CF9 => port::write_u8(RESET_CONTROL, RESET_SYSTEM),
        I8042 => port::write_u8(KEYBOARD_COMMAND, PULSE_RESET),
        TRIPLE_FAULT => triple_fault(),
        // HALT.
        _ => {}
    }
    stop()
}

/// After a reset.
fn begin_anew(bsp: Bsp) -> ! {
    bsp.report_boot();
    main(bsp)
}

/// #UD with an IDT that has no room for any gate.
fn triple_fault() -> ! {
    let no_idt = [0u16; 5];
    // SAFETY: the machine ends here, as it shall.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &no_idt, options(noreturn)) };
}

fn halt(_ap: &'static Ap) -> ! {
    stop()
}
