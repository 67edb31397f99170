//! The engine between the kernel and the one that works.

use super::debugger::{Debugger, Next};
use super::target::{Mapping, StoppableVcpu};
use parking_lot::Mutex;
use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmm::engine::{
    Completion, CpuidEntry, Engine, EngineError, EngineVcpu, EngineVm, Exit, FpuState, Inject, Kick, Reg, SegDesc,
    Traps, Unimplemented,
};
use vmm::host::Host;
use vmm::memory::{Protection, Segment};

/// An engine whose one machine is under GDB. It waits for GDB when the first vCPU is about to run.
pub struct DebuggedEngine {
    engine: Arc<dyn Engine>,
    debugger: Arc<Debugger>,
}

impl DebuggedEngine {
    /// Puts an engine, for a machine on `host`, under the debugger that connects to `listener`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, listener: TcpListener, host: &Host) -> DebuggedEngine {
        DebuggedEngine { engine, debugger: Arc::new(Debugger::new(listener, host)) }
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

    fn lacks_traps(&self) -> Result<Option<String>, String> {
        self.engine.lacks_traps()
    }

    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        Ok(Arc::new(DebuggedVm { vm: self.engine.create_vm()?, debugger: Arc::clone(&self.debugger) }))
    }
}

struct DebuggedVm {
    vm: Arc<dyn EngineVm>,
    debugger: Arc<Debugger>,
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
        self.debugger.session.lock().machine.memory.push(Mapping { gpa, len, segment: Arc::clone(segment), offset });
        Ok(())
    }

    fn unmap(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        self.vm.unmap(gpa, len)?;
        self.debugger.session.lock().machine.memory.retain(|mapping| mapping.gpa != gpa || mapping.len != len);
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn EngineVcpu>, EngineError> {
        let vcpu = self.vm.create_vcpu(id)?;
        let kick = Arc::new(KernelKick { kick: vcpu.kick_handle(), kicked: AtomicBool::new(false) });
        let stoppable = StoppableVcpu {
            engine: Arc::new(Mutex::new(vcpu)),
            kick: Arc::clone(&kick.kick),
            in_guest: Arc::default(),
        };
        self.debugger.session.lock().add(id, stoppable.clone());
        let debugger = Arc::clone(&self.debugger);
        Ok(Box::new(DebuggedVcpu { id, vcpu: stoppable, kick, debugger, now_ns: 0, elapsed_ns: 0 }))
    }
}

impl Drop for DebuggedVm {
    fn drop(&mut self) {
        self.debugger.over();
    }
}

struct DebuggedVcpu {
    id: u32,
    vcpu: StoppableVcpu,
    kick: Arc<KernelKick>,
    debugger: Arc<Debugger>,
    now_ns: u64,
    elapsed_ns: u64,
}

/// Kicks of the kernel's, which have to be told from the debugger's.
struct KernelKick {
    kick: Arc<dyn Kick>,
    kicked: AtomicBool,
}

impl Kick for KernelKick {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.kick.kick();
    }
}

impl DebuggedVcpu {
    /// Runs for what is left of the budget.
    fn enter(&mut self, budget_ns: u64) -> Exit {
        let mut vcpu = self.vcpu.engine.lock();
        vcpu.set_time(self.now_ns + self.elapsed_ns);
        let exit = vcpu.run(budget_ns.saturating_sub(self.elapsed_ns));
        self.elapsed_ns += vcpu.elapsed_ns();
        exit
    }
}

impl EngineVcpu for DebuggedVcpu {
    fn run(&mut self, budget_ns: u64) -> Exit {
        self.elapsed_ns = 0;
        let debugger = Arc::clone(&self.debugger);
        let (id, in_guest) = (self.id, Arc::clone(&self.vcpu.in_guest));
        loop {
            let resumed = debugger.session.lock().resumed;
            // In this order: who wants it to look finds it in the guest, or it looks.
            in_guest.store(true, Ordering::SeqCst);
            let exit = if debugger.wants_look() { None } else { Some(self.enter(budget_ns)) };
            in_guest.store(false, Ordering::SeqCst);
            let next = match exit {
                None => debugger.look(id, || self.enter(budget_ns)),
                Some(Exit::Trap(trap)) => debugger.trapped(id, trap, resumed, || self.enter(budget_ns)),
                Some(Exit::Kicked) if !self.kick.kicked.swap(false, Ordering::SeqCst) => Next::Guest,
                Some(exit) => Next::Left(exit),
            };
            match next {
                Next::Guest => {}
                Next::Left(exit) => return exit,
                Next::End => return Exit::Kicked,
            }
        }
    }

    fn elapsed_ns(&self) -> u64 {
        self.elapsed_ns
    }

    fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.vcpu.engine.lock().set_time(now_ns);
    }

    fn reg(&mut self, reg: Reg) -> u64 {
        self.vcpu.engine.lock().reg(reg)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        self.vcpu.engine.lock().set_reg(reg, value);
    }

    fn desc(&mut self, reg: Reg) -> SegDesc {
        self.vcpu.engine.lock().desc(reg)
    }

    fn set_desc(&mut self, reg: Reg, desc: SegDesc) {
        self.vcpu.engine.lock().set_desc(reg, desc);
    }

    fn fpu(&mut self) -> FpuState {
        self.vcpu.engine.lock().fpu()
    }

    fn set_fpu(&mut self, state: &FpuState) {
        self.vcpu.engine.lock().set_fpu(state);
    }

    fn set_cpuid(&mut self, table: &[CpuidEntry]) {
        self.vcpu.engine.lock().set_cpuid(table);
    }

    fn set_cr8(&mut self, tpr: u8) {
        self.vcpu.engine.lock().set_cr8(tpr);
    }

    fn instructions(&self) -> Option<u64> {
        self.vcpu.engine.lock().instructions()
    }

    fn complete(&mut self, completion: Completion) {
        self.vcpu.engine.lock().complete(completion);
    }

    fn interruptible(&mut self) -> bool {
        self.vcpu.engine.lock().interruptible()
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.vcpu.engine.lock().request_interrupt_window(wanted);
    }

    fn inject(&mut self, event: Inject) {
        self.vcpu.engine.lock().inject(event);
    }

    fn translate(&mut self, linear: u64) -> Option<u64> {
        self.vcpu.engine.lock().translate(linear)
    }

    fn take_unimplemented(&mut self) -> Vec<Unimplemented> {
        self.vcpu.engine.lock().take_unimplemented()
    }

    fn set_traps(&mut self, traps: &Traps) {
        self.vcpu.engine.lock().set_traps(traps);
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }
}
