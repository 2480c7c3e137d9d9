//! A cloud under faults: what its clients saw is checked afterwards.
//!
//! Each run is random but for its seed, which is printed when something is wrong.
//! `INSULA_RUNS` sets how many runs there are, `INSULA_SEED` the first seed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod cluster;
mod counters;
mod pairs;
mod rounds;
mod subject;

use cluster::Cluster;
use rounds::{Fault, Rounds};

#[test]
fn one_server_that_is_killed() {
    // It has nobody to be cut off from: those runs are without a fault.
    let faults = [
        Fault::Kill,
        Fault::Pause,
        Fault::FillDisk,
        Fault::SlowDisk,
        Fault::KillAll,
        Fault::Cut,
        Fault::Deaf,
    ];
    Rounds::new(Cluster::one(), &faults).run(60);
}

#[test]
fn three_servers() {
    let faults = [
        Fault::Kill,
        Fault::KillAll,
        Fault::Pause,
        Fault::Cut,
        Fault::Deaf,
        Fault::FillDisk,
        Fault::SlowDisk,
    ];
    Rounds::new(Cluster::three(), &faults).run(140);
}

#[test]
fn tenants_that_move() {
    let faults = [Fault::Move, Fault::MoveAndKill];
    Rounds::new(Cluster::one(), &faults).run(15);
}

#[test]
fn tenants_that_move_among_three_servers() {
    let faults = [Fault::Move, Fault::MoveAndKill];
    Rounds::new(Cluster::three(), &faults).run(15);
}
