//! A guest under a frontend on a kernel, on the software processor.

#![allow(dead_code, reason = "each test file uses its own part")]

use frontends::{ApicMode, Boot, Console, Frontend, Launch};
use std::collections::BTreeSet;
use std::sync::Arc;
use vmm::engine::soft::SoftEngine;
use vmm::history::KernelVersion;
use vmm::host::{End, Host};
use vmm::kernel::Kernel;
use vmm::trace::{Event, GuestReport, Trace};

/// What becomes of a machine.
pub(crate) struct Cell {
    pub(crate) end: End,
    /// When, in nanoseconds of the cell's time.
    pub(crate) now_ns: u64,
    pub(crate) trace: Trace,
    pub(crate) console: Console,
    pub(crate) stderr: String,
}

/// A machine that has not been run yet.
pub(crate) struct Machine<'a> {
    pub(crate) frontend: &'a str,
    pub(crate) kernel: &'a str,
    pub(crate) apic: ApicMode,
    pub(crate) cpus: u16,
    /// How long it may run, in nanoseconds of its time.
    pub(crate) limit_ns: u64,
}

impl Machine<'_> {
    pub(crate) fn run(&self, rom: &[u8]) -> Cell {
        let launch = Launch::new("guest", self.cpus, self.apic, Boot::Rom(rom.into()));
        Cell::run(self.limit_ns, self.frontend, self.kernel, launch)
    }
}

impl Cell {
    /// Runs what a frontend launches for at most so many nanoseconds of its time.
    pub(crate) fn run(limit_ns: u64, frontend: &str, kernel: &str, launch: Launch) -> Cell {
        let frontend: Frontend = frontend.parse().expect("a frontend");
        let kernel = KernelVersion::parse(kernel).expect("a kernel");
        let host = Host::virtual_time(0, limit_ns);
        let kernel = Kernel::boot(&host, &kernel, Arc::new(SoftEngine::new()));
        let (console, inside) = (Console::new(), host.clone());
        let printed = console.clone();
        let finished = host.run("main", move || frontend.main(&inside, &kernel, &launch, &console));
        let stderr = printed.stderr().join("\n");
        Cell { end: finished.end, now_ns: finished.now_ns, trace: finished.trace, console: printed, stderr }
    }

    /// What the guest sent to COM1, without carriage returns.
    pub(crate) fn serial(&self) -> String {
        String::from_utf8_lossy(&self.console.serial()).replace('\r', "")
    }

    pub(crate) fn reported(&self, wanted: GuestReport) -> bool {
        self.reports().any(|report| *report == wanted)
    }

    fn reports(&self) -> impl Iterator<Item = &GuestReport> {
        self.trace.records.iter().filter_map(|record| match &record.event {
            Event::Report(report) => Some(report),
            _ => None,
        })
    }

    pub(crate) fn aps_online(&self) -> usize {
        let online: BTreeSet<u32> = (self.reports())
            .filter_map(|report| match report {
                GuestReport::ApOnline { apic_id } => Some(*apic_id),
                _ => None,
            })
            .collect();
        online.len()
    }

    pub(crate) fn done(&self) -> bool {
        self.reports().any(|report| matches!(report, GuestReport::Done { .. }))
    }

    /// How often the guest began.
    pub(crate) fn boots(&self) -> usize {
        self.reports().filter(|report| matches!(report, GuestReport::Boot { .. })).count()
    }

    /// Whether a CPU ran where nobody had sent it.
    pub(crate) fn astray(&self) -> bool {
        self.reports().any(|report| matches!(report, GuestReport::Stray { .. }))
    }

    /// In one word, as the harness has it, so far as is needed here.
    pub(crate) fn outcome(&self) -> String {
        match &self.end {
            End::Exit(0 | 1) if self.astray() => "astray".to_owned(),
            End::Exit(0 | 1) if self.done() => "ok".to_owned(),
            End::Exit(1) if self.stderr.is_empty() => format!("{} APs", self.aps_online()),
            End::Exit(status) => format!("exit {status}: {}", self.stderr),
            End::Abort(message) => format!("abort: {message}"),
            End::Panic(_) => "panic".to_owned(),
            other => format!("{other:?}"),
        }
    }
}
