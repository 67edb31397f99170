//! What APs cost the host until somebody starts them (D39174): exits per second of virtual time.

use spinup::matrix::Matrix;
use spinup::run::{Engines, Setup, run_cell};

fn rate(frontend: &str) -> f64 {
    let matrix = Matrix::built_in().expect("a unit test keeps the built-in matrix right");
    let setup = Setup { matrix, engines: Engines::new(), seed: 0, timeout: None };
    let cell = format!("{frontend}@fbsd-13.2/mp-spec/xapic-4/soft").parse().expect("a cell");
    run_cell(&setup, &cell).result.parked_exits_per_s.expect("time is virtual on soft")
}

#[test]
fn a_frontend_that_comes_straight_back_spins_and_one_that_sleeps_does_not() {
    let [spins, sleeps, lazy] = ["bhyve-0bda8d3e", "bhyve-13.2", "bhyve-13.1"].map(rate);
    assert!(spins >= 100_000.0, "{spins}");
    assert!((1.0..=1_100.0).contains(&sleeps), "{sleeps}");
    assert_eq!(lazy, 0.0, "whoever is not active is not parked either");
}
