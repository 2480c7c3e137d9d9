//! Random input for everything that reads what others send.
//!
//! A target is a function of bytes that must come to an end without a panic, within bounds of
//! time and memory, and that checks what has to hold of the result: what is written reads as the
//! same, what is done twice is done once. Two things drive the same targets: libFuzzer, which
//! watches what code an input reaches (`make fuzz`), and a short seeded
//! run of mutations that is part of the tests ([`mutate`]). Both begin with `seeds/`.

#![allow(clippy::expect_used, reason = "a target stops at what must not be")]

pub mod input;
pub mod meter;
pub mod mutate;
pub mod targets;

use std::{path::PathBuf, time::Duration};

/// One function of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Most that a run may hold at once: so much, and so much for each byte of its input.
const MEMORY: (usize, usize) = (48 << 20, 512);
/// Longest that a run may compute, in a build without optimisation.
const TIME: Duration = Duration::from_secs(20);

impl Target {
    pub fn named(name: &str) -> Option<&'static Self> {
        targets::ALL.iter().find(|it| it.name == name)
    }

    /// Runs it, and panics if that takes too much of anything.
    pub fn check(&self, input: &[u8]) {
        let used = meter::measure(|| (self.run)(input));
        let (whole, per_byte) = MEMORY;
        let most = whole + per_byte * input.len();
        assert!(used.bytes <= most, "{} bytes at once for {} of input", used.bytes, input.len());
        assert!(used.time <= TIME, "it took {:?}", used.time);
    }

    /// What it begins with, by the names of the files.
    pub fn seeds(&self) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds").join(self.name);
        let mut seeds = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let bytes = std::fs::read(&path)?;
            seeds.push((path, bytes));
        }
        seeds.sort();
        Ok(seeds)
    }
}
