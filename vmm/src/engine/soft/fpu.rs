//! The state of the x87 FPU, MMX and SSE, when instructions may use it, and its images in memory.

use super::mem::Bus;
use super::op::Op;
use super::state::{Cpu, Step, Stop, cr0, cr4, vector};

/// State components of XCR0 and XSAVE (SDM 1 13.1).
pub(super) mod component {
    pub(in super::super) const X87: u64 = 1 << 0;
    pub(in super::super) const SSE: u64 = 1 << 1;
    /// Those that this processor has.
    pub(in super::super) const ALL: u64 = X87 | SSE;
}

/// MXCSR (SDM 1 10.2.3) and the bits that the x87 words share with it.
pub(super) mod mxcsr {
    /// After reset.
    pub(in super::super) const RESET: u32 = 0x1F80;
    /// Bits that exist; it is what FXSAVE stores as MXCSR_MASK.
    pub(in super::super) const DEFINED: u32 = 0xFFFF;
    /// Denormal operands are zeros.
    pub(in super::super) const DAZ: u32 = 1 << 6;
    /// Results that underflow are zeros.
    pub(in super::super) const FTZ: u32 = 1 << 15;
    /// How far the mask of an exception lies above its flag.
    pub(in super::super) const MASK_SHIFT: u32 = 7;
    /// Rounding control: bits 14:13.
    pub(in super::super) const RC_SHIFT: u32 = 13;
}

/// The x87 status word, without its top-of-stack field.
pub(super) mod status {
    /// IE, DE, ZE, OE, UE, PE.
    pub(in super::super) const EXCEPTIONS: u16 = 0x3F;
    /// Stack fault.
    pub(in super::super) const SF: u16 = 1 << 6;
    /// Exception summary: an unmasked exception is pending.
    pub(in super::super) const ES: u16 = 1 << 7;
    pub(in super::super) const C0: u16 = 1 << 8;
    pub(in super::super) const C1: u16 = 1 << 9;
    pub(in super::super) const C2: u16 = 1 << 10;
    pub(in super::super) const C3: u16 = 1 << 14;
    pub(in super::super) const CONDITION: u16 = C0 | C1 | C2 | C3;
    /// Busy: the same as ES.
    pub(in super::super) const B: u16 = 1 << 15;
    pub(in super::super) const TOP_SHIFT: u16 = 11;
    pub(in super::super) const TOP: u16 = 7 << TOP_SHIFT;
}

/// The x87 control word after FNINIT.
pub(super) const CONTROL_INIT: u16 = 0x037F;
/// Bits of the control word that can be written (SDM 1 8.1.5); bit 6 is always set.
const CONTROL_DEFINED: u16 = 0x1F3F;
const CONTROL_FIXED: u16 = 0x0040;

/// A number in double extended precision as registers hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct F80 {
    /// With the integer bit.
    pub(super) significand: u64,
    /// Sign in bit 15, biased exponent below.
    pub(super) sign_exponent: u16,
}

/// x87, MMX and SSE registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fpu {
    pub(super) control: u16,
    /// The status word without TOP.
    pub(super) status: u16,
    /// Which register is ST(0).
    pub(super) top: u8,
    /// A bit for each register that is not empty.
    pub(super) occupied: u8,
    /// Opcode of the last instruction with an unmasked exception: 11 bits.
    pub(super) last_opcode: u16,
    /// Offset of the last instruction that was not one of control.
    pub(super) last_ip: u64,
    /// Offset of the memory operand of the last instruction with an unmasked exception.
    pub(super) last_data: u64,
    /// By number, not by place in the stack. MMX registers are their significands.
    pub(super) registers: [F80; 8],
    pub(super) xmm: [u128; 16],
    pub(super) mxcsr: u32,
    pub(super) xcr0: u64,
}

impl Fpu {
    /// After power-up (SDM 3A table 9-1). INIT changes none of it.
    pub(super) fn new() -> Fpu {
        Fpu {
            control: CONTROL_FIXED,
            status: 0,
            top: 0,
            // The table's tag word 5555H: all registers hold zeros.
            occupied: 0xFF,
            last_opcode: 0,
            last_ip: 0,
            last_data: 0,
            registers: [F80::default(); 8],
            xmm: [0; 16],
            mxcsr: mxcsr::RESET,
            xcr0: component::X87,
        }
    }

    /// FNINIT: the registers keep what is in them, but are empty.
    pub(super) fn init_x87(&mut self) {
        self.control = CONTROL_INIT;
        (self.status, self.top, self.occupied) = (0, 0, 0);
        (self.last_opcode, self.last_ip, self.last_data) = (0, 0, 0);
    }

    /// The whole status word.
    pub(super) fn status_word(&self) -> u16 {
        self.status | u16::from(self.top) << status::TOP_SHIFT
    }

    pub(super) fn set_status_word(&mut self, value: u16) {
        self.top = (value >> status::TOP_SHIFT & 7) as u8;
        self.status = value & !status::TOP;
        self.summarize();
    }

    pub(super) fn set_control(&mut self, value: u16) {
        self.control = value & CONTROL_DEFINED | CONTROL_FIXED;
        self.summarize();
    }

    /// Sets ES and B if an exception that has happened is not masked.
    pub(super) fn summarize(&mut self) {
        let pending = self.status & !self.control & status::EXCEPTIONS != 0;
        self.status = self.status & !(status::ES | status::B) | if pending { status::ES | status::B } else { 0 };
    }

    /// The number of ST(i).
    pub(super) fn number(&self, i: u8) -> usize {
        usize::from((self.top + i) & 7)
    }

    /// Which state components are not in their initial configuration (XINUSE, SDM 1 13.6).
    pub(super) fn in_use(&self) -> u64 {
        let x87 = self.control != CONTROL_INIT
            || self.status_word() != 0
            || self.occupied != 0
            || (self.last_opcode, self.last_ip, self.last_data) != (0, 0, 0)
            || self.registers != [F80::default(); 8];
        let sse = self.xmm != [0; 16];
        let bit = |set: bool, component: u64| if set { component } else { 0 };
        bit(x87, component::X87) | bit(sse, component::SSE)
    }

    /// Brings state components into their initial configuration; MXCSR is the caller's.
    pub(super) fn initialize(&mut self, components: u64) {
        if components & component::X87 != 0 {
            self.init_x87();
            self.registers = [F80::default(); 8];
        }
        if components & component::SSE != 0 {
            self.xmm = [0; 16];
        }
    }

    /// The FXSAVE image (SDM 2A, FXSAVE) up to the last XMM register. `wide` is REX.W: pointers are 64-bit offsets.
    pub(super) fn image(&self, wide: bool) -> [u64; IMAGE_WORDS] {
        let mut words = [0; IMAGE_WORDS];
        words[0] = u64::from(self.control)
            | u64::from(self.status_word()) << 16
            | u64::from(self.occupied) << 32
            | u64::from(self.last_opcode) << 48;
        // The selectors beside 32-bit offsets are deprecated (CPUID.7:EBX bit 13) and stored as 0.
        let pointer = |offset: u64| if wide { offset } else { offset & 0xFFFF_FFFF };
        words[1] = pointer(self.last_ip);
        words[2] = pointer(self.last_data);
        words[3] = u64::from(self.mxcsr) | u64::from(mxcsr::DEFINED) << 32;
        for i in 0..8 {
            let register = self.registers[self.number(i)];
            let at = 4 + 2 * usize::from(i);
            words[at] = register.significand;
            words[at + 1] = u64::from(register.sign_exponent);
        }
        for (i, value) in self.xmm.into_iter().enumerate() {
            words[20 + 2 * i] = value as u64;
            words[21 + 2 * i] = (value >> 64) as u64;
        }
        words
    }

    /// Loads the x87 part of an image.
    pub(super) fn load_x87(&mut self, words: &[u64; IMAGE_WORDS], wide: bool) {
        self.control = words[0] as u16 & CONTROL_DEFINED | CONTROL_FIXED;
        self.set_status_word((words[0] >> 16) as u16);
        self.occupied = (words[0] >> 32) as u8;
        self.last_opcode = (words[0] >> 48) as u16 & 0x7FF;
        let pointer = |word: u64| if wide { word } else { word & 0xFFFF_FFFF };
        self.last_ip = pointer(words[1]);
        self.last_data = pointer(words[2]);
        for i in 0..8 {
            let at = 4 + 2 * usize::from(i);
            self.registers[self.number(i)] = F80 { significand: words[at], sign_exponent: words[at + 1] as u16 };
        }
    }

    /// The image with 64-bit pointers, as bytes.
    pub(super) fn image_bytes(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        for (word, place) in self.image(true).into_iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Loads all of such an image.
    pub(super) fn load_image_bytes(&mut self, bytes: &[u8; 512]) {
        let mut words = [0; IMAGE_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        self.load_x87(&words, true);
        self.mxcsr = words[3] as u32 & mxcsr::DEFINED;
        self.load_xmm(&words, 16);
    }

    /// Loads the first `count` XMM registers of an image.
    pub(super) fn load_xmm(&mut self, words: &[u64; IMAGE_WORDS], count: usize) {
        for (i, register) in self.xmm[..count].iter_mut().enumerate() {
            *register = u128::from(words[20 + 2 * i]) | u128::from(words[21 + 2 * i]) << 64;
        }
    }
}

/// Words of 64 bits up to the end of the XMM registers in an FXSAVE image.
pub(super) const IMAGE_WORDS: usize = 52;

impl Cpu {
    /// How many XMM registers the present mode has.
    pub(super) fn xmm_count(&self) -> usize {
        if self.is_64() { 16 } else { 8 }
    }

    /// #NM unless x87 instructions may execute (SDM 3A 2.5, table 2-2).
    pub(super) fn check_x87(&mut self) -> Step {
        if self.cr0 & (cr0::EM | cr0::TS) == 0 { Ok(()) } else { Err(self.raise(vector::NM)) }
    }

    /// The same, and #MF if an unmasked exception is pending: for instructions that wait.
    pub(super) fn check_x87_waiting(&mut self) -> Step {
        self.check_x87()?;
        self.check_pending()
    }

    /// #MF if an unmasked exception is pending.
    pub(super) fn check_pending(&mut self) -> Step {
        if self.fpu.status & status::ES == 0 {
            return Ok(());
        }
        if self.cr0 & cr0::NE == 0 {
            // FERR# would go to IRQ 13 of a PC, and the processor would wait for it.
            let rip = self.rip();
            self.record_unimplemented("x87 exception with CR0.NE clear", rip);
            return Ok(());
        }
        Err(self.raise(vector::MF))
    }

    /// #UD or #NM unless MMX instructions may execute, #MF for what x87 instructions left pending.
    pub(super) fn check_mmx(&mut self) -> Step {
        if self.cr0 & cr0::EM != 0 {
            return Err(self.ud());
        }
        self.check_x87_waiting()
    }

    /// #UD or #NM unless SSE instructions may execute (SDM 3A 14.3).
    #[inline(always)]
    pub(super) fn check_sse(&mut self) -> Step {
        if self.cr0 & (cr0::EM | cr0::TS) | !self.cr4 & cr4::OSFXSR == 0 { Ok(()) } else { Err(self.lacks_sse()) }
    }

    #[cold]
    fn lacks_sse(&mut self) -> Stop {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 { self.ud() } else { self.raise(vector::NM) }
    }

    /// Loads MXCSR; #GP(0) for bits that do not exist.
    pub(super) fn set_mxcsr(&mut self, value: u32) -> Step {
        if value & !mxcsr::DEFINED != 0 {
            return Err(self.gp(0));
        }
        self.fpu.mxcsr = value;
        Ok(())
    }
}

/// Memory operands that are wider than a general register.
impl Cpu {
    /// #GP(0) unless a memory operand is aligned to `bytes`.
    #[inline(always)]
    pub(super) fn check_aligned(&mut self, op: &Op, offset: u64, bytes: u64) -> Step {
        if self.linear(op.seg, offset) & (bytes - 1) == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Reads the `i`-th 64-bit word of a memory operand.
    #[inline(always)]
    pub(super) fn read_word(&mut self, bus: &mut Bus, op: &Op, offset: u64, i: usize) -> Result<u64, Stop> {
        self.read(bus, op.seg, op.truncate_address(offset.wrapping_add(8 * i as u64)))
    }

    /// Writes the `i`-th 64-bit word of a memory operand.
    #[inline(always)]
    pub(super) fn write_word(&mut self, bus: &mut Bus, op: &Op, offset: u64, i: usize, value: u64) -> Step {
        self.write(bus, op.seg, op.truncate_address(offset.wrapping_add(8 * i as u64)), value)
    }

    /// Makes sure that a memory operand of some 64-bit words, fewer than a page has, can be written.
    pub(super) fn open_words(&mut self, bus: &mut Bus, op: &Op, offset: u64, words: usize) -> Step {
        for i in [0, words - 1] {
            self.open::<u64>(bus, op.seg, op.truncate_address(offset.wrapping_add(8 * i as u64)))?;
        }
        Ok(())
    }

    /// Reads a 128-bit operand.
    #[inline(always)]
    pub(super) fn read128(&mut self, bus: &mut Bus, op: &Op, offset: u64) -> Result<u128, Stop> {
        let low = self.read_word(bus, op, offset, 0)?;
        Ok(u128::from(low) | u128::from(self.read_word(bus, op, offset, 1)?) << 64)
    }

    /// Writes a 128-bit operand, or nothing.
    #[inline(always)]
    pub(super) fn write128(&mut self, bus: &mut Bus, op: &Op, offset: u64, value: u128) -> Step {
        self.open_words(bus, op, offset, 2)?;
        self.write_word(bus, op, offset, 0, value as u64)?;
        self.write_word(bus, op, offset, 1, (value >> 64) as u64)
    }
}
