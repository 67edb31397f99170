//! A virtio device as a PCI function (virtio 1.2, 4.1).
//!
//! BAR 0 is the legacy interface in I/O ports, BAR 1 has the MSI-X table, as bhyve has them (`vi_set_io_bar`, `vi_intr_init`); BAR 4
//! is the modern interface in memory. Numbers of the function are bhyve's, for a modern one those of 4.1.2.1.

use super::queue::{Broken, Dma, Queue};
use super::{Device, Io, NO_VECTOR, Switch, device, feature};
use crate::Console;
use crate::pc::pci::config::{Config, Space, command, reg};
use crate::pc::pci::intx::Line;
use crate::pc::pci::msi::{MSIX_BAR_SIZE, Msi, Msix};
use crate::pc::pci::{Addresses, Interrupt};
use crate::pci_device::{PciDevice, Transport};
use parking_lot::Mutex;
use std::sync::Arc;

const VENDOR: u16 = 0x1af4;
const LEGACY_BAR: usize = 0;
const MSIX_BAR: usize = 1;
const MODERN_BAR: usize = 4;

/// Registers of the legacy interface (4.1.4.8). The device's configuration follows at 20, or at 24 while MSI-X is on.
mod legacy {
    pub(super) const DEVICE_FEATURES: u64 = 0;
    pub(super) const DRIVER_FEATURES: u64 = 4;
    pub(super) const QUEUE_PAGE: u64 = 8;
    pub(super) const QUEUE_SIZE: u64 = 12;
    pub(super) const QUEUE_SELECT: u64 = 14;
    pub(super) const QUEUE_NOTIFY: u64 = 16;
    pub(super) const STATUS: u64 = 18;
    pub(super) const ISR: u64 = 19;
    pub(super) const CONFIG_VECTOR: u64 = 20;
    pub(super) const QUEUE_VECTOR: u64 = 22;
    pub(super) const CONFIG: u64 = 20;
    pub(super) const CONFIG_WITH_MSIX: u64 = 24;
}

/// The pages of the modern interface's BAR.
mod modern {
    pub(super) const COMMON: u64 = 0;
    pub(super) const ISR: u64 = 0x1000;
    pub(super) const CONFIG: u64 = 0x2000;
    pub(super) const NOTIFY: u64 = 0x3000;
    pub(super) const PAGE: u64 = 0x1000;
    pub(super) const BAR_SIZE: u64 = 0x4000;
    /// Distance of the queues' notification registers.
    pub(super) const MULTIPLIER: u64 = 4;
    pub(super) const COMMON_LEN: u32 = 56;
}

/// Bits of the device status (2.1).
mod status {
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
}

/// Bits of the ISR status (4.1.4.5).
mod isr {
    pub(super) const QUEUE: u8 = 1;
    pub(super) const CONFIG: u8 = 2;
}

/// Where the capability that is a window into the BARs stands, and what the window's registers are (4.1.4.9).
mod window {
    pub(super) const BAR: usize = 4;
    pub(super) const OFFSET: usize = 8;
    pub(super) const LENGTH: usize = 12;
    pub(super) const DATA: usize = 16;
}

/// The function.
pub(crate) struct Function {
    config: Config,
    msi: Msi,
    msix: Msix,
    line: Line,
    /// The capability of the window, where there is one.
    window: Option<usize>,
    device: Box<dyn Device>,
    offered: u64,
    negotiated: u64,
    status: u8,
    isr: u8,
    config_vector: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<Queue>,
    /// Messages that are to be sent.
    messages: Vec<Interrupt>,
}

impl Function {
    /// The device after power-up, its BARs at the next free addresses.
    pub(crate) fn new(
        wanted: &PciDevice,
        addresses: &mut Addresses,
        console: &Console,
        switch: &Arc<Mutex<Switch>>,
    ) -> Function {
        const TRANSITIONAL_BASE: u16 = 0x1000;
        const MODERN_BASE: u16 = 0x1040;
        let device = device(wanted, console, switch);
        let properties = device.properties();
        let only_modern = wanted.transport == Transport::Modern;
        let id =
            if only_modern { MODERN_BASE + properties.id } else { TRANSITIONAL_BASE + transitional_id(properties.id) };
        let mut config = Config::new(VENDOR, id, properties.class);
        config.set16(reg::SUBSYSTEM_VENDOR, VENDOR);
        config.set16(reg::SUBSYSTEM, if only_modern { id } else { properties.id });
        config.set(reg::REVISION, only_modern.into());
        config.set(reg::INT_PIN, 1);
        if !only_modern {
            let len = legacy::CONFIG_WITH_MSIX + device.config().len() as u64;
            add_bar(&mut config, addresses, LEGACY_BAR, Space::Io, len.next_power_of_two());
        }
        add_bar(&mut config, addresses, MSIX_BAR, Space::Memory32, MSIX_BAR_SIZE);
        let messages = properties.queues.len() as u16 + 1;
        let msix = Msix::new(&mut config, messages, MSIX_BAR as u8);
        let msi = Msi::new(&mut config);
        let mut offered = properties.features | feature::INDIRECT_DESC | feature::EVENT_IDX;
        let window = (wanted.transport != Transport::Legacy).then(|| {
            offered |= feature::VERSION_1;
            add_bar(&mut config, addresses, MODERN_BAR, Space::Memory64, modern::BAR_SIZE);
            add_capabilities(&mut config, device.config().len() as u32)
        });
        let queues = properties.queues.iter().map(|size| Queue::new(*size)).collect();
        Function {
            config,
            msi,
            msix,
            line: Line::Idle,
            window,
            device,
            offered,
            negotiated: 0,
            status: 0,
            isr: 0,
            config_vector: NO_VECTOR,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
            messages: Vec::new(),
        }
    }

    /// Lets firmware for QEMU see the size of the I/O BAR ([`Config::widen_io_bars`]).
    pub(crate) fn widen_io_bars(&mut self) {
        self.config.widen_io_bars();
    }

    /// The interrupt line register, which the firmware sets.
    pub(crate) fn set_interrupt_line(&mut self, irq: u8) {
        self.config.set(reg::INT_LINE, irq);
    }

    // -- what an access left to be done ---------------------------------------------------------------------------------

    /// The messages to be sent.
    pub(crate) fn take_messages(&mut self) -> Vec<Interrupt> {
        std::mem::take(&mut self.messages)
    }

    /// The new level of the interrupt line, if it changed.
    pub(crate) fn line_change(&mut self) -> Option<bool> {
        let intx = self.config.command() & command::INTX_DISABLE == 0;
        let permitted = intx && !self.msi.enabled(&self.config) && !self.msix.enabled(&self.config);
        self.config.set_interrupt_status(self.isr != 0);
        self.line.update(self.isr != 0, permitted)
    }

    // -- configuration space --------------------------------------------------------------------------------------------

    /// Reads 1, 2 or 4 aligned bytes of configuration space.
    pub(crate) fn read_config(&mut self, offset: usize, bytes: usize) -> u32 {
        if let Some((bar, at, len)) = self.seen_through_window(offset) {
            let value = self.read_bar(bar, at, len) as u32;
            self.set_window_data(value);
        }
        self.config.read(offset, bytes)
    }

    /// Writes 1, 2 or 4 aligned bytes of configuration space.
    pub(crate) fn write_config(&mut self, offset: usize, bytes: usize, data: u32, dma: &dyn Dma) {
        self.config.write(offset, bytes, data);
        if let Some((bar, at, len)) = self.seen_through_window(offset) {
            let value = self.window.map_or(0, |window| self.config.read(window + window::DATA, 4));
            self.write_bar(bar, at, len, value.into(), dma);
        }
        // The control word of MSI-X may have been written.
        self.messages.extend(self.msix.unmasked(&self.config));
    }

    /// The access to a BAR that the window makes of one to its data.
    fn seen_through_window(&self, offset: usize) -> Option<(usize, u64, u8)> {
        let window = self.window?;
        if !(window + window::DATA..window + window::DATA + 4).contains(&offset) {
            return None;
        }
        let bar = self.config.read(window + window::BAR, 1) as usize;
        let (at, len) = (self.config.read(window + window::OFFSET, 4), self.config.read(window + window::LENGTH, 4));
        let inside = u64::from(at) + u64::from(len) <= self.config.bar_size(bar);
        (matches!(len, 1 | 2 | 4) && inside && at.is_multiple_of(len)).then_some((bar, at.into(), len as u8))
    }

    fn set_window_data(&mut self, value: u32) {
        let Some(window) = self.window else { return };
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.config.set(window + window::DATA + i, byte);
        }
    }

    // -- BARs -----------------------------------------------------------------------------------------------------------

    /// The BAR that decodes an access, and where in it that is.
    pub(crate) fn claims(&self, io: bool, address: u64, bytes: u8) -> Option<(usize, u64)> {
        self.config.claims(io, address, bytes)
    }

    /// Reads 1, 2, 4 or 8 bytes of a BAR. Registers that are not there, or not of this width, read as all ones.
    pub(crate) fn read_bar(&mut self, bar: usize, offset: u64, bytes: u8) -> u64 {
        if bytes == 8 {
            return self.read_bar(bar, offset, 4) | self.read_bar(bar, offset + 4, 4) << 32;
        }
        let value = match bar {
            LEGACY_BAR => self.read_legacy(offset, bytes),
            MSIX_BAR if bytes == 4 && offset.is_multiple_of(4) => Some(self.msix.read(offset)),
            MODERN_BAR => self.read_modern(offset, bytes),
            _ => None,
        };
        let mask = u64::MAX >> (64 - 8 * u32::from(bytes));
        value.map_or(mask, |value| u64::from(value) & mask)
    }

    /// Writes 1, 2, 4 or 8 bytes of a BAR.
    pub(crate) fn write_bar(&mut self, bar: usize, offset: u64, bytes: u8, data: u64, dma: &dyn Dma) {
        if bytes == 8 {
            self.write_bar(bar, offset, 4, data & 0xffff_ffff, dma);
            return self.write_bar(bar, offset + 4, 4, data >> 32, dma);
        }
        let data = data as u32;
        match bar {
            LEGACY_BAR => self.write_legacy(offset, bytes, data, dma),
            MSIX_BAR if bytes == 4 && offset.is_multiple_of(4) => {
                self.msix.write(offset, data);
                self.messages.extend(self.msix.unmasked(&self.config));
            }
            MODERN_BAR => self.write_modern(offset, bytes, data, dma),
            _ => {}
        }
    }

    fn read_legacy(&mut self, offset: u64, bytes: u8) -> Option<u32> {
        let msix = self.msix.enabled(&self.config);
        let config = if msix { legacy::CONFIG_WITH_MSIX } else { legacy::CONFIG };
        if offset >= config {
            return self.read_device_config(offset - config, bytes);
        }
        Some(match (offset, bytes) {
            (legacy::DEVICE_FEATURES, 4) => self.offered as u32,
            (legacy::DRIVER_FEATURES, 4) => self.negotiated as u32,
            (legacy::QUEUE_PAGE, 4) => self.queue().map_or(0, |queue| queue.legacy_page()),
            (legacy::QUEUE_SIZE, 2) => self.queue().map_or(0, |queue| queue.size().into()),
            (legacy::QUEUE_SELECT, 2) => self.queue_select.into(),
            (legacy::QUEUE_NOTIFY, 2) => 0,
            (legacy::STATUS, 1) => self.status.into(),
            (legacy::ISR, 1) => self.take_isr().into(),
            (legacy::CONFIG_VECTOR, 2) => self.config_vector.into(),
            (legacy::QUEUE_VECTOR, 2) => self.queue().map_or(NO_VECTOR, |queue| queue.vector).into(),
            _ => return None,
        })
    }

    fn write_legacy(&mut self, offset: u64, bytes: u8, data: u32, dma: &dyn Dma) {
        let msix = self.msix.enabled(&self.config);
        match (offset, bytes) {
            (legacy::DRIVER_FEATURES, 4) => self.negotiate(u64::from(data) & self.offered),
            (legacy::QUEUE_PAGE, 4) => {
                if let Some(queue) = self.queue_mut() {
                    queue.set_legacy_page(data);
                }
            }
            (legacy::QUEUE_SELECT, 2) => self.queue_select = data as u16,
            (legacy::QUEUE_NOTIFY, 2) => self.notify(data as u16, dma),
            (legacy::STATUS, 1) => self.set_status(data as u8),
            (legacy::CONFIG_VECTOR, 2) if msix => self.config_vector = self.vector(data),
            (legacy::QUEUE_VECTOR, 2) if msix => self.set_queue_vector(data),
            // No device of ours has configuration that can be written.
            _ => {}
        }
    }

    fn read_modern(&mut self, offset: u64, bytes: u8) -> Option<u32> {
        match offset / modern::PAGE * modern::PAGE {
            modern::COMMON => self.read_common(offset, bytes),
            modern::ISR => (offset == modern::ISR && bytes == 1).then(|| self.take_isr().into()),
            modern::CONFIG => self.read_device_config(offset - modern::CONFIG, bytes),
            _ => Some(0),
        }
    }

    /// The common configuration (4.1.4.3).
    fn read_common(&mut self, offset: u64, bytes: u8) -> Option<u32> {
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let queue = self.queue();
        let of = |field: fn(&Queue) -> u64, high: u32| queue.map_or(0, |queue| half(field(queue), high));
        Some(match (offset, bytes) {
            (0, 4) => self.device_feature_select,
            (4, 4) => half(self.offered, self.device_feature_select),
            (8, 4) => self.driver_feature_select,
            (12, 4) => half(self.negotiated, self.driver_feature_select),
            (16, 2) => self.config_vector.into(),
            (18, 2) => self.queues.len() as u32,
            (20, 1) => self.status.into(),
            // config_generation: no configuration ever changes.
            (21, 1) => 0,
            (22, 2) => self.queue_select.into(),
            (24, 2) => queue.map_or(0, |queue| queue.size().into()),
            (26, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (28, 2) => queue.map_or(0, |queue| queue.ready.into()),
            // queue_notify_off
            (30, 2) => self.queue_select.into(),
            (32, 4) => of(|queue| queue.descriptors, 0),
            (36, 4) => of(|queue| queue.descriptors, 1),
            (40, 4) => of(|queue| queue.available, 0),
            (44, 4) => of(|queue| queue.available, 1),
            (48, 4) => of(|queue| queue.used, 0),
            (52, 4) => of(|queue| queue.used, 1),
            _ => return None,
        })
    }

    fn write_modern(&mut self, offset: u64, bytes: u8, data: u32, dma: &dyn Dma) {
        match offset / modern::PAGE * modern::PAGE {
            modern::COMMON => self.write_common(offset, bytes, data),
            modern::NOTIFY => self.notify(((offset - modern::NOTIFY) / modern::MULTIPLIER) as u16, dma),
            _ => {}
        }
    }

    fn write_common(&mut self, offset: u64, bytes: u8, data: u32) {
        match (offset, bytes) {
            (0, 4) => self.device_feature_select = data,
            (8, 4) => self.driver_feature_select = data,
            (12, 4) => self.write_driver_features(data),
            (16, 2) => self.config_vector = self.vector(data),
            (20, 1) => self.set_status(data as u8),
            (22, 2) => self.queue_select = data as u16,
            (26, 2) => self.set_queue_vector(data),
            (24 | 28 | 32..=52, _) => self.write_queue(offset, bytes, data),
            _ => {}
        }
    }

    fn write_driver_features(&mut self, data: u32) {
        // Until FEATURES_OK is set (3.1.1).
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let data = u64::from(data);
        match self.driver_feature_select {
            0 => self.negotiate(self.negotiated & !0xffff_ffff | data),
            1 => self.negotiate(self.negotiated & 0xffff_ffff | data << 32),
            _ => {}
        }
    }

    /// The fields of the selected queue, before it is ready (4.1.4.3.2).
    fn write_queue(&mut self, offset: u64, bytes: u8, data: u32) {
        let Some(queue) = self.queue_mut().filter(|queue| !queue.ready) else { return };
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(data);
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(data) << 32;
        match (offset, bytes) {
            (24, 2) => queue.set_size(data as u16),
            (28, 2) => queue.ready = data == 1,
            (32, 4) => low(&mut queue.descriptors),
            (36, 4) => high(&mut queue.descriptors),
            (40, 4) => low(&mut queue.available),
            (44, 4) => high(&mut queue.available),
            (48, 4) => low(&mut queue.used),
            (52, 4) => high(&mut queue.used),
            _ => {}
        }
    }

    fn read_device_config(&self, offset: u64, bytes: u8) -> Option<u32> {
        let config = self.device.config();
        let at = usize::try_from(offset).ok()?;
        let bytes = config.get(at..at.checked_add(bytes.into())?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    // -- the driver's side of the protocol ------------------------------------------------------------------------------

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn queue_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// A vector as it is kept: one that is not there is none, which tells the driver (4.1.5.1.2.1).
    fn vector(&self, data: u32) -> u16 {
        let vector = data as u16;
        if self.msix.has(vector) { vector } else { NO_VECTOR }
    }

    fn set_queue_vector(&mut self, data: u32) {
        let vector = self.vector(data);
        if let Some(queue) = self.queue_mut() {
            queue.vector = vector;
        }
    }

    fn negotiate(&mut self, features: u64) {
        self.negotiated = features;
        for queue in &mut self.queues {
            queue.event_idx = features & feature::EVENT_IDX != 0;
        }
    }

    /// The device status; 0 is a reset. FEATURES_OK stays only with features that were offered, virtio 1 among them; that the device
    /// needs a reset is its own to say.
    fn set_status(&mut self, written: u8) {
        if written == 0 {
            return self.reset();
        }
        let mut new = written & !status::NEEDS_RESET | self.status & status::NEEDS_RESET;
        let agreed = self.negotiated & !self.offered == 0 && self.negotiated & feature::VERSION_1 != 0;
        if !agreed {
            new &= !status::FEATURES_OK;
        }
        self.status = new;
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(Queue::reset);
        self.negotiate(0);
        (self.status, self.isr, self.queue_select) = (0, 0, 0);
        (self.device_feature_select, self.driver_feature_select) = (0, 0);
        self.config_vector = NO_VECTOR;
    }

    fn works(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The driver has made something available in a queue.
    fn notify(&mut self, queue: u16, dma: &dyn Dma) {
        if usize::from(queue) < self.queues.len() {
            self.work(dma, |device, io| device.process(io, queue.into()));
        }
    }

    /// Lets the device take what came from elsewhere.
    pub(crate) fn receive(&mut self, dma: &dyn Dma) {
        self.work(dma, |device, io| device.receive(io));
    }

    fn work(&mut self, dma: &dyn Dma, turn: impl FnOnce(&mut dyn Device, &mut Io<'_>) -> Result<(), Broken>) {
        if !self.works() {
            return;
        }
        let mut io = Io { queues: &mut self.queues, dma, features: self.negotiated };
        let done = turn(&mut *self.device, &mut io).and_then(|()| self.tell(dma));
        if done.is_err() {
            self.status |= status::NEEDS_RESET;
            self.interrupt(self.config_vector, isr::CONFIG);
        }
    }

    /// Interrupts for the queues whose driver waits for one.
    fn tell(&mut self, dma: &dyn Dma) -> Result<(), Broken> {
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            if queue.ready && queue.take_interrupt(dma)? {
                let vector = queue.vector;
                self.interrupt(vector, isr::QUEUE);
            }
        }
        Ok(())
    }

    /// `vi_interrupt`: a message, or the ISR's bit with which the line is held.
    fn interrupt(&mut self, vector: u16, bit: u8) {
        if self.msix.enabled(&self.config) {
            self.messages.extend(self.msix.send(&self.config, vector));
            return;
        }
        self.isr |= bit;
        if self.msi.enabled(&self.config) {
            self.messages.push(self.msi.message(&self.config));
        }
    }

    /// Reading the ISR clears it, and lets go of the line.
    fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }
}

fn add_bar(config: &mut Config, addresses: &mut Addresses, index: usize, space: Space, size: u64) {
    let base = addresses.next(space, size);
    config.add_bar(index, space, base, size);
}

/// The number of a device from before virtio 1 (4.1.2.1), less 0x1000.
fn transitional_id(id: u16) -> u16 {
    match id {
        // Network, block; console is 3, and entropy, which was 4, has 5.
        1 => 0,
        2 => 1,
        4 => 5,
        other => other,
    }
}

/// The capabilities that point into the modern BAR (4.1.4). Returns where the window's stands.
fn add_capabilities(config: &mut Config, device_config: u32) -> usize {
    const VENDOR_SPECIFIC: u8 = 0x09;
    const COMMON: u8 = 1;
    const NOTIFY: u8 = 2;
    const ISR: u8 = 3;
    const DEVICE: u8 = 4;
    const PCI: u8 = 5;
    let capability = |kind: u8, bar: usize, offset: u64, len: u32, more: &[u8]| {
        let total = (16 + more.len()) as u8;
        let place = [&(offset as u32).to_le_bytes()[..], &len.to_le_bytes(), more].concat();
        [&[total, kind, bar as u8, 0, 0, 0][..], &place].concat()
    };
    let multiplier = (modern::MULTIPLIER as u32).to_le_bytes();
    let page = modern::PAGE as u32;
    for body in [
        capability(COMMON, MODERN_BAR, modern::COMMON, modern::COMMON_LEN, &[]),
        capability(NOTIFY, MODERN_BAR, modern::NOTIFY, page, &multiplier),
        capability(ISR, MODERN_BAR, modern::ISR, 1, &[]),
    ] {
        config.add_capability(VENDOR_SPECIFIC, &body);
    }
    if device_config > 0 {
        config.add_capability(VENDOR_SPECIFIC, &capability(DEVICE, MODERN_BAR, modern::CONFIG, device_config, &[]));
    }
    let window = config.add_capability(VENDOR_SPECIFIC, &capability(PCI, 0, 0, 0, &[0; 4]));
    config.allow(window + window::BAR, &[0xff]);
    config.allow(window + window::OFFSET, &[0xff; 12]);
    window
}
