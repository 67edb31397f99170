//! RAM for a PC without a VM: for tests and fuzzers.

use super::Dma;
use parking_lot::Mutex;

/// RAM from 0 on.
pub(crate) struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// So many bytes, all 0.
    pub(crate) fn new(bytes: usize) -> Ram {
        Ram(Mutex::new(vec![0; bytes]))
    }
}

impl Dma for Ram {
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let ram = self.0.lock();
        let from = usize::try_from(gpa).ok().and_then(|at| ram.get(at..)?.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).is_some()
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> bool {
        let mut ram = self.0.lock();
        let to = usize::try_from(gpa).ok().and_then(|at| ram.get_mut(at..)?.get_mut(..bytes.len()));
        to.map(|to| to.copy_from_slice(bytes)).is_some()
    }
}

#[cfg(test)]
impl Ram {
    pub(crate) fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        self.0.lock()[gpa as usize..][..len].to_vec()
    }

    pub(crate) fn put(&self, gpa: u64, bytes: &[u8]) {
        self.0.lock()[gpa as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}
