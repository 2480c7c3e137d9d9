//! Changing inputs at random, the same way for the same seed.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Longest input that comes of it, in bytes.
const LONGEST: usize = 16 << 10;

/// What makes a difference to many parsers.
const WORDS: &[&str] = &[
    "null",
    "true",
    "-1",
    "0",
    "18446744073709551616",
    "-9223372036854775808",
    "1e999",
    "\"\"",
    "{}",
    "[]",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "é",
    "\u{1f600}",
    "%2f",
    "%00",
    "..",
    "//",
    "?",
    "&",
    "=",
    ",",
    ";",
    "!",
    "(",
    ")",
    " in ",
    " notin ",
    "$patch",
    "delete",
    "replace",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "metadata",
    "name",
    "status",
    "spec",
    "managedFields",
    "f:",
    "k:{",
    "v:",
    "i:0",
    ".",
    "&a ",
    "*a",
    "<<: *a",
    "- ",
    "\n",
    "\n---\n",
    "|",
    "!!binary",
    "self",
    "oldSelf",
    ".all(x, x)",
    ".map(x, x)",
    "has(",
    "*/*",
    ";q=0",
    "application/json",
    "as=Table",
    "continue=",
    "limit=1",
    "resourceVersion=",
    "watch=1",
    "fieldValidation=Strict",
    "tenants/all/",
    "[*]",
    "[?(@.a==1)]",
    "\u{80}\u{3}\u{0}\u{1}",
    "k8s\u{0}",
];

/// Makes new inputs of old ones.
#[derive(Debug)]
pub struct Mutator {
    random: StdRng,
}

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// One that comes of some of `from`, which are not empty.
    pub fn next(&mut self, from: &[Vec<u8>]) -> Vec<u8> {
        let mut out = self.pick(from).clone();
        for _ in 0..self.random.random_range(1..=4) {
            self.change(&mut out, from);
        }
        out.truncate(LONGEST);
        out
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.random.random_range(0..from.len())]
    }

    /// A place in something, or its end.
    fn at(&mut self, bytes: &[u8]) -> usize {
        self.random.random_range(0..=bytes.len())
    }

    fn range(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let begin = self.at(bytes);
        let most = (bytes.len() - begin).min(64);
        begin..begin + self.random.random_range(0..=most)
    }

    fn change(&mut self, out: &mut Vec<u8>, from: &[Vec<u8>]) {
        let at = self.at(out);
        match self.random.random_range(0..9) {
            0 => {
                if let Some(byte) = out.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            1 => out.insert(at, self.random.random()),
            2 => {
                let range = self.range(out);
                out.drain(range);
            }
            3 => {
                let word = self.pick(WORDS).as_bytes();
                out.splice(at..at, word.iter().copied());
            }
            4 => {
                let range = self.range(out);
                let word = self.pick(WORDS).as_bytes();
                out.splice(range, word.iter().copied());
            }
            5 => {
                let part = out[self.range(out)].to_vec();
                out.splice(at..at, part);
            }
            6 => {
                let other = self.pick(from);
                let part = other[self.range(other)].to_vec();
                let range = self.range(out);
                out.splice(range, part);
            }
            7 => out.truncate(at),
            // Deep, or many.
            _ => {
                let part = out[self.range(out)].to_vec();
                let times = self.random.random_range(2..300);
                out.splice(at..at, part.repeat(times));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_all() {
        let from = [b"hello, world".to_vec(), Vec::new()];
        let run = |seed| {
            let mut it = Mutator::new(seed);
            (0..100).map(|_| it.next(&from)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(3).iter().all(|it| it.len() <= LONGEST));
    }
}
