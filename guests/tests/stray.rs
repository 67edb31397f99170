//! CPUs that run where nobody sent them, one by one on the software processor: the ROM has to notice each.

use guests::Guest;
use std::sync::Arc;
use vmm::engine::soft::SoftEngine;
use vmm::engine::{Completion, CpuidEntry, Engine, EngineVcpu, EngineVm, Exit, Reg, SegDesc};
use vmm::memory::{Protection, Segment};
use vmm::trace::GuestReport;
use vmm::trace::report_port::REPORT_PORT;

const RAM: usize = 16 << 20;
/// CPUID.1:EDX of x86-64-v1: what the guests' way to long mode needs is among it.
const LEAF_1_EDX: u32 = 0x0783_fbff;
/// CPUID.8000_0001H:EDX: SYSCALL, NX, 1-Gbyte pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = 0x2c10_0800;
const FOUR_GIB: u64 = 4 << 30;

/// A machine with two CPUs: RAM, the ROM, an MP table, local APICs that take everything and do nothing.
struct Machine {
    vm: Arc<dyn EngineVm>,
    ram: Arc<Segment>,
    /// Advances with every look at it.
    pm_timer: u32,
}

impl Machine {
    fn new(guest: Guest) -> Machine {
        let vm = SoftEngine::new().create_vm().expect("the soft engine always can");
        let ram = Arc::new(Segment::new(RAM).expect("memory"));
        vm.map(0, &ram, 0, RAM as u64, Protection { write: true }).expect("a good mapping");
        let rom = Arc::new(Segment::new(guest.rom().len()).expect("memory"));
        assert!(rom.write(0, guest.rom()));
        let len = rom.len() as u64;
        vm.map(FOUR_GIB - len, &rom, 0, len, Protection { write: false }).expect("a good mapping");
        assert!(ram.write(0xf_0000, &mp_table()));
        Machine { vm, ram, pm_timer: 0 }
    }

    fn cpu(&self, id: u32) -> Box<dyn EngineVcpu> {
        let mut cpu = self.vm.create_vcpu(id).expect("the soft engine always can");
        let leaf = |leaf, regs| CpuidEntry { leaf, subleaf: None, regs };
        cpu.set_cpuid(&[
            leaf(0, [0xb, 0, 0, 0]),
            leaf(1, [0, id << 24, 0, LEAF_1_EDX]),
            leaf(0xb, [0, 0, 0, id]),
            leaf(0x8000_0000, [0x8000_0001, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, 0, EXTENDED_EDX]),
        ]);
        cpu
    }

    /// Runs a CPU until it stops for good: what it reported.
    fn run(&mut self, id: u32, cpu: &mut dyn EngineVcpu) -> Vec<GuestReport> {
        let mut reports = Vec::new();
        for _ in 0..1_000_000 {
            match cpu.run(1_000_000) {
                Exit::Hlt => return reports,
                Exit::IoOut { port: REPORT_PORT, data, .. } => {
                    reports.push(GuestReport::from_word(data));
                    cpu.complete(Completion::Done);
                }
                Exit::IoOut { .. } | Exit::MmioWrite { .. } => cpu.complete(Completion::Done),
                Exit::IoIn { port: 0x408, .. } => {
                    self.pm_timer += 1000;
                    cpu.complete(Completion::Value(self.pm_timer.into()));
                }
                Exit::IoIn { .. } => cpu.complete(Completion::Value(0xff)),
                Exit::RdMsr { index: 0x1b } => {
                    let bsp = if id == 0 { 0x100 } else { 0 };
                    cpu.complete(Completion::Value(0xfee0_0800 | bsp));
                }
                Exit::MmioRead { gpa, .. } => {
                    let value = if gpa == 0xfee0_0020 { id << 24 } else { 0 };
                    cpu.complete(Completion::Value(value.into()));
                }
                Exit::Budget | Exit::Pause | Exit::TprWrite { .. } => {}
                other => panic!("CPU {id} at {:#x}: {other:?}", cpu.reg(Reg::Rip)),
            }
        }
        panic!("CPU {id} never stops: {reports:?}")
    }

    /// Runs an AP from the reset vector.
    fn run_ap_at_reset(&mut self) -> Vec<GuestReport> {
        let mut cpu = self.cpu(1);
        self.run(1, &mut *cpu)
    }

    /// Runs an AP from a place in real mode.
    fn run_ap_at(&mut self, segment: u16, ip: u16) -> Vec<GuestReport> {
        let mut cpu = self.cpu(1);
        cpu.set_reg(Reg::Cs, segment.into());
        cpu.set_desc(Reg::Cs, SegDesc { base: u64::from(segment) << 4, limit: 0xffff, access: 0x93 });
        cpu.set_reg(Reg::Rip, ip.into());
        self.run(1, &mut *cpu)
    }
}

/// An MP floating pointer with a configuration table behind it: CPUs 0 and 1 (MP specification 4).
fn mp_table() -> Vec<u8> {
    let sum_up = |bytes: &mut [u8], at: usize| {
        bytes[at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    };
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&0xf_0010u32.to_le_bytes());
    (pointer[8], pointer[9]) = (1, 4);
    sum_up(&mut pointer, 10);
    let mut table = vec![0; 44];
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&84u16.to_le_bytes());
    table[34] = 2;
    for (id, flags) in [(0, 3), (1, 1)] {
        let mut processor = [0; 20];
        (processor[1], processor[3]) = (id, flags);
        table.extend(processor);
    }
    sum_up(&mut table, 7);
    [pointer.to_vec(), table].concat()
}

/// A machine on which a guest has run that starts nobody, and expects nobody anywhere.
fn after_init_only() -> Machine {
    let mut machine = Machine::new(Guest::InitOnly);
    let mut bsp = machine.cpu(0);
    let reports = machine.run(0, &mut *bsp);
    assert_eq!(reports.first(), Some(&GuestReport::Boot { x2apic: false }));
    assert_eq!(reports.last(), Some(&GuestReport::Done { aps: 0 }), "{reports:?}");
    machine
}

fn stray(vector: Option<u8>) -> Vec<GuestReport> {
    vec![GuestReport::Stray { apic_id: 1, vector }]
}

#[test]
fn an_ap_at_the_reset_vector_is_astray_even_before_the_bsp_was_there() {
    let mut machine = Machine::new(Guest::MpSpec);
    assert_eq!(machine.run_ap_at_reset(), stray(None));
    let mut machine = after_init_only();
    assert_eq!(machine.run_ap_at_reset(), stray(None));
}

#[test]
fn an_ap_in_a_page_that_no_startup_named_is_astray() {
    let mut machine = after_init_only();
    for page in 0..0x10u8 {
        assert_eq!(machine.run_ap_at(u16::from(page) << 8, 0), stray(Some(page)), "page {page:#x}");
    }
}

#[test]
fn an_ap_off_the_beginning_of_a_trampoline_is_astray() {
    let mut machine = after_init_only();
    for ip in [0x100, 0x800, 0xfff] {
        assert_eq!(machine.run_ap_at(0x0800, ip), stray(Some(8)), "offset {ip:#x}");
    }
    // An exception in real mode goes to 0, for nobody has set its vector.
    assert!(machine.ram.write(0x2_0000, &[0x0f, 0x0b]));
    assert_eq!(machine.run_ap_at(0x2000, 0), stray(Some(0)));
}

#[test]
fn the_bsp_at_the_reset_vector_again_is_astray_unless_the_guest_sent_it_there() {
    let mut machine = after_init_only();
    let mut bsp = machine.cpu(0);
    assert_eq!(machine.run(0, &mut *bsp), [GuestReport::Stray { apic_id: 0, vector: None }]);

    let mut machine = Machine::new(Guest::SelfInit);
    let mut bsp = machine.cpu(0);
    let ignored = machine.run(0, &mut *bsp);
    assert!(ignored.iter().any(|report| matches!(report, GuestReport::TestFailed { test: 14, .. })), "{ignored:?}");
    assert!(ignored.contains(&GuestReport::Seen { what: 8, apic_id: Some(0) }), "{ignored:?}");
    let mut again = machine.cpu(0);
    let by_shorthand = machine.run(0, &mut *again);
    assert_eq!(by_shorthand, [GuestReport::Seen { what: 7, apic_id: Some(0) }, GuestReport::Done { aps: 0 }]);
}
