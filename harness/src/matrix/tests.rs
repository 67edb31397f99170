use super::*;
use crate::catalog;
use crate::outcome::OutcomeKind;
use proptest::prelude::*;
use std::collections::HashSet;

const SMALL: &str = r#"
[axes]
kernels = ["fbsd-13.1", "fbsd-13.2"]
frontends = ["bhyve-13.1"]
guests = ["mp-spec"]
apic = ["xapic"]
cpus = [2]
engines = ["soft"]
[limits]
soft = { base_ms = 1000, per_cpu_ms = 10 }
kvm = { base_ms = 2000, per_cpu_ms = 20 }
"#;

fn small(more: &str) -> Result<Matrix, ConfigError> {
    Matrix::parse("matrix.toml", &format!("{SMALL}{more}"))
}

fn cell(text: &str) -> Cell {
    text.parse().expect("a cell")
}

fn names(cells: &[Cell]) -> Vec<String> {
    cells.iter().map(Cell::to_string).collect()
}

fn default_matrix() -> Matrix {
    Matrix::built_in().expect("the matrix that is built in is right")
}

#[test]
fn the_built_in_matrix_states_the_known_truth() {
    let matrix = default_matrix();
    let cells = matrix.configured();
    let mut table = Vec::new();
    for kernel in KernelVersion::all() {
        for frontend in catalog::frontends() {
            let pairing = format!("{}@{}", frontend.name, kernel.name);
            let expected = |apic: ApicMode| -> HashSet<OutcomeKind> {
                let of_it = |cell: &&Cell| cell.pairing() == pairing && cell.apic == apic;
                let on_axis = |cell: &&Cell| matrix.has_guest_on_axis(&cell.guest);
                cells.iter().filter(of_it).filter(on_axis).map(|cell| matrix.expectation(cell).outcome).collect()
            };
            for apic in ApicMode::ALL {
                let outcomes: Vec<OutcomeKind> = expected(apic).into_iter().collect();
                if outcomes.is_empty() {
                    continue;
                }
                let [outcome] = outcomes[..] else { panic!("{pairing} {apic}: {outcomes:?}") };
                table.push(format!("{pairing} {apic} {outcome}"));
            }
        }
    }
    table.extend(
        cells
            .iter()
            .filter(|cell| !matrix.has_guest_on_axis(&cell.guest))
            .map(|cell| format!("{cell} {}", matrix.expectation(cell).outcome)),
    );
    insta::assert_snapshot!(table.join("\n"));
    for regression in matrix.regressions() {
        assert_ne!(matrix.expectation(&regression.bad).outcome, OutcomeKind::Ok, "{}", regression.id);
        assert_eq!(matrix.expectation(&regression.good).outcome, OutcomeKind::Ok, "{}", regression.id);
        assert!(cells.contains(&regression.bad) && cells.contains(&regression.good), "{}", regression.id);
    }
}

#[test]
fn a_malformed_matrix_names_file_line_and_key() {
    let expect = |table: &str| format!("{SMALL}[[expect]]\n{table}\nreason = \"r\"\nref = \"f\"\n");
    let guest = |device: &str| {
        let limits = "{ base_ms = 1, per_cpu_ms = 1 }";
        format!(
            "{SMALL}[[guest]]\nname = \"os\"\nabout = \"\"\nkernel = \"linux\"\ncmdline = \"\"\nmemory_mib = 64\n\
             limits = {{ soft = {limits}, kvm = {limits} }}\ndevices = [{{ {device} }}]\n"
        )
    };
    let cases = [
        ("no TOML", SMALL.replace("[limits]", "[limits")),
        ("no axes", "[limits]\n".to_owned()),
        ("unknown table", format!("{SMALL}[[expects]]\n")),
        ("unknown key", SMALL.replace("kernels", "kernals")),
        ("unknown key in a match", expect("match = { kernal = \"fbsd-13.1\" }\noutcome = \"hang\"")),
        ("wrong type", SMALL.replace("cpus = [2]", "cpus = [\"two\"]")),
        ("number out of range", SMALL.replace("cpus = [2]", "cpus = [2, 70000]")),
        ("no vCPU", SMALL.replace("cpus = [2]", "cpus = [2, 0]")),
        ("more vCPUs than a guest uses", SMALL.replace("cpus = [2]", "cpus = [1024, 1025]")),
        ("include of no vCPU", format!("{SMALL}[[include]]\ncpus = 0\n")),
        ("include of what is there", format!("{SMALL}[[include]]\ncpus = 2\n")),
        ("include of nothing", format!("{SMALL}[[include]]\ncpus = []\n")),
        ("twice on an axis", SMALL.replace("cpus = [2]", "cpus = [2, 2]")),
        ("empty axis", SMALL.replace("cpus = [2]", "cpus = []")),
        ("unknown kernel on the axis", SMALL.replace("\"fbsd-13.2\"]", "\"fbsd-13.20\"]")),
        ("unknown guest far from any", SMALL.replace("mp-spec", "q")),
        ("unknown engine", SMALL.replace("\"soft\"", "\"qemu\"")),
        ("unknown outcome", expect("match = {}\noutcome = \"explode\"")),
        ("no reason", format!("{SMALL}[[expect]]\nmatch = {{}}\noutcome = \"hang\"\nref = \"\"\n")),
        ("unknown name in a match", expect("match = { frontend = \"bhyve-13.11\" }\noutcome = \"hang\"")),
        ("expectation for no cell", expect("match = { kernel = \"naive-widen\" }\noutcome = \"hang\"")),
        ("glob for nothing", expect("match = { kernel = \"netbsd-*\" }\noutcome = \"hang\"")),
        ("condition that is none", expect("match = { cpus = \"17 or so\" }\noutcome = \"hang\"")),
        ("expectation of nothing", expect("match = {}")),
        ("bound that is none", expect("match = {}\nparked_exits_per_s = \"few\"")),
        ("include of a condition", format!("{SMALL}[[include]]\ncpus = \"> 2\"\n")),
        ("exclusion of what is not there", expect("match = { guest = \"!mp-spek\" }\noutcome = \"hang\"")),
        ("name that makes no kernel", SMALL.replace("\"fbsd-13.2\"]", "\"fbsd-13.2-handle-ipi\"]")),
        (
            "name that makes no kernel in a match",
            expect("match = { kernel = \"fbsd-13.1+exit-mask\" }\noutcome = \"hang\""),
        ),
        ("name made with no change", expect("match = { kernel = \"fbsd-13.2-exit-mesk\" }\noutcome = \"hang\"")),
        ("exclude of nothing", format!("{SMALL}[[exclude]]\ncpus = 3\n")),
        (
            "unknown change",
            format!("{SMALL}[[kernel]]\nname = \"x\"\nbase = \"fbsd-13.2\"\nwithout = [\"exit-mesk\"]\nabout = \"\"\n"),
        ),
        (
            "unmet need",
            format!(
                "{SMALL}[[kernel]]\nname = \"x\"\nbase = \"fbsd-13.2\"\nwithout = [\"handle-ipi\"]\nabout = \"\"\n"
            ),
        ),
        (
            "a change that the base has",
            format!("{SMALL}[[kernel]]\nname = \"x\"\nbase = \"fbsd-13.2\"\nwith = [\"exit-mask\"]\nabout = \"\"\n"),
        ),
        (
            "a change that the base does not have",
            format!("{SMALL}[[kernel]]\nname = \"x\"\nbase = \"fbsd-13.1\"\nwithout = [\"exit-mask\"]\nabout = \"\"\n"),
        ),
        ("unknown base", format!("{SMALL}[[kernel]]\nname = \"x\"\nbase = \"fbsd-13\"\nabout = \"\"\n")),
        ("no kernel name", format!("{SMALL}[[kernel]]\nname = \"a/b\"\nbase = \"fbsd-13.2\"\nabout = \"\"\n")),
        ("unknown device", guest("kind = \"virtio-blq\", file = \"d\"")),
        ("device with an unknown key", guest("kind = \"virtio-net\", mac = \"x\"")),
        ("disk without a file", guest("kind = \"virtio-blk\"")),
        ("file of what is no disk", guest("kind = \"virtio-net\", file = \"d\"")),
        ("unknown mode of a disk", guest("kind = \"virtio-blk\", file = \"d\", mode = \"rw\"")),
        ("unknown transport", guest("kind = \"virtio-rnd\", transport = \"mmio\"")),
        ("slot of a bridge", guest("kind = \"virtio-rnd\", slot = 31")),
        ("slot twice", guest("kind = \"virtio-rnd\", slot = 3 }, { kind = \"virtio-net\", slot = 3")),
        ("exception of nothing", format!("{SMALL}[[uncovered]]\nwhat = \"cat\"\nname = \"x\"\nreason = \"r\"\n")),
        (
            "exception of what is not there",
            format!("{SMALL}[[uncovered]]\nwhat = \"change\"\nname = \"warp\"\nreason = \"r\"\n"),
        ),
        (
            "exception without reason",
            format!("{SMALL}[[uncovered]]\nwhat = \"change\"\nname = \"exit-mask\"\nreason = \" \"\n"),
        ),
        (
            "regression without cell",
            format!(
                "{SMALL}[[regression]]\nid = \"x\"\nabout = \"\"\nref = \"\"\nbad = \"bhyve-13.1@fbsd-13.1\"\ngood = \"\"\n"
            ),
        ),
        (
            "regression with an unknown name",
            format!(
                "{SMALL}[[regression]]\nid = \"x\"\nabout = \"\"\nref = \"\"\nbad = \"bhyve-13.1@fbsd-13.9/mp-spec/xapic-2/soft\"\ngood = \"\"\n"
            ),
        ),
    ];
    let messages: Vec<String> = cases
        .iter()
        .map(|(case, text)| format!("{case}\n    {}", Matrix::parse("matrix.toml", text).expect_err(case)))
        .collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn the_most_specific_expectation_wins() {
    let rules = |kernel_first: bool| {
        let by_kernel =
            "[[expect]]\nmatch = { kernel = \"fbsd-*\" }\noutcome = \"hang\"\nreason = \"wide\"\nref = \"\"\n";
        let by_both = "[[expect]]\nmatch = { kernel = \"fbsd-13.2\", guest = \"*\" }\noutcome = \"exit 4\"\nreason = \"narrow\"\nref = \"x\"\n";
        if kernel_first { format!("{by_kernel}{by_both}") } else { format!("{by_both}{by_kernel}") }
    };
    for order in [true, false] {
        let matrix = small(&rules(order)).expect("a matrix");
        let expectation = matrix.expectation(&cell("bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft"));
        assert_eq!(expectation.outcome, OutcomeKind::Exit(4));
        assert_eq!(expectation.reason.as_deref(), Some("narrow"));
        let wide = matrix.expectation(&cell("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft"));
        assert_eq!(wide.outcome, OutcomeKind::Hang);
        let other = matrix.expectation(&cell("bhyve-13.1@naive-widen/mp-spec/xapic-2/soft"));
        let ok = Expectation { outcome: OutcomeKind::Ok, reason: None, reference: None, parked_exits_per_s: None };
        assert_eq!(other, ok);
    }
}

const WIDE: &str = r#"
[axes]
kernels = ["fbsd-13.1", "main-7c326ab5", "fbsd-13.2"]
frontends = ["bhyve-13.1", "bhyve-13.2"]
guests = ["mp-spec", "linux", "linux-parallel"]
apic = ["xapic", "x2apic"]
cpus = [2, 4, 17]
engines = ["soft"]
[limits]
soft = { base_ms = 1000, per_cpu_ms = 10 }
kvm = { base_ms = 2000, per_cpu_ms = 20 }
"#;

/// The outcomes that these rules let be expected, of the cells that are not expected to be ok.
fn not_ok(rules: &[&str]) -> Vec<String> {
    let rules: Vec<String> =
        rules.iter().map(|rule| format!("[[expect]]\n{rule}\nreason = \"r\"\nref = \"f\"\n")).collect();
    let matrix = Matrix::parse("matrix.toml", &format!("{WIDE}{}", rules.concat())).expect("a matrix");
    let expected = |cell: &Cell| matrix.expectation(cell).outcome;
    let cells = matrix.configured();
    cells
        .iter()
        .filter(|cell| expected(cell) != OutcomeKind::Ok)
        .map(|cell| format!("{cell} {}", expected(cell)))
        .collect()
}

#[test]
fn lists_globs_exclusions_and_conditions_in_every_key() {
    assert_eq!(
        not_ok(&[
            "match = { kernel = [\"main-*\", \"fbsd-13.1\"], frontend = \"!bhyve-13.2\", guest = [\"linux*\", \"!linux\"], \
             apic = \"!x2apic\", cpus = [\"> 2\", \"!17\"], engine = \"s*\" }\noutcome = \"hang\"",
            "match = { kernel = \"fbsd-13.2\", frontend = \"bhyve-13.2\", guest = [\"!linux*\"], apic = [\"xapic\"], \
             cpus = [2, \">= 17\"] }\noutcome = \"panic\"",
        ]),
        [
            "bhyve-13.1@fbsd-13.1/linux-parallel/xapic-4/soft hang",
            "bhyve-13.1@main-7c326ab5/linux-parallel/xapic-4/soft hang",
            "bhyve-13.2@fbsd-13.2/mp-spec/xapic-2/soft panic",
            "bhyve-13.2@fbsd-13.2/mp-spec/xapic-17/soft panic",
        ]
    );
}

#[test]
fn of_as_many_keys_the_plainer_wins_and_then_the_later() {
    let plain = "match = { kernel = \"fbsd-13.1\", cpus = 2 }\noutcome = \"hang\"";
    let glob = "match = { kernel = \"fbsd-*\", cpus = 2 }\noutcome = \"panic\"";
    let other = "match = { guest = \"linux\", cpus = 2 }\noutcome = \"abort\"";
    let cell = "bhyve-13.1@fbsd-13.1/linux/xapic-2/soft";
    let of_cell = |rules: &[&str]| {
        let all = not_ok(rules);
        all.into_iter().find_map(|line| line.strip_prefix(cell).map(|kind| kind.trim().to_owned()))
    };
    for order in [[plain, glob], [glob, plain]] {
        assert_eq!(of_cell(&order).as_deref(), Some("hang"), "plain before glob");
    }
    assert_eq!(of_cell(&[plain, other]).as_deref(), Some("abort"), "the later");
    assert_eq!(of_cell(&[other, plain]).as_deref(), Some("hang"), "the later");
    let one_more = "match = { kernel = \"*\", guest = \"*\", apic = \"*\" }\noutcome = \"partial\"";
    assert_eq!(of_cell(&[one_more, plain, other]).as_deref(), Some("partial"), "one key more");
}

#[test]
fn outcomes_and_bounds_are_decided_each_for_itself() {
    let matrix = small(
        "[[expect]]\nmatch = { frontend = \"bhyve-13.1\" }\nparked_exits_per_s = \"<= 1100\"\nreason = \"sleeps\"\nref = \"a\"\n\
         [[expect]]\nmatch = { kernel = \"fbsd-13.2\", frontend = \"bhyve-13.1\" }\noutcome = \"hang\"\nreason = \"hangs\"\nref = \"b\"\n",
    )
    .expect("a matrix");
    let [old, new] = ["fbsd-13.1", "fbsd-13.2"]
        .map(|kernel| matrix.expectation(&cell(&format!("bhyve-13.1@{kernel}/mp-spec/xapic-2/soft"))));
    let bound = Some("<= 1100".parse().expect("a bound"));
    assert_eq!((old.outcome, old.reason.as_deref(), old.parked_exits_per_s), (OutcomeKind::Ok, Some("sleeps"), bound));
    assert_eq!((new.outcome, new.reason.as_deref(), new.parked_exits_per_s), (OutcomeKind::Hang, Some("hangs"), bound));
    let verdicts = |rate| [old.verdict(OutcomeKind::Ok, rate), new.verdict(OutcomeKind::Hang, rate)];
    assert_eq!(verdicts(Some(1000.0)), [Verdict::Pass, Verdict::Xfail]);
    assert_eq!(verdicts(Some(500_000.0)), [Verdict::Fail, Verdict::Fail]);
    assert_eq!(verdicts(None), [Verdict::Pass, Verdict::Xfail], "what was not measured keeps every bound");
    assert_eq!(
        old.violation(Some(500_000.0)).as_deref(),
        Some("a parked vCPU left the kernel 500000 times a second, not <= 1100")
    );
}

#[test]
fn a_rule_that_never_decides_is_reported() {
    let rule = |cells: &str, outcome: &str| {
        format!("[[expect]]\nmatch = {{ {cells} }}\noutcome = \"{outcome}\"\nreason = \"r\"\nref = \"f\"\n")
    };
    let rules = [
        rule("kernel = \"fbsd-13.1\"", "hang"),
        rule("kernel = \"fbsd-*\"", "abort"),
        rule("kernel = [\"fbsd-13.1\", \"fbsd-13.2\"]", "panic"),
    ];
    let uses = small(&rules.concat()).expect("a matrix").rule_uses();
    let decided: Vec<(usize, usize)> = uses.iter().map(|rule| (rule.matches, rule.decides)).collect();
    assert_eq!(decided, [(1, 0), (2, 0), (2, 2)]);
    assert_eq!(uses[1].cells, "{ kernel = \"fbsd-*\" }");
    assert!(default_matrix().rule_uses().iter().all(|rule| rule.decides > 0), "an expectation of matrix.toml is dead");
}

#[test]
fn an_expectation_may_be_about_an_operating_system_that_is_on_no_axis() {
    const GUEST: &str = r#"
[[guest]]
name = "os"
about = "an operating system"
kernel = "linux"
cmdline = ""
memory_mib = 64
limits = { soft = { base_ms = 1000, per_cpu_ms = 10 }, kvm = { base_ms = 1000, per_cpu_ms = 10 } }
"#;
    let expect = |guest: &str| {
        format!("[[expect]]\nmatch = {{ guest = \"{guest}\" }}\noutcome = \"hang\"\nreason = \"so\"\nref = \"here\"\n")
    };
    let matrix = small(&format!("{GUEST}{}", expect("os"))).expect("a matrix");
    let uses: Vec<_> = matrix.rule_uses().iter().map(|rule| (rule.matches, rule.decides)).collect();
    assert_eq!(uses, [(2, 2)], "on either kernel");
    assert_eq!(matrix.configured().len(), 2, "it is on no axis all the same");
    assert!(small(&format!("{GUEST}{}", expect("linux"))).is_err(), "a guest that the matrix does not boot");
}

#[test]
fn a_name_makes_a_kernel() {
    let matrix = small("[[include]]\nkernel = \"main-7c326ab5+exit-mask\"\n").expect("a matrix");
    let made = matrix.kernel("main-7c326ab5+exit-mask").expect("made");
    assert_eq!(made.behaviour(), KernelVersion::named("naive-widen").expect("named").behaviour());
    assert!(!matrix.kernel("main-7c326ab5+nodebug").expect("made").options.debug);
    assert!(matrix.kernels().contains(&made), "what the matrix mentions is one of its kernels");
    assert!(names(&matrix.configured()).contains(&"bhyve-13.1@main-7c326ab5+exit-mask/mp-spec/xapic-2/soft".into()));
    let less = "fbsd-13.2-exit-mask-spinup-ffs";
    let selection = Selection { kernels: vec![Pattern::new(less)], ..Selection::default() };
    assert_eq!(names(&matrix.select(&selection).expect("cells")), [format!("bhyve-13.1@{less}/mp-spec/xapic-2/soft")]);
    let filter = Selection {
        filters: vec![Pattern::new(format!("bhyve-13.1@{less}/linux/x2apic-3/soft"))],
        ..Selection::default()
    };
    assert_eq!(matrix.select(&filter).expect("cells").len(), 1);
    let refused: Vec<String> = ["fbsd-13.2-handle-ipi", "fbsd-13.2-warp", "fbsd-13.2+run-state", "fbsd-13.3-exit-mask"]
        .map(|name| {
            let selection = Selection { kernels: vec![Pattern::new(name)], ..Selection::default() };
            matrix.select(&selection).expect_err(name).to_string()
        })
        .into();
    insta::assert_snapshot!(refused.join("\n"));
}

#[test]
fn a_selection_can_leave_out_what_is_on_the_axis() {
    let matrix = small("").expect("a matrix");
    let selection = Selection { kernels: vec![Pattern::new("!fbsd-13.1")], ..Selection::default() };
    assert_eq!(names(&matrix.select(&selection).expect("cells")), ["bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft"]);
}

#[test]
fn a_what_if_kernel_joins_the_named_ones_or_shadows_one() {
    let matrix = small(
        "[[kernel]]\nname = \"fbsd-13.2\"\nbase = \"fbsd-13.2\"\nwithout = [\"exit-mask\"]\nabout = \"broken on purpose\"\n\
         [[kernel]]\nname = \"mine\"\nbase = \"fbsd-13.2\"\nwith = [\"exit-mask\"]\nabout = \"mended again\"\n",
    )
    .expect("a matrix");
    let named = KernelVersion::named("fbsd-13.2").expect("named");
    let shadow = matrix.kernel("fbsd-13.2").expect("shadowed");
    assert!(!shadow.has("exit-mask") && shadow.has("spinup-ffs"));
    assert_eq!(matrix.kernel("mine").expect("defined").behaviour(), named.behaviour());
    assert_eq!(matrix.kernels().len(), KernelVersion::all().count() + 1);
    let selection = Selection { kernels: vec![Pattern::new("mine")], ..Selection::default() };
    assert_eq!(names(&matrix.select(&selection).expect("cells")), ["bhyve-13.1@mine/mp-spec/xapic-2/soft"]);
}

#[test]
fn options_put_values_in_place_of_an_axis() {
    let matrix = default_matrix();
    let selection = Selection {
        kernels: vec![Pattern::new("main-7*")],
        frontends: vec![Pattern::new("bhyve-13.2")],
        guests: vec![Pattern::new("triple-fault"), Pattern::new("mp-spec")],
        apic: vec![ApicMode::X2apic],
        cpus: vec![64],
        engines: vec![EngineKind::Kvm, EngineKind::Soft],
        filters: vec![],
    };
    assert_eq!(
        names(&matrix.select(&selection).expect("cells")),
        [
            "bhyve-13.2@main-769b884e/mp-spec/x2apic-64/kvm",
            "bhyve-13.2@main-769b884e/mp-spec/x2apic-64/soft",
            "bhyve-13.2@main-769b884e/triple-fault/x2apic-64/kvm",
            "bhyve-13.2@main-769b884e/triple-fault/x2apic-64/soft",
            "bhyve-13.2@main-7c326ab5/mp-spec/x2apic-64/kvm",
            "bhyve-13.2@main-7c326ab5/mp-spec/x2apic-64/soft",
            "bhyve-13.2@main-7c326ab5/triple-fault/x2apic-64/kvm",
            "bhyve-13.2@main-7c326ab5/triple-fault/x2apic-64/soft",
        ]
    );
}

#[test]
fn included_cells_stay_when_they_have_what_was_asked_for() {
    let matrix = default_matrix();
    let select = |selection: Selection| matrix.select(&selection).expect("cells");
    let misbehaving = |cells: &[Cell]| cells.iter().filter(|cell| !matrix.has_guest_on_axis(&cell.guest)).count();
    let everything = select(Selection::default());
    assert_eq!(everything, matrix.configured());
    assert_eq!(misbehaving(&everything), 3);
    let old = select(Selection { kernels: vec![Pattern::new("fbsd-13.1")], ..Selection::default() });
    assert_eq!((old.len(), misbehaving(&old)), (36, 0));
    let four = select(Selection { cpus: vec![4], ..Selection::default() });
    assert_eq!((four.len(), misbehaving(&four)), (72, 0));
    let kvm = select(Selection { engines: vec![EngineKind::Kvm], ..Selection::default() });
    assert_eq!((kvm.len(), misbehaving(&kvm)), (everything.len(), 3));
}

#[test]
fn an_included_engine_needs_no_axis_to_be_on() {
    let matrix = small("[[include]]\nkernel = \"fbsd-13.2\"\nengine = \"kvm\"\n").expect("a matrix");
    let kvm = "bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/kvm";
    assert_eq!(names(&matrix.configured())[2..], [kvm]);
    let of = |engine: EngineKind| matrix.select(&Selection { engines: vec![engine], ..Selection::default() });
    assert!(!names(&of(EngineKind::Soft).expect("cells")).contains(&kvm.to_owned()));
    assert_eq!(names(&of(EngineKind::Kvm).expect("cells")).iter().filter(|name| *name == kvm).count(), 1);
}

#[test]
fn filters_select_by_part_or_glob_and_none_in_vain() {
    let matrix = default_matrix();
    let filtered = |filters: &[&str]| {
        let filters = filters.iter().copied().map(Pattern::new).collect();
        matrix.select(&Selection { filters, ..Selection::default() })
    };
    assert_eq!(filtered(&["bhyve-13.1@fbsd-13.2"]).expect("cells").len(), 12);
    assert_eq!(filtered(&["*@naive-widen/linux/*", "triple"]).expect("cells").len(), 13);
    let beside_the_axes = "bhyve-13.1@main-769b884e/mp-spec/xapic-8/soft";
    assert_eq!(names(&filtered(&[beside_the_axes]).expect("a cell")), [beside_the_axes]);
    let errors = [
        filtered(&["mp-spec", "naive-widden"]).expect_err("no cell").to_string(),
        filtered(&["bhyve-13.1@fbsd-13.2/mp-spec/xapic3/soft"]).expect_err("no cell").to_string(),
        filtered(&["%%%"]).expect_err("no cell").to_string(),
        matrix
            .select(&Selection { kernels: vec![Pattern::new("freebsd-13.1")], ..Selection::default() })
            .expect_err("no kernel")
            .to_string(),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn excludes_take_cells_out() {
    let matrix = small("[[exclude]]\nkernel = \"fbsd-13.1\"\n").expect("a matrix");
    assert_eq!(names(&matrix.configured()), ["bhyve-13.1@fbsd-13.2/mp-spec/xapic-2/soft"]);
    let selection = Selection { kernels: vec![Pattern::new("fbsd-13.1")], ..Selection::default() };
    assert_eq!(matrix.select(&selection), Err(SelectError::AllExcluded));
}

#[test]
fn limits_grow_with_the_vcpus() {
    let matrix = small("").expect("a matrix");
    assert_eq!(matrix.limit(&cell("a@b/c/xapic-64/soft")), Duration::from_millis(1640));
    assert_eq!(matrix.limit(&cell("a@b/c/xapic-1/kvm")), Duration::from_millis(2020));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_fall_over(at in 0usize..2000, bytes in "[\\PC\n]{0,6}") {
        let mut text = DEFAULT.to_owned();
        let at = text.floor_char_boundary(at.min(text.len()));
        text.insert_str(at, &bytes);
        if let Err(error) = Matrix::parse("matrix.toml", &text) {
            prop_assert!(error.line >= 1 && error.column >= 1);
        }
    }
}
