//! The emulated interrupt and timer hardware of a virtual machine, after the devices in `sys/amd64/vmm/io`.
//!
//! A device is a plain structure that touches nothing outside itself: no clock, no lock, no host, no other device. Time
//! comes in as `now`, in nanoseconds of the cell's time; work goes out as the returned value ([`vlapic::Effect`],
//! [`message::Message`], …), which the kernel core applies. So a device is deterministic, and its tests need no machine.
//!
//! Time is driven from outside too: `next_deadline` says when a device has something to do, and `advance(now)` does what
//! is due. A deadline that is met late is met once: periods that were missed altogether are dropped, as FreeBSD's callouts
//! drop them.
//!
//! How the interrupts of the devices reach a vCPU:
//!
//! ```text
//! vatpit ─IRQ 0→ vatpic ─INTR→ LINT0 of the vlapics (ExtINT), and pin 0 of the vioapic
//!   └────pin 2→ vioapic ─Message→ vlapics that calcdest names
//! vrtc   ─IRQ 8→ vatpic, pin 8→ vioapic
//! vhpet  ─pins 24 to 31→ vioapic, or its own Message
//! ```

mod clock;
pub mod invariants;
pub mod message;
pub mod vatpic;
pub mod vatpit;
pub mod vhpet;
pub mod vioapic;
pub mod vlapic;
pub mod vpmtmr;
pub mod vrtc;

/// The guest's instruction faults with #GP(0) instead of completing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("General protection exception")]
pub struct GeneralProtection;

/// The device does not do what was asked of it: its handler in vmm returns −1 (the guest's access then fails `VM_RUN`)
/// or `EINVAL` (the ioctl's errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The device refuses the access")]
pub struct Refused;

/// What happens to an interrupt pin (`enum irqstate`). Pins are counted: as many de-assertions as assertions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqState {
    /// One more source asserts the pin.
    Assert,
    /// One source fewer asserts the pin.
    Deassert,
    /// Asserted, and de-asserted at once.
    Pulse,
}

impl IrqState {
    /// The changes of the number of assertions that make it up.
    fn steps(self) -> &'static [i32] {
        match self {
            IrqState::Assert => &[1],
            IrqState::Deassert => &[-1],
            IrqState::Pulse => &[1, -1],
        }
    }
}
