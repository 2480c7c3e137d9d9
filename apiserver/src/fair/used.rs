//! What a tenant used of this server, counted for bills: requests, bytes and watches.
//!
//! Numbers only grow, from when the server first heard of the tenant. [`crate::quota::served`]
//! adds what came since it last looked to what the tenant is billed.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;

/// See the module.
#[derive(Debug)]
pub(crate) struct Used {
    reads: AtomicU64,
    writes: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    watches: Mutex<Watches>,
    began: Instant,
    /// How much of it was added to the tenant's bill.
    pub(crate) billed: Mutex<Billed>,
}

/// Watches and streams, in milliseconds.
#[derive(Debug, Default)]
struct Watches {
    open: u64,
    /// Sum of when those began that are open.
    began: u64,
    /// Sum of how long those took that have ended.
    over: u64,
}

/// How much of what was used is on the bill.
#[derive(Debug, Default)]
pub(crate) struct Billed {
    pub(crate) amounts: Amounts,
    /// What was being added when it was not told whether it was, and what it is known by.
    pub(crate) in_doubt: Option<(String, Amounts)>,
}

/// What was used by some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    /// Bytes of requests' bodies.
    pub(crate) received: u64,
    /// Bytes of answers' bodies, events of watches too.
    pub(crate) sent: u64,
    /// Milliseconds for which watches were open, each counted.
    pub(crate) watched: u64,
}

impl Amounts {
    /// What came since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(before.reads),
            writes: self.writes.saturating_sub(before.writes),
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
            watched: self.watched.saturating_sub(before.watched),
        }
    }
}

impl Default for Used {
    fn default() -> Self {
        Self {
            reads: AtomicU64::default(),
            writes: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            watches: Mutex::default(),
            began: Instant::now(),
            billed: Mutex::default(),
        }
    }
}

impl Used {
    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A request was let on.
    pub(super) fn asked(&self, is_read: bool) {
        if is_read { &self.reads } else { &self.writes }.fetch_add(1, Relaxed);
    }

    /// So much came with a request.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// So much was handed over to be sent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// A watch begins; when it did is what ends it.
    pub(super) fn watch_begins(&self) -> u64 {
        let now = self.millis();
        let mut watches = self.watches.lock();
        watches.open += 1;
        watches.began += now;
        now
    }

    pub(super) fn watch_ends(&self, began: u64) {
        let now = self.millis();
        let mut watches = self.watches.lock();
        watches.open -= 1;
        watches.began -= began;
        watches.over += now.saturating_sub(began);
    }

    /// What was used until now.
    pub(crate) fn amounts(&self) -> Amounts {
        let now = self.millis();
        let watches = self.watches.lock();
        let open = (watches.open * now).saturating_sub(watches.began);
        Amounts {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            watched: watches.over + open,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn watches_are_counted_while_they_are_open_and_after() {
        let used = Used::default();
        let (one, other) = (used.watch_begins(), used.watch_begins());
        std::thread::sleep(Duration::from_millis(30));
        let both = used.amounts().watched;
        assert!(60 <= both, "{both}");
        used.watch_ends(one);
        used.watch_ends(other);
        let over = used.amounts();
        assert!(both <= over.watched);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(used.amounts(), over, "none is open");
        used.asked(true);
        used.asked(false);
        let since = used.amounts().since(&over);
        assert_eq!(since, Amounts { reads: 1, writes: 1, ..Amounts::default() });
    }
}
