//! One target under libFuzzer: `INSULA_FUZZ_TARGET=name insula-fuzz CORPUS [-max_total_time=60]`.

#![no_main]

use std::sync::OnceLock;

use insula_fuzz::{Target, targets};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    let name = std::env::var("INSULA_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| {
        let names: Vec<&str> = targets::ALL.iter().map(|it| it.name).collect();
        panic!("INSULA_FUZZ_TARGET must be one of {}", names.join(", "))
    })
}

fuzz_target!(|input: &[u8]| TARGET.get_or_init(chosen).check(input));
