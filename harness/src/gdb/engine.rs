//! The engine between the kernel and the one that works.

use super::session::Session;
use super::target::{Mapping, SharedVcpu};
use parking_lot::Mutex;
use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use vmm::engine::soft::NS_PER_INSTRUCTION;
use vmm::engine::{
    Completion, CpuidEntry, Engine, EngineError, EngineVcpu, EngineVm, Exit, FpuState, Inject, Kick, Reg, SegDesc,
    Unimplemented,
};
use vmm::memory::{Protection, Segment};

/// An engine whose one machine is under GDB. It waits for GDB when the first vCPU is about to run.
pub struct DebuggedEngine {
    engine: Arc<dyn Engine>,
    session: Arc<Mutex<Session>>,
}

impl DebuggedEngine {
    /// Puts an engine under the debugger that connects to `listener`. Its runs have to end when their budget is spent, to
    /// the instruction, and to take turns: `soft`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, listener: TcpListener) -> DebuggedEngine {
        DebuggedEngine { engine, session: Arc::new(Mutex::new(Session::new(listener))) }
    }
}

impl fmt::Debug for DebuggedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DebuggedEngine({:?})", self.engine)
    }
}

impl Engine for DebuggedEngine {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn backend(&self) -> String {
        self.engine.backend()
    }

    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        Ok(Arc::new(DebuggedVm { vm: self.engine.create_vm()?, session: Arc::clone(&self.session) }))
    }
}

struct DebuggedVm {
    vm: Arc<dyn EngineVm>,
    session: Arc<Mutex<Session>>,
}

impl EngineVm for DebuggedVm {
    fn map(
        &self,
        gpa: u64,
        segment: &Arc<Segment>,
        offset: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), EngineError> {
        self.vm.map(gpa, segment, offset, len, protection)?;
        self.session.lock().machine.memory.push(Mapping { gpa, len, segment: Arc::clone(segment), offset });
        Ok(())
    }

    fn unmap(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        self.vm.unmap(gpa, len)?;
        self.session.lock().machine.memory.retain(|mapping| mapping.gpa != gpa || mapping.len != len);
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn EngineVcpu>, EngineError> {
        let vcpu: SharedVcpu = Arc::new(Mutex::new(self.vm.create_vcpu(id)?));
        self.session.lock().machine.vcpus.insert(id, Arc::clone(&vcpu));
        Ok(Box::new(DebuggedVcpu { id, vcpu, session: Arc::clone(&self.session), now_ns: 0, elapsed_ns: 0 }))
    }
}

impl Drop for DebuggedVm {
    fn drop(&mut self) {
        self.session.lock().over();
    }
}

struct DebuggedVcpu {
    id: u32,
    vcpu: SharedVcpu,
    session: Arc<Mutex<Session>>,
    now_ns: u64,
    elapsed_ns: u64,
}

impl DebuggedVcpu {
    /// Lets GDB have its say, and returns whether it wants to be asked again after one instruction.
    fn before(&self) -> bool {
        let mut session = self.session.lock();
        let mut vcpu = self.vcpu.lock();
        if let Some(why) = session.before(self.id, &mut **vcpu) {
            // GDB reads registers through the same lock.
            drop(vcpu);
            session.stop(self.id, why);
        }
        session.watches()
    }
}

impl EngineVcpu for DebuggedVcpu {
    fn run(&mut self, budget_ns: u64) -> Exit {
        self.elapsed_ns = 0;
        loop {
            let one_by_one = self.before();
            let mut vcpu = self.vcpu.lock();
            vcpu.set_time(self.now_ns + self.elapsed_ns);
            let exit = vcpu.run(if one_by_one { 1 } else { budget_ns - self.elapsed_ns });
            self.elapsed_ns += vcpu.elapsed_ns();
            // As there, an instruction that would exceed the budget is not begun.
            if exit != Exit::Budget || self.elapsed_ns + NS_PER_INSTRUCTION > budget_ns {
                return exit;
            }
        }
    }

    fn elapsed_ns(&self) -> u64 {
        self.elapsed_ns
    }

    fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.vcpu.lock().set_time(now_ns);
    }

    fn reg(&mut self, reg: Reg) -> u64 {
        self.vcpu.lock().reg(reg)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        self.vcpu.lock().set_reg(reg, value);
    }

    fn desc(&mut self, reg: Reg) -> SegDesc {
        self.vcpu.lock().desc(reg)
    }

    fn set_desc(&mut self, reg: Reg, desc: SegDesc) {
        self.vcpu.lock().set_desc(reg, desc);
    }

    fn fpu(&mut self) -> FpuState {
        self.vcpu.lock().fpu()
    }

    fn set_fpu(&mut self, state: &FpuState) {
        self.vcpu.lock().set_fpu(state);
    }

    fn set_cpuid(&mut self, table: &[CpuidEntry]) {
        self.vcpu.lock().set_cpuid(table);
    }

    fn set_cr8(&mut self, tpr: u8) {
        self.vcpu.lock().set_cr8(tpr);
    }

    fn instructions(&self) -> Option<u64> {
        self.vcpu.lock().instructions()
    }

    fn complete(&mut self, completion: Completion) {
        self.vcpu.lock().complete(completion);
    }

    fn interruptible(&mut self) -> bool {
        self.vcpu.lock().interruptible()
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.vcpu.lock().request_interrupt_window(wanted);
    }

    fn inject(&mut self, event: Inject) {
        self.vcpu.lock().inject(event);
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.vcpu.lock().translate(linear)
    }

    fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        self.vcpu.lock().take_unimplemented()
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.vcpu.lock().kick_handle()
    }
}
