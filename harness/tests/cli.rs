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
    spinup_in(arguments, &[])
}

/// With these variables, and none of those that continuous integration sets.
fn spinup_in(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spinup"));
    for variable in ["CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "CI_NODE_INDEX", "TEST_SHARD_INDEX", "COLUMNS"] {
        command.env_remove(variable);
    }
    let output = command.args(arguments).envs(variables.iter().copied()).output().expect("the binary of this package");
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

/// What a document says, but for how long it took.
fn timeless(path: &Path) -> Value {
    let mut document = json(path);
    for cell in document["cells"].as_array_mut().expect("a list") {
        cell["duration_ms"] = 0.into();
    }
    document
}

#[test]
fn shards_together_are_the_whole() {
    let dir = dir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let whole = file("whole.json");
    assert_eq!(spinup(&["mp-spec", "--json", &whole]).status, 0);
    // By number, by how long cells took, and as continuous integration asks for it.
    let by_duration = ["--durations", whole.as_str()];
    for (more, environment) in [(&[][..], false), (&by_duration, false), (&[][..], true)] {
        let parts: Vec<String> = (1..=3)
            .map(|part| {
                let part_file = file(&format!("part-{part}.json"));
                let mut arguments = vec!["mp-spec", "--json", &part_file];
                arguments.extend(more);
                let (shard, index) = (format!("{part}/3"), part.to_string());
                let run = if environment {
                    spinup_in(&arguments, &[("CI_NODE_INDEX", &index), ("CI_NODE_TOTAL", "3")])
                } else {
                    arguments.extend(["--shard", &shard]);
                    spinup(&arguments)
                };
                assert_eq!((run.status, run.stderr.as_str()), (0, ""));
                part_file
            })
            .collect();
        let merged = file("merged.json");
        // In whatever order they come.
        let merge = spinup(&["merge", &parts[2], &parts[0], &parts[1], "--json", &merged]);
        assert_eq!((merge.status, merge.stderr.as_str()), (0, ""));
        let bytes = |path: &str| serde_json::to_string_pretty(&timeless(Path::new(path))).expect("plain data");
        assert_eq!(bytes(&merged), bytes(&whole));
        let twice = spinup(&["merge", &parts[0], &parts[1], &parts[0]]);
        assert_eq!(twice.status, 2);
        assert!(twice.stderr.contains("is in "), "{}", twice.stderr);
    }
    assert_eq!(spinup(&["--shard", "2/2", LAZY_OK]).status, 2);
    let nonsense = spinup_in(&[LAZY_OK], &[("CI_NODE_INDEX", "7"), ("CI_NODE_TOTAL", "3")]);
    assert_eq!(nonsense.status, 2, "{}", nonsense.stderr);
}

#[test]
fn every_report_is_written_from_one_run() {
    let dir = dir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let matrix = matrix_file(dir.path(), |default| {
        default
            + "\n[[kernel]]\nname = \"fbsd-13.2\"\nbase = \"fbsd-13.2\"\nwithout = [\"exit-mask\"]\nabout = \"broken\"\n"
    });
    let [json_file, junit, tap, markdown, html, summary] =
        ["r.json", "r.xml", "r.tap", "r.md", "r.html", "summary.md"].map(file);
    std::fs::write(&summary, "from the step before\n").expect("room");
    let run = spinup_in(
        &[
            "--matrix",
            &matrix,
            "--json",
            &json_file,
            "--junit",
            &junit,
            "--tap",
            &tap,
            "--markdown",
            &markdown,
            "--html",
            &html,
        ],
        &[("GITHUB_ACTIONS", "true"), ("GITHUB_STEP_SUMMARY", &summary)],
    );
    assert_eq!((run.status, run.stderr.as_str()), (1, ""));
    let document = json(Path::new(&json_file));
    let all = document["cells"].as_array().expect("a list");
    let red: Vec<&Value> = all.iter().filter(|cell| cell["verdict"] == "fail").collect();
    assert_eq!(red.len(), 12);
    // Whoever reads any of them learns which cell, where it parts ways, and how to see it.
    let sentence = red[0]["divergence"]["sentence"].as_str().expect("the first red cell is explained");
    assert!(sentence.contains("fbsd-13.2 resolved it among active vCPUs {0} and got {}"), "{sentence}");
    let text = |path: &str| std::fs::read_to_string(path).expect("it was written");
    let name = red[0]["cell"].as_str().expect("a name");
    let repro = format!("spinup repro {name} --matrix {matrix}");
    assert!(run.stdout.contains(sentence) && run.stdout.contains(&repro), "{}", run.stdout);
    for path in [&junit, &tap, &html] {
        assert!(text(path).contains(sentence) && text(path).contains(&repro), "{path}");
    }
    let escaped = name.replace('@', "&#64;");
    assert!(text(&markdown).contains(&escaped), "{}", text(&markdown));
    assert_eq!(text(&summary), format!("from the step before\n{}", text(&markdown)));
    assert_eq!(text(&junit).matches("<testcase ").count(), all.len());
    assert_eq!(text(&junit).matches("<failure ").count(), 12);
    assert_eq!(text(&tap).lines().filter(|line| line.starts_with("not ok") && !line.contains("# TODO")).count(), 12);
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("::error ")).count(), 10);
}

#[test]
fn a_release_stops_for_what_got_worse_and_is_supported() {
    let dir = dir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (baseline, verdict) = (file("baseline.json"), file("verdict.json"));
    assert_eq!(spinup(&["mp-spec", "--kernel", "fbsd-13.2", "--json", &baseline]).status, 0);
    let same = spinup(&["gate", "--baseline", &baseline, "mp-spec", "--kernel", "fbsd-13.2"]);
    assert_eq!((same.status, same.stderr.as_str()), (0, ""), "{}", same.stdout);
    // Broken, and written down as expected.
    let broken = |policy: &str| {
        let policy = policy.to_owned();
        matrix_file(dir.path(), |default| {
            default
                + "\n[[kernel]]\nname = \"fbsd-13.2\"\nbase = \"fbsd-13.2\"\nwithout = [\"exit-mask\"]\nabout = \"broken\"\n\
                   [[expect]]\nmatch = { kernel = \"fbsd-13.2\", frontend = \"bhyve-13.1\", guest = \"mp-spec\" }\noutcome = \"hang\"\n\
                   reason = \"so what\"\nref = \"\"\n"
                + &policy
        })
    };
    let matrix = broken("");
    let arguments = [
        "gate",
        "--baseline",
        &baseline,
        "--matrix",
        &matrix,
        "--verdict",
        &verdict,
        "mp-spec",
        "--kernel",
        "fbsd-13.2",
    ];
    let worse = spinup(&arguments);
    assert_eq!((worse.status, worse.stderr.as_str()), (1, ""), "{}", worse.stdout);
    let cell = "bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft";
    for words in [
        &format!("worse {cell}"),
        "was ok, now hang",
        "fbsd-13.2 resolved it among active vCPUs {0} and got {}",
        &format!("spinup repro {cell} --matrix {matrix}"),
        "fail, 12 cells compared: 4 worse",
    ] {
        assert!(worse.stdout.contains(words), "{words} is not in\n{}", worse.stdout);
    }
    let document = json(Path::new(&verdict));
    assert_eq!((&document["verdict"], &document["counts"]["worse"]), (&"fail".into(), &4.into()));
    assert!(document["changes"][0]["divergence"]["sentence"].is_string(), "{document}");
    let matrix =
        broken("[[support]]\nmatch = { frontend = \"bhyve-13.1\" }\nuntil = 2027-03-31\nreason = \"until 14.4\"\n");
    for (day, status) in [("2027-03-31", 1), ("2027-04-01", 0)] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--today", day]);
        let gate = spinup(&arguments);
        assert_eq!(gate.status, status, "{day}: {}", gate.stdout);
        assert!(gate.stdout.contains("supported until 2027-03-31"), "{}", gate.stdout);
    }
    // From results that are there, too.
    let now = file("now.json");
    spinup(&["mp-spec", "--matrix", &matrix, "--kernel", "fbsd-13.2", "--json", &now]);
    let gate =
        spinup(&["gate", "--baseline", &baseline, "--results", &now, "--matrix", &matrix, "--today", "2027-01-01"]);
    assert_eq!(gate.status, 1, "{}", gate.stdout);
}

#[test]
fn expectations_are_rewritten_from_a_run() {
    let dir = dir();
    let results = dir.path().join("results.json").display().to_string();
    let matrix = matrix_file(dir.path(), |default| default.replace("outcome = \"hang\"", "outcome = \"exit 4\""));
    assert_eq!(spinup(&["--matrix", &matrix, "--json", &results]).status, 1);
    let look = spinup(&["expect", &results, "--matrix", &matrix]);
    assert_eq!(look.status, 1);
    assert!(look.stdout.contains("⧗ hang, expected exit 4: the guest gave up waiting"), "{}", look.stdout);
    let unexplained = spinup(&["expect", &results, "--matrix", &matrix, "--update"]);
    assert_eq!(unexplained.status, 2);
    assert!(unexplained.stderr.contains("say why with --reason"), "{}", unexplained.stderr);
    let update =
        spinup(&["expect", &results, "--matrix", &matrix, "--update", "--reason", "it is so", "--ref", "issue 1"]);
    assert_eq!((update.status, update.stderr.as_str()), (0, ""));
    let again = spinup(&["--matrix", &matrix]);
    assert_eq!((again.status, again.stderr.as_str()), (0, ""), "{}", again.stdout);
}

#[test]
fn cells_that_differ_from_seed_to_seed_are_told_with_the_seed() {
    let dir = dir();
    let file = dir.path().join("results.json");
    let path = file.to_str().expect("text");
    assert_eq!(spinup(&[LAZY_OK, LAZY_HANGS, "--repeat", "3", "--seed", "5", "--json", path]).status, 0);
    for cell in json(&file)["cells"].as_array().expect("a list") {
        let seeds: Vec<u64> =
            cell["tries"].as_array().expect("three").iter().filter_map(|run| run["seed"].as_u64()).collect();
        assert_eq!(seeds, [5, 6, 7], "{cell}");
    }
    // A cell that is red with every seed is red with the first.
    let matrix = matrix_file(dir.path(), |default| default.replace("outcome = \"hang\"", "outcome = \"panic\""));
    let until = spinup(&[LAZY_HANGS, "--until-fail", "--seed", "9", "--matrix", &matrix]);
    assert_eq!(until.status, 1);
    assert!(
        until.stdout.contains(&format!("spinup repro {LAZY_HANGS} --matrix {matrix} --seed 9")),
        "{}",
        until.stdout
    );
}

#[test]
fn where_no_matrix_is_in_reach_the_built_in_one_is_used_and_said() {
    let dir = dir();
    let run = |dir: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_spinup")).arg(LAZY_OK).current_dir(dir).output();
        String::from_utf8(output.expect("the binary of this package").stdout).expect("text")
    };
    assert!(run(dir.path()).contains(", the built-in matrix: 1 ok"), "{}", run(dir.path()));
    matrix_file(dir.path(), |default| default);
    let below = dir.path().join("below");
    std::fs::create_dir(&below).expect("room");
    assert!(!run(&below).contains("built-in"), "{}", run(&below));
}

#[test]
fn colours_are_for_those_who_want_them() {
    let escape = '\u{1b}';
    assert!(spinup(&[LAZY_OK, "--color", "always"]).stdout.contains(escape));
    assert!(!spinup(&[LAZY_OK, "--color", "never"]).stdout.contains(escape));
    assert!(!spinup(&[LAZY_OK]).stdout.contains(escape));
    assert!(spinup_in(&[LAZY_OK], &[("CLICOLOR_FORCE", "1")]).stdout.contains(escape));
    assert!(!spinup_in(&[LAZY_OK], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).stdout.contains(escape));
}

#[test]
fn what_packagers_install_is_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = spinup(&["completions", shell]).stdout;
        assert!(script.contains("spinup") && script.contains("until-fail"), "{shell}");
        assert!(!script.contains("worker"), "{shell}: what the runner starts itself is nobody's to complete");
    }
    let dir = dir();
    assert_eq!(spinup(&["man", "--dir", dir.path().to_str().expect("text")]).status, 0);
    let pages: BTreeSet<String> = std::fs::read_dir(dir.path())
        .expect("written")
        .map(|page| page.expect("there").file_name().into_string().expect("text"))
        .collect();
    for name in ["spinup.1", "spinup-run.1", "spinup-gate.1", "spinup-merge.1"] {
        assert!(pages.contains(name), "{pages:?}");
    }
    assert!(!pages.contains("spinup-worker.1"));
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

#[test]
fn a_guest_s_files_are_written_for_another_machine() {
    let dir = dir();
    let kernel = dir.path().join("kernel.elf");
    std::fs::write(&kernel, guests::os::INIT).expect("room");
    let matrix = matrix_file(dir.path(), |text| {
        format!(
            "{text}\n[[guest]]\nname = \"exported\"\nabout = \"a program\"\nkernel = \"{}\"\ninitrd = \"spinup\"\n\
             cmdline = \"quiet panic=-1\"\nmemory_mib = 32\nlimits = {{ soft = {{ base_ms = 10, per_cpu_ms = 1 }}, \
             kvm = {{ base_ms = 10, per_cpu_ms = 1 }} }}\n",
            kernel.display()
        )
    });
    let out = dir.path().join("a").join("b");
    let export = |guest| spinup(&["guests", "export", guest, out.to_str().expect("text"), "--matrix", &matrix]);
    let run = export("exported");
    assert_eq!((run.status, run.stderr.as_str(), run.stdout.lines().count()), (0, "", 4));
    let written = |name: &str| std::fs::read(out.join(name)).expect("a file that it said it wrote");
    assert_eq!(written("kernel"), guests::os::INIT);
    assert_eq!(written("initrd"), guests::os::Initramfs::Spinup.build(&[]));
    assert_eq!(written("cmdline"), b"quiet panic=-1\n");
    assert_eq!(written("memory-mib"), b"32\n");

    let run = export("exporte");
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("no operating system of the matrix is named `exporte` (did you mean `exported`?)"));
}
