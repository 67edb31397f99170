//! Ioctls that need a vCPU to be idle while its thread is in VM_RUN: `vcpu_set_state` with `from_idle`.

use super::scripted::icr;
use super::*;
use crate::engine::Exit;
use crate::host::End;
use crate::trace::Event;
use parking_lot::Mutex;

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

/// Two threads run the same vCPU while the VM is being suspended.
#[test]
fn a_thread_that_had_to_wait_looks_at_the_sets_again() {
    for seed in 0..64 {
        let told = Arc::new(Mutex::new(0));
        let inside = Arc::clone(&told);
        let script = Scripted::new().vcpu(0, vec![Exit::Budget; 100]);
        let finished = on_kernel_seeded(seed, &kernel("fbsd-13.2"), script, move |host, vmm| {
            vmm.activate(0).expect("not active yet");
            for _ in 0..2 {
                let (vmm, told) = (vmm.clone(), Arc::clone(&inside));
                host.spawn("vcpu 0", move || {
                    let result = vmm.run(0).map(|exit| exit.exitcode);
                    assert!(
                        [Ok(exitcode::SUSPENDED), Ok(exitcode::REQIDLE), Err(Errno::EINVAL)].contains(&result),
                        "{result:?}"
                    );
                    *told.lock() += i32::from(result == Ok(exitcode::SUSPENDED));
                });
            }
            host.sleep(seed * 16);
            vmm.call(VM_SUSPEND, VmSuspend { how: suspend::POWEROFF }).expect("not suspended yet");
            host.sleep(10_000);
        });
        assert_eq!(finished.end, End::Exit(0), "seed {seed}");
        assert_eq!(*told.lock(), 1, "VM_RUN of a vCPU in suspended_cpus is EINVAL; seed {seed}");
    }
}

#[test]
fn what_others_do_while_an_ioctl_waits_is_theirs() {
    let script = Scripted::new().vcpu(0, icr(false, 1, 0xc500));
    let finished = on_kernel(&kernel("fbsd-13.2"), script, |host, vmm| {
        for vcpu in [0, 1] {
            vmm.activate(vcpu).expect("not active yet");
        }
        run_for_ever(host, vmm, 0);
        // By then vCPU 0 has sent its INIT, and waits for vCPU 1's thread.
        host.sleep(10_000);
        let (sleeper, late) = (host.clone(), vmm.clone());
        host.spawn("vcpu 1", move || {
            sleeper.sleep(10_000);
            late.run(1).expect("the last port");
        });
        vmm.call(VM_GET_REGISTER, register(0)).expect("a register");
    });
    assert_eq!(finished.end, End::Exit(0));
    let records = &finished.trace.records;
    let reset = records.iter().find(|record| record.event == Event::VlapicReset).expect("INIT resets the local APIC");
    assert_eq!(&*reset.task, "vcpu 1");
    let done = records.iter().position(|record| matches!(record.event, Event::RendezvousDone { .. })).expect("done");
    assert!((reset.seq as usize) < done, "before the rendezvous is done");
}

#[test]
fn reinit_waits_for_every_vcpu() {
    let told = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&told);
    let finished = on_kernel(&kernel("fbsd-13.2"), Scripted::new(), move |host, vmm| {
        for vcpu in [0, 1] {
            vmm.activate(vcpu).expect("not active yet");
        }
        vmm.call(VM_SUSPEND, VmSuspend { how: suspend::POWEROFF }).expect("not suspended yet");
        let other = vmm.clone();
        host.spawn("vcpu 0", move || {
            let exit = other.run(0).expect("SUSPENDED");
            *inside.lock() = Some(exit.payload::<ExitSuspended>().how);
        });
        host.sleep(10_000);
        vmm.run(1).expect("SUSPENDED");
        // vCPU 0's thread is still on its way out of the kernel.
        assert_eq!(vmm.reinit(), Ok(()));
        host.sleep(10_000);
        assert_eq!(vmm.activate(0), Ok(()));
        assert_eq!(vmm.run(0).map(|exit| exit.exitcode), Ok(exitcode::INOUT), "it runs again");
    });
    assert_eq!(finished.end, End::Exit(0));
    assert_eq!(*told.lock(), Some(suspend::POWEROFF));
}

/// What a reset of the machine leaves as it is: RAM, the CMOS with its shutdown code, and the clock. What devices have mapped they
/// map again.
#[test]
fn reinit_keeps_ram_and_cmos_and_no_device_s_memory() {
    const PAGE: u64 = 4096;
    const SHUTDOWN_CODE: i32 = 0x0f;
    for (name, bootrom) in [("fbsd-13.1", 1), ("fbsd-13.2", 1), ("fbsd-14", 1), ("fbsd-15", 8), ("illumos", 1)] {
        let finished = on_kernel(&kernel(name), Scripted::new(), move |host, vmm| {
            // Before any memory: see `lock_all` for where no vCPU is allocated.
            vmm.start(0);
            let map = |gpa, segid| {
                let map = VmMemmap { gpa, segid, len: PAGE, prot: 7, ..VmMemmap::default() };
                vmm.call(VM_MMAP_MEMSEG, map).expect("nothing is there yet");
            };
            let first_map_at_or_above =
                |gpa| vmm.call(VM_MMAP_GETNEXT, VmMemmap { gpa, ..VmMemmap::default() }).map(|map| map.gpa);
            for (segid, name) in [(0, ""), (bootrom, "bootrom")] {
                vmm.alloc_memseg(segid, PAGE, name).expect("there is none yet");
                map(PAGE << segid, segid);
            }
            let code = VmRtcData { offset: SHUTDOWN_CODE, value: 0x0a, ..VmRtcData::default() };
            vmm.call(VM_RTC_WRITE, code).expect("a byte of the memory");
            vmm.call(VM_RTC_SETTIME, VmRtcTime { secs: 1_000 }).expect("the clock goes");

            vmm.suspend(suspend::RESET).expect("not suspended yet");
            vmm.run(0).expect("SUSPENDED");
            host.sleep(2_000_000_000);
            assert_eq!(vmm.reinit(), Ok(()), "{name}");

            assert_eq!(first_map_at_or_above(0), Ok(PAGE), "{name}: RAM stays where it is");
            assert_eq!(first_map_at_or_above(2 * PAGE), Err(Errno::ENOENT), "{name}: the boot ROM does not");
            map(PAGE << bootrom, bootrom);
            let code = vmm.call(VM_RTC_READ, VmRtcData { value: 0, ..code }).expect("a byte of the memory");
            assert_eq!(code.value, 0x0a, "{name}");
            let time = vmm.call(VM_RTC_GETTIME, VmRtcTime::default()).expect("there is a clock");
            assert_eq!(time.secs, 1_002, "{name}");
        });
        assert_eq!(finished.end, End::Exit(0), "{name}");
    }
}

#[test]
fn memory_changes_when_no_vcpu_runs() {
    let script = Scripted::new().vcpu(1, vec![Exit::Budget; 1000]);
    let finished = on_kernel(&kernel("fbsd-13.1"), script, |host, vmm| {
        vmm.activate(1).expect("not active yet");
        let other = vmm.clone();
        host.spawn("vcpu 1", move || {
            assert_eq!(other.run(1).map(|exit| exit.exitcode), Ok(exitcode::REQIDLE));
        });
        host.sleep(10_000);
        let memseg = VmMemseg { segid: 0, len: 4096, ..VmMemseg::default() };
        assert_eq!(vmm.call(VM_ALLOC_MEMSEG, memseg).map(drop), Ok(()));
        assert_eq!(vmm.call(VM_ALLOC_MEMSEG, memseg).map(drop), Err(Errno::EEXIST));
        assert_eq!(vmm.run(1).map(|exit| exit.exitcode), Ok(exitcode::INOUT), "and lets go of it");
    });
    assert_eq!(finished.end, End::Exit(0));
}
