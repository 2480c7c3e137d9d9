//! A partition as one tenant (or node, or the fleet) sees it: while what belongs to it moves
//! elsewhere, nothing is answered from here.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_partition::{
    map::ShardKey,
    snapshot::Snapshot,
    store::{Collection, Committed, ReadAt, Revision, Store, StoreError, Write},
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

impl insula_partition::layer::Layer for Scoped {
    fn below(&self) -> &dyn Store {
        &*self.store
    }

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

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        self.store.write_all(writes)
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.store.watch(collection, after)?.scoped(self.key.clone())
    }
}
