//! Reads and writes at random, on every CPU at once: I/O ports, the registers of the local APIC, the I/O APIC and the HPET, PCI
//! configuration by both mechanisms, the hole where no memory is, MSRs. Interrupts that result are taken and forgotten.
//!
//! The seed, how many accesses there are, and the flavour stand in its ROM. The tame flavour spares what ends the machine: the
//! bits that power off or reset, INIT and STARTUP, sizes and values that bhyve or vmm answer by giving up. So it ends when all
//! accesses are made, reports DONE and powers off, if the machine can still do that. The wild one spares nothing.
//!
//! The architecture asks nothing but that the machine goes on or ends; what a device does with nonsense is its own affair.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use runtime::parameters::{ACCESSES, Parameters, SEED, WILD};
use runtime::pci::{CONFIG_ADDRESS, CONFIG_DATA, CONFIG_ENABLE};
use runtime::report::REPORT_PORT;
use runtime::scenario::{ask_for, done, start_all};
use runtime::{Ap, Bsp, TRAMPOLINE_VECTOR, broken, pause, port, stop};

runtime::guest!("random-io", main, ap = work);

static PARAMETERS: Parameters = Parameters::new([1, 5_000, 0, 0]);

/// What it is about, for those that begin later; set before [`BEGUN`].
static X2APIC: AtomicBool = AtomicBool::new(false);
static CPUS: AtomicU32 = AtomicU32::new(0);

/// How many CPUs are ready: no CPU makes an access while another is on its way up.
static READY: AtomicU32 = AtomicU32::new(0);
static BEGUN: AtomicBool = AtomicBool::new(false);
/// How many CPUs have made all their accesses.
static FINISHED: AtomicU32 = AtomicU32::new(0);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    let cpus = aps.len() as u32 + 1;
    X2APIC.store(bsp.x2apic(), Ordering::Relaxed);
    CPUS.store(cpus, Ordering::Relaxed);
    interrupts::fill();
    ask_for(aps.len());
    start_all(aps, TRAMPOLINE_VECTOR);
    interrupts::load();
    READY.fetch_add(1, Ordering::AcqRel);
    wait_for(&READY, cpus);
    BEGUN.store(true, Ordering::Release);
    access(bsp.cpu());
    FINISHED.fetch_add(1, Ordering::AcqRel);
    wait_for(&FINISHED, cpus);
    done(aps.len())
}

fn work(ap: &'static Ap) -> ! {
    interrupts::load();
    READY.fetch_add(1, Ordering::AcqRel);
    while !BEGUN.load(Ordering::Acquire) {
        pause();
    }
    access(ap);
    FINISHED.fetch_add(1, Ordering::AcqRel);
    stop()
}

/// The machine's own limit ends it when a CPU gets lost.
fn wait_for(count: &AtomicU32, cpus: u32) {
    while count.load(Ordering::Acquire) != cpus {
        pause();
    }
}

/// One CPU's share of the accesses.
fn access(cpu: &Ap) {
    let cpus = CPUS.load(Ordering::Relaxed);
    let all = PARAMETERS.read(ACCESSES);
    let share = all.checked_div(cpus).unwrap_or(all);
    let share = share + u32::from(cpu.number() < all - share * cpus);
    let seed = u64::from(PARAMETERS.read(SEED)) << 32 | u64::from(cpu.number());
    let mut random = Random::new(seed);
    let targets = Targets { x2apic: X2APIC.load(Ordering::Relaxed), wild: PARAMETERS.read(WILD) != 0 };
    for _ in 0..share {
        targets.one(&mut random);
    }
}

/// xorshift64* (Marsaglia: Xorshift RNGs, 2003; Vigna: An experimental exploration of Marsaglia's xorshift generators, 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        // Any state but 0 will do; seeds that differ little must not begin alike.
        Random((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        ((self.next() >> 32) * u64::from(bound) >> 32) as u32
    }

    fn flip(&mut self) -> bool {
        self.next() >> 63 != 0
    }

    /// What to write: any number, a small one, one bit, or all but one.
    fn value(&mut self) -> u64 {
        let number = self.next();
        match self.below(4) {
            0 => number,
            1 => number >> 56,
            2 => 1 << (number >> 58),
            _ => !(1 << (number >> 58)),
        }
    }
}

/// What is accessed, and how.
struct Targets {
    x2apic: bool,
    wild: bool,
}

/// A device's I/O ports.
struct Ports {
    first: u16,
    count: u16,
    /// Access sizes that the devices take, in bytes, added up: 1, 2 and 4.
    sizes: u8,
    can: Can,
}

/// Which accesses a device takes.
#[derive(Clone, Copy, PartialEq)]
enum Can {
    Both,
    Read,
    Write,
}

impl Ports {
    const fn new(first: u16, count: u16, sizes: u8, can: Can) -> Ports {
        Ports { first, count, sizes, can }
    }
}

/// The devices of a PC, bhyve's in particular.
static DEVICES: [Ports; 17] = [
    Ports::new(0x20, 2, 1, Can::Both),           // 8259, master
    Ports::new(0xa0, 2, 1, Can::Both),           // and slave
    Ports::new(0x4d0, 2, 1, Can::Both),          // their edge/level control
    Ports::new(0x40, 3, 1, Can::Both),           // 8254
    Ports::new(0x43, 1, 1, Can::Write),          // its control word
    Ports::new(0x61, 1, 1, Can::Both),           // port B
    Ports::new(0x70, 2, 1, Can::Both),           // clock
    Ports::new(0x60, 1, 1, Can::Both),           // 8042
    Ports::new(0x64, 1, 1, Can::Both),           // its status and command
    Ports::new(0x3f8, 8, 1, Can::Both),          // COM1
    Ports::new(0x400, 1, 2, Can::Both),          // PM1a status
    Ports::new(0x402, 1, 2, Can::Both),          // PM1a enable
    Ports::new(0x404, 1, 2, Can::Both),          // PM1a control
    Ports::new(0x408, 1, 4, Can::Read),          // PM timer
    Ports::new(0xb2, 1, 1, Can::Write),          // SMI command
    Ports::new(0xcf9, 1, 1, Can::Both),          // reset control
    Ports::new(CONFIG_ADDRESS, 1, 4, Can::Both), // PCI
];

/// What no tame access by chance goes to: the devices above with whatever surrounds them, and devices that end the machine.
static SPARED: [(u16, u16); 13] = [
    (0x20, 0x21),
    (0x40, 0x43),
    (0x60, 0x64),
    (0x70, 0x71),
    (0x92, 0x92), // system control port A, which resets
    (0xa0, 0xa1),
    (0xb2, 0xb3),
    (0xf4, 0xf4), // QEMU's debug exit
    (0x3f8, 0x40b),
    (0x4d0, 0x4d1),
    (0x510, 0x51b), // QEMU's fw_cfg
    (0xcf8, 0xcff),
    (REPORT_PORT, REPORT_PORT), // no lies
];

const ECAM: u32 = 0xe000_0000;
const IO_APIC: u32 = 0xfec0_0000;
const HPET: u32 = 0xfed0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where a PC has no memory but devices, if any: up to the I/O APIC.
const HOLE: (u32, u32) = (0xc000_0000, IO_APIC);
/// Above the guest's own 16 MiB, where the wild flavour begins.
const NOT_OURS: u32 = 0x100_0000;

const ICR_LOW: u32 = 0x300;
const ICR_DELIVERY_MODE: u32 = 0b111 << 8;
const ICR_NMI: u32 = 0b100 << 8;

/// Where bhyve's smallest command line has PCI functions, and one device more: 0:0.0, 0:5.0, 0:31.0.
static FUNCTIONS: [u32; 3] = [0, 5 << 3, 31 << 3];

/// MSRs that mean something: time stamp, APIC base, TSC_ADJUST, microcode, SYSENTER_CS, MISC_ENABLE, PAT, TSC_DEADLINE.
static MSRS: [u32; 8] = [0x10, 0x1b, 0x3b, 0x8b, 0x174, 0x1a0, 0x277, 0x6e0];

fn pick(from: &[u32], random: &mut Random) -> u32 {
    from.get(random.below(from.len() as u32) as usize).copied().unwrap_or_default()
}

impl Targets {
    /// One access, or two that belong together.
    fn one(&self, random: &mut Random) {
        match random.below(16) {
            0..=4 => self.device_port(random),
            5 => self.any_port(random),
            6 => self.config_port(random),
            7 => {
                let (offset, size) = (self.config_space(random), 1 << random.below(4));
                let offset = offset + random.below(4);
                self.memory(random, ECAM + offset, size);
            }
            8..=9 => self.local_apic(random),
            10 => self.io_apic(random),
            11 => {
                let offset = random.below(0x400 / 4) * 4;
                let size = if random.flip() { 4 } else { 8 };
                self.memory(random, HPET + offset, size);
            }
            12 => {
                let at = if self.wild { NOT_OURS } else { HOLE.0 };
                let end = if self.wild { u32::MAX - 8 } else { HOLE.1 - 8 };
                let at = at + random.below(end - at);
                let size = 1 << random.below(4);
                self.memory(random, at, size);
            }
            13..=14 => self.msr(random),
            _ => interrupts::let_in(),
        }
    }

    fn device_port(&self, random: &mut Random) {
        let Some(ports) = DEVICES.get(random.below(DEVICES.len() as u32) as usize) else { return };
        let port = ports.first + random.below(ports.count.into()) as u16;
        let size = if self.wild { 1 << random.below(3) } else { ports.sizes };
        let read = match ports.can {
            _ if self.wild => random.flip(),
            Can::Both => random.flip(),
            can => can == Can::Read,
        };
        self.port(random, port, size, read);
    }

    fn any_port(&self, random: &mut Random) {
        let port = random.next() as u16;
        if !self.wild && SPARED.iter().any(|&(first, last)| (first..=last).contains(&port)) {
            return;
        }
        let (size, read) = (1 << random.below(3), random.flip());
        self.port(random, port, size, read);
    }

    fn port(&self, random: &mut Random, port: u16, size: u8, read: bool) {
        let value = random.value() as u32;
        let value = if self.wild { value } else { tamed(port, value) };
        match (size, read) {
            (1, true) => drop(port::read_u8(port)),
            (2, true) => drop(port::read_u16(port)),
            (_, true) => drop(port::read_u32(port)),
            (1, false) => port::write_u8(port, value as u8),
            (2, false) => port::write_u16(port, value as u16),
            (_, false) => port::write_u32(port, value),
        }
    }

    /// An offset in the window of configuration space: bus 0 and its devices more often than others.
    fn config_space(&self, random: &mut Random) -> u32 {
        let bus = if random.below(8) == 0 { random.below(256) } else { 0 };
        let function = if random.flip() { pick(&FUNCTIONS, random) } else { random.below(256) };
        let register = if random.below(4) == 0 { random.below(1024) } else { random.below(64) };
        bus << 20 | function << 12 | register * 4
    }

    fn config_port(&self, random: &mut Random) {
        let offset = self.config_space(random);
        port::write_u32(CONFIG_ADDRESS, CONFIG_ENABLE | offset >> 4 & 0xff_ff00 | offset & 0xfc);
        let (data, size, read) = (CONFIG_DATA + random.below(4) as u16, 1 << random.below(3), random.flip());
        self.port(random, data, size, read);
    }

    fn local_apic(&self, random: &mut Random) {
        let register = if random.below(4) == 0 { ICR_LOW } else { random.below(0x400 / 16) * 16 };
        let value = random.value();
        let value = if register == ICR_LOW && !self.wild { tamed_icr(value) } else { value };
        if self.x2apic {
            let msr = 0x800 + register / 16;
            // What is reserved faults: some writes are to get further than that.
            let value = if random.flip() { value & 0xffff_000c_dfff } else { value };
            return if random.flip() { wrmsr(msr, value) } else { rdmsr(msr) };
        }
        let (size, offset) = if self.wild { (1 << random.below(4), random.below(16)) } else { (4, 0) };
        if random.flip() {
            write_memory(LOCAL_APIC + register + offset, size, value);
        } else {
            read_memory(LOCAL_APIC + register + offset, size);
        }
    }

    fn io_apic(&self, random: &mut Random) {
        // The select register, its window, and anything else now and then.
        let select = random.value() as u8;
        write_memory(IO_APIC, 4, if random.flip() { u64::from(select) } else { u64::from(select & 0x3f) });
        let at = if random.below(8) == 0 { random.below(0xff8) } else { 0x10 };
        let size = if random.below(8) == 0 { 1 << random.below(4) } else { 4 };
        self.memory(random, IO_APIC + at, size);
    }

    fn memory(&self, random: &mut Random, at: u32, size: u8) {
        if random.flip() {
            write_memory(at, size, random.value());
        } else {
            read_memory(at, size);
        }
    }

    fn msr(&self, random: &mut Random) {
        const EFER: u32 = 0xc000_0080;
        let offset = random.next() as u32;
        let msr = match random.below(8) {
            0..=1 => offset & 0x3ff,
            2 => 0x800 + (offset & 0x3f),
            3 => EFER + (offset & 0x7),
            4 => 0xc000_0100 + (offset & 0x7),
            5 => 0xc001_0000 + (offset & 0xff),
            6 => pick(&MSRS, random),
            _ => offset,
        };
        if random.flip() {
            return rdmsr(msr);
        }
        let value = random.value();
        let value = if msr == 0x830 && !self.wild { tamed_icr(value) } else { value };
        wrmsr(msr, value);
    }
}

/// The modes of the 8254 that vatpit.c has, as they stand in a control word.
static PIT_MODES: [u32; 4] = [0, 4, 6, 8];

/// The value without what ends the machine, or makes vmm or bhyve give up.
fn tamed(port: u16, value: u32) -> u32 {
    match port {
        // An initialization that is not for a cascaded 8259 with an ICW4 (vatpic.c), or an ICW4 that is not for the 8086.
        0x20 | 0xa0 if value & 0x10 != 0 => value & !2 | 1,
        0x21 | 0xa1 => value | 1,
        // A count of one byte, a mode that vatpit.c does not have, BCD.
        0x43 if value >> 6 & 3 != 3 && value & 0x30 != 0 => value & 0xc0 | 0x30 | PIT_MODES[value as usize & 3],
        // The century, and a halted clock: a date that is none is refused (vrtc.c).
        0x70 if value & 0x7f == 0x32 => value + 1,
        0x71 => value & 0x7f,
        // The pulse that resets, and the write of the output port, which has the line.
        0x64 if value & 0xff >= 0xf0 || value & 0xff == 0xd1 => 0xaa,
        // SLP_EN.
        0x404 => value & !(1 << 13),
        // The reset itself.
        0xcf9 => value & !4,
        _ => value,
    }
}

/// The ICR with a mode that disturbs nobody for good, and that every kernel handles: fixed or NMI.
fn tamed_icr(value: u64) -> u64 {
    let mode = if value & u64::from(ICR_NMI) != 0 { ICR_NMI } else { 0 };
    value & !u64::from(ICR_DELIVERY_MODE) | u64::from(mode)
}

/// An access that may fault has in R11 where it goes on then; see [`interrupts`].
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {
        // SAFETY: no Rust object lives where the devices are, and the MSRs that matter to the code here cannot be made to
        // stop it: the segment bases are not used, and long mode cannot be left by a WRMSR.
        unsafe {
            asm!("lea r11, [rip + 2f]", $instruction, "2:", $($operands)*, out("r11") _, options(nostack))
        }
    };
}

fn read_memory(at: u32, size: u8) {
    let at = u64::from(at);
    match size {
        1 => guarded!("mov {value}, byte ptr [{at}]", at = in(reg) at, value = out(reg_byte) _),
        2 => guarded!("mov {value:x}, word ptr [{at}]", at = in(reg) at, value = out(reg) _),
        4 => guarded!("mov {value:e}, dword ptr [{at}]", at = in(reg) at, value = out(reg) _),
        _ => guarded!("mov {value}, qword ptr [{at}]", at = in(reg) at, value = out(reg) _),
    }
}

fn write_memory(at: u32, size: u8, value: u64) {
    let at = u64::from(at);
    match size {
        1 => guarded!("mov byte ptr [{at}], {value}", at = in(reg) at, value = in(reg_byte) value as u8),
        2 => guarded!("mov word ptr [{at}], {value:x}", at = in(reg) at, value = in(reg) value),
        4 => guarded!("mov dword ptr [{at}], {value:e}", at = in(reg) at, value = in(reg) value),
        _ => guarded!("mov qword ptr [{at}], {value}", at = in(reg) at, value = in(reg) value),
    }
}

fn rdmsr(msr: u32) {
    guarded!("rdmsr", in("ecx") msr, out("eax") _, out("edx") _);
}

fn wrmsr(msr: u32, value: u64) {
    guarded!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32);
}

/// Every vector has a gate here: I/O APIC, 8259s and local APICs that have been written to at random use any.
///
/// Interrupts come at exceptions' vectors too, and without the error code. The processor aligns the stack to 16 bytes before it
/// pushes five words (SDM 3A 6.14.2), so that the alignment tells whether there is a sixth. What has one is a fault, and goes on
/// at R11 behind the access that faulted; anything else is an interrupt. Its handler returns with interrupts off, so that one that
/// comes again at once does not keep the CPU from going on.
mod interrupts {
    use super::{X2APIC, asm, broken, global_asm};
    use runtime::interrupts::{Idt, STUB_SIZE};

    const VECTORS: usize = 256;

    static IDT: Idt<VECTORS> = Idt::new();

    global_asm!(
        r#"
        .section .text.random_io_stubs, "ax", @progbits
        .balign 16
        .globl random_io_stubs
    random_io_stubs:
        .set vector, 0
        .rept {vectors}
        .balign {stub_size}
        push vector
        jmp random_io_common
        .set vector, vector + 1
        .endr

    random_io_common:
        push rax
        push rcx
        push rdx
        test spl, 8
        jz 5f
        cmp dword ptr [rsp + 24], {nmi}
        je 4f
        and dword ptr [rsp + 48], {interrupts_off}
        cmp byte ptr [{x2apic}], 0
        jne 2f
        mov eax, 0xfee000b0
        mov dword ptr [rax], 0
        jmp 3f
    2:  mov ecx, 0x80b
        xor eax, eax
        xor edx, edx
        wrmsr
    3:  mov al, 0x20
        out 0xa0, al
        out 0x20, al
    4:  pop rdx
        pop rcx
        pop rax
        add rsp, 8
        iretq
    5:  mov rax, r11
        sub rax, [rsp + 40]
        cmp rax, 15
        ja 6f
        mov [rsp + 40], r11
        pop rdx
        pop rcx
        pop rax
        add rsp, 16
        iretq
    6:  mov edi, [rsp + 24]
        call {unexpected}
    "#,
        vectors = const VECTORS,
        stub_size = const STUB_SIZE,
        nmi = const 2,
        interrupts_off = const !(1i32 << 9),
        x2apic = sym X2APIC,
        unexpected = sym unexpected,
    );

    extern "C" fn unexpected(vector: u32) -> ! {
        broken(0x100 | vector & 0xff)
    }

    /// Fills in the IDT, once for all CPUs.
    pub(super) fn fill() {
        unsafe extern "C" {
            safe static random_io_stubs: u8;
        }
        IDT.fill(&raw const random_io_stubs);
    }

    /// Loads the IDT into this CPU.
    pub(super) fn load() {
        IDT.load();
    }

    /// Takes an interrupt, if one is pending. Leaves interrupts off.
    pub(super) fn let_in() {
        // SAFETY: the handlers keep all registers, and STI lets nothing in before the instruction behind it is done.
        unsafe { asm!("sti", "nop", "cli") };
    }
}
