//! VM_SNAPSHOT_REQ on every kernel that has it: save, restore, and what cannot be restored.

use super::scripted::icr;
use super::*;
use crate::abi::snapshot::{op, req};
use crate::engine::{FpuState, Reg};
use crate::history::{SnapshotAbi, VcpuAllocation};
use crate::host::End;

/// The rows of the errno table that are tested here.
pub(super) const ROWS: &[&str] = &["snapshot-buffer", "snapshot-structure", "snapshot-unallocated"];

const INIT: u32 = 0xc500;
const STARTUP: u32 = 0x608;

/// The request in the kernel's own generation, with a buffer behind the argument; what was used of it.
fn request(vmm: &Vmmapi, structure: u32, operation: u32, buffer: &mut [u8]) -> Result<usize, Errno> {
    macro_rules! of_generation {
        ($type:ty, $request:expr) => {{
            let head = size_of::<$type>();
            let mut meta = <$type>::default();
            (meta.dev_req, meta.op) = (structure, operation);
            (meta.buf_start, meta.buf_size) = (head as u64, buffer.len() as u64);
            (meta.buf, meta.buf_rem) = (meta.buf_start, meta.buf_size);
            let mut arg = [meta.as_bytes(), buffer].concat();
            vmm.device.ioctl($request, &mut arg)?;
            let meta = <$type>::read_from_bytes(&arg[..head]).expect("as long");
            assert_eq!(meta.buf - meta.buf_start, meta.buf_size - meta.buf_rem, "both have moved");
            buffer.copy_from_slice(&arg[head..]);
            Ok((meta.buf - meta.buf_start) as usize)
        }};
    }
    match vmm.behaviour.snapshot {
        SnapshotAbi::WithoutContext => of_generation!(v14::VmSnapshotMeta, v14::VM_SNAPSHOT_REQ),
        _ => of_generation!(VmSnapshotMeta, VM_SNAPSHOT_REQ),
    }
}

fn save(vmm: &Vmmapi, structure: u32) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1 << 20];
    let len = request(vmm, structure, op::SAVE, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

fn restore(vmm: &Vmmapi, structure: u32, image: &[u8]) -> Result<(), Errno> {
    let used = request(vmm, structure, op::RESTORE, &mut image.to_vec())?;
    assert_eq!(used, image.len(), "all of it");
    Ok(())
}

fn with_snapshots() -> impl Iterator<Item = KernelVersion> {
    KernelVersion::all().filter(|version| version.has("snapshot"))
}

/// Runs `body` on a new VM of the kernel.
fn on(version: &KernelVersion, script: Scripted, body: impl FnOnce(&Host, &Vmmapi) + Send + 'static) {
    let finished = on_kernel(version, script, body);
    assert_eq!(finished.end, End::Exit(0), "{}", version.name);
}

fn rbx(regval: u64) -> VmRegister {
    VmRegister { cpuid: 1, regnum: Reg::Rbx as i32, regval }
}

/// Saves all structures of a VM whose vCPU 1 has had its INIT.
fn checkpoint(version: &KernelVersion) -> Vec<(u32, Vec<u8>)> {
    let images = Arc::new(std::sync::Mutex::new(Vec::new()));
    let inside = Arc::clone(&images);
    on(version, Scripted::new().vcpu(0, icr(false, 1, INIT)), move |_, vmm| {
        vmm.start(0);
        vmm.call(VM_SET_REGISTER, rbx(0x5a)).expect("vCPU 1");
        vmm.call(VM_RTC_WRITE, VmRtcData { offset: 0x40, value: 7, _pad: [0; 3] }).expect("a byte");
        vmm.run(0).expect("the last port");
        let saved = req::KERNEL_STRUCTURES.map(|structure| (structure, save(vmm, structure).expect("saved")));
        inside.lock().expect("one thread").extend(saved);
    });
    std::mem::take(&mut *images.lock().expect("one thread"))
}

#[test]
fn what_was_saved_goes_on_in_another_vm() {
    for version in with_snapshots() {
        let b = version.behaviour();
        // A kernel that resolves the INIT among active vCPUs has lost it before.
        let lost = ["main-0bda8d3e", "main-7c326ab5"].contains(&&*version.name);
        // The rendezvous of naive-widen is with a vCPU that is allocated here.
        let images = checkpoint(&version);
        let named = if b.spinup_vcpu == crate::history::SpinupVcpu::Ffs && version.has("handle-ipi") { 2 } else { 1 };
        on(&version, Scripted::new().vcpu(0, icr(false, 1, STARTUP)), move |_, vmm| {
            vmm.start(0);
            vmm.call(VM_SET_REGISTER, rbx(0)).expect("vCPU 1 is made before");
            for (structure, image) in &images {
                assert_eq!(restore(vmm, *structure, image), Ok(()), "structure {structure}");
            }
            vmm.call(VM_RESTORE_TIME, 0_i32).expect("known wherever snapshots are");
            assert_eq!(vmm.call(VM_GET_REGISTER, rbx(0)), Ok(rbx(0x5a)));
            let rtc = vmm.call(VM_RTC_READ, VmRtcData { offset: 0x40, ..VmRtcData::default() });
            assert_eq!(rtc.map(|rtc| rtc.value), Ok(7));
            let exit = vmm.run(0).expect("VM_RUN");
            if lost {
                assert_eq!(exit.exitcode, exitcode::INOUT);
            } else {
                assert_eq!(exit.exitcode, exitcode::SPINUP_AP, "the STARTUP finds its INIT");
                assert_eq!(exit.payload::<ExitSpinupAp>().vcpu, named);
            }
        });
    }
}

/// STRUCT_VM holds `guest_xcr0`; no structure holds `guestfpu`.
#[test]
fn of_the_floating_point_state_xcr0_alone_is_saved() {
    for version in with_snapshots() {
        let images = Arc::new(std::sync::Mutex::new(Vec::new()));
        let inside = Arc::clone(&images);
        let before = Scripted::new();
        let fpus = before.fpus();
        on(&version, before, move |_, vmm| {
            vmm.start(0);
            vmm.run(0).expect("VM_RUN");
            fpus.lock().expect("one thread").insert(0, FpuState { image: [7; 512], xcr0: 3 });
            let saved = req::KERNEL_STRUCTURES.map(|structure| (structure, save(vmm, structure).expect("saved")));
            inside.lock().expect("one thread").extend(saved);
        });
        let after = Scripted::new();
        let fpus = after.fpus();
        on(&version, after, move |_, vmm| {
            vmm.start(0);
            for (structure, image) in images.lock().expect("one thread").iter() {
                assert_eq!(restore(vmm, *structure, image), Ok(()), "structure {structure}");
            }
        });
        let restored = fpus.lock().expect("one thread")[&0];
        assert_eq!(restored, FpuState { image: [0; 512], xcr0: 3 }, "{}", version.name);
    }
}

#[test]
fn a_buffer_that_is_too_small_and_a_structure_that_there_is_not() {
    for version in with_snapshots() {
        on(&version, Scripted::new(), |_, vmm| {
            vmm.start(0);
            for structure in req::KERNEL_STRUCTURES {
                let image = save(vmm, structure).expect("saved");
                assert_eq!(request(vmm, structure, op::SAVE, &mut vec![0; image.len() - 1]), Err(Errno::E2BIG));
                assert_eq!(request(vmm, structure, op::SAVE, &mut vec![0; image.len()]), Ok(image.len()));
                for len in [0, 15, image.len() - 1] {
                    let mut cut = image[..len].to_vec();
                    assert_eq!(request(vmm, structure, op::RESTORE, &mut cut), Err(Errno::E2BIG), "{len}");
                }
                let other = req::KERNEL_STRUCTURES[usize::from(structure == req::KERNEL_STRUCTURES[0])];
                assert_eq!(restore(vmm, other, &image), Err(Errno::EINVAL), "of another structure");
                assert_eq!(request(vmm, structure, 2, &mut image.clone()), Err(Errno::EINVAL));
            }
            for structure in [0, req::VM_MEM, 11] {
                assert_eq!(save(vmm, structure), Err(Errno::EINVAL));
            }
        });
    }
}

/// D38477: userspace that restores before it has made its APs.
#[test]
fn a_vcpu_that_is_not_allocated_cannot_be_restored() {
    for version in with_snapshots() {
        let lazy = version.behaviour().vcpu_allocation == VcpuAllocation::OnFirstUse;
        let images = checkpoint(&version);
        on(&version, Scripted::new(), move |_, vmm| {
            vmm.start(0);
            for (structure, image) in &images {
                let of_vcpus = [req::VM, req::VLAPIC, req::VMCX].contains(structure);
                let expected = if lazy && of_vcpus { Err(Errno::EINVAL) } else { Ok(()) };
                assert_eq!(restore(vmm, *structure, image), expected, "structure {structure}");
            }
        });
    }
}

#[test]
fn images_of_boot_state_and_of_startup_cpus_cannot_be_exchanged() {
    let [boot_state, startup_cpus] = ["fbsd-13.1", "fbsd-13.2"].map(kernel);
    for (from, to) in [(&boot_state, &startup_cpus), (&startup_cpus, &boot_state)] {
        let images = checkpoint(from);
        on(to, Scripted::new(), move |_, vmm| {
            vmm.start(0);
            vmm.activate(1).expect("not active yet");
            for (structure, image) in &images {
                let changed = [req::VM, req::VLAPIC].contains(structure);
                let expected = if changed { Err(Errno::EINVAL) } else { Ok(()) };
                assert_eq!(restore(vmm, *structure, image), expected, "structure {structure}");
            }
        });
    }
}
