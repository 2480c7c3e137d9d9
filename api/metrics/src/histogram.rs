//! How often something took how long, or was how large.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Parts of one: sums are whole numbers of them.
const SCALE: f64 = 1e9;

/// See the module. A value is in the first bucket whose bound it does not exceed.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` are sorted.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts a time, in seconds.
    pub fn took(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.add(time.as_secs_f64(), nanos);
    }

    /// Counts a number.
    pub fn observe(&self, value: f64) {
        // A cast of what is negative or too large stops at the ends.
        self.add(value, (value * SCALE) as u64);
    }

    fn add(&self, value: f64, scaled: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(scaled, Ordering::Relaxed);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|it| it.load(Ordering::Relaxed)).sum()
    }

    /// The sum, the count, and each bucket by its bound.
    pub(crate) fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.counts.iter().map(|it| it.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / SCALE, count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_the_first_bucket_that_holds_them() {
        let it = Histogram::new(&[0.1, 1.0]);
        assert_eq!(it.count(), 0);
        for millis in [100, 50, 101, 5_000] {
            it.took(Duration::from_millis(millis));
        }
        let (sum, count, buckets) = it.read();
        assert_eq!(count, 4);
        assert_eq!(buckets, [(0.1, 2), (1.0, 1), (f64::INFINITY, 1)]);
        assert!((sum - 5.251).abs() < 1e-9, "{sum}");
        it.observe(f64::INFINITY);
        it.observe(-1.0);
        assert_eq!(it.read().1, 6);
    }
}
