//! A vCPU: the run loop, the exits, and the instructions that exits leave half done.

use super::kick::{REPEAT, VcpuKick, arm_clock};
use super::registers::Registers;
use super::run_page::{Io, RunPage};
use super::traps::Debugging;
use super::vm::Memory;
use super::{Abilities, LMA, SHORTEST_BUDGET, cpuid, fpu, refused};
use crate::engine::traps::Watch;
use crate::engine::{
    Completion, CpuidEntry, EngineError, EngineVcpu, Exit, FpuState, Inject, Kick, Reg, SegDesc, Trap, Traps,
    Unimplemented,
};
use crate::memory::PAGE_SIZE;
use kvm_bindings::{
    CpuId, KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION,
};
use kvm_ioctls::VcpuFd;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More accesses than any instruction makes.
const MOST_ACCESSES: usize = 64;

/// Bytes of the longest instruction (SDM 2A 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;

/// CR0.PG.
const PG: u64 = 1 << 31;

/// Opcode of MOV to a control register.
const MOV_TO_CR: [u8; 2] = [0x0f, 0x22];

/// #GP.
const GENERAL_PROTECTION: u8 = 13;

/// A vCPU.
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    page: Arc<RunPage>,
    kick: Arc<VcpuKick>,
    pub(super) memory: Arc<Memory>,
    pub(super) abilities: Arc<Abilities>,
    pub(super) registers: Registers,
    /// The CPUID table as it was set last.
    cpuid: Vec<CpuidEntry>,
    pub(super) in_flight: InFlight,
    /// An exit that has happened and was not told yet.
    pub(super) pending_exit: Option<Exit>,
    /// A debugger's traps.
    pub(super) watch: Option<Box<Watch>>,
    /// What KVM was told of them last.
    pub(super) debugging: Debugging,
    /// The instruction in flight counts as executed, for the traps, once it is finished.
    pub(super) leaves_behind: bool,
    window_wanted: bool,
    /// CR8 as the other side knows it.
    cr8: u64,
    /// What failed in a call that cannot say so; the next run does.
    failure: Option<String>,
}

/// The instruction that an exit left half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InFlight {
    /// None.
    Nothing,
    /// It waits for an answer.
    Asks(Access),
    /// It has its answer, and the next `KVM_RUN` will finish it.
    Answered,
}

/// What an instruction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// A port, and the element of a string instruction whose turn it is.
    Port {
        io: Io,
        index: u32,
    },
    MmioRead,
    MmioWrite,
    Msr,
}

impl Vcpu {
    pub(super) fn new(
        fd: VcpuFd,
        run_size: usize,
        memory: Arc<Memory>,
        abilities: Arc<Abilities>,
    ) -> Result<Vcpu, EngineError> {
        let page = RunPage::map(&fd, run_size).map_err(|error| refused("Cannot map kvm_run", error))?;
        let page = Arc::new(page);
        let mut vcpu = Vcpu {
            fd,
            kick: Arc::new(VcpuKick::new(Arc::clone(&page))),
            page,
            memory,
            abilities,
            registers: Registers::default(),
            cpuid: Vec::new(),
            in_flight: InFlight::Nothing,
            pending_exit: None,
            watch: None,
            debugging: Debugging::None,
            leaves_behind: false,
            window_wanted: false,
            cr8: 0,
            failure: None,
        };
        // Fills `kvm_run` with the registers.
        vcpu.call_without_guest().map_err(|what| EngineError { what, source: None })?;
        Ok(vcpu)
    }

    /// Runs the guest until it exits.
    pub(super) fn run_guest(&mut self, budget: Duration) -> Result<Exit, String> {
        if self.window_wanted && self.interruptible() {
            return Ok(Exit::InterruptWindow);
        }
        self.page.set_request_interrupt_window(self.window_wanted);
        // Where KVM emulates instructions, it may go on past an open window (kvm_pvm does, up to the next exit). Look often.
        let first_look = if self.window_wanted { budget.min(REPEAT) } else { budget };
        let _clock = arm_clock(first_look).map_err(|error| format!("Cannot arm the clock of a run: {error}"))?;
        let kick = Arc::clone(&self.kick);
        let _running = kick.running();
        let began = Instant::now();
        loop {
            if let Some(exit) = self.call_run()? {
                return Ok(exit);
            }
            if kick.take() {
                return Ok(Exit::Kicked);
            }
            if self.window_wanted && self.interruptible() {
                return Ok(Exit::InterruptWindow);
            }
            if began.elapsed() >= budget {
                return Ok(Exit::Budget);
            }
        }
    }

    /// Calls `KVM_RUN` once; `None` when it was interrupted.
    fn call_run(&mut self) -> Result<Option<Exit>, String> {
        let new_registers = self.registers.is_dirty();
        let written = self.registers.write_back(&self.page, &self.fd);
        written.map_err(|error| format!("KVM refuses the debug registers: {error}"))?;
        let result = self.fd.run().map(drop);
        self.registers.forget();
        self.in_flight = InFlight::Nothing;
        match result {
            // What kvm-ioctls makes of the exit hides the size of a string instruction's elements.
            Ok(()) => self.take_exit(),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Ok(None),
                libc::EINVAL if new_registers => Err("KVM refuses the registers of the vCPU".into()),
                _ => Err(format!("KVM_RUN failed: {}", io::Error::from(error))),
            },
        }
    }

    /// Calls `KVM_RUN` for what it does before it enters the guest: it takes the registers that were set, and finishes the
    /// instruction in flight, which may go on with another access.
    pub(super) fn call_without_guest(&mut self) -> Result<Option<Exit>, String> {
        let kick = Arc::clone(&self.kick);
        kick.without_guest(|| self.call_run())
    }

    /// Reads the exit from `kvm_run`.
    fn take_exit(&mut self) -> Result<Option<Exit>, String> {
        Ok(Some(match self.page.exit_reason() {
            KVM_EXIT_IO => self.take_element(self.page.io(), 0),
            KVM_EXIT_MMIO => {
                let mmio = self.page.mmio();
                let access = if mmio.write.is_some() { Access::MmioWrite } else { Access::MmioRead };
                self.in_flight = InFlight::Asks(access);
                match mmio.write {
                    Some(data) => Exit::MmioWrite { gpa: mmio.gpa, size: mmio.size, data },
                    None => Exit::MmioRead { gpa: mmio.gpa, size: mmio.size },
                }
            }
            KVM_EXIT_X86_RDMSR => {
                self.in_flight = InFlight::Asks(Access::Msr);
                Exit::RdMsr { index: self.page.msr().index }
            }
            KVM_EXIT_X86_WRMSR => {
                self.in_flight = InFlight::Asks(Access::Msr);
                let msr = self.page.msr();
                Exit::WrMsr { index: msr.index, value: msr.value }
            }
            KVM_EXIT_HLT => Exit::Hlt,
            KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
            KVM_EXIT_DEBUG => Exit::Trap(Trap::Step),
            KVM_EXIT_SET_TPR => Exit::TprWrite { tpr: tpr(self.page.cr8()) },
            KVM_EXIT_SHUTDOWN => self.shutdown()?,
            KVM_EXIT_INTR => return Ok(None),
            KVM_EXIT_INTERNAL_ERROR => return self.internal_error().map(Some),
            KVM_EXIT_FAIL_ENTRY => {
                return Err(format!(
                    "The processor refuses the guest's state (reason {:#x})",
                    self.page.fail_entry_reason()
                ));
            }
            reason => return Err(format!("KVM_RUN ended with the exit {reason}, which nobody asked for")),
        }))
    }

    /// The exit for one element of a port access.
    fn take_element(&mut self, io: Io, index: u32) -> Exit {
        self.in_flight = InFlight::Asks(Access::Port { io, index });
        let Io { port, size, .. } = io;
        match io.out {
            true => Exit::IoOut { port, size, data: self.page.io_data(&io, index) },
            false => Exit::IoIn { port, size },
        }
    }

    /// KVM gave up: because the guest fetches from where no memory is, which is no fault of KVM's, or for another reason.
    fn internal_error(&mut self) -> Result<Exit, String> {
        let (suberror, data) = self.page.internal_error();
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Err(format!("KVM met an internal error ({suberror}, {data:x?})"));
        }
        let rip = self.reg(Reg::Rip);
        let linear = self.desc(Reg::Cs).base.wrapping_add(rip);
        let next_page = (linear | (PAGE_SIZE - 1)).wrapping_add(1);
        let crosses = next_page.wrapping_sub(linear) < LONGEST_INSTRUCTION;
        for linear in [Some(linear), crosses.then_some(next_page)].into_iter().flatten() {
            if let Some(gpa) = self.translate(linear)
                && self.memory.is_unmapped(gpa)
            {
                return Ok(Exit::MmioFetch { gpa });
            }
        }
        Err(format!("KVM cannot emulate the instruction at RIP {rip:#x} ({data:x?})"))
    }

    /// The guest met a triple fault, or something that this KVM does not do.
    fn shutdown(&mut self) -> Result<Exit, String> {
        if !self.abilities.legacy_paging && self.reg(Reg::Efer) & LMA == 0 {
            let rip = self.reg(Reg::Rip);
            let linear = self.desc(Reg::Cs).base.wrapping_add(rip);
            let mut opcode = [0; 2];
            let turns_paging_on = self.memory.read(linear, &mut opcode) && opcode == MOV_TO_CR;
            if turns_paging_on || self.reg(Reg::Cr0) & PG != 0 {
                return Err(format!("KVM does not do paging outside long mode here (RIP {rip:#x})"));
            }
        }
        Ok(Exit::Shutdown)
    }

    /// Finishes an instruction that has its answer, so that the registers are those behind it.
    fn finish_instruction(&mut self) {
        if self.in_flight != InFlight::Answered {
            return;
        }
        match self.call_without_guest() {
            Ok(exit) => self.pending_exit = exit,
            Err(what) => self.failure = Some(what),
        }
    }

    /// Abandons the instruction in flight: the registers are those before it.
    fn abandon_instruction(&mut self) {
        self.finish_instruction();
        if self.in_flight == InFlight::Nothing {
            return;
        }
        // KVM cannot forget it, but can be made to finish it with nothings, and then be given the registers back.
        let saved = self.registers.save(&self.page);
        for _ in 0..MOST_ACCESSES {
            match self.in_flight {
                InFlight::Nothing => break,
                // All elements that a string instruction reads ahead, of which there may be a thousand.
                InFlight::Asks(Access::Port { io, index }) => (index..io.count).for_each(|_| self.answer(0)),
                InFlight::Asks(_) => self.answer(0),
                InFlight::Answered => self.finish_instruction(),
            }
        }
        self.pending_exit = None;
        self.registers.restore(&self.page, saved);
    }

    /// Gives the instruction in flight a value.
    fn answer(&mut self, value: u64) {
        let InFlight::Asks(access) = self.in_flight else { return };
        match access {
            Access::Port { io, index } => {
                if !io.out {
                    self.page.set_io_data(&io, index, value as u32);
                }
                if index + 1 < io.count {
                    let exit = self.take_element(io, index + 1);
                    self.pending_exit = Some(exit);
                    return;
                }
            }
            Access::MmioRead => self.page.set_mmio_data(value),
            Access::MmioWrite => {}
            Access::Msr => self.page.set_msr(Some(value)),
        }
        self.in_flight = InFlight::Answered;
    }

    /// The result of a call whose caller cannot be told of its failure; the next run tells.
    fn note<T: Default>(&mut self, result: io::Result<T>, what: &str) -> T {
        result.unwrap_or_else(|error| {
            self.failure.get_or_insert_with(|| format!("{what}: {error}"));
            T::default()
        })
    }
}

impl EngineVcpu for Vcpu {
    fn reg(&mut self, reg: Reg) -> u64 {
        self.finish_instruction();
        let value = self.registers.get(&self.page, &self.fd, reg);
        self.note(value, "Cannot read a register")
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        self.abandon_instruction();
        let result = self.registers.set(&self.page, &self.fd, reg, value);
        self.note(result, "Cannot write a register");
    }

    fn desc(&mut self, reg: Reg) -> SegDesc {
        self.finish_instruction();
        self.registers.desc(&self.page, reg)
    }

    fn set_desc(&mut self, reg: Reg, desc: SegDesc) {
        self.abandon_instruction();
        self.registers.set_desc(&self.page, reg, desc);
    }

    fn fpu(&mut self) -> FpuState {
        self.finish_instruction();
        let state = fpu::get(&self.fd);
        state.unwrap_or_else(|error| {
            self.note::<()>(Err(error), "Cannot read the FPU");
            FpuState { image: [0; 512], xcr0: 0 }
        })
    }

    fn set_fpu(&mut self, state: &FpuState) {
        self.abandon_instruction();
        let result = fpu::set(&self.fd, state);
        self.note(result, "Cannot write the FPU");
    }

    fn set_cpuid(&mut self, table: &[CpuidEntry]) {
        // Once the vCPU has run, KVM takes no table, be it the one that it has (it has adjusted that).
        if self.cpuid == table {
            return;
        }
        self.cpuid = table.to_vec();
        let table = CpuId::from_entries(&cpuid::table(table, &self.abilities.cpuid));
        let result = table.map_err(|_| io::ErrorKind::InvalidInput.into());
        let result = result.and_then(|table| Ok(self.fd.set_cpuid2(&table)?));
        self.note(result, "KVM refuses the CPUID table");
    }

    fn set_cr8(&mut self, tpr: u8) {
        self.cr8 = u64::from(tpr >> 4);
        self.page.set_cr8(self.cr8);
    }

    fn run(&mut self, budget_ns: u64) -> Exit {
        if let Some(exit) = self.pending_exit.take_if(|exit| !matches!(exit, Exit::Trap(_))) {
            return exit;
        }
        if let Some(what) = self.failure.take() {
            return Exit::Failed(what);
        }
        let budget = Duration::from_nanos(budget_ns).max(SHORTEST_BUDGET);
        let exit = match self.watch.take() {
            None => self.run_guest(budget),
            Some(mut watch) => {
                let exit = self.run_watched(budget, &mut watch);
                self.watch = Some(watch);
                exit
            }
        };
        let exit = exit.unwrap_or_else(Exit::Failed);
        // Only a CR8 that becomes smaller makes KVM exit, and an emulated write never.
        let cr8 = self.page.cr8();
        if cr8 == self.cr8 {
            return exit;
        }
        self.cr8 = cr8;
        if !matches!(exit, Exit::TprWrite { .. }) {
            self.pending_exit = Some(exit);
        }
        Exit::TprWrite { tpr: tpr(cr8) }
    }

    fn elapsed_ns(&self) -> u64 {
        0
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    fn set_time(&mut self, _now_ns: u64) {}

    fn complete(&mut self, completion: Completion) {
        if self.pending_exit.is_some() {
            // The exit that it would answer was not told yet.
            return;
        }
        match (completion, self.in_flight) {
            (Completion::GeneralProtection, InFlight::Asks(Access::Msr)) => {
                self.page.set_msr(None);
                self.in_flight = InFlight::Answered;
            }
            (Completion::GeneralProtection, InFlight::Asks(_)) => {
                self.inject(Inject::Exception { vector: GENERAL_PROTECTION, error_code: Some(0) });
            }
            (Completion::Value(value), _) => self.answer(value),
            (Completion::Done, _) | (Completion::GeneralProtection, _) => self.answer(0),
        }
    }

    fn interruptible(&mut self) -> bool {
        let between_instructions = self.in_flight == InFlight::Nothing && self.pending_exit.is_none();
        between_instructions && self.registers.interruptible(&self.page)
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
    }

    fn inject(&mut self, event: Inject) {
        if matches!(event, Inject::Exception { .. }) {
            self.abandon_instruction();
        }
        self.registers.inject(&self.page, event);
    }

    fn set_traps(&mut self, traps: &Traps) {
        let result = self.watch_for(traps);
        self.note(result, "KVM refuses to debug the guest");
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.finish_instruction();
        if self.registers.is_dirty() {
            self.call_without_guest().ok()?;
        }
        let translation = self.fd.translate_gva(linear).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        // What KVM does not implement, it fails at.
        Vec::new()
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }
}

/// The task priority register for a CR8 (SDM 3A 11.8.6.1).
fn tpr(cr8: u64) -> u8 {
    (cr8 as u8 & 0xf) << 4
}
