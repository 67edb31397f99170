//! VM_SNAPSHOT_REQ: the kernel's part of a checkpoint, structure by structure.

use super::Vm;
use super::sys::DeviceFile;
use vmm::abi::snapshot::{op, req};
use vmm::abi::{Errno, VM_SNAPSHOT_REQ, VmSnapshotMeta, v14};
use zerocopy::{FromBytes, IntoBytes};

/// `SNAPSHOT_BUFFER_SIZE` in bytes: room for any one structure, here for 1024 vCPUs.
const BUFFER_SIZE: usize = 20 << 20;

/// What the kernel saved, a structure each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelImage(Vec<(u32, Vec<u8>)>);

impl Vm {
    /// `vm_save_kern_structs`.
    pub(crate) fn save_kernel(&self) -> Result<KernelImage, Errno> {
        let save = |structure| Ok((structure, self.generation.snapshot(&*self.file, structure, None)?));
        req::KERNEL_STRUCTURES.into_iter().map(save).collect::<Result<_, _>>().map(KernelImage)
    }

    /// `vm_restore_kern_structs`. The first error ends it.
    pub(crate) fn restore_kernel(&self, image: &KernelImage) -> Result<(), Errno> {
        image
            .0
            .iter()
            .try_for_each(|(structure, bytes)| self.generation.snapshot(&*self.file, *structure, Some(bytes)).map(drop))
    }

    /// `vm_restore_time`.
    pub(crate) fn restore_time(&self) -> Result<(), Errno> {
        self.ioctl(vmm::abi::VM_RESTORE_TIME, 0_i32).map(drop)
    }
}

/// The request as until 13.x, whose structure begins with a pointer that the kernel ignores.
pub(super) fn request_13(file: &dyn DeviceFile, structure: u32, image: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
    let (buf, size) = (size_of::<VmSnapshotMeta>() as u64, buffer_len(image) as u64);
    let meta = VmSnapshotMeta {
        dev_req: structure,
        buf_start: buf,
        buf_size: size,
        buf,
        buf_rem: size,
        op: operation(image),
        ..VmSnapshotMeta::default()
    };
    let mut argument = argument(meta.as_bytes(), image);
    file.ioctl(VM_SNAPSHOT_REQ, &mut argument)?;
    let (meta, buffer) = VmSnapshotMeta::read_from_prefix(&argument).expect("the structure is its prefix");
    Ok(saved(buffer, meta.buf_rem))
}

/// The request as from 14 on.
pub(super) fn request_14(file: &dyn DeviceFile, structure: u32, image: Option<&[u8]>) -> Result<Vec<u8>, Errno> {
    let (buf, size) = (size_of::<v14::VmSnapshotMeta>() as u64, buffer_len(image) as u64);
    let meta = v14::VmSnapshotMeta {
        dev_req: structure,
        buf_start: buf,
        buf_size: size,
        buf,
        buf_rem: size,
        op: operation(image),
        ..v14::VmSnapshotMeta::default()
    };
    let mut argument = argument(meta.as_bytes(), image);
    file.ioctl(v14::VM_SNAPSHOT_REQ, &mut argument)?;
    let (meta, buffer) = v14::VmSnapshotMeta::read_from_prefix(&argument).expect("the structure is its prefix");
    Ok(saved(buffer, meta.buf_rem))
}

fn buffer_len(image: Option<&[u8]>) -> usize {
    image.map_or(BUFFER_SIZE, <[u8]>::len)
}

fn operation(image: Option<&[u8]>) -> u32 {
    if image.is_some() { op::RESTORE } else { op::SAVE }
}

/// The structure and the buffer behind it.
fn argument(meta: &[u8], image: Option<&[u8]>) -> Vec<u8> {
    let mut argument = vec![0; meta.len() + buffer_len(image)];
    let (head, buffer) = argument.split_at_mut(meta.len());
    head.copy_from_slice(meta);
    if let Some(image) = image {
        buffer.copy_from_slice(image);
    }
    argument
}

/// `vm_get_snapshot_size`: what lies before the rest.
fn saved(buffer: &[u8], buf_rem: u64) -> Vec<u8> {
    let rest = usize::try_from(buf_rem).unwrap_or(usize::MAX);
    buffer[..buffer.len().saturating_sub(rest)].to_vec()
}
