//! The modes that are compared with KVM, what came of it, and where KVM does not do what the manual says.
//!
//! What KVM made of the cases of every form is recorded, a file for each mode and a line for each form: its name, the cases
//! in which KVM did as the manual says, those in which it did not, both as bits, and a digest of the results of the former.

#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "the document alone is made where there is no KVM")
)]

use Mnemonic as M;
use iced_x86::Mnemonic;
use std::fmt::Write;

/// A mode that forms are compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Real,
    Protected16,
    Protected32,
    Long,
    /// 64-bit mode at privilege level 3: system instructions only, the others are compared with the host itself.
    User,
}

impl Mode {
    pub(super) const ALL: [Mode; 5] = [Mode::Real, Mode::Protected16, Mode::Protected32, Mode::Long, Mode::User];

    pub(super) fn bits(self) -> u32 {
        match self {
            Mode::Real | Mode::Protected16 => 16,
            Mode::Protected32 => 32,
            Mode::Long | Mode::User => 64,
        }
    }

    pub(super) fn is_protected(self) -> bool {
        matches!(self, Mode::Protected16 | Mode::Protected32)
    }

    fn words(self) -> &'static str {
        match self {
            Mode::Real => "real mode",
            Mode::Protected16 => "protected mode, 16 bits, ring 0",
            Mode::Protected32 => "protected mode, 32 bits, ring 0",
            Mode::Long => "64-bit mode, ring 0",
            Mode::User => "64-bit mode, ring 3, system instructions",
        }
    }

    /// The file of its record.
    pub(super) fn record(self) -> String {
        let name = match self {
            Mode::Real => "real",
            Mode::Protected16 => "protected16",
            Mode::Protected32 => "protected32",
            Mode::Long => "long",
            Mode::User => "user",
        };
        format!("{}/src/engine/soft/tests/mode-{name}.txt", env!("CARGO_MANIFEST_DIR"))
    }
}

/// Where KVM's emulator, which executes everything but user mode for `kvm_pvm`, does not do what the manual says.
pub(super) struct Deviation {
    pub(super) mnemonics: &'static [Mnemonic],
    pub(super) modes: &'static [Mode],
    /// What differs, as [`super::modes`] begins to say it; anything, if empty.
    pub(super) what: &'static str,
    /// What the manual says, and what KVM does.
    pub(super) why: &'static str,
}

/// All of them.
pub(super) const DEVIATIONS: &[Deviation] = &[
    Deviation {
        mnemonics: &[M::Tzcnt, M::Lzcnt],
        modes: &[Mode::Real, Mode::Protected16, Mode::Protected32, Mode::Long],
        what: "",
        why: "the emulator executes BSF and BSR, though CPUID announces BMI1 and LZCNT (SDM 2, TZCNT and LZCNT)",
    },
    Deviation {
        mnemonics: &[M::Enter],
        modes: &[Mode::Real, Mode::Protected16, Mode::Protected32, Mode::Long],
        what: "Rsp",
        why: "the emulator pushes as many bytes as the stack is wide, where the operand size decides (SDM 2A, ENTER)",
    },
    Deviation {
        mnemonics: &[M::Aad, M::Aam],
        modes: &[Mode::Real, Mode::Protected16, Mode::Protected32],
        what: "flags",
        why: "the emulator takes SF and ZF from more than AL, by whose value alone they are set (SDM 2A, AAD and AAM)",
    },
    Deviation {
        mnemonics: &[M::Mov, M::Sldt, M::Str],
        modes: &[Mode::Long, Mode::User],
        what: "memory",
        why: "with REX.W the emulator stores 8 bytes of a selector, of which memory takes 16 bits \"regardless of operand size\" \
              (SDM 2, MOV, SLDT, STR)",
    },
    Deviation {
        mnemonics: &[M::Iret, M::Iretd],
        modes: &[Mode::Long],
        what: "",
        why: "the emulator raises #GP(0), where 64-bit mode has returns of 16 and 32 bits too (SDM 2A, IRET)",
    },
    Deviation {
        mnemonics: &[M::Iretq, M::Sysret, M::Sysretq, M::Sysexit, M::Sysexitq],
        modes: &[Mode::Long],
        what: "Rflags",
        why: "IOPL is lost: a guest of kvm_pvm has none outside the emulator (SDM 2, IRET, SYSRET)",
    },
    Deviation {
        mnemonics: &[M::Iretq],
        modes: &[Mode::Long],
        what: "exception: host Some(11), ours Some(13)",
        why: "that a segment is no code is checked before that it is not present (SDM 2A, IRET)",
    },
    Deviation {
        mnemonics: &[M::Iretq],
        modes: &[Mode::Long],
        what: "Rsp",
        why: "the emulator pops RSP before it finds that the segment is no code; a fault leaves the registers as they were (SDM 3A \
              6.5)",
    },
    Deviation {
        mnemonics: &[M::Ltr],
        modes: &[Mode::Protected32, Mode::Long],
        what: "memory",
        why: "the error code for a selector of the LDT is that selector, not 0 (SDM 2A, LTR)",
    },
    Deviation {
        mnemonics: &[M::Lgdt, M::Lidt],
        modes: &[Mode::Protected32],
        what: "exception: host None",
        why: "with operands of 16 bits the emulator reads 5 bytes, where the operand has 6 (SDM 2A, LGDT)",
    },
    Deviation {
        mnemonics: &[M::Cmpxchg],
        modes: &[Mode::Long],
        what: "R",
        why: "the emulator writes a register of 32 bits that is not equal, and so clears its upper half; processors leave it alone, as \
              the comparison in user mode shows",
    },
    Deviation {
        mnemonics: &[M::Fxsave, M::Fxsave64, M::Fxrstor, M::Fxrstor64],
        modes: &[Mode::Long],
        what: "exception",
        why: "the emulator does not check that the operand is aligned to 16 bytes, and raises #GP for one that is, and whose MXCSR is \
              valid (SDM 2A, FXSAVE, FXRSTOR)",
    },
    Deviation {
        mnemonics: &[M::Fxsave, M::Fxsave64],
        modes: &[Mode::Long],
        what: "memory",
        why: "the emulator clears what is behind the registers, where \"the processor does not write to bytes 464:511\" (SDM 1 10.5.1)",
    },
    Deviation {
        mnemonics: &[M::Mov],
        modes: &[Mode::Long],
        what: "exception: host None, ours Some(13)",
        why: "bits 63:32 of CR0 are reserved, and setting one is #GP(0) (SDM 2B, MOV to control registers)",
    },
    Deviation {
        mnemonics: &[M::Mov],
        modes: &[Mode::Protected16, Mode::Long],
        what: "Dr7",
        why: "bit 11 of DR7 is \"hard-wired to 0\" (SDM 3B, Differences in Debug Register DR7) unless CPUID announces RTM, which it does not",
    },
    Deviation {
        mnemonics: &[M::Wrmsr],
        modes: &[Mode::Real],
        what: "exception: host None",
        why: "IA32_PAT takes encodings of no memory type, where writing one is #GP (SDM 3A 11.12.2)",
    },
    Deviation {
        mnemonics: &[M::Int3, M::Bt],
        modes: &[Mode::Protected16],
        what: "",
        why: "kvm_pvm delivers no exceptions in code of 16 bits, and goes on somewhere or shuts down (SDM 3A 6.12)",
    },
    Deviation {
        mnemonics: &[M::Insb, M::Insw, M::Insd, M::Outsb, M::Outsw, M::Outsd],
        modes: &[Mode::User],
        what: "tables",
        why: "a count of 0 repeats nothing, and so asks for no port (SDM 2B, REP); the processor, AMD's, checks the port first",
    },
    Deviation {
        mnemonics: &[
            M::Mov,
            M::Push,
            M::Pop,
            M::Lar,
            M::Lsl,
            M::Verr,
            M::Verw,
            M::Lss,
            M::Lfs,
            M::Lgs,
            M::Call,
            M::Jmp,
            M::Retf,
            M::Iret,
            M::Iretd,
            M::Iretq,
            M::Int,
        ],
        modes: &[Mode::User],
        what: "",
        why: "user mode runs under kvm_pvm on the host's own descriptor tables and selectors",
    },
    Deviation {
        mnemonics: &[M::Syscall],
        modes: &[Mode::User],
        what: "exception: host Some(13), ours None",
        why: "kvm_pvm takes it for itself",
    },
    Deviation {
        mnemonics: &[M::Sysenter],
        modes: &[Mode::User],
        what: "exception: host Some(6), ours None",
        why: "it is no instruction of 64-bit mode on AMD's processors, such as the one of the record (APM 3, SYSENTER)",
    },
];

/// What is recorded of a form in a mode.
pub(super) struct Recorded {
    pub(super) name: String,
    /// Cases that are the same on both sides, by their number.
    pub(super) same: u32,
    /// Cases that KVM does otherwise than the manual says.
    pub(super) explained: u32,
    pub(super) digest: String,
}

impl Recorded {
    pub(super) fn line(&self) -> String {
        format!("{} {:04x} {:04x} {}\n", self.name, self.same, self.explained, self.digest)
    }

    fn parse(line: &str) -> Option<Recorded> {
        let mut parts = line.split(' ');
        let mut next = || parts.next().map(str::to_owned);
        let (name, same, explained, digest) = (next()?, next()?, next()?, next()?);
        let bits = |text: &str| u32::from_str_radix(text, 16).ok();
        Some(Recorded { name, same: bits(&same)?, explained: bits(&explained)?, digest })
    }
}

/// The record of a mode.
pub(super) fn recorded(mode: Mode) -> Vec<Recorded> {
    let text = std::fs::read_to_string(mode.record()).expect("the record is part of the repository");
    text.lines().map(|line| Recorded::parse(line).expect("a line of a record")).collect()
}

/// What the records amount to, for the document.
pub(super) fn counts() -> String {
    let mut text =
        "| mode | forms | compared | equal | explained | not executed by KVM |\n|---|---|---|---|---|---|\n".to_owned();
    for mode in Mode::ALL {
        let recorded = recorded(mode);
        let count = |which: fn(&Recorded) -> bool| recorded.iter().filter(|form| which(form)).count();
        let explained = count(|form| form.explained != 0);
        let equal = count(|form| form.same != 0 && form.explained == 0);
        let all = recorded.len();
        let compared = equal + explained;
        writeln!(text, "| {} | {all} | {compared} | {equal} | {explained} | {} |", mode.words(), all - compared)
            .expect("writing to a string");
    }
    text
}

/// The deviations in words, for the document.
pub(super) fn explanations() -> String {
    let line = |deviation: &Deviation| {
        let names: Vec<String> = deviation.mnemonics.iter().map(|name| format!("{name:?}").to_uppercase()).collect();
        format!("* {}: {}\n", names.join(", "), deviation.why)
    };
    DEVIATIONS.iter().map(line).collect()
}
