//! Every target, on what it begins with and on a fixed number of inputs that come of it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect, and says what that is"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use insula_fuzz::{Target, mutate::Mutator, targets};

/// How many inputs, unless there is no time.
const INPUTS: usize = 3000;
const TIME: Duration = Duration::from_secs(4);

fn run(target: &Target, input: &[u8]) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(|| target.check(input))) {
        let path = std::env::temp_dir().join(format!("insula-fuzz-{}", target.name));
        std::fs::write(&path, input).unwrap();
        println!("the input is in {}: {:?}", path.display(), String::from_utf8_lossy(input));
        resume_unwind(cause);
    }
}

fn check(name: &str) {
    let target = Target::named(name).unwrap();
    let seeds = target.seeds().unwrap();
    assert!(!seeds.is_empty());
    for (_, seed) in &seeds {
        run(target, seed);
    }
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let mut mutator = Mutator::new(1);
    let begin = Instant::now();
    for _ in 0..INPUTS {
        run(target, &mutator.next(&seeds));
        if TIME < begin.elapsed() {
            break;
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn none_is_left_out() {
            let names: Vec<&str> = targets::ALL.iter().map(|it| it.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    apply cel certificates channels crd fieldsets frames json jsonpath patches paths protobuf
    requests scalars sealed selectors tokens yaml
}
