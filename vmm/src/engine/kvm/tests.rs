//! The conformance tests over KVM, where there is one that works, and what only KVM and threads have together.

use super::KvmEngine;
use crate::engine::conformance::conformance_tests;
use crate::engine::{Engine, Exit, Reg};
use crate::host::{End, Host};
use crate::memory::{PAGE_SIZE, Protection, Segment};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn engine() -> Option<KvmEngine> {
    KvmEngine::probe().inspect_err(|reason| eprintln!("Skipped: {reason}")).ok()
}

conformance_tests!(engine());

#[test]
fn the_end_of_a_cell_ends_guests_that_spin() {
    let Some(engine) = engine() else { return };
    let host = Host::threads(Duration::from_secs(10));
    let inner = host.clone();
    let began = Instant::now();
    let finished = host.run("main", move || {
        let vm = engine.create_vm().expect("a virtual machine");
        let memory = Arc::new(Segment::new(PAGE_SIZE as usize).expect("memory"));
        assert!(memory.write(0, &[0x40, 0xeb, 0xfd])); // inc ax; jmp $-1
        vm.map(0, &memory, 0, PAGE_SIZE, Protection { write: true }).expect("a mapping");
        for id in 0..3 {
            let mut vcpu = vm.create_vcpu(id).expect("a vCPU");
            let cs = vcpu.desc(Reg::Cs);
            vcpu.set_desc(Reg::Cs, crate::engine::SegDesc { base: 0, ..cs });
            vcpu.set_reg(Reg::Rip, 0);
            let kick = vcpu.kick_handle();
            inner.on_end(move || kick.kick());
            let host = inner.clone();
            inner.spawn("vcpu", move || {
                let exit = host.outside(|| vcpu.run(60_000_000_000));
                unreachable!("the end unwinds the task, after {exit:?}");
            });
        }
        inner.sleep(5_000_000);
        inner.end(End::Exit(0));
    });
    assert_eq!(finished.end, End::Exit(0));
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_kvm_refuses_ends_the_run() {
    let Some(engine) = engine() else { return };
    let vm = engine.create_vm().expect("a virtual machine");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    vcpu.set_reg(Reg::Cr0, 0x8000_0000); // paging without protection (SDM 3A 2.5)
    vcpu.set_reg(Reg::Efer, 0x500); // and long mode without PAE
    let exit = vcpu.run(1_000_000);
    assert_eq!(exit, Exit::Failed("KVM refuses the registers of the vCPU".into()));
}
