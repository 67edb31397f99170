//! The console device with one port (virtio 1.2, 5.3): what the guest sends is kept, and nothing is ever sent to it.

use super::queue::Broken;
use super::{Device, Io, Properties};
use crate::Console;

/// As bhyve has it (`VTCON_RINGSZ`).
const QUEUE: u16 = 64;
/// transmitq of port 0.
const TRANSMIT: usize = 1;

pub(super) struct Port(pub(super) Console);

impl Device for Port {
    fn properties(&self) -> Properties {
        Properties { id: 3, class: [0x07, 0x80], features: 0, queues: &[QUEUE, QUEUE] }
    }

    /// Columns, rows, how many ports: none of which was offered (5.3.4).
    fn config(&self) -> Vec<u8> {
        vec![0; 8]
    }

    fn process(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        if queue != TRANSMIT {
            return Ok(());
        }
        while let Some(chain) = io.queues[queue].pop(io.dma)? {
            self.0.write_virtio(&chain.read(io.dma, 0, chain.readable())?);
            io.queues[queue].push(io.dma, &chain, 0)?;
        }
        Ok(())
    }
}
