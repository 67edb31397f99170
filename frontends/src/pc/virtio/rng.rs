//! The entropy device (virtio 1.2, 5.4), whose entropy is the same for the same seed.

use super::queue::Broken;
use super::{Device, Io, Properties};
use vmm::host::SplitMix64;

/// As bhyve has it (`VTRND_RINGSZ`).
const QUEUE: u16 = 64;
/// How many bytes a request gets at most; the driver asks again.
const AT_ONCE: usize = 4096;

pub(super) struct Rng(SplitMix64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(SplitMix64::new(seed))
    }
}

impl Device for Rng {
    fn properties(&self) -> Properties {
        Properties { id: 4, class: [0x10, 0x00], features: 0, queues: &[QUEUE] }
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, io: &mut Io<'_>, queue: usize) -> Result<(), Broken> {
        while let Some(chain) = io.queues[queue].pop(io.dma)? {
            let len = chain.writable().min(AT_ONCE);
            let words = std::iter::repeat_with(|| self.0.next().to_le_bytes());
            let bytes: Vec<u8> = words.flatten().take(len).collect();
            chain.write(io.dma, 0, &bytes)?;
            io.queues[queue].push(io.dma, &chain, len)?;
        }
        Ok(())
    }
}
