//! A partition's objects of one kind as a tenant sees them: its own, and the platform's.
//!
//! It is a [`Store`], so the handlers of every other resource serve it.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::names::TenantName;
use insula_partition::{
    fences::Fences,
    snapshot::{Entry, Snapshot},
    store::{Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
    watch::{Event, Feed, Watcher},
};

use super::{collection, key};
use crate::{registry, scoped::Scoped};

/// See the module.
pub(crate) struct Seen {
    /// With the tenant's own.
    kept: Arc<Scoped>,
    /// The same partition, with the copies.
    store: Arc<dyn Store>,
    tenant: TenantName,
}

impl Seen {
    /// As `tenant` sees `store`, in which it keeps its own as `kept`.
    pub(crate) fn new(tenant: &TenantName, kept: Scoped, store: Arc<dyn Store>) -> Self {
        Self { kept: Arc::new(kept), store, tenant: tenant.clone() }
    }

    async fn read(&self, collection: &Collection, at: ReadAt) -> Result<Snapshot, StoreError> {
        let own = self.kept.read(collection, at).await?;
        let copies = self.store.read(&super::collection(), ReadAt::Exactly(own.revision())).await?;
        let prefix = key(collection.as_str(), "");
        let shared = copies.range(&prefix, None).map(|(it, entry)| {
            let name = &it[prefix.len()..];
            (registry::key(&self.tenant, "", name).into(), entry.clone())
        });
        Ok(own.with(shared))
    }

    async fn write(&self, write: Write) -> Result<Committed, StoreError> {
        if write.expect == Expect::Absent {
            let name = write.key.rsplit('/').next().unwrap_or_default();
            let copies = self.store.read(&collection(), ReadAt::Latest).await?;
            if let Some(found) = copies.get(&key(write.collection.as_str(), name)) {
                let found = Some(found.clone());
                let Write { collection, key, .. } = write;
                return Err(StoreError::Conflict { collection, key, found });
            }
        }
        self.kept.write(write).await
    }
}

/// Changes of both, in the order of their revisions.
struct Changes {
    own: Arc<dyn Feed>,
    copies: Arc<dyn Feed>,
    kept: Arc<Scoped>,
    store: Arc<dyn Store>,
    collection: Collection,
    tenant: TenantName,
}

/// What a feed says, and up to which revision that is all.
struct Part {
    events: Vec<Arc<Event>>,
    until: Revision,
    /// Up to which it has something to say.
    complete: Revision,
}

impl Part {
    fn of(feed: &dyn Feed, after: Revision, limit: usize) -> Result<Self, StoreError> {
        let (events, complete) = feed.changes(after, limit)?;
        let cut = events.last().filter(|_| limit <= events.len());
        let until = cut.map_or(complete, |last| last.revision);
        Ok(Self { events, until, complete })
    }
}

impl Changes {
    /// A change of what the tenant has itself.
    fn of_tenant(&self, event: Arc<Event>) -> Arc<Event> {
        if !event.deleted {
            return event;
        }
        // What it hid is seen now.
        let name = event.key.rsplit('/').next().unwrap_or_default();
        let hidden = key(self.collection.as_str(), name);
        let Some(hidden) = at_hand(&*self.store, &collection(), &hidden) else { return event };
        let mut event = Event::clone(&event);
        let bytes = value::with_revision(&hidden.value.bytes(), event.revision);
        event.entry = Entry { value: bytes.into(), modified: event.revision };
        event.deleted = false;
        Arc::new(event)
    }

    /// A change of what the platform has, if the tenant sees it.
    fn of_platform(&self, event: &Event) -> Option<Arc<Event>> {
        let name = event.key.strip_prefix(&*key(self.collection.as_str(), ""))?;
        let key: Arc<str> = registry::key(&self.tenant, "", name).into();
        if at_hand(&*self.kept, &self.collection, &key).is_some() {
            return None;
        }
        Some(Arc::new(Event { key, ..event.clone() }))
    }
}

/// What is at hand under a key; nothing if that takes time.
fn at_hand(store: &dyn Store, collection: &Collection, key: &str) -> Option<Entry> {
    store.read(collection, ReadAt::Any).now_or_never()?.ok()?.get(key).cloned()
}

impl Feed for Changes {
    fn changes(
        &self,
        mut after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let mut found: Vec<Arc<Event>> = Vec::new();
        loop {
            let own = Part::of(&*self.own, after, limit)?;
            let copies = Part::of(&*self.copies, after, limit)?;
            // What is above is told when the other one has come as far.
            let until = own.until.min(copies.until);
            let begin = found.len();
            found.extend(own.events.into_iter().map(|it| self.of_tenant(it)));
            found.extend(copies.events.iter().filter_map(|it| self.of_platform(it)));
            found.retain(|it| it.revision <= until);
            found[begin..].sort_by_key(|it| it.revision);
            if limit <= found.len() || own.complete.min(copies.complete) <= until {
                return Ok((found, until));
            }
            after = until;
        }
    }

    fn fences(&self) -> Arc<Fences> {
        self.own.fences()
    }

    fn wakeups(&self) -> tokio::sync::watch::Receiver<u64> {
        self.own.wakeups()
    }
}

impl insula_partition::layer::Layer for Seen {
    fn below(&self) -> &dyn Store {
        &*self.kept
    }

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
        let copies = self.store.watch(&super::collection(), after)?;
        let own = self.below().watch(collection, after)?;
        Ok(own.together(copies, |own, copies| {
            Arc::new(Changes {
                own,
                copies,
                kept: self.kept.clone(),
                store: self.store.clone(),
                collection: collection.clone(),
                tenant: self.tenant.clone(),
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use insula_partition::{
        map::ShardKey,
        partitions::{Partitions, PartitionsConfig, StoreConfig},
        store::Change,
    };
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// However far a watcher is behind, and whatever else changed meanwhile, it is told all of
    /// both, once and in order.
    #[tokio::test]
    async fn both_are_told_in_the_order_of_revisions() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            PartitionsConfig::alone(dir.path().to_owned(), StoreConfig::Embedded { partitions: 1 });
        let partitions = Partitions::open(config).await.unwrap();
        let tenant = TenantName::parse("acme").unwrap();
        let shard = ShardKey::Tenant("acme".into());
        let store = partitions.place(&shard).store;
        let classes = Collection::new("storage.k8s.io", "storageclasses");
        let seen = Seen::new(&tenant, Scoped::new(store.clone(), shard), store.clone());
        let mut watcher = seen.watch(&classes, store.progress()).unwrap();
        let mut random = StdRng::seed_from_u64(7);
        let (mut told, mut wanted) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let n_writes = random.random_range(1..600);
            let writes: Vec<Write> = (0..n_writes).map(|_| any_write(&mut random)).collect();
            for (done, write) in store.write_all(writes.clone()).await.into_iter().zip(writes) {
                let own = write.key.strip_prefix("acme//");
                let name = own.or_else(|| write.key.strip_prefix("storage.k8s.io/storageclasses/"));
                if let (Ok(done), Some(name)) = (done, name) {
                    wanted.push((done.revision, registry::key(&tenant, "", name)));
                }
            }
            while told.len() < wanted.len() {
                let events = watcher.next().await.unwrap();
                let own = events.iter().filter(|it| it.key.starts_with("acme/"));
                told.extend(own.map(|it| (it.revision, it.key.to_string())));
            }
            assert_eq!(told, wanted);
        }
    }

    /// Of the tenant, of another one, of the platform, or of it and another kind.
    fn any_write(random: &mut StdRng) -> Write {
        let classes = Collection::new("storage.k8s.io", "storageclasses");
        let number = random.random_range(0..40);
        let (collection, key) = match random.random_range(0..10) {
            0 => (classes, format!("acme//own-{number}")),
            1 => (classes, format!("other//own-{number}")),
            2 => (collection(), format!("storage.k8s.io/storageclasses/all-{number}")),
            _ => (collection(), format!("node.k8s.io/runtimeclasses/all-{number}")),
        };
        let (expect, change) = match random.random_range(0..4) {
            0 => (Expect::Present, Change::Delete),
            _ => {
                let value = r#"{"metadata":{"resourceVersion":""}}"#;
                (Expect::Anything, Change::Put(value.into()))
            }
        };
        Write::durable(collection, key, expect, change)
    }
}
