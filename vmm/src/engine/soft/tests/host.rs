//! Runs one instruction on the host's own processor with all of its user-mode state: general registers, flags, x87 and SSE,
//! and tells which exception it raised. Code of 32 and of 16 bits runs in segments of the process's LDT, which a far jump
//! enters and leaves.
#![allow(unsafe_code, reason = "runs generated machine code on the host, and takes the signals of its faults")]

use iced_x86::code_asm::*;
use iced_x86::{Code, Encoder};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// Where the data that instructions work on lies, on the host and in the guest: three pages.
pub(super) const DATA: u64 = 0x4000_0000;
pub(super) const DATA_LEN: usize = 0x3000;
/// Where the instruction lies, on the host and in the guest.
pub(super) const SLOT: u64 = CODE + 0x400;
/// Where branches go.
pub(super) const TARGET: u64 = SLOT + 0x100;
/// Where short branches go.
pub(super) const NEAR_TARGET: u64 = SLOT + 0x40;
/// The page of the instruction.
pub(super) const CODE: u64 = 0x4100_0000;
/// Selectors of Linux's flat segments for user mode (arch/x86/include/asm/segment.h).
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2B;
/// Where the stub is that enters code of 32 and 16 bits, and where what follows a branch is.
const ENTRY_NARROW: u64 = CODE + 0x200;
const BRANCHED: u64 = CODE + 0x900;
const EXIT: u64 = CODE + 0xA00;
const END: u64 = CODE + 0xE00;
const STATE: u64 = 0x4200_0000;

/// Everything that an instruction may read and write but memory.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// As FXSAVE64 stores it.
    pub(super) fpu: [u8; 512],
    pub(super) regs: [u64; 16],
    pub(super) flags: u64,
    /// It went to [`TARGET`].
    pub(super) branched: u64,
}

impl State {
    /// Leaves what code of 32 and 16 bits has.
    pub(super) fn narrow(&mut self) {
        self.regs[..8].iter_mut().for_each(|value| *value &= 0xFFFF_FFFF);
        self.regs[8..].fill(0);
    }
}

/// What the stub and the signal handler share with the caller.
#[repr(C, align(64))]
struct Shared {
    state: State,
    host_rsp: u64,
    fault: u64,
    /// Where the entry for code of 32 and 16 bits jumps to: offset and selector.
    narrow: (u32, u32),
}

/// Vector and page-fault-style error code of an exception.
pub(super) type Fault = u8;

thread_local! {
    /// Whether an instruction under test runs in this thread.
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// An executable page with the stub, and the pages that it works on.
pub(super) struct HostCpu {
    /// Whether the LDT has the segments for code of 32 and 16 bits.
    has_ldt: bool,
    /// The addresses are fixed: one test at a time.
    _turn: MutexGuard<'static, ()>,
    /// The signal handler's stack: the stack pointer is the test's to choose.
    _stack: Vec<u8>,
}

fn map(at: u64, len: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new anonymous mapping at an address that nothing else uses (NOREPLACE).
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_eq!(mapped as u64, at, "{}", std::io::Error::last_os_error());
}

fn shared() -> *mut Shared {
    STATE as *mut Shared
}

const REGS_AT: u64 = STATE + std::mem::offset_of!(Shared, state) as u64 + std::mem::offset_of!(State, regs) as u64;
const FLAGS_AT: u64 = STATE + std::mem::offset_of!(Shared, state) as u64 + std::mem::offset_of!(State, flags) as u64;
const BRANCHED_AT: u64 =
    STATE + std::mem::offset_of!(Shared, state) as u64 + std::mem::offset_of!(State, branched) as u64;
const HOST_RSP_AT: u64 = STATE + std::mem::offset_of!(Shared, host_rsp) as u64;
const NARROW_AT: u64 = STATE + std::mem::offset_of!(Shared, narrow) as u64;

/// General registers by their numbers in instructions.
const GPRS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
/// What the calling convention wants saved.
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

fn assemble(at: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits");
    build(&mut assembler).expect("code that exists");
    assembler.assemble(at).expect("code that can be encoded")
}

fn put_code(at: u64, bytes: &[u8]) {
    // SAFETY: inside the executable page that `HostCpu::new` mapped.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

/// Takes the signal of a fault of the instruction under test: notes what happened and goes on behind it.
extern "C" fn on_fault(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !ARMED.get() {
        // Somebody else's fault: it happens again, and ends the process as it would have.
        // SAFETY: plain system call.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel hands a valid context to the handler; the shared page is this thread's while an instruction runs.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let gregs = &mut context.uc_mcontext.gregs;
        let shared = &mut *shared();
        const ORDER: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        for (place, register) in shared.state.regs.iter_mut().zip(ORDER) {
            *place = gregs[register as usize] as u64;
        }
        shared.state.flags = gregs[libc::REG_EFL as usize] as u64;
        shared.state.fpu.copy_from_slice(std::slice::from_raw_parts(context.uc_mcontext.fpregs.cast::<u8>(), 512));
        shared.fault = gregs[libc::REG_TRAPNO as usize] as u64;
        gregs[libc::REG_RIP as usize] = END as i64;
        let segments = gregs[libc::REG_CSGSFS as usize] as u64 & 0x0000_FFFF_FFFF_0000;
        gregs[libc::REG_CSGSFS as usize] = (segments | u64::from(USER_SS) << 48 | u64::from(USER_CS)) as i64;
        gregs[libc::REG_RSP as usize] = shared.host_rsp as i64;
        gregs[libc::REG_EFL as usize] = 0x202;
    }
}

impl HostCpu {
    /// Waits until no other test has one.
    pub(super) fn new() -> HostCpu {
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed has left nothing behind.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        map(DATA, DATA_LEN, libc::PROT_READ | libc::PROT_WRITE);
        map(STATE, 0x1000, libc::PROT_READ | libc::PROT_WRITE);
        map(CODE, 0x1000, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        let entry = assemble(CODE, |a| {
            enter(a)?;
            load_registers(a)?;
            a.jmp(SLOT)
        });
        put_code(CODE, &entry);
        let entry = assemble(ENTRY_NARROW, |a| {
            enter(a)?;
            a.mov(eax, dword_ptr(NARROW_AT + 4))?;
            // The data segments follow the code segment of as many bits in the LDT.
            a.add(eax, 8)?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            a.mov(ss, eax)?;
            load_registers(a)?;
            a.jmp(fword_ptr(NARROW_AT))
        });
        put_code(ENTRY_NARROW, &entry);
        let branched = assemble(BRANCHED, |a| {
            a.mov(dword_ptr(BRANCHED_AT), 1)?;
            a.jmp(EXIT)
        });
        put_code(BRANCHED, &branched);
        let leave = assemble(EXIT, |a| {
            for (i, register) in GPRS.into_iter().enumerate() {
                a.mov(qword_ptr(REGS_AT + 8 * i as u64), register)?;
            }
            a.mov(rsp, qword_ptr(HOST_RSP_AT))?;
            a.pushfq()?;
            a.pop(qword_ptr(FLAGS_AT))?;
            a.fxsave64(ptr(STATE))?;
            a.jmp(END)
        });
        put_code(EXIT, &leave);
        let end = assemble(END, |a| {
            a.mov(eax, u32::from(USER_SS))?;
            a.mov(ss, eax)?;
            a.xor(eax, eax)?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            a.fninit()?;
            a.push(0x1F80)?;
            a.ldmxcsr(dword_ptr(rsp))?;
            a.pop(rax)?;
            a.cld()?;
            for register in SAVED.into_iter().rev() {
                a.pop(register)?;
            }
            a.ret()
        });
        put_code(END, &end);
        let mut stack = vec![0; 0x1_0000];
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        // SAFETY: the stack lives as long as the `HostCpu`, which does not leave its thread.
        assert_eq!(unsafe { libc::sigaltstack(&alternate, std::ptr::null_mut()) }, 0);
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(|| {
            for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS] {
                // SAFETY: a zeroed sigaction is a valid one, and the handler has the signature that SA_SIGINFO asks for.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = on_fault as *const () as usize;
                    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                    assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
                }
            }
        });
        HostCpu { has_ldt: fill_ldt(), _turn: turn, _stack: stack }
    }

    /// The data area.
    pub(super) fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new` for the rest of the process; the borrow of `self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN) }
    }

    /// Whether the host runs code of this many bits.
    pub(super) fn has_segments(&self, bits: u32) -> bool {
        bits == 64 || self.has_ldt
    }

    /// Executes an instruction of user mode that touches no memory but the data area and leaves segments alone.
    pub(super) fn run(&mut self, bits: u32, instruction: &[u8], state: &State) -> (State, Option<Fault>) {
        let mut code = instruction.to_vec();
        code.extend(jump(bits, SLOT + code.len() as u64, EXIT));
        put_code(SLOT, &code);
        for target in [NEAR_TARGET, TARGET] {
            put_code(target, &jump(bits, target, BRANCHED));
        }
        let (entry, code_segment) = match bits {
            64 => (CODE, 0),
            32 => (ENTRY_NARROW, selector(CODE_32)),
            _ => (ENTRY_NARROW, selector(CODE_16)),
        };
        let narrow = ((SLOT - CODE) as u32, u32::from(code_segment));
        const NO_FAULT: u64 = u64::MAX;
        // SAFETY: the page is mapped, and nobody else uses it.
        let (mut state, fault) = unsafe {
            shared().write(Shared { state: state.clone(), host_rsp: 0, fault: NO_FAULT, narrow });
            let stub: extern "C" fn() = std::mem::transmute(entry as *const ());
            ARMED.set(true);
            stub();
            ARMED.set(false);
            let result = std::ptr::read_volatile(shared());
            (result.state, (result.fault != NO_FAULT).then_some(result.fault as Fault))
        };
        if bits != 64 {
            state.narrow();
        }
        (state, fault)
    }
}

/// What the entries begin with: saves the host's registers, loads x87, SSE and flags.
fn enter(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    for register in SAVED {
        a.push(register)?;
    }
    a.mov(qword_ptr(HOST_RSP_AT), rsp)?;
    a.fxrstor64(ptr(STATE))
}

/// Loads the flags, and last the general registers.
fn load_registers(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.push(qword_ptr(FLAGS_AT))?;
    a.popfq()?;
    for (i, register) in GPRS.into_iter().enumerate() {
        a.mov(register, qword_ptr(REGS_AT + 8 * i as u64))?;
    }
    Ok(())
}

/// A jump from code of this many bits at `at` to a stub of 64 bits.
fn jump(bits: u32, at: u64, to: u64) -> Vec<u8> {
    if bits == 64 {
        return assemble(at, |a| a.jmp(to));
    }
    let far = iced_x86::Instruction::with_far_branch(Code::Jmp_ptr1632, USER_CS, to as u32).expect("a far jump");
    let mut encoder = Encoder::new(bits);
    encoder.encode(&far, at).expect("a far jump of 32 bits");
    encoder.take_buffer()
}

/// Entries of the LDT: code, and data behind it.
const CODE_32: u32 = 0;
const CODE_16: u32 = 2;

/// The selector of an entry of the LDT for ring 3 (SDM 3A 3.4.2).
fn selector(entry: u32) -> u16 {
    (entry << 3 | 7) as u16
}

/// Gives the process segments of 32 and 16 bits in its LDT; `false` where the host does not.
fn fill_ldt() -> bool {
    /// `struct user_desc` (arch/x86/include/uapi/asm/ldt.h).
    #[repr(C)]
    struct UserDesc {
        entry_number: u32,
        base: u32,
        limit: u32,
        flags: u32,
    }
    const WRITE: libc::c_long = 0x11;
    const IS_CODE: u32 = 2 << 1;
    [CODE_32, CODE_16].into_iter().all(|entry| {
        let is_32 = u32::from(entry == CODE_32);
        let code = UserDesc { entry_number: entry, base: CODE as u32, limit: 0xFFF, flags: is_32 | IS_CODE };
        let data = UserDesc { entry_number: entry + 1, base: DATA as u32, limit: DATA_LEN as u32 - 1, flags: is_32 };
        [code, data].iter().all(|desc| {
            // SAFETY: the call reads one structure; segments of the LDT matter to nothing but the code under test.
            let result =
                unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, std::ptr::from_ref(desc), size_of::<UserDesc>()) };
            result as i32 == 0
        })
    })
}

impl Drop for HostCpu {
    fn drop(&mut self) {
        let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the thread is on its own stack here.
        unsafe { libc::sigaltstack(&none, std::ptr::null_mut()) };
        for (at, len) in [(DATA, DATA_LEN), (STATE, 0x1000), (CODE, 0x1000)] {
            // SAFETY: mapped by `new`; nothing refers to it any more.
            unsafe { libc::munmap(at as *mut libc::c_void, len) };
        }
    }
}
