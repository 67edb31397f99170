//! `+monitor`: a third process, such as `bhyvectl --get-all`, that looks at every vCPU and activates none.
//!
//! It looks between the set-up and the first VM_RUN, where it makes the most difference: on a kernel that allocates a vCPU
//! when it is first touched (98568a005a19, D37174), the look allocates it.

use super::machine::Machine;
use crate::FrontendOption;
use crate::libvmmapi::Vm;
use parking_lot::Mutex;
use std::sync::Arc;
use vmm::engine::Reg;
use vmm::host::WaitChannel;

/// The process has ended.
const EXITED: WaitChannel = WaitChannel(0xb47e_0003);

/// Lets the monitor look, if there is one, and waits until it has.
pub(super) fn look(machine: &Arc<Machine>) {
    if !machine.process.options.has(FrontendOption::Monitor) {
        return;
    }
    let exited = Arc::new(Mutex::new(false));
    let host = &machine.process.host;
    let (machine, done) = (Arc::clone(machine), Arc::clone(&exited));
    host.spawn("bhyvectl", move || {
        for vcpu in 0..i32::from(machine.vcpus) {
            // It prints what it finds, and an error where there is none; the VM goes its own way.
            let _printed = machine.vm.reopened().map(|vm| read_vcpu(&vm, vcpu));
        }
        *done.lock() = true;
        machine.process.host.wake(EXITED);
    });
    while !*exited.lock() {
        host.wait(EXITED, None);
    }
}

/// `bhyvectl --vm=NAME --cpu=N --get-rip --get-rflags --get-cr0 --get-stats`.
fn read_vcpu(vm: &Vm, vcpu: i32) {
    for reg in [Reg::Rip, Reg::Rflags, Reg::Cr0] {
        let _printed = vm.register(vcpu, reg);
    }
    let _printed = vm.stats(vcpu);
}
