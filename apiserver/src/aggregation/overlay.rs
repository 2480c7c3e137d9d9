//! The `APIService` objects of one tenant: those that are kept, over those that are made.
//!
//! It is a [`Store`], so the handlers of every other resource serve it. What is kept under a name
//! hides what is made under it; a change of what is made keeps the changed object from then on.
//! What is built in stays served, so deleting its object begins a new one, as the next start of a
//! server would.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::{names::TenantName, object, time};
use insula_partition::{
    fences::Fences,
    map::ShardKey,
    partitions::Partitions,
    snapshot::{Entry, Snapshot},
    store::{Change, Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
    watch::{Event, Feed, Watcher},
};

use super::local::{ALWAYS, Locals};
use crate::{registry, scoped::Scoped};

/// See the module.
pub(crate) struct Overlay {
    kept: Scoped,
    /// Of tenants.
    tenants: Arc<dyn Store>,
    locals: Locals,
}

impl Overlay {
    /// As `tenant` sees it; its objects are kept in `kept`.
    pub(crate) fn new(partitions: &Partitions, tenant: &TenantName, kept: Scoped) -> Self {
        let cluster = partitions.map().cluster().to_owned();
        let tenants = partitions.place(&ShardKey::System).store;
        Self { kept, tenants, locals: Locals { tenant: tenant.clone(), cluster } }
    }

    /// Since when the tenant is there; `None` if it is not, or is going.
    async fn since(&self) -> Result<Option<String>, StoreError> {
        let tenants = Collection::new("insula.io", "tenants");
        let key = registry::key(&TenantName::system(), "", self.locals.tenant.as_str());
        let mut found = self.tenants.read(&tenants, ReadAt::Any).await?.get(&key).cloned();
        if found.is_none() {
            found = self.tenants.read(&tenants, ReadAt::Latest).await?.get(&key).cloned();
        }
        let Some(found) = found else { return Ok(None) };
        let it = object::parse(&found.value.bytes())
            .map_err(|error| StoreError::Damaged { what: format!("a tenant: {error}") })?;
        let created = object::meta_str(&it, "creationTimestamp").to_owned();
        Ok((!object::is_deleting(&it)).then_some(created))
    }

    fn key(&self, name: &str) -> Arc<str> {
        registry::key(&self.locals.tenant, "", name).into()
    }

    async fn read(&self, collection: &Collection, at: ReadAt) -> Result<Snapshot, StoreError> {
        let kept = self.kept.read(collection, at).await?;
        let prefix = self.key("");
        let mut entries: Vec<(Arc<str>, Entry)> = Vec::new();
        if let Some(since) = self.since().await? {
            let made = self.locals.names();
            entries.extend(
                made.filter_map(|name| Some((self.key(name), self.locals.entry(name, &since)?))),
            );
        }
        // The later ones count.
        entries.extend(kept.range(&prefix, None).map(|(key, it)| (key.clone(), it.clone())));
        Ok(Snapshot::of(collection.clone(), kept.revision(), entries))
    }

    async fn write(&self, mut write: Write) -> Result<Committed, StoreError> {
        let name = write.key.rsplit('/').next().unwrap_or_default();
        let made = match self.since().await? {
            Some(since) => self.locals.entry(name, &since),
            None => None,
        };
        let Some(made) = made else { return self.kept.write(write).await };
        let kept = self.kept.read(&write.collection, ReadAt::Latest).await?;
        let found = kept.get(&write.key).cloned();
        if found.is_none() {
            let is_meant = match write.expect {
                Expect::Absent => false,
                Expect::At(revision) => revision == ALWAYS,
                Expect::Present | Expect::Anything => true,
            };
            if !is_meant {
                let Write { collection, key, .. } = write;
                return Err(StoreError::Conflict { collection, key, found: Some(made) });
            }
            write.expect = Expect::Absent;
        }
        let seen = found.unwrap_or(made);
        // What was changed is still the one that was made; what began anew is another.
        let damaged = |what: String| StoreError::Damaged { what };
        let it = object::parse(&seen.value.bytes()).map_err(|error| damaged(error.to_string()))?;
        if !matches!(write.change, Change::Delete) || object::uid(&it) != self.locals.uid(name) {
            return self.kept.write(write).await;
        }
        let fresh = self.locals.object(name, &time::now());
        let mut fresh = fresh.ok_or_else(|| damaged(format!("nothing makes {name}")))?;
        let uid = uuid::Uuid::new_v4().to_string();
        object::metadata_mut(&mut fresh).insert("uid".into(), uid.into());
        write.change = Change::Put(object::encode(&fresh).into());
        let revision = self.kept.write(write).await?.revision;
        let value = value::with_revision(&seen.value.bytes(), revision);
        Ok(Committed { revision, entry: Entry { value: value.into(), modified: revision } })
    }
}

/// Changes of what is kept, as changes of what is seen.
struct Changes {
    kept: Arc<dyn Feed>,
    locals: Locals,
}

impl Changes {
    fn seen(&self, event: &Arc<Event>) -> Arc<Event> {
        let name = event.key.strip_prefix(&*registry::key(&self.locals.tenant, "", ""));
        if !event.deleted && event.previous.is_some() {
            return event.clone();
        }
        let made = name.and_then(|name| {
            let it = object::parse(&event.entry.value.bytes()).ok()?;
            self.locals.entry(name, object::meta_str(&it, "creationTimestamp"))
        });
        let Some(made) = made else { return event.clone() };
        let mut event = Event::clone(event);
        if event.deleted {
            let value = value::with_revision(&made.value.bytes(), event.revision);
            event.entry = Entry { value: value.into(), modified: event.revision };
            event.deleted = false;
        } else {
            event.previous = Some(made);
        }
        Arc::new(event)
    }
}

impl Feed for Changes {
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let (events, complete) = self.kept.changes(after, limit)?;
        Ok((events.iter().map(|it| self.seen(it)).collect(), complete))
    }

    fn fences(&self) -> Arc<Fences> {
        self.kept.fences()
    }

    fn wakeups(&self) -> tokio::sync::watch::Receiver<u64> {
        self.kept.wakeups()
    }
}

impl insula_partition::layer::Layer for Overlay {
    fn below(&self) -> &dyn Store {
        &self.kept
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
        let locals = self.locals.clone();
        let watcher = self.below().watch(collection, after)?;
        Ok(watcher.through(|kept| Arc::new(Changes { kept, locals })))
    }
}
