use super::*;
use crate::matrix::Matrix;
use crate::run::Engines;

fn setup() -> Setup {
    let matrix = Matrix::built_in().expect("the matrix that is built in is right");
    Setup { matrix, engines: Engines::new(), seed: 0, timeout: None }
}

fn history_of(cell: &str, from: Option<&str>, to: Option<&str>) -> History {
    bisect(&setup(), &cell.parse().expect("a cell"), from, to).expect("every kernel can run")
}

fn shown(history: &History) -> String {
    anstream::adapter::strip_str(&render(history)).to_string()
}

/// The changes of each flip's minimal sets, by direction.
fn causes(history: &History) -> Vec<(Direction, Vec<Vec<String>>)> {
    let sets = |flip: &Flip| {
        flip.minimal.iter().map(|set| set.edits.iter().map(Edit::to_string).collect()).collect::<Vec<Vec<String>>>()
    };
    history.flips.iter().map(|flip| (flip.direction, sets(flip))).collect()
}

#[test]
fn lazy_userspace_broke_twice_and_was_mended_twice() {
    let history = history_of("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", Some("fbsd-13.1"), Some("fbsd-13.2"));
    insta::assert_snapshot!(shown(&history));
    let commits: Vec<(Direction, Vec<&str>)> = history
        .flips
        .iter()
        .map(|flip| {
            let mut commits: Vec<&str> =
                flip.minimal[0].edits.iter().map(|edit| edit.change().expect("no option").commit).collect();
            commits.dedup();
            (flip.direction, commits)
        })
        .collect();
    assert_eq!(
        commits,
        [
            (Direction::Breaks, vec!["0bda8d3e9f7a"]),
            (Direction::Mends, vec!["769b884e2e2"]),
            (Direction::Breaks, vec!["7c326ab5bb9a"]),
            (Direction::Mends, vec!["b265a2e0d764"]),
        ]
    );
}

#[test]
fn in_x2apic_the_mutex_is_another_story() {
    let history = history_of("bhyve-13.1@fbsd-13.1/mp-spec/x2apic-2/soft", Some("fbsd-13.1"), Some("fbsd-13.2"));
    insta::assert_snapshot!(shown(&history));
    let mutex = (Direction::Breaks, vec![vec!["+startup-cpus".to_owned()]]);
    assert!(causes(&history).contains(&mutex), "c0f35dbf19c3 breaks");
}

#[test]
fn a_build_option_can_be_what_makes_the_difference() {
    let history =
        history_of("bhyve-13.1@fbsd-13.1/mp-spec/x2apic-2/soft", Some("main-c0f35dbf+nodebug"), Some("main-c0f35dbf"));
    assert_eq!(causes(&history), [(Direction::Breaks, vec![vec!["+debug".to_owned()]])]);
}

#[test]
fn the_whole_history_has_the_kernels_that_were() {
    let history = history_of("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", None, None);
    let kernels: Vec<&str> = history.kernels.iter().map(|seen| seen.kernel.as_str()).collect();
    assert!(kernels.contains(&"fbsd-14") && kernels.contains(&"fbsd-15"), "{kernels:?}");
    assert!(!kernels.contains(&"naive-widen") && !kernels.contains(&"illumos"), "{kernels:?}");
}

#[test]
fn a_history_can_be_of_kernels_that_never_were() {
    let history =
        history_of("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", Some("fbsd-13.2"), Some("fbsd-13.2-exit-mask"));
    assert_eq!(causes(&history), [(Direction::Breaks, vec![vec!["-exit-mask".to_owned()]])]);
    let panics = history_of("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", Some("main-7c326ab5"), Some("naive-widen"));
    let kinds: Vec<OutcomeKind> = panics.kernels.iter().map(|seen| seen.signature.kind).collect();
    assert_eq!(kinds, [OutcomeKind::Hang, OutcomeKind::Panic]);
    assert_eq!(causes(&panics), [(Direction::Changes, vec![vec!["+exit-mask".to_owned()]])]);
}

#[test]
fn a_minimal_set_can_be_a_small_part_of_the_walk() {
    let history = history_of(
        "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft",
        Some("fbsd-13.1+lazy-vcpus+maxcpu-tunable"),
        Some("main-7c326ab5"),
    );
    insta::assert_snapshot!(shown(&history));
}

#[test]
fn the_document_for_programs() {
    let history = history_of("bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", Some("main-7c326ab5"), Some("fbsd-13.2"));
    let text = document(&history).replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(text);
}

#[test]
fn an_unknown_kernel_is_named() {
    let cell: Cell = "bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft".parse().expect("a cell");
    let error = bisect(&setup(), &cell, Some("fbsd-99"), None).expect_err("no such kernel");
    assert_eq!(error, BisectError::UnknownKernel("fbsd-99".into()));
}
