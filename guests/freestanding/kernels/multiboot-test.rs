//! The Multiboot test kernel: a program with headers of both versions.
//!
//! It prints its arguments, its modules with their strings, lengths and CRC-32s, and the memory map; checks that the modules
//! are those that its arguments tell of, and that the map is sound; then starts the APs by the universal start-up algorithm with
//! its delays, all at a time, as `many` does. Then it reads from the virtio devices of its machine, if there are any. Its arguments:
//!
//! * `expect-module=1A2B3C4D`: the CRC-32 of a module, in their order. If there is any, there must be as many as modules.
//! * `debug-exit=16`: what to write to the debug-exit device when all is well; one more when a test failed. Where there is no
//!   such device, it powers off.
#![no_std]
#![no_main]

mod crc32;
mod information;
mod virtio;

use information::{Information, Region, Text, memory_holds};
use runtime::console::Line;
use runtime::report::{TEST_MEMORY_MAP, TEST_MODULES, test};
use runtime::scenario::{debug_exit, start_all_at_a_time};
use runtime::{Bsp, enable_interrupts, test_counters};

runtime::guest!("multiboot-test", main);

/// What it writes to the debug-exit device if its arguments do not say.
const DEFAULT_STATUS: u32 = 16;

fn main(bsp: Bsp) -> ! {
    let Some(information) = Information::from_loader() else {
        Line.text("no Multiboot loader loaded this").end();
        test(TEST_MODULES, None, false);
        debug_exit(0, DEFAULT_STATUS + 1)
    };
    // All of it before anything is written below 1 MiB, where other loaders have it.
    print_loader_and_arguments(&information);
    let modules = test(TEST_MODULES, None, modules_are_as_expected(&information));
    let map = test(TEST_MEMORY_MAP, None, map_is_sound(&information));
    let status = argument(&information, "debug-exit=", 0).map_or(DEFAULT_STATUS, Text::decimal);

    let aps = bsp.aps();
    start_all_at_a_time(aps);
    enable_interrupts();
    let counters = test_counters(aps);
    let devices = virtio::read_all(&bsp);
    debug_exit(aps.len(), if modules && map && counters && devices { status } else { status + 1 })
}

fn print_loader_and_arguments(information: &Information) {
    Line.text("Multiboot ")
        .decimal(information.version())
        .text(", loaded by ")
        .bytes(information.loader_name().bytes())
        .end();
    for argument in information.command_line().words() {
        Line.text("argument: ").bytes(argument.bytes()).end();
    }
}

/// The value of the argument with this prefix, of those that have it the one with this number.
fn argument(information: &Information, prefix: &str, number: usize) -> Option<Text> {
    information.command_line().words().filter_map(|word| word.after(prefix)).nth(number)
}

fn modules_are_as_expected(information: &Information) -> bool {
    const PAGE: u32 = 4096;
    let expected = |number| argument(information, "expect-module=", number).map(Text::hex);
    let (mut modules, mut all_right) = (0, true);
    information.modules(|module| {
        let crc = crc32::of_memory(module.start, module.end);
        Line.text("module ")
            .decimal(modules)
            .text(": \"")
            .bytes(module.string.bytes())
            .text("\", ")
            .decimal(module.end.wrapping_sub(module.start))
            .text(" bytes, CRC-32 ")
            .hex(crc.into())
            .text(", at ")
            .hex(module.start.into())
            .end();
        all_right &= expected(modules as usize).is_none_or(|expected| expected == crc);
        all_right &= module.start.is_multiple_of(PAGE);
        modules += 1;
    });
    let as_many = modules == 0 || expected(modules as usize - 1).is_some();
    all_right && expected(modules as usize).is_none() && (as_many || expected(0).is_none())
}

/// No two ranges overlap, none is empty or wraps; the kernel and its modules lie in usable ones and apart; and what is said
/// of the memory above 1 MiB in one number is right.
fn map_is_sound(information: &Information) -> bool {
    const ONE_MIB: u64 = 0x10_0000;
    let [lower, upper] = information.lower_and_upper_kib();
    Line.text("memory: ").decimal(lower).text(" KiB and ").decimal(upper).text(" KiB").end();
    let mut sound = true;
    information.regions(|region| {
        let Region { start, len, kind } = region;
        Line.text("map: ").hex(start).text(" + ").hex(len).text(", type ").decimal(kind).end();
        sound &= len != 0 && start.checked_add(len).is_some();
        let mut overlaps = 0;
        information.regions(|other| overlaps += u32::from(region.overlaps(&other)));
        // Itself.
        sound &= overlaps == 1;
        if region.is_usable() && start == ONE_MIB {
            sound &= u64::from(upper) == len / 1024;
        }
    });
    let kernel = Region::of_this_program();
    sound &= memory_holds(information, &kernel);
    information.modules(|module| {
        let range = module.range();
        sound &= module.start == module.end || memory_holds(information, &range) && !kernel.overlaps(&range);
    });
    sound
}
