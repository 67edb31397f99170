//! A vCPU's registers as GDB has them.

use gdbstub_arch::x86::reg::X86_64CoreRegs;
use vmm::engine::{EngineVcpu, Reg};

/// GDB's order: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
const GENERAL: [Reg; 16] = [
    Reg::Rax,
    Reg::Rbx,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rsi,
    Reg::Rdi,
    Reg::Rbp,
    Reg::Rsp,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];

/// Where things are in the image that FXSAVE64 stores (SDM 1 table 10-2).
mod fxsave {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
}

/// Reads all registers. RIP is linear, for GDB knows no segments.
pub(super) fn read(vcpu: &mut dyn EngineVcpu) -> X86_64CoreRegs {
    let mut regs = X86_64CoreRegs { regs: GENERAL.map(|reg| vcpu.reg(reg)), ..X86_64CoreRegs::default() };
    regs.rip = vcpu.linear_rip();
    regs.eflags = vcpu.reg(Reg::Rflags) as u32;
    let [cs, ss, ds, es, fs, gs] =
        [Reg::Cs, Reg::Ss, Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs].map(|reg| vcpu.reg(reg) as u32);
    regs.segments.cs = cs;
    regs.segments.ss = ss;
    regs.segments.ds = ds;
    regs.segments.es = es;
    regs.segments.fs = fs;
    regs.segments.gs = gs;
    let image = vcpu.fpu().image;
    let word = |at: usize| u32::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let long = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| image[at + i]));
    for (i, st) in regs.st.iter_mut().enumerate() {
        *st = std::array::from_fn(|byte| image[fxsave::ST + 16 * i + byte]);
    }
    for (i, xmm) in regs.xmm.iter_mut().enumerate() {
        *xmm = u128::from_le_bytes(std::array::from_fn(|byte| image[fxsave::XMM + 16 * i + byte]));
    }
    regs.fpu.fctrl = word(fxsave::FCW);
    regs.fpu.fstat = word(fxsave::FSW);
    // The image has a bit for each register in use; GDB wants two, 11B for empty and 00B for valid.
    regs.fpu.ftag = (0..8).filter(|i| image[fxsave::FTW] >> i & 1 == 0).map(|i| 3 << (2 * i)).sum();
    regs.fpu.fop = word(fxsave::FOP);
    regs.fpu.fioff = long(fxsave::FIP);
    regs.fpu.fiseg = long(fxsave::FIP + 4);
    regs.fpu.fooff = long(fxsave::FDP);
    regs.fpu.foseg = long(fxsave::FDP + 4);
    regs.mxcsr = long(fxsave::MXCSR);
    regs
}

/// Writes what differs from what is there: general registers, RIP, RFLAGS, XMM registers and MXCSR. Segment registers stay, for a
/// selector says nothing of what is behind it, and so do the x87 registers.
pub(super) fn write(vcpu: &mut dyn EngineVcpu, regs: &X86_64CoreRegs) {
    let old = read(vcpu);
    for ((reg, value), old) in GENERAL.into_iter().zip(regs.regs).zip(old.regs) {
        if value != old {
            vcpu.set_reg(reg, value);
        }
    }
    if regs.rip != old.rip {
        let base = vcpu.desc(Reg::Cs).base;
        vcpu.set_reg(Reg::Rip, regs.rip.wrapping_sub(base));
    }
    if regs.eflags != old.eflags {
        vcpu.set_reg(Reg::Rflags, regs.eflags.into());
    }
    if regs.xmm != old.xmm || regs.mxcsr != old.mxcsr {
        let mut state = vcpu.fpu();
        for (i, xmm) in regs.xmm.iter().enumerate() {
            state.image[fxsave::XMM + 16 * i..][..16].copy_from_slice(&xmm.to_le_bytes());
        }
        state.image[fxsave::MXCSR..][..4].copy_from_slice(&regs.mxcsr.to_le_bytes());
        vcpu.set_fpu(&state);
    }
}
