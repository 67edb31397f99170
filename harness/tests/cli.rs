//! The program as people and CI use it: what it prints, which files it writes, and its exit status.

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LAZY_OK: &str = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft";
const LAZY_HANGS: &str = "bhyve-13.1@main-7c326ab5/mp-spec/xapic-2/soft";

struct Output {
    status: i32,
    stdout: String,
    stderr: String,
}

fn spinup(arguments: &[&str]) -> Output {
    let output =
        Command::new(env!("CARGO_BIN_EXE_spinup")).args(arguments).output().expect("the binary of this package");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Output {
        status: output.status.code().expect("no signal"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn repository_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The default matrix with something changed, in a file.
fn matrix_file(dir: &Path, change: impl FnOnce(String) -> String) -> String {
    let default = std::fs::read_to_string(repository_file("matrix.toml")).expect("the repository's matrix");
    let path = dir.join("matrix.toml");
    std::fs::write(&path, change(default)).expect("room");
    path.display().to_string()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the file was written")).expect("JSON")
}

fn cells(document: &Value) -> Vec<String> {
    let cells = document["cells"].as_array().expect("a list");
    cells.iter().map(|cell| cell["cell"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_default_run_is_green_and_says_what_it_found() {
    let dir = dir();
    let file = dir.path().join("results.json");
    let run = spinup(&["--json", file.to_str().expect("text")]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    assert!(!run.stdout.contains('\u{1b}'), "no colours where there is no terminal");
    let grid = run.stdout.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(grid);

    let document = json(&file);
    assert_eq!((&document["schema"], &document["complete"]), (&1.into(), &true.into()));
    let listed: Vec<String> = spinup(&["list"]).stdout.lines().map(str::to_owned).collect();
    assert_eq!(cells(&document), listed);
    for cell in document["cells"].as_array().expect("a list") {
        let fine = matches!(cell["verdict"].as_str(), Some("pass" | "xfail"));
        assert!(fine && cell["trace_sha256"].as_str().is_some_and(|hash| hash.len() == 64), "{cell}");
        let aps = if cell["outcome"]["kind"] == "ok" { cell["cpus"].as_u64().expect("a number") - 1 } else { 0 };
        assert_eq!(cell["aps_started"], aps, "{cell}");
    }
}

#[test]
fn the_report_of_february_2023_is_reproduced_in_one_sentence() {
    let repro = spinup(&["repro", "bhyve-13.1-ap-startup"]);
    assert_eq!((repro.status, repro.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(repro.stdout);
}

#[test]
fn the_readme_shows_what_is_printed() {
    let readme = std::fs::read_to_string(repository_file("README.md")).expect("the repository's README");
    let run = spinup(&[]).stdout;
    // The last line tells the time that it took.
    let (grid, _) = run.trim_end().rsplit_once('\n').expect("more than a line");
    assert!(readme.contains(grid), "the README's grid is not this one:\n{grid}");
    let repro = spinup(&["repro", "bhyve-13.1-ap-startup"]).stdout;
    assert!(readme.contains(repro.trim_end()), "the README's divergence is not this one:\n{repro}");
}

#[test]
fn every_known_regression_shows() {
    let regressions = spinup(&["show", "regressions"]);
    let sentences: Vec<String> = regressions
        .stdout
        .lines()
        .map(|line| {
            let id = line.split(' ').next().expect("a line begins with the id");
            let repro = spinup(&["repro", id]);
            assert_eq!((repro.status, repro.stderr.as_str()), (0, ""), "{id}");
            format!("{id}\n  {}", repro.stdout.lines().nth(3).expect("the sentence follows the heading"))
        })
        .collect();
    insta::assert_snapshot!(sentences.join("\n"));
}

#[test]
fn the_same_cell_and_seed_leave_the_same_bytes_in_every_process() {
    for cell in [LAZY_OK, LAZY_HANGS, "bhyve-0bda8d3e@naive-widen/linux-parallel/x2apic-4/soft"] {
        let trace = |seed: &str| spinup(&["trace", "--format", "jsonl", "--seed", seed, cell]).stdout;
        let first = trace("7");
        assert!(first.lines().count() > 100, "{cell}");
        assert_eq!(first, trace("7"), "{cell}");
        assert_ne!(first, trace("8"), "{cell}: another seed is another schedule");
    }
}

#[test]
fn another_seed_is_another_schedule_of_the_same_events() {
    let canonical = |seed: &str| spinup(&["trace", "--canonical", "--seed", seed, LAZY_OK]).stdout;
    let expected = canonical("0");
    for seed in ["1", "2", "3"] {
        assert_eq!(canonical(seed), expected, "seed {seed}");
    }
}

#[test]
fn a_fix_that_is_left_out_turns_the_matrix_red() {
    let dir = dir();
    let matrix = matrix_file(dir.path(), |default| {
        default
            + "\n[[kernel]]\nname = \"fbsd-13.2\"\nbase = \"fbsd-13.2\"\nwithout = [\"exit-mask\"]\n\
               about = \"13.2 without the mask of the exit\"\n"
    });
    let run = spinup(&["--matrix", &matrix]);
    assert_eq!((run.status, run.stderr.as_str()), (1, ""));
    assert!(run.stdout.contains("⧗ hang 12/12"), "{}", run.stdout);
    let cell = "bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft";
    let repro = format!("spinup repro {cell} --matrix {matrix}");
    assert!(run.stdout.contains(&repro), "{}", run.stdout);
    // The way out that it prints works: the nearest kernel that is fine is found, and the divergence with it.
    let repro = spinup(&["repro", cell, "--matrix", &matrix]);
    assert_eq!((repro.status, repro.stderr.as_str()), (0, ""));
    let sentence = repro.stdout.lines().next().expect("a sentence");
    assert!(sentence.contains("fbsd-13.2 resolved it among active vCPUs {0} and got {}"), "{sentence}");
}

#[test]
fn an_expected_failure_that_does_not_happen_is_red() {
    let dir = dir();
    let matrix = matrix_file(dir.path(), |default| {
        default
            + "\n[[expect]]\nmatch = { frontend = \"bhyve-13.1\", kernel = \"fbsd-13.2\" }\noutcome = \"hang\"\nreason = \"we think so\"\nref = \"\"\n"
    });
    let run = spinup(&["--matrix", &matrix, "bhyve-13.1@fbsd-13.2/mp-spec"]);
    assert_eq!(run.status, 1);
    assert!(run.stdout.contains("expected hang, but ✓ ok"), "{}", run.stdout);
}

#[test]
fn guests_that_misbehave_end_only_their_own_cells() {
    let dir = dir();
    let file = dir.path().join("results.json");
    let guests = ["triple-fault", "spin-forever", "jump-into-mmio", "mp-spec"].map(|guest| ["--guest", guest]);
    let mut arguments =
        vec!["run", "-j", "4", "--cpus", "2", "--apic", "xapic", "--json", file.to_str().expect("text")];
    arguments.extend(["--kernel", "fbsd-13.2"]);
    arguments.extend(guests.iter().flatten());
    let run = spinup(&arguments);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{}", run.stdout);
    let outcomes: BTreeSet<(String, String)> = json(&file)["cells"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|cell| {
            let outcome = &cell["outcome"];
            let status = outcome["status"].as_i64().map_or(String::new(), |status| format!(" {status}"));
            (
                cell["guest"].as_str().expect("a name").to_owned(),
                format!("{}{status}", outcome["kind"].as_str().expect("a kind")),
            )
        })
        .collect();
    let expected =
        [("jump-into-mmio", "abort"), ("mp-spec", "ok"), ("spin-forever", "hang"), ("triple-fault", "exit 3")];
    assert_eq!(outcomes, expected.map(|(guest, outcome)| (guest.to_owned(), outcome.to_owned())).into());
}

#[test]
fn shards_together_are_the_whole() {
    let dir = dir();
    let mut joined = Vec::new();
    for shard in ["1/3", "2/3", "3/3"] {
        let file = dir.path().join("shard.json");
        let run = spinup(&["--shard", shard, "--json", file.to_str().expect("text"), "mp-spec"]);
        assert_eq!(run.status, 0);
        joined.extend(cells(&json(&file)));
    }
    let mut all: Vec<String> = spinup(&["list", "mp-spec"]).stdout.lines().map(str::to_owned).collect();
    joined.sort();
    all.sort();
    assert_eq!(joined, all);
    assert_eq!(spinup(&["--shard", "2/2", LAZY_OK]).status, 2);
}

#[test]
fn stored_traces_compare_as_their_cells_do() {
    let dir = dir();
    let root = dir.path().to_str().expect("text");
    assert_eq!(spinup(&["run", LAZY_OK, LAZY_HANGS, "--trace-dir", root]).status, 0);
    let [left, right] = [LAZY_OK, LAZY_HANGS].map(|cell| format!("{root}/{cell}.jsonl"));
    let files = spinup(&["diff", &left, &right]);
    assert_eq!(files.status, 0, "{}", files.stderr);
    assert_eq!(files.stdout, spinup(&["diff", LAZY_OK, LAZY_HANGS]).stdout);
    assert_eq!(
        std::fs::read_to_string(&left).expect("a trace"),
        spinup(&["trace", "--format", "jsonl", LAZY_OK]).stdout
    );
    let same = spinup(&["diff", &left, &left]);
    assert!(same.stdout.starts_with("The traces agree in every significant event."), "{}", same.stdout);
}

#[test]
fn what_cannot_be_done_is_said_in_one_line_with_status_2() {
    let dir = dir();
    let broken = matrix_file(dir.path(), |default| default.replace("kernels =", "kernals ="));
    let no_trace = repository_file("matrix.toml").display().to_string();
    let said: Vec<String> = [
        &["--matrix", &broken][..],
        &["--matrix", "/nowhere/matrix.toml"],
        &["run", "mp-spek"],
        &["list", "--kernel", "fbsd-13"],
        &["--frontend", "bhyve-13.3"],
        &["trace", "bhyve-13.1"],
        &["trace", "bhyve-13.1@fbsd-13.0/mp-spec/xapic-2/soft"],
        &["trace", "bhyve-13.1@fbsd-13.2/mp-spec/xapic-1025/soft"],
        &["diff", LAZY_OK, "nothing"],
        &["diff", LAZY_OK, &no_trace],
        &["repro", "bhyve-13.1-ap-start"],
        &["repro", LAZY_OK],
        &["show", "kernels", "fbsd-13"],
    ]
    .iter()
    .map(|arguments| {
        let output = spinup(arguments);
        assert_eq!((output.status, output.stdout.as_str()), (2, ""), "{arguments:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        output.stderr.replace(&broken, "matrix.toml").replace(&no_trace, "no-trace.jsonl")
    })
    .collect();
    insta::assert_snapshot!(said.concat());
}

#[test]
fn files_that_cannot_be_written_are_found_before_the_work_is_done() {
    let run = spinup(&["run", LAZY_OK, "--json", "/nowhere/results.json"]);
    assert_eq!((run.status, run.stdout.as_str()), (3, ""));
    assert!(run.stderr.contains("/nowhere/results.json: the results cannot be written"), "{}", run.stderr);
}

#[test]
fn a_reader_who_has_enough_may_go() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spinup"))
        .args(["trace", "--format", "jsonl", LAZY_OK])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary of this package");
    let mut first = String::new();
    BufReader::with_capacity(16, child.stdout.take().expect("piped")).read_line(&mut first).expect("a line");
    assert!(first.starts_with("{\"schema\":1"), "{first}");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_reader_who_goes_does_not_make_red_green() {
    let dir = dir();
    let matrix = matrix_file(dir.path(), |default| default.replace("outcome = \"hang\"", "outcome = \"panic\""));
    let mut child = Command::new(env!("CARGO_BIN_EXE_spinup"))
        .args(["run", LAZY_HANGS, "--matrix", &matrix])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary of this package");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn as_many_cpus_as_the_kernel_has_come_up() {
    // hw.vmm.maxcpu of 13.2's GENERIC as the project models it.
    let run = spinup(&["--cpus", "255", "--guest", "linux-parallel", "--guest", "many", "bhyve-13.2@fbsd-13.2"]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{}", run.stdout);
    assert!(run.stdout.contains("✓ ok 4/4"), "{}", run.stdout);
}

#[test]
fn a_result_goes_through_a_pipe_or_a_link_and_not_into_its_place() {
    let dir = dir();
    let [pipe, link, file] = ["pipe", "link", "file"].map(|name| dir.path().join(name));
    std::fs::write(&file, "before").expect("room");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    assert_eq!(spinup(&["run", LAZY_OK, "--json", link.to_str().expect("text")]).status, 0);
    assert!(link.is_symlink());
    assert_eq!(cells(&json(&file)), [LAZY_OK]);

    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is everywhere").success());
    let child = Command::new(env!("CARGO_BIN_EXE_spinup"))
        .args(["run", LAZY_OK, "--json", pipe.to_str().expect("text")])
        .stdout(Stdio::null())
        .spawn();
    let document: Value =
        serde_json::from_reader(std::fs::File::open(&pipe).expect("its other end")).expect("one document");
    assert_eq!(document["complete"], true);
    assert!(child.expect("the binary of this package").wait().expect("it ends").success());
}
