//! Whole groups in one thread, with the clock, the network and the disks made up: the same
//! members and the same replay that a process runs, under faults that a seed decides.
//!
//! ```text
//! world    servers, messages between them, what goes wrong and when
//! disk     what a server's log holds after a crash
//! clients  random calls and what became of them, for the checker
//! ```
//!
//! What must hold, whatever goes wrong:
//!
//! * histories are linearizable, and nothing acknowledged is lost;
//! * all members apply the same change at the same revision, and no revision is given twice;
//! * once nothing goes wrong any more, the group decides again, and all members are equal.
//!
//! `INSULA_SEEDS` sets how many seeds a test goes through, `INSULA_SEED` the first one.

mod clients;
mod disk;
mod world;

use std::env;

use insula_history::linear::{self, Revisions};

use self::{
    clients::Clients,
    world::{Faults, World},
};

/// Milliseconds during which things go wrong.
const TROUBLE: u64 = 6_000;
/// Milliseconds after which all must be well again.
const CALM: u64 = 20_000;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Goes through many seeds; a failure says which one it was.
fn explore(count: u64, servers: u64, faults: Faults, relaxed: bool) {
    let first = number("INSULA_SEED", 1);
    for seed in first..first + number("INSULA_SEEDS", count) {
        let outcome = std::panic::catch_unwind(|| one(seed, servers, faults, relaxed));
        if let Err(panic) = outcome {
            let said = panic.downcast_ref::<String>().map_or("see above", String::as_str);
            panic!("INSULA_SEED={seed} INSULA_SEEDS=1: {said}");
        }
    }
}

fn one(seed: u64, servers: u64, faults: Faults, relaxed: bool) {
    let mut world = World::new(seed, servers, faults);
    let mut clients = Clients::new(5, relaxed);
    while world.now() < TROUBLE {
        world.step();
        clients.step(&mut world);
    }
    world.calm();
    let well = clients.decided();
    while world.now() < TROUBLE + CALM && clients.decided() < well + 50 {
        world.step();
        clients.step(&mut world);
    }
    let decided = clients.decided();
    assert!(well + 50 <= decided, "the group does not decide any more:\n{}", world.describe());
    clients.stop();
    // A follower that fetches the state is offered it again after five seconds.
    let end = world.now() + 12_000;
    while world.now() < end {
        world.step();
        clients.step(&mut world);
    }
    world.check_equal();
    if !relaxed && let Err(violation) = linear::check(clients.history(), Revisions::Stay) {
        panic!("{violation}");
    }
}

const CALM_WORLD: Faults = Faults { crashes: 0, cuts: 0, losses: 0, slow: 0, changes: 0 };

#[test]
fn nothing_goes_wrong() {
    explore(10, 3, CALM_WORLD, false);
}

#[test]
fn one_member_that_crashes() {
    explore(100, 1, Faults { crashes: 800, slow: 5, ..CALM_WORLD }, false);
}

#[test]
fn one_member_that_crashes_with_relaxed_writes() {
    explore(100, 1, Faults { crashes: 800, slow: 5, ..CALM_WORLD }, true);
}

#[test]
fn three_members_that_crash() {
    explore(100, 3, Faults { crashes: 700, slow: 5, ..CALM_WORLD }, false);
}

#[test]
fn three_members_and_a_bad_network() {
    explore(100, 3, Faults { cuts: 700, losses: 5, ..CALM_WORLD }, false);
}

#[test]
fn five_members_and_everything() {
    let all = Faults { crashes: 900, cuts: 900, losses: 3, slow: 3, changes: 1200 };
    explore(60, 5, all, false);
}

#[test]
fn a_seed_decides_everything() {
    let run = || {
        let all = Faults { crashes: 900, cuts: 900, losses: 3, slow: 3, changes: 1200 };
        let mut world = World::new(7, 3, all);
        let mut clients = Clients::new(5, false);
        while world.now() < TROUBLE {
            world.step();
            clients.step(&mut world);
        }
        clients.history().to_vec()
    };
    let first = run();
    assert!(20 < first.len(), "{}", first.len());
    assert_eq!(first, run());
}
