//! Decoded blocks: runs of instructions in guest memory, decoded once for all processors of a machine.
//!
//! A block is found by the guest physical address of its first byte and the code size. It ends at a transfer of control,
//! at the end of its page, or where the run loop has something to look at; an instruction that crosses a page boundary is
//! a block of its own.
//!
//! Code may change under a block. The bus remembers which bytes are decoded, and says which pages of them were written;
//! their blocks die before the next block is looked for. After writes from the host side, or changes of the map, a block is
//! compared with memory before it runs again.

use super::decode::{self, Decoded};
use super::mem::{Bus, FixedMap, context, page_of, page_offset};
use super::op::Op;
use super::paging::Purpose;
use super::state::{CS, CodeSize, Cpu, Step, Stop};
use crate::engine::Exit;
use crate::memory::PAGE_SIZE;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use zerocopy::FromZeros;

/// The longest instruction, in bytes.
const MAX_INSTRUCTION: usize = 15;
/// How many instructions a block has at most.
const MAX_BLOCK: usize = 32;
/// When the cache holds this many instructions, it starts anew.
const MAX_OPS: usize = 1 << 20;

/// Where a block's instructions lie in the cache.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
pub(super) struct Block {
    pub(super) start: u32,
    pub(super) count: u16,
    /// Length in guest memory.
    pub(super) bytes: u16,
}

/// A block's number in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockId(u32);

/// What a block was decoded from.
#[derive(Clone, Copy, Debug)]
struct Source {
    key: u64,
    /// Where the bytes lie in [`CodeCache::bytes`].
    bytes_at: u32,
    /// The guest physical page that the last bytes come from, if it is another than the first ones'.
    second_page: Option<u64>,
    /// The generation of code under which it was last compared with memory.
    compared: u64,
}

/// How the cache of decoded code of a machine has done: for benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeCounters {
    /// Blocks executed.
    pub executed: u64,
    /// Blocks that no processor's short cut led to: they were looked for by physical address.
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
    blocks: Vec<Block>,
    sources: Vec<Source>,
    /// The block of a [`key`].
    index: FixedMap<BlockId>,
    /// The blocks with bytes in a guest physical page, dead ones too.
    pages: FixedMap<Vec<BlockId>>,
    pub(super) counters: CodeCounters,
}

impl CodeCache {
    /// A block's instructions.
    #[inline(always)]
    pub(super) fn ops(&self, block: Block) -> &[Op] {
        let start = block.start as usize;
        &self.ops[start..start + usize::from(block.count)]
    }

    /// Whether memory still holds what a block was decoded from.
    fn is_current(&self, bus: &Bus, block: Block, source: Source) -> bool {
        let mut memory = [0; MAX_BLOCK * MAX_INSTRUCTION];
        let memory = &mut memory[..usize::from(block.bytes)];
        let start = source.bytes_at as usize;
        copy_out(bus, gpa_of(source.key), source.second_page, memory)
            && *memory == self.bytes[start..start + memory.len()]
    }

    fn insert(&mut self, key: u64, ops: &[Op], bytes: &[u8], second_page: Option<u64>, compared: u64) -> BlockId {
        let block = Block { start: self.ops.len() as u32, count: ops.len() as u16, bytes: bytes.len() as u16 };
        let id = BlockId(self.blocks.len() as u32);
        let bytes_at = self.bytes.len() as u32;
        self.ops.extend_from_slice(ops);
        self.bytes.extend_from_slice(bytes);
        self.blocks.push(block);
        self.sources.push(Source { key, bytes_at, second_page, compared });
        self.index.insert(key, id);
        for page in [Some(page_of(gpa_of(key))), second_page].into_iter().flatten() {
            self.pages.entry(page).or_default().push(id);
        }
        self.counters.decoded += 1;
        id
    }

    /// Lets a block die: short cuts that still lead to it meet an operation that removes them.
    fn kill(&mut self, id: BlockId) {
        self.ops[self.blocks[id.0 as usize].start as usize].run = dead;
        let key = self.sources[id.0 as usize].key;
        if self.index.get(&key) == Some(&id) {
            self.index.remove(&key);
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

    /// Forgets all blocks. Their numbers will name others.
    fn clear(&mut self) {
        *self = CodeCache { counters: self.counters, ..CodeCache::default() };
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
fn key(gpa: u64, size: CodeSize) -> u64 {
    gpa | (size as u64) << KEY_SIZE_AT
}

fn gpa_of(key: u64) -> u64 {
    key & ((1 << KEY_SIZE_AT) - 1)
}

const KEY_SIZE_AT: u32 = 60;

impl Cpu {
    /// The block at the instruction pointer.
    #[inline(always)]
    pub(super) fn fetch(&mut self, bus: &mut Bus, code: &mut CodeCache) -> Result<Block, Stop> {
        let linear = self.seg(CS).origin.wrapping_add(self.rip()) & self.linear_mask;
        match self.jumps.find(linear, self.fetch_keys) {
            Some(block) => Ok(block),
            None => self.fetch_slow(bus, code, linear),
        }
    }

    /// Forgets the short cut from the instruction pointer, so that [`Cpu::fetch`] returns a block that is alive.
    pub(super) fn forget_short_cut(&mut self) {
        let linear = self.seg(CS).origin.wrapping_add(self.rip()) & self.linear_mask;
        self.jumps.forget_block(linear);
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
        let block = code.blocks[id.0 as usize];
        // A block of two pages depends on both translations: it is looked up each time.
        if code.sources[id.0 as usize].second_page.is_none() {
            self.jumps.remember(linear, self.fetch_keys, block);
        }
        Ok(block)
    }

    /// Translates the address of an instruction, or of its part in the next page.
    fn fetch_address(&mut self, bus: &mut Bus, linear: u64) -> Result<u64, Stop> {
        if let Some(gpa) = self.jumps.find_page(linear, self.fetch_keys) {
            return Ok(gpa);
        }
        if self.is_64() && !self.canonical(linear) {
            return Err(self.gp(0));
        }
        let user = if self.cpl == 3 { context::USER } else { 0 };
        let to = self.resolve(bus, linear, Purpose::Fetch, context::VALID | user)?;
        self.jumps.remember_page(linear, self.fetch_keys, to);
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
        let Some(&id) = code.index.get(&key(gpa, self.code_size)) else { return Ok(None) };
        let (block, source) = (code.blocks[id.0 as usize], code.sources[id.0 as usize]);
        if source.second_page.is_some() {
            // The block is one instruction, and it needs the page: a fault is its own.
            let next = self.next_page(linear);
            if Some(page_of(self.fetch_address(bus, next)?)) != source.second_page {
                return Ok(None);
            }
        }
        if source.compared != bus.code_generation() {
            if !code.is_current(bus, block, source) {
                code.kill(id);
                return Ok(None);
            }
            self.mark_code(bus, gpa, u64::from(block.bytes), source.second_page);
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
            // Short cuts of every processor lead into the old one.
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
        let mut len = decode_run(&buffer[..in_page], self.code_size, &mut ops);
        let mut second_page = None;
        if ops.is_empty() {
            // The first instruction goes on in the next page.
            let next = self.next_page(linear);
            let second = self.fetch_address(bus, next)?;
            second_page = Some(page_of(second));
            if !copy_out(bus, gpa, second_page, &mut buffer[..MAX_INSTRUCTION]) {
                return Err(self.fetch_outside(second));
            }
            let crossing =
                decode_one(&mut decoder(&buffer[..MAX_INSTRUCTION], self.code_size)).unwrap_or_else(decode::too_long);
            len = usize::from(crossing.op.len);
            ops.push(crossing.op);
        }
        self.mark_code(bus, gpa, len as u64, second_page);
        let generation = bus.code_generation();
        Ok(code.insert(key(gpa, self.code_size), &ops, &buffer[..len], second_page, generation))
    }

    fn fetch_outside(&mut self, gpa: u64) -> Stop {
        self.exit = Some(Exit::MmioFetch { gpa });
        Stop::Again
    }

    /// How many of a block's instructions lie inside the code segment; #GP(0) if not even the first does.
    #[cold]
    pub(super) fn instructions_within_limit(&mut self, ops: &[Op]) -> Result<usize, Stop> {
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

/// The first operation of a block that is dead: the run loop looks for a live one.
fn dead(_: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    Err(Stop::Stale)
}

fn decoder(bytes: &[u8], size: CodeSize) -> Decoder<'_> {
    let bits = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE)
}

/// Decodes an instruction; `None` if the bytes end before it does.
fn decode_one(decoder: &mut Decoder<'_>) -> Option<Decoded> {
    let start = decoder.position();
    let available = decoder.max_position() - start;
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    match decoder.last_error() {
        DecoderError::None => Some(decode::decode(&instruction)),
        DecoderError::NoMoreBytes if available < MAX_INSTRUCTION => None,
        // What goes on beyond the longest instruction is too long, whatever it would have become.
        _ if instruction.len() == MAX_INSTRUCTION => Some(decode::too_long()),
        DecoderError::NoMoreBytes => Some(decode::too_long()),
        _ => Some(decode::invalid(instruction.len().max(1))),
    }
}

/// Decodes up to the end of the block or of the bytes. Returns the length of what was decoded.
fn decode_run(bytes: &[u8], size: CodeSize, ops: &mut Vec<Op>) -> usize {
    let mut decoder = decoder(bytes, size);
    let mut len = 0;
    while ops.len() < MAX_BLOCK && decoder.can_decode() {
        let Some(decoded) = decode_one(&mut decoder) else { break };
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
