//! What a suspended vCPU's thread costs: D39174.

use super::scripted::LAST_PORT;
use super::*;
use crate::host::End;
use crate::kernel::Parked;

const SECOND: u64 = 1_000_000_000;

/// A suspended vCPU 1 for a second, whose thread sleeps so many nanoseconds after each VM_EXITCODE_DEBUG.
fn park(version: &KernelVersion, pause: u64) -> Parked {
    let host = Host::virtual_time(0, 5 * SECOND);
    let kernel = Kernel::boot(&host, version, Arc::new(Scripted::new()));
    let (inside, outside, behaviour) = (host.clone(), kernel.clone(), version.behaviour());
    let finished = host.run("frontend", move || {
        let vmm = Vmmapi::create(&kernel, behaviour);
        vmm.activate(1).expect("not active yet");
        vmm.suspend_cpu(1).expect("active");
        let (thread, ap) = (inside.clone(), vmm.clone());
        inside.spawn("vcpu 1", move || {
            while ap.run(1).is_ok_and(|exit| exit.exitcode == exitcode::DEBUG) {
                if pause > 0 {
                    thread.sleep(pause);
                }
            }
        });
        inside.sleep(SECOND);
        vmm.resume_cpu(1).expect("suspended");
        inside.sleep(SECOND / 100);
    });
    assert_eq!(finished.end, End::Exit(0));
    let parked = outside.parked();
    assert_eq!(parked.keys().copied().collect::<Vec<_>>(), [1], "nobody else was suspended");
    parked[&1]
}

#[test]
fn a_thread_that_spins_is_told_from_one_that_sleeps() {
    for version in KernelVersion::all().filter(|version| version.behaviour().cpu_suspend) {
        let spinning = park(&version, 0);
        let rate = spinning.exits_per_second();
        assert!((1e5..1e6).contains(&rate), "{rate} on {}", version.name);
        assert!((SECOND * 99 / 100..SECOND * 101 / 100).contains(&spinning.ns), "{spinning:?}");
        let sleeping = park(&version, 1_000_000);
        let rate = sleeping.exits_per_second();
        assert!((900.0..=1000.0).contains(&rate), "{rate} on {}", version.name);
        assert!((SECOND * 99 / 100..SECOND * 101 / 100).contains(&sleeping.ns), "{sleeping:?}");
    }
}

#[test]
fn nobody_is_parked_who_was_not_suspended() {
    let host = Host::virtual_time(0, SECOND);
    let kernel = Kernel::boot(&host, &kernel("fbsd-14"), Arc::new(Scripted::new()));
    let outside = kernel.clone();
    let behaviour = kernel.0.version.behaviour();
    host.run("frontend", move || {
        let vmm = Vmmapi::create(&kernel, behaviour);
        vmm.start(0);
        assert_eq!(vmm.port(&vmm.run(0).expect("VM_RUN")), Some(LAST_PORT));
    });
    assert!(outside.parked().is_empty());
    assert_eq!(Parked::default().exits_per_second().to_bits(), 0.0_f64.to_bits());
}
