//! Requests of one kind: how long they took, how many failed and why, over time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Times are kept in microseconds, to three digits, up to ten minutes.
const LONGEST: u64 = 600_000_000;
const DIGITS: u8 = 3;
/// Points over time that are kept: beyond, each two become one.
const MOST_POINTS: usize = 1_200;
/// A shorter interval is a part of the one before it, in seconds.
const SHORTEST: f64 = 0.5;
/// Kinds of errors that are told apart.
const MOST_KINDS: usize = 64;

/// What distinguishes requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub step: String,
    pub verb: String,
    /// `pods`, `deployments.apps`.
    pub resource: String,
    /// `resource` for one object, `namespace`, `tenant` or `cluster` for many.
    pub scope: String,
}

/// An empty histogram of microseconds.
#[allow(clippy::expect_used, reason = "the bounds are constants, and good")]
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("good bounds")
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(LONGEST)
}

/// What became of a request.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Answered,
    /// By kind. A request that ran out of time took at least so long, and so counts as slow too.
    Failed {
        kind: String,
        out_of_time: bool,
    },
}

/// When a request was meant to begin, began, and ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) intended: Instant,
    pub(crate) sent: Instant,
    pub(crate) done: Instant,
}

/// What happened in an interval. Times in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Seconds from the beginning of the run to the end of the interval.
    pub at: f64,
    pub seconds: f64,
    pub answered: u64,
    pub failed: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Point {
    /// Two that follow each other as one. Percentiles cannot be added: the higher stands for both.
    fn with(self, next: Self) -> Self {
        Self {
            at: next.at,
            seconds: self.seconds + next.seconds,
            answered: self.answered + next.answered,
            failed: self.failed + next.failed,
            p50: self.p50.max(next.p50),
            p99: self.p99.max(next.p99),
            max: self.max.max(next.max),
        }
    }
}

/// Requests of one kind.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) key: Key,
    counts: Mutex<Counts>,
}

#[derive(Debug, Clone)]
pub(crate) struct Counts {
    /// From when a request was meant to begin: what a user sees who does not wait for others.
    pub(crate) latency: Histogram<u64>,
    /// From when it began.
    pub(crate) service: Histogram<u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) n_failed: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    last_answer: Option<Instant>,
    pub(crate) longest_gap: Duration,
    interval: Histogram<u64>,
    interval_failed: u64,
    points: Vec<Point>,
    /// How many intervals make a point, and what there is of the next.
    per_point: u32,
    pending: Option<(Point, u32)>,
}

impl Counts {
    /// What happened over time.
    pub(crate) fn over_time(&self) -> Vec<Point> {
        let pending = self.pending.map(|it| it.0);
        self.points.iter().copied().chain(pending).collect()
    }

    pub(crate) fn n_answered(&self) -> u64 {
        self.latency.len() - self.errors.get(TIMEOUT).copied().unwrap_or(0).min(self.latency.len())
    }

    /// From the first request to the last answer.
    pub(crate) fn elapsed(&self) -> Duration {
        match (self.first, self.last) {
            (Some(first), Some(last)) => last.saturating_duration_since(first),
            _ => Duration::ZERO,
        }
    }

    fn count(&mut self, times: Times, outcome: &Outcome) {
        self.first = Some(self.first.map_or(times.intended, |it| it.min(times.intended)));
        self.last = Some(self.last.map_or(times.done, |it| it.max(times.done)));
        let latency = micros(times.done.saturating_duration_since(times.intended)).max(1);
        let service = micros(times.done.saturating_duration_since(times.sent)).max(1);
        let is_timed = match outcome {
            Outcome::Answered => {
                let before = self.last_answer.or(self.first).unwrap_or(times.done);
                self.longest_gap =
                    self.longest_gap.max(times.done.saturating_duration_since(before));
                self.last_answer = Some(times.done.max(before));
                true
            }
            Outcome::Failed { kind, out_of_time } => {
                self.n_failed += 1;
                self.interval_failed += 1;
                let is_known = self.errors.contains_key(kind) || self.errors.len() < MOST_KINDS;
                let kind = if is_known { kind.as_str() } else { "other" };
                *self.errors.entry(kind.to_owned()).or_default() += 1;
                *out_of_time
            }
        };
        if is_timed {
            self.latency.saturating_record(latency);
            self.service.saturating_record(service);
            self.interval.saturating_record(latency);
        }
    }

    fn tick(&mut self, at: f64, seconds: f64) {
        let failed = std::mem::take(&mut self.interval_failed);
        if self.interval.is_empty() && failed == 0 && self.points.is_empty() {
            return;
        }
        let read = |quantile| ms(self.interval.value_at_quantile(quantile));
        let point = match self.interval.is_empty() {
            true => Point { at, seconds, failed, ..Point::default() },
            false => Point {
                at,
                seconds,
                answered: self.interval.len(),
                failed,
                p50: read(0.5),
                p99: read(0.99),
                max: ms(self.interval.max()),
            },
        };
        self.interval.reset();
        // What is left at the end is no interval of its own: its rate would be that of a moment.
        if seconds < SHORTEST
            && let Some(last) = self.points.last_mut()
        {
            *last = last.with(point);
            return;
        }
        let (point, n) = match self.pending.take() {
            Some((before, n)) => (before.with(point), n + 1),
            None => (point, 1),
        };
        if n < self.per_point {
            self.pending = Some((point, n));
            return;
        }
        self.points.push(point);
        if MOST_POINTS <= self.points.len() {
            let pairs = self.points.chunks(2);
            self.points =
                pairs.filter_map(|pair| pair.iter().copied().reduce(Point::with)).collect();
            self.per_point *= 2;
        }
    }
}

/// Microseconds as milliseconds.
#[allow(clippy::cast_precision_loss, reason = "at most ten minutes")]
pub(crate) fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// How a request that was not answered in time is counted.
pub(crate) const TIMEOUT: &str = "Timeout";

impl Series {
    pub(crate) fn new(key: Key) -> Self {
        let counts = Counts {
            latency: histogram(),
            service: histogram(),
            errors: BTreeMap::new(),
            n_failed: 0,
            first: None,
            last: None,
            last_answer: None,
            longest_gap: Duration::ZERO,
            interval: histogram(),
            interval_failed: 0,
            points: Vec::new(),
            per_point: 1,
            pending: None,
        };
        Self { key, counts: Mutex::new(counts) }
    }

    pub(crate) fn count(&self, times: Times, outcome: &Outcome) {
        self.counts.lock().count(times, outcome);
    }

    /// Ends an interval.
    pub(crate) fn tick(&self, at: f64, seconds: f64) {
        self.counts.lock().tick(at, seconds);
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.counts.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series() -> Series {
        let text = String::new;
        Series::new(Key { step: text(), verb: text(), resource: text(), scope: text() })
    }

    fn times(begin: Instant, intended: u64, sent: u64, done: u64) -> Times {
        let at = |it| begin + Duration::from_millis(it);
        Times { intended: at(intended), sent: at(sent), done: at(done) }
    }

    #[test]
    fn latency_counts_from_when_a_request_was_meant_to_begin() {
        let (series, begin) = (series(), Instant::now());
        series.count(times(begin, 0, 500, 510), &Outcome::Answered);
        series.read(|it| {
            assert_eq!((it.latency.max() + 500) / 1000, 510);
            assert_eq!((it.service.max() + 5) / 1000, 10);
        });
    }

    #[test]
    fn failures_are_counted_by_kind_and_timeouts_are_slow() {
        let (series, begin) = (series(), Instant::now());
        let failed = |kind: &str, out_of_time| Outcome::Failed { kind: kind.into(), out_of_time };
        series.count(times(begin, 0, 0, 1), &failed("Conflict", false));
        series.count(times(begin, 0, 0, 9000), &failed(TIMEOUT, true));
        series.count(times(begin, 0, 0, 2), &Outcome::Answered);
        series.read(|it| {
            assert_eq!((it.n_answered(), it.n_failed, it.latency.len()), (1, 2, 2));
            assert_eq!(it.errors["Conflict"], 1);
            assert!(8_900_000 < it.latency.max());
        });
    }

    #[test]
    fn the_longest_time_without_an_answer() {
        let (series, begin) = (series(), Instant::now());
        for done in [10, 20, 3020, 3030] {
            series.count(times(begin, 0, 0, done), &Outcome::Answered);
        }
        assert_eq!(series.read(|it| it.longest_gap), Duration::from_secs(3));
    }

    /// However long a run is, what is kept of it over time is bounded, and adds up.
    #[test]
    fn points_are_few_and_add_up() {
        let (series, begin) = (series(), Instant::now());
        for second in 0..5000_u32 {
            series.count(times(begin, 0, 0, 1), &Outcome::Answered);
            series.tick(f64::from(second), 1.0);
        }
        series.read(|it| {
            assert!(it.points.len() < MOST_POINTS && MOST_POINTS / 4 < it.points.len());
            let answered: u64 = it.over_time().iter().map(|it| it.answered).sum();
            assert_eq!(answered, 5000);
        });
    }
}
