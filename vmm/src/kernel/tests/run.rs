//! VM_RUN: what it handles itself, what it hands to userspace, and what wakes whom.

use super::scripted::LAST_PORT;
use super::*;
use crate::engine::{Exit, Reg};
use crate::host::End;
use crate::trace::Event;
use std::sync::Mutex;

const RFLAGS_IF: u64 = 1 << 9;

/// Runs a script for vCPU 0 on 13.2, with `body` as its userspace.
fn on_13_2(script: Scripted, body: impl FnOnce(&Host, &Vmmapi) + Send + 'static) -> Finished {
    let finished = on_kernel(&kernel("fbsd-13.2"), script, move |host, vmm| {
        vmm.activate(0).expect("vCPU 0");
        body(host, vmm);
    });
    assert_eq!(finished.end, End::Exit(0));
    finished
}

fn set_register(vmm: &Vmmapi, cpuid: i32, reg: Reg, regval: u64) {
    vmm.call(VM_SET_REGISTER, VmRegister { cpuid, regnum: reg as i32, regval }).expect("a register");
}

fn exitcode_of(vmm: &Vmmapi, cpuid: i32) -> &'static str {
    exitcode::name(vmm.run(cpuid).expect("VM_RUN").exitcode)
}

#[test]
fn ports_of_the_board_stay_in_the_kernel_and_others_go_to_userspace() {
    const PIT_COUNTER_0: u16 = 0x40;
    const UART: u16 = 0x3f8;
    let script = Scripted::new().vcpu(
        0,
        [
            Exit::IoIn { port: PIT_COUNTER_0, size: 1 },
            Exit::IoIn { port: crate::device::vpmtmr::IO_PMTMR, size: 4 },
            Exit::IoIn { port: UART, size: 2 },
            Exit::IoOut { port: UART, size: 1, data: 0x41 },
        ],
    );
    on_13_2(script, |_, vmm| {
        let inout: ExitInout = vmm.run(0).expect("VM_RUN").payload();
        assert_eq!((inout.port, inout.bytes(), inout.is_in()), (UART, 2, true));
        let inout: ExitInout = vmm.run(0).expect("VM_RUN").payload();
        assert_eq!((inout.port, inout.bytes(), inout.is_in(), inout.eax), (UART, 1, false, 0x41));
    });
}

#[test]
fn what_userspace_writes_to_rax_and_rdx_completes_the_instruction() {
    const MSR: u32 = 0x1234;
    const PORT: u16 = 0x3f8;
    let script = Scripted::new().vcpu(0, [Exit::IoIn { port: PORT, size: 4 }, Exit::RdMsr { index: MSR }]);
    let completions = script.completions();
    on_13_2(script, |_, vmm| {
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
        set_register(vmm, 0, Reg::Rax, 0x1122_3344);
        assert_eq!(vmm.run(0).map(|exit| exit.payload::<ExitMsr>().code), Ok(MSR));
        set_register(vmm, 0, Reg::Rax, 0x5566_7788);
        set_register(vmm, 0, Reg::Rdx, 0x99aa_bbcc);
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
    });
    let completions = completions.lock().expect("one thread");
    assert_eq!(completions[..2], [Completion::Value(0x1122_3344), Completion::Value(0x99aa_bbcc_5566_7788)]);
}

#[test]
fn a_fault_that_userspace_injects_is_the_msr_accesss_own() {
    let script = Scripted::new().vcpu(0, [Exit::WrMsr { index: 0x1234, value: 1 }]);
    let completions = script.completions();
    on_13_2(script, |_, vmm| {
        assert_eq!(exitcode_of(vmm, 0), "WRMSR");
        let exception =
            VmException { cpuid: 0, vector: 13, error_code: 0, error_code_valid: 1, restart_instruction: 1 };
        assert_eq!(vmm.call(VM_INJECT_EXCEPTION, exception).map(drop), Ok(()));
        assert_eq!(vmm.call(VM_INJECT_EXCEPTION, VmException { vector: 32, ..exception }), Err(Errno::EINVAL));
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
    });
    assert_eq!(completions.lock().expect("one thread")[0], Completion::GeneralProtection);
}

/// Linux reads IA32_MISC_ENABLE before it has an IDT: a fault would be a triple fault.
#[test]
fn misc_enable_is_there_and_hardly_changes() {
    const MSR: u32 = 0x1a0;
    const XD_DISABLE: u64 = 1 << 34;
    let value = 1 << 12 | 1 << 11 | 1;
    let script = Scripted::new().vcpu(
        0,
        [
            Exit::RdMsr { index: MSR },
            Exit::WrMsr { index: MSR, value: value | XD_DISABLE },
            Exit::WrMsr { index: MSR, value: value | 1 << 18 },
        ],
    );
    let completions = script.completions();
    on_13_2(script, |_, vmm| {
        assert_eq!(exitcode_of(vmm, 0), "WRMSR", "MONITOR cannot be turned on");
    });
    assert_eq!(completions.lock().expect("one thread")[..2], [Completion::Value(value), Completion::Done]);
}

#[test]
fn accesses_that_no_device_takes() {
    let script = Scripted::new().vcpu(
        0,
        [
            Exit::MmioRead { gpa: 0xd000_0000, size: 4 },
            Exit::MmioFetch { gpa: 0xd000_0000 },
            Exit::MmioWrite { gpa: 0xfee0_0080, size: 1, data: 0 },
            Exit::MmioWrite { gpa: 0xfee0_0084, size: 4, data: 0 },
            Exit::IoIn { port: crate::device::vpmtmr::IO_PMTMR, size: 1 },
        ],
    );
    on_13_2(script, |_, vmm| {
        assert_eq!(vmm.run(0).map(|exit| exit.payload::<ExitInstEmul>().gpa), Ok(0xd000_0000));
        assert_eq!(exitcode_of(vmm, 0), "VMX");
        assert_eq!(vmm.run(0), Err(Errno::EINVAL), "the local APIC is written in four bytes");
        assert_eq!(vmm.run(0), Err(Errno::EINVAL), "on 16-byte boundaries");
        assert_eq!(vmm.run(0), Err(Errno::EIO), "and the PM timer is read in four");
    });
}

#[test]
fn pause_and_debug_go_to_userspace_when_asked_for() {
    let script = Scripted::new().vcpu(0, [Exit::Pause, Exit::Pause]);
    on_13_2(script, |_, vmm| {
        vmm.set_capability(0, cap::PAUSE_EXIT, 1).expect("a capability");
        assert_eq!(exitcode_of(vmm, 0), "PAUSE");
        vmm.suspend_cpu(0).expect("active");
        assert_eq!(exitcode_of(vmm, 0), "DEBUG");
        assert_eq!(exitcode_of(vmm, 0), "DEBUG");
        vmm.resume_cpu(0).expect("suspended");
        vmm.set_capability(0, cap::PAUSE_EXIT, 0).expect("a capability");
        let inout: ExitInout = vmm.run(0).expect("VM_RUN").payload();
        assert_eq!(inout.port, LAST_PORT, "the second PAUSE stays in the kernel");
    });
}

#[test]
fn all_vcpus_halted_with_interrupts_off_is_the_end_of_the_vm() {
    let script = Scripted::new().vcpu(0, [Exit::Hlt]).vcpu(1, [Exit::Hlt]);
    on_13_2(script, |host, vmm| {
        vmm.activate(1).expect("vCPU 1");
        for vcpu in [0, 1] {
            vmm.set_capability(vcpu, cap::HALT_EXIT, 1).expect("a capability");
        }
        let ap = vmm.clone();
        host.spawn("vcpu 1", move || assert_eq!(exitcode_of(&ap, 1), "SUSPENDED"));
        let exit = vmm.run(0).expect("VM_RUN");
        assert_eq!(exit.exitcode, exitcode::SUSPENDED);
        assert_eq!(exit.payload::<ExitSuspended>().how, suspend::HALT);
    });
}

#[test]
fn an_nmi_wakes_a_vcpu_that_halts_with_interrupts_off() {
    let script = Scripted::new().vcpu(0, [Exit::Hlt]);
    on_13_2(script, |host, vmm| {
        let other = vmm.clone();
        let clock = host.clone();
        host.spawn("other", move || {
            clock.sleep(1_000_000);
            other.call(VM_INJECT_NMI, VmNmi { cpuid: 0 }).expect("vCPU 0");
        });
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
        assert!(host.now() >= 1_000_000);
    });
}

#[test]
fn an_interrupt_wakes_a_vcpu_that_halts_with_interrupts_on() {
    const SVR: u64 = 0xfee0_00f0;
    const VECTOR: i32 = 0x31;
    let enable = Exit::MmioWrite { gpa: SVR, size: 4, data: 0x1ff };
    let script = Scripted::new().vcpu(0, [enable, Exit::Hlt]);
    on_13_2(script, |host, vmm| {
        set_register(vmm, 0, Reg::Rflags, RFLAGS_IF);
        let other = vmm.clone();
        let clock = host.clone();
        host.spawn("other", move || {
            clock.sleep(1_000_000);
            assert_eq!(other.call(VM_LAPIC_IRQ, VmLapicIrq { cpuid: 0, vector: 15 }), Err(Errno::EINVAL));
            other.call(VM_LAPIC_IRQ, VmLapicIrq { cpuid: 0, vector: VECTOR }).expect("a vector");
        });
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
        assert!(host.now() >= 1_000_000);
    });
}

#[test]
fn the_local_apic_timer_wakes_its_vcpu() {
    const LAPIC: u64 = 0xfee0_0000;
    let write = |offset, data| Exit::MmioWrite { gpa: LAPIC + offset, size: 4, data };
    let script = Scripted::new()
        .vcpu(0, [write(0xf0, 0x1ff), write(0x3e0, 0xb), write(0x320, 0x40), write(0x380, 1_342_177), Exit::Hlt]);
    on_13_2(script, |host, vmm| {
        set_register(vmm, 0, Reg::Rflags, RFLAGS_IF);
        assert_eq!(exitcode_of(vmm, 0), "INOUT");
        // 1,342,177 ticks of 128 × 2^20 Hz are 10 ms.
        assert!((10_000_000..10_100_000).contains(&host.now()), "{}", host.now());
    });
}

#[test]
fn a_triple_fault_suspends_the_vm() {
    let script = Scripted::new().vcpu(0, [Exit::Shutdown]);
    let finished = on_13_2(script, |_, vmm| {
        let exit = vmm.run(0).expect("VM_RUN");
        assert_eq!(exit.payload::<ExitSuspended>().how, suspend::TRIPLEFAULT);
    });
    assert!(finished.trace.records.iter().any(|record| record.event == Event::TripleFault));
}

#[test]
fn an_ioctl_on_a_running_vcpu_waits_until_it_is_idle() {
    let script = Scripted::new().vcpu(1, [Exit::Hlt]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&seen);
    on_13_2(script, move |host, vmm| {
        vmm.activate(1).expect("vCPU 1");
        let ap = vmm.clone();
        let exits = Arc::clone(&inside);
        host.spawn("vcpu 1", move || {
            let exit = exitcode_of(&ap, 1);
            exits.lock().expect("one thread").push(exit);
        });
        host.sleep(1_000_000);
        set_register(vmm, 1, Reg::Rax, 1);
        host.sleep(1_000_000);
    });
    assert_eq!(*seen.lock().expect("one thread"), ["REQIDLE"], "it slept in HLT, and was asked to come out");
}

#[test]
fn statistics_and_topology_can_be_read() {
    on_13_2(Scripted::new(), |_, vmm| {
        vmm.run(0).expect("the last port");
        let stats = vmm.call(VM_STATS, VmStats { cpuid: 0, ..VmStats::default() }).expect("statistics");
        assert_eq!(stats.statbuf[0], 1, "one exit");
        let first = vmm.call(VM_STAT_DESC, VmStatDesc { index: 0, desc: [0; 128] }).expect("a description");
        assert!(first.desc.starts_with(b"total number of vm exits\0"));
        let past = VmStatDesc { index: stats.num_entries, desc: [0; 128] };
        assert_eq!(vmm.call(VM_STAT_DESC, past), Err(Errno::EINVAL));
    });
}
