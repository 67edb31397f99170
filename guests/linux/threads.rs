//! A thread for each CPU, bound to it.

use crate::{broken, print, syscall};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// How many CPUs there can be: their numbers are below this.
pub const MAX_CPUS: usize = 1024;
/// How long to wait for the threads of a team, in seconds.
pub const PATIENCE_S: u64 = 5;

const STACK_SIZE: usize = 8 << 10;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: each belongs to one thread at a time: a team is over before the next begins.
unsafe impl Sync for Stack {}

static STACKS: [Stack; MAX_CPUS] = [const { Stack(UnsafeCell::new([0; STACK_SIZE])) }; MAX_CPUS];

/// What the threads of a team do.
type Work = fn(usize) -> bool;

/// Threads that have not ended yet.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// Threads that were bound to their CPU, and did their work well.
static WELL: AtomicU32 = AtomicU32::new(0);

/// Some CPUs that are to do the same.
pub struct Team<I> {
    cpus: I,
}

impl<I: Iterator<Item = usize>> Team<I> {
    /// These CPUs.
    pub fn of(cpus: I) -> Team<I> {
        Team { cpus }
    }

    /// Lets all do their work side by side; whether each of them did it well, in time.
    pub fn run(self, work: Work) -> bool {
        WELL.store(0, SeqCst);
        let mut asked = 0;
        for cpu in self.cpus {
            RUNNING.fetch_add(1, SeqCst);
            let top = STACKS[cpu].0.get().wrapping_add(1).cast::<u8>();
            // SAFETY: the stack is this thread's alone, as above.
            if unsafe { spinup_clone(top, bound, work as *const (), cpu) } < 0 {
                RUNNING.fetch_sub(1, SeqCst);
                broken(broken::NO_THREAD);
                return false;
            }
            asked += 1;
        }
        loop {
            match RUNNING.load(SeqCst) {
                0 => break,
                left if !syscall::futex_wait(&RUNNING, left, PATIENCE_S) => {
                    print!("spinup-init: {left} CPUs are stuck\n");
                    return false;
                }
                _ => {}
            }
        }
        WELL.load(SeqCst) == asked
    }
}

/// The body of a thread.
extern "C" fn bound(work: *const (), cpu: usize) {
    // SAFETY: `run` made the pointer of a `Work`.
    let work: Work = unsafe { core::mem::transmute(work) };
    if syscall::bind_to(cpu) && work(cpu) {
        WELL.fetch_add(1, SeqCst);
    }
    RUNNING.fetch_sub(1, SeqCst);
    syscall::futex_wake_all(&RUNNING);
}

unsafe extern "C" {
    /// `clone` of a thread that calls `body(work, cpu)` on the stack that ends at `top`, and ends.
    fn spinup_clone(top: *mut u8, body: extern "C" fn(*const (), usize), work: *const (), cpu: usize) -> i64;
}

// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM.
global_asm!(
    ".globl spinup_clone",
    "spinup_clone:",
    "sub rdi, 32",
    "mov [rdi], rsi",
    "mov [rdi + 8], rdx",
    "mov [rdi + 16], rcx",
    "mov rsi, rdi",
    "mov edi, 0x50f00",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "pop rax",
    "pop rdi",
    "pop rsi",
    "add rsp, 8",
    "call rax",
    "xor edi, edi",
    "mov eax, 60",
    "syscall",
    "2:",
    "ret",
);
