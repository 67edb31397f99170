//! The init of a Linux guest: a static program without a library that tells the harness which CPUs the kernel brought up,
//! and puts them to work.
//!
//! As process 1 it mounts sysfs (to read which CPUs there are), tries the devices if their drivers are there ([`devices`]), and powers
//! the machine off at the end, or restarts it if the kernel's command line has the word `spinup-restart`; started by another
//! init it only tests and reports. What it says goes to its standard output for people, and to the report port for the
//! harness ([`report_port`]): `BOOT`, `CPUS_FOUND` (the CPUs that are present), for each AP `AP_AWAITED`, then `AP_ONLINE` *by a thread
//! on that AP*, or `AP_MISSING`; with all of them up four tests and `DONE`, else `GAVE_UP`.
//!
//! Every CPU is a thread that is bound to it, and that checks where it runs (`getcpu`, CPUID) before it says so.
#![no_std]
#![no_main]

mod builtins;
mod devices;
#[path = "../../vmm/src/trace/report_port.rs"]
#[allow(dead_code, reason = "the harness and other guests use the rest")]
mod report_port;
mod syscall;
mod threads;

use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use report_port::*;
use threads::{MAX_CPUS, Team};

/// How often each CPU increments a counter in the tests.
const ROUNDS: u32 = 2_000;
/// How often the token goes round in the ping-pong test.
const LAPS: u32 = 20;
/// What a CPU computes before it says that it is well.
const SUM_OF_CUBES: u64 = 25_502_500;

/// What to report when something is not as it has to be.
mod broken {
    /// No CPU list could be read from sysfs.
    pub const NO_SYSFS: u32 = 1;
    /// No leave to use I/O ports; nobody will ever read it.
    pub const NO_PORTS: u32 = 2;
    /// A thread could not be made.
    pub const NO_THREAD: u32 = 3;
    /// The program panicked.
    pub const PANIC: u32 = 4;
    /// The kernel has more CPUs than this program.
    pub const TOO_MANY_CPUS: u32 = 5;
}

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

extern "C" fn main(arguments: *const usize) -> ! {
    let first = syscall::getpid() == 1;
    if first {
        // Both fail where another has been before.
        syscall::mkdir(c"/sys");
        syscall::mount(c"sysfs", c"/sys", c"sysfs");
    }
    run();
    if first {
        devices::look();
        // SAFETY: this is what the kernel left on the stack for the program.
        if unsafe { has_argument(arguments, b"spinup-restart") } {
            syscall::restart();
        }
        syscall::power_off();
    }
    syscall::exit_group(0)
}

/// Whether a word of the kernel's command line that the kernel does not know itself is this one: those are the arguments of process 1.
///
/// # Safety
/// `arguments` is where the stack began: a count, then as many pointers to texts (System V ABI for AMD64, 3.4.1).
unsafe fn has_argument(arguments: *const usize, wanted: &[u8]) -> bool {
    // SAFETY: as the caller promises.
    let count = unsafe { *arguments };
    (1..=count).any(|i| {
        // SAFETY: likewise; the texts end with a zero and live as long as the program.
        let argument = unsafe { core::ffi::CStr::from_ptr(*arguments.add(i) as *const core::ffi::c_char) };
        argument.to_bytes() == wanted
    })
}

fn run() {
    if !syscall::iopl(3) {
        return broken(broken::NO_PORTS);
    }
    // "Switched APIC routing to physical x2apic."
    let x2apic = [&b"physical x2apic"[..], b"cluster x2apic"].into_iter().any(syscall::kernel_log_says);
    report(BOOT, x2apic);
    let lists = [c"/sys/devices/system/cpu/present", c"/sys/devices/system/cpu/online"];
    let [Some(present), Some(online)] = lists.map(CpuList::read) else {
        return broken(broken::NO_SYSFS);
    };
    if present.last() >= MAX_CPUS {
        return broken(broken::TOO_MANY_CPUS);
    }
    print!("spinup-init: {} of {} CPUs online\n", online.len(), present.len());
    report(CPUS_FOUND, present.len());

    let mut aps = 0;
    for cpu in present.iter() {
        if cpu != 0 {
            report(AP_AWAITED, cpu as u32);
        }
        let came = online.contains(cpu) && Team::of([cpu].into_iter()).run(introduce);
        if came {
            aps += u32::from(cpu != 0);
        } else {
            print!("spinup-init: cpu {cpu} is missing\n");
            report(AP_MISSING, cpu as u32);
        }
    }
    if aps + 1 != present.len() {
        return report(GAVE_UP, aps);
    }
    for (test, name, passed) in [
        (TEST_COUNTERS, "counters", counters as fn(&CpuList) -> bool),
        (TEST_SPIN_LOCK, "spin lock", spin_lock),
        (TEST_PING_PONG, "ping-pong", ping_pong),
        (TEST_TIMER, "timer", timer),
    ] {
        let passed = passed(&online);
        print!("spinup-init: {name} {}\n", if passed { "ok" } else { "failed" });
        report(if passed { TEST_PASSED } else { TEST_FAILED }, test);
    }
    print!("spinup-init: done\n");
    report(DONE, aps);
}

/// A CPU says that it is there, after some work.
fn introduce(cpu: usize) -> bool {
    let sum: u64 = (1..=100_u64).map(|i| core::hint::black_box(i) * i * i).sum();
    let here = syscall::getcpu() == cpu && sum == SUM_OF_CUBES;
    if !here {
        return false;
    }
    let apic_id = apic_id();
    print!("cpu {cpu} ok (APIC ID {apic_id})\n");
    if cpu != 0 {
        report(AP_ONLINE, apic_id);
    }
    true
}

/// The APIC ID of the CPU that asks: of leaf 0BH where there is one, which has all 32 bits (SDM 2A table 3-8).
fn apic_id() -> u32 {
    let extended = __cpuid(0).eax >= 0xb && __cpuid_count(0xb, 0).ebx != 0;
    if extended { __cpuid_count(0xb, 0).edx } else { __cpuid(1).ebx >> 24 }
}

/// Atomic counters incremented by every CPU add up.
fn counters(cpus: &CpuList) -> bool {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let ran = Team::of(cpus.iter()).run(|_| {
        for _ in 0..ROUNDS {
            COUNTER.fetch_add(1, SeqCst);
        }
        true
    });
    ran && COUNTER.load(SeqCst) == ROUNDS * cpus.len()
}

/// A spin lock keeps a variable consistent whose increments are not atomic.
fn spin_lock(cpus: &CpuList) -> bool {
    static LOCKED: AtomicBool = AtomicBool::new(false);
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let ran = Team::of(cpus.iter()).run(|_| {
        for _ in 0..ROUNDS {
            while LOCKED.swap(true, SeqCst) {
                core::hint::spin_loop();
            }
            // Two accesses: without the lock increments would be lost.
            COUNTER.store(COUNTER.load(SeqCst) + 1, SeqCst);
            LOCKED.store(false, SeqCst);
        }
        true
    });
    ran && COUNTER.load(SeqCst) == ROUNDS * cpus.len()
}

/// A token goes round all CPUs. Whoever waits for it sleeps, so the kernel sends an IPI for each step.
fn ping_pong(cpus: &CpuList) -> bool {
    static TOKEN: AtomicU32 = AtomicU32::new(0);
    static ORDER: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
    for (place, cpu) in cpus.iter().enumerate() {
        ORDER[cpu].store(place as u32, SeqCst);
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.store(cpus.len(), SeqCst);
    let ran = Team::of(cpus.iter()).run(|cpu| {
        for lap in 0..LAPS {
            let mine = lap * COUNT.load(SeqCst) + ORDER[cpu].load(SeqCst);
            loop {
                match TOKEN.load(SeqCst) {
                    token if token == mine => break,
                    token if !syscall::futex_wait(&TOKEN, token, threads::PATIENCE_S) => return false,
                    _ => {}
                }
            }
            TOKEN.store(mine + 1, SeqCst);
            syscall::futex_wake_all(&TOKEN);
        }
        true
    });
    ran && TOKEN.load(SeqCst) == LAPS * cpus.len()
}

/// Every CPU sleeps for 10 ms, and the clock agrees that it did: its timer interrupts.
fn timer(cpus: &CpuList) -> bool {
    const SLEEP_NS: u64 = 10_000_000;
    static LONGEST: AtomicU64 = AtomicU64::new(0);
    Team::of(cpus.iter()).run(|cpu| {
        let began = syscall::monotonic_ns();
        syscall::sleep_ns(SLEEP_NS);
        let slept = syscall::monotonic_ns() - began;
        LONGEST.fetch_max(slept, SeqCst);
        syscall::getcpu() == cpu && slept >= SLEEP_NS
    })
}

/// CPUs as sysfs lists them: `0-3,5`.
struct CpuList {
    text: [u8; 256],
    len: usize,
}

impl CpuList {
    fn read(path: &core::ffi::CStr) -> Option<CpuList> {
        let mut list = CpuList { text: [0; 256], len: 0 };
        list.len = syscall::read_file(path, &mut list.text)?;
        (list.len() > 0).then_some(list)
    }

    fn ranges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let number = |digits: &[u8]| digits.iter().fold(0_usize, |n, digit| n * 10 + usize::from(digit - b'0'));
        let text = self.text[..self.len].trim_ascii();
        text.split(|&byte| byte == b',').filter(|range| !range.is_empty()).map(move |range| {
            let mut ends = range.split(|&byte| byte == b'-');
            let first = ends.next().map_or(0, number);
            (first, ends.next().map_or(first, number))
        })
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges().flat_map(|(first, last)| first..=last)
    }

    fn len(&self) -> u32 {
        self.iter().count() as u32
    }

    fn last(&self) -> usize {
        self.iter().max().unwrap_or(0)
    }

    fn contains(&self, cpu: usize) -> bool {
        self.iter().any(|listed| listed == cpu)
    }
}

fn report(code: u8, payload: impl Into<u32>) {
    syscall::out32(REPORT_PORT, u32::from(code) << 24 | payload.into() & 0xff_ffff);
}

fn broken(code: u32) {
    print!("spinup-init: broken, code {code}\n");
    report(BROKEN, code);
}

/// One line in one system call, so that lines of two CPUs do not mix.
struct Line {
    text: [u8; 120],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

fn print_line(arguments: fmt::Arguments<'_>) {
    let mut line = Line { text: [0; 120], len: 0 };
    // It never fails: what has no room is left out.
    let _cut = line.write_fmt(arguments);
    syscall::write(1, &line.text[..line.len]);
}

#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::print_line(format_args!($($arguments)*)) };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    print!("spinup-init: {}\n", info.message());
    broken(broken::PANIC);
    syscall::power_off()
}
