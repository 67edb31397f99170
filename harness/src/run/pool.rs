//! The runner's side: worker processes that run cells, one at a time each. Whatever becomes of a worker costs the cell that it
//! was running, and nothing else.

use super::Setup;
use super::stop::Stop;
use super::wire::{Begin, HEAD, Ready, Report, Task, frame, length};
use crate::cell::{Cell, EngineKind};
use crate::outcome::{Outcome, OutcomeKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use signal_hook::consts::SIGXCPU;
use signal_hook::low_level::signal_name;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
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
    /// Why workers have their system calls still, if they have.
    unconfined: OnceLock<String>,
}

impl<'a> Pool<'a> {
    /// A pool for some cells; no worker is started yet.
    #[must_use]
    pub fn new(setup: &'a Setup, cells: &[Cell], isolate: bool, stop: &'a Stop) -> Pool<'a> {
        let engines: BTreeSet<EngineKind> = cells.iter().map(|cell| cell.engine).collect();
        let os_guests: BTreeSet<&str> = cells
            .iter()
            .map(|cell| cell.guest.as_str())
            .filter(|guest| setup.matrix.os_guest(guest).is_some())
            .collect();
        // Reading a matrix takes as long as running a cell.
        let in_need = setup.matrix.has_own_kernels() || !os_guests.is_empty();
        let begin = Begin {
            matrix: in_need.then(|| setup.matrix.source().clone()),
            os_guests: os_guests.into_iter().map(str::to_owned).collect(),
            engines: engines.into_iter().collect(),
            parent: std::process::id(),
        };
        Pool { setup, isolate, stop, begin: frame(&begin), unconfined: OnceLock::new() }
    }

    /// A place for one worker.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        Place { pool: self, worker: None }
    }

    /// Why the workers that were started have their system calls still, if they have.
    #[must_use]
    pub fn unconfined(&self) -> Option<&str> {
        self.unconfined.get().map(String::as_str)
    }

    /// Whether a worker may have the second task while it runs the first. Both have to be short, for nobody takes it from
    /// there: no operating system, no explanation, and nothing in real time, where cells wait for leave to run.
    #[must_use]
    pub fn may_queue(&self, now: &Task, ahead: &Task) -> bool {
        let short = |task: &Task| {
            let Cell { engine, guest, .. } = &task.cell;
            *engine == EngineKind::Soft && task.explain.is_none() && self.setup.matrix.os_guest(guest).is_none()
        };
        !self.isolate && short(now) && short(ahead)
    }
}

/// A place for a worker, which is started when there is something to do, and again when it died.
#[derive(Debug)]
pub struct Place<'a> {
    pool: &'a Pool<'a>,
    worker: Option<Worker>,
}

impl Place<'_> {
    /// Runs a task; `None` when the run was stopped meanwhile. The worker gets the task that will be `ahead` at the same
    /// time, so that it need not wait for it: [`Pool::may_queue`] says whether it may. Only the next call gives its report.
    #[must_use]
    pub fn run(&mut self, task: &Task, ahead: Option<&Task>) -> Option<Report> {
        let _slot = self.pool.setup.engines.slot(task.cell.engine);
        let runs = 1 + task.explain.as_ref().map_or(0, Vec::len);
        let wait = task.patience * u32::try_from(runs).unwrap_or(u32::MAX) + GRACE;
        // A worker that died before it had the task costs nothing: another gets it.
        for fresh in [false, true] {
            if fresh {
                self.worker = None;
            }
            let mut worker = match self.worker.take().map_or_else(|| Worker::start(&self.pool.begin), Ok) {
                Ok(worker) => worker,
                Err(error) => return Some(ours(format!("no process can be started for the cell: {error}"), None)),
            };
            worker.hand(task, ahead);
            match worker.report(task.trace, Instant::now() + wait, self.pool) {
                Ok(mut report) => {
                    // It ends by itself after a fault of ours: nobody knows what is left of it.
                    if report.outcome.kind == OutcomeKind::HarnessError {
                        let words = worker.words();
                        if !words.is_empty() {
                            report.log.get_or_insert_default().push_str(&words);
                        }
                    } else if !self.pool.isolate {
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
    /// What it said on standard error: the last of it. Cells say nothing there, so that it is about the one that failed.
    said: Vec<u8>,
    /// What is to be sent to it still.
    pending: Vec<u8>,
    /// How many bytes of that, at the end, are the task that is ahead of the one at hand.
    ahead: usize,
    /// Whether the task that was ahead is among what was sent, or is to be.
    has_next: bool,
    /// What it sent, and nobody has looked at.
    inbox: Vec<u8>,
    /// Whether it has said that it is ready.
    ready: bool,
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
        let (said, pending, inbox) = (Vec::new(), begin.to_vec(), Vec::new());
        Ok(Worker { child, stdin, stdout, stderr, said, pending, ahead: 0, has_next: false, inbox, ready: false })
    }

    /// Puts a task into its hands, unless it has it because it was ahead of the last one, and the one that is ahead of it.
    fn hand(&mut self, task: &Task, ahead: Option<&Task>) {
        if !self.has_next {
            self.pending.extend(frame(task));
        }
        let ahead = ahead.map(frame);
        self.has_next = ahead.is_some();
        self.ahead = ahead.as_ref().map_or(0, Vec::len);
        self.pending.extend(ahead.into_iter().flatten());
    }

    /// Waits for the report of the task at hand, and for the trace behind it.
    fn report(&mut self, trace: bool, deadline: Instant, pool: &Pool<'_>) -> Result<Report, Fault> {
        if !self.ready {
            let Ready { unconfined } = self.next_message(deadline, pool.stop)?;
            self.ready = true;
            if let Some(why) = unconfined {
                pool.unconfined.get_or_init(|| why);
            }
        }
        let mut report: Report = self.next_message(deadline, pool.stop)?;
        if trace && report.outcome.kind != OutcomeKind::NotApplicable {
            report.trace = Some(self.next_frame(deadline, pool.stop)?);
        }
        Ok(report)
    }

    fn next_message<T: DeserializeOwned>(&mut self, deadline: Instant, stop: &Stop) -> Result<T, Fault> {
        let body = self.next_frame(deadline, stop)?;
        serde_json::from_slice(&body).map_err(|error| Fault::Nonsense(error.to_string()))
    }

    /// Sends what is to be sent and listens until there is a frame; what follows it stays in the inbox.
    fn next_frame(&mut self, deadline: Instant, stop: &Stop) -> Result<Vec<u8>, Fault> {
        loop {
            if let Some((head, rest)) = self.inbox.split_first_chunk::<HEAD>() {
                let length = length(*head).map_err(|error| Fault::Nonsense(error.to_string()))?;
                if rest.len() >= length {
                    let body = rest[..length].to_vec();
                    self.inbox.drain(..HEAD + length);
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
                self.send()?;
            }
            if answers {
                self.receive()?;
            }
        }
    }

    /// Whether it has the whole task at hand.
    fn has_task(&self) -> bool {
        self.pending.len() <= self.ahead
    }

    /// Sends as much as there is room for.
    fn send(&mut self) -> Result<(), Fault> {
        match self.stdin.write(&self.pending) {
            Ok(sent) => drop(self.pending.drain(..sent)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // It is gone, but what it said of the task at hand is there to be read.
            Err(_) if self.has_task() => self.pending.clear(),
            Err(_) => return Err(Fault::Unasked),
        }
        Ok(())
    }

    /// Takes what it sent.
    fn receive(&mut self) -> Result<(), Fault> {
        let mut chunk = [0; 64 << 10];
        match self.stdout.read(&mut chunk) {
            Ok(0) if self.has_task() => return Err(Fault::Gone),
            Ok(0) => return Err(Fault::Unasked),
            Ok(read) => self.inbox.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Err(Fault::Gone),
        }
        Ok(())
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

    /// What it said on standard error.
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
        (Some(SIGXCPU), _) => "was killed by SIGXCPU: it had used up its processor time".into(),
        (Some(signal), _) => match signal_name(signal) {
            Some(name) => format!("was killed by {name}"),
            None => format!("was killed by signal {signal}"),
        },
        (None, Some(code)) => format!("ended with status {code}"),
        (None, None) => status.to_string(),
    }
}
