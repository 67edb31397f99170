//! Virtio devices on PCI (virtio 1.2): block, console, entropy, network.
//!
//! * [`queue`]: the rings. [`function`]: configuration space, BARs and interrupts, for both interfaces, legacy and modern.
//! * One module for each [`Device`]. It gets its queues when the driver notifies it, and does all of its work there and then, in
//!   the thread of the vCPU that wrote the register: the same cell and seed give the same order.

mod block;
mod console;
mod function;
mod net;
mod queue;
mod rng;
mod switch;
#[cfg(test)]
mod tests;

pub(super) use function::Function;
pub(crate) use queue::Dma;
pub(super) use switch::Switch;

use crate::pci_device::{DeviceKind, PciDevice};
use crate::{Console, Stream};
use parking_lot::Mutex;
use queue::{Broken, Queue};
use std::sync::Arc;

/// The MSI-X vector that is none (4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// Features of every device (chapter 6).
mod feature {
    pub(super) const INDIRECT_DESC: u64 = 1 << 28;
    pub(super) const EVENT_IDX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;
}

/// What a device is.
struct Properties {
    /// Its number (chapter 5).
    id: u16,
    /// PCI class and subclass, as bhyve has them.
    class: [u8; 2],
    /// What it offers beside the features of every device.
    features: u64,
    /// The sizes of its queues, powers of 2.
    queues: &'static [u16],
}

/// What a device works with while it has its turn.
struct Io<'a> {
    queues: &'a mut [Queue],
    dma: &'a dyn Dma,
    /// What was negotiated.
    features: u64,
}

/// A kind of device, without what PCI adds.
trait Device: Send {
    fn properties(&self) -> Properties;

    /// Its configuration structure.
    fn config(&self) -> Vec<u8>;

    /// The driver has something for this queue, which is one of the device's.
    fn process(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken>;

    /// Takes what came from elsewhere.
    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let _ = io;
        Ok(())
    }
}

/// The device that a command line asks for.
fn device(wanted: &PciDevice, console: &Console, switch: &Arc<Mutex<Switch>>) -> Box<dyn Device> {
    match &wanted.kind {
        DeviceKind::Block(disk) => Box::new(block::Block(disk.clone())),
        DeviceKind::Console => Box::new(console::Port(console.stream(Stream::Virtio))),
        DeviceKind::Rng { seed } => Box::new(rng::Rng::new(*seed)),
        // FreeBSD's own prefix, which bhyve uses, and the slot.
        DeviceKind::Net => Box::new(net::Net::new(switch, [0x58, 0x9c, 0xfc, 0, 0, wanted.slot])),
    }
}
