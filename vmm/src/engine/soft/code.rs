//! Decoded blocks: runs of instructions in guest memory, decoded once for all processors of a machine.
//!
//! A block is found by the guest physical address of its first byte, the code size, and the features that CPUID offers. It ends at a transfer of control,
//! at the end of its page, or where the run loop has something to look at; an instruction that crosses a page boundary is
//! a block of its own.
//!
//! The quick way to a block is a table for each page of code ([`Starts`]): which block begins at which byte. A processor
//! remembers which table belongs to a linear page ([`super::code_pages`]), so that nothing is searched for and all
//! processors profit from what one has found. A block that goes on in a second page depends on that one's translation too,
//! and is looked up each time.
//!
//! Code may change under a block. The bus remembers which bytes are decoded, and says which pages of them were written;
//! their blocks die before the next block is looked for. After writes from the host side, or changes of the map, a block is
//! compared with memory before it runs again.

use super::decode::{self, Decoded};
use super::features::Features;
use super::mem::{Bus, FixedMap, context, page_of, page_offset};
use super::op::Op;
use super::paging::Purpose;
use super::state::{CS, CodeSize, Cpu, Stop};
use crate::engine::Exit;
use crate::memory::PAGE_SIZE;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use std::num::NonZeroU32;

/// The longest instruction, in bytes.
pub(super) const MAX_INSTRUCTION: usize = 15;
/// How many instructions a block has at most.
pub(super) const MAX_BLOCK: usize = 32;
/// The longest block, in bytes.
pub(super) const MAX_BLOCK_BYTES: u64 = (MAX_BLOCK * MAX_INSTRUCTION) as u64;
/// When the cache holds this many instructions, it starts anew.
const MAX_OPS: usize = 1 << 20;

/// Where a block's instructions lie in the cache; the first of them says how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block(NonZeroU32);

impl Block {
    /// The block whose first instruction is the one with this index.
    fn at(index: usize) -> Block {
        // `CodeCache` starts anew long before the numbers run out.
        Block(NonZeroU32::MIN.saturating_add(index as u32))
    }
    #[inline(always)]
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A block's number in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockId(u32);

/// A block, and what it was decoded from.
#[derive(Clone, Copy, Debug)]
struct Source {
    block: Block,
    key: u64,
    /// Where the bytes lie in [`CodeCache::bytes`].
    bytes_at: u32,
    /// How many there are.
    len: u16,
    /// The guest physical page that the last bytes come from, if it is another than the first ones'.
    second_page: Option<u64>,
    /// The generation of code under which it was last compared with memory.
    compared: u64,
}

/// The number of a [`Starts`] in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartsId(NonZeroU32);

impl StartsId {
    pub(super) fn of(index: usize) -> StartsId {
        StartsId(NonZeroU32::MIN.saturating_add(index as u32))
    }
    #[inline(always)]
    pub(super) fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Where the blocks begin that lie whole in one guest physical page, for one code size.
struct Starts {
    /// The generation of code under which these blocks were compared with memory.
    generation: u64,
    /// By offset in the page.
    at: Box<[Option<Block>; PAGE_SIZE as usize]>,
}

impl Starts {
    fn new(generation: u64) -> Starts {
        let at = vec![None; PAGE_SIZE as usize].into_boxed_slice();
        Starts { generation, at: at.try_into().unwrap_or_else(|_| unreachable!("the length is the same constant")) }
    }
}

/// How the cache of decoded code of a machine has done: for benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeCounters {
    /// Blocks executed.
    pub executed: u64,
    /// Blocks that no table of a known page led to: they were looked for by physical address.
    pub missed: u64,
    /// Blocks decoded.
    pub decoded: u64,
    /// Pages whose blocks died because the guest wrote to them.
    pub stale_pages: u64,
}

/// All decoded blocks of a machine.
#[derive(Default)]
pub(super) struct CodeCache {
    ops: Vec<Op>,
    bytes: Vec<u8>,
    /// By [`BlockId`].
    sources: Vec<Source>,
    /// The block of a [`key`].
    index: FixedMap<BlockId>,
    /// The blocks with bytes in a guest physical page, dead ones too.
    pages: FixedMap<Vec<BlockId>>,
    /// The sets of features that code was decoded for, by their number in keys.
    feature_sets: Vec<Features>,
    /// By [`StartsId`].
    starts: Vec<Starts>,
    /// The table of the page with this [`key`].
    starts_of: FixedMap<StartsId>,
    pub(super) counters: CodeCounters,
}

impl CodeCache {
    /// A block's instructions.
    #[inline(always)]
    pub(super) fn ops(&self, block: Block) -> &[Op] {
        let ops = &self.ops[block.index()..];
        &ops[..usize::from(ops[0].block_len)]
    }

    /// The block that begins at a linear address of a page with this table.
    #[inline(always)]
    fn start(&self, starts: StartsId, linear: u64) -> Option<Block> {
        self.starts[starts.index()].at[page_offset(linear) as usize]
    }

    /// The table of the page that a block lies in, with nothing in it that was compared with memory before `generation`.
    fn starts_of(&mut self, key: u64, generation: u64) -> StartsId {
        let id = *self.starts_of.entry(page_of(key)).or_insert_with(|| {
            self.starts.push(Starts::new(generation));
            StartsId::of(self.starts.len() - 1)
        });
        let starts = &mut self.starts[id.index()];
        if starts.generation != generation {
            starts.at.fill(None);
            starts.generation = generation;
        }
        id
    }

    /// Whether memory still holds what a block was decoded from.
    fn is_current(&self, bus: &Bus, source: Source) -> bool {
        let mut memory = [0; MAX_BLOCK * MAX_INSTRUCTION];
        let memory = &mut memory[..usize::from(source.len)];
        let start = source.bytes_at as usize;
        copy_out(bus, gpa_of(source.key), source.second_page, memory)
            && *memory == self.bytes[start..start + memory.len()]
    }

    fn insert(&mut self, key: u64, ops: &[Op], bytes: &[u8], second_page: Option<u64>, compared: u64) -> BlockId {
        let block = Block::at(self.ops.len());
        let id = BlockId(self.sources.len() as u32);
        let (bytes_at, len) = (self.bytes.len() as u32, bytes.len() as u16);
        self.ops.extend_from_slice(ops);
        self.ops[block.index()].block_len = ops.len() as u8;
        self.bytes.extend_from_slice(bytes);
        self.sources.push(Source { block, key, bytes_at, len, second_page, compared });
        self.index.insert(key, id);
        for page in [Some(page_of(gpa_of(key))), second_page].into_iter().flatten() {
            self.pages.entry(page).or_default().push(id);
        }
        self.counters.decoded += 1;
        id
    }

    /// Lets a block die: nothing leads to it any more.
    fn kill(&mut self, id: BlockId) {
        let Source { block, key, .. } = self.sources[id.0 as usize];
        if self.index.get(&key) == Some(&id) {
            self.index.remove(&key);
        }
        if let Some(starts) = self.starts_of.get(&page_of(key)) {
            let start = &mut self.starts[starts.index()].at[page_offset(key) as usize];
            *start = start.filter(|&known| known != block);
        }
    }

    /// Lets the blocks die that a write made stale.
    #[cold]
    pub(super) fn drop_stale(&mut self, bus: &mut Bus) {
        while let Some(page) = bus.take_stale_page() {
            self.counters.stale_pages += 1;
            for id in self.pages.remove(&page).unwrap_or_default() {
                self.kill(id);
            }
        }
    }

    /// The number of a set of features. There is one for each kind of processor in a machine; should there be more than keys can
    /// tell apart, the cache starts anew.
    pub(super) fn feature_set(&mut self, bus: &mut Bus, features: Features) -> u8 {
        if let Some(number) = self.feature_sets.iter().position(|&set| set == features) {
            return number as u8;
        }
        if self.feature_sets.len() > usize::from(u8::MAX) {
            self.clear();
            self.feature_sets.clear();
            bus.forget_blocks();
        }
        self.feature_sets.push(features);
        (self.feature_sets.len() - 1) as u8
    }

    /// Forgets all blocks. Their numbers will name others.
    fn clear(&mut self) {
        let feature_sets = std::mem::take(&mut self.feature_sets);
        *self = CodeCache { counters: self.counters, feature_sets, ..CodeCache::default() };
    }
}

/// Copies code out of memory; false if some of it is not there.
fn copy_out(bus: &Bus, gpa: u64, second_page: Option<u64>, bytes: &mut [u8]) -> bool {
    let first = bytes.len().min((PAGE_SIZE - page_offset(gpa)) as usize);
    let (low, high) = bytes.split_at_mut(first);
    let Some(place) = bus.place(gpa) else { return false };
    place.host.read_bytes(low);
    match (second_page, high.is_empty()) {
        (_, true) => true,
        (None, false) => false,
        (Some(page), false) => match bus.place(page) {
            Some(place) => {
                place.host.read_bytes(high);
                true
            }
            None => false,
        },
    }
}

/// What identifies a block: physical addresses have at most 52 bits.
fn key(gpa: u64, size: CodeSize, feature_set: u8) -> u64 {
    gpa | u64::from(feature_set) << KEY_FEATURES_AT | (size as u64) << KEY_SIZE_AT
}

fn gpa_of(key: u64) -> u64 {
    key & ((1 << KEY_FEATURES_AT) - 1)
}

const KEY_FEATURES_AT: u32 = 52;
const KEY_SIZE_AT: u32 = 60;

impl Cpu {
    /// The block at the instruction pointer.
    #[inline(always)]
    pub(super) fn fetch(&mut self, bus: &mut Bus, code: &mut CodeCache) -> Result<Block, Stop> {
        let linear = self.seg(CS).origin.wrapping_add(self.rip()) & self.linear_mask;
        let starts = self.code_pages.starts(linear, self.fetch_keys);
        match starts.and_then(|starts| code.start(starts, linear)) {
            Some(block) => Ok(block),
            None => self.fetch_slow(bus, code, linear),
        }
    }

    #[cold]
    #[inline(never)]
    fn fetch_slow(&mut self, bus: &mut Bus, code: &mut CodeCache, linear: u64) -> Result<Block, Stop> {
        code.counters.missed += 1;
        let gpa = self.fetch_address(bus, linear)?;
        let id = match self.known_block(bus, code, linear, gpa)? {
            Some(id) => id,
            None => self.decode_block(bus, code, linear, gpa)?,
        };
        let Source { block, key, second_page, .. } = code.sources[id.0 as usize];
        if second_page.is_none() {
            let starts = code.starts_of(key, bus.code_generation());
            code.starts[starts.index()].at[page_offset(key) as usize] = Some(block);
            self.code_pages.remember_starts(linear, self.fetch_keys, starts);
        }
        Ok(block)
    }

    /// Translates the address of an instruction, or of its part in the next page.
    fn fetch_address(&mut self, bus: &mut Bus, linear: u64) -> Result<u64, Stop> {
        if let Some(gpa) = self.code_pages.translation(linear, self.fetch_keys) {
            return Ok(gpa);
        }
        if self.is_64() && !self.canonical(linear) {
            return Err(self.gp(0));
        }
        let user = if self.cpl == 3 { context::USER } else { 0 };
        let to = self.resolve(bus, linear, Purpose::Fetch, context::VALID | user)?;
        self.code_pages.remember(linear, self.fetch_keys, to);
        Ok(to.gpa)
    }

    /// The linear address of the page behind an address.
    fn next_page(&self, linear: u64) -> u64 {
        page_of(linear).wrapping_add(PAGE_SIZE) & self.linear_mask
    }

    /// A block that is in the cache, if memory still holds what it was decoded from.
    fn known_block(
        &mut self,
        bus: &mut Bus,
        code: &mut CodeCache,
        linear: u64,
        gpa: u64,
    ) -> Result<Option<BlockId>, Stop> {
        let Some(&id) = code.index.get(&key(gpa, self.code_size, self.feature_set)) else { return Ok(None) };
        let source = code.sources[id.0 as usize];
        if source.second_page.is_some() {
            // The block is one instruction, and it needs the page: a fault is its own.
            let next = self.next_page(linear);
            if Some(page_of(self.fetch_address(bus, next)?)) != source.second_page {
                return Ok(None);
            }
        }
        if source.compared != bus.code_generation() {
            if !code.is_current(bus, source) {
                code.kill(id);
                return Ok(None);
            }
            self.mark_code(bus, gpa, u64::from(source.len), source.second_page);
            code.sources[id.0 as usize].compared = bus.code_generation();
        }
        Ok(Some(id))
    }

    /// Has writes to a block's bytes noticed, this processor's own included.
    fn mark_code(&mut self, bus: &mut Bus, gpa: u64, len: u64, second_page: Option<u64>) {
        let first = len.min(PAGE_SIZE - page_offset(gpa));
        let parts = [Some((gpa, first)), second_page.map(|page| (page, len - first))];
        for (gpa, len) in parts.into_iter().flatten() {
            if bus.mark_code(gpa, len) {
                self.catch_up_with_marks(bus);
            }
        }
    }

    fn decode_block(&mut self, bus: &mut Bus, code: &mut CodeCache, linear: u64, gpa: u64) -> Result<BlockId, Stop> {
        if code.ops.len() >= MAX_OPS {
            code.clear();
            // The pages that processors know lead into the old one.
            bus.forget_blocks();
            self.catch_up_with_code(bus);
            // The page that the block is in must be known again.
            self.fetch_address(bus, linear)?;
        }
        let mut buffer = [0; MAX_BLOCK * MAX_INSTRUCTION];
        let in_page = buffer.len().min((PAGE_SIZE - page_offset(gpa)) as usize);
        if !copy_out(bus, gpa, None, &mut buffer[..in_page]) {
            return Err(self.fetch_outside(gpa));
        }
        let mut ops = Vec::with_capacity(MAX_BLOCK);
        let mut len = decode_run(&buffer[..in_page], self.code_size, self.features, &mut ops);
        let mut second_page = None;
        if ops.is_empty() {
            // The first instruction goes on in the next page.
            let next = self.next_page(linear);
            let second = self.fetch_address(bus, next)?;
            second_page = Some(page_of(second));
            if !copy_out(bus, gpa, second_page, &mut buffer[..MAX_INSTRUCTION]) {
                return Err(self.fetch_outside(second));
            }
            let crossing = decode_one(&mut decoder(&buffer[..MAX_INSTRUCTION], self.code_size), self.features)
                .unwrap_or_else(decode::too_long);
            len = usize::from(crossing.op.len);
            ops.push(crossing.op);
        }
        self.mark_code(bus, gpa, len as u64, second_page);
        let generation = bus.code_generation();
        Ok(code.insert(key(gpa, self.code_size, self.feature_set), &ops, &buffer[..len], second_page, generation))
    }

    fn fetch_outside(&mut self, gpa: u64) -> Stop {
        self.exit = Some(Exit::MmioFetch { gpa });
        Stop::Again
    }

    /// How many of a block's instructions lie inside the code segment; #GP(0) if not even the first does.
    #[cold]
    pub(super) fn instructions_within_limit(&mut self, ops: &[Op]) -> Result<usize, Stop> {
        if self.is_64() {
            return Ok(ops.len());
        }
        let mut end = self.rip();
        let fits = |op: &&Op| {
            end += u64::from(op.len);
            end - 1 <= self.code_limit
        };
        match ops.iter().take_while(fits).count() {
            0 => Err(self.gp(0)),
            count => Ok(count),
        }
    }
}

/// What iced-x86 calls a code size.
pub(super) fn code_bits(size: CodeSize) -> u32 {
    match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

pub(super) fn decoder(bytes: &[u8], size: CodeSize) -> Decoder<'_> {
    Decoder::with_ip(code_bits(size), bytes, 0, DecoderOptions::NONE)
}

/// Decodes an instruction; `None` if the bytes end before it does.
pub(super) fn decode_one(decoder: &mut Decoder<'_>, features: Features) -> Option<Decoded> {
    let start = decoder.position();
    let available = decoder.max_position() - start;
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    match decoder.last_error() {
        DecoderError::None => Some(decode::decode_offered(&instruction, features)),
        DecoderError::NoMoreBytes if available < MAX_INSTRUCTION => None,
        // What goes on beyond the longest instruction is too long, whatever it would have become.
        _ if instruction.len() == MAX_INSTRUCTION => Some(decode::too_long()),
        DecoderError::NoMoreBytes => Some(decode::too_long()),
        _ => Some(decode::invalid(instruction.len().max(1))),
    }
}

/// Decodes up to the end of the block or of the bytes. Returns the length of what was decoded.
pub(super) fn decode_run(bytes: &[u8], size: CodeSize, features: Features, ops: &mut Vec<Op>) -> usize {
    let mut decoder = decoder(bytes, size);
    let mut len = 0;
    while ops.len() < MAX_BLOCK && decoder.can_decode() {
        let Some(decoded) = decode_one(&mut decoder, features) else { break };
        if decoded.starts_block && !ops.is_empty() {
            break;
        }
        len += usize::from(decoded.op.len);
        ops.push(decoded.op);
        if decoded.ends_block {
            break;
        }
    }
    len
}
