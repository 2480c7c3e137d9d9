//! Keeps a copy of what the platform shows in each partition.
//!
//! Every server sees to the partitions that it has; what one did the others find done.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::{pending, select_all};
use insula_api::object;
use insula_partition::{
    map::{SYSTEM, ShardKey},
    snapshot::Snapshot,
    store::{Change, Collection, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
    watch::Watcher,
};

use super::{KINDS, collection, is_for_all, key};
use crate::{Server, error::chain};

/// How often it looks when nothing seems to have changed.
const LOOK: Duration = Duration::from_secs(10);
/// How long it waits after something failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Objects by their key among the copies.
type Shown = BTreeMap<String, Bytes>;

/// Runs until the server ends.
pub(crate) async fn follow(server: Arc<Server>) {
    let shutdown = server.shutdown.clone();
    let mut copier = Copier { server, news: Vec::new(), done: HashMap::new() };
    shutdown.run_until_cancelled(copier.run()).await;
}

struct Copier {
    server: Arc<Server>,
    /// Of the platform's collections; empty while they cannot be watched.
    news: Vec<Watcher>,
    /// By partition, the platform's collections and its copies as they were when both were alike.
    done: HashMap<String, (Vec<Snapshot>, Snapshot)>,
}

impl Copier {
    async fn run(&mut self) {
        let mut epochs = self.server.partitions.subscribe();
        loop {
            // Before looking, so that nothing is missed between the two.
            if self.news.is_empty() {
                self.news = self.watch().unwrap_or_default();
            }
            if let Err(error) = self.pass().await {
                tracing::debug!(error = chain(&error), "what the platform shows is copied later");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            tokio::select! {
                failed = any(&mut self.news) => if failed { self.news.clear() },
                _ = epochs.changed() => (),
                () = tokio::time::sleep(LOOK) => (),
            }
        }
    }

    /// Watches what is to be copied.
    fn watch(&self) -> Result<Vec<Watcher>, StoreError> {
        let store = self.server.partitions.place(&ShardKey::System).store;
        let after = store.progress();
        let watch = |(group, name, _)| store.watch(&Collection::new(group, name), after);
        KINDS.into_iter().map(watch).collect()
    }

    /// Brings the copies of this server's partitions up to what there is.
    async fn pass(&mut self) -> Result<(), StoreError> {
        let partitions = self.server.partitions.clone();
        let platforms = partitions.place(&ShardKey::System).store;
        let names = partitions.names();
        self.done.retain(|name, _| names.contains(name));
        for name in names {
            let Some(place) = partitions.place_of(&name).filter(|it| it.local) else { continue };
            let shown = read(&*platforms, ReadAt::Any).await?;
            let copies = place.store.read(&collection(), ReadAt::Any).await?;
            let is_done = self.done.get(&name).is_some_and(|(then, copied)| {
                copied.is_same(&copies)
                    && then.iter().zip(&shown).all(|(then, now)| then.is_same(now))
            });
            if is_done {
                continue;
            }
            if missing(&wanted(&shown)?, &copies).is_empty() {
                self.done.insert(name, (shown, copies));
                continue;
            }
            // What is at hand may be older than what another server has copied from.
            let wanted = wanted(&read(&*platforms, ReadAt::Latest).await?)?;
            let copies = place.store.read(&collection(), ReadAt::Latest).await?;
            for done in place.store.write_all(missing(&wanted, &copies)).await {
                match done {
                    Ok(_) | Err(StoreError::Conflict { .. }) => (),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// Waits for a change; true if the watches have ended.
async fn any(news: &mut [Watcher]) -> bool {
    if news.is_empty() {
        return pending().await;
    }
    let next = news.iter_mut().map(|it| Box::pin(it.next()));
    select_all(next).await.0.is_err()
}

/// The platform's collections.
async fn read(platforms: &dyn Store, at: ReadAt) -> Result<Vec<Snapshot>, StoreError> {
    let mut all = Vec::with_capacity(KINDS.len());
    for (group, resource, _) in KINDS {
        all.push(platforms.read(&Collection::new(group, resource), at).await?);
    }
    Ok(all)
}

/// What the platform shows of its collections.
fn wanted(platforms: &[Snapshot]) -> Result<Shown, StoreError> {
    let mut shown = Shown::new();
    let prefix = format!("{SYSTEM}//");
    for ((group, resource, _), snapshot) in KINDS.into_iter().zip(platforms) {
        let collection = Collection::new(group, resource);
        for (path, entry) in snapshot.range(&prefix, None) {
            // What somebody wants sealed would lie open among the copies.
            if entry.value.is_sealed() {
                continue;
            }
            let text = entry.value.bytes();
            let it = object::parse(&text).map_err(|error| StoreError::Damaged {
                what: format!("{collection} {path}: {error}"),
            })?;
            if is_for_all(resource, &it) {
                let key = key(collection.as_str(), &path[prefix.len()..]);
                shown.insert(key, value::with_revision(&text, Revision(0)));
            }
        }
    }
    Ok(shown)
}

/// The writes that make the copies those that are wanted.
fn missing(wanted: &Shown, copies: &Snapshot) -> Vec<Write> {
    let write = |key: &str, expect, change| Write::durable(collection(), key, expect, change);
    let mut writes = Vec::new();
    for (key, bytes) in wanted {
        let expect = match copies.get(key) {
            None => Expect::Absent,
            Some(it) if value::with_revision(&it.value.bytes(), Revision(0)) == *bytes => continue,
            Some(it) => Expect::At(it.modified),
        };
        writes.push(write(key, expect, Change::Put(bytes.clone())));
    }
    let surplus = copies.range("", None).filter(|(key, _)| !wanted.contains_key(&***key));
    writes.extend(surplus.map(|(key, it)| write(key, Expect::At(it.modified), Change::Delete)));
    writes
}
