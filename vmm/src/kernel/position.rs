//! Where a vCPU is: what one wants to know first about a cell that does not end.

use super::vm::VmState;
use crate::engine::Reg;
use std::fmt;

/// CR0.PE (SDM 3A 2.5).
const CR0_PE: u64 = 1 << 0;
/// EFER.LMA (SDM 3A 2.2.1).
const EFER_LMA: u64 = 1 << 10;

/// Where a vCPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its number.
    pub vcpu: usize,
    /// `real`, `protected` or `long` mode, CS selector and RIP; `None` when it has never run, or is in the guest now.
    pub at: Option<(&'static str, u16, u64)>,
    /// `idle`, `frozen`, `running` or `sleeping`, as `vcpu_get_state` has it.
    pub state: String,
    /// Whether userspace has activated it.
    pub active: bool,
}

/// `vCPU 0: long mode, cs:rip 0008:0000000000100000, running`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: ", self.vcpu)?;
        match self.at {
            Some((mode, cs, rip)) => write!(f, "{mode} mode, cs:rip {cs:04x}:{rip:016x}, ")?,
            None => f.write_str("no register to be had, ")?,
        }
        f.write_str(&self.state)?;
        if !self.active {
            f.write_str(", not active")?;
        }
        Ok(())
    }
}

/// The vCPUs that are active or have run.
pub(super) fn of(st: &mut VmState) -> Vec<Position> {
    let active = st.active;
    let vcpus = st.vcpus.iter_mut().flatten();
    vcpus
        .map(|vcpu| Position {
            vcpu: vcpu.id,
            at: vcpu.engine.as_mut().map(|engine| {
                let mode = match (engine.reg(Reg::Cr0) & CR0_PE, engine.reg(Reg::Efer) & EFER_LMA) {
                    (0, _) => "real",
                    (_, 0) => "protected",
                    _ => "long",
                };
                (mode, engine.reg(Reg::Cs) as u16, engine.reg(Reg::Rip))
            }),
            state: format!("{:?}", vcpu.state).to_lowercase(),
            active: active.contains(vcpu.id),
        })
        .filter(|position| position.active || position.at.is_some())
        .collect()
}
