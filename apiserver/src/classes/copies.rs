//! Keeps a copy of the platform's classes in each partition.
//!
//! Every server sees to the partitions that it has; what one did the others find done.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{pending, select_all};
use insula_partition::{
    map::{SYSTEM, ShardKey},
    store::{Change, Collection, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
    watch::Watcher,
};

use super::{KINDS, collection, is_everybodys, key};
use crate::{Server, error::chain};

/// How often it looks when nothing seems to have changed.
const LOOK: Duration = Duration::from_secs(10);
/// How long it waits after something failed.
const AGAIN: Duration = Duration::from_secs(1);

/// The classes by their key among the copies.
type Classes = BTreeMap<String, Bytes>;

/// Runs until the server ends.
pub(crate) async fn follow(server: Arc<Server>) {
    let shutdown = server.shutdown.clone();
    shutdown.run_until_cancelled(run(&server)).await;
}

async fn run(server: &Server) {
    let mut epochs = server.partitions.subscribe();
    let mut news: Vec<Watcher> = Vec::new();
    loop {
        // Before looking, so that nothing is missed between the two.
        if news.is_empty() {
            news = watch(server).unwrap_or_default();
        }
        if let Err(error) = pass(server).await {
            tracing::debug!(error = chain(&error), "classes are copied later");
            tokio::time::sleep(AGAIN).await;
        }
        tokio::select! {
            failed = any(&mut news) => if failed { news.clear() },
            _ = epochs.changed() => (),
            () = tokio::time::sleep(LOOK) => (),
        }
    }
}

/// Watches what is to be copied.
fn watch(server: &Server) -> Result<Vec<Watcher>, StoreError> {
    let store = server.partitions.place(&ShardKey::System).store;
    let after = store.progress();
    let watch = |(group, name, _)| store.watch(&Collection::new(group, name), after);
    KINDS.into_iter().map(watch).collect()
}

/// Waits for a change; true if the watches have ended.
async fn any(news: &mut [Watcher]) -> bool {
    if news.is_empty() {
        return pending().await;
    }
    let next = news.iter_mut().map(|it| Box::pin(it.next()));
    select_all(next).await.0.is_err()
}

/// Brings the copies of this server's partitions up to what there is.
async fn pass(server: &Server) -> Result<(), StoreError> {
    let platforms = server.partitions.place(&ShardKey::System).store;
    let wanted = wanted(&*platforms, ReadAt::Any).await?;
    for name in server.partitions.names() {
        let Some(place) = server.partitions.place_of(&name).filter(|it| it.local) else { continue };
        if missing(&wanted, &*place.store, ReadAt::Any).await?.is_empty() {
            continue;
        }
        // What is at hand may be older than what another server has copied from.
        let newest = self::wanted(&*platforms, ReadAt::Latest).await?;
        let writes = missing(&newest, &*place.store, ReadAt::Latest).await?;
        for done in place.store.write_all(writes).await {
            match done {
                Ok(_) | Err(StoreError::Conflict { .. }) => (),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What the platform has now.
async fn wanted(platforms: &dyn Store, at: ReadAt) -> Result<Classes, StoreError> {
    let mut classes = Classes::new();
    for (group, resource, _) in KINDS {
        let collection = Collection::new(group, resource);
        let snapshot = platforms.read(&collection, at).await?;
        let prefix = format!("{SYSTEM}//");
        for (it, entry) in snapshot.range(&prefix, None) {
            let name = &it[prefix.len()..];
            // What somebody wants sealed would lie open among the copies.
            if is_everybodys(resource, name) || entry.value.is_sealed() {
                continue;
            }
            let bytes = value::with_revision(&entry.value.bytes(), Revision(0));
            classes.insert(key(collection.as_str(), name), bytes);
        }
    }
    Ok(classes)
}

/// The writes that make the copies in `store` those that are wanted.
async fn missing(
    wanted: &Classes,
    store: &dyn Store,
    at: ReadAt,
) -> Result<Vec<Write>, StoreError> {
    let collection = collection();
    let copies = store.read(&collection, at).await?;
    let write = |key: &str, expect, change| Write::durable(collection.clone(), key, expect, change);
    let mut writes = Vec::new();
    for (key, bytes) in wanted {
        let expect = match copies.get(key) {
            None => Expect::Absent,
            Some(copy) => {
                if value::with_revision(&copy.value.bytes(), Revision(0)) == *bytes {
                    continue;
                }
                Expect::At(copy.modified)
            }
        };
        writes.push(write(key, expect, Change::Put(bytes.clone())));
    }
    let surplus = copies.range("", None).filter(|(key, _)| !wanted.contains_key(&***key));
    writes.extend(surplus.map(|(key, it)| write(key, Expect::At(it.modified), Change::Delete)));
    Ok(writes)
}
