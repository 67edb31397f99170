//! The network device (virtio 1.2, 5.1), on a port of the VM's switch.

use super::queue::Broken;
use super::switch::{Mac, Switch};
use super::{Device, Io, Properties, feature};
use parking_lot::Mutex;
use std::sync::Arc;

const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
const LINK_UP: u16 = 1;

/// As bhyve has it (`VTNET_RINGSZ`).
const QUEUE: u16 = 1024;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The longest frame: 1514 bytes and a VLAN's tag.
const MAX_FRAME: usize = 1518;

pub(super) struct Net {
    switch: Arc<Mutex<Switch>>,
    port: usize,
    mac: Mac,
}

impl Net {
    pub(super) fn new(switch: &Arc<Mutex<Switch>>, mac: Mac) -> Net {
        let port = switch.lock().add_port();
        Net { switch: Arc::clone(switch), port, mac }
    }

    /// Length of the header before each frame: `num_buffers` is part of it from virtio 1 on (5.1.6.1).
    fn header(io: &Io<'_>) -> usize {
        if io.features & feature::VERSION_1 != 0 { 12 } else { 10 }
    }
}

impl Device for Net {
    fn properties(&self) -> Properties {
        Properties { id: 1, class: [0x02, 0x00], features: MAC | STATUS, queues: &[QUEUE, QUEUE] }
    }

    /// The address and the link's status (5.1.4).
    fn config(&self) -> Vec<u8> {
        [&self.mac[..], &LINK_UP.to_le_bytes()].concat()
    }

    fn process(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        if queue != TRANSMIT {
            return Ok(());
        }
        let header = Net::header(io);
        while let Some(chain) = io.queues[TRANSMIT].pop(io.dma)? {
            let len = chain.readable().checked_sub(header).ok_or(Broken)?;
            // No offload was offered, so the header says nothing; a frame that is too long is lost.
            if len <= MAX_FRAME {
                let frame = chain.read(io.dma, header, len)?;
                self.switch.lock().send(self.port, &frame);
            }
            io.queues[TRANSMIT].push(io.dma, &chain, 0)?;
        }
        Ok(())
    }

    fn receive(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let header = Net::header(io);
        let mut switch = self.switch.lock();
        while switch.waiting(self.port) {
            let Some(chain) = io.queues[RECEIVE].pop(io.dma)? else { break };
            let frame = switch.take(self.port).expect("one is waiting");
            let mut bytes = vec![0; header];
            if header == 12 {
                // num_buffers
                bytes[10] = 1;
            }
            bytes.extend(frame);
            // A buffer that is too small for the frame gets what fits.
            bytes.truncate(chain.writable());
            chain.write(io.dma, 0, &bytes)?;
            io.queues[RECEIVE].push(io.dma, &chain, bytes.len())?;
        }
        Ok(())
    }
}
