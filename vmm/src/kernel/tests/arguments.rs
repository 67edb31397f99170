//! Arguments that no sensible program passes, and guests that no sensible person writes: the kernel answers, or the modelled
//! host panics, but nothing of ours does.

use super::scripted::LAST_PORT;
use super::*;
use crate::engine::soft::SoftEngine;
use crate::engine::{Engine, Exit};
use crate::host::End;
use proptest::prelude::*;

/// What a 32-bit word of an argument may be: small numbers reach further than random ones.
fn word() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        4 => 0_u32..4,
        2 => 0_u32..64,
        1 => Just(0x1000_u32),
        1 => prop_oneof![Just(u32::MAX), Just(0x8000_0000), Just(0x7fff_ffff), Just(0xffff_f000)],
        1 => any::<u32>(),
    ]
}

fn call() -> impl Strategy<Value = (Request, Vec<u32>)> {
    let generations = [v12::REQUESTS, v14::REQUESTS, v15::REQUESTS, wide::REQUESTS].concat();
    let request = prop_oneof![
        6 => (0..REQUESTS.len()).prop_map(|index| REQUESTS[index].1),
        3 => (0..illumos::REQUESTS.len()).prop_map(|index| illumos::REQUESTS[index].1),
        1 => (0..generations.len()).prop_map(move |index| generations[index].1),
    ];
    (request, proptest::collection::vec(word(), 16))
}

fn play(version: &KernelVersion, engine: Arc<dyn Engine>, calls: &[(Request, Vec<u32>)]) -> End {
    const LIMIT_NS: u64 = 5_000_000_000;
    const LONGEST: usize = 600;
    let host = Host::virtual_time(0, LIMIT_NS);
    let kernel = Kernel::boot(&host, version, engine);
    let calls = calls.to_vec();
    let behaviour = version.behaviour();
    host.run("frontend", move || {
        let device = Vmmapi::create(&kernel, behaviour).device;
        for (request, words) in calls {
            let mut arg = [0; LONGEST];
            for (bytes, word) in arg.chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let _errno = device.ioctl(request, &mut arg);
        }
    })
    .end
}

/// What a guest does to the local APIC, the I/O APIC, the HPET and the ports of the board.
fn access() -> impl Strategy<Value = Exit> {
    let registers =
        prop_oneof![0xfee0_0000_u64..0xfee0_0400, 0xfec0_0000_u64..0xfec0_0020, 0xfed0_0000_u64..0xfed0_0400];
    let gpa = registers.prop_map(|gpa| gpa & !7);
    let size = prop_oneof![4 => Just(4_u8), 1 => prop_oneof![Just(1), Just(2), Just(8)]];
    let port = prop_oneof![
        0x20_u16..0x22,
        0x40_u16..0x44,
        Just(0x61),
        0x70_u16..0x72,
        0xa0_u16..0xa2,
        Just(0x408),
        0x4d0_u16..0x4d2
    ];
    let icr = (0_u64..4, word()).prop_map(|(dest, low)| dest << 56 | dest << 32 | u64::from(low & 0xc_dfff));
    prop_oneof![
        (gpa.clone(), size.clone(), word()).prop_map(|(gpa, size, data)| Exit::MmioWrite {
            gpa,
            size,
            data: data.into()
        }),
        (gpa, size).prop_map(|(gpa, size)| Exit::MmioRead { gpa, size }),
        icr.clone().prop_map(|icr| Exit::MmioWrite { gpa: 0xfee0_0300, size: 4, data: icr & 0xffff_ffff }),
        icr.prop_map(|icr| Exit::WrMsr { index: 0x830, value: icr }),
        (0x800_u32..0x840, word()).prop_map(|(index, value)| Exit::WrMsr { index, value: value.into() }),
        (0x800_u32..0x840).prop_map(|index| Exit::RdMsr { index }),
        (port.clone(), any::<u8>()).prop_map(|(port, data)| Exit::IoOut { port, size: 1, data: data.into() }),
        port.prop_map(|port| Exit::IoIn { port, size: 1 }),
        any::<u8>().prop_map(|tpr| Exit::TprWrite { tpr }),
        Just(Exit::Pause),
    ]
}

/// Runs a vCPU until its guest's last port, or an error.
fn run_to_the_end(vmm: &Vmmapi, vcpu: i32) {
    while vmm.run(vcpu).is_ok_and(|exit| vmm.port(&exit) != Some(LAST_PORT)) {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_guest_makes_us_fall_over(
        scripts in proptest::collection::vec(proptest::collection::vec(access(), 0..60), 2),
        x2apic: bool, ipi_exit: bool, eager: bool,
    ) {
        for version in KernelVersion::all() {
            let script =
                (0..).zip(scripts.clone()).fold(Scripted::new(), |script, (vcpu, exits)| script.vcpu(vcpu, exits));
            let finished = on_kernel(&version, script, move |host, vmm| {
                let eager = eager && vmm.behaviour.activation == Activation::ByUserspace;
                for vcpu in if eager { 0..2 } else { 0..1 } {
                    vmm.start(vcpu);
                    if x2apic {
                        vmm.set_x2apic(vcpu).expect("it exists");
                    }
                    // EINVAL where the kernel does not have it.
                    let _errno = vmm.set_capability(vcpu, cap::IPI_EXIT, ipi_exit.into());
                }
                if eager {
                    let ap = vmm.clone();
                    host.spawn("vcpu 1", move || run_to_the_end(&ap, 1));
                }
                run_to_the_end(vmm, 0);
            });
            prop_assert!(!matches!(finished.end, End::HarnessError(_)), "{}: {:?}", version.name, finished.end);
        }
    }

    #[test]
    fn no_argument_makes_us_fall_over(
        calls in proptest::collection::vec(call(), 1..40),
        version in (0..KernelVersion::all().count()).prop_map(|index| KernelVersion::all().nth(index).expect("counted")),
    ) {
        let exits = [Exit::MmioRead { gpa: 0xfee0_0020, size: 4 }, Exit::RdMsr { index: 0x10 }, Exit::Hlt];
        let scripted = Scripted::new().vcpu(0, exits.clone()).vcpu(1, exits);
        for engine in [Arc::new(scripted) as Arc<dyn Engine>, Arc::new(SoftEngine::new())] {
            let end = play(&version, engine, &calls);
            prop_assert!(!matches!(end, End::HarnessError(_)), "{end:?}");
        }
    }
}
