//! How long cells take, from VM creation to teardown, with the trace on; and a Linux boot, if `spinup guests fetch linux` was
//! here, with how well the cache of decoded code does in it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guests::os::{Package, cache_directory};
use parking_lot::Mutex;
use spinup::cell::Cell;
use spinup::matrix::{Matrix, Selection};
use spinup::outcome::OutcomeKind;
use spinup::run::{Engines, Job, Setup, execute, for_each, run_cell};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use vmm::engine::soft::{SoftEngine, SoftVm};
use vmm::engine::{Engine, EngineError, EngineVm};

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

/// The software processor, with its last machine at hand.
#[derive(Default)]
struct Watched(Mutex<Option<Arc<SoftVm>>>);

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

impl Engine for Watched {
    fn name(&self) -> &'static str {
        SoftEngine::new().name()
    }
    fn backend(&self) -> String {
        SoftEngine::new().backend()
    }
    fn lacks_traps(&self) -> Result<Option<String>, String> {
        SoftEngine::new().lacks_traps()
    }
    fn create_vm(&self) -> Result<Arc<dyn EngineVm>, EngineError> {
        let machine = SoftEngine::new().machine();
        *self.0.lock() = Some(machine.clone());
        Ok(machine)
    }
}

fn linux(criterion: &mut Criterion) {
    if Package::Linux.cached(&cache_directory()).is_err() {
        return println!("no Linux here: `spinup guests fetch linux` fetches it");
    }
    let setup = setup();
    let cell: Cell = "bhyve-13.2@fbsd-13.2/linux-os/xapic-2/soft".parse().expect("a cell");
    let kernel = setup.matrix.kernel(&cell.kernel).expect("it is a part of the built-in matrix");
    let engine = Arc::new(Watched::default());
    let boot = || {
        let (os_guest, limit) = (setup.matrix.os_guest(&cell.guest), setup.limit(&cell));
        let job = Job { cell: &cell, kernel: &kernel, os_guest, engine: engine.clone(), seed: 0, limit, gdb: None };
        let done = execute(&job, |_| ()).expect("Linux is here, and soft runs everywhere");
        assert_eq!(done.outcome.kind, OutcomeKind::Ok);
        done.instructions.expect("soft counts them")
    };
    let instructions = boot();
    let counters = engine.0.lock().as_ref().expect("a machine was made").code_counters();
    println!("a Linux boot of {instructions} instructions: {counters:?}");
    println!(
        "known pages led to {:.3} % of the blocks",
        100.0 - 100.0 * counters.missed as f64 / counters.executed as f64
    );
    let mut group = criterion.benchmark_group("linux");
    group.sample_size(10).throughput(Throughput::Elements(instructions));
    group.bench_function("boot to power-off, 2 CPUs", |bencher| bencher.iter(boot));
    group.finish();
}

criterion_group!(benches, one_cell, default_matrix, linux);
criterion_main!(benches);
