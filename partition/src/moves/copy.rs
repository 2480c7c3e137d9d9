//! Copying what a scope holds from one partition to another, again and again, each time only
//! what changed since.
//!
//! # Invariants
//!
//! * What a pass copies gets revisions in the target that are higher than the revision at which
//!   the source was read.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use imbl::ordmap::DiffItem;

use super::MoveError;
use crate::{
    fences::OWN,
    map::{Scope, Shard},
    snapshot::Snapshot,
    store::{Change, Collection, Durability, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
};

/// Writes under way at once.
const AT_ONCE: usize = 128;

/// What a scope's copy works with.
pub(super) struct Copy<'a> {
    pub(super) scope: &'a Scope,
    pub(super) source: &'a dyn Store,
    pub(super) target: &'a dyn Store,
    pub(super) token: u64,
    /// The source as of the last pass.
    seen: BTreeMap<Collection, Snapshot>,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    /// Objects that were written or deleted.
    pub(super) changed: usize,
    /// Objects that the scope has.
    pub(super) objects: usize,
}

impl<'a> Copy<'a> {
    pub(super) fn new(
        scope: &'a Scope,
        source: &'a dyn Store,
        target: &'a dyn Store,
        token: u64,
    ) -> Self {
        Self { scope, source, target, token, seen: BTreeMap::new() }
    }

    /// Makes the target equal to the source as it is now. `progress` hears how many objects were
    /// copied.
    pub(super) async fn pass(
        &mut self,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Pass, MoveError> {
        let mut now = BTreeMap::new();
        for collection in self.source.collections().await? {
            if !collection.as_str().starts_with(OWN) {
                let snapshot = self.source.read(&collection, ReadAt::Latest).await?;
                now.insert(collection, snapshot);
            }
        }
        // Collections that became empty are no longer named.
        for collection in self.seen.keys() {
            if !now.contains_key(collection) {
                let snapshot = self.source.read(collection, ReadAt::Latest).await?;
                now.insert(collection.clone(), snapshot);
            }
        }
        let newest = now.values().map(Snapshot::revision).max().unwrap_or_default();
        self.target.raise(newest).await?;
        let mut pass = Pass::default();
        let mut writes = Vec::new();
        for (collection, snapshot) in &now {
            match self.seen.get(collection) {
                Some(seen) => self.changes(collection, seen, snapshot, &mut writes),
                None => self.differences(collection, snapshot, &mut writes).await?,
            }
            pass.objects += self.count(collection, snapshot);
        }
        // What the target has of collections that the source does not even name.
        if self.seen.is_empty() {
            for collection in self.target.collections().await? {
                if !collection.as_str().starts_with(OWN) && !now.contains_key(&collection) {
                    let copied = self.target.read(&collection, ReadAt::Latest).await?;
                    self.of_scope(&collection, &copied)
                        .for_each(|(key, _)| writes.push(self.delete(&collection, key)));
                }
            }
        }
        pass.changed = writes.len();
        write_all(self.target, writes, NewerMoves::Stop, progress).await?;
        self.seen = now;
        Ok(pass)
    }

    fn of_scope<'s>(
        &'s self,
        collection: &'s Collection,
        snapshot: &'s Snapshot,
    ) -> impl Iterator<Item = (&'s Arc<str>, &'s crate::snapshot::Entry)> + 's {
        of_scope(self.scope, collection, snapshot)
    }

    fn count(&self, collection: &Collection, snapshot: &Snapshot) -> usize {
        self.of_scope(collection, snapshot).count()
    }

    /// All that the target lacks, has otherwise, or has too much.
    async fn differences(
        &self,
        collection: &Collection,
        snapshot: &Snapshot,
        writes: &mut Vec<Write>,
    ) -> Result<(), MoveError> {
        let copied = self.target.read(collection, ReadAt::Latest).await?;
        for (key, entry) in self.of_scope(collection, snapshot) {
            let same = copied.entries.get(key).is_some_and(|have| {
                let plain = |value| value::with_revision(value, Revision(0));
                // What an earlier move left here is too old: revisions must not go back.
                entry.modified < have.modified
                    && plain(&have.value.stored()) == plain(&entry.value.stored())
            });
            if !same {
                writes.push(self.put(collection, key, entry));
            }
        }
        for (key, _) in self.of_scope(collection, &copied) {
            if !snapshot.entries.contains_key(key) {
                writes.push(self.delete(collection, key));
            }
        }
        Ok(())
    }

    /// What changed in the source between two passes.
    fn changes(
        &self,
        collection: &Collection,
        seen: &Snapshot,
        now: &Snapshot,
        writes: &mut Vec<Write>,
    ) {
        for change in seen.entries.diff(&now.entries) {
            let (key, entry) = match change {
                DiffItem::Add(key, entry) => (key, Some(entry)),
                DiffItem::Update { new: (key, entry), .. } => (key, Some(entry)),
                DiffItem::Remove(key, _) => (key, None),
            };
            if self.scope.contains(Shard::of(collection.as_str(), key)) {
                writes.push(match entry {
                    Some(entry) => self.put(collection, key, entry),
                    None => self.delete(collection, key),
                });
            }
        }
    }

    fn put(
        &self,
        collection: &Collection,
        key: &Arc<str>,
        entry: &crate::snapshot::Entry,
    ) -> Write {
        self.write(collection, key, Change::Put(entry.value.stored().into_owned()))
    }

    fn delete(&self, collection: &Collection, key: &Arc<str>) -> Write {
        self.write(collection, key, Change::Delete)
    }

    fn write(&self, collection: &Collection, key: &Arc<str>, change: Change) -> Write {
        Write {
            collection: collection.clone(),
            key: key.clone(),
            expect: Expect::Anything,
            change,
            durability: Durability::Durable,
            by_move: Some(self.token),
            within: None,
            epoch: None,
        }
    }
}

fn of_scope<'s>(
    scope: &'s Scope,
    collection: &'s Collection,
    snapshot: &'s Snapshot,
) -> impl Iterator<Item = (&'s Arc<str>, &'s crate::snapshot::Entry)> + 's {
    // A tenant's keys lie together.
    let prefix = match scope {
        Scope::Tenant(name) => name.as_str(),
        Scope::Slots(_) => "",
    };
    snapshot
        .range_of_all(prefix, None)
        .filter(|(key, _)| scope.contains(Shard::of(collection.as_str(), key)))
}

/// Deletes everything that a partition has of a scope that is closed or importing there, but what
/// a newer move has brought back meanwhile: that one also sees to what was left.
pub(super) async fn delete_all(
    store: &dyn Store,
    scope: &Scope,
    token: u64,
) -> Result<(), MoveError> {
    let mut writes = Vec::new();
    for collection in store.collections().await? {
        if collection.as_str().starts_with(OWN) {
            continue;
        }
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        for (key, _) in of_scope(scope, &collection, &snapshot) {
            writes.push(Write {
                collection: collection.clone(),
                key: key.clone(),
                expect: Expect::Anything,
                change: Change::Delete,
                durability: Durability::Durable,
                by_move: Some(token),
                within: None,
                epoch: None,
            });
        }
    }
    write_all(store, writes, NewerMoves::Own, &|_| {}).await
}

/// What becomes of a write to what belongs to a newer move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NewerMoves {
    /// It is left out.
    Own,
    /// It is an error.
    Stop,
}

async fn write_all(
    store: &dyn Store,
    writes: Vec<Write>,
    newer: NewerMoves,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), MoveError> {
    let done = std::sync::atomic::AtomicUsize::new(0);
    let write = |write: Write| {
        let done = &done;
        async move {
            let what = format!("{} {}", write.collection, write.key);
            match store.write(write).await {
                // What was to be deleted is gone.
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(StoreError::Moving { .. }) if newer == NewerMoves::Own => {}
                Err(error @ StoreError::TooLarge { .. }) => {
                    return Err(MoveError::Impossible(format!("{what}: {error}")));
                }
                Err(error) => return Err(error.into()),
            }
            progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
            Ok(())
        }
    };
    stream::iter(writes).map(write).buffer_unordered(AT_ONCE).try_collect().await
}
