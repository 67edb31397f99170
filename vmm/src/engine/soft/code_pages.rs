//! Where linear pages of code led last time: the run loop's short cuts to translations and to decoded blocks.
//!
//! The cache holds entries of several address spaces at once. Each entry carries the [`Generation`] of translations that
//! it was made under; a change of translations starts a new generation instead of clearing the cache.

use super::code::StartsId;
use super::mem::{Translation, page_of};
use crate::memory::PAGE_SIZE;

/// What an entry depends on besides the address: a generation and the context of the fetch. 0 is never one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
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

/// A page that code was fetched from.
#[derive(Clone, Copy, Default)]
struct Page {
    linear: u64,
    gpa: u64,
    key: Key,
    /// Where its blocks begin, once one of them was looked for.
    starts: Option<StartsId>,
}

const PAGES: usize = 1024;

/// The pages of code that one processor knows.
pub(super) struct CodePages {
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

impl Page {
    #[inline(always)]
    fn is(&self, linear: u64, keys: [Key; 2]) -> bool {
        self.linear == page_of(linear) && (self.key == keys[0] || self.key == keys[1])
    }
}

impl CodePages {
    pub(super) fn new() -> CodePages {
        CodePages {
            pages: vec![Page::default(); PAGES].into_boxed_slice(),
            latest: 2,
            local: Generation(1),
            global: Generation(2),
            kept: [None; KEPT],
            next_kept: 0,
            large: [(0, 0); LARGE],
            large_count: 0,
        }
    }

    /// The keys of entries that are valid in this context: of pages that are global, and of those that are not.
    pub(super) fn keys(&self, context: u32) -> [Key; 2] {
        [Key::new(self.global, context), Key::new(self.local, context)]
    }

    /// Where the blocks begin that lie in the page of a linear address.
    #[inline(always)]
    pub(super) fn starts(&self, linear: u64, keys: [Key; 2]) -> Option<StartsId> {
        self.find(linear, keys)?.starts
    }

    /// Remembers where the blocks begin that lie in a page, if [`CodePages::remember`] has put it in and it is there still.
    pub(super) fn remember_starts(&mut self, linear: u64, keys: [Key; 2], starts: StartsId) {
        let page = &mut self.pages[CodePages::slot(linear)];
        if page.is(linear, keys) {
            page.starts = Some(starts);
        }
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear >> 12 ^ linear >> 22) as usize % PAGES
    }

    #[inline(always)]
    fn find(&self, linear: u64, keys: [Key; 2]) -> Option<&Page> {
        Some(&self.pages[CodePages::slot(linear)]).filter(|page| page.is(linear, keys))
    }

    /// The physical address of a linear address that code was fetched from.
    pub(super) fn translation(&self, linear: u64, keys: [Key; 2]) -> Option<u64> {
        self.find(linear, keys).map(|page| page.gpa | linear & (PAGE_SIZE - 1))
    }

    /// Remembers where a page of code leads.
    pub(super) fn remember(&mut self, linear: u64, keys: [Key; 2], to: Translation) {
        if to.shift != 12 {
            self.remember_large(linear, to.shift);
        }
        let key = if to.global { keys[0] } else { keys[1] };
        self.pages[CodePages::slot(linear)] = Page { linear: page_of(linear), gpa: page_of(to.gpa), key, starts: None };
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
            self.pages.fill(Page::default());
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
        let page = &mut self.pages[CodePages::slot(linear)];
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

    fn put(pages: &mut CodePages, linear: u64, to: Translation, starts: usize) {
        let keys = pages.keys(CONTEXT);
        pages.remember(linear, keys, to);
        pages.remember_starts(linear, keys, StartsId::of(starts));
    }

    fn starts(pages: &CodePages, linear: u64) -> Option<usize> {
        pages.starts(linear, pages.keys(CONTEXT)).map(StartsId::index)
    }

    #[test]
    fn an_empty_cache_knows_nothing() {
        let pages = CodePages::new();
        for context in 0..8 {
            assert!(pages.starts(0, pages.keys(context)).is_none());
            assert_eq!(pages.translation(0, pages.keys(context)), None);
        }
    }

    #[test]
    fn a_change_of_address_space_keeps_global_pages() {
        let mut pages = CodePages::new();
        put(&mut pages, 0x1234, at(0x7234, false), 1);
        put(&mut pages, 0x5678, at(0x8678, true), 2);
        assert_eq!((starts(&pages, 0x1234), starts(&pages, 0x5678)), (Some(1), Some(2)));
        assert_eq!(pages.translation(0x1FFF, pages.keys(CONTEXT)), Some(0x7FFF));
        assert!(pages.starts(0x1234, pages.keys(CONTEXT + 1)).is_none(), "another context");
        pages.flush_local();
        assert_eq!((starts(&pages, 0x1234), starts(&pages, 0x5678)), (None, Some(2)));
        pages.flush();
        assert_eq!(starts(&pages, 0x5678), None);
    }

    #[test]
    fn an_address_space_that_is_kept_is_found_again() {
        let mut pages = CodePages::new();
        put(&mut pages, 0x1000, at(0x7000, false), 1);
        pages.switch(0, 5, false);
        assert_eq!(starts(&pages, 0x1000), None);
        put(&mut pages, 0x2000, at(0x8000, false), 2);
        pages.switch(5, 0, true);
        assert_eq!((starts(&pages, 0x1000), starts(&pages, 0x2000)), (Some(1), None));
        pages.switch(0, 5, true);
        assert_eq!((starts(&pages, 0x1000), starts(&pages, 0x2000)), (None, Some(2)));
        put(&mut pages, 0x1000, at(0x8000, false), 2);
        pages.switch(5, 5, true);
        assert_eq!(starts(&pages, 0x1000), Some(2));
        pages.switch(5, 5, false);
        assert_eq!(starts(&pages, 0x1000), None);
        put(&mut pages, 0x1000, at(0x8000, false), 2);
        pages.switch(5, 6, true);
        pages.forget_space(5);
        pages.switch(6, 5, true);
        assert_eq!(starts(&pages, 0x1000), None, "its translations were invalidated meanwhile");
    }

    #[test]
    fn a_page_is_forgotten_alone_and_a_large_one_whole() {
        let mut pages = CodePages::new();
        put(&mut pages, 0x1010, at(0x7010, false), 1);
        put(&mut pages, 0x1020, at(0x7020, false), 2);
        put(&mut pages, 0x2010, at(0x8010, true), 3);
        pages.forget(0x1FFF);
        assert_eq!([0x1010, 0x1020, 0x2010].map(|linear| starts(&pages, linear)), [None, None, Some(3)]);
        assert_eq!(pages.translation(0x1010, pages.keys(CONTEXT)), None);
        put(&mut pages, 0x20_0000, Translation { gpa: 0x40_0000, shift: 21, global: true }, 4);
        pages.forget(0x40_0000);
        assert_eq!(starts(&pages, 0x20_0000), Some(4));
        pages.forget(0x3F_FFFF);
        assert_eq!(starts(&pages, 0x20_0000), None);
    }

    #[test]
    fn generations_that_run_out_start_anew() {
        let mut pages = CodePages::new();
        put(&mut pages, 0x1000, at(0x7000, true), 1);
        pages.latest = Generation::LAST - 2;
        pages.flush_local();
        assert_eq!(starts(&pages, 0x1000), None, "the cache was cleared");
        put(&mut pages, 0x1000, at(0x7000, true), 1);
        assert_eq!(starts(&pages, 0x1000), Some(1));
        assert_ne!(pages.local, pages.global);
    }
}
