//! VM_SNAPSHOT_REQ: the kernel's side of a checkpoint, structure by structure, into the frontend's buffer and out of it.
//!
//! An image begins with a header that says which structure it holds and of which generation, and goes on with what is in it. How the
//! bytes look is our own affair; that they are useless to a kernel of another generation is FreeBSD's: until c0f35dbf19c3 the local APIC
//! holds the boot_state of its vCPU, after it the VM holds startup_cpus. \[read]
//!
//! Of what XSAVE would save, an image holds XCR0 alone: `vm_snapshot_vcpus` has `guest_xcr0`, and nothing in vmm.ko saves `guestfpu`. So a
//! guest that is restored finds its x87 and SSE registers as they are after power-up. \[read]
//!
//! Clocks and timers are kept by the time of the host, which goes on between saving and restoring. \[inferred]

use super::generation::Form;
use super::ioctl::{load, store, user_bytes};
use super::vcpu::{BootState, Vcpu};
use super::vm::{State, Vm};
use crate::abi::snapshot::{op, req};
use crate::abi::{self, Errno, VmSnapshotMeta};
use crate::cpuset::CpuSet;
use crate::device::vlapic::Vlapic;
use crate::engine::{FpuState, Reg, SegDesc};
use crate::trace::StartupStore;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What stands before each structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u32,
    structure: u32,
    generation: u32,
    /// How many bytes follow.
    len: u32,
}

const MAGIC: u32 = u32::from_le_bytes(*b"vmsn");

/// STRUCT_VM: what the vCPUs share, and what each of them has beside its registers and its local APIC.
#[derive(Debug, Serialize, Deserialize)]
struct VmImage {
    startup: Option<CpuSet>,
    vcpus: Vec<VcpuImage>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VcpuImage {
    id: usize,
    x2apic: bool,
    intinfo: u64,
    exception: Option<(u8, Option<u32>)>,
    nmi_pending: bool,
    extint_pending: bool,
    /// `None` for a vCPU that nothing has touched: it has no registers yet.
    xcr0: Option<u64>,
}

/// STRUCT_VLAPIC, for each vCPU.
#[derive(Debug, Serialize, Deserialize)]
struct VlapicImage {
    id: usize,
    vlapic: Vlapic,
    boot_state: Option<BootState>,
}

/// STRUCT_VMCX, for each vCPU: every register by its number, and the hidden part of those that have one.
#[derive(Debug, Serialize, Deserialize)]
struct RegistersImage {
    id: usize,
    values: Vec<u64>,
    descriptors: Vec<(u8, u64, u32, u32)>,
}

/// The bytes of an image.
pub(super) fn encode<T: Serialize>(image: &T) -> Vec<u8> {
    serde_json::to_vec(image).expect("no image holds a map or a number that JSON does not have")
}

/// The image of some bytes; EINVAL when they are none.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Errno> {
    serde_json::from_slice(bytes).map_err(|_| Errno::EINVAL)
}

/// What every generation's `vm_snapshot_meta` says, and where the kernel leaves how far it came.
#[derive(Clone, Copy)]
struct Meta {
    structure: u32,
    op: u32,
    buf: u64,
    buf_rem: u64,
}

impl Meta {
    fn load(form: Form, arg: &[u8]) -> Meta {
        macro_rules! load_as {
            ($type:ty) => {{
                let meta: $type = load(arg);
                Meta { structure: meta.dev_req, op: meta.op, buf: meta.buf, buf_rem: meta.buf_rem }
            }};
        }
        if form == Form::V14 { load_as!(abi::v14::VmSnapshotMeta) } else { load_as!(VmSnapshotMeta) }
    }

    /// The buffer has been used up to `len` bytes further.
    fn store_advanced(self, form: Form, len: usize, arg: &mut [u8]) {
        let (buf, buf_rem) = (self.buf + len as u64, self.buf_rem - len as u64);
        macro_rules! store_as {
            ($type:ty) => {{
                let mut meta: $type = load(arg);
                (meta.buf, meta.buf_rem) = (buf, buf_rem);
                store(arg, &meta);
            }};
        }
        if form == Form::V14 { store_as!(abi::v14::VmSnapshotMeta) } else { store_as!(VmSnapshotMeta) }
    }

    /// The buffer's bytes from where the kernel goes on.
    fn buffer(self, arg: &mut [u8]) -> Result<&mut [u8], Errno> {
        user_bytes(arg, self.buf, usize::try_from(self.buf_rem).map_err(|_| Errno::EFAULT)?)
    }
}

impl Vm {
    /// VM_SNAPSHOT_REQ, with all vCPUs locked.
    pub(super) fn snapshot_req(&self, st: &mut State<'_>, form: Form, arg: &mut [u8]) -> Result<(), Errno> {
        const HEADER: usize = size_of::<Header>();
        let meta = Meta::load(form, arg);
        let generation = self.generation(meta.structure);
        match meta.op {
            op::SAVE => {
                let image = self.save(st, meta.structure)?;
                let (magic, structure, len) = (MAGIC, meta.structure, image.len() as u32);
                let header = Header { magic, structure, generation, len };
                let buffer = meta.buffer(arg)?.get_mut(..HEADER + image.len()).ok_or(Errno::E2BIG)?;
                buffer[..HEADER].copy_from_slice(header.as_bytes());
                buffer[HEADER..].copy_from_slice(&image);
                meta.store_advanced(form, HEADER + image.len(), arg);
            }
            op::RESTORE => {
                let buffer = meta.buffer(arg)?;
                let (header, rest) = Header::read_from_prefix(buffer).map_err(|_| Errno::E2BIG)?;
                if header.magic != MAGIC || header.structure != meta.structure || header.generation != generation {
                    return Err(Errno::EINVAL);
                }
                let image = rest.get(..header.len as usize).ok_or(Errno::E2BIG)?.to_vec();
                self.restore(st, meta.structure, &image)?;
                meta.store_advanced(form, HEADER + image.len(), arg);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Of the two structures that changed: before and after c0f35dbf19c3.
    fn generation(&self, structure: u32) -> u32 {
        let changed = matches!(structure, req::VM | req::VLAPIC);
        u32::from(changed && self.behaviour.startup_store != StartupStore::BootState)
    }

    fn save(&self, st: &mut State<'_>, structure: u32) -> Result<Vec<u8>, Errno> {
        let boot_state = self.behaviour.startup_store == StartupStore::BootState;
        match structure {
            req::VM => {
                let vcpus = st.vcpus.iter_mut().flatten().map(|vcpu| VcpuImage {
                    id: vcpu.id,
                    x2apic: vcpu.vlapic.x2apic(),
                    intinfo: vcpu.intinfo,
                    exception: vcpu.exception,
                    nmi_pending: vcpu.nmi_pending,
                    extint_pending: vcpu.extint_pending,
                    xcr0: vcpu.engine.as_mut().map(|engine| engine.fpu().xcr0),
                });
                let vcpus = vcpus.collect();
                Ok(encode(&VmImage { startup: (!boot_state).then_some(st.startup), vcpus }))
            }
            req::VLAPIC => {
                let vlapics = st.vcpus.iter().flatten().map(|vcpu| VlapicImage {
                    id: vcpu.id,
                    vlapic: vcpu.vlapic.clone(),
                    boot_state: boot_state.then_some(vcpu.boot_state),
                });
                Ok(encode(&vlapics.collect::<Vec<_>>()))
            }
            req::VMCX => {
                // A vCPU that nothing has touched has no registers yet; those that are preallocated would all get some.
                let touched = self.with_registers(st);
                let images: Vec<_> = touched.iter().map(|id| registers(st.vcpu(id))).collect();
                Ok(encode(&images))
            }
            _ => st.board.save(structure).ok_or(Errno::EINVAL),
        }
    }

    /// Puts a structure back. A vCPU of the image that is not allocated makes the restore fail on kernels that allocate on first use: userspace
    /// has to make its vCPUs before (D38477). \[commit]
    fn restore(&self, st: &mut State<'_>, structure: u32, image: &[u8]) -> Result<(), Errno> {
        match structure {
            req::VM => {
                let VmImage { startup, vcpus } = decode(image)?;
                require_allocated(st, vcpus.iter().map(|vcpu| vcpu.id))?;
                st.startup = startup.unwrap_or(CpuSet::EMPTY);
                for image in vcpus {
                    if let Some(xcr0) = image.xcr0 {
                        self.ensure_engine(st, image.id);
                        put_xcr0(st.vcpu(image.id), xcr0);
                    }
                    let vcpu = st.vcpu(image.id);
                    vcpu.vlapic.set_x2apic(image.x2apic);
                    vcpu.intinfo = image.intinfo;
                    vcpu.exception = image.exception;
                    vcpu.nmi_pending = image.nmi_pending;
                    vcpu.extint_pending = image.extint_pending;
                    vcpu.cpuid_stale = true;
                }
            }
            req::VLAPIC => {
                let vlapics: Vec<VlapicImage> = decode(image)?;
                require_allocated(st, vlapics.iter().map(|vlapic| vlapic.id))?;
                for image in vlapics {
                    let vcpu = st.vcpu(image.id);
                    vcpu.vlapic = image.vlapic;
                    vcpu.boot_state = image.boot_state.unwrap_or(vcpu.boot_state);
                    vcpu.cpuid_stale = true;
                }
            }
            req::VMCX => {
                let images: Vec<RegistersImage> = decode(image)?;
                require_allocated(st, images.iter().map(|registers| registers.id))?;
                for image in images {
                    self.ensure_engine(st, image.id);
                    put_registers(st.vcpu(image.id), &image)?;
                }
            }
            _ => return st.board.restore(structure, image).unwrap_or(Err(Errno::EINVAL)),
        }
        Ok(())
    }

    fn with_registers(&self, st: &State<'_>) -> CpuSet {
        (0..self.max_cpus).filter(|&id| st.allocated(id).is_some_and(|vcpu| vcpu.kick.is_some())).collect()
    }
}

fn require_allocated(st: &State<'_>, mut ids: impl Iterator<Item = usize>) -> Result<(), Errno> {
    if ids.all(|id| st.allocated(id).is_some()) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn registers(vcpu: &mut Vcpu) -> RegistersImage {
    vcpu.finish_in_flight();
    let engine = vcpu.engine();
    let values = Reg::ALL.map(|reg| engine.reg(reg)).to_vec();
    let described = Reg::ALL.into_iter().filter(|reg| reg.has_descriptor());
    let descriptors = described.map(|reg| {
        let SegDesc { base, limit, access } = engine.desc(reg);
        (reg as u8, base, limit, access)
    });
    let descriptors = descriptors.collect();
    RegistersImage { id: vcpu.id, values, descriptors }
}

/// Sets XCR0, and leaves the registers that it enables alone.
fn put_xcr0(vcpu: &mut Vcpu, xcr0: u64) {
    vcpu.abandon_in_flight();
    let state = vcpu.engine().fpu();
    vcpu.engine().set_fpu(&FpuState { xcr0, ..state });
}

fn put_registers(vcpu: &mut Vcpu, image: &RegistersImage) -> Result<(), Errno> {
    vcpu.abandon_in_flight();
    for &(number, base, limit, access) in &image.descriptors {
        let reg = Reg::from_number(i32::from(number)).filter(|reg| reg.has_descriptor()).ok_or(Errno::EINVAL)?;
        vcpu.engine().set_desc(reg, SegDesc { base, limit, access });
    }
    if image.values.len() != Reg::ALL.len() {
        return Err(Errno::EINVAL);
    }
    for (reg, &value) in Reg::ALL.into_iter().zip(&image.values) {
        vcpu.engine().set_reg(reg, value);
    }
    // Setting RIP ends the interrupt shadow.
    let shadow = image.values[Reg::IntrShadow as usize];
    vcpu.engine().set_reg(Reg::IntrShadow, shadow);
    vcpu.fresh = true;
    Ok(())
}
