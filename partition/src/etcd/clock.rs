//! How far the cache has followed its etcd, and how its revisions are shown.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::offsets::Offsets;

/// See the module.
#[derive(Debug)]
pub(super) struct Clock {
    offsets: ArcSwap<Offsets>,
    /// Etcd's newest revision of which everything was applied.
    seen: watch::Sender<i64>,
}

impl Clock {
    pub(super) fn new(offsets: Offsets, seen: i64) -> Arc<Self> {
        Arc::new(Self { offsets: ArcSwap::from_pointee(offsets), seen: watch::Sender::new(seen) })
    }

    pub(super) fn offsets(&self) -> Arc<Offsets> {
        self.offsets.load_full()
    }

    /// To be called before anything after the new offsets' own revision is applied.
    pub(super) fn set_offsets(&self, offsets: Offsets) {
        self.offsets.store(Arc::new(offsets));
    }

    pub(super) fn seen(&self) -> i64 {
        *self.seen.borrow()
    }

    /// To be called after everything up to `etcd` was applied.
    pub(super) fn advance(&self, etcd: i64) {
        self.seen.send_if_modified(|seen| {
            let grown = *seen < etcd;
            *seen = (*seen).max(etcd);
            grown
        });
    }

    /// Waits until everything up to `etcd` was applied, at most `limit`. Whether it was.
    pub(super) async fn reach(&self, etcd: i64, limit: Duration) -> bool {
        if etcd <= self.seen() {
            return true;
        }
        let mut follow = self.seen.subscribe();
        let reached = follow.wait_for(|seen| etcd <= *seen);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}
