//! Where a linear address led last time: the run loop's short cut to decoded blocks.

use super::code::Block;

/// A block found for a linear address.
#[derive(Clone, Copy, Default)]
struct Entry {
    linear: u64,
    /// The sum of two counters that only go up (translations and decoded code); 0 is never valid.
    stamp: u64,
    context: u32,
    block: Block,
}

const ENTRIES: usize = 512;

/// A direct-mapped cache from linear addresses to blocks.
pub(super) struct JumpCache {
    entries: Box<[Entry; ENTRIES]>,
}

impl JumpCache {
    pub(super) fn new() -> JumpCache {
        let entries = vec![Entry::default(); ENTRIES].into_boxed_slice();
        JumpCache { entries: entries.try_into().unwrap_or_else(|_| unreachable!("the length is the same constant")) }
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 9) as usize % ENTRIES
    }

    #[inline(always)]
    pub(super) fn find(&self, linear: u64, stamp: u64, context: u32) -> Option<Block> {
        let entry = &self.entries[JumpCache::slot(linear)];
        (entry.linear == linear && entry.stamp == stamp && entry.context == context).then_some(entry.block)
    }

    pub(super) fn remember(&mut self, linear: u64, stamp: u64, context: u32, block: Block) {
        self.entries[JumpCache::slot(linear)] = Entry { linear, stamp, context, block };
    }
}
