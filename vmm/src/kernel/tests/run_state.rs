//! illumos: INIT and STARTUP by run states, without an exit.

use super::scripted::{LAST_PORT, icr};
use super::*;
use crate::abi::illumos::{VmRunState, vrs};
use crate::engine::{Exit, Reg};
use crate::host::End;
use crate::trace::{DropReason, Event, StartupStore};

const INIT: u32 = 0xc500;
const INIT_DEASSERT: u32 = 0x8500;
const STARTUP: u32 = 0x608;
const ALL_BUT_SELF: u32 = 0xc_0000;

fn run_state(vmm: &Vmmapi, vcpuid: i32) -> (u32, u8) {
    let state = vmm.call(illumos::VM_GET_RUN_STATE, VmRunState { vcpuid, ..VmRunState::default() }).expect("a vCPU");
    (state.state, state.sipi_vector)
}

/// The BSP plays its script; the APs' threads are in VM_RUN from the start, as illumos's bhyve and propolis have them.
fn with_aps(aps: i32, script: Scripted, body: impl FnOnce(&Host, &Vmmapi) + Send + 'static) -> Finished {
    let finished = on_kernel(&kernel("illumos"), script, move |host, vmm| {
        for vcpuid in 1..=aps {
            vmm.activate(vcpuid).expect("not active yet");
            let ap = vmm.clone();
            host.spawn(&format!("vcpu {vcpuid}"), move || {
                while ap.run(vcpuid).is_ok_and(|exit| ap.port(&exit) != Some(LAST_PORT)) {}
            });
        }
        vmm.start(0);
        host.sleep(10_000);
        assert_eq!(vmm.run(0).map(|exit| vmm.port(&exit)), Ok(Some(LAST_PORT)), "no exit of its own");
        host.sleep(100_000);
        body(host, vmm);
    });
    assert_eq!(finished.end, End::Exit(0));
    finished
}

fn sent(lows: &[u32]) -> Scripted {
    lows.iter().fold(Scripted::new(), |script, low| script.vcpu(0, icr(false, 1, *low)))
}

fn started(finished: &Finished) -> Vec<(u16, u16, u64)> {
    let first = |record: &crate::trace::Record| match record.event {
        Event::FirstInstruction { cs, ip } => Some((record.vcpu.expect("a vCPU's"), cs, ip)),
        _ => None,
    };
    finished.trace.records.iter().filter_map(first).filter(|(vcpu, ..)| *vcpu != 0).collect()
}

#[test]
fn init_and_startup_start_an_ap_that_waits_in_the_kernel() {
    let finished = with_aps(1, sent(&[INIT, INIT_DEASSERT, STARTUP, STARTUP]), |_, vmm| {
        let (state, vector) = run_state(vmm, 1);
        assert_eq!((state & !vrs::PEND_SIPI, vector), (vrs::INIT | vrs::RUN, 8));
        assert_eq!(state & vrs::PEND_SIPI, vrs::PEND_SIPI, "the second STARTUP stays latched");
    });
    assert_eq!(started(&finished), [(1, 0x800, 0)]);
    let states: Vec<_> = finished
        .trace
        .records
        .iter()
        .filter_map(|record| match &record.event {
            Event::StartupState { targets, waiting, store } => Some((targets.to_string(), *waiting, *store)),
            _ => None,
        })
        .collect();
    let state = |waiting| ("{1}".to_owned(), waiting, StartupStore::RunState);
    assert_eq!(states, [state(true), state(false)]);
    assert!(!finished.trace.records.iter().any(|record| matches!(&record.event, Event::Exit { code: 10 | 24, .. })));
}

#[test]
fn the_first_instruction_follows_from_the_startup() {
    let finished = with_aps(1, sent(&[INIT, STARTUP]), |_, _| {});
    let records = &finished.trace.records;
    let first = records.iter().find(|r| r.vcpu == Some(1) && matches!(r.event, Event::FirstInstruction { .. }));
    let mut chain = Vec::new();
    let mut cause = first.expect("vCPU 1 ran").cause;
    while let Some(seq) = cause {
        let record = &records[seq as usize];
        chain.push(
            serde_json::to_value(&record.event).expect("serializes")["event"].as_str().expect("tagged").to_owned(),
        );
        cause = record.cause;
    }
    assert_eq!(chain[..4], ["startup-state", "ipi-delivered", "destination-resolved", "icr-write"]);
}

#[test]
fn an_init_resets_a_running_ap_and_forgets_the_startup_before_it() {
    let running = |script: Scripted| script.vcpu(0, vec![Exit::Budget; 100]);
    let script = running(sent(&[INIT, STARTUP])).vcpu(0, icr(false, 1, STARTUP)).vcpu(0, icr(false, 1, INIT));
    let script = running(script).vcpu(1, vec![Exit::Budget; 10_000]);
    let finished = with_aps(1, script, |_, vmm| {
        assert_eq!(run_state(vmm, 1).0, vrs::INIT, "it waits again");
    });
    assert_eq!(started(&finished), [(1, 0x800, 0)], "once");
}

#[test]
fn a_startup_before_its_init_is_latched_and_lost_to_the_init() {
    with_aps(1, sent(&[STARTUP]), |_, vmm| assert_eq!(run_state(vmm, 1), (vrs::PEND_SIPI, 8)));
    let finished = with_aps(1, sent(&[STARTUP, INIT]), |_, vmm| assert_eq!(run_state(vmm, 1).0, vrs::INIT));
    assert_eq!(started(&finished), []);
}

#[test]
fn an_inactive_vcpu_is_not_reached_and_shorthands_are_two() {
    let dropped = |finished: &Finished| {
        let why = finished.trace.records.iter().filter_map(|record| match record.event {
            Event::IpiDropped { why, .. } => Some(why),
            _ => None,
        });
        why.collect::<Vec<_>>()
    };
    let finished = with_aps(0, sent(&[INIT, STARTUP]), |_, vmm| assert_eq!(run_state(vmm, 1).0, vrs::HALT));
    assert_eq!(dropped(&finished), [DropReason::NoDestination; 2]);
    let finished = with_aps(3, sent(&[INIT | ALL_BUT_SELF, STARTUP | ALL_BUT_SELF]), |_, _| {});
    let mut aps = started(&finished);
    aps.sort_unstable();
    assert_eq!(aps, [(1, 0x800, 0), (2, 0x800, 0), (3, 0x800, 0)]);
    const ITSELF: u32 = 0x4_0000;
    const EVERYBODY: u32 = 0x8_0000;
    let finished = with_aps(1, sent(&[INIT | ITSELF, INIT | EVERYBODY]), |_, _| {});
    assert_eq!(dropped(&finished), [DropReason::InvalidCombination; 2]);
}

#[test]
fn the_io_apic_is_programmed_while_an_ap_waits_in_the_kernel() {
    let unmask_pin_4 =
        [(0xfec0_0000, 0x18), (0xfec0_0010, 0x31)].map(|(gpa, data)| Exit::MmioWrite { gpa, size: 4, data });
    with_aps(1, Scripted::new().vcpu(0, unmask_pin_4), |_, vmm| assert_eq!(run_state(vmm, 1).0, vrs::HALT));
}

#[test]
fn what_userspace_is_asked_for_is_asked_again_until_it_comes() {
    use illumos::entry_cmd;
    let exits = [
        Exit::MmioRead { gpa: 0xd000_0000, size: 4 },
        Exit::MmioWrite { gpa: 0xd000_0010, size: 2, data: 0x77 },
        Exit::IoIn { port: 0x3f8, size: 1 },
    ];
    let script = Scripted::new().vcpu(0, exits);
    let completions = script.completions();
    let finished = on_kernel(&kernel("illumos"), script, |_, vmm| {
        vmm.start(0);
        let plain = illumos::VmEntry::new(0);
        let exit = vmm.enter(plain).expect("VM_RUN");
        assert_eq!(vmm.enter(plain), Ok(exit), "the same again");
        let mut mmio: illumos::VmMmio = exit.payload();
        assert_eq!((exit.exitcode, mmio.gpa, mmio.bytes, mmio.read), (illumos::exitcode::MMIO, 0xd000_0000, 4, 1));
        mmio.data = 0x1234;
        let inout = illumos::VmInout::default();
        assert_eq!(vmm.enter(plain.fulfilling(entry_cmd::FULFILL_INOUT, &inout)), Err(Errno::EINVAL));
        let exit = vmm.enter(plain.fulfilling(entry_cmd::FULFILL_MMIO, &mmio)).expect("VM_RUN");
        let mmio: illumos::VmMmio = exit.payload();
        assert_eq!((mmio.gpa, mmio.bytes, mmio.read, mmio.data), (0xd000_0010, 2, 0, 0x77));
        let exit = vmm.enter(plain.fulfilling(entry_cmd::FULFILL_MMIO, &mmio)).expect("VM_RUN");
        let mut inout: illumos::VmInout = exit.payload();
        assert_eq!((exit.exitcode, inout.port, inout.bytes, inout.is_in()), (illumos::exitcode::INOUT, 0x3f8, 1, true));
        inout.eax = 0x41;
        let mut entry = plain.fulfilling(entry_cmd::FULFILL_INOUT, &inout);
        entry.cmd |= entry_cmd::FLAG_EXIT_CONSISTENT;
        assert_eq!(vmm.enter(entry).map(|exit| exit.exitcode), Ok(illumos::exitcode::BOGUS));
        let exit = vmm.enter(plain).expect("VM_RUN");
        assert_eq!(exit.payload::<illumos::VmInout>().port, LAST_PORT);
    });
    assert_eq!(finished.end, End::Exit(0));
    let completions = completions.lock().expect("one thread");
    assert_eq!(completions[..3], [Completion::Value(0x1234), Completion::Done, Completion::Value(0x41)]);
}

#[test]
fn an_ioctl_makes_a_running_vcpu_come_out_as_bogus() {
    let script = Scripted::new().vcpu(1, vec![Exit::Budget; 1000]);
    let finished = on_kernel(&kernel("illumos"), script, |host, vmm| {
        vmm.start(1);
        let other = vmm.clone();
        host.spawn("vcpu 1", move || {
            assert_eq!(other.run(1).map(|exit| exit.exitcode), Ok(illumos::exitcode::BOGUS));
        });
        host.sleep(10_000);
        let register = VmRegister { cpuid: 1, regnum: Reg::Rbx as i32, regval: 0x5a };
        assert_eq!(vmm.call(VM_SET_REGISTER, register).map(drop), Ok(()));
        host.sleep(10_000);
    });
    assert_eq!(finished.end, End::Exit(0));
}

#[test]
fn the_interface_has_a_version_and_a_named_segment_an_offset() {
    let host = Host::virtual_time(0, 1_000_000_000);
    let kernel = Kernel::boot(&host, &kernel("illumos"), Arc::new(Scripted::new()));
    let finished = host.run("frontend", move || {
        let behaviour = kernel.0.version.behaviour();
        let vmm = Vmmapi::create(&kernel, behaviour);
        let control = kernel.open_vmmctl().expect("illumos has it");
        let mut version = [0; 4];
        control.ioctl(illumos::VMM_INTERFACE_VERSION, &mut version).expect("a version");
        assert_eq!(i32::from_le_bytes(version), 18);
        assert_eq!(control.ioctl(illumos::VM_RUN, &mut [0; 128]), Err(Errno::ENOTTY));
        vmm.alloc_memseg(1, 8192, "bootrom").expect("memory");
        let devmem = illumos::VmDevmemOffset { segid: 1, ..Default::default() };
        let offset = vmm.call(illumos::VM_DEVMEM_GETOFFSET, devmem).expect("a named segment").offset;
        let mapping = vmm.device.mmap(offset as u64, 8192).expect("all of it");
        assert!(mapping.write(0x1000, &[7]));
        let same = kernel.map_devmem(VM, "bootrom").expect("the same memory");
        let mut byte = [0];
        assert!(same.read(0x1000, &mut byte));
        assert_eq!(byte, [7]);
        assert_eq!(vmm.device.mmap(offset as u64, 8193).map(drop), Err(Errno::EINVAL));
        assert_eq!(vmm.call(illumos::VM_DEVMEM_GETOFFSET, illumos::VmDevmemOffset::default()), Err(Errno::EINVAL));
    });
    assert_eq!(finished.end, End::Exit(0));
}
