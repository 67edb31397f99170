//! The system calls of Linux on x86-64 that the init needs, by number (arch/x86/entry/syscalls/syscall_64.tbl).

use core::arch::asm;
use core::ffi::CStr;
use core::sync::atomic::AtomicU32;

/// A system call. Negative results are errors.
///
/// # Safety
/// The kernel does what the arguments say, to this program's memory too.
unsafe fn syscall(number: u64, arguments: [u64; 6]) -> i64 {
    let result;
    // SAFETY: the kernel keeps all registers but RAX, RCX and R11; the rest is the caller's.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as i64 => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

fn pointer<T: ?Sized>(to: &T) -> u64 {
    core::ptr::from_ref(to).cast::<u8>() as u64
}

/// `write`.
pub fn write(fd: u64, bytes: &[u8]) {
    // SAFETY: the kernel reads `bytes`.
    unsafe { syscall(1, [fd, pointer(bytes), bytes.len() as u64, 0, 0, 0]) };
}

/// `open` for reading, and for writing too; `None` when that is not to be had.
pub fn open(path: &CStr, writable: bool) -> Option<u64> {
    const READ_WRITE: u64 = 2;
    let flags = if writable { READ_WRITE } else { 0 };
    // SAFETY: the kernel reads the path.
    u64::try_from(unsafe { syscall(2, [pointer(path), flags, 0, 0, 0, 0]) }).ok()
}

/// `read`; `None` after an error.
pub fn read(fd: u64, room: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel writes into `room`, no more than its length.
    let len = unsafe { syscall(0, [fd, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0]) };
    usize::try_from(len).ok()
}

/// `close`.
pub fn close(fd: u64) {
    // SAFETY: the caller has no more use for it.
    unsafe { syscall(3, [fd, 0, 0, 0, 0, 0]) };
}

/// The beginning of a file; `None` when it cannot be read.
pub fn read_file(path: &CStr, room: &mut [u8]) -> Option<usize> {
    let fd = open(path, false)?;
    let len = read(fd, room);
    close(fd);
    len
}

/// `readlink`.
pub fn read_link(path: &CStr, room: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel reads the path, and writes into `room` no more than its length.
    let len = unsafe { syscall(89, [pointer(path), room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0]) };
    usize::try_from(len).ok()
}

/// `getdents64`: entries of an open directory; 0 bytes at its end.
pub fn read_directory(fd: u64, room: &mut [u8]) -> Option<usize> {
    // SAFETY: as in `read`.
    let len = unsafe { syscall(217, [fd, room.as_mut_ptr() as u64, room.len() as u64, 0, 0, 0]) };
    usize::try_from(len).ok()
}

/// `finit_module` without parameters.
pub fn load_module(fd: u64) -> bool {
    // SAFETY: the kernel reads the file and the empty text.
    unsafe { syscall(313, [fd, pointer(c""), 0, 0, 0, 0]) == 0 }
}

/// `socket` of the Internet's protocols.
pub fn socket(kind: u64, protocol: u64) -> Option<u64> {
    const AF_INET: u64 = 2;
    // SAFETY: it touches no memory.
    u64::try_from(unsafe { syscall(41, [AF_INET, kind, protocol, 0, 0, 0]) }).ok()
}

/// `ioctl` of a network interface (netdevice(7)).
pub fn interface_ioctl(fd: u64, request: u64, ifreq: &mut [u8; 40]) -> bool {
    // SAFETY: `struct ifreq` has 40 bytes, which the kernel reads and writes.
    unsafe { syscall(16, [fd, request, ifreq.as_mut_ptr() as u64, 0, 0, 0]) == 0 }
}

/// `setsockopt(SO_RCVTIMEO)`, in seconds.
pub fn set_receive_timeout(fd: u64, seconds: u64) {
    const SOL_SOCKET: u64 = 1;
    const SO_RCVTIMEO: u64 = 20;
    let time = Timespec { seconds, nanoseconds: 0 };
    // SAFETY: the kernel reads the time, which has the size of a timeval.
    unsafe { syscall(54, [fd, SOL_SOCKET, SO_RCVTIMEO, pointer(&time), size_of::<Timespec>() as u64, 0]) };
}

/// `sendto` an Internet address.
pub fn send_to(fd: u64, bytes: &[u8], address: &[u8; 16]) -> bool {
    // SAFETY: the kernel reads both.
    let sent = unsafe { syscall(44, [fd, pointer(bytes), bytes.len() as u64, 0, pointer(address), 16]) };
    sent == bytes.len() as i64
}

/// `mkdir`, mode 755.
pub fn mkdir(path: &CStr) {
    // SAFETY: the kernel reads the path.
    unsafe { syscall(83, [pointer(path), 0o755, 0, 0, 0, 0]) };
}

/// `mount` without flags.
pub fn mount(source: &CStr, target: &CStr, kind: &CStr) {
    // SAFETY: the kernel reads the three texts.
    unsafe { syscall(165, [pointer(source), pointer(target), pointer(kind), 0, 0, 0]) };
}

/// `getpid`.
pub fn getpid() -> i64 {
    // SAFETY: it touches nothing.
    unsafe { syscall(39, [0; 6]) }
}

/// `iopl`; whether it was granted. Threads made later inherit it.
pub fn iopl(level: u64) -> bool {
    // SAFETY: it changes no memory.
    unsafe { syscall(172, [level, 0, 0, 0, 0, 0]) == 0 }
}

/// OUT of 32 bits.
pub fn out32(port: u16, value: u32) {
    // SAFETY: the report port changes nothing in this machine; `iopl` has been called.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Binds the calling thread to one CPU.
pub fn bind_to(cpu: usize) -> bool {
    let mut mask = [0_u64; crate::threads::MAX_CPUS / 64];
    mask[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: the kernel reads the mask.
    unsafe { syscall(203, [0, size_of_val(&mask) as u64, pointer(&mask), 0, 0, 0]) == 0 }
}

/// The CPU that runs the calling thread.
pub fn getcpu() -> usize {
    let mut cpu = u32::MAX;
    // SAFETY: the kernel writes the number; the two null pointers are allowed.
    unsafe { syscall(309, [core::ptr::from_mut(&mut cpu) as u64, 0, 0, 0, 0, 0]) };
    cpu as usize
}

#[repr(C)]
struct Timespec {
    seconds: u64,
    nanoseconds: u64,
}

/// `nanosleep`.
pub fn sleep_ns(ns: u64) {
    let time = Timespec { seconds: ns / 1_000_000_000, nanoseconds: ns % 1_000_000_000 };
    // SAFETY: the kernel reads the time.
    unsafe { syscall(35, [pointer(&time), 0, 0, 0, 0, 0]) };
}

/// `clock_gettime(CLOCK_MONOTONIC)`.
pub fn monotonic_ns() -> u64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the kernel writes the time.
    unsafe { syscall(228, [1, core::ptr::from_mut(&mut time) as u64, 0, 0, 0, 0]) };
    time.seconds * 1_000_000_000 + time.nanoseconds
}

/// Sleeps while `word` has this value; `false` when it still has after so many seconds.
pub fn futex_wait(word: &AtomicU32, value: u32, seconds: u64) -> bool {
    const WAIT_PRIVATE: u64 = 128;
    const ETIMEDOUT: i64 = -110;
    let patience = Timespec { seconds, nanoseconds: 0 };
    // SAFETY: the kernel reads the word and the time.
    unsafe { syscall(202, [pointer(word), WAIT_PRIVATE, value.into(), pointer(&patience), 0, 0]) != ETIMEDOUT }
}

/// Wakes all that sleep on `word`.
pub fn futex_wake_all(word: &AtomicU32) {
    const WAKE_PRIVATE: u64 = 129;
    // SAFETY: the kernel takes the address for a name.
    unsafe { syscall(202, [pointer(word), WAKE_PRIVATE, i32::MAX as u64, 0, 0, 0]) };
}

/// Whether the kernel's log has this text.
pub fn kernel_log_says(text: &[u8]) -> bool {
    const READ_ALL: u64 = 3;
    static LOG: Log = Log(core::cell::UnsafeCell::new([0; 256 << 10]));
    struct Log(core::cell::UnsafeCell<[u8; 256 << 10]>);
    // SAFETY: only the first thread calls this function, before there are others.
    unsafe impl Sync for Log {}
    // SAFETY: as above; the kernel writes no more than the length.
    let log = unsafe { &mut *LOG.0.get() };
    // SAFETY: as above.
    let len = unsafe { syscall(103, [READ_ALL, log.as_mut_ptr() as u64, log.len() as u64, 0, 0, 0]) };
    usize::try_from(len).is_ok_and(|len| log[..len].windows(text.len()).any(|window| window == text))
}

/// Powers the machine off.
pub fn power_off() -> ! {
    reboot(0x4321_fedc)
}

/// Restarts the machine.
pub fn restart() -> ! {
    reboot(0x0123_4567)
}

fn reboot(command: u64) -> ! {
    const MAGIC: [u64; 2] = [0xfee1_dead, 0x2812_1969];
    // SAFETY: the machine is this program's alone.
    unsafe { syscall(169, [MAGIC[0], MAGIC[1], command, 0, 0, 0]) };
    exit_group(1)
}

/// Ends the program.
pub fn exit_group(status: u64) -> ! {
    loop {
        // SAFETY: it does not return.
        unsafe { syscall(231, [status, 0, 0, 0, 0, 0]) };
    }
}
