//! Stores over stores.

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};

use crate::{
    snapshot::Snapshot,
    store::{
        Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Tenants, Write,
    },
    watch::Watcher,
};

/// A [`Store`] that shows another one in its own way. What it does not say itself the one below
/// does; several writes are so many single ones of its own, unless it knows better.
pub trait Layer: Send + Sync + 'static {
    /// The store that is shown.
    fn below(&self) -> &dyn Store;

    /// See [`Store::read`].
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.below().read(collection, at)
    }

    /// See [`Store::write`].
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.below().write(write)
    }

    /// See [`Store::write_all`].
    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        join_all(writes.into_iter().map(|write| Layer::write(self, write))).boxed()
    }

    /// See [`Store::watch`].
    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.below().watch(collection, after)
    }
}

impl<L: Layer> Store for L {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Layer::read(self, collection, at)
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        Layer::write(self, write)
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        Layer::write_all(self, writes)
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        Layer::watch(self, collection, after)
    }

    fn progress(&self) -> Revision {
        self.below().progress()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.below().compact(revision)
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.below().raise(revision)
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        self.below().collections()
    }

    fn tenants(&self) -> Option<&dyn Tenants> {
        self.below().tenants()
    }

    fn stats(&self) -> StoreStats {
        self.below().stats()
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.below().shutdown()
    }
}
