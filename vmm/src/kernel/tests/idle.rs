//! Ioctls that need a vCPU to be idle while its thread is in VM_RUN: `vcpu_set_state` with `from_idle`.

use super::*;
use crate::host::End;

fn register(cpuid: i32) -> VmRegister {
    VmRegister { cpuid, regnum: crate::engine::Reg::Rbx as i32, regval: 0x5a }
}

/// A thread that runs the vCPU again as soon as VM_RUN has returned.
fn run_for_ever(host: &Host, vmm: &Vmmapi, vcpu: i32) {
    let vmm = vmm.clone();
    host.spawn("vcpu", move || while vmm.run(vcpu).is_ok() {});
}

#[test]
fn a_thread_that_runs_its_vcpu_again_at_once_does_not_shut_others_out() {
    for seed in 0..32 {
        let finished = on_kernel_seeded(seed, &kernel("fbsd-13.2"), Scripted::new(), |host, vmm| {
            vmm.activate(1).expect("not active yet");
            run_for_ever(host, vmm, 1);
            host.sleep(10_000);
            for _ in 0..40 {
                let before = host.now();
                vmm.call(VM_SET_REGISTER, register(1)).expect("a register");
                assert!(host.now() - before < 100_000, "waited for {} ns", host.now() - before);
            }
        });
        assert_eq!(finished.end, End::Exit(0), "seed {seed}");
    }
}
