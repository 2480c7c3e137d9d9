//! Watch lag: from sending a write to receiving the event of it.
//!
//! Event and write are brought together by tenant and revision. The event may come before the
//! answer that says what the revision is, so both sides wait for the other.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::series::{histogram, micros};

/// How long one side waits for the other: longer than any request may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// The most that is remembered of either side.
const MOST: usize = 500_000;

/// A tenant's number, and a revision as the server writes it.
type Version = (usize, u64);

/// See the module.
#[derive(Debug)]
pub(crate) struct Lag(Mutex<Sides>);

#[derive(Debug)]
struct Sides {
    sent: HashMap<Version, Instant>,
    /// Received before the write was answered.
    received: HashMap<Version, Vec<Instant>>,
    lag: Histogram<u64>,
    n_events: u64,
    n_reopened: u64,
}

impl Default for Lag {
    fn default() -> Self {
        let sides = Sides {
            sent: HashMap::new(),
            received: HashMap::new(),
            lag: histogram(),
            n_events: 0,
            n_reopened: 0,
        };
        Self(Mutex::new(sides))
    }
}

impl Lag {
    /// A write was answered.
    pub(crate) fn wrote(&self, tenant: usize, revision: u64, sent: Instant) {
        let mut sides = self.0.lock();
        let sides = &mut *sides;
        for received in sides.received.remove(&(tenant, revision)).into_iter().flatten() {
            sides.lag.saturating_record(micros(received.saturating_duration_since(sent)).max(1));
        }
        if sides.sent.len() < MOST {
            sides.sent.insert((tenant, revision), sent);
        }
    }

    /// An event came.
    pub(crate) fn received(&self, tenant: usize, revision: u64, at: Instant) {
        let mut sides = self.0.lock();
        let sides = &mut *sides;
        sides.n_events += 1;
        match sides.sent.get(&(tenant, revision)) {
            Some(sent) => {
                sides.lag.saturating_record(micros(at.saturating_duration_since(*sent)).max(1));
            }
            // Somebody else's writes wait here in vain, for a while.
            None if sides.received.len() < MOST => {
                sides.received.entry((tenant, revision)).or_default().push(at);
            }
            None => (),
        }
    }

    /// A watch ended, and was opened again.
    pub(crate) fn reopened(&self) {
        self.0.lock().n_reopened += 1;
    }

    pub(crate) fn forget_old(&self) {
        let mut sides = self.0.lock();
        sides.sent.retain(|_, at| at.elapsed() < PATIENCE);
        sides.received.retain(|_, at| at.last().is_some_and(|at| at.elapsed() < PATIENCE));
    }

    /// How long it took, events in all, and watches that were opened again.
    pub(crate) fn read(&self) -> (Histogram<u64>, u64, u64) {
        let sides = self.0.lock();
        (sides.lag.clone(), sides.n_events, sides.n_reopened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_writes_meet_whichever_comes_first() {
        let (lag, begin) = (Lag::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        lag.wrote(1, 7, begin);
        lag.received(1, 7, at(10));
        lag.received(1, 8, at(30));
        lag.received(1, 8, at(40));
        lag.wrote(1, 8, at(10));
        // Another tenant's, and one that nobody of ours wrote.
        lag.received(2, 7, at(5000));
        lag.received(1, 9, at(5000));
        let (times, n_events, _) = lag.read();
        assert_eq!((times.len(), n_events), (3, 5));
        assert!((29_900..30_100).contains(&times.max()) && (9_900..10_100).contains(&times.min()));
    }
}
