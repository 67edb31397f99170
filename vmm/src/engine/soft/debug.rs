//! Debug registers: breakpoints on execution, data and ports, and general detection (SDM 3B 17.2 and 17.3).
//!
//! While a breakpoint is enabled, the run loop executes one instruction at a time, and the translation cache holds no page
//! with a watched byte: accesses to it take the slow path, which calls [`Cpu::watch`].

use super::mem::page_of;
use super::state::{Cpu, Step, cr4, vector};

/// DR6: an access to a debug register was detected.
const DR6_BD: u64 = 1 << 13;
/// DR6: the trap is a single step.
pub(super) const DR6_BS: u64 = 1 << 14;
/// DR7: accesses to debug registers are detected.
const DR7_GD: u64 = 1 << 13;

/// What a breakpoint watches: its R/W field in DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Execution,
    Writes,
    Ports,
    Accesses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Breakpoint {
    kind: Kind,
    first: u64,
    last: u64,
}

/// The breakpoints that DR7 enables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Breakpoints([Option<Breakpoint>; 4]);

impl Breakpoints {
    fn new(dr: &[u64; 8], ports: bool) -> Breakpoints {
        let dr7 = dr[7];
        Breakpoints(std::array::from_fn(|i| {
            let enabled = dr7 >> (2 * i) & 3 != 0;
            let field = dr7 >> (16 + 4 * i);
            let kind = match field & 3 {
                0 => Kind::Execution,
                1 => Kind::Writes,
                2 if ports => Kind::Ports,
                2 => return None,
                _ => Kind::Accesses,
            };
            // LEN: 1, 2, 8, 4 bytes.
            let len = [1, 2, 8, 4][(field >> 2 & 3) as usize];
            let first = dr[i] & !(len - 1);
            enabled.then_some(Breakpoint { kind, first, last: first + (len - 1) })
        }))
    }

    /// Whether any is enabled.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// The bits of DR6 for breakpoints of these kinds that the bytes from `first` to `last` touch.
    fn hits(&self, kinds: &[Kind], first: u64, last: u64) -> u64 {
        let hit = |&(_, point): &(usize, &Option<Breakpoint>)| {
            point.is_some_and(|point| kinds.contains(&point.kind) && point.first <= last && first <= point.last)
        };
        self.0.iter().enumerate().filter(hit).map(|(i, _)| 1 << i).sum()
    }

    /// Whether accesses to a page must be looked at one by one.
    fn watches_page(&self, linear: u64) -> bool {
        let page = page_of(linear);
        self.hits(&[Kind::Writes, Kind::Accesses], page, page | 0xFFF) != 0
    }
}

impl Cpu {
    /// Recomputes what follows from the debug registers and CR4.DE.
    pub(super) fn derive_breakpoints(&mut self) {
        let before = self.breakpoints.any();
        self.breakpoints = Breakpoints::new(&self.dr, self.cr4 & cr4::DE != 0);
        if before || self.breakpoints.any() {
            self.tlb.flush();
            self.update_attention();
        }
    }

    /// Whether the translation cache may hold a page.
    pub(super) fn may_cache(&self, linear: u64) -> bool {
        !self.breakpoints.watches_page(linear)
    }

    /// Notes a data access; the trap comes behind the instruction.
    pub(super) fn watch(&mut self, linear: u64, size: u32, write: bool) {
        let kinds: &[Kind] = if write { &[Kind::Writes, Kind::Accesses] } else { &[Kind::Accesses] };
        self.debug_hits |= self.breakpoints.hits(kinds, linear, linear.wrapping_add(u64::from(size) - 1));
    }

    /// Notes an access to ports.
    pub(super) fn watch_port(&mut self, port: u16, size: u32) {
        let first = u64::from(port);
        self.debug_hits |= self.breakpoints.hits(&[Kind::Ports], first, first + u64::from(size) - 1);
    }

    /// #DB before an instruction that a breakpoint is set on.
    pub(super) fn check_execution(&mut self, linear: u64) -> Step {
        let hits = self.breakpoints.hits(&[Kind::Execution], linear, linear);
        if hits == 0 {
            return Ok(());
        }
        self.dr[6] |= hits;
        Err(self.raise(vector::DB))
    }

    /// #DB before an access to a debug register, if DR7.GD asks for it.
    pub(super) fn check_general_detection(&mut self) -> Step {
        if self.dr[7] & DR7_GD == 0 {
            return Ok(());
        }
        self.dr[6] |= DR6_BD;
        Err(self.raise(vector::DB))
    }

    /// A #DB is delivered: its handler may access the debug registers.
    pub(super) fn end_general_detection(&mut self) {
        self.dr[7] &= !DR7_GD;
    }
}
