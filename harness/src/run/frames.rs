//! Backtraces across the fence: a worker that panics cannot read this program's file to name the functions, but it can say
//! where they are. The runner, which is the same program, names them.

use std::ffi::c_void;
use std::fmt::Write as _;

/// How a line with addresses begins.
pub(super) const FRAMES: &str = "frames of spinup:";

/// Frames that are told.
const MOST: usize = 48;

/// A place in this program, from which addresses count: they differ between two processes of it. A static has one address,
/// where a function may have several.
static ANCHOR: u8 = 0;

/// The address of that place.
pub(super) fn anchor() -> usize {
    &raw const ANCHOR as usize
}

/// From now on, panics of this process are told with addresses for [`named`].
pub(super) fn tell_addresses() {
    std::panic::set_hook(Box::new(|info| {
        let trace = backtrace::Backtrace::new_unresolved();
        let mut line = String::from(FRAMES);
        for frame in trace.frames().iter().take(2 * MOST) {
            let _ = write!(line, " {:x}", (frame.ip() as usize).wrapping_sub(anchor()));
        }
        eprintln!("{info}\n{line}");
    }));
}

/// A text of a worker, with its lines of addresses as names.
pub(super) fn named(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix(FRAMES) {
            Some(addresses) => name(&mut out, addresses),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

fn name(out: &mut String, addresses: &str) {
    let mut told = 0;
    for address in addresses.split_whitespace().take(2 * MOST) {
        let Ok(offset) = usize::from_str_radix(address, 16) else {
            // It is in another file, whose name and offset are there already.
            let _ = writeln!(out, "  {address}");
            continue;
        };
        let address = anchor().wrapping_add(offset) as *mut c_void;
        backtrace::resolve(address, |symbol| {
            let name = symbol.name().map_or_else(|| "?".to_owned(), |name| format!("{name:#}"));
            // What a panic itself does is no news.
            let of_the_panic =
                ["backtrace::", "std::panicking", "core::panicking", "rust_begin_unwind", "std::backtrace"];
            if told >= MOST || of_the_panic.iter().any(|prefix| name.contains(prefix)) {
                return;
            }
            told += 1;
            let file = symbol.filename().map(|file| file.display().to_string()).unwrap_or_default();
            let place = symbol.lineno().map_or_else(|| file.clone(), |line| format!("{file}:{line}"));
            let _ = writeln!(out, "  {name}  {place}");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function that no optimizer merges with another or puts into it.
    #[inline(never)]
    fn known_by_name() -> u64 {
        std::hint::black_box(0x7e57_ab1e)
    }

    #[test]
    fn addresses_of_this_program_have_names() {
        assert_eq!(known_by_name(), 0x7e57_ab1e);
        let here = known_by_name as fn() -> u64 as usize + 1;
        let text = format!("before\n{FRAMES} {:x} libc.so.6+0x1f\nafter", here.wrapping_sub(anchor()));
        let named = named(&text);
        let lines: Vec<&str> = named.lines().collect();
        assert_eq!((lines.first(), lines.last()), (Some(&"before"), Some(&"after")));
        assert!(lines[1].contains("known_by_name"), "{named}");
        assert_eq!(lines[2], "  libc.so.6+0x1f");
    }
}
