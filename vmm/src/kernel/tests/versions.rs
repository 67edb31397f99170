//! What single changes and build options do: a kernel with, and one without.

use super::errno::cpus;
use super::scripted::{LAST_PORT, icr};
use super::*;
use crate::engine::{Exit, Reg};
use crate::host::End;
use crate::trace::{DropReason, Event};
use std::sync::Mutex;

const INIT: u32 = 0xc500;
const STARTUP: u32 = 0x608;

fn parse(text: &str) -> KernelVersion {
    KernelVersion::parse(text).expect(text)
}

/// What VM_RUN of vCPU 0 returns, in words, up to the guest's last port.
fn exits(vmm: &Vmmapi) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let (exit, mask) = match vmm.run_told(0, CPU_SETSIZE / 8) {
            Ok(told) => told,
            Err(errno) => {
                seen.push(format!("{errno:?}"));
                return seen;
            }
        };
        match exit.exitcode {
            exitcode::INOUT => return seen,
            exitcode::SPINUP_AP => seen.push(format!("SPINUP_AP {}", exit.payload::<ExitSpinupAp>().vcpu)),
            exitcode::IPI => seen.push(format!("IPI {mask}")),
            other => seen.push(exitcode::name(other).to_owned()),
        }
    }
}

/// A lazy userspace whose guest sends INIT and STARTUP to vCPU 1.
fn start_lazily(version: &KernelVersion, x2apic: bool) -> (Vec<String>, Finished) {
    let steps = [INIT, STARTUP].map(|low| icr(x2apic, 1, low)).concat();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inside = Arc::clone(&seen);
    let finished = on_kernel(version, Scripted::new().vcpu(0, steps), move |_, vmm| {
        vmm.start(0);
        if x2apic {
            vmm.set_x2apic(0).expect("vCPU 0");
        }
        *inside.lock().expect("one thread") = exits(vmm);
        if vmm.behaviour.activation == Activation::ByKernel {
            // It is active already.
            assert_eq!(vmm.run(1).map(|exit| vmm.port(&exit)), Ok(Some(LAST_PORT)));
            assert_eq!(vmm.run(2), Err(Errno::EINVAL), "and nobody else is");
        }
    });
    let seen = seen.lock().expect("one thread").clone();
    (seen, finished)
}

#[test]
fn the_kernel_of_10_0_activates_the_ap_itself() {
    for x2apic in [false, true] {
        let (seen, finished) = start_lazily(&kernel("fbsd-10.0"), x2apic);
        assert_eq!((seen, finished.end), (vec!["SPINUP_AP 1".to_owned()], End::Exit(0)));
        let activated = finished.trace.records.iter().filter(|record| record.event == Event::VcpuActivated);
        assert_eq!(activated.map(|record| record.vcpu).collect::<Vec<_>>(), [Some(0), Some(1)]);
    }
    // The same on a kernel of another time.
    let (seen, finished) = start_lazily(&parse("fbsd-13.2-userspace-activation-suspend-resume-cpu"), false);
    assert_eq!((seen, finished.end), (vec!["SPINUP_AP 1".to_owned()], End::Exit(0)));
}

/// The regression of 2013: becd984900.
#[test]
fn without_the_exit_of_the_msr_an_x2apic_guest_gets_no_ap() {
    for name in ["fbsd-10.0", "fbsd-13.1", "fbsd-13.2"] {
        let without = parse(&format!("{name}-x2apic-spinup"));
        let (seen, _) = start_lazily(&without, false);
        assert_eq!(seen, ["SPINUP_AP 1"], "xAPIC on {name}");
        let (seen, finished) = start_lazily(&without, true);
        assert_eq!(seen, [""; 0], "x2APIC on {name}");
        let lost = |event: &Event| matches!(event, Event::IpiDropped { why: DropReason::ExitLost, .. });
        assert!(finished.trace.records.iter().any(|record| lost(&record.event)), "{name}");
    }
}

#[test]
fn later_kernels_start_aps_as_13_2_does() {
    for name in ["fbsd-14", "fbsd-15"] {
        for x2apic in [false, true] {
            let (seen, finished) = start_lazily(&kernel(name), x2apic);
            assert_eq!((seen, finished.end), (vec!["SPINUP_AP 1".to_owned()], End::Exit(0)), "{name}");
        }
    }
}

/// A broadcast STARTUP to `aps` eager APs; the mask as the IPI exit tells it to a userspace of 13.x, and to one of 14.
fn masks(version: &KernelVersion, aps: i32) -> (Result<usize, Errno>, Result<usize, Errno>, Result<usize, Errno>) {
    const ALL_BUT_SELF: u32 = 0xc_0000;
    let told = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&told);
    let steps = icr(true, 0, INIT | ALL_BUT_SELF);
    let steps = (0..3).fold(Scripted::new(), |script, _| script.vcpu(0, steps.clone()));
    let finished = on_kernel(version, steps, move |host, vmm| {
        for vcpuid in 0..=aps {
            vmm.set_x2apic(vcpuid).expect("a vCPU");
            vmm.set_capability(vcpuid, cap::IPI_EXIT, 1).expect("a capability");
            vmm.activate(vcpuid).expect("not active yet");
        }
        vmm.suspend_cpu(-1).expect("active");
        vmm.resume_cpu(0).expect("suspended");
        for vcpuid in 1..=aps {
            let ap = vmm.clone();
            host.spawn("ap", move || while ap.run(vcpuid).is_ok() {});
        }
        let old = vmm.call(VM_RUN, VmRun::default()).map(|run| run.vm_exit.payload::<ExitIpi>().dmask().len());
        let told = |size| {
            vmm.run_told(0, size).map(|(exit, mask)| {
                assert_eq!(exit.exitcode, exitcode::IPI);
                mask.len()
            })
        };
        *inside.lock().expect("one thread") = Some((old, told(128), told(160)));
    });
    assert_eq!(finished.end, End::Exit(0), "{}", version.name);
    let told = told.lock().expect("one thread").take();
    told.expect("it ran")
}

#[test]
fn an_old_userspace_does_not_see_vcpus_from_256_on() {
    assert_eq!(masks(&kernel("fbsd-14"), 299), (Ok(255), Ok(299), Ok(299)), "vCPUs 1 to 255, and all");
    assert_eq!(masks(&parse("fbsd-14-compat13"), 3), (Err(Errno::ENOTTY), Ok(3), Ok(3)));
    assert_eq!(masks(&kernel("fbsd-15"), 3), (Ok(3), Ok(3), Ok(3)));
}

#[test]
fn a_mask_is_cut_off_or_filled_up_to_what_userspace_has() {
    let script = Scripted::new().vcpu(0, icr(true, 70, INIT)).vcpu(0, icr(true, 70, INIT));
    let finished = on_kernel(&kernel("fbsd-14"), script, |host, vmm| {
        for vcpuid in [0, 70] {
            vmm.set_x2apic(vcpuid).expect("a vCPU");
            vmm.set_capability(vcpuid, cap::IPI_EXIT, 1).expect("a capability");
            vmm.activate(vcpuid).expect("not active yet");
        }
        let ap = vmm.clone();
        vmm.suspend_cpu(70).expect("active");
        host.spawn("ap", move || while ap.run(70).is_ok() {});
        assert_eq!(vmm.run_told(0, 8).map(|(_, mask)| mask), Ok(CpuSet::EMPTY), "cut off");
        assert_eq!(vmm.run_told(0, 1000).map(|(_, mask)| mask), Ok(CpuSet::single(70)), "zeroes behind");
        let nowhere = v14::VmRun { vm_exit: 1 << 40, ..v14::VmRun::default() };
        assert_eq!(vmm.call(v14::VM_RUN, nowhere), Err(Errno::EFAULT));
    });
    assert_eq!(finished.end, End::Exit(0));
}

/// PR 271330: sets of 1024 bits by value change the size of `vm_run`, and with it the number of VM_RUN.
#[test]
fn larger_sets_by_value_change_the_number_of_vm_run() {
    let finished = on_kernel(&parse("fbsd-13.2+cpuset-1024"), Scripted::new(), |_, vmm| {
        vmm.activate(0).expect("not active yet");
        assert_eq!(vmm.run(0), Err(Errno::ENOTTY));
        let run = vmm.call(wide::VM_RUN, wide::VmRun::default()).expect("its own number");
        assert_eq!(run.vm_exit.exitcode, exitcode::INOUT);
    });
    assert_eq!(finished.end, End::Exit(0));
}

#[test]
fn a_vm_has_as_many_vcpus_as_the_tunable_says() {
    for (text, limit) in
        [("fbsd-14", 1024), ("fbsd-14+maxcpu=64", 64), ("fbsd-13.2+maxcpu=4096", 256), ("fbsd-13.1", 16)]
    {
        let finished = on_kernel(&parse(text), Scripted::new(), move |_, vmm| {
            assert_eq!(vmm.activate(limit - 1), Ok(()));
            assert_eq!(vmm.activate(limit), Err(Errno::EINVAL));
            assert_eq!(cpus(vmm, 0, i32::from(vmm.behaviour.cpu_setsize) / 8), Ok(vec![limit as usize - 1]));
        });
        assert_eq!(finished.end, End::Exit(0), "{text}");
    }
}

/// D52968: a vCPU's thread, in userspace, maps memory while another vCPU has begun a rendezvous that it is part of.
#[test]
fn lock_all_and_a_rendezvous_wait_for_each_other_until_one_serves_the_other() {
    let end = |text: &str| {
        let script = Scripted::new().vcpu(0, icr(false, 1, INIT));
        let finished = on_kernel(&parse(text), script, |host, vmm| {
            for vcpuid in [0, 1] {
                vmm.set_capability(vcpuid, cap::IPI_EXIT, 1).expect("a capability");
                vmm.activate(vcpuid).expect("not active yet");
            }
            let bsp = vmm.clone();
            host.spawn("vcpu 0", move || while bsp.run(0).is_ok_and(|exit| bsp.port(&exit).is_none()) {});
            // vCPU 0 waits for vCPU 1 by now, whose thread is here.
            host.sleep(10_000);
            vmm.alloc_memseg(0, 8192, "").expect("memory");
            assert_eq!(vmm.run(1).map(|exit| vmm.port(&exit)), Ok(Some(LAST_PORT)));
        });
        let reset = finished.trace.records.iter().any(|record| record.event == Event::VlapicReset);
        (finished.end, reset)
    };
    for text in ["fbsd-13.2", "fbsd-14", "fbsd-15-lock-all-rendezvous"] {
        assert_eq!(end(text), (End::Deadline, false), "{text}");
    }
    for text in ["fbsd-15", "fbsd-14+lock-all-rendezvous"] {
        assert_eq!(end(text), (End::Exit(0), true), "{text}");
    }
}

/// The rendezvous begins while the locker is waiting for the one that begins it.
#[test]
fn a_rendezvous_that_begins_while_all_are_being_locked_is_served_too() {
    for seed in 0..16 {
        let script = Scripted::new().vcpu(0, vec![Exit::Budget; 8]).vcpu(0, icr(false, 1, INIT));
        let finished = on_kernel_seeded(seed, &kernel("fbsd-15"), script, |host, vmm| {
            for vcpuid in [0, 1] {
                vmm.set_capability(vcpuid, cap::IPI_EXIT, 1).expect("a capability");
                vmm.activate(vcpuid).expect("not active yet");
            }
            let bsp = vmm.clone();
            host.spawn("vcpu 0", move || while bsp.run(0).is_ok_and(|exit| bsp.port(&exit).is_none()) {});
            host.sleep(1_000);
            vmm.alloc_memseg(0, 8192, "").expect("memory");
            vmm.run(1).expect("the last port");
        });
        assert_eq!(finished.end, End::Exit(0), "seed {seed}");
    }
}

/// vcpu_lock_all of 98568a005a19 with no vCPU: an error without a value, and an unsigned index that is counted down below 0.
#[test]
fn lock_all_without_a_vcpu_never_returns_until_its_error_has_a_value() {
    let end = |text: &str| {
        let finished =
            on_kernel(&parse(text), Scripted::new(), |_, vmm| vmm.alloc_memseg(0, 8192, "").expect("memory"));
        finished.end
    };
    for text in ["main-98568a00", "main-7c326ab5", "fbsd-13.2"] {
        assert_eq!(end(text), End::Deadline, "{text}");
        assert_eq!(end(&format!("{text}+lock-all-index")), End::Exit(0), "{text}");
    }
    assert_eq!(end("fbsd-13.1"), End::Exit(0), "every vCPU is there");
    assert_eq!(end("fbsd-14"), End::Exit(0));
}

#[test]
fn destroying_a_vm_wakes_who_sleeps_in_it_from_15_on() {
    let end = |text: &str| {
        let version = parse(text);
        let host = Host::virtual_time(0, 5_000_000_000);
        let kernel = Kernel::boot(&host, &version, Arc::new(Scripted::new().vcpu(0, [Exit::Hlt])));
        let inside = host.clone();
        let finished = host.run("frontend", move || {
            let vmm = Vmmapi::create(&kernel, version.behaviour());
            vmm.activate(0).expect("not active yet");
            let bsp = vmm.clone();
            inside.spawn("vcpu 0", move || {
                let how = bsp.run(0).expect("SUSPENDED").payload::<ExitSuspended>().how;
                assert_eq!(how, suspend::DESTROY);
                assert_eq!(bsp.run(0), Err(Errno::ENXIO));
            });
            inside.sleep(10_000);
            kernel.vm_destroy(VM).expect("it exists");
            inside.sleep(10_000);
        });
        finished.end
    };
    assert_eq!(end("fbsd-14"), End::Deadline, "destroy_dev waits for the thread");
    assert_eq!(end("fbsd-15"), End::Exit(0));
    assert_eq!(end("fbsd-14+suspend-destroy"), End::Exit(0));
}

#[test]
fn interrupts_that_are_masked_for_a_debugger_stay_pending() {
    const SVR: u64 = 0xfee0_00f0;
    const INJECTIONS: usize = 6;
    let script = Scripted::new().vcpu(
        0,
        [Exit::MmioWrite { gpa: SVR, size: 4, data: 0x1ff }, Exit::IoOut { port: LAST_PORT, size: 1, data: 0 }],
    );
    let finished = on_kernel(&kernel("fbsd-14"), script, |_, vmm| {
        vmm.activate(0).expect("not active yet");
        vmm.run(0).expect("the local APIC is enabled");
        let rflags = VmRegister { cpuid: 0, regnum: Reg::Rflags as i32, regval: 0x202 };
        vmm.call(VM_SET_REGISTER, rflags).expect("a register");
        vmm.call(VM_LAPIC_IRQ, VmLapicIrq { cpuid: 0, vector: 0x40 }).expect("a vector");
        let injections = || vmm.call(v14::VM_STATS, v14::VmStats::default()).map(|stats| stats.statbuf[INJECTIONS]);
        vmm.set_capability(0, cap::MASK_HWINTR, 1).expect("14 has it");
        vmm.run(0).expect("the last port");
        assert_eq!(injections(), Ok(0));
        vmm.set_capability(0, cap::MASK_HWINTR, 0).expect("14 has it");
        vmm.run(0).expect("the last port");
        assert_eq!(injections(), Ok(1));
    });
    assert_eq!(finished.end, End::Exit(0));
}

/// bhyve before 15 allocates its boot ROM as segment 1, which COMPAT_FREEBSD14 makes 8, and then maps segment 1.
#[test]
fn an_old_userspace_maps_its_boot_rom_where_segment_numbers_are_translated_for_mapping_too() {
    for (text, mapped) in [("fbsd-14", Ok(())), ("fbsd-15", Err(Errno::EINVAL)), ("fbsd-15-mmap-segments", Ok(()))] {
        let finished = on_kernel(&parse(text), Scripted::new(), move |_, vmm| {
            vmm.set_capability(0, cap::HALT_EXIT, 1).expect("allocates vCPU 0");
            vmm.call(VM_ALLOC_MEMSEG, VmMemseg::new(1, 4096, "bootrom")).expect("memory");
            let memmap = VmMemmap { segid: 1, len: 4096, prot: 5, ..VmMemmap::default() };
            assert_eq!(vmm.call(VM_MMAP_MEMSEG, memmap).map(drop), mapped);
        });
        assert_eq!(finished.end, End::Exit(0), "{text}");
    }
}
