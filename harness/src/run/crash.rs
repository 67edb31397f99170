//! What a worker says when a signal ends it that nobody sent for its own sake: a fault of the processor, or `abort`.
//!
//! The signal comes at any instruction, on any stack, so that the handler has a stack of its own, takes no memory and no lock,
//! and says what is certain before it looks for the callers. [`frames::named`](super::frames::named) names the places.
#![allow(unsafe_code, reason = "a signal's handler and its stack have no safe interface")]

use super::frames::{FRAMES, anchor};
use backtrace::trace_unsynchronized;
use libc::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, c_int, c_void, siginfo_t, ucontext_t};
use signal_hook::low_level::signal_name;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::OnceLock;

/// The signals.
const FATAL: [c_int; 5] = [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT];

/// Bytes of the handler's stack: the unwinder takes a few thousand, and the processor's state some more.
const STACK: usize = 128 << 10;

/// Callers that are told.
const CALLERS: usize = 40;

/// What of this process can be executed, as it was in the beginning.
static MODULES: OnceLock<Vec<Module>> = OnceLock::new();

/// A part of a file that can be executed.
struct Module {
    begin: usize,
    end: usize,
    /// Where the file's first byte would be.
    base: usize,
    /// The file's name without its folders; `None` for this program.
    name: Option<String>,
}

/// From now on, such a signal is told on standard error before it ends this process. Threads other than this one need a
/// stack for signals, which those of the standard library have.
///
/// # Errors
/// What the host refuses.
pub(super) fn tell() -> io::Result<()> {
    MODULES.get_or_init(|| modules(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default(), anchor()));
    let stack = Box::leak(vec![0u8; STACK].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is never freed, and nobody else has it.
    if unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in FATAL {
        // SAFETY: all zeroes are a `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        // Once: a fault in the handler ends the process, too.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        // SAFETY: the action is whole, and its handler has the signature that SA_SIGINFO asks for.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The lines of /proc/self/maps that can be executed; the one that holds `own` belongs to this program.
fn modules(maps: &str, own: usize) -> Vec<Module> {
    struct Mapping<'a> {
        begin: usize,
        end: usize,
        executable: bool,
        offset: usize,
        path: &'a str,
    }
    let mappings: Vec<Mapping<'_>> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (begin, end) = words.next()?.split_once('-')?;
            let executable = words.next()?.contains('x');
            let hex = |text: &str| usize::from_str_radix(text, 16).ok();
            let (begin, end, offset) = (hex(begin)?, hex(end)?, hex(words.next()?)?);
            Some(Mapping { begin, end, executable, offset, path: words.nth(2)? })
        })
        .collect();
    let own = mappings.iter().find(|mapping| (mapping.begin..mapping.end).contains(&own)).map(|mapping| mapping.path);
    mappings
        .iter()
        .filter(|mapping| mapping.executable)
        .map(|mapping| Module {
            begin: mapping.begin,
            end: mapping.end,
            base: mapping.begin.wrapping_sub(mapping.offset),
            name: (own != Some(mapping.path))
                .then(|| mapping.path.rsplit('/').next().unwrap_or(mapping.path).to_owned()),
        })
        .collect()
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: SA_SIGINFO hands over a siginfo_t and a ucontext_t.
    let (info, context) = unsafe { (&*info, &*context.cast::<ucontext_t>()) };
    let ip = instruction(context);
    let mut said = Line::new();
    let name = signal_name(signal).unwrap_or("a signal");
    // SAFETY: of a fault there is an address, and of a signal that was sent a sender.
    let _ = match unsafe { (info.si_code > 0, info.si_addr() as usize, info.si_pid()) } {
        (true, address, _) => write!(said, "\n{name} at instruction {ip:#x}, address {address:#x}\n{FRAMES}"),
        (false, _, pid) => write!(said, "\n{name} at instruction {ip:#x}, sent by process {pid}\n{FRAMES}"),
    };
    // One more than where it is: the others are where their callees return to, just after the calls.
    place(&mut said, ip.wrapping_add(1));
    said.flush();
    let (mut seen, mut told) = (false, 0);
    // SAFETY: this process has nothing else to do, and the unwinder takes neither locks nor memory (since glibc 2.35).
    unsafe {
        trace_unsynchronized(|frame| {
            let at = frame.ip() as usize;
            if seen {
                place(&mut said, at);
                told += 1;
            }
            // Before it are the frames of this handler.
            seen |= at == ip;
            told < CALLERS
        });
    }
    let _ = said.write_str("\n");
    said.flush();
    // A fault happens again when this returns; one that was sent has to be sent again. By default it ends the process.
    if info.si_code <= 0 {
        // SAFETY: it takes no memory, and the signal waits until this returns.
        unsafe { libc::raise(signal) };
    }
}

/// Where the processor was.
fn instruction(context: &ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
}

/// Says where an address is: in this program as a distance for [`super::frames`], else as file and offset.
fn place(said: &mut Line, address: usize) {
    let module = MODULES.get().and_then(|all| all.iter().find(|module| (module.begin..module.end).contains(&address)));
    let _ = match module {
        Some(Module { name: None, .. }) => write!(said, " {:x}", address.wrapping_sub(anchor())),
        Some(Module { name: Some(name), base, .. }) => write!(said, " {name}+{:#x}", address.wrapping_sub(*base)),
        None => write!(said, " ?+{address:#x}"),
    };
}

/// Text on its way to standard error.
struct Line {
    bytes: [u8; 2048],
    used: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; 2048], used: 0 }
    }

    fn flush(&mut self) {
        // SAFETY: the bytes are there. If nobody reads them any more, nobody wants to know.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.used) };
        self.used = 0;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_executed_is_known_with_its_file() {
        let maps = "1000-2000 r--p 00000000 fe:01 7 /opt/spinup\n2000-5000 r-xp 00001000 fe:01 7 /opt/spinup\n\
            9000-a000 r-xp 00002000 fe:01 8 /lib/libc.so.6\nb000-c000 rw-p 00000000 00:00 0 \nd000-e000 r-xp 00000000 00:00 0 [vdso]\n";
        let modules = modules(maps, 0x1800);
        let seen: Vec<_> = modules.iter().map(|it| (it.begin, it.end, it.base, it.name.as_deref())).collect();
        assert_eq!(
            seen,
            [
                (0x2000, 0x5000, 0x1000, None),
                (0x9000, 0xa000, 0x7000, Some("libc.so.6")),
                (0xd000, 0xe000, 0xd000, Some("[vdso]"))
            ]
        );
    }
}
