//! bhyve as a process: its standard error, its exit statuses, its assertions.
//!
//! A C function that calls `exit` does not return, wherever it is called. Here it returns the [`End`] as an error, and
//! the thread's outermost function ends the cell with it.

use super::checkpoint::Checkpoint;
use crate::Console;
use crate::option::{FrontendOption, Options};
use vmm::abi::Errno;
use vmm::host::{End, Host};
use vmm::trace::Event;

/// The result of a function that may end the process.
pub(crate) type Run<T> = Result<T, End>;

/// Exit statuses that bhyve uses beside those of `vmexit_suspend`.
pub(super) mod status {
    /// After VM_RUN failed.
    pub(in super::super) const VM_RUN_FAILED: i32 = 1;
    /// Most errors.
    pub(in super::super) const ERROR: i32 = 4;
    /// After the loader that runs before bhyve has failed: of our own, for loaders say 1 or 4 as they like.
    pub(in super::super) const LOADER: i32 = 64;
    /// `EX_OSERR` of sysexits(3).
    pub(in super::super) const EX_OSERR: i32 = 71;
}

/// A place in bhyve's source, as assertions name it; line numbers are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The function.
    pub(super) function: &'static str,
    /// The file.
    pub(super) file: &'static str,
}

/// The process.
pub(crate) struct Process {
    /// The host on which it runs.
    pub(super) host: Host,
    /// What its command line asks for beside the plain machine.
    pub(super) options: Options,
    /// What an earlier process, or an earlier life of this one, left behind.
    pub(super) begin: Begin,
    /// Whether a script runs it again after a reset.
    pub(super) rerun: bool,
    /// `getprogname`.
    program: &'static str,
    console: Console,
}

/// What a process begins with.
#[derive(Debug, Default)]
pub(crate) enum Begin {
    /// Nothing.
    #[default]
    Fresh,
    /// A checkpoint to restore (`-r`).
    Restore(Box<Checkpoint>),
    /// The VM that is there already, to be begun anew.
    Reboot,
}

impl Process {
    pub(super) fn new(
        host: &Host,
        console: &Console,
        options: Options,
        program: &'static str,
        begin: Begin,
        rerun: bool,
    ) -> Process {
        Process { host: host.clone(), options, begin, rerun, program, console: console.clone() }
    }

    /// The console of the process.
    pub(super) fn console(&self) -> &Console {
        &self.console
    }

    /// A line to standard error.
    pub(super) fn eprintln(&self, line: &str) {
        self.console.print_line(line);
        self.host.emit(None, Event::Message { text: line.to_owned() });
    }

    /// `fprintf(stderr, …); exit(status)`.
    pub(super) fn exit(&self, status: i32, line: &str) -> End {
        self.eprintln(line);
        End::Exit(status)
    }

    /// `perror(what); exit(4)`.
    pub(super) fn perror(&self, what: &str, errno: Errno) -> End {
        self.exit(status::ERROR, &format!("{what}: {errno}"))
    }

    /// `errx(status, …)`.
    pub(super) fn errx(&self, status: i32, message: &str) -> End {
        self.exit(status, &format!("{}: {message}", self.program))
    }

    /// `err(status, …)`.
    pub(super) fn err(&self, status: i32, message: &str, errno: Errno) -> End {
        self.errx(status, &format!("{message}: {errno}"))
    }

    /// A failed `assert(expression)`.
    pub(super) fn assertion_failed(&self, expression: &str, place: Place) -> End {
        let Place { function, file } = place;
        let message = format!("Assertion failed: ({expression}), function {function}, file {file}.");
        self.eprintln(&message);
        End::Abort(message)
    }

    /// `assert(expression)`, with the expression's value beside its text. Nothing with `NDEBUG`.
    pub(super) fn assert(&self, holds: bool, expression: &str, place: Place) -> Run<()> {
        if holds || self.options.has(FrontendOption::Ndebug) {
            Ok(())
        } else {
            Err(self.assertion_failed(expression, place))
        }
    }

    /// `assert(error == 0)` behind a call. With `NDEBUG` a call that failed leaves its result at zero.
    pub(super) fn assert_ok<T: Default>(&self, result: Result<T, Errno>, place: Place) -> Run<T> {
        let ndebug = self.options.has(FrontendOption::Ndebug);
        result.or_else(|_| if ndebug { Ok(T::default()) } else { Err(self.assertion_failed("error == 0", place)) })
    }
}
