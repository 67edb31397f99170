//! What every engine has to do, as one body for each rule, to be run over all of them.
//!
//! Time limits are generous (`RUN`): an engine that needs one does not conform.

use super::*;
use crate::memory::PAGE_SIZE;
use iced_x86::code_asm::*;
use std::time::Duration;

/// Makes a test of each body, over the engine that an expression of type `Option<impl Engine>` gives; there is nothing to
/// test where it gives none.
macro_rules! conformance_tests {
    ($engine:expr) => {
        $crate::engine::conformance::conformance_tests! { $engine;
            real_mode_arithmetic
            port_output
            port_input
            string_input_element_by_element
            string_output_element_by_element
            mmio_read
            mmio_write
            mmio_read_modify_write
            mmio_string
            read_only_memory
            hlt_goes_on_behind
            msrs_of_the_local_apic_exit
            msr_access_may_fault
            msrs_that_the_engine_keeps_do_not_exit
            interrupt_window_opens_with_if
            interrupt_shadow_of_sti
            set_interrupt_shadow
            setting_rip_ends_the_interrupt_shadow
            a_write_in_flight_closes_the_window
            interrupt_through_the_ivt
            nmi_through_the_ivt
            an_nmi_closes_the_window
            exception_through_the_ivt
            setting_rip_drops_undelivered_events
            software_interrupt_and_fault
            triple_fault
            fetch_from_nowhere
            fetch_that_runs_out_of_memory
            unmapped_memory_is_gone
            kick_from_another_thread
            kick_before_the_run
            budget
            steps
            breakpoints
            breakpoints_in_long_mode
            many_breakpoints
            traps_leave_budgets_and_kicks_alone
            registers_round_trip
            descriptors_round_trip
            power_up_state
            setting_a_register_abandons_the_instruction
            setting_a_register_abandons_a_long_string_input
            registers_after_an_answer
            protected_mode
            virtual_8086_mode
            paging_in_protected_mode
            pae_paging
            long_mode
            fpu_state_round_trip
            fpu_image_in_a_guest
            fpu_traps
            from_real_mode_to_long_mode
            reset_from_long_mode
            user_mode_and_back
            user_mode_under_a_debugger
            task_priority
            cpuid
            two_vcpus_share_memory
        }
    };
    ($engine:expr; $($body:ident)*) => {
        $(
            #[test]
            fn $body() {
                if let Some(engine) = $engine {
                    $crate::engine::conformance::$body(&engine);
                }
            }
        )*
    };
}
pub(super) use conformance_tests;

/// Over the software processor; KVM's own tests are with it.
mod soft {
    super::conformance_tests!(Some(crate::engine::soft::SoftEngine::new()));
}

/// Budget of a run that is to end otherwise, in nanoseconds.
const RUN: u64 = 5_000_000_000;

/// Where code begins.
const CODE: u64 = 0x1000;
/// Where a second piece of code begins.
const HANDLER: u64 = 0x2000;
/// Top of the stack.
const STACK: u64 = 0x8000;
/// Page tables.
const TABLES: u64 = 0x1_0000;
/// Free for tests.
const DATA: u64 = 0x3000;
/// Size of the memory at 0.
const MEMORY: u64 = 0x8_0000;
/// An address without memory that real mode reaches.
const MMIO: u64 = 0xa_0000;

/// A vCPU in real mode at [`CODE`], all segments at 0, with memory.
struct Machine {
    vm: Arc<dyn EngineVm>,
    vcpu: Box<dyn EngineVcpu>,
    memory: Arc<Segment>,
}

impl Machine {
    fn new(engine: &dyn Engine, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
        Machine::with_code(engine, 16, code)
    }

    fn with_code(
        engine: &dyn Engine,
        bits: u32,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Machine {
        let vm = engine.create_vm().expect("a virtual machine");
        let memory = Arc::new(Segment::new(MEMORY as usize).expect("memory"));
        vm.map(0, &memory, 0, MEMORY, Protection { write: true }).expect("a mapping");
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        vcpu.set_cpuid(&cpuid_table());
        enter_real_mode(&mut *vcpu);
        let machine = Machine { vm, vcpu, memory };
        machine.assemble(CODE, bits, code);
        machine
    }

    fn assemble(&self, at: u64, bits: u32, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64 bits");
        code(&mut assembler).expect("instructions that exist");
        self.write(at, &assembler.assemble(at).expect("code that can be encoded"));
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        assert!(self.memory.write(gpa, bytes));
    }

    fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.memory.read(gpa, &mut bytes));
        bytes
    }

    /// Points a vector of the real mode's table at [`HANDLER`].
    fn set_vector(&self, vector: u8) {
        let [low, high] = (HANDLER as u16).to_le_bytes();
        self.write(u64::from(vector) * 4, &[low, high, 0, 0]);
    }

    /// Runs on to the next exit. Whether a loop is reported with PAUSE is up to the engine.
    fn run(&mut self) -> Exit {
        loop {
            match self.vcpu.run(RUN) {
                Exit::Pause => {}
                exit => return exit,
            }
        }
    }

    #[track_caller]
    fn expect(&mut self, exit: Exit) {
        assert_eq!(self.run(), exit, "at RIP {:#x}", self.vcpu.reg(Reg::Rip));
    }

    /// As [`Machine::expect`], for an exit that asks for something.
    #[track_caller]
    fn answer(&mut self, exit: Exit, completion: Completion) {
        self.expect(exit);
        self.vcpu.complete(completion);
    }

    fn ax(&mut self) -> u16 {
        self.vcpu.reg(Reg::Rax) as u16
    }
}

/// Real mode at [`CODE`], all segments at 0.
fn enter_real_mode(vcpu: &mut dyn EngineVcpu) {
    for reg in [Reg::Es, Reg::Cs, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs] {
        let mut desc = vcpu.desc(reg);
        desc.base = 0;
        vcpu.set_desc(reg, desc);
        vcpu.set_reg(reg, 0);
    }
    vcpu.set_reg(Reg::Rip, CODE);
    vcpu.set_reg(Reg::Rsp, STACK);
    vcpu.set_reg(Reg::Rflags, 2);
}

/// A processor with what the tests use, and nothing that any host lacks.
fn cpuid_table() -> Vec<CpuidEntry> {
    let entry = |leaf, regs| CpuidEntry { leaf, subleaf: None, regs };
    vec![
        entry(0, [7, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        // x2APIC; FPU, PSE, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, FXSR, SSE, SSE2.
        entry(1, [0x000f_0600, 0, 1 << 21, 0x0700_a379]),
        CpuidEntry { leaf: 7, subleaf: Some(0), regs: [0; 4] },
        entry(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        // SYSCALL, NX, long mode.
        entry(0x8000_0001, [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 29]),
        entry(0x8000_0008, [0x3028, 0, 0, 0]),
    ]
}

pub(super) fn real_mode_arithmetic(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, 1234)?;
        a.mov(bx, 77)?;
        a.mul(bx)?;
        a.add(ax, 5)?;
        a.adc(dx, 0)?;
        a.push(ax)?;
        a.pop(cx)?;
        a.mov(word_ptr(DATA), cx)?;
        a.cmp(ax, cx)?;
        a.hlt()
    });
    machine.expect(Exit::Hlt);
    let product = 1234 * 77 + 5;
    assert_eq!(u32::from(machine.ax()), product & 0xffff);
    assert_eq!(machine.vcpu.reg(Reg::Rdx) as u16, (product >> 16) as u16);
    assert_eq!(u16::from_le_bytes(machine.read(DATA)), product as u16);
    assert_eq!(machine.vcpu.reg(Reg::Rsp), STACK);
    assert_ne!(machine.vcpu.reg(Reg::Rflags) & 0x40, 0, "ZF");
    if let Some(instructions) = machine.vcpu.instructions() {
        assert_eq!(instructions, 10);
    }
}

pub(super) fn port_output(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(eax, 0x1234_5678)?;
        a.out(0x80, al)?;
        a.mov(dx, 0x5350)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.hlt()
    });
    machine.answer(Exit::IoOut { port: 0x80, size: 1, data: 0x78 }, Completion::Done);
    machine.answer(Exit::IoOut { port: 0x5350, size: 2, data: 0x5678 }, Completion::Done);
    machine.answer(Exit::IoOut { port: 0x5350, size: 4, data: 0x1234_5678 }, Completion::Done);
    machine.expect(Exit::Hlt);
}

pub(super) fn port_input(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(eax, 0x1111_1111)?;
        a.in_(al, 0x60)?;
        a.mov(ebx, eax)?;
        a.mov(dx, 0x1234)?;
        a.in_(ax, dx)?;
        a.mov(ecx, eax)?;
        a.in_(eax, dx)?;
        a.hlt()
    });
    machine.answer(Exit::IoIn { port: 0x60, size: 1 }, Completion::Value(0xffff_ffff_ffff_ff22));
    machine.answer(Exit::IoIn { port: 0x1234, size: 2 }, Completion::Value(0x3333));
    machine.answer(Exit::IoIn { port: 0x1234, size: 4 }, Completion::Value(0x4444_4444));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx), 0x1111_1122, "the rest of EAX stays");
    assert_eq!(machine.vcpu.reg(Reg::Rcx), 0x1111_3333);
    assert_eq!(machine.vcpu.reg(Reg::Rax), 0x4444_4444);
}

pub(super) fn string_input_element_by_element(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.cld()?;
        a.mov(dx, 0x1f0)?;
        a.mov(di, DATA as u32)?;
        a.mov(cx, 5)?;
        a.rep().insw()?;
        a.hlt()
    });
    for word in 0..5 {
        machine.answer(Exit::IoIn { port: 0x1f0, size: 2 }, Completion::Value(0x100 + word));
    }
    machine.expect(Exit::Hlt);
    assert_eq!(machine.read(DATA), [0, 1, 1, 1, 2, 1, 3, 1, 4, 1, 0, 0]);
    assert_eq!((machine.vcpu.reg(Reg::Rcx), machine.vcpu.reg(Reg::Rdi)), (0, DATA + 10));
}

pub(super) fn string_output_element_by_element(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.cld()?;
        a.mov(dx, 0x3f8)?;
        a.mov(si, DATA as u32)?;
        a.mov(cx, 3)?;
        a.rep().outsb()?;
        a.hlt()
    });
    machine.write(DATA, b"abc");
    for byte in b"abc" {
        machine.answer(Exit::IoOut { port: 0x3f8, size: 1, data: (*byte).into() }, Completion::Done);
    }
    machine.expect(Exit::Hlt);
    assert_eq!((machine.vcpu.reg(Reg::Rcx), machine.vcpu.reg(Reg::Rsi)), (0, DATA + 3));
}

pub(super) fn mmio_read(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, (MMIO >> 4) as u32)?;
        a.mov(ds, ax)?;
        a.mov(al, byte_ptr(0x11))?;
        a.mov(cx, word_ptr(0x22))?;
        a.mov(edx, dword_ptr(0x34))?;
        a.hlt()
    });
    machine.answer(Exit::MmioRead { gpa: MMIO + 0x11, size: 1 }, Completion::Value(0x5a));
    machine.answer(Exit::MmioRead { gpa: MMIO + 0x22, size: 2 }, Completion::Value(0x1234));
    machine.answer(Exit::MmioRead { gpa: MMIO + 0x34, size: 4 }, Completion::Value(0x89ab_cdef));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.ax(), (MMIO >> 4) as u16 & 0xff00 | 0x5a);
    assert_eq!((machine.vcpu.reg(Reg::Rcx) as u16, machine.vcpu.reg(Reg::Rdx)), (0x1234, 0x89ab_cdef));
}

pub(super) fn mmio_write(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, (MMIO >> 4) as u32)?;
        a.mov(es, ax)?;
        a.mov(byte_ptr(0).es(), al)?;
        a.mov(word_ptr(0xfffe).es(), ax)?;
        a.mov(dword_ptr(0x300).es(), 0x0008_c500u32)?;
        a.hlt()
    });
    let done = Completion::Done;
    machine.answer(Exit::MmioWrite { gpa: MMIO, size: 1, data: MMIO >> 4 & 0xff }, done);
    machine.answer(Exit::MmioWrite { gpa: MMIO + 0xfffe, size: 2, data: MMIO >> 4 }, done);
    machine.answer(Exit::MmioWrite { gpa: MMIO + 0x300, size: 4, data: 0x0008_c500 }, done);
    machine.expect(Exit::Hlt);
}

pub(super) fn mmio_read_modify_write(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, (MMIO >> 4) as u32)?;
        a.mov(ds, ax)?;
        a.or(word_ptr(0xf0), 0x100)?;
        a.hlt()
    });
    machine.answer(Exit::MmioRead { gpa: MMIO + 0xf0, size: 2 }, Completion::Value(0x00ff));
    machine.answer(Exit::MmioWrite { gpa: MMIO + 0xf0, size: 2, data: 0x01ff }, Completion::Done);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rflags) & 0x41, 0, "neither zero nor carry");
}

pub(super) fn mmio_string(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.cld()?;
        a.mov(ax, (MMIO >> 4) as u32)?;
        a.mov(ds, ax)?;
        a.xor(si, si)?;
        a.mov(di, DATA as u32)?;
        a.mov(cx, 2)?;
        a.rep().movsw()?;
        a.hlt()
    });
    machine.answer(Exit::MmioRead { gpa: MMIO, size: 2 }, Completion::Value(0x2211));
    machine.answer(Exit::MmioRead { gpa: MMIO + 2, size: 2 }, Completion::Value(0x4433));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.read(DATA), [0x11, 0x22, 0x33, 0x44, 0]);
}

pub(super) fn read_only_memory(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, 0xc000u32)?;
        a.mov(ds, ax)?;
        a.mov(bl, byte_ptr(3))?;
        a.mov(byte_ptr(3), al)?;
        a.mov(bh, byte_ptr(3))?;
        a.hlt()
    });
    let rom = Arc::new(Segment::new(3 * PAGE_SIZE as usize).expect("memory"));
    assert!(rom.write(PAGE_SIZE + 3, &[0x77]));
    machine.vm.map(0xc_0000, &rom, PAGE_SIZE, PAGE_SIZE, Protection { write: false }).expect("a mapping");
    machine.answer(Exit::MmioWrite { gpa: 0xc_0003, size: 1, data: 0 }, Completion::Done);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 0x7777);
}

pub(super) fn hlt_goes_on_behind(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.hlt()?;
        a.mov(ax, 1)?;
        a.hlt()
    });
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rip), CODE + 1);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.ax(), 1);
}

pub(super) fn msrs_of_the_local_apic_exit(engine: &dyn Engine) {
    for index in [0x1b, 0x6e0, 0x802, 0x830, 0x83f] {
        let mut machine = Machine::new(engine, |a| {
            a.mov(ecx, index)?;
            a.mov(edx, 0x1122_3344)?;
            a.mov(eax, 0x000c_4500)?;
            a.wrmsr()?;
            a.rdmsr()?;
            a.hlt()
        });
        machine.answer(Exit::WrMsr { index, value: 0x1122_3344_000c_4500 }, Completion::Done);
        machine.answer(Exit::RdMsr { index }, Completion::Value(0x5566_7788_fee0_0900));
        machine.expect(Exit::Hlt);
        assert_eq!(machine.vcpu.reg(Reg::Rax), 0xfee0_0900, "MSR {index:#x}");
        assert_eq!(machine.vcpu.reg(Reg::Rdx), 0x5566_7788);
    }
}

pub(super) fn msr_access_may_fault(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ecx, 0x83fu32)?;
        a.mov(eax, 0x600)?;
        a.xor(edx, edx)?;
        a.rdmsr()?;
        a.wrmsr()?;
        a.hlt()
    });
    machine.set_vector(13);
    machine.assemble(HANDLER, 16, |a| {
        a.inc(bx)?;
        a.mov(bp, sp)?;
        a.add(word_ptr(bp), 2)?; // both are two bytes long
        a.iret()
    });
    machine.answer(Exit::RdMsr { index: 0x83f }, Completion::GeneralProtection);
    machine.answer(Exit::WrMsr { index: 0x83f, value: 0x600 }, Completion::GeneralProtection);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 2);
    assert_eq!(machine.vcpu.reg(Reg::Rsp), STACK);
}

pub(super) fn msrs_that_the_engine_keeps_do_not_exit(engine: &dyn Engine) {
    // STAR, LSTAR, KERNEL_GS_BASE, SYSENTER_ESP.
    for index in [0xc000_0081u32, 0xc000_0082, 0xc000_0102, 0x175] {
        let mut machine = Machine::new(engine, |a| {
            a.mov(ecx, index)?;
            a.mov(edx, 0x0000_1122)?;
            a.mov(eax, 0x3344_5566)?;
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()?;
            a.hlt()
        });
        machine.expect(Exit::Hlt);
        assert_eq!(machine.vcpu.reg(Reg::Rax), 0x3344_5566, "MSR {index:#x}");
        assert_eq!(machine.vcpu.reg(Reg::Rdx), 0x1122, "MSR {index:#x}");
    }
}

/// Checks how far a loop of INC BX got before the window opened. Not every host's KVM looks at the window before each
/// instruction that it emulates, but an engine that counts instructions has no excuse.
#[track_caller]
fn expect_window_after(machine: &mut Machine, increments: u64) {
    machine.expect(Exit::InterruptWindow);
    assert!(machine.vcpu.interruptible());
    if machine.vcpu.instructions().is_some() {
        assert_eq!(machine.vcpu.reg(Reg::Rbx), increments);
    }
}

pub(super) fn interrupt_window_opens_with_if(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.nop()?;
        a.out(0x80, al)?;
        a.sti()?;
        busy_loop(a)
    });
    assert!(!machine.vcpu.interruptible());
    machine.vcpu.request_interrupt_window(true);
    machine.answer(Exit::IoOut { port: 0x80, size: 1, data: 0 }, Completion::Done);
    assert!(!machine.vcpu.interruptible());
    expect_window_after(&mut machine, 1); // the shadow of STI is one instruction long
    machine.expect(Exit::InterruptWindow);
    machine.vcpu.request_interrupt_window(false);
    assert_eq!(machine.vcpu.run(1_000_000), Exit::Budget);
}

pub(super) fn interrupt_shadow_of_sti(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.sti()?;
        a.hlt()?;
        a.hlt()
    });
    machine.vcpu.request_interrupt_window(true);
    machine.expect(Exit::Hlt);
    assert!(machine.vcpu.interruptible());
    assert_eq!(machine.vcpu.reg(Reg::IntrShadow), 0);
    machine.expect(Exit::InterruptWindow);
    assert_eq!(machine.vcpu.reg(Reg::Rip), CODE + 2);
}

pub(super) fn set_interrupt_shadow(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, busy_loop);
    machine.vcpu.set_reg(Reg::Rflags, 0x202);
    assert!(machine.vcpu.interruptible());
    machine.vcpu.set_reg(Reg::IntrShadow, 1);
    assert_eq!(machine.vcpu.reg(Reg::IntrShadow), 1);
    assert!(!machine.vcpu.interruptible());
    machine.vcpu.request_interrupt_window(true);
    expect_window_after(&mut machine, 1);
    machine.vcpu.set_reg(Reg::IntrShadow, 0);
    assert_eq!(machine.vcpu.reg(Reg::IntrShadow), 0);
}

/// As `vmx_inject_interrupts` and `svm_inj_interrupts` have it: a vCPU that is reset behind an STI does not start in its
/// shadow, which the `vcpu_reset` before D35622 leaves alone.
pub(super) fn setting_rip_ends_the_interrupt_shadow(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, busy_loop);
    machine.vcpu.set_reg(Reg::Rflags, 0x202);
    machine.vcpu.set_reg(Reg::IntrShadow, 1);
    machine.vcpu.set_reg(Reg::Rip, CODE);
    assert_eq!(machine.vcpu.reg(Reg::IntrShadow), 0);
    assert!(machine.vcpu.interruptible());
}

pub(super) fn a_write_in_flight_closes_the_window(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.sti()?;
        a.nop()?;
        a.out(0x80, al)?;
        busy_loop(a)
    });
    machine.expect(Exit::IoOut { port: 0x80, size: 1, data: 0 });
    assert!(!machine.vcpu.interruptible());
    machine.vcpu.complete(Completion::Done);
    machine.vcpu.request_interrupt_window(true);
    expect_window_after(&mut machine, 0);
}

/// A handler that counts in BX and keeps what it finds on the stack.
fn install_counting_handler(machine: &Machine, vector: u8) {
    machine.set_vector(vector);
    machine.assemble(HANDLER, 16, |a| {
        a.inc(bx)?;
        a.mov(bp, sp)?;
        a.mov(ax, word_ptr(bp))?;
        a.mov(word_ptr(DATA), ax)?;
        a.mov(ax, word_ptr(bp + 2))?;
        a.mov(word_ptr(DATA + 2), ax)?;
        a.mov(ax, word_ptr(bp + 4))?;
        a.mov(word_ptr(DATA + 4), ax)?;
        a.iret()
    });
}

pub(super) fn interrupt_through_the_ivt(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.sti()?;
        a.hlt()?;
        a.hlt()
    });
    install_counting_handler(&machine, 0x40);
    machine.expect(Exit::Hlt);
    assert!(machine.vcpu.interruptible());
    machine.vcpu.inject(Inject::Interrupt(0x40));
    assert!(!machine.vcpu.interruptible(), "one at a time");
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 1);
    assert_eq!(machine.read(DATA), [2, 0x10, 0, 0, 2, 2], "IP, CS, FLAGS of the second HLT");
    assert_eq!(machine.vcpu.reg(Reg::Rsp), STACK);
    assert!(machine.vcpu.interruptible(), "IRET restored IF");
}

pub(super) fn nmi_through_the_ivt(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.hlt()?;
        a.hlt()
    });
    install_counting_handler(&machine, 2);
    machine.expect(Exit::Hlt);
    assert!(!machine.vcpu.interruptible());
    machine.vcpu.inject(Inject::Nmi);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 1);
    assert_eq!(machine.read(DATA), [1, 0x10, 0, 0, 2, 0]);
    assert_eq!(machine.vcpu.reg(Reg::Rip), CODE + 2);
}

pub(super) fn an_nmi_closes_the_window(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.sti()?;
        a.hlt()?;
        busy_loop(a)
    });
    install_counting_handler(&machine, 2);
    machine.expect(Exit::Hlt);
    assert!(machine.vcpu.interruptible());
    machine.vcpu.inject(Inject::Nmi);
    assert!(!machine.vcpu.interruptible(), "it goes first");
    machine.vcpu.request_interrupt_window(true);
    machine.expect(Exit::InterruptWindow);
    assert_eq!(machine.read(DATA), [2, 0x10, 0, 0, 2, 2], "it was delivered behind HLT");
    assert!(machine.vcpu.interruptible());
}

pub(super) fn exception_through_the_ivt(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.hlt()?;
        a.hlt()
    });
    install_counting_handler(&machine, 6);
    machine.expect(Exit::Hlt);
    machine.vcpu.inject(Inject::Exception { vector: 6, error_code: None });
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 1);
    assert_eq!(machine.read(DATA), [1, 0x10, 0, 0, 2, 0]);
}

pub(super) fn setting_rip_drops_undelivered_events(engine: &dyn Engine) {
    let events =
        [(0x40, Inject::Interrupt(0x40)), (2, Inject::Nmi), (13, Inject::Exception { vector: 13, error_code: None })];
    // Dropped before a run, and after one that was kicked, which may have delivered it.
    for ((vector, event), kicked) in events.into_iter().flat_map(|event| [(event, false), (event, true)]) {
        let mut machine = Machine::new(engine, |a| {
            a.sti()?;
            a.hlt()?;
            a.hlt()
        });
        install_counting_handler(&machine, vector);
        machine.expect(Exit::Hlt);
        assert!(machine.vcpu.interruptible());
        machine.vcpu.inject(event);
        if kicked {
            machine.vcpu.kick_handle().kick();
            machine.expect(Exit::Kicked);
        }
        machine.vcpu.set_reg(Reg::Rip, CODE);
        machine.vcpu.set_reg(Reg::Rflags, 2);
        machine.expect(Exit::Hlt);
        assert_eq!((machine.vcpu.reg(Reg::Rip), machine.vcpu.reg(Reg::Rbx)), (CODE + 2, 0), "{event:?} {kicked}");
        assert!(machine.vcpu.interruptible());
    }
}

pub(super) fn software_interrupt_and_fault(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.int(0x21)?;
        a.hlt()?;
        a.xor(cx, cx)?;
        a.div(cx)?;
        a.hlt()
    });
    install_counting_handler(&machine, 0x21);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.read(DATA), [2, 0x10, 0, 0, 2, 0], "behind INT");
    machine.set_vector(0);
    machine.assemble(HANDLER, 16, |a| {
        a.inc(bx)?;
        a.hlt()
    });
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 2);
    assert_eq!(machine.read::<2>(STACK - 6), [5, 0x10], "at DIV");
}

pub(super) fn triple_fault(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 32, |a| {
        a.ud2()?;
        a.hlt()
    });
    // Not in real mode: KVM's emulation does not look at the limit there.
    enter_protected_mode(&mut machine, false);
    machine.vcpu.set_desc(Reg::Idtr, SegDesc { base: 0, limit: 0, access: 0 });
    machine.expect(Exit::Shutdown);
}

pub(super) fn fetch_from_nowhere(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, 3)?;
        a.hlt()
    });
    let code = machine.vcpu.desc(Reg::Cs);
    machine.vcpu.set_desc(Reg::Cs, SegDesc { base: MMIO, ..code });
    machine.vcpu.set_reg(Reg::Rip, 0x123);
    machine.expect(Exit::MmioFetch { gpa: MMIO + 0x123 });
    machine.expect(Exit::MmioFetch { gpa: MMIO + 0x123 });
    assert_eq!(machine.vcpu.reg(Reg::Rip), 0x123);
    machine.vcpu.set_desc(Reg::Cs, code);
    machine.vcpu.set_reg(Reg::Rip, CODE);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.ax(), 3);
}

pub(super) fn fetch_that_runs_out_of_memory(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| a.hlt());
    // MOV AX, imm16, of which the last byte is missing.
    machine.write(MEMORY - 2, &[0xb8, 0x11]);
    let code = machine.vcpu.desc(Reg::Cs);
    machine.vcpu.set_desc(Reg::Cs, SegDesc { base: MEMORY - 0x1000, ..code });
    machine.vcpu.set_reg(Reg::Rip, 0xffe);
    machine.expect(Exit::MmioFetch { gpa: MEMORY });
}

pub(super) fn unmapped_memory_is_gone(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, (MMIO >> 4) as u32)?;
        a.mov(ds, ax)?;
        a.mov(bl, byte_ptr(0))?;
        a.hlt()?;
        a.mov(bl, byte_ptr(0))?;
        a.hlt()
    });
    let segment = Arc::new(Segment::new(PAGE_SIZE as usize).expect("memory"));
    assert!(segment.write(0, &[0x5a]));
    machine.vm.map(MMIO, &segment, 0, PAGE_SIZE, Protection { write: true }).expect("a mapping");
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx), 0x5a);
    machine.vm.unmap(MMIO, PAGE_SIZE).expect("a mapping");
    machine.answer(Exit::MmioRead { gpa: MMIO, size: 1 }, Completion::Value(1));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx), 1);
    machine.vm.map(MMIO, &segment, 0, PAGE_SIZE, Protection { write: true }).expect("a mapping");
}

/// A loop that no engine takes for waiting.
fn busy_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.inc(bx)?;
    a.inc(cx)?;
    a.jmp(again)
}

pub(super) fn kick_from_another_thread(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, busy_loop);
    let kick = machine.vcpu.kick_handle();
    // One kick for each run: two before a run are one.
    let (ask, asked) = std::sync::mpsc::channel();
    let kicker = std::thread::spawn(move || {
        for () in asked {
            std::thread::sleep(Duration::from_millis(3));
            kick.kick();
        }
    });
    for _ in 0..5 {
        ask.send(()).expect("the kicker waits");
        assert_eq!(machine.vcpu.run(4 * RUN), Exit::Kicked);
        assert_ne!(machine.vcpu.reg(Reg::Rbx), 0);
    }
    drop(ask);
    kicker.join().expect("it does not panic");
}

pub(super) fn kick_before_the_run(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, busy_loop);
    let kick = machine.vcpu.kick_handle();
    kick.kick();
    kick.kick();
    assert_eq!(machine.vcpu.run(RUN), Exit::Kicked);
    assert_eq!(machine.vcpu.run(1_000_000), Exit::Budget, "two kicks before a run are one");
    drop(machine);
    kick.kick();
}

pub(super) fn budget(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, busy_loop);
    let mut before = 0;
    for budget in [2_000_000, 500_000, 2_000_000] {
        let began = std::time::Instant::now();
        assert_eq!(machine.vcpu.run(budget), Exit::Budget);
        assert!(began.elapsed() < Duration::from_secs(1));
        assert!(machine.vcpu.elapsed_ns() <= budget);
        let count = machine.vcpu.reg(Reg::Rbx);
        assert_ne!(count, before);
        before = count;
    }
    assert_eq!(machine.vcpu.run(1), Exit::Budget);
}

/// Has the next run end behind one instruction.
fn step(machine: &mut Machine) {
    machine.vcpu.set_traps(&Traps { step: true, ..Traps::default() });
}

fn break_at(machine: &mut Machine, breakpoints: impl IntoIterator<Item = u64>, pass: bool) {
    machine.vcpu.set_traps(&Traps { step: false, breakpoints: breakpoints.into_iter().collect(), pass });
}

pub(super) fn steps(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, MMIO as u32 >> 4)?;
        a.mov(ds, ax)?;
        a.out(0x80, al)?;
        a.mov(byte_ptr(0), al)?;
        a.mov(al, byte_ptr(0))?;
        a.add(byte_ptr(0), 1)?;
        a.in_(al, 0x81)?;
        a.pushf()?;
        a.hlt()?;
        a.nop()
    });
    let at = |machine: &mut Machine| machine.vcpu.linear_rip() - CODE;
    for behind in [3, 5] {
        step(&mut machine);
        machine.expect(Exit::Trap(Trap::Step));
        assert_eq!(at(&mut machine), behind);
    }
    machine.expect(Exit::Trap(Trap::Step)); // until traps are set anew
    // What leaves the guest does so first, and is then a step like any other.
    let write = |data| (Exit::MmioWrite { gpa: MMIO, size: 1, data }, Completion::Done);
    let read = (Exit::MmioRead { gpa: MMIO, size: 1 }, Completion::Value(7));
    let accesses = [
        (7, vec![(Exit::IoOut { port: 0x80, size: 1, data: 0 }, Completion::Done)]),
        (10, vec![write(0)]),
        (13, vec![read.clone()]),
        (18, vec![read, write(8)]),
        (20, vec![(Exit::IoIn { port: 0x81, size: 1 }, Completion::Value(9))]),
        (21, vec![]),
        (22, vec![(Exit::Hlt, Completion::Done)]),
        (23, vec![]),
    ];
    for (behind, exits) in accesses {
        step(&mut machine);
        for (exit, completion) in exits {
            machine.answer(exit, completion);
        }
        machine.expect(Exit::Trap(Trap::Step));
        assert_eq!(at(&mut machine), behind);
    }
    assert_eq!(machine.ax() & 0xff, 9);
    assert_eq!(u16::from_le_bytes(machine.read(STACK - 2)) & 0x100, 0, "the guest sees no trap flag");
}

/// [`busy_loop`] and its rounds, with a breakpoint on its first instruction.
fn expect_breakpoints(machine: &mut Machine) {
    break_at(machine, [CODE, CODE + 0x100], false);
    for round in 0..3 {
        for _ in 0..2 {
            machine.expect(Exit::Trap(Trap::Breakpoint)); // until traps are set anew
            assert_eq!((machine.vcpu.linear_rip(), machine.vcpu.reg(Reg::Rbx)), (CODE, round));
        }
        break_at(machine, [CODE, CODE + 0x100], true);
    }
    machine.vcpu.set_traps(&Traps::default());
    assert_eq!(machine.vcpu.run(1_000_000), Exit::Budget);
    assert!(machine.vcpu.reg(Reg::Rbx) > 3);
}

pub(super) fn breakpoints(engine: &dyn Engine) {
    expect_breakpoints(&mut Machine::new(engine, busy_loop));
}

pub(super) fn breakpoints_in_long_mode(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 64, busy_loop);
    enter_long_mode(&mut machine);
    expect_breakpoints(&mut machine);
}

pub(super) fn many_breakpoints(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        for _ in 0..20 {
            a.nop()?;
        }
        a.hlt()
    });
    let breakpoints = [2, 3, 5, 7, 11, 13, 17, 19].map(|at| CODE + at);
    break_at(&mut machine, breakpoints, false);
    for at in breakpoints {
        machine.expect(Exit::Trap(Trap::Breakpoint));
        assert_eq!(machine.vcpu.linear_rip(), at);
        break_at(&mut machine, breakpoints, true);
    }
    machine.expect(Exit::Hlt);
}

pub(super) fn traps_leave_budgets_and_kicks_alone(engine: &dyn Engine) {
    let far = CODE + 0x100;
    for breakpoints in [vec![far], (far..far + 8).collect()] {
        let mut machine = Machine::new(engine, busy_loop);
        break_at(&mut machine, breakpoints, false);
        assert_eq!(machine.vcpu.run(1_000_000), Exit::Budget);
        assert!(machine.vcpu.elapsed_ns() <= 1_000_000);
        assert!(machine.vcpu.reg(Reg::Rbx) > 1);
        machine.vcpu.kick_handle().kick();
        machine.expect(Exit::Kicked);
    }
}

pub(super) fn registers_round_trip(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| a.hlt());
    use Reg::*;
    let values = [
        (Rax, 0x0123_4567_89ab_cdef),
        (Rbx, 2),
        (Rcx, 3),
        (Rdx, 4),
        (Rsi, 5),
        (Rdi, 6),
        (Rbp, u64::MAX),
        (R8, 8),
        (R9, 9),
        (R10, 10),
        (R11, 11),
        (R12, 12),
        (R13, 13),
        (R14, 14),
        (R15, 15),
        (Cr3, 0x1234_5000),
        (Cr4, 0x20),
        (Dr7, 0x402),
        (Rsp, 0x7000),
        (Rip, CODE),
        (Rflags, 0x8d7),
        (Es, 0x10),
        (Ss, 0x18),
        (Ds, 0x20),
        (Fs, 0x28),
        (Gs, 0x30),
        (Ldtr, 0x38),
        (Tr, 0x40),
        (Cr2, 0xdead_beef),
        (Pdpte0, 0x1001),
        (Pdpte1, 0x2001),
        (Pdpte2, 0x3001),
        (Pdpte3, 0x4001),
        (Dr0, 0x1111),
        (Dr1, 0x2222),
        (Dr2, 0x3333),
        (Dr3, 0x4444),
        (Dr6, 0xffff_0ff1),
        (EntryInstLength, 3),
    ];
    for (reg, value) in values {
        machine.vcpu.set_reg(reg, value);
    }
    let check = |machine: &mut Machine| {
        for (reg, value) in values.into_iter().filter(|(reg, _)| *reg != Rip) {
            assert_eq!(machine.vcpu.reg(reg), value, "{reg:?}");
        }
    };
    check(&mut machine);
    machine.expect(Exit::Hlt);
    check(&mut machine);
    assert_eq!(machine.vcpu.reg(Rip), CODE + 1);
}

pub(super) fn descriptors_round_trip(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| a.hlt());
    let values = [
        (Reg::Es, SegDesc { base: 0x100, limit: 0xffff, access: 0x93 }),
        (Reg::Ds, SegDesc { base: 0x200, limit: 0xffff, access: 0x93 }),
        (Reg::Fs, SegDesc { base: 0x300, limit: 0xffff, access: 0x93 }),
        (Reg::Gs, SegDesc { base: 0x400, limit: 0xffff, access: 0x93 }),
        (Reg::Ldtr, SegDesc { base: 0x500, limit: 0x17, access: 0x82 }),
        (Reg::Tr, SegDesc { base: 0x600, limit: 0x67, access: 0x8b }),
        (Reg::Gdtr, SegDesc { base: 0x700, limit: 0x27, access: 0 }),
        (Reg::Idtr, SegDesc { base: 0, limit: 0x3ff, access: 0 }),
    ];
    for (reg, desc) in values {
        machine.vcpu.set_desc(reg, desc);
    }
    for _ in 0..2 {
        for (reg, desc) in values {
            assert_eq!(machine.vcpu.desc(reg), desc, "{reg:?}");
        }
        machine.vcpu.set_reg(Reg::Rip, CODE);
        machine.expect(Exit::Hlt);
    }
}

pub(super) fn power_up_state(engine: &dyn Engine) {
    let machine = Machine::new(engine, |a| a.hlt());
    let mut vcpu = machine.vm.create_vcpu(3).expect("a vCPU");
    // SDM 3A table 10-1.
    assert_eq!((vcpu.reg(Reg::Cs), vcpu.desc(Reg::Cs).base, vcpu.reg(Reg::Rip)), (0xf000, 0xffff_0000, 0xfff0));
    assert_eq!((vcpu.reg(Reg::Rflags), vcpu.reg(Reg::Cr0)), (2, 0x6000_0010));
    assert_eq!((vcpu.reg(Reg::Efer), vcpu.reg(Reg::Cr3), vcpu.reg(Reg::Cr4)), (0, 0, 0));
    assert_eq!((vcpu.desc(Reg::Ds).base, vcpu.desc(Reg::Idtr).limit), (0, 0xffff));
    assert_eq!(vcpu.run(RUN), Exit::MmioFetch { gpa: 0xffff_fff0 });
}

pub(super) fn setting_a_register_abandons_the_instruction(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, 0x1234)?;
        a.in_(al, 0x60)?;
        a.hlt()
    });
    machine.assemble(HANDLER, 16, |a| {
        a.mov(bx, ax)?;
        a.hlt()
    });
    machine.expect(Exit::IoIn { port: 0x60, size: 1 });
    assert_eq!((machine.ax(), machine.vcpu.reg(Reg::Rip)), (0x1234, CODE + 3));
    machine.vcpu.set_reg(Reg::Rip, HANDLER);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx), 0x1234);

    machine.vcpu.set_reg(Reg::Rip, CODE);
    machine.expect(Exit::IoIn { port: 0x60, size: 1 });
    machine.vcpu.set_reg(Reg::Rcx, 7);
    machine.answer(Exit::IoIn { port: 0x60, size: 1 }, Completion::Value(0xff));
    machine.expect(Exit::Hlt);
    assert_eq!((machine.ax(), machine.vcpu.reg(Reg::Rcx)), (0x12ff, 7));
}

pub(super) fn setting_a_register_abandons_a_long_string_input(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.cld()?;
        a.mov(dx, 0x1f0)?;
        a.mov(di, DATA as u32)?;
        a.mov(cx, 500)?;
        a.rep().insb()?;
        a.hlt()
    });
    machine.assemble(HANDLER, 16, |a| {
        a.in_(al, 0x60)?;
        a.hlt()
    });
    machine.answer(Exit::IoIn { port: 0x1f0, size: 1 }, Completion::Value(1));
    machine.expect(Exit::IoIn { port: 0x1f0, size: 1 });
    let sent = [(Reg::Rip, HANDLER), (Reg::Rcx, 0x77), (Reg::Rdi, 0x88)];
    for (reg, value) in sent {
        machine.vcpu.set_reg(reg, value);
    }
    machine.answer(Exit::IoIn { port: 0x60, size: 1 }, Completion::Value(0x99));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.ax() as u8, 0x99);
    for (reg, value) in sent.into_iter().skip(1) {
        assert_eq!(machine.vcpu.reg(reg), value, "{reg:?}");
    }
}

pub(super) fn registers_after_an_answer(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.in_(al, 0x60)?;
        a.hlt()
    });
    machine.answer(Exit::IoIn { port: 0x60, size: 1 }, Completion::Value(0x99));
    machine.vcpu.kick_handle().kick();
    machine.expect(Exit::Kicked);
    machine.expect(Exit::Hlt);
    assert_eq!((machine.ax(), machine.vcpu.reg(Reg::Rip)), (0x99, CODE + 3));
}

/// A flat segment of 4 GiB.
fn flat(kind: u32, long: bool) -> SegDesc {
    let size = if long { 1 << 13 } else { 1 << 14 };
    SegDesc { base: 0, limit: 0xffff_ffff, access: kind | 0x8090 | size }
}

/// Protected mode at privilege level 0, flat.
fn enter_protected_mode(machine: &mut Machine, long: bool) {
    let vcpu = &mut machine.vcpu;
    vcpu.set_reg(Reg::Cs, 8);
    vcpu.set_desc(Reg::Cs, flat(0xb, long));
    for reg in [Reg::Es, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs] {
        vcpu.set_reg(reg, 16);
        vcpu.set_desc(reg, flat(3, false));
    }
    vcpu.set_reg(Reg::Tr, 24);
    vcpu.set_desc(Reg::Tr, SegDesc { base: 0, limit: 0x67, access: 0x8b });
    vcpu.set_reg(Reg::Ldtr, 0);
    vcpu.set_desc(Reg::Ldtr, SegDesc { base: 0, limit: 0, access: 0x1_0000 });
    vcpu.set_reg(Reg::Cr0, 0x31);
}

pub(super) fn protected_mode(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 32, |a| {
        a.mov(eax, 0x1234_5678)?;
        a.mov(ebx, DATA as u32)?;
        a.mov(dword_ptr(ebx), eax)?;
        a.push(eax)?;
        a.pop(ecx)?;
        a.mov(edx, dword_ptr(0xfee0_0020u32))?;
        a.hlt()
    });
    enter_protected_mode(&mut machine, false);
    machine.answer(Exit::MmioRead { gpa: 0xfee0_0020, size: 4 }, Completion::Value(0x0100_0000));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.read(DATA), 0x1234_5678u32.to_le_bytes());
    assert_eq!((machine.vcpu.reg(Reg::Rcx), machine.vcpu.reg(Reg::Rdx)), (0x1234_5678, 0x0100_0000));
}

pub(super) fn virtual_8086_mode(engine: &dyn Engine) {
    const VM: u64 = 1 << 17;
    const PORT: u16 = 0x80;
    // Without a virtual machine extension KVM takes the selectors for those of protected mode.
    if engine.backend() == "kvm_pvm" {
        return;
    }
    let mut machine = Machine::new(engine, |a| {
        a.mov(ax, (DATA >> 4) as u32)?;
        a.mov(es, ax)?;
        a.mov(word_ptr(4).es(), 0x1234)?;
        a.push(es)?;
        a.pop(ds)?;
        a.mov(bx, word_ptr(4))?;
        a.db(&[0x9a, 0x10, 0x00, (HANDLER >> 4) as u8, (HANDLER >> 12) as u8])?; // call far, to HANDLER + 10h
        a.out(PORT as u8 as u32, al)
    });
    machine.assemble(HANDLER + 0x10, 16, |a| {
        a.mov(cx, cs)?;
        a.retf()
    });
    enter_protected_mode(&mut machine, false);
    // A task-state segment whose I/O permission bit map, behind it, allows everything.
    machine.write(TABLES + 0x66, &0x68_u16.to_le_bytes());
    machine.vcpu.set_desc(Reg::Tr, SegDesc { base: TABLES, limit: 0xfff, access: 0x8b });
    for reg in [Reg::Es, Reg::Cs, Reg::Ss, Reg::Ds, Reg::Fs, Reg::Gs] {
        machine.vcpu.set_reg(reg, 0);
        machine.vcpu.set_desc(reg, SegDesc { base: 0, limit: 0xffff, access: 0xf3 });
    }
    machine.vcpu.set_reg(Reg::Rflags, VM | 2);
    machine.vcpu.set_reg(Reg::Rip, CODE);
    machine.expect(Exit::IoOut { port: PORT, size: 1, data: (DATA >> 4) as u32 & 0xff });
    assert_eq!(machine.read(DATA + 4), 0x1234_u16.to_le_bytes());
    let vcpu = &mut machine.vcpu;
    assert_eq!((vcpu.reg(Reg::Rbx) as u16, vcpu.reg(Reg::Rcx) as u16), (0x1234, (HANDLER >> 4) as u16));
    assert_eq!((vcpu.reg(Reg::Cs), vcpu.reg(Reg::Rsp)), (0, STACK));
    for reg in [Reg::Es, Reg::Ds] {
        assert_eq!(vcpu.desc(reg), SegDesc { base: DATA, limit: 0xffff, access: 0xf3 }, "{reg:?}");
    }
    assert_eq!(vcpu.reg(Reg::Rflags) & VM, VM);
}

/// Whether the engine can do paging outside long mode. KVM without a virtual machine extension cannot.
fn has_legacy_paging(engine: &dyn Engine) -> bool {
    engine.backend() != "kvm_pvm"
}

pub(super) fn paging_in_protected_mode(engine: &dyn Engine) {
    if !has_legacy_paging(engine) {
        return;
    }
    let mut machine = Machine::with_code(engine, 32, |a| {
        a.mov(eax, dword_ptr(0x0080_0004u32))?;
        a.hlt()
    });
    // 4 KiB pages: the first 4 MiB as they are, 800000h to DATA.
    machine.write(TABLES, &(TABLES as u32 + 0x1003).to_le_bytes());
    machine.write(TABLES + 8, &(TABLES as u32 + 0x2003).to_le_bytes());
    for page in 0..16u32 {
        machine.write(TABLES + 0x1000 + u64::from(page) * 4, &(page << 12 | 3).to_le_bytes());
    }
    machine.write(TABLES + 0x2000, &(DATA as u32 | 3).to_le_bytes());
    machine.write(DATA + 4, &0xcafe_f00d_u32.to_le_bytes());
    enter_protected_mode(&mut machine, false);
    machine.vcpu.set_reg(Reg::Cr3, TABLES);
    machine.vcpu.set_reg(Reg::Cr0, 0x8000_0031);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rax), 0xcafe_f00d);
    assert_eq!(machine.vcpu.translate(0x0080_0123), Some(DATA + 0x123));
    assert_eq!(machine.vcpu.translate(0x0090_0000), None);
    assert_eq!(machine.vcpu.translate(CODE), Some(CODE));
}

pub(super) fn pae_paging(engine: &dyn Engine) {
    if !has_legacy_paging(engine) {
        return;
    }
    let mut machine = Machine::with_code(engine, 32, |a| {
        a.mov(eax, dword_ptr(0x4000_0000u32 + DATA as u32))?;
        a.hlt()
    });
    // One page directory with one page of 2 MiB at 0, for the first and the second GiB. AMD processors with nested paging
    // take the PDPTEs from memory, whatever they are given.
    machine.write(TABLES, &(TABLES + 0x1001).to_le_bytes());
    machine.write(TABLES + 8, &(TABLES + 0x1001).to_le_bytes());
    machine.write(TABLES + 0x1000, &0x83u64.to_le_bytes());
    machine.write(DATA, &0x600d_cafe_u32.to_le_bytes());
    enter_protected_mode(&mut machine, false);
    machine.vcpu.set_reg(Reg::Cr3, TABLES);
    machine.vcpu.set_reg(Reg::Cr4, 0x20);
    for pdpte in [Reg::Pdpte0, Reg::Pdpte1] {
        machine.vcpu.set_reg(pdpte, TABLES + 0x1001);
    }
    machine.vcpu.set_reg(Reg::Cr0, 0x8000_0031);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rax), 0x600d_cafe);
    assert_eq!(
        [Reg::Pdpte0, Reg::Pdpte1, Reg::Pdpte2].map(|reg| machine.vcpu.reg(reg)),
        [TABLES + 0x1001, TABLES + 0x1001, 0]
    );
}

/// Page tables for long mode: the first GiB as it is, for user mode too, and the fourth, for the local APIC.
fn write_page_tables(machine: &Machine) {
    machine.write(TABLES, &(TABLES + 0x1007).to_le_bytes());
    machine.write(TABLES + 0x1000, &(TABLES + 0x2007).to_le_bytes());
    machine.write(TABLES + 0x1018, &(TABLES + 0x3003).to_le_bytes());
    for page in 0..512u64 {
        machine.write(TABLES + 0x2000 + page * 8, &(page << 21 | 0x87).to_le_bytes());
        machine.write(TABLES + 0x3000 + page * 8, &(0xc000_0000 | page << 21 | 0x93).to_le_bytes());
    }
}

/// Long mode with those page tables.
fn enter_long_mode(machine: &mut Machine) {
    write_page_tables(machine);
    enter_protected_mode(machine, true);
    machine.vcpu.set_reg(Reg::Cr3, TABLES);
    machine.vcpu.set_reg(Reg::Cr4, 0x20);
    machine.vcpu.set_reg(Reg::Efer, 0x500);
    machine.vcpu.set_reg(Reg::Cr0, 0x8000_0031);
}

pub(super) fn long_mode(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 64, |a| {
        a.mov(r8, 0x0123_4567_89ab_cdefu64)?;
        a.mov(rbx, DATA)?;
        a.mov(qword_ptr(rbx), r8)?;
        a.mov(rdi, 0xfee0_0000u64)?;
        a.mov(dword_ptr(rdi + 0x300), 0xc_4500)?;
        a.mov(r9, qword_ptr(rdi + 0x20))?;
        a.call(HANDLER)?;
        a.hlt()
    });
    machine.assemble(HANDLER, 64, |a| {
        a.lea(r10, qword_ptr(r8 + 1))?;
        a.ret()
    });
    enter_long_mode(&mut machine);
    machine.answer(Exit::MmioWrite { gpa: 0xfee0_0300, size: 4, data: 0xc_4500 }, Completion::Done);
    machine.answer(Exit::MmioRead { gpa: 0xfee0_0020, size: 8 }, Completion::Value(0x1122_3344_5566_7788));
    machine.expect(Exit::Hlt);
    assert_eq!(machine.read(DATA), 0x0123_4567_89ab_cdefu64.to_le_bytes());
    assert_eq!(machine.vcpu.reg(Reg::R9), 0x1122_3344_5566_7788);
    assert_eq!(machine.vcpu.reg(Reg::R10), 0x0123_4567_89ab_cdf0);
    assert_eq!(machine.vcpu.reg(Reg::Rsp), STACK);
    assert_eq!(machine.vcpu.translate(0xfee0_0300), Some(0xfee0_0300));
    assert_eq!(machine.vcpu.translate(1 << 40), None);
}

/// An FXSAVE64 image with something in every register and two values on the x87 stack; the pointers are 0, which not every
/// processor keeps without an exception.
fn fpu_state() -> FpuState {
    let mut image = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x7f, 0x02, 0x00, 0x30, 0xc0]); // double precision, TOP 6, registers 6 and 7 in use
    put(24, &[0x80, 0x5f, 0, 0, 0xff, 0xff, 0, 0]); // rounds up
    for i in 0..8 {
        put(32 + 16 * i, &[i as u8, 2, 3, 4, 5, 6, 7, 0x80, 0x01, 0x40]);
    }
    for i in 0..16 {
        put(160 + 16 * i, &[0x11 * i as u8; 16]);
    }
    FpuState { image, xcr0: 1 }
}

pub(super) fn fpu_state_round_trip(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| a.hlt());
    machine.vcpu.set_fpu(&fpu_state());
    assert_eq!(machine.vcpu.fpu(), fpu_state());
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.fpu(), fpu_state());
}

/// Whether the engine executes x87 and SSE instructions at privilege level 0. KVM without a virtual machine extension emulates
/// that level, and lacks them.
fn has_supervisor_fpu(engine: &dyn Engine) -> bool {
    engine.backend() != "kvm_pvm"
}

pub(super) fn fpu_image_in_a_guest(engine: &dyn Engine) {
    if !has_supervisor_fpu(engine) {
        return;
    }
    let mut machine = Machine::with_code(engine, 64, |a| {
        a.mov(rbx, DATA)?;
        a.fxsave64(ptr(rbx))?;
        a.fninit()?;
        a.fldpi()?;
        a.fld1()?;
        a.faddp(st1, st0)?;
        a.fstp(tbyte_ptr(rbx + 0x400))?;
        a.fnstsw(ax)?;
        a.fnstcw(word_ptr(rbx + 0x410))?;
        a.fxrstor64(ptr(rbx))?;
        a.hlt()
    });
    enter_long_mode(&mut machine);
    machine.vcpu.set_reg(Reg::Cr4, 0x220);
    machine.vcpu.set_fpu(&fpu_state());
    machine.expect(Exit::Hlt);
    let mut stored: [u8; 416] = machine.read(DATA);
    stored[28..32].copy_from_slice(&0xffff_u32.to_le_bytes()); // MXCSR_MASK is the processor's
    assert_eq!(stored, fpu_state().image[..416]);
    assert_eq!(machine.vcpu.fpu(), fpu_state());
    assert_eq!(machine.read(DATA + 0x400), [0x1a, 0x61, 0xb4, 0x10, 0x51, 0xed, 0x87, 0x84, 0x01, 0x40], "pi + 1");
    assert_eq!(machine.ax() & 0x3fff, 0x20, "inexact");
    assert_eq!(machine.read(DATA + 0x410), 0x037f_u16.to_le_bytes());
}

/// #NM after CR0.TS is set, and #MF of an unmasked exception at the next instruction that waits.
pub(super) fn fpu_traps(engine: &dyn Engine) {
    if !has_supervisor_fpu(engine) {
        return;
    }
    let mut machine = Machine::new(engine, |a| {
        a.fninit()?;
        a.mov(word_ptr(DATA), 0x037b)?;
        a.fldcw(word_ptr(DATA))?; // division by zero is not masked
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        a.fnop()?;
        a.hlt()?;
        a.mov(ecx, cr0)?;
        a.or(ecx, 8)?;
        a.mov(cr0, ecx)?;
        a.fninit()?;
        a.hlt()
    });
    for (vector, number) in [(7, 0x77), (16, 0x16)] {
        machine.set_vector(vector);
        machine.assemble(HANDLER + u64::from(vector) * 0x20, 16, |a| {
            a.mov(bx, number)?;
            a.clts()?;
            a.fnclex()?;
            a.iret()
        });
        machine.write(u64::from(vector) * 4, &(HANDLER as u16 + u16::from(vector) * 0x20).to_le_bytes());
    }
    machine.vcpu.set_reg(Reg::Cr0, 0x30);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.ax() & 0xb8ff, 0xb084, "ES, B and ZE; the operands stay on the stack");
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 0x16);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::Rbx) as u16, 0x77);
}

/// A GDT: flat code of 32 bits at 8, data at 16, code of 64 bits at 24, TSS at 32, user data at 48, user code at 56.
fn write_gdt(machine: &Machine, at: u64) {
    let tss = u64::from(TSS as u16) << 16 | 0x0000_8900_0000_0067;
    let gdt = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_9b00_0000_ffff,
        tss,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (index, descriptor) in (0..).zip(gdt) {
        machine.write(at + index * 8, &u64::to_le_bytes(descriptor));
    }
}

/// Where a GDT lies.
const GDT: u64 = 0x4000;
/// Where a TSS lies.
const TSS: u64 = 0x4100;
/// Where an IDT lies.
const IDT: u64 = 0x5000;

pub(super) fn from_real_mode_to_long_mode(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.lgdt(dword_ptr(DATA))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // Far jump to 32-bit code at HANDLER, selector 8.
        a.db(&[0x66, 0xea, HANDLER as u8, (HANDLER >> 8) as u8, 0, 0, 8, 0])
    });
    machine.write(DATA, &[0x3f, 0, GDT as u8, (GDT >> 8) as u8, 0, 0]);
    write_gdt(&machine, GDT);
    machine.assemble(HANDLER, 32, |a| {
        a.mov(eax, 16)?;
        for segment in [ds, es, ss] {
            a.mov(segment, eax)?;
        }
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        // Far jump to 64-bit code at HANDLER + 800h, selector 24.
        a.db(&[0xea, 0, (HANDLER >> 8) as u8 + 8, 0, 0, 24, 0])
    });
    machine.assemble(HANDLER + 0x800, 64, |a| {
        a.mov(rbx, 0xfeed_face_cafe_beefu64)?;
        a.push(rbx)?;
        a.pop(r11)?;
        a.hlt()
    });
    write_page_tables(&machine);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::R11), 0xfeed_face_cafe_beef);
    assert_eq!(machine.vcpu.reg(Reg::Efer) & 0x500, 0x500, "LME and LMA");
    assert_eq!(machine.vcpu.reg(Reg::Cs), 24);
    assert_eq!(machine.vcpu.desc(Reg::Cs).access & 0x609b, 0x209b, "64-bit code");
}

/// An AP that is started again after it was in long mode comes up in real mode, although the `vcpu_reset` of bhyve before
/// D35622 leaves EFER alone: LMA follows from LME and CR0.PG (SDM 3A 2.2.1).
pub(super) fn reset_from_long_mode(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 64, |a| a.hlt());
    machine.assemble(HANDLER, 16, |a| {
        a.mov(ax, cs)?;
        a.hlt()
    });
    for _ in 0..2 {
        machine.vcpu.set_reg(Reg::Rip, CODE);
        enter_long_mode(&mut machine);
        machine.expect(Exit::Hlt);
        assert_eq!(machine.vcpu.reg(Reg::Efer), 0x500);
        let vcpu = &mut machine.vcpu;
        // bhyve sets capabilities and x2APIC state of an AP whenever it starts it.
        vcpu.set_cpuid(&cpuid_table());
        for (reg, value) in [(Reg::Rflags, 2), (Reg::Rip, 0), (Reg::Cr0, 0x20), (Reg::Cr3, 0), (Reg::Cr4, 0)] {
            vcpu.set_reg(reg, value);
        }
        for reg in [Reg::Cs, Reg::Ss, Reg::Ds, Reg::Es, Reg::Fs, Reg::Gs] {
            vcpu.set_desc(reg, SegDesc { base: 0, limit: 0xffff, access: 0x93 });
            vcpu.set_reg(reg, 0);
        }
        vcpu.set_desc(Reg::Cs, SegDesc { base: HANDLER, limit: 0xffff, access: 0x93 });
        vcpu.set_reg(Reg::Cs, HANDLER >> 4);
        vcpu.set_desc(Reg::Ldtr, SegDesc { base: 0, limit: 0xffff, access: 0x82 });
        machine.expect(Exit::Hlt);
        assert_eq!(u64::from(machine.ax()), HANDLER >> 4);
        assert_eq!(machine.vcpu.reg(Reg::Efer), 0x100);
    }
}

pub(super) fn user_mode_and_back(engine: &dyn Engine) {
    expect_user_mode_and_back(engine, |_| ());
}

/// Whatever the engine does to stop at breakpoints, in user mode it is not seen.
pub(super) fn user_mode_under_a_debugger(engine: &dyn Engine) {
    let far = DATA + 0x100;
    for count in [1, 8] {
        expect_user_mode_and_back(engine, |machine| break_at(machine, far..far + count, false));
    }
}

fn expect_user_mode_and_back(engine: &dyn Engine, prepare: impl Fn(&mut Machine)) {
    let mut machine = Machine::with_code(engine, 64, |a| {
        a.mov(eax, 32)?;
        a.ltr(ax)?;
        // To user mode at HANDLER.
        a.push(48 | 3)?;
        a.push(DATA as i32 + 0x800)?;
        a.push(0x202)?;
        a.push(56 | 3)?;
        a.push(HANDLER as i32)?;
        a.iretq()
    });
    machine.assemble(HANDLER, 64, |a| {
        a.mov(r12, 0x1111_2222u64)?;
        a.int3()?;
        a.hlt()
    });
    // Gates of #BP, for user mode, and of #GP, which HLT in user mode is. Not INT n: kvm_pvm cannot have it there.
    let gate = |at: u64, dpl: u64| (at & 0xffff) | 24 << 16 | (0x8e | dpl << 5) << 40;
    machine.write(IDT + 3 * 16, &gate(HANDLER + 0x800, 3).to_le_bytes());
    machine.write(IDT + 13 * 16, &gate(HANDLER + 0xc00, 0).to_le_bytes());
    machine.write(TSS + 4, &STACK.to_le_bytes());
    write_gdt(&machine, GDT);
    machine.assemble(HANDLER + 0x800, 64, |a| {
        a.mov(r13, r12)?;
        a.iretq()
    });
    machine.assemble(HANDLER + 0xc00, 64, |a| {
        a.pop(r14)?;
        a.pop(r15)?;
        a.hlt()
    });
    enter_long_mode(&mut machine);
    machine.vcpu.set_reg(Reg::Cs, 24);
    machine.vcpu.set_desc(Reg::Gdtr, SegDesc { base: GDT, limit: 0x3f, access: 0 });
    machine.vcpu.set_desc(Reg::Idtr, SegDesc { base: IDT, limit: 0xfff, access: 0 });
    prepare(&mut machine);
    machine.expect(Exit::Hlt);
    assert_eq!(machine.vcpu.reg(Reg::R13), 0x1111_2222);
    assert_eq!(machine.vcpu.reg(Reg::R14), 0, "error code");
    let hlt = machine.vcpu.reg(Reg::R15);
    assert_eq!(machine.read(hlt), [0xf4], "RIP of HLT, not {hlt:#x}");
    assert_eq!(machine.vcpu.reg(Reg::Cs), 24);
}

pub(super) fn task_priority(engine: &dyn Engine) {
    let mut machine = Machine::with_code(engine, 64, |a| {
        a.mov(rbx, cr8)?;
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(rcx, cr8)?;
        a.mov(eax, 2)?;
        a.mov(cr8, rax)?;
        a.hlt()
    });
    enter_long_mode(&mut machine);
    machine.vcpu.set_cr8(0x50);
    // Whether each write or only the last one before another exit is told is up to the engine.
    let mut last = None;
    loop {
        match machine.run() {
            Exit::TprWrite { tpr } => last = Some(tpr),
            Exit::Hlt => break,
            exit => panic!("{exit:?}"),
        }
    }
    assert_eq!(last, Some(0x20));
    assert_eq!((machine.vcpu.reg(Reg::Rbx), machine.vcpu.reg(Reg::Rcx)), (5, 9));
}

pub(super) fn cpuid(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(esi, eax)?;
        a.mov(edi, ecx)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.hlt()
    });
    machine.expect(Exit::Hlt);
    assert_eq!((machine.vcpu.reg(Reg::Rsi), machine.vcpu.reg(Reg::Rdi)), (7, 0x6c65_746e));
    assert_eq!(machine.vcpu.reg(Reg::Rax), 0x000f_0600);
    // A host may be unable to hide what its processor has (kvm_pvm).
    assert_eq!(machine.vcpu.reg(Reg::Rcx) & 1 << 21, 1 << 21, "x2APIC");
    assert_eq!(machine.vcpu.reg(Reg::Rdx) & 0x0700_a379, 0x0700_a379);
}

pub(super) fn two_vcpus_share_memory(engine: &dyn Engine) {
    let mut machine = Machine::new(engine, |a| {
        a.mov(word_ptr(DATA), 0x4711)?;
        a.hlt()
    });
    machine.assemble(HANDLER, 16, |a| {
        a.mov(ax, word_ptr(DATA))?;
        a.hlt()
    });
    let mut second = machine.vm.create_vcpu(1).expect("a vCPU");
    enter_real_mode(&mut *second);
    second.set_reg(Reg::Rip, HANDLER);
    machine.expect(Exit::Hlt);
    let ran = std::thread::spawn(move || (second.run(RUN), second.reg(Reg::Rax))).join().expect("it does not panic");
    assert_eq!(ran, (Exit::Hlt, 0x4711));
}
