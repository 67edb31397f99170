//! What can be asked of a frontend beside its plain command line: the suffixes of its name in cells.

use std::fmt;

/// An option of a frontend, a suffix of its name: `bhyve-13.1+monitor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendOption {
    /// `+monitor`: a third process looks at every vCPU before the first VM_RUN, without activating it.
    Monitor,
    /// `+gdb`: the VM is started with `-G w` and waits for a debugger, which connects and continues.
    Gdb,
    /// `+restore`: once every AP is online the VM is checkpointed and ended; a new process restores it (`-r`).
    Restore,
    /// `+passthru`: one more PCI device, whose memory BAR the guest can move.
    Passthru,
    /// `+ndebug`: built with `NDEBUG`, so that `assert` checks nothing.
    Ndebug,
}

impl FrontendOption {
    /// Every option, in the order in which a name lists them.
    pub const ALL: [FrontendOption; 5] = [
        FrontendOption::Monitor,
        FrontendOption::Gdb,
        FrontendOption::Restore,
        FrontendOption::Passthru,
        FrontendOption::Ndebug,
    ];

    /// The suffix without its `+`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FrontendOption::Monitor => "monitor",
            FrontendOption::Gdb => "gdb",
            FrontendOption::Restore => "restore",
            FrontendOption::Passthru => "passthru",
            FrontendOption::Ndebug => "ndebug",
        }
    }

    /// What it does, in one sentence.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            FrontendOption::Monitor => {
                "a third process reads registers and statistics of every vCPU before the first VM_RUN, without activating it"
            }
            FrontendOption::Gdb => "-G w: the VM waits for a debugger, which connects and continues",
            FrontendOption::Restore => {
                "once every AP is online the VM is checkpointed and ended, and a new process goes on with it (-r)"
            }
            FrontendOption::Passthru => {
                "a PCI device in slot 5 whose memory BAR is mapped and unmapped by ioctls that lock every vCPU when the guest moves it"
            }
            FrontendOption::Ndebug => "built with NDEBUG: what an assertion would have caught takes its course",
        }
    }

    /// The option with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<FrontendOption> {
        FrontendOption::ALL.into_iter().find(|option| option.name() == name)
    }
}

impl fmt::Display for FrontendOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The options that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Options(u8);

impl Options {
    /// Whether the option is on.
    pub(crate) fn has(self, option: FrontendOption) -> bool {
        self.0 & 1 << option as u8 != 0
    }

    /// With one option more.
    #[must_use]
    pub(crate) fn with(self, option: FrontendOption) -> Options {
        Options(self.0 | 1 << option as u8)
    }

    /// Those that are on, in the order of names.
    pub(crate) fn iter(self) -> impl Iterator<Item = FrontendOption> {
        FrontendOption::ALL.into_iter().filter(move |option| self.has(*option))
    }
}

/// `+monitor+gdb`, or nothing.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|option| write!(f, "+{option}"))
    }
}
