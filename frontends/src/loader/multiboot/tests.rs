//! Headers of both versions, in ELF programs and without them, and what the kernel is told, read as the specifications have it.

use super::super::bytes::{put_u32, u32_at, u64_at};
use super::super::tests::{elf, image, lie_in_memory_and_apart, piece};
use super::super::{LoadError, Mode, Module, OsImage, Placed, Protocol};
use super::*;
use proptest::prelude::*;

const MEMORY: u64 = 64 << 20;
const RSDP: &[u8] = b"RSD PTR . . . . . . . . . . . . . . ";

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A header of version 1, with address fields or without.
fn v1(flags: u32, addresses: &[u32]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags);
    words(&[&[MAGIC, flags, checksum], addresses].concat())
}

/// A header of version 2 with these tags: type, flags, contents.
fn v2(tags: &[(u16, u16, &[u32])]) -> Vec<u8> {
    const MAGIC: u32 = 0xe852_50d6;
    let mut bytes = Vec::new();
    for (kind, flags, contents) in tags.iter().chain(&[(0, 0, &[][..])]) {
        bytes.extend(words(&[u32::from(*kind) | u32::from(*flags) << 16, 8 + 4 * contents.len() as u32]));
        bytes.extend(words(contents));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let len = 16 + bytes.len() as u32;
    [words(&[MAGIC, 0, len, 0_u32.wrapping_sub(MAGIC).wrapping_sub(len)]), bytes].concat()
}

/// An ELF program with a header behind it.
fn with_elf(wide: bool, header: &[u8]) -> Vec<u8> {
    let mut file = elf(wide, None);
    file.resize(file.len().next_multiple_of(8), 0);
    file.extend(header);
    file
}

/// A flat program of `len` bytes whose header is at 40H.
fn flat(header: &[u8], len: usize) -> Vec<u8> {
    let mut file = vec![0x90; 0x40];
    file.extend(header);
    file.resize(len, 0xcc);
    file
}

fn placed(image: &OsImage) -> Result<Placed, LoadError> {
    image.place(Ram::of(MEMORY), Some(RSDP))
}

fn entered(kernel: Vec<u8>) -> Result<u64, LoadError> {
    placed(&image(kernel)).map(|placed| placed.entry.rip)
}

fn string(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).expect("a zero ends it");
    std::str::from_utf8(&bytes[..end]).expect("it is a text")
}

fn modules() -> Vec<Module> {
    let module = |len: usize, string: &str| Module { file: vec![len as u8; len].into(), cmdline: string.into() };
    vec![module(5000, "first one"), module(1, ""), module(0, "empty")]
}

#[test]
fn version_1_tells_what_there_is() {
    for wide in [false, true] {
        let kernel = OsImage { modules: modules(), ..image(with_elf(wide, &v1(3, &[]))) };
        let placed = placed(&kernel).expect("it fits");
        assert_eq!((placed.entry.mode, placed.entry.rip), (Mode::Protected, 0x20_0002));
        assert_eq!((placed.entry.rax, placed.entry.gdt), (0x2bad_b002, false));
        let at = placed.entry.rbx;
        let info = piece(&placed, at);
        let word = |offset| u32_at(info, offset).expect("inside");
        let inside = |offset: usize| &info[(u64::from(word(offset)) - at) as usize..];
        assert_eq!(word(0), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9, "no sections, no boot device");
        assert_eq!([word(4), word(8)], [639, 63 << 10]);
        assert_eq!((string(inside(16)), string(inside(64))), ("console=ttyS0", "spinup"));
        assert_eq!(word(20), 3);
        let list = inside(24);
        for (module, told) in modules().iter().zip(list.chunks_exact(16)) {
            let [start, end, text] = [0, 4, 8].map(|offset| u32_at(told, offset).expect("inside"));
            assert_eq!(end - start, module.file.len() as u32);
            assert!(start.is_multiple_of(4096) && start >= 0x20_1000, "on a page behind the kernel: {start:#x}");
            assert_eq!(string(&info[(u64::from(text) - at) as usize..]), module.cmdline);
            let there =
                placed.pieces.iter().any(|piece| piece.gpa == u64::from(start) && piece.bytes() == &*module.file);
            assert!(there, "{start:#x}");
        }
        let map: Vec<[u64; 4]> = inside(48)[..word(44) as usize]
            .chunks_exact(24)
            .map(|entry| {
                let long = |at| u64_at(entry, at).expect("inside");
                [u32_at(entry, 0).expect("inside").into(), long(4), long(12), u32_at(entry, 20).expect("inside").into()]
            })
            .collect();
        assert_eq!(map, [[20, 0, 0x9_fc00, 1], [20, 0xf_0000, 0x1_0000, 2], [20, 0x10_0000, MEMORY - 0x10_0000, 1]]);
    }
}

/// The tags of version 2's information.
fn tags(information: &[u8]) -> Vec<(u32, Vec<u8>)> {
    assert_eq!(u32_at(information, 0), Some(information.len() as u32));
    let (mut at, mut tags) = (8, Vec::new());
    while at < information.len() {
        let size = u32_at(information, at + 4).expect("inside") as usize;
        tags.push((u32_at(information, at).expect("inside"), information[at + 8..at + size].to_vec()));
        at += size.next_multiple_of(8);
    }
    tags
}

#[test]
fn version_2_tells_what_there_is() {
    let request: &[u32] = &[1, 2, 3, 4, 6, 9, 14, 15, 21];
    let header = v2(&[(1, 0, request), (6, 0, &[])]);
    let kernel = OsImage { modules: modules(), ..image(with_elf(true, &header)) };
    let placed = placed(&kernel).expect("it fits");
    assert_eq!((placed.entry.mode, placed.entry.rip, placed.entry.rax), (Mode::Protected, 0x20_0002, 0x36d7_6289));
    assert!(placed.entry.rbx.is_multiple_of(8));
    let tags = tags(piece(&placed, placed.entry.rbx));
    let kinds: Vec<u32> = tags.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 2, 3, 3, 3, 4, 6, 14, 15, 0]);
    assert_eq!((string(&tags[0].1), string(&tags[1].1)), ("console=ttyS0", "spinup"));
    for (module, (_, told)) in modules().iter().zip(&tags[2..5]) {
        let [start, end] = [0, 4].map(|at| u32_at(told, at).expect("inside"));
        assert_eq!((end - start, string(&told[8..])), (module.file.len() as u32, &*module.cmdline));
        assert!(start.is_multiple_of(4096));
    }
    assert_eq!(tags[5].1, words(&[639, 63 << 10]));
    assert_eq!(tags[6].1[..8], words(&[24, 0]));
    assert_eq!(tags[6].1.len(), 8 + 3 * 24);
    assert_eq!((&tags[7].1[..], &tags[8].1[..]), (&RSDP[..20], RSDP));
}

#[test]
fn address_fields_go_before_elf() {
    // 40H bytes before the header; 100H bytes are loaded, and 1000H more are zero.
    let addresses = [0x30_0040, 0x30_0000, 0x30_0100, 0x30_1100, 0x30_0008];
    let mut file = flat(&v1(1 << 16, &addresses), 0x200);
    for kernel in [file.clone(), {
        file[..6].copy_from_slice(b"\x7fELF\x01\x01");
        file
    }] {
        let placed = placed(&image(kernel.clone())).expect("it fits");
        assert_eq!(placed.entry.rip, 0x30_0008);
        assert_eq!(piece(&placed, 0x30_0000), &kernel[..0x100]);
        assert!(placed.entry.rbx >= 0x30_1100, "the information is behind the zeroed memory");
    }
    // From the header on, to the file's end.
    let kernel = flat(&v1(1 << 16, &[0x30_0000, 0x30_0000, 0, 0, 0x30_0020]), 0x200);
    assert_eq!(piece(&placed(&image(kernel.clone())).expect("it fits"), 0x30_0000), &kernel[0x40..]);
    // Version 2: from the file's beginning on.
    let kernel = flat(&v2(&[(2, 0, &[0x30_0040, u32::MAX, 0, 0]), (3, 0, &[0x30_0020])]), 0x200);
    let image = placed(&image(kernel.clone())).expect("it fits");
    assert_eq!((piece(&image, 0x30_0000), image.entry.rip), (&kernel[..], 0x30_0020));
}

#[test]
fn addresses_that_do_not_fit_are_refused() {
    for addresses in [
        [0x30_0000, 0x30_0001, 0, 0, 0],         // loaded behind the header
        [0x30_0041, 0x30_0000, 0, 0, 0],         // before the file's beginning
        [0x30_0000, 0x30_0000, 0x2f_ffff, 0, 0], // ends before it begins
        [0x30_0000, 0x30_0000, 0x30_0201, 0, 0], // ends behind the file
        [0x30_0000, 0x30_0000, 0x30_0100, 1, 0], // the zeroed memory before the file's
    ] {
        let result = entered(flat(&v1(1 << 16, &addresses), 0x200));
        assert!(matches!(result, Err(LoadError::Damaged(_))), "{addresses:x?}: {result:?}");
    }
    let cut_off = flat(&v1(1 << 16, &[1, 2]), 0x54);
    assert_eq!(entered(cut_off), Err(LoadError::Damaged("its Multiboot header is cut off")));
    let in_the_hole = flat(&v1(1 << 16, &[0xa_0000, 0xa_0000, 0, 0, 0xa_0000]), 0x200);
    assert_eq!(entered(in_the_hole), Err(LoadError::NoRoom("The kernel", 64)));
    let no_entry = flat(&v2(&[(2, 0, &[0x30_0040, u32::MAX, 0, 0])]), 0x200);
    assert!(matches!(entered(no_entry), Err(LoadError::Damaged(_))));
    assert!(matches!(entered(flat(&v1(0, &[]), 0x200)), Err(LoadError::Damaged(_))), "neither addresses nor ELF");
}

#[test]
fn what_a_kernel_requires_and_cannot_have_is_refused() {
    for (flags, refused) in [(0, false), (3, false), (4, true), (1 << 3, true), (1 << 15, true), (1 << 17, false)] {
        let result = entered(with_elf(false, &v1(flags, &[])));
        assert_eq!(matches!(result, Err(LoadError::Refused(_))), refused, "{flags:#x}: {result:?}");
    }
    let tags: [(u16, &[u32], bool); 9] = [
        (1, &[8], true), // the framebuffer's information
        (1, &[6], false),
        (4, &[1], true),  // a console
        (4, &[2], false), // the kernel's own
        (5, &[0, 0, 0], true),
        (7, &[], true), // EFI boot services
        (8, &[0x1000], false),
        (9, &[0x1000], false),
        (99, &[], true),
    ];
    for (kind, contents, refused) in tags {
        let result = |flags| entered(with_elf(false, &v2(&[(kind, flags, contents)])));
        assert_eq!(matches!(result(0), Err(LoadError::Refused(_))), refused, "tag {kind}: {:?}", result(0));
        assert_eq!(result(1), Ok(0x20_0002), "tag {kind}, optional");
    }
}

#[test]
fn a_relocatable_kernel_lies_where_it_may() {
    let base = |min: u32, max: u32, align: u32, preference: u32| {
        let kernel = image(with_elf(false, &v2(&[(10, 0, &[min, max, align, preference])])));
        let placed = placed(&kernel)?;
        let tags = tags(piece(&placed, placed.entry.rbx));
        let base = tags.iter().find(|(kind, _)| *kind == 21).and_then(|(_, base)| u32_at(base, 0)).expect("a tag");
        assert_eq!(placed.entry.rip, u64::from(base) + 2, "the entry moves along");
        assert_eq!(piece(&placed, base.into()), b"code");
        Ok(base)
    };
    assert_eq!(base(0, u32::MAX, 4096, 0), Ok(0x20_0000), "it stays");
    assert_eq!(base(0x40_0000, u32::MAX, 0x1000, 0), Ok(0x40_0000), "it must move");
    assert_eq!(base(0x10_0001, u32::MAX, 0x1000, 1), Ok(0x10_1000), "the lowest");
    assert_eq!(base(0, u32::MAX, 0x1000, 2), Ok((64 << 20) - 0x1000), "the highest");
    assert_eq!(base(0, 0x30_0fff, 0x1000, 2), Ok(0x30_0000), "the highest below");
    assert_eq!(base(0, 0x30_0ffe, 0x1000, 2), Ok(0x2f_f000), "the last byte counts");
    assert_eq!(base(0x40_0000, 0x30_0000, 1, 1), Err(LoadError::NoRoom("The kernel", 64)));
    assert_eq!(base(0, u32::MAX, 0x8000_0000, 2), Ok(0), "0 is a multiple of everything");
    assert_eq!(base(1, u32::MAX, 0x8000_0000, 2), Err(LoadError::NoRoom("The kernel", 64)));
}

#[test]
fn an_entry_that_is_a_virtual_address_is_translated() {
    let mut kernel = with_elf(false, &v1(0, &[]));
    // The segment's virtual address is FFFFH, and it has 1000H bytes.
    put_u32(&mut kernel, 24, 0x1_0003);
    assert_eq!(entered(kernel), Ok(0x20_0004));
}

/// A program with three section headers: none, symbols, and code that is loaded.
fn with_sections(wide: bool, symbols_at: u32) -> Vec<u8> {
    let mut file = with_elf(wide, &v1(0, &[]));
    file.extend(b"symbols!");
    let (size, headers_at) = (if wide { 64 } else { 40 }, file.len() as u32);
    for (kind, addr, at) in [(0, 0, 0), (2, 0, symbols_at), (1, 0x20_0000, 0x40)] {
        let mut header = vec![0; size];
        let fields = if wide { [16, 24, 32, 48] } else { [12, 16, 20, 32] };
        put_u32(&mut header, 4, kind);
        for (field, value) in fields.into_iter().zip([addr, at, 8, 16]) {
            put_u32(&mut header, field, value);
        }
        file.extend(header);
    }
    put_u32(&mut file, if wide { 40 } else { 32 }, headers_at);
    let fields = if wide { 58 } else { 46 };
    file[fields..fields + 6].copy_from_slice(&[size as u8, 0, 3, 0, 1, 0]);
    file
}

#[test]
fn sections_that_no_segment_loads_are_loaded_too() {
    for wide in [false, true] {
        let symbols_at = with_elf(wide, &v1(0, &[])).len() as u32;
        let placed = placed(&image(with_sections(wide, symbols_at))).expect("it fits");
        let at = placed.entry.rbx;
        let info = piece(&placed, at);
        let word = |offset| u32_at(info, offset).expect("inside");
        assert_eq!(word(0) & 1 << 5, 1 << 5);
        let size = word(32);
        assert_eq!([word(28), size, word(40)], [3, if wide { 64 } else { 40 }, 1]);
        let headers = &info[(u64::from(word(36)) - at) as usize..];
        let address = |number: u32| u32_at(headers, (number * size) as usize + if wide { 16 } else { 12 });
        assert_eq!((address(0), address(2)), (Some(0), Some(0x20_0000)));
        let symbols = address(1).expect("inside");
        assert_eq!(piece(&placed, symbols.into()), b"symbols!");
        assert!(symbols.is_multiple_of(16));
        assert!(matches!(entered(with_sections(wide, 0x7fff_ffff)), Err(LoadError::Damaged(_))));
    }
}

#[test]
fn a_header_counts_where_it_may_be() {
    let at = |offset: usize, header: &[u8]| {
        let mut file = with_elf(false, &[]);
        file.resize(offset, 0);
        file.extend(header);
        file.resize(40_000, 0);
        placed(&image(file)).map(|placed| placed.entry.rax)
    };
    let (one, two) = (v1(0, &[]), v2(&[]));
    let linux = Ok(0);
    assert_eq!(at(8192 - 12, &one), Ok(0x2bad_b002));
    assert_eq!(at(8192 - 8, &one), linux);
    assert_eq!(at(4098, &one), linux, "not aligned");
    assert_eq!(at(32768 - two.len(), &two), Ok(0x36d7_6289));
    assert_eq!(at(32768 - 16, &two), Err(LoadError::Damaged("its Multiboot2 header is cut off")));
    assert_eq!(at(4100, &two), linux, "not aligned");
    let mut mips = two.clone();
    put_u32(&mut mips, 4, 4);
    put_u32(&mut mips, 12, u32_at(&two, 12).expect("inside").wrapping_sub(4));
    assert_eq!(at(4096, &mips), linux, "for another architecture");
    assert_eq!(at(4096, &[two, one].concat()), Ok(0x36d7_6289), "the newer one");
}

#[test]
fn what_goes_with_a_kernel_must_have_a_place() {
    let kernel = image(with_elf(false, &v1(0, &[])));
    let moved = OsImage { load_at: Some(0), ..kernel.clone() };
    assert_eq!(placed(&moved), Err(LoadError::NotTaken("multiboot", "load address")));
    let initrd = OsImage { initrd: Some(Arc::from(*b"initrd")), ..kernel.clone() };
    let initrd = placed(&initrd).expect("it fits");
    let info = piece(&initrd, initrd.entry.rbx);
    assert_eq!(u32_at(info, 20), Some(1), "it is a module");
    let asked = OsImage { protocol: Some(Protocol::Multiboot2), ..kernel.clone() };
    assert_eq!(placed(&asked), Err(LoadError::NoSuchEntry("multiboot2")));
    let linux = OsImage { modules: modules(), ..image(elf(true, None)) };
    assert_eq!(placed(&linux), Err(LoadError::NotTaken("linux64", "modules")));
    let module = Module { file: Arc::from(*b"x"), cmdline: "a\0b".into() };
    let zero = OsImage { modules: vec![module], ..kernel.clone() };
    assert_eq!(placed(&zero), Err(LoadError::CommandLine(4095)));
    let module = Module { file: vec![0; 63 << 20].into(), cmdline: String::new() };
    let large = OsImage { modules: vec![module], ..kernel };
    assert_eq!(placed(&large), Err(LoadError::NoRoom("A module", 64)));
}

proptest! {
    #[test]
    fn pieces_lie_in_memory_and_apart(
        mib in 16_u64..5000, lens in prop::collection::vec(0..50_000_usize, 0..5), newer: bool, preference in 0..3_u32,
    ) {
        let header = if newer { v2(&[(10, 0, &[0, u32::MAX, 0x1000, preference])]) } else { v1(1, &[]) };
        let modules = lens.iter().map(|len| Module { file: vec![1; *len].into(), cmdline: "x".into() }).collect();
        let kernel = OsImage { modules, ..image(with_elf(true, &header)) };
        let ram = Ram::of(mib << 20);
        lie_in_memory_and_apart(kernel.place(ram, Some(RSDP)).expect("it fits"), ram)?;
    }

    /// Headers whose checksum is right again after the damage, so that it is not refused for that.
    #[test]
    fn no_file_panics(kind in 0..5, flips in prop::collection::vec((0..400_usize, any::<u8>()), 0..12), random: [u32; 5]) {
        let mut file = match kind {
            0 => flat(&v1(1 << 16, &random), 0x200),
            1 => flat(&v2(&[(2, 0, &random[..4]), (3, 0, &random[4..])]), 0x200),
            2 => with_sections(true, random[0] % 1000),
            3 => with_sections(false, random[0] % 1000),
            _ => with_elf(false, &v2(&[(10, 0, &random[..4]), (1, 0, &random)])),
        };
        for (at, value) in flips {
            let len = file.len();
            file[at % len] = value;
        }
        for at in (0..file.len() - 16).step_by(4) {
            let word = |offset| u32_at(&file, at + offset).expect("inside");
            match word(0) {
                0x1bad_b002 => {
                    let sum = word(0).wrapping_add(word(4));
                    put_u32(&mut file, at + 8, 0_u32.wrapping_sub(sum));
                }
                0xe852_50d6 => {
                    let sum = word(0).wrapping_add(word(4)).wrapping_add(word(8));
                    put_u32(&mut file, at + 12, 0_u32.wrapping_sub(sum));
                }
                _ => {}
            }
        }
        let _result = placed(&image(file));
    }
}
