//! An engine whose guest does what a script says.

use crate::engine::{
    Completion, CpuidEntry, Engine, EngineError, EngineVcpu, EngineVm, Exit, FpuState, Inject, Kick, Reg, SegDesc,
    Traps, Unimplemented,
};
use crate::memory::{Protection, Segment};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The port at which a scripted guest ends: VM_RUN returns to userspace there.
pub(super) const LAST_PORT: u16 = 0x1234;

/// A script per vCPU. A vCPU whose script is over writes to [`LAST_PORT`] for ever.
#[derive(Clone, Debug, Default)]
pub(in crate::kernel) struct Scripted {
    scripts: BTreeMap<u32, Vec<Exit>>,
    completions: Completions,
    fpus: Fpus,
}

/// The x87 and SSE registers of the vCPUs that were made.
pub(super) type Fpus = Arc<std::sync::Mutex<BTreeMap<u32, FpuState>>>;

/// How the kernel answered the exits.
pub(super) type Completions = Arc<std::sync::Mutex<Vec<Completion>>>;

impl Scripted {
    pub(in crate::kernel) fn new() -> Scripted {
        Scripted::default()
    }

    /// Where the answers to the exits will be.
    pub(super) fn completions(&self) -> Completions {
        Arc::clone(&self.completions)
    }

    /// Where the x87 and SSE registers are.
    pub(super) fn fpus(&self) -> Fpus {
        Arc::clone(&self.fpus)
    }

    /// Appends to a vCPU's script.
    pub(super) fn vcpu(mut self, id: u32, exits: impl IntoIterator<Item = Exit>) -> Scripted {
        self.scripts.entry(id).or_default().extend(exits);
        self
    }
}

/// ICR_HI and ICR_LO of an xAPIC, or one WRMSR of an x2APIC.
pub(super) fn icr(x2apic: bool, dest: u32, low: u32) -> Vec<Exit> {
    const ICR_LO: u64 = 0xfee0_0300;
    const ICR_HI: u64 = 0xfee0_0310;
    const MSR_ICR: u32 = 0x830;
    if x2apic {
        return vec![Exit::WrMsr { index: MSR_ICR, value: u64::from(dest) << 32 | u64::from(low) }];
    }
    vec![
        Exit::MmioWrite { gpa: ICR_HI, size: 4, data: u64::from(dest) << 24 },
        Exit::MmioWrite { gpa: ICR_LO, size: 4, data: u64::from(low) },
    ]
}

impl Engine for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn backend(&self) -> String {
        "a test's script".to_owned()
    }

    fn lacks_traps(&self) -> Result<Option<String>, String> {
        Err("A script has no instructions".to_owned())
    }

    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        let completions = Arc::clone(&self.completions);
        let fpus = Arc::clone(&self.fpus);
        Ok(Arc::new(ScriptedVm { scripts: Mutex::new(self.scripts.clone()), completions, fpus }))
    }
}

struct ScriptedVm {
    scripts: Mutex<BTreeMap<u32, Vec<Exit>>>,
    completions: Completions,
    fpus: Fpus,
}

impl EngineVm for ScriptedVm {
    fn map(&self, _: u64, _: &Arc<Segment>, _: u64, _: u64, _: Protection) -> Result<(), EngineError> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), EngineError> {
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn EngineVcpu>, EngineError> {
        let script = self.scripts.lock().remove(&id).unwrap_or_default().into();
        let completions = Arc::clone(&self.completions);
        let fpus = Arc::clone(&self.fpus);
        fpus.lock().expect("one thread").insert(id, FpuState { image: [0; 512], xcr0: 1 });
        Ok(Box::new(ScriptedVcpu { id, script, completions, fpus, regs: BTreeMap::new(), descs: BTreeMap::new() }))
    }
}

struct ScriptedVcpu {
    id: u32,
    script: VecDeque<Exit>,
    completions: Completions,
    fpus: Fpus,
    regs: BTreeMap<Reg, u64>,
    descs: BTreeMap<Reg, SegDesc>,
}

struct NoKick;

impl Kick for NoKick {
    fn kick(&self) {}
}

impl EngineVcpu for ScriptedVcpu {
    fn reg(&mut self, reg: Reg) -> u64 {
        self.regs.get(&reg).copied().unwrap_or(0)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        self.regs.insert(reg, value);
    }

    fn desc(&mut self, reg: Reg) -> SegDesc {
        self.descs.get(&reg).copied().unwrap_or_default()
    }

    fn set_desc(&mut self, reg: Reg, desc: SegDesc) {
        self.descs.insert(reg, desc);
    }

    fn set_cpuid(&mut self, _: &[CpuidEntry]) {}

    fn set_cr8(&mut self, _: u8) {}

    fn run(&mut self, _: u64) -> Exit {
        self.script.pop_front().unwrap_or(Exit::IoOut { port: LAST_PORT, size: 1, data: 0 })
    }

    fn elapsed_ns(&self) -> u64 {
        100
    }

    fn instructions(&self) -> Option<u64> {
        None
    }

    fn set_time(&mut self, _: u64) {}

    fn complete(&mut self, completion: Completion) {
        self.completions.lock().expect("one thread").push(completion);
    }

    fn interruptible(&mut self) -> bool {
        const RFLAGS_IF: u64 = 1 << 9;
        self.reg(Reg::Rflags) & RFLAGS_IF != 0
    }

    fn request_interrupt_window(&mut self, _: bool) {}

    fn inject(&mut self, _: Inject) {}

    fn set_traps(&mut self, _: &Traps) {}

    fn translate(&mut self, _: u64) -> Option<u64> {
        None
    }

    fn fpu(&mut self) -> FpuState {
        self.fpus.lock().expect("one thread")[&self.id]
    }

    fn set_fpu(&mut self, state: &FpuState) {
        self.fpus.lock().expect("one thread").insert(self.id, *state);
    }

    fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        Vec::new()
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::new(NoKick)
    }
}
