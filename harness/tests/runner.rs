//! What becomes of a run when workers, the runner itself, or the disk are taken away from it. `SPINUP_EXPERIMENTS` says how
//! often each is done; by default a few times.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A kernel and a guest take a quarter of a second; this many seeds make it long enough to be disturbed.
const REPEAT: &str = "12";

fn experiments(default: usize) -> usize {
    std::env::var("SPINUP_EXPERIMENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that differ from run to run as little as possible: what fails can be repeated with its number.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        // Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn spinup() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spinup"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for variable in ["CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "CI_NODE_INDEX", "JOB_COMPLETION_INDEX"] {
        command.env_remove(variable);
    }
    command
}

/// A run over many cells that writes its document here.
fn run(json: &Path, more: &[&str]) -> Command {
    let mut command = spinup();
    command.args(["run", "-j", "2", "--repeat", REPEAT, "linux"]).args(more).arg("--json").arg(json);
    command
}

fn document(json: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(json).expect("a document is there at any time"))
        .expect("it is whole at any time")
}

/// What is said of each cell, but for how long it took; each once.
fn cells(document: &Value) -> BTreeMap<String, Value> {
    let mut cells = BTreeMap::new();
    for cell in document["cells"].as_array().expect("a list") {
        let mut cell = cell.clone();
        cell.as_object_mut().expect("a table").remove("duration_ms");
        let name = cell["cell"].as_str().expect("a name").to_owned();
        assert!(cells.insert(name.clone(), cell).is_none(), "{name} is there twice");
    }
    cells
}

/// What an undisturbed run says.
fn undisturbed(dir: &Path) -> BTreeMap<String, Value> {
    let json = dir.join("undisturbed.json");
    assert!(run(&json, &[]).status().expect("the binary of this package").success());
    let document = document(&json);
    assert_eq!(document["complete"], true);
    cells(&document)
}

/// The workers of a run.
fn workers(runner: &Child) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", runner.id());
    // Every thread of the runner that starts workers has its own.
    let tasks = std::fs::read_dir(format!("/proc/{}/task", runner.id())).into_iter().flatten().flatten();
    let of = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<u32> = tasks
        .flat_map(|task| of(task.path().join("children")).split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .chain(of(children.into()).split_whitespace().map(str::to_owned))
        .filter_map(|pid| pid.parse().ok())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a process lives that is a worker of spinup.
fn is_worker(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"spinup\0worker\0")
}

fn signal(pid: u32, name: &str) -> bool {
    let kill = Command::new("kill").args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
    kill.is_ok_and(|status| status.success())
}

fn ended(child: &mut Child) -> bool {
    child.try_wait().expect("our child").is_some()
}

fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(120);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("our child") {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    panic!("the run did not end");
}

#[test]
fn a_worker_that_is_killed_costs_one_cell() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = undisturbed(dir.path());
    let (wanted, mut killed, mut lost) = (experiments(6), 0, 0);
    let mut random = Random(1);
    let json = dir.path().join("results.json");
    while killed < wanted {
        let before = killed;
        let mut child = run(&json, &[]).spawn().expect("the binary of this package");
        while !ended(&mut child) {
            std::thread::sleep(Duration::from_millis(20 + random.below(80)));
            let workers = workers(&child);
            if killed < wanted && !workers.is_empty() {
                killed += usize::from(signal(workers[random.below(workers.len() as u64) as usize], "KILL"));
            }
        }
        let document = document(&json);
        let found = cells(&document);
        assert_eq!(document["complete"], true);
        assert!(found.keys().eq(expected.keys()), "no cell is lost");
        let disturbed: Vec<&Value> =
            found.values().filter(|cell| expected[cell["cell"].as_str().expect("a name")] != **cell).collect();
        // A worker that had nothing to do yet costs nothing.
        assert!(disturbed.len() <= killed - before, "{disturbed:?}");
        for cell in &disturbed {
            assert_eq!(cell["outcome"]["kind"], "harness-error", "{cell}");
            assert!(cell["outcome"]["detail"].as_str().expect("text").contains("killed by SIGKILL"), "{cell}");
        }
        let status = wait(&mut child);
        assert_eq!(status, Some(if disturbed.is_empty() { 0 } else { 3 }));
        lost += disturbed.len();
    }
    println!("{killed} workers killed, {lost} cells were our own fault, none lost or doubled");
}

#[test]
fn a_runner_that_is_killed_is_gone_on_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = undisturbed(dir.path());
    let (wanted, mut killed, mut rounds) = (experiments(6), 0, 0);
    let mut random = Random(2);
    let json = dir.path().join("results.json");
    let journal = dir.path().join("results.json.journal");
    while killed < wanted {
        let mut before = 0;
        loop {
            let mut child = run(&json, &["--resume"]).spawn().expect("the binary of this package");
            std::thread::sleep(Duration::from_millis(random.below(400)));
            let orphans = workers(&child);
            if killed < wanted && signal(child.id(), "KILL") && wait(&mut child).is_none() {
                killed += 1;
                let until = Instant::now() + Duration::from_secs(10);
                while orphans.iter().any(|orphan| is_worker(*orphan)) {
                    assert!(Instant::now() < until, "its workers go with it");
                    std::thread::sleep(Duration::from_millis(5));
                }
                // What it had done is kept.
                let lines = std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
                assert!(lines >= before, "{lines} lines in the journal, after {before}");
                before = lines;
                if json.exists() {
                    let found = cells(&document(&json));
                    assert!(found.keys().eq(expected.keys()), "every cell is in a document, even one that did not run");
                }
                continue;
            }
            assert_eq!(wait(&mut child), Some(0));
            break;
        }
        rounds += 1;
        assert_eq!(document(&json)["complete"], true);
        assert_eq!(cells(&document(&json)), expected);
        assert!(!journal.exists(), "nothing is left to go on with");
    }
    println!(
        "the runner was killed {killed} times in {rounds} runs, each of which had the results of an undisturbed one in the end"
    );
}

#[test]
fn an_interrupt_finishes_what_runs_and_two_stop_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = undisturbed(dir.path());
    let mut random = Random(3);
    let json = dir.path().join("results.json");
    let mut interrupted = 0;
    for experiment in 0..experiments(6) {
        let twice = experiment % 2 == 1;
        let mut child = run(&json, &[]).spawn().expect("the binary of this package");
        // It begins to listen when it has read its matrix.
        std::thread::sleep(Duration::from_millis(100 + random.below(400)));
        signal(child.id(), "INT");
        if twice {
            std::thread::sleep(Duration::from_millis(60));
            signal(child.id(), "INT");
        }
        let status = wait(&mut child);
        let found = document(&json);
        assert!(cells(&found).keys().eq(expected.keys()), "every cell is in the document");
        for (name, cell) in cells(&found) {
            assert!(cell["verdict"] == "skipped" || cell == expected[&name], "{cell}");
        }
        if found["complete"] == true {
            assert_eq!(status, Some(0));
            continue;
        }
        interrupted += 1;
        assert_eq!(status, Some(130));
        let mut rest = run(&json, &["--resume"]).spawn().expect("the binary of this package");
        assert_eq!(wait(&mut rest), Some(0));
        assert_eq!(cells(&document(&json)), expected);
    }
    println!("{interrupted} runs were interrupted, and gone on with");
}

#[test]
fn a_journal_of_another_run_is_not_gone_on_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let mut child = run(&json, &[]).spawn().expect("the binary of this package");
    std::thread::sleep(Duration::from_millis(200));
    signal(child.id(), "INT");
    if wait(&mut child) != Some(130) {
        return;
    }
    let other = run(&json, &["--resume", "--seed", "1"]).stderr(Stdio::piped()).output().expect("it ends");
    assert_eq!(other.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&other.stderr).contains("the journal is of another run"));
}

#[test]
fn a_worker_that_stands_still_costs_one_cell() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let mut child = run(&json, &["--give-up-after", "1"]).spawn().expect("the binary of this package");
    let mut stopped = None;
    while stopped.is_none() && !ended(&mut child) {
        std::thread::sleep(Duration::from_millis(50));
        stopped = workers(&child).first().copied().filter(|worker| signal(*worker, "STOP"));
    }
    assert_eq!(wait(&mut child), Some(3));
    let found = cells(&document(&json));
    let ours: Vec<&Value> = found.values().filter(|cell| cell["outcome"]["kind"] == "harness-error").collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert!(ours[0]["outcome"]["detail"].as_str().expect("text").contains("did not answer"), "{}", ours[0]);
    assert!(ours[0]["log"].as_str().expect("a log").contains("state T"), "{}", ours[0]);
    assert!(!Path::new(&format!("/proc/{}", stopped.expect("it was stopped"))).exists(), "it is gone");
}

#[test]
fn a_worker_has_given_up_what_it_does_not_need() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = run(&dir.path().join("results.json"), &[]).spawn().expect("the binary of this package");
    let mut seen = false;
    while !seen && !ended(&mut child) {
        std::thread::sleep(Duration::from_millis(20));
        for worker in workers(&child).into_iter().filter(|worker| is_worker(*worker)) {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{worker}/{name}")).unwrap_or_default();
            let (status, limits) = (read("status"), read("limits"));
            // It may be reading its matrix still.
            seen |= ["Seccomp:\t2", "NoNewPrivs:\t1"].iter().all(|line| status.contains(line))
                && ["Max open files            512", "Max file size             0", "Max core file size        0"]
                    .iter()
                    .all(|line| limits.contains(line));
        }
    }
    assert_eq!(wait(&mut child), Some(0));
    assert!(seen, "no worker was seen with system calls and files taken away");
}

/// What is written into a worker where it is about to go on, so that it cannot: a byte to an address that nobody has.
const FAULTING_STORE: [u8; 8] = [0xc6, 0x04, 0x25, 0x00, 0x10, 0x00, 0x00, 0x00];

/// Stops a worker in this program's own code and writes an instruction there that faults; whether that could be done.
fn break_worker(worker: u32) -> bool {
    use std::os::unix::fs::FileExt;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{worker}/{name}")).unwrap_or_default();
    if !is_worker(worker) || !read("status").contains("Seccomp:\t2") || !signal(worker, "STOP") {
        return false;
    }
    while !read("status").contains("State:\tT") {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Of a thread that is in no system call: -1, its stack pointer, its instruction pointer.
    let call = read("syscall");
    let ip = call.strip_prefix("-1 ").and_then(|rest| rest.split_whitespace().nth(1));
    let ip = ip.and_then(|ip| u64::from_str_radix(ip.strip_prefix("0x")?, 16).ok());
    let in_program = |ip: &u64| {
        read("maps").lines().filter(|line| line.contains(" r-xp ") && line.ends_with("/spinup")).any(|line| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let hex = |text: &str| u64::from_str_radix(text, 16).expect("a number");
            range.is_some_and(|(begin, end)| (hex(begin)..hex(end)).contains(ip))
        })
    };
    let broken = ip.filter(in_program).is_some_and(|ip| {
        let memory = std::fs::File::options().write(true).open(format!("/proc/{worker}/mem"));
        memory.and_then(|memory| memory.write_all_at(&FAULTING_STORE, ip)).is_ok()
    });
    signal(worker, "CONT");
    broken
}

#[test]
fn a_worker_that_faults_costs_one_cell_and_says_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let mut child = run(&json, &[]).spawn().expect("the binary of this package");
    let mut broken = false;
    while !broken && !ended(&mut child) {
        std::thread::sleep(Duration::from_millis(5));
        broken = workers(&child).first().copied().is_some_and(break_worker);
    }
    assert!(broken, "no worker could be broken");
    assert_eq!(wait(&mut child), Some(3));
    let found = cells(&document(&json));
    let ours: Vec<&Value> = found.values().filter(|cell| cell["outcome"]["kind"] == "harness-error").collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert!(ours[0]["outcome"]["detail"].as_str().expect("text").contains("killed by SIGSEGV"), "{}", ours[0]);
    let log = ours[0]["log"].as_str().expect("a log");
    assert!(log.contains("SIGSEGV at instruction 0x") && log.contains("address 0x1000"), "{log}");
    // Where it was, and who called that: by name, as this program has it.
    let named = log.lines().skip_while(|line| !line.starts_with("SIGSEGV")).skip(1);
    assert!(named.take_while(|line| line.starts_with("  ") && !line.contains("+0x")).count() >= 2, "{log}");
}

#[test]
fn a_signal_that_somebody_sent_is_told_with_its_sender() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let mut child = run(&json, &[]).spawn().expect("the binary of this package");
    let mut sent = false;
    while !sent && !ended(&mut child) {
        std::thread::sleep(Duration::from_millis(5));
        let confined = |worker: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
            status.contains("Seccomp:\t2")
        };
        sent = workers(&child).into_iter().find(confined).is_some_and(|worker| signal(worker, "BUS"));
    }
    assert_eq!(wait(&mut child), Some(3));
    let found = cells(&document(&json));
    let ours: Vec<&Value> = found.values().filter(|cell| cell["outcome"]["kind"] == "harness-error").collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    let log = ours[0]["log"].as_str().expect("a log");
    assert!(log.contains("SIGBUS at instruction 0x") && log.contains("sent by process"), "{log}");
}

/// A host without seccomp: a filter of ours says so in its place.
#[test]
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "a filter is put on between fork and exec")]
fn where_system_calls_cannot_be_taken_away_cells_run_with_a_warning() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
    use std::os::unix::process::CommandExt;
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = [(libc::SYS_seccomp, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64).expect("a filter");
    let filter: BpfProgram = filter.try_into().expect("a short one");
    let mut command = spinup();
    command.args(["run", "bhyve-13.2@fbsd-13.2/mp-spec"]).stderr(Stdio::piped());
    // SAFETY: putting on a filter that is there already takes two system calls and nothing else.
    unsafe { command.pre_exec(move || apply_filter(&filter).map_err(std::io::Error::other)) };
    let ran = command.output().expect("the binary of this package");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("warning: ")).collect();
    assert!(
        matches!(warnings[..], [line] if line.contains("keep their system calls") && line.contains("not implemented")),
        "once, with the reason: {said}"
    );
}

/// What a worker gives up must leave it what KVM takes, where there is one.
#[test]
fn cells_on_kvm_run_in_a_worker() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let status =
        spinup().args(["run", "bhyve-13.2@fbsd-13.2/mp-spec", "--engine", "kvm", "--json"]).arg(&json).status();
    assert!(status.expect("the binary of this package").success());
    for cell in cells(&document(&json)).values() {
        assert!(matches!(cell["outcome"]["kind"].as_str(), Some("ok" | "not-applicable")), "{cell}");
    }
}

#[test]
fn a_worker_without_memory_costs_one_cell() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let mut child = run(&json, &[]).spawn().expect("the binary of this package");
    let mut starved = false;
    while !starved && !ended(&mut child) {
        std::thread::sleep(Duration::from_millis(2));
        let worker = workers(&child).first().copied().filter(|worker| is_worker(*worker));
        starved = worker.is_some_and(|worker| {
            let prlimit = Command::new("prlimit").args([&format!("--pid={worker}"), "--as=1048576"]).status();
            prlimit.expect("prlimit is of util-linux").success()
        });
    }
    assert_eq!(wait(&mut child), Some(3));
    let found = cells(&document(&json));
    let ours: Vec<&Value> = found.values().filter(|cell| cell["outcome"]["kind"] == "harness-error").collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
}

#[test]
fn a_cell_that_takes_for_ever_is_given_up_and_says_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("results.json");
    let cell = "bhyve-13.2@fbsd-13.2/spin-forever/xapic-2/soft";
    let status = spinup()
        .args(["run", cell, "--timeout", "1000000", "--give-up-after", "0.5", "--json"])
        .arg(&json)
        .status()
        .expect("the binary of this package");
    assert_eq!(status.code(), Some(3));
    let cell = &document(&json)["cells"][0];
    assert!(cell["outcome"]["detail"].as_str().expect("text").contains("given up after 0.5 s"), "{cell}");
    let log = cell["log"].as_str().expect("a log");
    assert!(log.contains("vCPU 0: long mode, cs:rip"), "{log}");
    assert!(log.contains("ms, vcpu 0: "), "the last events: {log}");
}

#[test]
fn a_disk_that_is_full_is_said_and_loses_nothing() {
    // A stream that has no room.
    let full =
        run(Path::new("/dev/full"), &[]).stderr(Stdio::piped()).stdout(Stdio::piped()).output().expect("it ends");
    assert_eq!(full.status.code(), Some(3));
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(said.contains("/dev/full: the results cannot be written: No space left on device"), "{said}");
    assert!(String::from_utf8_lossy(&full.stdout).contains("expected failures"), "the grid is printed all the same");
}

#[test]
#[ignore = "needs leave to mount a file system of 1 MiB"]
fn a_file_system_that_fills_up_keeps_what_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = undisturbed(dir.path());
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).expect("room");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&disk).status();
    assert!(mount.expect("mount is everywhere").success());
    let outcome = std::panic::catch_unwind(|| {
        let json = disk.join("results.json");
        std::fs::write(disk.join("ballast"), vec![0; 900 << 10]).expect("room");
        let traces = disk.join("traces");
        let run = |more: &[&str]| {
            let mut command = run(&json, more);
            command.stderr(Stdio::piped()).output().expect("it ends")
        };
        let full = run(&["--trace-dir", traces.to_str().expect("text")]);
        assert_eq!(full.status.code(), Some(3));
        let said = String::from_utf8_lossy(&full.stderr);
        assert!(said.contains("No space left on device"), "{said}");
        let found = cells(&document(&json));
        assert!(found.keys().eq(expected.keys()), "the document of the beginning is whole");
        // With room again, the run is gone on with.
        std::fs::remove_file(disk.join("ballast")).expect("it is there");
        std::fs::remove_dir_all(&traces).expect("it is there");
        assert_eq!(run(&["--resume"]).status.code(), Some(0));
        assert_eq!(cells(&document(&json)), expected);
    });
    let unmount = Command::new("umount").arg(&disk).status();
    assert!(unmount.expect("umount is where mount is").success());
    outcome.expect("what is above");
}

#[test]
fn a_process_for_each_cell_sees_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let documents = ["shared.json", "isolated.json"].map(|name| dir.path().join(name));
    for (json, more) in documents.iter().zip([&[][..], &["--isolate"]]) {
        let status = spinup().args(["run", "mp-spec"]).args(more).arg("--json").arg(json).status();
        assert!(status.expect("the binary of this package").success());
    }
    let [shared, isolated] = documents.map(|json| cells(&document(&json)));
    assert_eq!(shared, isolated);
}
