//! FXSAVE, XSAVE and their kin: the state of x87 and SSE to and from memory (SDM 1 13).

use super::features::Feature;
use super::fpu::{IMAGE_WORDS, component, mxcsr};
use super::mem::Bus;
use super::op::{Mem, Op, Source, Target};
use super::state::{Cpu, Step, Stop, cr4, vector};
use super::word::{RAX, RCX, RDX};
use std::ops::Range;

/// The 64-bit words of the image that hold the x87 state, MXCSR with its mask, and the XMM registers.
const X87_HEAD: Range<usize> = 0..3;
const MXCSR: usize = 3;
const X87_REGISTERS: Range<usize> = 4..20;
const XMM: usize = 20;
/// Where the XSAVE header begins.
const HEADER: usize = 64;
/// Words of an XSAVE area that has x87 and SSE only: the legacy region and the header.
pub(super) const AREA_WORDS: usize = HEADER + 8;
/// XCOMP_BV: the compacted format.
const COMPACTED: u64 = 1 << 63;
/// XCR0 as an extended control register.
const XCR0: u32 = 0;
/// XGETBV's name for the components in use.
const XINUSE: u32 = 1;

impl Cpu {
    /// The words of the image that components occupy; MXCSR belongs to SSE.
    fn image_words(&self, components: u64) -> impl Iterator<Item = usize> + use<> {
        let x87 = components & component::X87 != 0;
        let sse = components & component::SSE != 0;
        let xmm = XMM..XMM + if sse { 2 * self.xmm_count() } else { 0 };
        X87_HEAD.chain(X87_REGISTERS).filter(move |_| x87).chain((MXCSR..MXCSR + 1).filter(move |_| sse)).chain(xmm)
    }

    fn store_image(&mut self, bus: &mut Bus, op: &Op, offset: u64, components: u64) -> Step {
        let image = self.fpu.image(is_wide(op));
        for i in self.image_words(components) {
            self.write_word(bus, op, offset, i, image[i])?;
        }
        Ok(())
    }

    fn load_image(&mut self, bus: &mut Bus, op: &Op, offset: u64, components: u64) -> Result<[u64; IMAGE_WORDS], Stop> {
        let mut image = [0; IMAGE_WORDS];
        for i in self.image_words(components) {
            image[i] = self.read_word(bus, op, offset, i)?;
        }
        Ok(image)
    }

    /// What XSAVE and its kin check before anything else.
    fn check_xsave(&mut self) -> Step {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.cr0 & super::state::cr0::TS != 0 {
            return Err(self.raise(vector::NM));
        }
        Ok(())
    }

    /// The requested-feature bitmap: EDX:EAX and XCR0.
    fn requested(&self) -> u64 {
        edx_eax(self) & self.fpu.xcr0
    }
}

fn edx_eax(cpu: &Cpu) -> u64 {
    u64::from(cpu.get::<u32>(RDX)) << 32 | u64::from(cpu.get::<u32>(RAX))
}

/// Whether REX.W made the x87 pointers 64 bits wide.
fn is_wide(op: &Op) -> bool {
    op.extra != 0
}

/// FXSAVE.
pub(super) fn fxsave(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let offset = cpu.effective_address(op);
    cpu.check_aligned(op, offset, 16)?;
    cpu.open_words(bus, op, offset, XMM + 2 * cpu.xmm_count())?;
    cpu.store_image(bus, op, offset, component::ALL)
}

/// FXRSTOR.
pub(super) fn fxrstor(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_x87()?;
    let offset = cpu.effective_address(op);
    cpu.check_aligned(op, offset, 16)?;
    let image = cpu.load_image(bus, op, offset, component::ALL)?;
    cpu.set_mxcsr(image[MXCSR] as u32)?;
    cpu.fpu.load_x87(&image, is_wide(op));
    cpu.fpu.load_xmm(&image, cpu.xmm_count());
    Ok(())
}

/// XSAVE (`OPTIMIZED` is XSAVEOPT): the standard format.
pub(super) fn xsave<const OPTIMIZED: bool>(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_xsave()?;
    let offset = cpu.effective_address(op);
    cpu.check_aligned(op, offset, 64)?;
    cpu.open_words(bus, op, offset, AREA_WORDS)?;
    let (requested, in_use) = (cpu.requested(), cpu.fpu.in_use());
    let written = if OPTIMIZED { requested & in_use } else { requested };
    let old = cpu.read_word(bus, op, offset, HEADER)?;
    cpu.store_image(bus, op, offset, written)?;
    if requested & !written & component::SSE != 0 {
        // MXCSR is not part of what the init optimization leaves out (SDM 1 13.9).
        let word = cpu.fpu.image(is_wide(op))[MXCSR];
        cpu.write_word(bus, op, offset, MXCSR, word)?;
    }
    cpu.write_word(bus, op, offset, HEADER, old & !requested | in_use & requested)
}

/// XSAVEC: the compacted format; components in their initial configuration are left out.
pub(super) fn xsavec(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_xsave()?;
    let offset = cpu.effective_address(op);
    cpu.check_aligned(op, offset, 64)?;
    cpu.open_words(bus, op, offset, AREA_WORDS)?;
    let mut in_use = cpu.fpu.in_use();
    if cpu.fpu.mxcsr != mxcsr::RESET {
        in_use |= component::SSE;
    }
    let requested = cpu.requested();
    cpu.store_image(bus, op, offset, requested & in_use)?;
    cpu.write_word(bus, op, offset, HEADER, requested & in_use)?;
    cpu.write_word(bus, op, offset, HEADER + 1, requested | COMPACTED)
}

/// XRSTOR, of either format.
pub(super) fn xrstor(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_xsave()?;
    let offset = cpu.effective_address(op);
    cpu.check_aligned(op, offset, 64)?;
    let mut header = [0; 8];
    for (i, word) in header.iter_mut().enumerate() {
        *word = cpu.read_word(bus, op, offset, HEADER + i)?;
    }
    let [present, format, reserved @ ..] = header;
    let is_compacted = format & COMPACTED != 0;
    let valid = if is_compacted {
        let components = format & !COMPACTED;
        components & !cpu.fpu.xcr0 == 0 && present & !components == 0 && reserved == [0; 6]
    } else {
        present & !cpu.fpu.xcr0 == 0 && format == 0 && reserved[0] == 0
    };
    if !valid {
        return Err(cpu.gp(0));
    }
    let requested = cpu.requested();
    let loaded = requested & present;
    let image = cpu.load_image(bus, op, offset, loaded)?;
    // The standard format has MXCSR whether or not it has the XMM registers (SDM 1 13.8.1).
    if loaded & component::SSE != 0 {
        cpu.set_mxcsr(image[MXCSR] as u32)?;
    } else if requested & component::SSE != 0 {
        let value = if is_compacted { mxcsr::RESET } else { cpu.read_word(bus, op, offset, MXCSR)? as u32 };
        cpu.set_mxcsr(value)?;
    }
    cpu.fpu.initialize(requested & !present);
    if loaded & component::X87 != 0 {
        cpu.fpu.load_x87(&image, is_wide(op));
    }
    if loaded & component::SSE != 0 {
        cpu.fpu.load_xmm(&image, cpu.xmm_count());
    }
    Ok(())
}

/// XGETBV.
pub(super) fn xgetbv(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let value = match cpu.get(RCX) {
        XCR0 => cpu.fpu.xcr0,
        XINUSE if cpu.features.has(Feature::XinUse) => {
            let mxcsr = if cpu.fpu.mxcsr != mxcsr::RESET { component::SSE } else { 0 };
            cpu.fpu.xcr0 & (cpu.fpu.in_use() | mxcsr)
        }
        _ => return Err(cpu.gp(0)),
    };
    cpu.put(RAX, value as u32);
    cpu.put(RDX, (value >> 32) as u32);
    Ok(())
}

/// XSETBV.
pub(super) fn xsetbv(cpu: &mut Cpu, _: &mut Bus, _: &Op) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.check_cpl0()?;
    let value = edx_eax(cpu);
    if cpu.get::<u32>(RCX) != XCR0 || value & component::X87 == 0 || value & !component::ALL != 0 {
        return Err(cpu.gp(0));
    }
    cpu.fpu.xcr0 = value;
    Ok(())
}

/// LDMXCSR.
pub(super) fn ldmxcsr(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_sse()?;
    let value = Mem::get(cpu, bus, op)?;
    cpu.set_mxcsr(value)
}

/// STMXCSR.
pub(super) fn stmxcsr(cpu: &mut Cpu, bus: &mut Bus, op: &Op) -> Step {
    cpu.check_sse()?;
    let value = cpu.fpu.mxcsr;
    Mem::put(cpu, bus, op, value)
}
