//! The x87 and SSE registers, which KVM gives and takes as an XSAVE area. (`KVM_GET_FPU` leaves MXCSR out.)
#![allow(unsafe_code, reason = "KVM_SET_XSAVE reads as much as the guest's features need")]

use crate::engine::FpuState;
use kvm_ioctls::VcpuFd;
use std::io;

/// XCR0 as an extended control register.
const XCR0: u32 = 0;
/// Bits of MXCSR that the software processor has as well; AMD processors have one more.
const MXCSR_DEFINED: u32 = 0xFFFF;

/// In the area's 32-bit words (SDM 1 13.4): MXCSR and its mask, the end of the XMM registers, XSTATE_BV.
const MXCSR: usize = 6;
const MXCSR_MASK: usize = 7;
const LEGACY_END: usize = 104;
const XSTATE_BV: usize = 128;
/// x87 and SSE in XSTATE_BV.
const LEGACY: u32 = 3;

pub(super) fn get(vcpu: &VcpuFd) -> io::Result<FpuState> {
    let mut area = vcpu.get_xsave()?.region;
    area[MXCSR] &= MXCSR_DEFINED;
    area[MXCSR_MASK] = MXCSR_DEFINED;
    let mut image = [0; 512];
    for (word, bytes) in area[..LEGACY_END].iter().zip(image.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    // A KVM without XSAVE has no XCR0; FXSAVE saves what its bits 0 and 1 stand for.
    let xcr0 = match vcpu.get_xcrs() {
        Ok(xcrs) => xcrs.xcrs[..xcrs.nr_xcrs as usize].iter().find(|xcr| xcr.xcr == XCR0).map_or(1, |xcr| xcr.value),
        Err(_) => 1,
    };
    Ok(FpuState { image, xcr0 })
}

pub(super) fn set(vcpu: &VcpuFd, state: &FpuState) -> io::Result<()> {
    let FpuState { image, xcr0 } = state;
    let mut area = vcpu.get_xsave()?;
    let mask = area.region[MXCSR_MASK];
    for (word, bytes) in area.region[..LEGACY_END].iter_mut().zip(image.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    area.region[MXCSR] &= MXCSR_DEFINED;
    area.region[MXCSR_MASK] = mask;
    area.region[XSTATE_BV] |= LEGACY;
    // SAFETY: KVM reads more than the structure only for features that a process asks for with arch_prctl, which this one
    // does not.
    unsafe { vcpu.set_xsave(&area) }?;
    let mut xcrs = vcpu.get_xcrs().unwrap_or_default();
    let known = xcrs.nr_xcrs as usize;
    match xcrs.xcrs[..known].iter_mut().find(|xcr| xcr.xcr == XCR0) {
        Some(xcr) if xcr.value != *xcr0 => {
            xcr.value = *xcr0;
            Ok(vcpu.set_xcrs(&xcrs)?)
        }
        _ => Ok(()),
    }
}
