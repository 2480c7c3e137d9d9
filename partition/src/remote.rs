//! A partition that is not on this server: read, written and watched through one that has it.
//!
//! ```text
//! write -> call -> a server of the partition -> its store -> outcome
//! read  -> collection followed here? -> how far is the partition? -> wait for it -> state
//! ```
//!
//! Collections are followed from their first use until they have not been used for a while, so a
//! server holds of other partitions only what its clients look at.
//!
//! # Invariants
//!
//! * A write is sent to a second server only if it is certain that the first one did not get it.
//! * A read of the latest sees all that any server acknowledged before it was called, because a
//!   member of the partition was asked after that.

mod follow;
mod service;
mod targets;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle, time::Instant};

use self::{
    follow::Followed,
    targets::{Repeat, Targets},
    wire::{Progress, Request},
};
pub(crate) use self::{service::RemoteService, wire::TAG};
use crate::{
    error::chain,
    fences,
    limits::check_limits,
    peers::Peers,
    ring::RingLimits,
    seal::{self, Bunch, Vault},
    snapshot::Snapshot,
    state::{FUTURE_WAIT, attached},
    store::{Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Write},
    watch::Watcher,
};

/// A collection that nobody has used for so long is no longer followed.
const IDLE: Duration = Duration::from_secs(300);

/// A read waits this long for the stream before it asks.
const STREAM_LAG: Duration = Duration::from_millis(20);

/// How old the numbers of a status page may be.
const STATS_AGE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct RemoteStore {
    shared: Arc<Shared>,
    limits: RingLimits,
    bunch: Arc<Bunch>,
    followed: Arc<Mutex<HashMap<Collection, Arc<Followed>>>>,
    /// Per collection the newest revision that a caller was told of its own write.
    told: Mutex<HashMap<Collection, Revision>>,
    /// History at or below is gone for certain.
    compacted: AtomicU64,
    closed: AtomicBool,
    sweeper: AbortHandle,
}

/// What the store and its tasks share.
#[derive(Debug)]
struct Shared {
    targets: Targets,
    runtime: tokio::runtime::Handle,
    newest: AtomicU64,
    stats: Mutex<Stats>,
}

#[derive(Debug, Default)]
struct Stats {
    known: StoreStats,
    asked: Option<Instant>,
}

impl Shared {
    /// The partition has reached `revision`.
    fn told(&self, revision: Revision) {
        self.newest.fetch_max(revision.0, Ordering::AcqRel);
    }

    fn set_stats(&self, heard: Result<StoreStats, String>) {
        let mut stats = self.stats.lock();
        stats.asked = Some(Instant::now());
        match heard {
            Ok(known) => stats.known = known,
            Err(reason) => stats.known.unhealthy = Some(reason),
        }
    }
}

impl RemoteStore {
    /// The partition `name`, which `servers` have, the best one first. Asks nobody yet.
    ///
    /// To be called on a runtime, where its tasks will live.
    pub(crate) fn new(
        name: &str,
        peers: Arc<dyn Peers>,
        servers: watch::Receiver<Vec<String>>,
        limits: RingLimits,
        vault: &Arc<Vault>,
    ) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared {
            targets: Targets::new(name, peers, servers),
            runtime: runtime.clone(),
            newest: AtomicU64::new(0),
            stats: Mutex::default(),
        });
        let followed = Arc::new(Mutex::new(HashMap::new()));
        let sweeper = runtime.spawn(sweep(Arc::downgrade(&followed))).abort_handle();
        Self {
            shared,
            limits,
            bunch: Bunch::new(vault.clone()),
            followed,
            told: Mutex::default(),
            compacted: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            sweeper,
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            let reason = "the partition was shut down".into();
            return Err(StoreError::Unavailable { reason, source: None });
        }
        Ok(())
    }

    /// The collection, followed; with what happened after `history`, if that is asked for and
    /// anybody knows it.
    fn follow(
        &self,
        collection: &Collection,
        history: Option<Revision>,
    ) -> Result<Arc<Followed>, StoreError> {
        self.check_open()?;
        if let Some(requested) = history {
            let oldest = Revision(self.compacted.load(Ordering::Acquire));
            if requested < oldest {
                return Err(StoreError::Compacted { requested, oldest });
            }
        }
        let mut all = self.followed.lock();
        if let Some(known) = all.get(collection)
            && history.is_none_or(|history| known.reaches(history))
        {
            return Ok(known.clone());
        }
        let begun = Followed::start(&self.shared, collection, history, self.limits, &self.bunch);
        if let Some(replaced) = all.insert(collection.clone(), begun.clone()) {
            // Watchers of the shorter history go on with it for as long as they last.
            self.shared.runtime.spawn(outlive(replaced));
        }
        Ok(begun)
    }

    async fn ask<T: wire::Answer>(
        &self,
        request: &Request,
        repeat: Repeat,
    ) -> Result<T, StoreError> {
        self.check_open()?;
        let targets = &self.shared.targets;
        targets.call(request.encode(targets.partition()), repeat).await
    }

    async fn read(&self, collection: &Collection, at: ReadAt) -> Result<Snapshot, StoreError> {
        let history = match at {
            ReadAt::Exactly(revision) => Some(revision),
            _ => None,
        };
        let followed = self.follow(collection, history)?;
        match at {
            ReadAt::Latest => followed.catch_up().await?,
            ReadAt::Any => {
                followed.wait_loaded().await?;
                let told = self.told.lock().get(collection).copied().unwrap_or_default();
                if followed.state().reach(told, STREAM_LAG).await.is_err() {
                    followed.catch_up().await?;
                }
            }
            ReadAt::NotOlderThan(revision) | ReadAt::Exactly(revision) => {
                followed.wait_loaded().await?;
                if followed.state().reach(revision, STREAM_LAG).await.is_err() {
                    followed.catch_up().await?;
                }
                // A quiet collection's stream is silent: what others' changes reach is asked.
                let begun = Instant::now();
                while followed.revision() < revision && begun.elapsed() < FUTURE_WAIT {
                    let _ = followed.state().reach(revision, STREAM_LAG * 5).await;
                    followed.catch_up().await?;
                }
                if followed.revision() < revision {
                    let newest = followed.revision();
                    return Err(StoreError::Future { requested: revision, newest });
                }
            }
        }
        let snapshot = followed.state().read(collection, at).await?;
        self.shared.told(snapshot.revision());
        if self.bunch.take_lack() {
            self.learn_keys().await.inspect_err(|_| self.bunch.lack())?;
        }
        Ok(snapshot)
    }

    /// Catches up with the data keys of tenants: from the first sealed value on they are followed,
    /// too, and what opens a value was there before it.
    async fn learn_keys(&self) -> Result<(), StoreError> {
        self.follow(&seal::documents(), None)?.catch_up().await
    }

    async fn write(&self, write: Write) -> Result<Committed, StoreError> {
        check_limits(&write)?;
        let collection = write.collection.clone();
        let is_quiet = write.by_move.is_some();
        let key = write.key.clone();
        let attached = |entry| attached(&self.bunch, &collection, &key, entry);
        let committed = self.ask(&Request::Write(write), Repeat::IfNotSent).await;
        let committed: Committed = committed.map_err(|error| match error {
            StoreError::Conflict { collection, key, found } => {
                StoreError::Conflict { collection, key, found: found.map(&attached) }
            }
            other => other,
        })?;
        let committed = Committed { entry: attached(committed.entry), ..committed };
        self.shared.told(committed.revision);
        let followed = self.followed.lock().get(&collection).cloned();
        {
            let mut told = self.told.lock();
            let told = told.entry(collection).or_default();
            *told = committed.revision.max(*told);
        }
        // Whoever was told reads its own write here, whichever way it reads. A stream that is cut
        // off says so itself to the readers; the write has happened all the same.
        if let Some(followed) = followed
            && !is_quiet
            && followed.state().reach(committed.revision, STREAM_LAG * 10).await.is_err()
        {
            tracing::debug!(partition = self.shared.targets.partition(), "a stream is behind");
        }
        Ok(committed)
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.follow(collection, Some(after))?.state().watch(collection, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask::<()>(&Request::Compact(revision), Repeat::Safe).await?;
        self.compacted.fetch_max(revision.0, Ordering::AcqRel);
        let all: Vec<_> = self.followed.lock().values().cloned().collect();
        for followed in all {
            // It is done, whether or not what is followed here keeps up.
            if followed.catch_up().await.is_ok() {
                followed.compact(revision).await;
            }
        }
        Ok(())
    }

    /// Asks for newer numbers, if the known ones are old.
    fn refresh_stats(&self) {
        {
            let mut stats = self.shared.stats.lock();
            if stats.asked.is_some_and(|asked| asked.elapsed() < STATS_AGE) {
                return;
            }
            stats.asked = Some(Instant::now());
        }
        let shared = self.shared.clone();
        self.shared.runtime.spawn(async move {
            let collection = fences::collection();
            let request = Request::Progress { collection, have: Revision(u64::MAX) };
            let request = request.encode(shared.targets.partition());
            let heard = shared.targets.call::<Progress>(request, Repeat::Safe).await;
            shared.set_stats(heard.map(|it| it.stats).map_err(|error| chain(&error)));
        });
    }
}

/// Lets go of collections that nobody uses.
async fn sweep(followed: Weak<Mutex<HashMap<Collection, Arc<Followed>>>>) {
    loop {
        tokio::time::sleep(IDLE / 10).await;
        let Some(followed) = followed.upgrade() else { return };
        followed.lock().retain(|_, one| !one.is_unused(IDLE));
    }
}

/// Keeps a collection followed for as long as somebody watches it.
async fn outlive(followed: Arc<Followed>) {
    while !followed.is_unused(Duration::ZERO) {
        tokio::time::sleep(IDLE / 10).await;
    }
}

impl Store for RemoteStore {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.read(collection, at).boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.write(write).boxed()
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.watch(collection, after)
    }

    fn progress(&self) -> Revision {
        Revision(self.shared.newest.load(Ordering::Acquire))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.compact(revision).boxed()
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.ask(&Request::Raise(revision), Repeat::Safe).await }.boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        async move { self.ask(&Request::Collections, Repeat::Safe).await }.boxed()
    }

    fn stats(&self) -> StoreStats {
        self.refresh_stats();
        self.shared.stats.lock().known.clone()
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.closed.store(true, Ordering::Release);
        self.sweeper.abort();
        // Kept, so that their watchers hear why they end.
        for followed in self.followed.lock().values() {
            followed.close("the partition was shut down");
        }
        std::future::ready(Ok(())).boxed()
    }
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}
