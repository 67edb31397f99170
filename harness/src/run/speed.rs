//! How fast an engine executes ring 0: what decides whether it can boot an operating system.

use std::sync::Arc;
use std::time::Instant;
use vmm::engine::{Engine, Exit, Reg};
use vmm::memory::{PAGE_SIZE, Protection, Segment};

/// What an operating system needs, in million instructions a second: Linux takes about 500 million from its first one to
/// its init, and its own patience with a CPU that it starts ends after 10 seconds.
pub const NEEDED_MIPS: f64 = 50.0;

/// How many instructions are timed.
const INSTRUCTIONS: u32 = 40_000;

/// Times a loop in real mode, the best of three; million instructions a second.
///
/// # Errors
/// What the engine could not do.
pub fn measure(engine: &dyn Engine) -> Result<f64, String> {
    let once = || time_loop(engine).map(|seconds| f64::from(INSTRUCTIONS) / 1e6 / seconds);
    Ok(once()?.max(once()?).max(once()?))
}

fn time_loop(engine: &dyn Engine) -> Result<f64, String> {
    // mov ecx, INSTRUCTIONS / 2; again: dec ecx; jnz again; hlt
    let [a, b, c, d] = (INSTRUCTIONS / 2).to_le_bytes();
    let code = [0x66, 0xb9, a, b, c, d, 0x66, 0x49, 0x75, 0xfc, 0xf4];
    let segment = Segment::new(PAGE_SIZE as usize).map_err(|error| format!("a page cannot be allocated: {error}"))?;
    assert!(segment.write(0, &code), "the code fits into a page");
    let vm = engine.create_vm().map_err(|error| error.to_string())?;
    vm.map(0, &Arc::new(segment), 0, PAGE_SIZE, Protection { write: true }).map_err(|error| error.to_string())?;
    let mut vcpu = vm.create_vcpu(0).map_err(|error| error.to_string())?;
    let mut cs = vcpu.desc(Reg::Cs);
    cs.base = 0;
    vcpu.set_desc(Reg::Cs, cs);
    vcpu.set_reg(Reg::Cs, 0);
    vcpu.set_reg(Reg::Rip, 0);
    let began = Instant::now();
    loop {
        match vcpu.run(1_000_000_000) {
            Exit::Hlt => break,
            Exit::Budget => {}
            other => return Err(format!("a loop of {INSTRUCTIONS} instructions ended with {other:?}")),
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if vcpu.reg(Reg::Rcx) & 0xffff_ffff != 0 {
        return Err("a loop ended before its time".into());
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::engine::soft::SoftEngine;

    #[test]
    fn the_software_processor_has_a_speed() {
        let mips = measure(&SoftEngine::new()).expect("it runs the loop");
        assert!(mips > 0.1 && mips.is_finite(), "{mips}");
    }
}
