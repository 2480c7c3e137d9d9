//! Watchers: cursors over a collection's ring of recent changes.
//!
//! A watcher holds a position, not a buffer, so a slow one costs nothing; when the ring has
//! moved past it, it gets [`StoreError::Compacted`].

use std::sync::Arc;

use tokio::sync::watch::error::RecvError;

use crate::{
    fences::Fences,
    map::ShardKey,
    snapshot::Entry,
    store::{Revision, StoreError},
};

/// One change of a collection, as watchers see it. Shared by all of them.
#[derive(Debug, Clone)]
pub struct Event {
    pub revision: Revision,
    pub key: Arc<str>,
    /// The value after the change; for a delete the last value, with the delete's revision in it.
    pub entry: Entry,
    /// The value before the change; `None` for a create. With `entry` it tells whether the
    /// object came into or left a selector.
    pub previous: Option<Entry>,
    pub deleted: bool,
}

/// What a watcher waits on. Implemented by the state that holds the rings.
pub trait Feed: Send + Sync {
    /// Changes after `after`, oldest first, at most `limit`; empty if there are none yet.
    ///
    /// Also returns the partition's revision up to which this answer is complete.
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError>;

    /// What is moving into and out of the partition now.
    fn fences(&self) -> Arc<Fences>;

    /// A receiver that is marked changed whenever the collection has a new change,
    /// the partition's fences change,
    /// or the store shuts down.
    fn wakeups(&self) -> tokio::sync::watch::Receiver<u64>;

    /// The changes of one shard alone, if they can be told from those of others for less than
    /// looking at all of them.
    fn of_shard(&self, _shard: &ShardKey) -> Option<Arc<dyn Feed>> {
        None
    }
}

/// See the module.
pub struct Watcher {
    feed: Arc<dyn Feed>,
    wakeups: tokio::sync::watch::Receiver<u64>,
    /// Of another collection whose changes the feed has too.
    others: Option<tokio::sync::watch::Receiver<u64>>,
    after: Revision,
    /// All there was at the last wake-up has been handed over.
    is_caught_up: bool,
    /// `None` watches everything.
    shard: Option<ShardKey>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("after", &self.after).finish_non_exhaustive()
    }
}

/// Most events handed over in one go, so that a far-behind watcher yields to others.
const BATCH: usize = 256;

impl Watcher {
    /// Starts strictly after `after`. Does not look at the ring yet.
    pub fn new(feed: Arc<dyn Feed>, after: Revision) -> Self {
        let wakeups = feed.wakeups();
        Self { feed, wakeups, others: None, after, is_caught_up: false, shard: None }
    }

    /// Has `wrap` stand between the watcher and what it waits on. Call it before anything is read.
    pub fn through(mut self, wrap: impl FnOnce(Arc<dyn Feed>) -> Arc<dyn Feed>) -> Self {
        self.feed = wrap(self.feed);
        self.wakeups = self.feed.wakeups();
        self
    }

    /// Whether it follows two collections ([`Watcher::together`]).
    pub fn is_of_two(&self) -> bool {
        self.others.is_some()
    }

    /// Follows a second collection of the same partition too. `wrap` makes one feed of both, in
    /// the order of revisions. Call it before anything is read.
    pub fn together(
        mut self,
        other: Self,
        wrap: impl FnOnce(Arc<dyn Feed>, Arc<dyn Feed>) -> Arc<dyn Feed>,
    ) -> Self {
        self.feed = wrap(self.feed, other.feed);
        self.others = Some(other.wakeups);
        self
    }

    /// Narrows what is watched to what belongs to `shard`: moves of others no longer end it.
    /// Events of others may still come; it is the caller who leaves them out.
    ///
    /// Fails with [`StoreError::Moving`] if the shard is not here.
    pub fn scoped(mut self, shard: ShardKey) -> Result<Self, StoreError> {
        self.feed.fences().check_read(&shard, self.after)?;
        if let Some(feed) = self.feed.of_shard(&shard) {
            self.wakeups = feed.wakeups();
            self.feed = feed;
            self.is_caught_up = false;
        }
        self.shard = Some(shard);
        Ok(self)
    }

    /// The next changes, at least one. Cancel safe: a dropped call loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        loop {
            if self.is_caught_up && self.woken().await.is_err() {
                return Err(StoreError::Unavailable {
                    reason: "the partition was shut down".into(),
                    source: None,
                });
            }
            self.is_caught_up = false;
            // Mark before looking: a change between the look and the wait wakes us at once.
            self.wakeups.mark_unchanged();
            if let Some(others) = &mut self.others {
                others.mark_unchanged();
            }
            let (events, complete) = self.feed.changes(self.after, BATCH)?;
            // After looking: what ends the watch now may be older than these changes.
            self.feed.fences().check_watch(self.shard.as_ref(), self.after)?;
            self.is_caught_up = events.len() < BATCH;
            if let Some(last) = events.last() {
                self.after = last.revision;
                return Ok(events);
            }
            // Woken by others, it does not fall behind history.
            self.after = self.after.max(complete);
        }
    }

    /// Waits for news of what is followed.
    async fn woken(&mut self) -> Result<(), RecvError> {
        match &mut self.others {
            None => self.wakeups.changed().await,
            Some(others) => tokio::select! {
                woken = self.wakeups.changed() => woken,
                woken = others.changed() => woken,
            },
        }
    }

    /// The next changes that are there already; none if there are none.
    pub fn ready(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        let (events, complete) = self.feed.changes(self.after, BATCH)?;
        self.feed.fences().check_watch(self.shard.as_ref(), self.after)?;
        self.after = match events.last() {
            Some(last) => last.revision,
            None => self.after.max(complete),
        };
        Ok(events)
    }

    /// The revision up to which everything was delivered when it was last looked.
    pub fn reached(&self) -> Revision {
        self.after
    }

    /// The revision up to which everything was delivered, for bookmarks.
    ///
    /// `None` while undelivered changes wait: call [`Watcher::next`] first.
    pub fn progress(&mut self) -> Result<Option<Revision>, StoreError> {
        let (events, complete) = self.feed.changes(self.after, 1)?;
        self.feed.fences().check_watch(self.shard.as_ref(), self.after)?;
        if events.is_empty() {
            self.after = self.after.max(complete);
            return Ok(Some(self.after));
        }
        Ok(None)
    }
}
