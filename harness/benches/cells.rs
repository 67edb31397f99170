//! How long cells take, from VM creation to teardown, with the trace on.

use criterion::{Criterion, criterion_group, criterion_main};
use spinup::cell::Cell;
use spinup::matrix::{Matrix, Selection};
use spinup::outcome::OutcomeKind;
use spinup::run::{Engines, Setup, for_each, run_cell};
use std::ops::ControlFlow;
use std::time::Duration;

fn setup() -> Setup {
    let matrix = Matrix::built_in().expect("a unit test keeps the built-in matrix right");
    Setup { matrix, engines: Engines::new(), seed: 0, timeout: None }
}

fn one_cell(criterion: &mut Criterion) {
    let setup = setup();
    let mut group = criterion.benchmark_group("cell");
    group.measurement_time(Duration::from_secs(3));
    for name in ["bhyve-13.1@fbsd-13.1/mp-spec/xapic-2/soft", "bhyve-13.2@fbsd-13.2/mp-spec/xapic-64/soft"] {
        let cell: Cell = name.parse().expect("a cell");
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let run = run_cell(&setup, &cell);
                assert_eq!(run.result.outcome.kind, OutcomeKind::Ok);
                run
            });
        });
    }
    group.finish();
}

fn default_matrix(criterion: &mut Criterion) {
    let setup = setup();
    let cells = setup.matrix.select(&Selection::default()).expect("the whole matrix has cells");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group("matrix");
    group.sample_size(10);
    group.bench_function("default, soft", |bencher| {
        bencher.iter(|| {
            for_each(&cells, jobs, |_| (), |(), cell| run_cell(&setup, cell), |_, _| ControlFlow::Continue(()))
        });
    });
    group.finish();
}

criterion_group!(benches, one_cell, default_matrix);
criterion_main!(benches);
