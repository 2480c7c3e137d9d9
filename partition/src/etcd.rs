//! The etcd backend: one etcd cluster holds the partition, a cache in this process serves reads.
//!
//! ```text
//! write -> guarded transaction -> etcd -> watch -> state -> answer
//! read  -> what is etcd's revision? -> wait until the state has it -> state
//! ```
//!
//! A write that may let a tenant have only so much is judged here, where the sums are, and so is
//! done only if no other such write of the tenant was done since: all of them renew one key, the
//! tenant's turn. Of one server they come one after the other.
//!
//! Revisions are etcd's, raised by what `offsets` says. Each write is made only if the fences
//! and the offsets are those that were followed when it was decided. Values lie in etcd with an empty revision; the cache fills it in.
//! The cluster may hold other keys too; only those under the prefix are looked at.

mod clock;
mod config;
mod follow;
mod identity;
mod keys;
mod offsets;
mod probe;
mod split;
#[cfg(test)]
pub(crate) mod tests;
mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{task::AbortHandle, time::Instant};

pub use self::config::{EtcdConfig, EtcdTls, EtcdUser};
pub(crate) use self::split::RELAXED;
pub(crate) use self::turns::TURNS;
use self::{
    clock::Clock,
    follow::{ANSWER, FollowError, Follower, Health, Loaded},
    keys::Keys,
    offsets::Offsets,
    probe::Probe,
    turns::{Limited, Turn, Turns},
};
use crate::{
    epochs,
    error::{OpenError, chain},
    fences,
    limits::check_limits,
    metrics::{self, Operation},
    ring::RingLimits,
    seal::{Bunch, Vault},
    snapshot::{Entry, Snapshot},
    state::{FUTURE_WAIT, State, settle::Settler},
    store::{
        Change, Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, StoreStats,
        Tenants, Write,
    },
    value,
    watch::Watcher,
};

/// How long to go on trying while a partition is opened: its etcd may be starting too.
const OPEN_WAIT: Duration = Duration::from_secs(15);

/// A read waits this long for the watch before it makes sure that the watch has something to say.
const WATCH_LAG: Duration = Duration::from_millis(30);

/// One partition in an etcd. See the module.
#[derive(Debug)]
pub(crate) struct EtcdStore {
    keys: Keys,
    client: ClientHandle,
    name: String,
    state: Arc<State>,
    clock: Arc<Clock>,
    health: Arc<Mutex<Health>>,
    probe: Probe,
    /// The newest revision that a caller was told. The cache may still be behind it.
    told: AtomicU64,
    /// Held while a marker is written.
    marking: tokio::sync::Mutex<()>,
    turns: Turns,
    tasks: Vec<AbortHandle>,
    _settler: Settler,
}

/// The client, which says nothing about itself.
#[derive(Clone)]
struct ClientHandle(Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Opens the partition `name` of `cluster`, with its second etcd if it has one.
pub(crate) async fn open_partition(
    name: &str,
    config: &EtcdConfig,
    cluster: &str,
    vault: &Arc<Vault>,
) -> Result<Arc<dyn Store>, OpenError> {
    let limits = RingLimits::default;
    let main = EtcdStore::open(name, config, limits(), vault).await?;
    main.identify(Some(cluster), cluster).await?;
    let Some(second) = config.second() else { return Ok(Arc::new(main)) };
    let events = format!("{name}/events");
    let relaxed = EtcdStore::open(&events, &second, limits(), vault).await?;
    relaxed.identify(Some(cluster), cluster).await?;
    Ok(Arc::new(split::SplitStore::new(Arc::new(main), Arc::new(relaxed))))
}

impl EtcdStore {
    /// Connects, loads everything and begins to follow.
    pub(crate) async fn open(
        name: &str,
        config: &EtcdConfig,
        limits: RingLimits,
        vault: &Arc<Vault>,
    ) -> Result<Self, OpenError> {
        Self::open_within(OPEN_WAIT, name, config, limits, vault).await
    }

    async fn open_within(
        patience: Duration,
        name: &str,
        config: &EtcdConfig,
        limits: RingLimits,
        vault: &Arc<Vault>,
    ) -> Result<Self, OpenError> {
        let options = config.connect_options()?;
        let failed = |error: FollowError| OpenError::Partition {
            partition: name.into(),
            source: StoreError::Unavailable {
                reason: format!("no answer from etcd at {}", config.endpoints.join(", ")),
                source: Some(error.into()),
            },
        };
        let keys = Keys::new(&config.prefix);
        let begun = Instant::now();
        let (client, Loaded { image, offsets, seen }) = loop {
            match connect(config, &options, &keys).await {
                Ok(loaded) => break loaded,
                Err(error) if patience < begun.elapsed() => return Err(failed(error)),
                Err(error) => {
                    tracing::debug!(
                        partition = name,
                        error = chain(&error),
                        "etcd is not there yet"
                    );
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let state = State::with_keys(image, limits, Bunch::new(vault.clone()));
        let settler = Settler::start(name, &state).map_err(|error| OpenError::Partition {
            partition: name.into(),
            source: StoreError::Unavailable {
                reason: "no thread for its memory".into(),
                source: Some(error.into()),
            },
        })?;
        let clock = Clock::new(offsets, seen);
        let health = Arc::new(Mutex::new(Health::default()));
        let follower = Follower {
            name: name.into(),
            client: client.clone(),
            keys: keys.clone(),
            state: state.clone(),
            clock: clock.clone(),
            health: health.clone(),
        };
        let follow = tokio::spawn(follower.run()).abort_handle();
        let (probe, probing) = Probe::start(client.clone(), keys.clone());
        Ok(Self {
            keys,
            client: ClientHandle(client),
            name: name.into(),
            told: AtomicU64::new(state.revision().0),
            state,
            clock,
            health,
            probe,
            marking: tokio::sync::Mutex::new(()),
            turns: Turns::default(),
            tasks: vec![follow, probing],
            _settler: settler,
        })
    }

    /// Where the table of fences lies.
    fn fence_key(&self) -> String {
        self.keys.of(&fences::collection(), fences::TABLE)
    }

    /// Fails at once after the end, and while the etcd is known to be away.
    fn check_health(&self) -> Result<(), StoreError> {
        self.state.check_open()?;
        match &self.health.lock().unhealthy {
            Some(reason) => {
                let reason = format!("etcd is not available: {reason}");
                Err(StoreError::Unavailable { reason, source: None })
            }
            None => Ok(()),
        }
    }

    /// Waits until the cache has everything that was acknowledged before the call.
    async fn catch_up(&self) -> Result<(), StoreError> {
        self.check_health()?;
        let revision = self.probe.revision().await?;
        if self.clock.reach(revision, WATCH_LAG).await {
            return Ok(());
        }
        // The newest change may be of a key that is not ours, and the watch silent about it.
        if let Ok(_alone) = self.marking.try_lock() {
            let mut kv = self.client.0.kv_client();
            let marked = kv.put(self.keys.marker(), "", None);
            tokio::time::timeout(ANSWER, marked).await.map_err(late)?.map_err(unavailable)?;
        }
        if self.clock.reach(revision, FUTURE_WAIT).await {
            return Ok(());
        }
        let reason = "the watch on etcd is behind".into();
        Err(StoreError::Unavailable { reason, source: None })
    }

    /// Makes sure that the etcd holds this partition of `cluster`, or of any cluster if `None`;
    /// takes an empty one. Gives the cluster's id, `fresh` if nobody had given it one.
    pub(crate) async fn identify(
        &self,
        cluster: Option<&str>,
        fresh: &str,
    ) -> Result<String, OpenError> {
        let asked = identity::identify(&self.client.0, &self.keys, &self.name, cluster, fresh);
        asked.await.map_err(|error| error.of(&self.name))
    }

    /// The cluster whose partition the etcd holds, if it holds one; as [`Self::identify`], but
    /// without taking it.
    pub(crate) async fn whose(&self, cluster: Option<&str>) -> Result<Option<String>, OpenError> {
        let asked = identity::look(&self.client.0, &self.keys, &self.name, cluster);
        asked.await.map_err(|error| error.of(&self.name))
    }

    async fn raise(&self, above: Revision) -> Result<(), StoreError> {
        loop {
            self.catch_up().await?;
            let (offsets, now) = (self.clock.offsets(), self.clock.seen());
            if above <= offsets.shown(now) {
                return Ok(());
            }
            let key = self.keys.offsets();
            let value = offsets.raised(above, now.unsigned_abs());
            let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, offsets.written);
            let raise = Txn::new().when([unchanged]).and_then([TxnOp::put(key, value, None)]);
            let mut kv = self.client.0.kv_client();
            let answer = tokio::time::timeout(ANSWER, kv.txn(raise)).await.map_err(late)?;
            let answer = answer.map_err(unavailable)?;
            let revision = answer.header().map_or(0, |header| header.revision());
            if !self.clock.reach(revision, FUTURE_WAIT).await {
                self.catch_up().await?;
            }
        }
    }

    /// Makes one guarded write. The etcd does it only if nothing was fenced off, and no revision
    /// was raised, since what `offsets` and `fences` say, and if nobody had a turn since `turn`.
    async fn transact(
        &self,
        write: &Write,
        offsets: &Offsets,
        fences: i64,
        turn: Option<&Turn>,
    ) -> Result<TxnResponse, StoreError> {
        let key = self.keys.of(&write.collection, &write.key);
        let exists = |op| Compare::version(key.as_str(), op, 0);
        let mut guard = match (write.expect, &write.change) {
            (Expect::Absent, _) => vec![exists(CompareOp::Equal)],
            (Expect::At(revision), _) => {
                // A revision that was left out is no key's.
                let at = offsets.etcd(revision).unwrap_or(i64::MAX);
                vec![Compare::mod_revision(key.as_str(), CompareOp::Equal, at)]
            }
            (Expect::Present, _) | (Expect::Anything, Change::Delete) => {
                vec![exists(CompareOp::Greater)]
            }
            (Expect::Anything, Change::Put(_)) => Vec::new(),
        };
        let change = match &write.change {
            Change::Put(value) => TxnOp::put(key.as_str(), value.as_ref(), None),
            Change::Delete => {
                TxnOp::delete(key.as_str(), Some(DeleteOptions::new().with_prev_key()))
            }
        };
        let epoch_key =
            write.epoch.as_ref().map(|it| self.keys.of(&epochs::collection(), &it.task));
        if let (Some(epoch), Some(key)) = (&write.epoch, &epoch_key) {
            let kept = epochs::value(epoch.number);
            guard.push(Compare::value(key.as_str(), CompareOp::Equal, kept));
        }
        let (fence_key, offset_key) = (self.fence_key(), self.keys.offsets());
        let same = |key: &str, at| Compare::mod_revision(key, CompareOp::Equal, at);
        guard.push(same(&fence_key, fences));
        guard.push(same(&offset_key, offsets.written));
        let revisions = || Some(GetOptions::new().with_keys_only());
        let mut found = vec![
            TxnOp::get(key, None),
            TxnOp::get(fence_key, revisions()),
            TxnOp::get(offset_key, revisions()),
        ];
        // The change comes first: whoever follows and sees the turn has seen the change.
        let mut changes = vec![change];
        if let Some(Turn { key, at, .. }) = turn {
            guard.push(same(key, *at));
            changes.push(TxnOp::put(key.as_str(), "", None));
            found.push(TxnOp::get(key.as_str(), revisions()));
        }
        found.extend(epoch_key.map(|key| TxnOp::get(key, None)));
        let txn = Txn::new().when(guard).and_then(changes).or_else(found);
        let mut kv = self.client.0.kv_client();
        let answer = tokio::time::timeout(ANSWER, kv.txn(txn)).await.map_err(late)?;
        answer.map_err(|error| match &write.change {
            Change::Put(value) if is_too_large(&error) => {
                StoreError::TooLarge { size: value.len(), limit: crate::limits::MAX_VALUE }
            }
            _ => unavailable(error),
        })
    }

    async fn write(&self, write: Write) -> Result<Committed, StoreError> {
        check_limits(&write)?;
        // One after the other, so that those of one server never refuse each other.
        let limited = Limited::of(&write);
        let _turn = match &limited {
            Some(limited) => Some(self.turns.wait(limited.tenant).await),
            None => None,
        };
        let begun = Instant::now();
        let (answer, offsets) = loop {
            self.check_health()?;
            // Fences of an older time than the offsets only make the etcd refuse.
            let fences = self.state.fences();
            let offsets = self.clock.offsets();
            if write.by_move.is_some() || !fences.is_empty() {
                fences.check_write(write.collection.as_str(), &write.key, write.by_move)?;
            }
            let written = offsets.etcd(fences.written()).unwrap_or(i64::MAX);
            let turn = match &limited {
                Some(limited) => Some(self.judge(limited, &offsets).await?),
                None => None,
            };
            let asked = Instant::now();
            let answer = self.transact(&write, &offsets, written, turn.as_ref()).await;
            let operation = match (&write.change, write.expect) {
                (Change::Delete, _) => Operation::Delete,
                (_, Expect::Absent) => Operation::Create,
                _ => Operation::Update,
            };
            metrics::asked(&write.collection, operation, asked, answer.is_err());
            let answer = answer?;
            if answer.succeeded() {
                break (answer, offsets);
            }
            let revision = answer.header().map_or(0, |header| header.revision());
            let at = |response: &TxnOpResponse| match response {
                TxnOpResponse::Get(get) => get.kvs().first().map_or(0, KeyValue::mod_revision),
                _ => 0,
            };
            match answer.op_responses().as_slice() {
                [TxnOpResponse::Get(found), fence, offset, rest @ ..]
                    if at(fence) == written
                        && at(offset) == offsets.written
                        && turn.iter().zip(rest).all(|(turn, now)| at(now) == turn.at) =>
                {
                    let epoch = rest.get(usize::from(turn.is_some()));
                    if let (Some(wanted), Some(TxnOpResponse::Get(kept))) = (&write.epoch, epoch) {
                        let kept = kept.kvs().first().map(|kv| follow::entry(kv, &offsets));
                        epochs::check(kept.as_ref(), &wanted.task, wanted.number)?;
                    }
                    let found = found.kvs().first().map(|kv| follow::entry(kv, &offsets));
                    let Write { collection, key, .. } = write;
                    let found = found.map(|it| self.state.attached(&collection, &key, it));
                    return Err(StoreError::Conflict { collection, key, found });
                }
                // Something began or ended to move, or another server had its turn: decide again,
                // knowing that.
                _ if begun.elapsed() < FUTURE_WAIT => {
                    if !self.clock.reach(revision, FUTURE_WAIT).await {
                        self.catch_up().await?;
                    }
                }
                _ => {
                    let reason = "the watch on etcd is behind".into();
                    return Err(StoreError::Unavailable { reason, source: None });
                }
            }
        };
        let first = answer.op_responses().into_iter().next();
        let live = |kvs: &[KeyValue]| kvs.first().map(|kv| follow::entry(kv, &offsets));
        let etcd_revision = answer.header().map_or(0, |header| header.revision());
        let revision = offsets.shown(etcd_revision);
        let value = match (&write.change, &first) {
            (Change::Put(value), _) => value.clone(),
            (Change::Delete, Some(TxnOpResponse::Delete(delete))) => {
                live(delete.prev_kvs()).map(|entry| entry.value.into_bytes()).unwrap_or_default()
            }
            (Change::Delete, _) => bytes::Bytes::new(),
        };
        let value = value::with_revision(&value, revision).into();
        let entry = Entry { value, modified: revision };
        let entry = self.state.attached(&write.collection, &write.key, entry);
        self.told.fetch_max(revision.0, Ordering::AcqRel);
        // Whoever was told reads its own write from the cache, whichever way it reads. A cache
        // that is cut off says so itself to the readers; the write has happened all the same.
        if !self.clock.reach(etcd_revision, WATCH_LAG * 10).await {
            tracing::debug!(partition = self.name, "the watch is behind a write");
        }
        Ok(Committed { revision, entry })
    }

    async fn read(&self, collection: &Collection, at: ReadAt) -> Result<Snapshot, StoreError> {
        match at {
            ReadAt::Latest => self.catch_up().await?,
            ReadAt::Any => {
                let told = Revision(self.told.load(Ordering::Acquire));
                if self.state.reach(told, FUTURE_WAIT).await.is_err() {
                    self.check_health()?;
                    self.catch_up().await?;
                }
            }
            ReadAt::NotOlderThan(revision) | ReadAt::Exactly(revision) => {
                if self.state.reach(revision, WATCH_LAG).await.is_err() {
                    self.catch_up().await?;
                }
            }
        }
        self.state.read(collection, at).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.check_health()?;
        self.catch_up().await?;
        let newest = self.progress();
        if newest < revision {
            return Err(StoreError::Future { requested: revision, newest });
        }
        let mut kv = self.client.0.kv_client();
        let at = self.clock.offsets().etcd_below(revision);
        let answer = tokio::time::timeout(ANSWER, kv.compact(at, None)).await;
        match answer.map_err(late)? {
            Ok(_) => {}
            // Someone else was faster.
            Err(error) if follow::is_compacted(&error) => {}
            Err(error) => return Err(unavailable(error)),
        }
        self.state.apply(|contents| contents.compact(revision))
    }
}

async fn connect(
    config: &EtcdConfig,
    options: &ConnectOptions,
    keys: &Keys,
) -> Result<(Client, Loaded), FollowError> {
    let connecting = Client::connect(&config.endpoints, Some(options.clone()));
    let client = tokio::time::timeout(ANSWER, connecting).await??;
    let loaded = follow::load(&client, keys).await?;
    Ok((client, loaded))
}

fn is_too_large(error: &etcd_client::Error) -> bool {
    follow::says(error, "request is too large") || follow::says(error, "larger than max")
}

fn late(_: tokio::time::error::Elapsed) -> StoreError {
    let reason = "etcd did not answer in time".into();
    StoreError::Unavailable { reason, source: None }
}

fn unavailable(error: etcd_client::Error) -> StoreError {
    let reason = "etcd refused or could not be reached".into();
    StoreError::Unavailable { reason, source: Some(error.into()) }
}

impl Store for EtcdStore {
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
        self.state.watch(collection, after)
    }

    fn progress(&self) -> Revision {
        self.state.revision().max(Revision(self.told.load(Ordering::Acquire)))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.compact(revision).boxed()
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.raise(revision).boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        async move {
            self.catch_up().await?;
            self.state.collections()
        }
        .boxed()
    }

    fn tenants(&self) -> Option<&dyn Tenants> {
        Some(&*self.state)
    }

    fn stats(&self) -> StoreStats {
        let totals = self.state.totals();
        let health = self.health.lock().clone();
        StoreStats {
            objects: totals.objects,
            bytes: totals.bytes,
            revision: totals.revision,
            compacted: totals.floor,
            unhealthy: health.unhealthy,
            leader: health.leader,
            disk: health.size,
            backend: "etcd",
            ..StoreStats::default()
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.tasks.iter().for_each(AbortHandle::abort);
        let reason = "the partition was shut down";
        self.state.close(reason);
        std::future::ready(Ok(())).boxed()
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
