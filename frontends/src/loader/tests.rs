//! Each format by each protocol it has, in memory of any size.

use super::bytes::{put_u32, put_u64, u32_at, u64_at};
use super::layout::{CMDLINE, PAGE_TABLES, START_INFO, ZERO_PAGE};
use super::*;
use crate::libvmmapi::fake::{FakeKernel, Rules};
use crate::libvmmapi::{System, V13_2};
use proptest::prelude::*;
use vmm::engine::Reg;
use vmm::host::Host;

const PREFERRED: u64 = 0x100_0000;
const INIT_SIZE: u32 = 0x30_0000;

/// A bzImage of protocol 2.15 whose kernel is `payload`.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 2;
    let mut file = vec![0; (SECTORS + 1) * 512];
    file[0x1f1] = SECTORS as u8;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    // The header ends at 270H.
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x6e]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    file[0x211] = 0x41;
    put_u32(&mut file, 0x22c, 0x7fff_ffff);
    file[0x234] = 1;
    file[0x236] = 1;
    put_u32(&mut file, 0x238, 2047);
    put_u64(&mut file, 0x258, PREFERRED);
    put_u32(&mut file, 0x260, INIT_SIZE);
    file.extend(payload);
    file
}

/// An ELF program of one segment at 2 MiB, 64-bit or 32-bit, with or without PVH's note.
pub(super) fn elf(wide: bool, pvh: Option<u32>) -> Vec<u8> {
    let mut notes = Vec::new();
    for (kind, desc) in [(6_u32, 0_u32)].into_iter().chain(pvh.map(|entry| (18, entry))) {
        for word in [4, 4, kind] {
            notes.extend(u32::to_le_bytes(word));
        }
        notes.extend(b"Xen\0");
        notes.extend(desc.to_le_bytes());
    }
    let code = *b"code";
    let (header, size) = if wide { (64, 56) } else { (52, 32) };
    let notes_at = header + 2 * size;
    let code_at = notes_at + notes.len();
    let mut file = vec![0; header];
    file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1]);
    file[18] = if wide { 62 } else { 3 };
    let entry = 0x20_0002;
    if wide {
        put_u64(&mut file, 24, entry);
        put_u64(&mut file, 32, header as u64);
        file[54..58].copy_from_slice(&[size as u8, 0, 2, 0]);
    } else {
        put_u32(&mut file, 24, entry as u32);
        put_u32(&mut file, 28, header as u32);
        file[42..46].copy_from_slice(&[size as u8, 0, 2, 0]);
    }
    for (kind, at, len, memory) in [(1, code_at, code.len(), 0x1000), (4, notes_at, notes.len(), 0)] {
        let mut program = vec![0; size];
        put_u32(&mut program, 0, kind);
        // The virtual address is elsewhere: it must not matter.
        if wide {
            for (field, value) in [(8, at), (16, 0xffff), (24, 0x20_0000), (32, len), (40, memory)] {
                put_u64(&mut program, field, value as u64);
            }
        } else {
            for (field, value) in [(4, at), (8, 0xffff), (12, 0x20_0000), (16, len), (20, memory)] {
                put_u32(&mut program, field, value as u32);
            }
        }
        file.extend(program);
    }
    file.extend(notes);
    file.extend(code);
    file
}

pub(super) fn image(kernel: Vec<u8>) -> OsImage {
    OsImage {
        kernel: kernel.into(),
        initrd: None,
        modules: Vec::new(),
        cmdline: "console=ttyS0".into(),
        protocol: None,
        load_at: None,
    }
}

pub(super) fn place(image: &OsImage) -> Result<Placed, LoadError> {
    image.place(Ram::of(64 << 20), None)
}

pub(super) fn piece(placed: &Placed, at: u64) -> &[u8] {
    placed.pieces.iter().find(|piece| piece.gpa == at).expect("a piece is there").bytes()
}

#[test]
fn a_bzimage_enters_in_long_mode() {
    let image = OsImage { initrd: Some(vec![7; 5000].into()), ..image(bzimage(b"kernel")) };
    let placed = place(&image).expect("it fits");
    let entry = Entry { gdt: true, rsi: ZERO_PAGE, ..Entry::at(Mode::Long, PREFERRED + 0x200) };
    assert_eq!(placed.entry, entry);
    assert_eq!(piece(&placed, PREFERRED), b"kernel");
    assert_eq!(piece(&placed, CMDLINE), b"console=ttyS0\0");
    let initrd_at = (64 << 20) - 0x2000;
    assert_eq!(piece(&placed, initrd_at), [7; 5000], "at the top, on a page");

    let page = piece(&placed, ZERO_PAGE);
    assert_eq!(page.len(), 4096);
    assert_eq!((&page[0x1f1..0x1f2], &page[0x202..0x206]), (&[2][..], &b"HdrS"[..]), "the setup header");
    assert_eq!(page[0x270..0x2d0], [0; 0x60], "and nothing behind it");
    assert_eq!((page[0x210], page[0x211]), (0xff, 1));
    let word = |at| u32_at(page, at).expect("inside");
    assert_eq!([word(0x218), word(0x21c), word(0x228)], [initrd_at as u32, 5000, CMDLINE as u32]);
    let map: Vec<[u64; 3]> = page[0x2d0..]
        .chunks_exact(20)
        .take(page[0x1e8].into())
        .map(|entry| {
            [0, 8, 16]
                .map(|at| if at == 16 { u32_at(entry, at).map(u64::from) } else { u64_at(entry, at) }.expect("inside"))
        })
        .collect();
    assert_eq!(map, [[0, 0x9_fc00, 1], [0xf_0000, 0x1_0000, 2], [0x10_0000, (64 << 20) - 0x10_0000, 1]]);
}

#[test]
fn the_page_tables_map_4_gib_to_themselves() {
    let placed = place(&image(bzimage(b"kernel"))).expect("it fits");
    let tables = piece(&placed, PAGE_TABLES);
    let entry = |table: u64, index: u64| u64_at(tables, (table - PAGE_TABLES + 8 * index) as usize).expect("inside");
    for address in (0..4_u64 << 30).step_by(2 << 20) {
        let pdpt = entry(PAGE_TABLES, address >> 39) & !0xfff;
        let directory = entry(pdpt, address >> 30 & 0x1ff);
        assert_eq!(directory & 0xfff, 3);
        assert_eq!(entry(directory & !0xfff, address >> 21 & 0x1ff), address | 0x83);
    }
}

#[test]
fn a_bzimage_enters_in_protected_mode_when_asked_or_old() {
    let asked = OsImage { protocol: Some(Protocol::Linux32), ..image(bzimage(b"kernel")) };
    let entry = Entry { gdt: true, rsi: ZERO_PAGE, ..Entry::at(Mode::Protected, PREFERRED) };
    assert_eq!(place(&asked).map(|placed| placed.entry), Ok(entry));
    let mut old = bzimage(b"kernel");
    old[0x206] = 0x04;
    assert_eq!(
        place(&image(old)).map(|placed| placed.entry),
        Ok(Entry { rip: 0x10_0000, ..entry }),
        "2.04: no entry of 64 bits, cannot be moved"
    );
    let pvh = OsImage { protocol: Some(Protocol::Pvh), ..image(bzimage(b"kernel")) };
    assert_eq!(place(&pvh), Err(LoadError::NoSuchEntry("pvh")));
}

#[test]
fn programs_enter_as_their_class_and_notes_say() {
    let zero_page = Entry { gdt: true, rsi: ZERO_PAGE, ..Entry::at(Mode::Long, 0x20_0002) };
    let placed = place(&image(elf(true, None))).expect("it fits");
    assert_eq!(placed.entry, zero_page);
    assert_eq!(piece(&placed, 0x20_0000), b"code");
    let placed = place(&image(elf(false, None))).expect("it fits");
    assert_eq!(placed.entry, Entry { mode: Mode::Protected, ..zero_page });
    assert_eq!(piece(&placed, 0x20_0000), b"code");
    for wide in [true, false] {
        let pvh = OsImage {
            protocol: Some(Protocol::Pvh),
            initrd: Some(vec![1; 10].into()),
            ..image(elf(wide, Some(0x20_0123)))
        };
        let placed = place(&pvh).expect("it fits");
        assert_eq!(placed.entry, Entry { gdt: true, rbx: START_INFO, ..Entry::at(Mode::Protected, 0x20_0123) });
        let info = piece(&placed, START_INFO);
        assert_eq!(u32_at(info, 0), Some(0x336e_c578));
        assert_eq!((u32_at(info, 12), u64_at(info, 16)), (Some(1), Some(START_INFO + 0x40)), "a module");
        assert_eq!((u64_at(info, 0x40), u64_at(info, 0x48)), (Some((64 << 20) - 0x1000), Some(10)));
        assert_eq!((u64_at(info, 24), u64_at(info, 32)), (Some(CMDLINE), Some(0)));
        assert_eq!((u64_at(info, 40), u32_at(info, 48)), (Some(START_INFO + 0x80), Some(3)), "the map");
    }
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    assert_eq!(place(&image(b"#!/bin/sh".to_vec())), Err(LoadError::UnknownFormat));
    assert_eq!(place(&image(Vec::new())), Err(LoadError::UnknownFormat));
    let too_long = OsImage { cmdline: "x".repeat(2048), ..image(bzimage(b"kernel")) };
    assert_eq!(place(&too_long), Err(LoadError::CommandLine(2047)));
    let zero = OsImage { cmdline: "a\0b".into(), ..image(bzimage(b"kernel")) };
    assert_eq!(place(&zero), Err(LoadError::CommandLine(2047)));
    let in_the_way = OsImage { initrd: Some(vec![0; 48 << 20].into()), ..image(bzimage(b"kernel")) };
    assert_eq!(place(&in_the_way), Err(LoadError::NoRoom("The initial RAM disk", 64)));
    assert_eq!(image(bzimage(b"kernel")).check(16 << 20), Err(LoadError::NoRoom("The kernel", 16)));
    let cut_off = bzimage(b"");
    assert!(matches!(place(&image(cut_off)), Err(LoadError::Damaged(_))));
}

/// Whether no piece overlaps another, and all are in the RAM below 4 GiB.
pub(super) fn lie_in_memory_and_apart(mut placed: Placed, ram: Ram) -> Result<(), TestCaseError> {
    placed.pieces.sort_by_key(|piece| piece.gpa);
    let mut end = 0;
    for piece in &placed.pieces {
        prop_assert!(piece.gpa >= end, "{piece:?}");
        end = piece.gpa + piece.bytes().len() as u64;
    }
    prop_assert!(end <= ram.low);
    Ok(())
}

proptest! {
    #[test]
    fn pieces_lie_in_memory_and_apart(mib in 32_u64..8192, initrd in 0..100_000_usize, program: bool) {
        let kernel = if program { elf(true, Some(0x20_0000)) } else { bzimage(&[1; 5000]) };
        let image = OsImage { initrd: Some(vec![1; initrd].into()), ..image(kernel) };
        let ram = Ram::of(mib << 20);
        lie_in_memory_and_apart(image.place(ram, None).expect("it fits"), ram)?;
    }

    #[test]
    fn no_file_panics(mut file: Vec<u8>, flips: Vec<(u16, u8)>, kind in 0..3) {
        if kind != 0 {
            file = if kind == 1 { bzimage(b"kernel") } else { elf(true, Some(1)) };
            for (at, value) in flips {
                let len = file.len();
                file[usize::from(at) % len] = value;
            }
        }
        let _result = place(&image(file));
    }
}

/// Runs the loader alone.
fn loaded(image: OsImage, rules: Rules) -> (FakeKernel, Result<(), String>) {
    let host = Host::virtual_time(1, 1_000_000_000);
    let kernel = FakeKernel::new(&host, rules);
    let system: Arc<dyn System> = Arc::new(kernel.clone());
    let result = Arc::new(parking_lot::Mutex::new(Ok(())));
    let inside = Arc::clone(&result);
    host.run("loader", move || {
        *inside.lock() = run(&system, "guest", 64 << 20, &image, &V13_2, None).map_err(|failure| failure.to_string());
    });
    let result = result.lock().clone();
    (kernel, result)
}

#[test]
fn the_loader_makes_a_vm_and_leaves_it() {
    let (kernel, result) = loaded(image(elf(true, None)), Rules::default());
    assert_eq!(result, Ok(()));
    let expected = [
        "create guest",
        "open guest",
        "VM_SET_CAPABILITY 0 UNRESTRICTED_GUEST",
        "VM_GET_MEMSEG 0, 32 bytes",
        "VM_ALLOC_MEMSEG 0, 32 bytes",
        "VM_MMAP_GETNEXT",
        "VM_MMAP_MEMSEG 0x0 = segment 0 + 0x0, 0x4000000 bytes, prot 7",
        "mmap 0x0 0x4000000",
        "registers of 0",
    ];
    assert_eq!(kernel.calls(), expected);
    assert_eq!(kernel.memory("ram", 0x20_0000, 5), b"code\0");
    let registers =
        [Reg::Rip, Reg::Rsi, Reg::Cr0, Reg::Cr3, Reg::Cr4, Reg::Efer, Reg::Cs].map(|reg| kernel.register(0, reg));
    assert_eq!(registers, [0x20_0002, ZERO_PAGE, 0x8000_0021, PAGE_TABLES, 0x20, 0x500, 0x10].map(Some));

    let (kernel, _) = loaded(image(elf(false, None)), Rules::default());
    let registers = [Reg::Rip, Reg::Rsi, Reg::Cr0, Reg::Cr4, Reg::Ss].map(|reg| kernel.register(0, reg));
    assert_eq!(registers, [0x20_0002, ZERO_PAGE, 0x21, 0, 0x18].map(Some), "protected mode without paging");
}

#[test]
fn a_flat_image_is_where_the_table_says() {
    let flat = |protocol, load| OsImage {
        cmdline: String::new(),
        protocol: Some(protocol),
        load_at: load,
        ..image(b"code".to_vec())
    };
    let entry = |image: &OsImage| place(image).map(|placed| placed.entry);
    let sector = Entry::at(Mode::Real, 0x7c00);
    assert_eq!(entry(&flat(Protocol::Flat16, None)), Ok(sector));
    let high = Entry { rip: 0x2_0010, ..sector };
    assert_eq!(entry(&flat(Protocol::Flat16, Some(0x2_0010))), Ok(high));
    assert_eq!(entry(&flat(Protocol::Flat32, None)), Ok(Entry::at(Mode::Protected, 0x10_0000)));
    let placed = place(&flat(Protocol::Flat32, Some(0x1000))).expect("nothing is in the way");
    assert_eq!(piece(&placed, 0x1000), b"code");
    assert_eq!(placed.pieces.len(), 1);

    let real_mode = Err(LoadError::NoRoom("An image that runs in real mode", 1));
    assert_eq!(entry(&flat(Protocol::Flat16, Some(0x10_0000))), real_mode);
    assert_eq!(entry(&flat(Protocol::Flat16, Some(u64::MAX))), real_mode);
    assert_eq!(entry(&flat(Protocol::Flat32, Some(64 << 20))), Err(LoadError::NoRoom("The image", 64)));
    let told = OsImage { cmdline: "x".into(), ..flat(Protocol::Flat32, None) };
    assert_eq!(entry(&told), Err(LoadError::NotTaken("flat32", "command line")));
    let elsewhere = OsImage { load_at: Some(0), ..image(bzimage(b"kernel")) };
    assert_eq!(entry(&elsewhere), Err(LoadError::NotTaken("linux64", "load address")));
    let empty = OsImage { kernel: Arc::from([]), ..flat(Protocol::Flat16, None) };
    assert!(matches!(entry(&empty), Err(LoadError::Damaged(_))));
}

#[test]
fn the_loader_enters_in_real_mode() {
    let flat = OsImage { cmdline: String::new(), protocol: Some(Protocol::Flat16), ..image(b"code".to_vec()) };
    for (load_at, cs, ip, sp) in [(None, 0, 0x7c00, 0), (Some(0x2_0018), 0x2000, 0x18, 0)] {
        let (kernel, result) = loaded(OsImage { load_at, ..flat.clone() }, Rules::default());
        assert_eq!(result, Ok(()));
        let registers = [Reg::Cs, Reg::Rip, Reg::Rsp, Reg::Cr0, Reg::Ds].map(|reg| kernel.register(0, reg));
        assert_eq!(registers, [cs, ip, sp, 0x20, 0].map(Some));
        assert_eq!(kernel.base(0, Reg::Cs), Some(cs << 4));
    }
}

#[test]
fn the_loader_says_why_it_failed() {
    let taken = Rules { name_taken: true, ..Rules::default() };
    let (_, result) = loaded(image(elf(true, None)), taken);
    assert_eq!(result, Err("vm_create: File exists".into()));
    let (kernel, result) = loaded(image(b"no kernel".to_vec()), Rules::default());
    assert_eq!(result, Err(LoadError::UnknownFormat.to_string()));
    assert_eq!(kernel.calls(), [""; 0], "nothing was begun");
}
