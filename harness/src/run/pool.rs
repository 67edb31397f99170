//! The runner's side: worker processes that run cells, one at a time each. Whatever becomes of a worker costs the cell that it
//! was running, and nothing else.

use super::Setup;
use super::stop::Stop;
use super::wire::{Begin, HEAD, Report, Task, frame, length};
use crate::cell::{Cell, EngineKind};
use crate::outcome::{Outcome, OutcomeKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The only argument of a process that is a worker. No command line says so: the runner starts these itself.
pub const WORKER: &str = "worker";

/// How often somebody who waits for a worker looks whether the run is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How much longer than a cell's patience the runner waits for its worker, which has a watchdog of its own.
const GRACE: Duration = Duration::from_secs(3);

/// How long the rest of what a dead worker said is waited for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Bytes of what a worker says on standard error that are kept: the last.
const SAID: usize = 32 << 10;

/// Where workers come from.
#[derive(Debug)]
pub struct Pool<'a> {
    setup: &'a Setup,
    /// Whether each cell gets a process of its own.
    isolate: bool,
    stop: &'a Stop,
    /// What every worker is told first.
    begin: Vec<u8>,
}

impl<'a> Pool<'a> {
    /// A pool for some cells; no worker is started yet.
    #[must_use]
    pub fn new(setup: &'a Setup, cells: &[Cell], isolate: bool, stop: &'a Stop) -> Pool<'a> {
        let engines: BTreeSet<EngineKind> = cells.iter().map(|cell| cell.engine).collect();
        let begin = Begin {
            matrix: setup.matrix.has_own_parts().then(|| setup.matrix.source().clone()),
            os_guests: cells
                .iter()
                .map(|cell| cell.guest.as_str())
                .filter(|guest| setup.matrix.os_guest(guest).is_some())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            engines: engines.into_iter().collect(),
            parent: std::process::id(),
        };
        Pool { setup, isolate, stop, begin: frame(&begin) }
    }

    /// A place for one worker.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        Place { pool: self, worker: None }
    }
}

/// A place for a worker, which is started when there is something to do, and again when it died.
#[derive(Debug)]
pub struct Place<'a> {
    pool: &'a Pool<'a>,
    worker: Option<Worker>,
}

impl Place<'_> {
    /// Runs a task; `None` when the run was stopped meanwhile.
    #[must_use]
    pub fn run(&mut self, task: &Task) -> Option<Report> {
        let _slot = self.pool.setup.engines.slot(task.cell.engine);
        let request = frame(task);
        let runs = 1 + task.explain.as_ref().map_or(0, Vec::len);
        let wait = task.patience * u32::try_from(runs).unwrap_or(u32::MAX) + GRACE;
        // A worker that died while it had nothing to do never got the task, so that another can have it.
        for fresh in [false, true] {
            if fresh {
                self.worker = None;
            }
            let mut worker = match self.worker.take().map_or_else(|| Worker::start(&self.pool.begin), Ok) {
                Ok(worker) => worker,
                Err(error) => return Some(ours(format!("no process can be started for the cell: {error}"), None)),
            };
            worker.said.clear();
            let ran = worker.ask(&request, task.trace, Instant::now() + wait, self.pool.stop);
            match ran {
                Ok(mut report) => {
                    let words = worker.words();
                    if report.outcome.kind == OutcomeKind::HarnessError && !words.is_empty() {
                        let log = report.log.get_or_insert_default();
                        log.push_str(&words);
                    }
                    if !self.pool.isolate {
                        self.worker = Some(worker);
                    }
                    return Some(report);
                }
                Err(Fault::Unasked) if !fresh => {}
                Err(Fault::Stopped) => return None,
                Err(Fault::Unasked | Fault::Gone) => {
                    let status = worker.end();
                    return Some(ours(format!("the cell's process {}", ended(status)), Some(worker.words())));
                }
                Err(Fault::Late) => {
                    let mut log = worker.threads();
                    worker.end();
                    log.push_str(&worker.words());
                    let waited = wait.as_secs_f64();
                    return Some(ours(format!("the cell's process did not answer for {waited} s"), Some(log)));
                }
                Err(Fault::Nonsense(why)) => {
                    worker.end();
                    return Some(ours(format!("the cell's process talked nonsense: {why}"), Some(worker.words())));
                }
            }
        }
        None
    }
}

/// A cell that is our own fault.
fn ours(detail: String, log: Option<String>) -> Report {
    let report = Report::of(Outcome { kind: OutcomeKind::HarnessError, detail });
    Report { log: log.filter(|log| !log.is_empty()), ..report }
}

/// Why there is no report.
#[derive(Debug)]
enum Fault {
    /// The worker was gone before it had the whole task.
    Unasked,
    /// The worker is gone.
    Gone,
    /// It did not answer in time.
    Late,
    /// The run is to stop.
    Stopped,
    /// It said something that is no report.
    Nonsense(String),
}

/// A worker process.
#[derive(Debug)]
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// What it said on standard error about the task at hand: the last of it.
    said: Vec<u8>,
    /// What is to be sent to it still.
    pending: Vec<u8>,
}

impl Worker {
    fn start(begin: &[u8]) -> io::Result<Worker> {
        // This program, even if another has taken its place since.
        let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
        let mut child = Command::new(program)
            .arg0("spinup")
            .arg(WORKER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three were asked for") };
        rustix::io::ioctl_fionbio(&stdin, true)?;
        rustix::io::ioctl_fionbio(&stderr, true)?;
        Ok(Worker { child, stdin, stdout, stderr, said: Vec::new(), pending: begin.to_vec() })
    }

    /// Sends a task and waits for the report, and for the trace behind it.
    fn ask(&mut self, request: &[u8], trace: bool, deadline: Instant, stop: &Stop) -> Result<Report, Fault> {
        self.pending.extend_from_slice(request);
        let mut inbox = Vec::new();
        let body = self.next_frame(&mut inbox, deadline, stop)?;
        let nonsense = |error: serde_json::Error| Fault::Nonsense(error.to_string());
        let mut report: Report = serde_json::from_slice(&body).map_err(nonsense)?;
        if trace && report.outcome.kind != OutcomeKind::NotApplicable {
            report.trace = Some(self.next_frame(&mut inbox, deadline, stop)?);
        }
        Ok(report)
    }

    /// Sends what is to be sent and listens until there is a frame; what follows it stays in the inbox.
    fn next_frame(&mut self, inbox: &mut Vec<u8>, deadline: Instant, stop: &Stop) -> Result<Vec<u8>, Fault> {
        let mut chunk = [0; 64 << 10];
        loop {
            if let Some((head, rest)) = inbox.split_first_chunk::<HEAD>() {
                let length = length(*head).map_err(|error| Fault::Nonsense(error.to_string()))?;
                if rest.len() >= length {
                    let body = rest[..length].to_vec();
                    inbox.drain(..HEAD + length);
                    return Ok(body);
                }
            }
            if stop.now() {
                return Err(Fault::Stopped);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::Late);
            }
            let (answers, words, room) = self.wait(left.min(LOOK)).map_err(|_| Fault::Gone)?;
            if words {
                self.listen();
            }
            if room {
                match self.stdin.write(&self.pending) {
                    Ok(sent) => drop(self.pending.drain(..sent)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => return Err(Fault::Unasked),
                }
            }
            if answers {
                match self.stdout.read(&mut chunk) {
                    Ok(0) if self.pending.is_empty() => return Err(Fault::Gone),
                    Ok(0) => return Err(Fault::Unasked),
                    Ok(read) => inbox.extend_from_slice(&chunk[..read]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return Err(Fault::Gone),
                }
            }
        }
    }

    /// Waits until there is an answer, a word on standard error, or room for what is to be sent.
    fn wait(&self, longest: Duration) -> io::Result<(bool, bool, bool)> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.stdout.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.stderr.as_fd(), PollFlags::IN),
        ];
        if !self.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(self.stdin.as_fd(), PollFlags::OUT));
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(longest.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(0), ready(1), ready(2)))
    }

    /// Takes what there is on standard error; whether there can be more.
    fn listen(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stderr.read(&mut chunk) {
            Ok(0) => false,
            Ok(read) => {
                self.said.extend_from_slice(&chunk[..read]);
                let over = self.said.len().saturating_sub(SAID);
                self.said.drain(..over);
                true
            }
            Err(error) => error.kind() == ErrorKind::Interrupted,
        }
    }

    /// What it said on standard error about the task at hand.
    fn words(&mut self) -> String {
        while self.listen() {}
        super::frames::named(&String::from_utf8_lossy(&self.said))
    }

    /// Where the process's threads are, as the host sees them.
    fn threads(&self) -> String {
        let mut text = String::new();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (stat, wchan, call) = (read("stat"), read("wchan"), read("syscall"));
            let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?");
            let call = call.split_whitespace().next().unwrap_or("?");
            text.push_str(&format!("thread {}: state {state}, system call {call}, {wchan}\n", read("comm").trim()));
        }
        text
    }

    /// Ends it, if it has not ended by itself; how it ended. What it said is there to be read.
    fn end(&mut self) -> Option<ExitStatus> {
        // One that is ending by itself gets the time to say how.
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // It may be gone by now, which is as good.
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has nothing to lose: what it knows has been said.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `was killed by SIGKILL`.
fn ended(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "ended in a way that nobody saw".into() };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by {}", signal_name(signal)),
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> String {
    use signal_hook::consts as signals;
    match signal {
        signals::SIGKILL => "SIGKILL".into(),
        signals::SIGABRT => "SIGABRT".into(),
        signals::SIGSEGV => "SIGSEGV".into(),
        signals::SIGBUS => "SIGBUS".into(),
        signals::SIGILL => "SIGILL".into(),
        signals::SIGFPE => "SIGFPE".into(),
        signals::SIGTERM => "SIGTERM".into(),
        signals::SIGSYS => "SIGSYS".into(),
        signals::SIGXCPU => "SIGXCPU: it had used up its processor time".into(),
        other => format!("signal {other}"),
    }
}
