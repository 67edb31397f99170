//! The block device (virtio 1.2, 5.2).

use super::queue::{Broken, Chain, Dma};
use super::{Device, Io, Properties};
use crate::pci_device::{Disk, SECTOR_SIZE};

/// Features (5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
}

/// Types of requests (5.2.6).
mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
}

/// What a request's last byte says.
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const IO_ERROR: u8 = 1;
    pub(super) const UNSUPPORTED: u8 = 2;
}

/// Type, reserved, sector.
const HEADER: usize = 16;
const ID_LEN: usize = 20;
/// As bhyve has it (`VTBLK_RINGSZ`); two descriptors of a request are header and status.
const QUEUE: u16 = 128;
const SEG_MAX: u32 = QUEUE as u32 - 2;

pub(super) struct Block(pub(super) Disk);

impl Device for Block {
    fn properties(&self) -> Properties {
        let read_only = if self.0.is_read_only() { feature::READ_ONLY } else { 0 };
        Properties {
            id: 2,
            class: [0x01, 0x00],
            features: feature::SEG_MAX | feature::BLOCK_SIZE | feature::FLUSH | read_only,
            queues: &[QUEUE],
        }
    }

    /// Capacity, size_max, seg_max, geometry, blk_size (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 24];
        config[..8].copy_from_slice(&self.0.sectors().to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        config
    }

    fn process(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        while let Some(chain) = io.queues[queue].pop(io.dma)? {
            let written = self.serve(&chain, io.dma)?;
            io.queues[queue].push(io.dma, &chain, written)?;
        }
        Ok(())
    }
}

impl Block {
    /// Carries out a request. Returns how many bytes were written into the chain, its status byte the last of them.
    fn serve(&self, chain: &Chain, dma: &dyn Dma) -> Result<usize, Broken> {
        let header = chain.read(dma, 0, HEADER)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, sector) = (word(0), u64::from(word(8)) | u64::from(word(12)) << 32);
        let room = chain.writable().checked_sub(1).ok_or(Broken)?;
        let (status, answered) = match kind {
            request::IN => {
                let mut bytes = vec![0; room];
                match self.0.read(sector, &mut bytes) {
                    Ok(()) => {
                        chain.write(dma, 0, &bytes)?;
                        (status::OK, room)
                    }
                    Err(_) => (status::IO_ERROR, 0),
                }
            }
            request::OUT => {
                let bytes = chain.read(dma, HEADER, chain.readable() - HEADER)?;
                (self.0.write(sector, &bytes).map_or(status::IO_ERROR, |()| status::OK), 0)
            }
            // What was written is in memory, and goes nowhere from there.
            request::FLUSH => (status::OK, 0),
            request::GET_ID if room >= ID_LEN => {
                let mut id = [0; ID_LEN];
                let name = self.0.id().as_bytes();
                let len = name.len().min(ID_LEN);
                id[..len].copy_from_slice(&name[..len]);
                chain.write(dma, 0, &id)?;
                (status::OK, ID_LEN)
            }
            request::GET_ID => (status::IO_ERROR, 0),
            _ => (status::UNSUPPORTED, 0),
        };
        chain.write(dma, room, &[status])?;
        Ok(answered + 1)
    }
}
