//! The KVM calls that kvm-ioctls does not have.
#![allow(unsafe_code, reason = "an ioctl is as safe as its number and its argument agree")]

use kvm_bindings::{KVMIO, kvm_interrupt, kvm_sregs2};
use kvm_ioctls::VcpuFd;
use std::io;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs the guest until it exits, which `kvm_run` describes, or fails with `EINTR` after a signal. Without the decoding
/// of `VcpuFd::run`, which hides the size of a string instruction's elements.
pub(super) fn run(vcpu: &VcpuFd) -> io::Result<()> {
    // SAFETY: the file is a vCPU, and KVM_RUN has no argument; what it exchanges lies in `kvm_run`.
    check(unsafe { ioctl(vcpu, KVM_RUN()) })
}

/// Queues an external interrupt.
pub(super) fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: the file is a vCPU, and KVM_INTERRUPT reads one `kvm_interrupt`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &interrupt) })
}

/// Reads the system registers, PDPTEs among them.
pub(super) fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the file is a vCPU, and KVM_GET_SREGS2 writes one `kvm_sregs2`, which any bytes are.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Writes the system registers.
pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the file is a vCPU, and KVM_SET_SREGS2 reads one `kvm_sregs2`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}
