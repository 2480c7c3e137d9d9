//! A partition whose events lie in an etcd of their own.
//!
//! Collections of which all is relaxed, see [`RELAXED`], live wholly in the second etcd, with its
//! revisions: it can be on a faster disk, without `fsync`, and nothing that fills or slows it
//! touches the rest. Within such a collection revisions grow as everywhere; between it and the
//! others they say nothing, as with an API server of Kubernetes that keeps its events elsewhere.
//!
//! # Invariants
//!
//! * A collection is in one of the two, always the same.
//! * Both have the same fences: a fence that closes is put up in the second etcd first, so that
//!   whoever reads that it is up finds it up in both.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::{FutureExt, future::BoxFuture};

use super::EtcdStore;
use crate::{
    fences::{self, Fences, TABLE, Table},
    snapshot::Snapshot,
    store::{
        Change, Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, StoreStats,
        Tenants, Write,
    },
    watch::Watcher,
};

/// Collections of which all is relaxed.
pub(crate) const RELAXED: [&str; 2] = ["core/events", "events.k8s.io/events"];

/// See the module.
#[derive(Debug)]
pub(crate) struct SplitStore {
    main: Arc<EtcdStore>,
    relaxed: Arc<EtcdStore>,
    /// How far the second etcd was when history was last forgotten: it is forgotten one time
    /// later there, because the revision that is asked for is of the first.
    forgotten: AtomicU64,
}

impl SplitStore {
    pub(crate) fn new(main: Arc<EtcdStore>, relaxed: Arc<EtcdStore>) -> Self {
        Self { main, relaxed, forgotten: AtomicU64::new(0) }
    }

    fn of(&self, collection: &Collection) -> &Arc<EtcdStore> {
        match RELAXED.contains(&collection.as_str()) {
            true => &self.relaxed,
            false => &self.main,
        }
    }

    async fn write(&self, write: Write) -> Result<Committed, StoreError> {
        if write.collection.as_str() == fences::FENCES
            && &*write.key == TABLE
            && let Change::Put(table) = &write.change
        {
            self.fence_relaxed(table).await?;
            let committed = Store::write(&*self.main, write).await?;
            // Whoever compares what it sees here with this revision sees it reached in both.
            Store::raise(&*self.relaxed, committed.revision).await?;
            return Ok(committed);
        }
        match RELAXED.contains(&write.collection.as_str()) {
            // The second etcd knows nothing of what tenants have in the first, nor of epochs: an
            // event too many does no harm.
            true => {
                let write = Write { within: None, epoch: None, ..write };
                Store::write(&*self.relaxed, write).await
            }
            false => Store::write(&*self.main, write).await,
        }
    }

    /// Puts up in the second etcd what is about to be put up in the first. If the first refuses
    /// then, whoever was faster there has put up, or will put up, its own in both.
    async fn fence_relaxed(&self, table: &[u8]) -> Result<(), StoreError> {
        let damaged = |error: serde_json::Error| StoreError::Damaged { what: error.to_string() };
        let wanted: Table = serde_json::from_slice(table).map_err(damaged)?;
        loop {
            let snapshot =
                Store::read(&*self.relaxed, &fences::collection(), ReadAt::Latest).await?;
            let found = snapshot.get(TABLE);
            let known = match found {
                Some(entry) => Fences::parse(&entry.value.bytes(), entry.modified),
                None => Fences::default(),
            };
            let mut next = wanted.clone();
            for fence in &mut next.fences {
                // Since when it is so is this etcd's own business.
                let same = known.table().of(&fence.move_id).filter(|it| it.state == fence.state);
                fence.since = same.map_or(Revision(0), |it| it.since);
            }
            if next == *known.table() {
                return Ok(());
            }
            let value = serde_json::to_vec(&next).map_err(damaged)?;
            let write = Write {
                collection: fences::collection(),
                key: TABLE.into(),
                expect: found.map_or(Expect::Absent, |entry| Expect::At(entry.modified)),
                change: Change::Put(value.into()),
                durability: crate::store::Durability::Durable,
                by_move: None,
                within: None,
                epoch: None,
            };
            match Store::write(&*self.relaxed, write).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Store for SplitStore {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Store::read(&**self.of(collection), collection, at)
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.write(write).boxed()
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.of(collection).watch(collection, after)
    }

    /// Of the first etcd: that of the second is no revision of other collections.
    fn progress(&self) -> Revision {
        self.main.progress()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            Store::compact(&*self.main, revision).await?;
            let now = self.relaxed.progress();
            match self.forgotten.swap(now.0, Ordering::AcqRel) {
                0 => Ok(()),
                before => Store::compact(&*self.relaxed, Revision(before)).await,
            }
        }
        .boxed()
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            Store::raise(&*self.relaxed, revision).await?;
            Store::raise(&*self.main, revision).await
        }
        .boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        async move {
            let mut all = self.main.collections().await?;
            let relaxed = self.relaxed.collections().await?;
            all.extend(relaxed.into_iter().filter(|it| RELAXED.contains(&it.as_str())));
            all.sort();
            Ok(all)
        }
        .boxed()
    }

    /// Without events.
    fn tenants(&self) -> Option<&dyn Tenants> {
        self.main.tenants()
    }

    fn stats(&self) -> StoreStats {
        let (main, relaxed) = (self.main.stats(), self.relaxed.stats());
        let unhealthy = relaxed.unhealthy.map(|why| format!("the etcd for events: {why}"));
        StoreStats {
            objects: main.objects + relaxed.objects,
            bytes: main.bytes + relaxed.bytes,
            unhealthy: main.unhealthy.or(unhealthy),
            disk: main.disk.map(|disk| disk + relaxed.disk.unwrap_or(0)),
            ..main
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.main.shutdown().await?;
            self.relaxed.shutdown().await
        }
        .boxed()
    }
}
