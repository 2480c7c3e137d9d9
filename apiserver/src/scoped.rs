//! A partition as one tenant (or node, or the fleet) sees it: while what belongs to it moves
//! elsewhere, nothing is answered from here.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_partition::{
    map::ShardKey,
    snapshot::Snapshot,
    store::{
        Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Tenants, Write,
    },
    watch::Watcher,
};

/// See the module.
pub(crate) struct Scoped {
    store: Arc<dyn Store>,
    key: ShardKey,
}

impl Scoped {
    pub(crate) fn new(store: Arc<dyn Store>, key: ShardKey) -> Self {
        Self { store, key }
    }
}

impl Store for Scoped {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async move {
            let snapshot = self.store.read(collection, at).await?;
            snapshot.check(&self.key)?;
            Ok(snapshot)
        }
        .boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.store.write(write)
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        self.store.write_all(writes)
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.store.watch(collection, after)?.scoped(self.key.clone())
    }

    fn progress(&self) -> Revision {
        self.store.progress()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.compact(revision)
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.raise(revision)
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        self.store.collections()
    }

    fn tenants(&self) -> Option<&dyn Tenants> {
        self.store.tenants()
    }

    fn stats(&self) -> StoreStats {
        self.store.stats()
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.shutdown()
    }
}
