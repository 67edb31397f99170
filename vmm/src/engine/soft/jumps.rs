//! Where linear addresses led last time: the run loop's short cuts to decoded blocks, and the translations of pages that
//! code was fetched from.
//!
//! Both caches hold entries of several address spaces at once. Each entry carries the [`Generation`] of translations that
//! it was made under; a change of translations starts a new generation instead of clearing the caches.

use super::code::Block;
use super::mem::{Translation, page_of};
use crate::memory::PAGE_SIZE;
use zerocopy::FromZeros;

/// What a short cut depends on besides the address: a generation and the context of the fetch. 0 is never one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromZeros)]
pub(super) struct Key(u32);

/// How many low bits of a key are the context.
const CONTEXT_BITS: u32 = 3;

impl Key {
    pub(super) fn new(generation: Generation, context: u32) -> Key {
        debug_assert!(context < 1 << CONTEXT_BITS);
        Key(generation.0 << CONTEXT_BITS | context)
    }
}

/// The time for which a set of translations holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    /// The last one: behind it the caches are cleared and counting starts anew.
    const LAST: u32 = (1 << (32 - CONTEXT_BITS)) - 1;
}

/// How many address spaces besides the present one keep their generation (those with PCIDs).
const KEPT: usize = 8;
/// How many large pages that code was fetched from are known one by one.
const LARGE: usize = 16;

/// A block found for a linear address.
#[derive(Clone, Copy, FromZeros)]
struct Jump {
    linear: u64,
    key: Key,
    block: Block,
}

/// Jumps of this many pages are apart; those of one page share this many entries.
const PAGE_GROUPS: usize = 256;
const GROUP: usize = 128;

/// A page that code was fetched from.
#[derive(Clone, Copy, FromZeros)]
struct Page {
    linear: u64,
    gpa: u64,
    key: Key,
}

const PAGES: usize = 256;

/// The short cuts of one processor.
pub(super) struct Jumps {
    jumps: Box<[Jump]>,
    pages: Box<[Page]>,
    latest: u32,
    /// Of translations of pages that are not global, in the present address space.
    local: Generation,
    /// Of translations of global pages.
    global: Generation,
    /// Address spaces that were left and may be entered again with their translations: PCID and generation.
    kept: [Option<(u16, Generation)>; KEPT],
    next_kept: usize,
    /// Large pages that code was fetched from: first address and binary logarithm of the size. Beyond their number nothing
    /// is known, and all are taken for large.
    large: [(u64, u32); LARGE],
    large_count: usize,
}

fn zeroed<T: FromZeros>(count: usize) -> Box<[T]> {
    T::new_vec_zeroed(count).unwrap_or_else(|_| unreachable!("a few hundred Kbytes can be had")).into_boxed_slice()
}

impl Jumps {
    pub(super) fn new() -> Jumps {
        Jumps {
            jumps: zeroed(PAGE_GROUPS * GROUP),
            pages: zeroed(PAGES),
            latest: 2,
            local: Generation(1),
            global: Generation(2),
            kept: [None; KEPT],
            next_kept: 0,
            large: [(0, 0); LARGE],
            large_count: 0,
        }
    }

    /// The first entry of a page's group.
    #[inline(always)]
    fn group(linear: u64) -> usize {
        ((linear >> 12 ^ linear >> 20) as usize % PAGE_GROUPS) * GROUP
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        Jumps::group(linear) + (linear ^ linear >> 5) as usize % GROUP
    }

    /// The keys of entries that are valid in this context: of pages that are global, and of those that are not.
    pub(super) fn keys(&self, context: u32) -> [Key; 2] {
        [Key::new(self.global, context), Key::new(self.local, context)]
    }

    /// The block at a linear address.
    #[inline(always)]
    pub(super) fn find(&self, linear: u64, keys: [Key; 2]) -> Option<Block> {
        let jump = &self.jumps[Jumps::slot(linear)];
        (jump.linear == linear && (jump.key == keys[0] || jump.key == keys[1])).then_some(jump.block)
    }

    /// Remembers a block on a page that [`Jumps::remember_page`] has just put in, or that was found there.
    pub(super) fn remember(&mut self, linear: u64, keys: [Key; 2], block: Block) {
        let Page { linear: page, key, .. } = self.pages[Jumps::page_slot(linear)];
        if page != page_of(linear) || !keys.contains(&key) {
            return;
        }
        self.jumps[Jumps::slot(linear)] = Jump { linear, key, block };
    }

    /// Forgets the block at a linear address.
    pub(super) fn forget_block(&mut self, linear: u64) {
        self.jumps[Jumps::slot(linear)].key = Key(0);
    }

    fn page_slot(linear: u64) -> usize {
        (linear >> 12 ^ linear >> 20) as usize % PAGES
    }

    /// The physical address of a linear address that code was fetched from.
    pub(super) fn find_page(&self, linear: u64, keys: [Key; 2]) -> Option<u64> {
        let page = &self.pages[Jumps::page_slot(linear)];
        let valid = page.linear == page_of(linear) && (page.key == keys[0] || page.key == keys[1]);
        valid.then_some(page.gpa | linear & (PAGE_SIZE - 1))
    }

    /// Remembers where a page of code leads.
    pub(super) fn remember_page(&mut self, linear: u64, keys: [Key; 2], to: Translation) {
        if to.shift != 12 {
            self.remember_large(linear, to.shift);
        }
        let key = if to.global { keys[0] } else { keys[1] };
        let page = Page { linear: page_of(linear), gpa: page_of(to.gpa), key };
        self.pages[Jumps::page_slot(linear)] = page;
    }

    fn remember_large(&mut self, linear: u64, shift: u32) {
        let known = self.large.iter().take(self.large_count);
        if known.into_iter().any(|&(first, shift)| (first ^ linear) >> shift == 0) {
            return;
        }
        if let Some(entry) = self.large.get_mut(self.large_count) {
            *entry = (linear, shift);
        }
        self.large_count += 1;
    }

    /// Starts a generation.
    fn start(&mut self) -> Generation {
        if self.latest >= Generation::LAST - 2 {
            // Whatever is still valid is forgotten with the rest.
            self.jumps.fill(FromZeros::new_zeroed());
            self.pages.fill(FromZeros::new_zeroed());
            self.kept = [None; KEPT];
            (self.local, self.global, self.latest) = (Generation(1), Generation(2), 2);
        }
        self.latest += 1;
        Generation(self.latest)
    }

    /// Forgets everything.
    pub(super) fn flush(&mut self) {
        self.flush_local();
        self.global = self.start();
        self.large_count = 0;
    }

    /// Forgets the pages of every address space that are not global.
    pub(super) fn flush_local(&mut self) {
        self.kept = [None; KEPT];
        self.local = self.start();
    }

    /// Goes from the address space with one PCID to that with another. `keep` if the latter's translations hold still.
    pub(super) fn switch(&mut self, from: u16, to: u16, keep: bool) {
        if from != to {
            self.forget_space(from);
            self.kept[self.next_kept] = Some((from, self.local));
            self.next_kept = (self.next_kept + 1) % KEPT;
        } else if keep {
            return;
        }
        let known = self.kept.iter().flatten().find(|&&(pcid, _)| pcid == to).map(|&(_, generation)| generation);
        self.forget_space(to);
        self.local = match known {
            Some(generation) if keep => generation,
            _ => self.start(),
        };
    }

    /// Forgets the translations of an address space other than the present one.
    pub(super) fn forget_space(&mut self, pcid: u16) {
        for kept in self.kept.iter_mut().filter(|kept| kept.is_some_and(|(known, _)| known == pcid)) {
            *kept = None;
        }
    }

    /// Forgets the page that an address lies in, in every address space.
    pub(super) fn forget(&mut self, linear: u64) {
        let known = self.large_count.min(LARGE);
        let in_large = self.large[..known].iter().any(|&(first, shift)| (first ^ linear) >> shift == 0);
        if in_large || self.large_count > LARGE {
            self.flush();
            return;
        }
        let group = Jumps::group(linear);
        for jump in self.jumps[group..group + GROUP].iter_mut().filter(|jump| page_of(jump.linear) == page_of(linear)) {
            jump.key = Key(0);
        }
        let page = &mut self.pages[Jumps::page_slot(linear)];
        if page.linear == page_of(linear) {
            page.key = Key(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: u32 = 2;

    fn at(gpa: u64, global: bool) -> Translation {
        Translation { gpa, shift: 12, global }
    }

    fn put(jumps: &mut Jumps, linear: u64, to: Translation, block: u32) {
        let keys = jumps.keys(CONTEXT);
        jumps.remember_page(linear, keys, to);
        jumps.remember(linear, keys, Block { start: block, count: 1, bytes: 1 });
    }

    fn block(jumps: &Jumps, linear: u64) -> Option<u32> {
        jumps.find(linear, jumps.keys(CONTEXT)).map(|block| block.start)
    }

    #[test]
    fn an_empty_cache_knows_nothing() {
        let jumps = Jumps::new();
        for context in 0..8 {
            assert!(jumps.find(0, jumps.keys(context)).is_none());
            assert_eq!(jumps.find_page(0, jumps.keys(context)), None);
        }
    }

    #[test]
    fn a_change_of_address_space_keeps_global_pages() {
        let mut jumps = Jumps::new();
        put(&mut jumps, 0x1234, at(0x7234, false), 1);
        put(&mut jumps, 0x5678, at(0x8678, true), 2);
        assert_eq!((block(&jumps, 0x1234), block(&jumps, 0x5678)), (Some(1), Some(2)));
        assert_eq!(jumps.find_page(0x1FFF, jumps.keys(CONTEXT)), Some(0x7FFF));
        assert!(jumps.find(0x1234, jumps.keys(CONTEXT + 1)).is_none(), "another context");
        jumps.flush_local();
        assert_eq!((block(&jumps, 0x1234), block(&jumps, 0x5678)), (None, Some(2)));
        jumps.flush();
        assert_eq!(block(&jumps, 0x5678), None);
    }

    #[test]
    fn an_address_space_that_is_kept_is_found_again() {
        let mut jumps = Jumps::new();
        put(&mut jumps, 0x1000, at(0x7000, false), 1);
        jumps.switch(0, 5, false);
        assert_eq!(block(&jumps, 0x1000), None);
        put(&mut jumps, 0x2000, at(0x8000, false), 2);
        jumps.switch(5, 0, true);
        assert_eq!((block(&jumps, 0x1000), block(&jumps, 0x2000)), (Some(1), None));
        jumps.switch(0, 5, true);
        assert_eq!((block(&jumps, 0x1000), block(&jumps, 0x2000)), (None, Some(2)));
        put(&mut jumps, 0x1000, at(0x8000, false), 2);
        jumps.switch(5, 5, true);
        assert_eq!(block(&jumps, 0x1000), Some(2));
        jumps.switch(5, 5, false);
        assert_eq!(block(&jumps, 0x1000), None);
        put(&mut jumps, 0x1000, at(0x8000, false), 2);
        jumps.switch(5, 6, true);
        jumps.forget_space(5);
        jumps.switch(6, 5, true);
        assert_eq!(block(&jumps, 0x1000), None, "its translations were invalidated meanwhile");
    }

    #[test]
    fn a_page_is_forgotten_alone_and_a_large_one_whole() {
        let mut jumps = Jumps::new();
        put(&mut jumps, 0x1010, at(0x7010, false), 1);
        put(&mut jumps, 0x1020, at(0x7020, false), 2);
        put(&mut jumps, 0x2010, at(0x8010, true), 3);
        jumps.forget(0x1FFF);
        assert_eq!([0x1010, 0x1020, 0x2010].map(|linear| block(&jumps, linear)), [None, None, Some(3)]);
        assert_eq!(jumps.find_page(0x1010, jumps.keys(CONTEXT)), None);
        put(&mut jumps, 0x20_0000, Translation { gpa: 0x40_0000, shift: 21, global: true }, 4);
        jumps.forget(0x40_0000);
        assert_eq!(block(&jumps, 0x20_0000), Some(4));
        jumps.forget(0x3F_FFFF);
        assert_eq!(block(&jumps, 0x20_0000), None);
    }

    #[test]
    fn generations_that_run_out_start_anew() {
        let mut jumps = Jumps::new();
        put(&mut jumps, 0x1000, at(0x7000, true), 1);
        jumps.latest = Generation::LAST - 2;
        jumps.flush_local();
        assert_eq!(block(&jumps, 0x1000), None, "the cache was cleared");
        put(&mut jumps, 0x1000, at(0x7000, true), 1);
        assert_eq!(block(&jumps, 0x1000), Some(1));
        assert_ne!(jumps.local, jumps.global);
    }
}
